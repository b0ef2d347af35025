//! What holds for the filter whatever is sent.

use proptest::prelude::*;

use super::script::*;
use crate::sftp::{Action, Filter, Rights, Side};

/// A step of a conversation. Numbers choose among what is possible.
#[derive(Debug, Clone)]
enum Move {
    Ask(u8, u8, String),
    /// The server answers the oldest request that waits, or the one after it.
    Answer(u8, usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let ask = (any::<u8>(), any::<u8>(), "[a-z/]{0,40}").prop_map(|(k, n, p)| Move::Ask(k, n, p));
    let answer = (any::<u8>(), 0..2_usize).prop_map(|(how, skip)| Move::Answer(how, skip));
    prop::collection::vec(prop_oneof![ask, answer], 0..60)
}

fn rights() -> impl Strategy<Value = Rights> {
    (any::<bool>(), any::<bool>()).prop_map(|(read, write)| Rights { read, write })
}

/// A conversation, as it went over the wire.
struct Talk {
    segments: Vec<(Side, Vec<u8>)>,
    actions: Vec<Action>,
}

/// A client that does what a client may, and a server that answers in or out of order.
struct Actors {
    filter: Filter,
    talk: Talk,
    id: u32,
    handles: Vec<String>,
    opened: usize,
    /// Requests that the server was asked: type, id, and the handle that it closes.
    waiting: Vec<(u8, u32)>,
}

impl Actors {
    fn send(&mut self, side: Side, bytes: Vec<u8>) {
        let mut out = Vec::new();
        match side {
            Side::Client => self.filter.from_client(bytes.clone().into(), &mut out),
            Side::Server => self.filter.from_server(bytes.clone().into(), &mut out),
        }
        .unwrap();
        for packet in packets(&Done::of(&out).to_server).0 {
            self.waiting.push((packet[4], u32::from_be_bytes(packet[5..9].try_into().unwrap())));
        }
        self.talk.segments.push((side, bytes));
        self.talk.actions.extend(out);
    }

    fn ask(&mut self, kind: u8, number: u8, path: &str) {
        self.id += 1;
        let (id, n) = (self.id, usize::from(number));
        let handle = match self.handles.len() {
            0 => None,
            open => Some(self.handles[n % open].clone()),
        };
        let packet = match (kind % 14, handle) {
            (0..3, _) => open(id, path, u32::from(number)),
            (3, _) => opendir(id, path),
            (4, Some(handle)) => {
                self.handles.retain(|open| *open != handle);
                close(id, &handle)
            }
            (5, Some(handle)) => read(id, &handle, 100),
            (6 | 7, Some(handle)) => write(id, &handle, &vec![number; n * 9]),
            (8, Some(handle)) => one(10, id, handle),
            (9, _) => one([9, 13, 14, 15][n % 4], id, path),
            (10, _) => two([18, 20][n % 2], id, path, path),
            (11, _) => {
                let names = [
                    "posix-rename@openssh.com",
                    "hardlink@openssh.com",
                    "other",
                    "limits@openssh.com",
                ];
                extended(id, names[n % 4], &[&string(path), &string(path)])
            }
            _ => one([7, 8, 12, 16, 17, 19][n % 6], id, path),
        };
        self.send(Side::Client, packet);
    }

    fn answer(&mut self, how: u8, skip: usize) {
        if self.waiting.is_empty() {
            return;
        }
        let (kind, id) = self.waiting.remove(skip.min(self.waiting.len() - 1));
        let reply = match kind {
            3 | 11 if how < 200 => {
                self.opened += 1;
                self.handles.push(format!("h{}", self.opened));
                handle(id, &format!("h{}", self.opened))
            }
            5 if how < 200 => data(id, &vec![how; usize::from(how)]),
            7 | 8 | 17 => packet(105, id, &[&[0; 4]]),
            _ => status(id, u32::from(how % 5), "message"),
        };
        self.send(Side::Server, reply);
    }
}

fn talk(rights: Rights, moves: &[Move]) -> Talk {
    let mut actors = Actors {
        filter: Filter::new(rights),
        talk: Talk { segments: Vec::new(), actions: Vec::new() },
        id: 0,
        handles: Vec::new(),
        opened: 0,
        waiting: Vec::new(),
    };
    actors.send(Side::Client, init());
    actors.waiting.clear();
    actors.send(Side::Server, version());
    for step in moves {
        match step {
            Move::Ask(kind, number, path) => actors.ask(*kind, *number, path),
            Move::Answer(how, skip) => actors.answer(*how, *skip),
        }
    }
    actors.filter.finish(&mut actors.talk.actions);
    actors.talk
}

/// The actions with neighbours that go the same way made one.
fn merged(actions: &[Action]) -> Vec<Action> {
    let mut merged: Vec<Action> = Vec::new();
    for action in actions {
        let joined = match (merged.last(), action) {
            (Some(Action::ToServer(a)), Action::ToServer(b)) => {
                Some(Action::ToServer([&a[..], b].concat().into()))
            }
            (Some(Action::ToClient(a)), Action::ToClient(b)) => {
                Some(Action::ToClient([&a[..], b].concat().into()))
            }
            _ => None,
        };
        if let Some(joined) = joined {
            merged.pop();
            merged.push(joined);
        } else {
            merged.push(action.clone());
        }
    }
    merged
}

/// Sends the same bytes, cut into pieces of these lengths.
fn replay(rights: Rights, segments: &[(Side, Vec<u8>)], cuts: &[usize]) -> Vec<Action> {
    let (mut filter, mut out) = (Filter::new(rights), Vec::new());
    let mut cuts = cuts.iter().cycle();
    for (side, bytes) in segments {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            let piece = bytes::Bytes::copy_from_slice(piece);
            // What follows an error is the same error.
            let _ended = match side {
                Side::Client => filter.from_client(piece, &mut out),
                Side::Server => filter.from_server(piece, &mut out),
            };
            rest = after;
        }
    }
    filter.finish(&mut out);
    out
}

