//! `fanfare top`: how a running server is, by its admin socket.

mod text;
mod view;

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::admin::ADMIN_SOCKET;
use crate::config::parse_interval;

/// Longest answer.
const ANSWER_MAX: u64 = 16 << 20;
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How often a terminal shows anew.
const VIEW_INTERVAL: Duration = Duration::from_secs(1);

/// Flags of `fanfare top`.
#[derive(Clone, Debug, clap::Args)]
pub struct TopArgs {
    /// Data directory of the server
    #[arg(long, value_name = "DIR", default_value = "./fanfare-data")]
    data_dir: PathBuf,
    /// Print the answer as JSON, one line each time
    #[arg(long)]
    json: bool,
    /// Print the answer as text also on a terminal
    #[arg(long, conflicts_with = "json")]
    plain: bool,
    /// Ask again after this time, such as 1s, until interrupted; a terminal shows it every second
    /// unless told otherwise
    #[arg(long, value_name = "TIME", value_parser = interval)]
    interval: Option<Duration>,
}

fn interval(text: &str) -> Result<Duration, String> {
    parse_interval(text).ok_or_else(|| "use a time with its unit, such as 500ms, 1s or 2m".into())
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
enum TopError {
    #[error(
        "cannot ask the server at {}: {source}; is it running with this data directory, and are you its user?",
        path.display()
    )]
    Ask { path: PathBuf, source: io::Error },
    #[error("the server's answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("the server says: {0}")]
    Refused(String),
    #[error("the terminal cannot be used: {0}; there is --plain")]
    Terminal(#[source] io::Error),
}

/// Runs `fanfare top`.
#[must_use]
pub fn run(args: &TopArgs) -> ExitCode {
    match top(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn top(args: &TopArgs) -> Result<(), TopError> {
    if !args.json && !args.plain && io::stdout().is_terminal() && io::stdin().is_terminal() {
        // What is wrong is said on the terminal as it was.
        let first = ask(&args.data_dir)?;
        let interval = args.interval.unwrap_or(VIEW_INTERVAL);
        let ask = || ask(&args.data_dir).map_err(|error| error.to_string());
        return view::run(first, interval, ask).map_err(TopError::Terminal);
    }
    let mut before: Option<Sample> = None;
    loop {
        let now = Sample { at: Instant::now(), answer: ask(&args.data_dir)? };
        let text = if args.json {
            format!("{}\n", now.answer)
        } else {
            text::table(before.as_ref(), &now)
        };
        // Nobody reads any more: that is how a pipe ends.
        if io::stdout().write_all(text.as_bytes()).is_err() {
            return Ok(());
        }
        let Some(interval) = args.interval else { return Ok(()) };
        before = Some(now);
        std::thread::sleep(interval);
    }
}

fn ask(data_dir: &Path) -> Result<Value, TopError> {
    let path = data_dir.join(ADMIN_SOCKET);
    let answer = (|| {
        let mut socket = UnixStream::connect(&path)?;
        socket.set_read_timeout(Some(ANSWER_TIME))?;
        socket.write_all(b"status\n")?;
        let mut answer = String::new();
        socket.take(ANSWER_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    })();
    let answer = answer.map_err(|source| TopError::Ask { path, source })?;
    let answer: Value = serde_json::from_str(&answer)?;
    match answer["error"].as_str() {
        Some(error) => Err(TopError::Refused(error.into())),
        None => Ok(answer),
    }
}

/// An answer and when it came.
struct Sample {
    at: Instant,
    answer: Value,
}

impl Sample {
    fn shards(&self) -> &[Value] {
        self.answer["shards"].as_array().map_or(&[], Vec::as_slice)
    }

    fn total(&self, name: &str) -> u64 {
        self.answer["total"][name].as_u64().unwrap_or(0)
    }

    /// Per second since `before`, over all shards.
    fn rate(&self, before: &Self, name: &str) -> u64 {
        self.per_s(before, self.total(name), before.total(name))
    }

    /// Of one of the shards; `None` if it did not answer before.
    fn shard_rate(&self, before: &Self, shard: &Value, name: &str) -> Option<u64> {
        let old = before.shards().iter().find(|old| old["shard"] == shard["shard"])?;
        Some(self.per_s(before, figure(shard, name), figure(old, name)))
    }

    fn per_s(&self, before: &Self, new: u64, old: u64) -> u64 {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        (new.saturating_sub(old) as f64 / seconds) as u64
    }
}

fn figure(of: &Value, name: &str) -> u64 {
    of["figures"][name].as_u64().unwrap_or(0)
}
