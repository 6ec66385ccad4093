#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::super::testing::{OwnedRun, SALT, commit, run};
use super::*;

fn runs_of<'a>(commit: &Commit<'a>) -> Vec<Run<'a>> {
    commit.runs().collect()
}

#[test]
fn a_commit_of_any_size_decodes_to_what_was_encoded() {
    // Sizes around the sector, the block, and the end of the first two checksum tables.
    let edges = [0, 1, 300, 4096, 115 * 512, 236 * 512].map(|edge: usize| edge.saturating_sub(600));
    for payload in edges.into_iter().flat_map(|low| (low..low + 1200).step_by(97)) {
        let runs = [run(1, 5, 2, 40), run(2, 1, 1, payload)];
        let bytes = commit(9, &runs);
        let decoded = decode_commit(&bytes, SALT).unwrap();
        assert_eq!(decoded.number, CommitNumber(9));
        assert_eq!(decoded.max_stamp, Stamp(9 << 16));
        assert_eq!(decoded.total_len, bytes.len());
        assert_eq!(bytes.len() % LOG_BLOCK, 0);
        assert_eq!(runs_of(&decoded), runs.iter().map(OwnedRun::as_run).collect::<Vec<_>>());
        assert_eq!(decoded.runs().next().unwrap().metas().count(), 2);
    }
}

#[test]
fn an_empty_commit_is_one_block() {
    let bytes = commit(1, &[]);
    assert_eq!(bytes.len(), LOG_BLOCK);
    assert_eq!(runs_of(&decode_commit(&bytes, SALT).unwrap()), []);
}

#[test]
fn encoding_leaves_no_byte_of_the_buffers_earlier_use() {
    let runs = [run(1, 1, 1, 700)];
    let runs: Vec<Run<'_>> = runs.iter().map(OwnedRun::as_run).collect();
    let mut buf = LogBuf::with_capacity(64 * 1024);
    encode_commit(&mut buf, CommitNumber(1), SALT, Stamp(1), &runs);
    let clean = buf.as_slice().to_vec();
    buf.set_len(64 * 1024);
    buf.as_mut_slice().fill(0xEE);
    encode_commit(&mut buf, CommitNumber(1), SALT, Stamp(1), &runs);
    assert_eq!(buf.as_slice(), clean);
}

#[test]
fn zeros_never_decode_as_a_commit() {
    for len in [LOG_BLOCK, 8 * LOG_BLOCK] {
        assert_eq!(decode_commit(&vec![0; len], 0).unwrap_err(), CommitFault::End);
    }
    assert_eq!(decode_commit(&[], 0).unwrap_err(), CommitFault::Incomplete { need: LOG_BLOCK });
}

#[test]
fn a_commit_of_another_segment_does_not_decode() {
    let bytes = commit(1, &[run(1, 1, 1, 10)]);
    let why = "salt of another segment";
    let of_another = decode_commit(&bytes, !SALT).unwrap_err();
    assert_eq!(of_another, CommitFault::BadHeader { why, salted: false });
    // As near as rot leaves it, but with a checksum that is right: whatever it is, a header was there.
    let near = decode_commit(&bytes, SALT + 1).unwrap_err();
    assert_eq!(near, CommitFault::BadHeader { why, salted: true });
}

#[test]
fn a_flipped_bit_anywhere_but_in_the_padding_is_found() {
    let bytes = commit(3, &[run(1, 1, 1, 120 * 512)]);
    let used = used_len(&bytes);
    for at in 0..used {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        let fault = decode_commit(&bad, SALT).unwrap_err();
        let expected = if at < LOG_SECTOR {
            matches!(fault, CommitFault::BadHeader { .. })
        } else {
            matches!(fault, CommitFault::Rotten { .. })
        };
        assert!(expected, "byte {at}: {fault:?}");
    }
}

#[test]
fn any_set_of_missing_sectors_is_torn_and_never_a_commit() {
    let bytes = commit(3, &[run(1, 1, 4, 700)]);
    let sectors = used_len(&bytes) / LOG_SECTOR;
    assert!(sectors >= 7);
    for missing in 1u32..1 << sectors {
        let mut torn = bytes.clone();
        for sector in (0..sectors).filter(|s| missing & (1 << s) != 0) {
            torn[sector * LOG_SECTOR..][..LOG_SECTOR].fill(0);
        }
        let fault = decode_commit(&torn, SALT).unwrap_err();
        let expected = match missing & 1 {
            0 => matches!(fault, CommitFault::Torn { number: CommitNumber(3), .. }),
            _ => matches!(fault, CommitFault::Headless | CommitFault::End),
        };
        assert!(expected, "sectors {missing:b}: {fault:?}");
    }
}

