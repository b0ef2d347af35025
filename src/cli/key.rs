//! `sallyport ca ...` and `sallyport key ...`.

use std::path::PathBuf;

use clap::Subcommand;

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
