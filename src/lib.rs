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
//!
//! [`client`] is the other end of the sockets. It stands alone: without the default feature
//! `server`, only it, [`wire`], [`position`] and [`limits`] are built.
#![deny(unsafe_code)]

#[cfg(feature = "server")]
pub mod auth;
#[cfg(feature = "server")]
pub mod bridge;
pub mod client;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod fanout;
#[cfg(feature = "server")]
pub mod group;
pub mod limits;
#[cfg(feature = "server")]
pub mod mesh;
pub mod position;
#[cfg(feature = "server")]
#[allow(unsafe_code, reason = "the one place that talks to the kernel by pointers")]
pub mod ring;
#[cfg(feature = "server")]
pub mod serve;
#[cfg(feature = "server")]
pub mod shard;
#[cfg(feature = "server")]
pub mod sim;
#[cfg(feature = "server")]
pub mod slots;
#[cfg(feature = "server")]
pub mod tls;
#[cfg(feature = "server")]
pub mod wal;
pub mod wire;
#[cfg(feature = "server")]
pub mod ws;
