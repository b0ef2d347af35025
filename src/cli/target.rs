//! `sallyport target ...`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::domain::{
    AccountAuth, AccountName, Label, Mode, RuleOrDefault, TargetAddress, TargetName,
};

/// `sallyport target ...`
#[derive(Debug, Subcommand)]
pub enum TargetCommand {
    /// Register a target
    #[command(
        after_help = "Examples:\n  sallyport target add db1 10.0.0.5 --label env=prod\n  sallyport target add pg1 pg1.internal:5432 --mode tunnel\n\nA target in record mode needs its host key pinned before anybody gets there: 'sallyport target pin'."
    )]
    Add {
        /// The name people type
        name: TargetName,
        /// Where it is: HOST or HOST:PORT
        address: TargetAddress,
        /// record: an SSH server whose sessions are recorded; tunnel: anything, passed on unseen
        #[arg(long, default_value_t = Mode::Record)]
        mode: Mode,
        /// A mark by which grants can mean many targets
        #[arg(long = "label", value_name = "K=V")]
        labels: Vec<Label>,
    },
    /// List targets
    List,
    /// Show a target, its accounts, its host keys and who is granted it
    Show {
        /// Which
        name: TargetName,
    },
    /// Remove a target, and the grants for it alone
    Remove {
        /// Which
        name: TargetName,
    },
    /// Trust a target's host key: the one it shows now, or one from a file
    #[command(
        after_help = "Examples:\n  sallyport target pin db1\n  sallyport target pin db1 --key-file db1.pub\n  sallyport target pin db1 --key-file host_ca.pub --authority\n\nCompare the fingerprint with 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on the target."
    )]
    Pin {
        /// Which
        name: TargetName,
        /// A file with the public key, in place of asking the target
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// The key is an authority's, which signs host certificates
        #[arg(long, requires = "key_file")]
        authority: bool,
        /// Trust no other key of this target any more
        #[arg(long)]
        replace: bool,
    },
    /// Trust no host key of a target any more
    Unpin {
        /// Which
        name: TargetName,
    },
    /// Say which factors whoever wants to reach a target must have signed in with
    #[command(after_help = super::user::SIGN_IN)]
    SignIn {
        /// Which
        name: TargetName,
        /// The rule; or default, for none
        rule: RuleOrDefault,
    },
    /// Accounts on targets, and how the bastion signs in as them
    #[command(subcommand)]
    Account(AccountCommand),
}

/// `sallyport target account ...`
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Say how the bastion signs in on a target as one of its accounts
    #[command(
        after_help = "Examples:\n  sallyport target account add db1 root\n  sallyport target account add db1 deploy --auth key --secret-stdin < deploy_key\n\nca: a certificate by the user CA, which the target must trust ('sallyport ca show user').\nagent: a key of the agent that the user forwards. ask: the target's own questions.\nWithout an account of that name here, ca is tried and then ask."
    )]
    Add {
        /// The target
        target: TargetName,
        /// The account's name there
        account: AccountName,
        /// ca, key, password, agent or ask
        #[arg(long, default_value_t = AccountAuth::Ca)]
        auth: AccountAuth,
        /// Read the private key or password from standard input
        #[arg(long)]
        secret_stdin: bool,
    },
    /// List a target's accounts
    List {
        /// The target
        target: TargetName,
    },
    /// Forget an account, and its secret
    Remove {
        /// The target
        target: TargetName,
        /// The account's name there
        account: AccountName,
    },
}
