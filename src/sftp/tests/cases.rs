//! Decisions, answers and events, one case after another.

use super::script::*;
use crate::sftp::{Error, Filter, Side};

/// Packets that ask for something, with the rights that let them through: none, read, write, all.
fn decisions() -> Vec<(&'static str, Vec<u8>, [bool; 4])> {
    const EITHER: [bool; 4] = [false, true, true, true];
    const READS: [bool; 4] = [false, true, false, true];
    const WRITES: [bool; 4] = [false, false, true, true];
    const BOTH: [bool; 4] = [false, false, false, true];
    let zero = [0; 16];
    vec![
        ("open", open(1, "/f", 0x01), READS),
        ("open with no flag", open(1, "/f", 0), READS),
        ("open to write", open(1, "/f", 0x02), WRITES),
        ("open to append", open(1, "/f", 0x04), WRITES),
        ("open to create", open(1, "/f", 0x08), WRITES),
        ("open to truncate", open(1, "/f", 0x10), WRITES),
        ("open exclusively", open(1, "/f", 0x20), WRITES),
        ("open with an unknown flag", open(1, "/f", 0x40), WRITES),
        ("put", open(1, "/f", 0x1a), WRITES),
        ("open for both", open(1, "/f", 0x03), BOTH),
        ("read and truncate", open(1, "/f", 0x11), BOTH),
        ("opendir", opendir(1, "/d"), EITHER),
        ("lstat", one(7, 1, "/f"), EITHER),
        ("fstat", one(8, 1, "h"), EITHER),
        ("readdir", one(12, 1, "h"), EITHER),
        ("realpath", one(16, 1, "."), EITHER),
        ("stat", one(17, 1, "/f"), EITHER),
        ("readlink", one(19, 1, "/l"), EITHER),
        ("setstat", one(9, 1, "/f"), WRITES),
        ("remove", one(13, 1, "/f"), WRITES),
        ("mkdir", one(14, 1, "/d"), WRITES),
        ("rmdir", one(15, 1, "/d"), WRITES),
        ("rename", two(18, 1, "/a", "/b"), WRITES),
        ("symlink", two(20, 1, "/a", "/b"), WRITES),
        ("posix-rename", ext("posix-rename@openssh.com", &[&string("/a"), &string("/b")]), WRITES),
        ("hardlink", ext("hardlink@openssh.com", &[&string("/a"), &string("/b")]), WRITES),
        ("lsetstat", ext("lsetstat@openssh.com", &[&string("/a"), &zero]), WRITES),
        ("fsync", ext("fsync@openssh.com", &[&string("h")]), WRITES),
        ("statvfs", ext("statvfs@openssh.com", &[&string("/")]), EITHER),
        ("limits", ext("limits@openssh.com", &[]), EITHER),
        ("expand-path", ext("expand-path@openssh.com", &[&string("~")]), EITHER),
        ("home-directory", ext("home-directory", &[&string("")]), EITHER),
        ("users-groups", ext("users-groups-by-id@openssh.com", &[&zero]), EITHER),
        ("unknown extension", ext("md5-hash", &[&string("/f")]), BOTH),
        ("version-select", ext("version-select", &[&string("6")]), [false; 4]),
        ("unknown type", one(21, 1, "/f"), [false; 4]),
        ("an answer", status(1, 0, ""), [false; 4]),
    ]
}

fn ext(name: &str, rest: &[&[u8]]) -> Vec<u8> {
    extended(1, name, rest)
}

/// The status code of an answer of ours, which has to be the only one.
fn refusal(done: &Done) -> u32 {
    let (packets, rest) = packets(&done.to_client);
    assert!(rest.is_empty() && packets.len() == 1 && packets[0][4] == 101, "{done:?}");
    assert_eq!(packets[0][5..9], 1_u32.to_be_bytes());
    u32::from_be_bytes(packets[0][9..13].try_into().unwrap())
}

