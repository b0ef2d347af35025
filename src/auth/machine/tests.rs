//! A model of the store that keeps its promises (a step, a recovery code and a binding once; the epoch
//! checked), of RADIUS servers and of clients: what the tests of the machine, by theme, are made of.

mod certificates;
mod guesses;
mod properties;
mod servers;
mod ways;

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
use crate::domain::{RadiusMode, SecondFactor, SignInPolicy, TimeStep, Verifier, any_rule};

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
            Self::Radius { mode, .. } => {
                SecondFactor { factor: Verifier::Radius, mode: Some(mode) }
            }
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
                let claimed = self.sign_in(conn, &first, &attempt);
                Input::SignedIn(claimed.map(Opened::committed))
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
            None if row.is_some_and(|row| row.account.factor.factor == Verifier::Radius) => {
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

fn radius(mode: RadiusMode) -> Kind {
    Kind::Radius { mode, one_time: false }
}

const RIGHT: &str = "an old rusty bicycle";
