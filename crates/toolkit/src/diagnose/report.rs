//! What a diagnosis says, in numbers and names.

use super::flips::{Answer, Flip, Stage};
use super::ledger::{Entry, Ledger, Place, Tokens};
use super::tally::{Errors, Tally};
use qberta_model::{Model, Task};
use serde::Serialize;
use std::collections::BTreeMap;

/// A finished comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// Examples compared.
    pub examples: usize,
    /// Examples on which sites ran alone.
    pub alone_examples: usize,
    /// Error of the outputs (logits, hidden states).
    pub outputs: Errors,
    /// Mean over examples of the largest difference of an output.
    pub mean_largest: f64,
    /// Every place in the order of computation.
    pub places: Vec<PlaceReport>,
    /// Names of the places that make an error, most damage first.
    pub ranking: Vec<String>,
    /// Whether the task has answers that can change.
    pub decides: bool,
    /// Examples whose answer changed.
    pub flips: Vec<Flip>,
    /// The earliest stage with which an answer changes.
    pub first_flip: Option<Stage>,
}

/// One place.
#[derive(Clone, Debug, Serialize)]
pub struct PlaceReport {
    /// Its name.
    pub place: String,
    /// Its encoder layer.
    pub layer: Option<usize>,
    /// Its name without the layer.
    pub slot: String,
    /// How far the outputs move when it alone is quantized.
    pub damage: Option<Damage>,
    /// The error of its input.
    pub arriving: Option<Errors>,
    /// The error made there on the float run's input.
    pub made: Option<Errors>,
    /// Of that: by the stored weights alone.
    pub made_by_weights: Option<Errors>,
    /// Of that: by clipping the input to a stored grid, before any rounding. `None` where nothing can clip.
    pub made_by_clipping: Option<Errors>,
    /// Of that: by rounding what was clipped.
    pub made_by_rounding: Option<Errors>,
    /// Part of the input's values that were clipped.
    pub clipped: Option<f64>,
    /// The error of what leaves.
    pub accumulated: Errors,
    /// Channels of the input that reach furthest, largest first.
    pub outlier_channels: Vec<Channel>,
    /// Tokens with the largest share of the error made there, most first.
    pub tokens: Vec<Token>,
    /// Single rows with most of it.
    pub worst_tokens: Vec<WorstToken>,
}

/// How far the outputs move.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Damage {
    /// Root of the mean squared change.
    pub rms: f64,
    /// Largest change.
    pub max: f64,
}

/// An input channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Channel {
    /// Its index.
    pub channel: usize,
    /// Its largest absolute value.
    pub largest: f64,
    /// That value over the median of all channels.
    pub ratio: f64,
}

/// A token of the vocabulary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its text, once somebody who knows the vocabulary has filled it in.
    pub text: Option<String>,
    /// Rows it stood in.
    pub rows: u64,
    /// Part of the error made at the place, all tokens being 1.
    pub share: f64,
    /// Its error per row over that of the average row.
    pub ratio: f64,
}

/// A token of an example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorstToken {
    /// The example.
    pub example: usize,
    /// Its position in the sequence.
    pub position: usize,
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: Option<String>,
    /// Root of the sum of squares of the error of its row.
    pub error: f64,
}

impl Diagnosis {
    /// Writes in the texts of tokens.
    pub fn name_tokens(&mut self, text: impl Fn(u32) -> Option<String>) {
        for place in &mut self.places {
            place.tokens.iter_mut().for_each(|t| t.text = text(t.id));
            place.worst_tokens.iter_mut().for_each(|t| t.text = text(t.id));
        }
    }

    /// The place called `name`.
    pub fn place(&self, name: &str) -> Option<&PlaceReport> {
        self.places.iter().find(|p| p.place == name)
    }

    /// The places that make an error, most damage first.
    pub fn ranked(&self) -> impl Iterator<Item = &PlaceReport> {
        self.ranking.iter().filter_map(|name| self.place(name))
    }
}

/// Channels and tokens told of each place.
const TOLD: usize = 5;

