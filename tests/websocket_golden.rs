//! The WebSocket codec against the bytes in PROTOCOL.md, and against itself however its input is
//! cut.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use fanfare::ws::{CloseCode, Decoder, Item, Kind, Origins, Violation, encode, upgrade};

const PROTOCOL: &str = include_str!("../PROTOCOL.md");
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A block of PROTOCOL.md: who sends it, what it holds, its bytes.
struct Vector {
    from: String,
    items: Vec<(String, String)>,
    bytes: Vec<u8>,
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn vectors() -> Vec<Vector> {
    PROTOCOL
        .split("```websocket ")
        .skip(1)
        .map(|block| {
            let mut vector = Vector { from: String::new(), items: Vec::new(), bytes: Vec::new() };
            for line in block.lines().skip(1).take_while(|line| *line != "```") {
                match line.split_once(" = ") {
                    Some(("from", who)) => vector.from = who.to_owned(),
                    Some((what, value)) => vector.items.push((what.to_owned(), value.to_owned())),
                    None => vector.bytes.extend(unhex(line.split(';').next().unwrap())),
                }
            }
            vector
        })
        .collect()
}

/// What a decoder makes of pieces, in the notation of the blocks.
fn decoded<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<String>, Violation> {
    let (mut decoder, mut out, mut seen) = (Decoder::new(None, 1 << 20), Vec::new(), Vec::new());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for mut piece in pieces {
        while let Some(item) = decoder.next(&mut piece, &mut out)? {
            seen.push(match item {
                Item::Message(Kind::Binary) => format!("binary = {}", hex(&out)),
                Item::Message(Kind::Text) => format!("text = {}", hex(&out)),
                Item::Ping => format!("ping = {}", hex(decoder.control())),
                Item::Pong => format!("pong = {}", hex(decoder.control())),
                Item::Close(code) => format!("close = {code:?}"),
            });
            if matches!(item, Item::Message(_)) {
                out.clear();
            }
        }
        assert!(piece.is_empty());
    }
    seen.push(format!("unfinished = {}", hex(&out)));
    Ok(seen)
}

#[test]
fn the_bytes_in_the_specification_are_those_of_the_codec() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 4);
    for vector in vectors {
        if vector.from == "client" {
            let mut expected: Vec<_> =
                vector.items.iter().map(|(what, value)| format!("{what} = {value}")).collect();
            expected.push("unfinished = ".to_owned());
            assert_eq!(decoded([&vector.bytes[..]]).unwrap(), expected);
            assert_eq!(decoded(vector.bytes.chunks(1)).unwrap(), expected);
            continue;
        }
        let mut out = Vec::new();
        for (what, value) in &vector.items {
            match what.as_str() {
                "pong" => out.extend(encode::pong(&unhex(value))),
                "close" => {
                    let (code, reason) = value.split_once(' ').unwrap();
                    encode::close(&mut out, Some(CloseCode(code.parse().unwrap())), reason);
                }
                _ => {
                    let bytes = unhex(value);
                    out.extend_from_slice(
                        encode::Header::new(Kind::Binary, bytes.len()).as_slice(),
                    );
                    out.extend(bytes);
                }
            }
        }
        assert_eq!(out, vector.bytes);
    }
}

#[test]
fn the_request_in_the_specification_is_granted_with_the_answer_beside_it() {
    let (_, block) = PROTOCOL.split_once("```text\nGET / HTTP/1.1\n").unwrap();
    let (request, answer) = block.split_once("```").unwrap().0.split_once("\n\n").unwrap();
    let crlf = |text: &str| format!("{}\r\n\r\n", text.trim_end().replace('\n', "\r\n"));
    let request = crlf(&format!("GET / HTTP/1.1\n{request}"));
    let mut out = Vec::new();
    let rules = upgrade::Rules { origins: &Origins::default(), echo: false, deflate: false };
    upgrade::judge(request.as_bytes(), rules).unwrap().respond(&mut out);
    assert_eq!(String::from_utf8(out).unwrap(), crlf(answer));
}

/// A stream of masked frames: first bytes as they are drawn, lengths that fit mostly.
fn stream(pieces: &[(u8, u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (first, odd, payload) in pieces {
        // Reserved bits and opcodes now and then.
        let first = if *odd < 0xF0 {
            [0x82, 0x02, 0x00, 0x80, 0x81, 0x89, 0x8A, 0x88][usize::from(first % 8)]
        } else {
            *first
        };
        bytes.push(first);
        match payload.len() {
            len @ 0..=125 => bytes.push(0x80 | len as u8),
            len => {
                bytes.push(0x80 | 126);
                bytes.extend((len as u16).to_be_bytes());
            }
        }
        bytes.extend(MASK);
        bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
    bytes
}

#[test]
fn a_stream_is_decoded_alike_however_it_is_cut() {
    bolero::check!()
        .with_iterations(20_000)
        .with_type::<(Vec<(u8, u8, Vec<u8>)>, Vec<u8>)>()
        .for_each(|(pieces, cuts)| {
            let bytes = stream(pieces);
            let whole = decoded([&bytes[..]]);
            assert_eq!(decoded(bytes.chunks(1)), whole);
            let (mut rest, mut parts) = (&bytes[..], Vec::new());
            for cut in cuts {
                let (part, tail) = rest.split_at(usize::from(*cut).min(rest.len()));
                parts.push(part);
                rest = tail;
            }
            parts.push(rest);
            assert_eq!(decoded(parts), whole);
        });
}

#[test]
fn random_bytes_never_panic_and_never_grow_beyond_themselves() {
    bolero::check!().with_iterations(20_000).for_each(|bytes| {
        let (mut decoder, mut out, mut rest) = (Decoder::new(None, 1 << 16), Vec::new(), bytes);
        while let Ok(Some(_)) = decoder.next(&mut rest, &mut out) {}
        assert!(out.len() + decoder.control().len() <= bytes.len());
        let _ = upgrade::request_len(bytes);
        let rules = upgrade::Rules { origins: &Origins::default(), echo: true, deflate: true };
        let _ = upgrade::judge(bytes, rules);
        let _ = upgrade::may_begin(bytes);
    });
}
