//! The JSON of PROTOCOL.md against the golden frames of the same names, and what a peer may send
//! in its place.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use std::collections::BTreeMap;

use fanfare::limits::{GROUP_NAME_MAX, WS_MESSAGE_MAX};
use fanfare::position::{Handle, NodeId, Seq, ShardId, Stamp};
use fanfare::wire::{ClientFrame, Deliver, ErrorCode, split};
use fanfare::ws::json::{from_native, to_native};

const PROTOCOL: &str = include_str!("../PROTOCOL.md");

/// The blocks of this language by their names, their lines put together by `join`.
fn blocks<T>(language: &str, join: fn(&[&str]) -> T) -> BTreeMap<&'static str, T> {
    let mut found = BTreeMap::new();
    let mut lines = PROTOCOL.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = info.strip_prefix(language) {
            assert!(found.insert(name.trim(), join(&body)).is_none(), "{name} is there twice");
        }
    }
    found
}

fn bytes(lines: &[&str]) -> Vec<u8> {
    let hex = lines.iter().filter(|line| !line.contains(" ="));
    let hex = hex.flat_map(|line| line.split(';').next().unwrap().split_whitespace());
    hex.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn native(json: &str) -> Result<Vec<u8>, (ErrorCode, u32, &'static str)> {
    let mut out = Vec::new();
    match to_native(json.as_bytes(), &mut out) {
        Ok(()) => Ok(out),
        Err(wrong) => {
            assert!(out.is_empty(), "something was appended");
            Err((wrong.code, wrong.request, wrong.field))
        }
    }
}

fn json(frames: &[u8]) -> String {
    let mut out = Vec::new();
    from_native(frames, &mut Vec::new(), &mut |text| out.extend_from_slice(text));
    String::from_utf8(out).unwrap()
}

#[test]
fn every_golden_frame_has_the_json_beside_it() {
    let frames = blocks("golden", bytes);
    let examples = blocks("json", |lines| lines.concat());
    assert!(frames.keys().eq(examples.keys()), "{:?}", examples.keys());
    for (name, frame) in frames {
        let example = &examples[name];
        let (head, _) = split(&frame, frame.len()).unwrap().unwrap();
        if head.kind < 0x80 {
            assert_eq!(native(example).as_ref(), Ok(&frame), "{name}");
            // Fields in another order, and one that nobody knows.
            let value: serde_json::Value = serde_json::from_str(example).unwrap();
            let fields = value.as_object().unwrap().iter().rev();
            let fields: Vec<_> = fields.map(|(key, value)| format!("{key:?}:{value}")).collect();
            let turned = format!(" {{ \"new\": [{{}}], {} }} ", fields.join(" , "));
            assert_eq!(native(&turned), Ok(frame), "{turned}");
        } else {
            assert_eq!(json(&frame), *example, "{name}");
        }
    }
}

#[test]
fn every_wrong_message_is_told_with_its_field_and_request() {
    use ErrorCode::{Malformed, UnknownFrame};
    let long = "x".repeat(GROUP_NAME_MAX + 1);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let many =
        format!(r#"{{"type":"join","request":7,"groups":[{}]}}"#, vec![r#""a""#; 257].join(","));
    let half = r#"{"type":"join","request":7"#;
    for (wrong, expected) in [
        ("", (Malformed, 0, "")),
        ("[]", (Malformed, 0, "")),
        ("7", (Malformed, 0, "")),
        ("{}", (Malformed, 0, "type")),
        (half, (Malformed, 7, "")),
        (r#"{"type":"ping"} x"#, (Malformed, 0, "")),
        (r#"{"type":"ping","type":"ping"}"#, (Malformed, 0, "type")),
        (r#"{"request":7,"type":"sing"}"#, (UnknownFrame, 7, "type")),
        (r#"{"type":"join","groups":["a"]}"#, (Malformed, 0, "request")),
        (r#"{"type":"join","request":7}"#, (Malformed, 7, "groups")),
        (r#"{"type":"join","request":7,"groups":[]}"#, (Malformed, 7, "groups")),
        (r#"{"type":"join","request":7,"groups":[""]}"#, (Malformed, 7, "group")),
        (r#"{"type":"join","request":7,"groups":[3]}"#, (Malformed, 7, "groups")),
        (
            r#"{"type":"join","request":7,"groups":[{"group":"a","start":"cursor"}]}"#,
            (Malformed, 7, "start"),
        ),
        (
            r#"{"type":"join","request":7,"groups":[{"group":"a","mode":"x"}]}"#,
            (Malformed, 7, "mode"),
        ),
        (&many, (Malformed, 7, "groups")),
        (
            r#"{"type":"publish","request":7,"group":"a","producer_seq":"1"}"#,
            (Malformed, 7, "payload"),
        ),
        (
            r#"{"request":7,"type":"publish","group":"a","producer_seq":"1","payload_base64":"?"}"#,
            (Malformed, 7, "payload"),
        ),
        (
            r#"{"request":7,"type":"publish","group":"a","producer_seq":"18446744073709551616"}"#,
            (Malformed, 7, "producer_seq"),
        ),
        (
            r#"{"request":7,"type":"publish","group":"a","producer_seq":1e400}"#,
            (Malformed, 7, "producer_seq"),
        ),
        (r#"{"request":7,"type":"publish","producer_seq":"+1"}"#, (Malformed, 7, "producer_seq")),
        (r#"{"request":7,"type":"publish","producer_seq":1.5}"#, (Malformed, 7, "producer_seq")),
        (r#"{"request":7,"type":"publish","producer_seq":-1}"#, (Malformed, 7, "producer_seq")),
        (r#"{"request":4294967296,"type":"sync"}"#, (Malformed, 0, "request")),
        (r#"{"request":7,"type":"sync","group":7}"#, (Malformed, 7, "group")),
        (r#"{"request":7,"type":"sync","group":"\ud800"}"#, (Malformed, 7, "group")),
        (r#"{"type":"hello","member":"a","producer":"00"}"#, (Malformed, 0, "producer")),
        (r#"{"type":"ack","acks":[{"handle":"1"}]}"#, (Malformed, 0, "acks")),
        (r#"{"request":7,"type":"set_state","group":"a","key":"k"}"#, (Malformed, 7, "data")),
        (
            r#"{"request":7,"type":"set_state","group":"a","key":"k","data":"","delete":true}"#,
            (Malformed, 7, "data"),
        ),
        (&deep, (Malformed, 0, "")),
        (&format!(r#"{{"request":7,"type":"sync","group":"{long}"}}"#), (Malformed, 7, "group")),
    ] {
        assert_eq!(native(wrong), Err(expected), "{wrong:.200}");
    }
}

#[test]
fn bombs_are_refused_without_growing() {
    let size = WS_MESSAGE_MAX as usize;
    for bomb in [
        "[".repeat(size),
        r#"{"a":"#.repeat(size / 5),
        format!(r#"{{"request":{}}}"#, "9".repeat(size)),
        format!(r#"{{"unknown":[{}1]}}"#, "1,".repeat(size / 2)),
        format!(r#"{{"unknown":"{}"}}"#, "\\u0000".repeat(size / 6)),
        format!(r#"{{"type":"join","request":1,"groups":[{}1]}}"#, "{},".repeat(size / 3)),
    ] {
        let used = allocation_counter::measure(|| {
            assert!(native(&bomb).is_err(), "{bomb:.40}");
        });
        assert!(used.bytes_max < 2 * size as u64, "{} bytes for {bomb:.40}", used.bytes_max);
    }
}

#[test]
fn whatever_comes_is_refused_or_is_a_frame_that_the_native_decoder_takes() {
    bolero::check!().with_iterations(20_000).with_type::<Vec<(u8, Vec<u8>)>>().for_each(|pieces| {
        // Mostly JSON, since few random bytes are.
        let pool = [
            r#"{"type":"#,
            "\"join\"",
            "\"publish\"",
            "\"ack\"",
            ",\"request\":1",
            "\"groups\":[",
            "\"a\"",
            ",",
            "}",
            "]",
            "{",
            ":",
            "\"group\":\"g\"",
            "\"payload\":\"p\"",
            "null",
            "1",
            ",\"producer_seq\":\"1\"",
            "\"acks\":[",
            "\\u00e9",
            "\"",
        ];
        let mut text = Vec::new();
        for (which, raw) in pieces {
            match pool.get(usize::from(*which) % (pool.len() + 1)) {
                Some(piece) => text.extend_from_slice(piece.as_bytes()),
                None => text.extend_from_slice(raw),
            }
        }
        let mut out = Vec::new();
        if to_native(&text, &mut out).is_ok() {
            let (frame, len) = split(&out, out.len()).unwrap().unwrap();
            assert_eq!(len, out.len());
            ClientFrame::decode(frame).unwrap();
        }
    });
}

#[test]
fn every_payload_survives_the_way_through_json() {
    bolero::check!().with_iterations(20_000).with_type::<(Vec<u8>, u64)>().for_each(|(payload, n)| {
        let mut frames = Vec::new();
        let (handle, seq, stamp) = (Handle(*n), Seq(n.wrapping_mul(3)), Stamp(!n));
        let deliver = Deliver {
            handle,
            seq,
            stamp,
            node: NodeId(1),
            shard: ShardId(2),
            sender: b"\xFF",
            payload,
        };
        deliver.encode(&mut frames);
        let value: serde_json::Value = serde_json::from_str(&json(&frames)).unwrap();
        assert_eq!(value["handle"], n.to_string());
        assert_eq!(value["seq"], seq.0.to_string());
        assert_eq!(value["stamp"], stamp.0.to_string());
        assert_eq!(value["sender_base64"], "/w==");
        match std::str::from_utf8(payload) {
            Ok(text) => assert_eq!(value["payload"], text),
            Err(_) => {
                // And back.
                let base64 = value["payload_base64"].as_str().unwrap();
                let back = format!(
                    r#"{{"type":"publish","request":1,"group":"g","producer_seq":"1","payload_base64":"{base64}"}}"#
                );
                assert!(native(&back).unwrap().ends_with(payload));
            }
        }
    });
}
