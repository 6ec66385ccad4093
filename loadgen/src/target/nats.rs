//! NATS core: <https://docs.nats.io/reference/reference-protocols/nats-protocol>.

use super::codec::{Event, FRAME_MAX, Found, LINE_MAX, Malformed, line, number, put_number};

/// INFO tells all addresses of a cluster and may be long.
const INFO_MAX: usize = FRAME_MAX;

/// CONNECT, SUB for each group, then a PING whose PONG says that all of them are in force. Every
/// member calls its nth subscription n, so that what is delivered is the same bytes for all.
pub fn greet<'a>(groups: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"0\",\"protocol\":1,\"echo\":false}\r\n",
    );
    for (n, group) in groups.enumerate() {
        out.extend_from_slice(b"SUB ");
        out.extend_from_slice(group.as_bytes());
        out.push(b' ');
        put_number(n + 1, out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"PING\r\n");
}

/// PUB.
pub fn publish(group: &str, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"PUB ");
    out.extend_from_slice(group.as_bytes());
    out.push(b' ');
    put_number(payload.len(), out);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// PONG.
pub fn pong(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PONG\r\n");
}

/// The operation at the start of `bytes`.
pub fn next(bytes: &[u8]) -> Result<Found<'_>, Malformed> {
    if bytes.starts_with(b"INFO ") {
        let within = &bytes[..bytes.len().min(INFO_MAX)];
        return match within.iter().position(|byte| *byte == b'\n') {
            Some(end) => Ok(Found::Frame(Event::Other, end + 1)),
            None if within.len() == INFO_MAX => Err(Malformed("INFO without an end")),
            None => Ok(Found::Need(bytes.len() + 1)),
        };
    }
    // Before a line ends it is known what it may be: anything else is not read on and on.
    let known: [&[u8]; 6] = [b"MSG ", b"PING", b"PONG", b"+OK", b"-ERR", b"INFO "];
    let start = |word: &[u8]| {
        let n = word.len().min(bytes.len());
        bytes[..n] == word[..n]
    };
    if !known.into_iter().any(start) {
        return Err(Malformed("none of INFO, MSG, PING, PONG, +OK, -ERR"));
    }
    let Some((text, len)) = line(bytes)? else { return Ok(Found::Need(bytes.len() + 1)) };
    if let Some(rest) = text.strip_prefix(b"MSG ") {
        return message(bytes, rest, len);
    }
    let event = match text {
        b"PING" => Event::Ping(b""),
        b"PONG" => Event::Ready,
        b"+OK" => Event::Other,
        _ if text.starts_with(b"-ERR") => Event::Refused(text[4..].trim_ascii()),
        _ => return Err(Malformed("none of INFO, MSG, PING, PONG, +OK, -ERR")),
    };
    Ok(Found::Frame(event, len))
}

/// `MSG subject sid [reply-to] size`, where `rest` is what follows MSG.
fn message<'a>(bytes: &'a [u8], rest: &'a [u8], len: usize) -> Result<Found<'a>, Malformed> {
    let mut words = rest.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let (Some(topic), Some(_sid), Some(third)) = (words.next(), words.next(), words.next()) else {
        return Err(Malformed("MSG has a subject, a sid and a size"));
    };
    let digits = words.next().unwrap_or(third);
    let size = number(digits).ok_or(Malformed("the size of a MSG is no number"))? as usize;
    if size > FRAME_MAX - LINE_MAX - 2 {
        return Err(Malformed("a MSG is longer than any message"));
    }
    let end = len + size + 2;
    match bytes.get(len..end) {
        Some(text) if text.ends_with(b"\r\n") => {
            let message = Event::Message { topic: Some(topic), payload: &text[..size], ack: 0 };
            Ok(Found::Frame(message, end))
        }
        Some(_) => Err(Malformed("a MSG does not end where it should")),
        None => Ok(Found::Need(end)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::codec::laws;
    use super::*;

    const STREAM: &[u8] = b"INFO {\"server_id\":\"x\",\"max_payload\":1048576}\r\n\
        +OK\r\nPING\r\nPONG\r\nMSG lg-0 1 5\r\n\r\nx\r\n\r\nMSG lg-1 2 back.to 0\r\n\r\n\
        -ERR 'Unknown Protocol Operation'\r\n";

    #[test]
    fn operations_are_those_of_the_specification() {
        let mut out = Vec::new();
        greet(["lg-0", "lg-1"].into_iter(), &mut out);
        publish("lg-0", b"a\r\nb", &mut out);
        pong(&mut out);
        let end = out.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        assert!(out.starts_with(b"CONNECT {"));
        assert_eq!(
            out[end..],
            b"SUB lg-0 1\r\nSUB lg-1 2\r\nPING\r\nPUB lg-0 4\r\na\r\nb\r\nPONG\r\n"[..]
        );
    }

    #[test]
    fn what_a_server_says_is_read() {
        let message = |topic, payload| Event::Message { topic: Some(topic), payload, ack: 0 };
        let expected = [
            Event::Other,
            Event::Other,
            Event::Ping(b""),
            Event::Ready,
            message(b"lg-0", b"\r\nx\r\n"),
            message(b"lg-1", b""),
            Event::Refused(b"'Unknown Protocol Operation'"),
        ];
        assert_eq!(laws::all(next, STREAM), expected);
    }

    #[test]
    fn any_split_gives_the_same() {
        laws::any_split_gives_the_same(next, STREAM);
    }

    #[test]
    fn garbage_is_survived() {
        laws::garbage_is_survived(next, STREAM);
    }

    #[test]
    fn what_no_server_says_is_refused() {
        for bad in [
            &b"HTTP/1.1"[..],
            b"MSG lg 1\r\n",
            b"MSG lg 1 x\r\n",
            b"MSG lg 1 999999999\r\n",
            b"MSG lg 1 1\r\nabcd",
            b"PINGS\r\n",
        ] {
            assert!(next(bad).is_err(), "{bad:?}");
        }
    }
}
