//! Which addresses a permit may be dialled at.
//!
//! Always holds: a name is resolved once, *every* address it led to is checked, and only checked
//! addresses are dialled, so a name that is pointed elsewhere in between (DNS rebinding) gains
//! nothing. Loopback, link-local, metadata and the bastion's own listeners are reached only by a
//! target that was registered by that very address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Permit, Refused};
use crate::audit::Refusal;
use crate::domain::Host;

/// Addresses that may be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked(Vec<SocketAddr>);

impl Checked {
    /// The addresses, in the order of the resolver.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.0
    }
}

impl Permit {
    /// Checks what the target's host resolved to; `own` are the addresses that the bastion
    /// itself is reached at.
    ///
    /// # Errors
    /// When one address is forbidden, or there is none.
    pub fn check_addresses(
        &self,
        resolved: &[IpAddr],
        own: &[SocketAddr],
    ) -> Result<Checked, Refused> {
        let target = &self.target;
        let refuse = |message| {
            let (reason, target) = (Refusal::ForbiddenAddress, Some(target.name.clone()));
            Err(Refused { reason, message, target })
        };
        let mut checked = Vec::new();
        for ip in resolved {
            let ip = plain(*ip);
            let address = SocketAddr::new(ip, target.address.port);
            let literal = target.address.host.ip().is_some_and(|named| plain(named) == ip);
            if !literal && (is_forbidden(ip) || own.iter().any(|own| is_own(*own, address))) {
                return refuse(format!("{} leads to a forbidden address ({ip})", target.name));
            }
            if !checked.contains(&address) {
                checked.push(address);
            }
        }
        if checked.is_empty() {
            return refuse(format!("{} did not resolve to an address", target.name));
        }
        Ok(Checked(checked))
    }
}

/// The address among `resolved` at which nobody would be let through to a target at `host`, as far
/// as can be told without knowing where the bastion listens.
pub fn forbidden_address(host: &Host, resolved: &[IpAddr]) -> Option<IpAddr> {
    let literal = host.ip().map(plain);
    resolved.iter().map(|ip| plain(*ip)).find(|ip| literal != Some(*ip) && is_forbidden(*ip))
}

/// Where `ip` leads: the IPv4 address inside an IPv6 one (mapped, compatible, NAT64, 6to4), or itself.
pub fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 =
        |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff) => v4(g, h),
        (0, 0, 0, 0, 0, 0) if (g, h) != (0, 0) && (g, h) != (0, 1) => v4(g, h),
        (0x64, 0xff9b, 0, 0, 0, 0) => v4(g, h),
        (0x2002, ..) => v4(b, c),
        _ => ip,
    }
}

/// Whether nobody is forwarded to `ip` unless a target names it.
fn is_forbidden(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
                || v4 == Ipv4Addr::new(100, 100, 100, 200) // Alibaba Cloud's metadata.
                || v4 == Ipv4Addr::new(168, 63, 129, 16) // Azure's.
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.segments().starts_with(&[0x64, 0xff9b, 1]) // NAT64 of the network's own (RFC 8215).
                || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254) // Amazon's metadata.
                || v6 == Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254) // Google's.
        }
    }
}

/// Whether `address` is a way to our listener `own`.
fn is_own(own: SocketAddr, address: SocketAddr) -> bool {
    own.port() == address.port() && plain(own.ip()) == address.ip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_write_an_address_are_seen_through() {
        for (given, meant) in [
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("::7f00:1", "127.0.0.1"),
            ("64:ff9b::a9fe:a9fe", "169.254.169.254"),
            ("2002:7f00:1::", "127.0.0.1"),
            ("::1", "::1"),
            ("::", "::"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(plain(given.parse().unwrap()).to_string(), meant, "{given}");
        }
    }

    #[test]
    fn forbidden_addresses() {
        for bad in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "64:ff9b:1::a9fe:a9fe",
            "fd20:ce::254",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
        ] {
            assert!(is_forbidden(bad.parse().unwrap()), "{bad}");
        }
        for good in ["10.0.0.1", "192.168.1.1", "203.0.113.9", "2001:db8::1", "fd00::1"] {
            assert!(!is_forbidden(good.parse().unwrap()), "{good}");
        }
    }
}
