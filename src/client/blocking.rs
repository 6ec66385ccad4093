//! A client on one thread, with the standard library alone.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::core::{Core, Link};
use super::error::ClientError;
use super::event::{Event, Message, PublishId, QueryId};
use super::options::{Membership, Options, Publishing};
use super::pipe::Pipe;
use super::resume::Resume;
use crate::position::{Epoch, Nanos, Seq};
use crate::wire::Expected;

/// While there is something to send and the server does not take it, both directions are tried
/// in turn, each for this long: a client that waits to write must still read.
const TURN: Duration = Duration::from_millis(5);
/// A closing client reads this long what is still under way, so that its last words arrive.
const LINGER: Duration = Duration::from_millis(500);
const READ_BYTES: usize = 64 * 1024;

/// A client that does its work inside the calls of its methods, mostly in [`Client::next`]: call
/// that again and again. Commands only queue; their answers are events.
///
/// ```no_run
/// use std::time::Duration;
/// use fanfare::client::blocking::Client;
/// use fanfare::client::{Event, Membership, Options};
///
/// let mut client = Client::connect("127.0.0.1:7400", Options::new("ann"))?;
/// client.join("lobby", Membership::durable())?;
/// client.publish("lobby", "hello")?;
/// loop {
///     match client.next(Duration::from_secs(1))? {
///         Some(Event::Message(message)) => {
///             println!("{}: {:?}", message.seq, String::from_utf8_lossy(message.payload()));
///         }
///         Some(other) => println!("{other:?}"),
///         None => break, // nothing for a second
///     }
/// }
/// client.close();
/// # Ok::<(), fanfare::client::ClientError>(())
/// ```
#[derive(Debug)]
pub struct Client {
    core: Core,
    addrs: Vec<SocketAddr>,
    stream: Option<TcpStream>,
    pipe: Pipe,
    started: Instant,
    connect_timeout: Duration,
    read_timeout: Duration,
    /// The last write did not take everything, so the next one may wait.
    full: bool,
    buffer: Box<[u8]>,
}

impl Client {
    /// Connects to a server. Later connections are made by [`Client::next`] as they are needed.
    ///
    /// # Errors
    /// The options are wrong, the address cannot be resolved, or nobody listens there.
    pub fn connect(addr: impl ToSocketAddrs, options: Options) -> Result<Self, ClientError> {
        let timeout = options.answer_timeout_ms;
        Self::start(addr, Core::new(options)?, timeout)
    }

    /// Connects as a client that goes on where another one was; see [`Client::to_resume`].
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn resume(
        addr: impl ToSocketAddrs,
        options: Options,
        resume: &Resume,
    ) -> Result<Self, ClientError> {
        let timeout = options.answer_timeout_ms;
        Self::start(addr, Core::resume(options, resume)?, timeout)
    }

