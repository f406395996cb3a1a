//! What can be chosen for each module, and the models from which any choice is put together.

use crate::calibrate::Calibration;
use crate::plan::{Plan, plan};
use crate::quantize::{Progress, quantize_in_memory_under};
use crate::recipe::{Recipe, Scores, Values, uniform};
use qberta_kernels::Context;
use qberta_model::{Architecture, Error, Model, Result, Site, Slot, Weights};
use qberta_store::assemble::HEAD_GRIDS;
use qberta_store::layout::{self, Module, Role};
use qberta_store::manifest::{Decision, Group, Input, Weight};
use qberta_store::{Source, Tensor};
use std::collections::BTreeMap;

/// A way to store and run a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its name in options, tables and state files.
    pub name: &'static str,
    /// What it means for a linear; of word tables only the weight counts.
    pub decision: Decision,
    /// What it means for an attention: what its scores multiply, and what its weights do.
    pub attention: (Scores, Values),
    /// What can be decided so.
    pub of: Of,
    /// Whether it is among the choices when none are asked for.
    pub standard: bool,
}

/// What a choice is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Linears of the encoder.
    Linears,
    /// Those, and word tables.
    LinearsAndWords,
    /// Attentions.
    Attention,
}

const fn choice(name: &'static str, weight: Weight, input: Input, of: Of, standard: bool) -> Choice {
    let attention = (Scores::Float, Values::Float);
    Choice { name, decision: Decision { input, weight }, attention, of, standard }
}

const fn attention(name: &'static str, scores: Scores, context: Values) -> Choice {
    let attention = (scores, context);
    Choice { name, decision: Decision::FLOAT, attention, of: Of::Attention, standard: false }
}

/// Every choice, float first. A new way to store a weight is a line here.
pub const CHOICES: [Choice; 11] = [
    choice("float", Weight::Float, Input::Float, Of::LinearsAndWords, true),
    choice("dynamic", Weight::Int8Channel, Input::TokenAsymmetric, Of::LinearsAndWords, true),
    choice("static", Weight::Int8Channel, Input::TensorStatic, Of::Linears, true),
    choice("bf16", Weight::Bf16, Input::Float, Of::LinearsAndWords, false),
    choice("weight-only", Weight::Int8Channel, Input::Float, Of::Linears, false),
    choice("w4a8", Weight::Int4(Group::G64), Input::TokenAsymmetric, Of::Linears, false),
    choice("weight-only-4bit", Weight::Int4(Group::G64), Input::Float, Of::LinearsAndWords, false),
    attention("int8-scores", Scores::Int8, Values::Float),
    attention("static-scores", Scores::Static, Values::Float),
    attention("int8-context", Scores::Float, Values::Int8),
    attention("int8-attention", Scores::Int8, Values::Int8),
];

impl Choice {
    /// Whether it needs calibration data.
    pub fn calibrated(&self) -> bool {
        self.decision.input.is_static() || self.attention.0 == Scores::Static
    }

    fn is_float(&self) -> bool {
        self.decision == Decision::FLOAT && self.attention == (Scores::Float, Values::Float)
    }

    /// The choices called `names`; the standard ones if there are none, those that need data only where there
    /// are data (`calibrated`). Float is always among them.
    ///
    /// Errors: an unknown name, a choice that lacks its data, no choice but float.
    pub fn named(names: &[String], calibrated: bool) -> Result<Vec<Choice>> {
        let known = || CHOICES.iter().map(|c| c.name).collect::<Vec<_>>().join(", ");
        for name in names {
            let at = |e: Error| e.at("--among").found(name);
            let Some(choice) = CHOICES.iter().find(|c| c.name == name) else {
                return Err(at(Error::input("choice is not known")).expected(known()));
            };
            if choice.calibrated() && !calibrated {
                return Err(at(Error::input("choice needs calibration data"))
                    .hint("give a file with --calibration, or leave it out"));
            }
        }
        let asked = |c: &&Choice| match names {
            [] => c.standard && (calibrated || !c.calibrated()),
            _ => c.is_float() || names.iter().any(|n| n == c.name),
        };
        let chosen: Vec<Choice> = CHOICES.iter().filter(asked).copied().collect();
        if chosen.len() < 2 {
            return Err(Error::input("there is nothing to choose but float").at("--among").expected(known()));
        }
        Ok(chosen)
    }
}

