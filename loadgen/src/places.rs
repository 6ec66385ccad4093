//! Where connections come from, so that a chosen share of the members is on another shard than
//! their group. Shards share the server's port, and the kernel picks one by the addresses of both
//! ends: a source that led to a shard leads to it again as long as the shards stay the same.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use fanfare::limits::FRAME_MAX;
use fanfare::position::ShardId;
use fanfare::wire::{self, Hello, Join, JoinEntry, ServerFrame, Start};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::LoadError;
use crate::plan::Plan;

/// Ports to come from: below those that Linux gives out by itself.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
/// So many sources in a row on the wrong shard: there is no other. More than a run takes, since the
/// ports that are left beside those of a run just before are all of one shard for a minute.
const TRIES_MAX: u32 = 5_000;
const PATIENCE: Duration = Duration::from_secs(10);
const MEMBER: &[u8] = b"where";

/// The source of each connection of the run: of the members and, last, of the publishers, who are
/// where most members are. `foreign` percent of the members are not on the shard of their group.
pub fn find(addr: SocketAddr, plan: &Plan, foreign: u8) -> Result<Vec<SocketAddr>, LoadError> {
    let [group] = &plan.groups[..] else {
        return Err(LoadError::Usage("--foreign needs one group; use fanout".to_owned()));
    };
    let failed = |source| LoadError::Connect { addr, source };
    let owner = owner(addr, group.name.as_bytes()).map_err(failed)?;
    let members = plan.members + plan.stalled;
    let is_foreign = |nth: u32| {
        if nth < members { nth % 100 < u32::from(foreign) } else { foreign > 50 }
    };
    let (mut native, mut others) = (Vec::new(), Vec::new());
    let wanted = members + plan.publishers;
    let wanted_others = (0..wanted).filter(|nth| is_foreign(*nth)).count();
    let wanted_native = wanted as usize - wanted_others;
    // Runs in a row begin at different ports, those of the run before are not free yet.
    let begin = PORTS.start
        + (std::process::id().wrapping_mul(2_503) % u32::from(PORTS.end - PORTS.start)) as u16;
    let (mut ports, mut host, mut in_vain) = (begin..PORTS.end, 0, 0);
    while native.len() < wanted_native || others.len() < wanted_others {
        let port = ports.next().unwrap_or_else(|| {
            host += 1;
            ports = PORTS.start + 1..PORTS.end;
            PORTS.start
        });
        let source = source(addr, host, port).map_err(failed)?;
        let (list, wanted) = match ask(addr, Some(source), None, |frame| match frame {
            ServerFrame::Welcome(welcome) => Some(welcome.shard),
            _ => None,
        }) {
            Ok(shard) if shard == owner => (&mut native, wanted_native),
            Ok(_) => (&mut others, wanted_others),
            Err(e) if is_taken(&e) => continue,
            Err(e) => return Err(failed(e)),
        };
        in_vain += 1;
        if list.len() < wanted {
            list.push(source);
            in_vain = 0;
        }
        if in_vain > TRIES_MAX {
            let text = "no connection comes to a shard as --foreign wants it; use more --shards";
            return Err(LoadError::Usage(text.to_owned()));
        }
    }
    let (mut native, mut others) = (native.into_iter(), others.into_iter());
    let next = |nth| if is_foreign(nth) { others.next() } else { native.next() };
    Ok((0..wanted).filter_map(next).collect())
}

/// Another connection has this source.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// The shard that owns a group, from its handle.
fn owner(addr: SocketAddr, group: &[u8]) -> io::Result<ShardId> {
    ask(addr, None, Some(group), |frame| match frame {
        ServerFrame::Joined(joined) if joined.group == group => Some(joined.handle.shard()),
        _ => None,
    })
}

fn source(addr: SocketAddr, host: u32, port: u16) -> io::Result<SocketAddr> {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => {
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + host);
            Ok(SocketAddr::new(ip.into(), port))
        }
        // Elsewhere there is one address; its ports are enough for what such a run needs.
        _ if host > 0 => Err(io::ErrorKind::AddrNotAvailable.into()),
        IpAddr::V4(_) => Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
        IpAddr::V6(_) => Ok(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port)),
    }
}

