//! Starts every shard on its core: recover the log, make the ring, run turns. Nothing is
//! accepted before all of them are ready.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use rtrb::{Producer, RingBuffer};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::{error, warn};

use super::ask::Asked;
use super::recover::{Made, first_segment, recover_all, steps, unix_ms};
use super::{ServeError, nofile};
use crate::auth::Keys;
use crate::config::ShardConfig;
use crate::mesh::{Mesh, mesh};
use crate::position::ShardId;
use crate::ring::{
    ColdExecutor, ColdHandle, Driver, DriverConfig, DriverError, Waker, take_short_slices,
};
use crate::shard::counters::{Counters, Figures};
use crate::shard::look::Look;
use crate::shard::{Active, Control, Io, Shard, ShardParts, Turn};
use crate::wal::{DataDir, Manifest, RealFiles, Recovered};

/// How long all shards together may take to make room for new keys.
const KEYS_TIME: Duration = Duration::from_secs(2);

/// Orders that wait for one shard.
const CONTROL_RING: usize = 8;

/// What all shards of a server start from.
#[derive(Clone, Debug)]
pub struct ShardsConfig {
    /// Address that every shard listens on.
    pub listen: SocketAddr,
    /// Data directory.
    pub data_dir: PathBuf,
    /// Core of each shard; as many shards as cores are given.
    pub cores: Vec<usize>,
    /// What each shard must know.
    pub shard: ShardConfig,
}

/// A running set of shards.
pub struct Shards {
    data: DataDir,
    hash_seed: u64,
    lines: Vec<Line>,
    threads: Vec<ExecutorJoinHandle<bool>>,
    /// The sockets that the shards accept from, kept for a successor.
    sockets: Vec<TcpListener>,
    _cold: ColdExecutor,
}

/// The control thread's line to one shard.
struct Line {
    control: Producer<Control>,
    waker: Waker,
    counters: Arc<Counters>,
}

/// What one shard's thread starts with.
struct Seed {
    id: ShardId,
    manifest: Manifest,
    config: ShardConfig,
    log_dir: PathBuf,
    sockets: Vec<TcpListener>,
    cold: ColdHandle,
    mesh: Mesh,
    recovered: Recovered,
    active: Active,
    control: rtrb::Consumer<Control>,
    counters: Arc<Counters>,
}

/// Recovers all logs and starts all shards.
///
/// # Errors
/// [`ServeError`]; nothing is listening then.
pub fn start(config: &ShardsConfig) -> Result<Shards, ServeError> {
    start_from(config, &Kept::default())
}

/// What goes on over a start. It stays with the caller.
#[derive(Default)]
pub(super) struct Kept {
    /// Sockets that listen already; none if the address is to be taken.
    pub sockets: Vec<TcpListener>,
    /// Where the shards' figures are published; new ones for shards that have none.
    pub counters: Vec<Arc<Counters>>,
}

/// As [`start`], from where another start ended.
///
/// # Errors
/// [`ServeError`].
pub(super) fn start_from(config: &ShardsConfig, kept: &Kept) -> Result<Shards, ServeError> {
    let count = config.cores.len() as u16;
    nofile::check(count)?;
    // Taken first, so that a second server fails before it touches anything.
    let (mut data, manifest) = Manifest::open(&config.data_dir, Some(count))?;
    let was_clean = manifest.clean;
    let hash_seed = manifest.hash_seed;
    match start_on(config, &mut data, manifest, kept) {
        Ok(Running { lines, threads, sockets, cold }) => {
            Ok(Shards { data, hash_seed, lines, threads, sockets, _cold: cold })
        }
        Err(error) => {
            // No shard took a turn, so what the last stop left still holds. If this cannot be
            // written, the next start only does more than it must.
            if was_clean {
                let _ = data.mark_clean();
            }
            Err(error)
        }
    }
}

/// Everything of a server but its data directory.
struct Running {
    lines: Vec<Line>,
    threads: Vec<ExecutorJoinHandle<bool>>,
    sockets: Vec<TcpListener>,
    cold: ColdExecutor,
}

