//! What users do about their own account over SSH.

use clap::Subcommand;

use crate::domain::IdPrefix;

/// `ssh USER@bastion otp ...`
#[derive(Debug, Subcommand)]
pub enum OwnOtp {
    /// Unbind your authenticator; another is bound at the next login. Your other sessions end
    #[command(
        after_help = "Asks for a code of the authenticator, or a recovery code, first. Prints a one-time password,\nwhich the next login takes in place of the one you have.\nExample: ssh -t alice@bastion otp unbind"
    )]
    Unbind,
    /// Bind another authenticator in the place of this one. Your other sessions end
    #[command(
        after_help = "Asks for a code of the old authenticator, or a recovery code, first. The old one works until a\ncode of the new one was given.\nExample: ssh -t alice@bastion otp rebind"
    )]
    Rebind,
    /// Make new recovery codes; the old ones are void
    #[command(
        after_help = "Asks for a code of the authenticator first.\nExamples: ssh -t alice@bastion otp codes\n          echo 492039 | ssh alice@bastion otp codes > codes"
    )]
    Codes,
    /// List your logins that are remembered: from there, with that key, no code is asked for
    Remembered,
    /// Forget remembered logins: a code is asked for at the next one
    Forget {
        /// One of them, by its id or the beginning of it; all, if not said
        login: Option<IdPrefix>,
    },
}

/// `ssh USER@bastion certificate ...`
#[derive(Debug, Subcommand)]
pub enum OwnCertificate {
    /// List your certificates that hold
    List,
    /// Revoke one before its time is over; sessions that it opened end
    Revoke {
        /// Its serial number, as the list shows it
        serial: i64,
    },
}

/// `ssh USER@bastion keys ...`
#[derive(Debug, Subcommand)]
pub enum OwnKeys {
    /// Add public keys from standard input, or one that is pasted into the terminal
    #[command(
        after_help = "On a terminal a key and a code are asked for. Without one, the code of the sign-in does, if the command is\nthe first thing on its connection and follows within a minute; else a line with a code follows the keys:\n\nExamples: ssh alice@bastion keys add < ~/.ssh/id_ed25519.pub\n          ssh -t alice@bastion keys add\n          (cat ~/.ssh/id_ed25519.pub; echo code 492039) | ssh alice@bastion keys add"
    )]
    Add,
    /// Remove a key by its fingerprint. Your other sessions end
    #[command(
        after_help = "Asks for a code first: of the authenticator, or one that the RADIUS server wants which checks yours.\nExample: ssh -t alice@bastion keys remove SHA256:..."
    )]
    Remove {
        /// As 'keys' shows it: SHA256:...
        fingerprint: String,
    },
}
