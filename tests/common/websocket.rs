use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use fanfare::limits::FRAME_MAX;
use fanfare::wire::{ClientFrame, MAGIC, split};

use super::{Client, SOON, Server};

#[path = "../../loadgen/src/encoding/json.rs"]
pub mod json;

/// The example of the RFC; a test is no browser, so nothing depends on that a key is new.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

pub const BINARY: u8 = 0x82;
pub const TEXT: u8 = 0x81;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8A;

pub const BINARY_V1: &str = "fanfare.binary.v1";
pub const JSON_V1: &str = "fanfare.json.v1";

/// A request that a server grants, with these header fields beside the necessary ones.
pub fn request(extra: &str) -> String {
    request_of(BINARY_V1, extra)
}

fn request_of(protocol: &str, extra: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n{extra}\r\n"
    )
}

/// A masked frame, its length in the shortest form.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// A WebSocket as a client has it, frame by frame.
pub struct WebSocket {
    pub stream: TcpStream,
    bytes: Vec<u8>,
}

impl WebSocket {
    /// A connection that was upgraded.
    pub fn open(server: &Server) -> Self {
        Self::speaking(server, BINARY_V1)
    }

    /// The same with this subprotocol.
    pub fn speaking(server: &Server, protocol: &str) -> Self {
        Self::asking(server, protocol, "").0
    }

    /// The same with more header fields; also gives the answer.
    pub fn asking(server: &Server, protocol: &str, extra: &str) -> (Self, String) {
        Self::bare(server).upgraded(protocol, extra)
    }

    /// A connection over this socket that was upgraded.
    pub fn over(stream: TcpStream, protocol: &str) -> Self {
        Self::on(stream).upgraded(protocol, "").0
    }

    fn upgraded(self, protocol: &str, extra: &str) -> (Self, String) {
        let mut ws = self;
        ws.stream.write_all(request_of(protocol, extra).as_bytes()).unwrap();
        let head = ws.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains(&format!("\r\nSec-WebSocket-Accept: {ACCEPT}\r\n")), "{head}");
        assert!(head.contains(&format!("\r\nSec-WebSocket-Protocol: {protocol}\r\n")), "{head}");
        (ws, head)
    }

    /// A connection on which nothing was sent.
    pub fn bare(server: &Server) -> Self {
        Self::on(TcpStream::connect(server.addr()).unwrap())
    }

    fn on(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { stream, bytes: Vec::new() }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads until `done` finds what it looks for; `None` if the connection ends before.
    fn until<T>(&mut self, mut done: impl FnMut(&mut Vec<u8>) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = done(&mut self.bytes) {
                return Some(found);
            }
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(len) => self.bytes.extend_from_slice(&chunk[..len]),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return None,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => panic!("nothing came: {e}"),
            }
        }
    }

    /// The answer to the request, up to its empty line.
    pub fn head(&mut self) -> String {
        let head = self.until(|bytes| {
            let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
            Some(bytes.drain(..end).collect())
        });
        String::from_utf8(head.expect("the connection ended before an answer")).unwrap()
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        assert_eq!(self.until(|_| None::<()>), None);
        std::mem::take(&mut self.bytes)
    }

    /// The next frame, its first byte and its payload; `None` at the end of the connection.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        self.until(|bytes| {
            let (&first, &second) = (bytes.first()?, bytes.get(1)?);
            assert_eq!(second & 0x80, 0, "a server does not mask");
            let (len, head) = match second {
                126 => (u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?).into(), 4),
                127 => (u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?) as usize, 10),
                short => (usize::from(short), 2),
            };
            let payload = bytes.get(head..head + len)?.to_vec();
            bytes.drain(..head + len);
            Some((first, payload))
        })
    }

    /// The code and reason of the Close that ends the connection, passing over what precedes it.
    pub fn closed(&mut self) -> (u16, String) {
        loop {
            let (first, payload) = self.frame().expect("no Close before the end");
            if first == CLOSE {
                assert_eq!(self.frame(), None, "something followed a Close");
                let (code, reason) = payload.split_first_chunk::<2>().expect("a code");
                let reason = String::from_utf8(reason.to_vec()).unwrap();
                return (u16::from_be_bytes(*code), reason);
            }
        }
    }
}

/// A client whose native bytes go through a WebSocket: two threads put them into messages, in
/// fragments of `fragment` bytes, and take them out.
pub fn client(server: &Server, member: &str, fragment: usize) -> Client {
    let ws = WebSocket::speaking(server, BINARY_V1);
    client_over(ws, member, BINARY_V1, fragment)
}

/// The same, but the messages are JSON.
pub fn json_client(server: &Server, member: &str, fragment: usize) -> Client {
    client_over(WebSocket::speaking(server, JSON_V1), member, JSON_V1, fragment)
}

