//! Publishes of one group that have no answer yet, in order, and their numbers.
//!
//! The server takes the numbers of a producer in a group without holes. So the number of a
//! publish is its place in this queue: a publish that is refused leaves the queue, and those
//! behind it, which the server cannot have taken, move up.

use std::collections::VecDeque;

use super::event::PublishId;
use super::options::Publishing;
use crate::position::Nanos;

/// Numbers of a [`super::Resume`] are taken up to here, so that none can overflow.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// Where a publish is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be sent on this connection.
    Waiting,
    /// Sent on this connection, no answer yet.
    Sent,
    /// Its number is taken, but a publish before it has no answer yet.
    Done,
}

/// A publish.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: PublishId,
    pub payload: Box<[u8]>,
    pub how: Publishing,
    state: State,
    /// It was sent on an earlier connection, or by an earlier process, without an answer.
    doubtful: bool,
    /// The number under which it was sent last.
    sent_as: u64,
}

/// When the next publish may be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Hold {
    #[default]
    No,
    Until(Nanos),
    Reconnect,
}

/// Why the server did not take a publish that is to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Returned {
    /// Not now.
    Held,
    /// It is in the log or not; when it is sent again, the answer tells.
    Indeterminate,
    /// This number is expected first.
    Expected(u64),
    /// The producer is not known in the group.
    Unknown,
    /// The producer id belongs to another member.
    Foreign,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Producer {
    /// Number of the first publish in the queue.
    base: u64,
    /// Numbers below it may have been sent by an earlier process.
    used: u64,
    queue: VecDeque<Entry>,
    /// Publishes from the front that were sent on this connection.
    sent: usize,
    /// Those of them that have no answer.
    in_flight: usize,
    /// One came back: nothing more is sent until all have their answer.
    returned: Option<Returned>,
    /// One came back although its number was right.
    stuck: bool,
    /// When what may be in the group as number 1 was sent first, by this process.
    first_sent: Option<Nanos>,
    pub hold: Hold,
}

/// What happened to the publishes of a group.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// May be in the group or not; they are given up.
    pub in_doubt: Vec<(PublishId, usize)>,
    /// The producer cannot go on under this id: the server has forgotten it, or it is another's.
    pub forgotten: bool,
    /// The server expects what it was given before: it makes no progress.
    pub stuck: bool,
}

impl Producer {
    /// An empty queue whose next publish has number `base`; numbers below `used` may have been
    /// sent before.
    pub fn new(base: u64, used: u64) -> Self {
        Self {
            base: base.clamp(1, NUMBER_MAX),
            used: used.min(NUMBER_MAX),
            queue: VecDeque::new(),
            sent: 0,
            in_flight: 0,
            returned: None,
            stuck: false,
            first_sent: None,
            hold: Hold::No,
        }
    }

