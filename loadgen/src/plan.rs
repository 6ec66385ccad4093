//! Who is in which group, who publishes to it, and the table of messages in flight that the
//! threads share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use fanfare::position::Level;

use crate::args::{GroupOptions, Options, SizeLaw, Workload};
use crate::encoding::Encoding;
use crate::error::LoadError;
use crate::payload::{Key, Payloads};
use crate::sizes::{Drawn, Zipf};
use crate::target::Target;
use crate::tls::Tls;

/// Messages in flight over all channels that the table is made for.
const SLOTS_TOTAL: usize = 1 << 20;
/// Messages in flight of one channel, at most.
const SLOTS_PER_CHANNEL_MAX: usize = 1 << 16;

/// Members of the largest group that is drawn, unless it is said.
const ROOM_MAX: u32 = 10_000;

/// How members are spread over groups.
enum Spread {
    /// All in group 0.
    One,
    /// Evenly.
    Even {
        /// Groups of each member.
        per_member: u32,
    },
    /// As in [`Spread::Even`], but every second member is also in group 0.
    Mixed {
        /// Groups of each member beside that.
        per_member: u32,
    },
    /// As drawn: the groups of each member.
    Drawn(Vec<Vec<u32>>),
}

/// A run, as all threads see it.
pub struct Plan {
    /// All groups.
    pub groups: Vec<Group>,
    /// All pairs of a publisher and a group it publishes to.
    pub channels: Vec<Channel>,
    /// Members that read.
    pub members: u32,
    /// Members that do not.
    pub stalled: u32,
    /// Publishers.
    pub publishers: u32,
    /// What is published.
    pub payloads: Payloads,
    /// Level asked for.
    pub level: Option<Level>,
    /// Members acknowledge.
    pub acks: bool,
    /// Members are durable.
    pub durable: bool,
    /// Share of members at which receipts are asked for, in percent.
    pub receipts: Option<u8>,
    /// What the load is put on.
    pub target: Target,
    /// What connections speak, in turn; never empty.
    pub encodings: Vec<Encoding>,
    /// How the server is known to connections by TLS.
    pub tls: Option<Tls>,
    /// Quality of service that MQTT is asked for.
    pub qos: u8,
    /// Tokens by member id.
    pub tokens: HashMap<String, String>,
    /// Where each connection comes from, if that matters.
    pub sources: Vec<SocketAddr>,
    /// Sizes of the groups, if they were drawn.
    pub sizes: Option<Drawn>,
    spread: Spread,
}

/// The law of `--sizes zipf`.
fn zipf(g: &GroupOptions) -> Result<Zipf, LoadError> {
    let members = g.options.members;
    let largest = g.size_max.unwrap_or(members.min(ROOM_MAX));
    if largest > members || g.size_min > largest {
        return Err(LoadError::Usage(format!(
            "groups of {} to {largest} members cannot be made of {members}; set --size-min, --size-max and --members so that they rise",
            g.size_min
        )));
    }
    Ok(Zipf { groups: g.groups, members, smallest: g.size_min, largest, seed: g.seed })
}

/// What names of groups start with.
pub fn prefix(o: &Options, run_id: u64) -> String {
    o.group_prefix.clone().unwrap_or_else(|| format!("lg-{:08x}", run_id as u32))
}

/// A group.
pub struct Group {
    /// Its name.
    pub name: String,
    /// Members that read, over all threads.
    pub readers: u32,
    /// Its channels, by publisher, ascending.
    pub channels: Vec<u32>,
}

/// What one publisher publishes to one group: numbered from 1.
pub struct Channel {
    /// The group.
    pub group: u32,
    /// The publisher.
    pub publisher: u32,
    /// Messages given to the connection.
    pub published: AtomicU64,
    /// Messages that every reader has. They complete in order.
    pub completed: AtomicU64,
    /// All messages up to this one have their PUBLISHED.
    pub answered: AtomicU64,
    slots: Box<[Slot]>,
}

/// A message in flight.
#[derive(Default)]
pub struct Slot {
    /// When it was due.
    pub intended: AtomicU64,
    /// When it was sent.
    pub sent: AtomicU64,
    /// Place in the group, once somebody knows it.
    pub seq: AtomicU64,
    /// Readers that do not have it yet.
    pub remaining: AtomicU32,
}

impl Channel {
    /// The slot of message `producer_seq`.
    pub fn slot(&self, producer_seq: u64) -> &Slot {
        &self.slots[producer_seq as usize & (self.slots.len() - 1)]
    }

