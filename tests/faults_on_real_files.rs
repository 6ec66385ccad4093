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
use common::{Client, Follower, Http, Server, Settings, wait_until};
use fanfare::position::Seq;
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

fn fanfare(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fanfare")).args(args).output().unwrap()
}

/// What `fanfare wal COMMAND... DIR` says about a server's directory, and whether its exit code is 0.
fn wal(server: &Server, command: &[&str]) -> (bool, String) {
    let data = server.data_dir();
    let output = fanfare(&[&["wal"], command, &[data.to_str().unwrap()]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let code = output.status.code();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(code == Some(0) || code == Some(1), "{code:?} {said} {why}");
    (code == Some(0), said)
}

/// A directory in which nothing is damaged. Repair may make an index that a crash left out, and
/// changes nothing else.
fn is_sound(server: &Server) {
    let before = content(&server.data_dir());
    let (sound, said) = wal(server, &["verify"]);
    assert!(sound, "{said}");
    let (_, said) = wal(server, &["repair", "--apply"]);
    let only_indices = said.lines().filter(|line| line.contains("shard "));
    assert!({ only_indices }.all(|line| line.contains("write the index of segment")), "{said}");
    let mut after = content(&server.data_dir());
    after.retain(|(path, _)| before.iter().any(|(known, _)| known == path));
    assert!(after == before, "repair changed a sound directory: {said}");
    assert!(wal(server, &["repair", "--dry-run"]).1.ends_with("nothing to repair\n"));
}

/// All files below `dir` with their bytes, apart from the lock and the admin socket.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            all.extend(content(&entry.path()));
        } else if entry.file_type().unwrap().is_file() && entry.file_name() != "LOCK" {
            all.push((entry.path(), fs::read(entry.path()).unwrap()));
        }
    }
    all.sort();
    all
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
    is_sound(&server);
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
    let (sound, said) = wal(&server, &["verify"]);
    assert!(sound, "{said}");
    server.restart();
    assert_eq!(numbers(&read_all(&server, "g")), (1..=last).collect::<Vec<_>>());
    let mut client = Client::open_as(&server, "publisher", producer);
    assert_eq!(client.publish_as("g", last, b"x").unwrap().seq.0, last);
    drop((client, member));
    server.kill();
    drop(disk);
}

/// The only file of the log of a server with one shard that has messages.
fn segment(server: &Server) -> PathBuf {
    server.data_dir().join("shard-000/seg-0000000001.wal")
}

/// Changes a byte in the payload of message `n`, on disk.
fn rot(server: &Server, n: u64) {
    let path = segment(server);
    let bytes = fs::read(&path).unwrap();
    let wanted = payload(n, 1_000);
    let at = bytes.windows(1_000).position(|window| window == wanted).unwrap() + 500;
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[!bytes[at]], at as u64).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_rotten_segment_is_announced_kept_and_never_made_good_by_a_copy() {
    let (mut server, http) = Http::start(Settings::shards(1));
    let producer = new_producer();
    let mut client = Client::open_as(&server, "publisher", producer);
    // Each in a commit of its own, so that each lies in blocks of its own.
    for n in 1..=100 {
        client.publish_as("g", n, &payload(n, 1_000)).unwrap();
    }
    let epoch = client.join("g").epoch;
    server.kill();
    rot(&server, 40);

    // What the operator can ask before a start.
    let (sound, said) = wal(&server, &["verify"]);
    assert!(!sound, "{said}");
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
        assert_eq!(http.metric("fanfare_gaps_total", "damaged"), 1.0);
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

/// Numbers of the segment files in a log's folder.
fn segments(log: &Path) -> Vec<u64> {
    let names = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().file_name());
    let number = |name: std::ffi::OsString| {
        name.to_str()?.strip_prefix("seg-")?.strip_suffix(".wal")?.parse().ok()
    };
    names.filter_map(number).collect()
}

/// What is missing at a member that has everything from the first message on.
fn holes(follower: &Follower) -> Vec<(u64, u64)> {
    follower.gaps.iter().map(|(from, to)| (from.0, to.0)).collect()
}