fn garbage() -> impl Strategy<Value = Vec<(Side, Vec<u8>)>> {
    let side = prop_oneof![2 => Just(Side::Client), 1 => Just(Side::Server)];
    let raw = prop::collection::vec(any::<u8>(), 0..200);
    // Right lengths and types with anything in them get further than noise.
    let framed = (prop_oneof![0..22_u8, 100..106_u8, Just(200)], any::<u8>(), raw.clone())
        .prop_map(|(kind, id, body)| packet(kind, u32::from(id), &[&body]));
    let field =
        (0..22_u8, any::<u8>(), 0..20_usize, raw.clone()).prop_map(|(kind, id, len, body)| {
            packet(kind, u32::from(id), &[&string(vec![b'h'; len]), &body])
        });
    let bytes = prop_oneof![1 => raw, 8 => framed, 8 => field];
    prop::collection::vec((side, bytes), 0..40).prop_map(|mut segments| {
        segments.splice(0..0, [(Side::Client, init()), (Side::Server, version())]);
        segments
    })
}

fn sent(segments: &[(Side, Vec<u8>)], from: Side) -> Vec<u8> {
    segments.iter().filter(|(side, _)| *side == from).flat_map(|(_, bytes)| bytes.clone()).collect()
}

/// Nothing that needs a right to write reached the server, not even the beginning of it.
fn assert_no_write(actions: &[Action]) {
    let to_server = Done::of(actions).to_server;
    let (whole, begun) = packets(&to_server);
    for packet in whole.into_iter().chain((!begun.is_empty()).then_some(begun)) {
        assert!(!is_write(packet), "{packet:?}");
    }
}

proptest! {
    #[test]
    fn chunks_make_no_difference(
        rights in rights(),
        moves in moves(),
        cuts in prop::collection::vec(1..40_usize, 1..20),
    ) {
        let talk = talk(rights, &moves);
        let whole = merged(&talk.actions);
        prop_assert_eq!(&merged(&replay(rights, &talk.segments, &cuts)), &whole);
        prop_assert_eq!(&merged(&replay(rights, &talk.segments, &[1])), &whole);
    }

    #[test]
    fn with_all_rights_nothing_is_changed(moves in moves()) {
        let talk = talk(ALL, &moves);
        let done = Done::of(&talk.actions);
        prop_assert_eq!(done.to_server, sent(&talk.segments, Side::Client));
        prop_assert_eq!(done.to_client, sent(&talk.segments, Side::Server));
    }

    #[test]
    fn without_the_right_to_write_no_write_passes(read: bool, moves in moves()) {
        assert_no_write(&talk(Rights { read, write: false }, &moves).actions);
    }

    #[test]
    fn every_request_is_answered_once(rights in rights(), moves in moves()) {
        // However it is answered: what was forwarded by the server, the rest by the filter.
        let talk = talk(rights, &moves);
        let done = Done::of(&talk.actions);
        let asked = packets(&sent(&talk.segments, Side::Client)).0.len() - 1;
        let replies = packets(&sent(&talk.segments, Side::Server)).0.len();
        let waiting = packets(&done.to_server).0.len() - replies;
        let answered = packets(&done.to_client).0.len() - 1;
        // Refusals that wait for an earlier answer are neither.
        prop_assert!(answered + waiting <= asked, "{} {} {}", answered, waiting, asked);
        if waiting == 0 {
            prop_assert_eq!(answered, asked);
        }
        prop_assert!(packets(&done.to_client).1.is_empty());
    }

    #[test]
    fn garbage_does_no_harm(
        read: bool,
        segments in garbage(),
        cuts in prop::collection::vec(1..300_usize, 1..8),
    ) {
        let rights = Rights { read, write: false };
        let whole = replay(rights, &segments, &[usize::MAX]);
        assert_no_write(&whole);
        prop_assert_eq!(merged(&replay(rights, &segments, &cuts)), merged(&whole));
        replay(ALL, &segments, &cuts);
    }

    #[test]
    fn memory_is_bounded(kinds in prop::collection::vec((0..22_u8, 1..4000_usize), 1..6)) {
        let mut filter = started(ALL);
        let mut out = Vec::new();
        for id in 0..6000 {
            let (kind, len) = kinds[id % kinds.len()];
            let id = u32::try_from(id).unwrap();
            let path = vec![b'x'; len];
            if filter.from_client(two_of(kind, id, &path).into(), &mut out).is_err() {
                break;
            }
            if kind == 3 {
                let opened = handle(id, &id.to_string());
                filter.from_server(opened.into(), &mut out).unwrap();
            }
            out.clear();
            let (bytes, entries) = filter.weight();
            prop_assert!(bytes <= 1024 * 1024 + 16 * 1024, "{bytes}");
            prop_assert!(entries <= 1024 + 2048, "{entries}");
        }
    }
}

fn two_of(kind: u8, id: u32, path: &[u8]) -> Vec<u8> {
    packet(kind, id, &[&string(path), &string(path)])
}
