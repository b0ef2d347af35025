//! `session ...`, on the host and in a session on the bastion.

use clap::{Args, Subcommand};

use crate::domain::{IdPrefix, TargetName, UserName};

/// `session ...`
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// List sessions, newest first
    List {
        /// Only those that have not ended
        #[arg(long)]
        live: bool,
        /// Only this user's
        #[arg(long, value_name = "U")]
        user: Option<UserName>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
    },
    /// Show a session with its recordings, commands, files and forwards
    Show {
        /// Its id, or the beginning of it
        id: IdPrefix,
    },
    /// Play a recording in the terminal
    #[command(
        after_help = "Keys: space pauses, . steps, left and right seek 5 s, + and - change the speed, q ends.\nExample: session play 3f --speed 4 --idle 1"
    )]
    Play(PlaySession),
    /// Watch a live recording; q ends
    Watch {
        /// The id of a recording, or of a session with one, or the beginning of it
        id: IdPrefix,
    },
    /// End sessions
    Kill {
        /// Their ids, or the beginnings of them
        #[arg(required = true)]
        ids: Vec<IdPrefix>,
    },
    /// Find a text in what was on the screens of recorded sessions, newest first
    #[command(after_help = "Example: session search 'DROP TABLE' --ignore-case --target db1")]
    Search(SearchSessions),
    /// Write a recording as asciicast, which asciinema plays, or as text
    #[command(after_help = "Example: session export 3f > 3f.cast")]
    Export(ExportSession),
}

/// `session play`
#[derive(Debug, Args)]
pub struct PlaySession {
    /// The id of a recording, or of a session with one, or the beginning of it
    pub id: IdPrefix,
    /// How many times as fast as it happened
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    pub speed: f64,
    /// The longest time in seconds that nothing may happen for
    #[arg(long, value_name = "S", value_parser = positive)]
    pub idle: Option<f64>,
    /// Begin so many seconds in
    #[arg(long, value_name = "S", default_value_t = 0.0, value_parser = seconds)]
    pub from: f64,
    /// Write everything as it was recorded: your terminal obeys whatever it says
    #[arg(long)]
    pub raw: bool,
}

/// `session search`
#[derive(Debug, Args)]
pub struct SearchSessions {
    /// What to find
    #[arg(value_parser = needle)]
    pub text: String,
    /// Take capital and small letters for the same
    #[arg(long, short)]
    pub ignore_case: bool,
    /// Only on this target
    #[arg(long, value_name = "T")]
    pub target: Option<TargetName>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: u32,
}

/// `session export`
#[derive(Debug, Args)]
pub struct ExportSession {
    /// The id of a recording, or of a session with one, or the beginning of it
    pub id: IdPrefix,
    /// The text of the screen, with times, in place of asciicast
    #[arg(long)]
    pub text: bool,
}

/// The most seconds that make sense: a year.
const YEAR: f64 = 366.0 * 86_400.0;

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| (0.0..YEAR).contains(n));
    number.ok_or_else(|| format!("{text:?} is not a number from 0 on"))
}

fn positive(text: &str) -> Result<f64, String> {
    seconds(text).ok().filter(|n| *n > 0.0).ok_or_else(|| format!("{text:?} is not above 0"))
}

fn needle(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("there is nothing to find".to_owned()) } else { Ok(text.to_owned()) }
}
