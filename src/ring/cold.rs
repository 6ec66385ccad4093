//! Cold work: one glommio executor per process creates and removes segment files, so that a
//! shard's turn never waits for it and always sleeps in its own ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_util::StreamExt;
use glommio::io::{Directory, DmaFile};
use glommio::{LocalExecutorBuilder, Placement};
use rtrb::{Consumer, Producer, RingBuffer};
use rustix::event::{EventfdFlags, eventfd};

use super::DriverError;
use crate::limits::LOG_BLOCK;
use crate::position::{NodeId, ShardId};
use crate::shard::Job;
use crate::wal::{SegmentHeader, paths};

/// Jobs of one shard that can be on their way; the shard itself has fewer.
const DONE_RING: usize = 64;
const PIECE: u64 = 1024 * 1024;

type Done = (Job, Result<(), i32>);

/// Wakes a shard from any thread: its ring always reads this event.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?)))
    }

    /// Makes the shard's next or current wait return.
    pub fn wake(&self) {
        // Fails only if the counter would overflow, and then the shard is awake anyway.
        let _ = rustix::io::write(self.0.as_fd(), &1_u64.to_ne_bytes());
    }
}

struct Order {
    shard: usize,
    job: Job,
}

/// A shard whose jobs the executor runs.
#[derive(Clone, Debug)]
pub struct ColdShard {
    /// The node, for segment headers.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// Folder of its log.
    pub log_dir: PathBuf,
}

/// A shard's line to the cold executor.
#[derive(Debug)]
pub struct ColdClient {
    index: usize,
    orders: UnboundedSender<Order>,
    done: Consumer<Done>,
    waker: Waker,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "shard {}: {:?}", self.shard, self.job)
    }
}

impl ColdClient {
    pub(super) fn start(&mut self, job: Job) -> Result<(), Job> {
        let order = Order { shard: self.index, job };
        self.orders.unbounded_send(order).map_err(|error| error.into_inner().job)
    }

    pub(super) fn done(&mut self) -> Option<Done> {
        self.done.pop().ok()
    }

    pub(super) fn waker_fd(&self) -> RawFd {
        self.waker.0.as_raw_fd()
    }

    /// Wakes this shard from any thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// Starts the executor on a thread of its own. It ends when all clients are gone.
///
/// # Errors
/// [`DriverError::Cold`] if the thread, its rings or the wake-up events cannot be made.
pub fn start_cold(shards: Vec<ColdShard>) -> Result<Vec<ColdClient>, DriverError> {
    let (orders, inbox) = unbounded();
    let mut clients = Vec::new();
    let mut lines = Vec::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let (to, done) = RingBuffer::new(DONE_RING);
        let waker = Waker::new().map_err(DriverError::Cold)?;
        lines.push(Line { shard, to, waker: waker.clone() });
        clients.push(ColdClient { index, orders: orders.clone(), done, waker });
    }
    LocalExecutorBuilder::new(Placement::Unbound)
        .name("fanfare-cold")
        .ring_depth(64)
        .io_memory(4 << 20)
        .spawn(move || serve(inbox, lines))
        .map_err(|error| DriverError::Cold(error.into()))?;
    Ok(clients)
}

/// One shard's side of the executor.
struct Line {
    shard: ColdShard,
    to: Producer<Done>,
    waker: Waker,
}

async fn serve(mut inbox: UnboundedReceiver<Order>, mut lines: Vec<Line>) {
    // One job at a time: they are bound by the disk, and order keeps removal simple.
    while let Some(Order { shard, job }) = inbox.next().await {
        let Some(line) = lines.get_mut(shard) else { continue };
        let result = run(&line.shard, &job).await;
        let result = result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        // The ring cannot be full: a shard has fewer jobs under way than it holds.
        let _ = line.to.push((job, result));
        line.waker.wake();
    }
}

async fn run(shard: &ColdShard, job: &Job) -> io::Result<()> {
    match job {
        Job::CreateSegment { number, salt, bytes } => {
            let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let header = SegmentHeader {
                node: shard.node,
                shard: shard.shard,
                number: *number,
                salt: *salt,
                bytes: *bytes,
                created_ms: created.as_millis() as u64,
            };
            let path = paths::segment_path(&shard.log_dir, *number);
            let temporary = path.with_extension("wal.tmp");
            let created = create(&temporary, &path, &header).await;
            if created.is_err() {
                // Room on a full disk is what the retry needs.
                let _ = std::fs::remove_file(&temporary);
            }
            created
        }
        Job::RemoveSegments { numbers } => {
            for number in numbers {
                match std::fs::remove_file(paths::segment_path(&shard.log_dir, *number)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            sync(&shard.log_dir).await
        }
    }
}

/// Writes header and zeros, syncs, and only then gives the file its name: a segment that can
/// be seen is complete.
async fn create(temporary: &Path, path: &Path, header: &SegmentHeader) -> io::Result<()> {
    let file = DmaFile::create(temporary).await?;
    let written = zero(&file, header).await;
    file.close().await?;
    written?;
    std::fs::rename(temporary, path)?;
    sync(path.parent().unwrap_or(path)).await
}

async fn zero(file: &DmaFile, header: &SegmentHeader) -> io::Result<()> {
    let mut block = file.alloc_dma_buffer(LOG_BLOCK);
    block.as_bytes_mut().copy_from_slice(&header.encode());
    write_whole(file.write_at(block, 0).await?, LOG_BLOCK)?;
    let mut piece = file.alloc_dma_buffer(PIECE as usize);
    piece.as_bytes_mut().fill(0);
    let piece = Rc::new(piece);
    let mut at = LOG_BLOCK as u64;
    while at < header.bytes {
        let len = (header.bytes - at).min(PIECE);
        if len == PIECE {
            write_whole(file.write_rc_at(piece.clone(), at).await?, PIECE as usize)?;
        } else {
            let mut rest = file.alloc_dma_buffer(len as usize);
            rest.as_bytes_mut().fill(0);
            write_whole(file.write_at(rest, at).await?, len as usize)?;
        }
        at += len;
    }
    Ok(file.fdatasync().await?)
}

fn write_whole(written: usize, len: usize) -> io::Result<()> {
    if written == len { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
}

async fn sync(dir: &Path) -> io::Result<()> {
    let dir = Directory::open(dir).await?;
    dir.sync().await?;
    Ok(dir.close().await?)
}
