//! Broadcasters in this process that speak the protocols of other systems, and break their
//! promises in one chosen way. Written from the specifications, apart from loadgen's own codecs.

use std::collections::HashMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread;

use super::{AT, Fault};

/// The connection that is hit by faults that hit one: the first, which is a member's.
const VICTIM: usize = 0;
/// At these messages two publishers' messages change places for half of the members.
const TWO_ORDERS_AT: [u64; 3] = [AT, 2 * AT, 3 * AT];

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Redis,
    Nats,
    Mqtt(u8),
    Ws,
}

impl Speaks {
    pub const ALL: [Self; 5] = [Self::Redis, Self::Nats, Self::Mqtt(0), Self::Mqtt(1), Self::Ws];

    /// How loadgen is told.
    pub fn flags(self) -> &'static str {
        match self {
            Self::Redis => "--target redis",
            Self::Nats => "--target nats",
            Self::Mqtt(0) => "--target mqtt",
            Self::Mqtt(_) => "--target mqtt --qos 1",
            Self::Ws => "--target ws",
        }
    }

    pub fn answers(self) -> bool {
        matches!(self, Self::Redis | Self::Mqtt(1))
    }
}

/// What a client asked for.
enum Asked {
    Subscribe(Vec<String>, u16),
    Publish(String, Vec<u8>, u16),
    Say(Vec<u8>),
    Nothing,
}

struct Member {
    connection: usize,
    out: Sender<Vec<u8>>,
    /// By the group's name: NATS's sid.
    groups: HashMap<String, usize>,
    id: u16,
}

struct Hub {
    speaks: Speaks,
    fault: Fault,
    members: Vec<Member>,
    messages: HashMap<String, u64>,
    /// With the connection it came on.
    held: Option<(usize, Vec<u8>)>,
}

/// Starts one that writes in pieces of at most `piece` bytes (0: as they come).
pub fn peer(speaks: Speaks, fault: Fault, piece: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let hub = Hub { speaks, fault, members: Vec::new(), messages: HashMap::new(), held: None };
    let hub = Arc::new(Mutex::new(hub));
    thread::spawn(move || {
        for (connection, stream) in listener.incoming().flatten().enumerate() {
            let hub = Arc::clone(&hub);
            thread::spawn(move || serve(stream, &hub, (speaks, connection), piece));
        }
    });
    addr
}

fn serve(
    mut stream: TcpStream,
    hub: &Mutex<Hub>,
    (speaks, connection): (Speaks, usize),
    piece: usize,
) {
    let out = super::writer(stream.try_clone().unwrap(), piece);
    if speaks == Speaks::Nats {
        out.send(b"INFO {\"max_payload\":1048576}\r\n".to_vec()).unwrap();
    }
    let mut buffer = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    let (mut open, mut room) = (false, String::new());
    loop {
        let Ok(n @ 1..) = stream.read(&mut chunk) else { return };
        buffer.extend_from_slice(&chunk[..n]);
        loop {
            let asked = match speaks {
                Speaks::Redis => redis(&buffer, open),
                Speaks::Nats => nats(&buffer),
                Speaks::Mqtt(_) => mqtt(&buffer),
                Speaks::Ws if open => ws(&buffer, &room),
                Speaks::Ws => upgrade(&buffer),
            };
            let Some((asked, len)) = asked else { break };
            buffer.drain(..len);
            let mut hub = hub.lock().unwrap();
            match asked {
                Asked::Subscribe(groups, id) => {
                    open = true;
                    room = groups[0].clone();
                    hub.subscribe(&groups, id, (connection, &out));
                }
                Asked::Publish(group, payload, id) => {
                    hub.publish(&group, &payload, id, (connection, &out));
                }
                Asked::Say(bytes) => out.send(bytes).unwrap(),
                Asked::Nothing => {}
            }
        }
    }
}

fn line(bytes: &[u8]) -> Option<(&str, usize)> {
    let end = bytes.windows(2).position(|w| w == b"\r\n")?;
    Some((std::str::from_utf8(&bytes[..end]).unwrap(), end + 2))
}

