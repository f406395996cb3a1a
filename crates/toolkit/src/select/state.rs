//! What was measured, in a file: a run that is interrupted goes on where it was.

use super::choices::Palette;
use super::cost::Costs;
use super::sensitivity::Damages;
use qberta_model::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const VERSION: u32 = 1;
/// Larger files are not state files.
const LARGEST: usize = 256 << 20;

/// How far a model is from the float model, in points; more is worse.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drop {
    /// The estimate.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
}

/// Times, and what they were taken on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// Processor, instruction set, threads, inputs.
    pub on: String,
    /// The times.
    pub costs: Costs,
}

/// Everything measured about a model and its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// What it was measured on: digests of model and data, and what was asked.
    subject: BTreeMap<String, String>,
    /// Sensitivity.
    pub damages: Damages,
    /// Cost; measured again on another machine.
    pub timed: Option<Timed>,
    /// Drops by rows and selection.
    pub drops: BTreeMap<String, Drop>,
}

impl State {
    /// Nothing measured about `subject`.
    pub fn new(subject: BTreeMap<String, String>) -> State {
        let damages = Damages::default();
        State { version: VERSION, subject, damages, timed: None, drops: BTreeMap::new() }
    }

    /// Reads a state of `subject`, measured on `examples` examples at most.
    ///
    /// Errors: anything but a state file; the state of another model, other data or another question, by name;
    /// figures that cannot be.
    pub fn parse(
        bytes: &[u8],
        subject: &BTreeMap<String, String>,
        palette: &Palette,
        examples: usize,
    ) -> Result<State> {
        if bytes.len() > LARGEST {
            return Err(
                Error::corrupt("file is too large for a state").expected(format!("at most {LARGEST} bytes"))
            );
        }
        let state: State = serde_json::from_slice(bytes).map_err(|e| {
            Error::corrupt("file is not a state of qberta plan")
                .found(e)
                .hint("name a new file, or delete this one")
        })?;
        if state.version != VERSION {
            return Err(Error::unsupported("state has another version")
                .expected(VERSION)
                .found(state.version)
                .hint("measure again into a new file"));
        }
        let parts: BTreeSet<&String> = state.subject.keys().chain(subject.keys()).collect();
        for part in parts {
            let (there, here) = (state.subject.get(part), subject.get(part));
            if there != here {
                let text = |t: Option<&String>| t.cloned().unwrap_or_else(|| "nothing".into());
                return Err(Error::mismatch(format!("state was measured with another {part}"))
                    .expected(text(here))
                    .found(text(there))
                    .hint("name a new file: what was measured there does not hold here"));
            }
        }
        state.check(palette, examples)?;
        Ok(state)
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a state has string keys");
        bytes.push(b'\n');
        bytes
    }

    fn check(&self, palette: &Palette, examples: usize) -> Result<()> {
        let wrong =
            |what: &str| Error::corrupt(what.to_owned()).hint("delete the state file and measure again");
        let n = self.damages.examples;
        if n > examples {
            return Err(wrong("state holds more examples than there are").expected(examples).found(n));
        }
        let sound =
            |values: &Vec<f64>| values.len() == n && values.iter().all(|v| v.is_finite() && *v >= 0.0);
        let choices = || palette.choices.iter().skip(1).map(|c| c.name);
        if n > 0 && !choices().all(|c| self.damages.throughout.get(c).is_some_and(sound)) {
            return Err(wrong("state lacks the damage of a choice"));
        }
        for unit in palette.units.iter().filter(|_| n > 0) {
            for offer in unit.offers.iter().skip(1) {
                let choice = palette.choices[offer.choice].name;
                let of = |all: &BTreeMap<String, BTreeMap<String, Vec<f64>>>| {
                    all.get(&unit.name).and_then(|u| u.get(choice)).is_some_and(sound)
                };
                if !of(&self.damages.alone) || !self.damages.without.is_empty() && !of(&self.damages.without)
                {
                    return Err(wrong("state has no sound damage of a module").at(&unit.name).found(choice));
                }
            }
        }
        let time = |t: &f64| t.is_finite() && (0.0..1e6).contains(t);
        if let Some(Timed { costs, .. }) = &self.timed {
            let all = |u: &super::Unit| {
                let has = |o: &super::Offer| {
                    costs.units.get(&u.name).is_some_and(|c| c.contains_key(palette.choices[o.choice].name))
                };
                u.offers.iter().all(has)
            };
            let finite = costs.units.values().flat_map(|c| c.values()).all(time) && time(&costs.rest.abs());
            if !finite || !palette.units.iter().all(all) {
                return Err(wrong("state has no sound time of a module"));
            }
        }
        let points = |d: &Drop| [d.value, d.interval[0], d.interval[1]].iter().all(|v| v.is_finite());
        match self.drops.values().all(points) {
            true => Ok(()),
            false => Err(wrong("state has a drop that is not a number")),
        }
    }
}