    fn start(addr: impl ToSocketAddrs, core: Core, timeout_ms: u64) -> Result<Self, ClientError> {
        let mut client = Self {
            core,
            addrs: addr.to_socket_addrs()?.collect(),
            stream: None,
            pipe: Pipe::default(),
            started: Instant::now(),
            connect_timeout: Duration::from_millis(timeout_ms.max(1)),
            read_timeout: Duration::ZERO,
            full: false,
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
        };
        let stream = client.open()?;
        client.stream = Some(stream);
        client.core.connected(client.now());
        Ok(client)
    }

    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn open(&mut self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for n in 0..self.addrs.len() {
            let Some(addr) = self.addrs.get(n) else { break };
            let stream = TcpStream::connect_timeout(addr, self.connect_timeout);
            match stream.and_then(|stream| self.begin(stream)) {
                Ok(stream) => {
                    self.read_timeout = Duration::ZERO;
                    self.full = false;
                    return Ok(stream);
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Makes the socket ready for the client, with the handshake of TLS if there is one.
    fn begin(&mut self, mut stream: TcpStream) -> io::Result<TcpStream> {
        let until = Instant::now() + self.connect_timeout;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.connect_timeout))?;
        self.pipe = Pipe::new(self.core.options())?;
        while self.pipe.is_opening() {
            let output = self.pipe.output(&mut self.core);
            stream.write_all(output)?;
            let len = output.len();
            self.pipe.sent(&mut self.core, len);
            let left = until.saturating_duration_since(Instant::now());
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match stream.read(&mut self.buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    let bytes = self.buffer.get(..len).unwrap_or_default();
                    self.pipe.receive(&mut self.core, bytes)?;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        stream.set_write_timeout(Some(TURN))?;
        Ok(stream)
    }

    /// The next event, or `None` when `timeout` is over or the client has ended. Connects, sends
    /// and receives meanwhile.
    ///
    /// # Errors
    /// None today; a broken connection is an event.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Event>, ClientError> {
        let until = Instant::now() + timeout;
        let mut tried = false;
        loop {
            let now = self.now();
            if let Some(event) = self.core.next_event(now) {
                return Ok(Some(event));
            }
            self.core.advance(now);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && tried {
                return Ok(None);
            }
            tried = true;
            match self.core.link() {
                Link::Over => return Ok(None),
                Link::Close => {
                    self.stream = None;
                    self.core.disconnected(now);
                }
                Link::Connect { at } if at > now => {
                    std::thread::sleep(left.min(Duration::from_nanos(at.since(now))));
                }
                Link::Connect { .. } => match self.open() {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        self.core.connected(self.now());
                    }
                    Err(_) => self.core.disconnected(self.now()),
                },
                Link::Up => {
                    let due = self.core.deadline().map(|at| Duration::from_nanos(at.since(now)));
                    self.transfer(due.map_or(left, |due| due.min(left)));
                }
            }
        }
    }

    /// Sends what there is and receives for at most `wait`.
    fn transfer(&mut self, mut wait: Duration) {
        let Some(stream) = &mut self.stream else { return self.core.disconnected(self.now()) };
        let output = self.pipe.output(&mut self.core);
        if !output.is_empty() {
            match stream.write(output) {
                Ok(len) => self.pipe.sent(&mut self.core, len),
                Err(e) if is_wait(&e) => {}
                // What came before is still to be read; the end of it shows there.
                Err(_) => {}
            }
            self.full = !self.pipe.output(&mut self.core).is_empty();
            if self.full {
                wait = wait.min(TURN);
            }
        }
        // A read timeout of zero means none.
        let wait = wait.max(Duration::from_micros(1));
        if wait != self.read_timeout {
            if stream.set_read_timeout(Some(wait)).is_err() {
                return self.lost();
            }
            self.read_timeout = wait;
        }
        match stream.read(&mut self.buffer) {
            Ok(0) => self.lost(),
            Ok(len) => {
                let bytes = self.buffer.get(..len).unwrap_or_default();
                if self.pipe.receive(&mut self.core, bytes).is_err() {
                    self.lost();
                }
            }
            Err(e) if is_wait(&e) => {}
            Err(_) => self.lost(),
        }
    }

    fn lost(&mut self) {
        self.stream = None;
        self.core.disconnected(self.now());
    }

    /// Leaves the connection, for an application that cannot call [`Client::next`] for a while: a
    /// server would wait for it to read. The client is not over; the next call of
    /// [`Client::next`] connects again.
    pub fn hang_up(&mut self) {
        if self.stream.is_some() {
            self.lost();
        }
    }

    /// Sends what is queued, if that does not have to wait.
    fn push(&mut self) {
        let now = self.now();
        self.core.advance(now);
        let Some(stream) = &mut self.stream else { return };
        let output = self.pipe.output(&mut self.core);
        if self.full || output.is_empty() {
            return;
        }
        if let Ok(len) = stream.write(output) {
            self.pipe.sent(&mut self.core, len);
        }
        self.full = !self.pipe.output(&mut self.core).is_empty();
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
        self.publish_with(group, payload, Publishing::default())
    }

    /// Publishes; see [`Core::publish`].
    ///
    /// # Errors
    /// As there.
    pub fn publish_with(
        &mut self,
        group: impl AsRef<[u8]>,
        payload: impl AsRef<[u8]>,
        how: Publishing,
    ) -> Result<PublishId, ClientError> {
        let id = self.core.publish(group.as_ref(), payload.as_ref(), how)?;
        self.push();
        Ok(id)
    }

    /// Acknowledges a message and all before it; see [`Core::ack`].
    ///
    /// # Errors
    /// As there.
    pub fn ack(&mut self, message: &Message) -> Result<(), ClientError> {
        self.core.ack(message, self.now())
    }

    /// Acknowledges a group up to a message; see [`Core::ack_up_to`].
    ///
    /// # Errors
    /// As there.
    pub fn ack_up_to(
        &mut self,
        group: impl AsRef<[u8]>,
        epoch: Epoch,
        seq: Seq,
    ) -> Result<(), ClientError> {
        self.core.ack_up_to(group.as_ref(), epoch, seq, self.now())
    }

    /// Reads history; see [`Core::fetch`].
    ///
    /// # Errors
    /// As there.
    pub fn fetch(
        &mut self,
        group: impl AsRef<[u8]>,
        from: Seq,
        to: Option<Seq>,
        count_max: u32,
    ) -> Result<QueryId, ClientError> {
        self.core.fetch(group.as_ref(), from, to, count_max)
    }

    /// Sets or deletes a key; see [`Core::set_state`].
    ///
    /// # Errors
    /// As there.
    pub fn set_state(
        &mut self,
        group: impl AsRef<[u8]>,
        key: impl AsRef<[u8]>,
        expected: Expected,
        data: Option<&[u8]>,
    ) -> Result<QueryId, ClientError> {
        self.core.set_state(group.as_ref(), key.as_ref(), expected, data)
    }

    /// Asks for a group's state; see [`Core::sync`].
    ///
    /// # Errors
    /// As there.
    pub fn sync(&mut self, group: impl AsRef<[u8]>, known: u64) -> Result<QueryId, ClientError> {
        self.core.sync(group.as_ref(), known)
    }

    /// Asks for a roster; see [`Core::roster`].
    ///
    /// # Errors
    /// As there.
    pub fn roster(
        &mut self,
        group: impl AsRef<[u8]>,
        known: u64,
        after: u32,
        limit: u32,
    ) -> Result<QueryId, ClientError> {
        self.core.roster(group.as_ref(), known, after, limit)
    }

    /// What to keep for [`Client::resume`].
    #[must_use]
    pub fn to_resume(&self) -> Resume {
        self.core.to_resume()
    }

    /// The client without its socket, for what is not offered here.
    pub fn core(&mut self) -> &mut Core {
        &mut self.core
    }

    /// Acknowledges what was handled and closes the connection.
    pub fn close(mut self) {
        self.core.close(self.now());
        let until = Instant::now() + LINGER;
        let Some(mut stream) = self.stream.take() else { return };
        let mut ended = false;
        while Instant::now() < until {
            let output = self.pipe.output(&mut self.core);
            if output.is_empty() {
                if std::mem::replace(&mut ended, true) {
                    break;
                }
                self.pipe.end();
                continue;
            }
            match stream.write(output) {
                Ok(len) => self.pipe.sent(&mut self.core, len),
                Err(e) if is_wait(&e) => {}
                Err(_) => return,
            }
        }
        // Closing with unread bytes would reset the connection and could take the last ACK with
        // it: end the writing side, and read until the server has ended its own.
        let ended =
            stream.shutdown(Shutdown::Write).and_then(|()| stream.set_read_timeout(Some(LINGER)));
        while ended.is_ok() && Instant::now() < until {
            match stream.read(&mut self.buffer) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

fn is_wait(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