fn start_on(
    config: &ShardsConfig,
    data: &mut DataDir,
    manifest: Manifest,
    kept: &Kept,
) -> Result<Running, ServeError> {
    let count = config.cores.len() as u16;
    let mut files = RealFiles::default();
    let (manifest, recovered) = recover_all(&mut files, data, manifest)?;
    let mut meshes = mesh(count).into_iter();
    let cold = ColdExecutor::start()?;
    let sockets = listening_sockets(config, &kept.sockets)
        .map_err(|source| ServeError::Listen { address: config.listen, source })?;
    let (mut controls, mut seeds) = (Vec::new(), Vec::new());
    for (id, recovered) in (0..count).map(ShardId).zip(recovered) {
        let Some(mesh) = meshes.next() else { break };
        let log_dir = data.shard_dir(id);
        let made = Made::now(&config.shard);
        let active = first_segment(&mut files, &log_dir, &manifest, id, &recovered, made)
            .map_err(|source| ServeError::Log { shard: id, path: log_dir.clone(), source })?;
        // None stays without a shard: what waits in the queue of a socket is lost with it.
        let of_shard = sockets.iter().skip(usize::from(id.0)).step_by(usize::from(count));
        let of_shard = of_shard.map(TcpListener::try_clone).collect::<io::Result<_>>();
        let of_shard = of_shard.map_err(|source| ServeError::Driver {
            shard: id,
            source: DriverError::Files(source),
        })?;
        let (control_in, control) = RingBuffer::new(CONTROL_RING);
        let counters = kept.counters.get(usize::from(id.0)).cloned().unwrap_or_default();
        controls.push((control_in, counters.clone()));
        seeds.push(Seed {
            id,
            manifest: manifest.clone(),
            config: config.shard.clone(),
            log_dir,
            sockets: of_shard,
            cold: cold.handle(),
            mesh,
            recovered,
            active,
            control,
            counters,
        });
    }
    let (threads, wakers) = spawn(seeds, &config.cores)?;
    let lines = controls.into_iter().zip(wakers);
    let lines =
        lines.map(|((control, counters), waker)| Line { control, waker, counters }).collect();
    Ok(Running { lines, threads, sockets, cold })
}

/// At least one socket for each shard: those that are inherited, and as many as are missing.
fn listening_sockets(
    config: &ShardsConfig,
    inherited: &[TcpListener],
) -> io::Result<Vec<TcpListener>> {
    let mut sockets =
        inherited.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
    let address = match sockets.first() {
        Some(socket) => socket.local_addr()?,
        None => {
            probe_port(config.listen)?;
            config.listen
        }
    };
    for socket in &sockets {
        set_options(&SockRef::from(socket), &config.shard)?;
    }
    while sockets.len() < config.cores.len() {
        sockets.push(bind(address, &config.shard)?.into());
    }
    Ok(sockets)
}

/// SO_REUSEPORT would let a second server share the port silently.
fn probe_port(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

fn bind(address: SocketAddr, config: &ShardConfig) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    set_options(&SockRef::from(&socket), config)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Options that accepted sockets inherit.
fn set_options(socket: &SockRef<'_>, config: &ShardConfig) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(config.socket_send_buffer as usize)?;
    if config.socket_notsent_lowat > 0 {
        socket.set_tcp_notsent_lowat(config.socket_notsent_lowat)?;
    }
    Ok(())
}

/// Shards meet here: nobody listens before all could run, nobody is told "ready" before all
/// listen.
struct Ready {
    shards: Barrier,
    listening: Barrier,
}

impl Ready {
    fn new(shards: usize) -> Self {
        Self { shards: Barrier::new(shards), listening: Barrier::new(shards + 1) }
    }
}

/// What a shard's thread says once its ring is made; `None` if it ended without a word.
type Report = (ShardId, Option<Result<(OwnedFd, Waker), DriverError>>);

/// Goes with a shard's thread and speaks when the thread no longer can.
struct Reporter {
    id: ShardId,
    to: mpsc::Sender<Report>,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The other shards would wait for this one without end; recovery from the log is
            // the way back. With panic=abort, as in a release, the process is gone already.
            eprintln!("error: shard {} panicked, so the server ends; start it again", self.id);
            std::process::abort();
        }
        // Nobody listens any more if the thread reported before.
        let _ = self.to.send((self.id, None));
    }
}

