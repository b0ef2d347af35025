//! What may be typed after `ssh USER@bastion`.

use clap::{CommandFactory as _, Parser, Subcommand};

use super::{ListEvents, OwnCertificate, OwnKeys, OwnOtp, SessionCommand, said_in_one_line};
use crate::audit::chain::Anchor;
use crate::domain::printable;

/// What may be typed after `ssh USER@bastion`.
#[derive(Debug, Parser)]
#[command(
    name = "ssh USER@bastion",
    disable_help_subcommand = true,
    max_term_width = 80,
    no_binary_name = true
)]
pub struct Console {
    /// Show lists and details as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: ConsoleCommand,
}

/// The commands of a session on the bastion itself.
#[derive(Debug, Subcommand)]
pub enum ConsoleCommand {
    /// What can be typed here
    Help,
    /// The targets granted to you, and the lines that lead there
    Targets,
    /// The line for ~/.ssh/known_hosts that makes ssh trust the bastion and your targets
    KnownHosts,
    /// Your own sessions, newest first
    Sessions,
    /// A block for ~/.ssh/config that leads to the bastion and your targets
    SshConfig,
    /// Your authenticator: bound since, last used, recovery codes left; unbind, rebind, codes
    Otp {
        /// What to do about it; without, it is shown
        #[command(subcommand)]
        what: Option<OwnOtp>,
    },
    /// Choose another password; asks for a code and the old one first. Your other sessions end
    Passwd,
    /// Your public keys: add, remove; without either, they are listed
    Keys {
        /// What to do about them; without, they are listed
        #[command(subcommand)]
        what: Option<OwnKeys>,
    },
    /// Get a certificate for a public key on standard input: it lets you in without a code for a while
    #[command(
        after_help = "Takes a login with a code, and has to be the first thing on its own connection, within a minute after\nthe code. Without a command a certificate is made:\n\nExample: ssh -F none alice@bastion certificate < ~/.ssh/id_ed25519.pub > ~/.ssh/sallyport-cert.pub"
    )]
    Certificate {
        /// What to do about those that you have
        #[command(subcommand)]
        what: Option<OwnCertificate>,
    },
    /// Sessions: list, show, play, watch, search, export (auditors), kill (administrators)
    #[command(subcommand)]
    Session(SessionCommand),
    /// The audit log: list, verify, export (auditors, administrators)
    #[command(subcommand)]
    Audit(ConsoleAudit),
}

/// `ssh USER@bastion audit ...`: as on the host, without its files.
#[derive(Debug, Subcommand)]
pub enum ConsoleAudit {
    /// List events, newest first
    List(Box<ListEvents>),
    /// Check that no event was edited, dropped, reordered, inserted or cut off
    Verify {
        /// An event's number and hash, noted before
        #[arg(long = "anchor", value_name = "SEQ:HASH")]
        anchors: Vec<Anchor>,
    },
    /// Every event as a line of JSON, and a signed checkpoint at the end
    Export,
}

/// Parses the command of a session on the bastion itself.
///
/// # Errors
/// Help or an error as text to show, and whether it is an error.
pub fn parse_console(words: &str) -> Result<Console, (String, bool)> {
    let usage = |text: String| (format!("sallyport: {text} (see 'help')\n"), true);
    let words = split(words).map_err(usage)?;
    Console::try_parse_from(words).map_err(|error| match said_in_one_line(&error) {
        Some(line) => usage(line),
        None => {
            let text: Vec<String> = error.render().to_string().lines().map(printable).collect();
            (format!("{}\n", text.join("\n")), error.use_stderr())
        }
    })
}

/// The help of a session on the bastion itself.
pub fn console_help() -> String {
    Console::command().render_help().to_string()
}

/// Splits words as a shell does: blanks, quotes, backslashes; nothing is expanded.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => word.extend(chars.next()),
                        Some(other) => word.push(other),
                        None => return Err("a quote is not closed".to_owned()),
                    }
                }
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_parse_words_and_never_echo_raw_bytes() {
        assert!(matches!(parse_console("targets").unwrap().command, ConsoleCommand::Targets));
        assert!(parse_console("session list --json").unwrap().json);
        assert_eq!(split(r#"a 'b c' "d\"e" f\ g"#).unwrap(), ["a", "b c", "d\"e", "f g"]);
        assert!(split("'open").is_err());
        for hostile in ["", "\x1b[2J", "session show \x1b]0;x\x07", "user add x", "'"] {
            let (text, _) = parse_console(hostile).unwrap_err();
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        }
    }
}
