//! What a run found wrong.

use std::fmt;

use serde::Serialize;

/// Kinds of findings. Each fails the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A message that should have come did not.
    Lost,
    /// A message came again.
    Duplicate,
    /// A message came after a later one.
    Reordered,
    /// Bytes differ from what was published, or from what others got.
    Corrupt,
    /// A connection ended during the run.
    Closed,
    /// The server answered a publish with an error, or not at all.
    Unanswered,
    /// An answer that contradicts what was asked or delivered.
    WrongAnswer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Duplicate => "duplicate",
            Self::Reordered => "reordered",
            Self::Corrupt => "corrupt",
            Self::Closed => "closed",
            Self::Unanswered => "unanswered",
            Self::WrongAnswer => "wrong answer",
        })
    }
}

/// How many findings are kept in words; the others are counted.
const DETAILS_MAX: usize = 20;

/// Findings of one thread, or of a whole run.
#[derive(Debug, Default, Serialize)]
pub struct Violations {
    /// Lost messages, counted per member.
    pub lost: u64,
    /// Messages that came twice.
    pub duplicate: u64,
    /// Messages out of order.
    pub reordered: u64,
    /// Messages with wrong bytes.
    pub corrupt: u64,
    /// Connections that ended.
    pub closed: u64,
    /// Publishes without a positive answer.
    pub unanswered: u64,
    /// Answers that contradict.
    pub wrong_answer: u64,
    /// The first findings, in words.
    pub details: Vec<String>,
}

impl Violations {
    /// Counts `n` findings of one kind that `detail` describes.
    pub fn add(&mut self, kind: Kind, n: u64, detail: impl FnOnce() -> String) {
        *match kind {
            Kind::Lost => &mut self.lost,
            Kind::Duplicate => &mut self.duplicate,
            Kind::Reordered => &mut self.reordered,
            Kind::Corrupt => &mut self.corrupt,
            Kind::Closed => &mut self.closed,
            Kind::Unanswered => &mut self.unanswered,
            Kind::WrongAnswer => &mut self.wrong_answer,
        } += n;
        if self.details.len() < DETAILS_MAX {
            self.details.push(format!("{kind}: {}", detail()));
        }
    }

    /// Number of all findings.
    pub fn total(&self) -> u64 {
        self.lost
            + self.duplicate
            + self.reordered
            + self.corrupt
            + self.closed
            + self.unanswered
            + self.wrong_answer
    }

    /// Takes over the findings of another thread.
    pub fn merge(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicate += other.duplicate;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.closed += other.closed;
        self.unanswered += other.unanswered;
        self.wrong_answer += other.wrong_answer;
        let room = DETAILS_MAX.saturating_sub(self.details.len());
        self.details.extend(other.details.into_iter().take(room));
    }
}
