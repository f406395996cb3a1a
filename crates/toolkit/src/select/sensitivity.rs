//! What each choice of each module does to the outputs.
//!
//! *Fast*: every module alone inside its own layer, which gives the error that the layer passes on; and once a
//! layer, all its modules together through the rest of the network, which says what an error passed on there
//! does to the outputs. The damage of a module is its share of the layer's. A layer is entered with the float
//! run's hidden states, so a module costs one layer and not one network.
//!
//! *Alone*: every module alone, from its layer to the outputs.
//!
//! *Exhaustive*: also every module back in float while all others are quantized. The mean of both is each
//! module's part of the whole damage as Shapley defined it, exactly so while outputs are linear in the errors: then the
//! damage is a square, and the mean counts every interaction half to each of its two modules.

use super::choices::{Palette, Selection};
use super::damage::damage;
use crate::mixed::{Mixed, Part};
use crate::quantize::Progress;
use qberta_kernels::{Context, Matrix};
use qberta_model::{Batch, EmbeddingProjection, Error, Result, Sequence, Site, Slot, Task, forward};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// How sensitivity is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Search {
    /// One layer a module.
    Fast,
    /// Every module quantized alone.
    Alone,
    /// Every module quantized alone, and left out alone.
    Exhaustive,
}

impl Search {
    /// Every way by name.
    pub const ALL: [(Search, &'static str); 3] =
        [(Search::Fast, "fast"), (Search::Alone, "alone"), (Search::Exhaustive, "exhaustive")];

    /// Its name.
    pub fn name(self) -> &'static str {
        Search::ALL.iter().find(|(s, _)| *s == self).map_or("", |(_, n)| n)
    }
}

/// Damage by example, as far as it is measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Damages {
    /// Examples measured so far.
    pub examples: usize,
    /// Of each choice throughout, by choice.
    pub throughout: BTreeMap<String, Vec<f64>>,
    /// Of each unit alone, by unit and choice.
    pub alone: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
    /// Of each choice throughout but for one unit, by that unit and choice.
    pub without: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl Damages {
    /// The damage of an offer, at least 0: mean over examples in `range`.
    pub fn score_over(&self, unit: &str, choice: &str, range: Range<usize>) -> f64 {
        let of = |all: &BTreeMap<String, BTreeMap<String, Vec<f64>>>| {
            all.get(unit).and_then(|u| u.get(choice)).and_then(|v| v.get(range.clone())).map(mean)
        };
        let alone = of(&self.alone).unwrap_or(0.0);
        let whole = self.throughout.get(choice).and_then(|v| v.get(range.clone())).map(mean);
        match (of(&self.without), whole) {
            (Some(without), Some(whole)) => (0.5 * (alone + whole - without)).max(0.0),
            _ => alone,
        }
    }

    /// The damage of an offer, over all examples.
    pub fn score(&self, unit: &str, choice: &str) -> f64 {
        self.score_over(unit, choice, 0..self.examples)
    }

    /// The damage of `choice` throughout.
    pub fn whole(&self, choice: &str) -> f64 {
        self.throughout.get(choice).map_or(0.0, |v| mean(v))
    }

    fn push(
        all: &mut BTreeMap<String, BTreeMap<String, Vec<f64>>>,
        unit: &str,
        choice: &str,
        values: &[f64],
    ) {
        all.entry(unit.to_owned()).or_default().entry(choice.to_owned()).or_default().extend(values);
    }
}

/// Tokens that run together.
const TOGETHER: usize = 512;

/// Takes `damages` on to all of `examples`. `save` is called whenever examples are done.
///
/// Errors: an example that the model cannot take, outputs that are not finite, those of `save`.
pub fn measure(
    palette: &Palette,
    examples: &[Vec<Sequence>],
    search: Search,
    damages: &mut Damages,
    cx: &Context,
    progress: &dyn Progress,
    save: &mut dyn FnMut(&Damages) -> Result<()>,
) -> Result<()> {
    let groups = groups(examples, damages.examples);
    let runs: usize = palette.units.len();
    progress.stage(&format!("sensitivity, {}", search.name()), (groups.len() * runs) as u64);
    for members in groups {
        let lab = Lab::new(palette, &examples[members.clone()], cx).map_err(|e| {
            e.at(format!("rows {} to {} of the measuring part", members.start + 1, members.end))
        })?;
        let mut found = damages.clone();
        for (choice, known) in palette.choices.iter().enumerate().skip(1) {
            let whole = lab.run(&palette.throughout(choice), 0, None, &lab.boundaries);
            found.throughout.entry(known.name.to_owned()).or_default().extend(lab.damages(&whole.outputs)?);
            lab.choice(choice, search, &whole, &mut found, progress)?;
        }
        found.examples = members.end;
        *damages = found;
        save(damages)?;
    }
    Ok(())
}

/// Ranges of examples from `done` on, each of about [`TOGETHER`] tokens.
fn groups(examples: &[Vec<Sequence>], done: usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut tokens = usize::MAX;
    for (i, example) in examples.iter().enumerate().skip(done) {
        let more: usize = example.iter().map(|s| s.ids.len()).sum();
        match groups.last_mut() {
            Some(last) if tokens + more <= TOGETHER => {
                last.end = i + 1;
                tokens += more;
            }
            _ => {
                groups.push(i..i + 1);
                tokens = more;
            }
        }
    }
    groups
}

/// What a run gave.
struct Run {
    outputs: Matrix,
    kept: BTreeMap<Site, Matrix>,
}

/// Some examples, and the float model's run over them.
struct Lab<'a> {
    palette: &'a Palette,
    cx: &'a Context,
    batch: Batch,
    /// Output rows of each example.
    outputs: Vec<Range<usize>>,
    /// Token rows, and sequences, of each example.
    tokens: Vec<Range<usize>>,
    sequences: Vec<Range<usize>>,
    /// The last site of every stage but the head.
    boundaries: Vec<Site>,
    float: Run,
}

