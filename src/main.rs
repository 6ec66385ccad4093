//! The `fanfare` command: `serve` runs a server, `bridge` forwards its messages, `top` shows how
//! it is, `config` checks what it would start from, `wal` looks at its logs, `token` makes tokens.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use fanfare::auth::issue::{self, TokenArgs};
use fanfare::bridge::{self, BridgeArgs};
use fanfare::config::{Layers, ServeArgs, load};
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
    /// Forward messages of groups to other systems
    Bridge(BridgeArgs),
    /// Show how a running server is: its shards, and members that do not keep up
    Top(TopArgs),
    /// Check a configuration without starting a server, or print one to begin with
    #[command(subcommand)]
    Config(Config),
    /// Look at the logs of a data directory; changes nothing
    Wal(WalArgs),
    /// Make tokens with the secret of a server, to try it out
    Token(TokenArgs),
    /// Print the script that completes this command in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages of this command and its subcommands
    Man {
        /// Directory to write them to
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Config {
    /// Say whether `fanfare serve` with the same flags could use its configuration
    Check(Box<ServeArgs>),
    /// Print every key with its meaning, range and default, as a file to begin with
    Default,
}

/// Exit codes: 0 it went well, 1 it failed, 2 it was asked for something that cannot be.
fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => fanfare::serve::run(&args),
        Command::Bridge(args) => bridge::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Config(Config::Check(args)) => fanfare::serve::check(&args),
        Command::Config(Config::Default) => {
            done(load(&Layers::default()).map(|loaded| print!("{}", loaded.to_toml())))
        }
        Command::Wal(args) => tool::run(&args),
        Command::Token(args) => issue::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "fanfare", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Man { dir } => done(man(&dir)),
    }
}

fn man(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)
}

fn done<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
