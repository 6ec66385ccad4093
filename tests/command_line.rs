//! What the command line promises: order of precedence, and a clear refusal with the right
//! exit code for everything that keeps a server from starting.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Server, Settings};
use rustix::process::Signal;

/// How a process that must end by itself ended.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs `command` without variables of the surroundings; it must end soon.
fn run(command: &mut Command) -> Ended {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FANFARE_")) {
        // What a test itself sets is not removed.
        if !command.get_envs().any(|(set, _)| set == &*name) {
            command.env_remove(name);
        }
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let status = status.unwrap_or_else(|| panic!("it did not end:\n{stdout}\n{stderr}"));
    Ended { code: status.code().unwrap_or(-1), stdout, stderr }
}

fn fanfare() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fanfare"))
}

fn serve(args: &[&str]) -> Command {
    let mut command = fanfare();
    command.arg("serve").args(args);
    command
}

/// `serve` on a port that is free and in `dir`, under limits set by the shell's `ulimit`.
fn serve_limited(ulimit: &str, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("ulimit {ulimit}; exec \"$0\" serve --data-dir \"$1\" --listen $2"))
        .arg(env!("CARGO_BIN_EXE_fanfare"))
        .arg(dir)
        .arg(free_address().to_string())
        .env("FANFARE_SHARDS", "1");
    command
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// It said all of `parts` on standard error, once, and ended with `code`.
fn assert_refused(ended: &Ended, code: i32, parts: &[&str]) {
    let Ended { stderr, .. } = ended;
    assert_eq!(ended.code, code, "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in {stderr:?}");
    }
    assert!(stderr.matches("error:").count() == 1, "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn help_names_every_command_and_the_important_flags() {
    let help = run(fanfare().arg("--help"));
    assert_eq!(help.code, 0);
    for word in ["serve", "wal"] {
        assert!(help.stdout.contains(word), "{}", help.stdout);
    }
    let help = run(&mut serve(&["--help"]));
    assert_eq!(help.code, 0);
    for flag in [
        "--config",
        "--listen",
        "--data-dir",
        "--shards",
        "--cores",
        "--log",
        "--stats-interval",
        "--level",
        "--heartbeat-ms",
        "--insecure-no-auth",
        "--set",
        "--print-config",
    ] {
        assert!(help.stdout.contains(flag), "{flag} is missing in {}", help.stdout);
    }
}

#[test]
fn usage_errors_end_with_code_2() {
    assert_eq!(run(&mut fanfare()).code, 2);
    assert_eq!(run(&mut serve(&["--no-such-flag"])).code, 2);
    assert_refused(&run(&mut serve(&["--set", "shards"])), 2, &["--set shards", "key=value"]);
    let twice = run(&mut serve(&["--set", "shards=1", "--shards", "1"]));
    assert_refused(&twice, 2, &["shards is given twice"]);
}

#[test]
fn flags_win_over_environment_over_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fanfare.toml");
    fs::write(&file, "ack_every = 1\npayload_max = 1\ngroups_max = 1\n").unwrap();
    let printed = run(serve(&["--print-config", "--set", "ack_every=3"])
        .env("FANFARE_CONFIG", &file)
        .env("FANFARE_ACK_EVERY", "2")
        .env("FANFARE_PAYLOAD_MAX", "2"));
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    for line in ["ack_every = 3 ", "payload_max = 2 ", "groups_max = 1 ", "heartbeat_ms = 30000 "] {
        assert!(printed.stdout.contains(&format!("\n{line}")), "{line} in {}", printed.stdout);
    }
    // The file that a flag names wins over the one that the environment names.
    let other = dir.path().join("other.toml");
    fs::write(&other, "ack_every = 9\n").unwrap();
    let printed =
        run(serve(&["--print-config", "--config"]).arg(&other).env("FANFARE_CONFIG", &file));
    assert!(printed.stdout.contains("\nack_every = 9 "), "{}", printed.stdout);
}

#[test]
fn what_is_printed_can_be_loaded_and_prints_the_same_values() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("printed.toml");
    let first = run(&mut serve(&["--print-config", "--level", "memory", "--shards", "2"]));
    fs::write(&file, &first.stdout).unwrap();
    let second = run(serve(&["--print-config", "--config"]).arg(&file));
    assert_eq!(second.code, 0, "{}", second.stderr);
    // Lines differ only in the comment that says who set the value.
    let values = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" # ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(values(&first.stdout), values(&second.stdout));
    assert!(!dir.path().join("fanfare-data").exists());
}