#[test]
fn a_missing_continuation_header_is_torn() {
    let bytes = commit(3, &[run(1, 1, 1, 200 * 512)]);
    let mut torn = bytes.clone();
    torn[LOG_SECTOR..2 * LOG_SECTOR].fill(0);
    assert!(matches!(decode_commit(&torn, SALT), Err(CommitFault::Torn { .. })));
}

#[test]
fn a_commit_cut_off_at_any_block_asks_for_its_whole_length() {
    let bytes = commit(3, &[run(1, 1, 4, 9000)]);
    for len in (0..bytes.len()).step_by(500) {
        let need = if len < LOG_BLOCK { LOG_BLOCK } else { bytes.len() };
        let fault = decode_commit(&bytes[..len], SALT).unwrap_err();
        assert_eq!(fault, CommitFault::Incomplete { need });
    }
}

/// Rewrites all checksums, so that only the bounds stand between the bytes and the reader.
fn reseal(bytes: &mut [u8]) {
    let layout = Layout::of(u32_at(bytes, 24) as usize);
    if layout.total_len > bytes.len() {
        return;
    }
    for sector in 0..layout.body_sectors {
        let start = layout.body_at() + sector * LOG_SECTOR;
        let crc = crc32fast::hash(&bytes[start..start + LOG_SECTOR]);
        bytes[crc_at(sector)..][..4].copy_from_slice(&crc.to_le_bytes());
    }
    for header in bytes[..layout.body_at()].chunks_exact_mut(LOG_SECTOR) {
        let crc = crc32fast::hash(&header[..CRC_AT]);
        header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
}

#[test]
fn directories_that_lie_under_right_checksums_do_not_decode() {
    let good = commit(1, &[run(1, 1, 2, 50), run(2, 1, 1, 50)]);
    let entry = LOG_SECTOR;
    let body_len = u64::from(u32_at(&good, 24));
    let lies: [(&str, usize, u64, usize); 11] = [
        ("run count too small", 32, 1, 4),
        ("bytes after the last run", 24, body_len + 1, 4),
        ("run count too large", 32, 3, 4),
        ("run count senseless", 32, u32::MAX.into(), 4),
        ("directory length too short", 28, 8, 4),
        ("directory length above the body", 28, u32::MAX.into(), 4),
        ("sequence numbers overflow", entry + 16, u64::MAX, 8),
        ("count senseless", entry + 24, u32::MAX.into(), 4),
        ("frames beyond the body", entry + 28, u32::MAX.into(), 4),
        ("data elsewhere", entry + 32, 0, 4),
        ("no name", entry + 36, 0, 1),
    ];
    for (what, at, value, width) in lies {
        let mut bad = good.clone();
        bad[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        reseal(&mut bad);
        assert!(decode_commit(&bad, SALT).is_err(), "{what}");
    }
    let mut same = good.clone();
    reseal(&mut same);
    assert_eq!(same, good, "resealing alone changes nothing");
}

#[test]
fn a_length_above_the_largest_commit_is_refused_before_it_is_read() {
    let mut bad = commit(1, &[run(1, 1, 1, 50)]);
    bad[24..28].copy_from_slice(&(COMMIT_BYTES_MAX as u32).to_le_bytes());
    let crc = crc32fast::hash(&bad[..CRC_AT]);
    bad[CRC_AT..LOG_SECTOR].copy_from_slice(&crc.to_le_bytes());
    let fault = decode_commit(&bad, SALT).unwrap_err();
    assert_eq!(fault, CommitFault::BadHeader { why: "lengths that cannot be", salted: true });
}

#[test]
fn no_bytes_make_decoding_panic() {
    bolero::check!().with_iterations(20_000).with_type::<(Vec<u8>, bool)>().for_each(
        |(noise, sealed)| {
            let mut bytes = commit(1, &[run(1, 1, 2, 30), run(2, 4, 1, 900)]);
            for edit in noise.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % bytes.len();
                bytes[at] ^= edit[2];
            }
            if *sealed {
                reseal(&mut bytes);
            }
            if let Ok(commit) = decode_commit(&bytes, SALT) {
                for run in commit.runs() {
                    assert!(run.metas().count() <= run.count as usize);
                }
            }
            let _ = decode_commit(noise, SALT);
        },
    );
}

/// Header and body without the padding at the end, from the header's own fields.
fn used_len(bytes: &[u8]) -> usize {
    let layout = Layout::of(u32_at(bytes, 24) as usize);
    (layout.header_sectors + layout.body_sectors) * LOG_SECTOR
}