/// Modules that are decided together, with the choices they have; an attention counts as one, for both its products.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// The first module's name.
    pub name: String,
    /// The modules: one, but for word matrices, which many checkpoints tie, and attentions, whose products have a name each.
    pub modules: Vec<String>,
    /// The sites they serve.
    pub(super) sites: Vec<Site>,
    /// The part of the network they lie in: 0 embeddings, then the layers, then the head.
    pub(super) stage: usize,
    /// What can be chosen, float first.
    pub offers: Vec<Offer>,
}

/// A choice of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Index among the choices.
    pub choice: usize,
    /// Bytes of the unit's tensors.
    pub bytes: u64,
}

/// The index of an offer for each unit.
pub type Selection = Vec<usize>;

/// The model quantized with each choice throughout. Where a grid or an extra column comes from does not depend
/// on other modules, so any selection is put together from these, bit for bit.
pub struct Palette {
    /// The choices, float first.
    pub choices: Vec<Choice>,
    /// What is decided on its own, in order of computation.
    pub units: Vec<Unit>,
    /// Bytes of the tensors that nobody decides about, and of the header of the weight file, at most.
    pub fixed_bytes: u64,
    /// The model with each choice throughout.
    pub(super) models: Vec<Model>,
    plans: Vec<Plan>,
}

/// Bytes of a tensor in the header of a safetensors file, beside its name, at most.
const ENTRY: u64 = 96;

impl Palette {
    /// Quantizes what `open` gives with each of `choices`, of which the first is float.
    ///
    /// Errors: those of quantizing and loading.
    pub fn new(
        open: &dyn Fn() -> Result<Source>,
        choices: Vec<Choice>,
        calibration: Option<Calibration<'_>>,
        cx: &Context,
        progress: &dyn Progress,
    ) -> Result<Palette> {
        let source = open()?;
        if source.is_artefact() {
            return Err(Error::input("model is an artefact already: it is quantized")
                .at(source.dir.display())
                .hint("start from the float checkpoint"));
        }
        let arch = source.arch.clone();
        let loaded = source.load(cx)?;
        let used = |name: &str| loaded.account.used.contains(name);
        let mut units = units(&arch, choices.iter().any(|c| c.of == Of::Attention))?;
        for unit in &mut units {
            unit.offers.push(Offer { choice: 0, bytes: bytes(&source, unit, &used) });
        }
        let all: u64 = source.tensors.iter().filter(|(n, _)| used(n)).map(|(n, t)| stored(n, t)).sum();
        let fixed_bytes = all.saturating_sub(units.iter().map(|u| u.offers[0].bytes).sum());
        let mut models = vec![loaded.model];
        let decided = units.iter().filter(|u| !u.is_attention()).flat_map(|u| &u.modules);
        let mut plans = vec![decided.map(|m| (m.clone(), Decision::FLOAT)).collect()];
        for (index, choice) in choices.iter().enumerate().skip(1) {
            let recipe = uniform(choice.name, choice.decision, choice.attention.0, choice.attention.1)?;
            let data = calibration.filter(|_| choice.calibrated());
            let quantized = quantize_in_memory_under(open()?, &recipe, data, cx, progress)?;
            for unit in units.iter_mut().filter(|u| u.takes(choice.of)) {
                unit.offers.push(Offer { choice: index, bytes: bytes(&quantized, unit, &|_| true) });
            }
            plans.push(plan(&arch, &recipe)?);
            models.push(quantized.load(cx)?.model);
        }
        Ok(Palette { choices, units, fixed_bytes, models, plans })
    }