#[test]
fn each_request_needs_its_rights() {
    for (name, packet, expected) in decisions() {
        for (rights, expected) in [NONE, READ, WRITE, ALL].into_iter().zip(expected) {
            let done = ask(&mut started(rights), packet.clone());
            let forwarded = done.to_server == packet;
            assert_eq!(forwarded, expected, "{name} {rights:?}");
            if expected {
                assert!(done.to_client.is_empty() && done.events.is_empty(), "{name} {done:?}");
            } else {
                let code = if expected_unsupported(name) { 8 } else { 3 };
                assert_eq!(refusal(&done), code, "{name} {rights:?}");
                assert!(done.to_server.is_empty(), "{name} {rights:?}");
            }
        }
    }
}

fn expected_unsupported(name: &str) -> bool {
    matches!(name, "version-select" | "unknown type" | "an answer")
}

#[test]
fn requests_on_handles_need_their_rights_too() {
    // Created and not opened for reading, which OpenSSH lets read nevertheless.
    let mut filter = started(WRITE);
    ask(&mut filter, open(1, "/f", 0x08));
    answer(&mut filter, handle(1, "h"));
    assert_eq!(refusal(&ask(&mut filter, read(1, "h", 10))), 3);
    let copy = [&string("h")[..], &[0; 16], &string("h"), &[0; 8]].concat();
    assert_eq!(refusal(&ask(&mut filter, ext("copy-data", &[&copy]))), 3);
    ask(&mut filter, close(2, "h"));
    assert_eq!(answer(&mut filter, status(2, 0, "")).told(), "upload /f 0 0 Refused\n");

    let mut filter = started(READ);
    ask(&mut filter, open(1, "/f", 0x01));
    answer(&mut filter, handle(1, "h"));
    assert_eq!(refusal(&ask(&mut filter, write(1, "h", b"data"))), 3);
    let refused = ask(&mut filter, one(10, 1, "h"));
    assert_eq!((refusal(&refused), &*refused.told()), (3, "setstat /f 0 0 Refused\n"));
}

#[test]
fn no_request_is_begun_while_as_many_answers_are_owed_as_may_be() {
    let mut filter = started(ALL);
    ask(&mut filter, open(1, "/f", 0x03));
    answer(&mut filter, handle(1, "h"));
    assert_eq!(filter.expected(), 0);
    let requests =
        [read(2, "h", 100), read(3, "h", 100), write(4, "h", b"0123456789"), close(5, "h")];
    let ends: Vec<usize> = (1..=4).map(|n| requests[..n].concat().len()).collect();
    let chunk = bytes::Bytes::from(requests.concat());
    let mut out = Vec::new();
    let mut take = |filter: &mut Filter, chunk: bytes::Bytes, most| {
        out.clear();
        let left = filter.from_client_within(chunk, most, &mut out).unwrap();
        (left, Done::of(&out).to_server)
    };
    // One at least; and one more than would fit, since nobody knows what it asks for before.
    let (left, passed) = take(&mut filter, chunk.clone(), 0);
    assert_eq!((&left, &passed[..]), (&chunk.slice(ends[0]..), &chunk[..ends[0]]));
    assert_eq!(filter.expected(), 100);
    assert_eq!(take(&mut filter, left.clone(), 100), (left.clone(), Vec::new()));
    let (left, _) = take(&mut filter, left, 101);
    assert_eq!((&left, filter.expected()), (&chunk.slice(ends[1]..), 200));
    // The answer need not be as large as was asked for. A request that has begun is passed on whole.
    answer(&mut filter, data(2, b"01"));
    let (first, rest) = (left.slice(..30), left.slice(30..));
    assert!(first.len() < ends[2] - ends[1]);
    assert_eq!(take(&mut filter, first.clone(), 101), (bytes::Bytes::new(), first.to_vec()));
    let (left, _) = take(&mut filter, rest, 101);
    assert_eq!(left, chunk.slice(ends[2]..));
    answer(&mut filter, [status(4, 0, ""), data(3, b"0")].concat());
    assert_eq!(filter.expected(), 0);
    assert_eq!(take(&mut filter, left, 1).0, bytes::Bytes::new());
    answer(&mut filter, status(5, 0, ""));
    assert_eq!(filter.expected(), 0);
}

