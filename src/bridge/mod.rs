//! `fanfare bridge webhook`: a durable member that posts what it gets to an HTTP endpoint, the way
//! to mail, SMS and push for those who are not connected.
//!
//! ```text
//!  server ──► client ──► batch ──► POST ──► endpoint
//!    ▲                               │ 2xx
//!    └──────────── ACK ◄─────────────┘
//! ```
//!
//! One batch is on its way at a time, so the endpoint gets messages in their order. What has no 2xx
//! answer is posted again, the same bytes, for as long as it takes; only then the messages are
//! acknowledged and the next batch is gathered. The server keeps the place, so the bridge
//! keeps nothing on disk. After a crash of the bridge the endpoint may get messages twice, in
//! other batches: each has an `id` to tell.

mod batch;
mod post;
mod upstream;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::client::blocking::Client;
use crate::client::{ClientError, Event, Membership, Options, Reason, Refusal};
use crate::limits::TOKEN_MAX;
use crate::serve::SIGNALLED;
use batch::Batch;
use post::{Backoff, Endpoint};
use upstream::UpstreamArgs;

/// How long it takes at most until the bridge sees that it has to stop, but for a POST.
const LOOK: Duration = Duration::from_millis(500);

/// `fanfare bridge`.
#[derive(Debug, clap::Args)]
pub struct BridgeArgs {
    #[command(subcommand)]
    to: To,
}

#[derive(Debug, clap::Subcommand)]
enum To {
    /// Post messages as JSON to an HTTP endpoint; each counts as handled after a 2xx answer
    Webhook(WebhookArgs),
}

/// Flags of `fanfare bridge webhook`.
#[derive(Clone, Debug, clap::Args)]
pub struct WebhookArgs {
    #[command(flatten)]
    upstream: UpstreamArgs,
    /// Group to join; may be repeated
    #[arg(long = "group", value_name = "NAME", required = true)]
    groups: Vec<String>,
    /// Where to post, http or https
    #[arg(long)]
    url: String,
    /// File with a header of the requests on each line, such as `Authorization: Bearer ...`
    #[arg(long, value_name = "FILE")]
    headers_file: Option<PathBuf>,
    /// Most messages of a batch
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch_max: u32,
    /// A batch is full with this many bytes of payloads
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=64 << 20))]
    batch_bytes_max: u32,
    /// How long the first message of a batch waits for others
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    batch_wait_ms: u32,
    /// The endpoint must have answered within this time
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=600_000))]
    timeout_ms: u32,
    /// What is logged, such as info or debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

/// Why a bridge ends.
#[derive(Debug, thiserror::Error)]
enum BridgeError {
    #[error("`{filter}` is not a log filter: {source}; use for example info or debug")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("`{0}` is not a URL to post to; it begins with http:// or https:// and a host")]
    Url(String),
    #[error("cannot read the headers in {}: {source}", path.display())]
    Headers { path: PathBuf, source: std::io::Error },
    #[error("{}, line {line}: no header of the form `Name: value`", path.display())]
    Header { path: PathBuf, line: usize },
    #[error("cannot read the token in {}: {source}", path.display())]
    Token { path: PathBuf, source: std::io::Error },
    #[error("{} holds no token of 1 to {TOKEN_MAX} bytes", path.display())]
    NoToken { path: PathBuf },
    #[error(
        "cannot use TLS to the server as --tls-name, --tls-ca, --tls-cert and --tls-key say: {0}"
    )]
    Tls(std::io::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
    #[error("cannot join {group}: {error}")]
    Join { group: String, error: Refusal },
    #[error("the server put the bridge out of {0}: its newest token does not allow that group")]
    PutOut(String),
    #[error("another connection of this member took over; give each bridge a member id of its own")]
    Replaced,
    #[error("the connection ended for good: {0}")]
    Ended(Reason),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Runs `fanfare bridge` until it is told to stop.
#[must_use]
pub fn run(args: &BridgeArgs) -> ExitCode {
    let To::Webhook(args) = &args.to;
    match webhook(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            use BridgeError as E;
            let asked_wrong = matches!(
                error,
                E::Filter { .. }
                    | E::Url(_)
                    | E::Headers { .. }
                    | E::Header { .. }
                    | E::Token { .. }
                    | E::NoToken { .. }
                    | E::Tls(_)
                    | E::Client(_)
            );
            ExitCode::from(if asked_wrong { 2 } else { 1 })
        }
    }
}

