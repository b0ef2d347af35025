//! Packets from the RFCs, replies of every wrong kind, and properties over any bytes.

use proptest::prelude::*;

use super::*;

fn secret(text: &str) -> SharedSecret {
    SharedSecret::new(text.into()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let octet = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(octet).collect()
}

/// The query that some packet is, as far as its reply is concerned.
fn query(packet: &[u8]) -> Query {
    let header = Header { identifier: packet[1], authenticator: packet[4..20].try_into().unwrap() };
    Query { bytes: Zeroizing::new(packet.to_vec()), header }
}

/// A reply as a server makes it: Message-Authenticator first, unless `sign` is false.
fn reply(query: &Query, code: u8, attributes: &[u8], secret: &SharedSecret, sign: bool) -> Vec<u8> {
    let head = |length: usize| {
        let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
        vec![code, query.header.identifier, high, low]
    };
    let mut all = Vec::new();
    if sign {
        let mut mac = secret.mac.clone();
        mac.update(&head(38 + attributes.len()));
        mac.update(&query.header.authenticator);
        mac.update(&[80, 18]);
        mac.update(&[0; 16]);
        mac.update(attributes);
        all.extend([80, 18]);
        all.extend_from_slice(&mac.finalize().into_bytes());
    }
    all.extend_from_slice(attributes);
    let head = head(20 + all.len());
    let digest = Md5::new()
        .chain_update(&head)
        .chain_update(query.header.authenticator)
        .chain_update(&all)
        .chain_update(secret.bytes())
        .finalize();
    [&head, &digest[..], &all].concat()
}

fn ask(header: Header, access: Access<'_>) -> Query {
    Query::new(header, &Ask::Access(access), &secret("s")).unwrap()
}

const HEADER_OF_TEST: Header = Header { identifier: 7, authenticator: [9; 16] };

fn plain(password: &SecretString) -> Access<'_> {
    Access {
        user: "alice",
        password,
        nas_identifier: "bastion",
        calling_station: "192.0.2.1",
        state: None,
    }
}

#[test]
fn rfc_2865_7_1_hides_the_password_and_accepts() {
    let request = bytes(
        "01 00 00 38 0f 40 3f 94 73 97 80 57 bd 83 d5 cb 98 f4 22 7a 01 06 6e 65 6d 6f 02 12 0d be 70 \
         8d 93 d4 13 ce 31 96 e4 3f 78 2a 0a ee 04 06 c0 a8 01 10 05 06 00 00 00 03",
    );
    let reply = bytes(
        "02 00 00 26 86 fe 22 0e 76 24 ba 2a 10 05 f6 bf 9b 55 e0 b2 06 06 00 00 00 01 0f 06 00 00 00 \
         00 0e 06 c0 a8 01 03",
    );
    let secret = secret("xyzzy5461");
    let query = query(&request);
    let hidden = hide(b"arctangent", &query.header.authenticator, &secret).unwrap();
    assert_eq!(&hidden[..], &request[28..44]);
    let answer = query.read(&reply, &secret, false).unwrap();
    assert_eq!(answer.decision, Decision::Accept);
    assert!(!answer.signed && answer.message.is_empty() && answer.state.is_none());
    assert_eq!(query.read(&reply, &secret, true), Err(Discard::NoMessageAuthenticator));
}

#[test]
fn rfc_2865_7_2_accepts() {
    let request = bytes("01 01 00 47 2a ee 86 f0 8d 0d 55 96 9c a5 97 8e 0d 33 67 a2");
    let reply = bytes(
        "02 01 00 38 15 ef bc 7d ab 26 cf a3 dc 34 d9 c0 3c 86 01 a4 06 06 00 00 00 02 07 06 00 00 00 \
         01 08 06 ff ff ff fe 0a 06 00 00 00 02 0d 06 00 00 00 01 0c 06 00 00 05 dc",
    );
    let answer = query(&request).read(&reply, &secret("xyzzy5461"), false).unwrap();
    assert_eq!(answer.decision, Decision::Accept);
}

