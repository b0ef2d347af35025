//! `sallyport grant ...` and `sallyport explain`.

use std::net::IpAddr;

use clap::{Args, Subcommand};

use crate::domain::{
    AccountName, Capability, GroupName, Hours, IdPrefix, Label, TargetAddress, TargetName,
    UserName, When, network,
};

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