fn redis(bytes: &[u8], subscribed: bool) -> Option<(Asked, usize)> {
    let (head, mut at) = line(bytes)?;
    let mut parts: Vec<&[u8]> = Vec::new();
    for _ in 0..head.strip_prefix('*').unwrap().parse::<usize>().unwrap() {
        let (size, len) = line(&bytes[at..])?;
        let size: usize = size.strip_prefix('$').unwrap().parse().unwrap();
        parts.push(bytes.get(at + len..at + len + size)?);
        bytes.get(at + len + size + 1)?;
        at += len + size + 2;
    }
    let text = |i: usize| String::from_utf8(parts[i].to_vec()).unwrap();
    let asked = match parts[0] {
        b"SUBSCRIBE" => Asked::Subscribe(vec![text(1)], 0),
        b"PUBLISH" => Asked::Publish(text(1), parts[2].to_vec(), 0),
        b"PING" if subscribed => Asked::Say(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n".to_vec()),
        b"PING" => Asked::Say(b"+PONG\r\n".to_vec()),
        other => panic!("{other:?}"),
    };
    Some((asked, at))
}

fn nats(bytes: &[u8]) -> Option<(Asked, usize)> {
    let (text, len) = line(bytes)?;
    let words: Vec<&str> = text.split(' ').collect();
    Some(match words[0] {
        "CONNECT" | "PONG" => (Asked::Nothing, len),
        "PING" => (Asked::Say(b"PONG\r\nPING\r\n".to_vec()), len),
        "SUB" => (Asked::Subscribe(vec![words[1].to_owned()], words[2].parse().unwrap()), len),
        "PUB" => {
            let size: usize = words[2].parse().unwrap();
            bytes.get(len + size + 1)?;
            let payload = bytes[len..len + size].to_vec();
            (Asked::Publish(words[1].to_owned(), payload, 0), len + size + 2)
        }
        other => panic!("{other}"),
    })
}

fn mqtt(bytes: &[u8]) -> Option<(Asked, usize)> {
    let (mut size, mut at) = (0, 1);
    loop {
        let byte = *bytes.get(at)?;
        size |= usize::from(byte & 0x7F) << (7 * (at - 1));
        at += 1;
        if byte < 0x80 {
            break;
        }
    }
    let body = bytes.get(at..at + size)?;
    let u16_at = |i: usize| u16::from_be_bytes([body[i], body[i + 1]]);
    let string = |i: usize| {
        let end = i + 2 + usize::from(u16_at(i));
        (String::from_utf8(body[i + 2..end].to_vec()).unwrap(), end)
    };
    let asked = match bytes[0] {
        0x10 => {
            assert_eq!(body[..8], *b"\0\x04MQTT\x04\x02");
            Asked::Say(vec![0x20, 2, 0, 0])
        }
        0x82 => {
            let (mut groups, mut i) = (Vec::new(), 2);
            while i < body.len() {
                let (group, end) = string(i);
                groups.push(group);
                i = end + 1;
            }
            Asked::Subscribe(groups, u16_at(0))
        }
        0x30 => {
            let (group, end) = string(0);
            Asked::Publish(group, body[end..].to_vec(), 0)
        }
        0x32 => {
            let (group, end) = string(0);
            Asked::Publish(group, body[end + 2..].to_vec(), u16_at(end))
        }
        0x40 => Asked::Nothing,
        0xC0 => Asked::Say(vec![0xD0, 0]),
        other => panic!("{other:#x}"),
    };
    Some((asked, at + size))
}

fn upgrade(bytes: &[u8]) -> Option<(Asked, usize)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..end]).unwrap();
    let path = text.strip_prefix("GET /").unwrap().split(' ').next().unwrap();
    Some((Asked::Subscribe(vec![path.to_owned()], 0), end))
}

fn ws(bytes: &[u8], room: &str) -> Option<(Asked, usize)> {
    let [first, second, ..] = bytes else { return None };
    assert!(second & 0x80 != 0, "a client masks");
    let (size, at) = match second & 0x7F {
        126 => (usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])), 4),
        127 => (u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?) as usize, 10),
        size => (size.into(), 2),
    };
    let mask = bytes.get(at..at + 4)?;
    let body = bytes.get(at + 4..at + 4 + size)?;
    let payload: Vec<u8> = body.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m).collect();
    let asked = match first {
        0x82 => Asked::Publish(room.to_owned(), payload, 0),
        0x8A => Asked::Nothing,
        other => panic!("{other:#x}"),
    };
    Some((asked, at + 4 + size))
}

impl Hub {
    fn subscribe(
        &mut self,
        groups: &[String],
        id: u16,
        (connection, out): (usize, &Sender<Vec<u8>>),
    ) {
        let known = self.members.iter().position(|m| m.connection == connection);
        let at = known.unwrap_or_else(|| {
            let (out, groups) = (out.clone(), HashMap::new());
            self.members.push(Member { connection, out, groups, id: 0 });
            self.members.len() - 1
        });
        for group in groups {
            let groups = &mut self.members[at].groups;
            groups.insert(group.clone(), id.into());
            let n = groups.len();
            if self.speaks == Speaks::Redis {
                let size = group.len();
                let text = format!("*3\r\n$9\r\nsubscribe\r\n${size}\r\n{group}\r\n:{n}\r\n");
                out.send(text.into_bytes()).unwrap();
            }
        }
        match self.speaks {
            Speaks::Mqtt(qos) => {
                let [high, low] = id.to_be_bytes();
                let mut packet = vec![0x90, 2 + groups.len() as u8, high, low];
                packet.extend(groups.iter().map(|_| qos));
                out.send(packet).unwrap();
            }
            Speaks::Ws => {
                let text = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
                out.send([text.as_bytes(), b"\x89\x02hi"].concat()).unwrap();
            }
            Speaks::Redis | Speaks::Nats => {}
        }
    }

