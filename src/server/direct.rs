//! A `direct-tcpip` channel (RFC 4254 section 7.2): decide, write down, dial, pump, write down.
//!
//! Always holds: nothing is dialled without a [`Permit`], and only addresses that the permit
//! checked, and that no other target records; the store knows of a forward before its first byte, and
//! is told its end whatever ended it; a permit that stops holding (hours, expiry, a removed grant) ends
//! its forward.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelOpenFailure};
use tokio_util::sync::CancellationToken;

use super::connection::{ChannelSlot, Connection};
use super::forward::{self, dial};
use super::handler::prohibited;
use super::relay;
use super::traffic::Meter;
use super::unseen;
use crate::audit::{Event, Refusal};
use crate::auth::machine::Authenticated;
use crate::clock::Clock;
use crate::domain::{Destination, Id, Mode, UnixTime, noted};
use crate::policy::{Checked, Decision, Permit, Refused, Subject};
use crate::store::Carrier;

/// How often what is permitted without an end is looked at.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long nobody looks at the clock while waiting for a time.
const NAP: Duration = Duration::from_secs(60);

/// Serves one channel open to its end. Runs on the connection's task set.
pub(super) async fn serve(
    conn: Arc<Connection>,
    channel: Channel<Msg>,
    (host, port): (String, u32),
    slot: ChannelSlot,
    reply: ChannelOpenHandle,
) {
    let asked = noted(&format!("{host}:{port}"));
    match open(&conn, &host, port, slot).await {
        Ok(opened) => {
            reply.accept().await;
            match opened.way {
                Way::Tunnel(address, socket) => {
                    pump(&conn, channel, opened.forward, address, socket).await;
                }
                Way::Record(addresses) => {
                    record(&conn, channel, opened.forward, addresses).await;
                }
            }
        }
        Err(NotOpened::Refused(refused)) => {
            let Refused { reason, message, target } = refused;
            conn.record_refusal(Event::ForwardRefused { destination: asked, target, reason });
            reply.reject(prohibited(&message)).await;
        }
        Err(NotOpened::Failed(message)) => {
            // "Connect failed" (RFC 4254 section 5.1).
            reply.reject(ChannelOpenFailure::Other { code: 2, reason: message }).await;
        }
    }
}

/// A forward that is open, and the way that its bytes go.
struct Opened {
    forward: Forward,
    way: Way,
}

struct Forward {
    id: Id,
    destination: Destination,
    permit: Permit,
    _slot: ChannelSlot,
}

impl Forward {
    /// Begins to count what it carries.
    fn meter(&self, conn: &Connection) -> Meter {
        conn.traffic.meter(Some(Carrier::Forward(self.id.clone())), true)
    }
}

enum Way {
    /// Unseen, to this socket.
    Tunnel(SocketAddr, tokio::net::TcpStream),
    /// Ended here; the target is reached once it is known as whom.
    Record(Checked),
}

pub(super) enum NotOpened {
    /// Policy said no.
    Refused(Refused),
    /// Something broke; what people are told. Written down already.
    Failed(String),
}

impl From<Refused> for NotOpened {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

pub(super) fn refused(reason: Refusal, message: &str) -> NotOpened {
    NotOpened::Refused(Refused { reason, message: message.to_owned(), target: None })
}

async fn open(
    conn: &Arc<Connection>,
    host: &str,
    port: u32,
    slot: ChannelSlot,
) -> Result<Opened, NotOpened> {
    let who = conn.who().ok_or_else(|| refused(Refusal::NotOffered, "sign in first"))?;
    if conn.bastion.draining() {
        return Err(refused(
            Refusal::Draining,
            "the bastion is stopping: connect again in a moment",
        ));
    }
    let destination = Destination::parse(host, port)
        .map_err(|error| refused(Refusal::NotGranted, &error.to_string()))?;
    let permit = decide(conn, who, &destination).await?;
    let target = &permit.target().address;
    let timeout = conn.settings.dial_timeout;
    let name = permit.target().name.to_string();
    let found = tokio::select! {
        found = conn.bastion.resolver.resolve(&target.host, target.port, timeout) => found,
        () = conn.cancel.cancelled() => Err(dial::DialError::Left),
    };
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            return Err(give_up(conn, &permit, &destination, None, &error.for_target(&name)).await);
        }
    };
    let checked = permit.check_addresses(&found, &conn.bastion.own_addresses(&found))?;
    if permit.target().mode == Mode::Tunnel {
        check_unseen(conn, &permit, &checked).await?;
    }
    let forward = begin(conn, &permit, &destination).await?;
    if permit.target().mode == Mode::Record {
        let forward = Forward { id: forward, destination, permit, _slot: slot };
        return Ok(Opened { forward, way: Way::Record(checked) });
    }
    // The store waits for itself; a dial does not outlive its client.
    let dialled = tokio::select! {
        dialled = dial::dial(checked.addresses(), timeout) => dialled,
        () = conn.cancel.cancelled() => Err(dial::DialError::Left),
    };
    match dialled {
        Ok((address, target)) => {
            let forward = Forward { id: forward, destination, permit, _slot: slot };
            Ok(Opened { forward, way: Way::Tunnel(address, target) })
        }
        Err(error) => {
            let error = error.for_target(&name);
            Err(give_up(conn, &permit, &destination, Some(forward), &error).await)
        }
    }
}

