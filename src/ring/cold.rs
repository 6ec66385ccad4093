//! The cold executor: one thread of the process that does the slow work of all shards, as
//! asynchronous tasks on glommio. A shard hands a job over and gets the result back through
//! a ring of its own and its [`Waker`]; so its hot loop has one place where it blocks.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_util::StreamExt;
use glommio::io::{BufferedFile, Directory, DmaFile, OpenOptions};
use glommio::{GlommioError, LocalExecutorBuilder, Placement};

use super::log_io::errno;
use super::waker::Waker;
use crate::limits::LOG_BLOCK;
use crate::shard::Job;
use crate::wal::Step;

/// Jobs that one shard may have running.
pub(super) const JOBS_MAX: usize = 64;
/// Zeros are written in pieces of this size, so that commits get their turn at the disk.
const ZERO_PIECE: usize = 1024 * 1024;
/// Memory that glommio registers for its own reads and writes; jobs bring their own.
const IO_MEMORY: usize = 64 * 1024;
const RING_DEPTH: usize = 16;

/// Says which steps a job of the shard with this folder takes.
pub type StepsFn = Arc<dyn Fn(&Job, &Path) -> Vec<Step> + Send + Sync>;

/// The cold executor could not start.
#[derive(Debug, thiserror::Error)]
pub enum ColdError {
    /// No thread.
    #[error("cannot start the thread for cold work: {0}")]
    Thread(#[source] io::Error),
    /// No executor on it.
    #[error(
        "cannot start the executor for cold work: {0}. It needs io_uring and 512 KiB of locked \
         memory (`ulimit -l 512`)"
    )]
    Executor(String),
}

/// A finished job.
pub(super) type JobResult = (Job, Result<(), i32>);

/// What a shard brings along.
struct Shard {
    id: usize,
    dir: PathBuf,
    steps: StepsFn,
    results: rtrb::Producer<JobResult>,
    waker: Waker,
}

enum Order {
    Attach(Shard),
    Job(usize, Job),
    Stop,
}

/// The running cold executor; ends, after the jobs that run, when dropped.
#[derive(Debug)]
pub struct ColdExecutor {
    handle: ColdHandle,
    thread: Option<JoinHandle<()>>,
}

/// Gives a shard's driver access to the cold executor.
#[derive(Clone, Debug)]
pub struct ColdHandle {
    orders: UnboundedSender<Order>,
    shards: Arc<AtomicUsize>,
}

/// A shard's end.
pub(super) struct JobPort {
    shard: usize,
    orders: UnboundedSender<Order>,
    results: rtrb::Consumer<JobResult>,
    running: usize,
}