#[test]
fn bad_files_and_values_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fanfare.toml");
    let gone = dir.path().join("gone.toml");
    let ended = run(serve(&["--config"]).arg(&gone));
    assert_refused(&ended, 2, &["cannot read", "gone.toml"]);
    fs::write(&file, "heartbeet_ms = 1\n").unwrap();
    let ended = run(serve(&["--config"]).arg(&file));
    assert_refused(&ended, 2, &["heartbeet_ms", "heartbeat_ms", "fanfare.toml"]);
    let ended = run(&mut serve(&["--payload-max", "262145"]));
    assert_refused(&ended, 2, &["payload_max", "262145", "262144"]);
    let ended = run(serve(&[]).env("FANFARE_SHARDS", "65"));
    assert_refused(&ended, 2, &["FANFARE_SHARDS", "65", "from 1 to 64"]);
    let ended = run(&mut serve(&["--log", "fanfare=loud"]));
    assert_refused(&ended, 2, &["fanfare=loud"]);
    let ended = run(&mut serve(&["--cores", "0,9999"]));
    assert_refused(&ended, 2, &["core 9999", "--cores"]);
}

#[test]
fn beyond_loopback_is_refused_without_the_explicit_word() {
    for listen in ["0.0.0.0:7400", "[::]:7400", "192.0.2.1:7400"] {
        let ended = run(&mut serve(&["--listen", listen]));
        assert_refused(&ended, 2, &[listen, "--insecure-no-auth"]);
        let ended = run(&mut serve(&["--listen", listen, "--insecure-no-auth", "--print-config"]));
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    }
}

#[test]
fn a_port_that_is_taken_is_said_and_leaves_the_log_clean() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = run(serve(&["--shards", "1", "--listen", &address, "--data-dir"]).arg(dir.path()));
    assert_refused(&ended, 1, &[&address, "another process has the port", "--listen"]);
    // Nothing was served, so the next start has nothing to make up for.
    let manifest = fs::read_to_string(dir.path().join("manifest.toml")).unwrap_or_default();
    assert!(!manifest.contains("clean = false"), "{manifest}");
}

#[test]
fn two_servers_do_not_share_a_port() {
    let server = Server::start(Settings::shards(2));
    let dir = tempfile::tempdir().unwrap();
    let address = server.addr().to_string();
    let ended = run(serve(&["--shards", "1", "--listen", &address, "--data-dir"]).arg(dir.path()));
    assert_refused(&ended, 1, &[&address, "another process has the port"]);
}

#[test]
fn a_data_directory_that_is_held_is_refused_with_the_holder() {
    let server = Server::start(Settings::shards(1));
    let address = free_address().to_string();
    let ended =
        run(serve(&["--shards", "1", "--listen", &address, "--data-dir"]).arg(server.data_dir()));
    let log = server.log();
    assert_refused(&ended, 1, &["is in use by process", "another directory"]);
    assert_eq!(log, server.log(), "the first server must not notice");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    // Not even root can make a directory here.
    let address = free_address().to_string();
    let ended = run(&mut serve(&["--listen", &address, "--data-dir", "/proc/fanfare-data"]));
    assert_refused(&ended, 1, &["/proc/fanfare-data"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let ended = run(serve(&["--listen", &address, "--data-dir"]).arg(file.join("data")));
    assert_refused(&ended, 1, &["file/data"]);
}

#[test]
fn a_data_directory_of_another_kind_is_refused() {
    let mut server = Server::start(Settings::shards(1));
    server.stop();
    let dir = server.data_dir();
    let address = free_address().to_string();
    let start =
        |shards| run(serve(&["--shards", shards, "--listen", &address, "--data-dir"]).arg(&dir));
    let path = dir.join("manifest.toml");
    let manifest = fs::read_to_string(&path).unwrap();
    let found = manifest.lines().find(|line| line.starts_with("format_version")).unwrap();
    fs::write(&path, manifest.replace(found, "format_version = 999")).unwrap();
    assert_refused(&start("1"), 1, &["format version 999", "the build that wrote it"]);
    // Refusals change nothing.
    fs::write(&path, &manifest).unwrap();
    server.restart();
    server.stop();
}

#[test]
fn limits_that_are_too_low_are_named_with_the_command_that_raises_them() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run(&mut serve_limited("-n 100", dir.path()));
    assert_refused(&ended, 1, &["open files", "100", "ulimit -n"]);
    let ended = run(serve_limited("-n 300", dir.path()).env("FANFARE_SHARDS", "40"));
    assert_refused(&ended, 1, &["open files", "300", "40 shards", "ulimit -n", "--shards"]);
    let ended = run(&mut serve_limited("-l 64", dir.path()));
    assert_refused(&ended, 1, &["locked memory", "65536", "ulimit -l"]);
    assert!(!dir.path().join("manifest.toml").exists(), "refused before anything is touched");
}

#[test]
fn one_line_says_what_was_started() {
    let mut server = Server::start(Settings::shards(2));
    server.stop();
    let log = server.log();
    let ready: Vec<_> = log.lines().filter(|line| line.contains("ready")).collect();
    assert_eq!(ready.len(), 1, "{log}");
    let address = server.addr().to_string();
    for part in ["shards=2", "cores=", &address, "level=Durable", "kernel="] {
        assert!(ready[0].contains(part), "{part} is not in {}", ready[0]);
    }
}

#[test]
fn one_signal_is_a_clean_end_and_a_second_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::start(Settings::shards(1));
        server.signal(signal);
        let status = server.wait(Duration::from_secs(20));
        assert_eq!(status.code(), Some(0), "{signal:?}\n{}", server.log());
        assert!(server.log().contains("stopped"), "{}", server.log());
    }
    // Both wait for the stopped process and are seen together, before a drain could end. Which of
    // them is seen first is open: of signals that wait together the handler of the last one runs
    // first, and the thread that watches may look in between.
    let mut server = Server::start(Settings::shards(1));
    for signal in [Signal::STOP, Signal::INT, Signal::TERM, Signal::CONT] {
        server.signal(signal);
    }
    let status = server.wait(Duration::from_secs(20));
    assert!(matches!(status.code(), Some(130 | 143)), "{status:?}\n{}", server.log());
}

