//! Connections of the HTTP interface, and what a slow or hostile client can have of it: a few
//! kilobytes, for a bounded time, and never the last place.

use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tracing::warn;

use super::State;

/// Connections at once. For one more, the oldest goes that is in no request.
const CONNECTIONS_MAX: usize = 64;
/// A request's line and headers must have come by then.
const HEADERS_TIME: Duration = Duration::from_secs(5);
/// Bytes of a request's line and headers, and what is read ahead.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Bytes of a request's body.
pub(super) const BODY_MAX: usize = 16 * 1024;
/// A request must have come and its answer be made by then.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Then a connection is closed, whatever it does: so a client that does not read its answer goes.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// How long a connection at the end of its time has for the answer it is in.
const LAST_ANSWER_TIME: Duration = Duration::from_secs(5);
/// Wait after an accept that failed: no descriptor is free, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What the interface has seen; exported with the figures.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Connections now.
    pub connections: AtomicUsize,
    /// Connections that had to make room for another one.
    pub evicted: AtomicU64,
    /// Answers by their class: 1xx to 5xx.
    pub answers: [AtomicU64; 5],
}

impl Seen {
    fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(count) = self.answers.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A connection under way.
struct Open {
    task: JoinHandle<()>,
    /// Requests of it that are being answered.
    requests: Arc<AtomicUsize>,
}

/// Takes connections without end.
pub(super) async fn run(listener: TcpListener, state: Arc<State>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return warn!(%error, "no HTTP interface: its socket cannot be watched"),
    };
    let router = super::router(state.clone());
    let mut open: Vec<Open> = Vec::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "the HTTP interface cannot take a connection; it tries again");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= CONNECTIONS_MAX {
            state.seen.evicted.fetch_add(1, Ordering::Relaxed);
            let idle = |c: &Open| c.requests.load(Ordering::Relaxed) == 0;
            // If all are in a request, the new one goes: the others end within their time.
            let Some(oldest) = open.iter().position(idle) else { continue };
            open.remove(oldest).task.abort();
        }
        let requests = Arc::<AtomicUsize>::default();
        let task =
            tokio::spawn(connection(stream, router.clone(), state.clone(), requests.clone()));
        open.push(Open { task, requests });
    }
}

/// Counts something as long as it is there.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    state: Arc<State>,
    requests: Arc<AtomicUsize>,
) {
    let _counted = Counted::new(&state.seen.connections);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        let (router, state, requests) = (router.clone(), state.clone(), requests.clone());
        async move {
            let _counted = Counted::new(&requests);
            let answer = hyper::service::Service::call(&router, request);
            let answer: Response = match tokio::time::timeout(REQUEST_TIME, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(never)) => match never {},
                Err(_) => {
                    (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response()
                }
            };
            state.seen.answered(answer.status());
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIME)
        .max_buf_size(HEADERS_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let mut http = pin!(http.serve_connection(TokioIo::new(stream), service));
    // A client that breaks the protocol, or goes away, is its own affair.
    if tokio::time::timeout(CONNECTION_TIME, http.as_mut()).await.is_err() {
        http.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER_TIME, http).await;
    }
}
