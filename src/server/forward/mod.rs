//! The data path of a forward: dial, and pump bytes both ways.
//!
//! Always holds: the client's channel is drained all the time, so that one slow target never makes
//! the connection's task wait; what is not yet written is counted against a budget, and the budget
//! closes the client's window (`flow`). Reading order: `pump`, `queue`, `flow`, `dial`.

pub mod dial;
pub mod flow;
mod pump;
mod queue;

pub use flow::{Budget, ChannelFlow, ConnectionFlow, FlowLimits};
pub(super) use pump::pump;
pub use pump::{End, PumpLimits};
pub(super) use queue::Pieces;
