//! The result of a run, as a table and as JSON.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::Workload;
use crate::control::Observed;
use crate::error::LoadError;
use crate::hdr_files::{distribution, encoded};
use crate::plan::Plan;
use crate::proc::Cpu;
use crate::record::Histograms;
use crate::several::command_line;
use crate::shared::Shared;
use crate::sizes::Drawn;
use crate::timeline::Point;
use crate::violation::Violations;
use crate::worker::Outcome;

/// A core that is busy for more than this share is the one that bounds the run.
const SATURATED: f64 = 0.95;
/// Above this share of time without a core the figures say little.
const DISTURBED: f64 = 0.05;

/// Everything that is reported, with units in the names.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    workload: &'static str,
    command: String,
    target: &'static str,
    /// How frames were encoded, in turn over members and publishers.
    encodings: Vec<&'static str>,
    /// What a publish is answered with, if with anything.
    publish_answer: Option<&'static str>,
    qos: Option<u8>,
    /// Whether everything was verified and nothing was found.
    pub passed: bool,
    cut_short: bool,
    members: u32,
    groups: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    sizes: Option<Drawn>,
    publishers: u32,
    stalled: u32,
    stalled_bytes: u64,
    stalled_closed: u64,
    acks: bool,
    durable: bool,
    receipts_percent: Option<u8>,
    receipts: u64,
    threads: usize,
    payload_bytes_max: usize,
    window: Option<u32>,
    rate: Option<f64>,
    server_command: Option<String>,
    #[serde(skip)]
    server_shards: f64,
    measured_s: f64,
    /// From the first broadcast to the end of the measured time.
    run_s: f64,
    join_s: f64,
    published: u64,
    /// Nothing where there are no answers.
    answered: Option<u64>,
    completed: u64,
    verified_deliveries: u64,
    held_back: u64,
    unsent: u64,
    deliveries: u64,
    deliveries_per_s: f64,
    broadcasts_per_s: f64,
    latency: Vec<Latency>,
    loadgen_busy: Vec<f64>,
    /// Share of the time in which another process had the thread's core.
    loadgen_waiting: Vec<f64>,
    loadgen_cpu_ns_per_delivery: Option<f64>,
    server_waiting_cores: Option<f64>,
    server_busy_cores: Option<f64>,
    server_cpu_ns_per_delivery: Option<f64>,
    server_sleeps_per_s: Option<f64>,
    saturated: &'static str,
    server_memory: Option<ServerMemory>,
    kernel_tcp_bytes_per_member: f64,
    kernel_slab_bytes_per_member: f64,
    catch_up: Option<CatchUp>,
    herd: Option<Herd>,
    /// Each latency that was recorded, for `loadgen plot` and the tools of HdrHistogram.
    histograms: BTreeMap<String, String>,
    over_time: Vec<Point>,
    violations: &'a Violations,
}

/// All members dropped and came back.
#[derive(Debug, Serialize)]
struct Herd {
    away_s: f64,
    back: u64,
    /// From when they may come back to when the last one is in its groups.
    back_s: f64,
    caught_up: u64,
    /// The same to when the last one has what it missed.
    caught_up_s: f64,
    /// From the drop to then.
    server_cpu_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct CatchUp {
    readers: u32,
    messages: u64,
    bytes: u64,
    rounds: u64,
    mib_per_s: f64,
}

#[derive(Debug, Serialize)]
struct ServerMemory {
    before_join: u64,
    after_join: u64,
    end: u64,
    max: u64,
    bytes_per_member: f64,
    anonymous_bytes_per_member: f64,
}

#[derive(Debug, Serialize)]
struct Latency {
    what: String,
    count: u64,
    mean_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    p9999_us: f64,
    max_us: f64,
}

impl Latency {
    fn of(what: String, h: &Histogram<u64>) -> Self {
        let us = |quantile| h.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            what,
            count: h.len(),
            mean_us: h.mean() / 1e3,
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            p9999_us: us(0.9999),
            max_us: h.max() as f64 / 1e3,
        }
    }
}

