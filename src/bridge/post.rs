//! The endpoint, and how long to wait before it is asked again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderName, HeaderValue, Uri};

use super::{BridgeError, WebhookArgs};

/// Most of an answer that is read. What it says is not looked at; but a connection whose answer
/// was read can be used again.
const ANSWER_MAX: u64 = 64 * 1024;
const WAIT_MAX_MS: u64 = 30_000;

/// Why a batch counts as not delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    /// Another status than 2xx.
    #[error("status {0}")]
    Status(u16),
    /// No connection, no answer in time, or none that can be read.
    #[error(transparent)]
    Http(#[from] ureq::Error),
}

/// Where batches are posted.
pub(super) struct Endpoint {
    agent: Agent,
    url: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Endpoint {
    pub fn new(args: &WebhookArgs) -> Result<Self, BridgeError> {
        let uri: Option<Uri> = args.url.parse().ok();
        let is_http =
            |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        if !uri.as_ref().is_some_and(is_http) {
            return Err(BridgeError::Url(args.url.clone()));
        }
        let agent = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(args.timeout_ms.into())))
            .http_status_as_error(false)
            // A POST that is sent elsewhere is not what the operator asked for.
            .max_redirects(0)
            .user_agent(concat!("fanfare-bridge/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { agent, url: args.url.clone(), headers: read_headers(args)? })
    }

    /// Posts a batch and waits for the answer.
    pub fn post(&self, body: &[u8]) -> Result<(), PostError> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut response = request.send(body)?;
        let status = response.status();
        let answer = response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec();
        drop(answer);
        if status.is_success() { Ok(()) } else { Err(PostError::Status(status.as_u16())) }
    }
}

fn read_headers(args: &WebhookArgs) -> Result<Vec<(HeaderName, HeaderValue)>, BridgeError> {
    let Some(path) = &args.headers_file else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| BridgeError::Headers { path: path.clone(), source })?;
    let mut headers = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let header = line.split_once(':').and_then(|(name, value)| {
            let name = name.trim().parse::<HeaderName>().ok()?;
            let mut value = value.trim().parse::<HeaderValue>().ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        let wrong = || BridgeError::Header { path: path.clone(), line: i + 1 };
        headers.push(header.ok_or_else(wrong)?);
    }
    Ok(headers)
}

/// Waits before further attempts: none, then 1, 2, 4 ... 30 s, each spread by up to a half, so that
/// many bridges do not come back to an endpoint in step.
#[derive(Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    pub fn next(&mut self) -> Duration {
        let attempt = self.attempts;
        self.attempts = self.attempts.saturating_add(1);
        if attempt == 0 {
            return Duration::ZERO;
        }
        let whole = (1000_u64 << (attempt - 1).min(10)).min(WAIT_MAX_MS);
        // Differs from call to call; the standard library has no other source of chance.
        let chance = RandomState::new().hash_one(attempt);
        Duration::from_millis(whole - chance % (whole / 2 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_begin_at_once_and_double_up_to_half_a_minute() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(), Duration::ZERO);
        for whole in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000] {
            let wait = backoff.next().as_millis();
            assert!((whole / 2..=whole).contains(&wait), "{wait} of {whole}");
        }
    }
}
