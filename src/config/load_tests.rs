#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use super::super::Priority;
use super::super::keys::{NODE_KEYS, SHARD_KEYS};
use super::*;

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn layers(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Layers {
    Layers { file: Some(("f.toml".into(), file.into())), env: pairs(env), flags: pairs(flags) }
}

fn file(text: &str) -> Result<Loaded, ConfigError> {
    load(&layers(text, &[], &[]))
}

fn flag(key: &str, value: &str) -> Result<Loaded, ConfigError> {
    load(&layers("", &[], &[(key, value)]))
}

#[test]
fn nothing_set_gives_the_documented_defaults() {
    let config = load(&Layers::default()).unwrap().config;
    assert_eq!(config.listen, "127.0.0.1:7400".parse().unwrap());
    assert_eq!(config.data_dir, PathBuf::from("./fanfare-data"));
    assert_eq!((config.shards, config.cores), (None, None));
    assert_eq!((config.stats_interval, config.insecure_no_auth), (None, false));
    assert_eq!(config.log, "info");
    assert_eq!(format!("{:?}", config.shard), format!("{:?}", ShardConfig::default()));
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let text = "ack_every = 1\npayload_max = 1\ngroups_max = 1";
    let env = [("FANFARE_ACK_EVERY", "2"), ("FANFARE_PAYLOAD_MAX", "2")];
    let loaded = load(&layers(text, &env, &[("ack_every", "3")])).unwrap();
    let shard = &loaded.config.shard;
    assert_eq!((shard.ack_every, shard.payload_max, shard.groups_max), (3, 2, 1));
    assert_eq!(shard.heartbeat_ms, ShardConfig::default().heartbeat_ms);
    assert_eq!(loaded.origin("ack_every"), Origin::Flag);
    assert_eq!(loaded.origin("payload_max"), Origin::Env("FANFARE_PAYLOAD_MAX".into()));
    assert_eq!(loaded.origin("groups_max"), Origin::File("f.toml".into()));
    assert_eq!(loaded.origin("heartbeat_ms"), Origin::Default);
}

#[test]
fn keys_and_fields_of_a_shard_are_the_same_set() {
    let table = toml::Value::try_from(ShardConfig::default()).unwrap();
    let mut fields: Vec<_> = table.as_table().unwrap().keys().map(String::as_str).collect();
    let mut keys: Vec<_> = SHARD_KEYS.iter().map(|key| key.name).collect();
    fields.sort_unstable();
    keys.sort_unstable();
    assert_eq!(keys, fields);
}

/// Reads back the field that a key sets.
fn field(loaded: &Loaded, key: &str) -> u64 {
    let table = toml::Value::try_from(&loaded.config.shard).unwrap();
    u64::try_from(table[key].as_integer().unwrap()).unwrap()
}

#[test]
fn every_number_is_accepted_at_its_bounds_and_refused_beyond() {
    for key in SHARD_KEYS {
        let (min, max) = match key.kind {
            Kind::Int(min, max)
            | Kind::IntOrZero(min, max)
            | Kind::PowerOfTwo(min, max)
            | Kind::Multiple(_, min, max) => (min, max),
            _ => continue,
        };
        for value in [min, max] {
            // Retention must hold a segment, so the two bounds are tried where they fit.
            let other = match key.name {
                "segment_bytes" => ("retention_bytes", max.to_string()),
                _ => ("segment_bytes", crate::limits::SEGMENT_BYTES_MIN.to_string()),
            };
            let flags = [(key.name, &*value.to_string()), (other.0, &*other.1)];
            let loaded = load(&layers("", &[], &flags));
            let loaded = loaded.unwrap_or_else(|e| panic!("{} = {value}: {e}", key.name));
            assert_eq!(field(&loaded, key.name), value);
        }
        let below = min.checked_sub(1).filter(|n| *n > 0).map_or("-1".into(), |n| n.to_string());
        for value in [below, (max + 1).to_string(), "many".into(), "1.5".into(), String::new()] {
            let error = flag(key.name, &value).unwrap_err().to_string();
            for part in [key.name, &value, &key.kind.allowed(), "the command line"] {
                assert!(error.contains(part), "{error:?} does not name {part:?}");
            }
        }
    }
}

#[test]
fn zero_is_accepted_where_it_switches_something_off() {
    for key in ["heartbeat_ms", "socket_notsent_lowat", "retention_age_ms", "drain_grace_ms"] {
        assert_eq!(field(&flag(key, "0").unwrap(), key), 0);
    }
    assert!(flag("stall_timeout_ms", "0").is_err());
}

#[test]
fn shapes_of_numbers_are_checked() {
    assert!(flag("recv_buffers", "1000").unwrap_err().to_string().contains("power of two"));
    let odd = (crate::limits::SEGMENT_BYTES_MIN + 1).to_string();
    assert!(flag("segment_bytes", &odd).unwrap_err().to_string().contains("multiple of 4096"));
}

#[test]
fn wrong_values_name_key_value_origin_and_what_is_allowed() {
    let cases = [
        ("listen", "localhost:7400", "an IP address with a port"),
        ("listen", "127.0.0.1", "an IP address with a port"),
        ("data_dir", "", "not empty"),
        ("shards", "0", "a number from 1 to 64"),
        ("shards", "65", "a number from 1 to 64"),
        ("cores", "0,,1", "numbers of cores"),
        ("cores", "1,1", "each once"),
        ("level", "fast", "durable or memory"),
        ("stats_interval", "1", "with its unit"),
        ("stats_interval", "1ms", "from 10ms to 24h"),
        ("stats_interval", "25h", "from 10ms to 24h"),
        ("insecure_no_auth", "maybe", "true or false"),
    ];
    for (key, value, allowed) in cases {
        let variable = format!("FANFARE_{}", key.to_uppercase());
        let error = load(&layers("", &[(&*variable, value)], &[])).unwrap_err().to_string();
        for part in [key, value, &variable, allowed] {
            assert!(error.contains(part), "{error:?} does not name {part:?}");
        }
    }
}

#[test]
fn a_file_with_a_value_of_another_kind_is_refused() {
    for (text, key) in [
        ("ack_every = \"10\"", "ack_every"),
        ("ack_every = 1.0", "ack_every"),
        ("ack_every = -1", "ack_every"),
        ("shards = [1]", "shards"),
        ("listen = 7400", "listen"),
        ("insecure_no_auth = 1", "insecure_no_auth"),
        ("cores = [0, -1]", "cores"),
        ("cores = []", "cores"),
        ("level = true", "level"),
    ] {
        let error = file(text).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("f.toml"), "{text}: {error}");
    }
}

