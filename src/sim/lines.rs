//! What a simulated client publishes to a group: one line of messages, numbered without a
//! hole. It sends in the order of the numbers, and what was not answered again before
//! anything new. After a refusal it waits until all it has under way is answered, then it
//! begins again where the line begins. Once a group has forgotten the client's producer, only what
//! the old producer id alone can settle is sent, and then the lines begin again under a new one.

use std::collections::VecDeque;

use super::client::{Client, Pending, group_name};
use super::oracle::{Oracle, Violation};
use super::rng::Rng;
use super::trace::{Fault, Note};
use crate::position::Level;
use crate::wire::{ErrorCode, ErrorFrame, Publish, Published};

/// Refused messages that the client gives up instead of sending them again, in a million.
const GIVEN_UP_PPM: u32 = 300_000;
/// Messages that an impatient client sends twice at once, in a million.
const TWICE_PPM: u32 = 100_000;

#[derive(Clone, Copy, Debug)]
struct Item {
    id: u64,
    /// It is under way on this connection.
    request: Option<u32>,
    /// It was sent and the answer never came, or did not say.
    unsure: bool,
    /// It was refused for certain, the last time.
    refused: bool,
    /// Someone had it when it was sent again.
    known: bool,
    /// It was refused for its length, so it is given up.
    too_long: bool,
}

impl Item {
    fn new(id: u64) -> Self {
        Self { id, request: None, unsure: false, refused: false, known: false, too_long: false }
    }
}

/// The messages of one client in one group that have no answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    /// Number of the message before the first item.
    answered: u64,
    /// Largest number that was answered as being on disk.
    durable: u64,
    items: VecDeque<Item>,
    under_way: usize,
    /// Something was refused.
    blocked: bool,
    /// The group does not know the client, so nobody can say what became of what it sent.
    forgotten: bool,
}

impl Line {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn at(&mut self, request: u32) -> Option<usize> {
        self.items.iter().position(|item| item.request == Some(request))
    }

    /// Forgets what nobody can say anything of any more, once nothing is under way.
    fn give_up_forgotten(&mut self) {
        if self.under_way == 0 && std::mem::take(&mut self.forgotten) {
            self.items.retain(|item| !item.unsure);
        }
    }

    /// The line goes on under another producer id, so its numbers begin again.
    pub fn begin_again(&mut self) {
        (self.answered, self.durable) = (0, 0);
        self.blocked = false;
    }
}

impl Client {
    /// Puts a new message at the end of a line.
    pub(super) fn new_publish(
        &mut self,
        group: usize,
        level: Level,
        rng: &mut Rng,
        oracle: &mut Oracle,
    ) {
        let id = oracle.new_message(self.index, group, level);
        if rng.chance(self.profile.receipt_ppm) {
            let percent = if rng.flip() { 100 } else { [1, 50, 75, 99][rng.index(4)] };
            oracle.wants_receipt(id, percent);
        }
        self.lines[group].items.push_back(Item::new(id));
    }

    /// Puts a message at the end of a line that no server takes. Those behind it must not get a
    /// place before the client gave its number to another message.
    pub(super) fn new_too_long(&mut self, group: usize, level: Level, oracle: &mut Oracle) {
        let id = oracle.new_message(self.index, group, level);
        oracle.lengthen(id, self.payload_max + 1);
        self.lines[group].items.push_back(Item::new(id));
    }

    /// Sends what a line holds, in order.
    pub(super) fn send_line(&mut self, group: usize, rng: &mut Rng, oracle: &mut Oracle) {
        let line = &mut self.lines[group];
        if line.blocked && line.under_way > 0 {
            return;
        }
        line.blocked = false;
        line.give_up_forgotten();
        let end = if self.renewing {
            line.items.iter().rposition(|item| item.unsure).map_or(0, |last| last + 1)
        } else {
            line.items.len()
        };
        for n in line.under_way..end {
            self.give_up(group, n, rng, oracle);
            let request = self.request();
            let line = &mut self.lines[group];
            let producer_seq = line.answered + 1 + n as u64;
            let twice = !self.profile.reader && rng.chance(TWICE_PPM);
            let item = &mut line.items[n];
            if item.unsure || item.refused {
                oracle.fault(Fault::Republished);
                item.known = oracle.is_known(item.id);
            }
            item.request = Some(request);
            item.refused = false;
            // Whatever becomes of the first one, the second one may be taken.
            item.unsure |= twice;
            line.under_way += 1;
            let id = item.id;
            oracle.sending(id);
            self.send_one(request, group, producer_seq, id, oracle);
            if twice {
                oracle.fault(Fault::SentTwice);
                let request = self.request();
                self.send_one(request, group, producer_seq, id, oracle);
                self.second.insert(request, (Pending { group, id }, producer_seq));
            }
            self.publishes.insert(request, Pending { group, id });
            oracle.note(Note::Publish { client: self.index, group, request, id });
        }
    }

    fn send_one(
        &mut self,
        request: u32,
        group: usize,
        producer_seq: u64,
        id: u64,
        oracle: &Oracle,
    ) {
        let sent = oracle.message(id);
        let (level, payload) = (Some(sent.level), &sent.payload);
        Publish {
            request,
            level,
            receipt: sent.receipt,
            producer_seq,
            group: &group_name(group),
            payload,
        }
        .encode(&mut self.out);
    }

