//! Answers of shards as JSON, for the admin socket and the HTTP interface. Numbers are as the
//! shards count them; ids and names that are not UTF-8 are shown with replacement characters.

use serde_json::{Map, Value, json};

use super::ask::Answers;
use crate::shard::counters::Figures;
use crate::shard::histogram::{Distributions, Histogram};
use crate::shard::look::{DurableSeen, GroupSeen, MemberSeen, Seen};
use crate::shard::status::{ShardStatus, SlowMember};
use crate::wire::ErrorCode;

/// The document about all shards.
pub(super) fn status_json(answers: Answers) -> Value {
    let (mut total, mut shards, mut silent) = (Figures::default(), Vec::new(), Vec::new());
    for (shard, seen) in answers {
        if let Some(Seen::Status(status)) = seen {
            total = total.plus(&status.figures);
            shards.push(shard_json(&status));
        } else {
            silent.push(shard.0);
        }
    }
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "unix_ms": std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis() as u64,
        "total": figures_json(&total),
        "shards": shards,
        "silent_shards": silent,
    })
}

fn shard_json(status: &ShardStatus) -> Value {
    let errors: Map<_, _> =
        status.errors.counted().map(|(code, count)| (code_name(code), count.into())).collect();
    json!({
        "shard": status.shard.0,
        "median_write_us": status.median_write_ns / 1_000,
        "median_drain_bytes_per_s": status.median_rate,
        "slowest": status.slowest.iter().map(slow_json).collect::<Vec<_>>(),
        "figures": figures_json(&status.figures),
        "distributions": distributions_json(&status.distributions),
        "errors": errors,
        "ring_batches": status.ring_batches,
        "ring_slots": status.ring_slots,
        "log_bytes": status.log_bytes,
        "log_poisoned": status.log_poisoned,
        "log_full": status.log_full,
        "draining": status.draining,
    })
}

/// A member that does not keep up.
pub(super) fn slow_json(member: &SlowMember) -> Value {
    json!({
        "member": text(&member.member),
        "state": member.health.name(),
        "tripped": member.tripped,
        "drain_bytes_per_s": member.rate,
        "lag_messages": member.lag,
        "groups": member.groups,
    })
}

/// A group, as one shard has it.
pub(super) fn group_json(group: &GroupSeen) -> Value {
    let mut json = json!({
        "group": text(&group.name),
        "owner": group.owner.0,
        "class": group.class,
        "priority": group.priority.name(),
        "epoch": group.epoch.0,
        "published": group.published.0,
        "local_members": group.local_members,
        "tail_bytes": group.tail_bytes,
    });
    if let (Some(owned), Some(json)) = (&group.owned, json.as_object_mut()) {
        let figures = [
            ("members", owned.members),
            ("first_kept", owned.first_kept.0),
            ("sequenced", owned.sequenced.0),
            ("synced", owned.synced.0),
            ("durable_members", owned.durable),
            ("durable_members_online", owned.durable_online),
            ("producers", owned.producers),
            ("receipts_waiting", owned.receipts_waiting),
            ("state_keys", owned.state_keys),
        ];
        json.extend(figures.map(|(name, value)| (name.to_owned(), value.into())));
    }
    json
}

/// A connection and its member.
pub(super) fn member_json(shard: u16, member: &MemberSeen) -> Value {
    let mut json = json!({
        "member": text(&member.member),
        "shard": shard,
        "slot": member.conn.slot,
        "generation": member.conn.generation,
        "transport": member.transport,
        "state": member.health,
        "tripped": member.tripped,
        "drain_bytes_per_s": member.rate,
        "groups": member.groups,
        "control_bytes": member.control_bytes,
        "silent_ms": member.silent_ms,
    });
    if let (Some(cursor), Some(json)) = (&member.cursor, json.as_object_mut()) {
        json.insert("sent".into(), cursor.sent.0.into());
        json.insert("acked".into(), cursor.acked.0.into());
        json.insert("lag_messages".into(), cursor.lag.into());
        json.insert("on_tail".into(), cursor.on_tail.into());
        json.insert("durable".into(), cursor.durable.into());
    }
    json
}

/// A durable member of a group.
pub(super) fn durable_json(member: &DurableSeen) -> Value {
    json!({
        "member": text(&member.member),
        "online": member.online,
        "acked": member.acked.0,
        "behind_messages": member.behind,
    })
}

/// The name of a code, as labels and keys have it.
pub(super) fn code_name(code: ErrorCode) -> String {
    let mut name = String::new();
    for (at, letter) in format!("{code:?}").char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn figures_json(figures: &Figures) -> Value {
    Value::Object(
        figures.named().map(|(name, n)| (name.to_owned(), n.into())).collect::<Map<_, _>>(),
    )
}

fn distributions_json(all: &Distributions) -> Value {
    json!({
        "turn_ns": histogram_json(&all.turn),
        "commit_ns": histogram_json(&all.commit),
        "publish_ns": histogram_json(&all.publish),
        "commit_bytes": histogram_json(&all.commit_bytes),
        "commit_messages": histogram_json(&all.commit_messages),
    })
}

/// Upper bounds with the count up to each; those above are in the count of all.
fn histogram_json<const FIRST: u32>(histogram: &Histogram<FIRST>) -> Value {
    json!({
        "count": histogram.count(),
        "sum": histogram.sum(),
        "up_to": histogram.cumulated().map(|(bound, n)| [bound, n]).collect::<Vec<_>>(),
    })
}
