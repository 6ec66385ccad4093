//! `/metrics`. Figures come from the counters that each shard publishes anyway; times, sizes,
//! refusals by reason and how full things are come from the shards themselves, which are asked
//! with each scrape: one wake-up each, and no look at connections or groups. A shard that does
//! not answer in time is said to be silent, and its figures are there all the same.

use std::sync::atomic::Ordering;

use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::text::{CONTENT_TYPE, Kind, Page};
use super::{Shared, State, process};
use crate::config::Priority;
use crate::serve::json::code_name;
use crate::shard::counters::Figures;
use crate::shard::histogram::Histogram;
use crate::shard::look::{Look, Seen};
use crate::shard::status::ShardStatus;

/// A figure under its name outside: figure, name, labels, kind, help. Figures with the same name
/// follow each other.
struct Export {
    figure: &'static str,
    name: &'static str,
    label: Option<(&'static str, &'static str)>,
    kind: Kind,
    help: &'static str,
}

const fn counter(figure: &'static str, name: &'static str, help: &'static str) -> Export {
    Export { figure, name, label: None, kind: Kind::Counter, help }
}

const fn gauge(figure: &'static str, name: &'static str, help: &'static str) -> Export {
    Export { figure, name, label: None, kind: Kind::Gauge, help }
}

const fn state(figure: &'static str, state: &'static str) -> Export {
    Export {
        figure,
        name: "fanfare_members",
        label: Some(("state", state)),
        kind: Kind::Gauge,
        help: "Connections of members by how they keep up.",
    }
}

const fn by_reason(
    figure: &'static str,
    name: &'static str,
    reason: &'static str,
    help: &'static str,
) -> Export {
    Export { label: Some(("reason", reason)), ..counter(figure, name, help) }
}

const fn gaps(figure: &'static str, reason: &'static str) -> Export {
    let help = "Holes that members were told of by GAP, by reason.";
    by_reason(figure, "fanfare_gaps_total", reason, help)
}

const fn closed(figure: &'static str, reason: &'static str) -> Export {
    let help = "Connections that the server closed, by reason.";
    by_reason(figure, "fanfare_connections_closed_total", reason, help)
}