#[test]
fn a_download_is_told_before_the_answer_to_its_closing() {
    let mut filter = started(READ);
    ask(&mut filter, open(1, "/etc/passwd", 1));
    answer(&mut filter, handle(1, "h"));
    ask(&mut filter, [read(2, "h", 10), read(3, "h", 10), read(4, "h", 10)].concat());
    let all = [data(3, b"0123456789"), data(2, b"01234"), status(4, 1, "End of file")].concat();
    assert_eq!(answer(&mut filter, all.clone()).to_client, all);
    ask(&mut filter, close(5, "h"));
    let mut out = Vec::new();
    filter.from_server(status(5, 0, "").into(), &mut out).unwrap();
    assert!(matches!(out[0], crate::sftp::Action::Event(_)), "{out:?}");
    assert_eq!(Done::of(&out).told(), "download /etc/passwd 15 0 Ok\n");
    assert_eq!(finish(&mut filter), "");
}

#[test]
fn an_upload_counts_what_the_server_confirmed() {
    let mut filter = started(ALL);
    ask(&mut filter, open(1, "/f", 0x1a));
    answer(&mut filter, handle(1, "h"));
    ask(&mut filter, [write(2, "h", b"12345"), write(3, "h", b"123"), close(4, "h")].concat());
    answer(&mut filter, status(2, 0, ""));
    answer(&mut filter, status(3, 4, "disk\x1b[2Jfull"));
    let told = answer(&mut filter, status(4, 0, "")).told();
    let message = r#"Failed { code: 4, message: "disk\\u{1b}[2Jfull" }"#;
    assert_eq!(told, format!("upload /f 0 5 {message}\n"));
}

#[test]
fn a_file_opened_for_both_is_called_by_what_was_done() {
    for (packets, expected) in [
        (vec![], "both /f 0 0"),
        (vec![(write(2, "h", b"123"), status(2, 0, ""))], "upload /f 0 3"),
        (vec![(read(2, "h", 9), data(2, b"12"))], "download /f 2 0"),
        (
            vec![(read(2, "h", 9), data(2, b"12")), (write(2, "h", b"1"), status(2, 0, ""))],
            "both /f 2 1",
        ),
    ] {
        let mut filter = started(ALL);
        ask(&mut filter, open(1, "/f", 3));
        answer(&mut filter, handle(1, "h"));
        for (request, reply) in packets {
            ask(&mut filter, request);
            answer(&mut filter, reply);
        }
        assert_eq!(finish(&mut filter), format!("{expected} Interrupted\n"));
    }
}

#[test]
fn changes_are_told_with_their_outcome() {
    let mut filter = started(ALL);
    let requests = [
        one(13, 1, "/f"),
        two(18, 2, "/a", "/b"),
        two(20, 3, "/target", "/link"),
        extended(4, "hardlink@openssh.com", &[&string("/old"), &string("/new")]),
        opendir(5, "/d"),
        open(6, "/f", 1),
        one(9, 7, "/s"),
    ];
    let done = ask(&mut filter, requests.concat());
    assert_eq!(done.to_server, requests.concat());
    let told = answer(
        &mut filter,
        [
            status(1, 0, ""),
            status(2, 2, "No such file"),
            status(3, 0, ""),
            status(4, 0, ""),
            handle(5, "d"),
            status(6, 2, "No such file"),
        ]
        .concat(),
    )
    .told();
    let missing = r#"Failed { code: 2, message: "No such file" }"#;
    assert_eq!(
        told,
        format!(
            "remove /f 0 0 Ok\nrename /a /b 0 0 {missing}\nsymlink /link /target 0 0 Ok\n\
             link /new /old 0 0 Ok\ndownload /f 0 0 {missing}\n"
        )
    );
    assert_eq!(finish(&mut filter), "list /d 0 0 Interrupted\nsetstat /s 0 0 Interrupted\n");
}

