//! Asks RADIUS servers on behalf of one login.
//!
//! Always holds: whatever keeps a server from answering is no accept; no wait outlives the login.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use super::connection::Connection;
use crate::audit::RadiusVerdict;
use crate::auth::machine::{RadiusAnswer, RadiusFault};
use crate::domain::{UserName, printable};
use crate::radius::{Client, Error, Request, State, Verdict};

/// Characters of an error that are kept: it names each server and says why.
const MAX_ERROR: usize = 2000;

/// What connections need to ask RADIUS servers.
#[derive(Debug, Clone, Default)]
pub struct RadiusSettings {
    /// Asks them; `None` if there are none.
    pub client: Option<Arc<Client>>,
    /// The least time from a question to its refusal.
    pub refusal_wait: Duration,
}

/// What a server left for the answer to its challenge.
#[derive(Debug, Default)]
pub(super) struct Dialog(Option<State>);

impl Dialog {
    /// Asks about `user`, to begin with (`round` 0) or in answer to the last challenge.
    pub(super) async fn ask(
        &mut self,
        conn: &Connection,
        user: &UserName,
        password: &SecretString,
        round: u32,
    ) -> Result<RadiusAnswer, RadiusFault> {
        let unanswered = |why: &str| RadiusFault::Unanswered(why.to_owned());
        let state = self.0.take().filter(|_| round > 0);
        if round > 0 && state.is_none() {
            return Err(unanswered("the challenge that this answers is lost"));
        }
        let Some(client) = &conn.settings.radius.client else {
            return Err(unanswered("no RADIUS server is configured"));
        };
        let source = conn.source.ip().to_string();
        let request = Request { user: user.as_str(), password, calling_station: &source, state };
        let reply = tokio::select! {
            reply = client.authenticate(request) => reply.map_err(fault)?,
            () = conn.login_is_over() => return Err(unanswered("the login was over before")),
        };
        let verdict = match reply.verdict {
            Verdict::Accept => RadiusVerdict::Accept,
            Verdict::Reject => RadiusVerdict::Reject,
            Verdict::Challenge(state) => {
                self.0 = Some(state);
                RadiusVerdict::Challenge
            }
        };
        Ok(RadiusAnswer { server: reply.server, verdict, message: reply.message })
    }
}

fn fault(error: Error) -> RadiusFault {
    let text: String = error.to_string().chars().take(MAX_ERROR).collect();
    match error {
        Error::Invalid(_) => RadiusFault::Unaskable(printable(&text)),
        Error::AllDead(_)
        | Error::ChallengeLost(_)
        | Error::OtherUser
        | Error::UnknownServer(_)
        | Error::Busy => {
            tracing::error!(error = %printable(&text), "nobody signs in by RADIUS");
            RadiusFault::Unanswered(printable(&text))
        }
    }
}
