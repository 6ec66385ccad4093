//! io_uring: the driver of a shard, the aligned buffers of its log, and the client ring of
//! the load generator. All unsafe code of the project is in this folder.

mod buffers;
mod client;
mod log_buf;
mod token;
mod uring;

pub use client::{ClientEvent, ClientRing};
pub use log_buf::LogBuf;
