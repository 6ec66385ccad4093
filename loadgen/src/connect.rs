//! Sockets, and the first frames on them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use fanfare::wire::{Hello, Join, JoinEntry, MAGIC, Start, VERSION};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::LoadError;
use crate::member::Role;
use crate::plan::Plan;

/// Connections from one source address; a port range has about 28,000.
const CONNECTIONS_PER_SOURCE: u32 = 25_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects the `nth` connection of the run.
pub fn connect(addr: SocketAddr, nth: u32) -> Result<OwnedFd, LoadError> {
    open(addr, nth).map_err(|source| LoadError::Connect { addr, source })
}

fn open(addr: SocketAddr, nth: u32) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Each loopback address has its own range of source ports.
    let source = nth / CONNECTIONS_PER_SOURCE;
    if source > 0 && addr.ip().is_loopback() && addr.is_ipv4() {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + source);
        socket.bind(&SocketAddr::new(IpAddr::V4(ip), 0).into())?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.connect_timeout(&addr.into(), CONNECT_TIMEOUT)?;
    Ok(socket.into())
}

/// Magic, HELLO and JOINs of a connection, sent in one piece without waiting for answers.
pub fn first_frames(plan: &Plan, role: Role, number: u32, groups: &[u32]) -> Vec<u8> {
    let (member, kind) = match role {
        Role::Publisher => (Plan::publisher_name(number), 1),
        Role::Reader | Role::Stalled => (Plan::member_name(number), 0),
    };
    let mut producer = [0; 16];
    producer[..8].copy_from_slice(&plan.run_id.to_le_bytes());
    producer[8..12].copy_from_slice(&number.to_le_bytes());
    producer[12] = kind;
    let mut out = MAGIC.to_vec();
    Hello {
        version_min: VERSION,
        version_max: VERSION,
        encoding: 0,
        flags: 0,
        producer,
        member: member.as_bytes(),
    }
    .encode(&mut out);
    for (i, chunk) in groups.chunks(fanfare::limits::FRAME_ENTRIES_MAX).enumerate() {
        let entries: Vec<JoinEntry<'_>> = chunk
            .iter()
            .map(|g| JoinEntry::live(plan.groups[*g as usize].name.as_bytes(), Start::Tail))
            .collect();
        Join::encode(&mut out, i as u32 + 1, &entries);
    }
    out
}

/// Raises the soft limit of open files to the hard one and checks that it is enough for
/// `wanted` sockets in one ring.
pub fn check_open_files(wanted: u64) -> Result<(), LoadError> {
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: now.maximum, maximum: now.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => now.maximum,
        Err(_) => now.current,
    };
    match limit {
        Some(limit) if limit < wanted => Err(LoadError::TooFewFiles { wanted, limit }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn more_connections_than_one_address_has_ports_come_from_the_next_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (nth, source) in [(0, "127.0.0.1"), (25_000, "127.0.0.2"), (60_000, "127.0.0.3")] {
            let _socket = connect(listener.local_addr().unwrap(), nth).unwrap();
            assert_eq!(listener.accept().unwrap().1.ip().to_string(), source);
        }
    }
}