    /// Takes the answer to what was sent for a second time at once; whether it is one.
    pub(super) fn second_answered(
        &mut self,
        p: &Published,
        oracle: &mut Oracle,
    ) -> Result<bool, Violation> {
        let Some((Pending { group, id }, producer_seq)) = self.second.remove(&p.request) else {
            return Ok(false);
        };
        if p.producer_seq != producer_seq {
            return Err(format!("number {producer_seq} was asked for"));
        }
        let line = &mut self.lines[group];
        if line.answered + 1 == producer_seq && line.items.front().is_some_and(|i| i.refused) {
            // The first one was refused, and then there was room.
            line.items.pop_front();
            line.answered += 1;
            if p.level == Level::Durable {
                line.durable = line.answered;
            }
        }
        oracle.answered((group, p.epoch.0, p.seq.0), p.handle, id, p.level)?;
        Ok(true)
    }

    /// Whether no message is left of which only the producer id can tell whether it was taken.
    pub(super) fn lines_are_settled(&mut self) -> bool {
        self.lines.iter_mut().for_each(Line::give_up_forgotten);
        let settled = |line: &Line| line.under_way == 0 && line.items.iter().all(|i| !i.unsure);
        self.second.is_empty() && self.lines.iter().all(settled)
    }

    /// Perhaps another message takes the number of one that was refused for certain.
    fn give_up(&mut self, group: usize, n: usize, rng: &mut Rng, oracle: &mut Oracle) {
        let item = &mut self.lines[group].items[n];
        if item.refused && !item.unsure && (item.too_long || rng.chance(GIVEN_UP_PPM)) {
            oracle.fault(Fault::GivenUp);
            oracle.given_up(item.id);
            let level = oracle.message(item.id).level;
            *item = Item::new(oracle.new_message(self.index, group, level));
        }
    }

    /// The connection is gone; what had no answer never gets one.
    pub(super) fn lines_cut(&mut self) {
        self.publishes.clear();
        self.second.clear();
        for line in &mut self.lines {
            for item in &mut line.items {
                item.unsure |= item.request.take().is_some();
            }
            line.under_way = 0;
            line.blocked = false;
        }
    }

    /// Takes a PUBLISHED off its line.
    pub(super) fn line_answered(
        &mut self,
        group: usize,
        p: &Published,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let line = &mut self.lines[group];
        let Some(n) = line.at(p.request) else { return Err("it is not under way".to_owned()) };
        // One that was refused on this connection may have been taken on the one before meanwhile.
        if !line.items.iter().take(n).all(|item| item.refused && item.unsure) {
            return Err("a publish before this one has no place".to_owned());
        }
        line.items.drain(..n);
        line.answered += n as u64;
        let Some(item) = line.items.pop_front() else { return Ok(()) };
        line.under_way -= 1;
        line.answered += 1;
        if p.producer_seq != line.answered {
            return Err(format!("number {} was asked for", line.answered));
        }
        if p.level == Level::Durable {
            line.durable = line.answered;
        }
        if item.known {
            oracle.fault(Fault::AnsweredAgain);
        }
        Ok(())
    }

    /// Takes the refusal of a publish.
    pub(super) fn line_refused(
        &mut self,
        Pending { group, id }: Pending,
        e: &ErrorFrame<'_>,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let line = &mut self.lines[group];
        let Some(n) = line.at(e.request) else {
            return Err(format!("message {id} is not under way"));
        };
        let number = line.answered + 1 + n as u64;
        line.under_way -= 1;
        if e.code == ErrorCode::ProducerSeqTooOld as u16 && n == 0 && line.items[0].unsure {
            // It has or had a place, and nobody can say which.
            line.items.pop_front();
            line.answered += 1;
            return Ok(());
        }
        line.blocked = true;
        let item = &mut line.items[n];
        item.request = None;
        item.refused = true;
        match ErrorCode::from_number(e.code) {
            Some(ErrorCode::PayloadTooLong) => {
                oracle.fault(Fault::RefusedTooLong);
                // No sending of it was ever taken, whatever became of it.
                (item.too_long, item.unsure) = (true, false);
            }
            Some(ErrorCode::StorageFull) => oracle.fault(Fault::RefusedFull),
            Some(ErrorCode::StorageFailed) => oracle.fault(Fault::RefusedFailed),
            Some(ErrorCode::Draining | ErrorCode::ReceiptsRefused | ErrorCode::TooManyShares) => {}
            Some(ErrorCode::Indeterminate) => {
                oracle.fault(Fault::Indeterminate);
                item.unsure = true;
                item.refused = false;
            }
            Some(ErrorCode::ProducerGap | ErrorCode::UnknownProducer) => {
                oracle.fault(Fault::RefusedGap);
                let forgotten = oracle.rotten;
                if e.limit >= number || (e.limit <= line.durable && !forgotten) {
                    return Err(format!("number {} is on disk, this is {number}", line.durable));
                }
                let unknown = e.code == ErrorCode::UnknownProducer as u16;
                let had_some = line.answered > 0 || line.items.iter().any(|item| item.unsure);
                if unknown && had_some {
                    // Number 1 of this id may come to the server yet, or be in the log.
                    line.forgotten = true;
                    self.renewing = true;
                } else {
                    // What was answered at level memory was lost: its numbers are free again.
                    line.answered = line.answered.min(e.limit - 1);
                }
            }
            code => return Err(format!("a publish was refused with {code:?}")),
        }
        Ok(())
    }
}
