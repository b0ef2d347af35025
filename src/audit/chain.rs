//! The hash chain over the audit log, and its check.
//!
//! Always holds: a record's body names the hash of the record before it (`prev`), its hash is the
//! SHA-256 of its body, and its signature is over its number and hash. So an edited, dropped or
//! reordered record breaks the chain at that place, and a rewritten end of the chain, with all
//! hashes made anew, breaks the signatures from its first record on. Nothing here needs a store.
//!
//! What no chain can tell by itself is that its *newest* records were cut off together with the
//! head that counted them: keep an [`Anchor`] (an export's last line, a start-up log line) elsewhere.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Record;
use crate::domain::UnixTime;

/// What stands in for the hash of a record before the first.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Signs, and checks signatures on, the text of [`Link::signed_text`].
pub trait Signatures {
    /// Whether `signature` is the audit key's on `text`.
    fn verify(&self, text: &str, signature: &str) -> bool;
}

/// A record as it is stored: its exact JSON text, that text's hash, and a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The record's number.
    pub seq: i64,
    /// The record as JSON, byte for byte what the hash covers.
    pub body: String,
    /// SHA-256 of `body`, in hex.
    pub hash: String,
    /// The audit key's signature over [`Self::signed_text`].
    pub signature: String,
}

impl Link {
    /// Makes the link for `record`, signed by `sign`.
    ///
    /// # Errors
    /// What `sign` failed with, or JSON (which no record of ours does).
    pub fn new<E: From<serde_json::Error>>(
        record: &Record,
        sign: impl FnOnce(&str) -> Result<String, E>,
    ) -> Result<Self, E> {
        // What a terminal could act on is escaped before the hash is made, so that an event can be
        // shown exactly as it was signed.
        let body = crate::domain::printable_json(&serde_json::to_string(record)?);
        let hash = hex_sha256(body.as_bytes());
        let signature = sign(&Self::signed_text(record.seq, &hash))?;
        Ok(Self { seq: record.seq, body, hash, signature })
    }

    /// The text that a record's signature is over.
    pub fn signed_text(seq: i64, hash: &str) -> String {
        format!("sallyport-audit-1 {seq} {hash}")
    }

    /// The record as one line of an export: its body with `hash` and `sig` put at the end.
    pub fn to_line(&self) -> String {
        let open = self.body.strip_suffix('}').unwrap_or(&self.body);
        format!("{open},\"hash\":\"{}\",\"sig\":\"{}\"}}", self.hash, self.signature)
    }

    /// As it says of itself which number it has, whatever place it was found at.
    pub fn by_its_own_number(self) -> Self {
        let seq = serde_json::from_str::<Place>(&self.body).map_or(self.seq, |place| place.seq);
        Self { seq, ..self }
    }

    /// Takes a line of an export apart again.
    pub fn from_line(line: &str) -> Option<Self> {
        let (open, tail) = line.rsplit_once(",\"hash\":\"")?;
        let (hash, tail) = tail.split_once("\",\"sig\":\"")?;
        let signature = tail.strip_suffix("\"}")?;
        let body = format!("{open}}}");
        let seq = serde_json::from_str::<Place>(&body).ok()?.seq;
        Some(Self { seq, body, hash: hash.to_owned(), signature: signature.to_owned() })
    }
}

/// The place of a record in the chain, as its own body tells it.
#[derive(Deserialize)]
struct Place {
    seq: i64,
    prev: String,
}

/// The last line of an export: how far the log went when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Number and hash of the newest record.
    pub checkpoint: Anchor,
    /// When the export was made.
    pub at: UnixTime,
    /// The audit key's public half, in OpenSSH's format.
    pub key: String,
    /// The audit key's signature over [`Anchor::signed_text`].
    pub sig: String,
}

/// A record's number and hash, noted outside the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The record's number.
    pub seq: i64,
    /// The record's hash.
    pub hash: String,
}

impl Anchor {
    /// The text that a checkpoint's signature is over.
    pub fn signed_text(&self, at: UnixTime) -> String {
        format!("sallyport-audit-checkpoint-1 {} {} {}", self.seq, self.hash, at.0)
    }
}

