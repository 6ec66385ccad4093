//! The shard: one thread's state machine.

mod io;

pub use io::{ConnId, Event, Io, Job, RecvBuf, RecvEnd};
