//! A run from start to end, and what its threads share.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use core_affinity::CoreId;
use crossbeam_channel::Receiver;
use fanfare::ring::run_when_idle;
use hdrhistogram::serialization::V2DeflateSerializer;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{FillOptions, Workload};
use crate::catch_up;
use crate::clock::{MILLI, SECOND, now_ns};
use crate::connect::check_open_files;
use crate::error::LoadError;
use crate::hdr_files;
use crate::history::{HEADER_BYTES, History};
use crate::join::slots_of_thread;
use crate::places;
use crate::plan::{Plan, prefix};
use crate::plot;
use crate::proc::{Cpu, KernelMemory, Memory, Watched, kernel_memory, thread_cpu};
use crate::record::{Histograms, Measured};
use crate::report::{self, Report};
use crate::shared::{Interval, Phase, Shared, ThreadCounters};
use crate::spawn::Server;
use crate::timeline::{self, Timeline};
use crate::violation::{Kind, Violations};
use crate::worker::{Outcome, Worker};

/// Time between the decision to start and the first broadcast, for all threads to hear of it.
const START_DELAY_NS: u64 = 30 * MILLI;
/// After a finding the run goes on this long, to tell late messages from lost ones.
const FAILED_DRAIN_NS: u64 = SECOND;
/// Memory is read this long after the last join, when buffers of the handshakes are gone.
const SETTLE: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(20);

/// CPU time and deliveries at one moment.
#[derive(Clone, Default)]
pub struct Sample {
    /// When.
    pub at: u64,
    /// Of the server.
    pub server: Option<Cpu>,
    /// Of each worker.
    pub threads: Vec<Cpu>,
    /// Verified so far.
    pub deliveries: u64,
    /// Completed so far.
    pub completed: u64,
}

/// What was seen from outside the threads.
#[derive(Default)]
pub struct Observed {
    /// Start of the measured time.
    pub from: Sample,
    /// End of the measured time.
    pub to: Sample,
    /// Server memory before the first member, after the last, at the end.
    pub memory: [Option<Memory>; 3],
    /// Largest server memory during the run.
    pub memory_max: u64,
    /// CPU time of the server when a herd dropped, and when it had caught up.
    pub herd_cpu: [Option<Cpu>; 2],
    /// Kernel memory before the first member and after the last.
    pub kernel: [KernelMemory; 2],
    /// Time in which all joined.
    pub join_ns: u64,
    /// The run was ended early, by a signal or by a finding.
    pub cut_short: bool,
}

