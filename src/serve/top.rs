//! `fanfare top`: how a running server is, by its admin socket.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
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

/// Flags of `fanfare top`.
#[derive(Clone, Debug, clap::Args)]
pub struct TopArgs {
    /// Data directory of the server
    #[arg(long, value_name = "DIR", default_value = "./fanfare-data")]
    data_dir: PathBuf,
    /// Print the answer as JSON, one line each time
    #[arg(long)]
    json: bool,
    /// Ask again after this time, such as 1s, until interrupted
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
    let mut before: Option<(Instant, Value)> = None;
    loop {
        let now = (Instant::now(), ask(&args.data_dir)?);
        let text = if args.json { format!("{}\n", now.1) } else { table(before.as_ref(), &now) };
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

fn figure(of: &Value, name: &str) -> u64 {
    of["figures"][name].as_u64().unwrap_or(0)
}

fn table(before: Option<&(Instant, Value)>, now: &(Instant, Value)) -> String {
    let mut out = String::new();
    let answer = &now.1;
    let shards = answer["shards"].as_array().map_or(&[][..], Vec::as_slice);
    let per_s = if before.is_some() { "/s" } else { "" };
    let _ = writeln!(
        out,
        "shard   conns members groups {:>11} {:>13} {:>10}    live lagging catch-up stalled tripped  inbox KiB  tail MiB",
        format!("messages{per_s}"),
        format!("deliveries{per_s}"),
        format!("writes{per_s}"),
    );
    for shard in shards {
        let old = before.and_then(|(at, old)| {
            let same = |s: &&Value| s["shard"] == shard["shard"];
            Some((*at, old["shards"].as_array()?.iter().find(same)?))
        });
        let rate = |name| {
            let total = figure(shard, name);
            old.map_or(total, |(at, old)| {
                let seconds = now.0.duration_since(at).as_secs_f64().max(1e-3);
                (total.saturating_sub(figure(old, name)) as f64 / seconds) as u64
            })
        };
        let n = |name| figure(shard, name);
        let _ = writeln!(
            out,
            "{:>5} {:>7} {:>7} {:>6} {:>11} {:>13} {:>10} {:>7} {:>7} {:>8} {:>7} {:>7} {:>10} {:>9}",
            shard["shard"].as_u64().unwrap_or(0),
            n("connections"),
            n("members"),
            n("groups"),
            rate("messages"),
            rate("deliveries"),
            rate("writes"),
            n("members_live"),
            n("members_lagging"),
            n("members_catch_up"),
            n("members_stalled"),
            n("members_tripped"),
            n("inbox_bytes") / 1024,
            n("tail_bytes") >> 20,
        );
    }
    if let Some(silent) = answer["silent_shards"].as_array().filter(|list| !list.is_empty()) {
        let _ = writeln!(out, "no answer from shards {}", Value::from(silent.clone()));
    }
    slowest(shards, &mut out);
    out
}

fn slowest(shards: &[Value], out: &mut String) {
    let of = |shard: &Value| shard["slowest"].as_array().cloned().unwrap_or_default();
    if shards.iter().all(|shard| of(shard).is_empty()) {
        return;
    }
    let _ = writeln!(out, "slowest members:\nshard state    served      KiB/s  behind member");
    for shard in shards {
        for member in of(shard) {
            let served = if member["tripped"] == true { "last" } else { "in turn" };
            let rate = member["drain_bytes_per_s"].as_u64();
            let rate = rate.map_or("-".into(), |rate| (rate / 1024).to_string());
            // A member chose its id; a terminal must not obey it.
            let name = member["member"].as_str().unwrap_or("").escape_debug().to_string();
            let _ = writeln!(
                out,
                "{:>5} {:<8} {served:<7} {rate:>9} {:>7} {name}",
                shard["shard"].as_u64().unwrap_or(0),
                member["state"].as_str().unwrap_or(""),
                member["lag_messages"].as_u64().unwrap_or(0),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(messages: u64) -> Value {
        json!({ "shards": [{
            "shard": 1,
            "figures": { "messages": messages, "members_tripped": 1 },
            "slowest": [{
                "member": "bad\u{1b}[2J", "state": "stalled", "tripped": true,
                "drain_bytes_per_s": 2048, "lag_messages": 7, "groups": 1,
            }],
        }], "silent_shards": [0] })
    }

    #[test]
    fn rates_are_between_two_answers_and_ids_do_not_reach_the_terminal_raw() {
        let start = Instant::now();
        let first = (start, answer(1_000));
        let text = table(None, &first);
        assert!(text.contains("messages ") && text.contains("1000"), "{text}");
        let text = table(Some(&first), &(start + Duration::from_secs(2), answer(3_000)));
        assert!(text.contains("messages/s") && text.contains(" 1000 "), "{text}");
        assert!(text.contains("stalled  last") && text.contains("no answer from shards [0]"));
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