impl std::fmt::Display for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl std::str::FromStr for Anchor {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parsed = s.split_once(':').and_then(|(seq, hash)| {
            let whole = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
            Some(Self { seq: seq.parse().ok()?, hash: whole.then(|| hash.to_ascii_lowercase())? })
        });
        parsed.ok_or_else(|| "an anchor is SEQ:HASH with 64 hexadecimal digits".to_owned())
    }
}

/// The first place where a log is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// The record's text is not the one that was written.
    #[error("event {0} was edited")]
    Edited(i64),
    /// The record fits its hash, and the audit key did not sign that.
    #[error("event {0} is not signed by the audit key: it was forged, or the key is another one")]
    Unsigned(i64),
    /// The record is missing, and later ones are there.
    #[error("event {0} was dropped")]
    Dropped(i64),
    /// A record that was written later stands where `expected` should, which comes further behind.
    #[error("event {found} stands where event {expected} should: events were reordered")]
    Reordered {
        /// The number that should have come.
        expected: i64,
        /// The number that came.
        found: i64,
    },
    /// A record stands a second time, or where the log is over.
    #[error("event {found} stands again after event {after}: a copy was inserted")]
    Inserted {
        /// The number of the copy.
        found: i64,
        /// The number of the record before it.
        after: i64,
    },
    /// The log ends before this record, which is known to have been written.
    #[error("event {0} and what follows was cut off")]
    CutOff(i64),
    /// The record is there, and the log is said to end before it.
    #[error("event {0} lies behind the end of the log: the end was set back")]
    Uncounted(i64),
    /// The line is no record of an export.
    #[error("line {0} is not an exported event")]
    Unreadable(u64),
    /// Something follows an export's last line.
    #[error("line {0} stands behind the checkpoint, with which an export ends: it was inserted")]
    BehindCheckpoint(u64),
    /// An export without its last line.
    #[error("the export was cut off after event {0}: its last line, the checkpoint, is missing")]
    NoCheckpoint(i64),
    /// The checkpoint was not signed by the audit key.
    #[error("the checkpoint after event {0} is not signed by the audit key")]
    ForgedCheckpoint(i64),
}

/// Checks a log record by record, from its beginning on.
pub struct Verifier<'a, S> {
    signatures: &'a S,
    last: Option<Anchor>,
    anchors: Vec<Anchor>,
    /// The number of a record that did not come where it should, and of the one that came. From
    /// then on only that one is looked for: if it comes, it was moved, and else it is gone.
    gap: Option<(i64, i64)>,
}

impl<'a, S: Signatures> Verifier<'a, S> {
    /// A check against the audit key behind `signatures` and what was noted elsewhere.
    pub fn new(signatures: &'a S, anchors: Vec<Anchor>) -> Self {
        Self { signatures, last: None, anchors, gap: None }
    }

    /// The number of the newest record that is good.
    fn end(&self) -> i64 {
        self.last.as_ref().map_or(0, |last| last.seq)
    }

