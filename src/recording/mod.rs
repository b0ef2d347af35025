//! What is kept of a recorded session: written as it happens, played, searched and thrown away.
//!
//! Always holds: a recording is an asciicast v2 file, so it can be played without this program;
//! nothing from it reaches a terminal unless the [`terminal::Sanitizer`] let it through; memory is
//! bounded whatever a recording holds. Times come in as parameters: nothing here reads the calendar.

pub mod asciicast;
mod seal;
pub mod writer;

pub use asciicast::Header;
pub use writer::{Failure, Limits, Recorder, Writer};