impl<'a> Report<'a> {
    /// Works the figures out.
    pub fn new(
        workload: &Workload,
        plan: &Plan,
        shared: &Shared,
        seen: &Observed,
        total: &'a Outcome,
        server_command: Option<String>,
    ) -> Self {
        use std::sync::atomic::Ordering::Relaxed;
        let o = workload.options();
        let wall_ns = seen.to.at.saturating_sub(seen.from.at).max(1) as f64;
        let seconds = wall_ns / 1e9;
        let deliveries = seen.to.deliveries - seen.from.deliveries;
        let share = |of: fn(&Cpu) -> u64| -> Vec<f64> {
            let threads = seen.to.threads.iter().zip(&seen.from.threads);
            threads.map(|(to, from)| of(to).saturating_sub(of(from)) as f64 / wall_ns).collect()
        };
        let (busy, waiting) = (share(|cpu| cpu.ns), share(|cpu| cpu.waiting_ns));
        let per_delivery = |ns: f64| (deliveries > 0).then(|| ns / deliveries as f64);
        let server = seen.to.server.zip(seen.from.server);
        let server_ns = server.map(|(to, from)| to.ns.saturating_sub(from.ns) as f64);
        let server_busy = server_ns.map(|ns| ns / wall_ns);
        let server_waiting =
            server.map(|(to, from)| to.waiting_ns.saturating_sub(from.waiting_ns) as f64 / wall_ns);
        let members = f64::from(plan.members + plan.stalled);
        let difference = |to: u64, from: u64| (to as f64 - from as f64) / members;
        let server_memory = match seen.memory {
            [Some(before), Some(after), end] => Some(ServerMemory {
                before_join: before.resident,
                after_join: after.resident,
                end: end.map_or(0, |m| m.resident),
                max: seen.memory_max.max(after.resident),
                bytes_per_member: difference(after.resident, before.resident),
                anonymous_bytes_per_member: difference(after.anonymous, before.anonymous),
            }),
            _ => None,
        };
        let shards = if o.spawn { f64::from(o.shards) } else { 1.0 };
        // Who waits for a core that others use has no time left either.
        let own_full = busy.iter().zip(&waiting).any(|(b, w)| b + w > SATURATED);
        let server_full = server_busy
            .zip(server_waiting)
            .map(|(busy, waiting)| busy + waiting > SATURATED * shards);
        let published = shared.published.load(Relaxed);
        let completed = shared.completed.load(Relaxed);
        let herd_is_back = !matches!(workload, Workload::Herd(_))
            || shared.herd.caught_up.load(Relaxed) == u64::from(plan.members);
        let mut latency = Vec::new();
        for (what, pair) in total.histograms.each() {
            if !pair.uncorrected.is_empty() {
                latency.push(Latency::of(what.to_owned(), &pair.uncorrected));
                latency.push(Latency::of(format!("{what} corrected"), &pair.corrected));
            }
        }
        Self {
            workload: workload.name(),
            command: command_line(),
            target: plan.target.name(),
            encodings: plan.encodings.iter().map(|encoding| encoding.name()).collect(),
            publish_answer: plan.target.answer(plan.qos),
            qos: o.qos,
            passed: total.violations.total() == 0
                && herd_is_back
                && (plan.publishers == 0 || completed == published),
            cut_short: seen.cut_short,
            members: plan.members,
            groups: plan.groups.len(),
            sizes: plan.sizes.clone(),
            publishers: plan.publishers,
            stalled: plan.stalled,
            stalled_bytes: shared.slow_bytes.load(Relaxed),
            stalled_closed: shared.slow_closed.load(Relaxed),
            acks: plan.acks,
            durable: plan.durable,
            receipts_percent: plan.receipts,
            receipts: shared.received.load(Relaxed),
            threads: shared.threads,
            payload_bytes_max: plan.payloads.longest(),
            window: o.window,
            rate: o.rate,
            server_command,
            server_shards: shards,
            measured_s: seconds,
            run_s: seconds + o.warmup.as_secs_f64(),
            join_s: seen.join_ns as f64 / 1e9,
            published,
            answered: plan.target.answer(plan.qos).map(|_| shared.answered.load(Relaxed)),
            completed,
            verified_deliveries: total.verified,
            held_back: total.held_back,
            // Who stops a run does not want the rest of it.
            unsent: if seen.cut_short { 0 } else { total.unsent },
            deliveries,
            deliveries_per_s: deliveries as f64 / seconds,
            broadcasts_per_s: (seen.to.completed - seen.from.completed) as f64 / seconds,
            latency,
            loadgen_cpu_ns_per_delivery: per_delivery(busy.iter().sum::<f64>() * wall_ns),
            loadgen_busy: busy,
            loadgen_waiting: waiting,
            server_waiting_cores: server_waiting,
            server_busy_cores: server_busy,
            server_cpu_ns_per_delivery: server_ns.and_then(per_delivery),
            server_sleeps_per_s: server
                .map(|(to, from)| to.sleeps.saturating_sub(from.sleeps) as f64 / seconds),
            saturated: match (own_full, server_full) {
                (true, Some(true)) => "both",
                (true, _) => "loadgen",
                (false, Some(true)) => "server",
                (false, Some(false)) => "neither",
                (false, None) => "unknown: the server's process is not known (--server-pid)",
            },
            server_memory,
            kernel_tcp_bytes_per_member: difference(seen.kernel[1].tcp, seen.kernel[0].tcp),
            kernel_slab_bytes_per_member: difference(seen.kernel[1].slab, seen.kernel[0].slab),
            catch_up: None,
            herd: herd(workload, shared, seen),
            histograms: total
                .histograms
                .named()
                .filter(|(_, histogram)| !histogram.is_empty())
                .map(|(name, histogram)| (name, encoded(histogram)))
                .collect(),
            over_time: Vec::new(),
            violations: &total.violations,
        }
    }

