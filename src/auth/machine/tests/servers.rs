//! What RADIUS servers answer, and what follows from it.

use super::*;

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