    /// Messages that may be in flight.
    pub fn capacity(&self) -> u64 {
        self.slots.len() as u64
    }
}

fn tls(o: &Options) -> Result<Option<Tls>, LoadError> {
    let by_tls = o.encoding.iter().any(|encoding| encoding.is_tls());
    match &o.tls_ca {
        Some(ca) if by_tls => Tls::new(ca, &o.tls_name).map(Some),
        None if !by_tls => Ok(None),
        None => Err(LoadError::Usage("encodings by TLS need --tls-ca".to_owned())),
        Some(_) => {
            let text = "--tls-ca is for --encoding tls, wss-binary and wss-json";
            Err(LoadError::Usage(text.to_owned()))
        }
    }
}

/// Reads lines of a member id and its token.
fn tokens(path: &Path) -> Result<HashMap<String, String>, LoadError> {
    let usage = |what: String| LoadError::Usage(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| usage(error.to_string()))?;
    let line = |(at, line): (usize, &str)| match line.split_once(' ') {
        Some((member, token)) => Ok((member.to_owned(), token.trim().to_owned())),
        None => Err(usage(format!("line {} is not a member id and a token", at + 1))),
    };
    text.lines().enumerate().map(line).collect()
}

impl Plan {
    /// Plans a run.
    pub fn new(workload: &Workload, run_id: u64) -> Result<Self, LoadError> {
        let o = workload.options();
        if o.token_file.is_some() && matches!(workload, Workload::Catchup(_) | Workload::Fill(_)) {
            let text = "--token-file is not for catchup and fill; use a server without keys";
            return Err(LoadError::Usage(text.to_owned()));
        }
        let mut sizes = None;
        let (group_count, spread) = match workload {
            Workload::Fanout(_)
            | Workload::Connect(_)
            | Workload::Slow(_)
            | Workload::Herd(_)
            | Workload::Catchup(_)
            | Workload::Fill(_) => (1, Spread::One),
            Workload::Groups(g) | Workload::Soak(g) if g.sizes == SizeLaw::Zipf => {
                let (groups_of, drawn) = zipf(g)?.draw();
                sizes = Some(drawn);
                (g.groups, Spread::Drawn(groups_of))
            }
            Workload::Groups(g) => (g.groups, Spread::Even { per_member: g.groups_per_member }),
            Workload::Soak(g) => (g.groups, Spread::Mixed { per_member: g.groups_per_member }),
        };
        if let Spread::Even { per_member } | Spread::Mixed { per_member } = spread
            && per_member >= group_count.max(2)
        {
            return Err(LoadError::Usage(format!(
                "--groups-per-member {per_member} needs more than {group_count} --groups"
            )));
        }
        let publishers = if matches!(workload, Workload::Connect(_)) { 0 } else { o.publishers };
        let payloads = match &o.payload_file {
            Some(path) => Payloads::from_file(path)?,
            None => Payloads::generated(run_id, o.payload as usize),
        };
        let slow = if let Workload::Slow(s) = workload { s.slow() } else { 0 };
        if slow >= o.members {
            let text = "all members would be slow, so nobody would be measured; use more --members";
            return Err(LoadError::Usage(text.to_owned()));
        }
        let prefix = prefix(o, run_id);
        let mut plan = Self {
            groups: (0..group_count)
                .map(|g| Group { name: format!("{prefix}-{g}"), readers: 0, channels: Vec::new() })
                .collect(),
            channels: Vec::new(),
            members: o.members - slow,
            stalled: o.stalled + slow,
            publishers,
            payloads,
            level: o.level.map(Level::from),
            acks: o.acks || o.durable,
            durable: o.durable,
            receipts: o.receipts,
            target: o.target,
            encodings: o.encoding.clone(),
            tls: tls(o)?,
            qos: o.qos.unwrap_or(0),
            tokens: o.token_file.as_deref().map_or(Ok(HashMap::new()), tokens)?,
            sources: Vec::new(),
            sizes,
            spread,
        };
        for member in 0..plan.members {
            for group in plan.groups_of(member) {
                plan.groups[group as usize].readers += 1;
            }
        }
        if let Some(empty) = plan.groups.iter().position(|g| g.readers == 0) {
            return Err(LoadError::Usage(format!(
                "group {empty} of {group_count} has no member; use more --members or fewer --groups"
            )));
        }
        plan.add_channels(o);
        o.target.check(workload, o, &plan)?;
        Ok(plan)
    }

