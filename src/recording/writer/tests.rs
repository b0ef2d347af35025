//! Recordings in real files, on disks that are full, slow, or whole.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use super::super::asciicast::tests::{header, outputs};
use super::super::asciicast::{Event, Kind, Reader};
use super::track::{cut_off, write_lines};
use super::*;

const LIMITS: Limits =
    Limits { queue_bytes: 64 * 1024, min_free_bytes: 1, max_bytes: None, max_account_bytes: None };

struct Place {
    folder: tempfile::TempDir,
    writer: Writer,
    id: Id,
    account: Id,
}

impl Place {
    fn new() -> Self {
        let (folder, writer) = (tempfile::tempdir().unwrap(), Writer::start().unwrap());
        let [id, account] = [(); 2].map(|()| Id::random().unwrap());
        Self { folder, writer, id, account }
    }

    /// Another recording, of `account`.
    async fn another(&self, account: &Id, limits: Limits) -> Result<Recorder, Failure> {
        let (folder, id) = (self.folder.path().join("recordings"), Id::random().unwrap());
        Recorder::create(&self.writer, &folder, (&id, account), &header(), limits).await
    }

    async fn create(&self, limits: Limits) -> Result<Recorder, Failure> {
        let folder = self.folder.path().join("recordings");
        let ids = (&self.id, &self.account);
        Recorder::create(&self.writer, &folder, ids, &header(), limits).await
    }

    /// A recorder whose file is something else.
    fn on(&self, file: impl Into<std::os::fd::OwnedFd>, limits: Limits) -> Recorder {
        let path = self.folder.path().join("elsewhere.cast");
        let part = self.writer.usage.begin(&self.account);
        Recorder::on_file(&self.writer, (File::from(file.into()), path), part, limits).unwrap()
    }
}

fn events(path: &Path) -> Vec<Event> {
    Reader::open(path).unwrap().map(Result::unwrap).collect()
}