#[test]
fn unknown_keys_are_errors_that_name_the_key() {
    let error = file("heartbeet_ms = 1").unwrap_err().to_string();
    assert!(error.contains("`heartbeet_ms`") && error.contains("did you mean `heartbeat_ms`?"));
    let error = flag("colour", "red").unwrap_err().to_string();
    assert!(error.contains("`colour`") && !error.contains("did you mean"), "{error}");
    assert!(file("[shard]\nack_every = 1").unwrap_err().to_string().contains("`shard`"));
}

#[test]
fn unknown_variables_are_reported_and_do_no_harm() {
    let env = [("FANFARE_SERVICE_HOST", "10.0.0.1"), ("FANFARE_CONFIG", "x"), ("HOME", "/")];
    assert_eq!(load(&layers("", &env, &[])).unwrap().unknown_env, ["FANFARE_SERVICE_HOST"]);
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_the_place() {
    let error = file("shards = \n").unwrap_err().to_string();
    assert!(error.contains("f.toml") && error.contains("line 1"), "{error}");
}

#[test]
fn a_key_given_twice_on_the_command_line_is_refused() {
    let twice = load(&layers("", &[], &[("shards", "1"), ("shards", "2")]));
    assert!(twice.unwrap_err().to_string().contains("shards is given twice"));
}

#[test]
fn only_loopback_is_listened_on_without_the_explicit_word() {
    for address in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        flag("listen", address).unwrap();
    }
    for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[2001:db8::1]:1"] {
        let error = flag("listen", address).unwrap_err().to_string();
        assert!(error.contains(address) && error.contains("--insecure-no-auth"), "{error}");
        let flags = [("listen", address), ("insecure_no_auth", "true")];
        load(&layers("", &[], &flags)).unwrap();
    }
}