    fn add_channels(&mut self, o: &Options) {
        if self.publishers == 0 {
            return;
        }
        let groups = self.groups.len() as u32;
        let count = groups.max(self.publishers);
        let window = o.window.unwrap_or(64) as usize;
        let slots = (SLOTS_TOTAL / count as usize)
            .next_power_of_two()
            .clamp(256, SLOTS_PER_CHANNEL_MAX)
            .max((2 * window).next_power_of_two());
        for i in 0..count {
            let (publisher, group) = (i % self.publishers, i % groups);
            self.groups[group as usize].channels.push(self.channels.len() as u32);
            self.channels.push(Channel {
                group,
                publisher,
                published: AtomicU64::new(0),
                completed: AtomicU64::new(0),
                answered: AtomicU64::new(0),
                slots: (0..slots).map(|_| Slot::default()).collect(),
            });
        }
    }

    /// The groups that `member` joins.
    pub fn groups_of(&self, member: u32) -> Vec<u32> {
        let groups = self.groups.len() as u32;
        match &self.spread {
            Spread::One => vec![0],
            Spread::Drawn(groups_of) => {
                // Members that stall come after those that were drawn; they see the largest group.
                groups_of.get(member as usize).cloned().unwrap_or_else(|| vec![0])
            }
            Spread::Even { per_member } => {
                (0..*per_member).map(|j| (member * per_member + j) % groups).collect()
            }
            Spread::Mixed { .. } if groups == 1 => vec![0],
            Spread::Mixed { per_member } => {
                let big = (member.is_multiple_of(2)).then_some(0);
                let small = (0..*per_member).map(|j| 1 + (member * per_member + j) % (groups - 1));
                big.into_iter().chain(small).collect()
            }
        }
    }

    /// The channel of a group on which the sender with this member id publishes.
    pub fn channel_of_sender(&self, group: u32, sender: &[u8]) -> Option<u32> {
        let digits = sender.strip_prefix(b"p")?;
        let publisher: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
        self.channel_of(group, publisher)
    }

    /// The channel on which `publisher` publishes to a group.
    pub fn channel_of(&self, group: u32, publisher: u32) -> Option<u32> {
        let channels = &self.groups[group as usize].channels;
        let at = channels
            .binary_search_by_key(&publisher, |c| self.channels[*c as usize].publisher)
            .ok()?;
        Some(channels[at])
    }

    /// The key of a message in flight.
    pub fn key(&self, channel: u32, producer_seq: u64) -> Key {
        let slot = self.channels[channel as usize].slot(producer_seq);
        Key { channel, producer_seq, intended: slot.intended.load(Ordering::Relaxed) }
    }

    /// Name of a member, as the server knows it.
    pub fn member_name(member: u32) -> String {
        format!("m{member:06}")
    }

    /// Name of a publisher, as the server knows it.
    pub fn publisher_name(publisher: u32) -> String {
        format!("p{publisher:06}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::args::{Cli, Task};
    use clap::Parser;

    fn plan(line: &str) -> Plan {
        match Cli::parse_from(line.split(' ')).task {
            Task::Run(workload) => Plan::new(&workload, 1).unwrap(),
            _ => unreachable!(),
        }
    }

    #[test]
    fn every_publisher_and_every_group_has_a_channel() {
        for line in [
            "loadgen groups --groups 7 --publishers 3 --members 20",
            "loadgen groups --groups 3 --publishers 7 --members 20 --groups-per-member 2",
            "loadgen soak --groups 5 --publishers 5 --members 20",
        ] {
            let plan = plan(line);
            assert!(plan.groups.iter().all(|g| !g.channels.is_empty()));
            for p in 0..plan.publishers {
                assert!(plan.channels.iter().any(|c| c.publisher == p));
            }
            for (i, c) in plan.channels.iter().enumerate() {
                let name = Plan::publisher_name(c.publisher);
                assert_eq!(plan.channel_of_sender(c.group, name.as_bytes()), Some(i as u32));
            }
        }
    }

    #[test]
    fn no_member_joins_a_group_twice() {
        let plan = plan("loadgen soak --groups 6 --members 100 --groups-per-member 5");
        for m in 0..plan.members {
            let mut groups = plan.groups_of(m);
            groups.sort_unstable();
            let len = groups.len();
            groups.dedup();
            assert_eq!(groups.len(), len);
        }
    }
}
