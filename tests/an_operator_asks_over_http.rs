//! The HTTP interface of a running server: every endpoint, what it says, and what it does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test may panic")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::websocket::{BINARY, WebSocket};
use common::{Client, Http, Settings, wait_until};
use fanfare::position::Seq;
use fanfare::wire::ErrorCode;
use rustix::process::{Resource, Rlimit, prlimit};

#[test]
fn lists_show_every_group_and_member_once_over_all_pages_and_shards() {
    let (server, http) = Http::start(Settings::shards(2));
    let mut clients = Vec::new();
    for shard in 0..2 {
        let mut client = Client::on_shard(&server, shard, &format!("member-{shard}"));
        for group in 0..10 {
            client.join(&format!("group-{group}"));
        }
        clients.push(client);
    }
    clients[0].publish("group-3", b"hello");
    let names = |list: &str, name: &str| {
        let mut names = Vec::new();
        let (mut shard, mut from) = (0, 0);
        loop {
            let sep = if list.contains('?') { '&' } else { '?' };
            let page = http.json(&format!("/api/v1/{list}{sep}shard={shard}&from={from}&limit=3"));
            let kind = list.rsplit('/').next().unwrap();
            let entries = page[kind].as_array().unwrap();
            assert!(entries.len() <= 3);
            names.extend(entries.iter().map(|entry| entry[name].as_str().unwrap().to_owned()));
            let next = &page["next"];
            if next.is_null() {
                names.sort();
                return names;
            }
            (shard, from) = (next["shard"].as_u64().unwrap(), next["from"].as_u64().unwrap());
        }
    };
    let all: Vec<_> = (0..10).map(|n| format!("group-{n}")).collect();
    assert_eq!(names("groups", "group"), all);
    assert_eq!(names("members", "member"), ["member-0", "member-1"]);
    assert_eq!(names("groups/group-3/members", "member"), ["member-0", "member-1"]);
    let group = http.json("/api/v1/groups/group-3");
    assert_eq!((&group["members"], &group["sequenced"]), (&2.into(), &1.into()));
    wait_until("both shards to have the message", || {
        let group = http.json("/api/v1/groups/group-3");
        let shards = group["shards"].as_array().unwrap();
        shards.len() == 2 && shards.iter().all(|s| s["published"] == 1 && s["members"] == 1)
    });
    let page = http.json("/api/v1/groups/group-3/members?shard=0");
    let member = &page["members"][0];
    assert_eq!((&member["state"], &member["sent"]), (&"live".into(), &1.into()));
    assert_eq!(member["transport"], "native");
    assert_eq!(http.get("/api/v1/groups/nobody").status, 404);
    assert_eq!(http.get("/api/v1/groups?shard=2").status, 400);
    assert_eq!(http.get("/api/v1/groups?limit=1001").status, 400);
    assert_eq!(http.get("/api/v1/nothing").status, 404);
}

#[test]
fn durable_members_are_listed_with_what_they_have_acknowledged_also_when_they_are_away() {
    let (server, http) = Http::start(Settings::shards(2).set("ack_every", 1));
    let mut ann = Client::open(&server, "ann");
    let joined = ann.join_durable("chat");
    let mut publisher = Client::open(&server, "publisher");
    for _ in 0..3 {
        publisher.publish("chat", b"x");
    }
    ann.ack(joined.handle, joined.epoch, Seq(2));
    let durable = || http.json("/api/v1/groups/chat/durable")["durable_members"][0].clone();
    wait_until("the acknowledgement", || durable()["acked"] == 2);
    assert_eq!((&durable()["member"], &durable()["online"]), (&"ann".into(), &true.into()));
    assert_eq!(durable()["behind_messages"], 1);
    drop(ann);
    wait_until("her going", || durable()["online"] == false);
}

