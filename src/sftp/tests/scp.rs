//! The scp observer: conversations by hand, the real program at both ends, and anything at all.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use proptest::prelude::*;

use crate::sftp::scp::{Observer, Seen, Transfer};
use crate::sftp::{Operation, Outcome};

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Source,
    Sink,
}
use End::{Sink, Source};

fn feed(observer: &mut Observer, upload: bool, from: End, bytes: &[u8], out: &mut Vec<Seen>) {
    if (from == Source) == upload {
        observer.from_client(bytes, out);
    } else {
        observer.from_server(bytes, out);
    }
}

/// What an observer says about a conversation in which the target is the sink.
fn watch(talk: &[(End, &[u8])], cut: usize) -> Vec<Seen> {
    let (mut observer, mut out) = (Observer::new(Transfer::Upload), Vec::new());
    for (from, bytes) in talk {
        for piece in bytes.chunks(cut) {
            feed(&mut observer, true, *from, piece, &mut out);
        }
    }
    observer.finish(&mut out);
    out
}

fn lines(seen: &[Seen]) -> String {
    let line = |seen: &Seen| match seen {
        Seen::NotScp => "not scp\n".to_owned(),
        Seen::Event(e) => {
            assert!(e.second.is_none());
            let outcome = match &e.outcome {
                Outcome::Failed { message, .. } => format!("failed: {message}"),
                other => format!("{other:?}"),
            };
            format!("{} {} {} {outcome}\n", e.operation, e.path, e.bytes_read + e.bytes_written)
        }
    };
    seen.iter().map(line).collect()
}

#[test]
fn conversations_are_told_as_they_went() {
    type Case<'a> = (&'a str, &'a [(End, &'a [u8])], &'a str);
    let cases: &[Case<'_>] = &[
        (
            "one file",
            &[
                (Sink, b"\0"),
                (Source, b"C0644 5 f\n"),
                (Sink, b"\0"),
                (Source, b"12345\0"),
                (Sink, b"\0"),
            ],
            "upload f 5 Ok\n",
        ),
        (
            "directories, times, an empty file",
            &[
                (Sink, b"\0"),
                (Source, b"T1 0 2 0\n"),
                (Sink, b"\0"),
                (Source, b"D0755 0 d\n"),
                (Sink, b"\0"),
                (Source, b"D0755 0 e\n"),
                (Sink, b"\0"),
                (Source, b"C0644 0 a b\n"),
                (Sink, b"\0"),
                (Source, b"\0"),
                (Sink, b"\0"),
                (Source, b"E\n"),
                (Sink, b"\0"),
                (Source, b"C0644 1 c\n"),
                (Sink, b"\0"),
                (Source, b"x\0"),
                (Sink, b"\0"),
                (Source, b"E\n"),
                (Sink, b"\0"),
            ],
            "upload d/e/a b 0 Ok\nupload d/c 1 Ok\n",
        ),
        (
            "a sink that cannot open one file and cannot write the next",
            &[
                (Sink, b"\0"),
                (Source, b"C0644 5 f\n"),
                (Sink, b"\x01scp: f: Permission denied\n"),
                (Source, b"C0644 2 g\n"),
                (Sink, b"\0"),
                (Source, b"12\0"),
                (Sink, b"\x01scp: g: No space left on device\n"),
            ],
            "upload f 0 failed: f: Permission denied\n\
             upload g 2 failed: g: No space left on device\n",
        ),
        (
            "a source that cannot read one file and fails within another",
            &[
                (Sink, b"\0"),
                (Source, b"\x01scp: x: No such file or directory\n"),
                (Source, b"C0644 2 g\n"),
                (Sink, b"\0"),
                (Source, b"\0\0\x01scp: g: Input/output error\n"),
                (Sink, b"\0"),
            ],
            "upload  0 failed: x: No such file or directory\n\
             upload g 2 failed: g: Input/output error\n",
        ),
        (
            "a source that does not wait",
            &[(Source, b"C0644 2 f\n12\0C0644 1 g\n3\0"), (Sink, b"\0\0\0\0\0")],
            "upload f 2 Ok\nupload g 1 Ok\n",
        ),
        (
            "the end in the middle",
            &[(Sink, b"\0"), (Source, b"C0644 5 f\n"), (Sink, b"\0"), (Source, b"123")],
            "upload f 3 Interrupted\n",
        ),
        (
            "data whose answer never came",
            &[(Sink, b"\0"), (Source, b"C0644 1 f\n"), (Sink, b"\0"), (Source, b"1\0")],
            "upload f 1 Interrupted\n",
        ),
        (
            "an old sink that complains before it is asked",
            &[
                (Sink, b"\0"),
                (Source, b"C0644 1 f\n"),
                (Sink, b"\0"),
                (Source, b"1"),
                (Sink, b"\x01scp: f: truncate: failed\n"),
                (Source, b"\0C0644 1 g\n"),
                (Sink, b"\0"),
            ],
            "upload f 1 failed: f: truncate: failed\nupload g 0 Interrupted\n",
        ),
        (
            "a sink that says no at once",
            &[(Sink, b"\x01scp: /x: Not a directory\n")],
            "upload  0 failed: /x: Not a directory\n",
        ),
        ("a shell", &[(Sink, b"Welcome to db1\n$ "), (Source, b"ls\n")], "not scp\n"),
        (
            "a shell afterwards",
            &[(Sink, b"\x02scp: bye\n"), (Sink, b"\0")],
            "upload  0 failed: bye\nnot scp\n",
        ),
        ("text in place of lines", &[(Sink, b"\0"), (Source, b"rm -rf /\n")], "not scp\n"),
        ("an answer to nothing", &[(Sink, b"\0\0"), (Source, b"C0644 5 f\n")], "not scp\n"),
        (
            "a no for which the source did not wait",
            &[(Sink, b"\0"), (Source, b"C0644 9 f\nC0644 1 "), (Sink, b"\x01no\n\0\0")],
            "upload f 8 Interrupted\nnot scp\n",
        ),
        ("leaving what was not entered", &[(Sink, b"\0"), (Source, b"E\n")], "not scp\n"),
        ("a size that is none", &[(Sink, b"\0"), (Source, b"C0644 +5 f\n")], "not scp\n"),
        (
            "a size beyond all",
            &[(Sink, b"\0"), (Source, b"C0644 9223372036854775808 f\n")],
            "not scp\n",
        ),
        (
            "a name that a terminal would act on",
            &[(Sink, b"\0"), (Source, b"C0644 5 \x1b[2J\n")],
            "upload \\u{1b}[2J 0 Interrupted\n",
        ),
    ];
    for (name, talk, expected) in cases {
        for cut in [1, 2, 3, usize::MAX] {
            assert_eq!(lines(&watch(talk, cut)), *expected, "{name}, in pieces of {cut}");
        }
    }
}