    fn publish(
        &mut self,
        group: &str,
        payload: &[u8],
        id: u16,
        (connection, out): (usize, &Sender<Vec<u8>>),
    ) {
        let n = self.messages.entry(group.to_owned()).or_default();
        *n += 1;
        let (n, fault) = (*n, self.fault);
        let hit = n == AT;
        let readers = self.members.iter().filter(|m| m.groups.contains_key(group)).count();
        let answer = match self.speaks {
            Speaks::Redis => {
                let told = readers - usize::from(hit && fault == Fault::WrongSeq);
                format!(":{told}\r\n").into_bytes()
            }
            Speaks::Mqtt(1) => [[0x40, 2], id.to_be_bytes()].concat(),
            _ => Vec::new(),
        };
        let withheld = hit && fault == Fault::NoAnswer;
        if !answer.is_empty() && !withheld {
            let twice = hit && fault == Fault::TwoAnswers;
            out.send(if twice { answer.repeat(2) } else { answer }).unwrap();
        }
        let mut payloads = vec![payload.to_vec()];
        let mut exchanged = false;
        match fault {
            Fault::LoseForAll if hit => payloads.clear(),
            Fault::DuplicateForAll if hit => payloads.push(payload.to_vec()),
            Fault::CorruptForAll if hit => *payloads[0].last_mut().unwrap() ^= 1,
            Fault::ReorderForAll if hit => self.held = Some((connection, payloads.remove(0))),
            Fault::TwoOrders if TWO_ORDERS_AT.contains(&n) => {
                self.held = Some((connection, payloads.remove(0)));
            }
            Fault::ReorderForAll | Fault::TwoOrders => {
                if let Some((by, held)) = self.held.take() {
                    // Those of one publisher keep their order.
                    exchanged = fault == Fault::ReorderForAll || by != connection;
                    payloads.insert(0, held);
                }
            }
            _ => {}
        }
        let speaks = self.speaks;
        for member in &mut self.members {
            let Some(sid) = member.groups.get(group).copied() else { continue };
            let mut payloads = payloads.clone();
            if exchanged && (fault == Fault::ReorderForAll || member.connection % 2 == 1) {
                payloads.reverse();
            }
            if member.connection == VICTIM {
                match fault {
                    Fault::Lose if hit => continue,
                    Fault::LoseTheRest if n > AT => continue,
                    Fault::Duplicate if hit => payloads.push(payload.to_vec()),
                    Fault::Corrupt if hit => *payloads[0].last_mut().unwrap() ^= 1,
                    Fault::Reorder if hit => {
                        self.held = Some((connection, payloads.remove(0)));
                        continue;
                    }
                    Fault::Reorder if n == AT + 1 => {
                        payloads.extend(self.held.take().map(|(_, held)| held));
                    }
                    Fault::Close if hit => {
                        let _ = member.out.send(Vec::new());
                        continue;
                    }
                    Fault::Garbage if hit => {
                        let _ = member.out.send(vec![0xFF; 64]);
                        continue;
                    }
                    _ => {}
                }
            }
            for payload in payloads {
                member.id = member.id.checked_add(1).unwrap_or(1);
                let _ = member.out.send(message(speaks, group, &payload, sid, member.id));
            }
        }
    }
}

fn message(speaks: Speaks, group: &str, payload: &[u8], sid: usize, id: u16) -> Vec<u8> {
    let (name, size) = (group.len(), payload.len());
    let mut out = match speaks {
        Speaks::Redis => {
            format!("*3\r\n$7\r\nmessage\r\n${name}\r\n{group}\r\n${size}\r\n").into_bytes()
        }
        Speaks::Nats => format!("MSG {group} {sid} {size}\r\n").into_bytes(),
        Speaks::Mqtt(qos) => {
            let mut rest = 2 + name + 2 * usize::from(qos) + size;
            let mut out = vec![0x30 | qos << 1];
            while rest >= 0x80 {
                out.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            out.push(rest as u8);
            out.extend_from_slice(&(name as u16).to_be_bytes());
            out.extend_from_slice(group.as_bytes());
            if qos == 1 {
                out.extend_from_slice(&id.to_be_bytes());
            }
            out
        }
        Speaks::Ws if size <= 125 => vec![0x82, size as u8],
        Speaks::Ws if size <= 0xFFFF => [&[0x82, 126][..], &(size as u16).to_be_bytes()].concat(),
        Speaks::Ws => [&[0x82, 127][..], &(size as u64).to_be_bytes()].concat(),
    };
    out.extend_from_slice(payload);
    if matches!(speaks, Speaks::Redis | Speaks::Nats) {
        out.extend_from_slice(b"\r\n");
    }
    out
}
