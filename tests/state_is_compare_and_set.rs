//! SET_STATE is compare-and-set, what it answered is on disk, and SYNC gives what a client
//! lacks, over one and two shards, a restart and a crash.
#![allow(clippy::unwrap_used, clippy::expect_used)]
mod common;

use common::queries::Mirror;
use common::{Client, Random, Server, Settings};
use fanfare::wire::{ErrorCode, Expected, StateForm};

/// A client on each shard; the groups are placed by the hash of their names, so each of them
/// is foreign to one of the two.
fn clients(server: &Server, shards: u16) -> Vec<Client> {
    (0..shards).map(|shard| Client::on_shard(server, shard, &format!("client{shard}"))).collect()
}

fn any_shards(test: impl Fn(u16)) {
    test(1);
    test(2);
}

#[test]
fn a_change_is_made_only_if_the_key_is_as_expected() {
    any_shards(|shards| {
        let server = Server::start(Settings::shards(shards));
        let mut clients = clients(&server, shards);
        for (n, client) in clients.iter_mut().enumerate() {
            for group in ["a", "b", "c", "d"].map(|name| format!("{name}{n}")) {
                let first = client.set(&group, "topic", Expected::Absent, Some(b"cats")).unwrap();
                assert_eq!(first.version, 1);
                let refused = client.set(&group, "topic", Expected::Absent, Some(b"dogs"));
                let conflict = refused.unwrap_err();
                assert_eq!((conflict.version, &conflict.data.unwrap()[..]), (1, &b"cats"[..]));
                let refused = client.set(&group, "topic", Expected::Version(9), None);
                assert_eq!(refused.unwrap_err().version, 1);
                let second = client.set(&group, "topic", Expected::Version(1), Some(b"dogs"));
                let second = second.unwrap();
                assert_eq!(second.version, 2);
                assert!(second.stamp > first.stamp && second.handle == first.handle);
                assert_eq!(client.set(&group, "topic", Expected::Any, None).unwrap().version, 3);
                let gone = client.set(&group, "topic", Expected::Version(3), Some(b"x"));
                let gone = gone.unwrap_err();
                assert_eq!((gone.version, gone.data), (0, None), "deleted is absent");
                let again = client.set(&group, "topic", Expected::Any, None).unwrap();
                assert_eq!(again.version, 0, "deleting what is not there changes nothing");
            }
        }
    });
}

#[test]
fn of_many_that_expect_the_same_version_one_wins() {
    any_shards(|shards| {
        let server = Server::start(Settings::shards(shards));
        let mut clients: Vec<_> =
            (0..4).map(|n| Client::on_shard(&server, n % shards, &format!("c{n}"))).collect();
        for round in 0..20u64 {
            let requests: Vec<_> = clients
                .iter_mut()
                .map(|client| {
                    let expected =
                        if round == 0 { Expected::Absent } else { Expected::Version(round) };
                    client.send_set("race", "winner", expected, Some(&round.to_le_bytes()))
                })
                .collect();
            let answers: Vec<_> = clients
                .iter_mut()
                .zip(requests)
                .map(|(client, request)| client.set_answer(request))
                .collect();
            let won = answers.iter().flatten().count();
            assert_eq!(won, 1, "{answers:?}");
            for lost in answers.iter().filter_map(|answer| answer.as_ref().err()) {
                assert_eq!(lost.version, round + 1, "a loser is told who won");
            }
        }
    });
}