    /// As JSON.
    pub fn value(&self) -> Result<serde_json::Value, LoadError> {
        serde_json::to_value(self).map_err(|e| LoadError::Usage(format!("the report: {e}")))
    }

    /// Adds the run over time.
    pub fn over_time(mut self, points: Vec<Point>, length: Duration) -> Self {
        // What comes in while the run drains makes no interval of its own.
        let end = self.measured_s + 0.9 * length.as_secs_f64();
        self.over_time = points.into_iter().filter(|p| p.at_s < end).collect();
        self
    }

    /// Adds what members beside those that were measured have read.
    pub fn with_catch_up(mut self, read: Option<(u32, &crate::catch_up::Read)>) -> Self {
        use std::sync::atomic::Ordering::Relaxed;
        self.catch_up = read.map(|(readers, read)| {
            let bytes = read.bytes.load(Relaxed);
            CatchUp {
                readers,
                messages: read.messages.load(Relaxed),
                bytes,
                rounds: read.rounds.load(Relaxed),
                mib_per_s: bytes as f64 / f64::from(1 << 20) / self.run_s,
            }
        });
        self
    }

    fn table(&self, histograms: &Histograms) -> String {
        let mut lines = Vec::new();
        let mut row = |name: &str, value: String| lines.push(format!("{name:<26} {value}"));
        let qos = self.qos.map_or(String::new(), |qos| format!(", QoS {qos}"));
        row("target", format!("{}{qos}", self.target));
        row("encoding", self.encodings.join(", "));
        row(
            "workload",
            format!(
                "{}: {} members, {} groups, {} publishers, {} stalled, payload up to {} bytes",
                self.workload,
                self.members,
                self.groups,
                self.publishers,
                self.stalled,
                self.payload_bytes_max
            ),
        );
        if let Some(sizes) = &self.sizes {
            row("group sizes", sizes.to_string());
        }
        if let Some(command) = &self.server_command {
            row("server", command.clone());
        }
        row("joined in", format!("{:.2} s", self.join_s));
        row(
            "measured",
            format!("{:.2} s{}", self.measured_s, if self.cut_short { ", cut short" } else { "" }),
        );
        if self.publishers > 0 {
            let answered = self
                .answered
                .map_or("not answered by this protocol".to_owned(), |n| format!("{n} answered"));
            row(
                "published, whole run",
                format!("{} ({answered}, {} at every member)", self.published, self.completed),
            );
            if let Some(answer) = self.publish_answer {
                row("a publish is answered by", answer.to_owned());
            }
            row("deliveries verified", self.verified_deliveries.to_string());
            row("deliveries/s", count(self.deliveries_per_s));
            row("broadcasts/s", count(self.broadcasts_per_s));
        }
        if let Some(h) = &self.herd {
            let cpu = h.server_cpu_s.map_or(String::new(), |s| format!(", server CPU {s:.3} s"));
            row(
                "herd",
                format!(
                    "away {:.2} s; {} back after {:.3} s, {} caught up after {:.3} s{cpu}",
                    h.away_s, h.back, h.back_s, h.caught_up, h.caught_up_s
                ),
            );
        }
        if let Some(c) = &self.catch_up {
            row(
                "catching up",
                format!(
                    "{} members read {} messages, {:.1} MiB/s, {} times to the end",
                    c.readers, c.messages, c.mib_per_s, c.rounds
                ),
            );
        }
        if self.acks {
            let kind = if self.durable { "durable" } else { "live" };
            row("members", format!("{kind}, acknowledging what they verified"));
        }
        if let Some(percent) = self.receipts_percent {
            row("receipts", format!("{} at {percent}% of the members", self.receipts));
        }
        if self.held_back > 0 {
            row(
                "publisher held back",
                format!("{} times; corrected latencies include it", self.held_back),
            );
        }
        if self.unsent > 0 {
            row(
                "due and never sent",
                format!("{} broadcasts at the end; no latency includes them", self.unsent),
            );
        }
        if self.stalled > 0 {
            row(
                "slow or stalled members",
                format!(
                    "{}; read {} bytes; {} were disconnected; not verified, nobody waited for them",
                    self.stalled, self.stalled_bytes, self.stalled_closed
                ),
            );
        }
        let busy: Vec<String> =
            self.loadgen_busy.iter().map(|b| format!("{:.1}%", b * 100.0)).collect();
        let per =
            |ns: Option<f64>| ns.map_or(String::new(), |ns| format!(", {ns:.1} ns per delivery"));
        row("loadgen CPU", format!("{}{}", busy.join(" "), per(self.loadgen_cpu_ns_per_delivery)));
        if let (Some(cores), Some(sleeps)) = (self.server_busy_cores, self.server_sleeps_per_s) {
            row(
                "server CPU",
                format!(
                    "{:.2}%{}, {sleeps:.1} sleeps/s",
                    cores * 100.0,
                    per(self.server_cpu_ns_per_delivery)
                ),
            );
        }
        row("saturated side", self.saturated.to_owned());
        let waiting = self.loadgen_waiting.iter().copied().fold(0.0, f64::max);
        let server = self.server_waiting_cores.unwrap_or(0.0) / self.server_shards;
        let disturbed = waiting.max(server).min(1.0);
        if disturbed > DISTURBED {
            let percent = disturbed * 100.0;
            row(
                "DISTURBED",
                format!("other processes had the cores for {percent:.0}% of the time"),
            );
        }
        if let Some(m) = &self.server_memory {
            let mib = |bytes: u64| format!("{:.1}", bytes as f64 / 1_048_576.0);
            row(
                "server memory",
                format!(
                    "{} MiB before members, {} with them, {} at the end, {} at most",
                    mib(m.before_join),
                    mib(m.after_join),
                    mib(m.end),
                    mib(m.max)
                ),
            );
            row(
                "server bytes per member",
                format!(
                    "{:.0} ({:.0} anonymous)",
                    m.bytes_per_member, m.anonymous_bytes_per_member
                ),
            );
        }
        row(
            "kernel bytes per member",
            format!(
                "{:.0} slab, {:.0} in TCP queues (of the whole machine, both ends of each connection)",
                self.kernel_slab_bytes_per_member, self.kernel_tcp_bytes_per_member
            ),
        );
        lines.push(String::new());
        lines.push(format!(
            "{:<22} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "latency (us)", "count", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"
        ));
        for l in &self.latency {
            lines.push(format!(
                "{:<22} {:>12} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
                l.what,
                l.count,
                l.mean_us,
                l.p50_us,
                l.p90_us,
                l.p99_us,
                l.p999_us,
                l.p9999_us,
                l.max_us
            ));
        }
        let shown = if self.publishers > 0 { &histograms.delivery } else { &histograms.join };
        if !shown.corrected.is_empty() {
            let what = if self.publishers > 0 { "delivery" } else { "join" };
            lines.push(format!("\n{what} latency, corrected (ms)"));
            lines.push(distribution(&shown.corrected, 1));
        }
        lines.push(self.verdict());
        lines.join("\n")
    }