#[test]
fn shards_and_slow_members_are_shown_as_by_the_admin_socket() {
    let settings = Settings::shards(1).set("stall_timeout_ms", 30_000);
    let (server, http) = Http::start(settings.set("socket_send_buffer", 4096));
    let mut sleeper = Client::open(&server, "sleeper");
    sleeper.join("chat");
    let mut publisher = Client::open(&server, "publisher");
    for _ in 0..200 {
        publisher.publish("chat", &[b'x'; 50_000]);
    }
    wait_until("being called stalled", || http.metric("fanfare_members", "stalled") == 1.0);
    let slow = http.json("/api/v1/slow");
    assert_eq!(
        (&slow["slow"][0]["member"], &slow["slow"][0]["shard"]),
        (&"sleeper".into(), &0.into())
    );
    let shards = http.json("/api/v1/shards");
    assert_eq!(shards["total"]["messages"], 200);
    let commit = &shards["shards"][0]["distributions"]["commit_messages"];
    assert_eq!(commit["sum"], 200);
    assert_eq!(http.metric("fanfare_messages_total", ""), 200.0);
    assert_eq!(http.metric("fanfare_commit_messages_sum", ""), 200.0);
    let commits = http.metric("fanfare_commits_total", "");
    assert_eq!(http.metric("fanfare_commit_seconds_count", ""), commits);
    assert_eq!(http.metric("fanfare_commit_size_bytes_bucket", "+Inf"), commits);
    assert!(http.metric("fanfare_turn_seconds_count", "") > 0.0);
    assert!(http.metric("fanfare_sleeps_total", "") > 0.0);
    assert!(http.metric("fanfare_received_bytes_total", "") > 200.0 * 50_000.0);
    assert!(http.metric("process_resident_memory_bytes", "") > 1e6);
}

#[test]
fn the_configuration_in_force_says_who_set_what() {
    let (_server, http) = Http::start(Settings::shards(1).set("ack_every", 7));
    let config = http.json("/api/v1/config");
    assert_eq!(config["keys"]["ack_every"]["value"], 7);
    assert!(config["keys"]["ack_every"]["set_by"].as_str().unwrap().contains("fanfare.toml"));
    assert_eq!(config["keys"]["payload_max"]["set_by"], "default");
}

#[test]
fn ready_means_that_a_message_went_through_every_shard_at_most_once_a_second() {
    let (server, http) = Http::start(Settings::shards(3));
    assert_eq!(http.metric("fanfare_messages_total", ""), 0.0);
    let ready = http.json("/readyz");
    assert_eq!(ready["ready"], true);
    let shards = ready["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 3);
    assert!(shards.iter().all(|shard| shard["latency_us"].as_u64().unwrap() > 0), "{ready}");
    for shard in 0..3 {
        let label = format!("shard=\"{shard}\"");
        assert_eq!(http.metric("fanfare_messages_total", &label), 1.0);
        assert!(http.metric("fanfare_commits_total", &label) >= 1.0);
    }
    let start = Instant::now();
    for _ in 0..30 {
        assert_eq!(http.get("/readyz").status, 200);
    }
    let rounds_max = 2.0 + start.elapsed().as_secs_f64();
    assert!(http.metric("fanfare_messages_total", "") <= 3.0 * rounds_max);
    drop(server);
}

#[test]
fn a_server_that_asks_for_tokens_is_ready_too() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    fs::write(keys.path(), "0123456789abcdef0123456789abcdef").unwrap();
    let path = format!("{:?}", keys.path());
    let (_server, http) = Http::start(Settings::shards(2).set("auth_keys", path));
    let ready = http.json("/readyz");
    assert_eq!(ready["ready"], true, "{ready}");
}

#[test]
fn a_server_that_lets_a_member_have_one_connection_is_ready_too() {
    let settings = Settings::shards(3).set("member_connections_max", 1);
    let (_server, http) = Http::start(settings);
    let ready = http.json("/readyz");
    assert_eq!(ready["ready"], true, "{ready}");
}

#[test]
fn a_server_whose_log_failed_is_alive_and_not_ready() {
    let settings = Settings::shards(1).outliving_its_file_limit();
    let (server, http) = Http::start(settings);
    assert_eq!(http.get("/readyz").status, 200);
    let mut publisher = Client::open(&server, "publisher");
    for _ in 0..10 {
        publisher.publish("chat", &[b'x'; 50_000]);
    }
    // From here on the kernel refuses every write of the log: EFBIG.
    let limit = Rlimit { current: Some(256 * 1024), maximum: None };
    prlimit(Some(server.pid()), Resource::Fsize, limit).unwrap();
    wait_until("not being ready", || http.get("/readyz").status == 503);
    std::thread::sleep(Duration::from_millis(1_100));
    let answer = http.get("/readyz");
    assert_eq!(answer.status, 503);
    assert!(answer.json()["shards"][0]["error"].as_str().unwrap().contains("log"), "{answer:?}");
    assert_eq!(http.get("/healthz").status, 200);
    assert_eq!(http.metric("fanfare_log_failed", ""), 1.0);
    assert!(http.metric("fanfare_errors_total", "storage_failed") >= 1.0);
}

