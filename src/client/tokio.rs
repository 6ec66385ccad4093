//! A client on the tokio runtime.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncWrite as _, Interest};
use tokio::net::{TcpStream, ToSocketAddrs, lookup_host};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::core::{Core, Link};
use super::error::ClientError;
use super::event::{Event, Message, PublishId};
use super::options::{Membership, Options, Publishing};
use super::pipe::Pipe;
use super::resume::Resume;
use crate::position::Nanos;

const READ_BYTES: usize = 64 * 1024;
/// A closing client reads this long what is still under way, so that its last words arrive.
const LINGER: Duration = Duration::from_millis(500);

/// A client that does its work inside [`Client::next`], which may be cancelled at any time: no
/// event is lost by that. Commands only queue, and what they queue is sent by the next call of
/// [`Client::next`] or [`Client::flush`]; their answers are events.
///
/// One task owns it. To publish from others, give them a channel and wait for both with
/// `tokio::select!`.
///
/// ```no_run
/// use fanfare::client::tokio::Client;
/// use fanfare::client::{Event, Membership, Options};
///
/// # async fn run() -> Result<(), fanfare::client::ClientError> {
/// let mut client = Client::connect("127.0.0.1:7400", Options::new("ann")).await?;
/// client.join("lobby", Membership::durable())?;
/// client.publish("lobby", "hello")?;
/// while let Some(event) = client.next().await {
///     match event {
///         Event::Message(message) => {
///             println!("{}: {:?}", message.seq, String::from_utf8_lossy(message.payload()));
///         }
///         other => println!("{other:?}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    core: Core,
    addrs: Vec<std::net::SocketAddr>,
    stream: Option<TcpStream>,
    pipe: Pipe,
    started: Instant,
    connect_timeout: Duration,
    buffer: Box<[u8]>,
}

impl Client {
    /// Connects to a server. Later connections are made by [`Client::next`] as they are needed.
    ///
    /// # Errors
    /// The options are wrong, the address cannot be resolved, or nobody listens there.
    pub async fn connect(addr: impl ToSocketAddrs, options: Options) -> Result<Self, ClientError> {
        let timeout = options.answer_timeout_ms;
        Self::start(addr, Core::new(options)?, timeout).await
    }

    /// Connects as a client that goes on where another one was; see [`Client::core`] and
    /// [`Core::to_resume`].
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn resume(
        addr: impl ToSocketAddrs,
        options: Options,
        resume: &Resume,
    ) -> Result<Self, ClientError> {
        let timeout = options.answer_timeout_ms;
        Self::start(addr, Core::resume(options, resume)?, timeout).await
    }

