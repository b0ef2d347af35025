//! A client that costs little: what is measured through it is the jump host's limit, not `ssh`'s.

use std::sync::Arc;

use russh::client::{self, AuthResult, KeyboardInteractiveAuthResponse};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};

use crate::bulk::Direction;
use crate::lab::{Lab, Way};

pub struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// A connection to a jump host, and its channel to [`crate::tunnel::serve`].
pub struct Connection {
    pub handle: client::Handle<Anybody>,
    pub channel: russh::Channel<client::Msg>,
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
    pub async fn open(self) -> Connection {
        let config = Arc::new(client::Config { nodelay: true, ..Default::default() });
        let mut handle = client::connect(config, ("127.0.0.1", self.port), Anybody).await.unwrap();
        let key = PrivateKeyWithHashAlg::new(self.key, None);
        let first = handle.authenticate_publickey(&self.user, key).await.unwrap();
        if !matches!(first, AuthResult::Success) {
            answer(&mut handle, &self.user, &self.code).await;
        }
        let to = u32::from(self.to);
        let channel = handle.channel_open_direct_tcpip(self.host, to, "127.0.0.1", 0).await;
        Connection { handle, channel: channel.unwrap() }
    }
}

impl Connection {
    /// Carries bytes to or from [`crate::tunnel::serve`], until all of them arrived.
    pub async fn carry(&mut self, direction: Direction, bytes: usize) {
        let request = crate::tunnel::request(direction, bytes as u64);
        self.channel.data(&request[..]).await.unwrap();
        let expected = match direction {
            Direction::Down => bytes,
            Direction::Up => {
                self.channel.data(&vec![0; bytes][..]).await.unwrap();
                1
            }
        };
        let mut left = expected;
        while left > 0 {
            match self.channel.wait().await {
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
