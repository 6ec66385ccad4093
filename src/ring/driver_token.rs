//! What a completion belongs to, packed into the 64 bits that travel with a request:
//! operation (8), generation (24), slot (32).

/// The operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    Accept = 1,
    Recv,
    Send,
    Close,
    Wake,
    LogWrite,
    LogRead,
    /// Its completion says nothing: cancels, shutdowns, wake-ups.
    Ignored,
}

/// Operation, generation and slot of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub op: Op,
    pub generation: u32,
    pub slot: u32,
}

const GENERATION_MASK: u32 = 0xFF_FFFF;

impl Token {
    pub fn new(op: Op, generation: u32, slot: u32) -> Self {
        Self { op, generation, slot }
    }

    pub fn pack(self) -> u64 {
        (self.op as u64) << 56
            | u64::from(self.generation & GENERATION_MASK) << 32
            | u64::from(self.slot)
    }

    pub fn unpack(data: u64) -> Self {
        let op = match data >> 56 {
            1 => Op::Accept,
            2 => Op::Recv,
            3 => Op::Send,
            4 => Op::Close,
            5 => Op::Wake,
            6 => Op::LogWrite,
            7 => Op::LogRead,
            _ => Op::Ignored,
        };
        Self { op, generation: (data >> 32) as u32 & GENERATION_MASK, slot: data as u32 }
    }

    /// Generations wrap within their 24 bits.
    pub fn next_generation(generation: u32) -> u32 {
        (generation + 1) & GENERATION_MASK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_survives_packing() {
        for op in [Op::Accept, Op::Recv, Op::Send, Op::Close, Op::Wake, Op::LogWrite, Op::LogRead] {
            let token = Token::new(op, GENERATION_MASK, u32::MAX);
            assert_eq!(Token::unpack(token.pack()), token);
        }
        assert_eq!(Token::next_generation(GENERATION_MASK), 0);
    }
}
