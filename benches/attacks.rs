//! What a server does about attacks, and what its members feel meanwhile: for each attack what it
//! got, and members' latency beside it against the latency without, in pairs. Needs `openssl` for
//! a certificate. See benches/README.md.

#[allow(dead_code, reason = "other benches use the rest of it")]
mod pairs;
#[path = "../tests/common/tokens.rs"]
mod tokens;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use fanfare::limits::WS_MESSAGE_MAX;
use fanfare::wire::{
    Auth, ErrorCode, Hello, Join, JoinEntry, MAGIC, Mode, ServerFrame, Start, split,
};
use fanfare::ws::deflate::Deflate;
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use serde_json::{Value, json};

use pairs::{Bench, Failure, Server, Spread, keys, values};
use tokens::{Issuer, base64url, claims, everything};

#[derive(Parser)]
struct Args {
    /// Attacks by name; all unless given.
    #[arg(long, value_delimiter = ',')]
    attacks: Vec<String>,
    /// Interleaved pairs of each.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Where results are kept [default: benches/runs/<date>-<host>].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Of the load that is measured.
const MEMBERS: u32 = 1_000;
const RATE: &str = "100";
/// An attack is under way for so long before anything is measured.
const LEAD: Duration = Duration::from_millis(1_500);
/// What attacks between looks at their connections.
const TICK: Duration = Duration::from_millis(5);
/// A connection is looked at once in so many ticks.
const SHARE: usize = 20;
/// An answered connection that did not end by then stays open.
const ANSWERED: Duration = Duration::from_secs(1);
/// Attackers give way: on the machine of the server they take time that is the members'.
const NICE: i32 = 19;

/// Connections that all send the same.
struct Attack {
    name: &'static str,
    bytes: Vec<u8>,
    /// Byte by byte, one each time it is looked at.
    drips: bool,
    /// New ones per second.
    rate: u32,
    /// Open at once.
    at_once: usize,
}

/// One of its connections.
struct Attempt {
    stream: TcpStream,
    sent: usize,
    got: Vec<u8>,
    answered: Option<Instant>,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let mut bench = Bench::new(args.pairs, args.seconds, args.out)?;
    let files = tempfile::tempdir()?;
    let engine = prepare(files.path())?;
    let engine: Vec<&str> = engine.iter().map(String::as_str).collect();
    let tokens = files.path().join("tokens").display().to_string();
    let load = bench.fanout(MEMBERS, &["--rate", RATE, "--token-file", &tokens]);
    let more = [
        "server on core 0, load generator and attackers on core 1, the latter with nice 19",
        &format!("load: `loadgen {}`, each delivery verified", load.join(" ")),
    ];
    bench.header("Attacks", "attacks", &more);
    bench.say(
        "\n| attack | per second, open at once | what it got | members' p99 without, ms | with, ms \
         | with / without by pairs | server memory, MiB |",
    );
    bench.say("| --- | --- | --- | --- | --- | --- | --- |");
    for attack in attacks()? {
        if args.attacks.is_empty() || args.attacks.iter().any(|name| name == attack.name) {
            row(&mut bench, &attack, &engine, &load)?;
            bench.keep("attacks.md")?;
        }
    }
    println!("\nkept in {}", bench.keep("attacks.md")?.display());
    Ok(())
}

fn row(
    bench: &mut Bench,
    attack: &Attack,
    engine: &[&str],
    load: &[String],
) -> Result<(), Failure> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut got = BTreeMap::<String, u64>::new();
    for pair in 0..bench.pairs {
        let name = |side| {
            format!("attack-{}-{side}-{pair}", attack.name.replace(' ', "-").replace('\'', ""))
        };
        let server = bench.start_engine(engine)?;
        without.push(bench.load(&name("without"), &server, load)?);
        drop(server);
        let server = bench.start_engine(engine)?;
        let over = AtomicBool::new(false);
        let run = std::thread::scope(|scope| {
            let attacker = scope.spawn(|| attack.run(&server, &over));
            std::thread::sleep(LEAD);
            let run = bench.load(&name("with"), &server, load);
            over.store(true, Ordering::Relaxed);
            for (answer, count) in attacker.join().map_err(|_| "an attacker panicked")? {
                *got.entry(answer).or_default() += count;
            }
            run
        })?;
        with.push(run);
        eprint!(".");
    }
    eprintln!();
    let p99 = |runs| values(runs, keys::P99);
    let ratios = p99(&with).into_iter().zip(p99(&without)).map(|(with, without)| with / without);
    let ratio = Spread::of(ratios.collect()).show(2);
    let got: Vec<_> = got.iter().map(|(answer, count)| format!("{count} x {answer}")).collect();
    bench.say(&format!(
        "| {} | {}, {} | {} | {} | {} | {ratio} | {} |",
        attack.name,
        attack.rate,
        attack.at_once,
        got.join("; "),
        pairs::scaled(&without, keys::P99, 1e-3).show(2),
        pairs::scaled(&with, keys::P99, 1e-3).show(2),
        pairs::scaled(&with, keys::RSS, 1.0 / f64::from(1 << 20)).show(1),
    ));
    Ok(())
}

