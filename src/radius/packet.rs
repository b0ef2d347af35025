//! RADIUS packets as bytes: builds a client's requests, checks and reads the replies to them.
//! RFC 2865, with Message-Authenticator (RFC 3579 section 3.2) as the first attribute of every
//! request (draft-ietf-radext-deprecating-radius, CVE-2024-3596) and Status-Server (RFC 5997).
//!
//! Always holds: nothing here does I/O or panics, whatever the bytes; a reply is only read once it
//! has proved, in constant time, that who sent it knows the secret and has seen this very request.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::{Digest as _, Md5};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// The longest packet (RFC 2865 section 3).
pub const MAX_PACKET: usize = 4096;
/// Code, identifier, length and authenticator.
pub(super) const HEADER: usize = 20;
/// The longest value of an attribute: its length is one octet and counts two of its own.
pub(super) const MAX_VALUE: usize = 253;
/// The longest password that PAP can hide (RFC 2865 section 5.2).
pub const MAX_PASSWORD: usize = 128;
/// What an MD5 block hides, and the length of an authenticator.
const BLOCK: usize = 16;

/// Packet types, RFC 2865 section 4 and RFC 5997 section 3.
mod code {
    pub(super) const ACCESS_REQUEST: u8 = 1;
    pub(super) const ACCESS_ACCEPT: u8 = 2;
    pub(super) const ACCESS_REJECT: u8 = 3;
    pub(super) const ACCESS_CHALLENGE: u8 = 11;
    pub(super) const STATUS_SERVER: u8 = 12;
}

/// Attribute types, RFC 2865 section 5 and RFC 3579 section 3.2.
mod attribute {
    pub(super) const USER_NAME: u8 = 1;
    pub(super) const USER_PASSWORD: u8 = 2;
    pub(super) const SERVICE_TYPE: u8 = 6;
    pub(super) const REPLY_MESSAGE: u8 = 18;
    pub(super) const STATE: u8 = 24;
    pub(super) const SESSION_TIMEOUT: u8 = 27;
    pub(super) const CALLING_STATION_ID: u8 = 31;
    pub(super) const NAS_IDENTIFIER: u8 = 32;
    pub(super) const NAS_PORT_TYPE: u8 = 61;
    pub(super) const MESSAGE_AUTHENTICATOR: u8 = 80;
}

/// Service-Type: only whether the user is who they say is asked (RFC 2865 section 5.6).
const AUTHENTICATE_ONLY: u32 = 8;
/// NAS-Port-Type: no physical port (RFC 2865 section 5.41).
const VIRTUAL: u32 = 5;

/// What a server and its clients share; never shown, and wiped when it goes.
#[derive(Clone)]
pub struct SharedSecret {
    text: SecretString,
    mac: Hmac<Md5>,
}

impl SharedSecret {
    /// The secret made of this text.
    ///
    /// # Errors
    /// When it is empty (RFC 2865 section 3 forbids that: anybody could answer).
    pub fn new(text: SecretString) -> Result<Self, EmptySecret> {
        if text.expose_secret().is_empty() {
            return Err(EmptySecret);
        }
        // HMAC takes a key of any other length.
        let mac = Hmac::new_from_slice(text.expose_secret().as_bytes()).map_err(|_| EmptySecret)?;
        Ok(Self { text, mac })
    }

    fn bytes(&self) -> &[u8] {
        self.text.expose_secret().as_bytes()
    }
}

impl std::fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

/// A shared secret has to have at least one character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared secret is empty")]
pub struct EmptySecret;

/// What makes one request unlike every other: fresh for each request, kept when it is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Tells requests from one port apart (RFC 2865 section 3).
    pub identifier: u8,
    /// Must never repeat or be foreseen under one secret: it hides the password and binds the reply.
    pub authenticator: [u8; BLOCK],
}

impl Header {
    /// One from the system's random number generator.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let (mut identifier, mut authenticator) = ([0], [0; BLOCK]);
        getrandom::fill(&mut identifier)?;
        getrandom::fill(&mut authenticator)?;
        let [identifier] = identifier;
        Ok(Self { identifier, authenticator })
    }
}

/// What is asked of a server.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// Whether a user is who they say.
    Access(Access<'a>),
    /// Whether the server is there (RFC 5997).
    Status,
}

