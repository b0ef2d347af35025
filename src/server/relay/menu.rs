//! The menu's way to a target: `ssh alice@bastion` in a terminal, a choice, and a recorded shell
//! there; afterwards the menu again.
//!
//! Always holds: what the client sends is taken in all the time, by one reader, for the menu and for
//! the shells that it leads to; a choice is decided by the policy like any other way to a target;
//! whatever ends the menu, the terminal is given back as it was found.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use russh::ChannelReadHalf;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::bridge::{Piece, Uplink};
use super::selector::Selector;
use super::session::{
    Carried, Control, Controls, End, NOT_BEGUN, Setup, Start, User, intake, tell_of_stopping,
};
use crate::console::{self, menu};
use crate::domain::printable;
use crate::server::connection::Connection;
use crate::server::shell;

/// How often the list is read anew: the hours of a grant may have begun.
const REFRESH: Duration = Duration::from_secs(60);
/// How long a client may take for its last picture.
const LAST: Duration = Duration::from_secs(1);
/// Undoes what a program that was cut off may have left in the terminal: reports of the mouse, the
/// focus and of pasting, cursor and keypad keys for programs, a part of the screen that scrolls
/// alone, other letters, a hidden cursor (DEC private modes as xterm has them; ECMA-48).
const TIDY: &[u8] = b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l\
    \x1b[?1l\x1b>\x1b[4l\x1b[?7h\x1b7\x1b[r\x1b8\x1b(B\x0f\x1b[?25h\x1b[0m";

/// Shows the menu on a session channel whose requests were taken in, until the user has had enough.
pub(in crate::server) async fn serve(
    conn: &Arc<Connection>,
    mut from_user: ChannelReadHalf,
    user: &User,
    setup: Setup,
    uplink: &Uplink,
) {
    let Some(who) = conn.who() else { return };
    // Whoever ends the connection waits for the terminal to be given back.
    let _screen = conn.screens.token();
    let (controls, left) = (Controls::default(), Left::default());
    let reading = async {
        left.tell(intake(&mut from_user, uplink, &controls).await);
        std::future::pending().await
    };
    let caller = shell::caller(conn, who, true);
    let visitor = Visitor { conn, caller, user, uplink, controls: &controls, left: &left };
    tokio::select! {
        () = visitor.stay(setup) => {}
        () = reading => {}
    }
}

/// Whether the user is gone, and how.
#[derive(Default)]
struct Left {
    how: OnceLock<End>,
    token: CancellationToken,
}

impl Left {
    fn tell(&self, end: End) {
        let _first_stays = self.how.set(end);
        self.token.cancel();
    }

    async fn wait(&self) -> End {
        self.token.cancelled().await;
        match self.how.get() {
            Some(End::Failed(why)) => End::Failed(why.clone()),
            _ => End::User,
        }
    }
}

/// Somebody before the menu.
struct Visitor<'a> {
    conn: &'a Arc<Connection>,
    caller: console::Caller<'a>,
    user: &'a User,
    uplink: &'a Uplink,
    controls: &'a Controls,
    left: &'a Left,
}

/// What happens next before the menu.
enum Next {
    Keys(Vec<menu::Key>, Bytes),
    Resize(u32, u32),
    Refresh,
    Say(String),
    Leave,
}

impl Visitor<'_> {
    async fn stay(&self, mut setup: Setup) {
        let size = setup.terminal.as_ref().map_or((80, 24), |terminal| terminal.cells());
        let mut menu = menu::Menu::new(menu::Facts::default(), Vec::new(), size);
        self.refresh(&mut menu).await;
        self.show(&mut menu, &mut setup).await;
        let ended = self.conn.ended_by_us();
        let end = async {
            let out = &self.user.out;
            out.data_bytes(menu.leave()).await?;
            if let Some(why) = &ended {
                self.user.say(why).await?;
            }
            out.exit_status(if ended.is_some() { NOT_BEGUN } else { 0 }).await?;
            out.eof().await?;
            out.close().await?;
            // A client that is sent away drops what it has not shown yet: wait until it has.
            self.left.wait().await;
            Ok::<(), russh::Error>(())
        };
        if !matches!(timeout(LAST, end).await, Ok(Ok(()))) {
            tracing::debug!("the user left before the end of the menu");
        }
    }

    /// Shows the menu and does what the keys lead to, until there is to be an end.
    async fn show(&self, menu: &mut menu::Menu, setup: &mut Setup) {
        let mut keys = menu::Keys::default();
        let mut revisions = self.conn.bastion.revisions();
        let mut stale = Instant::now() + REFRESH;
        let mut stopping = std::pin::pin!(self.conn.stopping().fuse());
        loop {
            let picture = menu.draw();
            tokio::select! {
                sent = self.user.out.data_bytes(picture) => if sent.is_err() { return },
                () = self.conn.cancel.cancelled() => return,
            }
            let next = tokio::select! {
                next = self.next(&mut keys) => next,
                () = tokio::time::sleep_until(stale) => Next::Refresh,
                changed = revisions.changed() => match changed {
                    Ok(()) => Next::Refresh,
                    Err(_) => Next::Leave, // The bastion is going.
                },
                why = &mut stopping => Next::Say(why),
                _ = self.left.wait() => return,
                () = self.conn.cancel.cancelled() => return,
            };
            match next {
                Next::Leave => return,
                Next::Say(why) => menu.say(&why),
                Next::Resize(columns, rows) => menu.resize(cells(columns), cells(rows)),
                Next::Refresh => {
                    stale = Instant::now() + REFRESH;
                    self.refresh(menu).await;
                }
                Next::Keys(pressed, rest) => {
                    self.uplink.give_back(rest);
                    for key in pressed {
                        match menu.key(key) {
                            menu::Outcome::Stay => {}
                            menu::Outcome::Quit => return,
                            menu::Outcome::Show(page) => self.page(menu, page, setup).await,
                            menu::Outcome::Connect { target, account } => {
                                if !self.visit(menu, setup, target, account).await {
                                    return;
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    async fn next(&self, keys: &mut menu::Keys) -> Next {
        let pause = async {
            match keys.pending() {
                true => tokio::time::sleep(menu::Keys::PAUSE).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            piece = self.uplink.next() => match piece {
                Piece::Data(data) => self.read(keys, data),
                Piece::Eof | Piece::Close => Next::Leave,
            },
            control = self.controls.next() => match control {
                Control::Resize(columns, rows, ..) => Next::Resize(columns, rows),
                _ => Next::Keys(Vec::new(), Bytes::new()),
            },
            () = pause => Next::Keys(keys.flush(), Bytes::new()),
        }
    }

    /// Reads up to the first key that may lead away: what comes after it is typed for there.
    fn read(&self, keys: &mut menu::Keys, mut data: Bytes) -> Next {
        let mut pressed = Vec::new();
        let mut used = 0;
        for byte in &data {
            used += 1;
            pressed.extend(keys.push(std::slice::from_ref(byte)));
            if pressed.contains(&menu::Key::Enter) {
                break;
            }
        }
        let rest = data.split_off(used);
        self.uplink.done(used);
        Next::Keys(pressed, rest)
    }

    /// Puts what the store holds now into the menu.
    async fn refresh(&self, menu: &mut menu::Menu) {
        let (store, now) = (&self.conn.bastion.store, self.conn.bastion.clock.now());
        match console::contents(&self.caller, store, now).await {
            Ok((facts, entries)) => {
                menu.update_facts(facts);
                menu.update(entries);
            }
            Err(error) => menu.say(&self.failed(&error)),
        }
    }

    async fn page(&self, menu: &mut menu::Menu, page: menu::Page, setup: &Setup) {
        let (store, now) = (&self.conn.bastion.store, self.conn.bastion.clock.now());
        let columns = match (self.controls.size(), &setup.terminal) {
            (Some((columns, ..)), _) => cells(columns),
            (None, Some(terminal)) => terminal.cells().0,
            (None, None) => 0,
        };
        let columns = if columns == 0 { 80 } else { columns };
        match console::page(&self.caller, store, now, (page, columns)).await {
            Ok((title, lines)) => menu.show(title, lines),
            Err(error) => menu.say(&self.failed(&error)),
        }
    }

    fn failed(&self, error: &anyhow::Error) -> String {
        let error = printable(&crate::logging::whole(error));
        tracing::error!(error, session = %self.conn.id, "failed to read what the menu shows");
        "the bastion cannot read its store: try again".to_owned()
    }

    /// Goes to a target, and comes back; false if there is nobody to come back to.
    async fn visit(
        &self,
        menu: &mut menu::Menu,
        setup: &mut Setup,
        target: String,
        account: String,
    ) -> bool {
        let name = format!("{account}@{target}");
        if self.user.out.data_bytes(menu.leave()).await.is_err() {
            return false;
        }
        if let (Some(terminal), Some(size)) = (&mut setup.terminal, self.controls.size()) {
            terminal.size = size;
        }
        let end = self.relay(setup, Selector { account: Some(account), target }).await;
        let notice = match end {
            End::User => return false,
            End::Target(Some(outcome)) => format!("{name}: {outcome}"),
            End::Target(None) => format!("{name}: closed"),
            End::Failed(why) => why,
            End::Cut => format!("{name}: ended"),
        };
        if self.user.out.data_bytes(TIDY).await.is_err() {
            return false;
        }
        if let Some((columns, rows, ..)) = self.controls.size() {
            menu.resize(cells(columns), cells(rows));
        }
        self.refresh(menu).await;
        menu.say(&notice);
        true
    }

    async fn relay(&self, setup: &Setup, selector: Selector) -> End {
        let handle = Arc::new(OnceLock::from(self.user.handle.clone()));
        let relay = tokio::select! {
            relay = selector.find(self.conn, &handle) => relay,
            end = self.left.wait() => return end,
        };
        let relay = match relay {
            Ok(relay) => relay,
            Err(why) => return End::Failed(why),
        };
        setup.check(&relay);
        let (start, user, uplink) = (&Start::Shell, self.user, self.uplink);
        let shell = Carried { relay: &relay, setup, start, user, uplink, goes_on: true };
        let left = async {
            tokio::select! {
                why = relay.watch() => End::Failed(why),
                () = tell_of_stopping(self.conn, user, setup) => End::Cut,
                end = self.left.wait() => end,
            }
        };
        let end = shell.run(self.controls, left).await;
        relay.cancel.cancel();
        end
    }
}

/// Columns or rows as the menu takes them.
fn cells(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}