#[test]
fn sync_gives_what_a_client_lacks_and_survives_restarts_and_crashes() {
    any_shards(|shards| {
        let mut random = Random::new();
        let mut server = Server::start(Settings::shards(shards));
        let groups = ["one", "two", "three"];
        let mut truth = groups.map(|_| Mirror::default());
        let mut stale = groups.map(|_| Mirror::default());
        for round in 0..4 {
            let mut clients = clients(&server, shards);
            for _ in 0..60 {
                let at = random.below(groups.len() as u64) as usize;
                let client = random.below(u64::from(shards)) as usize;
                let key = format!("key{}", random.below(12));
                let len = random.below(200) as usize;
                let data = (random.below(4) > 0).then(|| random.bytes(len));
                let client = &mut clients[client];
                let set = client.set(groups[at], &key, Expected::Any, data.as_deref()).unwrap();
                let truth = &mut truth[at];
                match data {
                    Some(data) => {
                        drop(truth.values.insert(key.into_bytes(), (set.version, data)));
                    }
                    None => drop(truth.values.remove(key.as_bytes())),
                }
                truth.version = truth.version.max(set.version);
                if random.below(8) == 0 {
                    client.sync(groups[at], &mut stale[at]);
                    assert_eq!(stale[at].values, truth.values);
                    assert_eq!(stale[at].version, truth.version);
                }
            }
            drop(clients);
            if round % 2 == 0 {
                server.kill();
            } else {
                server.stop();
            }
            server.restart();
            for (at, group) in groups.iter().enumerate() {
                let mut client = Client::open(&server, "reader");
                let mut fresh = Mirror::default();
                client.sync(group, &mut fresh);
                assert_eq!((fresh.version, &fresh.values), (truth[at].version, &truth[at].values));
                client.sync(group, &mut stale[at]);
                assert_eq!(stale[at].values, truth[at].values, "a stale client catches up");
                client.sync(group, &mut fresh);
                assert_eq!(fresh.form, Some(StateForm::UpToDate));
            }
        }
    });
}

#[test]
fn a_group_that_is_not_there_is_not_made_by_looking() {
    any_shards(|shards| {
        let server = Server::start(Settings::shards(shards).set("groups_max", 2));
        for client in &mut clients(&server, shards) {
            for n in 0..20 {
                let group = format!("nobody{n}");
                let mut mirror = Mirror::default();
                client.sync(&group, &mut mirror);
                assert_eq!((mirror.version, mirror.form), (0, Some(StateForm::UpToDate)));
                let page = client.fetch(&group, 1, 0, 0, 0);
                assert_eq!((page.head, page.more, page.messages.len()), (0, false, 0));
                let roster = client.roster(&group, 0, 0, 10);
                assert_eq!((roster.head.version, roster.head.members), (0, 0));
                let conflict = client.set(&group, "k", Expected::Version(1), None).unwrap_err();
                assert_eq!((conflict.version, conflict.data), (0, None));
                assert_eq!(client.set(&group, "k", Expected::Any, None).unwrap().version, 0);
            }
        }
        let mut client = Client::open(&server, "late");
        client.set("there is room", "k", Expected::Any, Some(b"v")).unwrap();
    });
}

#[test]
fn limits_are_typed_errors() {
    let settings = Settings::shards(2).set("payload_max", 4096).set("state_bytes_max", 10_000);
    let server = Server::start(settings);
    for (n, client) in clients(&server, 2).iter_mut().enumerate() {
        let group = format!("g{n}");
        let too_long = client.send_set(&group, "k", Expected::Any, Some(&[0; 4097]));
        let error = client.error(too_long);
        assert_eq!(error, (ErrorCode::StateTooLarge, 4096, "data".into()));
        for n in 0..2 {
            client.set(&group, &format!("{n}"), Expected::Any, Some(&[0; 4096])).unwrap();
        }
        let full = client.send_set(&group, "one more", Expected::Any, Some(&[0; 4096]));
        assert_eq!(client.error(full), (ErrorCode::StateTooLarge, 10_000, "group".into()));
        client.set(&group, "0", Expected::Any, None).unwrap();
        client.set(&group, "one more", Expected::Any, Some(&[0; 4096])).unwrap();
        let many = format!("{group} with many keys");
        // 1,024 keys do not fit into 10,000 bytes, so the bytes are full first here.
        let mut refused = None;
        for n in 0..500 {
            let request = client.send_set(&many, &format!("{n:03}"), Expected::Any, Some(b""));
            if n * 27 + 27 > 10_000 {
                refused = Some(client.error(request));
                break;
            }
            client.set_answer(request).unwrap();
        }
        assert_eq!(refused.unwrap().0, ErrorCode::StateTooLarge);
    }
}

