//! The lines of `ssh` that lead a caller to a target, exactly as they are typed.
//!
//! Always holds: they are made of names that are plain by their type, so that a shell takes each word
//! as it stands.

use super::Caller;
use crate::domain::{Mode, Target};

/// SSH's port.
pub(super) const SSH: u16 = 22;
/// Ports below are not everybody's to listen on.
const UNPRIVILEGED: u16 = 1024;

impl Caller<'_> {
    /// Through the bastion. A target is known by its name: ssh need not be told its port.
    pub(super) fn jump(&self, target: &Target) -> String {
        let (user, host) = (self.who.user(), &self.public_host);
        let port = if self.port == SSH { String::new() } else { format!(":{}", self.port) };
        format!("ssh -J {user}@{host}{port} {}", target.name)
    }

    /// Straight there, which is recorded, and so not offered for a target in tunnel mode.
    pub(super) fn selector(&self, target: &Target) -> Option<String> {
        let (user, host) = (self.who.user(), &self.public_host);
        let line = || format!("ssh {}{user}+{}@{host}", self.port_option(), target.name);
        (target.mode == Mode::Record).then(line)
    }

    /// A port of the caller's own that leads to the target's. A recorded one is an SSH server, to which
    /// the other lines lead.
    pub(super) fn forward(&self, target: &Target) -> Option<String> {
        let (user, host) = (self.who.user(), &self.public_host);
        let (option, name, port) = (self.port_option(), &target.name, target.address.port);
        let local = local_port(port);
        let line = || format!("ssh {option}-L {local}:{name}:{port} -N {user}@{host}");
        (target.mode == Mode::Tunnel).then(line)
    }

    /// What leads to a target, in a line.
    pub(super) fn line(&self, target: &Target) -> String {
        let jump = self.jump(target);
        match self.forward(target) {
            // May be a plain TCP service or an sshd: show what works for both.
            Some(forward) if target.address.port != SSH => format!("{jump}   or   {forward}"),
            _ => jump,
        }
    }

    /// What is typed for a command of the console.
    pub(super) fn own_line(&self, options: &str, command: &str) -> String {
        let (user, host) = (self.who.user(), &self.public_host);
        format!("ssh {options}{}{user}@{host} {command}", self.port_option())
    }

    pub(super) fn port_option(&self) -> String {
        if self.port == SSH { String::new() } else { format!("-p {} ", self.port) }
    }
}

/// The port of one's own that stands for a target's.
pub(super) fn local_port(port: u16) -> u16 {
    if port < UNPRIVILEGED { 10_000 + port } else { port }
}

#[cfg(test)]
mod tests {
    use super::local_port;

    #[test]
    fn the_local_port_is_one_that_anybody_may_listen_on() {
        for (port, local) in [(1, 10_001), (22, 10_022), (1023, 11_023), (1024, 1024)] {
            assert_eq!(local_port(port), local);
        }
        assert_eq!(local_port(u16::MAX), u16::MAX);
    }
}
