//! WebSocket, RFC 6455, without extensions.

use super::codec::{Event, FRAME_MAX, Found, LINE_MAX, Malformed};

/// The key of the RFC's example and what it is to be answered with. A load generator is no
/// browser, so nothing depends on that a key is new.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Not random for the same reason, but not zero: servers have to unmask.
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const PONG: u8 = 0xA;
const FIN: u8 = 0x80;

/// The opening handshake, for the room that `path` names and perhaps a subprotocol.
pub fn greet(addr: &str, path: &str, subprotocol: &str, out: &mut Vec<u8>) {
    let subprotocol = match subprotocol {
        "" => String::new(),
        name => format!("Sec-WebSocket-Protocol: {name}\r\n"),
    };
    let lines = [
        &format!("GET /{path} HTTP/1.1"),
        &format!("Host: {addr}"),
        "Upgrade: websocket",
        "Connection: Upgrade",
        &format!("Sec-WebSocket-Key: {KEY}"),
        "Sec-WebSocket-Version: 13",
        &subprotocol,
        "",
    ];
    out.extend_from_slice(lines.join("\r\n").as_bytes());
}

/// A binary message, masked.
pub fn publish(payload: &[u8], out: &mut Vec<u8>) {
    frame(BINARY, payload, out);
}

/// A text message, masked.
pub fn text(payload: &[u8], out: &mut Vec<u8>) {
    frame(TEXT, payload, out);
}

/// A pong that says what the ping said.
pub fn pong(payload: &[u8], out: &mut Vec<u8>) {
    frame(PONG, payload, out);
}

fn frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(FIN | opcode);
    match payload.len() {
        n @ ..=125 => out.push(0x80 | n as u8),
        n @ ..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// The handshake's answer or the frame at the start of `bytes`. No frame starts like `HTTP`: that
/// would be a continuation with reserved bits.
pub fn next(bytes: &[u8]) -> Result<Found<'_>, Malformed> {
    next_within(bytes, (FRAME_MAX - LINE_MAX) as u64)
}

/// The same with messages of up to `max` bytes.
pub fn next_within(bytes: &[u8], max: u64) -> Result<Found<'_>, Malformed> {
    let n = bytes.len().min(5);
    if n > 0 && bytes[..n] == b"HTTP/"[..n] {
        return handshake(bytes);
    }
    let [first, second, rest @ ..] = bytes else { return Ok(Found::Need(2)) };
    if first & 0x70 != 0 || second & 0x80 != 0 {
        return Err(Malformed("a frame with reserved bits or a mask"));
    }
    let (len, header) = match second {
        126 => match rest.first_chunk::<2>() {
            Some(len) => (u64::from(u16::from_be_bytes(*len)), 4),
            None => return Ok(Found::Need(4)),
        },
        127 => match rest.first_chunk::<8>() {
            Some(len) => (u64::from_be_bytes(*len), 10),
            None => return Ok(Found::Need(10)),
        },
        short => (u64::from(*short), 2),
    };
    if len > max {
        return Err(Malformed("a frame is longer than any message"));
    }
    let end = header + len as usize;
    let Some(payload) = bytes.get(header..end) else { return Ok(Found::Need(end)) };
    let event = match (first & FIN != 0, first & 0xF) {
        (true, TEXT | BINARY) => Event::Message { topic: None, payload, ack: 0 },
        (true, 0x8) => Event::Refused(payload.get(2..).unwrap_or(b"close without a reason")),
        (true, 0x9) => Event::Ping(payload),
        (true, PONG) => Event::Other,
        (false, _) | (_, 0x0) => {
            return Err(Malformed(
                "a message in several frames, which loadgen does not put together",
            ));
        }
        _ => return Err(Malformed("a frame with a reserved opcode")),
    };
    Ok(Found::Frame(event, end))
}

