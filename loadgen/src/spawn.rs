//! A server of our own, in a temporary directory.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::args::Options;
use crate::error::LoadError;

/// The first start writes log segments ahead, which takes its time on a slow disk.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const STDERR_LINES: usize = 40;

/// A running server; killed when dropped, stopped in order by [`Server::stop`].
pub struct Server {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
    data: TempDir,
    /// Its command, for the report.
    pub command: String,
}

impl Server {
    /// Starts one and waits until it accepts connections.
    pub fn start(o: &Options) -> Result<Self, LoadError> {
        let binary = match &o.server_bin {
            Some(path) => path.clone(),
            None => beside_us()?,
        };
        if !binary.is_file() {
            return Err(LoadError::NoServer(binary));
        }
        let mut dir = tempfile::Builder::new();
        dir.prefix("loadgen-");
        let data = match &o.server_data_parent {
            Some(parent) => dir.tempdir_in(parent),
            None => dir.tempdir(),
        }
        .map_err(LoadError::file(std::env::temp_dir()))?;
        let stderr = data.path().join("stderr");
        let addr = free_port().map_err(LoadError::file("127.0.0.1:0"))?;
        let mut command = Command::new(&binary);
        command.arg("serve").arg("--listen").arg(addr.to_string());
        command.arg("--data-dir").arg(data.path().join("data"));
        command.arg("--shards").arg(o.shards.to_string());
        if let Some(cores) = &o.server_cores {
            command.arg("--cores").arg(cores);
        }
        command.args(&o.server_arg);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&stderr).map_err(LoadError::file(&stderr))?);
        let printed = std::iter::once(binary.file_name().unwrap_or_default())
            .chain(command.get_args())
            .map(|arg| arg.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let child = command.spawn().map_err(LoadError::file(binary))?;
        let mut server = Self { child, addr, data, command: printed };
        server.wait_until_up()?;
        Ok(server)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_up(&mut self) -> Result<(), LoadError> {
        let start = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(format!("ended at its start with {status}:")));
            }
            if TcpStream::connect_timeout(&self.addr, Duration::from_secs(1)).is_ok() {
                return Ok(());
            }
            if start.elapsed() > START_TIMEOUT {
                let what = format!("did not listen on {} within {START_TIMEOUT:?}:", self.addr);
                return Err(self.failed(what));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it with SIGTERM and checks that it ends well.
    pub fn stop(mut self) -> Result<(), LoadError> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(self.failed(format!("ended during the run with {status}:")));
        }
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(self.failed(format!("ended on SIGTERM with {status}:")));
                }
                _ if start.elapsed() > STOP_TIMEOUT => {
                    return Err(self.failed(format!("still ran {STOP_TIMEOUT:?} after SIGTERM:")));
                }
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn failed(&self, what: String) -> LoadError {
        let text = fs::read_to_string(self.data.path().join("stderr")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.len().saturating_sub(STDERR_LINES);
        LoadError::Server { what, stderr: lines[last..].join("\n") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The data goes with it, so there is nothing to end in order any more.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn beside_us() -> Result<PathBuf, LoadError> {
    let own = std::env::current_exe().map_err(LoadError::file("loadgen"))?;
    Ok(own.with_file_name("fanfare"))
}

fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
