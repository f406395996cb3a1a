//! What is sound in a file, as an artefact: its int8 weights bit for bit, its floats as they are, the rest
//! from the base and listed.

use super::base::Base;
use super::subject::{self, Form, Subject};
use super::weights::{Kept, Stored, Weights, dequantize_rows, keep};
use crate::channels::splits;
use crate::plan::{Plan, plan};
use crate::probe;
use crate::quantize::{Artefact, Progress, Written, source_records, write};
use crate::recipe::Recipe;
use qberta_kernels::Context;
use qberta_model::{Error, Model, Result, Site};
use qberta_store::assemble::SCALE;
use qberta_store::atomic::check_target;
use qberta_store::layout::{self, Role};
use qberta_store::manifest::{Decision, FileRecord, Input, RecipeRecord, Weight};
use qberta_store::torch::Entry;
use qberta_store::{Dtype, Source, Tensor, digest};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Name under which an artefact remembers that it was rescued.
pub const RECIPE: &str = "rescued";

/// What became of a file.
#[derive(Debug, Serialize)]
pub struct Rescued {
    /// Modules whose int8 codes are those of the file.
    pub int8: Vec<String>,
    /// Quantized weights that are stored as the numbers they stand for, with the reason.
    pub dequantized: BTreeMap<String, String>,
    /// Tensors that are plain in the file and kept as they are.
    pub float: usize,
    /// Tensors taken from the base, with the reason.
    pub from_base: BTreeMap<String, String>,
    /// Tensors of the file that no part of the model reads, with the reason.
    pub ignored: BTreeMap<String, String>,
    /// Largest difference of the artefact's outputs from those of the float base, over all probes.
    pub max_difference: f64,
    /// Mean of the absolute differences.
    pub mean_difference: f64,
    /// Largest output of the base, to compare with.
    pub max_output: f64,
    /// Size of the whole artefact in bytes.
    pub artefact_bytes: u64,
    /// Probes replayed.
    pub probes: usize,
}

