//! What the codecs of all targets have in common.
//!
//! A codec looks at the start of the bytes and finds one whole frame, or says how many bytes it
//! needs. It keeps nothing between calls; the connection carries the bytes of a cut frame.

use fanfare::limits::PAYLOAD_MAX;

/// Longest line, name or list that is not a payload.
pub const LINE_MAX: usize = 4096;
/// Longest frame that is accepted.
pub const FRAME_MAX: usize = PAYLOAD_MAX + LINE_MAX;

/// What a frame says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Answers the last thing of the greeting: all that was asked for before is done.
    Ready,
    /// One subscription is in force.
    Subscribed,
    /// A message.
    Message {
        /// The group's name, if the frame has it.
        topic: Option<&'a [u8]>,
        /// What was published.
        payload: &'a [u8],
        /// The number that has to be acknowledged; 0 if nothing has to be.
        ack: u16,
    },
    /// A publish was taken.
    Answered(Answered),
    /// Has to be answered with a pong that says the same.
    Ping(&'a [u8]),
    /// Nothing of interest.
    Other,
    /// The server says no, in these words.
    Refused(&'a [u8]),
}

/// How a publish was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// In the order of the publishes, with the number of members it was given to.
    Receivers(u64),
    /// By number.
    Id(u16),
}

/// What the start of some bytes is.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A frame of this many bytes.
    Frame(Event<'a>, usize),
    /// There is no whole frame before there are at least this many bytes.
    Need(usize),
}

/// Bytes that are not of the protocol; the connection cannot go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no frame of the protocol: {0}")]
pub struct Malformed(pub &'static str);

/// The line at the start of `bytes` without its end, and its length with it.
pub fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    let within = &bytes[..bytes.len().min(LINE_MAX)];
    match within.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let text = within[..end].strip_suffix(b"\r").unwrap_or(&within[..end]);
            Ok(Some((text, end + 1)))
        }
        None if within.len() == LINE_MAX => Err(Malformed("a line without an end")),
        None => Ok(None),
    }
}

/// A number without a sign, in digits.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0, |n: u64, digit| {
        digit.is_ascii_digit().then(|| n * 10 + u64::from(digit - b'0'))
    })
}

/// Appends `n` in digits.
pub fn put_number(n: usize, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = n;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// What every codec must keep, whatever bytes come.
#[cfg(test)]
pub mod laws {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A codec.
    pub type Next = fn(&[u8]) -> Result<Found<'_>, Malformed>;

    /// All that is said in `bytes`, which end with a whole frame.
    pub fn all(next: Next, mut bytes: &[u8]) -> Vec<Event<'_>> {
        let mut seen = Vec::new();
        while !bytes.is_empty() {
            let Found::Frame(event, len) = next(bytes).unwrap() else { panic!("{bytes:?}") };
            seen.push(event);
            bytes = &bytes[len..];
        }
        seen
    }

    /// Fed by bytes as a connection does it, cut into `pieces`.
    fn fed<'a>(next: Next, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
        let (mut carry, mut seen) = (Vec::new(), Vec::new());
        for mut piece in pieces {
            loop {
                match next(&carry).unwrap() {
                    Found::Frame(event, len) => {
                        assert_eq!(len, carry.len(), "carried more than was needed");
                        seen.push(format!("{event:?}"));
                        carry.clear();
                    }
                    Found::Need(n) => {
                        assert!(n > carry.len(), "asked for no more than was there");
                        assert!(n <= FRAME_MAX, "asked for {n} bytes");
                        let (now, rest) = piece.split_at((n - carry.len()).min(piece.len()));
                        if now.is_empty() {
                            break;
                        }
                        carry.extend_from_slice(now);
                        piece = rest;
                    }
                }
            }
        }
        assert!(carry.is_empty());
        seen
    }

    /// A stream means the same however it is cut: in two at every byte, and byte by byte.
    pub fn any_split_gives_the_same(next: Next, stream: &[u8]) {
        let whole: Vec<_> = all(next, stream).iter().map(|event| format!("{event:?}")).collect();
        for at in 0..=stream.len() {
            let (head, tail) = stream.split_at(at);
            assert_eq!(fed(next, [head, tail].into_iter()), whole, "split at {at}");
        }
        assert_eq!(fed(next, stream.chunks(1)), whole, "byte by byte");
    }

    /// Noise, and frames with some of their bytes changed, neither panic nor ask for more than a
    /// frame may have, and every frame has a length.
    pub fn garbage_is_survived(next: Next, stream: &[u8]) {
        let mut x = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5EED_u64);
        println!("SEED={x}");
        let mut random = move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        for round in 0..20_000 {
            let mut bytes = if round % 2 == 0 {
                (0..random() % 300).map(|_| random() as u8).collect()
            } else {
                stream.to_vec()
            };
            for _ in 0..random() % 8 {
                if !bytes.is_empty() {
                    let at = random() as usize % bytes.len();
                    bytes[at] = random() as u8;
                }
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match next(rest) {
                    Ok(Found::Frame(_, len)) => {
                        assert!(len > 0 && len <= rest.len());
                        rest = &rest[len..];
                    }
                    Ok(Found::Need(n)) => {
                        assert!(n > rest.len() && n <= FRAME_MAX, "{n} for {}", rest.len());
                        break;
                    }
                    Err(_) => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_are_digits_only() {
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"123456789012345678"), Some(123_456_789_012_345_678));
        for bad in [&b""[..], b"-1", b"+1", b" 1", b"1x", b"9999999999999999999"] {
            assert_eq!(number(bad), None);
        }
        for n in [0, 9, 10, 65_536, usize::MAX] {
            let mut out = Vec::new();
            put_number(n, &mut out);
            assert_eq!(out, n.to_string().as_bytes());
        }
    }

    #[test]
    fn line_that_does_not_end_is_refused() {
        assert_eq!(line(b"+OK\r\nx").unwrap(), Some((&b"+OK"[..], 5)));
        assert_eq!(line(b"+OK\nx").unwrap(), Some((&b"+OK"[..], 4)));
        assert_eq!(line(&[b'x'; LINE_MAX - 1]).unwrap(), None);
        assert!(line(&[b'x'; LINE_MAX]).is_err());
    }
}
