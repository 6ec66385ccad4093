//! Sockets, and the first frames on them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use fanfare::client::{AckMode, Core, Membership, Options};
use fanfare::position::Seq;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::LoadError;
use crate::member::Role;
use crate::plan::Plan;

/// Connections from one source address. A port range has about 28,000, but the kernel looks long
/// for a free one when most are taken.
const CONNECTIONS_PER_SOURCE: u32 = 10_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects the `nth` connection of the run.
pub fn connect(addr: SocketAddr, nth: u32) -> Result<OwnedFd, LoadError> {
    // Each loopback address has its own range of source ports.
    let host = nth / CONNECTIONS_PER_SOURCE;
    let source = (host > 0 && addr.ip().is_loopback() && addr.is_ipv4()).then(|| {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + host);
        SocketAddr::new(IpAddr::V4(ip), 0)
    });
    open(addr, source).map_err(|source| LoadError::Connect { addr, source })
}

/// Connects from this source.
pub fn connect_from(addr: SocketAddr, source: SocketAddr) -> Result<OwnedFd, LoadError> {
    open(addr, Some(source)).map_err(|source| LoadError::Connect { addr, source })
}

fn open(addr: SocketAddr, source: Option<SocketAddr>) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = source {
        socket.bind(&source.into())?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.connect_timeout(&addr.into(), CONNECT_TIMEOUT)?;
    Ok(socket.into())
}

/// The client behind a connection: it says who it is, joins its groups in the same breath, and
/// from then on acknowledges, answers probes, and publishes.
pub fn client(plan: &Plan, role: Role, number: u32, groups: &[u32]) -> Result<Core, LoadError> {
    let member = match role {
        Role::Publisher => Plan::publisher_name(number),
        Role::Reader | Role::Stalled => Plan::member_name(number),
    };
    let token = plan.tokens.get(&member);
    let mut options = Options::new(member).acks(AckMode::Explicit);
    if let Some(token) = token {
        options = options.token(token);
    }
    options.quiet_pings = true;
    // The limits of the run are the window and the slots of a channel; and how long to wait for
    // an answer is judged at its end.
    (options.publishes_max, options.publish_bytes_max) = (usize::MAX, usize::MAX);
    options.answer_timeout_ms = u64::MAX;
    options.eager = true;
    let mut core = Core::new(options).map_err(LoadError::Client)?;
    for group in groups {
        let name = plan.groups[*group as usize].name.as_bytes();
        core.join(name, membership(plan)).map_err(LoadError::Client)?;
    }
    Ok(core)
}

/// The client of a reader that comes back: it wants each group from a message on.
pub fn returning(plan: &Plan, number: u32, places: &[(u32, u64)]) -> Result<Core, LoadError> {
    let mut core = client(plan, Role::Reader, number, &[])?;
    for (group, seq) in places {
        let name = plan.groups[*group as usize].name.as_bytes();
        core.join(name, membership(plan).from(Seq(*seq))).map_err(LoadError::Client)?;
    }
    Ok(core)
}

fn membership(plan: &Plan) -> Membership {
    if plan.durable { Membership::durable() } else { Membership::live() }
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
        for (nth, source) in [(0, "127.0.0.1"), (10_000, "127.0.0.2"), (29_999, "127.0.0.3")] {
            let _socket = connect(listener.local_addr().unwrap(), nth).unwrap();
            assert_eq!(listener.accept().unwrap().1.ip().to_string(), source);
        }
    }
}
