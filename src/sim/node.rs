//! The node: its shards, how they start, take their turns, and stop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::SimFiles;
use super::io::{Request, ShardIo};
use super::power::Torn;
use super::rng::Rng;
use super::trace::{Fault, Note};
use super::world::{Due, World};
use crate::mesh;
use crate::position::{NodeId, ShardId};
use crate::serve::recover;
use crate::shard::counters::Counters;
use crate::shard::{Active, Control, Event, Job, Shard, ShardParts, Turn};
use crate::wal::{DataDir, Manifest, Recovered, Step};

/// Turns in a row in which nothing came from outside. A shard that has nothing to do sleeps.
const IDLE_TURNS_MAX: u32 = 3_000;

/// Share of stops in good order that are not left to themselves. The power may go in the others
/// too, at a write or a job.
const CRASH_IN_DRAIN_PPM: u32 = 400_000;

/// One running shard.
#[derive(Debug)]
pub(super) struct Running {
    shard: Shard,
    pub io: ShardIo,
    counters: Arc<Counters>,
    control: rtrb::Producer<Control>,
    /// It is in a turn, or has one scheduled.
    busy: bool,
    stopped: bool,
    idle_turns: u32,
    /// Tells a deadline that still holds from one that does not.
    token: u64,
    pub jobs: Vec<RunningJob>,
    /// Links with bytes that wait for a provided buffer.
    pub starved: Vec<u32>,
}

/// A job that is under way.
#[derive(Debug)]
pub(super) struct RunningJob {
    pub id: u64,
    pub job: Job,
    pub steps: Vec<Step>,
    pub done: usize,
    /// Its steps are far apart.
    pub slow: bool,
}

/// What outlives the shards: files.
#[derive(Debug)]
pub(super) struct Node {
    /// Counts the lives of the node.
    pub boot: u32,
    random: [u64; 2],
    pub files: SimFiles,
    pub data: Option<DataDir<SimFiles>>,
    pub shards: Vec<Running>,
    pub accepting: bool,
    pub wall_offset_ms: i64,
    pub draining: bool,
    /// Places of the log that could not be read, by shard, segment and offset.
    pub sick: BTreeMap<(usize, u64, u64), Sick>,
    /// How many shards it is started with.
    asked: u16,
    /// Starts in a row that did not succeed.
    pub failed_starts: u32,
}

/// A place of the log that could not be read.
#[derive(Debug, Default)]
pub(super) struct Sick {
    /// How often.
    pub failed: u32,
    /// It stays so until the node starts anew.
    pub lasts: bool,
}

/// Where the simulated node keeps its data.
const DATA: &str = "/data";
/// Most shards that a start asks for.
const SHARDS_ASKED_MAX: u64 = 4;

impl Node {
    pub fn new(rng: &mut Rng, shards: u16) -> Self {
        Self {
            boot: 0,
            random: [rng.next(), rng.next()],
            files: SimFiles::new(Rng::new(rng.next())),
            data: None,
            shards: Vec::new(),
            accepting: false,
            wall_offset_ms: 1_700_000_000_000,
            draining: false,
            sick: BTreeMap::new(),
            asked: shards,
            failed_starts: 0,
        }
    }

    pub fn is_up(&self) -> bool {
        !self.shards.is_empty()
    }

    pub fn shard_dir(&self, shard: usize) -> PathBuf {
        let shard = ShardId(shard as u16);
        match &self.data {
            Some(data) => data.shard_dir(shard),
            None => crate::wal::paths::shard_dir(Path::new(DATA), shard),
        }
    }

    pub fn node_id(&self) -> NodeId {
        NodeId((self.random[0] as u16).max(1))
    }
}

impl World {
    pub(super) fn wall_ms(&self) -> u64 {
        (self.now.0 / 1_000_000).saturating_add_signed(self.node.wall_offset_ms)
    }

