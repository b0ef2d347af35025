//! A target that asks for a password, and does what no sshd does: an sshd of ours, since the system's
//! asks for the passwords of the system's accounts.

use std::borrow::Cow;
use std::sync::Arc;

use russh::keys::PrivateKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Handle, Handler, Msg, Response, Session};
use russh::{Channel, ChannelId, MethodKind, MethodSet};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How it lets people in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// With the password `tiger` (RFC 4252 section 8).
    Password,
    /// With `tiger` as the answer to one question (RFC 4256).
    Question,
    /// With `tiger` and `000 111` as the answers to two questions, the second shown as it is typed.
    Questions,
    /// With `tiger` as the answer to [`HOSTILE`], which a terminal would act on.
    Hostile,
}

/// A question that sets the terminal's title, its colour, and where it writes next.
pub const HOSTILE: &str = "\x1b]0;owned\x07Pass\u{9b}31mw\u{202e}ord\x08\r: ";

/// Where it listens when it may choose the port.
pub const ANY_PORT: u32 = 4000;

/// What it answers about this one only when it is told to.
pub const SLOW_PORT: u32 = 4001;

#[derive(Default)]
pub struct Slow {
    /// Told to answer.
    pub asked: Notify,
    /// Tells that the port was given back.
    pub taken_back: Notify,
}

pub struct Played {
    pub port: u16,
    pub slow: Arc<Slow>,
    /// The public half of its host key.
    pub host_key: String,
    task: JoinHandle<()>,
}

impl Drop for Played {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Played {
    pub async fn start(asks: Asks) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key: PrivateKey =
            sallyport::keys::load_or_create(&dir.path().join("key"), "host").unwrap();
        let host_key = key.public_key().to_openssh().unwrap();
        let method = match asks {
            Asks::Password => MethodKind::Password,
            Asks::Question | Asks::Questions | Asks::Hostile => MethodKind::KeyboardInteractive,
        };
        let config = Arc::new(Config {
            methods: MethodSet::from(&[method][..]),
            auth_rejection_time: std::time::Duration::ZERO,
            keys: vec![key],
            ..Config::default()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let slow = Arc::<Slow>::default();
        let slow_too = Arc::clone(&slow);
        let serve = async move {
            let mut sessions = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (config, slow) = (Arc::clone(&config), Arc::clone(&slow_too));
                sessions.spawn(async move {
                    let person = Person { asks, user: String::new(), slow };
                    if let Ok(session) = russh::server::run_stream(config, stream, person).await {
                        session.await.ok();
                    }
                });
            }
        };
        #[allow(clippy::disallowed_methods)] // Its owner is what is returned.
        let task = tokio::spawn(serve);
        Self { port, slow, host_key, task }
    }
}

struct Person {
    asks: Asks,
    user: String,
    slow: Arc<Slow>,
}

fn no() -> Auth {
    Auth::Reject { proceed_with_methods: None, partial_success: false }
}

impl Handler for Person {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, russh::Error> {
        self.user = user.to_owned();
        let right = self.asks == Asks::Password && password == "tiger";
        Ok(if right { Auth::Accept } else { no() })
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, russh::Error> {
        self.user = user.to_owned();
        let password = (Cow::Borrowed("Password: "), false);
        let (prompts, wanted) = match self.asks {
            Asks::Password => return Ok(no()),
            Asks::Question => (vec![password], vec!["tiger"]),
            Asks::Hostile => (vec![(Cow::Borrowed(HOSTILE), false)], vec!["tiger"]),
            Asks::Questions => {
                (vec![password, (Cow::Borrowed("Token: "), true)], vec!["tiger", "000 111"])
            }
        };
        let Some(answers) = response else {
            return Ok(Auth::Partial {
                name: Cow::Borrowed("Played"),
                instructions: Cow::Borrowed("Say who you are.\x1b[2J"),
                prompts: Cow::Owned(prompts),
            });
        };
        let answers: Vec<_> = answers.collect();
        let right = answers.len() == wanted.len()
            && answers.iter().zip(wanted).all(|(given, wanted)| given == wanted.as_bytes());
        Ok(if right { Auth::Accept } else { no() })
    }

    async fn channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        _address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        match *port {
            0 => *port = ANY_PORT,
            SLOW_PORT => self.slow.asked.notified().await,
            _ => {}
        }
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        _address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        if port == SLOW_PORT {
            self.slow.taken_back.notify_one();
        }
        Ok(true)
    }

    async fn streamlocal_forward(
        &mut self,
        _path: &str,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)?;
        session.exit_status_request(channel, 3)?;
        session.eof(channel)?;
        session.close(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let command = String::from_utf8_lossy(command).into_owned();
        session.channel_success(channel)?;
        if let Some(kinds) = command.strip_prefix("open ") {
            let (handle, kinds) = (session.handle(), kinds.to_owned());
            #[allow(clippy::disallowed_methods)] // It ends with the connection.
            tokio::spawn(async move { open(&handle, channel, &kinds).await });
            return Ok(());
        }
        let said = format!("{} runs {command}\n", self.user);
        session.data(channel, said.into_bytes())?;
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }
}

/// Opens channels of these kinds to whoever is connected, one after the other, and says on `channel`
/// what became of each.
async fn open(handle: &Handle, channel: ChannelId, kinds: &str) {
    for kind in kinds.split(' ') {
        let opened = match kind.split_once(':') {
            Some(("port", port)) => {
                let port = port.parse().unwrap();
                handle.channel_open_forwarded_tcpip("localhost", port, "192.0.2.1", 7).await
            }
            Some((_, path)) => handle.channel_open_forwarded_streamlocal(path).await,
            None if kind == "agent" => handle.channel_open_agent().await,
            None if kind == "x11" => handle.channel_open_x11("192.0.2.1", 7).await,
            None => handle.channel_open_session().await,
        };
        let what = if opened.is_ok() { "opened" } else { "refused" };
        handle.data(channel, format!("{kind} {what}\n").into_bytes()).await.ok();
    }
    handle.exit_status_request(channel, 0).await.ok();
    handle.eof(channel).await.ok();
    handle.close(channel).await.ok();
}
