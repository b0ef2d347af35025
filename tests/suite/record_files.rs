//! The recordings themselves: there while a session goes on, whole after it, and never without one.

use sallyport::clock::Clock;
use sallyport::recording::asciicast::Kind;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::support::bastion::{PASSWORD, code_at};
use crate::support::hop::{Hop, read};
use crate::support::screen::Screen;
use crate::support::ssh::{Client, digest};
use crate::support::{PATIENCE, command, ended, eventually, free_port, speaks_ssh};

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_grows_with_its_session_and_is_sealed_after_it() {
    let hop = Hop::start().await;
    let mut child = hop.running(&["via", "echo up; echo oops >&2; cat"]).await;
    let stdin = child.stdin.take();
    let row = hop.recordings().await.remove(0);
    let file = hop.bastion.path("data/recordings").join(&row.path);
    assert!(row.ended_at.is_none() && file.extension().is_some_and(|end| end == "cast"));
    eventually("the output is in the file", async || {
        let seen = read(&file).1;
        let output = |kind: &Kind| matches!(kind, Kind::Output(text) if text.contains("oops"));
        seen.iter().any(output).then_some(())
    })
    .await;
    drop(stdin);
    assert!(ended(&mut child).await.success());
    let cast = hop.recorded("echo up; echo oops >&2; cat").await;
    assert!(cast.path.to_str().unwrap().ends_with(".cast.zst") && !file.exists());
    let output = cast.output();
    assert!(output.contains("up\n") && output.contains("oops\n"), "{output}");
    assert_eq!(cast.header.command.as_deref(), Some("echo up; echo oops >&2; cat"));
    let fields = [("recording", cast.row.id.as_str()), ("outcome", "exit status 0")];
    let event = hop.bastion.event("recording-ended", &fields).await;
    assert_eq!(event["sha256"], digest(&cast.path).as_str());
    assert_eq!(event["size"], std::fs::metadata(&cast.path).unwrap().len());
    let fields = [("what", "exec"), ("command", "echo up; echo oops >&2; cat")];
    hop.bastion.event("recording-started", &fields).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_is_recorded_only_where_that_was_chosen() {
    let line = "stty -echo; echo ready; read word; echo got ${#word} letters";
    for (config, recorded) in [("", false), ("[record]\ninput = true\n", true)] {
        let hop = Hop::start_with(config, "", |_| {}).await;
        let mut screen =
            Screen::run(&hop.command(&["-t", "via", "bash", "-c", &format!("'{line}'")]));
        screen.expect("recorded").await;
        // From here on neither side echoes, and the client's terminal is in raw mode.
        screen.expect("ready").await;
        screen.type_line("hunter-sesame").await;
        screen.expect("got 13 letters").await;
        assert_eq!(screen.end().await.0, Some(0));
        let command = hop.recordings().await.remove(0).command.unwrap();
        let cast = hop.recorded(&command).await;
        assert!(cast.output().contains("got 13 letters"));
        assert_eq!(cast.input(), if recorded { "hunter-sesame\r" } else { "" });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_a_recording_nothing_runs() {
    // A file system of its own, whose room nobody else uses up.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let free = rustix::fs::statvfs(folder.path()).unwrap();
    let least = (free.f_bavail * free.f_frsize - (256 << 20)) >> 20;
    let config =
        format!("[record]\nfolder = \"{}\"\nmin_free = \"{least} MiB\"\n", folder.path().display());
    let hop = Hop::start_with(&config, "", |_| {}).await;
    let line = "echo up; while read line; do echo $line; done";
    let mut child = hop.running(&["via", line]).await;
    let mut stdin = child.stdin.take().unwrap();
    let filler = std::fs::File::create(folder.path().join("filler")).unwrap();
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&filler, flags, 0, 512 << 20).unwrap();
    // What is said from now on cannot be recorded.
    let mut echoed = BufReader::new(child.stdout.take().unwrap()).lines();
    let until_the_end = async {
        // Said again when the last one came back; none comes back when the session is over.
        while stdin.write_all(b"more\n").await.is_ok()
            && echoed.next_line().await.unwrap().is_some()
        {}
    };
    tokio::time::timeout(crate::support::PATIENCE, until_the_end).await.unwrap();
    let done = child.wait_with_output().await.unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    let why = "this session ends, since it can no longer be recorded: tell your administrator";
    assert_eq!(done.status.code(), Some(255));
    assert!(err.contains(&format!("sallyport: {why}")), "{err}");
    eventually("its end is written down", async || {
        let ends = hop.bastion.kinds("recording-ended").await;
        ends.first().filter(|end| end["outcome"].as_str().unwrap().starts_with(why)).map(|_| ())
    })
    .await;
    let marker = hop.client.path("ran");
    let ran = hop.ssh(&["via", &format!("touch {}", marker.display())]).await;
    let why =
        "the bastion cannot record this session, so it does not begin: tell your administrator";
    assert_eq!((ran.code, ran.err), (Some(255), format!("sallyport: {why}\r\n")));
    assert!(!marker.exists());
    drop(filler);
    std::fs::remove_file(folder.path().join("filler")).unwrap();
    hop.ssh(&["via", "true"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_fills_the_disk_with_one_recording() {
    let hop = Hop::start_with("[record]\nmax_bytes = \"256 KiB\"\n", "", |_| {}).await;
    let mut other = hop.running(&["via", "echo up; cat"]).await;
    let ran = hop.ssh(&["via", "yes"]).await;
    assert_eq!(ran.code, Some(255));
    let why = "this session ends, since its recording takes 262144 bytes, as much as one may";
    assert_eq!(ran.err, format!("sallyport: {why}\r\n"));
    let cast = hop.recorded("yes").await;
    let outcome = cast.row.outcome.clone().unwrap();
    assert!(outcome.starts_with(&format!("{why}; not whole: ")), "{outcome}");
    let output = cast.output();
    assert!(output.len() > 50_000 && output.len() < 256 << 10, "{}", output.len());
    assert!(output.starts_with("y\ny\n") && ran.text().starts_with(&output), "it is the beginning");
    let fields = [("recording", cast.row.id.as_str()), ("user", "alice")];
    let full = hop.bastion.event("recording-full", &fields).await;
    assert_eq!(full["max"], 256 << 10);
    // Other sessions go on.
    drop(other.stdin.take());
    assert!(ended(&mut other).await.success());
    hop.ssh(&["via", "true"]).await.ok();

    // Where it was chosen, the session goes on, and that is told as well.
    let config = "[record]\nmax_bytes = \"256 KiB\"\nstrict = false\n";
    let hop = Hop::start_with(config, "", |_| {}).await;
    let ran = hop.ssh(&["via", "yes | head -c 2000000"]).await.ok();
    assert_eq!(ran.out.len(), 2_000_000);
    let outcome = hop.recorded("yes | head -c 2000000").await.row.outcome.unwrap();
    assert!(outcome.starts_with("exit status 0; not whole: "), "{outcome}");
    assert_eq!(hop.bastion.event("recording-full", &[("user", "alice")]).await["max"], 256 << 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_fills_the_disk_with_many_recordings() {
    let hop = Hop::start_with("[record]\nmax_bytes_per_account = \"256 KiB\"\n", "", |_| {}).await;
    let much = "yes | head -c 60000; echo up; cat";
    let start = async |hop: &Hop| {
        let mut ssh = hop.command(&["via", much]).stdin(std::process::Stdio::piped()).spawn();
        let out = ssh.as_mut().unwrap().stdout.as_mut().unwrap();
        let mut said = vec![0; 60_003];
        tokio::time::timeout(PATIENCE, out.read_exact(&mut said)).await.unwrap().unwrap();
        ssh.unwrap()
    };
    let mut other = start(&hop).await;
    let ran = hop.ssh(&["via", "yes"]).await;
    assert_eq!(ran.code, Some(255));
    let why = "this session ends, since the recordings of your sessions take 262144 bytes, as much as \
               they may while they go on";
    assert_eq!(ran.err, format!("sallyport: {why}\r\n"));
    let cast = hop.recorded("yes").await;
    let outcome = cast.row.outcome.clone().unwrap();
    assert!(outcome.starts_with(&format!("{why}; not whole: ")), "{outcome}");
    assert!(cast.output().len() > 30_000 && ran.text().starts_with(&cast.output()));
    let fields = [("recording", cast.row.id.as_str()), ("user", "alice")];
    let full = hop.bastion.event("account-recordings-full", &fields).await;
    assert_eq!(full["max"], 256 << 10);
    // What is finished makes room again.
    drop(other.stdin.take());
    assert!(ended(&mut other).await.success());
    hop.ssh(&["via", "true"]).await.ok();

    // Where sessions go on that cannot be recorded, none begins beside one.
    let config = "[record]\nmax_bytes_per_account = \"32 KiB\"\nstrict = false\n";
    let hop = Hop::start_with(config, "", |_| {}).await;
    let mut other = start(&hop).await;
    hop.bastion.event("account-recordings-full", &[("user", "alice")]).await;
    let ran = hop.ssh(&["via", "true"]).await;
    let why = "this session does not begin, since the recordings of your sessions take 32768 bytes, as \
               much as they may while they go on: end one of them first";
    assert_eq!((ran.code, ran.err), (Some(255), format!("sallyport: {why}\r\n")));
    let refused = [("user", "alice"), ("what", "exec"), ("reason", "recordings-full")];
    hop.bastion.event("use-refused", &refused).await;
    drop(other.stdin.take());
    assert!(ended(&mut other).await.success());
    hop.recorded(much).await;
    hop.ssh(&["via", "true"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_is_killed_leaves_a_readable_recording() {
    // Everything is set up by a bastion of the test's own; the real one takes it over.
    let mut hop = Hop::start().await;
    let bob = hop.bastion.person("bob").await;
    hop.bastion.add_grant("bob", "db1", |_| {}).await;
    hop.leave().await;
    hop.bastion.stop().await;
    let port = free_port();
    let mut serve = command(env!("CARGO_BIN_EXE_sallyport"));
    serve.arg("--config").arg(hop.bastion.path("sallyport.toml")).arg("serve");
    serve.env("SALLYPORT_SERVER__LISTEN", format!("[\"127.0.0.1:{port}\"]"));
    serve.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut bastion = serve.spawn().unwrap();
    speaks_ssh(port).await;
    let client = Client::on_port(port, "bob").knows("db1", &hop.sshd);
    client.answers(&[PASSWORD, &code_at(&bob, Clock::System.now())]);
    let mut ssh = client.command("ssh", &["-J", "bastion", "db1", "echo up; cat"]);
    let mut ssh = ssh.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let folder = hop.bastion.path("data/recordings");
    let row = eventually("it is recorded", async || hop.recordings().await.pop()).await;
    let file = folder.join(&row.path);
    let up = Kind::Output("up\n".to_owned());
    eventually("the output is in the file", async || {
        file.exists().then(|| read(&file).1.contains(&up)).filter(|seen| *seen)
    })
    .await;
    bastion.kill().await.unwrap();
    assert!(!ended(&mut ssh).await.success());
    assert!(read(&file).1.contains(&up));

    // The next start closes it: packed, hashed, and said to be what it is.
    let mut again = serve.spawn().unwrap();
    let id = row.id.as_str();
    let end = hop.bastion.event("recording-ended", &[("recording", id)]).await;
    assert_eq!(end["outcome"], "interrupted: the bastion died");
    let row = hop.recordings().await.into_iter().find(|row| row.id == id).unwrap();
    let file = folder.join(&row.path);
    assert!(row.path.ends_with(".cast.zst") && row.ended_at.is_some(), "{row:?}");
    assert_eq!(digest(&file), end["sha256"].as_str().unwrap());
    assert!(read(&file).1.contains(&up));
    again.kill().await.unwrap();
}