/// Turns what is sound in the file at `path` into an artefact at `out`.
///
/// Errors: a file or base that cannot be read, a file without an encoder that fits the base, a target with
/// content, an artefact that does not reproduce itself. On every error the target is as it was before.
pub fn rescue(
    path: &Path,
    base_dir: &Path,
    out: &Path,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Rescued> {
    check_target(out)?;
    progress.stage("reading the file and its base", 1);
    let subject = subject::read(path)?;
    if subject.form == Form::Unfinished {
        return Err(Error::corrupt("file holds nothing to rescue").at(path.display()).hint(
            "torch.save stopped before it wrote anything; save model.state_dict() where the model still runs",
        ));
    }
    if subject.form == Form::Onnx {
        return Err(Error::unsupported("weights of an ONNX graph are not rescued")
            .at(path.display())
            .hint("their names and layout are the exporter's; run qberta quantize on the checkpoint"));
    }
    if let Some(d) = subject.damage.iter().find(|d| d.member.name.ends_with("/data.pkl")) {
        // Scales lie in it: nothing says which of them are right.
        return Err(Error::corrupt("the part that describes the tensors changed after it was written")
            .at(path.display())
            .found(format!("checksum {:08x}, it was {:08x}", d.member.found, d.member.recorded))
            .hint("copy the file again"));
    }
    let mut base = Base::open(base_dir, cx)?;
    let at = |e: Error| e.at(path.display());
    let mut sorted = Sorted::of(&subject, &base).map_err(at)?;
    sorted.fit(&base)?;
    if base.decoder().is_some_and(|d| sorted.tensors.contains_key(&format!("{d}.weight"))) {
        // The file's own decoder: whoever reads the configuration must not replace it by the word table.
        base.source.config.insert("tie_word_embeddings".into(), false.into());
    }
    let source = &base.source;
    progress.step();

    let plan = decisions(source, &sorted.tensors)?;
    let float = source.load(cx)?.model;
    let channels = (splits(&float, &plan, &BTreeMap::new()), BTreeMap::new());
    let mut provenance: BTreeMap<String, FileRecord> =
        source_records(source)?.into_iter().map(|(n, r)| (format!("base/{n}"), r)).collect();
    for file in &subject.files {
        let (sha256, bytes) = digest::of_file(file)?;
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        provenance.insert(name, FileRecord { bytes, sha256 });
    }
    let Sorted { tensors, int8, dequantized, from_base, ignored, .. } = sorted;
    let float_count = tensors.keys().filter(|n| !from_base.contains_key(*n)).count();
    let artefact = Artefact {
        source,
        tensors,
        plan: &plan,
        channels,
        ignored: &ignored,
        recipe: RecipeRecord { name: RECIPE.to_owned(), skip: Vec::new(), toml: None },
        provenance,
        gate: None,
        calibration: None,
        fitted: None,
        out,
    };
    let Written { artefact_bytes, probes, .. } = write(artefact, cx, progress)?;
    progress.stage("comparing with the base", 1);
    let rescued = Source::open(out, None)?.load(cx)?.model;
    let [max_difference, mean_difference, max_output] = difference(&float, &rescued, cx)?;
    progress.step();
    let int8: Vec<String> = int8.into_iter().collect();
    // Codes come with a scale, and both are counted apart from the plain tensors.
    let float = float_count.saturating_sub(2 * int8.len() + dequantized.len());
    Ok(Rescued {
        int8,
        dequantized,
        float,
        from_base,
        ignored,
        max_difference,
        mean_difference,
        max_output,
        artefact_bytes,
        probes,
    })
}

/// The tensors of a file, sorted by what becomes of them. Names are canonical.
struct Sorted {
    tensors: BTreeMap<String, Tensor>,
    int8: Vec<String>,
    dequantized: BTreeMap<String, String>,
    /// Why a weight of the file is not used.
    lost: BTreeMap<String, String>,
    from_base: BTreeMap<String, String>,
    ignored: BTreeMap<String, String>,
}

impl Sorted {
    fn of(subject: &Subject, base: &Base) -> Result<Sorted> {
        let weights = Weights::of(subject);
        let mut tensors = weights.plain.clone();
        let mut remarks: BTreeMap<String, (bool, String)> = BTreeMap::new();
        let changed = subject.damaged();
        let damaged = || (true, "its bytes changed after they were written".to_owned());
        for name in weights.plain.keys().filter(|n| changed.contains(n.as_str())) {
            remarks.insert(name.clone(), damaged());
        }
        for part in &weights.parts {
            let name = format!("{}.weight", part.module);
            let broken = changed.contains(part.key.as_str());
            if let Some(bias) = &part.bias {
                let bias_name = format!("{}.bias", part.module);
                if broken {
                    remarks.insert(bias_name.clone(), damaged());
                }
                tensors.insert(bias_name, bias.clone());
            }
            let kept = match &part.weight {
                _ if broken => Kept::Lost(damaged().1),
                Stored::Float(t) => {
                    Kept::Dequantized(t.clone(), "packed as float16, stored as float32".into())
                }
                Stored::Quantized(q) => keep(q).map_err(|e| e.at(&part.key))?,
            };
            match kept {
                Kept::Exact { codes, scale } => {
                    tensors.insert(format!("{name}{SCALE}"), scale);
                    tensors.insert(name, codes);
                }
                Kept::Dequantized(values, reason) => {
                    remarks.insert(name.clone(), (false, reason));
                    tensors.insert(name, values);
                }
                Kept::Lost(reason) => {
                    remarks.insert(name.clone(), (true, reason));
                    tensors.insert(name, Tensor::from_f32(vec![0], &[])?);
                }
            }
        }
        // Only a module whose state nobody can read has an entry under its own name.
        for (module, entry) in &subject.entries {
            let Entry::Other(kind) = entry else { continue };
            for part in ["weight", "bias"].iter().filter(|_| subject.modules.contains_key(module)) {
                let name = format!("{module}.{part}");
                remarks.insert(name.clone(), (true, format!("the file holds {kind}")));
                tensors.insert(name, Tensor::from_f32(vec![0], &[])?);
            }
        }
        let names: Vec<String> = tensors.keys().cloned().collect();
        // Renamed are tensors that hold their own number, so that remarks find their tensor again.
        let marked: BTreeMap<String, Tensor> = names
            .iter()
            .enumerate()
            .map(|(i, n)| Ok((n.clone(), Tensor::from_f32(vec![1], &[i as f32])?)))
            .collect::<Result<_>>()?;
        let mut sorted = Sorted {
            tensors: BTreeMap::new(),
            int8: Vec::new(),
            dequantized: BTreeMap::new(),
            lost: BTreeMap::new(),
            from_base: BTreeMap::new(),
            ignored: BTreeMap::new(),
        };
        for (new, mark) in base.canonical(marked)? {
            let Some(old) = mark.to_f32()?.first().and_then(|&i| names.get(i as usize)) else { continue };
            match remarks.remove(old) {
                Some((true, reason)) => {
                    sorted.lost.insert(new, reason);
                    continue;
                }
                Some((false, reason)) => {
                    sorted.dequantized.insert(new.clone(), reason);
                }
                None => {}
            }
            if let Some(tensor) = tensors.remove(old) {
                sorted.tensors.insert(new, tensor);
            }
        }
        Ok(sorted)
    }

    /// Makes the tensors those that the base's architecture reads: strangers out, missing ones in.
    fn fit(&mut self, base: &Base) -> Result<()> {
        let source = &base.source;
        let roles: BTreeMap<String, Role> = layout::modules(&source.arch)
            .into_iter()
            .map(|m| (format!("{}.weight", m.name), m.role))
            .collect();
        let word = roles
            .iter()
            .find(|(_, r)| matches!(r, Role::Table { site: Site::WordTable, .. }))
            .map(|(n, _)| n.clone());
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let weight =
                name.strip_suffix(SCALE).filter(|w| roles.contains_key(*w)).unwrap_or(&name).to_owned();
            let role = roles.get(&weight);
            let decoder = matches!(role, Some(Role::Vocabulary { .. }));
            let like = if decoder { word.as_ref() } else { Some(&weight) };
            let reason = match like.and_then(|n| source.tensors.get(n)) {
                _ if !base.used.contains(&weight) && !decoder => {
                    Some(qberta_store::names::reason_to_ignore(&source.arch, &name))
                }
                Some(t) if weight == name && t.shape() != tensor.shape() => {
                    Some(format!("it is {:?} and the base has {:?}", tensor.shape(), t.shape()))
                }
                _ if tensor.first_non_finite().is_some() => {
                    Some("it holds numbers that are not finite".to_owned())
                }
                _ => None,
            };
            match reason {
                Some(reason) if base.used.contains(&weight) => {
                    self.lost.insert(name, reason);
                }
                Some(reason) => {
                    self.dequantized.remove(&name);
                    self.ignored.insert(name, reason);
                }
                None => {
                    self.tensors.insert(name, tensor);
                }
            }
        }
        // A scale whose codes were refused would be read as nobody's.
        let codes: BTreeSet<String> =
            self.tensors.iter().filter(|(_, t)| t.dtype() == Dtype::I8).map(|(n, _)| n.clone()).collect();
        self.tensors.retain(|n, _| n.strip_suffix(SCALE).is_none_or(|w| codes.contains(w)));
        self.tie(&roles, word.as_deref());
        self.unpack_where_int8_cannot_run(&roles)?;
        for name in &base.used {
            if self.tensors.contains_key(name) {
                continue;
            }
            self.dequantized.remove(name);
            let reason = self.lost.remove(name).unwrap_or_else(|| "the file does not hold it".to_owned());
            if let Some(tensor) = source.tensors.get(name) {
                self.tensors.insert(name.clone(), tensor.clone());
                self.from_base.insert(name.clone(), reason);
            }
        }
        self.ignored.append(&mut self.lost);
        self.untie(source);
        if self.from_base.len() == self.tensors.len() {
            return Err(
                Error::input("nothing in the file fits the base").hint("is it the checkpoint it came from?")
            );
        }
        self.int8 = self
            .tensors
            .iter()
            .filter(|(n, t)| t.dtype() == Dtype::I8 && self.tensors.contains_key(&format!("{n}{SCALE}")))
            .filter_map(|(n, _)| n.strip_suffix(".weight").map(str::to_owned))
            .collect();
        Ok(())
    }

    /// A float decoder equal to the float word table is stored once.
    fn tie(&mut self, roles: &BTreeMap<String, Role>, word: Option<&str>) {
        let decoder = roles.iter().find(|(_, r)| matches!(r, Role::Vocabulary { .. })).map(|(n, _)| n);
        if let (Some(decoder), Some(word)) = (decoder, word)
            && self.tensors.get(decoder).is_some_and(|d| self.tensors.get(word) == Some(d))
        {
            self.tensors.remove(decoder);
            self.ignored.insert(decoder.clone(), "equal to the word table, stored once".to_owned());
        }
    }

    /// Gives a projection that cannot be the word table (it differs, or one of the two is int8) everything that
    /// Hugging Face's class has: weights and a bias of its own.
    fn untie(&mut self, source: &Source) {
        let modules = layout::modules(&source.arch);
        let word = modules.iter().find(|m| matches!(m.role, Role::Table { site: Site::WordTable, .. }));
        let projection = modules.iter().find_map(|m| match &m.role {
            Role::Vocabulary { bias, .. } => Some((format!("{}.weight", m.name), &m.name, bias)),
            _ => None,
        });
        let (Some(word), Some((weight, projection, biases))) = (word, projection) else { return };
        if !self.tensors.contains_key(&weight) {
            let from = format!("{}.weight", word.name);
            let scale = self.tensors.get(&format!("{from}{SCALE}")).cloned();
            let (Some(codes), Some(scale)) = (self.tensors.get(&from).cloned(), scale) else { return };
            self.tensors.insert(format!("{weight}{SCALE}"), scale);
            self.tensors.insert(weight, codes);
        }
        let bias = format!("{projection}.bias");
        let shared = biases.iter().find_map(|b| self.tensors.get(b).cloned());
        if let Some(shared) = shared.filter(|_| !self.tensors.contains_key(&bias)) {
            self.ignored.remove(&bias);
            self.tensors.insert(bias, shared);
        }
    }

    /// Norms, convolutions and the like run in float only.
    fn unpack_where_int8_cannot_run(&mut self, roles: &BTreeMap<String, Role>) -> Result<()> {
        let runs = |name: &str| {
            matches!(roles.get(name), Some(Role::Linear(_) | Role::Table { .. } | Role::Vocabulary { .. }))
        };
        let scaled: Vec<String> = self
            .tensors
            .iter()
            .filter(|(n, t)| t.dtype() == Dtype::I8 && !runs(n))
            .map(|(n, _)| n.clone())
            .collect();
        for name in scaled {
            if let (Some(codes), Some(scale)) =
                (self.tensors.remove(&name), self.tensors.remove(&format!("{name}{SCALE}")))
            {
                let values = dequantize_rows(&codes, &scale)?;
                self.tensors.insert(name.clone(), values);
                self.dequantized.insert(name, "this module runs in float only".to_owned());
            }
        }
        Ok(())
    }
}

