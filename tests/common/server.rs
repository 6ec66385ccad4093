use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use fanfare::wire::ClientFrame;

use super::client::hello_bytes;
use super::{SOON, wait_until};

/// How to start a server: the shard count and what goes into its configuration file.
#[derive(Clone)]
pub struct Settings {
    shards: u16,
    values: BTreeMap<String, String>,
    outlives_file_limit: bool,
    relative: bool,
    flags: Vec<String>,
}

impl Settings {
    /// Settings for `shards` shards with small log segments and tables, so that starts are
    /// quick and many servers fit beside each other.
    pub fn shards(shards: u16) -> Self {
        Self {
            shards,
            values: BTreeMap::new(),
            outlives_file_limit: false,
            relative: false,
            flags: Vec::new(),
        }
        .set("segment_bytes", 8 << 20)
        .set("connections_max", 1_000)
        .set("recv_buffers", 256)
    }

    /// Sets a value of the shard configuration.
    pub fn set(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.values.insert(name.to_owned(), value.to_string());
        self
    }

    /// A write beyond the limit of file sizes fails and does not kill the process.
    pub fn outliving_its_file_limit(self) -> Self {
        Self { outlives_file_limit: true, ..self }
    }

    /// Names the data directory relative to the working directory.
    pub fn with_relative_data_dir(self) -> Self {
        Self { relative: true, ..self }
    }

    /// Adds a flag of the command line.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// The command that starts a server, up to its arguments.
    fn command(&self) -> Command {
        let fanfare = env!("CARGO_BIN_EXE_fanfare");
        if !self.outlives_file_limit {
            return Command::new(fanfare);
        }
        // A signal that is ignored stays so over exec.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", fanfare]);
        command
    }

    fn toml(&self) -> String {
        self.values.iter().fold(String::new(), |mut out, (name, value)| {
            writeln!(out, "{name} = {value}").unwrap();
            out
        })
    }
}

/// A server process with its own data directory, killed when dropped.
pub struct Server {
    child: Child,
    addr: SocketAddr,
    _reserved: TcpListener,
    settings: Settings,
    dir: TempDir,
    /// A process that is taking over.
    successor: Option<Child>,
}

impl Server {
    pub fn start(settings: Settings) -> Self {
        Self::start_in(settings, tempfile::tempdir().unwrap())
    }

    /// Starts in a directory of the caller's; the logs go to `data` in it.
    pub fn start_in(settings: Settings, dir: TempDir) -> Self {
        let (child, addr, reserved) = spawn(&settings, dir.path());
        Self { child, addr, _reserved: reserved, settings, dir, successor: None }
    }

