//! The RADIUS servers of a configuration, with their secrets.
//!
//! Always holds: a server over UDP has a secret of its own; nothing is asked of any server here.

use super::{node, secret_file};
use crate::config::{Config, RadiusServer, Transport};
use crate::radius::{RADSEC_SECRET, Server, Settings, Tls, Transport as Way};

/// What is set for all servers together.
pub fn radius_settings(config: &Config) -> Settings {
    let radius = &config.radius;
    let name =
        if radius.nas_identifier.is_empty() { node(config) } else { radius.nas_identifier.clone() };
    Settings { dead_time: radius.dead_time.0, ..Settings::new(&name) }
}

/// A server with its secret, which is read here.
///
/// # Errors
/// When it has no secret, or its file cannot be read or can be read by others.
pub fn radius_server(config: &Config, server: &RadiusServer) -> anyhow::Result<Server> {
    let secret = secret_file(config.radius_secret_path(server).as_deref())?;
    let secret = match (secret, server.transport) {
        (Some(secret), _) => secret,
        (None, Transport::Tls) => RADSEC_SECRET.into(),
        (None, Transport::Udp) => anyhow::bail!(
            "the RADIUS server {name} has no secret: write it to a file of mode 0600 and name that in \
             secret_file, or pass the systemd credential radius_{name}",
            name = server.name
        ),
    };
    let transport = match server.transport {
        Transport::Udp => Way::Udp,
        Transport::Tls => Way::Tls(Tls {
            ca_file: server.ca_file.clone(),
            certificate_file: server.certificate_file.clone(),
            key_file: server.key_file.clone(),
            server_name: Some(server.server_name.clone()).filter(|name| !name.is_empty()),
        }),
    };
    Ok(Server {
        timeout: server.timeout.0,
        tries: server.tries,
        require_message_authenticator: server.require_message_authenticator,
        transport,
        ..Server::udp(&server.name, &server.address, secret)
    })
}
