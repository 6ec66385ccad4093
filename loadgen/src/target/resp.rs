//! Redis pub/sub, RESP2: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use super::codec::{
    Answered, Event, FRAME_MAX, Found, LINE_MAX, Malformed, line, number, put_number,
};

/// Arrays in what a server of pub/sub says have at most this many parts.
const PARTS_MAX: usize = 3;

/// SUBSCRIBE for each group, then a PING whose answer says that all of them are in force.
pub fn greet<'a>(groups: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) {
    for group in groups {
        command(&[b"SUBSCRIBE", group.as_bytes()], out);
    }
    command(&[b"PING"], out);
}

/// PUBLISH.
pub fn publish(group: &str, payload: &[u8], out: &mut Vec<u8>) {
    command(&[b"PUBLISH", group.as_bytes(), payload], out);
}

fn command(parts: &[&[u8]], out: &mut Vec<u8>) {
    out.push(b'*');
    put_number(parts.len(), out);
    out.extend_from_slice(b"\r\n");
    for part in parts {
        out.push(b'$');
        put_number(part.len(), out);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// One part of an array, or a reply by itself.
#[derive(Clone, Copy)]
enum Part<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Integer(u64),
    Bulk(&'a [u8]),
    Array(usize),
}

/// A part and its length, or how many bytes it needs.
enum Read<'a> {
    Part(Part<'a>, usize),
    Need(usize),
}

fn part(bytes: &[u8]) -> Result<Read<'_>, Malformed> {
    let Some(kind) = bytes.first() else { return Ok(Read::Need(1)) };
    if !b"+-:$*".contains(kind) {
        return Err(Malformed("a reply starts with none of + - : $ *"));
    }
    let Some((text, len)) = line(bytes)? else { return Ok(Read::Need(bytes.len() + 1)) };
    let text = text.get(1..).unwrap_or_default();
    let n = || number(text).ok_or(Malformed("a number is none"));
    Ok(match kind {
        b'+' => Read::Part(Part::Simple(text), len),
        b'-' => Read::Part(Part::Error(text), len),
        b':' => Read::Part(Part::Integer(n()?), len),
        b'*' => Read::Part(Part::Array(n()? as usize), len),
        // No bulk at all.
        _ if text == b"-1" => Read::Part(Part::Bulk(b""), len),
        _ => {
            let size = n()? as usize;
            if size > FRAME_MAX - LINE_MAX {
                return Err(Malformed("a string is longer than any message"));
            }
            let end = len + size + 2;
            match bytes.get(len..end) {
                Some(text) if text.ends_with(b"\r\n") => Read::Part(Part::Bulk(&text[..size]), end),
                Some(_) => return Err(Malformed("a string does not end where it should")),
                None => Read::Need(end),
            }
        }
    })
}

/// The reply at the start of `bytes`.
pub fn next(bytes: &[u8]) -> Result<Found<'_>, Malformed> {
    let (first, mut at) = match part(bytes)? {
        Read::Part(part, len) => (part, len),
        Read::Need(n) => return Ok(Found::Need(n)),
    };
    let count = match first {
        Part::Array(count) => count,
        Part::Simple(b"PONG") => return Ok(Found::Frame(Event::Ready, at)),
        Part::Simple(_) | Part::Bulk(_) => return Ok(Found::Frame(Event::Other, at)),
        Part::Error(text) => return Ok(Found::Frame(Event::Refused(text), at)),
        Part::Integer(n) => {
            return Ok(Found::Frame(Event::Answered(Answered::Receivers(n)), at));
        }
    };
    if count == 0 || count > PARTS_MAX {
        return Err(Malformed("an array of pub/sub has 1 to 3 parts"));
    }
    let mut parts = [Part::Bulk(b""); PARTS_MAX];
    for slot in parts.iter_mut().take(count) {
        match part(&bytes[at..])? {
            Read::Part(Part::Array(_), _) => return Err(Malformed("an array in an array")),
            Read::Part(part, len) => {
                *slot = part;
                at += len;
            }
            Read::Need(n) if at + n > FRAME_MAX => {
                return Err(Malformed("an array is longer than any message"));
            }
            Read::Need(n) => return Ok(Found::Need(at + n)),
        }
    }
    if at > FRAME_MAX {
        return Err(Malformed("an array is longer than any message"));
    }
    let event = match (count, parts) {
        (3, [Part::Bulk(b"message"), Part::Bulk(topic), Part::Bulk(payload)]) => {
            Event::Message { topic: Some(topic), payload, ack: 0 }
        }
        (3, [Part::Bulk(b"subscribe"), ..]) => Event::Subscribed,
        (2, [Part::Bulk(b"pong"), ..]) => Event::Ready,
        _ => Event::Other,
    };
    Ok(Found::Frame(event, at))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::codec::laws;
    use super::*;

    /// What a member of two channels and a publisher may read.
    const STREAM: &[u8] = b"*3\r\n$9\r\nsubscribe\r\n$3\r\nlg0\r\n:1\r\n\
        *3\r\n$9\r\nsubscribe\r\n$3\r\nlg1\r\n:2\r\n\
        *2\r\n$4\r\npong\r\n$0\r\n\r\n\
        *3\r\n$7\r\nmessage\r\n$3\r\nlg0\r\n$5\r\n\r\nx\r\n\r\n\
        +PONG\r\n:1000\r\n+OK\r\n$-1\r\n*3\r\n$7\r\nmessage\r\n$3\r\nlg1\r\n$0\r\n\r\n\
        -ERR unknown command 'X'\r\n";

    #[test]
    fn commands_are_those_of_the_specification() {
        let mut out = Vec::new();
        greet(["lg-1"].into_iter(), &mut out);
        publish("lg-1", b"a\r\nb", &mut out);
        assert_eq!(
            out,
            b"*2\r\n$9\r\nSUBSCRIBE\r\n$4\r\nlg-1\r\n*1\r\n$4\r\nPING\r\n\
              *3\r\n$7\r\nPUBLISH\r\n$4\r\nlg-1\r\n$4\r\na\r\nb\r\n"
        );
    }

    #[test]
    fn replies_are_read() {
        let message = |topic, payload| Event::Message { topic: Some(topic), payload, ack: 0 };
        let expected = [
            Event::Subscribed,
            Event::Subscribed,
            Event::Ready,
            message(b"lg0", b"\r\nx\r\n"),
            Event::Ready,
            Event::Answered(Answered::Receivers(1000)),
            Event::Other,
            Event::Other,
            message(b"lg1", b""),
            Event::Refused(b"ERR unknown command 'X'"),
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
    fn sizes_that_no_message_has_are_refused() {
        for bad in [
            &b"*4\r\n"[..],
            b"*3\r\n*1\r\n",
            b"$999999999\r\n",
            b"$-2\r\n",
            b"$3\r\nabcd\r\n",
            b":x\r\n",
            b"!\r\n",
        ] {
            assert!(next(bad).is_err(), "{bad:?}");
        }
    }
}
