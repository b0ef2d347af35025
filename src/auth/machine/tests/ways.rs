//! The ways in, what is asked on each, and where dialogs end.

use super::*;

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
