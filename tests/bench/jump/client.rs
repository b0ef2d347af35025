//! A client of little cost, for many connections at a time.

use std::sync::Arc;

use russh::client::{self, AuthResult, KeyboardInteractiveAuthResponse};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};

use crate::bulk::Direction;
use crate::lab::{Lab, Way};
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
    pub handle: client::Handle<Anybody>,
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
    let config = Arc::new(client::Config { nodelay: true, ..Default::default() });
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
    Open { handle, channel }
}

/// What it takes to sign in on a jump host and go on from there.
pub struct Login {
    port: u16,
    key: Arc<PrivateKey>,
    user: String,
    code: String,
    host: &'static str,
    to: u16,
}

impl Login {
    /// A sign-in with a key, and on Sallyport with a code that nobody used yet.
    pub async fn new(lab: &Lab, way: Way) -> Self {
        let (port, key, host) = match way {
            Way::Sshd => (lab.jump.port, lab.jump.identity(), "127.0.0.1"),
            Way::Tunnel | Way::Record => (lab.server.port, lab.target.identity(), "sink"),
        };
        let (user, code) = match way {
            Way::Sshd => (crate::support::present_user(), String::new()),
            Way::Tunnel | Way::Record => lab.code().await,
        };
        let key = Arc::new(russh::keys::load_secret_key(key, None).unwrap());
        Self { port, key, user, code, host, to: lab.sink }
    }

    /// Signs in and opens a channel.
    pub async fn open(self) -> Open {
        let factors = Factors::Key { key: self.key, code: &self.code };
        open(self.port, &self.user, factors, Some((self.host, self.to))).await
    }
}

impl Open {
    /// Carries bytes to or from [`crate::tunnel::serve`], until all of them arrived.
    pub async fn carry(&mut self, direction: Direction, bytes: usize) {
        let channel = self.channel.as_mut().unwrap();
        let request = crate::tunnel::request(direction, bytes as u64);
        channel.data(&request[..]).await.unwrap();
        let expected = match direction {
            Direction::Down => bytes,
            Direction::Up => {
                channel.data(&vec![0; bytes][..]).await.unwrap();
                1
            }
        };
        let mut left = expected;
        while left > 0 {
            match channel.wait().await {
                Some(russh::ChannelMsg::Data { data }) => left -= data.len(),
                Some(_) => {}
                None => panic!("what is behind the jump host said too little"),
            }
        }
    }
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
