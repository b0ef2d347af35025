//! What holds of every login, whatever a client sends: arbitrary dialogs against a model of the
//! store that keeps its promises (a step, a recovery code and a binding once; the epoch checked).

mod guesses;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use secrecy::ExposeSecret as _;

use super::super::account::{Otp, Remembered};
use super::super::recovery;
use super::first::MAX_OFFERS;
use super::*;
use crate::audit::RadiusVerdict;
use crate::domain::{Factor, RadiusMode, SecondFactor, SignInPolicy, TimeStep, any_rule};

const MAX_ANSWERS: u32 = 6;
const START: UnixTime = UnixTime(1_795_508_403_000);
const NEVER: TimeStep = TimeStep(i64::MIN);
const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
/// A key with which a login is remembered.
const LAPTOP: &str = "SHA256:laptop";
/// The serial number of the login CA's certificate that holds.
const HELD: i64 = 11;
const KEY: &str = "SHA256:alice";
const NEW: [&str; 2] = ["gleaming cactus 91 violin", "an unusual teapot 7 harbour"];

fn rules() -> Arc<Rules> {
    Arc::new(Rules {
        issuer: "Sallyport".into(),
        methods: Methods { password: true, publickey: true, keyboard_interactive: true },
        max_answers: MAX_ANSWERS,
        password: password::Rules { min_length: 12, min_score: 0 },
        radius: RadiusRules::default(),
        certificates: false,
    })
}

fn code_at(secret: &totp::Secret, step: i64) -> String {
    let bytes: [u8; 20] = secret.expose().try_into().unwrap();
    let builder = totp_rs::Builder::new().with_secret(totp_rs::Secret::new_stack(bytes));
    let step = u64::try_from(step).unwrap();
    builder.build().unwrap().generate(step * TimeStep::SECONDS).to_string()
}

/// Whether a code that is taken at `now` for `step` is what was typed.
fn is_code(typed: &str, secret: &totp::Secret, step: TimeStep, now: UnixTime) -> bool {
    (step.0 - now.step().0).abs() <= 1 && code_at(secret, step.0) == typed.trim()
}

/// How an account stands when the dialog begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unknown,
    Disabled,
    Locked,
    Closed,
    /// The window is open, and the password is one that was in use before: a phisher may have it.
    Reopened,
    Radius {
        mode: RadiusMode,
        one_time: bool,
    },
    Open {
        one_time: bool,
    },
    Bound {
        one_time: bool,
    },
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Unknown,
        Self::Disabled,
        Self::Locked,
        Self::Closed,
        Self::Reopened,
        Self::Radius { mode: RadiusMode::Code, one_time: false },
        Self::Radius { mode: RadiusMode::Code, one_time: true },
        Self::Radius { mode: RadiusMode::Both, one_time: false },
        Self::Radius { mode: RadiusMode::Challenge, one_time: false },
        Self::Open { one_time: true },
        Self::Open { one_time: false },
        Self::Bound { one_time: true },
        Self::Bound { one_time: false },
    ];

    fn is_bound(self) -> bool {
        matches!(self, Self::Disabled | Self::Locked | Self::Bound { .. })
    }

    fn factor(self) -> SecondFactor {
        match self {
            Self::Radius { mode, .. } => SecondFactor { factor: Factor::Radius, mode: Some(mode) },
            _ => SecondFactor::TOTP,
        }
    }

    fn is_one_time(self) -> bool {
        matches!(
            self,
            Self::Open { one_time: true }
                | Self::Bound { one_time: true }
                | Self::Radius { one_time: true, .. }
        )
    }
}

/// An account as the store has it.
#[derive(Debug)]
struct Row {
    account: Account,
    password: String,
    locked_until: Option<UnixTime>,
    recovery: Vec<SecretString>,
    unused: BTreeSet<String>,
    /// What RADIUS servers accepted, until when it is remembered.
    remembered: BTreeMap<String, UnixTime>,
}

impl Row {
    fn new(name: &str, kind: Kind, last_step: TimeStep) -> Self {
        let id = Id::from_random([name.len() as u8; Id::LEN]);
        let password = if kind.is_one_time() { "onetime12345" } else { "an old rusty bicycle" };
        let secret = totp::Secret::from_bytes(&[name.len() as u8; 20]);
        let recovery = if kind.is_bound() { recovery::generate().unwrap() } else { Vec::new() };
        let unused = hashes(&id, &recovery);
        let hour = |n: i64| UnixTime(START.0 + n * 3_600_000);
        let account = Account {
            name: name.parse().unwrap(),
            role: Role::User,
            factor: kind.factor(),
            sign_in: SignInPolicy::default(),
            epoch: 1,
            disabled: kind == Kind::Disabled,
            password: hash(password),
            one_time: kind.is_one_time(),
            password_binds: kind == Kind::Open { one_time: false },
            binding_until: match kind {
                Kind::Open { .. } | Kind::Reopened => Some(hour(1)),
                Kind::Closed => Some(hour(-1)),
                _ => None,
            },
            otp: kind.is_bound().then_some(Otp { secret, last_step }),
            keys: vec![KEY.into(), LAPTOP.into()],
            remembered: vec![laptop(SOURCE), laptop("203.0.113.1".parse().unwrap())],
            certificates: vec![(HELD, "SHA256:held".into())],
            recovery_left: 10,
            drift: None,
            id,
        };
        let locked_until = (kind == Kind::Locked).then(|| hour(1));
        let remembered = BTreeMap::new();
        Self { account, password: password.into(), locked_until, recovery, unused, remembered }
    }

    fn snapshot(&self) -> Account {
        let recovery_left = u32::try_from(self.unused.len()).unwrap();
        Account { recovery_left, ..self.account.clone() }
    }

    /// Uses a claim up once, as the store does.
    fn claim(&mut self, attempt: &Attempt, now: UnixTime) -> Result<Claimed, Refusal> {
        let same = self.account.epoch == attempt.epoch && !self.account.disabled;
        if !same {
            return Err(Refusal::Disabled);
        }
        if self.locked_until.is_some_and(|until| now < until) {
            return Err(Refusal::Locked);
        }
        match (&attempt.claim, &mut self.account.otp) {
            (Claim::Radius { codes, life }, _) => {
                self.remembered.retain(|_, until| now < *until);
                for code in codes.iter() {
                    if self.remembered.insert(code.to_owned(), now.plus(*life)).is_some() {
                        return Err(Refusal::ReplayedCode);
                    }
                }
            }
            (Claim::Nothing | Claim::NoCode, _) => {}
            (Claim::Certificate(serial), _) => assert_eq!(*serial, HELD),
            (Claim::Remembered(login), _) => assert_eq!(*login, laptop(SOURCE)),
            (Claim::Code(step), Some(otp)) if *step > otp.last_step => otp.last_step = *step,
            (Claim::Code(_), Some(_)) => return Err(Refusal::ReplayedCode),
            (Claim::Code(_), None) => panic!("a code without an authenticator"),
            (Claim::RecoveryCode(hash), Some(_)) if self.unused.remove(hash) => {}
            (Claim::RecoveryCode(_), _) => return Err(Refusal::WrongRecoveryCode),
        }
        Ok(Claimed { recovery_left: u32::try_from(self.unused.len()).unwrap() })
    }
}