    /// What the models compute.
    pub fn architecture(&self) -> &Architecture {
        self.models[0].architecture()
    }

    /// Everything in float.
    pub fn float(&self) -> Selection {
        vec![0; self.units.len()]
    }

    /// The offer of `choice` for each unit. Tables that do not have it take the one with that weight; attentions that are not
    /// decided about, and everything else where they alone are, stay in float.
    pub fn throughout(&self, choice: usize) -> Selection {
        let of_attention = self.choices[choice].of == Of::Attention;
        let weight = self.choices[choice].decision.weight;
        let alike = |o: &Offer| self.choices[o.choice].decision.weight == weight;
        let offer = |u: &Unit| match u.offers.iter().position(|o| o.choice == choice) {
            Some(offer) => offer,
            None if of_attention || u.is_attention() => 0,
            None => u.offers.iter().position(alike).unwrap_or(u.offers.len() - 1),
        };
        self.units.iter().map(offer).collect()
    }

    /// The modules with weights of their own that are decided about.
    pub fn modules(&self) -> usize {
        self.units.iter().filter(|u| !u.is_attention()).map(|u| u.modules.len()).sum()
    }

    /// The choice that `selection` makes for unit `unit`.
    pub fn choice(&self, selection: &[usize], unit: usize) -> usize {
        self.units[unit].offers[selection[unit]].choice
    }

    /// Modules whose weights `selection` leaves in float.
    pub fn in_float(&self, selection: &[usize]) -> Vec<&str> {
        let float = |u: &usize| self.choice(selection, *u) == 0 && !self.units[*u].is_attention();
        let float = (0..self.units.len()).filter(float);
        float.flat_map(|u| self.units[u].modules.iter().map(String::as_str)).collect()
    }

    /// Bytes of all tensors.
    pub fn bytes(&self, selection: &[usize]) -> u64 {
        self.fixed_bytes + self.units.iter().zip(selection).map(|(u, &o)| u.offers[o].bytes).sum::<u64>()
    }

    /// The decision for every module.
    pub fn plan(&self, selection: &[usize]) -> Plan {
        let decided = self.units.iter().enumerate().flat_map(|(u, unit)| {
            let plan = &self.plans[self.choice(selection, u)];
            unit.modules.iter().filter_map(|m| Some((m.clone(), *plan.get(m)?)))
        });
        decided.collect()
    }

    /// The model of each site, for sites whose weights are decided about.
    pub(super) fn by_site(&self, selection: &[usize]) -> BTreeMap<Site, usize> {
        let sites = self.units.iter().enumerate().flat_map(|(u, unit)| {
            let choice = self.choice(selection, u);
            unit.sites.iter().map(move |s| (*s, choice))
        });
        sites.collect()
    }

    /// The model that `selection` makes, with the bits of the artefact it would become.
    ///
    /// Errors: none but those of [`Model::new`].
    pub fn model(&self, selection: &[usize], cx: &Context) -> Result<Model> {
        let by_site = self.by_site(selection);
        let of = |site: &Site| self.models[by_site.get(site).copied().unwrap_or(0)].weights();
        let first = self.models[0].weights();
        let weights = Weights {
            linears: first.linears.keys().map(|s| (*s, of(s).linears[s].clone())).collect(),
            norms: first.norms.clone(),
            tables: first.tables.keys().map(|s| (*s, of(s).tables[s].clone())).collect(),
            talking: first.talking.clone(),
            scores: (0..self.architecture().layers)
                .map(|layer| of(&Site::layer(layer, Slot::Scores)).scores(layer).clone())
                .collect(),
            context: (0..self.architecture().layers)
                .map(|layer| of(&Site::layer(layer, Slot::Context)).context(layer))
                .collect(),
        };
        Model::new(self.architecture().clone(), weights, cx)
    }

    /// Stages of the network: embeddings, layers, head.
    pub(super) fn stages(&self) -> usize {
        self.architecture().layers + 2
    }
}

