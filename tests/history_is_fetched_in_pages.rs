//! FETCH reads the history of a group in pages, from memory or from the log, without joining;
//! what is gone is said, and a storm of it stalls nobody.
#![allow(clippy::unwrap_used, clippy::expect_used)]
mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::queries::Page;
use common::{Client, Follower, Got, Server, Settings};
use fanfare::position::Level;
use fanfare::wire::{ErrorCode, FETCHED_FIXED, GapReason};

fn any_shards(test: impl Fn(u16)) {
    test(1);
    test(2);
}

fn payload(seq: u64) -> Vec<u8> {
    vec![seq as u8; (seq * 37 % 300) as usize]
}

/// Publishes `count` messages to `group`, many at a time.
fn publish(client: &mut Client, group: &str, first: u64, count: u64) {
    let mut requests = Vec::new();
    let mut bytes = Vec::new();
    for seq in first..first + count {
        let (request, frame) = client.publish_frame(group, None, &payload(seq));
        bytes.extend_from_slice(&frame);
        requests.push(request);
        if requests.len() == 64 || seq + 1 == first + count {
            client.send(&std::mem::take(&mut bytes));
            for request in requests.drain(..) {
                client.published(request);
            }
        }
    }
}

fn check(pages: &[Page], from: u64, to: u64) {
    let mut next = from;
    for page in pages {
        if let Some((gap_from, gap_to, _)) = page.gap {
            assert_eq!(gap_from, next);
            next = gap_to + 1;
        }
        for (seq, sender, payload_got) in &page.messages {
            assert_eq!(*seq, next);
            assert_eq!((&sender[..], payload_got), (&b"pub"[..], &payload(next)));
            next += 1;
        }
    }
    assert_eq!(next, to + 1);
}

#[test]
fn pages_keep_their_bounds_and_together_are_the_history() {
    any_shards(|shards| {
        let settings = Settings::shards(shards).set("payload_max", 1024);
        // The second time almost all of it is in the log alone.
        for tail in [64 << 20, 64 << 10] {
            let mut server = Server::start(settings.clone().set("tail_bytes_max", tail));
            for start in 0..2 {
                for shard in 0..shards {
                    let mut client = Client::on_shard(&server, shard, "pub");
                    let group = format!("group of {shard}");
                    if start == 0 {
                        publish(&mut client, &group, 1, 2_000);
                    }
                    let pages = client.fetch_all(&group, 1);
                    check(&pages, 1, 2_000);
                    let frame_max = 1024 + 1024;
                    for page in &pages {
                        assert!(page.bytes + FETCHED_FIXED - 4 <= frame_max, "{}", page.bytes);
                        assert_eq!(page.head, 2_000);
                    }
                    check(&client.fetch_all(&group, 1_234), 1_234, 2_000);
                    let page = client.fetch(&group, 500, 0, 3, 0);
                    assert_eq!((page.first, page.last, page.more), (500, 502, true));
                    let page = client.fetch(&group, 500, 501, 0, 0);
                    assert_eq!((page.first, page.last, page.more), (500, 501, false));
                    let page = client.fetch(&group, 700, 0, 0, 500);
                    assert!(page.bytes <= 500 && page.more && !page.messages.is_empty());
                    let page = client.fetch(&group, 700, 0, 0, 1);
                    assert_eq!((page.first, page.last, page.more), (700, 700, true), "one always");
                    let page = client.fetch(&group, 2_001, 0, 0, 0);
                    assert_eq!((page.first, page.last, page.head, page.more), (0, 0, 2_000, false));
                }
                if start == 0 && tail == 64 << 20 {
                    server.kill();
                    server.restart();
                }
            }
        }
    });
}

#[test]
fn a_page_holds_messages_of_one_epoch() {
    any_shards(|shards| {
        let mut server = Server::start(Settings::shards(shards));
        let mut client = Client::open(&server, "pub");
        for seq in 1..=20 {
            let (request, bytes) = client.publish_frame("g", Some(Level::Memory), &payload(seq));
            client.send(&bytes);
            client.published(request);
        }
        // Durable, so that everything before it is in the log too.
        publish(&mut client, "g", 21, 1);
        server.kill();
        server.restart();
        let mut client = Client::open(&server, "pub");
        publish(&mut client, "g", 22, 10);
        let pages = client.fetch_all("g", 1);
        check(&pages, 1, 31);
        let epochs: Vec<_> = pages.iter().map(|page| page.epoch).collect();
        assert!(epochs.is_sorted() && epochs[0] < epochs[epochs.len() - 1], "{epochs:?}");
        let boundary = pages.iter().find(|page| page.epoch > epochs[0]).unwrap();
        assert_eq!(boundary.first, 22);
    });
}

