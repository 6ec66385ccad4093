#![allow(clippy::unwrap_used)]
use super::*;

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A frame of a client with the shortest form of its length.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(MASKED | len as u8),
        len @ 126..=0xFFFF => {
            out.push(MASKED | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(MASKED | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// What came of a stream: each item with the bytes that were there when it ended.
type Seen = (Vec<(Item, Vec<u8>)>, Option<Violation>);

/// Gives the pieces to a decoder, one after another.
fn decode<'a>(mut decoder: Decoder, pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let (mut items, mut out) = (Vec::new(), Vec::new());
    for mut piece in pieces {
        loop {
            match decoder.next(&mut piece, &mut out) {
                Ok(None) => break,
                Ok(Some(item @ Item::Message(_))) => items.push((item, std::mem::take(&mut out))),
                Ok(Some(item)) => items.push((item, decoder.control().to_vec())),
                Err(violation) => return (items, Some(violation)),
            }
        }
        assert!(piece.is_empty());
    }
    (items, None)
}

fn both() -> Decoder {
    Decoder::new(None, 1 << 20)
}

fn violation(bytes: &[u8]) -> Option<Violation> {
    decode(both(), [bytes]).1
}

#[test]
fn the_masked_example_of_the_rfc_is_hello() {
    let bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    let seen = decode(both(), [&bytes[..]]);
    assert_eq!(seen, (vec![(Item::Message(Kind::Text), b"Hello".to_vec())], None));
}

#[test]
fn a_stream_is_the_same_however_it_is_cut() {
    let mut stream = Vec::new();
    stream.extend(frame(0x82, b"binary"));
    stream.extend(frame(0x01, "κό".as_bytes()));
    stream.extend(frame(0x89, b"are you there"));
    stream.extend(frame(0x00, &"σμε".as_bytes()[..3]));
    stream.extend(frame(0x8A, b""));
    stream.extend(frame(0x80, &"σμε".as_bytes()[3..]));
    stream.extend(frame(0x02, b""));
    stream.extend(frame(0x80, b""));
    stream.extend(frame(0x82, &[7; 126]));
    stream.extend(frame(0x82, &[9; 0x1_0000]));
    stream.extend(frame(0x88, b"\x03\xE8bye"));
    let (items, None) = decode(both(), [&stream[..]]) else { panic!("it is right") };
    let expected = [
        (Item::Message(Kind::Binary), b"binary".to_vec()),
        (Item::Ping, b"are you there".to_vec()),
        (Item::Pong, Vec::new()),
        (Item::Message(Kind::Text), "κόσμε".as_bytes().to_vec()),
        (Item::Message(Kind::Binary), Vec::new()),
        (Item::Message(Kind::Binary), vec![7; 126]),
        (Item::Message(Kind::Binary), vec![9; 0x1_0000]),
        (Item::Close(Some(CloseCode(1000))), b"\x03\xE8bye".to_vec()),
    ];
    assert_eq!(items, expected);
    for size in 1..=17 {
        assert_eq!(decode(both(), stream.chunks(size)).0, expected, "pieces of {size}");
    }
    for cut in 0..220 {
        let (head, tail) = stream.split_at(cut);
        assert_eq!(decode(both(), [head, tail]).0, expected, "cut at {cut}");
    }
}

#[test]
fn each_broken_rule_has_its_violation() {
    for first in [0xC2, 0xA2, 0x92, 0xF9] {
        assert_eq!(violation(&frame(first, b"")), Some(Violation::ReservedBits));
    }
    for number in [3, 7, 0xB, 0xF] {
        let seen = violation(&frame(0x80 | number, b""));
        assert_eq!(seen, Some(Violation::ReservedOpcode(number)));
    }
    assert_eq!(violation(&[0x82, 0x01, 0x00]), Some(Violation::Unmasked));
    assert_eq!(violation(&[0x09, 0x80, 0, 0, 0, 0]), Some(Violation::ControlFragmented));
    assert_eq!(violation(&frame(0x89, &[0; 126])), Some(Violation::ControlTooLong(126)));
    assert_eq!(violation(&frame(0x80, b"")), Some(Violation::NothingToContinue));
    let twice = [frame(0x02, b"a"), frame(0x82, b"b")].concat();
    assert_eq!(violation(&twice), Some(Violation::MessageInMessage));
    let again = [frame(0x02, b"a"), frame(0x80, b"b"), frame(0x80, b"c")].concat();
    assert_eq!(violation(&again), Some(Violation::NothingToContinue));
    for long in [&[0x82, 0xFE, 0, 125][..], &[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]] {
        assert_eq!(violation(&[long, &MASK].concat()), Some(Violation::LengthForm));
    }
    let negative = [&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0][..], &MASK].concat();
    assert_eq!(violation(&negative), Some(Violation::LengthForm));
    assert_eq!(violation(&frame(0x88, b"\x03")), Some(Violation::CloseCode));
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        assert_eq!(violation(&frame(0x88, &code.to_be_bytes())), Some(Violation::CloseCode));
    }
    assert_eq!(violation(&frame(0x88, b"\x03\xE8\xFF")), Some(Violation::NotUtf8));
    assert_eq!(violation(&frame(0x81, b"\xFF")), Some(Violation::NotUtf8));
    assert_eq!(violation(&frame(0x81, b"a\xCE")), Some(Violation::NotUtf8));
}

