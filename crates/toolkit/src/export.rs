//! Back out again: an artefact or a checkpoint as plain float32, for transformers or for torch.

use crate::doctor::weights::to_float;
use crate::hf_config::artefact_config;
use crate::plan::Plan;
use crate::quantize::{WEIGHTS, companions};
use crate::verify::check_digests;
use crate::{smooth, weights};
use qberta_kernels::Context;
use qberta_model::{Error, Result};
use qberta_store::assemble::{HEAD_GRIDS, INPUT_GRID};
use qberta_store::atomic::{Staging, check_file_target, check_target};
use qberta_store::int4::PACKED;
use qberta_store::layout::{self, Role};
use qberta_store::load::CONFIG;
use qberta_store::{Dtype, Source, Tensor, safetensors, torch, whole};
use std::collections::BTreeMap;
use std::path::Path;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A directory that `from_pretrained` loads.
    HuggingFace,
    /// A state dict that `torch.load(weights_only=True)` loads.
    Torch,
}

impl Target {
    /// Every target by its name.
    pub const ALL: [(Target, &'static str); 2] =
        [(Target::HuggingFace, "huggingface"), (Target::Torch, "torch")];
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Tensors in it.
    pub tensors: usize,
    /// Quantized weights that were multiplied out.
    pub dequantized: usize,
    /// Size in bytes.
    pub bytes: u64,
}

/// Writes the model at `model` to `out`, as float32.
///
/// Errors: an unusable model, a target that exists, a file that reads back differently. On every error the
/// target is as it was before.
pub fn export(model: &Path, out: &Path, target: Target, cx: &Context) -> Result<Exported> {
    check(out, target)?;
    check_digests(model)?;
    export_source(&Source::open(model, None)?, out, target, cx)
}

fn check(out: &Path, target: Target) -> Result<()> {
    match target {
        Target::HuggingFace => check_target(out),
        Target::Torch => check_file_target(out),
    }
}

/// The same for a model already read.
///
/// Errors: as [`export`].
pub fn export_source(source: &Source, out: &Path, target: Target, cx: &Context) -> Result<Exported> {
    check(out, target)?;
    let used = source.load(cx)?.account.used;
    let mut read: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, tensor) in &source.tensors {
        // Stored grids mean nothing to a float model.
        let grid = INPUT_GRID.iter().chain(&HEAD_GRIDS).any(|end| name.ends_with(&format!(".{end}")));
        if used.contains(name) && !grid {
            read.insert(name.clone(), tensor.clone());
        }
    }
    let mut tensors = to_float(&read)?;
    for (module, shifts) in source.manifest.iter().flat_map(|m| &m.smooth) {
        // A float model divides no inputs, so its weights are not multiplied.
        let name = format!("{module}.weight");
        let Some(tensor) = tensors.get(&name) else { continue };
        let values = smooth::scaled(weights::values(&name, tensor)?, shifts, -1);
        let tensor = Tensor::from_f32(tensor.shape().to_vec(), &values)?;
        tensors.insert(name, tensor);
    }
    let coded = |(name, t): &(&String, &Tensor)| t.dtype() == Dtype::I8 || name.ends_with(PACKED);
    let dequantized = read.iter().filter(coded).count();
    let (count, bytes) = match target {
        Target::HuggingFace => directory(source, tensors, out)?,
        Target::Torch => state_dict(source, tensors, out)?,
    };
    Ok(Exported { tensors: count, dequantized, bytes })
}

fn directory(source: &Source, mut tensors: BTreeMap<String, Tensor>, out: &Path) -> Result<(usize, u64)> {
    let mut config =
        artefact_config(&source.config, &source.arch, &Plan::new(), &Default::default(), &tensors);
    config.remove("quantization_config");
    let own = |m: &layout::Module| {
        matches!(m.role, Role::Vocabulary { .. }) && tensors.contains_key(&format!("{}.weight", m.name))
    };
    if layout::modules(&source.arch).iter().any(own) {
        repeat(source, &mut tensors);
    }
    let mut text =
        serde_json::to_vec_pretty(&config).map_err(|e| Error::corrupt("configuration").found(e))?;
    text.push(b'\n');
    let staging = Staging::begin(out)?;
    let file = safetensors::write(&tensors)?;
    staging.write(WEIGHTS, &file)?;
    staging.write(CONFIG, &text)?;
    let mut bytes = (file.len() + text.len()) as u64;
    for name in companions(source) {
        let path = source.dir.join(&name);
        let content =
            whole::read(&path, whole::LARGE).map_err(|e| Error::io("cannot read", path.display(), &e))?;
        staging.write(&name, &content)?;
        bytes += content.len() as u64;
    }
    let again = Source::open(staging.path(), None)?;
    compare(&tensors, &again.tensors, out)?;
    staging.publish()?;
    Ok((tensors.len(), bytes))
}

fn state_dict(source: &Source, mut tensors: BTreeMap<String, Tensor>, out: &Path) -> Result<(usize, u64)> {
    repeat(source, &mut tensors);
    let bytes = torch::write(&tensors)?;
    let staging = Staging::begin_file(out)?;
    const NAME: &str = "state_dict.pt";
    staging.write(NAME, &bytes)?;
    compare(&tensors, &torch::read(&staging.path().join(NAME))?.tensors, out)?;
    staging.publish_file(NAME)?;
    Ok((tensors.len(), bytes.len() as u64))
}

/// The names under which transformers' own state dict repeats the word table and the head's bias.
fn repeat(source: &Source, tensors: &mut BTreeMap<String, Tensor>) {
    let modules = layout::modules(&source.arch);
    let word = modules.iter().find(|m| m.name.ends_with("embeddings.word_embeddings"));
    let Some((decoder, Role::Vocabulary { bias, .. })) =
        modules.iter().find(|m| matches!(m.role, Role::Vocabulary { .. })).map(|m| (&m.name, &m.role))
    else {
        return;
    };
    let weight = format!("{decoder}.weight");
    if let (false, Some(word)) = (
        tensors.contains_key(&weight),
        word.and_then(|w| tensors.get(&format!("{}.weight", w.name)).cloned()),
    ) {
        tensors.insert(weight, word);
    }
    // The decoder shares the bias of its head.
    if let Some(value) = bias.iter().find_map(|b| tensors.get(b).cloned()) {
        for name in bias {
            tensors.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
}

fn compare(wrote: &BTreeMap<String, Tensor>, read: &BTreeMap<String, Tensor>, out: &Path) -> Result<()> {
    match wrote.iter().find(|(n, t)| read.get(*n) != Some(t)) {
        None if wrote.len() == read.len() => Ok(()),
        other => Err(Error::mismatch("what was written reads back differently")
            .at(other.map_or("", |(n, _)| n.as_str()))
            .at(format!("{} (not written)", out.display()))
            .hint("please report this")),
    }
}
