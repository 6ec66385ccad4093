//! The opening handshake: an HTTP request that asks for a WebSocket, and its answer.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest, Sha1};

use super::{Origins, deflate};

/// Longest request, up to the empty line that ends it.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Most header fields of a request.
pub const HEADERS_MAX: usize = 64;
/// The subprotocol whose binary messages carry native frames.
pub const BINARY_V1: &str = "fanfare.binary.v1";
/// The subprotocol whose text messages carry one frame each, as JSON.
pub const JSON_V1: &str = "fanfare.json.v1";

/// The path of the echo, which needs no subprotocol.
pub const ECHO_PATH: &str = "/echo";

const VERSION: &[u8] = b"13";
/// What the key is hashed with (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const END: &[u8] = b"\r\n\r\n";
/// The first four bytes of every method that a client may try. None is like the native magic.
const METHODS: [&[u8; 4]; 9] =
    [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC"];

/// What the messages of a connection carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Native frames, in binary messages.
    Binary,
    /// A frame as JSON, in text messages.
    Json,
    /// Anything; each message comes back as it is. For conformance tests.
    Echo,
}

/// What a server grants.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The pages that may connect.
    pub origins: &'a Origins,
    /// Whether [`ECHO_PATH`] is served.
    pub echo: bool,
    /// Whether messages may be compressed if the client offers it.
    pub deflate: bool,
}

impl Protocol {
    fn of_name(name: &[u8]) -> Option<Self> {
        [Self::Binary, Self::Json].into_iter().find(|it| it.name().map(str::as_bytes) == Some(name))
    }

    /// Its name in `Sec-WebSocket-Protocol`, if it has one.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Binary => Some(BINARY_V1),
            Self::Json => Some(JSON_V1),
            Self::Echo => None,
        }
    }
}

/// A request that is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// What was agreed on.
    pub protocol: Protocol,
    /// Messages may be compressed, see [`super::deflate`].
    pub deflate: bool,
    accept: [u8; 28],
}

/// A request that is refused, or a reason to refuse one that is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Status of the answer.
    pub status: u16,
    /// For a person to read.
    pub text: &'static str,
}

/// Whether these bytes may be the start of a request; at most four are looked at.
#[must_use]
pub fn may_begin(bytes: &[u8]) -> bool {
    let seen = bytes.len().min(4);
    METHODS.iter().any(|method| method[..seen] == bytes[..seen])
}

/// Bytes of the request at the start of `bytes`; `None` if its end has not come.
///
/// # Errors
/// It is longer than [`REQUEST_BYTES_MAX`].
pub fn request_len(bytes: &[u8]) -> Result<Option<usize>, Refused> {
    let seen = &bytes[..bytes.len().min(REQUEST_BYTES_MAX)];
    match seen.windows(END.len()).position(|window| window == END) {
        Some(at) => Ok(Some(at + END.len())),
        None if bytes.len() >= REQUEST_BYTES_MAX => Err(Refused::TOO_LARGE),
        None => Ok(None),
    }
}

impl Refused {
    /// The request did not end in time.
    pub const TIMEOUT: Self = Self { status: 408, text: "the request did not come in time" };
    /// The server cannot take the connection now.
    pub const BUSY: Self =
        Self { status: 503, text: "the server cannot take this connection now; try again later" };
    /// Without TLS the server takes nobody.
    pub const TLS_REQUIRED: Self =
        Self { status: 403, text: "this server is reached by TLS only; use wss://" };
    const TOO_LARGE: Self =
        Self { status: 431, text: "the request has more than 8192 bytes or 64 header fields" };
    const VERSION: Self = Self { status: 426, text: "this server speaks WebSocket version 13" };
    const NO_UPGRADE: Self = Self {
        status: 426,
        text: "this port speaks WebSocket (subprotocols fanfare.binary.v1 and fanfare.json.v1) and the \
               native protocol; there is nothing to GET",
    };
    const ORIGIN: Self = Self {
        status: 403,
        text: "pages of this origin may not connect; the operator can allow it by websocket_origins",
    };
    const PROTOCOL: Self = Self {
        status: 400,
        text: "name a subprotocol in Sec-WebSocket-Protocol: fanfare.binary.v1 or fanfare.json.v1",
    };
    const METHOD: Self = Self { status: 405, text: "use GET" };

    const fn bad(text: &'static str) -> Self {
        Self { status: 400, text }
    }

