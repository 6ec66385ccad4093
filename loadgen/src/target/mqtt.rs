//! MQTT 3.1.1, QoS 0 and 1: <https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/mqtt-v3.1.1.html>.

use super::codec::{Answered, Event, FRAME_MAX, Found, Malformed};

/// Fixed header at most.
const HEADER_MAX: usize = 5;
const PINGREQ: [u8; 2] = [0xC0, 0];
/// PUBLISH: kind and QoS 1.
const PUBLISH: u8 = 0x30;
const QOS_1: u8 = 0x02;

/// CONNECT with a clean session and without keep-alive, SUBSCRIBE for all groups, then a PINGREQ
/// whose PINGRESP says that they are in force.
pub fn greet<'a>(
    client: &str,
    groups: impl Iterator<Item = &'a str> + Clone,
    qos: u8,
    out: &mut Vec<u8>,
) {
    out.push(0x10);
    put_length(10 + 2 + client.len(), out);
    // Level 4 is 3.1.1, flag 2 a clean session.
    out.extend_from_slice(b"\0\x04MQTT\x04\x02\0\0");
    put_string(client, out);
    let filters: usize = groups.clone().map(|group| group.len() + 3).sum();
    if filters > 0 {
        out.push(0x82);
        put_length(2 + filters, out);
        out.extend_from_slice(&[0, 1]);
        for group in groups {
            put_string(group, out);
            out.push(qos);
        }
    }
    out.extend_from_slice(&PINGREQ);
}

/// PUBLISH, at QoS 1 if it has an `id`.
pub fn publish(group: &str, payload: &[u8], id: Option<u16>, out: &mut Vec<u8>) {
    out.push(PUBLISH | id.map_or(0, |_| QOS_1));
    put_length(2 + group.len() + id.map_or(0, |_| 2) + payload.len(), out);
    put_string(group, out);
    if let Some(id) = id {
        out.extend_from_slice(&id.to_be_bytes());
    }
    out.extend_from_slice(payload);
}

/// PUBACK.
pub fn acknowledge(id: u16, out: &mut Vec<u8>) {
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[0x40, 2, high, low]);
}

/// Names are those of the plan, far shorter than 64 KiB.
fn put_string(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_length(mut n: usize, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The packet at the start of `bytes`.
pub fn next(bytes: &[u8]) -> Result<Found<'_>, Malformed> {
    let Some(first) = bytes.first() else { return Ok(Found::Need(2)) };
    let mut length = 0;
    let mut at = 1;
    loop {
        let Some(byte) = bytes.get(at) else { return Ok(Found::Need(at + 1)) };
        length |= usize::from(byte & 0x7F) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if at == HEADER_MAX {
            return Err(Malformed("the length of a packet has more than four bytes"));
        }
    }
    let end = at + length;
    if end > FRAME_MAX {
        return Err(Malformed("a packet is longer than any message"));
    }
    let Some(body) = bytes.get(at..end) else { return Ok(Found::Need(end)) };
    let event = match (first >> 4, body) {
        (2, [_, 0]) => Event::Other,
        (2, [_, code]) => Event::Refused(match code {
            1 => b"CONNACK: unacceptable protocol version",
            2 => b"CONNACK: identifier rejected",
            3 => b"CONNACK: server unavailable",
            4 => b"CONNACK: bad user name or password",
            5 => b"CONNACK: not authorized",
            _ => b"CONNACK: refused",
        }),
        (3, _) => message(*first, body)?,
        (4, [high, low]) => Event::Answered(Answered::Id(u16::from_be_bytes([*high, *low]))),
        (9, [_, _, codes @ ..]) if !codes.is_empty() => {
            if codes.iter().any(|code| *code > 1) {
                Event::Refused(b"SUBACK: a subscription was refused")
            } else {
                Event::Subscribed
            }
        }
        (13, []) => Event::Ready,
        _ => return Err(Malformed("none of CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP")),
    };
    Ok(Found::Frame(event, end))
}

fn message(first: u8, body: &[u8]) -> Result<Event<'_>, Malformed> {
    let short = Malformed("a PUBLISH ends before its payload");
    let (len, rest) = body.split_first_chunk::<2>().ok_or(short)?;
    let short = Malformed("a PUBLISH ends before its payload");
    let (topic, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into()).ok_or(short)?;
    let topic = Some(topic);
    match first & 0x06 {
        0 => Ok(Event::Message { topic, payload: rest, ack: 0 }),
        0x02 => match rest.split_first_chunk::<2>().map(|(id, p)| (u16::from_be_bytes(*id), p)) {
            Some((ack @ 1.., payload)) => Ok(Event::Message { topic, payload, ack }),
            _ => Err(Malformed("a PUBLISH at QoS 1 has no packet identifier")),
        },
        _ => Err(Malformed("a PUBLISH above QoS 1 was not asked for")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::codec::laws;
    use super::*;

    const STREAM: &[u8] = b"\x20\x02\0\0\
        \x90\x04\0\x01\0\x01\
        \xD0\0\
        \x30\x09\0\x04lg-0abc\
        \x32\x0B\0\x04lg-0\x12\x34abc\
        \x40\x02\xFF\xFE\
        \x20\x02\0\x05";

    #[test]
    fn packets_are_those_of_the_specification() {
        let mut out = Vec::new();
        greet("m1", ["lg-0", "lg-1"].into_iter(), 1, &mut out);
        assert_eq!(
            out,
            b"\x10\x0E\0\x04MQTT\x04\x02\0\0\0\x02m1\
              \x82\x10\0\x01\0\x04lg-0\x01\0\x04lg-1\x01\
              \xC0\0"
        );
        out.clear();
        publish("lg-0", b"abc", None, &mut out);
        publish("lg-0", b"abc", Some(0x1234), &mut out);
        acknowledge(0xFFFE, &mut out);
        assert_eq!(out, b"\x30\x09\0\x04lg-0abc\x32\x0B\0\x04lg-0\x12\x34abc\x40\x02\xFF\xFE");
        out.clear();
        // 321 = 0xC1 0x02, the example of the specification.
        publish("lg-0", &[7; 315], None, &mut out);
        assert_eq!(out[..9], *b"\x30\xC1\x02\0\x04lg-0");
    }

    #[test]
    fn what_a_server_says_is_read() {
        let message = |ack| Event::Message { topic: Some(b"lg-0"), payload: b"abc", ack };
        let expected = [
            Event::Other,
            Event::Subscribed,
            Event::Ready,
            message(0),
            message(0x1234),
            Event::Answered(Answered::Id(0xFFFE)),
            Event::Refused(b"CONNACK: not authorized"),
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
    fn packets_that_no_server_sends_are_refused() {
        for bad in [
            &b"\x30\xFF\xFF\xFF\xFF\x7F"[..],
            b"\x30\xFF\xFF\xFF\x7F",
            b"\x30\x01\0",
            b"\x30\x03\0\x09x",
            b"\x32\x04\0\0\0\0",
            b"\x34\x04\0\0\0\x01",
            b"\xD0\x01x",
            b"\x00\x00",
        ] {
            assert!(next(bad).is_err(), "{bad:?}");
        }
        let Found::Frame(Event::Refused(_), _) = next(b"\x90\x03\0\x01\x80").unwrap() else {
            panic!()
        };
    }
}
