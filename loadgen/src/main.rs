//! `loadgen`: publishes to a Fanfare server, verifies every delivery to every member, and
//! records latency histograms.
//!
//! The modules in the order of a run:
//!
//! ```text
//!  args ─► spawn (server process) ─► plan (who publishes what to whom)
//!                                        │
//!                       control ─► worker (one thread, one ring)
//!                          │          ├─ connect    sockets, HELLO and JOIN
//!                          │          ├─ publisher  open or closed loop
//!                          │          ├─ member     one connection's bytes, verified against
//!                          │          │  stream     what the group must look like
//!                          │          └─ record     histograms
//!                          ├─ history     what is laid down before
//!                          ├─ catch_up    members that read it beside the others
//!                          ▼
//!                       report, hdr_files, proc (CPU and memory)
//! ```
//!
//! `target` has the protocols of other systems, for the same run against them.
//!
//! `priority` is made of such runs, each a process of its own.
#![deny(unsafe_code)]

mod args;
mod catch_up;
mod clock;
mod connect;
mod control;
mod error;
mod hdr_files;
mod history;
mod join;
mod member;
mod payload;
mod plan;
mod priority;
mod proc;
mod publisher;
mod record;
mod report;
mod session;
mod shared;
mod sizes;
mod spawn;
mod stream;
mod target;
mod violation;
mod worker;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let done = match &cli.task {
        args::Task::Run(workload) => control::run(workload),
        args::Task::Priority(options) => priority::run(options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("loadgen: {error}");
            ExitCode::from(2)
        }
    }
}
