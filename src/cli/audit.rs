//! `sallyport audit ...`.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use crate::audit::chain::Anchor;
use crate::audit::kinds;
use crate::domain::{IdPrefix, When};

/// `sallyport audit ...`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List events, newest first
    List(ListEvents),
    /// Check that no event was edited, dropped, reordered, inserted or cut off
    #[command(
        after_help = "Every event's hash and signature is checked.\n\nExamples:\n  sallyport audit verify\n  sallyport audit verify audit.jsonl --key-file audit_key.pub --anchor 4711:9f86d0..."
    )]
    Verify {
        /// An export to check, in place of the store
        file: Option<PathBuf>,
        /// The audit key's public half, as 'audit key' prints it; without it the export's own is believed
        #[arg(long, value_name = "FILE", requires = "file")]
        key_file: Option<PathBuf>,
        /// An event's number and hash, noted before
        #[arg(long = "anchor", value_name = "SEQ:HASH")]
        anchors: Vec<Anchor>,
    },
    /// Print the audit key's public half, which an export is checked with elsewhere
    #[command(after_help = "Example: sallyport audit key > audit_key.pub")]
    Key,
    /// Write every event as a line of JSON, and a signed checkpoint at the end
    #[command(after_help = "Example: sallyport audit export --output audit.jsonl")]
    Export {
        /// Where to; standard output if not given
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// `audit list`, on the host and in a session on the bastion.
#[derive(Debug, Args)]
pub struct ListEvents {
    /// Only of this kind, such as signed-in or forward-refused
    #[arg(long, value_name = "K", value_parser = PossibleValuesParser::new(kinds()))]
    pub kind: Option<String>,
    /// Only about this user
    #[arg(long, value_name = "U")]
    pub user: Option<String>,
    /// Only of this session, by its id or the beginning of it
    #[arg(long, value_name = "ID")]
    pub session: Option<IdPrefix>,
    /// Only from this time on
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub since: Option<When>,
    /// Only before this time
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub until: Option<When>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: u32,
}
