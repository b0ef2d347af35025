//! Packets made by hand, and a decoder of them that shares nothing with the filter's.

use bytes::Bytes;

use crate::sftp::{Action, FileEvent, Filter, Rights};

pub(super) const ALL: Rights = Rights { read: true, write: true };
pub(super) const READ: Rights = Rights { read: true, write: false };
pub(super) const WRITE: Rights = Rights { read: false, write: true };
pub(super) const NONE: Rights = Rights { read: false, write: false };

/// A string as SFTP writes it.
pub(super) fn string(s: impl AsRef<[u8]>) -> Vec<u8> {
    let s = s.as_ref();
    [&u32::try_from(s.len()).unwrap().to_be_bytes(), s].concat()
}

/// A packet of these parts, with its length in front.
pub(super) fn packet(kind: u8, id: u32, parts: &[&[u8]]) -> Vec<u8> {
    string([&[kind][..], &id.to_be_bytes(), &parts.concat()].concat())
}

pub(super) fn init() -> Vec<u8> {
    packet(1, 3, &[])
}

pub(super) fn version() -> Vec<u8> {
    packet(2, 3, &[&string("limits@openssh.com"), &string("1")])
}

pub(super) fn open(id: u32, path: &str, flags: u32) -> Vec<u8> {
    packet(3, id, &[&string(path), &flags.to_be_bytes(), &[0; 4]])
}

pub(super) fn opendir(id: u32, path: &str) -> Vec<u8> {
    packet(11, id, &[&string(path)])
}

pub(super) fn close(id: u32, handle: &str) -> Vec<u8> {
    packet(4, id, &[&string(handle)])
}

pub(super) fn read(id: u32, handle: &str, len: u32) -> Vec<u8> {
    packet(5, id, &[&string(handle), &[0; 8], &len.to_be_bytes()])
}

pub(super) fn write(id: u32, handle: &str, data: &[u8]) -> Vec<u8> {
    packet(6, id, &[&string(handle), &[0; 8], &string(data)])
}

pub(super) fn one(kind: u8, id: u32, path: impl AsRef<[u8]>) -> Vec<u8> {
    packet(kind, id, &[&string(path), &[0; 4]])
}

pub(super) fn two(kind: u8, id: u32, first: &str, second: &str) -> Vec<u8> {
    packet(kind, id, &[&string(first), &string(second)])
}

pub(super) fn extended(id: u32, name: &str, rest: &[&[u8]]) -> Vec<u8> {
    packet(200, id, &[&string(name), &rest.concat()])
}

pub(super) fn status(id: u32, code: u32, message: &str) -> Vec<u8> {
    packet(101, id, &[&code.to_be_bytes(), &string(message), &string("")])
}

pub(super) fn handle(id: u32, handle: &str) -> Vec<u8> {
    packet(102, id, &[&string(handle)])
}

pub(super) fn data(id: u32, data: &[u8]) -> Vec<u8> {
    packet(103, id, &[&string(data)])
}

/// What a filter did: both streams, and the events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) to_server: Vec<u8>,
    pub(super) to_client: Vec<u8>,
    pub(super) events: Vec<FileEvent>,
}

impl Done {
    pub(super) fn of(actions: &[Action]) -> Self {
        let mut done = Self::default();
        for action in actions {
            match action {
                Action::ToServer(bytes) => done.to_server.extend_from_slice(bytes),
                Action::ToClient(bytes) => done.to_client.extend_from_slice(bytes),
                Action::Event(event) => done.events.push(event.clone()),
            }
        }
        done
    }

    /// The events, one a line.
    pub(super) fn told(&self) -> String {
        let line = |e: &FileEvent| {
            let second = e.second.as_ref().map(|s| format!(" {s}")).unwrap_or_default();
            let (op, path) = (e.operation, &e.path);
            format!("{op} {path}{second} {} {} {:?}\n", e.bytes_read, e.bytes_written, e.outcome)
        };
        self.events.iter().map(line).collect()
    }
}

/// A filter past its handshake.
pub(super) fn started(rights: Rights) -> Filter {
    let mut filter = Filter::new(rights);
    let mut out = Vec::new();
    filter.from_client(init().into(), &mut out).unwrap();
    filter.from_server(version().into(), &mut out).unwrap();
    let done = Done::of(&out);
    assert_eq!((done.to_server, done.to_client), (init(), version()));
    filter
}

pub(super) fn ask(filter: &mut Filter, packet: impl Into<Bytes>) -> Done {
    let mut out = Vec::new();
    filter.from_client(packet.into(), &mut out).unwrap();
    Done::of(&out)
}

pub(super) fn answer(filter: &mut Filter, packet: impl Into<Bytes>) -> Done {
    let mut out = Vec::new();
    filter.from_server(packet.into(), &mut out).unwrap();
    Done::of(&out)
}

pub(super) fn finish(filter: &mut Filter) -> String {
    let mut out = Vec::new();
    filter.finish(&mut out);
    Done::of(&out).told()
}

/// Cuts a stream into whole packets; what is left over is incomplete.
pub(super) fn packets(mut stream: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut whole = Vec::new();
    while stream.len() >= 4 {
        let length = u32::from_be_bytes(stream[..4].try_into().unwrap()) as usize;
        if stream.len() < 4 + length {
            break;
        }
        let (packet, rest) = stream.split_at(4 + length);
        whole.push(packet);
        stream = rest;
    }
    (whole, stream)
}

/// The first string of a packet's fields.
pub(super) fn first_string(packet: &[u8]) -> &[u8] {
    let length = u32::from_be_bytes(packet[9..13].try_into().unwrap()) as usize;
    &packet[13..13 + length]
}

/// Whether a request, which OpenSSH's server would understand, changes anything on the target.
pub(super) fn is_write(packet: &[u8]) -> bool {
    match packet[4] {
        3 => {
            let at = 13 + first_string(packet).len();
            u32::from_be_bytes(packet[at..at + 4].try_into().unwrap()) & 0x3e != 0
        }
        6 | 9 | 10 | 13 | 14 | 15 | 18 | 20 => true,
        200 => {
            let looks: [&[u8]; 6] = [
                b"statvfs@openssh.com",
                b"fstatvfs@openssh.com",
                b"limits@openssh.com",
                b"expand-path@openssh.com",
                b"home-directory",
                b"users-groups-by-id@openssh.com",
            ];
            !looks.contains(&first_string(packet))
        }
        kind => !(1..=20).contains(&kind),
    }
}
