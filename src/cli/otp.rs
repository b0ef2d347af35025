//! `sallyport otp ...` and `sallyport certificate ...`: what stands for a second step, and for how long.

use clap::Subcommand;

use crate::domain::{IdPrefix, UserName};

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
alone, which somebody else may know by now, must not bind an authenticator. Wrong codes are forgotten, and
from where the user signed in with codes.
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