#[test]
fn rfc_2865_7_3_challenges_and_rejects() {
    let secret = secret("xyzzy5461");
    let request = bytes("01 02 00 39 f3 a4 7a 1f 6a 6d 76 71 0b 94 7a b9 30 41 a0 39");
    let reply = bytes(
        "0b 02 00 4e 36 f3 c8 76 4a e8 c7 11 57 40 3c 0c 71 ff 9c 45 12 30 43 68 61 6c 6c 65 6e 67 65 \
         20 33 32 37 36 39 34 33 30 2e 20 20 45 6e 74 65 72 20 72 65 73 70 6f 6e 73 65 20 61 74 20 70 \
         72 6f 6d 70 74 2e 18 0a 33 32 37 36 39 34 33 30",
    );
    let first = query(&request);
    let hidden = hide(b"challenge", &first.header.authenticator, &secret).unwrap();
    assert_eq!(hidden[..], bytes("33 65 75 73 77 82 89 b5 70 88 5e 15 08 48 25 c5"));
    let answer = first.read(&reply, &secret, false).unwrap();
    assert_eq!(answer.decision, Decision::Challenge);
    assert_eq!(answer.message, "Challenge 32769430.  Enter response at prompt.");
    assert_eq!(answer.state.unwrap()[..], *b"32769430");

    let request = bytes("01 03 00 43 b1 22 55 6d 42 8a 13 d0 d6 25 38 07 c4 57 ec f0");
    let reply = bytes("03 03 00 14 a4 2f 4f ca 45 91 6c 4e 09 c8 34 0f 9e 74 6a a0");
    let second = query(&request);
    let hidden = hide(b"99101462", &second.header.authenticator, &secret).unwrap();
    assert_eq!(hidden[..], bytes("69 2c 1f 20 5f c0 81 b9 19 b9 51 95 f5 61 a5 81"));
    assert_eq!(second.read(&reply, &secret, false).unwrap().decision, Decision::Reject);
}

#[test]
fn rfc_5997_6_1_asks_whether_the_server_is_there() {
    let request = bytes(
        "0c da 00 26 8a 54 f4 68 6f b3 94 c5 28 66 e3 02 18 5d 06 23 50 12 5a 66 5e 2e 1e 84 11 f3 e2 \
         43 82 20 97 c8 4f a3",
    );
    let reply = bytes("02 da 00 14 ef 0d 55 2a 4b f2 d6 93 ec 2b 6f e8 b5 41 1d 66");
    let secret = secret("xyzzy5461");
    let built = Query::new(query(&request).header, &Ask::Status, &secret).unwrap();
    assert_eq!(built.bytes(), request);
    assert_eq!(built.read(&reply, &secret, false).unwrap().decision, Decision::Accept);
}

#[test]
fn a_request_has_all_attributes_and_the_message_authenticator_first() {
    let password = "123456".into();
    let built = ask(HEADER_OF_TEST, Access { state: Some(b"st"), ..plain(&password) });
    let packet = built.bytes();
    assert_eq!((packet[0], packet[1]), (1, 7));
    assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
    let attributes: Vec<_> = Values(&packet[20..]).map(Result::unwrap).collect();
    let kinds: Vec<u8> = attributes.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [80, 1, 2, 6, 61, 32, 31, 24]);
    assert_eq!(attributes[1].1, b"alice");
    assert_eq!(attributes[3].1, [0, 0, 0, 8]);
    assert_eq!(attributes[4].1, [0, 0, 0, 5]);
    assert_eq!(attributes[5].1, b"bastion");
    assert_eq!(attributes[6].1, b"192.0.2.1");
    assert_eq!(attributes[7].1, b"st");
    let mut zeroed = packet.to_vec();
    zeroed[22..38].fill(0);
    secret("s").mac.chain_update(zeroed).verify_slice(attributes[0].1).unwrap();
}

#[test]
fn what_cannot_be_said_is_refused() {
    let long = "p".repeat(129);
    let fits = "p".repeat(128).into();
    let (long, nul): (SecretString, SecretString) = (long.into(), "a\0".into());
    let name = "u".repeat(254);
    let state = [0; 254];
    let refused = |access: Access<'_>| {
        Query::new(HEADER_OF_TEST, &Ask::Access(access), &secret("s")).unwrap_err()
    };
    assert!(ask(HEADER_OF_TEST, plain(&fits)).bytes().len() > 128);
    assert_eq!(refused(plain(&long)), Invalid::TooLong("password", 128));
    assert_eq!(refused(plain(&nul)), Invalid::Nul);
    assert_eq!(refused(Access { user: "", ..plain(&fits) }), Invalid::NoUser);
    assert_eq!(refused(Access { user: &name, ..plain(&fits) }), Invalid::TooLong("user name", 253));
    let with_state = Access { state: Some(&state), ..plain(&fits) };
    assert_eq!(refused(with_state), Invalid::TooLong("state", 253));
    assert_eq!(SharedSecret::new("".into()).unwrap_err(), EmptySecret);
}