    /// The record's own words about its place, if they are what was written and signed; else what
    /// is wrong with record number `expected`, which it passes for.
    fn genuine(&self, link: &Link, expected: i64) -> Result<Place, Break> {
        let place: Option<Place> = serde_json::from_str(&link.body).ok();
        let place = place
            .filter(|place| place.seq == link.seq && hex_sha256(link.body.as_bytes()) == link.hash);
        let place = place.ok_or(Break::Edited(expected))?;
        let signed = Link::signed_text(link.seq, &link.hash);
        match self.signatures.verify(&signed, &link.signature) {
            true => Ok(place),
            false => Err(Break::Unsigned(expected)),
        }
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// The first place where the log is broken.
    pub fn push(&mut self, link: &Link) -> Result<(), Break> {
        if let Some((expected, found)) = self.gap {
            let moved = link.seq == expected && self.genuine(link, expected).is_ok();
            return if moved { Err(Break::Reordered { expected, found }) } else { Ok(()) };
        }
        let expected = self.end() + 1;
        let place = self.genuine(link, expected)?;
        if link.seq < expected {
            return Err(Break::Inserted { found: link.seq, after: self.end() });
        }
        if link.seq > expected {
            self.gap = Some((expected, link.seq));
            return Ok(());
        }
        let before = self.last.as_ref().map_or(GENESIS, |last| last.hash.as_str());
        if place.prev != before {
            // This record is what it was, so the one before it is not.
            return Err(Break::Edited((link.seq - 1).max(1)));
        }
        if self.anchors.iter().any(|a| a.seq == link.seq && a.hash != link.hash) {
            return Err(Break::Edited(link.seq));
        }
        self.last = Some(Anchor { seq: link.seq, hash: link.hash.clone() });
        Ok(())
    }

    /// What to report when the record that was taken last proves to be damaged in a way that its
    /// text does not show; nothing while one is looked for that should have come before.
    pub fn reject(&self) -> Option<Break> {
        self.gap.is_none().then(|| Break::Edited(self.end()))
    }

    /// Ends the check: `head` is how far the log is known to go.
    ///
    /// # Errors
    /// The first place where the log is broken.
    pub fn finish(self, head: Option<&Anchor>) -> Result<Option<Anchor>, Break> {
        if let Some((expected, _)) = self.gap {
            return Err(Break::Dropped(expected));
        }
        let end = self.end();
        let known = self.anchors.iter().chain(head).map(|a| a.seq).max().unwrap_or(0);
        if known > end {
            return Err(Break::CutOff(end + 1));
        }
        match (head, &self.last) {
            (Some(head), Some(last)) if head.seq == last.seq && head.hash != last.hash => {
                Err(Break::Edited(last.seq))
            }
            (Some(head), Some(last)) if head.seq < last.seq => Err(Break::Uncounted(head.seq + 1)),
            _ => Ok(self.last),
        }
    }
}

/// Checks a whole export, its checkpoint included; gives the newest record.
///
/// # Errors
/// The first place where the export is broken.
pub fn verify_export<S: Signatures>(
    lines: impl Iterator<Item = String>,
    signatures: &S,
    anchors: Vec<Anchor>,
) -> Result<Option<Anchor>, Break> {
    let mut verifier = Verifier::new(signatures, anchors);
    let mut checkpoint: Option<Checkpoint> = None;
    for (number, line) in (1..).zip(lines) {
        if checkpoint.is_some() {
            return Err(Break::BehindCheckpoint(number));
        }
        if let Some(link) = Link::from_line(&line) {
            verifier.push(&link)?;
        } else if let Ok(found) = serde_json::from_str::<Checkpoint>(&line) {
            checkpoint = Some(found);
        } else {
            return Err(Break::Unreadable(number));
        }
    }
    let end = verifier.end();
    let Some(found) = checkpoint else { return Err(Break::NoCheckpoint(end)) };
    let anchor = &found.checkpoint;
    if !signatures.verify(&anchor.signed_text(found.at), &found.sig) {
        return Err(Break::ForgedCheckpoint(end));
    }
    verifier.finish(Some(anchor))
}

/// SHA-256 in lower-case hex.
pub fn hex_sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        if write!(hex, "{byte:02x}").is_err() {
            break; // Writing to a String cannot fail.
        }
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::super::{Context, Event};
    use super::*;
    use proptest::prelude::*;

    /// A key whose signatures can be checked by eye: no secret is needed to test the chain.
    struct TestKey;

    impl TestKey {
        fn sign(text: &str) -> String {
            hex_sha256(format!("key {text}").as_bytes())
        }
    }

    impl Signatures for TestKey {
        fn verify(&self, text: &str, signature: &str) -> bool {
            Self::sign(text) == signature
        }
    }

    fn log(events: i64) -> Vec<Link> {
        let mut prev = GENESIS.to_owned();
        (1..=events)
            .map(|seq| {
                let record = Record {
                    seq,
                    at: UnixTime(seq * 1000),
                    node: "n1".into(),
                    prev: prev.clone(),
                    context: Context { user: Some(format!("u{seq}")), ..Context::default() },
                    event: Event::ServerStarted { version: "\",\"hash\":\"x".into() },
                };
                let link =
                    Link::new::<serde_json::Error>(&record, |t| Ok(TestKey::sign(t))).unwrap();
                prev.clone_from(&link.hash);
                link
            })
            .collect()
    }

