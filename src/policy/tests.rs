//! Tables and properties of the policy.

use proptest::prelude::*;

use super::*;
use crate::domain::{AccountName, GrantObject, GrantSubject, Mode, TargetName};

const NOW: UnixTime = UnixTime(1_795_508_403_000); // A Tuesday, 09:20 in Berlin.

fn id(n: usize) -> Id {
    format!("{n:0>12}").parse().unwrap()
}

fn target(name: &str, address: &str, labels: &[&str]) -> Target {
    Target {
        id: id(0),
        name: name.parse().unwrap(),
        address: address.parse().unwrap(),
        mode: Mode::Tunnel,
        sign_in: None,
        labels: labels.iter().map(|l| l.parse().unwrap()).collect(),
        created_at: NOW,
    }
}

fn grant(n: usize, subject: GrantSubject, object: GrantObject) -> Grant {
    Grant {
        id: id(n),
        subject,
        object,
        accounts: Vec::new(),
        allow: Vec::new(),
        hours: None,
        from: Vec::new(),
        until: None,
        step_up: false,
        created_at: NOW,
    }
}

fn user(name: &str) -> GrantSubject {
    GrantSubject::User(name.parse().unwrap())
}

fn to(name: &str) -> GrantObject {
    GrantObject::Target(name.parse::<TargetName>().unwrap())
}

fn ask(targets: &[Target], grants: &[Grant], destination: &str, port: u32) -> Decision {
    let who = "alice".parse().unwrap();
    let groups = ["dba".parse().unwrap()];
    let subject = Subject {
        user: &who,
        groups: &groups,
        source: "192.0.2.7".parse().unwrap(),
        given: Factors::ALL,
    };
    let destination = Destination::parse(destination, port).unwrap();
    authorize(&subject, targets, grants, &destination, NOW)
}

#[test]
fn a_target_may_ask_for_more_than_the_door() {
    let who: UserName = "alice".parse().unwrap();
    let db1 = Target {
        sign_in: Some("key+otp, certificate from 192.0.2.0/24".parse().unwrap()),
        ..target("db1", "10.0.0.5", &[])
    };
    let grants = [grant(1, user("alice"), to("db1"))];
    let ask = |given, source: &str| {
        let subject = Subject { user: &who, groups: &[], source: source.parse().unwrap(), given };
        authorize(
            &subject,
            std::slice::from_ref(&db1),
            &grants,
            &Destination::parse("db1", 22).unwrap(),
            NOW,
        )
    };
    let (key, otp) = (Factors::KEY, Factors::OTP);
    permit(ask(key.with(otp), "203.0.113.1"));
    permit(ask(Factors::CERTIFICATE, "192.0.2.7"));
    let (reason, text) = message(ask(Factors::PASSWORD.with(otp), "192.0.2.7"));
    assert_eq!(reason, Refusal::SignInRule);
    let asks = "db1 asks for key+otp, certificate from 192.0.2.0/24";
    assert_eq!(text, format!("{asks}; you signed in with password+otp"));
    assert_eq!(message(ask(Factors::CERTIFICATE, "203.0.113.1")).0, Refusal::SignInRule);
    // What is asked for is no hint of what is granted.
    let none = message(authorize(
        &Subject { user: &who, groups: &[], source: "192.0.2.7".parse().unwrap(), given: key },
        std::slice::from_ref(&db1),
        &[],
        &Destination::parse("db1", 22).unwrap(),
        NOW,
    ));
    assert_eq!(none.1, "db1 is not granted to you");
    // Explained, it is told who could; from where nothing is enough, that nobody can.
    let explained = |source: Option<&str>, rule: &str| {
        let db1 = Target { sign_in: Some(rule.parse().unwrap()), ..db1.clone() };
        let source = source.map(|source| source.parse().unwrap());
        let asked = Question { user: &who, groups: &[], source, account: None };
        explain(&asked, &[db1], &grants, &Destination::parse("db1", 22).unwrap(), NOW)
    };
    let near = "key from 192.0.2.0/24";
    assert!(explained(None, near).permitted && explained(Some("192.0.2.7"), near).permitted);
    let far = explained(Some("203.0.113.1"), near);
    assert_eq!(
        (far.permitted, far.decision.as_str()),
        (false, "refused: db1 asks for key from 192.0.2.0/24")
    );
}

