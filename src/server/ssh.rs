//! Which SSH we speak: algorithms, keys, sizes.
//!
//! Always holds: key exchange is curve25519, with ML-KEM where the client has it (russh computes
//! the large groups inline, which is a way to stop a server before signing in); ciphers are AES
//! with GCM first, and ChaCha20 only where the processor has no AES; no compression before or after
//! signing in.
//!
//! Of what both have the client's order decides (RFC 4253 section 7.1): an OpenSSH that puts AES-CTR
//! before AES-GCM, as up to 9.9, gets AES-CTR. That is still cheaper than the ChaCha20 that it gets
//! from its own server, at about twice the cost of GCM; `Ciphers aes128-gcm@openssh.com` at the client
//! gets GCM. CTR stays offered all the same: Dropbear, paramiko before 3.5 and older libraries have no
//! GCM, and whoever comes with one would rather be let in than be told about ciphers.
//!
//! With `server.older_clients`, MACs over the plain text (RFC 6668) follow, for clients that have
//! nothing else: Dropbear and libssh2 before 1.11. Whoever prefers one to ours, such as paramiko, gets it.

use std::borrow::Cow;
use std::time::Duration;

use russh::keys::ssh_key::{EcdsaCurve, HashAlg};
use russh::keys::{Algorithm, Certificate, PrivateKey};
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};

use crate::auth::machine::Methods;

/// Pieces that may wait between a connection and one channel's pump, which takes them at once.
const CHANNEL_QUEUE: usize = 16;
/// Messages that may wait between all pumps and the connection.
const EVENT_QUEUE: usize = 16;

/// What the bastion identifies itself with (RFC 4253 section 4.2), without the line's end.
pub const ID: &str = concat!("SSH-2.0-Sallyport_", env!("CARGO_PKG_VERSION"));

/// Puts russh's configuration together.
pub fn config(
    host_key: PrivateKey,
    certificate: Certificate,
    methods: Methods,
    window: u32,
    older_clients: bool,
) -> russh::server::Config {
    russh::server::Config {
        server_id: SshId::Standard(Cow::Borrowed(ID)),
        methods: method_set(methods),
        // Waits are ours (`login`): russh's would hold a right first factor back as well.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        // Counted by the login's state machine, which knows what an answer is.
        max_auth_attempts: 64,
        keys: vec![host_key],
        certificates: vec![certificate],
        window_size: window,
        maximum_packet_size: 32 * 1024,
        channel_buffer_size: CHANNEL_QUEUE,
        event_buffer_size: EVENT_QUEUE,
        preferred: if older_clients { older_preferred() } else { preferred() },
        // Dead peers are TCP keepalive's to find, the grace time `stream`'s: russh's keepalive kills
        // OpenSSH clients that are not signed in yet, and its inactivity timer any packet puts off.
        inactivity_timeout: None,
        keepalive_interval: None,
        nodelay: true,
        ..russh::server::Config::default()
    }
}

/// russh's set of methods, in the order that a client should try them.
pub(super) fn method_set(methods: Methods) -> MethodSet {
    let offered = [
        (methods.publickey, MethodKind::PublicKey),
        (methods.password, MethodKind::Password),
        (methods.keyboard_interactive, MethodKind::KeyboardInteractive),
    ];
    let kinds: Vec<MethodKind> =
        offered.into_iter().filter(|(on, _)| *on).map(|(_, k)| k).collect();
    MethodSet::from(&kinds[..])
}

fn preferred() -> Preferred {
    let mut ciphers =
        vec![cipher::AES_256_GCM, cipher::AES_128_GCM, cipher::AES_256_CTR, cipher::AES_128_CTR];
    if !has_aes() {
        ciphers.insert(0, cipher::CHACHA20_POLY1305);
    }
    Preferred {
        kex: Cow::Borrowed(&[
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        key: Cow::Owned(vec![
            Algorithm::Ed25519,
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
            Algorithm::SkEd25519,
            Algorithm::SkEcdsaSha2NistP256,
            Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
            Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
        ]),
        cipher: Cow::Owned(ciphers),
        mac: Cow::Borrowed(&[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM]),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::default()
    }
}

/// The same, and after it what older clients need.
fn older_preferred() -> Preferred {
    let mut ours = preferred();
    ours.mac.to_mut().extend([mac::HMAC_SHA256, mac::HMAC_SHA512]);
    ours
}

/// What the bastion speaks to targets: as to clients, and ChaCha20 and plain MACs for older ones.
pub(super) fn target_preferred() -> Preferred {
    let ours = preferred();
    let mut ciphers = ours.cipher.into_owned();
    ciphers.push(cipher::CHACHA20_POLY1305);
    let macs = vec![mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512];
    Preferred {
        kex: Cow::Borrowed(&[
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::DH_G16_SHA512,
            kex::DH_G14_SHA256,
            kex::EXTENSION_SUPPORT_AS_CLIENT,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
        ]),
        cipher: Cow::Owned(ciphers),
        mac: Cow::Owned(macs),
        ..ours
    }
}

/// Whether the processor computes AES itself.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}