    fn verdict(&self) -> String {
        let v = self.violations;
        if self.passed {
            let what = if self.publishers > 0 {
                if self.target == "fanfare" {
                    "every member got every message once, in order, unchanged"
                } else {
                    "every member got every message once, unchanged, those of each publisher in order"
                }
            } else {
                "every member joined and stayed"
            };
            return format!("VERIFIED: {what}");
        }
        let mut lines = vec![format!(
            "FAILED: {} lost, {} duplicate, {} reordered, {} corrupt, {} connections closed, {} unanswered, {} wrong answers",
            v.lost, v.duplicate, v.reordered, v.corrupt, v.closed, v.unanswered, v.wrong_answer
        )];
        if self.completed < self.published {
            lines.push(format!(
                "  {} of {} messages came to every member",
                self.completed, self.published
            ));
        }
        lines.extend(v.details.iter().map(|detail| format!("  {detail}")));
        lines.join("\n")
    }
}

fn herd(workload: &Workload, shared: &Shared, seen: &Observed) -> Option<Herd> {
    use std::sync::atomic::Ordering::Relaxed;
    let Workload::Herd(o) = workload else { return None };
    let h = &shared.herd;
    let from = h.dropped.load(Relaxed) + o.away.as_nanos() as u64;
    let since = |at: u64| at.saturating_sub(from) as f64 / 1e9;
    let [before, after] = seen.herd_cpu;
    Some(Herd {
        away_s: o.away.as_secs_f64(),
        back: h.back.load(Relaxed),
        back_s: since(h.back_at.load(Relaxed)),
        caught_up: h.caught_up.load(Relaxed),
        caught_up_s: since(h.caught_up_at.load(Relaxed)),
        server_cpu_s: before
            .zip(after)
            .map(|(before, after)| after.ns.saturating_sub(before.ns) as f64 / 1e9),
    })
}

/// A number for people.
pub fn count(n: f64) -> String {
    match n {
        n if n >= 1e6 => format!("{:.3} M", n / 1e6),
        n if n >= 1e4 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.1}"),
    }
}

/// Shows the report. Findings go to standard error whenever standard output is not the table.
pub fn print(
    report: &Report<'_>,
    histograms: &Histograms,
    json: Option<&Path>,
) -> Result<(), LoadError> {
    let to_stdout = json == Some(Path::new("-"));
    if let Some(path) = json {
        let mut text = serde_json::to_string_pretty(report)
            .map_err(|e| LoadError::File { path: path.to_owned(), source: e.into() })?;
        text.push('\n');
        if to_stdout {
            print!("{text}");
        } else {
            std::fs::write(path, text).map_err(LoadError::file(path))?;
        }
    }
    if !to_stdout {
        println!("{}", report.table(histograms));
    } else if !report.passed {
        eprintln!("{}", report.verdict());
    }
    Ok(())
}