fn spawn(
    seeds: Vec<Seed>,
    cores: &[usize],
) -> Result<(Vec<ExecutorJoinHandle<bool>>, Vec<Waker>), ServeError> {
    let ready = Arc::new(Ready::new(seeds.len()));
    let (report, reports) = mpsc::channel::<Report>();
    let mut threads = Vec::new();
    let mut fds_to = Vec::new();
    let count = seeds.len();
    for (seed, &core) in seeds.into_iter().zip(cores) {
        let (fds_in, fds) = mpsc::channel::<Vec<OwnedFd>>();
        fds_to.push(fds_in);
        let (id, ready) = (seed.id, ready.clone());
        let reporter = Reporter { id, to: report.clone() };
        let thread = LocalExecutorBuilder::new(Placement::Fixed(core))
            .name(&format!("fanfare-{}", id.0))
            .ring_depth(16)
            .io_memory(1 << 16)
            .spawn(move || async move { run(seed, &reporter, &fds, &ready) })
            .map_err(|error| ServeError::Thread { shard: id, core, reason: error.to_string() })?;
        threads.push(thread);
    }
    drop(report);
    let mut made = Vec::new();
    for (id, result) in reports.iter().take(count) {
        let Some(result) = result else {
            return Err(lost_thread(threads, id, cores));
        };
        let (fd, waker) = result.map_err(|source| ServeError::Driver { shard: id, source })?;
        made.push((id, fd, waker));
    }
    made.sort_by_key(|(id, _, _)| *id);
    for fds in fds_to {
        let copies = made.iter().map(|(_, fd, _)| fd.try_clone()).collect::<io::Result<_>>();
        let copies = copies.map_err(|source| ServeError::Driver {
            shard: ShardId(0),
            source: DriverError::Files(source),
        })?;
        let _ = fds.send(copies);
    }
    ready.listening.wait();
    Ok((threads, made.into_iter().map(|(_, _, waker)| waker).collect()))
}

/// Why a shard's thread ended before it could run anything: its executor could not be made.
fn lost_thread(threads: Vec<ExecutorJoinHandle<bool>>, id: ShardId, cores: &[usize]) -> ServeError {
    let index = usize::from(id.0);
    let joined = threads.into_iter().nth(index).map(ExecutorJoinHandle::join);
    let reason = match joined {
        Some(Err(error)) => error.to_string(),
        _ => "its thread ended".into(),
    };
    let core = cores.get(index).copied().unwrap_or_default();
    ServeError::Thread { shard: id, core, reason }
}

/// A shard's whole life on its thread; whether its log holds all that was accepted.
fn run(seed: Seed, reporter: &Reporter, fds: &mpsc::Receiver<Vec<OwnedFd>>, ready: &Ready) -> bool {
    let id = seed.id;
    let (node, shard) = (seed.manifest.node, id);
    let listeners = match seed.sockets.iter().map(TcpListener::try_clone).collect() {
        Ok(listeners) => listeners,
        Err(error) => {
            let _ = reporter.to.send((id, Some(Err(DriverError::Files(error)))));
            return false;
        }
    };
    let driver = Driver::new(DriverConfig {
        shard,
        steps: Arc::new(move |job, dir| steps(job, dir, node, shard, unix_ms())),
        listeners,
        connections_max: seed.config.connections_max,
        recv_buffers: seed.config.recv_buffers,
        recv_buffer_bytes: seed.config.recv_buffer_bytes,
        spin_us: seed.config.spin_us,
        log_dir: seed.log_dir,
        cold: seed.cold,
    });
    let driver = driver.and_then(|driver| {
        let fd = driver.ring_fd().map_err(DriverError::Files)?;
        Ok((driver, fd))
    });
    let (mut driver, fd) = match driver {
        Ok(made) => made,
        Err(error) => {
            let _ = reporter.to.send((id, Some(Err(error))));
            return false;
        }
    };
    let _ = reporter.to.send((id, Some(Ok((fd, driver.waker())))));
    // The sender goes away without a word if another shard could not start.
    let Ok(peers) = fds.recv() else { return false };
    driver.set_peers(peers);
    // The limit of open files may leave room for fewer than configured.
    let connections_max = driver.connections_max();
    let config = ShardConfig { connections_max, ..seed.config };
    if config.classes.are_mixed()
        && let Err(error) = take_short_slices()
    {
        warn!(shard = id.0, %error,
            "the kernel gives no short time slices; realtime groups may wait longer for the log");
    }
    let mut shard = Shard::new(ShardParts {
        id,
        node: seed.manifest.node,
        shards: seed.manifest.shards,
        hash_seed: seed.manifest.hash_seed,
        start: seed.manifest.starts,
        epoch_floor: seed.manifest.epoch_floor,
        memory_epoch_floor: seed.manifest.memory_epoch_floor,
        config,
        counters: seed.counters,
        mesh: seed.mesh,
        recovered: seed.recovered,
        active: seed.active,
        control: seed.control,
        now: driver.now(),
    });
    ready.shards.wait();
    for socket in seed.sockets {
        // The kernel caps the backlog at net.core.somaxconn.
        if let Err(error) = SockRef::from(&socket).listen(i32::MAX) {
            error!(shard = id.0, %error, "the port was taken while the server started");
            std::process::exit(1);
        }
    }
    ready.listening.wait();
    while shard.turn(&mut driver) == Turn::Continue {}
    shard.is_clean()
}

