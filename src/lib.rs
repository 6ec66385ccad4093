//! Fanfare: group broadcast that is durable before anyone sees it.
//!
//! The modules in the order in which a message passes them:
//!
//! ```text
//!  socket ─► ring ─► shard::take ─► wire ─► inbox ─► shard::sequence ─► wal ─► disk
//!                        │ foreign group                  │ group           │ synced
//!                        ▼                                ▼                 ▼
//!                      mesh ──► owner shard            group::Group    shard::publish
//!                                                                           │
//!  socket ◄─ ring ◄─ shard::write ◄─ fanout (tails, cursors) ◄──── mesh ◄───┘
//! ```
#![deny(unsafe_code)]

pub mod config;
pub mod fanout;
pub mod group;
pub mod limits;
pub mod mesh;
pub mod position;
#[allow(unsafe_code, reason = "the one place that talks to the kernel by pointers")]
pub mod ring;
pub mod serve;
pub mod shard;
pub mod sim;
pub mod wal;
pub mod wire;
