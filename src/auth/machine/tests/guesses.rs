//! What is shown after a guess of a password must not undo it.

use super::*;

const RIGHT: &str = "an old rusty bicycle";

/// What the machine says to a request, when `row` is the account that is looked up.
fn said(mut machine: Machine, row: &Row, request: Request) -> (Machine, Effect) {
    let mut input = Input::Client("alice".into(), request);
    loop {
        let (next, effect) = machine.step(input, START);
        machine = next;
        input = match effect {
            Effect::LookUp(_) => Input::Found(Some(Box::new(row.snapshot())), Throttle::default()),
            Effect::CheckPassword(password, _) => {
                Input::PasswordChecked(password.expose_secret() == RIGHT)
            }
            other => return (machine, other),
        };
    }
}

fn guess(row: &Row, password: &str) -> Machine {
    let machine = Machine::new(rules(), SOURCE);
    said(machine, row, Request::Password(password.into())).0
}

#[test]
fn a_certificate_that_is_refused_counts_the_guess_before_it() {
    let row = Row::new("alice", Kind::Bound { one_time: false }, NEVER);
    for password in [RIGHT, "a guess"] {
        let bad = Request::Certificate(certificate(false));
        let (_, effect) = said(guess(&row, password), &row, bad);
        assert!(matches!(effect, Effect::Fail { counts: true, .. }), "{effect:?}");
    }
    let bad = Request::Certificate(certificate(false));
    let (_, effect) = said(Machine::new(rules(), SOURCE), &row, bad);
    assert!(matches!(effect, Effect::Fail { counts: false, .. }), "{effect:?}");
}

#[test]
fn a_key_that_is_shown_again_leaves_a_guess_a_guess() {
    let row = Row::new("alice", Kind::Bound { one_time: false }, NEVER);
    for shown in [|| Request::Key(KEY.into()), || Request::Certificate(certificate(true))] {
        let (machine, _) = said(guess(&row, "a guess"), &row, shown());
        assert!(machine.given_up().is_some_and(|left| left.counts));
        let (_, effect) = said(machine, &row, Request::Password("another".into()));
        let given_up = Refusal::GivenUp;
        assert!(
            matches!(effect, Effect::Fail { counts: true, reason, .. } if reason == given_up),
            "{effect:?}"
        );
    }
}

#[test]
fn a_wrong_code_is_a_guess_of_it_only_behind_a_right_first_factor() {
    let row = Row::new("alice", Kind::Bound { one_time: false }, NEVER);
    for (password, expected) in [(RIGHT, true), ("a guess", false)] {
        let (machine, _) = said(guess(&row, password), &row, Request::Interactive);
        let (_, effect) = said(machine, &row, Request::Answers(vec!["000000".into()]));
        assert!(matches!(effect, Effect::Fail { code, .. } if code == expected), "{effect:?}");
    }
}

/// A notice is a question, which publickey has no way to ask (RFC 4252 section 7).
#[test]
fn whoever_gave_no_code_is_let_in_without_a_notice() {
    let mut row = Row::new("alice", Kind::Bound { one_time: false }, NEVER);
    row.account.drift = Some(60);
    let shown = Request::Certificate(Ok(of_login_ca(HELD.unsigned_abs())));
    let (machine, effect) = said(Machine::new(rules(), SOURCE), &row, shown);
    assert!(matches!(effect, Effect::SignIn(_)), "{effect:?}");
    let (_, effect) =
        machine.step(Input::SignedIn(Ok(Opened::committed(Claimed { recovery_left: 10 }))), START);
    assert!(matches!(effect, Effect::Reply(Reply::Accept(_))), "{effect:?}");
}
