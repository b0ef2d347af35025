//! Certificates, and logins that are remembered: what stands for a code, and for how long.

use super::*;

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