fn message(decision: Decision) -> (Refusal, String) {
    match decision {
        Decision::Refuse(refused) => (refused.reason, refused.message),
        Decision::Permit(permit) => panic!("permitted: {permit:?}"),
    }
}

fn permit(decision: Decision) -> Permit {
    match decision {
        Decision::Permit(permit) => permit,
        Decision::Refuse(refused) => panic!("refused: {refused:?}"),
    }
}

#[test]
fn destinations_mean_targets_by_name_or_address() {
    let targets =
        [target("db1", "10.0.0.5:2222", &["env=prod"]), target("pg", "10.0.0.6:5432", &[])];
    let grants = [grant(1, user("alice"), to("db1")), grant(2, user("alice"), to("pg"))];
    for (host, port) in [("db1", 22), ("DB1", 2222), ("10.0.0.5", 2222), ("pg", 5432), ("pg", 22)] {
        assert!(matches!(ask(&targets, &grants, host, port), Decision::Permit(_)), "{host}:{port}");
    }
    for (host, port) in [("db1", 5432), ("10.0.0.5", 22), ("10.0.0.5", 80), ("pg", 80), ("db2", 22)]
    {
        assert!(matches!(ask(&targets, &grants, host, port), Decision::Refuse(_)), "{host}:{port}");
    }
}

#[test]
fn rights_for_sessions_are_of_grants_on_recorded_targets() {
    let who = "alice".parse().unwrap();
    let subject = Subject {
        user: &who,
        groups: &[],
        source: "192.0.2.7".parse().unwrap(),
        given: Factors::ALL,
    };
    let recorded = |name| Target { mode: Mode::Record, ..target(name, "10.0.0.5", &[]) };
    let targets = [recorded("db1"), target("opaque", "10.0.0.6", &[])];
    let allowing = |whose: &str, name: &str, allow: &[Capability]| Grant {
        allow: allow.to_vec(),
        ..grant(1, user(whose), to(name))
    };
    let agent = [Capability::Shell, Capability::Agent];
    for (grants, rights) in [
        (vec![], vec![]),
        // What a grant gives that names nothing; X11 has to be named.
        (vec![allowing("alice", "db1", &[])], vec![Capability::Agent]),
        (vec![allowing("alice", "db1", &[Capability::Shell])], vec![]),
        (vec![allowing("alice", "db1", &agent)], vec![Capability::Agent]),
        (vec![allowing("bob", "db1", &agent)], vec![]),
        (vec![allowing("alice", "opaque", &agent)], vec![]),
        (
            vec![allowing("alice", "db1", &agent), allowing("alice", "db1", &[Capability::X11])],
            vec![Capability::Agent, Capability::X11],
        ),
    ] {
        let found = session_rights(&subject, &targets, &grants);
        assert_eq!(found, rights, "{grants:?}");
    }
}

#[test]
fn unknown_and_ungranted_are_refused_in_the_same_words() {
    let targets = [target("db1", "10.0.0.5", &[])];
    let others = [grant(1, user("bob"), to("db1"))];
    let reply = |name: &str| message(ask(&targets, &others, name, 22));
    assert_eq!(reply("db1"), (Refusal::NotGranted, "db1 is not granted to you".into()));
    assert_eq!(reply("db2"), (Refusal::NotGranted, "db2 is not granted to you".into()));
    assert_eq!(message(ask(&targets, &others, "pg", 5432)).1, "pg:5432 is not granted to you");
}

#[test]
fn groups_and_labels_grant() {
    let targets = [target("db1", "10.0.0.5", &["env=prod"])];
    let label = |l: &str| GrantObject::Label(l.parse().unwrap());
    let group = |g: &str| GrantSubject::Group(g.parse().unwrap());
    let permits = |g: Grant| matches!(ask(&targets, &[g], "db1", 22), Decision::Permit(_));
    assert!(permits(grant(1, group("dba"), label("env=prod"))));
    assert!(!permits(grant(1, group("dba"), label("env=test"))));
    assert!(!permits(grant(1, group("web"), label("env=prod"))));
}

