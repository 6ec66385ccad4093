//! One thread: its ring, its connections, and the round that everything happens in.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare::position::Nanos;
use fanfare::ring::{ClientEvent, ClientRing};

use crate::args::{Options, Workload};
use crate::clock::{MILLI, now_ns};
use crate::error::LoadError;
use crate::herd::Herd;
use crate::join::slots_of_thread;
use crate::member::{Link, Member, Role, Verifier};
use crate::plan::Plan;
use crate::publisher::{Pace, Publishers};
use crate::record::{Histograms, Measured};
use crate::session::Session;
use crate::shared::{Interval, Phase, Shared};
use crate::slow::SlowReaders;
use crate::stream::{Cursor, Stream};
use crate::target::Target;
use crate::violation::{Kind, Violations};

/// Longest sleep, so that a change of phase is seen.
pub(crate) const SLEEP_MAX_NS: u64 = 20 * MILLI;
/// Bytes that all streams of a thread keep before it looks for what can go.
const STREAMS_BYTES: usize = 64 << 20;

/// What a thread has at the end.
pub struct Outcome {
    /// Latencies of the whole run that belong to no interval.
    pub histograms: Histograms,
    /// Findings.
    pub violations: Violations,
    /// Messages verified, warm-up included.
    pub verified: u64,
    /// Per stream: group, head, last message, fingerprint.
    pub digests: Vec<(u32, u64, u64, u64)>,
    /// Times that a publisher had to wait for room.
    pub held_back: u64,
    /// Broadcasts that were due in the run and were never sent.
    pub unsent: u64,
}

/// A worker thread.
pub struct Worker<'a> {
    pub(crate) index: usize,
    pub(crate) workload: &'a Workload,
    pub(crate) options: &'a Options,
    pub(crate) plan: &'a Plan,
    pub(crate) shared: &'a Shared,
    pub(crate) ring: ClientRing,
    pub(crate) members: Vec<Option<Box<Member>>>,
    pub(crate) verifier: Verifier<'a>,
    pub(crate) session: Session<'a>,
    pub(crate) slow: SlowReaders,
    pub(crate) herd: Herd,
    publishers: Option<Publishers>,
    pub(crate) publisher_slots: Vec<u32>,
    measured: Measured,
    /// Latencies of the current interval.
    interval: Histograms,
    interval_number: u64,
    pub(crate) total: Histograms,
    verified: u64,
}

impl<'a> Worker<'a> {
    /// Sets the thread up; must be called on it, because the ring belongs to it.
    pub fn new(
        index: usize,
        workload: &'a Workload,
        plan: &'a Plan,
        shared: &'a Shared,
        waker: Option<UnixStream>,
    ) -> Result<Self, LoadError> {
        let options = workload.options();
        // Wake at the time asked for: the default slack of 50 us would delay every send.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let slots = slots_of_thread(plan, shared.threads);
        let mut ring = ClientRing::new(slots, options.recv_buffers, options.recv_buffer_bytes)
            .map_err(LoadError::Ring)?;
        let mut members = Vec::new();
        members.resize_with(slots as usize, || None);
        if let Some(waker) = waker {
            // Its bytes only end a wait; no member is on this slot.
            ring.attach(OwnedFd::from(waker)).map_err(LoadError::Ring)?;
        }
        Ok(Self {
            index,
            workload,
            options,
            plan,
            shared,
            ring,
            members,
            verifier: Verifier {
                plan,
                streams: Vec::new(),
                touched: Vec::new(),
                violations: Violations::default(),
            },
            session: Session::new(plan),
            slow: SlowReaders::new(if let Workload::Slow(s) = workload { s.slow_rate } else { 0 }),
            herd: Herd::default(),
            publishers: None,
            publisher_slots: Vec::new(),
            measured: Measured::default(),
            interval: Histograms::new(),
            interval_number: 0,
            total: Histograms::new(),
            verified: 0,
        })
    }

    /// The whole life of the thread.
    pub fn run(mut self) -> Result<Outcome, LoadError> {
        self.join()?;
        self.shared.joined_threads.fetch_add(1, Ordering::AcqRel);
        loop {
            match self.shared.phase() {
                Phase::Join => {}
                Phase::Run | Phase::Drain if self.measured.to == 0 => self.begin(),
                Phase::Run | Phase::Drain => {}
                Phase::Stop => break,
            }
            self.round()?;
        }
        Ok(self.finish())
    }

    /// The run starts: the schedule is known now.
    fn begin(&mut self) {
        let (start, measured) = self.shared.schedule();
        self.measured = measured;
        if self.index != 0 || self.plan.publishers == 0 {
            return;
        }
        let groups = self.plan.groups.len() as u32;
        let pace = match (self.workload, self.options.rate, self.options.window) {
            (_, Some(rate), _) => Pace::rate(rate, start),
            (_, _, Some(window)) => Pace::window(window, groups, start),
            (Workload::Fanout(_), _, _) => Pace::window(64, groups, start),
            (Workload::Soak(_) | Workload::Catchup(_) | Workload::Herd(_), _, _) => {
                Pace::rate(100.0, start)
            }
            _ => Pace::window(1, groups, start),
        };
        let slots = std::mem::take(&mut self.publisher_slots);
        self.publishers = Some(Publishers::new(self.plan, pace, slots, self.options.in_flight_max));
    }