#[test]
fn a_repaired_directory_is_quiet_and_serves_everything_that_can_be_named() {
    let mut server = Server::start(Settings::shards(1).set("cursor_flush_ms", 20));
    let producer = new_producer();
    let mut client = Client::open_as(&server, "publisher", producer);
    let mut behind = Client::open(&server, "behind");
    let mut ahead = Client::open(&server, "ahead");
    let mut follower = Follower::first(behind.join_durable("g"));
    let mut all = Follower::first(ahead.join_durable("g"));
    let mut edge = Client::open(&server, "edge");
    let mut before_it = Follower::first(edge.join_durable("g"));
    for n in 1..=100 {
        client.publish_as("g", n, &payload(n, 1_000)).unwrap();
    }
    // One has acknowledged a part of what comes before the rot, one everything.
    behind.follow(&mut follower, 20);
    let epoch = follower.epoch.unwrap();
    behind.ack(follower.handle, epoch, Seq(20));
    ahead.follow(&mut all, 100);
    ahead.ack_all(&all);
    edge.follow(&mut before_it, 39);
    edge.ack(follower.handle, epoch, Seq(39));
    for member in [&mut behind, &mut ahead, &mut edge] {
        member.ping();
    }
    // Cursors are written by themselves; nothing tells when.
    std::thread::sleep(Duration::from_millis(500));
    server.kill();
    rot(&server, 40);
    // A server that is started now tells everyone of the hole, and keeps the files.
    server.restart();
    let said = server.log();
    assert!(said.contains("the log is damaged here; its messages are announced as missing"));
    assert_eq!(holes(&read_all(&server, "g")), [(40, 40)]);
    server.kill();
    // A file of the operator's own, and two that only look like the server's.
    let log = server.data_dir().join("shard-000");
    fs::write(log.join("notes.txt"), "the operator's own").unwrap();
    let last = segments(&log).into_iter().max().unwrap();
    let [rubbish, copy] = [1, 2].map(|n| format!("seg-{:010}.wal", last + n));
    fs::write(log.join(&rubbish), vec![0xEE; 9_000]).unwrap();
    fs::copy(segment(&server), log.join(&copy)).unwrap();

    // The operator looks: nothing is changed by it.
    let before = content(&server.data_dir());
    let (nothing, plan) = wal(&server, &["repair", "--dry-run"]);
    assert!(!nothing, "{plan}");
    for line in [
        "would: note as known, what is readable stays: ",
        &format!("would: move {rubbish} to quarantine: "),
        &format!("would: move {copy} to quarantine: it is a copy of segment 1, which is there"),
        "nothing was changed, run again with --apply",
    ] {
        assert!(plan.contains(line), "{line:?} is not in\n{plan}");
    }
    assert!(content(&server.data_dir()) == before, "a dry run changes nothing");
    // And repairs: what the plan said, and no file is gone.
    let (_, said) = wal(&server, &["repair", "--apply"]);
    // (In the plan, the files that are to be moved also make those before them look empty.)
    let sure = |line: &&str| line.contains("would: ") && !line.contains("holds no commit");
    for line in plan.lines().filter(sure) {
        assert!(said.contains(&line.replace("would: ", "")), "{line:?} is not in\n{said}");
    }
    let after = content(&server.data_dir());
    for (path, bytes) in &before {
        let kept = after.iter().any(|(_, there)| there == bytes);
        let replaced = path.ends_with("manifest.toml") || path.ends_with("known-damage.txt");
        assert!(kept || replaced, "the bytes of {} are gone", path.display());
    }
    assert!(log.join("notes.txt").exists());
    for name in [&rubbish, &copy] {
        assert!(log.join("quarantine").join(name).exists() && !log.join(name).exists(), "{name}");
    }
    is_sound(&server);

    // A server on it has nothing to say, and serves what can be named.
    let told = server.log().len();
    for start in 1..=2 {
        server.restart();
        let log = server.log();
        assert!(!log[told..].contains("the log is damaged here"), "{}", &log[told..]);
        let all = read_all(&server, "g");
        assert_eq!(holes(&all), [(40, 40)]);
        let head = if start == 1 { 100 } else { 101 };
        let expected: Vec<_> = (1..=head).filter(|n| *n != 40).collect();
        assert_eq!(numbers(&all), expected);
        for (n, got) in expected.iter().zip(all.payloads()) {
            assert_eq!(got, payload(*n, if *n <= 100 { 1_000 } else { 100 }));
        }
        let mut client = Client::open_as(&server, "publisher", producer);
        if start == 1 {
            // Members go on where they were, and the hole is announced to who had not passed it.
            let mut behind = Client::open(&server, "behind");
            let joined = behind.join_durable("g");
            assert!(joined.epoch > epoch, "what was acknowledged is lost: a new epoch");
            assert_eq!((joined.cursor, joined.first), (Seq(20), Seq(21)));
            let mut follower = Follower::first(joined);
            behind.follow(&mut follower, 100);
            assert_eq!(holes(&follower), [(40, 40)]);
            assert_eq!(numbers(&follower), (21..=100).filter(|n| *n != 40).collect::<Vec<_>>());
            let mut ahead = Client::open(&server, "ahead");
            let joined = ahead.join_durable("g");
            assert_eq!((joined.cursor, joined.first), (Seq(100), Seq(101)));
            let mut live = Follower::first(joined);
            // One that crashes before it has seen the hole is told of it again.
            let mut edge = Client::open(&server, "edge");
            for _ in 0..2 {
                let joined = edge.join_durable("g");
                assert_eq!((joined.cursor, joined.first), (Seq(39), Seq(40)));
                let mut follower = Follower::first(joined);
                edge.follow(&mut follower, 41);
                assert_eq!(holes(&follower), [(40, 40)]);
                edge = Client::open(&server, "edge");
            }
            let joined = edge.join_durable("g");
            edge.follow(&mut Follower::from(joined, 40), 40);
            edge.ack(joined.handle, joined.epoch, Seq(40));
            edge.ping();
            edge = Client::open(&server, "edge");
            assert_eq!(edge.join_durable("g").cursor, Seq(40), "an acknowledgement of the GAP");
            // Publishing goes on, for who published before too, and makes no copies.
            assert_eq!(client.publish_as("g", 100, b"x").unwrap().seq.0, 100);
            assert_eq!(client.publish_as("g", 101, &payload(101, 100)).unwrap().seq.0, 101);
            ahead.follow(&mut live, 101);
            behind.follow(&mut follower, 101);
            behind.ack_all(&follower);
            ahead.ack_all(&live);
            behind.ping();
            ahead.ping();
            std::thread::sleep(Duration::from_millis(500));
        } else {
            let mut behind = Client::open(&server, "behind");
            assert_eq!(behind.join_durable("g").cursor, Seq(101));
            assert_eq!(client.publish_as("g", 101, b"x").unwrap().seq.0, 101);
        }
        server.kill();
    }
    let (sound, said) = wal(&server, &["verify"]);
    assert!(sound, "{said}");
}
