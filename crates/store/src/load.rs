//! A path to a running model: float checkpoints and artefacts through one loader.

use crate::assemble::{Account, HEAD_GRIDS, Int8Input, assemble};
use crate::checkpoint::Checkpoint;
use crate::digest;
use crate::int4;
use crate::layout::{self, Role};
use crate::manifest::{self, Decision, Manifest, Weight};
use crate::names;
use crate::tensor::{Dtype, Tensor};
use crate::whole;
use qberta_kernels::Context;
use qberta_model::{Architecture, Error, Model, Result, Task};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// File name of a Hugging Face configuration.
pub const CONFIG: &str = "config.json";

/// Files that travel with the weights unchanged: notices, tokenizers, pooling settings.
pub const COMPANIONS: &[&str] = &[
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "1_Pooling/config.json",
    "added_tokens.json",
    "bpe_encoder.bin",
    "config_sentence_transformers.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spm.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// The first of them that say nothing to a program.
const NOTICES: usize = 3;

/// A checkpoint or artefact read into named tensors, before a model is built from it.
#[derive(Debug)]
pub struct Source {
    /// Where it lies.
    pub dir: PathBuf,
    /// `config.json` as found.
    pub config: Map<String, Value>,
    /// What it computes.
    pub arch: Architecture,
    /// Tensors under their present-day names.
    pub tensors: BTreeMap<String, Tensor>,
    /// Weight files in order.
    pub files: Vec<PathBuf>,
    /// The manifest, if this is an artefact.
    pub manifest: Option<Manifest>,
}

/// A model ready to run.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// What became of each tensor.
    pub account: Account,
}

