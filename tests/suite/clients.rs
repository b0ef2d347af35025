//! Clients other than OpenSSH, as Debian has them: what `docs/clients.md` says that each shows, can
//! and cannot do. OpenSSH itself has the rest of this suite.

use std::path::{Path, PathBuf};

use sallyport::audit::Context;
use secrecy::ExposeSecret as _;
use tokio::process::Command;

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion, code_of};
use crate::support::dialog::Dialog;
use crate::support::keypair::KeyPair;
use crate::support::screen::Screen;
use crate::support::ssh::{Run, run};
use crate::support::sshd::Sshd;
use crate::support::{command, present_user, tool};

/// What Debian's Dropbear and libssh2 need.
const OLDER: &str = "[server]\nolder_clients = true\n";
const NEW: &str = "an unusual teapot 7";
const CODE: &str = "6-digit code: ";
const BIND: &str = "makes a new one): ";

/// A bastion with a recorded target `db1`, and alice, who has a password, a key and an authenticator.
struct Site {
    bastion: TestBastion,
    /// The target: ends with this.
    _sshd: Sshd,
    alice: Person,
    key: KeyPair,
    /// The public half of the bastion's host key, and its fingerprint.
    host_key: (String, String),
    /// A home for clients that must have one.
    home: tempfile::TempDir,
}

impl Site {
    async fn start(config: &str) -> Self {
        let bastion = TestBastion::start_with(Engine::Sqlite, config).await;
        let sshd = Sshd::start().await;
        bastion.record_target("db1", &sshd).await;
        let alice = bastion.person("alice").await;
        bastion.add_grant("alice", "db1", |_| {}).await;
        let key = KeyPair::new().await;
        key.add_to(&bastion, &alice).await;
        let public = bastion.bastion.front().host_key.public_key().to_openssh().unwrap();
        let (line, fingerprint) = sallyport::keys::host_key_line(&public).unwrap();
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("note"), "a line of the target's\n").unwrap();
        Self { bastion, _sshd: sshd, alice, key, host_key: (line, fingerprint), home }
    }

    /// The user name that leads straight to `db1`.
    fn selector(&self) -> String {
        format!("alice+{}@db1", present_user())
    }

    /// A file that the target has.
    fn note(&self) -> PathBuf {
        self.home.path().join("note")
    }

    /// The next code, and what a new authenticator with this key shows.
    fn code(&self) -> String {
        self.bastion.code(&self.alice)
    }

    /// A program that `script` runs, with the words that all scripts take.
    fn script(&self, script: Script, user: &str, first: &str, action: &[&str]) -> Dialog {
        let port = self.bastion.port.to_string();
        let mut command = script.command();
        command.args([port.as_str(), &self.host_key.0, user, first]).args(action);
        Dialog::start(&mut command)
    }

    /// `key:FILE` for a script.
    fn by_key(&self) -> String {
        format!("key:{}", self.key.private().display())
    }

    /// A program of PuTTY's, on a terminal.
    fn putty(&self, program: &str, user: &str, words: &[&str]) -> Screen {
        let mut putty = command(tool(program));
        putty.args(["-hostkey", &self.host_key.1, "-P", &self.bastion.port.to_string()]);
        Screen::run(putty.args(["-l", user, "127.0.0.1"]).args(words))
    }

    /// Dropbear's client, on a terminal.
    fn dbclient(&self, user: &str, options: &[&str], words: &[&str]) -> Screen {
        let mut env = command("/usr/bin/env");
        env.arg(format!("HOME={}", self.home.path().display())).arg(tool("dbclient"));
        env.args(["-y", "-p", &self.bastion.port.to_string(), "-l", user]).args(options);
        Screen::run(env.arg("127.0.0.1").args(words))
    }

    /// Reads the note by curl's SFTP.
    async fn curl(&self, user: &str, secret: &str, options: &[&str]) -> Run {
        let mut curl = command(tool("curl"));
        let sha256 = self.host_key.1.trim_start_matches("SHA256:");
        curl.args(["--silent", "--show-error", "--max-time", "30", "--hostpubsha256", sha256]);
        curl.args(["--user", &format!("{user}:{secret}")]).args(options);
        let (port, note) = (self.bastion.port, self.note());
        run(curl.arg(format!("sftp://127.0.0.1:{port}{}", note.display()))).await
    }

    /// Waits until somebody was let in, or not.
    async fn refused(&self, reason: &str) {
        self.bastion.event("sign-in-refused", &[("reason", reason)]).await;
    }
}