    /// Publish what is due, send what else is due, take what came.
    fn round(&mut self) -> Result<(), LoadError> {
        let now = now_ns();
        let mut wake = now + SLEEP_MAX_NS;
        let running = self.shared.phase() == Phase::Run;
        if let Some(publishers) = &mut self.publishers
            && running
        {
            while let Ok(group) = self.shared.completed_groups.1.try_recv() {
                publishers.completed(group, now);
            }
            let start = self.shared.schedule().0;
            let through = (&mut self.members[..], &mut self.ring);
            let more = now >= start
                && publishers.publish(self.plan, self.shared, through, now, self.measured.to);
            if more {
                wake = now;
            }
            let due = publishers.next_due().unwrap_or(wake).max(start);
            // A due broadcast that is held back waits for an event, not for the clock.
            wake = wake.min(if due > now || more { due } else { now + MILLI });
        }
        self.session.send(now, &mut self.members, &mut self.ring);
        wake = wake.min(self.session.next_due().unwrap_or(wake));
        if self.herd(now)? {
            wake = now;
        }
        // Once that is past, it waits for the end of the last connection.
        wake = wake.min(self.herd.next_due().filter(|at| *at > now).unwrap_or(wake));
        self.slow.go_on(now, &mut self.ring);
        wake = wake.min(self.slow.next_due().unwrap_or(wake));
        self.roll_interval(now);
        let timeout = wake.saturating_sub(now_ns());
        if self.publishers.is_some() && self.shared.threads > 1 {
            self.shared.fall_asleep();
            // Looked at after the flag was set, so that no completion is missed.
            let some = !self.shared.completed_groups.1.is_empty();
            let waited = self.wait(if some { 0 } else { timeout });
            self.shared.wake_up();
            return waited;
        }
        self.wait(timeout)
    }

    /// One look at the ring, for at most `timeout_ns`.
    pub(crate) fn wait(&mut self, timeout_ns: u64) -> Result<(), LoadError> {
        let Self { ring, members, verifier, session, plan, slow, shared, herd, .. } = self;
        session.now = 0;
        let mut unready = Vec::new();
        let timeout = Some(Duration::from_nanos(timeout_ns));
        let mut lost_framing = Vec::new();
        ring.wait(timeout, &mut |event| {
            // All that this call reports had come when it began.
            if session.now == 0 {
                session.now = now_ns();
            }
            match event {
                ClientEvent::Received { slot, bytes } => {
                    let Some(member) = &mut members[slot as usize] else { return };
                    if member.role == Role::Stalled && member.ready {
                        shared.slow_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        slow.took(slot, bytes.len(), session.now);
                        return;
                    }
                    let taken = match member.link {
                        Link::Fanfare(_) => session.fanfare(member, verifier, bytes),
                        Link::Peer(_) => session.peer(member, verifier, bytes),
                    };
                    if taken.is_err() {
                        lost_framing.push(slot);
                    }
                    if member.role == Role::Stalled {
                        if member.ready {
                            slow.took(slot, 0, session.now);
                        } else {
                            unready.push(slot);
                        }
                    }
                    if member.back.is_some() {
                        session.look_whether_caught_up(member);
                    }
                    if plan.acks && member.moved {
                        member.acknowledge(Nanos(session.now));
                        session.went_on(member);
                    }
                }
                ClientEvent::Sent { .. } => {}
                ClientEvent::Closed { slot, error } => {
                    if let Some(member) = members[slot as usize].take() {
                        if herd.drops(&member) {
                            herd.away.push(*member);
                            return;
                        }
                        if member.role == Role::Stalled {
                            shared.slow_closed.fetch_add(1, Ordering::Relaxed);
                        }
                        closed(&member, error, session, verifier);
                    }
                }
            }
        })
        .map_err(LoadError::Ring)?;
        for slot in unready {
            self.ring.recv_once(slot, self.options.recv_buffer_bytes);
        }
        for slot in lost_framing {
            self.ring.close(slot);
        }
        self.settle();
        Ok(())
    }

