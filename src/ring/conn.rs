//! The table of connections; a connection's index is its direct descriptor.

use super::token::GENERATION_MASK;
use crate::shard::ConnId;

/// No write in flight.
pub(super) const NO_WRITE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Free,
    Open,
    /// Closed by the shard; waits until nothing is in flight.
    Closing,
    /// The close is with the kernel.
    Closed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Recv {
    /// Nothing is with the kernel: ended or paused.
    #[default]
    Off,
    /// A multishot receive is with the kernel.
    Armed,
    /// The same, and it was asked to end.
    Pausing,
    /// Ended for want of buffers; armed again when some came back.
    Starved,
}

/// What the driver knows of one connection. 20 bytes, since every slot of the table has one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conn {
    pub generation: u32,
    pub state: State,
    pub recv: Recv,
    pub shutdown_wanted: bool,
    pub shutdown_in_flight: bool,
    /// Slot of the write in flight.
    pub write: u32,
}

impl Conn {
    pub const FREE: Self = Self {
        generation: 0,
        state: State::Free,
        recv: Recv::Off,
        shutdown_wanted: false,
        shutdown_in_flight: false,
        write: NO_WRITE,
    };

    /// Whether the kernel still works on something of this connection.
    pub fn is_busy(&self) -> bool {
        matches!(self.recv, Recv::Armed | Recv::Pausing)
            || self.write != NO_WRITE
            || self.shutdown_in_flight
    }
}

/// All connections of a shard, live or not.
pub(super) struct Conns {
    slots: Vec<Conn>,
    pub live: usize,
}

impl Conns {
    pub fn new(slots: u32) -> Self {
        Self { slots: vec![Conn::FREE; slots as usize], live: 0 }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The connection `id`, unless it is gone.
    #[inline]
    pub fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.slots.get_mut(id.slot as usize)?;
        (conn.state != State::Free && conn.generation == id.generation).then_some(conn)
    }

    /// The connection that a completion is of, unless it is gone.
    #[inline]
    pub fn of(&mut self, slot: u32, generation: u32) -> Option<(ConnId, &mut Conn)> {
        let conn = self.slots.get_mut(slot as usize)?;
        let id = ConnId { slot, generation: conn.generation };
        let same = conn.generation & GENERATION_MASK == generation;
        (conn.state != State::Free && same).then_some((id, conn))
    }

    /// The connections that are not being closed.
    pub fn open(&self) -> Vec<ConnId> {
        let open = self.slots.iter().enumerate().filter(|(_, conn)| conn.state == State::Open);
        open.map(|(i, c)| ConnId { slot: i as u32, generation: c.generation }).collect()
    }

    /// The current entry of a slot.
    pub fn slot(&mut self, slot: u32) -> Option<&mut Conn> {
        self.slots.get_mut(slot as usize)
    }
}