/// Each way in which a reply can be wrong has its reason.
#[test]
fn a_wrong_reply_is_discarded_with_its_reason() {
    let (ours, other) = (secret("s"), secret("t"));
    let password = "1".into();
    let asked = ask(HEADER_OF_TEST, plain(&password));
    let elsewhere = ask(Header { identifier: 8, ..HEADER_OF_TEST }, plain(&password));
    let before = ask(Header { authenticator: [8; 16], ..HEADER_OF_TEST }, plain(&password));
    let good = reply(&asked, 2, b"", &ours, true);
    assert!(asked.read(&good, &ours, true).unwrap().signed);
    // Padding behind the length is ignored.
    assert!(asked.read(&[&good[..], b"padding"].concat(), &ours, true).is_ok());

    // A right Response Authenticator over a wrong Message-Authenticator, as CVE-2024-3596 makes it.
    let forged_mac = reply(&asked, 2, &[&[80, 18][..], &[0; 16]].concat(), &ours, false);
    let twice = reply(&asked, 2, &[&[80, 18][..], &[0; 16]].concat(), &ours, true);
    let mut short = good.clone();
    short[3] = 19;
    let mut long = good.clone();
    long[3] += 1;
    let mut huge = good.clone();
    huge[2..4].copy_from_slice(&4097u16.to_be_bytes());
    huge.resize(4097, 0);
    for (what, packet, why) in [
        ("nothing", vec![], Discard::Length),
        ("half a header", good[..19].to_vec(), Discard::Length),
        ("a length below a header", short, Discard::Length),
        ("a length beyond the datagram", long, Discard::Length),
        ("a length beyond the limit", huge, Discard::Length),
        ("cut off", good[..good.len() - 1].to_vec(), Discard::Length),
        ("a request", reply(&asked, 1, b"", &ours, true), Discard::Code(1)),
        ("accounting", reply(&asked, 5, b"", &ours, true), Discard::Code(5)),
        ("another identifier", reply(&elsewhere, 2, b"", &ours, true), Discard::Identifier),
        ("an old one", reply(&before, 2, b"", &ours, true), Discard::ResponseAuthenticator),
        ("another secret", reply(&asked, 2, b"", &other, true), Discard::ResponseAuthenticator),
        ("no MAC", reply(&asked, 2, b"", &ours, false), Discard::NoMessageAuthenticator),
        ("a forged MAC", forged_mac, Discard::MessageAuthenticator),
        ("two MACs", twice, Discard::Attribute(80)),
        ("a short MAC", reply(&asked, 2, &[80, 3, 0], &ours, false), Discard::Attribute(80)),
        ("attribute length 0", reply(&asked, 2, &[18, 0], &ours, true), Discard::Attribute(18)),
        ("attribute length 1", reply(&asked, 2, &[18, 1], &ours, true), Discard::Attribute(18)),
        ("half an attribute", reply(&asked, 2, &[18], &ours, true), Discard::Attribute(18)),
        ("too long", reply(&asked, 2, &[18, 4, 0], &ours, true), Discard::Attribute(18)),
        ("no State", reply(&asked, 11, &[24, 2], &ours, true), Discard::Attribute(24)),
        ("two", reply(&asked, 11, &[24, 3, 1, 24, 3, 1], &ours, true), Discard::Attribute(24)),
        ("timeout", reply(&asked, 2, &[27, 3, 1], &ours, true), Discard::Attribute(27)),
    ] {
        assert_eq!(asked.read(&packet, &ours, true), Err(why), "{what}");
    }
    // The switch only forgives that there is none.
    let unsigned = reply(&asked, 2, b"", &ours, false);
    assert!(!asked.read(&unsigned, &ours, false).unwrap().signed);
    let forged_mac = reply(&asked, 2, &[&[80, 18][..], &[0; 16]].concat(), &ours, false);
    assert_eq!(asked.read(&forged_mac, &ours, false), Err(Discard::MessageAuthenticator));
}

#[test]
fn messages_are_joined_and_other_attributes_ignored() {
    let attribute = |kind: u8, value: &[u8]| {
        [&[kind, u8::try_from(value.len() + 2).unwrap()][..], value].concat()
    };
    let full = "é".repeat(126);
    let (start, end) = ([full.as_bytes(), &[0xc3]].concat(), [&[0xa9][..], b"!"].concat());
    let attributes = [
        attribute(18, b"Hello \x1b[2J"),
        attribute(33, b"proxy state"),
        attribute(18, &start),
        attribute(18, &end),
        attribute(25, b"class"),
        attribute(18, b"\xff"),
        attribute(26, b"vendor"),
        attribute(27, &600u32.to_be_bytes()),
    ]
    .concat();
    let password = "1".into();
    let asked = ask(HEADER_OF_TEST, plain(&password));
    let packet = reply(&asked, 3, &attributes, &secret("s"), true);
    let answer = asked.read(&packet, &secret("s"), true).unwrap();
    assert_eq!(answer.message, format!("Hello \x1b[2J\n{full}é!\n\u{fffd}"));
    assert_eq!(answer.session_timeout, Some(Duration::from_secs(600)));
    assert_eq!(answer.decision, Decision::Reject);
}

