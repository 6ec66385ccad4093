//! A poisoned shard, a full disk and a rotten segment, on real files: what clients see, what
//! the operator reads, and what is left.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::client::new_producer;
use common::{Client, Follower, Server, Settings, wait_until};
use fanfare::wire::ErrorCode;
use rustix::process::{Resource, Rlimit, prlimit};

fn payload(n: u64, len: usize) -> Vec<u8> {
    let mut payload = n.to_le_bytes().to_vec();
    payload.resize(len, n as u8);
    payload
}

/// A member that has everything from the first message on, as far as it is there.
fn read_all(server: &Server, group: &str) -> Follower {
    let mut reader = Client::open(server, "reader");
    let joined = reader.join_from(group, 1);
    let mut follower = Follower::from(joined, 1);
    reader.follow(&mut follower, joined.head.0);
    follower
}

fn numbers(follower: &Follower) -> Vec<u64> {
    let first = |payload: &[u8]| u64::from_le_bytes(*payload.first_chunk().unwrap());
    follower.payloads().into_iter().map(first).collect()
}

/// A group of each of two shards, told apart by what their handles say.
fn one_group_of_each_shard(client: &mut Client) -> [String; 2] {
    let mut found = [None, None];
    for n in 0.. {
        let name = format!("group-{n}");
        let shard = client.join(&name).handle.0 >> 52;
        found[shard as usize].get_or_insert(name);
        if let [Some(zero), Some(one)] = &found {
            return [zero.clone(), one.clone()];
        }
    }
    unreachable!()
}

#[test]
fn a_failed_write_stops_one_shard_and_a_restart_settles_what_was_under_way() {
    let settings = Settings::shards(2).outliving_its_file_limit();
    let mut server = Server::start(settings);
    let producer = new_producer();
    let mut member = Client::open(&server, "member");
    let [broken, healthy] = one_group_of_each_shard(&mut member);
    let mut client = Client::on_shard_as(&server, 1, "publisher", producer);
    for n in 1..=100 {
        client.publish_as(&broken, n, &payload(n, 8_000)).unwrap();
    }
    client.publish_as(&healthy, 1, &payload(1, 100)).unwrap();

    // From here on the kernel refuses every write of the one shard's log: EFBIG.
    let limit = Rlimit { current: Some(256 * 1024), maximum: None };
    prlimit(Some(server.pid()), Resource::Fsize, limit).unwrap();
    let requests: Vec<_> =
        (101..=140).map(|n| client.send_publish_as(&broken, n, &payload(n, 8_000))).collect();
    let answers: Vec<_> = requests.into_iter().map(|r| client.answer(r).unwrap_err()).collect();
    let unknown = answers.iter().take_while(|a| **a == (ErrorCode::Indeterminate, 0)).count();
    assert!(unknown > 0, "{answers:?}");
    for answer in &answers[unknown..] {
        assert_eq!(*answer, (ErrorCode::StorageFailed, 0));
    }
    // Nothing of it is shown, also when it is sent again; what is on disk is.
    for n in [101, 120, 141, 150] {
        assert_eq!(client.publish_as(&broken, n, b"x"), Err((ErrorCode::StorageFailed, 0)));
    }
    assert_eq!(client.publish_as(&broken, 100, b"x").unwrap().seq.0, 100);
    let refused = client.publish_as("another", 1, b"x");
    assert!(refused.is_ok() || refused == Err((ErrorCode::StorageFailed, 0)), "{refused:?}");
    assert_eq!(numbers(&read_all(&server, &broken)), (1..=100).collect::<Vec<_>>());
    // The other shard goes on.
    for n in 2..=20 {
        assert_eq!(client.publish_as(&healthy, n, &payload(n, 100)).unwrap().seq.0, n);
    }
    // What the operator reads.
    let log = server.log();
    let says =
        "log write failed; this shard accepts no more messages until the server is restarted";
    assert_eq!(log.matches(says).count(), 1, "{log}");
    assert!(log.contains("File too large"), "{log}");

    server.signal(rustix::process::Signal::TERM);
    server.wait(Duration::from_secs(20));
    server.restart();
    let mut client = Client::on_shard_as(&server, 0, "publisher", producer);
    for n in 101..=140 {
        assert_eq!(client.publish_as(&broken, n, &payload(n, 8_000)).unwrap().seq.0, n);
    }
    assert_eq!(client.publish_as(&healthy, 21, &payload(21, 100)).unwrap().seq.0, 21);
    let all = read_all(&server, &broken);
    assert!(all.gaps.is_empty());
    assert_eq!(numbers(&all), (1..=140).collect::<Vec<_>>());
    assert_eq!(numbers(&read_all(&server, &healthy)), (1..=21).collect::<Vec<_>>());
}