/// The content of an Access-Request.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// User-Name.
    pub user: &'a str,
    /// User-Password: a password, a one-time code, or the answer to a challenge; may be empty.
    pub password: &'a SecretString,
    /// NAS-Identifier: what the server knows us by.
    pub nas_identifier: &'a str,
    /// Calling-Station-Id: where the user comes from, as a server's rules and logs see it.
    pub calling_station: &'a str,
    /// State, exactly as the challenge that this answers brought it.
    pub state: Option<&'a [u8]>,
}

/// Why something cannot be put into a request. No text here holds what was to be put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An attribute's value is too long.
    #[error("the {0} is longer than the {1} bytes that RADIUS can carry")]
    TooLong(&'static str, usize),
    /// There is nobody to ask about.
    #[error("the user name is empty")]
    NoUser,
    /// PAP pads with NUL, so the server could not tell where such a password ends.
    #[error("the password holds a NUL character, which RADIUS cannot carry")]
    Nul,
}

/// A request, ready to send, and what is needed to recognise its reply.
pub struct Query {
    // Whoever knows the secret can read the password in it, and over RadSec everybody does.
    bytes: Zeroizing<Vec<u8>>,
    header: Header,
}

impl std::fmt::Debug for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Query").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Query {
    /// Builds the request.
    ///
    /// # Errors
    /// When something is too long, or cannot be said in RADIUS.
    pub fn new(header: Header, ask: &Ask<'_>, secret: &SharedSecret) -> Result<Self, Invalid> {
        let (code, rest) = match ask {
            Ask::Access(access) => {
                (code::ACCESS_REQUEST, access.attributes(&header.authenticator, secret)?)
            }
            Ask::Status => (code::STATUS_SERVER, Attributes::default()),
        };
        let rest = rest.0;
        let length = HEADER + 2 + BLOCK + rest.len();
        let [high, low] = u16::try_from(length)
            .map_err(|_| Invalid::TooLong("request", MAX_PACKET))?
            .to_be_bytes();
        let start = [code, header.identifier, high, low];
        let name = [attribute::MESSAGE_AUTHENTICATOR, 18];

        // Over the whole packet, with zeros where the result will stand.
        let mut mac = secret.mac.clone();
        for part in [&start, &header.authenticator[..], &name, &[0; BLOCK], &rest] {
            mac.update(part);
        }
        let mac = mac.finalize().into_bytes();
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        for part in [&start, &header.authenticator[..], &name, &mac[..], &rest] {
            bytes.extend_from_slice(part);
        }
        Ok(Self { bytes, header })
    }

    /// The packet.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads what came back, if it is the answer to this request.
    ///
    /// With `require`, a reply without Message-Authenticator is discarded; one that is there is
    /// always checked.
    ///
    /// # Errors
    /// When it is not: RFC 2865 wants it silently discarded, and the wait for the answer to go on.
    pub fn read(
        &self,
        datagram: &[u8],
        secret: &SharedSecret,
        require: bool,
    ) -> Result<Answer, Discard> {
        let (start, rest) = datagram.split_first_chunk::<4>().ok_or(Discard::Length)?;
        let [code, identifier, high, low] = *start;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(HEADER..=MAX_PACKET).contains(&length) {
            return Err(Discard::Length);
        }
        // What is behind the length is padding (section 3).
        let rest = rest.get(..length - start.len()).ok_or(Discard::Length)?;
        let (authenticator, attributes) =
            rest.split_first_chunk::<BLOCK>().ok_or(Discard::Length)?;
        if identifier != self.header.identifier {
            return Err(Discard::Identifier);
        }
        let decision = match code {
            code::ACCESS_ACCEPT => Decision::Accept,
            code::ACCESS_REJECT => Decision::Reject,
            code::ACCESS_CHALLENGE => Decision::Challenge,
            other => return Err(Discard::Code(other)),
        };
        // Response Authenticator, section 3.
        let mut digest = Md5::new();
        for part in [start, &self.header.authenticator[..], attributes, secret.bytes()] {
            digest.update(part);
        }
        if !bool::from(digest.finalize()[..].ct_eq(authenticator)) {
            return Err(Discard::ResponseAuthenticator);
        }
        let signed = self.check(start, attributes, secret)?;
        if require && !signed {
            return Err(Discard::NoMessageAuthenticator);
        }
        Answer::read(decision, signed, attributes)
    }

    /// Whether there is a Message-Authenticator, which is then right: over the reply, with the
    /// request's authenticator in its place and zeros for the attribute's own value.
    fn check(
        &self,
        start: &[u8; 4],
        attributes: &[u8],
        secret: &SharedSecret,
    ) -> Result<bool, Discard> {
        let mut mac = secret.mac.clone();
        mac.update(start);
        mac.update(&self.header.authenticator);
        let mut found = None;
        for attribute in Values(attributes) {
            let (kind, value) = attribute?;
            // Its length is that of the value and two, so it fits.
            mac.update(&[
                kind,
                u8::try_from(value.len() + 2).map_err(|_| Discard::Attribute(kind))?,
            ]);
            if kind == attribute::MESSAGE_AUTHENTICATOR {
                if value.len() != BLOCK || found.replace(value).is_some() {
                    return Err(Discard::Attribute(kind));
                }
                mac.update(&[0; BLOCK]);
            } else {
                mac.update(value);
            }
        }
        match found {
            None => Ok(false),
            Some(value) => {
                mac.verify_slice(value).map_err(|_| Discard::MessageAuthenticator).map(|()| true)
            }
        }
    }
}