#[test]
fn wrong_text_is_seen_before_its_message_ends() {
    let begun = frame(0x01, b"ab\xFF");
    assert_eq!(violation(&begun), Some(Violation::NotUtf8));
    let whole = frame(0x81, b"ab\xFFcdefgh");
    assert_eq!(violation(&whole[..9]), Some(Violation::NotUtf8));
    // A character over two fragments is none of them.
    let split = [frame(0x01, b"\xCE"), frame(0x80, b"\xBA")].concat();
    assert_eq!(violation(&split), None);
}

#[test]
fn a_message_too_long_is_refused_by_its_headers() {
    let max = |bytes: &[u8]| decode(Decoder::new(None, 10), [bytes]).1;
    let too_big = Some(Violation::TooBig { max: 10 });
    assert_eq!(max(&frame(0x82, &[0; 10])), None);
    assert_eq!(max(&frame(0x82, &[0; 11])[..6]), too_big);
    let fragments = [frame(0x02, &[0; 6]), frame(0x00, &[0; 4])].concat();
    assert_eq!(max(&fragments), None);
    assert_eq!(max(&[&fragments[..], &frame(0x80, &[0])[..6]].concat()), too_big);
    let huge = [&[0x82, 0xFF, 0x7F, 255, 255, 255, 255, 255, 255, 255][..], &MASK].concat();
    assert_eq!(max(&huge), too_big);
    // The bytes of a message do not count against the next one.
    assert_eq!(max(&frame(0x82, &[0; 10]).repeat(3)), None);
}

#[test]
fn a_kind_that_is_not_taken_is_refused_by_its_first_bytes() {
    let only = |kind, bytes: &[u8]| decode(Decoder::new(Some(kind), 100), [bytes]).1;
    assert_eq!(only(Kind::Binary, &frame(0x81, b"text")[..2]), Some(Violation::Kind));
    assert_eq!(only(Kind::Text, &frame(0x02, b"bytes")[..2]), Some(Violation::Kind));
    assert_eq!(only(Kind::Binary, &frame(0x82, b"bytes")), None);
    assert_eq!(only(Kind::Binary, &frame(0x89, b"ping")), None);
}

#[test]
fn every_violation_is_answered_with_a_code_that_may_be_sent() {
    assert!(CloseCode::of_error(6).is_sendable());
    for (violation, code) in [
        (Violation::ReservedBits, 1002),
        (Violation::Kind, 1003),
        (Violation::NotUtf8, 1007),
        (Violation::CutOff, 1007),
        (Violation::TooBig { max: 1 }, 1009),
    ] {
        assert_eq!(violation.code(), CloseCode(code));
        assert!(violation.code().is_sendable());
    }
}
