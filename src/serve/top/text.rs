//! `fanfare top` as plain text, for pipes.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Sample, figure};

/// All that an answer says, as lines; rates are since `before`.
pub(super) fn table(before: Option<&Sample>, now: &Sample) -> String {
    let mut out = String::new();
    let shards = now.shards();
    let per_s = if before.is_some() { "/s" } else { "" };
    let _ = writeln!(
        out,
        "shard   conns members groups {:>11} {:>13} {:>10}    live lagging catch-up stalled tripped  inbox KiB  tail MiB",
        format!("messages{per_s}"),
        format!("deliveries{per_s}"),
        format!("writes{per_s}"),
    );
    for shard in shards {
        let rate = |name| {
            let rate = before.and_then(|before| now.shard_rate(before, shard, name));
            rate.unwrap_or_else(|| figure(shard, name))
        };
        let n = |name| figure(shard, name);
        let _ = writeln!(
            out,
            "{:>5} {:>7} {:>7} {:>6} {:>11} {:>13} {:>10} {:>7} {:>7} {:>8} {:>7} {:>7} {:>10} {:>9}",
            shard["shard"].as_u64().unwrap_or(0),
            n("connections"),
            n("members"),
            n("groups"),
            rate("messages"),
            rate("deliveries"),
            rate("writes"),
            n("members_live"),
            n("members_lagging"),
            n("members_catch_up"),
            n("members_stalled"),
            n("members_tripped"),
            n("inbox_bytes") / 1024,
            n("tail_bytes") >> 20,
        );
    }
    if let Some(silent) = now.answer["silent_shards"].as_array().filter(|list| !list.is_empty()) {
        let _ = writeln!(out, "no answer from shards {}", Value::from(silent.clone()));
    }
    slowest(shards, &mut out);
    out
}

fn slowest(shards: &[Value], out: &mut String) {
    let of = |shard: &Value| shard["slowest"].as_array().cloned().unwrap_or_default();
    if shards.iter().all(|shard| of(shard).is_empty()) {
        return;
    }
    let _ = writeln!(out, "slowest members:\nshard state    served      KiB/s  behind member");
    for shard in shards {
        for member in of(shard) {
            let served = if member["tripped"] == true { "last" } else { "in turn" };
            let rate = member["drain_bytes_per_s"].as_u64();
            let rate = rate.map_or("-".into(), |rate| (rate / 1024).to_string());
            // A member chose its id; a terminal must not obey it.
            let name = member["member"].as_str().unwrap_or("").escape_debug().to_string();
            let _ = writeln!(
                out,
                "{:>5} {:<8} {served:<7} {rate:>9} {:>7} {name}",
                shard["shard"].as_u64().unwrap_or(0),
                member["state"].as_str().unwrap_or(""),
                member["lag_messages"].as_u64().unwrap_or(0),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::{Duration, Instant};

    fn answer(messages: u64) -> Value {
        json!({ "shards": [{
            "shard": 1,
            "figures": { "messages": messages, "members_tripped": 1 },
            "slowest": [{
                "member": "bad\u{1b}[2J", "state": "stalled", "tripped": true,
                "drain_bytes_per_s": 2048, "lag_messages": 7, "groups": 1,
            }],
        }], "silent_shards": [0] })
    }

    #[test]
    fn rates_are_between_two_answers_and_ids_do_not_reach_the_terminal_raw() {
        let start = Instant::now();
        let first = Sample { at: start, answer: answer(1_000) };
        let text = table(None, &first);
        assert!(text.contains("messages ") && text.contains("1000"), "{text}");
        let text = table(
            Some(&first),
            &Sample { at: start + Duration::from_secs(2), answer: answer(3_000) },
        );
        assert!(text.contains("messages/s") && text.contains(" 1000 "), "{text}");
        assert!(text.contains("stalled  last") && text.contains("no answer from shards [0]"));
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