#[test]
fn refusals_say_what_would_help() {
    let targets = [target("db1", "10.0.0.5", &[])];
    let base = || grant(1, user("alice"), to("db1"));
    let hours =
        Grant { hours: Some("Sat-Sun 08:00-18:00 Europe/Berlin".parse().unwrap()), ..base() };
    let source = Grant { from: vec!["198.51.100.0/24".parse().unwrap()], ..base() };
    let over = Grant { until: Some(NOW), ..base() };
    let shell = Grant { allow: vec![Capability::Shell], ..base() };
    for (grant, reason, text) in [
        (
            &hours,
            Refusal::OutsideHours,
            "outside granted hours (Sat-Sun 08:00-18:00 Europe/Berlin)",
        ),
        (
            &source,
            Refusal::WrongSource,
            "your address 192.0.2.7 is not one that the grant for db1 allows",
        ),
        (&over, Refusal::Expired, "your grant for db1 ended on 2026-11-24T08:20:03Z"),
        (&shell, Refusal::NotGranted, "db1 is granted to you, but not for forwarding"),
    ] {
        assert_eq!(
            message(ask(&targets, std::slice::from_ref(grant), "db1", 22)),
            (reason, text.into())
        );
    }
    let all = [over.clone(), source.clone(), hours.clone(), shell];
    assert_eq!(message(ask(&targets, &all, "db1", 22)).0, Refusal::OutsideHours);
    assert_eq!(permit(ask(&targets, &[hours, source, base()], "db1", 22)).until(), None);
}

#[test]
fn without_a_source_the_condition_is_told_and_not_judged() {
    let targets = [target("db1", "10.0.0.5", &[])];
    let near =
        Grant { from: vec!["10.0.0.0/8".parse().unwrap()], ..grant(1, user("alice"), to("db1")) };
    let anywhere = grant(2, user("alice"), to("db1"));
    let who = "alice".parse().unwrap();
    let ask = |grants: &[Grant], source: Option<&str>| {
        let source = source.map(|ip| ip.parse().unwrap());
        let asked = Question { user: &who, groups: &[], source, account: None };
        explain(&asked, &targets, grants, &Destination::parse("db1", 22).unwrap(), NOW)
    };
    let told = ask(std::slice::from_ref(&near), None);
    assert!(told.permitted);
    assert_eq!(told.decision, "permitted, from 10.0.0.0/8 only: db1 at 10.0.0.5:22");
    assert_eq!(told.grants[0].why, "it covers db1, from 10.0.0.0/8 only");
    assert_eq!(ask(&[near.clone(), anywhere], None).decision, "permitted: db1 at 10.0.0.5:22");
    assert!(!ask(std::slice::from_ref(&near), Some("192.0.2.7")).permitted);
    let mut here = ask(&[near], Some("10.1.2.3"));
    assert_eq!(here.decision, "permitted: db1 at 10.0.0.5:22");
    here.cannot_sign_in("alice is disabled".into());
    let said = "refused: alice is disabled; otherwise permitted: db1 at 10.0.0.5:22\n  yes";
    assert!(!here.permitted && here.to_string().starts_with(said), "{here}");
    let mut nowhere = ask(&[], None);
    nowhere.cannot_sign_in("alice is disabled".into());
    assert_eq!(nowhere.decision, "refused: alice is disabled; and db1 is not granted to alice");
}

