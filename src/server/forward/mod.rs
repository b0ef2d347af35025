//! The data path of a forward: dial, and pump bytes both ways.
//!
//! Always holds: the client's channel is drained all the time, so that one slow target never makes
//! the connection's task wait; what is not yet written is counted against a budget, and the budget
//! closes the client's window (`flow`, `budget`). Reading order: `pump`, `queue`, `flow`, `budget`, `dial`,
//! `known`.

mod budget;
pub mod dial;
pub mod flow;
pub mod known;
mod pump;
mod queue;

pub use budget::Budget;
pub use flow::{ChannelFlow, ConnectionFlow, FlowLimits};
pub(super) use pump::pump;
pub use pump::{End, PumpLimits};
pub(super) use queue::Pieces;
