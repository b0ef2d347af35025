//! How the bastion signs in on a target in record mode, and how it knows the target.

use sallyport::audit::Context;
use sallyport::domain::{AccountAuth, Mode};
use serde_json::Value;

use crate::support::bastion::{Engine, TestBastion};
use crate::support::hop::{Agent, Hop, Ran, fed};
use crate::support::played::{Asks, Played};
use crate::support::sshd::Sshd;
use crate::support::ways::{Program, Way};
use crate::support::{command, ended, present_user, tool};

async fn signed_in(hop: &Hop, auth: &str) -> Value {
    let fields = [("user", "alice"), ("target", "db1"), ("auth", auth)];
    hop.bastion.event("target-signed-in", &fields).await
}

/// `ssh` says this line of the bastion's, and runs nothing.
fn refused(ran: &Ran, why: &str) {
    assert_eq!(ran.code, Some(255), "{ran:?}");
    assert_eq!(ran.err.matches(&format!("sallyport: {why}")).count(), 1, "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_names_user_source_and_session() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let file = bastion.path("user_ca.pub");
    let ca = bastion.bastion.relay.user_ca.public_key().to_openssh().unwrap();
    std::fs::write(&file, format!("{ca}\n")).unwrap();
    let conf = format!("TrustedUserCAKeys {}\nAuthorizedKeysFile none", file.display());
    let sshd = Sshd::start_with(&conf).await;
    bastion.target_in(Mode::Record, "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    bastion.pin("db1", &sshd.host_key(), false).await;
    // Nothing is said about the account: a certificate is what is tried first.
    let hop = Hop::around(bastion, sshd, |_| {}).await;
    assert_eq!(hop.ssh(&["via", "echo in"]).await.ok().text(), "in\n");
    signed_in(&hop, "ca").await;
    hop.bastion.account("db1", &present_user(), AccountAuth::Ca, None).await;
    hop.ssh(&["-tt", "via", "true"]).await.ok();
    let session = &hop.bastion.store().sessions(&Default::default(), 10).await.unwrap()[0].id;
    let log = hop.sshd.log();
    let line = log
        .lines()
        .find(|line| line.contains("ED25519-CERT SHA256:"))
        .unwrap_or_else(|| panic!("{log}"));
    let named = format!("ID sallyport user=alice source=127.0.0.1 session={session} (serial 0)");
    assert!(line.contains(&named), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_key_that_is_not_taken_is_told() {
    let hop = Hop::start().await;
    hop.ssh(&["via", "true"]).await.ok();
    signed_in(&hop, "key").await;
    let other = hop.client.path("other");
    let mut keygen = command(tool("ssh-keygen"));
    keygen.args(["-q", "-t", "rsa", "-b", "2048", "-N", ""]).arg("-f").arg(&other);
    assert!(ended(&mut keygen.spawn().unwrap()).await.success());
    let key = std::fs::read(&other).unwrap();
    hop.bastion.account("db1", &present_user(), AccountAuth::Key, Some(&key)).await;
    let ran = hop.ssh(&["via", "true"]).await;
    let user = present_user();
    let why = format!(
        "{user}@db1 did not let the bastion in (key); db1 offers publickey, password, \
         keyboard-interactive. Your administrator can \
         say how to sign in there: 'sallyport target account add db1 {user} --auth ca' (if it trusts \
         the user CA), key or agent"
    );
    refused(&ran, &why);
    hop.bastion.event("target-failed", &[("target", "db1"), ("error", &why)]).await;

    // The same key, once the target takes it: an RSA key signs, too.
    let line = std::fs::read_to_string(other.with_extension("pub")).unwrap();
    std::fs::write(hop.sshd.path("authorized_keys"), line).unwrap();
    hop.ssh(&["via", "true"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_agent_that_the_user_forwards_lets_them_in() {
    let hop = Hop::start().await;
    hop.bastion.account("db1", &present_user(), AccountAuth::Agent, None).await;
    let mut agent = Agent::start(&hop).await;
    let option = agent.option();
    let ran = hop.ssh(&["-A", "-o", &option, "via", "echo in; ssh-add -l"]).await.ok();
    assert!(ran.text().starts_with("in\n256 SHA256:"), "{ran:?}");
    signed_in(&hop, "agent").await;
    let ran = hop.ssh(&["via", "echo in"]).await;
    let why = "takes a key of your agent: forward it with 'ssh -A' or 'ForwardAgent yes', and with \
               'scp -A' or 'sftp -A'";
    refused(&ran, &format!("{}@db1 {why}", present_user()));
    assert!(ran.out.is_empty() && !ran.err.contains("break-in"), "{ran:?}");
    agent.process.kill().await.unwrap();
}

/// A target that asks for a password.
async fn asking(asks: Asks, auth: Option<(AccountAuth, Option<&[u8]>)>) -> (Hop, Played) {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let played = Played::start(asks).await;
    bastion.target_in(Mode::Record, "db1", &format!("127.0.0.1:{}", played.port)).await;
    bastion.pin("db1", &played.host_key, false).await;
    if let Some((auth, secret)) = auth {
        bastion.account("db1", &present_user(), auth, secret).await;
    }
    (Hop::around(bastion, Sshd::start().await, |_| {}).await, played)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_password_lets_in_without_a_question() {
    let ran_as = format!("{} runs id\n", present_user());
    for asks in [Asks::Password, Asks::Question] {
        let (hop, _played) = asking(asks, Some((AccountAuth::Password, Some(b"tiger")))).await;
        hop.client.answers(&[]);
        assert_eq!(hop.ssh(&["via", "id"]).await.ok().text(), ran_as);
        assert_eq!(hop.client.asked().len(), 0);
        signed_in(&hop, "password").await;
        hop.bastion.account("db1", &present_user(), AccountAuth::Password, Some(b"lion")).await;
        let why =
            format!("{}@db1 did not let the bastion in (password); db1 offers", present_user());
        refused(&hop.ssh(&["via", "id"]).await, &why);
        let failed = hop.bastion.event("target-failed", &[("target", "db1")]).await;
        assert!(failed["error"].as_str().unwrap().starts_with(&why), "{failed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_of_the_target_reach_the_user() {
    let ran_as = format!("{} runs id\n", present_user());
    let ask = Some((AccountAuth::Ask, None));
    for (asks, way, answers, prompts) in [
        (Asks::Password, ask, vec!["tiger"], vec!["password: "]),
        (Asks::Question, ask, vec!["tiger"], vec!["Password: "]),
        (Asks::Questions, ask, vec!["tiger", "000 111"], vec!["Password: ", "Token: "]),
        // A certificate is tried first, and not taken.
        (Asks::Questions, None, vec!["tiger", "000 111"], vec!["Password: ", "Token: "]),
    ] {
        let (hop, _played) = asking(asks, way).await;
        hop.client.answers(&answers);
        let ran = hop.ssh(&["via", "id"]).await.ok();
        assert_eq!(ran.text(), ran_as);
        let asked = hop.client.asked();
        assert_eq!(asked.len(), prompts.len(), "{asked:?}");
        for (asked, prompt) in asked.iter().zip(&prompts) {
            assert!(asked.ends_with(prompt), "{asked:?}");
        }
        assert!(!ran.err.contains('\x1b'), "{ran:?}");
        signed_in(&hop, "ask").await;

        // One connection, one question, however many sessions.
        hop.client.answers(&answers);
        let (mut master, path) = hop.shared(&[]).await;
        for _ in 0..3 {
            assert_eq!(hop.ssh(&["-S", &path, "via", "id"]).await.ok().text(), ran_as);
        }
        assert_eq!(hop.client.asked().len(), prompts.len());
        hop.ssh(&["-O", "exit", "-S", &path, "via"]).await.ok();
        ended(&mut master).await;

        // Wrong answers let nobody in.
        let signed = hop.bastion.kinds("target-signed-in").await.len();
        hop.client.answers(&["lion"; 40]);
        hop.ssh(&["via", "id"]).await.failed();
        assert_eq!(hop.bastion.kinds("target-signed-in").await.len(), signed);
    }
}

/// Whoever asks for a port before a session cannot be asked for a password, and hears that.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_asked_for_before_the_target_lets_anybody_in() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let played = Played::start(Asks::Password).await;
    bastion.target_in(Mode::Record, "db1", &format!("127.0.0.1:{}", played.port)).await;
    bastion.pin("db1", &played.host_key, false).await;
    bastion.account("db1", &present_user(), AccountAuth::Ask, None).await;
    let rights = ["shell", "exec", "remote-forward"].map(|right| right.parse().unwrap());
    let allow = |grant: &mut sallyport::domain::Grant| grant.allow = rights.to_vec();
    let hop = Hop::around(bastion, Sshd::start().await, allow).await;
    let ran_as = format!("{} runs id\n", present_user());
    let reach = hop.reach(Program::OpenSsh, Way::Selector);

    let args = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", "HOST"];
    let err = reach.run(&args, b"").await.failed().err;
    assert!(err.contains("remote port forwarding failed for listen port 0"), "{err}");
    let refused = [("request", "tcpip-forward localhost:0"), ("reason", "target-asks")];
    hop.bastion.event("request-refused", &refused).await;

    // A session that opens nevertheless begins with why, and the target's question.
    let ran = reach.run(&["-tt", "-R", "0:127.0.0.1:1", "HOST", "id"], b"tiger\r").await.ok();
    let why = format!(
        "sallyport: tcpip-forward localhost:0 was refused: {}@db1 asks for something first",
        present_user()
    );
    assert!(ran.err.contains(&why) && ran.err.contains("ExitOnForwardFailure=no"), "{ran:?}");
    assert!(ran.text().ends_with(&ran_as), "{ran:?}");

    // Under -J the question comes before the request.
    hop.client.answers(&["tiger"]);
    let args = ["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", "via", "id"];
    let ran = hop.ssh(&args).await.ok();
    assert_eq!(ran.text(), ran_as);
    assert!(ran.err.contains("Allocated port 4000"), "{ran:?}");
}

/// A target whose host key is none of those pinned for it.
async fn unpinned(sshd: Sshd, config: &str) -> Hop {
    let bastion = TestBastion::start_with(Engine::Sqlite, config).await;
    bastion.target_in(Mode::Record, "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let key = std::fs::read(sshd.identity()).unwrap();
    bastion.account("db1", &present_user(), AccountAuth::Key, Some(&key)).await;
    Hop::around(bastion, sshd, |_| {}).await
}

/// The sshd heard of nobody who wanted in.
fn untouched(hop: &Hop) {
    let log = hop.sshd.log();
    assert!(!log.contains("Accepted") && !log.contains("for "), "{log}");
}

fn fingerprint(line: &str) -> String {
    sallyport::keys::host_key_line(line).unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_key_is_refused_with_what_to_do() {
    let hop = unpinned(Sshd::start_with("LogLevel VERBOSE").await, "").await;
    let why = "the host key of db1 is not known yet: \
               ask your administrator to run 'sallyport target pin db1'";
    refused(&hop.ssh(&["via", "true"]).await, why);
    let event = hop.bastion.event("host-key-refused", &[("target", "db1")]).await;
    assert_eq!(event["offered"], fingerprint(&hop.sshd.host_key()).as_str());
    assert_eq!(event["trusted"].as_array().unwrap().len(), 0);
    hop.bastion.event("target-failed", &[("error", why)]).await;
    untouched(&hop);
    hop.bastion.pin("db1", &hop.sshd.host_key(), false).await;
    hop.ssh(&["via", "true"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_is_refused_and_nothing_is_sent() {
    for kind in ["ed25519", "rsa", "ecdsa"] {
        let hop = unpinned(Sshd::start_with("LogLevel VERBOSE").await, "").await;
        let old = hop.client.path("old");
        let mut keygen = command(tool("ssh-keygen"));
        keygen.args(["-q", "-t", kind, "-N", ""]).arg("-f").arg(&old);
        assert!(ended(&mut keygen.spawn().unwrap()).await.success());
        let old = std::fs::read_to_string(old.with_extension("pub")).unwrap();
        hop.bastion.pin("db1", &old, false).await;
        let why = "the host key of db1 has changed: nothing was sent there. \
                   Ask your administrator, who can compare it and run 'sallyport target pin db1'";
        refused(&hop.ssh(&["via", "true"]).await, why);
        let event = hop.bastion.event("host-key-refused", &[("target", "db1")]).await;
        assert_eq!(event["offered"], fingerprint(&hop.sshd.host_key()).as_str());
        assert_eq!(event["trusted"][0], fingerprint(&old).as_str());
        untouched(&hop);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_authority_vouches_for_host_keys() {
    let hop = unpinned(Sshd::certified("db1,db1.example").await, "").await;
    hop.bastion.pin("db1", &hop.sshd.authority(), true).await;
    hop.ssh(&["via", "true"]).await.ok();

    // For another host, and by another authority.
    let hop = unpinned(Sshd::certified("db2").await, "").await;
    hop.bastion.pin("db1", &hop.sshd.authority(), true).await;
    refused(&hop.ssh(&["via", "true"]).await, "the host key of db1 has changed");
    hop.bastion.event("host-key-refused", &[("target", "db1")]).await;
    untouched(&hop);
    let hop = unpinned(Sshd::certified("db1").await, "").await;
    let other = Sshd::start().await;
    hop.bastion.pin("db1", &other.authority(), true).await;
    refused(&hop.ssh(&["via", "true"]).await, "the host key of db1 has changed");
    hop.bastion.event("host-key-refused", &[("target", "db1")]).await;
    untouched(&hop);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_key_is_trusted_where_that_was_chosen_and_no_other_after_it() {
    let hop = unpinned(Sshd::start().await, "[record]\ntrust_first_use = true\n").await;
    hop.ssh(&["via", "true"]).await.ok();
    let key = fingerprint(&hop.sshd.host_key());
    hop.bastion.event("host-key-pinned", &[("target", "db1"), ("key", &key)]).await;
    hop.ssh(&["via", "true"]).await.ok();
    assert_eq!(hop.bastion.kinds("host-key-pinned").await.len(), 1);

    // The same target, with another key: what was trusted first stays.
    let (store, context) = (hop.bastion.store(), Context::default());
    let name = "db1".parse().unwrap();
    store.unpin_keys(&name, |line| line.to_owned(), &context, hop.bastion.now()).await.unwrap();
    let other = Sshd::start().await;
    hop.bastion.pin("db1", &other.host_key(), false).await;
    refused(&hop.ssh(&["via", "true"]).await, "the host key of db1 has changed");
    hop.bastion.event("host-key-refused", &[("target", "db1")]).await;
    fed(&mut hop.command(&["direct", "true"]), b"").await.ok();
}