/// A file system of its own, in memory, so that it can be full.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let size = format!("size={bytes}");
        let args = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        match Command::new("mount").args(args).arg(at).output() {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            other => {
                eprintln!("SKIPPED: a small file system cannot be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_publishes_and_nothing_else_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    // Room for three log segments and something else that is in the way of a fourth.
    let Some(disk) = SmallDisk::mount(&dir.path().join("data"), 34 << 20) else { return };
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let mut server = Server::start_in(Settings::shards(1), dir);
    let producer = new_producer();
    let mut client = Client::open_as(&server, "publisher", producer);
    let mut member = Client::open(&server, "member");
    let mut follower = Follower::live(member.join("g"));
    let mut last = 0;
    let refused = loop {
        let n = last + 1;
        match client.publish_as("g", n, &payload(n, 60_000)) {
            Ok(published) => assert_eq!(published.seq.0, n),
            Err(refused) => break refused,
        }
        last = n;
        assert!(last < 600, "36 MB are in 34 MiB");
    };
    assert_eq!(refused, (ErrorCode::StorageFull, 0));
    assert!(last > 200, "{last}");
    // It blocks its successors; what has its place is still answered.
    assert_eq!(client.publish_as("g", last + 2, b"x"), Err((ErrorCode::ProducerGap, last + 1)));
    assert_eq!(client.publish_as("g", last, b"x").unwrap().seq.0, last);
    assert_eq!(client.publish_as("new", 1, b"x"), Err((ErrorCode::StorageFull, 0)));
    // Members get everything, and come and go.
    member.follow(&mut follower, last);
    let leave = member.send_leave("g");
    member.expect("LEFT", |got| {
        matches!(got, common::Got::Left { request, .. } if *request == leave).then_some(())
    });
    assert_eq!(numbers(&read_all(&server, "g")), (1..=last).collect::<Vec<_>>());
    let says = "no room for the next log segment; publishes get STORAGE_FULL until there is";
    assert_eq!(server.log().matches(says).count(), 1, "once, not with each try\n{}", server.log());

    fs::remove_file(&ballast).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(refused) = client.publish_as("g", last + 1, &payload(last + 1, 60_000)) {
        assert_eq!(refused, (ErrorCode::StorageFull, 0));
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(100));
    }
    last += 1;
    assert!(server.log().contains("there is room for the log again"), "{}", server.log());

    // Full again, and then the power goes.
    fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    loop {
        let n = last + 1;
        match client.publish_as("g", n, &payload(n, 60_000)) {
            Ok(_) => last = n,
            Err(refused) => break assert_eq!(refused, (ErrorCode::StorageFull, 0)),
        }
    }
    server.kill();
    fs::remove_file(&ballast).unwrap();
    server.restart();
    assert_eq!(numbers(&read_all(&server, "g")), (1..=last).collect::<Vec<_>>());
    let mut client = Client::open_as(&server, "publisher", producer);
    assert_eq!(client.publish_as("g", last, b"x").unwrap().seq.0, last);
    drop((client, member));
    server.kill();
    drop(disk);
}

fn fanfare(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fanfare")).args(args).output().unwrap()
}

/// The only file of the log of a server with one shard that has messages.
fn segment(server: &Server) -> PathBuf {
    server.data_dir().join("shard-000/seg-0000000001.wal")
}

#[test]
fn a_rotten_segment_is_announced_kept_and_never_made_good_by_a_copy() {
    let mut server = Server::start(Settings::shards(1));
    let producer = new_producer();
    let mut client = Client::open_as(&server, "publisher", producer);
    // Each in a commit of its own, so that each lies in blocks of its own.
    for n in 1..=100 {
        client.publish_as("g", n, &payload(n, 1_000)).unwrap();
    }
    let epoch = client.join("g").epoch;
    server.kill();
    let path = segment(&server);
    let bytes = fs::read(&path).unwrap();
    // A byte in the payload of message 40.
    let wanted = payload(40, 1_000);
    let at = bytes.windows(1_000).position(|window| window == wanted).unwrap() + 500;
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[!bytes[at]], at as u64).unwrap();
    file.sync_all().unwrap();

    // What the operator can ask before a start.
    let data = server.data_dir();
    let data = data.to_str().unwrap();
    let verify = fanfare(&["wal", "verify", data]);
    let said = String::from_utf8_lossy(&verify.stdout).into_owned();
    assert_eq!(verify.status.code(), Some(1), "{said}");
    assert!(said.contains("seg-0000000001") || said.contains("segment 1"), "{said}");

    for again in [false, true] {
        server.restart();
        let log = server.log();
        assert!(log.contains("the log is damaged here; its messages are announced as missing"));
        assert!(log.contains("damaged segments were kept for you"), "{log}");
        let kept = server.data_dir().join("shard-000/quarantine/seg-0000000001.wal");
        wait_until("the damaged file to be kept", || kept.exists());
        // Members are told of the hole and get what is around it.
        let all = read_all(&server, "g");
        let hole: Vec<_> = all.gaps.iter().map(|(from, to)| (from.0, to.0)).collect();
        assert_eq!(hole, [(40, 40)]);
        let head = if again { 101 } else { 100 };
        let expected: Vec<_> = (1..=head).filter(|n| *n != 40).collect();
        assert_eq!(numbers(&all), expected);
        // The group has a new epoch, and goes on.
        let mut client = Client::open_as(&server, "publisher", producer);
        assert!(client.join("g").epoch > epoch);
        assert_eq!(client.publish_as("g", 40, b"x").unwrap_err().0, ErrorCode::ProducerSeqTooOld);
        assert_eq!(client.publish_as("g", 41, b"x").unwrap().seq.0, 41);
        assert_eq!(client.publish_as("g", 100, b"x").unwrap().seq.0, 100);
        let published = client.publish_as("g", 101, &payload(101, 1_000)).unwrap();
        assert_eq!(published.seq.0, 101);
        server.kill();
    }
}