#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = serve_limited("-S -n 100", dir.path());
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("ready"), "{line}");
}

#[test]
fn figures_are_logged_only_when_asked_for() {
    let mut server = Server::start(Settings::shards(1));
    std::thread::sleep(Duration::from_millis(100));
    server.stop();
    assert!(!server.log().contains("deliveries_per_s"));
    let mut server = Server::start(Settings::shards(1).set("stats_interval", "\"20ms\""));
    common::wait_until("figures", || server.log().contains("deliveries_per_s"));
    server.stop();
    assert!(server.log().contains("deliveries="), "a summary at the end");
}

#[test]
fn config_check_says_whether_a_server_could_use_it_and_starts_none() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let check = |args: &[&str]| {
        let data = data.to_str().unwrap();
        run(fanfare().args(["config", "check", "--data-dir", data]).args(args))
    };
    let ended = check(&[]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "the configuration can be used\n"));
    assert!(!data.exists());
    let wrong = [
        (&["--payload-max", "0"][..], "payload_max"),
        (&["--log", "fanfare=loud"], "fanfare=loud"),
        (&["--cores", "9999"], "9999"),
        (&["--http", "0.0.0.0:7411"], "http_token_file"),
        (&["--http-token-file", "/nowhere/token"], "/nowhere/token"),
        (&["--config", "/nowhere/fanfare.toml"], "/nowhere/fanfare.toml"),
    ];
    for (args, said) in wrong {
        let ended = check(args);
        assert_eq!(ended.code, 2, "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
    }
}

#[test]
fn the_default_configuration_can_be_checked_and_says_what_sighup_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fanfare.toml");
    let ended = run(fanfare().args(["config", "default"]));
    assert_eq!(ended.code, 0);
    fs::write(&path, &ended.stdout).unwrap();
    assert_eq!(run(fanfare().args(["config", "check", "--config"]).arg(&path)).code, 0);
    let about = |key: &str| {
        let line = ended.stdout.lines().position(|line| line.starts_with(&format!("{key} ")));
        ended.stdout.lines().nth(line.unwrap() - 1).unwrap().to_owned()
    };
    assert!(about("ack_every").contains("SIGHUP"), "{}", about("ack_every"));
    assert!(!about("segment_bytes").contains("SIGHUP"), "{}", about("segment_bytes"));
}

#[test]
fn completions_and_man_pages_know_every_subcommand() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(fanfare().args(["completions", shell]));
        assert!(ended.code == 0 && ended.stdout.contains("http-token-file"), "{shell}");
    }
    assert_eq!(run(fanfare().arg("man").arg(dir.path())).code, 0);
    for page in ["fanfare", "fanfare-serve", "fanfare-top", "fanfare-config-check", "fanfare-wal"] {
        let text = fs::read_to_string(dir.path().join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH NAME"), "{page}");
    }
}