const EXPORTS: &[Export] = &[
    counter("turns", "fanfare_turns_total", "Turns of the shard."),
    counter(
        "sleeps",
        "fanfare_sleeps_total",
        "Turns after which the shard slept until something woke it.",
    ),
    gauge("connections", "fanfare_connections", "Open connections."),
    counter("accepted", "fanfare_connections_accepted_total", "Connections accepted."),
    gauge("members", "fanfare_memberships", "Memberships of the shard's connections in groups."),
    gauge("groups", "fanfare_groups", "Groups in memory, those owned by other shards included."),
    counter("messages", "fanfare_messages_total", "Messages that got their place in a group."),
    counter(
        "refused",
        "fanfare_publishes_refused_total",
        "Publishes that were refused; fanfare_errors_total says why.",
    ),
    counter(
        "duplicates",
        "fanfare_duplicates_total",
        "Publishes that came again and had their place already.",
    ),
    counter(
        "deliveries",
        "fanfare_deliveries_total",
        "Messages handed to sockets, once per member.",
    ),
    counter("read_bytes", "fanfare_received_bytes_total", "Bytes received from clients."),
    counter("writes", "fanfare_writes_total", "Socket writes started."),
    counter("write_bytes", "fanfare_sent_bytes_total", "Bytes of socket writes started."),
    counter("commits", "fanfare_commits_total", "Commits that are on disk."),
    counter(
        "commit_bytes",
        "fanfare_wal_written_bytes_total",
        "Bytes of commits, padding included.",
    ),
    gauge(
        "wal_appended",
        "fanfare_wal_appended_position",
        "Number of the last commit handed to the disk.",
    ),
    gauge(
        "wal_synced",
        "fanfare_wal_synced_position",
        "Number of the last commit that is on disk.",
    ),
    gauge("tail_bytes", "fanfare_tail_bytes", "Bytes of the newest messages kept in memory."),
    gauge("pinned_bytes", "fanfare_pinned_bytes", "Bytes held by unfinished writes only."),
    gauge("partial_bytes", "fanfare_partial_bytes", "Bytes of unfinished frames of clients."),
    gauge(
        "inbox_bytes",
        "fanfare_inbox_bytes",
        "Bytes of publishes and questions that wait, forwarded ones included.",
    ),
    gauge(
        "catch_up_members",
        "fanfare_catch_up_memberships",
        "Memberships that are served from the log.",
    ),
    counter(
        "catch_up_reads",
        "fanfare_catch_up_reads_total",
        "Chunks read from the log for members.",
    ),
    counter(
        "catch_up_read_errors",
        "fanfare_catch_up_read_errors_total",
        "Reads of the log for members that failed; a place is tried several times.",
    ),
    counter("snapshots", "fanfare_snapshots_total", "Snapshots written."),
    state("members_live", "live"),
    state("members_lagging", "lagging"),
    state("members_catch_up", "catch_up"),
    state("members_stalled", "stalled"),
    gauge(
        "members_tripped",
        "fanfare_members_tripped",
        "Members that are served last until they have recovered.",
    ),
    counter("trips", "fanfare_trips_total", "Times that a member began to be served last."),
    counter("fetches", "fanfare_fetches_total", "Pages of history sent in answer to FETCH."),
    counter("rosters", "fanfare_rosters_total", "Rosters announced."),
    counter(
        "state_changes",
        "fanfare_state_changes_total",
        "Keys of groups' states set or deleted.",
    ),
    gaps("gaps_retention", "retention"),
    gaps("gaps_unreadable", "damaged"),
    closed("stalled", "stalled"),
    closed("closed_for_memory", "memory"),
    closed("silent", "silent"),
    closed("unacknowledged", "unacknowledged"),
    closed("takeovers", "replaced"),
    closed("disconnected", "operator"),
    closed("tls_refused", "tls"),
    closed("upgrades_refused", "upgrade"),
    closed("websocket_violations", "websocket"),
    counter("tls_handshakes", "fanfare_tls_handshakes_total", "TLS handshakes finished."),
    counter(
        "tls_resumed",
        "fanfare_tls_resumed_total",
        "TLS handshakes that took up an earlier session.",
    ),
    counter(
        "throttled",
        "fanfare_throttled_total",
        "Times that a publisher was not read because the inbox was full.",
    ),
    counter(
        "cursors_written",
        "fanfare_cursors_written_total",
        "Cursors of durable members staged for the log.",
    ),
    counter(
        "redeliveries",
        "fanfare_redeliveries_total",
        "Times that messages were sent to a durable member again.",
    ),
    counter("receipts", "fanfare_receipts_total", "RECEIPT frames sent."),
    counter(
        "receipts_dropped",
        "fanfare_receipts_dropped_total",
        "Receipts given up because too many waited for publishers who stay away.",
    ),
    counter(
        "receipts_unproved",
        "fanfare_receipts_unproved_total",
        "Receipts taken as read without proof, since too many on one connection had none.",
    ),
    counter(
        "tokens_refused",
        "fanfare_tokens_refused_total",
        "Tokens that were refused, and connections closed because theirs had ended.",
    ),
    counter("forbidden", "fanfare_forbidden_total", "Requests that a token did not allow."),
    counter(
        "rate_limited",
        "fanfare_rate_limited_total",
        "Requests, publishes and connections above what a member or a group may.",
    ),
    counter("mesh_batches", "fanfare_mesh_batches_total", "Batches pushed to other shards."),
    counter("mesh_full", "fanfare_mesh_full_total", "Times that a ring to another shard was full."),
    counter(
        "mesh_wakes",
        "fanfare_mesh_wakeups_total",
        "Times that another shard slept and was woken.",
    ),
];

