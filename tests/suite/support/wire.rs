//! One session channel of a [`RawClient`], request by request (RFC 4254 section 6), and what the
//! other side said on it.

use super::raw::{CHANNEL_OPEN, CHANNEL_OPEN_CONFIRMATION, Packet, RawClient, take};

const GLOBAL_REQUEST: u8 = 80;
const REQUEST_SUCCESS: u8 = 81;
const REQUEST_FAILURE: u8 = 82;
const WINDOW_ADJUST: u8 = 93;
const DATA: u8 = 94;
const EXTENDED_DATA: u8 = 95;
const EOF: u8 = 96;
const CLOSE: u8 = 97;
const REQUEST: u8 = 98;
const SUCCESS: u8 = 99;
const FAILURE: u8 = 100;

/// A session channel.
pub struct Wire {
    client: RawClient,
    /// The channel's number on the other side.
    channel: u32,
    pub said: Said,
    /// What came, in its order: output, requests by their names, the end of the output, the end.
    order: Vec<String>,
}

/// What the other side said, apart from window changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub out: String,
    pub err: String,
    /// The requests that it made, with what they carried.
    pub requests: Vec<(String, Vec<u8>)>,
    pub eof: bool,
    pub closed: bool,
}

impl Wire {
    /// Opens a session.
    pub async fn open(mut client: RawClient) -> Self {
        let open = Packet::new(CHANNEL_OPEN).text("session").number(0).number(1 << 20);
        client.send(&open.number(32_768).0).await;
        loop {
            let packet = client.receive().await.expect("the connection ended");
            match packet[0] {
                // It tells its host keys.
                GLOBAL_REQUEST => {}
                CHANNEL_OPEN_CONFIRMATION => {
                    let channel = u32::from_be_bytes(packet[5..9].try_into().unwrap());
                    let (said, order) = Default::default();
                    return Self { client, channel, said, order };
                }
                other => panic!("a session was answered by message {other}"),
            }
        }
    }

    fn on_channel(&self, message: u8) -> Packet {
        Packet::new(message).number(self.channel)
    }

    async fn send_request(&mut self, kind: &str, wants: bool, content: Packet) {
        let request = self.on_channel(REQUEST).text(kind).bytes(&[u8::from(wants)]);
        self.client.send(&request.bytes(&content.0).0).await;
    }

    /// Makes a request that wants no reply.
    pub async fn tell(&mut self, kind: &str, content: Packet) {
        self.send_request(kind, false, content).await;
    }

    /// Makes a request; whether it was granted.
    pub async fn ask(&mut self, kind: &str, content: Packet) -> bool {
        self.send_request(kind, true, content).await;
        self.reply(kind).await
    }

    /// Waits for the reply to a request.
    async fn reply(&mut self, to: &str) -> bool {
        loop {
            match self.take_in().await {
                Some(SUCCESS) => return true,
                Some(FAILURE) => return false,
                Some(_) => {}
                None => panic!("{to} got no reply, but {:?}", self.said),
            }
        }
    }

    /// Makes requests without waiting between them; whether each was granted.
    pub async fn ask_all(&mut self, requests: Vec<(&str, Packet)>) -> Vec<bool> {
        let kinds: Vec<String> = requests.iter().map(|(kind, _)| (*kind).to_owned()).collect();
        for (kind, content) in requests {
            self.send_request(kind, true, content).await;
        }
        let mut replies = Vec::new();
        for kind in kinds {
            replies.push(self.reply(&kind).await);
        }
        replies
    }

    /// Makes a global request (RFC 4254 section 4); whether it was granted.
    pub async fn ask_globally(&mut self, kind: &str) -> bool {
        let request = Packet::new(GLOBAL_REQUEST).text(kind).bytes(&[1]);
        self.client.send(&request.0).await;
        loop {
            match self.take_in().await {
                Some(REQUEST_SUCCESS) => return true,
                Some(REQUEST_FAILURE) => return false,
                Some(_) => {}
                None => panic!("{kind} got no reply, but {:?}", self.said),
            }
        }
    }

    pub async fn write(&mut self, text: &str) {
        let data = self.on_channel(DATA).text(text);
        self.client.send(&data.0).await;
    }

    pub async fn finish(&mut self) {
        let eof = self.on_channel(EOF);
        self.client.send(&eof.0).await;
    }

    /// Waits until this was printed.
    pub async fn until(&mut self, text: &str) {
        while !self.said.out.contains(text) {
            assert!(self.take_in().await.is_some(), "no {text:?} came, but {:?}", self.said);
        }
    }

    /// Waits until the other side closed the channel; everything that it said.
    pub async fn end(self) -> Said {
        self.end_in_order().await.0
    }

    /// The same, and the order in which it came.
    pub async fn end_in_order(mut self) -> (Said, Vec<String>) {
        while !self.said.closed {
            assert!(self.take_in().await.is_some(), "the channel was not closed: {:?}", self.said);
        }
        let close = self.on_channel(CLOSE);
        self.client.send(&close.0).await;
        (self.said, self.order)
    }

    /// Takes one message in; `None` at the connection's end.
    async fn take_in(&mut self) -> Option<u8> {
        let packet = self.client.receive().await?;
        let message = packet[0];
        let (said, order) = (&mut self.said, &mut self.order);
        let mut rest = &packet[packet.len().min(5)..];
        match message {
            DATA => {
                said.out += &String::from_utf8_lossy(take(&mut rest));
                order.push("out".to_owned());
            }
            EXTENDED_DATA => {
                said.err += &String::from_utf8_lossy(take(&mut &rest[4..]));
                order.push("err".to_owned());
            }
            EOF => {
                said.eof = true;
                order.push("eof".to_owned());
            }
            CLOSE => {
                said.closed = true;
                order.push("close".to_owned());
            }
            REQUEST => {
                let kind = String::from_utf8_lossy(take(&mut rest)).into_owned();
                assert_eq!(rest[0], 0, "{kind} wants a reply");
                order.push(kind.clone());
                said.requests.push((kind, rest[1..].to_vec()));
            }
            SUCCESS | FAILURE | WINDOW_ADJUST | GLOBAL_REQUEST | REQUEST_SUCCESS
            | REQUEST_FAILURE => {}
            other => panic!("message {other} came on a session"),
        }
        Some(message)
    }
}