fn kinds(path: &Path) -> Vec<Kind> {
    events(path).into_iter().map(|event| event.kind).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_session_is_written_compressed_and_hashed() {
    let place = Place::new();
    let recorder = place.create(LIMITS).await.unwrap();
    let plain = recorder.path().to_owned();
    let day = place.folder.path().join("recordings/2026-11-24");
    assert_eq!(plain, day.join(format!("{}.cast", place.id)));
    assert_eq!(std::fs::read(&plain).unwrap(), header().to_line());
    for folder in [place.folder.path().join("recordings"), day.clone()] {
        assert_eq!(mode(&folder), 0o700);
    }
    recorder.output(Bytes::from_static(b"gr\xc3")).await.unwrap();
    recorder.output(Bytes::from_static(b"\xb6\xc3")).await.unwrap();
    recorder.input(Bytes::from_static(b"ls\r")).await.unwrap();
    recorder.resize(132, 43).await.unwrap();
    recorder.marker("scp").await.unwrap();
    recorder.output(Bytes::new()).await.unwrap();
    place.writer.drain().await;
    assert_eq!(kinds(&plain).len(), 5);

    let finished = recorder.finish().await.unwrap();
    assert_eq!(finished.path, day.join(format!("{}.cast.zst", place.id)));
    assert_eq!(mode(&finished.path), 0o600);
    assert_eq!(finished.bytes, std::fs::metadata(&finished.path).unwrap().len());
    assert!(finished.failure.is_none() && !plain.exists());
    let kinds = kinds(&finished.path);
    assert_eq!(finished.events, u64::try_from(kinds.len()).unwrap());
    let expected = [
        Kind::Output("gr".into()),
        Kind::Output("\u{f6}".into()),
        Kind::Input("ls\r".into()),
        Kind::Resize { columns: 132, rows: 43 },
        Kind::Marker("scp".into()),
        Kind::Output("\u{fffd}".into()),
    ];
    assert_eq!(kinds, expected);
    assert!(matches!(recorder.output("x".into()).await, Err(Failure::Finished)));
    assert!(matches!(recorder.finish().await, Err(Failure::Finished)));
}

#[tokio::test(start_paused = true)]
async fn events_carry_the_time_since_the_beginning() {
    let place = Place::new();
    let recorder = place.create(LIMITS).await.unwrap();
    let began = tokio::time::Instant::now();
    tokio::time::advance(Duration::from_micros(1_234_567)).await;
    recorder.output("a".into()).await.unwrap();
    let at = began.elapsed();
    place.writer.drain().await;
    let time = events(recorder.path())[0].time;
    assert!(time >= at && time < at + Duration::from_secs(60), "{time:?}");
    assert!(recorder.finish().await.unwrap().duration >= time);
}

#[tokio::test]
async fn an_existing_recording_is_never_overwritten() {
    let place = Place::new();
    let _first = place.create(LIMITS).await.unwrap();
    let Err(Failure::Io(error)) = place.create(LIMITS).await else { panic!("overwritten") };
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn what_was_handed_over_is_in_the_file_within_a_second() {
    let place = Place::new();
    let recorder = place.create(LIMITS).await.unwrap();
    let handed_over = Instant::now();
    recorder.output("$ ".into()).await.unwrap();
    // Nothing tells when a file grows, so it is looked at again and again.
    while kinds(recorder.path()).is_empty() {
        assert!(handed_over.elapsed() < Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_dropped_recorder_is_written_all_the_same() {
    let place = Place::new();
    let recorder = place.create(LIMITS).await.unwrap();
    let path = recorder.path().to_owned();
    recorder.output("abandoned".into()).await.unwrap();
    drop(recorder);
    place.writer.drain().await;
    assert_eq!(kinds(&path), [Kind::Output("abandoned".into())]);

    let finished = close_interrupted(&place.writer, &path).await.unwrap();
    assert_eq!(finished.events, 1);
    assert_eq!(kinds(&finished.path), [Kind::Output("abandoned".into())]);
    // And once more, as if a crash came before the result was noted.
    let again = close_interrupted(&place.writer, &path).await.unwrap();
    assert_eq!((again.sha256, again.events), (finished.sha256, 1));
}

#[tokio::test]
async fn a_recording_that_a_crash_cut_off_is_closed() {
    let place = Place::new();
    let path = place.folder.path().join("x.cast");
    let cast = outputs(&[(0, "one"), (2500, "two"), (3000, "three")]);
    std::fs::write(&path, &cast[..cast.len() - 5]).unwrap();
    let finished = close_interrupted(&place.writer, &path).await.unwrap();
    assert_eq!(finished.events, 2);
    assert_eq!(finished.duration, Duration::from_millis(2500));
    assert_eq!(kinds(&finished.path).len(), 2);
    let missing = place.folder.path().join("never.cast");
    assert!(close_interrupted(&place.writer, &missing).await.is_err());
}

#[tokio::test]
async fn a_full_disk_fails_the_recording_and_says_so() {
    let place = Place::new();
    // The kernel's own full disk: every write fails with ENOSPC.
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let recorder = place.on(full, Limits { min_free_bytes: 0, ..LIMITS });
    recorder.output("lost".into()).await.unwrap();
    let Failure::Io(error) = recorder.failed().await else { panic!("not an I/O error") };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(matches!(recorder.output("x".into()).await, Err(Failure::Io(_))));
    assert!(matches!(recorder.marker("x").await, Err(Failure::Io(_))));
}

#[tokio::test]
async fn a_failed_recording_is_finished_with_what_was_written() {
    let place = Place::new();
    let first = place.create(LIMITS).await.unwrap();
    let path = first.path().to_owned();
    let file = OpenOptions::new().append(true).open(&path).unwrap();
    drop(first);
    // Less is free than the limit asks for: what was written stays, and no more comes.
    let limits = Limits { min_free_bytes: u64::MAX, ..LIMITS };
    let part = place.writer.usage.begin(&place.account);
    let recorder = Recorder::on_file(&place.writer, (file, path), part, limits).unwrap();
    recorder.output("the last that was kept".into()).await.unwrap();
    assert!(matches!(recorder.failed().await, Failure::LowSpace { .. }));
    assert!(matches!(recorder.output("x".into()).await, Err(Failure::LowSpace { .. })));
    let finished = recorder.finish().await.unwrap();
    assert!(matches!(finished.failure, Some(Failure::LowSpace { .. })));
    assert_eq!(kinds(&finished.path), [Kind::Output("the last that was kept".into())]);
}

#[tokio::test]
async fn recordings_of_one_account_share_what_they_may_take_while_they_are_written() {
    let place = Place::new();
    let limits = Limits { max_bytes: Some(3000), max_account_bytes: Some(4096), ..LIMITS };
    let one = place.create(limits).await.unwrap();
    let two = place.another(&place.account, limits).await.unwrap();
    let feed = async |recorder: &Recorder| {
        while recorder.output("a line of some length".into()).await.is_ok() {
            place.writer.drain().await;
        }
        (recorder.failed().await, std::fs::metadata(recorder.path()).unwrap().len())
    };
    let (failure, first) = feed(&one).await;
    assert!(matches!(failure, Failure::Full { max: 3000 }), "{failure}");
    let (failure, second) = feed(&two).await;
    assert!(matches!(failure, Failure::AccountFull { max: 4096 }), "{failure}");
    assert!(first + second <= 4096 && first + second > 4000, "{first} {second}");
    // Somebody else's has its room; this account's does not begin, until one is finished.
    let refused = place.another(&place.account, limits).await.map(|_| ());
    assert!(matches!(refused, Err(Failure::AccountFull { max: 4096 })), "{refused:?}");
    let other = place.another(&Id::random().unwrap(), limits).await.unwrap();
    other.output("x".into()).await.unwrap();
    let finished = one.finish().await.unwrap();
    assert!(matches!(finished.failure, Some(Failure::Full { .. })));
    let next = place.another(&place.account, limits).await.unwrap();
    next.output("x".into()).await.unwrap();
    place.writer.drain().await;
    assert_eq!(kinds(next.path()), [Kind::Output("x".into())]);
}

#[tokio::test]
async fn a_recording_that_is_full_keeps_whole_lines_and_no_more() {
    let place = Place::new();
    let max = 4096;
    let recorder = place.create(Limits { max_bytes: Some(max), ..LIMITS }).await.unwrap();
    let mut said = 0;
    while recorder.output(format!("line {said}").into()).await.is_ok() {
        said += 1;
        place.writer.drain().await;
    }
    assert!(matches!(recorder.failed().await, Failure::Full { max: 4096 }));
    let size = std::fs::metadata(recorder.path()).unwrap().len();
    assert!(size <= max && size > max - 64, "{size}");
    let finished = recorder.finish().await.unwrap();
    assert!(matches!(finished.failure, Some(Failure::Full { .. })));
    let kinds = kinds(&finished.path);
    assert_eq!(finished.events, u64::try_from(kinds.len()).unwrap());
    assert_eq!(kinds.len() + 1, said, "the last one did not fit");
    for (n, kind) in kinds.iter().enumerate() {
        assert_eq!(*kind, Kind::Output(format!("line {n}")));
    }
}

#[tokio::test]
async fn too_little_free_space_refuses_a_recording() {
    let place = Place::new();
    let result = place.create(Limits { min_free_bytes: u64::MAX, ..LIMITS }).await;
    assert!(matches!(result, Err(Failure::LowSpace { .. })));
    assert!(!place.folder.path().join("recordings").exists());
    let not_made_yet = place.folder.path().join("a/b");
    assert!(free_space_ok(&not_made_yet, 1).unwrap());
    assert!(!free_space_ok(&not_made_yet, u64::MAX).unwrap());
}

#[test]
fn part_of_a_line_that_a_full_disk_took_is_cut_off_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.cast");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"{}\n[1,\"o\",\"a\"]\n[2,\"o").unwrap();
    cut_off(&file, 5);
    assert_eq!(std::fs::read(&path).unwrap(), b"{}\n[1,\"o\",\"a\"]\n");
}

#[test]
fn lines_that_were_not_written_are_not_counted() {
    // A pipe that nobody reads takes 64 KiB and then, when told not to wait, fails.
    let (_reader, file) = io::pipe().unwrap();
    let file = File::from(std::os::fd::OwnedFd::from(file));
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::NONBLOCK).unwrap();
    let short = write_lines(&file, &b"[1,\"o\",\"a\"]\n".repeat(10_000)).unwrap_err();
    assert_eq!(short.error.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(short.lines, 64 * 1024 / 12);
}

#[tokio::test]
async fn a_disk_that_takes_nothing_slows_its_session_and_bounds_what_waits() {
    let place = Place::new();
    let (mut disk, file) = io::pipe().unwrap();
    let limits = Limits { queue_bytes: 16 * 1024, min_free_bytes: 0, ..LIMITS };
    let recorder = Arc::new(place.on(file, limits));
    let fed = Arc::new(AtomicU64::new(0));
    let (feeding, counted) = (Arc::clone(&recorder), Arc::clone(&fed));
    let mut tasks = tokio::task::JoinSet::new();
    let total = 2 * 1024 * 1024_u64;
    tasks.spawn(async move {
        for _ in 0..total / 1024 {
            feeding.output(vec![b'x'; 1024].into()).await.unwrap();
            counted.fetch_add(1024, Ordering::SeqCst);
        }
        feeding.finish().await.unwrap_err(); // Its path names no file.
    });
    // The pipe's own 64 KiB, the lines that are collected, a line's frame, and the queue.
    let bound = 2 * 64 * 1024 + 16 * 1024 + 8 * 1024;
    let read = tokio::task::spawn_blocking(move || {
        let (mut read, mut buffer) = (0_u64, [0; 4096]);
        loop {
            let waiting = fed.load(Ordering::SeqCst).saturating_sub(read);
            assert!(waiting <= bound, "{waiting} bytes wait in memory");
            match disk.read(&mut buffer).unwrap() {
                0 => return read,
                n => {
                    let xs = buffer[..n].iter().filter(|b| **b == b'x').count();
                    read += u64::try_from(xs).unwrap();
                }
            }
        }
    });
    tasks.join_all().await;
    drop((recorder, place));
    assert_eq!(read.await.unwrap(), total);
}

#[tokio::test]
async fn many_recordings_share_the_threads() {
    let place = Place::new();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (writer, folder) = (place.writer.clone(), place.folder.path().to_owned());
        tasks.spawn(async move {
            let id = Id::random().unwrap();
            let limits = Limits { queue_bytes: 512, ..LIMITS };
            let recorder =
                Recorder::create(&writer, &folder, (&id, &id), &header(), limits).await.unwrap();
            for line in 0..100 {
                recorder.output(format!("{n}:{line}\r\n").into()).await.unwrap();
            }
            let finished = recorder.finish().await.unwrap();
            let text: String = kinds(&finished.path)
                .into_iter()
                .map(|kind| match kind {
                    Kind::Output(text) => text,
                    other => format!("{other:?}"),
                })
                .collect();
            let expected: String = (0..100).map(|line| format!("{n}:{line}\r\n")).collect();
            assert_eq!(text, expected);
            assert_eq!(finished.events, 100);
        });
    }
    tasks.join_all().await;
}
