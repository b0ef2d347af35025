//! The audit log in the store.
//!
//! Always holds: an event gets its number by holding the one row of `audit_head` first, so that
//! writers of all nodes stand in a line until the transaction ends, and numbers have no gaps; nothing
//! is written behind an end that lies before what this process wrote.

use std::sync::{Mutex, PoisonError};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::pool::{Engine, on};
use super::schema::{audit_events, audit_head};
use super::{Error, Inner, Store, Tx};
use crate::audit::chain::{Anchor, Checkpoint, Link};
use crate::audit::{Context, Event, Note, Record};
use crate::domain::{IdPrefix, UnixTime};

/// An event as it is stored.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = audit_events)]
pub struct EventRow {
    /// Its number.
    pub seq: i64,
    /// Its JSON text.
    pub body: String,
    /// That text's SHA-256.
    pub hash: String,
    /// The audit key's signature.
    pub signature: String,
    at: i64,
    kind: String,
    user_name: Option<String>,
    session_id: Option<String>,
}

impl EventRow {
    /// Whether the columns by which it is found say what its text says: no hash covers them.
    pub fn is_found_by_what_it_says(&self) -> bool {
        let Ok(record) = serde_json::from_str::<Record>(&self.body) else { return false };
        let session = record.context.session.as_ref().map(|id| id.as_str());
        record.seq == self.seq
            && record.at.0 == self.at
            && kind(&record.event).is_ok_and(|kind| kind == self.kind)
            && record.context.user == self.user_name
            && session == self.session_id.as_deref()
    }
}

impl From<EventRow> for Link {
    fn from(row: EventRow) -> Self {
        Self { seq: row.seq, body: row.body, hash: row.hash, signature: row.signature }
    }
}

/// Which events to list.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only about this user.
    pub user: Option<String>,
    /// Only of the sessions whose id begins so.
    pub session: Option<IdPrefix>,
    /// Only from this moment on.
    pub since: Option<UnixTime>,
    /// Only before this moment.
    pub until: Option<UnixTime>,
}

impl Tx<'_> {
    /// Writes `event` at the end of the audit log.
    pub(crate) async fn append(
        &mut self,
        now: UnixTime,
        context: &Context,
        event: Event,
    ) -> Result<(), Error> {
        self.append_notes(context, vec![Note { at: now, event }]).await
    }

    /// Writes events at the end of the audit log, in their order, each with the time that it happened
    /// at.
    pub(super) async fn append_notes(
        &mut self,
        context: &Context,
        notes: Vec<Note>,
    ) -> Result<(), Error> {
        if notes.is_empty() {
            return Ok(());
        }
        self.is_cut = true; // Until all of it is there.
        let Anchor { mut seq, hash: mut prev } = self.hold_end().await?;
        for Note { at, event } in notes {
            seq += 1;
            let (node, context) = (self.store.node.clone(), context.clone());
            let record = Record { seq, at, node, prev, context, event };
            prev = self.insert(&record).await?.hash;
            self.appended.push(record);
        }
        (self.end, self.is_cut) = (Some(Anchor { seq, hash: prev }), false);
        Ok(())
    }

    /// The end of the log with what this transaction appended; nobody else appends from then on.
    async fn hold_end(&mut self) -> Result<Anchor, Error> {
        if let Some(end) = self.end.take() {
            return Ok(end);
        }
        let end = audit_head::table.find(1).select((audit_head::seq, audit_head::hash));
        let (seq, hash): (i64, String) = match self.engine() {
            // Who writes is alone.
            Engine::Sqlite(conn) => end.get_result(conn.statements()).await?,
            Engine::Postgres(conn) => end.for_update().get_result(conn).await?,
        };
        self.store.check_end(seq, &hash)?;
        Ok(Anchor { seq, hash })
    }

    /// Writes down where the log ends now.
    ///
    /// # Errors
    /// Also when an event is missing in it.
    pub(super) async fn move_end(&mut self) -> Result<(), Error> {
        use audit_head::dsl;
        if self.is_cut {
            return Err(Error::Audit("an event could not be appended".into()));
        }
        let Some(end) = self.end.clone() else { return Ok(()) };
        on!(self.engine(), conn => {
            diesel::update(dsl::audit_head.find(1))
                .set((dsl::seq.eq(end.seq), dsl::hash.eq(end.hash)))
                .execute(conn)
                .await
        })?;
        Ok(())
    }

    async fn insert(&mut self, record: &Record) -> Result<Link, Error> {
        let sign =
            |text: &str| self.store.audit_key.sign(text).map_err(|e| Error::Audit(e.to_string()));
        let link = Link::new(record, sign)?;
        let row = (
            audit_events::seq.eq(record.seq),
            audit_events::at.eq(record.at.0),
            audit_events::kind.eq(kind(&record.event)?),
            audit_events::user_name.eq(&record.context.user),
            audit_events::session_id.eq(record.context.session.as_ref().map(|id| id.as_str())),
            audit_events::body.eq(&link.body),
            audit_events::hash.eq(&link.hash),
            audit_events::signature.eq(&link.signature),
        );
        on!(self.engine(), conn => {
            diesel::insert_into(audit_events::table).values(row).execute(conn).await
        })?;
        Ok(link)
    }
}