impl Unit {
    /// Whether it is an attention, which has no weights: what is decided are its products.
    pub fn is_attention(&self) -> bool {
        self.sites.iter().any(|s| matches!(s, Site::Layer(_, Slot::Scores)))
    }

    /// Whether it is the word table, or a vocabulary projection.
    pub(super) fn is_word_matrix(&self) -> bool {
        !self.sites.iter().any(|s| matches!(s, Site::Layer(..)))
    }

    /// Whether choices for `of` are among its own.
    fn takes(&self, of: Of) -> bool {
        match of {
            Of::Attention => self.is_attention(),
            Of::Linears => !self.is_word_matrix() && !self.is_attention(),
            Of::LinearsAndWords => !self.is_attention(),
        }
    }
}

/// Bytes of the tensors of a unit.
fn bytes(source: &Source, unit: &Unit, used: &dyn Fn(&str) -> bool) -> u64 {
    // The linears of an attention have names that begin with its own.
    let own = |rest: &str| !unit.is_attention() || HEAD_GRIDS.contains(&rest);
    let of = |name: &str| {
        let rest = |m: &String| name.strip_prefix(m.as_str()).and_then(|r| r.strip_prefix('.'));
        unit.modules.iter().filter_map(rest).any(own)
    };
    source.tensors.iter().filter(|(n, _)| of(n) && used(n)).map(|(n, t)| stored(n, t)).sum()
}

/// Bytes of a tensor in a file, its entry in the header included.
fn stored(name: &str, tensor: &Tensor) -> u64 {
    tensor.bytes().len() as u64 + name.len() as u64 + ENTRY
}

/// The modules that can be quantized, word matrices as one; with `attentions`, those too.
fn units(arch: &Architecture, attentions: bool) -> Result<Vec<Unit>> {
    let everything = plan(arch, &Recipe::new("dynamic", &[])?)?;
    let shared = arch.relative.as_ref().is_some_and(|r| r.shared_projections);
    let mut units: Vec<Unit> = Vec::new();
    let is_unit = |m: &Module| match m.role {
        Role::Scores { .. } | Role::Context { .. } => attentions,
        _ => everything.contains_key(&m.name),
    };
    for module in layout::modules(arch).into_iter().filter(is_unit) {
        let mut sites = match &module.role {
            Role::Scores { layer, .. } => vec![Site::layer(*layer, Slot::Scores)],
            Role::Context { layer } => vec![Site::layer(*layer, Slot::Context)],
            Role::Linear(role) => role.sites.iter().map(|(s, _)| *s).collect(),
            Role::Table { site, .. } => vec![*site],
            _ => vec![Site::Head(qberta_model::HeadSlot::Output)],
        };
        if shared {
            // One matrix projects content and the relative table.
            let projected: Vec<Site> = sites.iter().filter_map(|s| positions(*s)).collect();
            sites.extend(projected);
        }
        if module.is_word_matrix()
            && let Some(words) = units.iter_mut().find(|u| u.sites.contains(&Site::WordTable))
        {
            words.modules.push(module.name);
            words.sites.extend(sites);
            continue;
        }
        if let (Role::Context { .. }, Some(attention)) = (&module.role, units.last_mut()) {
            attention.modules.push(module.name);
            attention.sites.extend(sites);
            continue;
        }
        let stage = stage(arch, sites[0]);
        units.push(Unit {
            name: module.name.clone(),
            modules: vec![module.name],
            sites,
            stage,
            offers: Vec::new(),
        });
    }
    Ok(units)
}

fn positions(site: Site) -> Option<Site> {
    match site {
        Site::Layer(n, Slot::Query) => Some(Site::Layer(n, Slot::PositionQuery)),
        Site::Layer(n, Slot::Key) => Some(Site::Layer(n, Slot::PositionKey)),
        _ => None,
    }
}

fn stage(arch: &Architecture, site: Site) -> usize {
    match site {
        Site::Layer(n, _) => usize::from(n) + 1,
        Site::Head(_) => arch.layers + 1,
        _ => 0,
    }
}
