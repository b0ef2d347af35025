//! A client of little cost, for many connections at a time.

use std::sync::Arc;

use russh::client::{self, AuthResult, KeyboardInteractiveAuthResponse};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};

use crate::support::people::PASSWORD;

pub struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// A connection to a jump host, and its channel to the target if it has one.
pub struct Open {
    pub _handle: client::Handle<Anybody>,
    pub channel: Option<russh::Channel<client::Msg>>,
}

/// What a client signs in with.
pub enum Factors<'a> {
    /// A key, and a code if one is asked for.
    Key { key: Arc<PrivateKey>, code: &'a str },
    /// A password and a code.
    Password { code: &'a str },
}

/// Signs in on the jump host at `port`, and opens a channel `to` a host and port.
pub async fn open(port: u16, user: &str, factors: Factors<'_>, to: Option<(&str, u16)>) -> Open {
    let config = Arc::new(client::Config::default());
    let mut handle = client::connect(config, ("127.0.0.1", port), Anybody).await.unwrap();
    let (first, code) = match factors {
        Factors::Key { key, code } => {
            let key = PrivateKeyWithHashAlg::new(key, None);
            (handle.authenticate_publickey(user, key).await.unwrap(), code)
        }
        Factors::Password { code } => {
            (handle.authenticate_password(user, PASSWORD).await.unwrap(), code)
        }
    };
    if !matches!(first, AuthResult::Success) {
        answer(&mut handle, user, code).await;
    }
    let mut channel = None;
    if let Some((host, port)) = to {
        let opened = handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0).await;
        channel = Some(opened.unwrap());
    }
    Open { _handle: handle, channel }
}

async fn answer(handle: &mut client::Handle<Anybody>, user: &str, code: &str) {
    let mut asked = handle.authenticate_keyboard_interactive_start(user, None).await.unwrap();
    loop {
        asked = match asked {
            KeyboardInteractiveAuthResponse::Success => return,
            KeyboardInteractiveAuthResponse::Failure { .. } => panic!("{user} was refused"),
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                let answers = prompts.iter().map(|_| code.to_owned()).collect();
                handle.authenticate_keyboard_interactive_respond(answers).await.unwrap()
            }
        };
    }
}