#[test]
fn a_member_is_disconnected_with_a_reason_and_others_stay() {
    let (server, http) = Http::start(Settings::shards(2));
    let mut ann: Vec<_> = (0..2).map(|shard| Client::on_shard(&server, shard, "ann")).collect();
    let mut bob = Client::open(&server, "bob");
    let answer = http.post("/api/v1/disconnect", r#"{"member": "ann"}"#);
    assert_eq!((answer.status, &answer.json()["closed"]), (200, &2.into()));
    for client in &mut ann {
        assert_eq!(client.fatal().0, ErrorCode::Disconnected);
    }
    bob.publish("chat", b"still here");
    let shard = (0..2).find_map(|shard| {
        let page = http.json(&format!("/api/v1/members?shard={shard}"));
        let members = page["members"].as_array().unwrap().clone();
        members.into_iter().find(|member| member["member"] == "bob")
    });
    let shard = shard.unwrap();
    let name = |generation: u64| {
        let (shard, slot) = (&shard["shard"], &shard["slot"]);
        format!(r#"{{"shard": {shard}, "slot": {slot}, "generation": {generation}}}"#)
    };
    let generation = shard["generation"].as_u64().unwrap();
    let other = http.post("/api/v1/disconnect", &name(generation + 1));
    assert_eq!(other.json()["closed"], 0, "another connection of that slot");
    let answer = http.post("/api/v1/disconnect", &name(generation));
    assert_eq!(answer.json()["closed"], 1);
    assert_eq!(bob.fatal().0, ErrorCode::Disconnected);
    assert_eq!(http.metric("fanfare_connections_closed_total", "operator"), 3.0);
    for wrong in ["", "{}", r#"{"member": 1}"#, r#"{"member": "x", "y": 1}"#, "[[[[", "nul"] {
        let status = http.post("/api/v1/disconnect", wrong).status;
        assert!((400..500).contains(&status), "{wrong}: {status}");
    }
}

#[test]
fn websockets_that_are_refused_or_break_a_rule_are_counted() {
    let (server, http) = Http::start(Settings::shards(1));
    let mut refused = WebSocket::bare(&server);
    refused.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    refused.rest();
    let mut broken = WebSocket::open(&server);
    // Not masked.
    broken.send(&[BINARY, 0]);
    assert_eq!(broken.closed().0, 1002);
    let closed = |reason: &str| http.metric("fanfare_connections_closed_total", reason);
    wait_until("both counts", || (closed("upgrade"), closed("websocket")) == (1.0, 1.0));
}

#[test]
fn drain_stops_the_server_in_good_order_and_needs_a_post() {
    let (mut server, http) = Http::start(Settings::shards(2).set("drain_grace_ms", 300));
    assert_eq!(http.get("/api/v1/drain").status, 405);
    assert_eq!(http.ask("POST", "/api/v1/drain", &[], "{}").status, 415);
    assert_eq!(http.post("/api/v1/drain", r#"{"now": true}"#).status, 422);
    assert!(server.has_ended().is_none());
    // Somebody is connected, so that the stop takes its time.
    let client = Client::open(&server, "ann");
    assert_eq!(http.post("/api/v1/drain", "{}").status, 202);
    assert_eq!(http.get("/readyz").status, 503);
    assert_eq!(http.get("/healthz").status, 200);
    assert!(server.wait(Duration::from_secs(10)).success());
    drop(client);
}

#[test]
fn with_a_token_only_health_is_for_everyone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    fs::write(&path, "a-long-secret-of-the-test\n").unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let settings = Settings::shards(1).set("http_token_file", format!("{path:?}"));
    let (server, mut http) = Http::start(settings);
    let guarded = ["/metrics", "/api/v1/shards", "/api/v1/groups", "/api/v1/config", "/api/v1/x"];
    for path in guarded {
        let answer = http.get(path);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.head.to_lowercase().contains("www-authenticate: bearer"), "{answer:?}");
    }
    assert_eq!(http.post("/api/v1/drain", "{}").status, 401);
    assert_eq!(http.get("/healthz").status, 200);
    assert_eq!(http.get("/readyz").status, 200);
    http.token = Some("a-long-secret-of-the-tesT".into());
    assert_eq!(http.get("/metrics").status, 401);
    http.token = Some("a-long-secret-of-the-test".into());
    assert_eq!(http.get("/metrics").status, 200);
    assert_eq!(http.metric("fanfare_http_answers_total", "4xx"), 7.0);
    // A name that is not local, since the token says enough.
    assert_eq!(http.ask("GET", "/metrics", &[("Host", "fanfare.example")], "").status, 200);
    let config = http.get("/api/v1/config").body;
    assert!(config.contains("http_token_file") && !config.contains("a-long-secret"), "{config}");
    assert!(!server.log().contains("a-long-secret"));
}

#[test]
fn pages_of_other_sites_get_nothing_of_a_server_without_a_token() {
    let (mut server, http) = Http::start(Settings::shards(1));
    let json = ("Content-Type", "application/json");
    for headers in [
        &[("Host", "evil.example")][..],
        &[("Origin", "http://evil.example")],
        &[("Origin", "null")],
        &[("Sec-Fetch-Site", "cross-site")],
    ] {
        assert_eq!(http.ask("GET", "/api/v1/members", headers, "").status, 403, "{headers:?}");
        let headers = [headers, &[json]].concat();
        assert_eq!(http.ask("POST", "/api/v1/drain", &headers, "{}").status, 403);
    }
    let plain = [("Content-Type", "text/plain")];
    assert_eq!(http.ask("POST", "/api/v1/drain", &plain, "{}").status, 415);
    let answer = http.ask("OPTIONS", "/api/v1/drain", &[("Origin", "http://evil.example")], "");
    assert!(!answer.head.to_lowercase().contains("access-control-allow"), "{answer:?}");
    assert!(server.has_ended().is_none());
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    let fanfare = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_fanfare")).arg("serve").args(args).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = fanfare(&["--http", "0.0.0.0:7411"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("0.0.0.0:7411") && said.contains("http_token_file"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    fs::write(&path, "a-long-secret-of-the-test\n").unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let flags = ["--http", "0.0.0.0:7411", "--http-token-file", path.to_str().unwrap()];
    let (code, said) = fanfare(&flags);
    assert_eq!(code, Some(2));
    assert!(said.contains("chmod 600") && !said.contains("a-long"), "{said}");
}

#[test]
fn the_console_is_served_with_nothing_from_elsewhere() {
    let (_server, http) = Http::start(Settings::shards(1));
    let page = http.get("/");
    assert_eq!(page.status, 200);
    let head = page.head.to_lowercase();
    assert!(head.contains("text/html") && head.contains("default-src 'none'"), "{head}");
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "{}", page.body);
    for (path, kind) in [("/console.css", "text/css"), ("/console.js", "text/javascript")] {
        let answer = http.get(path);
        assert!(answer.status == 200 && answer.head.contains(kind), "{path}: {}", answer.head);
    }
}

#[test]
fn a_reload_takes_over_what_can_change_and_names_the_rest() {
    let (server, http) = Http::start(Settings::shards(2).set("ack_every", 7));
    let path = server.data_dir().with_file_name("fanfare.toml");
    let before = fs::read_to_string(&path).unwrap();
    let with = |text: &str| fs::write(&path, format!("{before}{text}")).unwrap();
    with("retention_age_ms = 5\nheartbeat_ms = 1234\n");
    server.signal(rustix::process::Signal::HUP);
    let value = |key: &str| http.json("/api/v1/config")["keys"][key]["value"].clone();
    wait_until("the reload", || value("retention_age_ms") == 5);
    assert_eq!(value("heartbeat_ms"), 30_000);
    wait_until("the word of it", || server.log().contains("heartbeat_ms"));
    let log = server.log();
    let line = log.lines().find(|line| line.contains("needs_restart")).unwrap();
    assert!(line.contains(r#"changed=["retention_age_ms"]"#), "{line}");
    // By HTTP the answer says the same, and a limit is in force at once.
    with("groups_max = 1\nheartbeat_ms = 1234\n");
    let done = http.post("/api/v1/reload", "{}").json();
    let changed = done["changed"].as_array().unwrap();
    assert!(changed.contains(&"groups_max".into()) && changed.contains(&"retention_age_ms".into()));
    assert_eq!(done["needs_restart"], serde_json::json!(["heartbeat_ms"]));
    let mut client = Client::open(&server, "ann");
    let codes: Vec<_> = (0..8)
        .map(|n| {
            let request = client.send_publish_as(&format!("group-{n}"), 1, b"x");
            client.answer(request).err().map(|(code, _)| code)
        })
        .collect();
    assert!(codes.contains(&Some(ErrorCode::TooManyGroups)), "{codes:?}");
    // What is wrong changes nothing.
    with("ack_every = 0\ngroups_max = 100\n");
    let answer = http.post("/api/v1/reload", "{}");
    assert_eq!(answer.status, 409);
    assert!(answer.json()["error"].as_str().unwrap().contains("ack_every"), "{answer:?}");
    assert_eq!((value("ack_every"), value("groups_max")), (7.into(), 1.into()));
    drop(client);
}