/// How each module runs: int8 weights with inputs quantized per token, tables and decoders weight-only.
fn decisions(source: &Source, tensors: &BTreeMap<String, Tensor>) -> Result<Plan> {
    let mut decided: Plan = plan(&source.arch, &Recipe::new("dynamic", &[])?)?
        .into_keys()
        .map(|module| (module, Decision::FLOAT))
        .collect();
    for module in layout::modules(&source.arch) {
        let int8 = tensors.get(&format!("{}.weight", module.name)).is_some_and(|t| t.dtype() == Dtype::I8);
        if int8 {
            let linear = matches!(module.role, Role::Linear(_));
            let input = if linear { Input::TokenAsymmetric } else { Input::Float };
            decided.insert(module.name, Decision { input, weight: Weight::Int8Channel });
        }
    }
    Ok(decided)
}

/// Largest and mean difference of two models over the probes, and the largest output of the first.
fn difference(float: &Model, other: &Model, cx: &Context) -> Result<[f64; 3]> {
    let inputs = probe::inputs(float.architecture());
    let (a, b) = (probe::run(float, &inputs, cx)?, probe::run(other, &inputs, cx)?);
    let (mut worst, mut sum, mut count, mut largest) = (0.0f64, 0.0f64, 0usize, 0.0f64);
    for (a, b) in a.iter().zip(&b) {
        for (x, y) in a.as_slice().iter().zip(b.as_slice()) {
            let d = (f64::from(*x) - f64::from(*y)).abs();
            worst = worst.max(d);
            sum += d;
            count += 1;
            largest = largest.max(f64::from(x.abs()));
        }
    }
    Ok([worst, sum / count.max(1) as f64, largest])
}