fn laptop(source: IpAddr) -> Remembered {
    Remembered { id: Id::from_random([7; Id::LEN]), key: LAPTOP.into(), source }
}

fn hash(password: &str) -> String {
    format!("hash of {password}")
}

fn hashes(user: &Id, codes: &[SecretString]) -> BTreeSet<String> {
    let code = |code: &SecretString| recovery::normalize(code.expose_secret()).unwrap();
    codes.iter().map(|c| recovery::hash(user, &code(c))).collect()
}

/// What a connection has truly shown so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Shown {
    password: Option<String>,
    key: Option<String>,
    certificate: bool,
    /// Whether a wrong password came after them.
    wrong: bool,
    /// One of the login CA's, which stands for a code as well.
    login_certificate: bool,
}

impl Shown {
    /// What of it is right; without a code.
    fn factors(&self, row: &Row) -> Factors {
        let mut given = Factors::NONE;
        if self.password.as_ref() == Some(&row.password) {
            given = given.with(Factors::PASSWORD);
        }
        if self.key.as_ref().is_some_and(|key| row.account.keys.contains(key)) {
            given = given.with(Factors::KEY);
        }
        if self.key.as_deref() == Some(LAPTOP) {
            given = given.with(Factors::OTP);
        }
        if self.certificate {
            given = given.with(Factors::CERTIFICATE);
        }
        if self.login_certificate {
            given = given.with(Factors::CERTIFICATE).with(Factors::OTP);
        }
        given
    }
}

/// What works once and was used up by a connection's login.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Used {
    Step(String, i64),
    Recovery(String),
    Binding(String, i64),
    Radius(String, String, i64),
}

/// One connection, and what a bystander knows of it.
struct Conn {
    machine: Option<Machine>,
    user: Option<String>,
    shown: Shown,
    /// Used up by this login and not yet spent on an open session.
    used: Option<Used>,
    session: Option<i64>,
    asked: Option<Question>,
    typed: String,
    binding: Option<totp::Secret>,
    over: bool,
    evaluated: u32,
    rounds: u32,
    offers: u32,
    /// What the client sees, and what it has to wait for.
    transcript: Vec<String>,
}

impl Conn {
    fn new() -> Self {
        Self {
            machine: Some(Machine::new(rules(), SOURCE)),
            user: None,
            shown: Shown::default(),
            used: None,
            session: None,
            asked: None,
            typed: String::new(),
            binding: None,
            over: false,
            evaluated: 0,
            rounds: 0,
            offers: 0,
            transcript: Vec::new(),
        }
    }
}

struct World {
    now: UnixTime,
    rows: BTreeMap<String, Row>,
    spent: BTreeSet<Used>,
    accepted: u32,
    bound: u32,
    secrets: u8,
    /// Whether no RADIUS server answers, and what the last one said that did.
    dead: bool,
    said: Option<(RadiusVerdict, u32)>,
}

/// The secret of the tokens that RADIUS servers know.
const TOKEN: [u8; 20] = [9; 20];

impl World {
    fn new(kind: Kind) -> Self {
        let mut rows = BTreeMap::new();
        if kind != Kind::Unknown {
            rows.insert("alice".to_owned(), Row::new("alice", kind, NEVER));
        }
        let bob = Row::new("bob", Kind::Bound { one_time: false }, NEVER);
        rows.insert("bob".to_owned(), bob);
        Self {
            now: START,
            rows,
            spent: BTreeSet::new(),
            accepted: 0,
            bound: 0,
            secrets: 100,
            dead: false,
            said: None,
        }
    }

    /// The same, with these rules for alice.
    fn ruled_by(mut self, policy: &SignInPolicy) -> Self {
        if let Some(row) = self.rows.get_mut("alice") {
            row.account.sign_in = policy.clone();
        }
        self
    }

    /// Sends one request and does what the machine wants, as the server does.
    fn send(&mut self, conn: &mut Conn, user: &str, request: Request) -> Reply {
        let first = conn.user.get_or_insert_with(|| user.to_owned()).clone();
        let (was_over, offer) = (conn.over, matches!(request, Request::KeyOffer(_)));
        let key = match &request {
            Request::Key(key) | Request::KeyOffer(key) => Some(key.clone()),
            _ => None,
        };
        let asked = conn.asked.take();
        let mut code_typed = false;
        if let Request::Answers(answers) = &request {
            conn.typed = match answers.as_slice() {
                [one] => one.expose_secret().to_owned(),
                _ => String::new(),
            };
            code_typed = prompt_of(asked.as_ref()) == prompt::CODE;
        }
        if let (Request::Key(key), Some(row), true) =
            (&request, self.rows.get(&first), user == first && !conn.over)
            && row.account.keys.contains(key)
        {
            conn.shown.key = Some(key.clone());
            conn.shown.wrong = false;
        }
        if let (Request::Certificate(Ok(shown)), true) = (&request, user == first && !conn.over) {
            conn.shown.certificate |= !shown.by_login_ca;
            conn.shown.wrong = false;
            conn.shown.login_certificate |= shown.by_login_ca && shown.serial == HELD as u64;
        }
        let mut input = Input::Client(user.to_owned(), request);
        let reply = loop {
            let (machine, effect) = conn.machine.take().unwrap().step(input, self.now);
            conn.machine = Some(machine);
            input = match self.perform(conn, effect) {
                Ok(input) => input,
                Err(reply) => break reply,
            };
        };
        conn.transcript.push(match &reply {
            Reply::Disconnect(_) => "Disconnect".into(), // The reason is for the audit log.
            other => format!("{other:?}"),
        });
        if was_over {
            assert!(matches!(reply, Reply::Disconnect(_)), "{reply:?} after the end");
            return reply;
        }
        if user != first {
            assert!(matches!(reply, Reply::Disconnect(Refusal::UserChanged)), "{reply:?}");
        }
        let row = self.rows.get(&first);
        let has = |key: &str| row.is_some_and(|row| row.account.keys.iter().any(|k| k == key));
        match &reply {
            Reply::Disconnect(_) => conn.over = true,
            Reply::KeyOk => assert!(has(&key.unwrap())),
            Reply::Continue => {
                if let Some(key) = key {
                    assert!(has(&key));
                }
            }
            Reply::Ask(question) => conn.asked = Some(question.clone()),
            Reply::Refuse(methods) => assert_eq!(*methods, rules().methods),
            Reply::Accept(who) => {
                let row = row.unwrap();
                assert_eq!((who.user().as_str(), who.account()), (&*first, &row.account.id));
                assert_eq!(conn.session, Some(who.epoch()), "no session was written down");
                self.accepted += 1;
                conn.over = true;
            }
        }
        if !matches!(reply, Reply::Disconnect(_)) {
            let count = if offer { &mut conn.offers } else { &mut conn.rounds };
            *count += 1;
            conn.evaluated += u32::from(code_typed);
        }
        assert!(conn.evaluated <= MAX_ANSWERS, "{} secrets tried", conn.evaluated);
        assert!(conn.rounds <= MAX_ROUNDS && conn.offers <= MAX_OFFERS);
        reply
    }

