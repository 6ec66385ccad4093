//! What is made of several runs. Each is a process of its own, with a server of its own if it
//! asks for one, so that no run inherits anything from the one before.

pub mod compare;
pub mod durability;
pub mod repeat;
pub mod sweep;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::error::LoadError;
use crate::figures::Spread;
use crate::plot::{self, Pages};

/// Where the result of several runs goes.
#[derive(Debug, Args)]
pub struct Results {
    /// Write the result as JSON, with the report of every run.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub pages: Pages,
}

/// Makes runs and keeps their reports.
pub struct Runner {
    scratch: TempDir,
    /// For each run its label, its arguments, what is said of it, and its report.
    runs: Vec<Value>,
    passed: bool,
}

impl Runner {
    /// None yet.
    pub fn new() -> Result<Self, LoadError> {
        let scratch = tempfile::tempdir().map_err(LoadError::file(std::env::temp_dir()))?;
        Ok(Self { scratch, runs: Vec::new(), passed: true })
    }

    /// Makes one run of `loadgen ARGS`; its report. `said` goes into the result beside it.
    pub fn run(&mut self, label: &str, args: &str, said: Value) -> Result<Value, LoadError> {
        let words = shlex::split(args)
            .ok_or_else(|| LoadError::Usage(format!("`{args}` has a quote that does not end")))?;
        let own = std::env::current_exe().map_err(LoadError::file("loadgen"))?;
        let path = self.scratch.path().join("report.json");
        let mut command = Command::new(own);
        command.args(&words).arg("--json").arg(&path);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.status().map_err(LoadError::file("loadgen"))?;
        if status.code().is_none_or(|code| code > 1) {
            return Err(LoadError::Usage(format!(
                "`loadgen {args}` could not be made ({status}); its own words are above"
            )));
        }
        let report = read(&path)?;
        if report["passed"] != true {
            self.passed = false;
            eprintln!("loadgen: `loadgen {args}` FAILED: {}", report["violations"]);
        }
        let mut run = json!({ "label": label, "args": args, "report": report });
        if let (Some(run), Value::Object(said)) = (run.as_object_mut(), said) {
            run.extend(said);
        }
        self.runs.push(run);
        Ok(report)
    }

    /// Reports of the runs with this label.
    pub fn reports<'a>(&'a self, label: &'a str) -> impl Iterator<Item = &'a Value> {
        self.runs.iter().filter(move |run| run["label"] == label).map(|run| &run["report"])
    }

    /// Writes what is asked for; whether all runs were verified.
    pub fn finish(
        self,
        workload: &str,
        said: Value,
        text: &str,
        to: &Results,
    ) -> Result<bool, LoadError> {
        let verdict = if self.passed {
            "VERIFIED: in every run every member got every message once, unchanged, in the order that its system promises"
        } else {
            "FAILED: see the reports of the runs (--json)"
        };
        println!("{verdict}");
        let mut result = json!({
            "workload": workload,
            "command": command_line(),
            "passed": self.passed,
            "summary_text": text,
            "runs": self.runs,
        });
        if let (Some(result), Value::Object(said)) = (result.as_object_mut(), said) {
            result.extend(said);
        }
        if let Some(path) = &to.json {
            std::fs::write(path, format!("{result:#}\n")).map_err(LoadError::file(path))?;
        }
        plot::write(&result, &to.pages)?;
        Ok(self.passed)
    }
}

/// How this process was called, to be called so again.
pub fn command_line() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let quoted = shlex::try_join(words.iter().map(String::as_str));
    format!("loadgen {}", quoted.unwrap_or_else(|_| words.join(" ")))
}

fn read(path: &Path) -> Result<Value, LoadError> {
    let text = std::fs::read(path).map_err(LoadError::file(path))?;
    serde_json::from_slice(&text)
        .map_err(|e| LoadError::File { path: path.to_owned(), source: e.into() })
}

/// Median and range as text.
fn shown(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(
        || "-".to_owned(),
        |s| format!("{:.digits$} ({:.digits$}..{:.digits$})", s.median, s.lowest, s.highest),
    )
}
