//! What is kept of a recorded session: written as it happens, played, searched and thrown away.
//!
//! Always holds: a recording is an asciicast v2 file, so it can be played without this program;
//! nothing from it reaches a terminal unless the [`terminal::Sanitizer`] let it through; memory is
//! bounded whatever a recording holds. Times come in as parameters: nothing here reads the calendar.
//!
//! Reading order: [`asciicast`] (the format), [`writer`] (how a session gets into a file, with
//! `usage`, what an account's take), `seal` (its final form), [`terminal`] and [`player`] (showing it),
//! `screen`, [`search`] and [`text`] (reading it), [`retention`] (letting it go).

pub mod asciicast;
pub mod player;
pub mod retention;
mod screen;
mod seal;
pub mod search;
pub mod tail;
pub mod terminal;
pub mod text;
mod usage;
pub mod writer;

pub use asciicast::Header;
pub use writer::{Failure, Limits, Recorder, Writer};