    /// The number of the oldest publish without an answer, and the next one that was never
    /// used: what a [`super::Resume`] keeps.
    pub fn numbers(&self) -> (u64, u64) {
        (self.base, self.used.max(self.base + self.queue.len() as u64))
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn push(&mut self, id: PublishId, payload: Box<[u8]>, how: Publishing) {
        let number = self.base + self.queue.len() as u64;
        let doubtful = number < self.used;
        self.queue.push_back(Entry {
            id,
            payload,
            how,
            state: State::Waiting,
            doubtful,
            sent_as: 0,
        });
    }

    /// Takes the next publish to send and its number, if it may be sent now; `old` takes only
    /// what may have been taken before.
    pub fn send_next(&mut self, window: usize, old: bool, now: Nanos) -> Option<(u64, &Entry)> {
        if self.hold != Hold::No || self.returned.is_some() || self.in_flight >= window {
            return None;
        }
        while self.queue.get(self.sent)?.state == State::Done {
            self.sent += 1;
        }
        let number = self.base + self.sent as u64;
        let entry = self.queue.get_mut(self.sent)?;
        if old && !entry.doubtful {
            return None;
        }
        if number == 1 && !entry.doubtful {
            self.first_sent = Some(now);
        }
        entry.state = State::Sent;
        entry.sent_as = number;
        self.sent += 1;
        self.in_flight += 1;
        Some((number, entry))
    }

    /// The number of publish `id`, if it was sent on this connection and has no answer.
    pub fn number_of(&self, id: PublishId) -> Option<u64> {
        self.index(id).map(|index| self.base + index as u64)
    }

    fn index(&self, id: PublishId) -> Option<usize> {
        // Mostly it is the oldest one.
        let index = match self.queue.front() {
            Some(front) if front.id == id => 0,
            _ => self.queue.binary_search_by_key(&id, |entry| entry.id).ok()?,
        };
        (self.queue.get(index)?.state == State::Sent).then_some(index)
    }

    /// The server has publish `id`; its number is used. Returns the length of its payload.
    pub fn taken(&mut self, id: PublishId) -> Option<usize> {
        let index = self.index(id)?;
        let entry = self.queue.get_mut(index)?;
        entry.state = State::Done;
        let len = std::mem::take(&mut entry.payload).len();
        self.in_flight -= 1;
        while self.queue.front().is_some_and(|entry| entry.state == State::Done) {
            self.queue.pop_front();
            self.base += 1;
            self.sent = self.sent.saturating_sub(1);
        }
        Some(len)
    }

    /// The server will never take publish `id`; the next one gets its number, unless an earlier
    /// sending had no answer and may have been taken: then the number stays used, and if it is
    /// not, the server says so to the next publish. Returns the length of its payload, and
    /// whether it is certain that it was not taken.
    pub fn refused(&mut self, id: PublishId) -> Option<(usize, bool)> {
        let index = self.index(id)?;
        if self.queue.get(index)?.doubtful {
            return Some((self.taken(id)?, false));
        }
        let entry = self.queue.remove(index)?;
        self.in_flight -= 1;
        self.sent -= 1;
        Some((entry.payload.len(), true))
    }

    /// The server did not take publish `id`, which is to be sent again.
    pub fn returned(&mut self, id: PublishId, why: Returned) {
        let Some(entry) = self.index(id).and_then(|index| self.queue.get_mut(index)) else {
            return;
        };
        entry.state = State::Waiting;
        entry.doubtful |= why == Returned::Indeterminate;
        // It is what was expected, or cannot be less.
        let refused = Returned::Expected(entry.sent_as);
        self.stuck |= why == refused || why == Returned::Unknown && entry.sent_as == 1;
        self.in_flight -= 1;
        // The first one says why; those behind it come back because it did.
        self.returned.get_or_insert(why);
    }

    /// Once all that was sent has its answer: makes ready to send again what came back.
    pub fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        if self.in_flight > 0 {
            return settled;
        }
        let Some(why) = self.returned.take() else { return settled };
        match why {
            Returned::Held | Returned::Indeterminate => {}
            // It lost what it had answered. What is in the queue was never taken, since there
            // are no holes.
            Returned::Expected(number) => self.base = number.clamp(1, self.base),
            // Number 1 of this id could be a copy after a crash, which reads both from the log.
            Returned::Unknown if self.stuck => {}
            Returned::Unknown | Returned::Foreign => {
                settled.in_doubt = self.give_up_doubtful();
                settled.forgotten = true;
            }
        }
        settled.stuck = std::mem::take(&mut self.stuck);
        self.sent = 0;
        settled
    }

    /// Gives up what may have been taken by a server that cannot tell any more.
    fn give_up_doubtful(&mut self) -> Vec<(PublishId, usize)> {
        let mut given_up = Vec::new();
        while self.queue.front().is_some_and(|entry| entry.doubtful) {
            if let Some(entry) = self.queue.pop_front() {
                given_up.push((entry.id, entry.payload.len()));
            }
        }
        given_up
    }

