#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use super::*;

fn edit(dir: &Path, from: &str, to: &str) {
    let path = dir.join(paths::MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_new_directory_gets_identity_and_folders_that_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let (data, first) = Manifest::open(&path, Some(2)).unwrap();
    assert_ne!(first.node, NodeId(0));
    assert_eq!((first.shards, first.starts, first.clean), (2, Epoch(1), true));
    assert!(data.shard_dir(ShardId(1)).is_dir());
    drop(data);
    let (_data, second) = Manifest::open(&path, None).unwrap();
    assert_eq!(second, Manifest { starts: Epoch(2), clean: false, ..first });
}

#[test]
fn every_start_counts_and_only_a_marked_stop_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let (mut data, _) = Manifest::open(dir.path(), Some(1)).unwrap();
    data.mark_clean().unwrap();
    drop(data);
    let (data, manifest) = Manifest::open(dir.path(), Some(1)).unwrap();
    assert_eq!((manifest.starts, manifest.clean), (Epoch(2), true));
    assert!(!Manifest::read(dir.path()).unwrap().unwrap().clean, "not clean while it runs");
    drop(data);
    let (_data, manifest) = Manifest::open(dir.path(), Some(1)).unwrap();
    assert_eq!((manifest.starts, manifest.clean), (Epoch(3), false));
}

#[test]
fn epoch_floors_are_durable_and_only_rise() {
    let dir = tempfile::tempdir().unwrap();
    let (mut data, _) = Manifest::open(dir.path(), Some(1)).unwrap();
    data.raise_epoch_floors(Epoch(5), Epoch(6)).unwrap();
    data.raise_epoch_floors(Epoch(0), Epoch(7)).unwrap();
    drop(data);
    let (_data, manifest) = Manifest::open(dir.path(), None).unwrap();
    assert_eq!((manifest.epoch_floor, manifest.memory_epoch_floor), (Epoch(5), Epoch(7)));
}

#[test]
fn a_directory_in_use_is_refused_and_names_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let _data = Manifest::open(dir.path(), Some(1)).unwrap();
    let error = Manifest::open(dir.path(), Some(1)).unwrap_err();
    let pid = std::process::id();
    assert!(matches!(error, ManifestError::InUse { pid: Some(p), .. } if p == pid), "{error}");
    assert!(error.to_string().contains(&format!("process {pid}")), "{error}");
    let starts = Manifest::read(dir.path()).unwrap().unwrap().starts;
    assert_eq!(starts, Epoch(1), "a refused start changes nothing");
}

#[test]
fn another_shard_count_waits_for_its_logs_and_then_seals_the_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    drop(Manifest::open(dir.path(), Some(2)).unwrap());
    let (mut data, manifest) = Manifest::open(dir.path(), Some(3)).unwrap();
    assert_eq!((manifest.shards, manifest.generation, data.asked()), (2, 0, 3));
    assert_eq!(data.shard_dir(ShardId(1)), dir.path().join("shard-001"));
    data.begin_generation(3).unwrap();
    assert_eq!(data.shard_dir(ShardId(2)), dir.path().join("gen-001/shard-002"));
    drop(data);
    let (mut data, manifest) = Manifest::open(dir.path(), None).unwrap();
    assert_eq!((manifest.shards, manifest.generation, data.asked()), (3, 1, 3));
    assert_eq!(manifest.sealed, [(0, 2)]);
    let logs: Vec<_> = manifest.logs().map(|log| (log.generation, log.shard.0)).collect();
    assert_eq!(logs, [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]);
    data.forget_generations(&[0]).unwrap();
    assert_eq!(Manifest::read(dir.path()).unwrap().unwrap().sealed, []);
    drop(data);
    for asked in [0, SHARDS_MAX as u16 + 1] {
        let error = Manifest::open(dir.path(), Some(asked)).unwrap_err();
        assert!(matches!(error, ManifestError::ShardsOutOfRange { .. }), "{error}");
    }
}

#[test]
fn another_format_version_is_refused_even_if_its_fields_are_unknown() {
    let dir = tempfile::tempdir().unwrap();
    drop(Manifest::open(dir.path(), Some(1)).unwrap());
    edit(dir.path(), "format_version = 2", "format_version = 3\nnew_field = \"x\"");
    let error = Manifest::open(dir.path(), Some(1)).unwrap_err();
    assert!(matches!(error, ManifestError::Version { found: 3, .. }), "{error}");
}

#[test]
fn a_manifest_cut_off_anywhere_is_damaged_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(Manifest::open(dir.path(), Some(1)).unwrap());
    let path = dir.path().join(paths::MANIFEST);
    let whole = fs::read(&path).unwrap();
    // Without the last newline it still says everything, and its last number has one digit.
    for len in 0..whole.len() - 1 {
        fs::write(&path, &whole[..len]).unwrap();
        let error = Manifest::open(dir.path(), Some(1)).unwrap_err();
        assert!(matches!(error, ManifestError::Damaged { .. }), "{len}: {error}");
        assert_eq!(fs::read(&path).unwrap(), &whole[..len]);
    }
    for garbage in [&b"\xFF\xFE"[..], b"starts = 1", b"format_version = \"x\""] {
        fs::write(&path, garbage).unwrap();
        let error = Manifest::open(dir.path(), Some(1)).unwrap_err();
        assert!(matches!(error, ManifestError::Damaged { .. }), "{error}");
    }
}

#[test]
fn logs_without_a_manifest_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, _) = Manifest::open(dir.path(), Some(2)).unwrap();
    fs::write(data.shard_dir(ShardId(1)).join("seg-0000000001.wal"), b"x").unwrap();
    drop(data);
    fs::remove_file(dir.path().join(paths::MANIFEST)).unwrap();
    let error = Manifest::open(dir.path(), Some(2)).unwrap_err();
    assert!(matches!(error, ManifestError::Lost { .. }), "{error}");
}

#[test]
fn an_interrupted_replacement_leaves_the_old_manifest_in_force() {
    let dir = tempfile::tempdir().unwrap();
    drop(Manifest::open(dir.path(), Some(1)).unwrap());
    fs::write(dir.path().join("manifest.toml.tmp"), b"form").unwrap();
    let (_data, manifest) = Manifest::open(dir.path(), None).unwrap();
    assert_eq!(manifest.starts, Epoch(2));
}

#[test]
fn a_directory_that_cannot_be_made_names_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"x").unwrap();
    let error = Manifest::open(&file.join("data"), Some(1)).unwrap_err();
    assert!(error.to_string().contains("file/data"), "{error}");
}