#[test]
fn an_account_is_explained_by_the_rights_that_hold_for_it() {
    use Capability::{Exec, Forward, SftpRead, Shell};
    let record = Target { mode: Mode::Record, ..target("db1", "10.0.0.5", &[]) };
    let mine = |n, accounts: &[&str], allow: &[Capability]| Grant {
        accounts: accounts.iter().map(|name| name.parse().unwrap()).collect(),
        allow: allow.to_vec(),
        ..grant(n, user("alice"), to("db1"))
    };
    let closed = Grant {
        hours: Some("Sat 03:00-03:01 Europe/Berlin".parse().unwrap()),
        ..mine(3, &["root"], &[Forward])
    };
    let grants = [mine(1, &["root"], &[Shell]), mine(2, &["root", "app"], &[SftpRead]), closed];
    let who = "alice".parse().unwrap();
    let ask = |target: &Target, account: Option<&str>| {
        let account = account.map(|name| name.parse::<AccountName>().unwrap());
        let asked = Question { user: &who, groups: &[], source: None, account: account.as_ref() };
        let destination = Destination::parse("db1", 22).unwrap();
        explain(&asked, std::slice::from_ref(target), &grants, &destination, NOW)
    };
    let at = "db1 at 10.0.0.5:22";
    let permits = |told: &Explanation| told.grants.iter().map(|g| g.permits).collect::<Vec<_>>();
    for (account, decision, rights, by) in [
        (
            Some("root"),
            format!("permitted: root on {at}, for shell, sftp-read"),
            &[Shell, SftpRead][..],
            [true, true, false],
        ),
        (
            Some("app"),
            format!("permitted: app on {at}, for sftp-read"),
            &[SftpRead],
            [false, true, false],
        ),
        (
            Some("bin"),
            "refused: bin on db1 is not granted to alice, but app, root".to_owned(),
            &[],
            [false, false, false],
        ),
        // What may be done depends on the account, and each grant says it.
        (None, format!("permitted: {at}"), &[], [true, true, false]),
    ] {
        let told = ask(&record, account);
        assert_eq!((told.decision.as_str(), &told.rights[..]), (decision.as_str(), rights));
        assert_eq!(permits(&told), by, "{account:?}");
        assert_eq!(told.permitted, by.contains(&true), "{account:?}");
    }
    let told = ask(&record, None);
    assert_eq!(told.grants[0].rights, [Shell]);
    assert!(told.to_string().contains("it covers db1, for sftp-read\n"), "{told}");
    // In tunnel mode the account makes no difference.
    let tunnel = target("db1", "10.0.0.5", &[]);
    assert_eq!(ask(&tunnel, Some("root")), ask(&tunnel, None));
    let open = [grant(1, user("alice"), to("db1")), mine(2, &[], &[Exec])];
    let asked = Question { user: &who, groups: &[], source: None, account: None };
    let told = explain(&asked, &[tunnel], &open, &Destination::parse("db1", 22).unwrap(), NOW);
    assert_eq!((told.permitted, &told.rights[..]), (true, &[Forward][..]));
    assert_eq!(permits(&told), [true, false]);
}

#[test]
fn a_permit_says_until_when_it_holds() {
    let targets = [target("db1", "10.0.0.5", &[])];
    let until = |until, hours: &str| Grant {
        until,
        hours: Some(hours.parse().unwrap()),
        ..grant(1, user("alice"), to("db1"))
    };
    let closes = UnixTime(1_795_539_600_000); // 18:00 in Berlin.
    let grants = [until(None, "Tue 08:00-18:00 Europe/Berlin")];
    assert_eq!(permit(ask(&targets, &grants, "db1", 22)).until(), Some(closes));
    let grants = [until(Some(UnixTime(NOW.0 + 1)), "Tue 08:00-18:00 Europe/Berlin")];
    assert_eq!(permit(ask(&targets, &grants, "db1", 22)).until(), Some(UnixTime(NOW.0 + 1)));
}

#[test]
fn addresses_are_checked_all_of_them() {
    let check = |address: &str, resolved: &[&str], own: &[&str]| {
        let targets = [target("db1", address, &[])];
        let permit = permit(ask(&targets, &[grant(1, user("alice"), to("db1"))], "db1", 22));
        let resolved: Vec<_> = resolved.iter().map(|ip| ip.parse().unwrap()).collect();
        let own: Vec<_> = own.iter().map(|a| a.parse().unwrap()).collect();
        permit
            .check_addresses(&resolved, &own)
            .map(|c| c.addresses().to_vec())
            .map_err(|r| r.message)
    };
    assert_eq!(check("db1.example", &["10.0.0.5"], &[]).unwrap(), ["10.0.0.5:22".parse().unwrap()]);
    assert_eq!(check("127.0.0.1:2022", &["127.0.0.1"], &[]).unwrap().len(), 1);
    // A name that is pointed at one good and one bad address (rebinding) gets neither.
    for bad in ["127.0.0.1", "::ffff:127.0.0.1", "::1", "169.254.169.254", "0.0.0.0"] {
        let error = check("db1.example", &["10.0.0.5", bad], &[]).unwrap_err();
        assert!(error.starts_with("db1 leads to a forbidden address"), "{error}");
    }
    let own = ["10.0.0.9:2222"];
    assert!(check("me.example:2222", &["10.0.0.9"], &own).is_err());
    assert!(check("me.example:22", &["10.0.0.9"], &own).is_ok());
    assert!(check("10.0.0.9:2222", &["10.0.0.9"], &own).is_ok());
    assert_eq!(check("db1.example", &[], &[]).unwrap_err(), "db1 did not resolve to an address");
}

