//! What live sessions have carried so far, as their node tells it now and then.
//!
//! Always holds: only rows that are open change; the end of one is written once, with its last sums,
//! and nothing of before comes after it. No event is written: the ends have theirs.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::pool::on;
use super::schema::{forwards, recordings, sessions};
use super::session::signed;
use super::{Error, Store};
use crate::domain::Id;

/// What a session carried, with what is open of it. Bytes are counted up and down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The session.
    pub session: Id,
    /// What it carried in all.
    pub bytes: (u64, u64),
    /// What of it carries bytes and has a row of its own, and how many.
    pub open: Vec<(Carrier, (u64, u64))>,
}

/// What carries bytes and has a row of its own, by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrier {
    /// A forward.
    Forward(Id),
    /// A recorded session channel.
    Recording(Id),
}

/// Sets the sums of a row of `$table` that is open: `$end` is its column for the end.
macro_rules! carried {
    ($tx:expr, $table:ident, $end:ident, $id:expr, $bytes:expr) => {{
        use $table::dsl;
        let (up, down) = $bytes;
        on!($tx.engine(), conn => {
            diesel::update(dsl::$table.find($id.as_str()))
                .filter(dsl::$end.is_null())
                .set((dsl::bytes_up.eq(signed(up)), dsl::bytes_down.eq(signed(down))))
                .execute(conn)
                .await
        })?
    }};
}

impl Store {
    /// Writes down what sessions of this node carried so far; all of it in one transaction.
    ///
    /// # Errors
    /// When the store fails: nothing of it is written then.
    pub async fn write_carried(&self, sessions: &[Carried]) -> Result<(), Error> {
        if sessions.is_empty() {
            return Ok(());
        }
        // Sessions in the order in which they are closed together, each before its parts: nobody
        // waits for two of them crosswise.
        let mut sessions: Vec<&Carried> = sessions.iter().collect();
        sessions.sort_by(|a, b| a.session.cmp(&b.session));
        let mut tx = self.begin().await?;
        for carried in sessions {
            carried!(tx, sessions, ended_at, carried.session, carried.bytes);
            for (carrier, bytes) in &carried.open {
                match carrier {
                    Carrier::Forward(id) => carried!(tx, forwards, closed_at, id, *bytes),
                    Carrier::Recording(id) => carried!(tx, recordings, ended_at, id, *bytes),
                };
            }
        }
        tx.commit().await
    }
}