impl ColdExecutor {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ColdError`] if the thread or its executor cannot be made.
    pub fn start() -> Result<Self, ColdError> {
        let (orders, inbox) = unbounded();
        let (started, start) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("cold".into())
            .spawn(move || {
                let executor = LocalExecutorBuilder::new(Placement::Unbound)
                    .name("cold")
                    .io_memory(IO_MEMORY)
                    .ring_depth(RING_DEPTH)
                    .make();
                match executor {
                    Ok(executor) => {
                        let _ = started.send(Ok(()));
                        executor.run(serve(inbox));
                    }
                    Err(e) => drop(started.send(Err(e.to_string()))),
                }
            })
            .map_err(ColdError::Thread)?;
        start
            .recv()
            .unwrap_or_else(|_| Err("its thread ended".into()))
            .map_err(ColdError::Executor)?;
        let handle = ColdHandle { orders, shards: Arc::default() };
        Ok(Self { handle, thread: Some(thread) })
    }

    /// For the drivers.
    #[must_use]
    pub fn handle(&self) -> ColdHandle {
        self.handle.clone()
    }
}

impl Drop for ColdExecutor {
    fn drop(&mut self) {
        let _ = self.handle.orders.unbounded_send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl ColdHandle {
    pub(super) fn attach(&self, dir: &Path, steps: StepsFn, waker: Waker) -> JobPort {
        let id = self.shards.fetch_add(1, Ordering::Relaxed);
        let (producer, results) = rtrb::RingBuffer::new(JOBS_MAX);
        // glommio opens paths below descriptor -1, which openat(2) ignores for absolute ones and
        // refuses for others with EBADF.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let shard = Shard { id, dir, steps, results: producer, waker };
        let _ = self.orders.unbounded_send(Order::Attach(shard));
        JobPort { shard: id, orders: self.orders.clone(), results, running: 0 }
    }
}

impl JobPort {
    /// Starts a job; gives it back with an errno if too many run or the executor ended.
    pub fn start(&mut self, job: Job) -> Result<(), (Job, i32)> {
        // Bounds both the executor's inbox and the results, so that neither overflows.
        if self.running == JOBS_MAX {
            return Err((job, libc::EBUSY));
        }
        if let Err(e) = self.orders.unbounded_send(Order::Job(self.shard, job)) {
            return match e.into_inner() {
                Order::Job(_, job) => Err((job, libc::ESHUTDOWN)),
                Order::Attach(_) | Order::Stop => Ok(()),
            };
        }
        self.running += 1;
        Ok(())
    }

    /// The next finished job.
    #[inline]
    pub fn finished(&mut self) -> Option<JobResult> {
        if self.running == 0 {
            return None;
        }
        let result = self.results.pop().ok()?;
        self.running -= 1;
        Some(result)
    }
}

async fn serve(mut inbox: UnboundedReceiver<Order>) {
    let mut shards: Vec<Rc<RefCell<Shard>>> = Vec::new();
    let mut tasks = Vec::new();
    while let Some(order) = inbox.next().await {
        match order {
            Order::Attach(shard) => shards.push(Rc::new(RefCell::new(shard))),
            Order::Job(id, job) => {
                let Some(shard) = shards.iter().find(|s| s.borrow().id == id).cloned() else {
                    continue;
                };
                let task = glommio::spawn_local(async move {
                    let steps = {
                        let shard = shard.borrow();
                        (shard.steps)(&job, &shard.dir)
                    };
                    let result = run(steps).await;
                    let mut shard = shard.borrow_mut();
                    // Refused only if the shard is gone: it never starts more jobs than fit.
                    let _ = shard.results.push((job, result));
                    shard.waker.wake();
                });
                tasks.push(task.detach());
                // What ended a while ago need not be joined.
                if tasks.len() > JOBS_MAX {
                    tasks.remove(0);
                }
            }
            Order::Stop => break,
        }
    }
    for task in tasks {
        task.await;
    }
}

/// Carries out the steps of a job, up to the first that fails.
async fn run(steps: Vec<Step>) -> Result<(), i32> {
    for step in &steps {
        if let Err(error) = take(step).await {
            for step in &steps {
                if let Step::Create { path, .. } = step {
                    let _ = glommio::io::remove(path).await;
                }
            }
            return Err(code_of(&error));
        }
    }
    Ok(())
}

async fn take(step: &Step) -> Result<(), GlommioError<()>> {
    match step {
        Step::Create { path, head, bytes } => create(path, head, *bytes).await,
        Step::Append { path, at, bytes } => append(path, *at, bytes).await,
        Step::Sync { path } => {
            let file = BufferedFile::open(path).await?;
            let synced = file.fdatasync().await;
            file.close().await?;
            synced
        }
        Step::Rename { from, to } => glommio::io::rename(from, to).await,
        Step::Remove { path } => match glommio::io::remove(path).await {
            Err(e) if code_of(&e) == libc::ENOENT => Ok(()),
            other => other,
        },
        Step::SyncDir { dir } => sync_dir(dir).await,
    }
}

/// A segment is written around the page cache; what has another shape is small.
async fn create(path: &Path, head: &[u8], bytes: u64) -> Result<(), GlommioError<()>> {
    if head.len() == LOG_BLOCK && bytes.is_multiple_of(LOG_BLOCK as u64) {
        let file = DmaFile::create(path).await?;
        let filled = fill(&file, bytes, head).await;
        file.close().await?;
        return filled;
    }
    let file = BufferedFile::create(path).await?;
    let mut content = head.to_vec();
    content.resize(content.len().max(bytes as usize), 0);
    let len = content.len();
    let written = write(file.write_at(content, 0).await, len);
    file.close().await?;
    written
}

async fn append(path: &Path, at: u64, bytes: &[u8]) -> Result<(), GlommioError<()>> {
    let file = OpenOptions::new().write(true).buffered_open(path).await?;
    let written = write(file.write_at(bytes.to_vec(), at).await, bytes.len());
    file.close().await?;
    written
}

async fn fill(file: &DmaFile, bytes: u64, header: &[u8]) -> Result<(), GlommioError<()>> {
    // Finds out about a full disk at once and gets long extents; where it is not supported,
    // the writes below do the same piece by piece.
    if let Err(e) = file.pre_allocate(bytes, false).await
        && code_of(&e) == libc::ENOSPC
    {
        return Err(e);
    }
    let mut first = file.alloc_dma_buffer(LOG_BLOCK);
    first.as_bytes_mut().copy_from_slice(header);
    write(file.write_at(first, 0).await, LOG_BLOCK)?;
    let mut zeros = file.alloc_dma_buffer(ZERO_PIECE);
    zeros.as_bytes_mut().fill(0);
    let zeros = Rc::new(zeros);
    let mut offset = LOG_BLOCK as u64;
    while offset < bytes {
        let left = (bytes - offset).min(ZERO_PIECE as u64) as usize;
        if left == ZERO_PIECE {
            write(file.write_rc_at(zeros.clone(), offset).await, left)?;
        } else {
            let mut rest = file.alloc_dma_buffer(left);
            rest.as_bytes_mut().fill(0);
            write(file.write_at(rest, offset).await, left)?;
        }
        offset += left as u64;
        glommio::executor().yield_task_queue_now().await;
    }
    Ok(())
}

/// A write that is short is an error, as everywhere in the log.
fn write(result: Result<usize, GlommioError<()>>, len: usize) -> Result<(), GlommioError<()>> {
    if result? == len { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC).into()) }
}

async fn sync_dir(dir: &Path) -> Result<(), GlommioError<()>> {
    let dir = Directory::open(dir).await?;
    let synced = dir.sync().await;
    dir.close().await?;
    synced
}

fn code_of(error: &GlommioError<()>) -> i32 {
    match error {
        GlommioError::IoError(e) => errno(e),
        GlommioError::EnhancedIoError { source, .. } => errno(source),
        _ => libc::EIO,
    }
}
