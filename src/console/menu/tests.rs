//! The menu as it is seen on a terminal.

use proptest::prelude::*;

use super::*;

pub(super) fn entry(name: &str, address: &str) -> Entry {
    Entry {
        name: name.into(),
        address: address.into(),
        accounts: vec!["root".into()],
        last_account: None,
        labels: Vec::new(),
        mode: Mode::Record,
        holds_now: true,
        remark: String::new(),
        command: format!("ssh -J alice@bastion {name}"),
    }
}

pub(super) fn entries() -> Vec<Entry> {
    let prod = || vec!["env=prod".to_owned()];
    vec![
        Entry { labels: prod(), ..entry("web-prod-1", "10.0.0.1:22") },
        Entry { labels: prod(), ..entry("web-prod-2", "10.0.0.2:22") },
        Entry {
            labels: prod(),
            accounts: vec!["deploy".into(), "root".into()],
            ..entry("db1", "10.0.0.5:22")
        },
        Entry { accounts: Vec::new(), ..entry("db10", "10.0.0.6:22") },
        Entry {
            holds_now: false,
            remark: "Mon-Fri 08:00-18:00 Europe/Berlin".into(),
            ..entry("olddb1", "10.0.0.7:22")
        },
        Entry { mode: Mode::Tunnel, ..entry("pg1", "10.0.0.8:5432") },
        Entry { labels: vec!["site=K\u{f6}ln".into()], ..entry("router", "[2001:db8::1]:22") },
    ]
}

fn facts() -> Facts {
    Facts {
        user: "alice".into(),
        host: "bastion.example.org".into(),
        authenticator_since: Some("2026-05-02".into()),
        recovery_codes_left: 8,
        last_drift: None,
        when_empty: String::new(),
    }
}

/// Somebody at a terminal.
struct Seat {
    menu: Menu,
    keys: Keys,
    terminal: vt100::Parser,
}

impl Seat {
    fn new(columns: u16, rows: u16, entries: Vec<Entry>) -> Self {
        let mut terminal = vt100::Parser::new(rows, columns, 0);
        terminal.process(b"$ ssh alice@bastion\r\n\x1b[1mwelcome");
        let mut seat = Self {
            menu: Menu::new(facts(), entries, (columns, rows)),
            keys: Keys::default(),
            terminal,
        };
        seat.draw();
        seat
    }

    fn usual() -> Self {
        Self::new(80, 24, entries())
    }

    fn draw(&mut self) {
        let bytes = self.menu.draw();
        self.terminal.process(&bytes);
    }

    /// Types, and gives what came of the last key.
    fn types(&mut self, bytes: &str) -> Outcome {
        let mut keys = self.keys.push(bytes.as_bytes());
        keys.extend(self.keys.flush());
        let mut last = Outcome::Stay;
        for key in keys {
            last = self.menu.key(key);
            self.draw();
        }
        last
    }

    /// Types, whatever comes of it.
    fn press(&mut self, bytes: &str) {
        drop(self.types(bytes));
    }

    fn lines(&self) -> Vec<String> {
        let (_, columns) = self.terminal.screen().size();
        self.terminal.screen().rows(0, columns).map(|row| row.trim_end().to_owned()).collect()
    }

    fn line(&self, n: usize) -> String {
        self.lines()[n].clone()
    }

    fn screen(&self) -> String {
        self.lines().join("\n")
    }

    /// The line that is marked as selected.
    fn selected(&self) -> String {
        let marked: Vec<String> =
            self.lines().into_iter().filter(|line| line.starts_with('>')).collect();
        assert_eq!(marked.len(), 1, "{}", self.screen());
        marked[0].clone()
    }

    fn cursor(&self) -> Option<(u16, u16)> {
        let screen = self.terminal.screen();
        (!screen.hide_cursor()).then(|| screen.cursor_position())
    }

    /// What a terminal shows on which the same state is drawn for the first time.
    fn fresh(&self) -> vt100::Parser {
        let mut menu = self.menu.clone();
        menu.screen = None;
        let (rows, columns) = self.terminal.screen().size();
        let mut terminal = vt100::Parser::new(rows, columns, 0);
        terminal.process(&menu.draw());
        terminal
    }
}