    fn perform(&mut self, conn: &mut Conn, effect: Effect) -> Result<Input, Reply> {
        let first = conn.user.clone().unwrap();
        let owner = self.rows.get_mut(&first);
        let is_owner = |id: &Id| owner.as_ref().is_some_and(|row| row.account.id == *id);
        Ok(match effect {
            Effect::Reply(reply) => return Err(reply),
            Effect::LookUp(name) => {
                conn.transcript.push("looked up".into());
                assert_eq!(name, first.parse().ok());
                let locked_until = owner.as_ref().and_then(|row| row.locked_until);
                let locked_until = locked_until.filter(|until| self.now < *until);
                let throttle = Throttle { failures: 0, locked_until };
                Input::Found(owner.map(|row| Box::new(row.snapshot())), throttle)
            }
            Effect::CheckPassword(password, hashed) => {
                conn.transcript.push("checked a password".into());
                conn.evaluated += 1;
                let typed = password.expose_secret().to_owned();
                let right = hashed == Some(hash(&typed));
                conn.shown.wrong = owner.as_ref().is_none_or(|row| row.password != typed);
                conn.shown.password = Some(typed);
                Input::PasswordChecked(right)
            }
            Effect::AskRadius { user, password, round } => {
                assert_eq!(user.as_str(), first);
                Input::Radius(self.radius(&first, password.expose_secret(), round))
            }
            Effect::MakeSecret => {
                self.secrets += 1;
                let secret = totp::Secret::from_bytes(&[self.secrets; 20]);
                conn.binding = Some(secret.clone());
                Input::Secret(secret)
            }
            Effect::Note { account, then, .. } => {
                assert!(is_owner(&account));
                return Err(*then);
            }
            Effect::SetPassword { account, epoch, password, .. } => {
                assert!(is_owner(&account));
                let row = owner.unwrap();
                if row.account.epoch != epoch || row.account.disabled {
                    return Ok(Input::PasswordSet(Err(Refusal::AlreadyBound)));
                }
                // Only its owner replaces it: with the old one, and a code if there is a phone and
                // the rule asks for one.
                assert_eq!(conn.shown.password, Some(row.password.clone()));
                assert!(row.account.one_time);
                let open = row.account.factor == SecondFactor::TOTP && row.account.otp.is_none();
                let enough = row.account.sign_in.allows(conn.shown.factors(row), SOURCE);
                assert!(open || enough || conn.used.is_some());
                row.account.epoch += 1;
                row.account.one_time = false;
                row.account.password_binds = row.account.otp.is_none();
                row.password = password.expose_secret().to_owned();
                row.account.password = hash(&row.password);
                conn.shown.password = Some(row.password.clone());
                Input::PasswordSet(Ok(row.account.epoch))
            }
            Effect::Bind { account, epoch, secret, step, .. } => {
                assert!(is_owner(&account));
                assert!(is_code(&conn.typed, &secret, step, self.now), "{:?}", conn.typed);
                let row = owner.unwrap();
                let account = &mut row.account;
                let may = account.epoch == epoch && !account.disabled && account.otp.is_none();
                if !may || account.binding_until.is_none_or(|until| until <= self.now) {
                    return Ok(Input::Bound(Err(Refusal::AlreadyBound)));
                }
                assert_eq!(conn.shown.password, Some(row.password.clone()));
                assert!(!account.one_time, "bound before the one-time password was changed");
                assert!(account.password_binds, "bound by a password that is no token");
                account.password_binds = false;
                account.epoch += 1;
                account.binding_until = None;
                account.otp = Some(Otp { secret, last_step: step });
                row.recovery = recovery::generate().unwrap();
                row.unused = hashes(&account.id, &row.recovery);
                conn.used = Some(Used::Binding(first, account.epoch));
                self.bound += 1;
                Input::Bound(Ok((account.epoch, row.recovery.clone())))
            }
            Effect::Claim(attempt) => {
                assert!(is_owner(&attempt.account));
                Input::Claimed(self.claim(conn, &first, &attempt))
            }
            Effect::SignIn(attempt) => {
                assert!(is_owner(&attempt.account));
                Input::SignedIn(self.sign_in(conn, &first, &attempt))
            }
            Effect::Fail { account, .. } => {
                conn.transcript.push("held back".into());
                assert!(account.is_none_or(|id| is_owner(&id)));
                conn.shown = Shown::default();
                conn.used = None;
                Input::FailureRecorded
            }
        })
    }

    /// What a RADIUS server answers: it knows the account's password and its token.
    fn radius(&mut self, user: &str, given: &str, round: u32) -> Result<RadiusAnswer, RadiusFault> {
        use RadiusVerdict::{Accept, Challenge, Reject};
        if self.dead {
            return Err(RadiusFault::Unanswered("nobody is there".into()));
        }
        let row = &self.rows[user];
        let is_code = given == self.token();
        let verdict = match (row.account.factor.mode.unwrap(), round) {
            (RadiusMode::Both, 0) if given == row.password => Challenge,
            (RadiusMode::Both, 0) => Reject,
            (RadiusMode::Challenge, 0) if given.is_empty() => Challenge,
            (RadiusMode::Challenge, 1) if given == "2" => Challenge,
            _ if is_code => Accept,
            _ => Reject,
        };
        self.said = Some((verdict, round));
        Ok(RadiusAnswer { server: "main".into(), verdict, message: format!("Round {round}\x1b: ") })
    }

    fn token(&self) -> String {
        code_at(&totp::Secret::from_bytes(&TOKEN), self.now.step().0)
    }

    fn claim(
        &mut self,
        conn: &mut Conn,
        user: &str,
        attempt: &Attempt,
    ) -> Result<Claimed, Refusal> {
        let row = self.rows.get_mut(user).unwrap();
        if let (Claim::Code(step), Some(otp)) = (&attempt.claim, &row.account.otp)
            && attempt.epoch == row.account.epoch
        {
            assert!(is_code(&conn.typed, &otp.secret, *step, self.now), "{:?}", conn.typed);
        }
        if let Claim::RecoveryCode(hash) = &attempt.claim {
            let typed = recovery::normalize(&conn.typed).unwrap();
            assert_eq!(*hash, recovery::hash(&row.account.id, &typed));
        }
        let claimed = row.claim(attempt, self.now)?;
        match &attempt.claim {
            Claim::Radius { codes, .. } => {
                // Only for what a server accepted just now.
                assert_eq!(
                    self.said.take().map(|(verdict, _)| verdict),
                    Some(RadiusVerdict::Accept)
                );
                let code = codes.iter().last().unwrap().to_owned();
                conn.used = Some(Used::Radius(user.to_owned(), code, self.now.step().0));
            }
            Claim::Nothing | Claim::NoCode => {}
            Claim::Certificate(_) => assert!(conn.shown.login_certificate),
            Claim::Remembered(_) => assert_eq!(conn.shown.key.as_deref(), Some(LAPTOP)),
            Claim::Code(step) => conn.used = Some(Used::Step(user.to_owned(), step.0)),
            Claim::RecoveryCode(hash) => conn.used = Some(Used::Recovery(hash.clone())),
        }
        Ok(claimed)
    }

