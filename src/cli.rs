//! The command line: types only, parsed straight into the words of [`crate::domain`].
//!
//! Names and meanings are a contract. The same types parse `sallyport ...` on the host and
//! `ssh admin@bastion ...` in a session ([`parse_console`]).

mod own;
mod session;
mod target;

pub use own::{OwnCertificate, OwnKeys, OwnOtp};
pub use session::{ExportSession, PlaySession, SearchSessions, SessionCommand};
pub use target::{AccountCommand, TargetCommand};

use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::audit::chain::Anchor;
use crate::audit::kinds;
use crate::domain::{
    AccountName, Capability, Factor, GroupName, Hours, IdPrefix, Label, RadiusMode, Remember, Role,
    RuleOrDefault, SecondFactor, TargetAddress, TargetName, UnknownWord, UserName, When, network,
    printable,
};

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

/// `sallyport user ...`
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user; prints a one-time password unless one is given
    #[command(
        after_help = "Examples:\n  sallyport user add alice\n  sallyport user add bob --role admin --password-stdin < file"
    )]
    Add {
        /// The name to sign in with
        name: UserName,
        /// user, auditor or admin
        #[arg(long, default_value_t = Role::User)]
        role: Role,
        /// Read a permanent password from standard input; it binds the authenticator as well
        #[arg(long)]
        password_stdin: bool,
        /// totp or radius; if not said, what their groups say, or totp
        #[arg(long)]
        factor: Option<Factor>,
        /// How RADIUS is asked: code, both or challenge [default: radius.mode of the configuration]
        #[arg(long, requires = "factor")]
        mode: Option<RadiusMode>,
        /// A file with public keys, as in authorized_keys
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// List users
    List,
    /// Show a user with groups, keys and locks
    Show {
        /// Whom
        name: UserName,
    },
    /// Disable a user; their sessions end
    Disable {
        /// Whom
        name: UserName,
        /// Also the last administrator
        #[arg(long)]
        force: bool,
    },
    /// Enable a disabled user
    Enable {
        /// Whom
        name: UserName,
    },
    /// Lift every lock of a user
    Unlock {
        /// Whom
        name: UserName,
    },
    /// Remove a user; their sessions end, their past sessions stay on record
    Remove {
        /// Whom
        name: UserName,
        /// Also the last administrator
        #[arg(long)]
        force: bool,
    },
    /// Set a new password; prints a one-time one unless one is given
    Passwd {
        /// Whose
        name: UserName,
        /// Read a permanent password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Say what answers for a user's second step; their sessions end
    #[command(after_help = FACTORS)]
    Factor {
        /// Whose
        name: UserName,
        /// Which factor, and how
        #[command(flatten)]
        second: FactorArgs,
    },
    /// Say which factors a user has to sign in with; sessions end that were signed in with less
    #[command(after_help = SIGN_IN)]
    SignIn {
        /// Whose
        name: UserName,
        /// The rule; or default, for what their groups say
        rule: RuleOrDefault,
    },
    /// Public keys of a user
    #[command(subcommand)]
    Key(UserKeyCommand),
}

const FACTORS: &str = "\
Examples:
  sallyport user factor alice radius --mode challenge
  sallyport group factor staff radius
  sallyport user factor breakglass totp    lets her in when no RADIUS server answers
Modes:
  code       our password; then the code, which goes to the server
  both       password and code both go to the server; our password is not used
  challenge  our password; then whatever the server asks";

pub(crate) const SIGN_IN: &str = "\
Examples:
  sallyport user sign-in ci 'key from 10.2.0.0/16'
  sallyport group sign-in dba key+otp
  sallyport target sign-in db1 'key+otp, certificate+otp'
A rule is one or more combinations of password, key, certificate and otp, with commas between; each is
enough. One without otp names the networks that it holds from, and is more than a password.
A user's own rule stands in the place of their groups'. What is given must be enough for the rules of
all their groups. Where nothing is set: password+otp, key+otp, certificate+otp.
A target's rule is for what somebody signed in with; default: whatever let them in is enough.";

/// A factor as it is set for a user or a group.
#[derive(Debug, Args)]
pub struct FactorArgs {
    /// totp, radius; or none, to set nothing here
    #[arg(value_parser = factor_or_none)]
    factor: FactorOrNone,
    /// How RADIUS is asked: code, both or challenge [default: radius.mode of the configuration]
    #[arg(long)]
    mode: Option<RadiusMode>,
}

/// What clap may not take for an argument that can be left out.
type FactorOrNone = Option<Factor>;

fn factor_or_none(text: &str) -> Result<FactorOrNone, String> {
    match text {
        "none" => Ok(None),
        text => text.parse().map(Some).map_err(|error: UnknownWord| format!("{error}, or none")),
    }
}

impl FactorArgs {
    /// What is set; `None`: nothing.
    ///
    /// # Errors
    /// When there is a mode and no RADIUS.
    pub fn second(&self) -> Result<Option<SecondFactor>, String> {
        second(self.factor, self.mode)
    }
}

/// A factor and a mode together.
///
/// # Errors
/// When there is a mode and no RADIUS.
pub fn second(
    factor: Option<Factor>,
    mode: Option<RadiusMode>,
) -> Result<Option<SecondFactor>, String> {
    if mode.is_some() && factor != Some(Factor::Radius) {
        return Err("--mode says how RADIUS is asked: give it with radius only".to_owned());
    }
    Ok(factor.map(|factor| SecondFactor { factor, mode }))
}

/// `sallyport user key ...`
#[derive(Debug, Subcommand)]
pub enum UserKeyCommand {
    /// Add public keys, read from a file or from standard input
    #[command(after_help = "Example: sallyport user key add alice ~alice/.ssh/id_ed25519.pub")]
    Add {
        /// Whose
        name: UserName,
        /// A file as authorized_keys; standard input if not given
        file: Option<PathBuf>,
    },
    /// List a user's keys
    List {
        /// Whose
        name: UserName,
    },
    /// Remove a key by its fingerprint
    Remove {
        /// Whose
        name: UserName,
        /// As the list shows it: SHA256:...
        fingerprint: String,
    },
}

/// `sallyport group ...`
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Add a group
    Add {
        /// Its name
        group: GroupName,
    },
    /// Remove a group, and the grants for it
    Remove {
        /// Its name
        group: GroupName,
    },
    /// List groups and their members
    List,
    /// Say what answers for the second step of members of whom nothing is set
    #[command(after_help = FACTORS)]
    Factor {
        /// The group
        group: GroupName,
        /// Which factor, and how
        #[command(flatten)]
        second: FactorArgs,
    },
    /// Say for how long no code is asked for from the same address with the same key
    #[command(
        after_help = "Of several groups of a user, the one that says least holds. Nobody is remembered who signed in\nwithout a public key.\n\nExamples:\n  sallyport group remember staff 8h\n  sallyport group remember dba off"
    )]
    Remember {
        /// The group
        group: GroupName,
        /// Such as 8h, counted from the code; off: never; none: what other groups say
        remember: Remember,
    },
    /// Say which factors members without a rule of their own have to sign in with
    #[command(after_help = SIGN_IN)]
    SignIn {
        /// The group
        group: GroupName,
        /// The rule; or default, for none
        rule: RuleOrDefault,
    },
    /// Put a user into a group
    Join {
        /// The group
        group: GroupName,
        /// The user
        user: UserName,
    },
    /// Take a user out of a group
    Leave {
        /// The group
        group: GroupName,
        /// The user
        user: UserName,
    },
}