    /// Turns what was received in one wait into latencies and completed broadcasts.
    fn settle(&mut self) {
        let (plan, shared) = (self.plan, self.shared);
        let Self { verifier, measured, interval, session, herd, .. } = self;
        let now = session.now;
        let mut deliveries = 0;
        let mut completed = 0;
        for index in verifier.touched.drain(..) {
            let stream = &mut verifier.streams[index as usize];
            stream.take_arrivals(plan, |arrival| {
                let channel = &plan.channels[arrival.channel as usize];
                let slot = channel.slot(arrival.producer_seq);
                let sent = slot.sent.load(Ordering::Relaxed);
                let intended = slot.intended.load(Ordering::Relaxed);
                let counts = measured.covers(intended);
                deliveries += u64::from(arrival.members);
                if counts {
                    interval.delivery.record(sent, intended, now, u64::from(arrival.members));
                }
                let before = slot.remaining.fetch_sub(arrival.members, Ordering::AcqRel);
                if before == arrival.members {
                    if counts {
                        interval.completion.record(sent, intended, now, 1);
                    }
                    completed += 1;
                    channel.completed.fetch_add(1, Ordering::AcqRel);
                    let _ = shared.completed_groups.0.send(channel.group);
                }
            });
            if !herd.is_out()
                && stream.is_long((STREAMS_BYTES / plan.groups.len()).clamp(16 << 10, 1 << 20))
                && let Some(slowest) = slowest(index, stream, &self.members)
            {
                stream.trim(slowest);
            }
        }
        if let Some(publishers) = &mut self.publishers {
            for answer in session.answers.drain(..) {
                let record = (*measured, &mut *interval);
                publishers.answered(plan, shared, answer, now, record, &mut verifier.violations);
            }
        }
        if deliveries > 0 {
            self.verified += deliveries;
            shared.thread(self.index).deliveries.store(self.verified, Ordering::Relaxed);
        }
        if completed > 0 {
            shared.completed.fetch_add(completed, Ordering::Relaxed);
            if self.index != 0 {
                shared.wake_publishers();
            }
        }
        if session.herd_back + session.herd_caught_up > 0 {
            interval.merge(&std::mem::replace(&mut session.herd_histograms, Histograms::new()));
            let (back, caught_up) = (&mut session.herd_back, &mut session.herd_caught_up);
            shared.herd.count((std::mem::take(back), std::mem::take(caught_up)), now);
        }
        if verifier.violations.total() > 0 {
            shared.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Hands an interval over when it is past.
    fn roll_interval(&mut self, now: u64) {
        if self.measured.to == 0 || now < self.measured.from {
            return;
        }
        let length = self.workload.interval().as_nanos().max(1) as u64;
        let number = (now - self.measured.from) / length;
        if number > self.interval_number {
            self.hand_over_interval();
            self.interval_number = number;
        }
    }

    fn hand_over_interval(&mut self) {
        let histograms = std::mem::replace(&mut self.interval, Histograms::new());
        let interval = Interval { number: self.interval_number, histograms: Box::new(histograms) };
        let _ = self.shared.intervals.send(interval);
    }

    fn finish(mut self) -> Outcome {
        self.hand_over_interval();
        let (plan, index, verifier) = (self.plan, self.index, &mut self.verifier);
        for member in self.members.iter().flatten().filter(|m| m.role == Role::Reader) {
            member.finish(verifier);
        }
        // Members of other systems have counted for themselves: no group has an order there.
        let ordered = plan.target == Target::Fanfare;
        for stream in verifier.streams.iter().filter(|_| ordered) {
            let group = &plan.groups[stream.group as usize];
            let end = stream.end().seq;
            for (nth, id) in group.channels.iter().enumerate() {
                let channel = &plan.channels[*id as usize];
                let answered = channel.answered.load(Ordering::Acquire);
                let seen = stream.seen(nth);
                if seen < answered && !stream.readers.is_empty() {
                    let lost = (answered - seen) * stream.readers.len() as u64;
                    verifier.violations.add(Kind::Lost, lost, || {
                        format!(
                            "{} acknowledged messages of {} came to no member of {} on thread {} after seq {}",
                            answered - seen,
                            Plan::publisher_name(channel.publisher),
                            group.name,
                            index,
                            end - 1
                        )
                    });
                }
            }
        }
        if let Some(publishers) = &self.publishers {
            publishers.finish(plan, &mut verifier.violations);
        }
        Outcome {
            digests: verifier
                .streams
                .iter()
                .filter(|s| ordered && !s.readers.is_empty())
                .map(|s| (s.group, s.head, s.end().seq - 1, s.digest))
                .collect(),
            violations: std::mem::take(&mut verifier.violations),
            histograms: self.total,
            verified: self.verified,
            held_back: self.publishers.as_ref().map_or(0, |p| p.held_back),
            unsent: self.publishers.map_or(0, |p| p.unsent(self.measured.to)),
        }
    }
}

fn closed(member: &Member, error: Option<i32>, session: &mut Session<'_>, cx: &mut Verifier<'_>) {
    let why = error.map_or_else(
        || "by the server".to_owned(),
        |errno| std::io::Error::from_raw_os_error(errno).to_string(),
    );
    let said = session.last_words.as_deref().unwrap_or("no reason given");
    if !member.ready && member.back.is_none() {
        let text = format!("connection closed {why}, {said}");
        session.refused.get_or_insert(LoadError::Refused { who: member.name(), text });
    } else if member.role != Role::Stalled {
        let name = member.name();
        cx.violations.add(Kind::Closed, 1, || format!("{name}: connection closed {why}, {said}"));
    }
}

/// Where the slowest member of a stream is.
fn slowest(index: u32, stream: &Stream, members: &[Option<Box<Member>>]) -> Option<Cursor> {
    let of = |slot: &u32| members[*slot as usize].as_ref()?.cursor(index);
    // A member that is gone fails the run, so nobody waits for it here.
    stream.readers.iter().filter_map(of).min_by_key(|cursor| cursor.seq)
}