#[test]
fn retention_holds_at_least_one_segment() {
    let error = file("segment_bytes = 67108864\nretention_bytes = 33554432").unwrap_err();
    let error = error.to_string();
    assert!(error.contains("retention_bytes = 33554432") && error.contains("67108864"), "{error}");
}

#[test]
fn numbers_lists_and_times_are_read_in_all_their_forms() {
    let config = file("cores = [2, 0]\npayload_max = 1_000").unwrap().config;
    assert_eq!((config.cores, config.shard.payload_max), (Some(vec![2, 0]), 1_000));
    assert_eq!(file("cores = \"0,3\"").unwrap().config.cores, Some(vec![0, 3]));
    assert_eq!(flag("cores", "0, 3").unwrap().config.cores, Some(vec![0, 3]));
    assert_eq!(flag("payload_max", "1_000").unwrap().config.shard.payload_max, 1_000);
    for (text, ms) in [("10ms", 10), ("1s", 1_000), ("1.5m", 90_000), ("24h", 86_400_000)] {
        let interval = flag("stats_interval", text).unwrap().config.stats_interval;
        assert_eq!(interval, Some(Duration::from_millis(ms)));
    }
    assert_eq!(flag("stats_interval", "off").unwrap().config.stats_interval, None);
}

#[test]
fn the_printed_configuration_loads_to_the_same() {
    let flags = [
        ("data_dir", "/x/\"quoted\"\\ \u{e9}\n"),
        ("cores", "1,0"),
        ("shards", "2"),
        ("level", "memory"),
        ("stats_interval", "2s"),
        ("heartbeat_ms", "0"),
        ("listen", "[::]:9"),
        ("insecure_no_auth", "true"),
        ("http", "127.0.0.1:7411"),
        ("http_token_file", "/y/token"),
        ("auth_keys", "/z/keys"),
        ("auth_audience", "rooms"),
        ("auth_issuer", "https://login.example"),
        ("tls_cert", "/y/cert.pem"),
        ("tls_key", "/y/key.pem"),
        ("tls_client_ca", "/y/ca.pem"),
    ];
    let first = load(&layers("", &[], &flags)).unwrap();
    let printed = first.to_toml();
    let again = file(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(format!("{:?}", again.config), format!("{:?}", first.config));
    for key in NODE_KEYS.iter().chain(SHARD_KEYS) {
        assert!(printed.contains(&format!("\n{} = ", key.name)), "{} is missing", key.name);
    }
}

const CLASSES: &str = r#"
ack_timeout_ms = 5000

[[class]]
name = "alerts"
groups = ["alerts/*", "fire"]
priority = "realtime"
level = "memory"

[[class]]
name = "feeds"
groups = ["feed/*"]
priority = "bulk"
retention_bytes = 1_000_000
retention_age_ms = 60_000
receipts = false
ack_timeout_ms = 100
redeliver_max = 3
"#;

#[test]
fn classes_are_read_and_printed_so_that_they_load_to_the_same() {
    let first = file(CLASSES).unwrap();
    let shard = &first.config.shard;
    let of = |name: &str| shard.classes.get(shard.classes.of(name.as_bytes()));
    assert_eq!((of("fire").name.as_str(), of("fire").priority), ("alerts", Priority::Realtime));
    assert_eq!((of("feed/1").retention_bytes, of("feed/1").receipts), (Some(1_000_000), false));
    assert_eq!(of("other").name, Classes::DEFAULT_NAME);
    assert!(shard.classes.are_mixed() && shard.classes.trim());
    let printed = first.to_toml();
    let again = file(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(format!("{:?}", again.config), format!("{:?}", first.config));
    assert!(file("").unwrap().to_toml().contains("# Classes of groups"));
}

#[test]
fn mistakes_in_classes_say_which_class_and_what_is_allowed() {
    let with = |line: &str| format!("[[class]]\nname = \"a\"\ngroups = [\"x\"]\n{line}");
    let cases = [
        (with("prioritty = \"bulk\""), "unknown key `prioritty`, did you mean `priority`; a class"),
        (with("colour = 1"), "unknown key `colour`"),
        (with("priority = \"high\""), "priority = \"high\" must be realtime, normal or bulk"),
        (with("priority = 1"), "must be realtime, normal or bulk"),
        (with("level = \"fast\""), "must be durable or memory"),
        (with("receipts = \"no\""), "must be true or false"),
        (with("retention_bytes = 0"), "a number from 1"),
        (with("retention_age_ms = -5"), "a number from 1"),
        (with("ack_timeout_ms = 1"), "a number from 100"),
        (with("redeliver_max = 1.5"), "a number from 1"),
        ("[[class]]\ngroups = [\"x\"]".into(), "class number 1"),
        ("[[class]]\nname = \"a b\"\ngroups = [\"x\"]".into(), "letters, digits"),
        ("[[class]]\nname = \"a\"".into(), "`groups` is missing"),
        ("[[class]]\nname = \"a\"\ngroups = []".into(), "`groups` is missing"),
        ("[[class]]\nname = \"a\"\ngroups = [\"\"]".into(), "is empty"),
        ("[[class]]\nname = \"a\"\ngroups = [\"x*y\"]".into(), "only at its end"),
        ("[[class]]\nname = \"a\"\ngroups = [\"x\", \"x\"]".into(), "twice"),
        ("[[class]]\nname = \"a\"\ngroups = \"x\"".into(), "a list of names"),
        ("[[class]]\nname = \"default\"\ngroups = [\"x\"]".into(), "take another"),
        (with("[[class]]\nname = \"a\"\ngroups = [\"y\"]"), "two classes of this name"),
        (with("[[class]]\nname = \"b\"\ngroups = [\"x\"]"), "in class `a` already"),
        ("class = 1".into(), "[[class]] tables"),
        (format!("[[class]]\nname = \"a\"\ngroups = [\"{}\"]", "n".repeat(129)), "128 bytes"),
    ];
    for (text, part) in cases {
        let error = file(&text).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("f.toml"), "{text}\n{error}");
    }
    let many = (0..65).map(|n| format!("[[class]]\nname = \"{n}\"\ngroups = [\"{n}\"]\n"));
    assert!(file(&many.collect::<String>()).unwrap_err().to_string().contains("at most 64"));
}

#[test]
fn origins_are_a_list_in_the_file_and_text_elsewhere() {
    let list = r#"websocket_origins = ["https://Chat.example", "http://localhost:8000"]"#;
    let loaded = file(list).unwrap();
    let same = flag("websocket_origins", "https://chat.example,http://localhost:8000").unwrap();
    let origins = |loaded: &Loaded| loaded.config.shard.websocket_origins.clone();
    assert_eq!(origins(&loaded), origins(&same));
    assert_eq!(origins(&file(&loaded.to_toml()).unwrap()), origins(&same));
    for wrong in ["chat.example", "https://chat.example/page", "https://a b"] {
        assert!(flag("websocket_origins", wrong).is_err(), "{wrong}");
    }
    assert!(file("websocket_origins = [1]").is_err());
    assert!(file("websocket_echo = true").unwrap().config.shard.websocket_echo);
}

#[test]
fn tls_needs_both_files_and_is_required_beyond_loopback_only() {
    let set = |keys: &[(&str, &str)]| load(&layers("", &[], keys));
    let (cert, key) = (("tls_cert", "c.pem"), ("tls_key", "k.pem"));
    assert!(set(&[]).unwrap().config.tls.is_none());
    assert_eq!(set(&[cert, key]).unwrap().config.tls.unwrap().client_ca, None);
    for wrong in [&[cert][..], &[key], &[("tls_client_ca", "a.pem")], &[("tls_required", "true")]] {
        assert!(matches!(set(wrong), Err(ConfigError::TlsFiles)), "{wrong:?}");
    }
    let required = [cert, key, ("tls_required", "true"), ("insecure_no_auth", "true")];
    assert!(!set(&required).unwrap().config.shard.tls_required);
    let open = [cert, key, ("insecure_no_auth", "true"), ("listen", "0.0.0.0:7400")];
    assert!(!set(&open).unwrap().config.shard.tls_required);
    // A certificate of the client cannot be asked for in plain.
    for more in [("tls_required", "true"), ("tls_client_ca", "a.pem")] {
        assert!(set(&[&open[..], &[more]].concat()).unwrap().config.shard.tls_required, "{more:?}");
    }
}
