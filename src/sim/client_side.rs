//! The clients' end of the simulated connections, and what clients do over time.

use super::client::State;
use super::net::{End, Link};
use super::trace::{Fault, Note};
use super::world::{Due, World};
use crate::config::SecondConnection;
use crate::position::Nanos;

impl World {
    /// A client does something, and is asked again later.
    pub(super) fn tick(&mut self, index: usize) {
        let mean = self.config.tick_ms * 1_000_000;
        let mut after = self.rng.between(mean / 4, mean * 7 / 4);
        let trouble = self.config.trouble.clone();
        let now = self.now;
        let client = &mut self.clients[index];
        let renews = client.state == State::Open && client.renew_if_settled(&mut self.oracle);
        match client.state {
            _ if client.retired => return,
            State::Down if client.retry_at <= now => self.connect(index),
            State::Down => after = client.retry_at.since(now).max(1),
            State::Greeting => {}
            State::Open if renews => self.leave_net(index, Fault::ClientClosed),
            State::Open if !self.calm && self.rng.chance(trouble.disconnect_ppm) => {
                let how = match self.rng.below(3) {
                    0 => Fault::ClientClosed,
                    1 => Fault::ClientReset,
                    _ => Fault::ClientVanished,
                };
                self.leave_net(index, how);
            }
            State::Open => {
                if !self.calm && self.rng.chance(trouble.garbage_ppm) {
                    client.misbehave(&mut self.rng, &mut self.oracle);
                } else {
                    client.act(now, self.calm, &mut self.rng, &mut self.oracle);
                }
                if !self.calm && client.profile.slow && self.rng.chance(30_000) {
                    self.oracle.fault(Fault::SlowReader);
                    let ms = self.rng.between(50, 3_000);
                    client.sleeps_until = now.plus_ms(ms);
                }
                self.flush_client(index);
            }
        }
        self.after(after, Due::Tick { client: index });
    }

    fn connect(&mut self, client: usize) {
        let link = self.next_link;
        self.next_link += 1;
        // Without a node, the connection is refused whatever shard it is for.
        let shard = self.rng.index(self.node.shards.len().max(1));
        let up = self.rng.between(512, 32_768) as usize;
        let down = match self.rng.below(4) {
            0 => self.rng.between(256, 2_048),
            _ => self.rng.between(2_048, 65_536),
        };
        let boot = self.node.boot;
        if self.config.shard.second_connection == SecondConnection::Allow
            && self.clients[client].profile.durable
        {
            let older = |l: &&Link| l.client == client && l.boot == boot && !l.server_gone;
            let there = self.links.values().find(older).is_some();
            self.oracle.fault_if(there, Fault::SideBySide);
        }
        self.links.insert(link, Link::new(client, shard, boot, up, down as usize));
        self.note(Note::Connect { client, link, shard });
        let c = &mut self.clients[client];
        c.link = Some(link);
        c.renew_if_settled(&mut self.oracle);
        c.connected(self.now);
        if !self.calm && self.rng.chance(self.config.trouble.mute_ppm) {
            self.oracle.fault(Fault::Mute);
            c.out.clear();
        }
        let accepted = self.rng.between(50_000, 2_000_000);
        if let Some(l) = self.links.get_mut(&link) {
            l.up.after(Nanos(self.now.0 + accepted));
        }
        self.after(accepted, Due::Accept { link });
        self.flush_client(client);
    }

    /// The client goes away: in order, at once, or without a word.
    fn leave_net(&mut self, index: usize, how: Fault) {
        let Some(link) = self.clients[index].link else { return };
        self.oracle.fault(how);
        self.note(Note::ClientLeaves { client: index, how });
        let Some(l) = self.links.get_mut(&link) else { return };
        l.client_gone = true;
        let delay = Nanos(self.now.0 + self.rng.between(20_000, 2_000_000));
        match how {
            Fault::ClientClosed => {
                let at = l.up.after(delay);
                self.at(at, Due::UpEnds { link, end: End::Fin });
            }
            Fault::ClientReset => self.at(delay, Due::UpEnds { link, end: End::Reset }),
            _ => l.cut = true,
        }
        self.client_lost(index);
        self.forget_link(link);
    }

    /// The client has no connection any more.
    fn client_lost(&mut self, client: usize) {
        self.note(Note::Disconnected { client });
        let pause = if self.calm { 50 } else { self.rng.between(1, 400) };
        self.clients[client].disconnected(self.now.plus_ms(pause));
    }

    /// Moves what a client has to say into its socket.
    pub(super) fn flush_client(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(link) = client.link else { return };
        let Some(l) = self.links.get_mut(&link) else { return };
        let mut count = client.out.len().min(l.up.free());
        if count == 0 {
            return;
        }
        if self.rng.below(8) == 0 {
            count = 1 + self.rng.index(count);
        }
        let at = Nanos(self.now.0 + self.rng.between(20_000, 2_000_000));
        let at = l.up.send(&client.out[..count], at);
        client.out.drain(..count);
        self.at(at, Due::UpArrives { link, count, sent: self.now });
    }

    pub(super) fn down_arrives(&mut self, link: u32, count: usize) {
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.cut {
            return;
        }
        l.down.arrive(count);
        if l.client_gone {
            // Data for a socket that is closed: its kernel answers with a reset.
            let after = self.rng.below(1_000_000);
            return self.after(after, Due::UpEnds { link, end: End::Reset });
        }
        self.schedule_read(link);
    }

    fn schedule_read(&mut self, link: u32) {
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.read_scheduled || l.client_gone {
            return;
        }
        l.read_scheduled = true;
        let client = &self.clients[l.client];
        let mut at = self.now.0 + self.rng.below(500_000);
        if !self.calm && client.profile.slow {
            at = (self.now.0 + self.rng.between(1_000_000, 60_000_000)).max(client.sleeps_until.0);
        }
        self.at(Nanos(at), Due::ClientReads { link });
    }

    pub(super) fn client_reads(&mut self, link: u32) {
        let Some(l) = self.links.get_mut(&link) else { return };
        l.read_scheduled = false;
        if l.client_gone {
            return;
        }
        let client = &mut self.clients[l.client];
        let arrived = l.down.arrived();
        let mut count = arrived;
        if !self.calm && client.profile.slow {
            count = count.min(1 + self.rng.index(4_000));
        } else if self.rng.below(4) == 0 && count > 0 {
            count = 1 + self.rng.index(count);
        }
        let mut bytes = Vec::with_capacity(count);
        l.down.read(count, &mut bytes);
        let (ended, index) = (l.down_end && l.down.is_empty(), l.client);
        let result = client.receive(&bytes, &mut self.oracle);
        self.check(result);
        if arrived > count || ended {
            self.schedule_read(link);
        }
        if ended && count == 0 {
            return self.link_over(link, index);
        }
        self.go_on_writing(link);
    }

    /// The server's end has come.
    pub(super) fn down_ends(&mut self, link: u32, end: End) {
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.cut || l.client_gone {
            return;
        }
        if end == End::Fin {
            l.down_end = true;
            self.schedule_read(link);
        } else {
            let client = l.client;
            self.link_over(link, client);
        }
    }

    /// The client's connection ended; the server hears of it if it does not know.
    fn link_over(&mut self, link: u32, client: usize) {
        let Some(l) = self.links.get_mut(&link) else { return };
        l.client_gone = true;
        if !l.server_gone {
            let at = l.up.after(Nanos(self.now.0 + 200_000));
            self.at(at, Due::UpEnds { link, end: End::Fin });
        }
        self.client_lost(client);
        self.forget_link(link);
    }
}