/// Makes the run and reports it. Returns whether everything was as it should be.
pub fn run(workload: &Workload) -> Result<bool, LoadError> {
    let o = workload.options();
    if o.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
        return Err(LoadError::Usage("--rate must be above 0".to_owned()));
    }
    if o.background {
        // Inherited by the threads. A niced process would keep its core for a whole slice, 4 ms
        // at 250 Hz, before it gives way.
        run_when_idle()
            .map_err(|e| LoadError::Usage(format!("the kernel refuses --background: {e}")))?;
    }
    if workload.interval().is_zero() {
        return Err(LoadError::Usage("--interval must be above 0".to_owned()));
    }
    // Monotonic time and process id make it unique on a machine, which is all it needs.
    let run_id = now_ns().wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(std::process::id());
    if let Workload::Fill(fill) = workload {
        return self::fill(fill, run_id);
    }
    let mut plan = Plan::new(workload, run_id)?;
    let history = match workload {
        Workload::Catchup(c) => Some((
            History {
                prefix: prefix(o, run_id),
                groups: c.history_groups,
                bytes: c.history_bytes,
                payload: c.history_payload as usize,
            },
            c.readers,
        )),
        _ => None,
    };
    let threads = usize::from(o.threads);
    check_open_files(u64::from(slots_of_thread(&plan, threads)) + 64)?;

    // The server first: what is pinned below would be inherited.
    let server = if o.spawn { Some(Server::start(o)?) } else { None };
    let addr = server.as_ref().map_or(o.addr, |s| s.addr);
    let watched = server.as_ref().map(Server::pid).or(o.server_pid).map(|pid| Watched { pid });
    if let Some(foreign) = o.foreign {
        plan.sources = places::find(addr, &plan, foreign)?;
    }
    if let Some((history, readers)) = &history {
        check_open_files(u64::from(readers + slots_of_thread(&plan, threads)) + 64)?;
        history.lay_down(addr, o.level.map(Into::into))?;
    }
    let cores = cores(&o.cores, threads)?;
    core_affinity::set_for_current(cores[0]);

    let (wake, woken) = if threads > 1 {
        let (a, b) = UnixStream::pair().map_err(LoadError::file("socketpair"))?;
        a.set_nonblocking(true).map_err(LoadError::file("socketpair"))?;
        (Some(a), Some(b))
    } else {
        (None, None)
    };
    let (shared, intervals) = Shared::new(addr, threads, wake);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let _ = signal_hook::flag::register(signal, Arc::clone(&stop));
    }

    let mut serializer = V2DeflateSerializer::new();
    let mut file = match &o.hlog {
        Some(path) => Some(BufWriter::new(File::create(path).map_err(LoadError::file(path))?)),
        None => None,
    };
    let log = match (&mut file, &o.hlog) {
        (Some(file), Some(path)) => {
            Some((timeline::log(file, &mut serializer, path)?, path.as_path()))
        }
        _ => None,
    };
    let prints = matches!(workload, Workload::Soak(_)) && o.json.as_deref() != Some(Path::new("-"));
    let mut timeline = Timeline::new(workload.interval(), watched, log, prints);

    let control =
        Control { workload, plan: &plan, shared: &shared, watched, stop: &stop, intervals };
    let mut woken = woken;
    let read = catch_up::Read::default();
    let (observed, outcomes, reading) = thread::scope(|scope| {
        let mut workers = Vec::new();
        let mut reading = None;
        if let Some((history, readers)) = &history {
            let nth = plan.members + plan.stalled + plan.publishers;
            let (shared, read, core) = (&shared, &read, cores[0]);
            reading = Some(scope.spawn(move || {
                core_affinity::set_for_current(core);
                catch_up::run(history, *readers, nth, shared, read)
            }));
        }
        for (index, core) in cores.iter().copied().enumerate() {
            let waker = woken.take_if(|_| index == 0);
            let (plan, shared) = (&plan, &shared);
            workers.push(scope.spawn(move || {
                core_affinity::set_for_current(core);
                let tid = rustix::thread::gettid().as_raw_nonzero().get();
                shared.thread(index).tid.store(tid, Ordering::Relaxed);
                let outcome = Worker::new(index, workload, plan, shared, waker)
                    .and_then(Worker::run)
                    .map(|outcome| (index, outcome));
                if outcome.is_err() {
                    shared.enter(Phase::Stop);
                }
                outcome
            }));
        }
        let observed = control.conduct(&mut timeline);
        shared.enter(Phase::Stop);
        let outcomes: Vec<_> =
            workers.into_iter().map(|w| w.join().unwrap_or(Err(LoadError::Panicked))).collect();
        let reading = reading.map(|r| r.join().unwrap_or(Err(LoadError::Panicked)));
        (observed, outcomes, reading)
    });
    // The first cause counts, not that the others were told to stop.
    let mut failures = Vec::new();
    let mut done = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(outcome) => done.push(outcome),
            Err(LoadError::Interrupted) => failures.push(LoadError::Interrupted),
            Err(error) => failures.insert(0, error),
        }
    }
    if let Some(first) = failures.into_iter().next() {
        return Err(first);
    }
    let Some(observed) = observed else { return Err(LoadError::Interrupted) };
    let command = server.as_ref().map(|s| s.command.clone());
    let stopped = server.map_or(Ok(()), Server::stop);

    timeline.take(control.intervals.try_iter())?;
    timeline.finish()?;
    let (points, latencies) = timeline.points();
    let (mut total, mut violations) = merge(done, &plan);
    total.histograms.merge(&latencies);
    if let Some(reading) = reading {
        violations.merge(reading?);
    }
    total.violations = violations;
    if let (Some(file), Some(path)) = (&mut file, &o.hlog) {
        file.flush().map_err(LoadError::file(path))?;
    }
    if let Some(prefix) = &o.hgrm {
        hdr_files::write_hgrm(prefix, &total.histograms)?;
    }
    let verified = Report::new(workload, &plan, &shared, &observed, &total, command)
        .over_time(points, workload.interval())
        .with_catch_up(history.map(|(_, readers)| (readers, &read)));
    report::print(&verified, &total.histograms, o.json.as_deref())?;
    plot::write(&verified.value()?, &o.pages)?;
    stopped?;
    Ok(verified.passed)
}