    /// Starts the node by the code that the server starts with. The power may go meanwhile, and
    /// the disk may fail; then it is started again later.
    pub(super) fn start_node(&mut self) {
        if self.node.is_up() {
            return;
        }
        self.ask_for_shards();
        self.node.boot += 1;
        let files = self.node.files.clone();
        let trouble = self.file_trouble();
        files.inner_mut().trouble = trouble;
        if !self.calm && self.rng.chance(self.config.trouble.crash_at_start_ppm) {
            // A start that changes the number of shards takes more calls.
            let calls = if self.config.trouble.reshard_ppm > 0 { 500 } else { 150 };
            files.cut_power_in(Some(self.rng.below(calls)));
        }
        let prepared = self.prepare();
        files.cut_power_in(None);
        self.file_faults();
        match prepared {
            Ok(()) => self.node.failed_starts = 0,
            Err(why) => self.start_failed(&why),
        }
    }

    /// The operator may want another number of shards, also when the last start with another
    /// one did not come to its end.
    fn ask_for_shards(&mut self) {
        let ppm = self.config.trouble.reshard_ppm;
        if ppm > 0 && self.node.boot > 0 && self.rng.chance(ppm) {
            self.node.asked = self.rng.between(1, SHARDS_ASKED_MAX) as u16;
        }
    }

    fn start_failed(&mut self, why: &str) {
        self.node.data = None;
        if self.node.files.is_dead() {
            self.oracle.fault(Fault::CrashAtStart);
            self.note(Note::Crash);
            self.node.files.power_cut();
            self.file_faults();
        } else {
            self.oracle.fault(Fault::StartFailed);
            self.note(Note::Phase("the start failed"));
            self.node.failed_starts += 1;
            let hopeless = self.calm || self.node.failed_starts > 100;
            assert!(!hopeless, "the node does not start: {why}");
        }
        let after = self.rng.between(1_000_000, 200_000_000);
        self.after(after, Due::Start);
    }

    fn prepare(&mut self) -> Result<(), String> {
        let mut files = self.node.files.clone();
        let (random, shards) = (self.node.random, self.node.asked);
        let opened = Manifest::open_on(files.clone(), Path::new(DATA), Some(shards), random, None);
        let (mut data, manifest) = opened.map_err(|e| e.to_string())?;
        let was_clean = manifest.clean;
        let reshards = manifest.shards != shards;
        self.note(Note::Start { start: manifest.starts.0, shards });
        let recovered = self.recover(&mut files, &mut data, manifest);
        if reshards {
            self.oracle.fault(match recovered {
                Ok(_) => Fault::Resharded,
                Err(_) if files.is_dead() => Fault::InterruptedReshard,
                Err(_) => Fault::FailedReshard,
            });
        }
        if recovered.is_err() && was_clean {
            // As the server does if no shard took a turn.
            let _ = data.mark_clean();
        }
        self.run_shards(recovered?);
        self.node.data = Some(data);
        Ok(())
    }

    fn recover(
        &mut self,
        files: &mut SimFiles,
        data: &mut DataDir<SimFiles>,
        manifest: Manifest,
    ) -> Result<(Manifest, Vec<(Recovered, Active)>), String> {
        let all = recover::recover_all(files, data, manifest);
        let (manifest, recovered) = all.map_err(|e| e.to_string())?;
        for (shard, log) in recovered.iter().enumerate() {
            self.oracle.note(Note::Recovered {
                shard,
                commits: log.commits,
                torn: log.torn.is_some(),
                damage: log.damage.len(),
                snapshot: log.snapshot.unwrap_or_default().0,
                next: log.next_segment.0,
            });
            for damage in &log.damage {
                self.oracle.note(Note::Damage { shard, damage: *damage });
            }
        }
        let mut logs = Vec::new();
        for (id, log) in (0..).map(ShardId).zip(recovered) {
            let made = recover::Made {
                salt: self.rng.next(),
                bytes: self.config.shard.segment_bytes,
                created_ms: self.wall_ms(),
            };
            let dir = data.shard_dir(id);
            let active = recover::first_segment(files, &dir, &manifest, id, &log, made)
                .map_err(|e| e.to_string())?;
            logs.push((log, active));
        }
        Ok((manifest, logs))
    }