    fn phrase(self) -> &'static str {
        match self.status {
            403 => "Forbidden",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            426 => "Upgrade Required",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Bad Request",
        }
    }

    /// Appends the answer; the connection ends after it.
    pub fn respond(self, out: &mut Vec<u8>) {
        let extra = match self.status {
            405 => "Allow: GET\r\n",
            426 => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            503 => "Retry-After: 1\r\n",
            _ => "",
        };
        // Only 426 names what the connection would have to be upgraded to (RFC 9110, 7.8).
        let connection = if self.status == 426 { "Upgrade, close" } else { "close" };
        let answer = format!(
            "HTTP/1.1 {} {}\r\n{extra}Connection: {connection}\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{}\n",
            self.status,
            self.phrase(),
            self.text.len() + 1,
            self.text
        );
        out.extend_from_slice(answer.as_bytes());
    }
}

impl Upgrade {
    /// Appends the answer; WebSocket frames follow it.
    pub fn respond(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: ",
        );
        out.extend_from_slice(&self.accept);
        if let Some(name) = self.protocol.name() {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(name.as_bytes());
        }
        if self.deflate {
            out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
            out.extend_from_slice(deflate::ANSWER.as_bytes());
        }
        out.extend_from_slice(END);
    }
}

/// Judges a whole request.
///
/// # Errors
/// [`Refused`] says what to answer.
pub fn judge(request: &[u8], rules: Rules<'_>) -> Result<Upgrade, Refused> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(httparse::Status::Complete(len)) if len == request.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::TOO_LARGE),
        _ => return Err(Refused::bad("this is not an HTTP request")),
    }
    if parsed.method != Some("GET") {
        return Err(Refused::METHOD);
    }
    if parsed.version != Some(1) {
        return Err(Refused::bad("use HTTP/1.1"));
    }
    let echo = rules.echo && parsed.path == Some(ECHO_PATH);
    let headers = Headers(parsed.headers);
    if headers.one("Transfer-Encoding")?.is_some()
        || headers.one("Content-Length")?.is_some_and(|len| len != b"0")
    {
        return Err(Refused::bad("the request must not have a body"));
    }
    let host = headers.one("Host")?.ok_or(Refused::bad("Host is missing"))?;
    if !headers.list("Upgrade").any(|token| token.eq_ignore_ascii_case(b"websocket")) {
        return Err(Refused::NO_UPGRADE);
    }
    if !headers.list("Connection").any(|token| token.eq_ignore_ascii_case(b"upgrade")) {
        return Err(Refused::bad("Connection must name Upgrade"));
    }
    if headers.one("Sec-WebSocket-Version")? != Some(VERSION) {
        return Err(Refused::VERSION);
    }
    let key = headers.one("Sec-WebSocket-Key")?.unwrap_or_default();
    if !is_key(key) {
        return Err(Refused::bad("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    if !rules.origins.allow(headers.one("Origin")?, host) {
        return Err(Refused::ORIGIN);
    }
    let named = headers.list("Sec-WebSocket-Protocol").find_map(Protocol::of_name);
    let protocol = if echo { Protocol::Echo } else { named.ok_or(Refused::PROTOCOL)? };
    let deflate = rules.deflate && deflate::is_offered(headers.list("Sec-WebSocket-Extensions"));
    Ok(Upgrade { protocol, deflate, accept: accept(key) })
}

fn is_key(key: &[u8]) -> bool {
    // What 24 characters may decode to, before it is known that they end in `==`.
    let mut decoded = [0; 18];
    key.len() == 24 && BASE64.decode_slice(key, &mut decoded) == Ok(16)
}

/// Sec-WebSocket-Accept of a key.
fn accept(key: &[u8]) -> [u8; 28] {
    let hash = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0; 28];
    // 20 bytes are 28 characters, always.
    let written = BASE64.encode_slice(hash, &mut accept);
    debug_assert_eq!(written, Ok(28));
    accept
}

struct Headers<'a>(&'a [httparse::Header<'a>]);

impl<'a> Headers<'a> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value)
    }

    /// The value of a field that must not come twice.
    fn one(&self, name: &str) -> Result<Option<&'a [u8]>, Refused> {
        let mut values = self.all(name);
        let first = values.next();
        match values.next() {
            Some(_) => Err(Refused::bad("a header field that stands alone came twice")),
            None => Ok(first.map(<[u8]>::trim_ascii)),
        }
    }

    /// The values of a field that is a list, in their order.
    fn list(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name).flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    }
}

#[cfg(test)]
#[path = "upgrade_tests.rs"]
mod tests;
