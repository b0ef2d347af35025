//! The command line: types only, parsed straight into the words of [`crate::domain`].
//!
//! Names and meanings are a contract. The same types parse `sallyport ...` on the host and
//! `ssh admin@bastion ...` in a session ([`parse_console`]).

mod audit;
mod console;
mod grant;
mod group;
mod key;
mod otp;
mod own;
mod session;
mod target;
mod user;

pub use audit::{AuditCommand, ListEvents};
pub use console::{Console, ConsoleAudit, ConsoleCommand, console_help, parse_console};
pub use grant::{Explain, GrantAdd, GrantCommand};
pub use group::GroupCommand;
pub use key::{Authority, CaCommand, KeyCommand};
pub use otp::{CertificateCommand, OtpCommand};
pub use own::{OwnCertificate, OwnKeys, OwnOtp};
pub use session::{ExportSession, PlaySession, SearchSessions, SessionCommand};
pub use target::{AccountCommand, TargetCommand};
pub use user::{FactorArgs, UserCommand, UserKeyCommand, second};

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::domain::printable;

/// An SSH bastion with a one-time-code second factor.
#[derive(Debug, Parser)]
#[command(name = "sallyport", version, max_term_width = 100, after_help = FIRST_STEPS)]
pub struct Cli {
    /// The configuration file [default: $SALLYPORT_CONFIG, ./sallyport.toml, /etc/sallyport/sallyport.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Show JSON: what is listed, shown, checked, explained or verified; new passwords, keys, grants
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

const FIRST_STEPS: &str = "\
First steps:
  sallyport serve                                 make keys, store and an administrator, and serve
  sallyport target add db1 10.0.0.5               register a host
  sallyport user add alice                        add a user; prints a one-time password
  sallyport grant add --user alice --target db1   let them through
  ssh -J alice@bastion:2222 root@db1              what alice types";

/// The commands of the host.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve; the first start makes keys, store and an administrator
    Serve,
    /// Make what serve makes on its first start, without serving
    #[command(after_help = "Example: sallyport init --data-dir /var/lib/sallyport")]
    Init {
        /// Where keys and store go, in place of the configured folder
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Check configuration, keys and store without starting or changing anything
    Check,
    /// Look at clock, keys, store, space, RADIUS servers and host keys; fails if something is broken
    #[command(after_help = "Example: sallyport doctor --json")]
    Doctor,
    /// Users: add, list, show, disable, enable, unlock, remove, passwd, factor, sign-in, key
    #[command(subcommand)]
    User(UserCommand),
    /// Groups of users: add, remove, list, factor, sign-in, remember, join, leave
    #[command(subcommand)]
    Group(GroupCommand),
    /// Authenticators: show, reset; logins that are remembered: remembered, forget
    #[command(subcommand)]
    Otp(OtpCommand),
    /// Certificates that users signed in with a code got: list, revoke
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Targets: add, list, show, remove, pin, unpin, sign-in, account
    #[command(subcommand)]
    Target(TargetCommand),
    /// Grants: add, list, remove
    #[command(subcommand)]
    Grant(GrantCommand),
    /// Say whether a user may reach a target, and why
    #[command(
        after_help = "Example: sallyport explain alice db1 --from 192.0.2.7 --at 2026-12-24T18:00"
    )]
    Explain(Explain),
    /// Sessions: list, show, play, watch, search, export, kill
    #[command(subcommand)]
    Session(SessionCommand),
    /// The audit log: list, verify, key, export
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Certificate authorities: show
    #[command(subcommand)]
    Ca(CaCommand),
    /// The keys that secrets are sealed under: list, add, rotate
    #[command(subcommand)]
    Key(KeyCommand),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example: sallyport completions bash > /etc/bash_completion.d/sallyport"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What is wrong with a command line, in one printable line; `None` if it asked for help, or said so
/// little that help is the answer.
pub fn said_in_one_line(error: &clap::Error) -> Option<String> {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        return None;
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    // What follows is for what "(see --help)" says shorter.
    let is_about_help =
        |line: &&str| line.starts_with("Usage:") || line.starts_with("For more information");
    let said: Vec<&str> = lines.take_while(|line| !is_about_help(line)).collect();
    let line = said.join(" ");
    Some(printable(line.strip_prefix("error: ").unwrap_or(&line)))
}

/// Writes the completion script for `shell`.
pub fn completions(shell: clap_complete::Shell, out: &mut dyn std::io::Write) {
    clap_complete::generate(shell, &mut Cli::command(), "sallyport", out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_fault() {
        Cli::command().debug_assert();
        Console::command().debug_assert();
    }

    #[test]
    fn the_contract_parses() {
        for line in [
            "serve",
            "--config /etc/x.toml serve",
            "init --data-dir d",
            "check",
            "doctor --json",
            "user add alice --role admin --password-stdin --factor totp --key k.pub",
            "user add carol --factor radius --mode both",
            "user factor alice totp",
            "user factor alice radius --mode challenge",
            "group factor dba none",
            "user sign-in alice key+otp",
            "user sign-in alice default",
            "group sign-in dba password+otp,key+otp",
            "target sign-in db1 key+otp",
            "user list --json",
            "user key add alice",
            "user key remove alice SHA256:abc",
            "user passwd alice",
            "group join dba alice",
            "otp reset alice",
            "otp remembered",
            "otp remembered alice --json",
            "otp forget alice 0123",
            "group remember dba 8h",
            "group remember dba off",
            "certificate list --user alice --json",
            "certificate revoke 4711",
            "target add db1 10.0.0.5:2222 --mode tunnel --label env=prod --label tier=1",
            "grant add --user alice --target db1 --account root --allow shell,exec,forward --until +7d",
            "grant add --group dba --label env=prod --from 10.0.0.0/8 --from 192.0.2.7",
            "explain alice db1 --account root --from 192.0.2.7 --at -2h --json",
            "session list --live --user alice --json",
            "session kill 0123 4567",
            "audit verify",
            "audit export --output x",
            "audit key",
            "audit list --kind signed-in --session 0123",
            "ca show host",
            "key rotate",
            "completions bash",
        ] {
            let parsed = Cli::try_parse_from(std::iter::once("sallyport").chain(line.split(' ')));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
        for line in [
            "user add Alice",
            "user add alice --mode code",
            "user factor alice sms",
            "user sign-in ci key",
            "group sign-in dba password",
            "user factor alice radius --mode push",
            "grant add --user alice",
            "grant add --target db1",
            "grant add --user a --group b --target c",
            "grant add --user a --target db1 --from 10.0.0.0/99",
            "target add db1 10.0.0.5:0",
            "session kill",
            "session show ?",
            "audit list --kind sign-in",
        ] {
            let parsed = Cli::try_parse_from(std::iter::once("sallyport").chain(line.split(' ')));
            assert!(parsed.is_err(), "{line}");
        }
    }
}