    fn head(links: &[Link]) -> Anchor {
        let last = links.last().unwrap();
        Anchor { seq: last.seq, hash: last.hash.clone() }
    }

    fn verify(links: &[Link], head: &Anchor) -> Result<Option<Anchor>, Break> {
        let mut verifier = Verifier::new(&TestKey, Vec::new());
        for link in links {
            verifier.push(link)?;
        }
        verifier.finish(Some(head))
    }

    /// The chain from `from` on, made anew with right hashes by somebody without the key.
    fn rewritten(mut links: Vec<Link>, from: usize) -> Vec<Link> {
        let mut prev = links[from - 1].hash.clone();
        for link in &mut links[from..] {
            let mut record: Record = serde_json::from_str(&link.body).unwrap();
            record.prev = prev;
            record.context.user = Some("mallory".into());
            let new = Link::new::<serde_json::Error>(&record, |_| Ok("?".into())).unwrap();
            prev = new.hash.clone();
            *link = new;
        }
        links
    }

    #[test]
    fn a_whole_log_verifies_and_reads_back_from_lines() {
        let links = log(2500);
        assert_eq!(verify(&links, &head(&links)), Ok(Some(head(&links))));
        for link in &links {
            assert_eq!(Link::from_line(&link.to_line()).as_ref(), Some(link));
        }
        assert_eq!(verify(&[], &Anchor { seq: 0, hash: GENESIS.into() }), Ok(None));
    }

    #[test]
    fn an_end_that_was_cut_off_with_its_head_is_found_by_an_anchor() {
        let links = log(9);
        let mut verifier = Verifier::new(&TestKey, vec![head(&links)]);
        for link in &links[..6] {
            verifier.push(link).unwrap();
        }
        assert_eq!(verifier.finish(Some(&head(&links[..6]))), Err(Break::CutOff(7)));
    }

    #[test]
    fn exports_need_their_checkpoint() {
        let links = log(5);
        let anchor = head(&links);
        let at = UnixTime(9);
        let checkpoint = Checkpoint {
            sig: TestKey::sign(&anchor.signed_text(at)),
            checkpoint: anchor,
            at,
            key: String::new(),
        };
        let last = serde_json::to_string(&checkpoint).unwrap();
        let lines = |n: usize, tail: Option<&str>| {
            let lines: Vec<String> = links[..n].iter().map(Link::to_line).collect();
            verify_export(lines.into_iter().chain(tail.map(str::to_owned)), &TestKey, Vec::new())
        };
        assert!(lines(5, Some(&last)).is_ok());
        assert_eq!(lines(5, None), Err(Break::NoCheckpoint(5)));
        assert_eq!(lines(4, Some(&last)), Err(Break::CutOff(5)));
        assert_eq!(
            lines(5, Some(&last.replace("\"seq\":5", "\"seq\":4"))),
            Err(Break::ForgedCheckpoint(5))
        );
        assert_eq!(lines(5, Some("{}")), Err(Break::Unreadable(6)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_first_damaged_event_is_named(n in 3usize..300, at in 0usize..300, how in 0..7) {
            let at = 1 + at % (n - 2); // Neither the first nor the last.
            let seq = i64::try_from(at).unwrap() + 1;
            let links = log(i64::try_from(n).unwrap());
            let head = head(&links);
            let mut damaged = links;
            let expected = match how {
                0 => {
                    damaged[at].body = damaged[at].body.replace("n1", "n2");
                    Break::Edited(seq)
                }
                1 => {
                    damaged.remove(at);
                    Break::Dropped(seq)
                }
                2 => {
                    damaged.swap(at, at + 1);
                    Break::Reordered { expected: seq, found: seq + 1 }
                }
                3 => {
                    damaged.truncate(at);
                    Break::CutOff(seq)
                }
                4 => {
                    damaged.insert(at, damaged[at / 2].clone());
                    Break::Inserted { found: damaged[at].seq, after: seq - 1 }
                }
                5 => {
                    damaged[at].signature = damaged[at - 1].signature.clone();
                    Break::Unsigned(seq)
                }
                _ => {
                    damaged = rewritten(damaged, at);
                    Break::Unsigned(seq)
                }
            };
            prop_assert_eq!(verify(&damaged, &head), Err(expected));
        }
    }
}
