//! The `fanfare` command: `serve` runs a server, `top` shows how it is, `wal` looks at its logs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fanfare::config::ServeArgs;
use fanfare::serve::top::{self, TopArgs};
use fanfare::wal::tool::{self, WalArgs};

/// Group broadcast for group chat and live rooms: durable, in one order, one write per member.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a server. Flags win over FANFARE_* variables, which win over the file
    Serve(Box<ServeArgs>),
    /// Show how a running server is: its shards, and members that do not keep up
    Top(TopArgs),
    /// Look at the logs of a data directory; changes nothing
    Wal(WalArgs),
}

/// Exit codes: 0 it went well, 1 it failed, 2 it was asked for something that cannot be.
fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => fanfare::serve::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Wal(args) => tool::run(&args),
    }
}
