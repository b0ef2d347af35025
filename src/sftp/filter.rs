//! The SFTP filter: forwards what the rights allow, answers the rest, and tells what happened.
//!
//! Always holds: a request is forwarded whole or not at all; no answer of ours lies within a
//! packet of the server's; no file is read, written, changed or closed by
//! a handle whose opening was not seen; what is audited is told before the answer is passed on.

use bytes::{BufMut, Bytes, BytesMut};

use super::event::FileEvent;
use super::ledger::Ledger;
use super::packet::{self, Ask, Error, Reply, Request, Side, Step, kind};
use super::rights::{Refusal, Rights};
use super::stream::{Head, Run, Stream};

/// The version that is spoken. With a later one packets would mean something else.
const VERSION: u32 = 3;

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send these bytes to the target's server.
    ToServer(Bytes),
    /// Send these bytes to the client.
    ToClient(Bytes),
    /// Record this.
    Event(FileEvent),
}

/// The filter of one channel that runs the `sftp` subsystem (draft-ietf-secsh-filexfer-02).
///
/// Feed it what each side sends, and do what it says in the order in which it says it. After an
/// error, and in any case when the channel ends, call [`Filter::finish`].
#[derive(Debug)]
pub struct Filter {
    client: Stream,
    server: Stream,
    handshake: Handshake,
    ledger: Ledger,
    /// The request at hand, if it is not forwarded.
    refusing: Option<(u32, Refusal)>,
    broken: Option<Error>,
}

/// Section 4: the client names its version, the server answers with the one to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handshake {
    Nothing,
    Asked,
    Done,
}

impl Filter {
    /// A filter for a channel on which nothing was sent yet.
    pub fn new(rights: Rights) -> Self {
        Self {
            client: Stream::default(),
            server: Stream::default(),
            handshake: Handshake::Nothing,
            ledger: Ledger::new(rights),
            refusing: None,
            broken: None,
        }
    }

    /// Takes what the client sent.
    ///
    /// # Errors
    /// When it is not SFTP or beyond all limits. What `out` says is still to be done; then the
    /// channel has to end. Every later call fails alike.
    pub fn from_client(&mut self, chunk: Bytes, out: &mut Vec<Action>) -> Result<(), Error> {
        self.from_client_within(chunk, usize::MAX, out).map(drop)
    }

    /// Takes what the client sent, up to a request at which the server owes answers of `most` bytes or
    /// more, about: gives what is left from there on. While it owes none, one is taken at least.
    ///
    /// # Errors
    /// As for [`Filter::from_client`].
    pub fn from_client_within(
        &mut self,
        chunk: Bytes,
        most: usize,
        out: &mut Vec<Action>,
    ) -> Result<Bytes, Error> {
        let mut run = Run::new(chunk, out, Action::ToServer);
        let done = self.take_requests(most.max(1), &mut run);
        run.flush();
        self.broken = done.err();
        done.map(|()| run.left())
    }

    /// How many bytes of answers the server still owes, about.
    pub fn expected(&self) -> usize {
        self.ledger.expected()
    }

    /// Takes what the target's server sent.
    ///
    /// # Errors
    /// As for [`Filter::from_client`].
    pub fn from_server(&mut self, chunk: Bytes, out: &mut Vec<Action>) -> Result<(), Error> {
        let mut run = Run::new(chunk, out, Action::ToClient);
        let done = self.take_replies(&mut run);
        run.flush();
        self.broken = done.err();
        done
    }

    /// Tells what was still going on when the channel ended.
    pub fn finish(&mut self, out: &mut Vec<Action>) {
        out.extend(self.ledger.finish().map(Action::Event));
    }

    /// How many bytes are held, and how many files and requests are remembered.
    #[cfg(test)]
    pub(super) fn weight(&self) -> (usize, usize) {
        let (paths, entries) = self.ledger.weight();
        (self.client.held() + self.server.held() + paths, entries)
    }

