//! What the ring's user data says: operation (8 bits), generation (24 bits), slot (32 bits).

/// Operations a ring has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    /// Nobody cares how it ended.
    Ignore = 0,
    Accept,
    CancelAccept,
    Recv,
    CancelRecv,
    Send,
    CancelSend,
    Shutdown,
    Close,
    Wake,
    LogWrite,
    LogRead,
    Unsent,
}

const OPS: [Op; 13] = [
    Op::Ignore,
    Op::Accept,
    Op::CancelAccept,
    Op::Recv,
    Op::CancelRecv,
    Op::Send,
    Op::CancelSend,
    Op::Shutdown,
    Op::Close,
    Op::Wake,
    Op::LogWrite,
    Op::LogRead,
    Op::Unsent,
];

/// Bits of a generation that travel through the kernel.
pub(super) const GENERATION_MASK: u32 = (1 << 24) - 1;

#[inline]
pub(super) fn pack(op: Op, slot: u32, generation: u32) -> u64 {
    (op as u64) << 56 | u64::from(generation & GENERATION_MASK) << 32 | u64::from(slot)
}

/// Operation, slot and generation (its low bits).
#[inline]
pub(super) fn unpack(user_data: u64) -> (Op, u32, u32) {
    let op = OPS.get((user_data >> 56) as usize).copied().unwrap_or(Op::Ignore);
    (op, user_data as u32, (user_data >> 32) as u32 & GENERATION_MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_all_fields() {
        for op in OPS {
            assert_eq!(
                unpack(pack(op, u32::MAX, GENERATION_MASK)),
                (op, u32::MAX, GENERATION_MASK)
            );
            assert_eq!(unpack(pack(op, 7, GENERATION_MASK + 4)), (op, 7, 3));
        }
    }
}