    /// A server with these keys, in a file beside its data directory. It allows no leeway.
    pub fn with_keys(settings: Settings, keys: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("keys"), keys).unwrap();
        Self::start_in(settings.set("auth_keys", "\"keys\"").set("auth_leeway_s", 0), dir)
    }

    /// A server for clients that reconnect by themselves: its port lies below those that the
    /// kernel gives to clients, so that none can connect to itself while the server is down.
    pub fn start_apart(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (reserved, addr) = port_apart();
        let child = spawn_at(&settings, dir.path(), addr).expect("the port was free");
        Self { child, addr, _reserved: reserved, settings, dir, successor: None }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What the server has said on stderr, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("stderr")).unwrap()).into_owned()
    }

    /// The file of [`Server::with_keys`].
    pub fn key_file(&self) -> std::path::PathBuf {
        self.dir.path().join("keys")
    }

    pub fn data_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Ends the process the way a crash does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, at_most: Duration) -> ExitStatus {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(status) = self.has_ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {at_most:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(Duration::from_secs(20));
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Starts again on the same data directory. The process must have ended.
    pub fn restart(&mut self) {
        (self.child, self.addr, self._reserved) = spawn(&self.settings, self.dir.path());
    }

    /// Starts again on the same address, with these settings.
    pub fn restart_at(&mut self, settings: Settings) {
        self.settings = settings;
        self.child = spawn_at(&self.settings, self.dir.path(), self.addr)
            .unwrap_or_else(|| panic!("the server does not start:\n{}", self.log()));
    }

    /// Starts a process that takes over, with these settings.
    pub fn begin_takeover(&mut self, settings: Settings) {
        self.begin_takeover_at(settings, self.addr);
    }

    /// The same, with this address in its configuration.
    pub fn begin_takeover_at(&mut self, settings: Settings, addr: SocketAddr) {
        self.settings = settings;
        let command = command(&self.settings, self.dir.path(), addr);
        self.successor = Some({ command }.arg("--takeover").spawn().unwrap());
    }

    /// Waits until the process that takes over has done so; it is the server from then on.
    pub fn finish_takeover(&mut self) {
        let status = self.wait(2 * SOON);
        assert!(status.success(), "the predecessor ended with {status}\n{}", self.log());
        self.child = self.successor.take().expect("a takeover was begun");
        assert!(is_up(self.addr), "{}", self.log());
    }

    /// The process that takes over, when the server has ended otherwise.
    pub fn adopt_successor(&mut self) {
        self.child = self.successor.take().expect("a takeover was begun");
    }

    /// Ends the process that takes over the way a crash does.
    pub fn kill_successor(&mut self) {
        let mut successor = self.successor.take().expect("a takeover was begun");
        successor.kill().unwrap();
        successor.wait().unwrap();
    }

    /// Waits for the end of a process that cannot take over.
    pub fn takeover_fails(&mut self) -> ExitStatus {
        self.successor.take().expect("a takeover was begun").wait().unwrap()
    }

    /// The same with other settings.
    pub fn restart_with(&mut self, settings: Settings) {
        self.settings = settings;
        self.restart();
    }

    /// Resident memory of the process in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.successor.iter_mut().chain([&mut self.child]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("last lines of the server:");
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// Whether the server answers a HELLO. That it can be connected to says nothing: the kernel
/// accepts connections before the shards run.
fn is_up(addr: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr) else { return false };
    stream.set_read_timeout(Some(SOON)).unwrap();
    // A server that asks for a token says so only when something else comes.
    let mut bytes = hello_bytes("probe");
    ClientFrame::encode_ping(&mut bytes, 0);
    stream.write_all(&bytes).is_ok() && stream.read(&mut [0; 64]).unwrap_or(0) > 0
}

/// A port for a server. The listener, on another loopback address, keeps it from the servers of
/// tests that run at the same time.
fn free_port() -> (TcpListener, SocketAddr) {
    loop {
        let reserved = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
        let addr = (Ipv4Addr::LOCALHOST, reserved.local_addr().unwrap().port()).into();
        if TcpListener::bind(addr).is_ok() {
            return (reserved, addr);
        }
    }
}

/// A free port that is never given to a client by the kernel.
fn port_apart() -> (TcpListener, SocketAddr) {
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    for n in 0..10_000 {
        let port = 12_000 + ((clock / 1_000 + std::process::id() + n * 7) % 18_000) as u16;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if let Ok(reserved) = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port))
            && TcpListener::bind(addr).is_ok()
        {
            return (reserved, addr);
        }
    }
    panic!("no port is free");
}

fn spawn(settings: &Settings, dir: &Path) -> (Child, SocketAddr, TcpListener) {
    // A connection may take the port between looking and listening, so try again.
    for _ in 0..5 {
        let (reserved, addr) = free_port();
        if let Some(child) = spawn_at(settings, dir, addr) {
            return (child, addr, reserved);
        }
    }
    panic!("the server does not start:\n{}", fs::read_to_string(dir.join("stderr")).unwrap());
}

/// Starts the server there; `None` if it ends at once.
fn spawn_at(settings: &Settings, dir: &Path, addr: SocketAddr) -> Option<Child> {
    let mut child = command(settings, dir, addr).spawn().unwrap();
    let mut ended = false;
    wait_until("starting the server", || {
        ended = child.try_wait().unwrap().is_some();
        ended || is_up(addr)
    });
    (!ended).then_some(child)
}

fn command(settings: &Settings, dir: &Path, addr: SocketAddr) -> Command {
    let config = dir.join("fanfare.toml");
    fs::write(&config, settings.toml()).unwrap();
    let log = File::options().create(true).append(true).open(dir.join("stderr")).unwrap();
    let data = if settings.relative { "data".into() } else { dir.join("data") };
    let mut command = settings.command();
    command
        .current_dir(dir)
        .arg("serve")
        .args(["--listen", &addr.to_string()])
        .args(["--shards", &settings.shards.to_string()])
        .arg("--data-dir")
        .arg(data)
        .arg("--config")
        .arg(&config)
        .args(&settings.flags)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    command
}