/// A program under `tests/clients` that uses a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    Paramiko,
    Asyncssh,
    Jsch,
}

const PYTHON: [Script; 2] = [Script::Paramiko, Script::Asyncssh];

impl Script {
    fn command(self) -> Command {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        // Debian's packages are for Debian's own Python.
        let mut python = command("/usr/bin/python3");
        python.args(["-W", "ignore"]);
        match self {
            Self::Paramiko => python.arg(folder.join("with_paramiko.py")),
            Self::Asyncssh => python.arg(folder.join("with_asyncssh.py")),
            Self::Jsch => {
                let mut java = command(tool("java"));
                java.args(["-cp", "/usr/share/java/jsch.jar"]).arg(folder.join("WithJsch.java"));
                return java;
            }
        };
        python
    }
}

/// The key in the text of the prompt that shows the picture.
fn key_in(prompt: &str) -> Vec<u8> {
    let key = prompt.split("type this key into the app:").last().unwrap();
    let key: String = key.lines().next().unwrap().split_whitespace().collect();
    totp_rs::Secret::try_from_base32(&key).unwrap().as_bytes().to_vec()
}

/// Answers what is asked on a screen, in this order.
async fn answer(screen: &mut Screen, answers: &[(&str, &str)]) {
    for (question, answer) in answers {
        screen.expect(question).await;
        screen.type_line(answer).await;
    }
}

/// Waits for the last that a program shows, and for its end, which is a good one.
async fn ends_with(mut screen: Screen, shown: &str) {
    screen.expect(shown).await;
    assert_eq!(screen.end().await.0, Some(0));
}