impl Inner {
    /// Refuses to go on behind an end that was cut back, or is another than the one that this process
    /// wrote: signed once more, the log would look whole. Later events of other nodes are none of that.
    fn check_end(&self, seq: i64, hash: &str) -> Result<(), Error> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        match &*written {
            Some(ours) if seq < ours.seq || (seq == ours.seq && hash != ours.hash) => {
                let error = Error::CutBack { written: ours.seq, end: seq };
                tracing::error!(%error, "the audit log was tampered with: nothing is written");
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

/// Takes note of an end that lasts.
pub(super) fn note_written(written: &Mutex<Option<Anchor>>, end: Option<Anchor>) {
    let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(end) = end
        && written.as_ref().is_none_or(|ours| ours.seq < end.seq)
    {
        *written = Some(end);
    }
}

/// Tells the log what was written, which must last by then; the log never stands in for it.
pub(super) fn mirror(record: &Record) {
    let context = &record.context;
    let event = serde_json::to_string(&record.event).unwrap_or_default();
    let source = context.source.map(|source| source.to_string()).unwrap_or_default();
    let session = context.session.as_ref().map(ToString::to_string).unwrap_or_default();
    let user = context.user.as_deref().unwrap_or_default();
    tracing::info!(target: "sallyport::audit", seq = record.seq, user, source, session, "{event}");
}

/// The event's kind, as it stands in its JSON.
fn kind(event: &Event) -> Result<String, Error> {
    let value = serde_json::to_value(event)?;
    value
        .get("kind")
        .and_then(|kind| kind.as_str())
        .map(str::to_owned)
        .ok_or_else(|| Error::Audit("an event without a kind".into()))
}

impl Store {
    /// Writes one event that stands for nothing else in the store.
    ///
    /// # Errors
    /// When the store fails: what the event speaks of must then not happen.
    pub async fn record(
        &self,
        now: UnixTime,
        context: &Context,
        event: Event,
    ) -> Result<(), Error> {
        let mut tx = self.begin_short().await?;
        tx.append(now, context, event).await?;
        tx.commit().await
    }

    /// Writes events of one context that stand for nothing else in the store: all of them or none, in
    /// their order, each with its time.
    ///
    /// # Errors
    /// When the store fails: none of them is written then.
    pub async fn record_all(&self, context: &Context, notes: Vec<Note>) -> Result<(), Error> {
        if notes.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin_short().await?;
        tx.append_notes(context, notes).await?;
        tx.commit().await
    }

    /// The end of the log as the store counts it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn audit_head(&self) -> Result<Anchor, Error> {
        let mut tx = self.read_short().await?;
        let (seq, hash) = on!(tx.engine(), conn => {
            audit_head::table.find(1).select((audit_head::seq, audit_head::hash)).first(conn).await
        })?;
        tx.commit().await?;
        Ok(Anchor { seq, hash })
    }

    /// The end of the log as the store counts it, and the highest number of an event at that moment.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn audit_end(&self) -> Result<(Anchor, i64), Error> {
        use diesel::dsl::max;
        let mut tx = self.read().await?;
        let (seq, hash) = on!(tx.engine(), conn => {
            audit_head::table.find(1).select((audit_head::seq, audit_head::hash)).first(conn).await
        })?;
        let last: Option<i64> = on!(tx.engine(), conn => {
            audit_events::table.select(max(audit_events::seq)).first(conn).await
        })?;
        tx.commit().await?;
        Ok((Anchor { seq, hash }, last.unwrap_or(0)))
    }

    /// At most `limit` events with numbers above `after`, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn events_after(&self, after: i64, limit: i64) -> Result<Vec<EventRow>, Error> {
        use audit_events::dsl;
        let mut tx = self.read().await?;
        let rows = on!(tx.engine(), conn => {
            dsl::audit_events
                .filter(dsl::seq.gt(after))
                .order(dsl::seq.asc())
                .limit(limit)
                .select(EventRow::as_select())
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(rows)
    }

    /// The newest `limit` events that `filter` lets through, newest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn events(&self, filter: &EventFilter, limit: i64) -> Result<Vec<EventRow>, Error> {
        use audit_events::dsl;
        let mut tx = self.read().await?;
        let mut rows: Vec<EventRow> = on!(tx.engine(), conn => {
            let mut query = dsl::audit_events.select(EventRow::as_select()).into_boxed();
            if let Some(kind) = &filter.kind {
                query = query.filter(dsl::kind.eq(kind.as_str()));
            }
            if let Some(user) = &filter.user {
                query = query.filter(dsl::user_name.eq(user.as_str()));
            }
            if let Some(session) = &filter.session {
                let (first, last) = session.range();
                query = query.filter(dsl::session_id.between(first, last));
            }
            if let Some(since) = filter.since {
                query = query.filter(dsl::at.ge(since.0));
            }
            if let Some(until) = filter.until {
                query = query.filter(dsl::at.lt(until.0));
            }
            // Numbers say nothing of times to an index: by them, every event since then would be gone
            // through for the newest before some moment.
            if filter.since.is_some() || filter.until.is_some() {
                query = query.order((dsl::at.desc(), dsl::seq.desc()));
            } else {
                query = query.order(dsl::seq.desc());
            }
            query.limit(limit).load(conn).await
        })?;
        tx.commit().await?;
        rows.sort_by_key(|row| std::cmp::Reverse(row.seq));
        Ok(rows)
    }

    /// The last line of an export that ends at `anchor`.
    ///
    /// # Errors
    /// When the audit key cannot sign.
    pub fn checkpoint(&self, anchor: Anchor, now: UnixTime) -> Result<Checkpoint, Error> {
        let key = &self.0.audit_key;
        let sig = key.sign(&anchor.signed_text(now)).map_err(|e| Error::Audit(e.to_string()))?;
        Ok(Checkpoint { checkpoint: anchor, at: now, key: key.public().to_line(), sig })
    }
}