fn handshake(bytes: &[u8]) -> Result<Found<'_>, Malformed> {
    let within = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = within.windows(4).position(|end| end == b"\r\n\r\n") else {
        if within.len() == LINE_MAX {
            return Err(Malformed("an HTTP answer without an end"));
        }
        return Ok(Found::Need(bytes.len() + 1));
    };
    let mut lines = bytes[..end].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let status = lines.next().unwrap_or_default();
    let code = status.split(|byte| *byte == b' ').nth(1);
    let accepted = lines.any(|line| {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { return false };
        line[..at].eq_ignore_ascii_case(b"Sec-WebSocket-Accept")
            && line[at + 1..].trim_ascii() == ACCEPT
    });
    let event = match (code, accepted) {
        (Some(b"101"), true) => Event::Ready,
        (Some(b"101"), false) => Event::Refused(b"101 without the right Sec-WebSocket-Accept"),
        _ => Event::Refused(status),
    };
    Ok(Found::Frame(event, end + 4))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::codec::laws;
    use super::*;

    const HTTP: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    /// The unmasked examples of RFC 6455, 5.7, and lengths on both sides of their forms.
    fn stream() -> Vec<u8> {
        let mut out = HTTP.to_vec();
        out.extend_from_slice(b"\x81\x05Hello\x89\x05Hello\x8A\x00\x82\x7E\x01\x00");
        out.extend_from_slice(&[7; 256]);
        out.extend_from_slice(b"\x82\x7F\0\0\0\0\0\0\x01\x2C");
        out.extend_from_slice(&[8; 300]);
        out.extend_from_slice(b"\x88\x07\x03\xE9going");
        out
    }

    #[test]
    fn masked_frames_are_those_of_the_rfc() {
        let mut out = Vec::new();
        publish(b"Hello", &mut out);
        pong(b"Hello", &mut out);
        assert_eq!(
            out,
            b"\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"
        );
        for (len, header) in [
            (125, &b"\x82\xFD"[..]),
            (126, b"\x82\xFE\0\x7E"),
            (65_535, b"\x82\xFE\xFF\xFF"),
            (65_536, b"\x82\xFF\0\0\0\0\0\x01\0\0"),
        ] {
            out.clear();
            publish(&vec![0; len], &mut out);
            assert!(out.starts_with(header));
            assert_eq!(out.len(), header.len() + 4 + len);
        }
    }

    #[test]
    fn handshake_asks_for_the_room() {
        let mut out = Vec::new();
        greet("127.0.0.1:1", "lg-0", "", &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("GET /lg-0 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n"));
        assert!(text.ends_with("Sec-WebSocket-Version: 13\r\n\r\n"));
    }

    #[test]
    fn what_a_server_says_is_read() {
        let message = |payload| Event::Message { topic: None, payload, ack: 0 };
        let expected = [
            Event::Ready,
            message(b"Hello"),
            Event::Ping(b"Hello"),
            Event::Other,
            message(&[7; 256]),
            message(&[8; 300]),
            Event::Refused(b"going"),
        ];
        assert_eq!(laws::all(next, &stream()), expected);
    }

    #[test]
    fn any_split_gives_the_same() {
        laws::any_split_gives_the_same(next, &stream());
    }

    #[test]
    fn garbage_is_survived() {
        laws::garbage_is_survived(next, &stream());
    }

    #[test]
    fn frames_that_no_server_may_send_are_refused() {
        for bad in [
            &b"\x01\x01x"[..],
            b"\x80\x01x",
            b"\xC2\x01x",
            b"\x82\x81abcdx",
            b"\x83\x00",
            b"\x82\x7F\0\0\0\0\x7F\xFF\xFF\xFF",
        ] {
            assert!(next(bad).is_err(), "{bad:?}");
        }
        let refused =
            |text: &'static [u8]| matches!(next(text).unwrap(), Found::Frame(Event::Refused(_), _));
        assert!(refused(b"HTTP/1.1 404 Not Found\r\n\r\n"));
        assert!(refused(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n"));
    }
}
