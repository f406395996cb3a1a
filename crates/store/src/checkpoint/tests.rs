use super::*;
use crate::tensor::Tensor;
use std::fs;

fn weights(names: &[&str]) -> Vec<u8> {
    let tensors =
        names.iter().map(|n| (n.to_string(), Tensor::from_f32(vec![2], &[1.0, 2.0]).unwrap())).collect();
    safetensors::write(&tensors).unwrap()
}

fn dir(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn refusal(files: &[(&str, &[u8])]) -> Error {
    Checkpoint::open(dir(files).path()).unwrap_err()
}

#[test]
fn a_directory_a_file_and_an_index_open_alike() {
    let (a, b) = (weights(&["a"]), weights(&["b"]));
    let index = br#"{"metadata":{"total_size":16},"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}"#;
    let d = dir(&[("x.safetensors", &a), ("y.safetensors", &b), (WEIGHT_FILES[1], index)]);
    for path in [d.path().to_path_buf(), d.path().join(WEIGHT_FILES[1])] {
        let c = Checkpoint::open(&path).unwrap();
        assert_eq!(c.tensors.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(c.files, [d.path().join("x.safetensors"), d.path().join("y.safetensors")]);
        assert_eq!(c.dir, d.path());
    }
    let one = Checkpoint::open(&d.path().join("x.safetensors")).unwrap();
    assert_eq!((one.tensors.len(), one.files.len(), one.dir.as_path()), (1, 1, d.path()));
}

#[test]
fn safetensors_come_before_pickles_and_one_file_before_shards() {
    let a = weights(&["a"]);
    let d = dir(&[(WEIGHT_FILES[0], &a), (WEIGHT_FILES[1], b"no index"), (WEIGHT_FILES[2], b"no pickle")]);
    assert_eq!(Checkpoint::open(d.path()).unwrap().files, [d.path().join(WEIGHT_FILES[0])]);
}

#[test]
fn an_index_cannot_leave_its_directory() {
    for shard in [
        "../x.safetensors",
        "/etc/passwd",
        "a/../../x",
        "./x",
        "",
        "..",
        "C:\\\\x",
        "a\\\\..\\\\x",
        "x\\u0000",
    ] {
        let index = format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
        let e = refusal(&[(WEIGHT_FILES[1], index.as_bytes())]).to_string();
        assert!(e.contains("outside its directory"), "{shard}: {e}");
    }
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let (a, b) = (weights(&["a"]), weights(&["a", "b"]));
    let lacking = br#"{"weight_map":{"a":"x","z":"x"}}"#;
    assert!(refusal(&[("x", &a), (WEIGHT_FILES[1], lacking)]).to_string().contains("x: z: shard lacks"));
    let both = br#"{"weight_map":{"a":"x","b":"y"}}"#;
    assert!(refusal(&[("x", &a), ("y", &b), (WEIGHT_FILES[1], both)]).to_string().contains("two shards"));
    assert!(refusal(&[("x", &a), (WEIGHT_FILES[1], both)]).to_string().contains("y: shard is missing"));
    let twice = br#"{"weight_map":{"a":"x","a":"y"}}"#;
    assert!(refusal(&[("x", &a), (WEIGHT_FILES[1], twice)]).to_string().contains("a appears twice"));
    for odd in
        [&b"{}"[..], b"[]", br#"{"weight_map":[]}"#, br#"{"weight_map":{}}"#, br#"{"weight_map":{"a":1}}"#]
    {
        assert!(refusal(&[(WEIGHT_FILES[1], odd)]).to_string().contains("index"), "{odd:?}");
    }
}

#[test]
fn what_lands_in_place_of_weights_is_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n";
    for name in WEIGHT_FILES {
        let e = refusal(&[(name, pointer)]);
        assert!(e.to_string().contains("LFS pointer") && e.advice().unwrap().contains("git lfs pull"), "{e}");
    }
    assert!(refusal(&[(WEIGHT_FILES[0], b"<!DOCTYPE html>")]).to_string().contains("web page"));
    assert!(refusal(&[(WEIGHT_FILES[2], b"")]).to_string().contains("empty"));
}

#[test]
fn missing_weights_say_what_was_looked_for_and_what_is_there() {
    let e = refusal(&[("tf_model.h5", b"x"), ("config.json", b"{}")]).to_string();
    for part in WEIGHT_FILES.iter().chain(&["config.json, tf_model.h5"]) {
        assert!(e.contains(part), "{e}");
    }
    assert!(refusal(&[]).to_string().contains("empty directory"));
    assert_eq!(Checkpoint::open(Path::new("no/such/model")).unwrap_err().kind(), qberta_model::Kind::Io);
    // A directory in the place of the file is not a file.
    let d = tempfile::tempdir().unwrap();
    fs::create_dir(d.path().join(WEIGHT_FILES[0])).unwrap();
    assert!(Checkpoint::open(d.path()).unwrap_err().to_string().contains("not a file"));
}