/// The same over a WebSocket that was upgraded to this protocol.
pub fn client_over(ws: WebSocket, member: &str, protocol: &'static str, fragment: usize) -> Client {
    let mut client = Client::over(native_over(ws, protocol, fragment));
    client.hello(member);
    client
}

/// A socket whose native bytes go through this WebSocket.
fn native_over(ws: WebSocket, protocol: &'static str, fragment: usize) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inner = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    carry(near, ws, protocol, fragment);
    inner
}

/// An address at which native clients reach the server through WebSockets of this protocol. Who
/// comes while there is no server is sent away.
pub fn tunnel(server: SocketAddr, protocol: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            std::thread::spawn(move || {
                if let Ok(far) = TcpStream::connect(server) {
                    carry(near, WebSocket::over(far, protocol), protocol, usize::MAX);
                }
            });
        }
    });
    addr
}

/// Takes native bytes to and from this WebSocket, by two threads.
fn carry(near: TcpStream, mut ws: WebSocket, protocol: &'static str, fragment: usize) {
    near.set_nodelay(true).unwrap();
    let (from_client, far) = (near.try_clone().unwrap(), ws.stream.try_clone().unwrap());
    std::thread::spawn(move || into_messages(from_client, far, protocol, fragment));
    std::thread::spawn(move || {
        ws.stream.set_read_timeout(None).unwrap();
        let mut near = near;
        while let Some((first, payload)) = ws.frame() {
            let frames = match first {
                BINARY => {
                    assert_eq!(protocol, BINARY_V1);
                    assert_whole(&payload);
                    payload
                }
                TEXT => {
                    assert_eq!(protocol, JSON_V1);
                    let mut frames = Vec::new();
                    let known = json::to_native(&payload, &mut frames);
                    known.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&payload)));
                    frames
                }
                CLOSE => break,
                other => {
                    assert_eq!(other, PONG);
                    continue;
                }
            };
            if near.write_all(&frames).is_err() {
                break;
            }
        }
        let _ = near.shutdown(Shutdown::Both);
        let _ = ws.stream.shutdown(Shutdown::Both);
    });
}

/// A message of the server holds whole frames.
fn assert_whole(mut payload: &[u8]) {
    while !payload.is_empty() {
        let (_, len) = split(payload, FRAME_MAX).unwrap().expect("a frame is cut off");
        payload = &payload[len..];
    }
}

/// The messages that carry these frames.
fn messages_of(protocol: &str, mut frames: &[u8]) -> Vec<(u8, Vec<u8>)> {
    if protocol == BINARY_V1 {
        return vec![(0x2, frames.to_vec())];
    }
    let mut messages = Vec::new();
    while let Some((frame, len)) = split(frames, FRAME_MAX).unwrap() {
        let frame = ClientFrame::decode(frame).unwrap();
        let text = json::from_native(&frame).unwrap_or_else(|| panic!("{frame:?}"));
        messages.push((0x1, text.into_bytes()));
        frames = &frames[len..];
    }
    messages
}

fn into_messages(mut from: TcpStream, mut to: TcpStream, protocol: &str, fragment: usize) {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 64 * 1024]);
    let mut magic = true;
    loop {
        match from.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(len) => bytes.extend_from_slice(&chunk[..len]),
        }
        if magic && bytes.len() >= MAGIC.len() {
            assert_eq!(bytes.drain(..MAGIC.len()).collect::<Vec<_>>(), MAGIC);
            magic = false;
        }
        let mut whole = 0;
        while let Ok(Some((_, len))) = split(&bytes[whole..], FRAME_MAX) {
            whole += len;
        }
        if magic || whole == 0 {
            continue;
        }
        let frames: Vec<u8> = bytes.drain(..whole).collect();
        let mut out = Vec::new();
        for (first, message) in messages_of(protocol, &frames) {
            let count = message.len().div_ceil(fragment);
            for (n, part) in message.chunks(fragment).enumerate() {
                let opcode = if n == 0 { first } else { 0x0 };
                let fin = if n + 1 == count { 0x80 } else { 0 };
                out.extend(frame(fin | opcode, part));
                if n % 3 == 1 {
                    out.extend(frame(PING, b"between"));
                }
            }
        }
        if to.write_all(&out).is_err() {
            break;
        }
    }
    let _ = to.write_all(&frame(CLOSE, &1000u16.to_be_bytes()));
    let _ = to.shutdown(Shutdown::Write);
}

/// Waits for the end of a connection whose bytes do not matter.
pub fn ends_within(stream: &mut TcpStream, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    while Instant::now() < deadline {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return true,
        }
    }
    false
}
