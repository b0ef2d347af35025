//! Sessions and forwards: what is open, what was, and what must end.

use std::collections::{HashMap, HashSet};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::pool::on;
use super::schema::{
    forwards, login_certificates, nodes, revision, session_certificates, sessions, users,
};
use super::{Error, Store, Tx, parse};
use crate::audit::{Context, EndReason, Event};
use crate::domain::{Destination, Id, IdPrefix, SignInPolicy, TargetName, UnixTime};

/// A session as operators list it.
#[derive(Debug, Clone, Queryable, Selectable, Serialize)]
#[diesel(table_name = sessions)]
#[allow(missing_docs)]
pub struct SessionRow {
    pub id: String,
    #[diesel(column_name = user_name)]
    pub user: String,
    pub node: String,
    pub source: String,
    pub client: String,
    pub started_at: i64,
    pub ended_at: Option<i64>,
    pub end_reason: Option<String>,
    pub bytes_up: i64,
    pub bytes_down: i64,
}

/// A forward within a session.
#[derive(Debug, Clone, Queryable, Selectable, Serialize)]
#[diesel(table_name = forwards)]
#[allow(missing_docs)]
pub struct ForwardRow {
    pub id: String,
    pub session_id: String,
    pub destination: String,
    pub target: String,
    pub address: Option<String>,
    pub opened_at: i64,
    pub closed_at: Option<i64>,
    pub bytes_up: i64,
    pub bytes_down: i64,
    pub end_reason: Option<String>,
}

impl ForwardRow {
    /// The end of a forward that was open when its node died, with its bytes as last written down.
    fn interrupted(&self) -> Result<Event, Error> {
        let bytes = |count| u64::try_from(count).unwrap_or(0);
        Ok(Event::ForwardClosed {
            forward: parse("forwards", &self.id)?,
            destination: Some(parse("forwards", &self.destination)?),
            target: Some(parse("forwards", &self.target)?),
            address: self.address.as_deref().map(|text| parse("forwards", text)).transpose()?,
            up: bytes(self.bytes_up),
            down: bytes(self.bytes_down),
            reason: EndReason::Interrupted.to_string(),
        })
    }
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    /// Only those that have not ended.
    pub live: bool,
    /// Only those of this name, whoever had it.
    pub user: Option<String>,
    /// Only those of this account: a name may have been another's before.
    pub account: Option<Id>,
}

/// What a node has to know of its live sessions, when something changed.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Sessions that somebody asked to end.
    pub killed: Vec<Id>,
    /// Sessions that were opened by a certificate which was revoked since.
    pub revoked: HashSet<Id>,
    /// Sessions that have not ended.
    pub open: Vec<Id>,
    /// For every account with a live session here: its epoch, or `None` if it is disabled or gone.
    pub epochs: Vec<(Id, Option<i64>)>,
    /// The rules for signing in that hold now, by account; the default for all others.
    pub policies: HashMap<Id, SignInPolicy>,
}