fn webhook(args: &WebhookArgs) -> Result<(), BridgeError> {
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|source| BridgeError::Filter { filter: args.log.clone(), source })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let stop = watch_for_signals().map_err(BridgeError::Signals)?;
    let endpoint = Endpoint::new(args)?;
    let options = args.upstream.options()?;
    let Some(client) = connect(&args.upstream.server, &options, &stop)? else { return Ok(()) };
    let mut bridge = Bridge { client, endpoint, batch: Batch::new(args), stop };
    for group in &args.groups {
        bridge.client.join(group, Membership::durable())?;
    }
    bridge.forward()?;
    bridge.client.close();
    info!("stopped; what has no 2xx answer comes again with the next start");
    Ok(())
}

/// The first signal is seen at the next look, the second ends the process at once.
fn watch_for_signals() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        let code = SIGNALLED + signal;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// The first connection; nothing if the bridge was told to stop meanwhile.
fn connect(
    server: &str,
    options: &Options,
    stop: &AtomicBool,
) -> Result<Option<Client>, BridgeError> {
    let mut backoff = Backoff::default();
    while !stop.load(Ordering::Relaxed) {
        match Client::connect(server, options.clone()) {
            Ok(client) => return Ok(Some(client)),
            Err(ClientError::Connect(error)) => {
                let wait = backoff.next();
                warn!(server, %error, retry_in_ms = wait.as_millis(), "cannot connect");
                sleep(wait, stop);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

fn sleep(wait: Duration, stop: &AtomicBool) {
    let until = Instant::now() + wait;
    while !stop.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(LOOK));
    }
}

struct Bridge {
    client: Client,
    endpoint: Endpoint,
    batch: Batch,
    stop: Arc<AtomicBool>,
}

impl Bridge {
    /// Gathers and posts until the bridge is told to stop.
    fn forward(&mut self) -> Result<(), BridgeError> {
        while !self.stop.load(Ordering::Relaxed) {
            if self.batch.is_due() {
                self.deliver()?;
                continue;
            }
            let wait = self.batch.due_in().map_or(LOOK, |due| due.min(LOOK));
            if let Some(event) = self.client.next(wait)? {
                self.take(&event)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: &Event) -> Result<(), BridgeError> {
        match event {
            Event::Message(_) | Event::Gap { .. } | Event::EpochChanged { .. } => {
                self.batch.push(event);
            }
            Event::Joined(joined) => {
                let group = String::from_utf8_lossy(&joined.group);
                info!(%group, first = joined.first.0, head = joined.head.0, "joined");
            }
            Event::JoinFailed { group, error } => {
                let group = String::from_utf8_lossy(group).into_owned();
                return Err(BridgeError::Join { group, error: error.clone() });
            }
            // The bridge leaves no group by itself.
            Event::Left { group } => {
                return Err(BridgeError::PutOut(String::from_utf8_lossy(group).into_owned()));
            }
            Event::Disconnected { reason: Reason::Replaced, .. } => {
                return Err(BridgeError::Replaced);
            }
            Event::Disconnected { reason, retry_in_ms: None } => {
                return Err(BridgeError::Ended(reason.clone()));
            }
            Event::Disconnected { reason, retry_in_ms: Some(retry_in_ms) } => {
                info!(%reason, retry_in_ms, "disconnected");
            }
            _ => {}
        }
        Ok(())
    }

    /// Posts the batch until it has a 2xx answer, and then acknowledges it.
    fn deliver(&mut self) -> Result<(), BridgeError> {
        let body = self.batch.body();
        let mut backoff = Backoff::default();
        while let Err(why) = self.endpoint.post(&body) {
            let wait = backoff.next();
            warn!(
                events = self.batch.len(), %why, retry_in_ms = wait.as_millis(),
                "the endpoint did not take a batch"
            );
            if !wait.is_zero() {
                // Nothing is read for a while, so let the server not wait for it.
                self.client.hang_up();
                sleep(wait, &self.stop);
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        for (group, (epoch, seq)) in self.batch.clear() {
            self.client.ack_up_to(&group, epoch, seq)?;
        }
        Ok(())
    }
}
