//! `sallyport user ...`, and what answers for a second step, of users and groups.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::domain::{
    RadiusMode, Role, RuleOrDefault, SecondFactor, UnknownWord, UserName, Verifier,
};

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
        factor: Option<Verifier>,
        /// How RADIUS is asked: code, both or challenge [default: radius.mode of the configuration]
        #[arg(long, requires = "factor")]
        mode: Option<RadiusMode>,
        /// A file with public keys, as in authorized_keys
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// List users
    List,
    /// Show a user with groups, keys, locks and wrong codes
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
    /// Lift every lock of a user, and forget wrong codes
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

pub(super) const FACTORS: &str = "\
Examples:
  sallyport user factor alice radius --mode challenge
  sallyport group factor staff radius
  sallyport user factor breakglass totp    lets her in when no RADIUS server answers
Modes:
  code       our password; then the code, which goes to the server
  both       password and code both go to the server; our password is not used
  challenge  our password; then whatever the server asks";

pub(super) const SIGN_IN: &str = "\
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
type FactorOrNone = Option<Verifier>;

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
    factor: Option<Verifier>,
    mode: Option<RadiusMode>,
) -> Result<Option<SecondFactor>, String> {
    if mode.is_some() && factor != Some(Verifier::Radius) {
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
