//! What holds of every login, whatever a client sends: arbitrary dialogs.

use super::*;

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