fn same(one: &vt100::Screen, two: &vt100::Screen) -> Result<(), String> {
    let state = |screen: &vt100::Screen| {
        (screen.hide_cursor(), (!screen.hide_cursor()).then(|| screen.cursor_position()))
    };
    if state(one) != state(two) {
        return Err(format!("cursor {:?} {:?}", state(one), state(two)));
    }
    let (rows, columns) = one.size();
    for row in 0..rows {
        for column in 0..columns {
            let (a, b) = (one.cell(row, column).unwrap(), two.cell(row, column).unwrap());
            // A cell that was never written is as empty as one with a space.
            let text = |cell: &vt100::Cell| match cell.contents() {
                "" if !cell.is_wide_continuation() => " ".to_owned(),
                contents => contents.to_owned(),
            };
            // Colour and weight are not seen on a space.
            let looks = |cell: &vt100::Cell| match text(cell).as_str() {
                " " => (vt100::Color::Default, false, cell.inverse()),
                _ => (cell.fgcolor(), cell.bold(), cell.inverse()),
            };
            if text(a) != text(b) || (looks(a) != looks(b) && !a.is_wide_continuation()) {
                return Err(format!("{row},{column}: {a:?} {b:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn the_first_screen() {
    let seat = Seat::usual();
    let expected = "\
Sallyport  alice@bastion.example.org                                   7 targets
Type to filter:                                                           1 of 7
   TARGET      ADDRESS           ACCOUNTS      NOTES
>  web-prod-1  10.0.0.1:22       root          env=prod
   web-prod-2  10.0.0.2:22       root          env=prod
   db1         10.0.0.5:22       deploy, root  env=prod
   db10        10.0.0.6:22       any
 ! olddb1      10.0.0.7:22       root          not now: Mon-Fri 08:00-18:00 Eur~
   pg1         10.0.0.8:5432     -             tunnel
   router      [2001:db8::1]:22  root          site=K\u{f6}ln










web-prod-1  10.0.0.1:22  env=prod
ssh -J alice@bastion web-prod-1
8 recovery codes are left.  Authenticator bound since 2026-05-02.
Enter connects   ? help   o my authenticator   s my sessions   Esc leaves";
    assert_eq!(seat.screen(), expected);
    assert_eq!(seat.cursor(), Some((1, 16)));
    assert!(seat.terminal.screen().alternate_screen());
    assert!(seat.terminal.screen().cell(3, 0).unwrap().inverse());
}

#[test]
fn other_sizes() {
    let mut seat = Seat::new(20, 5, entries());
    let expected = "\
Filter:       1 of 7
>  web-prod-1
   web-prod-2
   db1
Enter  ? help  Esc";
    assert_eq!(seat.screen(), expected);
    assert_eq!(seat.cursor(), Some((0, 8)));
    seat.press("old");
    assert_eq!(seat.selected(), ">! olddb1");
    let seat = Seat::new(120, 40, entries());
    assert!(
        seat.line(7).ends_with("not now: Mon-Fri 08:00-18:00 Europe/Berlin"),
        "{}",
        seat.line(7)
    );
    assert_eq!(seat.line(37), "ssh -J alice@bastion web-prod-1");
    for (columns, rows) in [(1, 1), (300, 100), (0, 0), (u16::MAX, u16::MAX), (40, 10), (60, 3)] {
        let mut menu = Menu::new(facts(), entries(), (columns, rows));
        assert!(!menu.draw().is_empty());
    }
}

#[test]
fn typing_filters_and_esc_goes_one_step_back() {
    let mut seat = Seat::usual();
    assert_eq!(seat.types("DB1"), Outcome::Stay);
    assert_eq!(seat.line(1), format!("Filter: DB1{:>69}", "1 of 3"));
    assert_eq!(seat.cursor(), Some((1, 11)));
    assert!(seat.selected().contains("db1  "));
    assert!(seat.line(23).starts_with("Enter connects  ? help  Ctrl-O my authenticator"));
    seat.press("\x1b[B");
    assert!(seat.selected().contains("db10"));
    seat.press("0 x\x7f");
    assert!(seat.selected().contains("db10"));
    seat.press("\x17zzz");
    assert!(seat.screen().contains("No target matches. Esc clears the filter."));
    assert_eq!(seat.types("\r"), Outcome::Stay);
    assert_eq!(seat.types("\x1b"), Outcome::Stay);
    assert!(seat.line(1).starts_with("Type to filter:"));
    assert_eq!(seat.types("\x1b"), Outcome::Quit);
    for (keys, outcome) in [
        ("\x03", Outcome::Quit),
        ("\x04", Outcome::Quit),
        ("d\x03", Outcome::Stay),
        ("d\x03\x03", Outcome::Quit),
        ("d\x04", Outcome::Stay),
        ("d\x15\x04", Outcome::Quit),
    ] {
        assert_eq!(Seat::usual().types(keys), outcome, "{keys:?}");
    }
}

#[test]
fn o_s_and_q_are_commands_only_as_the_first_letter() {
    for (keys, outcome) in [
        ("o", Outcome::Show(Page::Authenticator)),
        ("s", Outcome::Show(Page::Sessions)),
        ("\x0f", Outcome::Show(Page::Authenticator)),
        ("d\x13", Outcome::Show(Page::Sessions)),
        ("do", Outcome::Stay),
        ("q", Outcome::Stay),
        ("qq", Outcome::Quit),
        ("dqq", Outcome::Stay),
        ("/s", Outcome::Stay),
    ] {
        assert_eq!(Seat::usual().types(keys), outcome, "{keys:?}");
    }
    // Whoever types a name gets it, whether the page came up meanwhile or not.
    for page in [true, false] {
        let mut seat = Seat::usual();
        assert_eq!(seat.types("o"), Outcome::Show(Page::Authenticator));
        if page {
            seat.menu.show("My authenticator", ["Bound."]);
            seat.draw();
            assert_eq!(seat.cursor(), None);
        }
        seat.press("ld");
        assert!(seat.line(1).starts_with("Filter: old "), "{}", seat.screen());
        assert!(seat.selected().contains("olddb1"));
    }
    let mut seat = Seat::usual();
    seat.press("qa");
    assert!(seat.line(1).starts_with("Filter: qa"));
    let mut seat = Seat::usual();
    seat.press("/s");
    assert!(seat.line(1).starts_with("Filter: s "));
    // q leaves a page, unless a name goes on like that.
    let mut seat =
        Seat::new(80, 24, vec![entry("sql1", "10.0.0.1:22"), entry("db1", "10.0.0.2:22")]);
    for (first, filter) in [("s", "Filter: sq "), ("\x13", "Type to filter:")] {
        seat.press(first);
        seat.menu.show("My sessions", ["None."]);
        seat.press("q");
        assert!(seat.line(1).starts_with(filter), "{}", seat.screen());
        seat.press("\x15");
    }
}

#[test]
fn letters_on_the_authenticators_page_change_it() {
    use super::super::OwnVerb;
    for (key, verb) in [
        ("n", OwnVerb::Rebind),
        ("C", OwnVerb::Codes),
        ("U", OwnVerb::Unbind), // There is a "router": a "u" could go on with its name.
        ("P", OwnVerb::Passwd),
    ] {
        for open in ["o", "\x0f"] {
            let mut seat = Seat::usual();
            assert_eq!(seat.types(open), Outcome::Show(Page::Authenticator));
            seat.menu.show_page(Page::Authenticator, "Your authenticator", ["Bound."]);
            assert_eq!(seat.types(key), Outcome::Own(verb.clone()), "{open:?} {key}");
            // Back from there it is still on the screen.
            assert!(seat.screen().contains("Your authenticator"));
        }
    }
    // Not on another page, and not if a name goes on like that; a capital is in no name.
    let mut seat =
        Seat::new(80, 24, vec![entry("oncall1", "10.0.0.1:22"), entry("db1", "10.0.0.2:22")]);
    seat.press("s");
    seat.menu.show_page(Page::Sessions, "Your sessions", ["None."]);
    assert_eq!(seat.types("u"), Outcome::Stay);
    seat.press("\x15");
    for (key, outcome) in [("n", Outcome::Stay), ("N", Outcome::Own(OwnVerb::Rebind))] {
        assert_eq!(seat.types("o"), Outcome::Show(Page::Authenticator));
        seat.menu.show_page(Page::Authenticator, "Your authenticator", ["Bound."]);
        assert_eq!(seat.types(key), outcome, "{key}");
        if outcome == Outcome::Stay {
            seat.draw();
            assert!(seat.line(1).starts_with("Filter: on "), "{}", seat.screen());
        }
        seat.press("\x15");
    }
}

#[test]
fn enter_connects_and_asks_for_the_account_only_where_it_must() {
    let connect = |target: &str, account: &str| Outcome::Connect {
        target: target.into(),
        account: account.into(),
    };
    assert_eq!(Seat::usual().types("\r"), connect("web-prod-1", "root"));
    // Several: the first, unless another is chosen or typed.
    for (keys, outcome) in [
        ("db1\r\r", connect("db1", "deploy")),
        ("db1\r\x1b[B\r", connect("db1", "root")),
        ("db1\r\x1b[A\r", connect("db1", "root")),
        ("db1\r\t\t\r", connect("db1", "deploy")),
        ("db1\rroot\r", connect("db1", "root")),
        ("db1\rpostgres\r", Outcome::Stay),
        ("db1\rpostgres\r\x15root\r", connect("db1", "root")),
        // Any: one's own name, or root.
        ("db10\r\r", connect("db10", "alice")),
        ("db10\r\x1b[B\r", connect("db10", "root")),
        ("db10\rq?o\r", connect("db10", "q?o")),
        ("db10\r-x\r", Outcome::Stay),
        // A grant that does not hold is for the policy to refuse.
        ("old\r", connect("olddb1", "root")),
    ] {
        assert_eq!(Seat::usual().types(keys), outcome, "{keys:?}");
    }
    let mut seat = Seat::usual();
    seat.press("db1\r");
    assert_eq!(seat.line(1), "Account on db1 [deploy]:");
    assert_eq!(seat.line(22), "Granted: deploy, root");
    assert_eq!(seat.cursor(), Some((1, 25)));
    seat.press("postgres\r");
    assert_eq!(seat.line(22), "postgres is not granted; these are: deploy, root");
    assert_eq!(seat.types("\x1b"), Outcome::Stay);
    assert!(seat.line(1).starts_with("Filter: db1"));
    // What was used last is offered the next time, also after an update.
    seat.press("\rroot\r");
    seat.menu.update(entries());
    assert_eq!(seat.types("\r"), Outcome::Stay);
    assert_eq!(seat.line(1), "Account on db1 [root]:");
    // One's own name comes before the first.
    let accounts = vec!["root".to_owned(), "alice".to_owned()];
    let own = Entry { accounts, ..entry("x", "10.0.0.1:22") };
    assert_eq!(Seat::new(80, 24, vec![own]).types("\r\r"), connect("x", "alice"));
    // In a narrow terminal there is still room to type.
    let mut seat = Seat::new(20, 5, entries());
    seat.press("db1\rabcdefghijklmnopqrstuvwxyz");
    assert!(seat.line(0).ends_with("xyz"), "{}", seat.line(0));
    assert_eq!(seat.cursor(), Some((0, 19)));
}

#[test]
fn a_tunnel_is_explained() {
    let mut seat = Seat::usual();
    assert_eq!(seat.types("pg\r"), Outcome::Stay);
    assert_eq!(seat.line(0), "pg1: from your own computer");
    assert!(seat.lines().contains(&"ssh -J alice@bastion pg1".to_owned()));
    seat.press("\r");
    assert!(seat.selected().contains("pg1"));
}

#[test]
fn pages_scroll_and_lead_back() {
    let mut seat = Seat::usual();
    assert_eq!(seat.types("?"), Outcome::Stay);
    assert_eq!(seat.line(0), format!("Help{:>76}", "1-22 of 29"), "{}", seat.screen());
    assert_eq!(seat.cursor(), None);
    seat.press("\x1b[F");
    assert!(seat.line(0).ends_with("8-29 of 29"));
    assert!(seat.screen().contains("Without this menu:"));
    seat.press("\x1b[5~\x1b[A");
    assert!(seat.line(0).ends_with("1-22 of 29"));
    seat.press("q");
    assert!(seat.line(1).starts_with("Type to filter:"));
    for back in ["\x1b", "\r", "\x7f", "\x03", "\x04", "?", "\x1b[D"] {
        seat.press("?");
        assert_eq!(seat.types(back), Outcome::Stay);
        assert!(seat.line(1).starts_with("Type to filter:"), "{back:?}");
    }
    seat.press("?db");
    assert!(seat.line(1).starts_with("Filter: db "));
    // An end further down than there are lines does not outlive a larger screen.
    seat.press("?\x1b[F");
    seat.menu.resize(120, 40);
    assert!(seat.menu.clone().draw().windows(4).any(|w| w == b"Help"));
    assert!(matches!(&seat.menu.view, View::Text(Text { top: 0, .. })));
}

#[test]
fn long_lists_scroll() {
    let many = (0..100).map(|n| entry(&format!("host{n:02}"), "10.0.0.1:22")).collect();
    let mut seat = Seat::new(80, 24, many);
    for (keys, name) in [
        ("\x1b[A", "host00"),
        ("\x1b[B\x1b[B", "host02"),
        ("\x1b[6~", "host18"),
        ("\x1b[6~\x1b[6~", "host50"),
        ("\x1b[5~", "host34"),
        ("\x1b[4~", "host99"),
        ("\x1b[B", "host99"),
        ("\x1bOA\x10", "host97"),
        ("\x1b[1~\t", "host01"),
        ("\x1b[Z", "host00"),
    ] {
        seat.press(keys);
        assert!(seat.selected().contains(name), "{keys:?} {}", seat.screen());
    }
    // A smaller screen still shows what is selected.
    seat.press("\x1b[B\x1b[6~");
    seat.menu.resize(80, 5);
    seat.terminal.screen_mut().set_size(5, 80);
    seat.draw();
    assert!(seat.selected().contains("host17"));
}

#[test]
fn facts_and_notices() {
    let mut facts = Facts { recovery_codes_left: 1, last_drift: Some(-90), ..facts() };
    let mut seat = Seat::usual();
    seat.menu.update_facts(facts.clone());
    seat.draw();
    assert_eq!(
        seat.line(22),
        "Your phone's clock was 90 s slow when a code last failed.  1 recovery code is l~"
    );
    facts.authenticator_since = None;
    facts.last_drift = None;
    seat.menu.update_facts(facts.clone());
    seat.draw();
    assert_eq!(seat.line(22), "");
    seat.menu.say("db1 did not answer within 10 s\x1b[2J");
    seat.draw();
    assert_eq!(seat.line(22), "db1 did not answer within 10 s\\u{1b}[2J");
    seat.press("\x1b[B");
    assert_eq!(seat.line(22), "");
    let mut seat = Seat::new(80, 24, Vec::new());
    assert_eq!(seat.line(3), "No target is granted to you yet: ask your administrator.");
    assert_eq!(seat.types("\r"), Outcome::Stay);
    seat.menu.update_facts(Facts { when_empty: "use 'grant add'".into(), ..facts });
    seat.draw();
    assert_eq!(seat.line(3), "No target is granted to you yet: use 'grant add'.");
}

#[test]
fn wide_and_long_names_are_cut_where_a_character_ends() {
    let wide = "\u{65e5}\u{672c}".repeat(40);
    let long = format!("{}\u{e9}", "long-".repeat(40));
    let seat = Seat::new(80, 24, vec![entry(&wide, "a:22"), entry(&long, &long), entry("b", "c")]);
    // Thirty columns for a name, of which the last is for the mark, and characters take two.
    let name = "\u{65e5}\u{672c}".repeat(7);
    assert_eq!(seat.line(3), format!(">  {name}~   a:22                     root"));
    let (name, address) = ("long-".repeat(6), "long-".repeat(5));
    let cut = format!("   {}~  {}~", &name[..29], &address[..22]);
    assert_eq!(seat.line(4), format!("{cut}  root"));
    assert_eq!(seat.line(5), format!("   b{}c{}root", " ".repeat(31), " ".repeat(24)));
    let narrow = Seat::new(8, 5, vec![entry(&wide, "a:22")]);
    assert_eq!(narrow.line(1), ">  \u{65e5}\u{672c}~");
}

#[test]
fn leaving_shows_what_was_there_before() {
    let mut before = vt100::Parser::new(24, 80, 0);
    before.process(b"$ ssh alice@bastion\r\n\x1b[1mwelcome");
    let mut seat = Seat::usual();
    seat.press("db1\r\x1b[B");
    let bytes = seat.menu.leave();
    seat.terminal.process(&bytes);
    let after = seat.terminal.screen();
    same(after, before.screen()).unwrap();
    assert!(!after.alternate_screen() && after.bold() && !after.hide_cursor());
    assert_eq!(after.cursor_position(), (1, 7));
    assert!(!after.application_cursor() && !after.bracketed_paste());
    assert_eq!(seat.menu.leave(), b"");
    // And it can be drawn again, whole.
    seat.draw();
    same(seat.terminal.screen(), seat.fresh().screen()).unwrap();
    assert!(seat.terminal.screen().alternate_screen());
    assert!(Menu::new(facts(), entries(), (80, 24)).leave().is_empty());
}

#[test]
fn kinds_of_terminals() {
    for term in ["xterm-256color", "xterm", "vt100", "putty", "linux", "screen", "ghostty", "ansi"]
    {
        assert!(Menu::suits(term), "{term}");
    }
    for term in ["", "dumb", "DUMB", "emacs", "unknown", "vt52"] {
        assert!(!Menu::suits(term), "{term}");
    }
}

#[test]
fn the_menu_can_move_between_threads() {
    fn moves<T: Send + 'static>(_: T) {}
    moves((Menu::new(facts(), entries(), (80, 24)), Keys::default()));
}

/// Text that may be in a name, and much that had better not be.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9.-]{0,12}",
        "[a-z\u{65e5}\u{672c}\u{e9}\u{301} \u{1f600}\u{ff9e}\u{fe0f}]{0,40}",
        "[\u{0}-\u{ff}\u{200b}-\u{202e}]{0,20}",
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let texts = || proptest::collection::vec(text(), 0..3);
    (text(), text(), texts(), texts(), text(), any::<bool>(), any::<bool>()).prop_map(
        |(name, address, accounts, labels, remark, holds_now, tunnel)| Entry {
            accounts,
            labels,
            remark: remark.clone(),
            holds_now,
            mode: if tunnel { Mode::Tunnel } else { Mode::Record },
            last_account: Some(remark),
            ..entry(&name, &address)
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Bytes(Vec<u8>),
    Pause,
    Resize(u16, u16),
    Show(Vec<String>),
    Say(String),
    Update(Vec<Entry>),
    Leave,
}

fn steps(columns: std::ops::Range<u16>, rows: std::ops::Range<u16>) -> impl Strategy<Value = Step> {
    let key = prop::sample::select(vec![
        "\r", "\x1b[A", "\x1b[B", "\x1b[5~", "\x1b[6~", "\x1b[H", "\x1b[F", "?", "o", "s", "d",
        "1", "w", "\x7f", "\x15", "\x17", "\x0c", "\x03", " ", "\u{65e5}", "\u{3000}", "\t",
    ]);
    prop_oneof![
        8 => key.prop_map(|key| Step::Bytes(key.as_bytes().to_vec())),
        2 => proptest::collection::vec(any::<u8>(), 0..12).prop_map(Step::Bytes),
        2 => Just(Step::Pause),
        2 => (columns, rows).prop_map(|(columns, rows)| Step::Resize(columns, rows)),
        1 => proptest::collection::vec(text(), 0..40).prop_map(Step::Show),
        1 => text().prop_map(Step::Say),
        1 => proptest::collection::vec(any_entry(), 0..8).prop_map(Step::Update),
        1 => Just(Step::Leave),
    ]
}

impl Seat {
    fn take(&mut self, step: Step) {
        match step {
            Step::Bytes(bytes) => {
                for key in self.keys.push(&bytes) {
                    drop(self.menu.key(key));
                }
            }
            Step::Pause => {
                for key in self.keys.flush() {
                    drop(self.menu.key(key));
                }
            }
            Step::Resize(columns, rows) => {
                self.terminal.screen_mut().set_size(rows, columns);
                self.menu.resize(columns, rows);
            }
            Step::Show(lines) => self.menu.show("title", lines),
            Step::Say(text) => self.menu.say(&text),
            Step::Update(entries) => self.menu.update(entries),
            Step::Leave => {
                let bytes = self.menu.leave();
                self.terminal.process(&bytes);
            }
        }
    }
}

/// Whether these are only the sequences that are meant to be there, and text.
fn is_plain(bytes: &[u8]) -> bool {
    let text = std::str::from_utf8(bytes).unwrap();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\x1b') {
        if before.contains(crate::domain::is_unsafe) {
            return false;
        }
        let Some(after) = after.strip_prefix('[') else { return false };
        let known = ["?1049h", "?1049l", "?25h", "?25l", "2J", "H"];
        if let Some(known) = known.iter().find(|known| after.starts_with(**known)) {
            rest = &after[known.len()..];
            continue;
        }
        let parameters = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        let Some(next) = parameters.strip_prefix(['H', 'm']) else { return false };
        rest = next;
    }
    !rest.contains(crate::domain::is_unsafe)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Drawing what changed shows the same as drawing all of it, after whatever happened.
    #[test]
    fn drawing_in_steps_is_drawing_at_once(
        entries in proptest::collection::vec(any_entry(), 0..40),
        columns in 2_u16..130,
        rows in 2_u16..45,
        steps in proptest::collection::vec(steps(2..130, 2..45), 0..25),
    ) {
        let mut seat = Seat::new(columns, rows, entries);
        for step in steps {
            seat.take(step.clone());
            let bytes = seat.menu.draw();
            prop_assert!(is_plain(&bytes), "{:?}", String::from_utf8_lossy(&bytes));
            seat.terminal.process(&bytes);
            if let Err(difference) = same(seat.terminal.screen(), seat.fresh().screen()) {
                prop_assert!(false, "after {:?}: {}", step, difference);
            }
            prop_assert!(seat.menu.draw().is_empty());
        }
    }

    #[test]
    fn no_bytes_at_no_size_make_it_panic(
        entries in proptest::collection::vec(any_entry(), 0..120),
        columns in 1_u16..=300,
        rows in 1_u16..=100,
        steps in proptest::collection::vec(steps(0..301, 0..101), 0..25),
    ) {
        let mut menu = Menu::new(facts(), entries, (columns, rows));
        let mut keys = Keys::default();
        for step in steps {
            match step {
                Step::Bytes(bytes) => for key in keys.push(&bytes) {
                    if let Outcome::Connect { target, .. } = menu.key(key) {
                        prop_assert!(menu.list.has(&target));
                    }
                },
                Step::Resize(columns, rows) => menu.resize(columns, rows),
                Step::Show(lines) => menu.show("title", lines),
                Step::Update(entries) => menu.update(entries),
                _ => {}
            }
            prop_assert!(is_plain(&menu.draw()));
            prop_assert_eq!(menu.list.selected().is_some(), menu.list.left() > 0);
            let visible = menu.list.visible().filter(|(_, selected)| *selected).count();
            prop_assert_eq!(visible, usize::from(menu.list.left() > 0));
        }
    }
}