/// Puts the threads' results together and compares the orders they saw.
fn merge(outcomes: Vec<(usize, Outcome)>, plan: &Plan) -> (Outcome, Violations) {
    let mut total = Outcome {
        histograms: Histograms::new(),
        violations: Violations::default(),
        verified: 0,
        digests: Vec::new(),
        held_back: 0,
        unsent: 0,
    };
    let mut violations = Violations::default();
    let mut first_of_group = vec![None; plan.groups.len()];
    for (thread, outcome) in outcomes {
        total.histograms.merge(&outcome.histograms);
        total.verified += outcome.verified;
        total.held_back += outcome.held_back;
        total.unsent += outcome.unsent;
        let clean = outcome.violations.total() == 0;
        violations.merge(outcome.violations);
        for (group, head, last, digest) in outcome.digests {
            let seen = (head, last, digest);
            let (other, expected) = *first_of_group[group as usize].get_or_insert((thread, seen));
            if clean && expected != seen && violations.total() == 0 {
                violations.add(Kind::Reordered, 1, || {
                    format!(
                        "members on thread {thread} saw {} in another order than those on thread {other}",
                        plan.groups[group as usize].name
                    )
                });
            }
        }
    }
    (total, violations)
}

/// Cores for the threads: those named, else the last ones, so that a server on the first
/// ones is not disturbed.
fn cores(named: &[usize], threads: usize) -> Result<Vec<CoreId>, LoadError> {
    let there = core_affinity::get_core_ids().unwrap_or_default();
    if there.is_empty() {
        return Err(LoadError::Usage("the cores of this machine cannot be read".to_owned()));
    }
    if let Some(missing) = named.iter().find(|id| there.iter().all(|core| core.id != **id)) {
        let ids: Vec<usize> = there.iter().map(|core| core.id).collect();
        return Err(LoadError::Usage(format!("--cores {missing}: this process may use {ids:?}")));
    }
    let chosen: Vec<CoreId> = if named.is_empty() {
        there[there.len().saturating_sub(threads)..].to_vec()
    } else {
        named.iter().map(|id| CoreId { id: *id }).collect()
    };
    Ok((0..threads).map(|i| chosen[i % chosen.len()]).collect())
}

struct Control<'a> {
    workload: &'a Workload,
    plan: &'a Plan,
    shared: &'a Shared,
    watched: Option<Watched>,
    stop: &'a AtomicBool,
    intervals: Receiver<Interval>,
}