    /// Opens the session: the moment at which both factors must have been shown.
    fn sign_in(
        &mut self,
        conn: &mut Conn,
        user: &str,
        attempt: &Attempt,
    ) -> Result<Claimed, Refusal> {
        if conn.session.is_some() {
            return Err(Refusal::StoreFailed); // The session's id is taken.
        }
        let claimed = self.claim(conn, user, attempt)?;
        let row = &self.rows[user];
        let mut given = conn.shown.factors(row);
        assert_ne!(given, Factors::NONE, "no first factor");
        assert!(!conn.shown.wrong, "let in after a wrong password");
        if attempt.given.has(Factors::PASSWORD) {
            assert!(!row.account.one_time, "let in with a one-time password");
        }
        if let Some(used) = conn.used.take() {
            assert!(self.spent.insert(used), "a second factor was spent twice");
            given = given.with(Factors::OTP);
        }
        assert!(given.has(attempt.given), "{} is claimed, {given} was given", attempt.given);
        let policy = &row.account.sign_in;
        assert!(policy.allows(given, SOURCE), "{given} is not enough for {policy}");
        assert!(policy.allows(attempt.given, SOURCE), "the store would refuse {}", attempt.given);
        conn.session = Some(row.account.epoch);
        Ok(claimed)
    }

    /// What a person who knows everything would send next.
    fn proceed(&self, conn: &Conn, user: &str) -> Request {
        let Some(question) = &conn.asked else { return Request::Interactive };
        let row = self.rows.get(user);
        let answer = match prompt_of(Some(question)) {
            "" => return Request::Answers(Vec::new()),
            prompt::PASSWORD => row.map_or_else(|| "whatever".into(), |row| row.password.clone()),
            prompt::CODE => self.code(user, None),
            text if text.ends_with(prompt::NEW_PASSWORD) || text == prompt::REPEAT => NEW[0].into(),
            text if text.contains("Press Enter") => String::new(),
            text if text.starts_with("Round ") => self.token(),
            _ => code_at(conn.binding.as_ref().unwrap(), self.now.step().0),
        };
        answer_with(answer)
    }

    /// The code of a step near now: a fresh one if there is one in the window, or at `offset`.
    fn code(&self, user: &str, offset: Option<i64>) -> String {
        let now = self.now.step().0;
        let row = self.rows.get(user);
        match row.and_then(|row| row.account.otp.as_ref()) {
            None if row.is_some_and(|row| row.account.factor.factor == Factor::Radius) => {
                self.token()
            }
            Some(otp) => {
                let fresh = otp.last_step.0.saturating_add(1).clamp(now - 1, now + 1);
                code_at(&otp.secret, offset.map_or(fresh, |offset| now + offset))
            }
            None => "123456".into(),
        }
    }

    fn request(&self, conn: &Conn, user: &str, act: &Act) -> Option<Request> {
        let row = self.rows.get("alice");
        Some(match act {
            Act::Proceed => self.proceed(conn, user),
            Act::None => Request::None,
            Act::Offer(key) => Request::KeyOffer((*key).into()),
            Act::Key(key) => Request::Key((*key).into()),
            Act::Certificate(good) => Request::Certificate(certificate(*good)),
            Act::LoginCertificate(serial) => Request::Certificate(Ok(of_login_ca(*serial))),
            Act::Interactive => Request::Interactive,
            Act::Password(text) => Request::Password(text.to_string(row).into()),
            Act::Answer(text) => answer_with(text.to_string(row)),
            Act::Code(offset) => answer_with(self.code(user, Some(*offset))),
            Act::BindingCode(offset) => {
                let secret = conn.binding.as_ref()?;
                answer_with(code_at(secret, self.now.step().0 + offset))
            }
            Act::Recovery(n) => {
                let code = row?.recovery.get(*n)?;
                answer_with(code.expose_secret().to_owned())
            }
            Act::Many(n) => Request::Answers(vec!["123456".into(); *n]),
            Act::Wait(_) | Act::Disable | Act::Reset => return None,
        })
    }

    /// What happens without this client.
    fn happen(&mut self, act: &Act) {
        match (act, self.rows.get_mut("alice")) {
            (Act::Wait(seconds), _) => self.now = self.now.plus(Duration::from_secs(*seconds)),
            (Act::Disable, Some(row)) => {
                row.account.disabled = true;
                row.account.epoch += 1;
            }
            (Act::Reset, Some(row)) => {
                row.account.otp = None;
                row.account.epoch += 1;
                row.account.binding_until = Some(self.now.plus(Duration::from_secs(600)));
                row.unused.clear();
            }
            _ => {}
        }
    }
}

fn prompt_of(question: Option<&Question>) -> &str {
    question.and_then(|q| q.prompt.as_ref()).map_or("", |(text, _)| text)
}

fn answer_with(text: String) -> Request {
    Request::Answers(vec![text.into()])
}

