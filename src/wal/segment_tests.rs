#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn header() -> SegmentHeader {
    SegmentHeader {
        node: NodeId(7),
        shard: ShardId(3),
        number: SegmentNumber(42),
        salt: 0xDEAD_BEEF,
        bytes: 32 << 20,
        created_ms: 1_700_000_000_000,
    }
}

#[test]
fn a_header_decodes_to_what_was_encoded() {
    assert_eq!(SegmentHeader::decode(&header().encode()), Ok(header()));
}

#[test]
fn zeros_and_short_files_are_no_header() {
    assert_eq!(SegmentHeader::decode(&[0; LOG_BLOCK]), Err(SegmentHeaderFault::Zero));
    let short = SegmentHeader::decode(&header().encode()[..100]);
    assert_eq!(short, Err(SegmentHeaderFault::Short { len: 100 }));
}

#[test]
fn another_format_version_is_named() {
    let mut block = header().encode();
    block[8] = 9;
    let crc = crc32fast::hash(&block[..CRC_AT]);
    block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    let fault = SegmentHeader::decode(&block);
    assert_eq!(fault, Err(SegmentHeaderFault::Version { found: 9 }));
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let block = header().encode();
    for bit in 0..LOG_BLOCK * 8 {
        let mut bad = block;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::decode(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn no_bytes_make_decoding_panic() {
    bolero::check!().with_iterations(10_000).with_type::<(Vec<(u16, u8)>, Vec<u8>)>().for_each(
        |(edits, noise)| {
            let mut block = header().encode();
            for (at, byte) in edits {
                block[usize::from(*at) % LOG_BLOCK] = *byte;
            }
            if let Ok(decoded) = SegmentHeader::decode(&block) {
                assert_eq!(decoded.encode()[..48], block[..48]);
            }
            assert!(SegmentHeader::decode(noise).is_err());
        },
    );
}