    /// A new connection. Of a producer that did not publish for long the server may forget all. It
    /// would say so, but for number 1, which it would take as new: gives up what would be sent again
    /// as that, later than `safe_ms` after it was sent first.
    pub fn away(&mut self, now: Nanos, safe_ms: u64) -> Settled {
        let late = self.first_sent.is_some_and(|at| at.plus_ms(safe_ms) < now);
        let doubtful = self.queue.front().is_some_and(|entry| entry.doubtful);
        let at_risk = late && self.base == 1 && doubtful;
        let in_doubt = if at_risk { self.give_up_doubtful() } else { Vec::new() };
        Settled { in_doubt, forgotten: at_risk, stuck: false }
    }

    /// Whether nothing is left of which only this producer id can tell whether it was taken.
    pub fn may_renew(&self) -> bool {
        self.in_flight == 0 && !self.queue.iter().any(|entry| entry.doubtful)
    }

    /// Begins again at 1 under a new producer id.
    pub fn renew(&mut self) {
        self.queue.retain(|entry| entry.state != State::Done);
        (self.base, self.used, self.sent) = (1, 1, 0);
        (self.returned, self.stuck) = (None, false);
    }

    /// The connection is gone: all that has no answer is sent again on the next one.
    pub fn disconnected(&mut self) {
        for entry in self.queue.iter_mut().take(self.sent) {
            if entry.state == State::Sent {
                entry.state = State::Waiting;
                entry.doubtful = true;
            }
        }
        (self.sent, self.in_flight, self.returned, self.stuck) = (0, 0, None, false);
        if self.hold == Hold::Reconnect {
            self.hold = Hold::No;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn with(count: u64) -> Producer {
        let mut producer = Producer::new(1, 1);
        for id in 1..=count {
            producer.push(PublishId(id), Box::new([id as u8]), Publishing::default());
        }
        producer
    }

    fn send(producer: &mut Producer, window: usize) -> Vec<(u64, u64)> {
        let mut sent = Vec::new();
        while let Some((number, entry)) = producer.send_next(window, false, Nanos(1)) {
            sent.push((number, entry.id.0));
        }
        sent
    }

    #[test]
    fn numbers_are_contiguous_and_the_window_bounds_what_is_in_flight() {
        let mut p = with(5);
        assert_eq!(send(&mut p, 2), [(1, 1), (2, 2)]);
        assert_eq!(p.taken(PublishId(1)), Some(1));
        assert_eq!(send(&mut p, 2), [(3, 3)]);
        assert_eq!(p.numbers(), (2, 6));
    }

    #[test]
    fn what_has_no_answer_is_sent_again_before_what_is_new_with_the_same_numbers() {
        let mut p = with(4);
        send(&mut p, 3);
        p.taken(PublishId(1));
        p.disconnected();
        assert_eq!(send(&mut p, 9), [(2, 2), (3, 3), (4, 4)]);
    }

    #[test]
    fn a_refused_publish_gives_its_number_to_the_next_one_after_all_have_their_answers() {
        let mut p = with(4);
        send(&mut p, 9);
        assert_eq!(p.taken(PublishId(1)), Some(1));
        assert_eq!(p.refused(PublishId(2)), Some((1, true)));
        p.returned(PublishId(3), Returned::Expected(2));
        assert_eq!(send(&mut p, 9), [], "4 has no answer yet");
        assert_eq!(p.settle(), Settled::default());
        p.returned(PublishId(4), Returned::Expected(2));
        assert!(p.settle().in_doubt.is_empty());
        assert_eq!(send(&mut p, 9), [(2, 3), (3, 4)]);
    }

    #[test]
    fn a_refused_publish_that_may_be_in_the_group_keeps_its_number() {
        // Taken on the connection before, refused on this one: the next number is free.
        let mut p = with(2);
        send(&mut p, 1);
        p.disconnected();
        assert_eq!(send(&mut p, 9), [(1, 1), (2, 2)]);
        assert_eq!(p.refused(PublishId(1)), Some((1, false)));
        assert_eq!(p.taken(PublishId(2)), Some(1));
        assert_eq!(p.numbers(), (3, 3));
        // Not taken: the server asks for its number.
        let mut p = with(2);
        send(&mut p, 1);
        p.disconnected();
        send(&mut p, 9);
        p.refused(PublishId(1));
        p.returned(PublishId(2), Returned::Expected(1));
        assert_eq!(p.settle(), Settled::default());
        assert_eq!(send(&mut p, 9), [(1, 2)]);
    }

    #[test]
    fn a_server_that_lost_what_it_had_answered_gets_the_numbers_that_it_expects() {
        let mut p = with(4);
        send(&mut p, 2);
        p.taken(PublishId(1));
        p.taken(PublishId(2));
        p.disconnected();
        assert_eq!(send(&mut p, 1), [(3, 3)]);
        p.returned(PublishId(3), Returned::Expected(1));
        assert_eq!(p.settle(), Settled::default());
        assert_eq!(send(&mut p, 9), [(1, 3), (2, 4)]);
    }

    #[test]
    fn a_forgotten_producer_gives_up_what_may_have_been_taken_and_starts_again_as_another() {
        let mut p = with(4);
        send(&mut p, 3);
        p.taken(PublishId(1));
        p.disconnected();
        send(&mut p, 9);
        for id in 2..=4 {
            p.returned(PublishId(id), Returned::Unknown);
        }
        // 2 and 3 were sent on the connection before, 4 was not.
        let settled = p.settle();
        assert_eq!(settled.in_doubt, [(PublishId(2), 1), (PublishId(3), 1)]);
        assert!(settled.forgotten && p.may_renew());
        assert!(p.send_next(9, true, Nanos(1)).is_none(), "new ones wait for the new id");
        p.renew();
        assert_eq!(send(&mut p, 9), [(1, 4)]);
        assert_eq!(p.numbers(), (1, 2));
    }

    #[test]
    fn what_only_the_old_id_can_settle_is_sent_under_it_and_the_rest_waits() {
        let mut p = with(3);
        send(&mut p, 2);
        p.taken(PublishId(1));
        p.returned(PublishId(2), Returned::Indeterminate);
        p.settle();
        assert!(!p.may_renew(), "2 is taken or not");
        assert_eq!(
            p.send_next(9, true, Nanos(1)).map(|(n, entry)| (n, entry.id)),
            Some((2, PublishId(2)))
        );
        assert!(p.send_next(9, true, Nanos(1)).is_none());
        assert!(!p.may_renew());
        p.taken(PublishId(2));
        assert!(p.may_renew());
        p.renew();
        assert_eq!(send(&mut p, 9), [(1, 3)]);
    }

    #[test]
    fn what_an_earlier_process_may_have_sent_is_in_doubt_too() {
        let mut p = Producer::new(7, 8);
        p.push(PublishId(1), Box::new([]), Publishing::default());
        p.push(PublishId(2), Box::new([]), Publishing::default());
        assert_eq!(send(&mut p, 9), [(7, 1), (8, 2)]);
        p.returned(PublishId(1), Returned::Unknown);
        p.returned(PublishId(2), Returned::Unknown);
        assert_eq!(p.settle().in_doubt, [(PublishId(1), 0)]);
        p.renew();
        assert_eq!(send(&mut p, 9), [(1, 2)]);
    }

    #[test]
    fn a_server_that_expects_what_it_refuses_does_not_make_a_busy_loop() {
        let mut p = with(1);
        send(&mut p, 9);
        p.returned(PublishId(1), Returned::Expected(1));
        assert!(p.settle().stuck);
        send(&mut p, 9);
        p.returned(PublishId(1), Returned::Unknown);
        assert!(p.settle().stuck);
    }

    #[test]
    fn a_held_group_sends_nothing_until_it_may() {
        let mut p = with(2);
        send(&mut p, 1);
        p.returned(PublishId(1), Returned::Held);
        p.hold = Hold::Until(Nanos(5));
        p.settle();
        assert_eq!(send(&mut p, 9), []);
        p.hold = Hold::No;
        assert_eq!(send(&mut p, 9), [(1, 1), (2, 2)]);
        p.hold = Hold::Reconnect;
        p.disconnected();
        assert_eq!(send(&mut p, 9), [(1, 1), (2, 2)]);
    }
}