impl Store {
    /// The number that grows with every change live sessions have to be checked against.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn revision(&self) -> Result<i64, Error> {
        let mut tx = self.read_short().await?;
        let value = on!(tx.engine(), conn => {
            revision::table.find(1).select(revision::value).first(conn).await
        })?;
        tx.commit().await?;
        Ok(value)
    }

    /// What this node's live sessions have to be checked against.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn live(&self) -> Result<Live, Error> {
        let mut tx = self.read().await?;
        let node = self.node().to_owned();
        type LiveRow = (String, String, Option<i64>, Option<i64>, Option<i64>);
        let rows: Vec<LiveRow> = on!(tx.engine(), conn => {
            sessions::table
                .left_join(users::table.on(users::id.eq(sessions::user_id)))
                .filter(sessions::node.eq(&node).and(sessions::ended_at.is_null()))
                .select((
                    sessions::id,
                    sessions::user_id,
                    sessions::kill_requested_at,
                    users::epoch.nullable(),
                    users::disabled_at.nullable(),
                ))
                .load(conn)
                .await
        })?;
        let policies = tx.sign_in_policies(&node).await?;
        let revoked: Vec<String> = on!(tx.engine(), conn => {
            sessions::table
                .inner_join(
                    session_certificates::table
                        .on(session_certificates::session_id.eq(sessions::id)),
                )
                .inner_join(
                    login_certificates::table
                        .on(login_certificates::serial.eq(session_certificates::serial)),
                )
                .filter(sessions::node.eq(&node).and(sessions::ended_at.is_null()))
                .filter(login_certificates::revoked_at.is_not_null())
                .select(sessions::id)
                .load(conn)
                .await
        })?;
        let revoked = revoked.iter().map(|id| parse("sessions", id)).collect::<Result<_, _>>()?;
        tx.commit().await?;
        let mut live = Live { policies, revoked, ..Live::default() };
        for (session, user, kill, epoch, disabled) in rows {
            let session: Id = parse("sessions", &session)?;
            if kill.is_some() {
                live.killed.push(session.clone());
            }
            live.open.push(session);
            let epoch = if disabled.is_some() { None } else { epoch };
            live.epochs.push((parse("sessions", &user)?, epoch));
        }
        Ok(live)
    }

    /// Closes a session.
    ///
    /// # Errors
    /// When the store fails; the session stays open then: `server::live` tries again, or the next start
    /// closes it.
    pub async fn close_session(
        &self,
        session: &Id,
        reason: EndReason,
        (up, down): (u64, u64),
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin_short().await?;
        if tx.end_session(session.as_str(), reason, (up, down), now).await? {
            tx.append(now, context, Event::SessionEnded { reason, up, down }).await?;
        }
        tx.commit().await
    }

    /// Says that this node lives, and which sealing keys it holds; gives how often every other one has
    /// said so. A count and not a time: nobody's clock has to be believed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn beat(&self) -> Result<Vec<(String, i64)>, Error> {
        use nodes::dsl;
        let keys = self.keyring().ids()?.join(" ");
        let mut tx = self.begin().await?;
        let node = self.node().to_owned();
        let others = on!(tx.engine(), conn => {
            diesel::insert_into(dsl::nodes)
                .values((dsl::node.eq(&node), dsl::beats.eq(1), dsl::sealing_keys.eq(&keys)))
                .on_conflict(dsl::node)
                .do_update()
                .set((dsl::beats.eq(dsl::beats + 1), dsl::sealing_keys.eq(&keys)))
                .execute(conn)
                .await?;
            dsl::nodes
                .filter(dsl::node.ne(&node))
                .select((dsl::node, dsl::beats))
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(others)
    }

    /// Closes what this node left open when it died; gives how many sessions.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn close_interrupted(&self, now: UnixTime) -> Result<usize, Error> {
        self.close_sessions_of(self.node(), now).await
    }

    /// Closes what another node left open, and forgets that node until it is there again; gives how
    /// many sessions.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn close_lost(&self, node: &str, now: UnixTime) -> Result<usize, Error> {
        let mut tx = self.begin().await?;
        on!(tx.engine(), conn => {
            diesel::delete(nodes::table.find(node)).execute(conn).await
        })?;
        tx.bump_revision().await?; // Should it live after all, it ends them, too.
        tx.commit().await?;
        self.close_sessions_of(node, now).await
    }

    async fn close_sessions_of(&self, node: &str, now: UnixTime) -> Result<usize, Error> {
        let mut tx = self.begin().await?;
        let mut open: Vec<SessionRow> = on!(tx.engine(), conn => {
            sessions::table
                .filter(sessions::node.eq(node).and(sessions::ended_at.is_null()))
                .select(SessionRow::as_select())
                .load(conn)
                .await
        })?;
        open.sort_by(|a, b| a.id.cmp(&b.id)); // As `write_carried` goes through them.
        let mut left = Vec::new();
        for row in &open {
            let (sum, forwards) = (tx.carried_by(row).await?, tx.open_forwards(&row.id).await?);
            tx.end_session(&row.id, EndReason::Interrupted, sum, now).await?;
            left.push((sum, forwards));
        }
        for (row, ((up, down), forwards)) in open.iter().zip(left) {
            let context = Context {
                user: Some(row.user.clone()),
                source: row.source.parse().ok().map(crate::domain::Source),
                client: Some(row.client.clone()),
                session: Some(parse("sessions", &row.id)?),
                actor: None,
            };
            for forward in &forwards {
                tx.append(now, &context, forward.interrupted()?).await?;
            }
            let reason = EndReason::Interrupted;
            tx.append(now, &context, Event::SessionEnded { reason, up, down }).await?;
        }
        tx.commit().await?;
        Ok(open.len())
    }

    /// Asks for a session to be ended, wherever it is; false if it is not live.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn request_kill(
        &self,
        session: &Id,
        context: &Context,
        now: UnixTime,
    ) -> Result<bool, Error> {
        use sessions::dsl;
        let mut tx = self.begin().await?;
        let asked = on!(tx.engine(), conn => {
            diesel::update(dsl::sessions.find(session.as_str()))
                .filter(dsl::ended_at.is_null())
                .set(dsl::kill_requested_at.eq(now.0))
                .execute(conn)
                .await
        })?;
        if asked == 1 {
            let target_session = session.clone();
            tx.append(now, context, Event::KillRequested { target_session }).await?;
            tx.bump_revision().await?;
        }
        tx.commit().await?;
        Ok(asked == 1)
    }

    /// Writes a forward down before it is opened.
    ///
    /// # Errors
    /// When the store fails: the forward must not be opened then.
    pub async fn open_forward(
        &self,
        forward: &Id,
        (destination, target, grant): (&Destination, &TargetName, &Id),
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let session = context.session.as_ref().map(|id| id.as_str()).unwrap_or_default();
        let row = (
            forwards::id.eq(forward.as_str()),
            forwards::session_id.eq(session),
            forwards::destination.eq(destination.to_string()),
            forwards::target.eq(target.as_str()),
            forwards::opened_at.eq(now.0),
            forwards::bytes_up.eq(0),
            forwards::bytes_down.eq(0),
        );
        let event = Event::ForwardOpened {
            forward: forward.clone(),
            destination: destination.clone(),
            target: target.clone(),
            grant: grant.clone(),
        };
        let mut tx = self.begin_short().await?;
        on!(tx.engine(), conn => {
            diesel::insert_into(forwards::table).values(row).execute(conn).await
        })?;
        tx.append(now, context, event).await?;
        tx.commit().await
    }

    /// Closes a forward, with what it carried and `event`, which says how it ended.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn close_forward(
        &self,
        forward: &Id,
        (up, down): (u64, u64),
        (address, reason): (Option<std::net::SocketAddr>, &str),
        event: Event,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        use forwards::dsl;
        let mut tx = self.begin_short().await?;
        on!(tx.engine(), conn => {
            diesel::update(dsl::forwards.find(forward.as_str()))
                .set((
                    dsl::closed_at.eq(now.0),
                    dsl::address.eq(address.map(|a| a.to_string())),
                    dsl::bytes_up.eq(signed(up)),
                    dsl::bytes_down.eq(signed(down)),
                    dsl::end_reason.eq(reason),
                ))
                .execute(conn)
                .await
        })?;
        tx.append(now, context, event).await?;
        tx.commit().await
    }

    /// The newest `limit` sessions that `filter` lets through, newest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn sessions(
        &self,
        filter: &SessionFilter,
        limit: i64,
    ) -> Result<Vec<SessionRow>, Error> {
        use sessions::dsl;
        let mut tx = self.read().await?;
        let rows = on!(tx.engine(), conn => {
            let mut query = dsl::sessions.select(SessionRow::as_select()).into_boxed();
            if filter.live {
                query = query.filter(dsl::ended_at.is_null());
            }
            if let Some(user) = &filter.user {
                query = query.filter(dsl::user_name.eq(user.as_str()));
            }
            if let Some(account) = &filter.account {
                query = query.filter(dsl::user_id.eq(account.as_str()));
            }
            query.order((dsl::started_at.desc(), dsl::id.asc())).limit(limit).load(conn).await
        })?;
        tx.commit().await?;
        Ok(rows)
    }

    /// The sessions whose id begins with `prefix`: at most two, which is enough to know whether it
    /// means one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn sessions_by_prefix(&self, prefix: &IdPrefix) -> Result<Vec<SessionRow>, Error> {
        use sessions::dsl;
        let (first, last) = prefix.range();
        let mut tx = self.read().await?;
        let rows = on!(tx.engine(), conn => {
            dsl::sessions
                .filter(dsl::id.between(first, &last))
                .select(SessionRow::as_select())
                .limit(2)
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(rows)
    }

    /// The forwards of all these sessions.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forwards_of_all(&self, sessions: &[String]) -> Result<Vec<ForwardRow>, Error> {
        use forwards::dsl;
        let mut tx = self.read().await?;
        let rows = on!(tx.engine(), conn => {
            dsl::forwards
                .filter(dsl::session_id.eq_any(sessions))
                .order((dsl::opened_at.asc(), dsl::id.asc()))
                .select(ForwardRow::as_select())
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(rows)
    }

    /// The forwards of a session, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forwards_of(&self, session: &str) -> Result<Vec<ForwardRow>, Error> {
        self.forwards_of_all(&[session.to_owned()]).await
    }
}

