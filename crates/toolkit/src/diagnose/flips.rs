//! Examples whose answer changed, and the layer from which on it does.

use super::compare::Pair;
use super::tally::Tally;
use super::{Examples, batch};
use crate::mixed::Mixed;
use crate::quantize::Progress;
use qberta_kernels::{Context, Matrix};
use qberta_model::{Architecture, Model, Reading, Result, Site, Task, forward};
use serde::Serialize;

/// An example whose answer changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flip {
    /// Its index in the data.
    pub example: usize,
    /// What the float model decides: an output for each thing to decide (labels, tokens, ends of a span).
    pub float: Vec<usize>,
    /// What the other decides.
    pub other: Vec<usize>,
    /// How far the float model's best output leads where the decision changed first.
    pub margin: f64,
    /// Largest difference of an output.
    pub largest: f64,
    /// The smallest part of the network, from the embeddings on, that has to be quantized for the answer to
    /// change; `None` if it was not looked for.
    pub first: Option<Stage>,
}

/// A part of the network, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Embeddings.
    Embedding,
    /// An encoder layer.
    Layer(usize),
    /// The task head.
    Head,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stage::Embedding => f.write_str("embedding"),
            Stage::Layer(n) => write!(f, "layer {n}"),
            Stage::Head => f.write_str("head"),
        }
    }
}

impl Stage {
    fn of(site: Site) -> Stage {
        match site {
            Site::Layer(n, _) => Stage::Layer(usize::from(n)),
            Site::Conv | Site::ConvNorm => Stage::Layer(0),
            Site::Head(_) => Stage::Head,
            _ => Stage::Embedding,
        }
    }

    fn all(arch: &Architecture) -> Vec<Stage> {
        let layers = (0..arch.layers).map(Stage::Layer);
        [Stage::Embedding].into_iter().chain(layers).chain([Stage::Head]).collect()
    }
}

/// Flips whose first stage is looked for.
const TRACED: usize = 32;

/// What both models answer to one example.
pub(super) struct Answer {
    float: Vec<Decision>,
    other: Vec<Decision>,
    /// Over all outputs.
    pub tally: Tally,
}

impl Answer {
    pub fn of(arch: &Architecture, ys: &[Pair]) -> Answer {
        let mut tally = Tally::default();
        ys.iter().for_each(|y| tally.see(y.float.as_slice(), y.other.as_slice()));
        Answer {
            float: decide(arch, &ys.iter().map(|y| &y.float).collect::<Vec<_>>()),
            other: decide(arch, &ys.iter().map(|y| &y.other).collect::<Vec<_>>()),
            tally,
        }
    }
}

/// Every example that the two models answer differently.
pub(super) fn find(
    float: &Model,
    other: &Model,
    examples: Examples<'_>,
    answers: &[Answer],
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Vec<Flip>> {
    let arch = float.architecture();
    let mut flips = Vec::new();
    for (example, answer) in answers.iter().enumerate() {
        let (a, b) = (&answer.float, &answer.other);
        let Some(at) = a.iter().zip(b).position(|(a, b)| a.choice != b.choice) else { continue };
        flips.push(Flip {
            example,
            float: a.iter().map(|d| d.choice).collect(),
            other: b.iter().map(|d| d.choice).collect(),
            margin: a[at].margin,
            largest: answer.tally.errors().max,
            first: None,
        });
    }
    progress.stage("tracing changed answers", flips.len().min(TRACED) as u64);
    for flip in flips.iter_mut().take(TRACED) {
        for stage in Stage::all(arch) {
            let mut ys = Vec::new();
            for sequence in &examples[flip.example] {
                let mut engine = Mixed::new([float, other], cx, |at| usize::from(Stage::of(at) <= stage));
                ys.push(forward(arch, &mut engine, &batch(float, sequence, flip.example)?));
            }
            let decided = decide(arch, &ys.iter().collect::<Vec<_>>());
            if decided.iter().map(|d| d.choice).ne(flip.float.iter().copied()) {
                flip.first = Some(stage);
                break;
            }
        }
        progress.step();
    }
    Ok(flips)
}

/// What the outputs of one example decide, one choice for each thing to decide; nothing for features and
/// regression. `outputs`: one matrix for each of its sequences.
pub fn decisions(arch: &Architecture, outputs: &[&Matrix]) -> Vec<usize> {
    decide(arch, outputs).iter().map(|d| d.choice).collect()
}

struct Decision {
    choice: usize,
    margin: f64,
}

/// What the outputs of one example decide: nothing for features and regression.
fn decide(arch: &Architecture, outputs: &[&Matrix]) -> Vec<Decision> {
    let column = |y: &Matrix, c: usize| (0..y.rows()).map(|i| y.row(i)[c]).collect::<Vec<f32>>();
    let rows = |y: &Matrix| (0..y.rows()).map(|i| best(y.row(i))).collect::<Vec<_>>();
    match (arch.head.task, arch.reading) {
        (Task::Features, _) | (Task::SequenceClassification, Reading::Regression) => Vec::new(),
        (Task::SequenceClassification, Reading::Independent) => {
            outputs.iter().flat_map(|y| y.as_slice()).map(|&v| best(&[0.0, v])).collect()
        }
        (Task::MultipleChoice, _) => vec![best(&outputs.iter().map(|y| y.row(0)[0]).collect::<Vec<_>>())],
        (Task::QuestionAnswering, _) => {
            outputs.iter().flat_map(|y| [best(&column(y, 0)), best(&column(y, 1))]).collect()
        }
        (Task::SequenceClassification | Task::TokenClassification | Task::FillMask, _) => {
            outputs.iter().flat_map(|y| rows(y)).collect()
        }
    }
}

/// The largest of `scores` (the first of equals) and its lead.
fn best(scores: &[f32]) -> Decision {
    let mut choice = 0;
    for i in 1..scores.len() {
        if scores[i] > scores[choice] {
            choice = i;
        }
    }
    let others = scores.iter().enumerate().filter(|(i, _)| *i != choice);
    let second = others.map(|(_, v)| *v).fold(f32::NEG_INFINITY, f32::max);
    Decision { choice, margin: f64::from(scores[choice] - second) }
}