#[test]
fn keys_are_bounded_and_a_large_state_comes_in_several_frames() {
    any_shards(|shards| {
        let server = Server::start(Settings::shards(shards).set("payload_max", 1024));
        for (n, client) in clients(&server, shards).iter_mut().enumerate() {
            let group = format!("many{n}");
            for n in 0..1024 {
                client.set(&group, &format!("key{n}"), Expected::Absent, Some(&[1; 100])).unwrap();
            }
            let request = client.send_set(&group, "one more", Expected::Any, Some(b""));
            assert_eq!(client.error(request), (ErrorCode::TooManyKeys, 1024, String::new()));
            let mut mirror = Mirror::default();
            client.sync(&group, &mut mirror);
            assert_eq!((mirror.values.len(), mirror.version), (1024, 1024));
            assert!(mirror.frames > 40, "{} frames of at most 2048 bytes", mirror.frames);
        }
    });
}

#[test]
fn a_connection_may_have_eight_questions_under_way() {
    any_shards(|shards| {
        let server = Server::start(Settings::shards(shards));
        for client in &mut clients(&server, shards) {
            client.set("g", "k", Expected::Any, Some(b"v")).unwrap();
            // One write, so that the server takes all of them before it answers any.
            let mut bytes = Vec::new();
            let requests: Vec<_> = (0..20)
                .map(|_| {
                    let request = client.request();
                    fanfare::wire::SyncState { request, known: 0, group: b"g" }.encode(&mut bytes);
                    request
                })
                .collect();
            client.send(&bytes);
            let mut refused = 0;
            for request in requests {
                use common::Got;
                let is_refused = client.expect("an answer", |got| match got {
                    Got::State(page) if page.head.request == request => Some(false),
                    Got::Error { request: of, code, limit, .. } if *of == request => {
                        assert_eq!((*code, *limit), (ErrorCode::TooManyRequests as u16, 8));
                        Some(true)
                    }
                    _ => None,
                });
                refused += usize::from(is_refused);
            }
            assert!((1..=12).contains(&refused), "{refused}");
            let mut mirror = Mirror::default();
            client.sync("g", &mut mirror);
            assert_eq!(mirror.values.len(), 1, "the connection goes on");
        }
    });
}

/// State outlives the log files that its changes were written to.
#[test]
fn retention_takes_no_state() {
    any_shards(|shards| {
        let settings =
            Settings::shards(shards).set("retention_bytes", 8 << 20).set("tail_bytes_max", 1 << 20);
        let mut server = Server::start(settings);
        let groups = ["one", "two", "three", "four"];
        let mut truth = groups.map(|_| Mirror::default());
        let mut client = Client::open(&server, "setter");
        for (group, truth) in groups.iter().zip(&mut truth) {
            for n in 0..50 {
                let data = format!("{group} {n}");
                client.set(group, &format!("k{n}"), Expected::Any, Some(data.as_bytes())).unwrap();
            }
            for n in 0..10 {
                client.set(group, &format!("k{n}"), Expected::Any, None).unwrap();
            }
            client.sync(group, truth);
            assert_eq!((truth.values.len(), truth.version), (40, 60));
        }
        for stop in [true, false] {
            let mut client = Client::open(&server, &format!("filler{stop}"));
            let big = vec![7; 60_000];
            // Groups on every shard, until retention has taken what was written before.
            let fillers: Vec<String> = (0..8).map(|n| format!("filler {n}")).collect();
            let first: Vec<u64> =
                fillers.iter().map(|g| client.fetch(g, 1, 0, 1, 0).head).collect();
            let mut rounds = 0;
            while fillers.iter().zip(&first).any(|(group, head)| {
                client.fetch(group, 1, 0, 1, 0).gap.is_none_or(|(_, to, _)| to <= *head)
            }) {
                rounds += 1;
                assert!(rounds < 400, "retention takes nothing");
                for group in &fillers {
                    client.publish(group, &big);
                }
            }
            drop(client);
            if stop {
                server.stop();
            } else {
                server.kill();
            }
            server.restart();
            let mut client = Client::open(&server, "reader");
            for (group, truth) in groups.iter().zip(&mut truth) {
                let mut fresh = Mirror::default();
                client.sync(group, &mut fresh);
                assert_eq!((fresh.version, &fresh.values), (truth.version, &truth.values));
                client.sync(group, truth);
                assert_eq!(truth.form, Some(StateForm::UpToDate));
                let known = truth.values[&b"k20"[..]].0;
                let set = client.set(group, "k20", Expected::Version(known), Some(b"new"));
                assert_eq!(set.unwrap().version, truth.version + 1);
                client.sync(group, truth);
                assert_eq!(truth.form, Some(StateForm::Deltas));
            }
        }
    });
}