    fn take_requests(&mut self, most: usize, run: &mut Run<'_>) -> Result<(), Error> {
        self.broken.map_or(Ok(()), Err)?;
        while !run.rest().is_empty() {
            if self.client.between_packets() {
                if self.expected() >= most {
                    break;
                }
                let measure = |seen: &[u8]| packet::request(seen).map(Step::measure);
                let Some(head) = self.client.head(run, measure)? else { break };
                self.take_request(&head, run)?;
            } else {
                self.client.body(run, self.refusing.is_none());
            }
            if self.client.between_packets()
                && let Some((id, refusal)) = self.refusing.take()
            {
                self.ledger.refuse(id, refusal);
                self.answer_refused(run);
            }
        }
        Ok(())
    }

    fn take_request(&mut self, head: &Head, run: &mut Run<'_>) -> Result<(), Error> {
        let Step::Head { value: request, body, .. } = packet::request(&head.bytes)? else {
            return Err(Error::Malformed(Side::Client));
        };
        match (self.handshake, request) {
            (Handshake::Nothing, Request::Init(version)) => {
                self.handshake = Handshake::Asked;
                pass_init(version, head, body, run);
                Ok(())
            }
            (Handshake::Done, Request::Ask(id, ask)) => self.take_ask(id, &ask, head, run),
            _ => Err(Error::Handshake(Side::Client)),
        }
    }

    fn take_ask(
        &mut self,
        id: u32,
        ask: &Ask<'_>,
        head: &Head,
        run: &mut Run<'_>,
    ) -> Result<(), Error> {
        match self.ledger.admit(id, ask)? {
            Ok(()) => run.pass_head(head),
            Err(refusal) => {
                if let Some(event) = self.ledger.refused(ask, refusal) {
                    run.emit(Action::Event(event));
                }
                run.skip_head(head);
                self.refusing = Some((id, refusal));
            }
        }
        Ok(())
    }

    /// Answers what was refused and whose turn it is, unless the server is in mid-packet.
    fn answer_refused(&mut self, run: &mut Run<'_>) {
        while self.server.between_packets()
            && let Some(status) = self.ledger.next_refusal()
        {
            run.emit(Action::ToClient(status));
        }
    }

    fn take_replies(&mut self, run: &mut Run<'_>) -> Result<(), Error> {
        self.broken.map_or(Ok(()), Err)?;
        while !run.rest().is_empty() {
            if self.server.between_packets() {
                let measure = |seen: &[u8]| packet::reply(seen).map(Step::measure);
                let Some(head) = self.server.head(run, measure)? else { break };
                self.take_reply(&head, run)?;
                run.pass_head(&head);
            } else {
                let len = self.server.body(run, true);
                self.ledger.count(len);
            }
            self.answer_refused(run);
        }
        Ok(())
    }

    fn take_reply(&mut self, head: &Head, run: &mut Run<'_>) -> Result<(), Error> {
        let Step::Head { value: reply, .. } = packet::reply(&head.bytes)? else {
            return Err(Error::Malformed(Side::Server));
        };
        match (self.handshake, reply) {
            (Handshake::Asked, Reply::Version(version)) if version <= VERSION => {
                self.handshake = Handshake::Done;
            }
            (Handshake::Asked, Reply::Version(version)) => return Err(Error::Version(version)),
            (Handshake::Done, Reply::Answer(id, answer)) => {
                if let Some(event) = self.ledger.answered(id, &answer) {
                    run.emit(Action::Event(event));
                }
            }
            _ => return Err(Error::Handshake(Side::Server)),
        }
        Ok(())
    }
}

/// Forwards SSH_FXP_INIT (section 4), asking for version 3 where the client offers a later one.
fn pass_init(version: u32, head: &Head, body: usize, run: &mut Run<'_>) {
    if version <= VERSION {
        return run.pass_head(head);
    }
    run.skip_head(head);
    let mut init = BytesMut::with_capacity(head.bytes.len());
    // Type and version, and what follows: the length was read from 32 bits.
    init.put_u32(u32::try_from(5 + body).unwrap_or_default());
    init.put_u8(kind::INIT);
    init.put_u32(VERSION);
    run.emit(Action::ToServer(init.freeze()));
}
