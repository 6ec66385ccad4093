//! io_uring: the driver of a shard, the aligned buffers of its log, and the client ring of
//! the load generator. All unsafe code of the project is in this folder.

mod log_buf;

pub use log_buf::LogBuf;
