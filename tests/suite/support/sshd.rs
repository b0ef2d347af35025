//! A real sshd on loopback, as a target.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Child;

use super::{command, ended, free_port, listening, postgres, present_user, tool};

pub struct Sshd {
    dir: tempfile::TempDir,
    pub port: u16,
    /// Whom it lets in.
    pub user: String,
    child: Child,
}

impl Sshd {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts one with `extra` lines before the others of its configuration.
    pub async fn start_with(extra: &str) -> Self {
        Self::launch(extra, None, false).await
    }

    /// Starts one that is not root, whose sessions are sent signals; root's are not ("session
    /// signalling requires privilege separation").
    pub async fn unprivileged() -> Self {
        Self::launch("", None, true).await
    }

    /// Starts one whose host key has a certificate for `names`, by an authority of its own.
    pub async fn certified(names: &str) -> Self {
        Self::launch("", Some(names), false).await
    }

    async fn launch(extra: &str, certified: Option<&str>, unprivileged: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for key in ["host", "id", "authority"] {
            let mut keygen = command(tool("ssh-keygen"));
            keygen.args(["-q", "-t", "ed25519", "-N", ""]).arg("-f").arg(at(key));
            assert!(ended(&mut keygen.spawn().unwrap()).await.success());
        }
        let mut extra = extra.to_owned();
        if let Some(names) = certified {
            let mut sign = command(tool("ssh-keygen"));
            sign.arg("-q").arg("-s").arg(at("authority")).args(["-I", "host", "-h", "-n", names]);
            sign.arg(at("host.pub"));
            assert!(ended(&mut sign.spawn().unwrap()).await.success());
            extra = format!("HostCertificate {}\n{extra}", at("host-cert.pub").display());
        }
        std::fs::copy(at("id.pub"), at("authorized_keys")).unwrap();
        // sshd running as root wants its privilege separation folder.
        std::fs::create_dir_all("/run/sshd").ok();
        let port = free_port();
        // SHLVL tells bash that another shell started it: it then leaves out the `.bashrc` of whoever
        // runs the tests, which may say anything, and take its time.
        let conf = format!(
            "{extra}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {host}\nAuthorizedKeysFile {keys}\n\
             StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nMaxStartups 100\n\
             MaxSessions 100\nSubsystem sftp internal-sftp\nAcceptEnv LC_*\nPrintMotd no\n\
             SetEnv SHLVL=1 XAUTHORITY={cookies}\n",
            cookies = at("Xauthority").display(),
            host = at("host").display(),
            keys = at("authorized_keys").display(),
        );
        std::fs::write(at("conf"), conf).unwrap();
        std::fs::set_permissions(at("id"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let (mut sshd, mut user) = (command(tool("sshd")), present_user());
        if unprivileged && postgres::is_root() {
            // The one that root's tests run their database as.
            user = "postgres".to_owned();
            postgres::own(dir.path()).await;
            sshd = command(tool("setpriv"));
            sshd.args(["--reuid", &user, "--regid", &user, "--init-groups", "--"]);
            sshd.arg(tool("sshd"));
        }
        let child = sshd
            .arg("-D")
            .arg("-e")
            .arg("-f")
            .arg(at("conf"))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        listening(port).await;
        Self { dir, port, user, child }
    }

    /// The process that listens.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("sshd ended")
    }

    /// The public half of its host key.
    pub fn host_key(&self) -> String {
        std::fs::read_to_string(self.path("host.pub")).unwrap()
    }

    /// The public key of the authority that signed its host key.
    pub fn authority(&self) -> String {
        std::fs::read_to_string(self.path("authority.pub")).unwrap()
    }

    /// What it wrote down so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The key that lets the present user in.
    pub fn identity(&self) -> PathBuf {
        self.dir.path().join("id")
    }
}