impl Access<'_> {
    /// Everything behind the Message-Authenticator.
    fn attributes(
        &self,
        authenticator: &[u8; BLOCK],
        secret: &SharedSecret,
    ) -> Result<Attributes, Invalid> {
        if self.user.is_empty() {
            return Err(Invalid::NoUser);
        }
        let password = self.password.expose_secret().as_bytes();
        let mut all = Attributes::default();
        all.push("user name", attribute::USER_NAME, self.user.as_bytes())?;
        all.push("password", attribute::USER_PASSWORD, &hide(password, authenticator, secret)?)?;
        all.push("service type", attribute::SERVICE_TYPE, &AUTHENTICATE_ONLY.to_be_bytes())?;
        all.push("port type", attribute::NAS_PORT_TYPE, &VIRTUAL.to_be_bytes())?;
        let identifier = self.nas_identifier.as_bytes();
        all.push("NAS identifier", attribute::NAS_IDENTIFIER, identifier)?;
        // An attribute without a value may not be sent (section 5).
        if !self.calling_station.is_empty() {
            let station = self.calling_station.as_bytes();
            all.push("calling station", attribute::CALLING_STATION_ID, station)?;
        }
        if let Some(state) = self.state {
            all.push("state", attribute::STATE, state)?;
        }
        Ok(all)
    }
}

/// Attributes being put together, in room that never moves, so no copy stays behind.
struct Attributes(Zeroizing<Vec<u8>>);

impl Default for Attributes {
    fn default() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(MAX_PACKET)))
    }
}

impl Attributes {
    fn push(&mut self, what: &'static str, kind: u8, value: &[u8]) -> Result<(), Invalid> {
        let length =
            u8::try_from(value.len() + 2).map_err(|_| Invalid::TooLong(what, MAX_VALUE))?;
        self.0.extend_from_slice(&[kind, length]);
        self.0.extend_from_slice(value);
        Ok(())
    }
}

/// Hides a password from whoever does not know the secret (RFC 2865 section 5.2): each block of 16
/// is combined with the digest of the secret and the hidden block before it.
fn hide(
    password: &[u8],
    authenticator: &[u8; BLOCK],
    secret: &SharedSecret,
) -> Result<Zeroizing<Vec<u8>>, Invalid> {
    if password.len() > MAX_PASSWORD {
        return Err(Invalid::TooLong("password", MAX_PASSWORD));
    }
    if password.contains(&0) {
        return Err(Invalid::Nul);
    }
    let mut hidden = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD));
    let mut before = *authenticator;
    // An empty password is one block of padding.
    let blocks = password.len().div_ceil(BLOCK).max(1);
    let padded = password.iter().copied().chain(std::iter::repeat(0));
    let mut padded = padded.take(blocks * BLOCK);
    for _ in 0..blocks {
        let mut pad = Zeroizing::new([0; BLOCK]);
        pad.copy_from_slice(
            &Md5::new().chain_update(secret.bytes()).chain_update(before).finalize(),
        );
        for (hidden, (plain, pad)) in before.iter_mut().zip(padded.by_ref().zip(pad.iter())) {
            *hidden = plain ^ pad;
        }
        hidden.extend_from_slice(&before);
    }
    Ok(hidden)
}