impl Shards {
    /// Asks every shard to stop in good order. From when they stop accepting, new connections are
    /// refused, unless somebody else has the sockets.
    pub fn drain(&mut self) {
        self.sockets.clear();
        for line in &mut self.lines {
            let _ = line.control.push(Control::Drain);
            line.waker.wake();
        }
    }

    /// The sockets that the shards accept from, for a successor.
    ///
    /// # Errors
    /// They cannot be duplicated.
    pub(super) fn sockets(&self) -> io::Result<Vec<TcpListener>> {
        self.sockets.iter().map(TcpListener::try_clone).collect()
    }

    /// What another start can go on with when these shards have stopped.
    ///
    /// # Errors
    /// The sockets cannot be duplicated.
    pub(super) fn keep(&self) -> io::Result<Kept> {
        Ok(Kept { sockets: self.sockets()?, counters: self.counters() })
    }

    /// Gives every shard these keys in place of those it has.
    pub fn give_keys(&mut self, keys: &Arc<Keys>) {
        let deadline = Instant::now() + KEYS_TIME;
        for (shard, line) in self.lines.iter_mut().enumerate() {
            // A shard that does not take its orders must still find room for the last one.
            while line.control.slots() <= CONTROL_RING / 2 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if line.control.slots() > 1 {
                let _ = line.control.push(Control::Keys(Arc::clone(keys)));
                line.waker.wake();
            } else {
                error!(
                    shard,
                    "the shard takes no orders and keeps its old keys; restart the server"
                );
            }
        }
    }

    /// Has every shard serve TLS by other certificates from now on; whether all were told.
    pub(super) fn serve_by(&mut self, tls: &Arc<rustls::ServerConfig>) -> bool {
        let mut told = true;
        for line in &mut self.lines {
            // A shard that does not take its orders must still find room for the last one.
            told &= line.control.slots() > CONTROL_RING / 2
                && line.control.push(Control::Tls(tls.clone())).is_ok();
            line.waker.wake();
        }
        told
    }

    /// The figures of all shards together.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.lines.iter().fold(Figures::default(), |sum, line| sum.plus(&line.counters.load()))
    }

    /// Asks every shard, or one; does not wait for the answers.
    pub(super) fn ask(&mut self, look: &Look, only: Option<ShardId>) -> Asked {
        let mut waiting = Vec::new();
        for (shard, line) in (0..).map(ShardId).zip(&mut self.lines) {
            if only.is_some_and(|only| only != shard) {
                continue;
            }
            let (to, from) = RingBuffer::new(1);
            // A shard that does not take its orders must still find room for the last one.
            if line.control.slots() > CONTROL_RING / 2 {
                let _ = line.control.push(Control::Look(look.clone(), to));
                line.waker.wake();
            }
            waiting.push((shard, from));
        }
        Asked(waiting)
    }

    /// Hands a configuration to the shards. Returns those that did not take it because they do
    /// not take their orders.
    pub(super) fn reconfigure(&mut self, config: &ShardConfig) -> Vec<u16> {
        let mut silent = Vec::new();
        for (shard, line) in (0..).zip(&mut self.lines) {
            if line.control.slots() > 1 {
                let _ = line.control.push(Control::Configure(Box::new(config.clone())));
                line.waker.wake();
            } else {
                silent.push(shard);
            }
        }
        silent
    }

    /// The figures that each shard publishes.
    pub(super) fn counters(&self) -> Vec<Arc<Counters>> {
        self.lines.iter().map(|line| line.counters.clone()).collect()
    }

    /// What places groups on shards; see [`crate::shard::owner_of`].
    pub(super) fn hash_seed(&self) -> u64 {
        self.hash_seed
    }

    /// Waits until every shard has stopped, then notes in the manifest that the stop was
    /// clean. Returns the last figures and whether it was.
    ///
    /// # Errors
    /// The manifest cannot be written.
    pub fn join(mut self) -> Result<(Figures, bool), ServeError> {
        let mut clean = true;
        for thread in self.threads.drain(..) {
            clean &= thread.join().unwrap_or(false);
        }
        if clean {
            self.data.mark_clean()?;
        }
        Ok((self.figures(), clean))
    }
}