/// `sallyport otp ...`
#[derive(Debug, Subcommand)]
pub enum OtpCommand {
    /// Show when an authenticator was bound and used, its clock's drift, recovery codes left
    Show {
        /// Whose
        name: UserName,
    },
    /// Unbind an authenticator and let another be bound with a one-time password, which is printed;
    /// sessions end
    #[command(after_help = "\
The one-time password takes the place of the old password: hand it on as after 'user add'. A password
alone, which somebody else may know by now, must not bind an authenticator.
Example: sallyport otp reset alice")]
    Reset {
        /// Whose
        name: UserName,
        /// Keep the password, and let it bind: whoever knows it, a phisher too, can bind first
        #[arg(long)]
        keep_password: bool,
    },
    /// List logins that are remembered: from there, with that key, no code is asked for
    Remembered {
        /// Whose; everybody's, if not said
        name: Option<UserName>,
    },
    /// Forget remembered logins: a code is asked for at the next one
    Forget {
        /// Whose
        name: UserName,
        /// One of them, by its id or the beginning of it; all, if not said
        login: Option<IdPrefix>,
    },
}

/// `sallyport certificate ...`
#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// List the certificates that hold
    List {
        /// Only this user's
        #[arg(long, value_name = "U")]
        user: Option<UserName>,
    },
    /// Revoke one before its time is over; sessions that it opened end
    Revoke {
        /// Its serial number, as the list shows it
        serial: i64,
    },
}