/// Keys, a certificate, and tokens of the members that are measured. Returns the server's flags.
fn prepare(files: &Path) -> Result<Vec<String>, Failure> {
    let path = |name: &str| files.join(name).display().to_string();
    std::fs::write(path("keys"), SECRET)?;
    pairs::run(
        Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey"])
            .args(["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", &path("cert.pem")])
            .args(["-keyout", &path("cert.key")])
            .stderr(std::process::Stdio::null()),
    )?;
    let mut lines = String::new();
    for id in (0..MEMBERS).map(|n| format!("m{n:06}")).chain(["p000000".to_owned()]) {
        writeln!(lines, "{id} {}", Issuer::hs256(SECRET).token(&id, 36_000, everything()))?;
    }
    std::fs::write(path("tokens"), lines)?;
    let set = |key: &str, value: String| ["--set".to_owned(), format!("{key}={value}")];
    let mut flags = vec!["--auth-keys".to_owned(), path("keys")];
    flags.extend(["--connections-max".to_owned(), "19000".to_owned()]);
    flags.extend(set("tls_cert", path("cert.pem")));
    flags.extend(set("tls_key", path("cert.key")));
    flags.extend(set("websocket_deflate", "true".to_owned()));
    Ok(flags)
}

fn attacks() -> Result<Vec<Attack>, Failure> {
    let issuer = Issuer::hs256(SECRET);
    let good = issuer.token("mallory", 36_000, json!({"join": ["mine"]}));
    let named = |token: &str| native(&[hello(), auth(token)].concat());
    let with_claims = |header: &str, key: &Issuer, seconds| {
        named(&key.sign_raw(header, &claims("mallory", seconds, everything()).to_string()))
    };
    let hs256 = r#"{"alg":"HS256"}"#;
    let none = [
        base64url(r#"{"alg":"none"}"#),
        base64url(claims("mallory", 60, everything()).to_string()),
        String::new(),
    ]
    .join(".");
    let json_hello =
        br#"{"type":"hello","producer":"00112233445566778899aabbccddeeff","member":"mallory"}"#;
    let json_auth = json!({"type": "auth", "request": 1, "token": good}).to_string();
    let json_open = [ws_frame(TEXT, json_hello), ws_frame(TEXT, json_auth.as_bytes())].concat();
    let json = |message: &[u8]| {
        [upgrade("fanfare.json.v1", "").as_bytes(), &json_open, &ws_frame(TEXT, message)].concat()
    };
    let binary = |frames: &[u8]| [upgrade("fanfare.binary.v1", "").as_bytes(), frames].concat();
    let mut bomb = Vec::new();
    Deflate::default().compress(&vec![b' '; 16 << 20], &mut bomb);
    let deflate = upgrade("fanfare.json.v1", "Sec-WebSocket-Extensions: permessage-deflate\r\n");
    let unmasked = [&[0x82, 100][..], &[0; 100]].concat();
    let request = upgrade("fanfare.binary.v1", "").into_bytes();
    let deep = [&b"["[..]; 60_000].concat();
    let digits = [br#"{"type":"ping","token":"#, &[b'9'; 60_000][..], b"}"].concat();
    let headers = upgrade("fanfare.binary.v1", &"a: b\r\n".repeat(10_000));
    let quick = |name, bytes| Attack { name, bytes, drips: false, rate: 200, at_once: 500 };
    Ok(vec![
        quick("no token", native(&[hello(), join("lobby")].concat())),
        quick("expired token", with_claims(hs256, &issuer, -60)),
        quick("wrong key", with_claims(hs256, &Issuer::hs256(&SECRET.replace('0', "1")), 60)),
        quick("alg none", named(&none)),
        quick("foreign group", native(&[hello(), auth(&good), join("lobby")].concat())),
        quick("oversized frame", native(&[hello(), auth(&good), vec![0xFF; 64]].concat())),
        quick("unmasked frame", binary(&unmasked)),
        quick("bad UTF-8", json(b"{\"type\":\"\xFF\xFE\"}")),
        Attack {
            name: "half-open handshakes",
            bytes: request[..request.len() / 2].to_vec(),
            drips: false,
            rate: 8_000,
            at_once: 10_000,
        },
        Attack { name: "slowloris", bytes: request, drips: true, rate: 1_000, at_once: 1_000 },
        quick("header bomb", headers.into_bytes()),
        quick(
            "cross-origin page",
            upgrade("fanfare.json.v1", "Origin: https://evil.example\r\n").into_bytes(),
        ),
        quick("JSON depth bomb", json(&deep)),
        quick("JSON number bomb", json(&digits)),
        quick("compression bomb", [deflate.as_bytes(), &ws_frame(TEXT | 0x40, &bomb)].concat()),
        quick("a member's compressed megabytes", {
            let mut megabyte = Vec::new();
            let spaces = vec![b' '; WS_MESSAGE_MAX as usize];
            Deflate::default().compress(&spaces, &mut megabyte);
            let megabyte = ws_frame(TEXT | 0x40, &megabyte);
            [deflate.as_bytes(), &json_open, &megabyte, &megabyte].concat()
        }),
        quick("ClientHello", client_hello()?),
        quick("garbage in a TLS record", [&[22, 3, 1, 0x40, 0][..], &[7; 0x4000]].concat()),
        quick("TLS record that never ends", vec![22, 3, 1, 0x40, 0, 1]),
    ])
}

impl Attack {
    /// Attacks until it is over. Returns how often it got what.
    fn run(&self, server: &Server, over: &AtomicBool) -> BTreeMap<String, u64> {
        core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
        // If it cannot give way, the members' latency is worse than it needs to be.
        let _ = setpriority_process(None, NICE);
        let mut got = BTreeMap::<String, u64>::new();
        let mut open = VecDeque::<Attempt>::new();
        let (begun, mut made) = (Instant::now(), 0);
        while !over.load(Ordering::Relaxed) {
            let due = (begun.elapsed().as_secs_f64() * f64::from(self.rate)) as u64;
            // Those that there was no room for are not made up for later.
            while made < due {
                made += 1;
                if open.len() < self.at_once {
                    match self.begin(server) {
                        Ok(attempt) => open.push_back(attempt),
                        Err(error) => {
                            *got.entry(format!("no connection: {}", error.kind())).or_default() +=
                                1;
                        }
                    }
                }
            }
            for _ in 0..open.len().div_ceil(SHARE) {
                let Some(mut attempt) = open.pop_front() else { break };
                match attempt.look(self) {
                    Some(answer) => *got.entry(answer).or_default() += 1,
                    None => open.push_back(attempt),
                }
            }
            std::thread::sleep(TICK);
        }
        let waiting = open.len() as u64;
        if waiting > 0 {
            got.insert("nothing yet".to_owned(), waiting);
        }
        got
    }

    fn begin(&self, server: &Server) -> std::io::Result<Attempt> {
        let stream = TcpStream::connect(server.address())?;
        stream.set_nonblocking(true)?;
        Ok(Attempt { stream, sent: 0, got: Vec::new(), answered: None })
    }
}

impl Attempt {
    /// Sends what there is room for and reads what came; what it got, once that is known.
    fn look(&mut self, attack: &Attack) -> Option<String> {
        let left = &attack.bytes[self.sent..];
        let next = if attack.drips { &left[..left.len().min(1)] } else { left };
        if !next.is_empty() {
            // Of an error the read says more.
            self.sent += self.stream.write(next).unwrap_or(0);
        }
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Some(format!("{}end", said(&self.got))),
                Ok(len) => {
                    self.answered.get_or_insert_with(Instant::now);
                    self.got.extend_from_slice(&chunk[..len]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Some(format!("{}reset", said(&self.got))),
            }
        }
        let late = self.answered.is_some_and(|at| at.elapsed() > ANSWERED);
        late.then(|| format!("{}stays open", said(&self.got)))
    }
}

const TEXT: u8 = 0x81;

fn native(frames: &[u8]) -> Vec<u8> {
    [&MAGIC[..], frames].concat()
}

fn hello() -> Vec<u8> {
    let mut out = Vec::new();
    let (producer, member) = ([7; 16], &b"mallory"[..]);
    Hello { version_min: 1, version_max: 1, encoding: 0, flags: 0, producer, member }
        .encode(&mut out);
    out
}

fn auth(token: &str) -> Vec<u8> {
    let mut out = Vec::new();
    Auth { request: 1, token: token.as_bytes() }.encode(&mut out);
    out
}

fn join(group: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let entry =
        JoinEntry { group: group.as_bytes(), mode: Mode::Live, start: Start::Tail, roster: false };
    Join::encode(&mut out, 2, &[entry]);
    out
}

fn upgrade(protocol: &str, more: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n{more}\r\n"
    )
}

/// What begins a handshake of TLS; the rest never comes.
fn client_hello() -> Result<Vec<u8>, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into()?)?;
    let mut out = Vec::new();
    client.write_tls(&mut out)?;
    Ok(out)
}