#[test]
fn what_retention_took_is_a_gap() {
    any_shards(|shards| {
        let settings =
            Settings::shards(shards).set("retention_bytes", 8 << 20).set("tail_bytes_max", 1 << 20);
        let server = Server::start(settings);
        let mut client = Client::open(&server, "pub");
        let big = vec![7; 60_000];
        let mut head = 0;
        let first_kept = loop {
            let requests: Vec<_> = (0..16).map(|_| client.send_publish("g", &big)).collect();
            for request in requests {
                head = client.published(request).seq.0;
            }
            let page = client.fetch("g", 1, 0, 1, 0);
            if let Some((from, to, reason)) = page.gap {
                assert_eq!((from, reason), (1, GapReason::Retention));
                if !page.messages.is_empty() {
                    assert_eq!(page.first, to + 1);
                }
                break to + 1;
            }
            assert!(head < 2_000, "retention takes nothing");
        };
        let page = client.fetch("g", 2, 5, 0, 0);
        let gap = Some((2, 5, GapReason::Retention));
        assert_eq!((page.gap, page.more, page.messages.len()), (gap, false, 0));
        let pages = client.fetch_all("g", 1);
        assert!(pages[0].gap.unwrap().1 + 1 >= first_kept);
        assert_eq!(pages.last().unwrap().last, head);
        assert!(pages[1..].iter().all(|page| page.gap.is_none()));
    });
}

#[test]
fn a_client_that_asks_and_does_not_read_gets_every_answer_when_it_does() {
    any_shards(|shards| {
        let server = Server::start(Settings::shards(shards).set("tail_bytes_max", 64 << 10));
        let mut publisher = Client::open(&server, "pub");
        publish(&mut publisher, "g", 1, 2_000);
        for shard in 0..shards {
            let mut client = Client::on_shard(&server, shard, "deaf");
            let asked: Vec<_> = (0..300).map(|_| client.send_fetch("g", 1, 0, 0, 0)).collect();
            std::thread::sleep(Duration::from_millis(200));
            publish(&mut publisher, "other", 1, 64);
            let (mut pages, mut refused) = (0, 0);
            for request in asked {
                let is_page = client.expect("an answer", |got| match got {
                    Got::Fetched(page) if page.request == request => Some(page.first == 1),
                    Got::Error { request: of, code, .. } if *of == request => {
                        assert_eq!(*code, ErrorCode::TooManyRequests as u16);
                        Some(false)
                    }
                    _ => None,
                });
                *if is_page { &mut pages } else { &mut refused } += 1;
            }
            assert_eq!(pages + refused, 300);
            assert!(pages >= 8, "{pages}");
        }
    });
}

/// Many connections read history from the log as fast as they can. Live members get their
/// messages meanwhile, and a member that joins at the start of the history gets all of it.
#[test]
fn a_storm_of_fetches_stalls_neither_live_members_nor_catch_up() {
    any_shards(|shards| {
        let server = Server::start(Settings::shards(shards).set("tail_bytes_max", 64 << 10));
        let mut publisher = Client::open(&server, "pub");
        publish(&mut publisher, "history", 1, 20_000);
        let stop = AtomicBool::new(false);
        let fetched = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for n in 0..16 {
                let (server, stop, fetched) = (&server, &stop, &fetched);
                scope.spawn(move || {
                    let mut client = Client::open(server, &format!("storm{n}"));
                    while !stop.load(Ordering::Relaxed) {
                        let asked: Vec<_> = (0..8)
                            .map(|n| client.send_fetch("history", 1 + n * 2_000, 0, 0, 0))
                            .collect();
                        for request in asked {
                            assert!(!client.fetched(request).messages.is_empty());
                            fetched.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let mut late = Client::open(&server, "late");
            let joined = late.join_from("history", 1);
            let mut all = Follower::from(joined, 1);
            let mut member = Client::open(&server, "member");
            let mut live = Follower::live(member.join("live"));
            let mut slowest = Duration::ZERO;
            for seq in 1..=100 {
                let sent = Instant::now();
                publisher.publish("live", &payload(seq));
                member.follow(&mut live, seq);
                slowest = slowest.max(sent.elapsed());
            }
            late.follow(&mut all, 20_000);
            assert_eq!(all.messages.len(), 20_000);
            assert!(all.gaps.is_empty());
            stop.store(true, Ordering::Relaxed);
            assert!(slowest < Duration::from_secs(2), "a live message took {slowest:?}");
        });
        assert!(fetched.load(Ordering::Relaxed) > 100);
    });
}