#[derive(Debug, Clone)]
enum Text {
    RightPassword,
    Words(&'static str),
    Oversized,
}

impl Text {
    fn to_string(&self, row: Option<&Row>) -> String {
        match self {
            Self::RightPassword => row.map_or_else(|| "whatever".into(), |r| r.password.clone()),
            Self::Words(words) => (*words).to_owned(),
            Self::Oversized => "9".repeat(100_000),
        }
    }
}

/// What a client does next, or what happens around it.
#[derive(Debug, Clone)]
enum Act {
    /// Goes on as somebody would who knows every secret.
    Proceed,
    None,
    Offer(&'static str),
    Key(&'static str),
    /// One that stands for whoever shows it, or not.
    Certificate(bool),
    /// One of the login CA's with this serial number.
    LoginCertificate(u64),
    Interactive,
    Password(Text),
    Answer(Text),
    /// The code of so many steps from now.
    Code(i64),
    /// The same, of the secret on the screen.
    BindingCode(i64),
    Recovery(usize),
    Many(usize),
    /// Seconds go by.
    Wait(u64),
    Disable,
    Reset,
}

fn text() -> impl Strategy<Value = Text> {
    const WORDS: [&str; 8] =
        ["", "wrong", "an old rusty bicycle", "000000", "i", "a", "r", "short"];
    prop_oneof![
        2 => Just(Text::RightPassword),
        3 => select(&WORDS[..]).prop_map(Text::Words),
        2 => select(&NEW[..]).prop_map(Text::Words),
        1 => Just(Text::Oversized),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        24 => Just(Act::Proceed),
        1 => Just(Act::None),
        1 => select(&[KEY, "SHA256:other"][..]).prop_map(Act::Offer),
        2 => select(&[KEY, KEY, LAPTOP, "SHA256:other"][..]).prop_map(Act::Key),
        2 => any::<bool>().prop_map(Act::Certificate),
        1 => select(&[HELD as u64, 12][..]).prop_map(Act::LoginCertificate),
        2 => Just(Act::Interactive),
        3 => text().prop_map(Act::Password),
        4 => text().prop_map(Act::Answer),
        3 => (-3_i64..=3).prop_map(Act::Code),
        2 => (-3_i64..=3).prop_map(Act::BindingCode),
        3 => (0_usize..3).prop_map(Act::Recovery),
        1 => select(&[0_usize, 2, 9][..]).prop_map(Act::Many),
        3 => select(&[1_u64, 29, 30, 90, 4000][..]).prop_map(Act::Wait),
        1 => Just(Act::Disable),
        1 => Just(Act::Reset),
    ]
}

/// What is done by the owner of the account, or about it.
fn is_of_the_owner(act: &Act) -> bool {
    matches!(act, Act::Disable | Act::Reset | Act::Certificate(true) | Act::LoginCertificate(11))
}

fn of_login_ca(serial: u64) -> Certified {
    let (key, id, authority) = ("SHA256:held".into(), "x".into(), "SHA256:login".into());
    Certified { key, id, serial, authority, by_login_ca: true }
}

fn certificate(good: bool) -> Result<Certified, Box<Event>> {
    let (id, serial, authority) = ("x".to_owned(), 7, "SHA256:ca".to_owned());
    let reason = crate::audit::CertificateFault::Expired;
    match good {
        true => Ok(Certified { key: "SHA256:x".into(), id, serial, authority, by_login_ca: false }),
        false => Err(Box::new(Event::CertificateRefused { id, serial, authority, reason })),
    }
}

/// A sequence of acts on two connections; rarely under another user name.
fn dialog() -> impl Strategy<Value = Vec<(bool, bool, Act)>> {
    let step = (prop::bool::weighted(0.3), prop::bool::weighted(0.01), act());
    prop::collection::vec(step, 1..60)
}

/// The rules that hold for somebody: the default as often as all others.
fn policy() -> impl Strategy<Value = SignInPolicy> {
    let of_groups = prop::collection::vec(any_rule(), 1..3).prop_map(|rules| {
        let group = |(n, rule)| (format!("group{n}").parse().unwrap(), rule);
        SignInPolicy::new(None, rules.into_iter().enumerate().map(group).collect())
    });
    prop_oneof![Just(SignInPolicy::default()), of_groups]
}

#[test]
fn nobody_is_accepted_with_less_than_is_asked_and_each_second_factor_works_once() {
    let mut runner = TestRunner::new(Config { cases: 2500, ..Config::default() });
    let (accepted, bound) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    runner
        .run(&(select(&Kind::ALL[..]), policy(), dialog()), |(kind, policy, dialog)| {
            let mut world = World::new(kind).ruled_by(&policy);
            let mut conns = [Conn::new(), Conn::new()];
            for (second, other, act) in dialog {
                world.happen(&act);
                let user = if other { "bob" } else { "alice" };
                let conn = &mut conns[usize::from(second)];
                if let Some(request) = world.request(conn, user, &act) {
                    world.send(conn, user, request);
                }
            }
            accepted.set(accepted.get() + world.accepted);
            bound.set(bound.get() + world.bound);
            Ok(())
        })
        .unwrap();
    // The walks above do get where there is something to hold.
    assert!(accepted.get() > 100 && bound.get() > 50, "{accepted:?} {bound:?}");
}

/// The transcript of one connection on which `acts` are sent, whoever the account is.
fn transcript(
    kind: Kind,
    policy: &SignInPolicy,
    (last_step, password): (TimeStep, &str),
    acts: &[Act],
) -> Vec<String> {
    let mut world = World::new(kind);
    if kind != Kind::Unknown {
        let mut row = Row::new("alice", kind, last_step);
        row.unused.clear();
        row.account.keys.clear();
        row.account.sign_in = policy.clone();
        row.password = password.to_owned();
        row.account.password = hash(password);
        world.rows.insert("alice".into(), row);
    }
    // What is sent does not depend on whom it is sent to.
    let mut sender = World::new(Kind::Bound { one_time: false });
    let mut conn = Conn::new();
    for act in acts {
        world.happen(act);
        sender.now = world.now;
        if let Some(request) = sender.request(&conn, "alice", act) {
            world.send(&mut conn, "alice", request);
        }
    }
    assert_eq!((world.accepted, world.bound), (0, 0));
    conn.transcript
}

proptest! {
    #![proptest_config(Config::with_cases(128))]

    /// Neither the replies nor what a client waits for tell why it is refused.
    #[test]
    fn refused_accounts_look_alike(
        acts in prop::collection::vec(act(), 1..50),
        policy in policy(),
    ) {
        let acts: Vec<Act> =
            acts.into_iter().filter(|act| !is_of_the_owner(act)).collect();
        let used_up = TimeStep(i64::MAX);
        let right = "an old rusty bicycle";
        let bound = Kind::Bound { one_time: false };
        let unknown = transcript(Kind::Unknown, &policy, (NEVER, right), &acts);
        // Right in all, but that more is asked for.
        if !policy.allows(Factors::PASSWORD.with(Factors::OTP), SOURCE) {
            for kind in [bound, Kind::Open { one_time: true }, radius(RadiusMode::Challenge)] {
                let password = if kind == bound { right } else { "onetime12345" };
                let seen = transcript(kind, &policy, (NEVER, password), &acts);
                prop_assert_eq!(&seen, &unknown, "{:?}", kind);
            }
        }
        for (kind, last_step, password) in [
            (Kind::Disabled, NEVER, right),
            (Kind::Locked, used_up, right),
            (Kind::Closed, NEVER, right),
            (Kind::Reopened, NEVER, right),
            // A server rejects the code; password and code; a wrong password goes to none.
            (Kind::Radius { mode: RadiusMode::Code, one_time: false }, NEVER, right),
            (Kind::Radius { mode: RadiusMode::Both, one_time: false }, NEVER, "another"),
            (Kind::Radius { mode: RadiusMode::Code, one_time: false }, NEVER, "another"),
            (Kind::Radius { mode: RadiusMode::Challenge, one_time: false }, NEVER, "another"),
            // The right password with codes that were used; right codes with a wrong password.
            (bound, used_up, right),
            (bound, NEVER, "not what anybody types"),
            (Kind::Bound { one_time: true }, NEVER, "not what anybody types"),
            (Kind::Open { one_time: true }, NEVER, "not what anybody types"),
            (Kind::Open { one_time: false }, NEVER, "not what anybody types"),
        ] {
            let seen = transcript(kind, &policy, (last_step, password), &acts);
            prop_assert_eq!(&seen, &unknown, "{:?}", kind);
        }
    }
}

/// Goes on as somebody who knows everything does, until the end.
fn walk(world: &mut World, conn: &mut Conn) -> Vec<String> {
    let mut prompts = Vec::new();
    while !conn.over && prompts.len() < 20 {
        let request = world.proceed(conn, "alice");
        world.send(conn, "alice", request);
        prompts.extend(conn.asked.as_ref().map(|q| prompt_of(Some(q)).to_owned()));
    }
    prompts
}

#[test]
fn each_kind_of_account_has_its_way_in() {
    for (kind, way) in [
        (Kind::Bound { one_time: false }, &["Password: ", "6-digit"][..]),
        (Kind::Bound { one_time: true }, &["Password: ", "6-digit", "Choose", "Repeat"]),
        (Kind::Open { one_time: false }, &["Password: ", "Bind your", "Bound."]),
        (Kind::Open { one_time: true }, &["Password: ", "Choose", "Repeat", "Bind your", "Bound."]),
        (radius(RadiusMode::Code), &["Password: ", "6-digit"]),
        (radius(RadiusMode::Both), &["Password: ", "6-digit"]),
        (radius(RadiusMode::Challenge), &["Password: ", "Round 0\\u{1b}: "]),
        (
            Kind::Radius { mode: RadiusMode::Code, one_time: true },
            &["Password: ", "6-digit", "Choose", "Repeat"],
        ),
    ] {
        let mut world = World::new(kind);
        let mut conn = Conn::new();
        let prompts = walk(&mut world, &mut conn);
        assert_eq!(world.accepted, 1, "{kind:?}: {prompts:?}");
        assert_eq!(prompts.len(), way.len(), "{kind:?}: {prompts:?}");
        for (prompt, begins) in prompts.iter().zip(way) {
            assert!(prompt.starts_with(begins), "{kind:?}: {prompts:?}");
        }
    }
}

#[test]
fn a_rule_asks_for_what_it_names_and_for_no_more() {
    let bound = Kind::Bound { one_time: false };
    let key = || Request::Key(KEY.into());
    let password = || Request::Password("an old rusty bicycle".into());
    let near = "key from 192.0.2.0/24";
    // The rule, what the client sends by methods of its own, and what it is asked for then; nobody
    // gets further than a code who lacks something else.
    for (rule, kind, sent, asked, accepted) in [
        (near, bound, vec![key()], &[][..], true),
        (near, Kind::Closed, vec![key()], &[], true),
        (near, bound, vec![], &["Password: ", "6-digit"], false),
        (near, bound, vec![password()], &["6-digit"], false),
        (near, Kind::Disabled, vec![key()], &["Password: ", "6-digit"], false),
        (near, Kind::Locked, vec![key()], &["6-digit"], false),
        ("key from 10.0.0.0/8, key+otp", bound, vec![key()], &["6-digit"], true),
        ("key+otp", bound, vec![password()], &["6-digit"], false),
        ("key+otp", bound, vec![password(), key()], &["6-digit"], true),
        ("key+otp", Kind::Open { one_time: false }, vec![], &["Password: ", "6-digit"], false),
        ("password+otp", bound, vec![key()], &["Password: ", "6-digit"], true),
        ("password+key+otp", bound, vec![key()], &["Password: ", "6-digit"], true),
        ("password+key+otp", radius(RadiusMode::Both), vec![key()], &["Password: ", "6-"], true),
        ("password+key from 192.0.2.7", bound, vec![key()], &["Password: "], true),
        ("password+key from 192.0.2.7", bound, vec![key(), password()], &[], true),
        ("password+key from 192.0.2.7", bound, vec![password(), key()], &[], true),
        (
            "password+key from 192.0.2.7",
            Kind::Bound { one_time: true },
            vec![key()],
            &["Password: ", "Choose", "Repeat"],
            true,
        ),
    ] {
        let rule = rule.parse().unwrap();
        let mut world = World::new(kind).ruled_by(&SignInPolicy::new(Some(rule), Vec::new()));
        let mut conn = Conn::new();
        let what = format!("{:?}: {sent:?}", world.rows["alice"].account.sign_in);
        for request in sent {
            world.send(&mut conn, "alice", request);
        }
        let mut prompts = Vec::new();
        while !conn.over && prompts.len() < asked.len() {
            let request = world.proceed(&conn, "alice");
            world.send(&mut conn, "alice", request);
            prompts.extend(conn.asked.as_ref().map(|q| prompt_of(Some(q)).to_owned()));
        }
        if !conn.over && conn.asked.is_some() {
            let request = world.proceed(&conn, "alice");
            world.send(&mut conn, "alice", request);
        }
        assert_eq!(world.accepted, u32::from(accepted), "{what}: {prompts:?}");
        assert_eq!(prompts.len(), asked.len(), "{what}: {prompts:?}");
        for (prompt, begins) in prompts.iter().zip(asked) {
            assert!(prompt.starts_with(begins), "{what}: {prompts:?}");
        }
    }
}

#[test]
fn a_certificate_is_a_factor_and_a_refused_one_is_written_down_at_once() {
    let certified = || Request::Certificate(certificate(true));
    for (kind, rule, asked) in [
        (Kind::Bound { one_time: false }, "certificate+otp", &["6-digit"][..]),
        (Kind::Bound { one_time: false }, "key+otp, password+otp", &["Password: ", "6-digit"]),
        (Kind::Open { one_time: false }, "certificate+otp", &["Password: ", "Bind your", "Bound."]),
        (Kind::Closed, "certificate from 192.0.2.0/24", &[]),
        (radius(RadiusMode::Code), "certificate+otp", &["6-digit"]),
    ] {
        let rule: crate::domain::SignInRule = rule.parse().unwrap();
        let policy = SignInPolicy::new(Some(rule), Vec::new());
        let mut world = World::new(kind).ruled_by(&policy);
        let mut conn = Conn::new();
        world.send(&mut conn, "alice", certified());
        let prompts = walk(&mut world, &mut conn);
        let prompts: Vec<_> = prompts.iter().filter(|prompt| !prompt.is_empty()).collect();
        assert_eq!(world.accepted, 1, "{policy}: {prompts:?}");
        assert_eq!(prompts.len(), asked.len(), "{policy}: {prompts:?}");
        for (prompt, begins) in prompts.iter().zip(asked) {
            assert!(prompt.starts_with(begins), "{policy}: {prompts:?}");
        }
    }
    for kind in [Kind::Unknown, Kind::Disabled, Kind::Bound { one_time: false }] {
        let mut world = World::new(kind);
        let mut conn = Conn::new();
        let good = kind != Kind::Bound { one_time: false };
        let reply = world.send(&mut conn, "alice", Request::Certificate(certificate(good)));
        assert!(matches!(reply, Reply::Refuse(_)), "{kind:?}: {reply:?}");
        assert!(conn.transcript.iter().any(|line| line == "held back"), "{kind:?}");
    }
}

#[test]
fn a_certificate_of_the_login_ca_stands_for_a_code_while_the_account_holds_it() {
    let held = of_login_ca(HELD as u64);
    let other_key = Certified { key: "SHA256:x".into(), ..held.clone() };
    let bound = Kind::Bound { one_time: false };
    for (kind, rule, shown, accepted) in [
        (bound, "certificate+otp", held.clone(), true),
        (radius(RadiusMode::Challenge), "certificate+otp", held.clone(), true),
        (bound, "key+otp, password+otp", held.clone(), false),
        (bound, "certificate+otp", other_key, false),
        (bound, "certificate+otp", of_login_ca(12), false),
        (bound, "certificate+otp", of_login_ca(u64::MAX), false),
        (Kind::Disabled, "certificate+otp", held.clone(), false),
        (Kind::Locked, "certificate+otp", held.clone(), false),
        (Kind::Closed, "certificate+otp", held.clone(), false),
        (Kind::Unknown, "certificate+otp", held, false),
    ] {
        let rule: crate::domain::SignInRule = rule.parse().unwrap();
        let policy = SignInPolicy::new(Some(rule), Vec::new());
        let mut world = World::new(kind).ruled_by(&policy);
        let mut conn = Conn::new();
        let what = format!("{kind:?} {policy} {shown:?}");
        let reply = world.send(&mut conn, "alice", Request::Certificate(Ok(shown)));
        match reply {
            Reply::Accept(who) => {
                assert!(accepted, "{what}");
                assert_eq!(who.given(), Factors::CERTIFICATE.with(Factors::OTP));
                assert!(!who.code_given(), "{what}");
            }
            Reply::Refuse(_) => assert!(!accepted, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_remembered_login_stands_for_a_code_and_for_nothing_else() {
    let bound = Kind::Bound { one_time: false };
    for (kind, rule, asked, accepted) in [
        (bound, "key+otp", &[][..], true),
        (radius(RadiusMode::Code), "key+otp", &[], true),
        (bound, "password+key+otp", &["Password: "], true),
        (bound, "password+otp", &["Password: "], true),
        (Kind::Locked, "key+otp", &["6-digit"], false),
        (Kind::Closed, "key+otp", &["6-digit"], false),
        (Kind::Disabled, "key+otp", &["Password: ", "6-digit"], false),
    ] {
        for (key, remembered) in [(LAPTOP, true), (KEY, false)] {
            let rule: crate::domain::SignInRule = rule.parse().unwrap();
            let policy = SignInPolicy::new(Some(rule), Vec::new());
            let mut world = World::new(kind).ruled_by(&policy);
            let mut conn = Conn::new();
            world.send(&mut conn, "alice", Request::Key(key.into()));
            let mut prompts = Vec::new();
            while !conn.over && prompts.len() < 3 {
                let request = world.proceed(&conn, "alice");
                world.send(&mut conn, "alice", request);
                let Some(question) = &conn.asked else { break };
                prompts.push(prompt_of(Some(question)).to_owned());
            }
            let what = format!("{kind:?} {policy} {key}: {prompts:?}");
            assert_eq!(world.accepted == 1, accepted, "{what}");
            let code_asked = prompts.iter().any(|prompt| prompt.starts_with("6-digit"));
            assert_eq!(code_asked, !accepted || !remembered, "{what}");
            if remembered {
                assert_eq!(prompts.len(), asked.len(), "{what}");
            }
        }
    }
}

#[test]
fn where_certificates_may_come_every_strong_key_may_be_tried_and_none_is_let_in_by_it() {
    let certificates = Arc::new(Rules { certificates: true, ..(*rules()).clone() });
    for (offered, ok) in [("SHA256:other", true), ("", false)] {
        let client = || Input::Client("alice".into(), Request::KeyOffer(offered.into()));
        let row = Row::new("alice", Kind::Bound { one_time: false }, NEVER);
        for found in [None, Some(Box::new(row.snapshot()))] {
            let machine = Machine::new(Arc::clone(&certificates), SOURCE);
            let (machine, _) = machine.step(client(), START);
            let (_, effect) = machine.step(Input::Found(found, Throttle::default()), START);
            let said_ok = matches!(effect, Effect::Reply(Reply::KeyOk));
            assert_eq!(said_ok, ok, "{offered}: {effect:?}");
        }
    }
    // The signature of a key that is nobody's is no factor.
    let machine = Machine::new(certificates, SOURCE);
    let key = Request::Key("SHA256:other".into());
    let (machine, _) = machine.step(Input::Client("alice".into(), key), START);
    let row = Row::new("alice", Kind::Bound { one_time: false }, NEVER);
    let found = Input::Found(Some(Box::new(row.snapshot())), Throttle::default());
    let (_, effect) = machine.step(found, START);
    assert!(matches!(effect, Effect::Reply(Reply::Refuse(_))), "{effect:?}");
}

#[test]
fn a_key_does_not_stand_in_for_the_one_time_password() {
    let mut world = World::new(Kind::Open { one_time: true });
    let mut conn = Conn::new();
    let reply = world.send(&mut conn, "alice", Request::Key(KEY.into()));
    assert!(matches!(reply, Reply::Continue), "{reply:?}");
    let prompts = walk(&mut world, &mut conn);
    assert_eq!(prompts.first().map(String::as_str), Some(prompt::PASSWORD), "{prompts:?}");
    assert_eq!((world.accepted, world.bound), (1, 1));
}

#[test]
fn a_window_that_closes_in_the_middle_binds_nothing() {
    let mut world = World::new(Kind::Open { one_time: true });
    let mut conn = Conn::new();
    world.send(&mut conn, "alice", Request::Interactive);
    for _ in 0..2 {
        let request = world.proceed(&conn, "alice");
        world.send(&mut conn, "alice", request);
    }
    world.happen(&Act::Wait(3600)); // On the question to repeat the new password.
    let request = world.proceed(&conn, "alice");
    let reply = world.send(&mut conn, "alice", request);
    assert!(matches!(reply, Reply::Refuse(_)), "{reply:?}");
    assert_eq!(world.bound, 0);
}

#[test]
fn agents_may_offer_many_keys_and_dialogs_still_end() {
    let mut world = World::new(Kind::Bound { one_time: false });
    let mut conn = Conn::new();
    for n in 0..MAX_OFFERS {
        let reply = world.send(&mut conn, "alice", Request::KeyOffer(format!("SHA256:{n}")));
        assert!(matches!(reply, Reply::Refuse(_)), "{n}: {reply:?}");
    }
    for n in 0..MAX_ROUNDS {
        let reply = world.send(&mut conn, "alice", Request::None);
        assert!(matches!(reply, Reply::Refuse(_)), "{n}: {reply:?}");
    }
    let reply = world.send(&mut conn, "alice", Request::None);
    assert!(matches!(reply, Reply::Disconnect(Refusal::TooManyAttempts)), "{reply:?}");
}

#[test]
fn methods_that_are_switched_off_are_refused_unlooked_at() {
    let off = Methods { password: false, publickey: false, keyboard_interactive: true };
    let rules = Arc::new(Rules { methods: off, ..(*rules()).clone() });
    for request in [
        Request::Password("an old rusty bicycle".into()),
        Request::Key(KEY.into()),
        Request::KeyOffer(KEY.into()),
    ] {
        let machine = Machine::new(Arc::clone(&rules), SOURCE);
        let (machine, effect) = machine.step(Input::Client("alice".into(), request), START);
        assert!(matches!(effect, Effect::LookUp(Some(_))), "{effect:?}");
        let row = Row::new("alice", Kind::Bound { one_time: false }, NEVER);
        let found = Input::Found(Some(Box::new(row.snapshot())), Throttle::default());
        let (_, effect) = machine.step(found, START);
        assert!(
            matches!(&effect, Effect::Reply(Reply::Refuse(methods)) if *methods == off),
            "{effect:?}"
        );
    }
}

fn radius(mode: RadiusMode) -> Kind {
    Kind::Radius { mode, one_time: false }
}

const RIGHT: &str = "an old rusty bicycle";

/// What the answers lead to, on a new connection, and the events on the way.
fn answered(world: &mut World, answers: &[&str]) -> (Conn, Option<Reply>) {
    let mut conn = Conn::new();
    let mut reply = Some(world.send(&mut conn, "alice", Request::Interactive));
    for answer in answers {
        reply = Some(world.send(&mut conn, "alice", answer_with((*answer).to_owned())));
    }
    (conn, reply)
}

#[test]
fn no_answer_of_a_radius_server_is_no_accept_and_told_to_whose_password_is_right() {
    for mode in RadiusMode::ALL {
        let mut world = World::new(radius(*mode));
        world.dead = true;
        let code = world.token();
        let answers: &[&str] =
            if *mode == RadiusMode::Challenge { &[RIGHT] } else { &[RIGHT, &code] };
        let (mut conn, reply) = answered(&mut world, answers);
        match (mode, reply.unwrap()) {
            // The password is not known to be right.
            (RadiusMode::Both, Reply::Refuse(_)) => {}
            (RadiusMode::Code | RadiusMode::Challenge, Reply::Ask(question)) => {
                assert_eq!(question.instruction, prompt::RADIUS_DEAD);
                let reply = world.send(&mut conn, "alice", Request::Answers(Vec::new()));
                assert!(matches!(reply, Reply::Refuse(_)), "{mode}: {reply:?}");
            }
            (mode, other) => panic!("{mode}: {other:?}"),
        }
        // Nobody is to be told with a wrong one.
        let (_, reply) = answered(&mut world, &["wrong", &code]);
        assert!(matches!(reply, Some(Reply::Refuse(_))), "{mode}: {reply:?}");
        assert_eq!(world.accepted, 0);
    }
}

#[test]
fn a_code_that_a_server_accepted_is_not_taken_again_within_its_life() {
    for mode in RadiusMode::ALL {
        let mut world = World::new(radius(*mode));
        let code = world.token();
        let (_, reply) = answered(&mut world, &[RIGHT, &code]);
        assert!(matches!(reply, Some(Reply::Accept(_))), "{mode}: {reply:?}");
        // The server would take it again, with blanks too.
        for code in [code.clone(), format!(" {code}")] {
            let (_, reply) = answered(&mut world, &[RIGHT, &code]);
            assert!(matches!(reply, Some(Reply::Refuse(_))), "{mode}: {reply:?}");
        }
        world.now = world.now.plus(Duration::from_secs(120));
        let code = world.token();
        let (_, reply) = answered(&mut world, &[RIGHT, &code]);
        assert!(matches!(reply, Some(Reply::Accept(_))), "{mode}: {reply:?}");
    }
}

/// A machine that waits for a server's answer after these answers, and what it asks the server.
fn asking(mode: RadiusMode, rules: Arc<Rules>, code: &str) -> (Machine, String) {
    let mut machine = Machine::new(rules, SOURCE);
    let row = Row::new("alice", radius(mode), NEVER);
    let mut input = Input::Client("alice".into(), Request::Interactive);
    let mut answers = vec![code.to_owned(), RIGHT.to_owned()];
    loop {
        let (next, effect) = machine.step(input, START);
        machine = next;
        input = match effect {
            Effect::LookUp(_) => Input::Found(Some(Box::new(row.snapshot())), Throttle::default()),
            Effect::CheckPassword(..) => Input::PasswordChecked(true),
            Effect::Reply(Reply::Ask(_)) => {
                Input::Client("alice".into(), answer_with(answers.pop().unwrap()))
            }
            Effect::AskRadius { password, .. } => {
                return (machine, password.expose_secret().to_owned());
            }
            other => panic!("{other:?}"),
        };
    }
}

fn radius_says(machine: Machine, verdict: RadiusVerdict) -> (Machine, Effect) {
    let answer = RadiusAnswer { server: "main".into(), verdict, message: String::new() };
    machine.step(Input::Radius(Ok(answer)), START)
}

#[test]
fn a_server_that_asks_for_no_code_lets_nobody_in() {
    for mode in [RadiusMode::Both, RadiusMode::Challenge] {
        let (machine, _) = asking(mode, rules(), "123456");
        let (_, effect) = radius_says(machine, RadiusVerdict::Accept);
        let refused = matches!(effect, Effect::Fail { reason: Refusal::RadiusOneFactor, .. });
        assert!(refused, "{mode}: {effect:?}");
    }
    // Unless both go together.
    let radius = RadiusRules { both_in_one: true, ..RadiusRules::default() };
    let rules = Arc::new(Rules { radius, ..(*rules()).clone() });
    let (machine, given) = asking(RadiusMode::Both, rules, " 123456");
    assert_eq!(given, format!("{RIGHT}123456"));
    let (_, effect) = radius_says(machine, RadiusVerdict::Accept);
    assert!(matches!(effect, Effect::SignIn(_)), "{effect:?}");
}

#[test]
fn a_server_may_ask_eight_times() {
    let (mut machine, _) = asking(RadiusMode::Both, rules(), "");
    for round in 1..=9 {
        let (next, effect) = radius_says(machine, RadiusVerdict::Challenge);
        if round == 9 {
            let over = matches!(effect, Effect::Fail { reason: Refusal::TooManyAttempts, .. });
            return assert!(over, "{effect:?}");
        }
        assert!(matches!(effect, Effect::Reply(Reply::Ask(_))), "{round}: {effect:?}");
        let answer = Input::Client("alice".into(), answer_with("1".into()));
        let (next, effect) = next.step(answer, START);
        assert!(matches!(effect, Effect::AskRadius { round: r, .. } if r == round), "{effect:?}");
        machine = next;
    }
}

#[test]
fn a_dialog_with_a_server_cannot_be_begun_again_for_nothing() {
    let mut world = World::new(radius(RadiusMode::Challenge));
    let (mut conn, _) = answered(&mut world, &[RIGHT]);
    let reply = world.send(&mut conn, "alice", Request::Interactive);
    assert!(matches!(reply, Reply::Refuse(_)), "{reply:?}");
    assert_eq!(conn.transcript.iter().filter(|line| *line == "held back").count(), 1);
}

#[test]
fn nothing_is_asked_of_a_server_about_an_empty_code() {
    let mut world = World::new(radius(RadiusMode::Code));
    let (_, reply) = answered(&mut world, &[RIGHT, "  "]);
    assert!(matches!(reply, Some(Reply::Refuse(_))), "{reply:?}");
    assert_eq!(world.said, None);
}
