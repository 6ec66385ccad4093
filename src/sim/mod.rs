//! The second implementer of [`crate::shard::Io`]: several shards, their clients, clock,
//! network and disks, run in one thread from one seed, with faults.
//!
//! ```text
//!  Client ──► client_side ──► net::Link ──► server_side ──► io::ShardIo ◄──► Shard
//!    │                                                          │
//!    ▼                                                          ▼
//!  Oracle                                                   files::SimFiles
//! ```
//!
//! [`World::run`] panics with the seed and the last events if a client saw something that the
//! guarantees exclude.

mod client;
mod client_frames;
mod client_side;
mod config;
mod disk_side;
mod durable;
mod files;
mod io;
mod lines;
mod log_reader;
mod net;
mod node;
mod oracle;
mod power;
mod presence;
mod profile;
mod queries;
mod rng;
mod rosters;
mod rot;
mod server_side;
mod settle;
mod trace;
mod world;

pub use config::{Trouble, WorldConfig};
pub use profile::Profile;
pub use trace::{Fault, Faults, last_events};
pub use world::{Failure, Outcome, World};
