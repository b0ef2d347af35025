//! The table of what a session may do on a target in record mode: through each entrance and with
//! each client it ends as it does without the bastion.

use sallyport::recording::asciicast::Kind;

use crate::support::hop::{Hop, NOTICE, Ran};
use crate::support::ways::{ENTRANCES, PROGRAMS, Program, Reach, Way};
use crate::support::{PATIENCE, ended};

/// What is run with `HOST` for the target, its input, and how it has to end.
struct Case {
    /// As OpenSSH takes them.
    args: &'static [&'static str],
    input: Vec<u8>,
    /// OpenSSH's, and PuTTY's.
    codes: (i32, i32),
    /// What comes out; where that depends on the client only the ways are compared.
    out: Option<Vec<u8>>,
}

fn case(args: &'static [&'static str], input: impl Into<Vec<u8>>, code: i32, out: &str) -> Case {
    Case { args, input: input.into(), codes: (code, code), out: Some(out.into()) }
}

/// Whose output the client has a say in.
fn compared(args: &'static [&'static str], code: i32) -> Case {
    Case { args, input: Vec::new(), codes: (code, code), out: None }
}

/// What ends by a signal.
fn signalled(line: &'static [&'static str]) -> Case {
    Case { args: line, input: Vec::new(), codes: (255, 128), out: Some(Vec::new()) }
}

impl Case {
    /// The arguments, if `program` can be asked that: PuTTY keeps its options in saved sessions.
    fn args_for(&self, program: Program) -> Option<Vec<&'static str>> {
        if program == Program::OpenSsh {
            return Some(self.args.to_vec());
        }
        let word = |arg: &&'static str| if *arg == "-tt" { "-t" } else { *arg };
        let foreign = self.args.iter().any(|arg| ["-n", "-o"].contains(arg));
        (!foreign).then(|| self.args.iter().map(word).collect())
    }
}

