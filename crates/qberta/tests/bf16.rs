//! Weights kept in 16 bits: f32 arithmetic over rounded values, on every path.

mod common;

use common::*;
use qberta::kernels::{Context, Isa};
use qberta::runtime::Options;
use qberta::store::manifest::{Decision, Input, Weight};
use qberta::store::{Source, Tensor, tensor::Dtype};
use qberta::toolkit::export::{Target, export};
use qberta::{Recipe, Request, Row, Session, Task, quantize, verify};
use std::path::{Path, PathBuf};

const CASES: [&str; 9] = [
    "v3-sequence",
    "v1-talking-head",
    "v3-conv5-groups2",
    "bert-mlm",
    "v3-mlm-legacy",
    "v3-mlm-lm-predictions",
    "v1-mlm-lm-predictions",
    "roberta-qa",
    "distilbert-qa",
];

const HALF: &str = "name = \"half\"\n[linears]\nweight = \"bf16\"\n[words]\nweight = \"bf16\"\n";

fn task_of(case: &str) -> Task {
    task(&golden_cases().into_iter().find(|(c, _)| c == case).unwrap().1)
}

fn made(case: &str, dir: &Path, text: &str) -> PathBuf {
    let (model, out) = (golden(case), dir.join(case));
    let recipe = Recipe::parse(text, "half.toml").unwrap();
    let request = Request { model: &model, out: &out, recipe: &recipe, task: Some(task_of(case)) };
    quantize(&request, &context(), &()).unwrap_or_else(|e| panic!("{case}: {e}"));
    verify(&out, &context()).unwrap_or_else(|e| panic!("{case}: {e}"));
    out
}

fn answers(dir: &Path, case: &str, cx: Context) -> Vec<f32> {
    let rows: Vec<Row> = expected(&golden(case)).into_iter().map(|(row, _)| row).collect();
    let session = Session::open(dir, None, cx).unwrap();
    session.raw(&rows, &Options::standard()).unwrap().iter().flat_map(qberta::RawAnswer::values).collect()
}

#[test]
fn artefacts_have_the_bits_of_the_float_model_they_export() {
    let dir = tempfile::tempdir().unwrap();
    for case in CASES {
        let out = made(case, dir.path(), HALF);
        let source = Source::open(&out, None).unwrap();
        let manifest = source.manifest.as_ref().unwrap();
        assert_eq!(manifest.format_version, 5, "{case}");
        let half = Decision { input: Input::Float, weight: Weight::Bf16 };
        assert!(manifest.plan.values().all(|d| *d == half) && manifest.plan.len() > 5, "{case}");
        for (name, tensor) in &source.tensors {
            let planned = name.strip_suffix(".weight").is_some_and(|m| manifest.plan.contains_key(m));
            assert_eq!(tensor.dtype() == Dtype::BF16, planned, "{case}: {name}");
        }
        assert!(!source.config.contains_key("quantization_config"), "{case}: nothing to tell other readers");
        if task_of(case) == Task::FillMask {
            // What is not stored is the word table, and a class that does not tie would draw it at random.
            let stored = source.tensors.keys().any(|n| n.ends_with("decoder.weight"));
            let tied = source.config.get("tie_word_embeddings").is_none_or(|t| t == true);
            assert_eq!(tied, !stored, "{case}");
        }
        let float = dir.path().join(format!("{case}-float"));
        export(&out, &float, Target::HuggingFace, &context()).unwrap();
        let expected = answers(&float, case, context());
        let plain = answers(&golden(case), case, context());
        let largest = plain.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        let difference = largest_difference(&plain, &expected) / largest;
        assert!(difference > 0.0 && difference < 0.05, "{case}: {difference}");
        for isa in Isa::available() {
            for threads in [1, 3] {
                let found = answers(&out, case, Context::new(isa, threads).unwrap());
                assert_eq!(bits(&found), bits(&expected), "{case} on {isa}, {threads} threads");
            }
        }
    }
}

#[test]
fn sixteen_bits_beside_eight() {
    let dir = tempfile::tempdir().unwrap();
    let text = "name = \"beside\"\nbase = \"dynamic\"\n[[rules]]\nmodules = \"layer.0\"\nweight = \"bf16\"\n";
    let out = made("v3-sequence", dir.path(), text);
    let source = Source::open(&out, None).unwrap();
    let plan = &source.manifest.as_ref().unwrap().plan;
    assert!(plan.iter().all(|(m, d)| (d.weight == Weight::Bf16) == m.contains("layer.0.")), "{plan:?}");
    // The plan says what the tensors are.
    let load = |edit: &Edit| load_edited(&source, edit);
    assert!(load(&|_, _| ()).is_ok());
    let module = "deberta.encoder.layer.0.output.dense";
    let weight = format!("{module}.weight");
    let with = |tensor: Tensor| load(&|_, t| drop(t.insert(weight.clone(), tensor.clone())));
    let shape = source.tensors[&format!("{module}.weight")].shape().to_vec();
    let ones = vec![1.0; shape.iter().product()];
    assert!(with(Tensor::from_bf16(shape.clone(), &ones).unwrap()).is_ok());
    let wide = with(Tensor::from_f32(shape.clone(), &ones).unwrap()).unwrap_err();
    assert!(wide.to_string().contains("disagree"), "{wide}");
    let mut broken = ones;
    broken[7] = f32::NAN;
    let broken = with(Tensor::from_bf16(shape, &broken).unwrap()).unwrap_err();
    assert!(
        broken.to_string().contains("not finite") && broken.to_string().contains("element 7"),
        "{broken}"
    );
    let shape = source.tensors[&format!("{module}.weight")].shape().to_vec();
    let far =
        Tensor::from_bf16(shape, &vec![f32::MAX; source.tensors[&format!("{module}.weight")].elements()]);
    assert!(far.unwrap_err().to_string().contains("no bfloat16"));
    let table = "deberta.embeddings.word_embeddings";
    let float = load(&|m, t| {
        let name = format!("{table}.weight");
        let (shape, codes) = (t[&name].shape().to_vec(), vec![1.0; t[&name].elements()]);
        m.plan.get_mut(table).unwrap().weight = Weight::Int8Channel;
        t.insert(name, Tensor::from_bf16(shape, &codes).unwrap());
    });
    assert!(float.unwrap_err().to_string().contains("disagree"));
    let coded = load(&|m, _| m.plan.get_mut(module).unwrap().input = Input::TensorStatic).unwrap_err();
    assert!(coded.to_string().contains("float weight"), "{coded}");
}
