//! `sallyport group ...`.

use clap::Subcommand;

use super::user::{FACTORS, FactorArgs, SIGN_IN};
use crate::domain::{GroupName, Remember, RuleOrDefault, UserName};

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