impl Control<'_> {
    /// Takes the threads through the phases. `None` if they never began.
    fn conduct(&self, timeline: &mut Timeline<'_>) -> Option<Observed> {
        let mut seen = Observed::default();
        seen.memory[0] = self.watched.and_then(Watched::memory);
        seen.kernel[0] = kernel_memory();
        let begun = now_ns();
        self.wait_for_members()?;
        seen.join_ns = now_ns() - begun;
        thread::sleep(SETTLE);
        seen.memory[1] = self.watched.and_then(Watched::memory);
        seen.kernel[1] = kernel_memory();

        let o = self.workload.options();
        let duration = o.duration.unwrap_or(match self.workload {
            Workload::Soak(_) => Duration::from_secs(3600),
            _ => Duration::from_secs(5),
        });
        timeline.begin();
        let start = now_ns() + START_DELAY_NS;
        let from = start + o.warmup.as_nanos() as u64;
        let to = from + duration.as_nanos() as u64;
        self.shared.begin(start, Measured { from, to });
        seen.cut_short = !self.until(from, "warm-up", timeline, &mut seen);
        seen.from = self.sample();
        if !seen.cut_short {
            seen.cut_short = !self.until(to, "measuring", timeline, &mut seen);
        }
        seen.to = self.sample();
        self.shared.enter(Phase::Drain);
        self.drain(o.drain_timeout.as_nanos() as u64);
        // Before the members go, and what the server holds for them with them.
        seen.memory[2] = self.watched.and_then(Watched::memory);
        Some(seen)
    }

    fn wait_for_members(&self) -> Option<()> {
        let all = u64::from(self.plan.members + self.plan.stalled + self.plan.publishers);
        let bar = progress(all, "joining [{bar:30}] {pos}/{len} {msg}");
        while self.shared.joined_threads.load(Ordering::Acquire) < self.shared.threads {
            if self.stop.load(Ordering::Relaxed) || self.shared.phase() == Phase::Stop {
                bar.finish_and_clear();
                return None;
            }
            bar.set_position(self.shared.joined.load(Ordering::Relaxed));
            thread::sleep(TICK);
        }
        bar.finish_and_clear();
        Some(())
    }

    /// Waits until `end`; false if the run cannot go on until then.
    fn until(
        &self,
        end: u64,
        what: &'static str,
        timeline: &mut Timeline<'_>,
        seen: &mut Observed,
    ) -> bool {
        let begin = now_ns();
        let bar = progress(end.saturating_sub(begin) / MILLI, "{msg} [{bar:30}] {percent}%");
        let (mut at, mut before) = (begin, self.shared.deliveries());
        let mut whole = true;
        loop {
            let now = now_ns();
            if now >= end {
                break;
            }
            let gone = self.stop.load(Ordering::Relaxed)
                || self.shared.failed.load(Ordering::Relaxed)
                || self.shared.phase() == Phase::Stop;
            if gone {
                whole = false;
                break;
            }
            self.watch_herd(seen);
            if now > at + SECOND / 2 {
                let deliveries = self.shared.deliveries();
                let rate = (deliveries - before) as f64 * 1e9 / (now - at) as f64;
                bar.set_position((now - begin) / MILLI);
                bar.set_message(format!("{what} {}/s", report::count(rate)));
                if let Some(resident) = self.watched.and_then(Watched::resident) {
                    seen.memory_max = seen.memory_max.max(resident);
                }
                (at, before) = (now, deliveries);
            }
            // A log that cannot be written is said at the end; the run is still good.
            let _ = timeline.take(self.intervals.try_iter());
            thread::sleep(TICK.min(Duration::from_nanos(end - now)));
        }
        bar.finish_and_clear();
        whole
    }

    /// Takes the server's CPU time when a herd drops, and when it has caught up.
    fn watch_herd(&self, seen: &mut Observed) {
        let herd = &self.shared.herd;
        if seen.herd_cpu[0].is_none() && herd.dropped.load(Ordering::Acquire) > 0 {
            seen.herd_cpu[0] = self.watched.and_then(Watched::cpu);
        }
        let all = u64::from(self.plan.members);
        if seen.herd_cpu[1].is_none() && herd.caught_up.load(Ordering::Acquire) >= all {
            seen.herd_cpu[1] = self.watched.and_then(Watched::cpu);
        }
    }

    fn drain(&self, timeout_ns: u64) {
        let begin = now_ns();
        loop {
            let of = |counter: &AtomicU64| counter.load(Ordering::Acquire);
            let published = of(&self.shared.published);
            let whole = of(&self.shared.completed) >= published
                && of(&self.shared.answered) >= published
                && (self.plan.receipts.is_none() || of(&self.shared.received) >= published);
            let failed = self.shared.failed.load(Ordering::Relaxed);
            let limit = if failed { FAILED_DRAIN_NS.min(timeout_ns) } else { timeout_ns };
            let waited = now_ns() - begin;
            // Also when all is complete: a message too many may be right behind.
            if (whole && !failed && waited > 50 * MILLI) || waited > limit {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn sample(&self) -> Sample {
        let of = |c: &ThreadCounters| thread_cpu(c.tid.load(Ordering::Relaxed));
        Sample {
            at: now_ns(),
            server: self.watched.and_then(Watched::cpu),
            threads: self.shared.counters().iter().map(of).collect(),
            deliveries: self.shared.deliveries(),
            completed: self.shared.completed.load(Ordering::Relaxed),
        }
    }
}

/// Lays history down.
fn fill(f: &FillOptions, run_id: u64) -> Result<bool, LoadError> {
    let o = &f.options;
    if o.spawn {
        let text = "fill needs a server that stays: start one and name it with --addr".to_owned();
        return Err(LoadError::Usage(text));
    }
    let payload = (o.payload as usize).max(HEADER_BYTES);
    let history = History { prefix: prefix(o, run_id), groups: f.groups, bytes: f.bytes, payload };
    let start = now_ns();
    let messages = history.lay_down(o.addr, o.level.map(Into::into))?;
    let seconds = (now_ns() - start) as f64 / 1e9;
    println!(
        "{messages} messages of {payload} bytes in {} groups {}-history-*, answered in {seconds:.1} s, {}/s",
        f.groups,
        history.prefix,
        report::count(messages as f64 / seconds)
    );
    Ok(true)
}

/// A bar on a terminal, nothing elsewhere.
pub fn progress(len: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(len);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