fn arbitrary_grant() -> impl Strategy<Value = Grant> {
    let subject = prop_oneof![
        Just(user("alice")),
        Just(user("bob")),
        Just(GrantSubject::Group("dba".parse().unwrap())),
        Just(GrantSubject::Group("web".parse().unwrap())),
    ];
    let object = prop_oneof![
        Just(to("t0")),
        Just(to("t1")),
        Just(GrantObject::Label("env=prod".parse().unwrap())),
    ];
    let until = proptest::option::of((NOW.0 - 5..NOW.0 + 5).prop_map(UnixTime));
    let from = proptest::option::of(prop_oneof![Just("192.0.2.0/24"), Just("198.51.100.0/24")]);
    (subject, object, until, from).prop_map(|(subject, object, until, from)| Grant {
        until,
        from: from.into_iter().map(|net| net.parse().unwrap()).collect(),
        ..grant(0, subject, object)
    })
}

/// Up to five grants, each with an id of its own, as in the store.
fn arbitrary_grants() -> impl Strategy<Value = Vec<Grant>> {
    proptest::collection::vec(arbitrary_grant(), 0..6).prop_map(|mut grants| {
        for (n, grant) in grants.iter_mut().enumerate() {
            grant.id = id(n);
        }
        grants
    })
}

proptest! {
    #[test]
    fn fewer_grants_never_permit_more_and_explanations_agree(
        grants in arbitrary_grants(), drop in 0..6_usize, which in 0..3_usize,
    ) {
        let targets = [target("t0", "10.0.0.1", &["env=prod"]), target("t1", "10.0.0.2", &[])];
        let name = format!("t{which}");
        let all = ask(&targets, &grants, &name, 22);
        let mut fewer = grants.clone();
        if drop < fewer.len() {
            fewer.remove(drop);
        }
        if matches!(ask(&targets, &fewer, &name, 22), Decision::Permit(_)) {
            prop_assert!(matches!(all, Decision::Permit(_)));
        }
        if let Decision::Permit(permit) = &all {
            let grant = grants.iter().find(|g| g.id == *permit.grant()).unwrap();
            let mine = match &grant.subject {
                GrantSubject::User(user) => user.as_str() == "alice",
                GrantSubject::Group(group) => group.as_str() == "dba",
            };
            prop_assert!(mine && permit.target().name.as_str() == name);
            prop_assert!(permit.until().is_none_or(|until| until > NOW));
        }
        let who = "alice".parse().unwrap();
        let groups = ["dba".parse().unwrap()];
        let source = Some("192.0.2.7".parse().unwrap());
        let asked = Question { user: &who, groups: &groups, source, account: None };
        let destination = Destination::parse(&name, 22).unwrap();
        let explained = explain(&asked, &targets, &grants, &destination, NOW);
        prop_assert_eq!(explained.permitted, matches!(all, Decision::Permit(_)));
        prop_assert_eq!(explained.permitted, explained.grants.iter().any(|verdict| verdict.permits));
    }
}

fn as_account(grants: &[Grant], account: &str, mode: Mode) -> AccountDecision {
    let who = "alice".parse().unwrap();
    let subject = Subject {
        user: &who,
        groups: &[],
        source: "192.0.2.7".parse().unwrap(),
        given: Factors::ALL,
    };
    let target = Target { mode, ..target("db1", "10.0.0.5", &[]) };
    authorize_account(&subject, &target, grants, &account.parse().unwrap(), NOW)
}

#[test]
fn an_account_has_the_rights_of_the_grants_that_hold_for_it() {
    let grant = |n, accounts: &[&str], allow: &[Capability]| Grant {
        accounts: accounts.iter().map(|name| name.parse().unwrap()).collect(),
        allow: allow.to_vec(),
        ..grant(n, user("alice"), to("db1"))
    };
    let expired = Grant { until: Some(NOW), ..grant(3, &[], &[]) };
    let grants = [
        grant(1, &["deploy"], &[Capability::Exec]),
        grant(2, &["deploy", "app"], &[Capability::SftpRead, Capability::Exec]),
        expired,
    ];
    let AccountDecision::Permit(permit) = as_account(&grants, "deploy", Mode::Record) else {
        panic!("deploy is refused");
    };
    assert_eq!(permit.rights(), [Capability::Exec, Capability::SftpRead]);
    assert_eq!(permit.grants(), [id(1), id(2)]);
    assert!(!permit.allows(Capability::Shell));
    let AccountDecision::Refuse(refused) = as_account(&grants[..2], "root", Mode::Record) else {
        panic!("root is permitted");
    };
    assert_eq!(refused.reason, Refusal::NotGranted);
    assert_eq!(refused.message, "root on db1 is not granted to you, but app, deploy");
    let AccountDecision::Refuse(refused) = as_account(&grants, "root", Mode::Record) else {
        panic!("root is permitted");
    };
    assert_eq!(refused.reason, Refusal::Expired);
}

