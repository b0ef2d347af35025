//! A target that asks for a password: an sshd of ours, since the system's asks for the passwords of
//! the system's accounts.

use std::borrow::Cow;
use std::sync::Arc;

use russh::keys::PrivateKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Response, Session};
use russh::{Channel, ChannelId, MethodKind, MethodSet};
use tokio::net::TcpListener;
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
}

pub struct Played {
    pub port: u16,
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
            Asks::Question | Asks::Questions => MethodKind::KeyboardInteractive,
        };
        let config = Arc::new(Config {
            methods: MethodSet::from(&[method][..]),
            auth_rejection_time: std::time::Duration::ZERO,
            keys: vec![key],
            ..Config::default()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async move {
            let mut sessions = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let config = Arc::clone(&config);
                sessions.spawn(async move {
                    let person = Person { asks, user: String::new() };
                    if let Ok(session) = russh::server::run_stream(config, stream, person).await {
                        session.await.ok();
                    }
                });
            }
        };
        #[allow(clippy::disallowed_methods)] // Its owner is what is returned.
        let task = tokio::spawn(serve);
        Self { port, host_key, task }
    }
}

struct Person {
    asks: Asks,
    user: String,
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

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let said = format!("{} runs {}\n", self.user, String::from_utf8_lossy(command));
        session.channel_success(channel)?;
        session.data(channel, said.into_bytes())?;
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }
}