pub(super) fn report(
    float: &Model,
    ledger: Ledger,
    damage: BTreeMap<Place, Damage>,
    answers: &[Answer],
    flips: Vec<Flip>,
) -> Diagnosis {
    let arch = float.architecture();
    let mut all = Tally::default();
    let mut largest = 0.0;
    for answer in answers {
        all.merge(&answer.tally);
        largest += answer.tally.errors().max;
    }
    let places: Vec<PlaceReport> = ledger
        .order
        .iter()
        .map(|place| one(*place, &ledger.entries[place], damage.get(place).copied()))
        .collect();
    let mut ranked: Vec<&PlaceReport> = places.iter().filter(|p| p.damage.is_some()).collect();
    let rms = |p: &PlaceReport| p.damage.map_or(0.0, |d| d.rms);
    ranked.sort_by(|a, b| rms(b).total_cmp(&rms(a)));
    Diagnosis {
        examples: answers.len(),
        alone_examples: answers.len().min(super::ALONE),
        outputs: all.errors(),
        mean_largest: largest / answers.len().max(1) as f64,
        ranking: ranked.iter().map(|p| p.place.clone()).collect(),
        places,
        decides: !(arch.head.task == Task::Features
            || arch.head.task == Task::SequenceClassification
                && arch.reading == qberta_model::Reading::Regression),
        first_flip: flips.iter().filter_map(|f| f.first).min(),
        flips,
    }
}

fn one(place: Place, entry: &Entry, damage: Option<Damage>) -> PlaceReport {
    let errors = |t: &Tally| (!t.is_empty()).then(|| t.errors());
    let name = place.to_string();
    let slot = match place.layer() {
        Some(_) => name.splitn(3, '.').nth(2).unwrap_or(&name).to_owned(),
        None => name.clone(),
    };
    PlaceReport {
        place: name,
        layer: place.layer(),
        slot,
        damage,
        arriving: errors(&entry.arriving),
        made: errors(&entry.made),
        made_by_weights: errors(&entry.by_weights),
        made_by_clipping: errors(&entry.by_clipping),
        made_by_rounding: errors(&entry.by_rounding),
        clipped: (entry.clippable > 0).then(|| entry.clipped as f64 / entry.clippable as f64),
        accumulated: entry.output.errors(),
        outlier_channels: channels(&entry.channels.magnitudes()),
        tokens: tokens(&entry.tokens),
        worst_tokens: entry
            .tokens
            .worst
            .iter()
            .filter(|w| w.noise > 0.0)
            .take(TOLD)
            .map(|w| WorstToken {
                example: w.example,
                position: w.position,
                id: w.id,
                text: None,
                error: w.noise.sqrt(),
            })
            .collect(),
    }
}

fn channels(magnitudes: &[f64]) -> Vec<Channel> {
    let mut order: Vec<usize> = (0..magnitudes.len()).collect();
    order.sort_by(|&a, &b| magnitudes[b].total_cmp(&magnitudes[a]));
    let median = order.get(order.len() / 2).map_or(0.0, |&c| magnitudes[c]);
    let channel = |&channel: &usize| Channel {
        channel,
        largest: magnitudes[channel],
        ratio: magnitudes[channel] / median.max(f64::MIN_POSITIVE),
    };
    order.iter().take(TOLD).map(channel).collect()
}

fn tokens(tokens: &Tokens) -> Vec<Token> {
    let (noise, rows) = tokens.by_id.values().fold((0.0, 0), |(n, r), (noise, rows)| (n + noise, r + rows));
    // Where every row is the same token, as where only the first row is read, there is nothing to tell.
    if noise == 0.0 || tokens.by_id.len() == 1 {
        return Vec::new();
    }
    let mut all: Vec<Token> = tokens
        .by_id
        .iter()
        .map(|(&id, &(own, seen))| Token {
            id,
            text: None,
            rows: seen,
            share: own / noise,
            ratio: (own / seen as f64) / (noise / rows as f64),
        })
        .collect();
    all.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.id.cmp(&b.id)));
    all.truncate(TOLD);
    all
}
