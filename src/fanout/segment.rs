//! A segment of a tail: whole DELIVER frames, encoded once, sent to every member as they are.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;

use crate::position::Seq;
use crate::ws::encode::Header;

/// Bytes that segments hold beside those that tails count. Local to a shard.
#[derive(Clone, Debug, Default)]
pub struct PinGauge(Rc<Gauges>);

#[derive(Debug, Default)]
struct Gauges {
    pinned: Cell<u64>,
    encoded: Cell<u64>,
}

impl PinGauge {
    /// Bytes of segments that left their tail but are still held by unfinished writes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.pinned.get()
    }

    /// Bytes that an unfinished write alone holds.
    pub fn pin(&self, bytes: usize) {
        self.0.pinned.set(self.0.pinned.get() + bytes as u64);
    }

    /// That write has ended.
    pub fn unpin(&self, bytes: usize) {
        self.0.pinned.set(self.0.pinned.get() - bytes as u64);
    }

    /// Bytes of the other encodings of segments that are in a tail.
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        self.0.encoded.get()
    }
}

/// Other encodings of a segment than the native one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// WebSocket text messages with a JSON object each.
    Json,
    /// The same, compressed.
    JsonDeflated,
    /// One WebSocket binary message with all its frames, compressed.
    BinaryDeflated,
}

impl Form {
    const COUNT: usize = 3;
}

/// Immutable run of encoded frames of one group.
///
/// The bytes are shared between shards by one reference count per (segment, shard); within
/// a shard writes hold a [`SegmentRef`], whose count is not atomic.
#[derive(Debug)]
pub struct Segment {
    bytes: Bytes,
    first: Seq,
    last: Seq,
    place: Cell<Place>,
    gauge: PinGauge,
    /// The same messages in other encodings, made for the first member that needs them.
    encodings: RefCell<[Option<SegmentRef>; Form::COUNT]>,
}

/// Where the bytes of a segment count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In its tail.
    Tail,
    /// Beside a tail, as an encoding of one that is in it.
    Beside,
    /// In none: it is pinned.
    None,
}

/// Shard-local reference to a segment; what a write in flight holds.
pub type SegmentRef = Rc<Segment>;

impl Segment {
    /// A segment of the frames `first` to `last`.
    #[must_use]
    pub fn new(bytes: Bytes, first: Seq, last: Seq, gauge: &PinGauge) -> SegmentRef {
        debug_assert!(first <= last);
        Rc::new(Self {
            bytes,
            first,
            last,
            place: Cell::new(Place::Tail),
            gauge: gauge.clone(),
            encodings: RefCell::default(),
        })
    }

    /// The encoded frames.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Sequence number of the first frame.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.first
    }

    /// Sequence number of the last frame.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Its first messages, up to `last`, as a segment that is in no tail. The whole if it ends
    /// there or before.
    #[must_use]
    pub fn up_to(self: &Rc<Self>, last: Seq) -> SegmentRef {
        if last >= self.last || last < self.first {
            return self.clone();
        }
        let mut end = 0;
        for _ in self.first.0..=last.0 {
            let Some(len) = self.bytes.get(end..).and_then(<[u8]>::first_chunk::<4>) else {
                return self.clone();
            };
            end += 4 + u32::from_le_bytes(*len) as usize;
        }
        let part =
            Self::new(self.bytes.slice(..end.min(self.bytes.len())), self.first, last, &self.gauge);
        part.mark_evicted();
        part
    }

    /// The same messages in another encoding. `encode` appends it, and is called for the first
    /// who asks; the bytes stay as long as the segment is in its tail, or someone holds it.
    pub fn encoded(&self, form: Form, encode: impl FnOnce(&[u8], &mut Vec<u8>)) -> SegmentRef {
        let mut encodings = self.encodings.borrow_mut();
        let slot = &mut encodings[form as usize];
        if let Some(segment) = slot {
            return segment.clone();
        }
        let mut bytes = Vec::with_capacity(2 * self.bytes.len());
        encode(&self.bytes, &mut bytes);
        bytes.shrink_to_fit();
        let segment = Self::new(bytes.into(), self.first, self.last, &self.gauge);
        segment.move_to(if self.place.get() == Place::None { Place::None } else { Place::Beside });
        slot.insert(segment).clone()
    }

    /// Counts this segment as pinned from now until its last reference goes. It lets go of its
    /// other encodings, which do the same.
    pub fn mark_evicted(&self) {
        self.move_to(Place::None);
        for encoding in self.encodings.take().iter().flatten() {
            encoding.mark_evicted();
        }
    }

    fn move_to(&self, place: Place) {
        let len = self.bytes.len() as u64;
        if let Some(counter) = self.counter() {
            counter.set(counter.get() - len);
        }
        self.place.set(place);
        if let Some(counter) = self.counter() {
            counter.set(counter.get() + len);
        }
    }

    /// What counts its bytes, if its tail does not.
    fn counter(&self) -> Option<&Cell<u64>> {
        match self.place.get() {
            Place::Tail => None,
            Place::Beside => Some(&self.gauge.0.encoded),
            Place::None => Some(&self.gauge.0.pinned),
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if let Some(counter) = self.counter() {
            counter.set(counter.get() - self.bytes.len() as u64);
        }
    }
}

