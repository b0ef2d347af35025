//! What a user's client asks for on a session channel (RFC 4254 section 6): gathered until something is
//! started, taken in while it runs.
//!
//! Always holds: what a client may make us keep is bounded, however often it asks; nothing here waits
//! for a target. The requests were answered already, in `answers`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use russh::server::Handle;
use russh::{ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty, server};
use tokio::sync::Notify;

use super::Relay;
use super::bridge::{Piece, Uplink};
use super::session::End;
use crate::audit::Refusal;
use crate::console::menu::Menu;
use crate::domain::{Capability, noted, printable};

/// Environment variables that are passed on.
const MAX_ENV: usize = 64;
/// The longest of them, name and value.
const MAX_VARIABLE: usize = 8192;
/// Characters of a command that are written down.
const MAX_COMMAND: usize = 4096;
/// Window changes and signals that may wait.
const MAX_CONTROLS: usize = 64;

/// The user's side of a channel.
pub(in crate::server) struct User {
    pub(in crate::server) id: ChannelId,
    pub(in crate::server) handle: Handle,
    pub(in crate::server) out: ChannelWriteHalf<server::Msg>,
}

impl User {
    /// A line of the bastion's own, on standard error.
    pub(super) async fn say(&self, text: &str) -> Result<(), russh::Error> {
        let line = format!("sallyport: {}\r\n", printable(text));
        self.out.extended_data_bytes(1, line).await
    }
}

/// What the requests before the start asked for.
#[derive(Default)]
pub(in crate::server) struct Setup {
    pub(in crate::server) terminal: Option<Terminal>,
    pub(super) env: Vec<(String, String)>,
    pub(in crate::server) agent: bool,
    pub(in crate::server) x11: Option<(bool, String, String, u32)>,
}

pub(in crate::server) struct Terminal {
    pub(super) kind: String,
    pub(super) size: (u32, u32, u32, u32),
    pub(super) modes: Vec<(Pty, u32)>,
}

impl Setup {
    /// Whether there is a terminal that the menu can be shown in.
    pub(in crate::server) fn suits_menu(&self) -> bool {
        self.terminal.as_ref().is_some_and(|terminal| Menu::suits(&terminal.kind))
    }

    /// Writes down what was asked for and is not granted, where that could not be told at once: the
    /// target was not chosen then.
    pub(super) fn check(&self, relay: &Relay) {
        for (asked, right, request) in [
            (self.agent, Capability::Agent, "auth-agent-req"),
            (self.x11.is_some(), Capability::X11, "x11-req"),
        ] {
            if asked && !relay.permit.allows(right) {
                relay.refuse_use(request, Refusal::NotGranted);
            }
        }
    }
}

impl Terminal {
    /// Columns and rows.
    pub(super) fn cells(&self) -> (u16, u16) {
        let (columns, rows, ..) = self.size;
        (u16::try_from(columns).unwrap_or(u16::MAX), u16::try_from(rows).unwrap_or(u16::MAX))
    }
}

/// What the channel is for.
pub(in crate::server) enum Start {
    Shell,
    Exec(Vec<u8>),
    Subsystem(String),
}

impl Start {
    /// What it is called in the store: a subsystem that is called `shell` does not look like one.
    pub(super) fn what(&self) -> String {
        match self {
            Self::Shell => "shell".to_owned(),
            Self::Exec(_) => "exec".to_owned(),
            Self::Subsystem(name) if name == "sftp" => "sftp".to_owned(),
            Self::Subsystem(name) => format!("subsystem:{}", noted(name)),
        }
    }

    pub(super) fn command(&self) -> Option<String> {
        match self {
            Self::Exec(command) => {
                let text = String::from_utf8_lossy(command);
                let mut short: String = text.chars().take(MAX_COMMAND).collect();
                if short.len() < text.len() {
                    short.push_str("...");
                }
                Some(printable(&short))
            }
            Self::Shell | Self::Subsystem(_) => None,
        }
    }
}