/// What a server decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The user is who they say.
    Accept,
    /// The user is not.
    Reject,
    /// The server asks for something more.
    Challenge,
}

/// A reply that was proved to be one.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it says.
    pub decision: Decision,
    /// Whether it had a (right) Message-Authenticator.
    pub signed: bool,
    /// Its Reply-Message attributes, joined: a full one (253 bytes) is continued by the next, others
    /// are lines of their own. Raw: it may hold anything, also control characters.
    pub message: String,
    /// State, to be sent back with the answer to a challenge.
    pub state: Option<Zeroizing<Vec<u8>>>,
    /// Session-Timeout: how long a session may last, or how long an answer to a challenge may take.
    pub session_timeout: Option<Duration>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("decision", &self.decision)
            .field("signed", &self.signed)
            .field("message", &self.message)
            .field("state", &self.state.as_ref().map(|state| state.len()))
            .field("session_timeout", &self.session_timeout)
            .finish()
    }
}

impl Answer {
    /// Reads the attributes that matter; all others are allowed and ignored.
    fn read(decision: Decision, signed: bool, attributes: &[u8]) -> Result<Self, Discard> {
        let (mut messages, mut state, mut session_timeout) = (Vec::new(), None, None);
        for attribute in Values(attributes) {
            let (kind, value) = attribute?;
            let malformed = Discard::Attribute(kind);
            match kind {
                attribute::REPLY_MESSAGE => messages.push(value),
                attribute::STATE => {
                    let again = state.replace(Zeroizing::new(value.to_vec())).is_some();
                    if again || value.is_empty() {
                        return Err(malformed);
                    }
                }
                attribute::SESSION_TIMEOUT => {
                    let seconds = u32::from_be_bytes(value.try_into().map_err(|_| malformed)?);
                    session_timeout = Some(Duration::from_secs(seconds.into()));
                }
                _ => {}
            }
        }
        Ok(Self { decision, signed, message: join(&messages), state, session_timeout })
    }
}

/// The text of several Reply-Message attributes (RFC 2865 section 5.18 leaves open what several
/// mean): a full one is continued by the next, others are lines of their own.
fn join(messages: &[&[u8]]) -> String {
    let mut bytes = Vec::new();
    let mut before = MAX_VALUE;
    for message in messages {
        if before < MAX_VALUE {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(message);
        before = message.len();
    }
    // Only now, since a character may be cut in two between two attributes.
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The attributes in some bytes; a malformed one is an error and the last item.
struct Values<'a>(&'a [u8]);

impl<'a> Iterator for Values<'a> {
    type Item = Result<(u8, &'a [u8]), Discard>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&kind, rest) = self.0.split_first()?;
        let value = rest.split_first().and_then(|(&length, rest)| {
            let length = usize::from(length).checked_sub(2)?;
            Some((rest.get(..length)?, rest.get(length..)?))
        });
        let (value, rest) = value.unzip();
        self.0 = rest.unwrap_or_default();
        Some(value.map(|value| (kind, value)).ok_or(Discard::Attribute(kind)))
    }
}

/// Why something that came in is not the answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Discard {
    /// It is shorter than its length field or a header, or longer than a packet may be.
    #[error("of a wrong length")]
    Length,
    /// It is no reply to an Access-Request.
    #[error("of type {0}, which is no reply")]
    Code(u8),
    /// It is the reply to another request.
    #[error("for another request (wrong identifier)")]
    Identifier,
    /// The server has another secret, or somebody else sent it.
    #[error(
        "with a wrong Response Authenticator: forged, or the shared secret is not the server's"
    )]
    ResponseAuthenticator,
    /// As before; with a right Response Authenticator, this is an attack (CVE-2024-3596).
    #[error("with a wrong Message-Authenticator: forged")]
    MessageAuthenticator,
    /// The server is too old to protect its replies, or somebody took it out (CVE-2024-3596).
    #[error(
        "without Message-Authenticator: forged, or the server needs an update or to be told to send it"
    )]
    NoMessageAuthenticator,
    /// An attribute is malformed, or there twice where it may be there once.
    #[error("with a malformed attribute {0}")]
    Attribute(u8),
}

#[cfg(test)]
mod tests;