    fn run_shards(&mut self, (manifest, logs): (Manifest, Vec<(Recovered, Active)>)) {
        let meshes = mesh::mesh_of(manifest.shards, self.config.mesh_entries);
        for (mesh, (index, (recovered, active))) in meshes.into_iter().zip((0..).zip(logs)) {
            let counters = Arc::<Counters>::default();
            let (control, orders) = rtrb::RingBuffer::new(4);
            let shard = Shard::new(ShardParts {
                id: ShardId(index),
                node: manifest.node,
                shards: manifest.shards,
                hash_seed: manifest.hash_seed,
                start: manifest.starts,
                epoch_floor: manifest.epoch_floor,
                memory_epoch_floor: manifest.memory_epoch_floor,
                config: self.config.shard.clone(),
                counters: counters.clone(),
                mesh,
                recovered,
                active,
                control: orders,
                now: self.now,
            });
            let io = ShardIo::new(Rng::new(self.rng.next()), self.config.shard.recv_buffers);
            self.node.shards.push(Running {
                shard,
                io,
                counters,
                control,
                busy: true,
                stopped: false,
                idle_turns: 0,
                token: 0,
                jobs: Vec::new(),
                starved: Vec::new(),
            });
            let after = self.rng.below(1_000_000);
            self.after(after, Due::Turn { shard: usize::from(index) });
        }
        self.node.accepting = true;
        self.node.draining = false;
        if self.config.trouble.crash_every_ms > 0 && !self.calm {
            self.plan_stop();
        }
    }

    pub(super) fn plan_stop(&mut self) {
        let mean = self.config.trouble.crash_every_ms * 1_000_000;
        // Now and then right after the start.
        let after = if self.rng.chance(100_000) { mean / 50 } else { 2 * mean };
        let after = self.rng.below(after.max(1));
        self.after(after, Due::Stop);
    }

    /// The node stops: at once, or in good order, and then perhaps at once all the same.
    pub(super) fn stop(&mut self) {
        if self.calm {
            return;
        }
        if !self.node.draining && self.rng.chance(self.config.trouble.drain_ppm) {
            self.oracle.fault(Fault::Drain);
            if self.rng.chance(CRASH_IN_DRAIN_PPM) {
                let most = 2 * u64::from(self.config.shard.drain_grace_ms) * 1_000_000;
                let after = self.rng.below(most.max(1));
                self.after(after, Due::Stop);
            }
            self.note(Note::Fault(Fault::Drain));
            self.node.draining = true;
            for shard in 0..self.node.shards.len() {
                let _ = self.node.shards[shard].control.push(Control::Drain);
                self.wake(shard);
            }
        } else {
            let draining = self.node.draining;
            self.oracle.fault(if draining { Fault::CrashInDrain } else { Fault::Crash });
            self.crash();
            let after = self.rng.between(1_000_000, 200_000_000);
            self.after(after, Due::Start);
        }
    }

    /// The power goes: memory and what is in flight are lost, the disks stay.
    pub(super) fn crash(&mut self) {
        self.note(Note::Crash);
        for (index, running) in std::mem::take(&mut self.node.shards).into_iter().enumerate() {
            let figures = running.counters.load();
            self.oracle.faults.count_many(Fault::CatchUp, figures.catch_up_reads);
            self.oracle.faults.count_many(Fault::MeshFull, figures.mesh_full);
            self.oracle.faults.count_many(Fault::Takeover, figures.takeovers);
            let torn = self.node.files.tear_write(index, &mut self.rng);
            if let Some(Torn { there, sectors, reordered, .. }) = torn {
                self.oracle.fault_if(there > 0 && there < sectors, Fault::TornWrite);
                self.oracle.fault_if(reordered, Fault::ReorderedSectors);
                self.oracle.note(Note::Torn { shard: index, there, sectors });
            }
            for job in running.jobs {
                self.oracle.fault(match job.job {
                    Job::WriteSnapshot { .. } | Job::EndSnapshot { .. } => {
                        Fault::InterruptedSnapshot
                    }
                    Job::RemoveSegments { .. } => Fault::InterruptedRetention,
                    _ => Fault::InterruptedJob,
                });
            }
        }
        self.node.data = None;
        self.node.sick.clear();
        self.node.files.power_cut();
        self.file_faults();
        self.node.accepting = false;
        // What waited in its memory is never taken.
        for view in self.clients.iter_mut().flat_map(|client| &mut client.views) {
            view.durable.stale_join = false;
        }
        self.links_lose_server();
    }