impl Source {
    /// Opens a directory with `config.json` and weights. `task` overrides the head that the
    /// configuration names.
    ///
    /// Errors: missing or malformed files, an unsupported configuration, an int8 checkpoint without the
    /// manifest that says how it runs.
    pub fn open(dir: &Path, task: Option<Task>) -> Result<Source> {
        let config = read_config(dir)?;
        let manifest = read_manifest(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        Source::from_parts(dir, config, manifest, checkpoint.tensors, checkpoint.files, task)
    }

    /// The same from parts already in memory.
    pub fn from_parts(
        dir: &Path,
        config: Map<String, Value>,
        manifest: Option<Manifest>,
        tensors: BTreeMap<String, Tensor>,
        files: Vec<PathBuf>,
        task: Option<Task>,
    ) -> Result<Source> {
        let at = |e: Error| e.at(dir.join(CONFIG).display());
        if let Some(method) = config.get("quantization_config").and_then(|q| q.get("quant_method"))
            && manifest.is_none()
        {
            return Err(Error::unsupported("checkpoint is already quantized, and not by qberta")
                .at(dir.join(CONFIG).display())
                .expected(format!("a float checkpoint, or an artefact with {}", manifest::NAME))
                .found(format!("quant_method {method}"))
                .hint("start from the float checkpoint it was made from"));
        }
        let grid = tensors.keys().find(|n| HEAD_GRIDS.iter().any(|end| n.ends_with(&format!(".self.{end}"))));
        if let (Some(grid), None) = (grid, &manifest) {
            return Err(Error::corrupt("checkpoint holds grids of an artefact, but not its manifest")
                .at(dir.join(manifest::NAME).display())
                .found(grid)
                .hint("restore the file, or quantize the float checkpoint again"));
        }
        let task = match task {
            None if Architecture::named_task(&config).map_err(at)?.is_none() => implied_task(&tensors),
            other => other,
        };
        let arch = Architecture::from_config(&config, task).map_err(at)?;
        let tensors = names::canonical(&arch, tensors).map_err(|e| e.at(dir.display()))?;
        let tensors = tensors.into_iter().map(|(n, t)| Ok((n, narrow(t)?))).collect::<Result<_>>()?;
        Ok(Source { dir: dir.to_owned(), config, arch, tensors, files, manifest })
    }

    /// Whether this is an artefact.
    pub fn is_artefact(&self) -> bool {
        self.manifest.is_some()
    }

    /// Builds the model.
    ///
    /// Errors: missing, misshapen or non-finite tensors.
    pub fn load(&self, cx: &Context) -> Result<Loaded> {
        let input = |module: &str| match &self.manifest {
            Some(m) => m.int8_input(module),
            None => Int8Input::Float,
        };
        if let Some(manifest) = &self.manifest {
            check_storage(manifest, &self.tensors).map_err(|e| e.at(self.dir.display()))?;
            check_attentions(manifest, &self.arch).map_err(|e| e.at(self.dir.display()))?;
        }
        let (model, account) =
            assemble(&self.arch, &self.tensors, input, cx).map_err(|e| e.at(self.dir.display()))?;
        qberta_kernels::mapped::give_back_freed();
        Ok(Loaded { model, account })
    }
}

/// Checks that the plan decides about products of attentions for attentions only, and about nothing else there: they
/// have no tensors that would be missed.
fn check_attentions(manifest: &Manifest, arch: &Architecture) -> Result<()> {
    let modules = layout::modules(arch);
    let role = |name: &String| modules.iter().find(|m| m.name == *name).map(|m| &m.role);
    let sound = |(name, decision): &(&String, &Decision)| match role(name) {
        Some(Role::Scores { .. }) => decision.of_scores(),
        Some(Role::Context { .. }) => **decision == Decision::INT8_CONTEXT,
        _ => !decision.of_attention(),
    };
    match manifest.plan.iter().find(|entry| !sound(entry)) {
        None => Ok(()),
        Some((name, decision)) => {
            let all = modules.iter().filter(|m| matches!(m.role, Role::Scores { .. } | Role::Context { .. }));
            let named: Vec<&str> = all.take(2).map(|m| m.name.as_str()).collect();
            Err(Error::corrupt(
                "plan decides about the products of an attention for a module without them, or the reverse",
            )
            .at(manifest::NAME)
            .expected(format!(
                "codes without a weight for modules like {}, and for no others",
                named.join(" and ")
            ))
            .found(format!("{name}: {}", serde_json::to_string(decision).unwrap_or_default())))
        }
    }
}

/// Checks that what the plan calls bf16 or 4-bit is stored so (with that group), and that nothing else is 4-bit.
fn check_storage(manifest: &Manifest, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    for (module, decision) in &manifest.plan {
        let name = format!("{module}.weight");
        let expected = match decision.weight {
            Weight::Bf16 => Some(Dtype::BF16),
            Weight::Int8Channel => Some(Dtype::I8),
            Weight::Float | Weight::Int4(_) => None,
        };
        // A tied projection has no tensor of its own.
        let found = tensors.get(&name).map(Tensor::dtype);
        if let (Some(expected), Some(found)) = (expected, found)
            && expected != found
        {
            return Err(Error::corrupt("plan and tensors disagree about the type of a weight")
                .at(name)
                .expected(expected.name())
                .found(found.name()));
        }
        let stored = int4::is_there(tensors, &name);
        let planned = match decision.weight {
            Weight::Int4(group) => Some(group),
            _ => None,
        };
        let agree = match planned {
            Some(group) => stored && int4::read(tensors, &name)?.group == group,
            None => !stored,
        };
        if !agree {
            return Err(Error::corrupt("plan and tensors disagree about 4-bit storage")
                .at(name)
                .expected(String::from(decision.weight))
                .found(if stored { "4-bit codes, or of another group" } else { "no 4-bit codes" }));
        }
    }
    Ok(())
}

/// A task whose head the weights hold, for configurations that name no class. Language-model heads do
/// not count: they come with every pre-trained encoder.
fn implied_task(tensors: &BTreeMap<String, Tensor>) -> Option<Task> {
    let has = |part: &str| tensors.keys().any(|n| n == part || n.ends_with(&format!(".{part}")));
    let pooled = has("pooler.dense.weight") || has("pre_classifier.weight");
    if has("qa_outputs.weight") {
        Some(Task::QuestionAnswering)
    } else if has("classifier.out_proj.weight") || has("classifier.weight") && pooled {
        Some(Task::SequenceClassification)
    } else if has("classifier.weight") {
        Some(Task::TokenClassification)
    } else {
        None
    }
}

/// Doubles become floats: no encoder was released in f64, and nothing here computes in it.
fn narrow(tensor: Tensor) -> Result<Tensor> {
    if tensor.dtype() != Dtype::F64 {
        return Ok(tensor);
    }
    Tensor::from_f32(tensor.shape().to_vec(), &tensor.to_f32()?)
}

/// Reads and parses `config.json` of `dir`.
pub fn read_config(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join(CONFIG);
    let bytes = whole::read(&path, whole::SMALL).map_err(|e| {
        let error = Error::io("cannot read", path.display(), &e);
        match (e.kind(), dir.is_dir()) {
            (std::io::ErrorKind::NotFound, true) => {
                error.hint("a model is a directory that holds config.json, weights and tokenizer files")
            }
            (std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory, false) => {
                error.hint("the path is not a directory; pass the directory that holds config.json")
            }
            _ => error,
        }
    })?;
    parse_config(&bytes).map_err(|e| e.at(path.display()))
}

/// Parses the bytes of a `config.json`.
///
/// Errors: not JSON, or not an object.
pub fn parse_config(bytes: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::corrupt("configuration is not a JSON object")),
        Err(e) => Err(Error::corrupt("configuration is not JSON").found(e)),
    }
}