/// Connects, says HELLO, joins if there is a group, and reads until a frame has the answer.
fn ask<T>(
    addr: SocketAddr,
    source: Option<SocketAddr>,
    group: Option<&[u8]>,
    mut answer: impl FnMut(ServerFrame<'_>) -> Option<T>,
) -> io::Result<T> {
    let mut socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = source {
        socket.bind(&source.into())?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // Reset when it is dropped, so that the source is free at once.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&addr.into(), PATIENCE)?;
    let mut out = wire::MAGIC.to_vec();
    let (version_min, version_max) = (wire::VERSION, wire::VERSION);
    let producer = [0; 16];
    Hello { version_min, version_max, encoding: 0, flags: 0, producer, member: MEMBER }
        .encode(&mut out);
    if let Some(group) = group {
        Join::encode(&mut out, 1, &[JoinEntry::live(group, Start::Tail)]);
    }
    socket.write_all(&out)?;
    let (mut read, mut some) = (Vec::new(), [0; 4096]);
    loop {
        let count = socket.read(&mut some)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&some[..count]);
        let mut used = 0;
        while let Some((frame, len)) =
            wire::split(&read[used..], FRAME_MAX).map_err(io::Error::other)?
        {
            used += len;
            let frame = ServerFrame::decode(frame).map_err(io::Error::other)?;
            if let ServerFrame::Error(error) = &frame {
                return Err(io::Error::other(String::from_utf8_lossy(error.text).into_owned()));
            }
            if let Some(answer) = answer(frame) {
                return Ok(answer);
            }
        }
        read.drain(..used);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::net::{TcpListener, TcpStream};

    use clap::Parser;
    use fanfare::limits::PAYLOAD_MAX;
    use fanfare::position::{Epoch, Handle, NodeId, Seq};
    use fanfare::wire::{ClientFrame, Joined, Welcome};

    use super::*;
    use crate::args::{Cli, Task};
    use crate::connect::connect_from;

    /// One of two shards on a port; the other one owns all groups.
    fn listener(port: u16) -> TcpListener {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port).into()).unwrap();
        socket.listen(1024).unwrap();
        socket.into()
    }

    /// Answers the first bytes of a client, which are HELLO and perhaps JOIN.
    fn answer(mut stream: TcpStream, shard: u16) -> Option<()> {
        let mut bytes = [0; 1024];
        let count = stream.read(&mut bytes).ok().filter(|count| *count > 0)?;
        let mut out = Vec::new();
        let mut rest = &bytes[wire::MAGIC.len()..count];
        while let Some((frame, len)) = wire::split(rest, FRAME_MAX).ok()? {
            rest = &rest[len..];
            match ClientFrame::decode(frame).ok()? {
                ClientFrame::Hello(_) => Welcome {
                    version: wire::VERSION,
                    node: NodeId(1),
                    shard: ShardId(shard),
                    heartbeat_ms: 0,
                    payload_max: PAYLOAD_MAX as u32,
                    frame_max: FRAME_MAX as u32,
                    groups_per_member_max: 1,
                    ack_every: 1,
                    ack_interval_ms: 1,
                    ack_timeout_ms: 1,
                    publish_window: 1,
                    heartbeat_slot_ms: 0,
                    producer_ttl_ms: 0,
                }
                .encode(&mut out),
                ClientFrame::Join(join) => {
                    let (epoch, seq) = (Epoch(1), Seq(0));
                    let handle = Handle::new(ShardId(1), epoch, 1);
                    for entry in join.entries() {
                        Joined {
                            request: join.request,
                            epoch,
                            handle,
                            head: seq,
                            group: entry.group,
                            first: seq.next(),
                            cursor: seq,
                        }
                        .encode(&mut out);
                    }
                }
                _ => {}
            }
        }
        stream.write_all(&out).ok()
    }

    #[test]
    fn sources_lead_to_the_shard_that_is_wanted() {
        let first = listener(0);
        let addr = first.local_addr().unwrap();
        let listeners = [first, listener(addr.port())];
        let line = "loadgen fanout --members 200 --foreign 30";
        let Task::Run(workload) = Cli::parse_from(line.split(' ')).task else { unreachable!() };
        let plan = Plan::new(&workload, 1).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let sources = std::thread::scope(|scope| {
            for (shard, listener) in (0..).zip(&listeners) {
                let stop = &stop;
                listener.set_nonblocking(true).unwrap();
                scope.spawn(move || {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        match listener.accept() {
                            Ok((stream, _)) => {
                                let _ = stream.set_nonblocking(false);
                                answer(stream, shard);
                            }
                            Err(_) => std::thread::sleep(Duration::from_micros(100)),
                        }
                    }
                });
            }
            let sources = find(addr, &plan, 30);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            sources.unwrap()
        });
        assert_eq!(sources.len(), 201);
        let _open: Vec<_> = sources.iter().map(|s| connect_from(addr, *s).unwrap()).collect();
        let mut came: Vec<SocketAddr> = Vec::new();
        while let Ok((_, from)) = listeners[0].accept() {
            came.push(from);
        }
        let wanted: Vec<_> = (0..200).filter(|m| m % 100 < 30).map(|m| sources[m]).collect();
        assert_eq!(came, wanted);
    }
}