#[test]
fn a_line_or_a_debt_without_end_is_not_scp() {
    for endless in [&b"C0644 1 xxxxxxxxxxxxxxxx"[..], b"T1 0 1 0\n", b"D0755 0 dddddddddddddddd\n"]
    {
        let endless = endless.repeat(1000);
        let seen = watch(&[(Sink, b"\0"), (Source, &endless)], 7);
        assert_eq!(lines(&seen), "not scp\n");
    }
}

#[test]
fn the_words_of_a_command_say_which_way() {
    for (command, expected) in [
        ("scp -t /tmp", Some(Transfer::Upload)),
        ("scp -r -p -d -t -- /tmp/-f", Some(Transfer::Upload)),
        ("/usr/bin/scp -prf file", Some(Transfer::Download)),
        ("scp a b", None),
        ("scp -tf x", None),
        ("cp -t x", None),
        ("scp x -t", None),
        ("", None),
    ] {
        assert_eq!(Transfer::of_command(command.as_bytes()), expected, "{command}");
    }
}

/// Runs `scp -f` and `scp -t` against each other, with an observer between them.
fn scp(folder: &Path, options: &str, sources: &[&str], sink: &str, transfer: Transfer) -> String {
    let spawn = |mode: &str, paths: &[&str]| {
        Command::new("scp")
            .arg(format!("-{options}{mode}"))
            .args(paths)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let (mut source, mut target) = (spawn("f", sources), spawn("t", &[sink]));
    let seen = Arc::new(Mutex::new((Observer::new(transfer), Vec::new())));
    let ends = [
        (Source, source.stdout.take().unwrap(), target.stdin.take().unwrap()),
        (Sink, target.stdout.take().unwrap(), source.stdin.take().unwrap()),
    ];
    let pumps = ends.map(|(from, mut reader, mut writer)| {
        let seen = seen.clone();
        thread::spawn(move || {
            let mut chunk = vec![0; 32 * 1024];
            while let Ok(len @ 1..) = reader.read(&mut chunk) {
                let mut seen = seen.lock().unwrap();
                let (observer, out) = &mut *seen;
                feed(observer, transfer == Transfer::Upload, from, &chunk[..len], out);
                drop(seen);
                if writer.write_all(&chunk[..len]).is_err() {
                    break;
                }
            }
        })
    });
    for pump in pumps {
        pump.join().unwrap();
    }
    source.wait().unwrap();
    target.wait().unwrap();
    let mut seen = seen.lock().unwrap();
    let (observer, out) = &mut *seen;
    observer.finish(out);
    let mut lines: Vec<String> = lines(out).lines().map(str::to_owned).collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn the_real_program_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("from/deep")).unwrap();
    fs::create_dir_all(at("to/locked")).unwrap();
    fs::write(at("from/big"), vec![7; 3_000_000]).unwrap();
    fs::write(at("from/deep/empty"), "").unwrap();
    let told = scp(folder.path(), "rp", &["from"], "to", Transfer::Download);
    assert_eq!(told, "download from/big 3000000 Ok\ndownload from/deep/empty 0 Ok");
    assert_eq!(fs::read(at("to/from/big")).unwrap(), vec![7; 3_000_000]);

    // A directory in the way of a file, and a file that is not there.
    fs::create_dir(at("to/big")).unwrap();
    let told =
        scp(folder.path(), "", &["from/big", "missing", "from/deep/empty"], "to", Transfer::Upload);
    assert_eq!(
        told,
        "upload  0 failed: missing: No such file or directory\n\
         upload big 0 failed: to/big: Is a directory\nupload empty 0 Ok"
    );
}

