//! Other systems that broadcast, to compare with: what loadgen says to them, and what it reads.
//!
//! ```text
//!  bytes ─► codec (resp, nats, mqtt, ws)   one frame at the start of the bytes, no I/O, no state
//!             │ Event
//!             ▼
//!           peer     one connection: what is joined, what waits for an answer
//!             │ payload
//!             ▼
//!           order    what a member must get: each publisher's messages in order, all of them once
//! ```
//!
//! These systems give a message no number and a group no order, so what is verified is in the
//! payload: run, channel, number, send time and pattern (see [`crate::payload`]). A member whose
//! bytes are those that others got before is followed by comparing them, as with Fanfare.

pub mod codec;
pub mod mqtt;
pub mod nats;
pub mod order;
pub mod peer;
pub mod resp;
pub mod ws;

use clap::ValueEnum;

use crate::args::{Options, Workload};
use crate::encoding::Encoding;
use crate::error::LoadError;
use crate::payload::STAMP_BYTES;
use crate::plan::Plan;

/// What the load is put on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// A Fanfare server.
    #[default]
    Fanfare,
    /// Redis pub/sub (RESP2). A group is a channel.
    Redis,
    /// NATS core. A group is a subject.
    Nats,
    /// MQTT 3.1.1. A group is a topic.
    Mqtt,
    /// A WebSocket server that repeats each message to all connections with the same path. A group
    /// is a path.
    Ws,
}

impl Target {
    /// Name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fanfare => "fanfare",
            Self::Redis => "redis",
            Self::Nats => "nats",
            Self::Mqtt => "mqtt",
            Self::Ws => "ws",
        }
    }

    /// What it answers to a publish; `None` if it answers nothing.
    pub fn answer(self, qos: u8) -> Option<&'static str> {
        match (self, qos) {
            (Self::Fanfare, _) => Some("PUBLISHED, by level"),
            (Self::Redis, _) => Some("number of receivers"),
            (Self::Mqtt, 1) => Some("PUBACK"),
            (Self::Nats | Self::Mqtt | Self::Ws, _) => None,
        }
    }

    /// Refuses what only Fanfare can do, and what could not be verified.
    pub fn check(self, workload: &Workload, o: &Options, plan: &Plan) -> Result<(), LoadError> {
        if o.qos.is_some() && self != Self::Mqtt {
            return Err(LoadError::Usage("--qos is for --target mqtt".to_owned()));
        }
        let native = o.encoding.iter().all(|encoding| *encoding == Encoding::Native);
        if self == Self::Fanfare {
            let alone =
                matches!(workload, Workload::Catchup(_) | Workload::Fill(_) | Workload::Herd(_));
            return if native || !alone {
                Ok(())
            } else {
                let text = "catchup, fill and herd speak the native encoding only";
                Err(LoadError::Usage(text.to_owned()))
            };
        }
        let name = self.name();
        let only = |what: &str| {
            Err(LoadError::Usage(format!(
                "{what} is for --target fanfare, {name} has no such thing"
            )))
        };
        match workload {
            Workload::Catchup(_) => return only("catchup"),
            Workload::Fill(_) => return only("fill"),
            Workload::Herd(_) => return only("herd"),
            _ => {}
        }
        for (given, flag) in [
            (o.level.is_some(), "--level"),
            (o.acks, "--acks"),
            (o.durable, "--durable"),
            (o.spawn, "--spawn"),
            (!native, "--encoding"),
        ] {
            if given {
                return only(flag);
            }
        }
        let stamped = o.payload_file.is_none() && plan.payloads.longest() >= STAMP_BYTES;
        if !stamped && plan.groups.iter().any(|g| g.channels.len() > 1) {
            return Err(LoadError::Usage(format!(
                "{name} does not say who published a message, so with several publishers in a group each message needs its stamp: use --payload {STAMP_BYTES} or more"
            )));
        }
        if self == Self::Ws {
            // A connection is in the one room that its path names.
            let one_each = plan.channels.len() <= plan.publishers as usize;
            let groups = plan.groups.len();
            if (0..plan.members).any(|m| plan.groups_of(m).len() > 1) {
                return only("more than one group per member");
            }
            if !one_each {
                return Err(LoadError::Usage(format!(
                    "a WebSocket is in one group, so each of {groups} groups needs a publisher: use --publishers {groups} or a multiple of it"
                )));
            }
            if !plan.publishers.is_multiple_of(groups as u32) {
                return Err(LoadError::Usage(format!(
                    "--publishers {} is no multiple of {groups} groups",
                    plan.publishers
                )));
            }
        }
        Ok(())
    }
}
