//! History: messages that are laid down before a run, to be read back from disk, or to measure
//! how a server starts with them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fanfare::client::blocking::Client;
use fanfare::client::{Event, Options, Publishing};
use fanfare::position::Level;
use indicatif::ProgressBar;

use crate::error::LoadError;

/// Number of the group and of the message in it: the start of every payload.
pub const HEADER_BYTES: usize = 12;
/// Publishes without an answer.
const UNANSWERED_MAX: usize = 2048;
/// Nothing has come for this long: the server hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is laid down.
pub struct History {
    /// Names of its groups start with this.
    pub prefix: String,
    /// Number of groups.
    pub groups: u32,
    /// Payload bytes of all messages together, at least.
    pub bytes: u64,
    /// Bytes of each payload.
    pub payload: usize,
}

impl History {
    /// Name of a group.
    pub fn name(&self, group: u32) -> String {
        format!("{}-history-{group}", self.prefix)
    }

    /// Messages of each group.
    pub fn messages(&self) -> u64 {
        self.bytes.div_ceil(self.payload as u64 * u64::from(self.groups)).max(1)
    }

    /// Puts the payload of message `n` of a group into `out`.
    fn put(&self, group: u32, n: u64, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&group.to_le_bytes());
        out.extend_from_slice(&n.to_le_bytes());
        out.resize(self.payload, filler(group, n));
    }

    /// Publishes everything, in turn over the groups, and waits for every answer. Returns the
    /// number of messages.
    pub fn lay_down(&self, addr: SocketAddr, level: Option<Level>) -> Result<u64, LoadError> {
        let mut options = Options::new("history");
        (options.publishes_max, options.publish_bytes_max) = (UNANSWERED_MAX, 16 << 20);
        options.groups_max = self.groups as usize;
        let mut client = Client::connect(addr, options).map_err(LoadError::Client)?;
        let total = self.messages() * u64::from(self.groups);
        let bar = super::control::progress(total, "history [{bar:30}] {percent}% {msg}");
        let how = Publishing { level, receipt_percent: 0 };
        let (mut sent, mut answered) = (0, 0);
        let mut payload = Vec::new();
        let mut heard = Instant::now();
        while answered < total {
            while sent < total {
                let group = (sent % u64::from(self.groups)) as u32;
                self.put(group, sent / u64::from(self.groups) + 1, &mut payload);
                // Full is no error here: answers make room.
                if client.core().publish(self.name(group).as_bytes(), &payload, how).is_err() {
                    break;
                }
                sent += 1;
            }
            match client.next(Duration::from_secs(1)).map_err(LoadError::Client)? {
                Some(Event::Published(_)) => {
                    answered += 1;
                    heard = Instant::now();
                    bar.set_position(answered);
                }
                Some(Event::PublishFailed { error, .. }) => {
                    return Err(refused(&bar, error.to_string()));
                }
                Some(Event::PublishHeld { error, .. }) => {
                    return Err(refused(&bar, error.to_string()));
                }
                Some(Event::Disconnected { reason, .. }) => {
                    return Err(refused(&bar, reason.to_string()));
                }
                _ if heard.elapsed() > PATIENCE => {
                    return Err(refused(&bar, format!("no answer for {PATIENCE:?}")));
                }
                _ => {}
            }
        }
        bar.finish_and_clear();
        client.close();
        Ok(total)
    }
}

fn refused(bar: &ProgressBar, text: String) -> LoadError {
    bar.finish_and_clear();
    LoadError::Refused { who: "the publisher of the history".to_owned(), text }
}

fn filler(group: u32, n: u64) -> u8 {
    (u64::from(group).wrapping_mul(31) + n) as u8
}

/// Whether `payload` is message `n` of a group.
pub fn is(group: u32, n: u64, payload: &[u8]) -> bool {
    let Some((header, rest)) = payload.split_first_chunk::<HEADER_BYTES>() else { return false };
    let expected = filler(group, n);
    header[..4] == group.to_le_bytes()
        && header[4..] == n.to_le_bytes()
        && rest.iter().all(|byte| *byte == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_payload_is_checked() {
        let history = History { prefix: "p".into(), groups: 3, bytes: 1000, payload: 40 };
        assert_eq!(history.messages(), 9);
        let mut payload = Vec::new();
        history.put(2, 7, &mut payload);
        assert!(is(2, 7, &payload));
        assert!(!is(1, 7, &payload) && !is(2, 8, &payload));
        for at in 0..payload.len() {
            payload[at] ^= 1;
            assert!(!is(2, 7, &payload), "{at}");
            payload[at] ^= 1;
        }
    }
}
