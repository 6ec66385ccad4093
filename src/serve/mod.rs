//! A running server: start-up in order, shards on their cores, stop in order.

mod shards;

pub use shards::{ServeError, Shards, ShardsConfig, start};