#[test]
fn nothing_secret_is_shown() {
    let password = "hunter2".into();
    let asked = ask(HEADER_OF_TEST, plain(&password));
    let packet = reply(&asked, 11, b"\x18\x08STATE!", &secret("s"), true);
    let answer = asked.read(&packet, &secret("s"), true).unwrap();
    let shown = format!("{asked:?} {:?} {answer:?} {:?}", secret("hidden"), plain(&password));
    for word in ["hunter2", "hidden", "STATE!", "83, 84, 65"] {
        assert!(!shown.contains(word), "{shown}");
    }
}

/// What a server does with the hidden password (RFC 2865 section 5.2).
fn reveal(hidden: &[u8], authenticator: &[u8; 16], secret: &SharedSecret) -> Vec<u8> {
    let mut before = authenticator.to_vec();
    let mut plain = Vec::new();
    for block in hidden.chunks(16) {
        let pad = Md5::new().chain_update(secret.bytes()).chain_update(&before).finalize();
        plain.extend(block.iter().zip(&pad).map(|(a, b)| a ^ b));
        before = block.to_vec();
    }
    let end = plain.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    plain.truncate(end);
    plain
}

proptest! {
    #[test]
    fn what_a_request_says_is_what_a_server_reads(
        identifier: u8, authenticator: [u8; 16], user in "[^\0]{1,60}", password in "[^\0]{0,32}",
        station in ".{0,60}", shared in ".{1,100}", state in prop::collection::vec(any::<u8>(), 1..253)
    ) {
        let (shared, password) = (secret(&shared), SecretString::from(password));
        let access = Access {
            user: &user, password: &password, nas_identifier: "n", calling_station: &station,
            state: Some(&state),
        };
        let header = Header { identifier, authenticator };
        let built = Query::new(header, &Ask::Access(access), &shared).unwrap();
        let read: Vec<_> = Values(&built.bytes()[20..]).map(Result::unwrap).collect();
        let value = |kind| read.iter().find(|(k, _)| *k == kind).map(|(_, value)| *value);
        prop_assert_eq!(value(1), Some(user.as_bytes()));
        let hidden = value(2).unwrap();
        prop_assert_eq!(reveal(hidden, &authenticator, &shared), password.expose_secret().as_bytes());
        prop_assert_eq!(value(31).unwrap_or_default(), station.as_bytes());
        prop_assert_eq!(value(24), Some(&state[..]));
    }

    #[test]
    fn any_bytes_are_no_reply(mut packet in prop::collection::vec(any::<u8>(), 0..200), valid: bool) {
        // Past the cheap checks more often than chance would have it.
        if valid && packet.len() >= 20 {
            let length = u8::try_from(packet.len()).unwrap();
            packet[..4].copy_from_slice(&[2, 7, 0, length]);
        }
        let password = "1".into();
        prop_assert!(ask(HEADER_OF_TEST, plain(&password)).read(&packet, &secret("s"), false).is_err());
    }

    /// Any attributes, from somebody who knows the secret.
    #[test]
    fn any_attributes_are_read_or_discarded(
        attributes in prop::collection::vec(any::<u8>(), 0..300), code in 0u8..15, sign: bool
    ) {
        let password = "1".into();
        let asked = ask(HEADER_OF_TEST, plain(&password));
        let packet = reply(&asked, code, &attributes, &secret("s"), sign);
        match asked.read(&packet, &secret("s"), true) {
            Ok(answer) => prop_assert!(answer.signed && [2, 3, 11].contains(&code)),
            Err(why) => prop_assert!(!sign || !matches!(why, Discard::ResponseAuthenticator)),
        }
    }

    #[test]
    fn a_reply_with_any_bit_flipped_is_refused(
        text in prop::collection::vec(any::<u8>(), 0..60), sign: bool, at in any::<prop::sample::Index>()
    ) {
        let attributes = [&[18, u8::try_from(text.len() + 2).unwrap()][..], &text].concat();
        let password = "1".into();
        let asked = ask(HEADER_OF_TEST, plain(&password));
        let mut packet = reply(&asked, 2, &attributes, &secret("s"), sign);
        prop_assert!(asked.read(&packet, &secret("s"), false).is_ok());
        let bit = at.index(packet.len() * 8);
        packet[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(asked.read(&packet, &secret("s"), false).is_err());
    }
}
