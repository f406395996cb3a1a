//! Float outputs against Hugging Face transformers 4.57.1 on every golden checkpoint.

mod common;

use common::*;
use qberta::Session;
use qberta::runtime::Options;

/// Absolute, on outputs of order one, float32 both sides.
const MAX_DIFFERENCE: f32 = 1e-4;

#[test]
fn every_variant_and_head_equals_transformers() {
    let mut failures = Vec::new();
    println!(
        "| case | family | head | rows | longest, tokens | largest difference |\n|---|---|---|---|---|---|"
    );
    for (case, record) in golden_cases() {
        let session = match Session::open(&golden(&case), Some(task(&record)), context()) {
            Ok(session) => session,
            Err(e) => {
                failures.push(format!("{case}: {e}"));
                continue;
            }
        };
        let rows = expected(&golden(&case));
        let mut worst = 0.0f32;
        for (row, numbers) in &rows {
            match session.raw(std::slice::from_ref(row), &Options::standard()) {
                Ok(raw) => worst = worst.max(largest_difference(&raw[0].values(), numbers)),
                Err(e) => failures.push(format!("{case}: {e}")),
            }
        }
        let of = |key: &str| record[key].as_str().unwrap().to_owned();
        let (family, head, longest) = (of("family"), of("head"), &record["max_len"]);
        println!("| {case} | {family} | {head} | {} | {longest} | {worst:.1e} |", rows.len());
        if worst.is_nan() || worst > MAX_DIFFERENCE {
            failures.push(format!("{case}: largest difference {worst:e}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