/// Bytes of every kind, the same at each run.
pub fn noise(len: usize) -> Vec<u8> {
    let words = (0..len as u64 / 8 + 1).map(|n| (n ^ 0x5bd1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(|word| word.rotate_left(29).to_le_bytes()).take(len).collect()
}

fn cases() -> Vec<Case> {
    let lines: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    let long = format!("{}\n", "x".repeat(20_000));
    vec![
        // Exec, and how it ends.
        case(&["HOST", "exit 0"], "", 0, ""),
        case(&["HOST", "exit 7"], "", 7, ""),
        case(&["HOST", "exit 255"], "", 255, ""),
        case(&["HOST", "no-such-command"], "", 127, ""),
        signalled(&["HOST", "kill -TERM $$"]),
        signalled(&["HOST", "kill -KILL $$"]),
        signalled(&["HOST", "ulimit -c 0; kill -SEGV $$"]),
        // Standard error apart.
        case(&["HOST", "echo out; echo err >&2; exit 3"], "", 3, "out\n"),
        case(&["HOST", "seq 1 20000 >&2"], "", 0, ""),
        // Input, and its end.
        case(&["HOST", "cat; echo done"], "one\ntwo", 0, "one\ntwodone\n"),
        case(&["HOST", "cat >/dev/null; seq 1 1000"], noise(300_000), 0, &lines),
        case(&["HOST", "for i in $(seq 1 1000); do echo $i; done"], "", 0, &lines),
        case(&["-n", "HOST", "cat; echo done"], "unread", 0, "done\n"),
        // The status is told before the last of the output.
        case(&["HOST", "(sleep 0.3; echo late) & echo early; exit 5"], "", 5, "early\nlate\n"),
        // Nothing more comes, long before the status.
        case(&["HOST", "exec <&- >&- 2>&-; sleep 0.3; exit 6"], "", 6, ""),
        // Nobody reads all of the input.
        case(&["HOST", "head -c 5 | wc -c"], noise(3_000_000), 0, "5\n"),
        case(&["HOST", "exec <&-; seq 1 1000"], noise(3_000_000), 0, &lines),
        case(&["HOST", "head -c 20000 | tr -d '\\n' | sed 's/$/\\n/'"], long.trim(), 0, &long),
        // Shell.
        case(&["-T", "HOST"], "echo in a shell; exit 4\n", 4, "in a shell\n"),
        case(&["-T", "HOST"], "", 0, ""),
        // Environment.
        compared(&["HOST", "env | grep -v ^SSH_ | sort"], 0),
        case(&["-o", "SetEnv=LC_X=one:two", "HOST", "printenv LC_X"], "", 0, "one:two\n"),
        case(&["-o", "SetEnv=OTHER=1", "HOST", "printenv OTHER"], "", 1, ""),
        // Terminals.
        compared(&["-tt", "HOST", "stty -a; echo $TERM"], 0),
        case(&["-tt", "HOST", "echo err >&2; exit 9"], "", 9, "err\r\n"),
        case(&["-tt", "HOST", "read x; echo \"<$x>\""], "typed\n", 0, "typed\r\n<typed>\r\n"),
        signalled(&["-tt", "HOST", "kill -HUP $$"]),
        // Keepalives, of the client's and of the target's: who hears no answer to three goes.
        case(
            &[
                "-o",
                "ServerAliveInterval=1",
                "-o",
                "ServerAliveCountMax=3",
                "HOST",
                "sleep 5; echo",
            ],
            "",
            0,
            "\n",
        ),
    ]
}

/// `run` on all three ways, at the same time.
async fn compare(hop: &Hop, program: Program, args: &[&str], input: &[u8]) -> Ran {
    let run = async |way| hop.reach(program, way).run(args, input).await;
    let (direct, jump, chosen) = tokio::join!(run(Way::Direct), run(Way::Jump), run(Way::Selector));
    assert_eq!(jump, direct, "{program:?} by -J: {args:?}");
    assert_eq!(chosen, direct, "{program:?} by the selector: {args:?}");
    direct
}

async fn the_table(program: Program) {
    let conf = "ClientAliveInterval 1\nClientAliveCountMax 3";
    let hop = Hop::roomy(conf, |_| {}).await;
    let mut ran = 0;
    for case in cases() {
        let Some(args) = case.args_for(program) else { continue };
        let direct = compare(&hop, program, &args, &case.input).await;
        let code = if program == Program::OpenSsh { case.codes.0 } else { case.codes.1 };
        assert_eq!(direct.code, Some(code), "{program:?}: {args:?} {direct:?}");
        if let Some(out) = case.out {
            assert_eq!(direct.text(), String::from_utf8_lossy(&out), "{program:?}: {args:?}");
        }
        ran += 1;
    }
    // One recording for each session through the bastion, and none is left open.
    let rows = hop.recordings().await;
    assert_eq!(rows.len(), 2 * ran);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_as_they_would_be_without_the_bastion() {
    the_table(Program::OpenSsh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_putty_are_as_they_would_be_without_the_bastion() {
    the_table(Program::Plink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_refuses_is_said() {
    let hop = Hop::roomy("", |_| {}).await;
    for program in PROGRAMS {
        let run = async |way| hop.reach(program, way).run(&["-s", "HOST", "nonsense"], b"").await;
        run(Way::Direct).await.failed();
        for way in ENTRANCES {
            let ran = run(way).await;
            assert_eq!(ran.code, Some(255), "{ran:?}");
            assert_eq!(ran.err, "sallyport: the target refused the nonsense request\r\n");
        }
    }
    let fields = [("outcome", "the target refused the nonsense request")];
    hop.bastion.event("recording-ended", &fields).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_the_same_on_both_sides_and_keys_change_on_the_way() {
    // New keys after every megabyte, by the client and by the target; PuTTY is told so in its saved
    // sessions.
    let hop = Hop::roomy("RekeyLimit 1M", |_| {}).await;
    let input = noise(5_000_000);
    for program in PROGRAMS {
        let rekey: &[&str] =
            if program == Program::OpenSsh { &["-o", "RekeyLimit=1M"] } else { &[] };
        let args = [rekey, &["HOST", "cat; cat /bin/sh >&2"]].concat();
        let direct = compare(&hop, program, &args, &input).await;
        assert!(direct.out == input, "{:?} {}", direct.code, direct.out.len());
    }
    assert_eq!(hop.bastion.bastion.budget.held(), 0);
}

/// Somebody's terminal, before and after it was made larger, and what its modes are.
async fn terminal(reach: Reach<'_>) -> String {
    // Ends when the size is the new one, or with the connection.
    let line = "stty size; until [ \"$(stty size)\" = '40 100' ]; do sleep 0.05; done; echo larger";
    let mut screen = reach.screen(&["-t", "HOST", line]).await;
    screen.expect("24 80").await;
    screen.resize(40, 100).await;
    screen.expect("larger").await;
    assert_eq!(screen.end().await.0, Some(0), "{reach:?}");

    // What is typed to interrupt a program is a signal there.
    let line = "trap 'echo stopped; exit 3' INT; echo ready; while :; do sleep 0.1; done";
    let mut screen = reach.screen(&["-t", "HOST", line]).await;
    screen.expect("ready").await;
    screen.type_line("\x03").await;
    screen.expect("stopped").await;
    assert_eq!(screen.end().await.0, Some(3), "{reach:?}");

    let look = "clear; stty -a; echo \"<$TERM>\"; exit 6";
    let screen = reach.screen(&["-t", "HOST", look]).await;
    let (code, text) = screen.end().await;
    assert_eq!(code, Some(6), "{reach:?}: {text}");
    let text = text.replace("to db1 ", "to 127.0.0.1 ");
    text.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_passed_on_with_its_modes_and_sizes() {
    let hop = Hop::roomy("", |_| {}).await;
    for program in PROGRAMS {
        let direct = terminal(hop.reach(program, Way::Direct)).await;
        assert!(direct.contains("rows 24; columns 80") && direct.contains("<xterm"), "{direct}");
        for way in ENTRANCES {
            assert_eq!(terminal(hop.reach(program, way)).await, direct, "{program:?} by {way:?}");
        }
    }
    let rows = hop.recordings().await.into_iter();
    let rows: Vec<_> =
        rows.filter(|row| row.command.as_deref().unwrap().contains("until")).collect();
    assert_eq!(rows.len(), ENTRANCES.len() * PROGRAMS.len());
    for row in rows {
        let cast = hop.cast(row);
        assert_eq!((cast.header.width, cast.header.height), (80, 24));
        assert!(cast.header.env["TERM"].starts_with("xterm"));
        assert!(
            cast.events.contains(&Kind::Resize { columns: 100, rows: 40 }),
            "{:?}",
            cast.events
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_told_that_they_are_recorded() {
    let hop = Hop::roomy("", |_| {}).await;
    for program in PROGRAMS {
        for way in ENTRANCES {
            let mut screen = hop.reach(program, way).screen(&["HOST"]).await;
            screen.expect(NOTICE.trim()).await;
            screen.type_line("echo $((6 * 7))-$(tty)").await;
            screen.expect("42-/dev/pts/").await;
            screen.type_line("exit 11").await;
            assert_eq!(screen.end().await.0, Some(11), "{program:?} by {way:?}");
        }
    }
    // And without a terminal; only once on a connection.
    for reach in hop.reaches() {
        let child = reach.start(&["HOST", "echo in"]).await;
        let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        let err = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.stdout, b"in\n", "{reach:?}: {err}");
        // PuTTY shows banners only to who types.
        let hides = reach.program == Program::Plink && reach.way == Way::Jump;
        assert_eq!(err.matches(NOTICE.trim()).count(), usize::from(!hides), "{reach:?}: {err}");
    }
    let (mut master, path) = hop.shared_on(Way::Selector, &[]).await;
    let mut said = String::new();
    for _ in 0..3 {
        let done = hop.command(&["-S", &path, "chosen", "true"]).output().await.unwrap();
        said += &String::from_utf8_lossy(&done.stderr);
    }
    assert_eq!(said, NOTICE);
    hop.ssh(&["-O", "exit", "-S", &path, "chosen"]).await.ok();
    ended(&mut master).await;

    // A terminal of no size is recorded as one of the usual size.
    hop.ssh(&["-tt", "via", "stty size"]).await.ok();
    let cast = hop.recorded("stty size").await;
    assert_eq!((cast.header.width, cast.header.height), (80, 24));
}