/// Takes requests in until one starts something; `None` if the user leaves before.
pub(in crate::server) async fn gather(
    from_user: &mut ChannelReadHalf,
    setup: &mut Setup,
    uplink: &Uplink,
) -> Option<Start> {
    loop {
        match from_user.wait().await? {
            ChannelMsg::RequestPty {
                term: kind,
                col_width,
                row_height,
                pix_width,
                pix_height,
                terminal_modes: modes,
                ..
            } => {
                let size = (col_width, row_height, pix_width, pix_height);
                setup.terminal = Some(Terminal { kind, size, modes });
            }
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                if let Some(terminal) = &mut setup.terminal {
                    terminal.size = (col_width, row_height, pix_width, pix_height);
                }
            }
            ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                let size = variable_name.len() + variable_value.len();
                if setup.env.len() < MAX_ENV && size <= MAX_VARIABLE {
                    setup.env.push((variable_name, variable_value));
                }
            }
            ChannelMsg::AgentForward { .. } => setup.agent = true,
            ChannelMsg::RequestX11 {
                single_connection,
                x11_authentication_protocol: protocol,
                x11_authentication_cookie: cookie,
                x11_screen_number: screen,
                ..
            } => setup.x11 = Some((single_connection, protocol, cookie, screen)),
            ChannelMsg::RequestShell { .. } => return Some(Start::Shell),
            ChannelMsg::Exec { command, .. } => return Some(Start::Exec(command)),
            ChannelMsg::RequestSubsystem { name, .. } => return Some(Start::Subsystem(name)),
            ChannelMsg::Data { data } => uplink.push_early(Piece::Data(data)).then_some(())?,
            ChannelMsg::Eof => uplink.push_early(Piece::Eof).then_some(())?,
            ChannelMsg::Close => return None,
            _ => {}
        }
    }
}

/// What may overtake data on its way to the target.
pub(in crate::server) enum Control {
    Resize(u32, u32, u32, u32),
    Signal(russh::Sig),
}

#[derive(Default)]
pub(in crate::server) struct Controls {
    waiting: Mutex<VecDeque<Control>>,
    ready: Notify,
    /// The newest size of the terminal, if it changed.
    size: Mutex<Option<(u32, u32, u32, u32)>>,
}

impl Controls {
    fn push(&self, control: Control) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Control::Resize(columns, rows, width, height) = control {
            let size = Some((columns, rows, width, height));
            *self.size.lock().unwrap_or_else(PoisonError::into_inner) = size;
        }
        if let (Control::Resize(..), Some(Control::Resize(..))) = (&control, waiting.back()) {
            waiting.pop_back();
        }
        if waiting.len() < MAX_CONTROLS {
            waiting.push_back(control);
        }
        drop(waiting);
        self.ready.notify_one();
    }

    /// The newest size of the terminal, if it changed.
    pub(super) fn size(&self) -> Option<(u32, u32, u32, u32)> {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn next(&self) -> Control {
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(control) => return control,
                None => self.ready.notified().await,
            }
        }
    }
}

/// Takes in what the user sends while the channel is carried.
pub(in crate::server) async fn intake(
    from_user: &mut ChannelReadHalf,
    uplink: &Uplink,
    controls: &Controls,
) -> End {
    while let Some(message) = from_user.wait().await {
        let within = match message {
            ChannelMsg::Data { data } => uplink.push(Piece::Data(data)),
            ChannelMsg::Eof => uplink.push(Piece::Eof),
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                controls.push(Control::Resize(col_width, row_height, pix_width, pix_height));
                true
            }
            ChannelMsg::Signal { signal } => {
                controls.push(Control::Signal(signal));
                true
            }
            ChannelMsg::Close => return End::User,
            _ => true,
        };
        if !within {
            return End::Failed("your client ignored its window".to_owned());
        }
    }
    End::User
}