    /// Has a shard take a turn soon, if it sleeps.
    pub(super) fn wake(&mut self, shard: usize) {
        let Some(running) = self.node.shards.get_mut(shard) else { return };
        if !running.busy && !running.stopped {
            running.busy = true;
            let after = self.rng.between(500, 60_000);
            self.after(after, Due::Turn { shard });
        }
    }

    /// Gives a shard an event.
    pub(super) fn tell(&mut self, shard: usize, event: Event) {
        if let Some(running) = self.node.shards.get_mut(shard) {
            running.io.push(event);
            self.wake(shard);
        }
    }

    pub(super) fn deadline(&mut self, shard: usize, token: u64) {
        if self.node.shards[shard].token == token {
            self.wake(shard);
        }
    }

    pub(super) fn turn(&mut self, shard: usize) {
        let trouble = &self.config.trouble;
        let mut cost = self.rng.between(2_000, 100_000);
        if !self.calm && self.rng.chance(trouble.stall_ppm) {
            self.oracle.fault(Fault::ShardStalled);
            cost = self.rng.between(10_000_000, 800_000_000);
        }
        if !self.calm && self.rng.chance(trouble.clock_ppm) {
            self.oracle.fault(Fault::ClockJumped);
            self.node.wall_offset_ms += self.rng.between(0, 20_000) as i64 - 10_000;
        }
        let wall_ms = self.wall_ms();
        let running = &mut self.node.shards[shard];
        running.io.now = self.now;
        running.io.wall_ms = wall_ms;
        running.token += 1;
        self.turns += 1;
        let turn = running.shard.turn(&mut running.io);
        running.stopped = turn == Turn::Stopped;
        if running.io.returned > 0 {
            running.idle_turns = 0;
        }
        running.idle_turns += 1;
        if running.idle_turns >= IDLE_TURNS_MAX {
            self.check(Err(format!("shard {shard} spins")));
        }
        self.after(cost, Due::TurnEnds { shard });
    }

    /// The requests of a turn are carried out by the next wait.
    pub(super) fn turn_ends(&mut self, shard: usize) {
        let requests = std::mem::take(&mut self.node.shards[shard].io.requests);
        for request in requests {
            self.request(shard, request);
        }
        let starved = std::mem::take(&mut self.node.shards[shard].starved);
        for link in starved {
            self.receive(link);
        }
        let now = self.now;
        let running = &mut self.node.shards[shard];
        running.busy = false;
        if running.stopped {
            return self.shard_stopped();
        }
        let until = running.shard.may_wait_until();
        if running.io.has_events() || until.is_some_and(|until| until <= now) {
            running.busy = true;
            let after = self.rng.between(1_000, 20_000);
            self.after(after, Due::Turn { shard });
        } else if let Some(until) = until {
            let token = running.token;
            self.at(until, Due::Deadline { shard, token });
        }
    }

    fn shard_stopped(&mut self) {
        if !self.node.shards.iter().all(|running| running.stopped && !running.busy) {
            return;
        }
        let clean = self.node.shards.iter().all(|running| running.shard.is_clean());
        if clean && let Some(data) = &mut self.node.data {
            // If it fails, the next start only does more than it must.
            let _ = data.mark_clean();
        }
        // What the page cache holds survives a process that ends, unless the power goes too.
        self.crash();
        let after = self.rng.between(1_000_000, 200_000_000);
        self.after(after, Due::Start);
    }

    fn request(&mut self, shard: usize, request: Request) {
        match request {
            Request::Pause(conn) => self.pause(shard, conn),
            Request::Resume(conn) => self.resume(shard, conn),
            Request::Send(conn, parts) => self.send(shard, conn, parts),
            Request::QueryUnsent(conn) => self.query_unsent(shard, conn),
            Request::ShutdownWrite(conn) => self.shutdown_write(shard, conn),
            Request::Close(conn) => self.close(shard, conn),
            Request::StopAccepting => self.node.accepting = false,
            Request::WriteLog(segment, offset, buf) => self.write_log(shard, segment, offset, buf),
            Request::ReadLog(token, segment, offset, len) => {
                self.read_log(shard, token, segment, offset, len);
            }
            Request::StartJob(job) => self.start_job(shard, job),
            Request::Wake(other) => self.wake(usize::from(other.0)),
        }
    }
}