impl Tx<'_> {
    /// Ends a session and the forwards it left open; false if it had ended.
    async fn end_session(
        &mut self,
        session: &str,
        reason: EndReason,
        (up, down): (u64, u64),
        now: UnixTime,
    ) -> Result<bool, Error> {
        let ended = on!(self.engine(), conn => {
            diesel::update(sessions::table.find(session))
                .filter(sessions::ended_at.is_null())
                .set((
                    sessions::ended_at.eq(now.0),
                    sessions::end_reason.eq(reason.word()),
                    sessions::bytes_up.eq(signed(up)),
                    sessions::bytes_down.eq(signed(down)),
                ))
                .execute(conn)
                .await
        })?;
        on!(self.engine(), conn => {
            diesel::update(forwards::table)
                .filter(forwards::session_id.eq(session).and(forwards::closed_at.is_null()))
                .set((forwards::closed_at.eq(now.0), forwards::end_reason.eq(reason.word())))
                .execute(conn)
                .await
        })?;
        Ok(ended == 1)
    }

    /// A session's forwards that are open, oldest first.
    async fn open_forwards(&mut self, session: &str) -> Result<Vec<ForwardRow>, Error> {
        let rows = on!(self.engine(), conn => {
            forwards::table
                .filter(forwards::session_id.eq(session).and(forwards::closed_at.is_null()))
                .order((forwards::opened_at.asc(), forwards::id.asc()))
                .select(ForwardRow::as_select())
                .load(conn)
                .await
        })?;
        Ok(rows)
    }

    /// What a session carried, as far as it was written down: by itself now and then, or by the last
    /// of its forwards.
    async fn carried_by(&mut self, row: &SessionRow) -> Result<(u64, u64), Error> {
        let session = row.id.as_str();
        let rows: Vec<(i64, i64)> = on!(self.engine(), conn => {
            forwards::table
                .filter(forwards::session_id.eq(session))
                .select((forwards::bytes_up, forwards::bytes_down))
                .load(conn)
                .await
        })?;
        let sum = |(up, down): (i64, i64), row: &(i64, i64)| {
            (up.saturating_add(row.0), down.saturating_add(row.1))
        };
        let (up, down) = rows.iter().fold((0, 0), sum);
        let most = |a: i64, b: i64| u64::try_from(a.max(b)).unwrap_or(0);
        Ok((most(up, row.bytes_up), most(down, row.bytes_down)))
    }
}

pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
