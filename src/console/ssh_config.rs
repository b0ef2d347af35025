//! `ssh-config`: a block for `~/.ssh/config` that leads to the bastion and through it.
//!
//! Always holds: it is made of names that are plain by their type, so that no line of it can mean more
//! than it says; comments tell what cannot be put into words of ssh_config(5).

use std::io::Write as _;

use super::ways::{SSH, local_port};
use super::{Caller, granted};
use crate::admin::{Out, Verbs};
use crate::domain::{Mode, Target};
use crate::policy::{self, Subject};

/// What the bastion is called in the block. Its own name would catch whatever else is asked of a host
/// called so ("localhost", for example).
const ALIAS: &str = "sallyport";
/// Where the certificate goes. Not beside the key, where ssh would find it by itself: who asks for a new
/// one must not sign in with the old one.
const CERTIFICATE: &str = "sallyport-cert.pub";

pub(super) async fn show(
    caller: &Caller<'_>,
    verbs: &Verbs<'_>,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let (user, host) = (caller.who.user(), &caller.public_host);
    let me = format!("ssh {}{user}@{host}", caller.port_option());
    writeln!(out, "# For ~/.ssh/config, made by '{me} ssh-config'.")?;
    writeln!(out, "# '{me} known-hosts >> ~/.ssh/known_hosts' makes ssh trust these hosts.\n")?;
    writeln!(out, "Host {ALIAS}")?;
    writeln!(out, "    HostName {host}")?;
    if caller.port != SSH {
        writeln!(out, "    Port {}", caller.port)?;
    }
    writeln!(out, "    User {user}")?;
    writeln!(
        out,
        "    # One connection carries all, so that one code is asked for: until it has been"
    )?;
    writeln!(out, "    # unused for as long as ControlPersist says, or 'ssh -O exit {ALIAS}'.")?;
    writeln!(out, "    ControlMaster auto")?;
    writeln!(out, "    ControlPath ~/.ssh/sallyport-%C")?;
    writeln!(out, "    ControlPersist 4h")?;
    if let Some(certificates) = &caller.certificates {
        let hours = certificates.life.as_secs().div_ceil(3600);
        writeln!(
            out,
            "    # This gets a certificate, with which no code is asked for, for {hours} h:"
        )?;
        writeln!(out, "    #   ssh -F none {}{user}@{host} certificate \\", caller.port_option())?;
        writeln!(out, "    #       < ~/.ssh/id_ed25519.pub > ~/.ssh/{CERTIFICATE}")?;
        writeln!(out, "    IdentityFile ~/.ssh/id_ed25519")?;
        writeln!(out, "    CertificateFile ~/.ssh/{CERTIFICATE}")?;
    }
    let access = verbs.store.access_of(caller.who.account()).await?;
    let subject = Subject::of(caller.who, &access.groups, caller.source.ip());
    for (target, remark) in granted(caller, verbs.store, verbs.now).await? {
        let accounts = policy::granted_accounts(&subject, &target, &access.grants);
        let accounts: Vec<String> = accounts.iter().map(ToString::to_string).collect();
        block(&target, &accounts, remark.trim(), out)?;
    }
    Ok(())
}

/// The lines for one target.
fn block(
    target: &Target,
    accounts: &[String],
    remark: &str,
    out: &mut Out<'_>,
) -> std::io::Result<()> {
    let name = &target.name;
    let remark = if remark.is_empty() { String::new() } else { format!(" {remark}") };
    match (target.mode, target.address.port) {
        (Mode::Record, _) => writeln!(out, "\n# Recorded.{remark}")?,
        (Mode::Tunnel, SSH) => writeln!(out, "\n# Passed through, not recorded.{remark}")?,
        // Whether it speaks SSH is not known.
        (Mode::Tunnel, port) => {
            let local = local_port(port);
            writeln!(out, "\n# {name}: ssh -N -L {local}:{name}:{port} {ALIAS}{remark}")?;
            return Ok(());
        }
    }
    writeln!(out, "Host {name}")?;
    writeln!(out, "    ProxyJump {ALIAS}")?;
    match accounts {
        [account] => writeln!(out, "    User {account}")?,
        [] => {}
        several => writeln!(out, "    # As one of {}: ssh ACCOUNT@{name}", several.join(", "))?,
    }
    Ok(())
}
