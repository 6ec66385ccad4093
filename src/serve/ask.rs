//! Questions to running shards: whoever asks waits on its own thread, neither the control thread
//! nor a shard does.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::control::Order;
use crate::position::ShardId;
use crate::shard::look::{Look, Seen};

/// How long shards may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// How often whoever waits looks for answers.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Answers that are on their way.
pub(super) struct Asked(pub Vec<(ShardId, rtrb::Consumer<Seen>)>);

/// What the shards said; `None` for one that did not answer in time.
pub(super) type Answers = Vec<(ShardId, Option<Seen>)>;

impl Asked {
    fn is_over(&self) -> bool {
        // A ring whose other end is gone holds the answer, or never will.
        self.0.iter().all(|(_, from)| !from.is_empty() || from.is_abandoned())
    }

    fn take(self) -> Answers {
        self.0.into_iter().map(|(shard, mut from)| (shard, from.pop().ok())).collect()
    }
}

/// The server starts or stops, so nobody answers.
#[derive(Debug, thiserror::Error)]
#[error("the server is starting or stopping")]
pub(super) struct NotRunning;

/// Who may ask.
#[derive(Clone, Debug)]
pub(super) struct Asker(pub Sender<Order>);

impl Asker {
    fn send(&self, look: Look, only: Option<ShardId>) -> oneshot::Receiver<Asked> {
        let (to, from) = oneshot::channel();
        // If nobody takes orders any more, the channel says so.
        let _ = self.0.send(Order::Look(look, only, to));
        from
    }

    /// Asks all shards, or one, and waits in a task.
    pub async fn ask(&self, look: Look, only: Option<ShardId>) -> Result<Answers, NotRunning> {
        let asked = self.send(look, only).await.map_err(|_| NotRunning)?;
        let deadline = Instant::now() + ANSWER_TIME;
        while !asked.is_over() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(asked.take())
    }

    /// The same on a thread that may block.
    pub fn ask_blocking(&self, look: Look, only: Option<ShardId>) -> Result<Answers, NotRunning> {
        let asked = self.send(look, only).blocking_recv().map_err(|_| NotRunning)?;
        let deadline = Instant::now() + ANSWER_TIME;
        while !asked.is_over() && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(asked.take())
    }
}