/// Binds an authenticator through the questions of `dialog`, which has given the first password.
async fn binds(site: &Site, dialog: &mut Dialog) {
    dialog.answers("Choose a new password: ", NEW).await;
    dialog.answers("Repeat the new password: ", NEW).await;
    let shown = dialog.asks(BIND).await;
    assert!(shown.contains("\n██ ▄▄▄▄▄ █"), "{shown}");
    dialog.answer("a").await;
    let drawn = dialog.asks(BIND).await;
    assert!(drawn.contains("\n####") && drawn.is_ascii(), "{drawn}");
    assert_eq!(key_in(&shown), key_in(&drawn));
    dialog.answer(&code_of(&key_in(&shown), site.bastion.now())).await;
    let codes = dialog.asks("Press Enter to continue: ").await;
    assert!(codes.contains("Recovery codes"), "{codes}");
    dialog.answer("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_signs_in_by_every_order_of_methods_and_goes_on() {
    let site = Site::start("").await;
    let (user, note) = (present_user(), site.note());
    for script in PYTHON {
        let mut dialog = site.script(script, "alice", "password", &["exec", "targets"]);
        dialog.answers("password", PASSWORD).await;
        dialog.answers(CODE, &site.code()).await;
        assert!(dialog.ends_with("out").await.contains("db1"));

        // What `ssh -J` does.
        let jump = ["jump", "db1", &user, "echo through as $USER"];
        let mut dialog = site.script(script, "alice", "interactive", &jump);
        dialog.answers("Password: ", PASSWORD).await;
        dialog.answers(CODE, &site.code()).await;
        assert_eq!(dialog.ends_with("out").await.trim(), format!("through as {user}"));

        let read = ["sftp", note.to_str().unwrap()];
        let mut dialog = site.script(script, &site.selector(), &site.by_key(), &read);
        dialog.answers(CODE, &site.code()).await;
        assert_eq!(dialog.ends_with("out").await, "a line of the target's\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python_binds_an_authenticator() {
    let site = Site::start("").await;
    for (script, name) in [(Script::Paramiko, "pia"), (Script::Asyncssh, "ada")] {
        let one_time = site.bastion.newcomer(name).await;
        let mut dialog = site.script(script, name, "interactive", &["exec", "otp"]);
        dialog.answers("Password: ", one_time.expose_secret()).await;
        binds(&site, &mut dialog).await;
        assert!(dialog.ends_with("out").await.contains(name));
        site.bastion.event("authenticator-bound", &[("user", name)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python_tells_of_a_refusal_and_no_more() {
    let site = Site::start("").await;
    for (script, told) in
        [(Script::Paramiko, "Authentication failed."), (Script::Asyncssh, "Permission denied")]
    {
        let mut dialog = site.script(script, "alice", &site.by_key(), &["exec", "targets"]);
        dialog.answers(CODE, "000000").await;
        // asyncssh asks again, as OpenSSH does, until the bastion has heard enough.
        assert!(dialog.answers_until_refused("000000").await.contains(told), "{script:?}");
    }
    site.refused("wrong-code").await;
}

/// paramiko's Transport asks for the authentication service before each method, and waits for an
/// answer that only the first request gets.
#[tokio::test(flavor = "multi_thread")]
async fn paramiko_alone_does_not_come_to_its_second_method() {
    let site = Site::start("").await;
    let mut dialog = site.script(Script::Paramiko, "alice", "unaided", &["exec", "targets"]);
    dialog.answers("password", PASSWORD).await;
    assert_eq!(dialog.ends_with("refused").await, "Authentication timeout.");
    site.bastion.event("step-passed", &[("step", "password")]).await;
    site.refused("given-up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plink_gives_a_key_and_a_code() {
    let site = Site::start("").await;
    let ppk = site.home.path().join("key.ppk");
    let mut puttygen = command(tool("puttygen"));
    puttygen.arg(site.key.private()).args(["-O", "private", "-o"]).arg(&ppk);
    run(&mut puttygen).await.ok();
    let mut plink = command(tool("plink"));
    plink.args(["-no-antispoof", "-hostkey", &site.host_key.1, "-i"]).arg(&ppk);
    plink.args(["-P", &site.bastion.port.to_string(), "alice@127.0.0.1", "targets"]);
    let mut screen = Screen::run(&plink);
    answer(&mut screen, &[(CODE, &site.code())]).await;
    ends_with(screen, "db1").await;
}

/// JSch 0.1.55, of 2018, knows neither Curve25519 nor Ed25519.
#[tokio::test(flavor = "multi_thread")]
async fn jsch_of_2018_does_not_connect() {
    let site = Site::start(OLDER).await;
    let dialog = site.script(Script::Jsch, "alice", "interactive", &[]);
    assert_eq!(dialog.ends_with("refused").await, "Algorithm negotiation fail");
}

/// Gives the first password and a new one, and waits for the picture.
async fn comes_to_the_picture(screen: &mut Screen, one_time: &str) {
    let (choose, repeat) = (("Choose a new password: ", NEW), ("Repeat the new password: ", NEW));
    answer(screen, &[("Password: ", one_time), choose, repeat]).await;
    screen.expect(BIND).await;
    screen.settle().await;
}

/// Binds an authenticator with the key on a screen that shows the picture once more.
async fn binds_on(screen: &mut Screen, site: &Site) {
    screen.expect(BIND).await;
    screen.settle().await;
    screen.type_line(&code_of(&key_in(&screen.text()), site.bastion.now())).await;
    answer(screen, &[("Press Enter to continue: ", "")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plink_binds_an_authenticator_and_shows_its_picture() {
    let site = Site::start("").await;
    let one_time = site.bastion.newcomer("paul").await;
    let mut screen = site.putty("plink", "paul", &["otp"]);
    comes_to_the_picture(&mut screen, one_time.expose_secret()).await;
    let uri = screen.qr().unwrap_or_else(|| panic!("no QR code on:\n{}", screen.text()));
    assert!(uri.starts_with("otpauth://totp/Sallyport:paul?"), "{uri}");
    // Two columns of its own make the picture of characters too wide for 80.
    screen.type_line("a").await;
    screen.expect("> #").await;
    binds_on(&mut screen, &site).await;
    // plink's own, so that no server can pretend that it still asks.
    answer(&mut screen, &[("Press Return to begin session.", "")]).await;
    ends_with(screen, "paul").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psftp_reads_from_the_target_that_its_user_name_selects() {
    let site = Site::start("").await;
    let mut screen = site.putty("psftp", &site.selector(), &[]);
    answer(&mut screen, &[("Password: ", PASSWORD), (CODE, "000000")]).await;
    screen.expect("Access denied").await;
    answer(&mut screen, &[("Password: ", PASSWORD), (CODE, &site.code())]).await;
    screen.expect("psftp> ").await;
    let copy = site.home.path().join("copy");
    screen.type_line(&format!("get {} {}", site.note().display(), copy.display())).await;
    answer(&mut screen, &[("psftp> ", "quit")]).await;
    assert_eq!(screen.end().await.0, Some(0));
    assert_eq!(std::fs::read_to_string(copy).unwrap(), "a line of the target's\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropbear_signs_in_where_older_clients_are_welcome() {
    let plain = Site::start("").await;
    let mut screen = plain.dbclient("alice", &[], &["targets"]);
    screen.expect("No matching algo mac").await;
    assert_ne!(screen.end().await.0, Some(0));

    let site = Site::start(OLDER).await;
    let mut screen = site.dbclient(&site.selector(), &[], &["echo through as $USER"]);
    answer(&mut screen, &[("Password: ", PASSWORD), (CODE, &site.code())]).await;
    ends_with(screen, &format!("through as {}", present_user())).await;

    let key = site.home.path().join("dropbear");
    let mut convert = command(tool("dropbearconvert"));
    run(convert.args(["openssh", "dropbear"]).arg(site.key.private()).arg(&key)).await.ok();
    let mut screen = site.dbclient("alice", &["-i", key.to_str().unwrap()], &["targets"]);
    answer(&mut screen, &[(CODE, &site.code())]).await;
    ends_with(screen, "db1").await;

    let mut screen = site.dbclient("alice", &[], &["targets"]);
    answer(&mut screen, &[("Password: ", PASSWORD), (CODE, "000000")]).await;
    screen.expect("Password: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropbear_shows_no_picture_but_the_key() {
    let site = Site::start(OLDER).await;
    let one_time = site.bastion.newcomer("dora").await;
    let mut screen = site.dbclient("dora", &[], &["otp"]);
    comes_to_the_picture(&mut screen, one_time.expose_secret()).await;
    assert!(screen.qr().is_none(), "{}", screen.text());
    screen.type_line("a").await;
    screen.expect("####").await;
    binds_on(&mut screen, &site).await;
    ends_with(screen, "dora").await;
}

/// curl answers every prompt with the one secret that it was given, and goes through all methods that
/// were offered first: the code would be taken for a password.
#[tokio::test(flavor = "multi_thread")]
async fn curl_gives_a_key_and_a_code_where_passwords_are_asked_for_in_prompts_only() {
    let plain = Site::start("").await;
    let ran = plain.curl("alice", PASSWORD, &[]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("Unable to exchange encryption keys"), "{ran:?}");

    let site = Site::start(OLDER).await;
    let (private, public) = (site.key.private(), site.key.public());
    let key = ["--key", private.to_str().unwrap(), "--pubkey", public.to_str().unwrap()];
    for (secret, options) in [(PASSWORD, &[][..]), (&site.code(), &key)] {
        let ran = site.curl(&site.selector(), secret, options).await;
        assert_eq!(ran.code, Some(67), "{ran:?}");
        assert!(ran.err.contains("Authentication failure"), "{ran:?}");
    }

    // Nor is a code asked for where a rule says that the key is enough.
    let rule = "key from 127.0.0.1".parse().unwrap();
    let (name, context) = (&site.alice.name, Context::default());
    let (store, now) = (site.bastion.store(), site.bastion.now());
    store.set_user_sign_in(name, Some(&rule), &context, now).await.unwrap();
    let ran = site.curl(&site.selector(), "", &key).await.ok();
    assert_eq!(ran.out, "a line of the target's\n");

    let methods = "[login]\nmethods = [\"publickey\", \"keyboard-interactive\"]\n";
    let site = Site::start(&format!("{OLDER}{methods}")).await;
    let (private, public) = (site.key.private(), site.key.public());
    let key = ["--key", private.to_str().unwrap(), "--pubkey", public.to_str().unwrap()];
    let ran = site.curl(&site.selector(), &site.code(), &key).await.ok();
    assert_eq!(ran.out, "a line of the target's\n");
}