/// Refuses to lead unseen to what another target records.
async fn check_unseen(
    conn: &Connection,
    permit: &Permit,
    checked: &Checked,
) -> Result<(), NotOpened> {
    let target = permit.target();
    let ips: Vec<_> = checked.addresses().iter().map(SocketAddr::ip).collect();
    let seen = unseen::check(conn, &ips, target.address.port, unseen::is_same).await;
    seen.map_err(|error| match error {
        NotOpened::Refused(refused) => {
            NotOpened::Refused(Refused { target: Some(target.name.clone()), ..refused })
        }
        failed => failed,
    })
}

/// Asks the policy, with what the store holds now.
pub(super) async fn decide(
    conn: &Connection,
    who: &Authenticated,
    destination: &Destination,
) -> Result<Permit, NotOpened> {
    let store = &conn.bastion.store;
    let access = store.access_to(who.account(), destination).await.map_err(|error| {
        tracing::error!(%error, "failed to read grants");
        NotOpened::Failed("the bastion cannot read its grants: try again".to_owned())
    })?;
    let subject = Subject::of(who, &access.groups, conn.source.ip());
    let now = conn.bastion.clock.now();
    match crate::policy::authorize(&subject, &access.targets, &access.grants, destination, now) {
        Decision::Permit(permit) => Ok(permit),
        Decision::Refuse(refused) => Err(refused.into()),
    }
}

/// Writes the forward down before anything is dialled.
async fn begin(
    conn: &Connection,
    permit: &Permit,
    destination: &Destination,
) -> Result<Id, NotOpened> {
    let store_failed = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "failed to write a forward down");
        NotOpened::Failed("the bastion cannot write its audit log: try again".to_owned())
    };
    let forward = Id::random().map_err(|error| store_failed(&error))?;
    let what = (destination, &permit.target().name, permit.grant());
    let now = conn.bastion.clock.now();
    let written = conn.bastion.store.open_forward(&forward, what, &conn.context(), now).await;
    written.map_err(|error| store_failed(&error))?;
    Ok(forward)
}

/// Writes down that the target could not be reached.
async fn give_up(
    conn: &Connection,
    permit: &Permit,
    destination: &Destination,
    begun: Option<Id>,
    error: &str,
) -> NotOpened {
    let forward = match begun {
        Some(forward) => forward,
        None => match begin(conn, permit, destination).await {
            Ok(forward) => forward,
            Err(failed) => return failed,
        },
    };
    let event = Event::ForwardFailed {
        forward: forward.clone(),
        destination: destination.clone(),
        target: permit.target().name.clone(),
        error: error.to_owned(),
    };
    let (store, now) = (&conn.bastion.store, conn.bastion.clock.now());
    if let Err(error) =
        store.close_forward(&forward, (0, 0), (None, error), event, &conn.context(), now).await
    {
        tracing::error!(%error, "failed to write a failed forward down");
    }
    NotOpened::Failed(error.to_owned())
}

/// Carries bytes until one side, the policy or the connection ends it, and writes the end down.
async fn pump(
    conn: &Arc<Connection>,
    channel: Channel<Msg>,
    forward: Forward,
    address: SocketAddr,
    target: tokio::net::TcpStream,
) {
    let cancel = conn.cancel.child_token();
    let flow = conn.flow.open(channel.id());
    let watch = watch(conn, (&forward.destination, address), forward.permit.until(), &cancel);
    let limits = conn.settings.pump;
    let meter = forward.meter(conn);
    let reason = {
        let counts = meter.counts();
        let pump = forward::pump(channel, target, flow, limits, counts, cancel.clone());
        tokio::pin!(pump);
        tokio::select! {
            end = &mut pump => end.to_string(),
            why = watch => {
                cancel.cancel();
                pump.await;
                why
            }
        }
    };
    close(conn, &forward, meter, Some(address), reason).await;
}