#[test]
fn a_refusal_waits_for_its_turn_and_never_splits_a_packet() {
    let mut filter = started(READ);
    let asked = ask(&mut filter, [one(17, 7, "/f"), one(13, 1, "/f"), one(17, 8, "/f")].concat());
    assert_eq!(asked.to_server, [one(17, 7, "/f"), one(17, 8, "/f")].concat());
    assert_eq!((&*asked.told(), asked.to_client), ("remove /f 0 0 Refused\n", vec![]));
    // The answer to the last one overtakes the first: nothing else may.
    let (late, attrs) = (packet(105, 8, &[&[0; 20]]), packet(105, 7, &[&[0; 20]]));
    assert_eq!(answer(&mut filter, late.clone()).to_client, late);
    let (begin, end) = attrs.split_at(20);
    assert_eq!(answer(&mut filter, begin.to_vec()).to_client, begin);
    assert!(ask(&mut filter, one(14, 9, "/d")).to_client.is_empty());
    let rest = answer(&mut filter, end.to_vec()).to_client;
    let (refusals, incomplete) = packets(rest.strip_prefix(end).unwrap());
    assert!(incomplete.is_empty());
    let ids: Vec<u8> = refusals.iter().map(|packet| packet[8]).collect();
    assert_eq!(ids, [1, 9]);
}

#[test]
fn an_answer_to_what_was_never_asked_means_nothing() {
    let mut filter = started(READ);
    ask(&mut filter, [one(17, 7, "/f"), one(13, 1, "/f")].concat());
    let stray = [handle(1, "h"), handle(99, "h")].concat();
    let done = answer(&mut filter, stray.clone());
    assert_eq!((done.to_client, done.events), (stray, vec![]));
    assert!(ask(&mut filter, read(2, "h", 9)).to_server.is_empty());
    let attrs = packet(105, 7, &[&[0; 20]]);
    let rest = answer(&mut filter, attrs.clone()).to_client;
    assert_eq!(packets(rest.strip_prefix(&attrs[..]).unwrap()).0.len(), 2);
}

#[test]
fn a_copy_on_the_target_is_told_with_both_paths() {
    let mut filter = started(ALL);
    ask(&mut filter, [open(1, "/from", 1), open(2, "/to", 0x1a)].concat());
    answer(&mut filter, [handle(1, "a"), handle(2, "b")].concat());
    let copy = extended(3, "copy-data", &[&string("a"), &[0; 16], &string("b"), &[0; 8]]);
    assert_eq!(ask(&mut filter, copy.clone()).to_server, copy);
    assert_eq!(answer(&mut filter, status(3, 0, "")).told(), "copy /from /to 0 0 Ok\n");
}

#[test]
fn a_handle_counts_only_while_it_is_known_to_be_open() {
    let mut filter = started(ALL);
    ask(&mut filter, open(1, "/f", 0x1a));
    // OpenSSH's handles can be guessed; a write must not come before the answer.
    let guessed = ask(&mut filter, write(2, "h", b"unseen"));
    assert!(guessed.to_server.is_empty());
    answer(&mut filter, handle(1, "h"));
    ask(&mut filter, close(3, "h"));
    assert!(ask(&mut filter, write(4, "h", b"late")).to_server.is_empty());
    assert!(ask(&mut filter, close(5, "h")).to_server.is_empty());
    let closed = answer(&mut filter, status(3, 0, ""));
    assert_eq!(closed.told(), "upload /f 0 0 Ok\n");
    assert_eq!(packets(&closed.to_client).0.len(), 3);
}

#[test]
fn requests_that_cannot_be_read_are_answered() {
    for (packet, code) in [
        (one(13, 1, "/f\0.txt"), 5),
        (one(13, 1, "a".repeat(4097)), 4),
        (packet(13, 1, &[&[0xff; 4], b"short"]), 5),
        (packet(6, 1, &[&string("h"), &[0; 8], &[0, 0, 0, 9], b"short"]), 5),
        (packet(3, 1, &[]), 5),
        (extended(1, &"x".repeat(257), &[]), 4),
    ] {
        let done = ask(&mut started(ALL), packet);
        assert_eq!((refusal(&done), done.to_server), (code, vec![]));
    }
    let longest = one(13, 1, "a".repeat(4096));
    assert_eq!(ask(&mut started(ALL), longest.clone()).to_server, longest);
}