/// A frame with a mask of zeros.
fn ws_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len();
    let head = match len {
        0..=125 => vec![first, 0x80 | len as u8],
        126..=0xFFFF => [&[first, 0xFE][..], &(len as u16).to_be_bytes()].concat(),
        _ => [&[first, 0xFF][..], &(len as u64).to_be_bytes()].concat(),
    };
    [&head[..], &[0; 4], payload].concat()
}

/// What the server said, in words.
fn said(got: &[u8]) -> String {
    let mut out = String::new();
    if got.first() == Some(&21) {
        let _ = write!(out, "TLS alert {}, ", got.get(6).copied().unwrap_or(0));
    } else if got.first() == Some(&22) {
        out.push_str("handshake, ");
    } else if got.starts_with(b"HTTP/1.1 ") {
        let text = String::from_utf8_lossy(got);
        let status = text.split(' ').nth(1).unwrap_or_default().to_owned();
        if status != "101" {
            return format!("{status}, ");
        }
        let head = got.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(got.len());
        messages(got.get(head + 4..).unwrap_or_default(), &mut out);
    } else {
        errors(got, &mut out);
    }
    out
}

/// What WebSocket messages say that is an error.
fn messages(mut got: &[u8], out: &mut String) {
    while let [first, len, rest @ ..] = got {
        let (len, rest) = match (*len, rest) {
            (126, [a, b, rest @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), rest),
            (len @ 0..=125, rest) => (usize::from(len), rest),
            _ => return,
        };
        let Some((payload, after)) = rest.split_at_checked(len) else { return };
        match first & 0xF {
            1 => {
                let message: Value = serde_json::from_slice(payload).unwrap_or_default();
                if message["type"] == "error" {
                    let _ = write!(out, "{}, ", message["name"].as_str().unwrap_or("?"));
                }
            }
            2 => errors(payload, out),
            8 if payload.len() >= 2 => {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                let _ = write!(out, "close {code}, ");
            }
            _ => {}
        }
        got = after;
    }
}

/// The ERRORs among native frames.
fn errors(mut got: &[u8], out: &mut String) {
    while let Ok(Some((frame, len))) = split(got, 1 << 20) {
        if let Ok(ServerFrame::Error(error)) = ServerFrame::decode(frame) {
            let name = ErrorCode::from_number(error.code).map(|code| format!("{code:?}, "));
            out.push_str(&name.unwrap_or_else(|| format!("error {}, ", error.code)));
        }
        got = &got[len..];
    }
}
