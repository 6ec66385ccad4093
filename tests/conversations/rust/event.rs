//! Events of the client in the words of the tables.

use fanfare::client::{
    Event, Message, Presence, PublishError, Reason, Refusal, RosterForm, StateForm,
};
use fanfare::position::Seq;
use serde_json::{Value, json};

use super::frames::of_bytes;

fn message(m: &Message) -> Value {
    json!({
        "group": of_bytes(&m.group), "epoch": m.epoch.0, "seq": m.seq.0,
        "sender": of_bytes(m.sender()), "payload": of_bytes(m.payload()),
    })
}

fn refusal(r: &Refusal) -> Value {
    let name = r.known().map_or_else(|| format!("error {}", r.code), |known| format!("{known:?}"));
    json!({
        "code": r.code, "name": name, "limit": r.limit, "field": of_bytes(&r.field), "text": r.text,
    })
}

fn reason(reason: &Reason) -> Value {
    match reason {
        Reason::Server(r) => json!({ "kind": "server", "refusal": refusal(r) }),
        Reason::Silent { ms } => json!({ "kind": "silent", "ms": ms }),
        Reason::Protocol(what) => json!({ "kind": "protocol", "what": what }),
        other => json!({ "kind": format!("{other:?}").to_lowercase() }),
    }
}

fn range(range: &Option<(Seq, Seq)>) -> Value {
    range.map_or(Value::Null, |(from, to)| json!({ "from": from.0, "to": to.0 }))
}

fn data(data: &Option<Box<[u8]>>) -> Value {
    data.as_deref().map_or(Value::Null, of_bytes)
}

/// The name of an event and its fields.
#[allow(clippy::too_many_lines, reason = "one arm for each event")]
pub fn plain(event: &Event) -> (&'static str, Value) {
    match event {
        Event::Connected(w) => (
            "connected",
            json!({ "welcome": {
                "version": w.version, "payload_max": w.payload_max, "frame_max": w.frame_max,
                "ack_every": w.ack_every,
            }}),
        ),
        Event::Joined(j) => (
            "joined",
            json!({
                "group": of_bytes(&j.group), "epoch": j.epoch.0, "head": j.head.0,
                "first": j.first.0, "cursor": j.cursor.0, "again": j.again,
                "skipped": range(&j.skipped),
            }),
        ),
        Event::JoinFailed { group, error } => {
            ("join_failed", json!({ "group": of_bytes(group), "error": refusal(error) }))
        }
        Event::Left { group } => ("left", json!({ "group": of_bytes(group) })),
        Event::Message(m) => ("message", message(m)),
        Event::EpochChanged { group, before, last, epoch, first } => (
            "epoch_changed",
            json!({
                "group": of_bytes(group), "before": before.0, "last": last.0, "epoch": epoch.0,
                "first": first.0,
            }),
        ),
        Event::ProducerRenewed { .. } => ("producer_renewed", json!({})),
        Event::Gap { group, from, to, epoch, reason } => (
            "gap",
            json!({
                "group": of_bytes(group), "from": from.0, "to": to.0, "epoch": epoch.0,
                "reason": reason.name(),
            }),
        ),
        Event::Redelivery { group, from, attempt } => {
            ("redelivery", json!({ "group": of_bytes(group), "from": from.0, "attempt": attempt }))
        }
        Event::Published(p) => (
            "published",
            json!({
                "id": p.id.0, "group": of_bytes(&p.group), "producer_seq": p.producer_seq,
                "epoch": p.epoch.0, "seq": p.seq.0,
                "level": p.level.name(),
            }),
        ),
        Event::PublishFailed { id, group, error } => {
            let error = match error {
                PublishError::Refused(r) => json!({ "kind": "refused", "refusal": refusal(r) }),
                PublishError::PlaceUnknown => json!({ "kind": "place_unknown" }),
                _ => json!({ "kind": "in_doubt" }),
            };
            ("publish_failed", json!({ "id": id.0, "group": of_bytes(group), "error": error }))
        }
        Event::PublishHeld { group, error, retry_in_ms } => (
            "publish_held",
            json!({
                "group": of_bytes(group), "error": refusal(error), "retry_in_ms": retry_in_ms,
            }),
        ),
        Event::Receipt(r) => (
            "receipt",
            json!({
                "group": r.group.as_deref().map_or(Value::Null, of_bytes), "seq": r.seq.0,
                "epoch": r.epoch.0, "producer_seq": r.producer_seq, "acked": r.acked,
                "members": r.members, "percent": r.percent,
            }),
        ),
        Event::Fetched(p) => (
            "fetched",
            json!({
                "id": p.id.0, "group": of_bytes(&p.group), "epoch": p.epoch.0, "head": p.head.0,
                "messages": p.messages.iter().map(message).collect::<Vec<_>>(),
                "gap": p.gap.map_or(Value::Null, |(from, to, reason)| json!({
                    "from": from.0, "to": to.0, "reason": reason.name(),
                })),
                "next": p.next.map(|next| next.0),
            }),
        ),
        Event::State(s) => {
            let entry = |e: &fanfare::client::StateItem| json!({ "key": of_bytes(&e.key), "version": e.version, "data": data(&e.data) });
            let form = match s.form {
                StateForm::UpToDate => "up_to_date",
                StateForm::Deltas => "deltas",
                StateForm::Snapshot => "snapshot",
            };
            (
                "state",
                json!({
                    "id": s.id.0, "group": of_bytes(&s.group), "form": form, "version": s.version,
                    "more": s.more, "entries": s.entries.iter().map(entry).collect::<Vec<_>>(),
                }),
            )
        }
        Event::StateSet { id, group, version, .. } => {
            ("state_set", json!({ "id": id.0, "group": of_bytes(group), "version": version }))
        }
        Event::Conflict { id, group, version, data: value, .. } => (
            "conflict",
            json!({
                "id": id.0, "group": of_bytes(group), "version": version, "data": data(value),
            }),
        ),
        Event::Roster(r) => {
            let entry = |(what, member): &(Presence, Box<[u8]>)| {
                let what = format!("{what:?}").to_lowercase();
                json!({ "what": what, "member": of_bytes(member) })
            };
            let form = match r.form {
                RosterForm::UpToDate => "up_to_date",
                RosterForm::Changes => "changes",
                RosterForm::Page => "page",
                RosterForm::Counts => "counts",
            };
            (
                "roster",
                json!({
                    "id": r.id.map(|id| id.0), "group": of_bytes(&r.group), "form": form,
                    "version": r.version, "members": r.members, "online": r.online,
                    "next": r.next, "entries": r.entries.iter().map(entry).collect::<Vec<_>>(),
                }),
            )
        }
        Event::QueryFailed { id, group, error } => (
            "query_failed",
            json!({
                "id": id.0, "group": of_bytes(group),
                "error": error.as_ref().map_or(Value::Null, refusal),
            }),
        ),
        Event::ServerError(error) => ("server_error", json!({ "error": refusal(error) })),
        Event::Draining { grace_ms, reconnect_after_ms } => {
            ("draining", json!({ "grace_ms": grace_ms, "reconnect_after_ms": reconnect_after_ms }))
        }
        Event::Disconnected { reason: why, retry_in_ms } => {
            ("disconnected", json!({ "reason": reason(why), "retry_in_ms": retry_in_ms }))
        }
        other => panic!("an event that the tables have no word for: {other:?}"),
    }
}
