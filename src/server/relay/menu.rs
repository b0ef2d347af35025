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
use super::requests::{Control, Controls, Setup, Start, User, intake};
use super::selector::Selector;
use super::session::{Carried, End, NOT_BEGUN, tell_of_stopping};
use crate::console::{self, Channel, OwnVerb, menu};
use crate::domain::printable;
use crate::server::connection::Connection;
use crate::server::shell::{self, TerminalLines};

/// How often the list is read anew: the hours of a grant may have begun.
const REFRESH: Duration = Duration::from_secs(60);
/// How long a client may take for its last picture.
const LAST: Duration = Duration::from_secs(1);
/// Bytes of keys that are read before anything else gets its turn: each key costs a new picture's
/// worth of work.
const TURN: usize = 256;
/// Undoes what a program that was cut off may have left in the terminal: reports of the mouse, the
/// focus and of pasting, cursor and keypad keys for programs, keys told apart by more than a
/// terminal's own sequences (xterm's modifyOtherKeys, kitty's keyboard), eight-bit controls, margins
/// and an origin of its own, other letters, a hidden cursor (DEC private modes as xterm has them).
const TIDY: &[u8] = b"\x1b F\x1b[?9l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1005l\x1b[?1006l\
    \x1b[?1015l\x1b[?1004l\x1b[?2004l\x1b[?1l\x1b>\x1b[>4m\x1b[<9u\x1b[4l\x1b[?7h\
    \x1b7\x1b[?6l\x1b[?69l\x1b[r\x1b8\x1b(B\x0f\x1b[?25h\x1b[0m";

/// Shows the menu on a session channel whose requests were taken in, until the user has had enough.
pub(in crate::server) async fn serve(
    conn: &Arc<Connection>,
    mut from_user: ChannelReadHalf,
    user: &User,
    setup: Setup,
    uplink: &Arc<Uplink>,
) {
    let Some(who) = conn.who() else { return };
    // Whoever ends the connection waits for the terminal to be given back.
    let _screen = conn.screens.token();
    let (controls, left) = (Controls::default(), Left::default());
    let reading = async {
        left.tell(intake(&mut from_user, uplink, &controls).await);
        std::future::pending().await
    };
    let caller = shell::caller(conn, who);
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
    uplink: &'a Arc<Uplink>,
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
            let left = menu.leave();
            if left.is_empty() && ended.is_some() {
                // Cut off at a target, perhaps in an editor.
                out.data_bytes(TIDY).await?;
                out.data_bytes(&b"\x1b[?1049l"[..]).await?;
            }
            out.data_bytes(left).await?;
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
            if !self.send(menu.draw()).await {
                return;
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
                    tokio::task::yield_now().await; // Whoever sends keys without end is not alone.
                    for key in pressed {
                        match menu.key(key) {
                            menu::Outcome::Stay => {}
                            menu::Outcome::Quit => return,
                            menu::Outcome::Show(page) => self.page(menu, page, setup).await,
                            menu::Outcome::Own(verb) => {
                                if !self.change_own(menu, verb).await {
                                    return;
                                }
                                self.page(menu, menu::Page::Authenticator, setup).await;
                            }
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

    /// Sends to the terminal; false if there is nobody to send to any more. A client that keeps its
    /// window shut is not waited for beyond its connection: russh does not wake who waits for it.
    async fn send(&self, bytes: impl Into<Bytes>) -> bool {
        tokio::select! {
            sent = self.user.out.data_bytes(bytes.into()) => sent.is_ok(),
            _ = self.left.wait() => false,
            () = self.conn.cancel.cancelled() => false,
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
                Piece::Data(data) => {
                    let (pressed, used, rest) = turn(keys, data);
                    self.uplink.done(used);
                    Next::Keys(pressed, rest)
                }
                Piece::Eof | Piece::Close => Next::Leave,
            },
            control = self.controls.next() => match control {
                Control::Resize(columns, rows, ..) => Next::Resize(columns, rows),
                _ => Next::Keys(Vec::new(), Bytes::new()),
            },
            () = pause => Next::Keys(keys.flush(), Bytes::new()),
        }
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
            Ok((title, lines)) => menu.show_page(page, title, lines),
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
        if !self.send(menu.leave()).await {
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
        if !self.send(TIDY).await {
            return false;
        }
        // What was typed for the target, and it did not take, is not for the menu.
        self.uplink.forget();
        if let Some((columns, rows, ..)) = self.controls.size() {
            menu.resize(cells(columns), cells(rows));
        }
        self.refresh(menu).await;
        menu.say(&notice);
        true
    }

    /// Leaves the screen for a dialog, and comes back; false if there is nobody to come back to.
    async fn change_own(&self, menu: &mut menu::Menu, verb: OwnVerb) -> bool {
        if self.user.out.data_bytes(menu.leave()).await.is_err() {
            return false;
        }
        let out = &self.user.out;
        let mut stdout = TerminalLines::new(out.make_writer(), true);
        let mut stderr = TerminalLines::new(out.make_writer_ext(Some(1)), true);
        let typed = shell::typed(Arc::clone(self.uplink));
        let channel = Channel { typed, terminal: true, stdout: &mut stdout, stderr: &mut stderr };
        let changed = tokio::select! {
            changed = console::change_own_from_menu(&self.caller, &self.conn.bastion.store, verb, channel) => changed,
            _ = self.left.wait() => return false,
            () = self.conn.cancel.cancelled() => return false,
        };
        if let Some((columns, rows, ..)) = self.controls.size() {
            menu.resize(cells(columns), cells(rows));
        }
        self.refresh(menu).await;
        if let Err(error) = changed {
            menu.say(&printable(&crate::logging::whole(&error)));
        }
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
        let shell =
            Carried { relay: &relay, setup, start, user, uplink, is_first: false, goes_on: true };
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

/// Reads a turn's worth of keys, up to the first that may lead away: what comes after it is typed for
/// there. Gives the keys, how many bytes they were, and what is left.
fn turn(keys: &mut menu::Keys, mut data: Bytes) -> (Vec<menu::Key>, usize, Bytes) {
    let mut pressed = Vec::new();
    let mut used = 0;
    for byte in data.iter().take(TURN) {
        used += 1;
        let whole = keys.push(std::slice::from_ref(byte));
        let leads_away = whole.contains(&menu::Key::Enter);
        pressed.extend(whole);
        if leads_away {
            break;
        }
    }
    let rest = data.split_off(used);
    (pressed, used, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_short_and_ends_where_the_menu_may_be_left() {
        let mut keys = menu::Keys::default();
        let (pressed, used, rest) = turn(&mut keys, Bytes::from_static(b"db\rls\r"));
        assert_eq!(pressed, [menu::Key::Char('d'), menu::Key::Char('b'), menu::Key::Enter]);
        assert_eq!((used, &rest[..]), (3, &b"ls\r"[..]));
        let (pressed, used, rest) = turn(&mut keys, Bytes::from(vec![b'a'; 32_000]));
        assert_eq!((pressed.len(), used, rest.len()), (TURN, TURN, 32_000 - TURN));
    }
}
