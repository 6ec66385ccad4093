#![allow(clippy::unwrap_used)]
use super::*;

fn offered(offers: &str) -> bool {
    is_offered(offers.split(',').map(|offer| offer.trim().as_bytes()))
}

#[test]
fn an_offer_is_taken_if_its_parameters_can_be_kept() {
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; server_max_window_bits=15",
        "permessage-deflate; server_max_window_bits=9, permessage-deflate",
        "permessage-bzip2, permessage-deflate",
        "permessage-deflate;client_max_window_bits=\"15\"",
    ] {
        assert!(offered(offer), "{offer}");
    }
    for offer in [
        "",
        "permessage-bzip2",
        "permessage-deflate; server_max_window_bits=9",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; unknown",
    ] {
        assert!(!offered(offer), "{offer}");
    }
}

#[test]
fn the_examples_of_the_rfc_are_read() {
    let (mut deflate, mut out) = (Deflate::default(), Vec::new());
    // RFC 7692, 7.2.3: one block, one that ends the stream, one that is stored, two blocks.
    for message in [
        &b"\xF2\x48\xCD\xC9\xC9\x07\x00"[..],
        b"\xF3\x48\xCD\xC9\xC9\x07\x00\x00",
        b"\x00\x05\x00\xFA\xFF\x48\x65\x6C\x6C\x6F\x00",
        b"\xF2\x48\x05\x00\x00\x00\xFF\xFF\xCA\xC9\xC9\x07\x00",
    ] {
        assert_eq!(deflate.decompress(message, 100, &mut out), Ok(()), "{message:x?}");
        assert_eq!(out, b"Hello");
    }
}

#[test]
fn messages_come_back_whatever_was_compressed_before_them() {
    let mut deflate = Deflate::default();
    bolero::check!().with_iterations(2_000).with_type::<(Vec<u8>, u16)>().for_each(
        move |(piece, times)| {
            let message = piece.repeat(usize::from(times % 300));
            let (mut compressed, mut back) = (Vec::new(), Vec::new());
            if deflate.compress(&message, &mut compressed) {
                assert!(compressed.len() < message.len());
                deflate.decompress(&compressed, message.len(), &mut back).unwrap();
                assert_eq!(back, message);
            } else {
                assert!(compressed.is_empty());
            }
        },
    );
}

#[test]
fn long_messages_are_compressed_and_come_back() {
    let mut deflate = Deflate::default();
    for len in [64, 1_000, 65_536, 1_000_000] {
        let message: Vec<u8> = (0..len).map(|n: u32| (n % 251) as u8 ^ (n / 1_000) as u8).collect();
        let (mut compressed, mut back) = (Vec::new(), Vec::new());
        if deflate.compress(&message, &mut compressed) {
            deflate.decompress(&compressed, message.len(), &mut back).unwrap();
            assert_eq!(back, message);
        } else {
            assert_eq!(len, 64);
        }
    }
}

#[test]
fn a_bomb_ends_at_the_bound() {
    let (mut deflate, mut bomb, mut out) = (Deflate::default(), Vec::new(), Vec::new());
    assert!(deflate.compress(&vec![0; 4_000_000], &mut bomb));
    assert!(bomb.len() < 30_000);
    assert_eq!(deflate.decompress(&bomb, 1 << 20, &mut out), Err(Unreadable::TooBig));
    assert!(out.len() <= 1 << 20 && out.capacity() < 3 << 20, "{}", out.capacity());
    assert_eq!(deflate.decompress(b"\xFF\xFF\xFF", 100, &mut out), Err(Unreadable::Broken));
    assert_eq!(deflate.decompress(b"\xF2\x48\xCD\xC9\xC9\x07\x00", 100, &mut out), Ok(()));
}