/// `sallyport grant ...`
#[derive(Debug, Subcommand)]
pub enum GrantCommand {
    /// Add a grant
    #[command(
        after_help = "Examples:\n  sallyport grant add --user alice --target db1\n  sallyport grant add --group dba --label env=prod --hours 'Mon-Fri 08:00-18:00 Europe/Berlin' --from 10.0.0.0/8 --until +30d\n  sallyport grant add --group dba --target db1 --account root --step-up\n\nIf one of the grants that hold for an account has --step-up, the code is asked for. A login\ncertificate or a remembered login does not stand for it."
    )]
    Add(Box<GrantAdd>),
    /// List grants
    List,
    /// Remove a grant
    Remove {
        /// Its id, or the beginning of it
        id: IdPrefix,
    },
}

/// `sallyport grant add`
#[derive(Debug, Args)]
pub struct GrantAdd {
    /// For this user
    #[arg(long, value_name = "U", required_unless_present = "group", conflicts_with = "group")]
    pub user: Option<UserName>,
    /// For everybody in this group
    #[arg(long, value_name = "G")]
    pub group: Option<GroupName>,
    /// To this target
    #[arg(long, value_name = "T", required_unless_present = "label", conflicts_with = "label")]
    pub target: Option<TargetName>,
    /// To every target with this label
    #[arg(long, value_name = "K=V")]
    pub label: Option<Label>,
    /// As this account of the target (record mode only); any if not said
    #[arg(long = "account", value_name = "A")]
    pub accounts: Vec<AccountName>,
    /// shell, exec, sftp-read, sftp-write, forward, agent; and, only if said, x11, remote-forward
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub allow: Vec<Capability>,
    /// When it holds, such as 'Mon-Fri 08:00-18:00 Europe/Berlin'
    #[arg(long, value_name = "HOURS")]
    pub hours: Option<Hours>,
    /// From where it holds: a network or an address
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub from: Vec<ipnet::IpNet>,
    /// Until when it holds, such as 2026-12-24T18:00 or +7d
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub until: Option<When>,
    /// Ask for a fresh code at each connection (record mode only)
    #[arg(long)]
    pub step_up: bool,
}

/// `sallyport explain`
#[derive(Debug, Args)]
pub struct Explain {
    /// Whom
    pub user: UserName,
    /// What they would ask for: a target's name, or HOST:PORT
    pub target: TargetAddress,
    /// As this account of the target
    #[arg(long, value_name = "A")]
    pub account: Option<AccountName>,
    /// From this address; from where it is permitted is told, if not said
    #[arg(long, value_name = "IP")]
    pub from: Option<IpAddr>,
    /// At this time [default: now]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub at: Option<When>,
}

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

/// `sallyport ca ...`
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Print the public key of the host or user certificate authority
    #[command(
        after_help = "Example, for ~/.ssh/known_hosts: echo \"@cert-authority bastion.example.org $(sallyport ca show host)\"\n(the certificate is made for [server] public_host, the host's own name, localhost, and the address\nthat a client reaches)"
    )]
    Show {
        /// host or user
        which: Authority,
    },
}

/// A certificate authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Authority {
    /// Signs host keys.
    Host,
    /// Signs users' keys.
    User,
}

/// `sallyport key ...`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// The sealing keys, which of them seals, and how many secrets are under each
    List,
    /// Add a new key to the sealing key file, to be copied to other nodes; it seals nothing yet
    Add {
        /// This file, such as the source of a systemd credential, and not the configured one
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Seal every secret anew, while serving: under a new key, or under one that was added before
    Rotate {
        /// Under this key of the file, which every node must hold
        #[arg(long, value_name = "KEY")]
        to: Option<String>,
    },
}

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
        after_help = "Takes a login with a code. Without a command a certificate is made:\n\nExample: ssh -F none alice@bastion certificate < ~/.ssh/id_ed25519.pub > ~/.ssh/sallyport-cert.pub"
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
