//! io_uring: the driver of a shard, the aligned buffers of its log, and the client ring of
//! the load generator, and rings that measure what the kernel takes. All unsafe code of the project
//! is in this folder.

mod accept;
mod bare;
mod buffers;
mod client;
mod cold;
mod complete;
mod conn;
mod driver;
mod driver_config;
mod driver_io;
mod log_buf;
mod log_io;
mod mirror;
mod probe;
mod slice;
mod token;
mod trial;
mod trial_log;
mod uring;
mod waker;
mod writes;

#[cfg(test)]
mod tests;

pub use bare::{BareEvent, BareRing};
pub use client::{ClientEvent, ClientRing};
pub use cold::{ColdError, ColdExecutor, ColdHandle, StepsFn};
pub use driver::Driver;
pub use driver_config::{DriverConfig, DriverCounters, DriverError};
pub use log_buf::LogBuf;
pub use probe::{KernelFeatures, ProbeError};
pub use slice::{run_when_idle, take_short_slices};
pub use trial::{TrialRing, TrialRound, TrialWrite};
pub use trial_log::{TrialCommit, TrialLog, TrialWait};
pub use waker::Waker;
