//! RADIUS servers: each is asked something, and what came of it is told with what to do about it.
//!
//! Always holds: nobody who exists is asked about; a server is in order only if an answer of its own
//! proved that it knows the secret, or came over a TLS connection to it.

use futures_util::{StreamExt as _, stream};

use super::{AT_A_TIME, Finding, Grade, Patient, found};
use crate::config::{RadiusServer, Transport};
use crate::domain::printable;
use crate::logging;
use crate::radius::packet::Discard;
use crate::radius::{Client, Error, Failure, Probe, ProbeAnswer, Reason};
use crate::setup::{radius_server, radius_settings};

/// Every server, asked at once: a dead one takes its timeout twice.
pub(super) async fn servers(patient: &Patient<'_>) -> Vec<Finding> {
    let servers = patient.config.radius.server.clone().into_iter();
    let asked = servers.map(|server| examine(patient, server));
    stream::iter(asked).buffered(AT_A_TIME).collect().await
}

/// One server, by a client of its own: what is wrong with one is told of that one.
async fn examine(patient: &Patient<'_>, set: RadiusServer) -> Finding {
    let (config, set) = (patient.config, &set);
    let client = radius_server(config, set).and_then(|server| {
        Client::new(vec![server], radius_settings(config)).map_err(anyhow::Error::from)
    });
    let probed = match client {
        Ok(client) => client.probe(&set.name).await,
        Err(error) => return found("radius", Grade::Fail, printable(&logging::whole(&error))),
    };
    let (grade, text) = match probed {
        Ok(probe) => judged(set, &probe),
        Err(Error::AllDead(failures)) => {
            let told = failures.0.iter().map(|failure| told(set, failure));
            (Grade::Fail, told.collect::<Vec<_>>().join("; "))
        }
        Err(error) => (Grade::Fail, format!("{}: {error}", set.name)),
    };
    found("radius", grade, printable(&text))
}

/// What an answer says of a server.
fn judged(set: &RadiusServer, probe: &Probe) -> (Grade, String) {
    let RadiusServer { name, address, .. } = set;
    let what = match probe.answer {
        ProbeAnswer::Status => "answers (Status-Server)",
        ProbeAnswer::Rejected => "answers, and rejects a user who does not exist",
        ProbeAnswer::Challenged => "answers, and asks even a user who does not exist for more",
        ProbeAnswer::Accepted => {
            let text = format!(
                "{name} ({address}) accepts a user who does not exist, with a password made up by \
                 chance: correct its rules, and until then take it out of the configuration"
            );
            return (Grade::Fail, text);
        }
    };
    let text = format!("{name} ({address}) {what} after {} ms", probe.took.as_millis());
    if set.transport == Transport::Tls || set.require_message_authenticator {
        (Grade::Ok, text)
    } else if probe.signed {
        let text = format!(
            "{text}, with a Message-Authenticator: remove require_message_authenticator = false"
        );
        (Grade::Warn, text)
    } else {
        let text = format!(
            "{text}, but without Message-Authenticator, and is believed all the same: whoever is on \
             the way can let anybody in (CVE-2024-3596). {SIGN}, then remove \
             require_message_authenticator = false"
        );
        (Grade::Warn, text)
    }
}

const SIGN: &str = "Update the server, or have it send Message-Authenticator in every answer";

/// Why a server gave no answer that counts, and what to do.
fn told(set: &RadiusServer, failure: &Failure) -> String {
    let is_tls = set.transport == Transport::Tls;
    let advice = match &failure.reason {
        Reason::Resolve(_) => {
            "correct its address in the configuration, or the name service".into()
        }
        Reason::Unreachable(_) => {
            "start it, or correct its address and port in the configuration, or the firewall".into()
        }
        Reason::Silent { discards, .. } => {
            let came = |why| discards.0.contains_key(&why);
            if came(Discard::MessageAuthenticator) {
                "whoever sent that does not know the secret: find out who is on the way".to_owned()
            } else if came(Discard::ResponseAuthenticator) {
                format!("{} is not what the server has for this host", secret_named(set))
            } else if came(Discard::NoMessageAuthenticator) {
                SIGN.to_owned()
            } else if is_tls {
                "the connection stands, so look at the server's log".to_owned()
            } else {
                // A server drops what it cannot check, and says so in its own log only.
                format!(
                    "it is down, a firewall is between, or it drops what we send: look in its log \
                     whether it knows this host's address as a client, and whether {} is what it \
                     has for it",
                    secret_named(set)
                )
            }
        }
        Reason::Tls(_) => format!(
            "ca_file {} must hold the authority of its certificate, and the certificate be for the \
             name in address, or for server_name",
            set.ca_file.display()
        ),
        Reason::Closed(_) => format!(
            "have certificate_file {} issued by an authority that the server trusts for clients",
            set.certificate_file.display()
        ),
        Reason::TlsFiles(_) | Reason::Full | Reason::Random(_) | Reason::Invalid(_) => {
            return failure.to_string();
        }
    };
    format!("{failure}: {advice}")
}

/// The secret of a server, by where it stands.
fn secret_named(set: &RadiusServer) -> String {
    match set.secret_file.as_os_str().is_empty() {
        true if set.transport == Transport::Tls => "the secret \"radsec\"".to_owned(),
        true => format!("the secret in the credential radius_{}", set.name),
        false => format!("the secret in {}", set.secret_file.display()),
    }
}
