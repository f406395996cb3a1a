//! Where the error of a quantized model enters: it and its float model in lock-step through the one forward,
//! then each quantized site alone in the float model, then the examples whose answer changed.

mod compare;
mod flips;
mod ledger;
mod report;
mod tally;

pub use flips::{Flip, Stage, decisions};
pub use ledger::{Place, Term};
pub use report::{Channel, Damage, Diagnosis, PlaceReport, Token, WorstToken};
pub use tally::{Errors, Tally};

use crate::mixed::Mixed;
use crate::quantize::Progress;
use compare::{Compare, Pair};
use flips::Answer;
use ledger::Ledger;
use qberta_kernels::{Context, Matrix};
use qberta_model::{Batch, Error, Model, Result, Sequence, forward};
use std::collections::BTreeMap;

/// The rows of a diagnosis, each the sequences of one example (several for multiple choice).
pub type Examples<'a> = &'a [Vec<Sequence>];

/// Examples on which every site also runs alone.
pub const ALONE: usize = 16;

/// Compares `other` with the float model on `examples`.
///
/// Errors: no example, models of different architecture, an example that they cannot take, outputs that are
/// not finite.
pub fn diagnose(
    float: &Model,
    other: &Model,
    examples: Examples<'_>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Diagnosis> {
    if examples.iter().all(Vec::is_empty) {
        return Err(Error::input("there is no example to compare the models on").at("--data"));
    }
    same_architecture(float, other)?;
    progress.stage("running both models", examples.len() as u64);
    let mut engine = Compare::new(float, other, cx);
    // Of the outputs, which may be as wide as the vocabulary, only what is needed later is kept.
    let (mut answers, mut kept) = (Vec::with_capacity(examples.len()), Vec::new());
    for (number, example) in examples.iter().enumerate() {
        let mut ys = Vec::with_capacity(example.len());
        for sequence in example {
            engine.begin(number, &sequence.ids);
            let y = forward(float.architecture(), &mut engine, &batch(float, sequence, number)?);
            finite(&y, number)?;
            ys.push(y);
        }
        answers.push(Answer::of(float.architecture(), &ys));
        if number < ALONE {
            kept.push(ys.into_iter().map(|y| y.float).collect());
        }
        progress.step();
    }
    let ledger = engine.into_ledger();
    let damage = alone(float, other, examples, &kept, &ledger, cx, progress)?;
    let flips = flips::find(float, other, examples, &answers, cx, progress)?;
    Ok(report::report(float, ledger, damage, &answers, flips))
}

fn batch(model: &Model, sequence: &Sequence, number: usize) -> Result<Batch> {
    Batch::new(model.architecture(), std::slice::from_ref(sequence))
        .map_err(|e| e.at(format!("example {}", number + 1)))
}

fn finite(y: &Pair, number: usize) -> Result<()> {
    for (whose, m) in [("float", &y.float), ("quantized", &y.other)] {
        if let Some(v) = m.as_slice().iter().find(|v| !v.is_finite()) {
            return Err(Error::corrupt(format!("{whose} model gave a value that is not finite"))
                .at(format!("example {}", number + 1))
                .found(v)
                .hint("`qberta verify` checks an artefact, `qberta inspect` a checkpoint"));
        }
    }
    Ok(())
}

/// Models are compared site by site, so they must have the same sites.
fn same_architecture(float: &Model, other: &Model) -> Result<()> {
    let (a, b) = (float.architecture(), other.architecture());
    if a == b {
        return Ok(());
    }
    let facts = |m: &Model| {
        let a = m.architecture();
        format!(
            "{} for {}: {} layers, hidden {}, {} heads, feed-forward {}, vocabulary {}, {} outputs",
            a.family.name(),
            a.head.task.name(),
            a.layers,
            a.hidden,
            a.heads,
            a.intermediate,
            a.vocabulary,
            a.outputs()
        )
    };
    Err(Error::input("models are not of the same architecture")
        .expected(facts(float))
        .found(facts(other))
        .hint("pass the checkpoint that the artefact was made from; --task sets the head of both"))
}

/// How much the outputs move when one site alone is taken from `other`, for every site that makes an error,
/// over the first [`ALONE`] examples.
fn alone(
    float: &Model,
    other: &Model,
    examples: Examples<'_>,
    outputs: &[Vec<Matrix>],
    ledger: &Ledger,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<BTreeMap<Place, Damage>> {
    let shared = float.architecture().relative.as_ref().is_some_and(|r| r.shared_projections);
    let coded = |layer: usize| {
        let products = |m: &Model| (m.weights().scores(layer).clone(), m.weights().context(layer));
        products(float) != products(other)
    };
    let faulty = |p: &&Place| p.runs_alone(shared, coded) && ledger.entries[p].made.noise() > 0.0;
    let places: Vec<Place> = ledger.order.iter().filter(faulty).copied().collect();
    progress.stage("quantizing one site at a time", places.len() as u64);
    let arch = float.architecture();
    let mut damage = BTreeMap::new();
    for place in places {
        let mut tally = Tally::default();
        for (number, (example, ys)) in examples.iter().zip(outputs).enumerate() {
            for (sequence, y) in example.iter().zip(ys) {
                let mut engine = Mixed::new([float, other], cx, |at| usize::from(place.includes(at, shared)));
                let mixed: Matrix = forward(arch, &mut engine, &batch(float, sequence, number)?);
                tally.see(y.as_slice(), mixed.as_slice());
            }
        }
        let errors = tally.errors();
        damage.insert(place, Damage { rms: errors.rms, max: errors.max });
        progress.step();
    }
    Ok(damage)
}