    async fn start(
        addr: impl ToSocketAddrs,
        core: Core,
        timeout_ms: u64,
    ) -> Result<Self, ClientError> {
        let mut client = Self {
            core,
            addrs: lookup_host(addr).await?.collect(),
            stream: None,
            pipe: Pipe::default(),
            started: Instant::now(),
            connect_timeout: Duration::from_millis(timeout_ms.max(1)),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
        };
        let (stream, pipe) = client.open().await?;
        (client.stream, client.pipe) = (Some(stream), pipe);
        client.core.connected(client.now());
        Ok(client)
    }

    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    async fn open(&mut self) -> io::Result<(TcpStream, Pipe)> {
        timeout(self.connect_timeout, async {
            let stream = TcpStream::connect(&self.addrs[..]).await?;
            stream.set_nodelay(true)?;
            let mut pipe = Pipe::new(self.core.options())?;
            // The handshake of TLS, if there is one.
            while pipe.is_opening() {
                let output = pipe.output(&mut self.core);
                if !output.is_empty() {
                    stream.writable().await?;
                    match stream.try_write(output) {
                        Ok(len) => pipe.sent(&mut self.core, len),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(e) => return Err(e),
                    }
                    continue;
                }
                stream.readable().await?;
                match stream.try_read(&mut self.buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(len) => {
                        let bytes = self.buffer.get(..len).unwrap_or_default();
                        pipe.receive(&mut self.core, bytes)?;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            Ok((stream, pipe))
        })
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The next event; `None` once the client has ended.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let now = self.now();
            if let Some(event) = self.core.next_event(now) {
                return Some(event);
            }
            self.core.advance(now);
            match self.core.link() {
                Link::Over => return None,
                Link::Close => {
                    self.stream = None;
                    self.core.disconnected(now);
                }
                Link::Connect { at } if at > now => sleep_until(self.instant(at)).await,
                Link::Connect { .. } => match self.open().await {
                    Ok((stream, pipe)) => {
                        (self.stream, self.pipe) = (Some(stream), pipe);
                        self.core.connected(self.now());
                    }
                    Err(_) => self.core.disconnected(self.now()),
                },
                Link::Up => self.transfer().await,
            }
        }
    }

    /// Sends what is queued, without waiting for answers.
    pub async fn flush(&mut self) {
        self.core.advance(self.now());
        while let Some(stream) = &self.stream {
            if self.pipe.output(&mut self.core).is_empty() || stream.writable().await.is_err() {
                return;
            }
            match stream.try_write(self.pipe.output(&mut self.core)) {
                Ok(len) => self.pipe.sent(&mut self.core, len),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    fn instant(&self, at: Nanos) -> Instant {
        // Far away when it cannot be told.
        let after = Duration::from_nanos(at.0).min(Duration::from_secs(1 << 30));
        self.started + after
    }

    /// Waits until the connection can go on, or until something is due.
    async fn transfer(&mut self) {
        let Some(stream) = &self.stream else { return self.core.disconnected(self.now()) };
        let mut interest = Interest::READABLE;
        if !self.pipe.output(&mut self.core).is_empty() {
            interest |= Interest::WRITABLE;
        }
        let ready = match self.core.deadline() {
            Some(at) => match timeout_at(self.instant(at), stream.ready(interest)).await {
                Ok(ready) => ready,
                Err(_) => return,
            },
            None => stream.ready(interest).await,
        };
        let Ok(ready) = ready else { return self.lost() };
        let output = self.pipe.output(&mut self.core);
        if ready.is_writable() && !output.is_empty() {
            // After an error what came before is still to be read; the end of it shows there.
            if let Ok(len) = stream.try_write(output) {
                self.pipe.sent(&mut self.core, len);
            }
        }
        if ready.is_readable() || ready.is_error() {
            match stream.try_read(&mut self.buffer) {
                Ok(0) => self.lost(),
                Ok(len) => {
                    let bytes = self.buffer.get(..len).unwrap_or_default();
                    if self.pipe.receive(&mut self.core, bytes).is_err() {
                        self.lost();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.lost(),
            }
        }
    }

    fn lost(&mut self) {
        self.stream = None;
        self.core.disconnected(self.now());
    }

    /// Joins a group; see [`Core::join`].
    ///
    /// # Errors
    /// As there.
    pub fn join(&mut self, group: impl AsRef<[u8]>, how: Membership) -> Result<(), ClientError> {
        self.core.join(group.as_ref(), how)
    }

    /// Leaves a group; see [`Core::leave`].
    ///
    /// # Errors
    /// As there.
    pub fn leave(&mut self, group: impl AsRef<[u8]>) -> Result<(), ClientError> {
        self.core.leave(group.as_ref())
    }

    /// Publishes at the server's level without a receipt; see [`Core::publish`].
    ///
    /// # Errors
    /// As there.
    pub fn publish(
        &mut self,
        group: impl AsRef<[u8]>,
        payload: impl AsRef<[u8]>,
    ) -> Result<PublishId, ClientError> {
        self.core.publish(group.as_ref(), payload.as_ref(), Publishing::default())
    }

    /// Acknowledges a message and all before it; see [`Core::ack`].
    ///
    /// # Errors
    /// As there.
    pub fn ack(&mut self, message: &Message) -> Result<(), ClientError> {
        self.core.ack(message, self.now())
    }

    /// The client without its socket, for what is not offered here: receipts, history, state,
    /// rosters.
    pub fn core(&mut self) -> &mut Core {
        &mut self.core
    }

    /// Acknowledges what was handled and closes the connection.
    pub async fn close(mut self) {
        self.core.close(self.now());
        let goodbye = async {
            self.flush().await;
            self.pipe.end();
            self.flush().await;
            let Some(mut stream) = self.stream.take() else { return };
            // Closing with unread bytes would reset the connection and could take the last ACK
            // with it: end the writing side, and read until the server has ended its own.
            let shutdown = poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx));
            if shutdown.await.is_err() {
                return;
            }
            while stream.readable().await.is_ok() {
                match stream.try_read(&mut self.buffer) {
                    Ok(1..) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => return,
                }
            }
        };
        let _ = timeout(LINGER, goodbye).await;
    }
}
