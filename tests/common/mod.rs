//! A server process and a blocking client for the whole-engine tests.
#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test may panic"
)]

pub mod application;
pub mod client;
pub mod durable;
pub mod http;
pub mod queries;
pub mod server;
pub mod tls;
pub mod tokens;
pub mod websocket;

pub use client::{Client, Follower, Got};
pub use http::Http;
pub use server::{Server, Settings};

use std::time::{Duration, Instant};

/// Longest wait for something that must come soon.
pub const SOON: Duration = Duration::from_secs(10);

/// Raises the limit of open files, for a test with more sockets than processes are often given.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} took longer than {SOON:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Puts a file with this content in the place of another one, so that none is ever seen half written.
pub fn replace(path: &std::path::Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Small random numbers for tests (splitmix64). The seed comes from `TEST_SEED` or the clock
/// and is printed, so that a failure can be run again.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let clock = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("TEST_SEED").map_or(clock, |seed| seed.parse().unwrap());
        eprintln!("TEST_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}