#[test]
fn a_grant_without_words_allows_all_but_what_must_be_named() {
    let AccountDecision::Permit(permit) =
        as_account(&[grant(1, user("alice"), to("db1"))], "root", Mode::Record)
    else {
        panic!("root is refused");
    };
    for right in Capability::ALL {
        let named = matches!(right, Capability::X11 | Capability::RemoteForward);
        assert_eq!(permit.allows(*right), !named, "{right}");
    }
}

#[test]
fn single_accounts_cannot_be_granted_where_they_are_not_seen() {
    let only =
        Grant { accounts: vec!["deploy".parse().unwrap()], ..grant(1, user("alice"), to("db1")) };
    let (reason, text) = message(ask(&[target("db1", "10.0.0.5", &[])], &[only], "db1", 22));
    assert_eq!(reason, Refusal::NotGranted);
    assert!(text.ends_with("single accounts, which cannot be told in tunnel mode"), "{text}");
}

#[test]
fn one_grant_that_asks_for_a_code_is_enough() {
    let record = Target { mode: Mode::Record, ..target("db1", "10.0.0.5", &[]) };
    let who = "alice".parse().unwrap();
    let subject = Subject {
        user: &who,
        groups: &[],
        source: "192.0.2.7".parse().unwrap(),
        given: Factors::ALL,
    };
    let plain = grant(1, user("alice"), to("db1"));
    let asks = Grant { step_up: true, ..grant(2, user("alice"), to("db1")) };
    let for_root = Grant { accounts: vec!["root".parse().unwrap()], ..asks.clone() };
    let over = Grant { until: Some(NOW), ..asks.clone() };
    let others = Grant { subject: user("bob"), ..asks.clone() };
    for (grants, account, step_up) in [
        (vec![plain.clone()], "root", false),
        (vec![asks.clone()], "root", true),
        (vec![plain.clone(), asks.clone()], "root", true),
        (vec![asks.clone(), plain.clone()], "root", true),
        (vec![plain.clone(), for_root.clone()], "root", true),
        // What does not hold, or not for this account or user, asks nothing.
        (vec![plain.clone(), for_root], "app", false),
        (vec![plain.clone(), over.clone()], "root", false),
        (vec![plain.clone(), others.clone()], "root", false),
    ] {
        let name: AccountName = account.parse().unwrap();
        match authorize_account(&subject, &record, &grants, &name, NOW) {
            AccountDecision::Permit(permit) => assert_eq!(permit.step_up(), step_up, "{grants:?}"),
            AccountDecision::Refuse(refused) => panic!("{refused:?}"),
        }
        let asked = Question {
            user: &who,
            groups: &[],
            source: Some(subject.source),
            account: Some(&name),
        };
        let destination = Destination::parse("db1", 22).unwrap();
        let told = explain(&asked, std::slice::from_ref(&record), &grants, &destination, NOW);
        assert_eq!((told.permitted, told.step_up), (true, step_up));
        assert_eq!(told.decision.ends_with(", after a fresh code"), step_up, "{told}");
    }

    // Nobody can be asked in a tunnel.
    let tunnel = [target("db1", "10.0.0.5", &[])];
    for (grants, refused) in [
        (vec![plain.clone()], false),
        (vec![asks.clone()], true),
        (vec![plain.clone(), asks.clone()], true),
        (vec![asks.clone(), plain.clone()], true),
        (vec![plain.clone(), over], false),
        (vec![plain, others], false),
    ] {
        match ask(&tunnel, &grants, "db1", 22) {
            Decision::Permit(_) => assert!(!refused, "{grants:?}"),
            Decision::Refuse(why) => {
                assert!(refused && why.reason == Refusal::StepUp, "{grants:?}: {why:?}");
                assert!(why.message.contains("nobody can be asked for in tunnel mode"), "{why:?}");
            }
        }
    }
    let asked = Question { user: &who, groups: &[], source: None, account: None };
    let told = explain(&asked, &tunnel, &[asks], &Destination::parse("db1", 22).unwrap(), NOW);
    assert!(!told.permitted && !told.grants[0].permits, "{told}");
    assert!(told.grants[0].rule.ends_with(" step-up"), "{told}");
}