pub(super) async fn answer(axum::extract::State(state): Shared) -> Response {
    let answers = state.asker.ask(Look::Status { slowest: false }, None).await.unwrap_or_default();
    let statuses = answers.into_iter().filter_map(|(_, seen)| match seen {
        Some(Seen::Status(status)) => Some(*status),
        _ => None,
    });
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], page(&state, &statuses.collect::<Vec<_>>()))
        .into_response()
}

fn page(state: &State, statuses: &[ShardStatus]) -> String {
    let figures: Vec<_> = state.counters.iter().map(|counters| counters.load()).collect();
    let mut page = Page::default();
    let name = "fanfare_build_info";
    page.family(name, Kind::Gauge, "Always 1; the version is a label.");
    page.sample(name, &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    write_figures(&mut page, &figures);
    write_statuses(&mut page, statuses, figures.len() as u16);
    write_http(&mut page, state);
    process::write(&mut page);
    page.finish()
}

fn write_figures(page: &mut Page, shards: &[Figures]) {
    let named: Vec<Vec<_>> = shards.iter().map(|figures| figures.named().collect()).collect();
    let mut last = "";
    for export in EXPORTS {
        if export.name != last {
            page.family(export.name, export.kind, export.help);
            last = export.name;
        }
        for (shard, named) in named.iter().enumerate() {
            let Some((_, value)) = named.iter().find(|(name, _)| *name == export.figure) else {
                continue;
            };
            match &export.label {
                None => page.sample(export.name, &[("shard", &shard)], value),
                Some((label, of)) => {
                    page.sample(export.name, &[("shard", &shard), (label, of)], value);
                }
            }
        }
    }
}

fn write_statuses(page: &mut Page, statuses: &[ShardStatus], shards: u16) {
    let name = "fanfare_shard_up";
    page.family(name, Kind::Gauge, "1 if the shard answered this scrape.");
    for shard in 0..shards {
        let up = statuses.iter().any(|status| status.shard.0 == shard);
        page.sample(name, &[("shard", &shard)], u8::from(up));
    }
    let mut gauge = |name: &str, help: &str, value: fn(&ShardStatus) -> f64| {
        page.family(name, Kind::Gauge, help);
        for status in statuses {
            page.sample(name, &[("shard", &status.shard.0)], value(status));
        }
    };
    gauge("fanfare_mesh_ring_batches", "Batches in the fullest ring to another shard.", |s| {
        s.ring_batches as f64
    });
    gauge(
        "fanfare_mesh_ring_capacity_batches",
        "Batches that fit into such a ring; 0 without one.",
        |s| s.ring_slots as f64,
    );
    gauge("fanfare_log_bytes", "Bytes of the log on disk.", |s| s.log_bytes as f64);
    gauge(
        "fanfare_log_failed",
        "1 if a write of the log failed: nothing is accepted until a restart.",
        |s| f64::from(u8::from(s.log_poisoned)),
    );
    gauge("fanfare_log_full", "1 if there is no room on disk for the next segment.", |s| {
        f64::from(u8::from(s.log_full))
    });
    gauge("fanfare_draining", "1 while the shard stops.", |s| f64::from(u8::from(s.draining)));
    gauge(
        "fanfare_write_median_seconds",
        "Median over members of the time of a socket write.",
        |s| s.median_write_ns as f64 / 1e9,
    );
    gauge(
        "fanfare_drain_median_bytes_per_second",
        "Median over members of what they take while there is something for them.",
        |s| s.median_rate as f64,
    );
    let name = "fanfare_inbox_waiting_bytes";
    page.family(
        name,
        Kind::Gauge,
        "Bytes of publishes that wait to be sequenced, by the priority of their groups.",
    );
    for status in statuses {
        for (priority, bytes) in Priority::ALL.iter().zip(status.inbox_bytes) {
            page.sample(name, &[("shard", &status.shard.0), ("priority", &priority.name())], bytes);
        }
    }
    let name = "fanfare_errors_total";
    page.family(name, Kind::Counter, "ERROR frames made for clients, by code.");
    for status in statuses {
        for (code, count) in status.errors.counted() {
            page.sample(name, &[("shard", &status.shard.0), ("code", &code_name(code))], count);
        }
    }
    const NANOS: f64 = 1e9;
    histograms(
        page,
        statuses,
        "fanfare_turn_seconds",
        "Time of a turn of the shard, what it slept left out.",
        NANOS,
        |s| &s.distributions.turn,
    );
    histograms(
        page,
        statuses,
        "fanfare_commit_seconds",
        "Time from handing a commit to the disk to seeing it there.",
        NANOS,
        |s| &s.distributions.commit,
    );
    histograms(
        page,
        statuses,
        "fanfare_publish_seconds",
        "Time from the place of a commit's first message to its publication, once per commit.",
        NANOS,
        |s| &s.distributions.publish,
    );
    histograms(
        page,
        statuses,
        "fanfare_commit_size_bytes",
        "Bytes of a commit, padding included.",
        1.0,
        |s| &s.distributions.commit_bytes,
    );
    histograms(
        page,
        statuses,
        "fanfare_commit_messages",
        "Messages of a commit that has some.",
        1.0,
        |s| &s.distributions.commit_messages,
    );
}

fn histograms<const FIRST: u32>(
    page: &mut Page,
    statuses: &[ShardStatus],
    name: &str,
    help: &str,
    per_unit: f64,
    of: impl Fn(&ShardStatus) -> &Histogram<FIRST>,
) {
    page.family(name, Kind::Histogram, help);
    for status in statuses {
        let (shard, histogram) = (status.shard.0, of(status));
        let bucket = format!("{name}_bucket");
        for (bound, count) in histogram.cumulated() {
            let bound = bound as f64 / per_unit;
            page.sample(&bucket, &[("shard", &shard), ("le", &bound)], count);
        }
        let count = histogram.count();
        page.sample(&bucket, &[("shard", &shard), ("le", &"+Inf")], count);
        let sum = histogram.sum() as f64 / per_unit;
        page.sample(&format!("{name}_sum"), &[("shard", &shard)], sum);
        page.sample(&format!("{name}_count"), &[("shard", &shard)], count);
    }
}

fn write_http(page: &mut Page, state: &State) {
    let name = "fanfare_http_connections";
    page.family(name, Kind::Gauge, "Open connections of the HTTP interface.");
    page.sample(name, &[], state.seen.connections.load(Ordering::Relaxed));
    let name = "fanfare_http_connections_evicted_total";
    page.family(
        name,
        Kind::Counter,
        "Times that a connection of the HTTP interface had to make room for another one.",
    );
    page.sample(name, &[], state.seen.evicted.load(Ordering::Relaxed));
    let name = "fanfare_http_answers_total";
    page.family(name, Kind::Counter, "Answers of the HTTP interface by class of their status.");
    for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"].iter().zip(&state.seen.answers) {
        page.sample(name, &[("class", class)], count.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_figure_has_a_name_outside_and_every_name_a_figure() {
        let figures: BTreeSet<_> = Figures::default().named().map(|(name, _)| name).collect();
        let exported: BTreeSet<_> = EXPORTS.iter().map(|export| export.figure).collect();
        assert_eq!(figures, exported);
        assert_eq!(EXPORTS.len(), exported.len());
    }

    #[test]
    fn families_stay_together_and_follow_the_conventions() {
        let mut page = Page::default();
        write_figures(&mut page, &[Figures::default(), Figures::default()]);
        write_statuses(&mut page, &[], 2);
        let text = page.finish();
        let mut seen = BTreeSet::new();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(seen.insert(name.to_owned()), "{name} comes twice");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
                family = name.to_owned();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&family), "{line} is not of {family}");
            }
        }
        assert!(text.contains("fanfare_members{shard=\"1\",state=\"stalled\"} 0\n"));
        assert!(text.contains("fanfare_shard_up{shard=\"1\"} 0\n"));
    }
}