proptest! {
    #[test]
    fn nothing_is_claimed_that_did_not_pass(
        upload: bool,
        talk in prop::collection::vec(
            (prop_oneof![Just(Source), Just(Sink)], prop_oneof![
                3 => Just(vec![0]),
                1 => Just(b"\0\0".to_vec()),
                1 => Just(b"\x01no\n".to_vec()),
                1 => Just(b"E\n".to_vec()),
                1 => Just(b"D0755 0 d\n".to_vec()),
                3 => (0..9_usize).prop_map(|n| format!("C0644 {n} f\n").into_bytes()),
                2 => (0..9_usize).prop_map(|n| vec![b'x'; n]),
                1 => prop::collection::vec(any::<u8>(), 0..40),
            ]),
            0..40,
        ),
        cut in 1..9_usize,
    ) {
        let transfer = if upload { Transfer::Upload } else { Transfer::Download };
        let run = |cut: usize| {
            let (mut observer, mut out) = (Observer::new(transfer), Vec::new());
            for (from, bytes) in &talk {
                for piece in bytes.chunks(cut) {
                    feed(&mut observer, upload, *from, piece, &mut out);
                }
            }
            observer.finish(&mut out);
            out
        };
        let seen = run(usize::MAX);
        prop_assert_eq!(&run(cut), &seen);
        let count = |side, byte| talk.iter().filter(|(from, _)| *from == side)
            .flat_map(|(_, bytes)| bytes).filter(|b| **b == byte || byte == 255).count();
        let done: Vec<_> = seen.iter().filter_map(|seen| match seen {
            Seen::Event(event) if event.outcome == Outcome::Ok => Some(event),
            _ => None,
        }).collect();
        let moved: u64 = done.iter().map(|e| e.bytes_read + e.bytes_written).sum();
        // Each has a line of its own, its data, and a zero byte; and two answers.
        prop_assert!(usize::try_from(moved).unwrap() + 11 * done.len() <= count(Source, 255));
        prop_assert!(done.is_empty() || 2 * done.len() < count(Sink, 0));
        prop_assert!(done.iter().all(|e| (e.operation == Operation::Upload) == upload));
        let not_scp = seen.iter().position(|seen| *seen == Seen::NotScp);
        prop_assert!(not_scp.is_none_or(|at| at == seen.len() - 1));
    }

    #[test]
    fn anything_at_all_is_watched_without_harm(
        bytes in prop::collection::vec(
            (any::<bool>(), prop::collection::vec(any::<u8>(), 0..99)),
            0..9,
        ),
    ) {
        let (mut observer, mut out) = (Observer::new(Transfer::Download), Vec::new());
        for (client, bytes) in bytes {
            if client {
                observer.from_client(&bytes, &mut out);
            } else {
                observer.from_server(&bytes, &mut out);
            }
        }
        observer.finish(&mut out);
        prop_assert!(out.iter().filter(|seen| **seen == Seen::NotScp).count() <= 1);
    }
}
