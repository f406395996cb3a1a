//! Files that torch itself wrote: every container of the same model reads to the same tensors.
//! The cases lie in `testdata/golden/store-*`; a missing one is a failure, not a skip.

mod common;

use common::Noise;
use half::{bf16, f16};
use qberta_kernels::mapped::Bytes;
use qberta_store::checkpoint::Checkpoint;
use qberta_store::tensor::{Dtype, Tensor};
use qberta_store::torch;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn golden(case: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden").join(case);
    assert!(dir.is_dir(), "golden case {} is missing; tools/make_golden.py writes it", dir.display());
    dir
}

fn open(case: &str) -> Checkpoint {
    Checkpoint::open(&golden(case)).unwrap_or_else(|e| panic!("{case}: {e}"))
}

/// The model as float32 safetensors.
fn reference() -> BTreeMap<String, Tensor> {
    let c = open("store-safetensors");
    assert!(c.tensors.len() > 20 && c.skipped.is_empty());
    c.tensors
}

/// Checks that `case` holds the reference bit for bit, and beyond it only the names `extra`.
fn check_same(case: &str, extra: &[&str], skipped: &[&str], files: usize) -> Checkpoint {
    let c = open(case);
    let reference = reference();
    for (name, want) in &reference {
        assert_eq!(c.tensors.get(name), Some(want), "{case}: {name}");
    }
    let more: Vec<&String> = c.tensors.keys().filter(|n| !reference.contains_key(*n)).collect();
    assert_eq!(more, extra, "{case}");
    assert_eq!(c.skipped, skipped, "{case}");
    assert_eq!(c.files.len(), files, "{case}");
    c
}

#[test]
fn every_float32_container_holds_the_same_bits() {
    check_same("store-bin", &[], &[], 1);
    check_same("store-bin-parameters", &[], &[], 1);
    check_same("store-bin-state-dict", &[], &["epoch"], 1);
    check_same("store-sharded-bin", &[], &[], 4);
    check_same("store-sharded-safetensors", &[], &[], 4);
}

#[test]
fn strided_shared_and_tied_tensors_unfold() {
    let c = check_same("store-bin-strided", &["cls.predictions.decoder.weight"], &[], 1);
    let tied = &c.tensors["cls.predictions.decoder.weight"];
    let embeddings = &c.tensors["deberta.embeddings.word_embeddings.weight"];
    assert_eq!(tied, embeddings);
    assert_eq!(tied.bytes().as_ptr(), embeddings.bytes().as_ptr(), "tied weights are copied once");
}

#[test]
fn half_precision_containers_hold_the_rounded_values() {
    type Round = fn(f32) -> f32;
    let to_f16: Round = |v| f16::from_f32(v).to_f32();
    let to_bf16: Round = |v| bf16::from_f32(v).to_f32();
    for (case, dtype, round) in [
        ("store-f16-safetensors", Dtype::F16, to_f16),
        ("store-bin-f16", Dtype::F16, to_f16),
        ("store-bf16-safetensors", Dtype::BF16, to_bf16),
        ("store-bin-bf16", Dtype::BF16, to_bf16),
    ] {
        let c = open(case);
        for (name, want) in reference() {
            let got = &c.tensors[&name];
            let want: Vec<f32> = want.to_f32().unwrap().into_iter().map(round).collect();
            assert_eq!((got.dtype(), got.to_f32().unwrap()), (dtype, want), "{case}: {name}");
        }
    }
    let ids = &open("store-bin-f16").tensors["deberta.embeddings.position_ids"];
    assert_eq!(ids.dtype(), Dtype::I64);
    assert!(ids.to_f32().is_err());
}

#[test]
fn the_format_from_before_1_6_holds_the_same_tensors() {
    assert_eq!(open("store-bin-legacy").tensors, open("store-bin").tensors);
}

#[test]
fn a_real_file_cut_or_shaken_is_answered() {
    let whole = std::fs::read(golden("store-bin-strided").join("pytorch_model.bin")).unwrap();
    for n in (0..whole.len()).step_by(101) {
        assert!(torch::read_bytes(&Bytes::from(whole[..n].to_vec())).is_err(), "cut at {n}");
    }
    // Most of the file is weights, where any byte is as good as another; the pickle is at the beginning
    // and the directory at the end.
    let mut noise = Noise(0x2545_F491_4F6C_DD1D);
    for round in 0..2000 {
        let mut file = whole.clone();
        for _ in 0..1 + noise.below(3) {
            let at = noise.below(6000.min(whole.len()));
            let at = if round % 2 == 0 { at } else { whole.len() - 1 - at };
            file[at] = noise.next() as u8;
        }
        torch::read_bytes(&Bytes::from(file)).ok();
    }
}
