//! The node: its shards, how they start, take their turns, and stop.

use std::sync::Arc;

use super::disk::Disk;
use super::io::{Request, ShardIo};
use super::rng::Rng;
use super::trace::{Fault, Note};
use super::world::{Due, World};
use crate::mesh;
use crate::position::{Epoch, NodeId, ShardId};
use crate::shard::counters::Counters;
use crate::shard::{Active, Control, Event, Job, Shard, ShardParts, Turn};
use crate::wal;

/// Turns in a row in which nothing came from outside. A shard that has nothing to do sleeps.
const IDLE_TURNS_MAX: u32 = 3_000;

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
    pub jobs: Vec<Job>,
    /// Links with bytes that wait for a provided buffer.
    pub starved: Vec<u32>,
}

/// What outlives the shards: disks and manifest.
#[derive(Debug)]
pub(super) struct Node {
    pub id: NodeId,
    pub hash_seed: u64,
    /// Counts the lives of the node.
    pub boot: u32,
    starts: Epoch,
    clean: bool,
    epoch_floor: Epoch,
    memory_epoch_floor: Epoch,
    pub disks: Vec<Disk>,
    pub shards: Vec<Running>,
    pub accepting: bool,
    pub wall_offset_ms: i64,
    pub draining: bool,
}

impl Node {
    pub fn new(shards: u16, rng: &mut Rng) -> Self {
        let id = NodeId(rng.between(1, 1000) as u16);
        Self {
            id,
            hash_seed: rng.next(),
            boot: 0,
            starts: Epoch(0),
            clean: true,
            epoch_floor: Epoch(0),
            memory_epoch_floor: Epoch(0),
            disks: (0..shards).map(|shard| Disk::new(id, ShardId(shard))).collect(),
            shards: Vec::new(),
            accepting: false,
            wall_offset_ms: 1_700_000_000_000,
            draining: false,
        }
    }

    pub fn is_up(&self) -> bool {
        !self.shards.is_empty()
    }
}

impl World {
    pub(super) fn wall_ms(&self) -> u64 {
        (self.now.0 / 1_000_000).saturating_add_signed(self.node.wall_offset_ms)
    }

    /// Starts the node as the server does: count the start, recover each log, remove what is
    /// unused, open a fresh segment, raise the floors.
    pub(super) fn start_node(&mut self) {
        if self.node.is_up() {
            return;
        }
        self.node.boot += 1;
        self.node.starts.0 += 1;
        let (start, unclean) = (self.node.starts, !self.node.clean);
        self.node.clean = false;
        self.note(Note::Start { start: start.0 });
        let (node, shards) = (self.node.id, self.config.shards);
        let wall_ms = self.wall_ms();
        let mut recovered = Vec::new();
        for (index, disk) in self.node.disks.iter_mut().enumerate() {
            let log = wal::recover(disk, node, ShardId(index as u16));
            let log = match log {
                Ok(log) => log,
                Err(error) => panic!("recovery of shard {index}: {error}"),
            };
            assert!(log.damage.is_empty(), "only torn writes happened, but: {:?}", log.damage);
            for number in &log.unused {
                disk.remove(*number);
            }
            let active = Active { number: log.next_segment, salt: self.rng.next() };
            disk.create(active.number, active.salt, self.config.shard.segment_bytes, wall_ms);
            self.oracle.note(Note::Recovered {
                shard: index,
                commits: log.commits,
                torn: log.torn.is_some(),
                active: active.number.0,
            });
            recovered.push((log, active));
        }
        if unclean {
            self.node.memory_epoch_floor = start;
        }
        for (mesh, (index, (recovered, active))) in mesh::mesh_of(shards, self.config.mesh_entries)
            .into_iter()
            .zip(recovered.into_iter().enumerate())
        {
            let counters = Arc::<Counters>::default();
            let (control, orders) = rtrb::RingBuffer::new(4);
            let shard = Shard::new(ShardParts {
                id: ShardId(index as u16),
                node,
                shards,
                hash_seed: self.node.hash_seed,
                start,
                epoch_floor: self.node.epoch_floor,
                memory_epoch_floor: self.node.memory_epoch_floor,
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
            self.after(after, Due::Turn { shard: index });
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

    /// The node stops: at once, or in good order.
    pub(super) fn stop(&mut self) {
        if self.calm || self.node.draining {
            return;
        }
        if self.rng.chance(self.config.trouble.drain_ppm) {
            self.oracle.fault(Fault::Drain);
            self.note(Note::Fault(Fault::Drain));
            self.node.draining = true;
            for shard in 0..self.node.shards.len() {
                let _ = self.node.shards[shard].control.push(Control::Drain);
                self.wake(shard);
            }
        } else {
            self.oracle.fault(Fault::Crash);
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
            let disk = &mut self.node.disks[index];
            if let Some((_, there, sectors)) = disk.tear_write(&mut self.rng) {
                if there > 0 && there < sectors {
                    self.oracle.fault(Fault::TornWrite);
                }
                self.oracle.note(Note::Torn { shard: index, there, sectors });
            }
            for job in running.jobs {
                self.oracle.fault(Fault::InterruptedJob);
                let done = self.rng.flip();
                self.carry_out(index, &job, done);
            }
        }
        self.node.accepting = false;
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
        assert!(running.idle_turns < IDLE_TURNS_MAX, "shard {shard} spins: {:?}", running.shard);
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
        self.crash();
        self.node.clean = clean;
        let after = self.rng.between(1_000_000, 200_000_000);
        self.after(after, Due::Start);
    }

    fn request(&mut self, shard: usize, request: Request) {
        match request {
            Request::Pause(conn) => self.pause(shard, conn),
            Request::Resume(conn) => self.resume(shard, conn),
            Request::Send(conn, parts) => self.send(shard, conn, parts),
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
