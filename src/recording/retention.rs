//! Which recordings are old enough, or too many, to be kept; and their removal.
//!
//! Always holds: the plan is pure and names the oldest first; a recording whose session still runs
//! is never in it; a removal that was reported lasts through a power failure.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::seal;
use crate::domain::{Id, UnixTime};

/// A recording, as far as keeping it is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its id.
    pub id: Id,
    /// Its file's size.
    pub bytes: u64,
    /// When its session ended; `None` while it runs.
    pub ended: Option<UnixTime>,
    /// Its file.
    pub path: PathBuf,
}

/// How long, and how much, is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A recording that ended longer ago goes; `None` keeps them for ever.
    pub max_age: Option<Duration>,
    /// While all take up more, the oldest goes; `None` sets no limit.
    pub max_bytes: Option<u64>,
}

/// The recordings that go at `now`, oldest first.
pub fn plan(recordings: Vec<Kept>, policy: Policy, now: UnixTime) -> Vec<Kept> {
    let mut total =
        recordings.iter().fold(0_u64, |sum, recording| sum.saturating_add(recording.bytes));
    let mut ended: Vec<(UnixTime, Kept)> =
        recordings.into_iter().filter_map(|r| r.ended.map(|ended| (ended, r))).collect();
    ended.sort_by(|(a, x), (b, y)| (a, &x.id).cmp(&(b, &y.id)));
    let goes = |(ended, recording): (UnixTime, Kept)| {
        let too_old = policy.max_age.is_some_and(|most| now.since(ended) > most);
        let too_much = policy.max_bytes.is_some_and(|most| total > most);
        total = if too_old || too_much { total.saturating_sub(recording.bytes) } else { total };
        (too_old || too_much).then_some(recording)
    };
    ended.into_iter().map_while(goes).collect()
}

/// Removes the files of `recordings`, and folders of days that are empty then; gives what could
/// not be removed, and why. A file that is gone already counts as removed. Blocks.
///
/// # Errors
/// When a folder cannot be asked onto the disk. The removal may not last then.
pub fn remove(recordings: Vec<Kept>) -> io::Result<Vec<(Kept, io::Error)>> {
    let mut folders = BTreeSet::new();
    let mut left = Vec::new();
    for recording in recordings {
        match std::fs::remove_file(&recording.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => left.push((recording, error)),
            _ => _ = folders.insert(recording.path.parent().map(Path::to_owned)),
        }
    }
    for folder in folders.into_iter().flatten() {
        // Fails, as it should, while anything is in it.
        let gone = is_of_a_day(&folder) && std::fs::remove_dir(&folder).is_ok();
        let in_it = folder.join("-");
        match seal::sync_folder_of(if gone { &folder } else { &in_it }) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(left)
}

/// Whether `folder` is named like those that recordings are sorted into.
fn is_of_a_day(folder: &Path) -> bool {
    let name = folder.file_name().map(|name| name.as_encoded_bytes());
    name.is_some_and(|name| name.len() == 10 && name.iter().all(|b| b"0123456789-".contains(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: i64 = 86_400_000;

    fn kept(n: u8, bytes: u64, ended_day: Option<i64>) -> Kept {
        let id = Id::from_random([n; Id::LEN]);
        let path = PathBuf::from(format!("{n}.cast.zst"));
        Kept { id, bytes, ended: ended_day.map(|day| UnixTime(day * DAY)), path }
    }

    fn planned(recordings: Vec<Kept>, days: Option<u64>, max_bytes: Option<u64>) -> Vec<String> {
        let max_age = days.map(|days| Duration::from_secs(days * 86_400));
        let policy = Policy { max_age, max_bytes };
        let plan = plan(recordings, policy, UnixTime(10 * DAY));
        plan.iter().map(|r| r.path.display().to_string().replace(".cast.zst", "")).collect()
    }

    #[test]
    fn the_oldest_go_first() {
        let all = || {
            vec![
                kept(3, 30, Some(9)),
                kept(1, 10, Some(2)),
                kept(4, 50, None),
                kept(2, 20, Some(5)),
            ]
        };
        for (days, bytes, expected) in [
            (None, None, &[][..]),
            (Some(20), Some(1000), &[]),
            (Some(5), None, &["1"]),
            (Some(4), None, &["1", "2"]),
            (None, Some(100), &["1"]),
            (None, Some(99), &["1", "2"]),
            (None, Some(80), &["1", "2"]),
            (Some(5), Some(80), &["1", "2"]),
            (None, Some(0), &["1", "2", "3"]), // Never one that still runs.
        ] {
            assert_eq!(planned(all(), days, bytes), expected, "{days:?} {bytes:?}");
        }
    }

    #[test]
    fn removing_leaves_nothing_behind_but_what_it_names() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("2026-11-23"), root.path().join("2026-11-24"));
        let at = |n, path: PathBuf| Kept { path, ..kept(n, 1, Some(1)) };
        for folder in [&one, &two] {
            std::fs::create_dir(folder).unwrap();
        }
        for file in [one.join("a"), two.join("b"), two.join("c")] {
            std::fs::write(file, "x").unwrap();
        }
        std::fs::create_dir(root.path().join("mine")).unwrap();
        std::fs::write(root.path().join("mine/d"), "x").unwrap();
        let not_a_file = at(4, root.path().join("2026-11-24"));
        let gone = [
            at(1, one.join("a")),
            at(2, two.join("b")),
            at(3, two.join("never")),
            at(5, root.path().join("mine/d")),
        ];
        let left = remove(gone.into_iter().chain([not_a_file.clone()]).collect()).unwrap();
        assert_eq!(left.into_iter().map(|(kept, _)| kept).collect::<Vec<_>>(), [not_a_file]);
        assert!(!one.exists() && !two.join("b").exists() && two.join("c").exists());
        assert!(std::fs::read_dir(root.path().join("mine")).unwrap().next().is_none());
    }

    proptest! {
        #[test]
        fn what_stays_fits_unless_it_runs(
            all in prop::collection::vec((0u64..100, prop::option::of(0i64..10)), 0..20),
            max in 0u64..500,
        ) {
            let all: Vec<Kept> =
                (0..).zip(&all).map(|(n, (bytes, ended))| kept(n, *bytes, *ended)).collect();
            let policy = Policy { max_age: None, max_bytes: Some(max) };
            let gone = plan(all.clone(), policy, UnixTime(10 * DAY));
            prop_assert!(gone.iter().all(|r| r.ended.is_some()));
            prop_assert!(gone.is_sorted_by_key(|r| r.ended));
            let stays: Vec<_> = all.iter().filter(|r| !gone.contains(r)).collect();
            let total: u64 = stays.iter().map(|r| r.bytes).sum();
            prop_assert!(total <= max || stays.iter().all(|r| r.ended.is_none()));
            // And no more went than had to.
            if let Some(last) = gone.last() {
                prop_assert!(total + last.bytes > max);
            }
        }
    }
}