impl<'a> Lab<'a> {
    fn new(palette: &'a Palette, examples: &[Vec<Sequence>], cx: &'a Context) -> Result<Lab<'a>> {
        let arch = palette.architecture();
        let batch = Batch::new(arch, &examples.concat())?;
        let ranges = |size: &dyn Fn(&Vec<Sequence>) -> usize| {
            let mut end = 0;
            let next = |e: &Vec<Sequence>| {
                end += size(e);
                end - size(e)..end
            };
            examples.iter().map(next).collect::<Vec<_>>()
        };
        let tokens = ranges(&|e| e.iter().map(|s| s.ids.len()).sum());
        let sequences = ranges(&Vec::len);
        let pooled = matches!(arch.head.task, Task::SequenceClassification | Task::MultipleChoice);
        let outputs = if pooled { sequences.clone() } else { tokens.clone() };
        let embedded = match arch.embedding_projection {
            EmbeddingProjection::AfterNorm => Site::EmbeddingProjection,
            _ => Site::EmbeddingNorm,
        };
        let last = |layer: usize| match (layer, arch.convolution) {
            (0, Some(_)) => Site::ConvNorm,
            _ => Site::layer(layer, Slot::FfnNorm),
        };
        let boundaries = std::iter::once(embedded).chain((0..arch.layers).map(last)).collect();
        let float = Run { outputs: Matrix::zeros(0, 0), kept: BTreeMap::new() };
        let mut lab = Lab { palette, cx, batch, outputs, tokens, sequences, boundaries, float };
        lab.float = lab.run(&palette.float(), 0, None, &lab.boundaries);
        Ok(lab)
    }

    /// Runs `selection` from stage `from` on, entered with `entry` (the start if `None`), keeping values.
    fn run(&self, selection: &[usize], from: usize, entry: Option<&Matrix>, keep: &[Site]) -> Run {
        self.part(selection, from, entry, None, keep)
    }

    fn part(
        &self,
        selection: &[usize],
        from: usize,
        entry: Option<&Matrix>,
        end: Option<Site>,
        keep: &[Site],
    ) -> Run {
        let by_site = self.palette.by_site(selection);
        let from_model = |at: Site| by_site.get(&at).copied().unwrap_or(0);
        let mixed = Mixed::new(&self.palette.models, self.cx, from_model);
        let begin = from.checked_sub(1).and_then(|before| Some((self.boundaries[before], entry?)));
        let mut part = Part::new(mixed, begin, end, keep);
        let outputs = forward(self.palette.architecture(), &mut part, &self.batch);
        Run { outputs, kept: part.into_kept() }
    }

    /// The damage to each example.
    fn damages(&self, outputs: &Matrix) -> Result<Vec<f64>> {
        let arch = self.palette.architecture();
        let one = |rows: &Range<usize>| damage(arch, &self.float.outputs, outputs, rows.clone());
        let damages: Vec<f64> = self.outputs.iter().map(one).collect();
        match damages.iter().all(|d| d.is_finite()) {
            true => Ok(damages),
            false => Err(Error::corrupt("outputs are not finite").hint(
                "the weights are damaged or overflow in f32; check the checkpoint with `qberta inspect`",
            )),
        }
    }

    /// Squared distance of hidden states from the float run's at a boundary, by example.
    fn distances(&self, at: Site, other: &Matrix) -> Vec<f64> {
        let float = &self.float.kept[&at];
        let ranges = if float.rows() == self.batch.ids().len() { &self.tokens } else { &self.sequences };
        let row = |r: usize| -> f64 {
            float.row(r).iter().zip(other.row(r)).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
        };
        ranges.iter().map(|rows| rows.clone().map(row).sum()).collect()
    }

    fn entry<'r>(&self, run: &'r Run, stage: usize) -> Option<&'r Matrix> {
        stage.checked_sub(1).and_then(|before| run.kept.get(&self.boundaries[before]))
    }

    /// Books every unit with `choice`.
    fn choice(
        &self,
        choice: usize,
        search: Search,
        whole: &Run,
        found: &mut Damages,
        progress: &dyn Progress,
    ) -> Result<()> {
        let name = self.palette.choices[choice].name;
        for stage in 0..self.palette.stages() {
            let has = |u: &usize| {
                let unit = &self.palette.units[*u];
                unit.stage == stage && unit.offers.iter().any(|o| o.choice == choice)
            };
            let members: Vec<usize> = (0..self.palette.units.len()).filter(has).collect();
            if members.is_empty() {
                continue;
            }
            // From the last layer on the rest of the network is the head, which costs nothing.
            // Word matrices lie at both ends.
            let inside = members.iter().all(|&u| !self.palette.units[u].is_word_matrix());
            let shared = search == Search::Fast && inside && stage + 2 < self.palette.stages();
            let damages = match shared {
                true => self.shared(&members, choice, stage)?,
                false => self.alone(&members, choice, stage)?,
            };
            for (&unit, values) in members.iter().zip(&damages) {
                Damages::push(&mut found.alone, &self.palette.units[unit].name, name, values);
                if search == Search::Exhaustive {
                    let left = self.without(unit, choice, stage, whole)?;
                    Damages::push(&mut found.without, &self.palette.units[unit].name, name, &left);
                }
                // A unit counts once, with its last choice.
                if self.palette.units[unit].offers.last().is_some_and(|o| o.choice == choice) {
                    progress.step();
                }
            }
        }
        Ok(())
    }

    /// `base` with some units at `choice`.
    fn with(&self, mut base: Selection, units: &[usize], choice: usize) -> Selection {
        for &u in units {
            base[u] = self.palette.units[u].offers.iter().position(|o| o.choice == choice).unwrap_or(0);
        }
        base
    }

    /// Damage of each of `units` alone, to the outputs.
    fn alone(&self, units: &[usize], choice: usize, stage: usize) -> Result<Vec<Vec<f64>>> {
        let one = |u: &usize| {
            let selection = self.with(self.palette.float(), &[*u], choice);
            self.damages(&self.run(&selection, stage, self.entry(&self.float, stage), &[]).outputs)
        };
        units.iter().map(one).collect()
    }

    /// Damage of each of `units`, all of one stage, as its share of what they do together.
    fn shared(&self, units: &[usize], choice: usize, stage: usize) -> Result<Vec<Vec<f64>>> {
        let at = self.boundaries[stage];
        let passed_on = |units: &[usize]| {
            let selection = self.with(self.palette.float(), units, choice);
            let entry = self.entry(&self.float, stage);
            self.part(&selection, stage, entry, Some(at), &[at]).kept.remove(&at)
        };
        let missing = || Error::corrupt("the network has no such stage").at(at);
        let together = passed_on(units).ok_or_else(missing)?;
        let all = self.distances(at, &together);
        let damage =
            self.damages(&self.run(&self.palette.float(), stage + 1, Some(&together), &[]).outputs)?;
        let one = |u: &usize| {
            let value = passed_on(&[*u]).ok_or_else(missing)?;
            let shares = self.distances(at, &value).into_iter().zip(&all).zip(&damage);
            Ok(shares.map(|((d, all), damage)| if *all > 0.0 { damage * d / all } else { 0.0 }).collect())
        };
        if units.len() == 1 {
            return Ok(vec![damage]);
        }
        units.iter().map(one).collect()
    }

    /// Damage of `choice` throughout but for one unit.
    fn without(&self, unit: usize, choice: usize, stage: usize, whole: &Run) -> Result<Vec<f64>> {
        let mut selection = self.palette.throughout(choice);
        selection[unit] = 0;
        self.damages(&self.run(&selection, stage, self.entry(whole, stage), &[]).outputs)
    }
}
