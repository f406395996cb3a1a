//! Bits of a row do not depend on threads, batch neighbours, batch size, instruction set, or on whether
//! rows that nobody reads were left out.

mod common;

use common::*;
use qberta::model::{Batch, Native, Rows, Sequence, encode};
use qberta::runtime::Options;
use qberta::toolkit::Method;
use qberta::{Context, Isa, Recipe, Request, Row, Session, quantize};
use std::path::{Path, PathBuf};

const CASES: [&str; 7] = [
    "v3-long-256",
    "v1-talking-head",
    "v3-conv5-groups2",
    "v3-mlm-legacy",
    "bert-token",
    "roberta-qa",
    "electra-sequence",
];

fn rows(case: &str) -> Vec<Row> {
    expected(&golden(case)).into_iter().map(|(row, _)| row).collect()
}

fn raw_bits(session: &Session, rows: &[Row]) -> Vec<Vec<u32>> {
    session.raw(rows, &Options::standard()).unwrap().iter().map(|a| bits(&a.values())).collect()
}

/// The float checkpoint of a case, its artefact, those whose scores, context or both are int8 too, and one where
/// everything is static.
fn forms(case: &str, dir: &Path) -> Vec<PathBuf> {
    let model = golden(case);
    let artefact = |name: &str, recipe: &Recipe| {
        let out = dir.join(name);
        quantize(&Request { model: &model, out: &out, recipe, task: None }, &context(), &()).unwrap();
        out
    };
    let int8 = artefact("int8", &Recipe::new("dynamic", &[]).unwrap());
    let all_static = dir.join("static");
    calibrated_by("static-attention", case, &all_static, Method::MinMax, &sequences(case)).unwrap();
    let mut forms = vec![model.clone(), int8, all_static];
    for products in ATTENTIONS {
        forms.push(artefact(&products.concat(), &attention(case, products)));
    }
    forms
}

#[test]
fn batch_composition_changes_no_bit() {
    for case in CASES {
        let dir = tempfile::tempdir().unwrap();
        for model in forms(case, dir.path()) {
            let mut rows = rows(case);
            let session = Session::open(&model, None, context()).unwrap();
            let alone: Vec<_> =
                rows.iter().flat_map(|r| raw_bits(&session, std::slice::from_ref(r))).collect();
            assert_eq!(raw_bits(&session, &rows), alone, "{case}: one batch");
            rows.reverse();
            let mut reversed = raw_bits(&session, &rows);
            reversed.reverse();
            assert_eq!(reversed, alone, "{case}: other neighbours");
            let session = session.with_batch_rows(2);
            rows.reverse();
            assert_eq!(raw_bits(&session, &rows), alone, "{case}: batches of two");
        }
    }
}

#[test]
fn threads_and_instruction_sets_change_no_bit() {
    let isas = Isa::available();
    println!(
        "instruction sets of this machine: {}",
        isas.iter().map(|i| i.name()).collect::<Vec<_>>().join(", ")
    );
    for case in CASES {
        let dir = tempfile::tempdir().unwrap();
        for model in forms(case, dir.path()) {
            let rows = rows(case);
            let reference = Session::open(&model, None, Context::new(Isa::Scalar, 1).unwrap()).unwrap();
            let reference = raw_bits(&reference, &rows);
            for &isa in &isas {
                for threads in [1, 2, 3] {
                    let session = Session::open(&model, None, Context::new(isa, threads).unwrap()).unwrap();
                    assert!(
                        raw_bits(&session, &rows) == reference,
                        "{case}: {} with {threads} threads",
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn the_first_row_alone_has_the_bits_of_all_rows() {
    for case in ["v3-sequence", "v1-sequence", "v3-conv3", "bert-sequence"] {
        let dir = tempfile::tempdir().unwrap();
        for model in forms(case, dir.path()) {
            let cx = context();
            let source = qberta::store::Source::open(&model, None).unwrap();
            let loaded = source.load(&cx).unwrap();
            let arch = loaded.model.architecture();
            let sequences =
                [Sequence::of(vec![5, 7, 9, 11, 20]), Sequence::of(vec![6]), Sequence::of((5..40).collect())];
            let batch = Batch::new(arch, &sequences).unwrap();
            let all = encode(arch, &mut Native::new(&loaded.model, &cx), &batch, Rows::All);
            let first = encode(arch, &mut Native::new(&loaded.model, &cx), &batch, Rows::First);
            for (i, row) in batch.first_rows().into_iter().enumerate() {
                assert_eq!(bits(first.row(i)), bits(all.row(row)), "{case}");
            }
        }
    }
}

#[test]
fn types_are_ignored_without_a_table_and_default_to_zero_with_one() {
    let ids = vec![5, 8, 13, 21];
    let row = |types: Vec<u32>| Row::Tokens(Sequence { ids: ids.clone(), types });
    let open = |case| Session::open(&golden(case), None, context()).unwrap();
    let v3 = open("v3-sequence");
    assert_eq!(raw_bits(&v3, &[row(vec![0, 0, 1, 1])]), raw_bits(&v3, &[row(vec![])]));
    let bert = open("bert-sequence");
    assert_eq!(raw_bits(&bert, &[row(vec![0; 4])]), raw_bits(&bert, &[row(vec![])]));
    assert_ne!(raw_bits(&bert, &[row(vec![0, 0, 1, 1])]), raw_bits(&bert, &[row(vec![])]));
    assert!(bert.raw(&[row(vec![0, 0, 2, 0])], &Options::standard()).is_err(), "a type outside the table");
    assert!(bert.raw(&[row(vec![0])], &Options::standard()).is_err(), "too few types");
}

#[test]
fn ids_and_lengths_outside_the_model_are_errors() {
    let session = Session::open(&golden("bert-sequence"), None, context()).unwrap();
    let arch = session.architecture();
    let (vocabulary, longest) = (arch.vocabulary as u32, arch.length_limit().unwrap());
    let ask = |ids: Vec<u32>| session.raw(&[Row::Tokens(Sequence::of(ids))], &Options::standard());
    assert!(ask(vec![vocabulary - 1]).is_ok());
    assert!(ask(vec![vocabulary]).unwrap_err().to_string().contains("vocabulary"));
    assert!(ask(vec![]).is_err());
    assert!(ask(vec![1; longest]).is_ok());
    assert!(ask(vec![1; longest + 1]).unwrap_err().to_string().contains("too long"));
}