/// One part of a socket write. But for a header it is whole frames.
#[derive(Debug)]
pub enum Part {
    /// Frames of a tail or of catch-up, shared with other members.
    Frames(SegmentRef),
    /// Control frames of this connection alone. The driver takes the buffer back for reuse.
    Control(Vec<u8>),
    /// Begins a WebSocket message, which holds the parts that follow it.
    Header(Header),
}

impl Part {
    /// The bytes to write.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Frames(segment) => segment.bytes(),
            Self::Control(bytes) => bytes,
            Self::Header(header) => header.as_slice(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_segment_holds_whole_frames_up_to_its_last() {
        let mut bytes = Vec::new();
        for len in [5_u32, 0, 300, 7] {
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend(std::iter::repeat_n(len as u8, len as usize));
        }
        let gauge = PinGauge::default();
        let whole = Segment::new(bytes.into(), Seq(10), Seq(13), &gauge);
        let part = whole.up_to(Seq(11));
        assert_eq!((part.first(), part.last(), part.bytes().len()), (Seq(10), Seq(11), 13));
        assert_eq!(whole.up_to(Seq(12)).bytes().len(), 13 + 304);
        for last in [9, 13, 20] {
            assert!(Rc::ptr_eq(&whole.up_to(Seq(last)), &whole), "{last}");
        }
        assert_eq!(gauge.bytes(), 13, "a part is in no tail");
        drop(part);
        assert_eq!(gauge.bytes(), 0);
        let broken = Segment::new(vec![255, 255, 255].into(), Seq(1), Seq(2), &gauge);
        assert!(Rc::ptr_eq(&broken.up_to(Seq(1)), &broken));
    }

    #[test]
    fn an_encoding_is_made_once_and_goes_with_its_segment() {
        let gauge = PinGauge::default();
        let segment = Segment::new(vec![1; 10].into(), Seq(1), Seq(2), &gauge);
        let twice = |bytes: &[u8], out: &mut Vec<u8>| out.extend(bytes.repeat(2));
        let json = segment.encoded(Form::Json, twice);
        assert_eq!((json.bytes().len(), json.first(), json.last()), (20, Seq(1), Seq(2)));
        let again = segment.encoded(Form::Json, |_, _| unreachable!("it is there"));
        assert!(Rc::ptr_eq(&json, &again));
        assert_eq!((gauge.bytes(), gauge.encoded_bytes()), (0, 20));
        drop(again);
        segment.mark_evicted();
        assert_eq!((gauge.bytes(), gauge.encoded_bytes()), (30, 0), "a write holds it");
        drop(json);
        assert_eq!(gauge.bytes(), 10);
        // History is in no tail; its encoding is shared all the same.
        let first = segment.encoded(Form::Json, twice);
        assert!(Rc::ptr_eq(&first, &segment.encoded(Form::Json, twice)));
        assert_eq!((gauge.bytes(), gauge.encoded_bytes()), (30, 0));
        drop(segment);
        drop(first);
        assert_eq!((gauge.bytes(), gauge.encoded_bytes()), (0, 0));
        let unevicted = Segment::new(vec![1; 10].into(), Seq(1), Seq(2), &gauge);
        unevicted.encoded(Form::Json, twice);
        drop(unevicted);
        assert_eq!((gauge.bytes(), gauge.encoded_bytes()), (0, 0));
    }
}