/// Ends the inner SSH here, and writes the forward's end down.
async fn record(
    conn: &Arc<Connection>,
    channel: Channel<Msg>,
    forward: Forward,
    addresses: Checked,
) {
    let address = addresses.addresses().first().copied();
    let (target, meter) = (forward.permit.target(), forward.meter(conn));
    let to = (target, &forward.destination, addresses);
    let reason = relay::serve_door(conn, channel, to, Arc::clone(meter.counts())).await;
    close(conn, &forward, meter, address, reason).await;
}

async fn close(
    conn: &Connection,
    forward: &Forward,
    meter: Meter,
    address: Option<SocketAddr>,
    reason: String,
) {
    let (up, down) = meter.counts().both();
    drop(meter); // Over: the session's own sum has it now.
    let event = Event::ForwardClosed {
        forward: forward.id.clone(),
        destination: Some(forward.destination.clone()),
        target: Some(forward.permit.target().name.clone()),
        address,
        up,
        down,
        reason: reason.clone(),
    };
    let (store, now) = (&conn.bastion.store, conn.bastion.clock.now());
    let context = conn.context();
    if let Err(error) =
        store.close_forward(&forward.id, (up, down), (address, &reason), event, &context, now).await
    {
        tracing::error!(%error, "failed to write a forward's end down");
    }
}

/// Waits until the forward is no longer permitted; gives why.
async fn watch(
    conn: &Arc<Connection>,
    (destination, address): (&Destination, SocketAddr),
    until: Option<UnixTime>,
    cancel: &CancellationToken,
) -> String {
    let ask = || async {
        let who = conn.who().ok_or_else(|| refused(Refusal::NotOffered, "sign in first"))?;
        let permit = decide(conn, who, destination).await?;
        let port = permit.target().address.port;
        // A target that is recorded may be there by now.
        unseen::check_again(conn, &[address.ip()], port, unseen::is_same).await?;
        Ok(permit.until())
    };
    until_refused(conn, until, cancel, ask).await
}

/// Waits until the clock says `until`, or as long as was left until then; a day if there is no such
/// time. The clock is looked at again and again: it may be set meanwhile.
async fn reached(clock: &Clock, until: Option<UnixTime>) {
    let Some(until) = until else { return tokio::time::sleep(DAY).await };
    loop {
        let left = until.since(clock.now());
        let nap = left.min(NAP);
        tokio::time::sleep(nap + Duration::from_millis(1)).await;
        if nap == left {
            return;
        }
    }
}

/// Waits until what was permitted is so no longer; gives why. `ask` asks the policy, and gives until
/// when at least its answer holds, as `until` is for the answer before: it is asked again then, and
/// at each change in the store. Never ends once `cancel` is cancelled.
pub(super) async fn until_refused<F>(
    conn: &Connection,
    mut until: Option<UnixTime>,
    cancel: &CancellationToken,
    ask: impl Fn() -> F,
) -> String
where
    F: Future<Output = Result<Option<UnixTime>, NotOpened>>,
{
    let mut revisions = conn.bastion.revisions();
    let mut ends = until;
    loop {
        tokio::select! {
            () = reached(&conn.bastion.clock, until) => {}
            changed = revisions.changed() => if changed.is_err() {
                std::future::pending::<()>().await; // The bastion is going; so will the connection.
            },
            () = cancel.cancelled() => std::future::pending::<()>().await,
        }
        match ask().await {
            Ok(holds) => (until, ends) = (holds, holds),
            Err(NotOpened::Refused(refused)) => return refused.message,
            // Its own time is over, whatever the store would say.
            Err(NotOpened::Failed(_))
                if ends.is_some_and(|ends| ends <= conn.bastion.clock.now()) =>
            {
                return "the time that was granted is over".to_owned();
            }
            // The store cannot be read now: asked again soon, nothing new is let through meanwhile.
            Err(NotOpened::Failed(_)) => {
                until = Some(conn.bastion.clock.now().plus(Duration::from_secs(1)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_forward_ends_what_is_over_by_it_within_a_minute() {
        let hands = TestClock::at(UnixTime(0));
        let clock = Clock::Test(hands.clone());
        let began = tokio::time::Instant::now();
        let step = async {
            tokio::time::sleep(Duration::from_secs(90)).await;
            hands.advance(DAY);
        };
        tokio::join!(reached(&clock, Some(UnixTime(0).plus(DAY))), step);
        let lasted = began.elapsed();
        assert!((90..=151).contains(&lasted.as_secs()), "{lasted:?}");
        // What is over is over at once; what has no end is looked at once a day.
        let began = tokio::time::Instant::now();
        reached(&clock, Some(UnixTime(0))).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        reached(&clock, None).await;
        assert!(began.elapsed() >= DAY);
    }
}