#[test]
fn what_is_not_sftp_ends_the_channel() {
    let broken = |filter: &mut Filter, side, bytes: Vec<u8>| {
        let mut out = Vec::new();
        let error = match side {
            Side::Client => filter.from_client(bytes.into(), &mut out),
            Side::Server => filter.from_server(bytes.into(), &mut out),
        }
        .unwrap_err();
        assert_eq!(filter.from_client(init().into(), &mut out), Err(error));
        assert_eq!(filter.from_server(version().into(), &mut out), Err(error));
        assert!(out.is_empty(), "{out:?}");
        error
    };
    let new = || Filter::new(ALL);
    let client = |bytes| broken(&mut started(ALL), Side::Client, bytes);
    let server = |bytes| broken(&mut started(ALL), Side::Server, bytes);
    assert_eq!(broken(&mut new(), Side::Client, open(1, "/", 1)), Error::Handshake(Side::Client));
    assert_eq!(broken(&mut new(), Side::Server, version()), Error::Handshake(Side::Server));
    let motd = Error::Oversized(Side::Server, u32::from_be_bytes(*b"Welc"));
    assert_eq!(broken(&mut new(), Side::Server, b"Welcome to db1\n".to_vec()), motd);
    assert_eq!(client(init()), Error::Handshake(Side::Client));
    assert_eq!(server(version()), Error::Handshake(Side::Server));
    assert_eq!(client(vec![0; 4]), Error::Malformed(Side::Client));
    assert_eq!(client(vec![0, 0, 0, 2, 17, 0]), Error::Malformed(Side::Client));
    assert_eq!(client(vec![0, 4, 4, 1]), Error::Oversized(Side::Client, 0x40401));
    assert_eq!(server(handle(1, &"h".repeat(257))), Error::Malformed(Side::Server));
}

#[test]
fn a_request_id_is_used_once_at_a_time() {
    let mut filter = started(ALL);
    ask(&mut filter, one(17, 7, "/f"));
    let mut out = Vec::new();
    let again = filter.from_client(one(17, 7, "/f").into(), &mut out);
    assert_eq!((again, out), (Err(Error::ReusedId(7)), vec![]));
}

#[test]
fn only_version_3_is_spoken() {
    let mut filter = Filter::new(ALL);
    let tail = [string("vendor"), string("x")].concat();
    let asked = ask(&mut filter, packet(1, 6, &[&tail]));
    assert_eq!(asked.to_server, packet(1, 3, &[&tail]));
    let mut out = Vec::new();
    let answered = filter.from_server(packet(2, 6, &[]).into(), &mut out);
    assert_eq!((answered, out), (Err(Error::Version(6)), vec![]));
}

#[test]
fn beyond_the_bounds_requests_are_refused_and_then_the_channel_ends() {
    let mut filter = started(ALL);
    for id in 0..1024 {
        assert!(!ask(&mut filter, open(id, "/f", 1)).to_server.is_empty());
    }
    let over = ask(&mut filter, open(5000, "/f", 1));
    assert_eq!(
        over.told(),
        "download /f 0 0 Failed { code: 4, message: \"too many files are open in this session\" }\n"
    );
    for id in 1024..2048 {
        assert!(!ask(&mut filter, one(17, id, "/f")).to_server.is_empty());
    }
    let mut out = Vec::new();
    let mut id = 10_000;
    let error = loop {
        id += 1;
        if let Err(error) = filter.from_client(one(17, id, "/f").into(), &mut out) {
            break error;
        }
        assert!(out.is_empty());
    };
    assert_eq!((error, id), (Error::Flooded, 10_000 + 2048));

    let long = "p".repeat(4096);
    let mut filter = started(ALL);
    let forwarded =
        (0..500).filter(|id| !ask(&mut filter, one(13, *id, &long)).to_server.is_empty());
    assert_eq!(forwarded.count(), 256);
}

#[test]
fn bulk_is_not_copied_and_not_held() {
    let mut filter = started(ALL);
    ask(&mut filter, open(1, "/f", 3));
    answer(&mut filter, handle(1, "h"));
    let packet = bytes::Bytes::from(write(2, "h", &[7; 200_000]));
    let mut out = Vec::new();
    filter.from_client(packet.slice(..50_000), &mut out).unwrap();
    filter.from_client(packet.slice(50_000..), &mut out).unwrap();
    let starts: Vec<_> = out
        .iter()
        .map(|action| match action {
            crate::sftp::Action::ToServer(bytes) => bytes.as_ptr(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(starts, [packet.as_ptr(), packet[50_000..].as_ptr()]);
}