/// Reads the manifest of `dir` if there is one, and checks sizes: a truncated file is noticed here, a
/// changed one by `verify`.
fn read_manifest(dir: &Path) -> Result<Option<Manifest>> {
    let path = dir.join(manifest::NAME);
    let bytes = match whole::read(&path, whole::LARGE) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("cannot read", path.display(), &e)),
    };
    let manifest = Manifest::parse(&bytes, true).map_err(|e| e.at(dir.display()))?;
    for (name, record) in &manifest.files {
        let path = dir.join(safe_name(name)?);
        let about = std::fs::metadata(&path)
            .map_err(|e| Error::io("cannot find a file of the artefact", path.display(), &e))?;
        if !about.is_file() {
            return Err(Error::mismatch("file of the artefact is not a regular file").at(path.display()));
        }
        let size = about.len();
        if size != record.bytes {
            return Err(Error::mismatch("file of the artefact has another size")
                .at(path.display())
                .expected(format!("{} bytes", record.bytes))
                .found(format!("{size} bytes")));
        }
    }
    // A tokenizer put beside an artefact would be read in the place of its own, and no digest knows it.
    let stray = |name: &&&str| !manifest.files.contains_key(**name) && dir.join(name).is_file();
    if let Some(name) = COMPANIONS[NOTICES..].iter().find(stray) {
        return Err(Error::mismatch("file was added to the artefact after it was written")
            .at(dir.join(name).display())
            .expected("the files that the manifest lists")
            .hint("remove it, or quantize a checkpoint that holds it"));
    }
    let record = manifest.files.get(CONFIG);
    if record.is_none_or(|r| digest::of_file(&dir.join(CONFIG)).is_ok_and(|(d, _)| d != r.sha256)) {
        return Err(Error::mismatch("configuration was changed after the artefact was written")
            .at(dir.join(CONFIG).display()));
    }
    Ok(Some(manifest))
}

/// A recorded file name.
///
/// Errors: a name that could lead out of the artefact.
pub fn safe_name(name: &str) -> Result<&str> {
    let plain = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if plain && !name.is_empty() {
        Ok(name)
    } else {
        Err(Error::corrupt("recorded file name leads out of the artefact")
            .at(manifest::NAME)
            .found(format!("{name:?}")))
    }
}
