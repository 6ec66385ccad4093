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
//!                          │          │  places     which shard they come to
//!                          │          ├─ publisher  open or closed loop
//!                          │          ├─ tls, encoding   what its frames are carried by
//!                          │          ├─ member     one connection's bytes, verified against
//!                          │          │  stream     what the group must look like
//!                          │          └─ record     histograms
//!                          ├─ history     what is laid down before
//!                          ├─ catch_up    members that read it beside the others
//!                          ▼
//!                          ├─ timeline    the run over time
//!                       report, hdr_files, proc (CPU and memory), plot
//! ```
//!
//! `target` has the protocols of other systems, for the same run against them.
//!
//! `priority` and what is under `several` are made of such runs, each a process of its own;
//! `figures` takes medians and ranges out of their reports.
#![deny(unsafe_code)]

mod args;
mod catch_up;
mod clock;
mod connect;
mod control;
mod encoding;
mod error;
mod figures;
mod hdr_files;
mod herd;
mod history;
mod join;
mod member;
mod payload;
mod places;
mod plan;
mod plot;
mod priority;
mod proc;
mod publisher;
mod record;
mod report;
mod session;
mod several;
mod shared;
mod sizes;
mod slow;
mod spawn;
mod stream;
mod target;
mod timeline;
mod tls;
mod violation;
mod worker;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let done = match &cli.task {
        args::Task::Run(workload) => control::run(workload),
        args::Task::Priority(options) => priority::run(options),
        args::Task::Repeat(options) => several::repeat::run(options),
        args::Task::Compare(options) => several::compare::run(options),
        args::Task::Sweep(options) => several::sweep::run(options),
        args::Task::Durability(options) => several::durability::run(options),
        args::Task::Plot(options) => plot::run(options),
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
