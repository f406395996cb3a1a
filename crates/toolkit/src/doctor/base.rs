//! The float checkpoint that a file should fit: names, shapes, head.

use qberta_kernels::Context;
use qberta_model::{Architecture, Error, Result, Task};
use qberta_store::layout::{self, Role};
use qberta_store::{Source, Tensor, names};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A checkpoint to compare with.
#[derive(Debug)]
pub struct Base {
    /// It, with its tensors.
    pub source: Source,
    /// Its tensors that the model reads.
    pub used: BTreeSet<String>,
    /// Whether the output projection of a language model is the word table.
    pub tied: bool,
}

/// How the head of a file fits.
#[derive(Debug, Default)]
pub struct Head {
    /// Tensors that the file lacks.
    pub missing: Vec<String>,
    /// Tensors of another shape: name, shape in the base, shape in the file.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Tensors of a head that the base does not have.
    pub strange: Vec<String>,
}

impl Base {
    /// Opens the float checkpoint at `dir`.
    ///
    /// Errors: what [`Source::open`] and its loading refuse, and artefacts.
    pub fn open(dir: &Path, cx: &Context) -> Result<Base> {
        let source = Source::open(dir, None)?;
        if source.is_artefact() {
            return Err(Error::input("base is an artefact")
                .at(dir.display())
                .hint("pass the float checkpoint"));
        }
        let used = source.load(cx)?.account.used;
        Ok(Base { tied: tied(&source), used, source })
    }

    /// What the directory's own configuration asks for, without a look at the values.
    pub fn configured(dir: &Path) -> Option<Base> {
        let source = Source::open(dir, None).ok()?;
        Some(Base { tied: tied(&source), used: BTreeSet::new(), source })
    }

    /// The tensors of a file under the names of this architecture.
    pub fn canonical(&self, tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        names::canonical(&self.source.arch, tensors)
    }

    /// Compares the head of a file, under canonical names, with what the base's architecture needs.
    pub fn head(&self, tensors: &BTreeMap<String, Tensor>) -> Head {
        let arch = &self.source.arch;
        let mut head = Head::default();
        let wanted = head_tensors(arch);
        for (name, shape) in &wanted {
            match tensors.get(name) {
                None => head.missing.push(name.clone()),
                Some(t) if t.shape() != shape => {
                    head.misshapen.push((name.clone(), shape.clone(), t.shape().to_vec()));
                }
                Some(_) => {}
            }
        }
        const HEADS: [&str; 9] = [
            "classifier.",
            "pooler.",
            "pre_classifier.",
            "qa_outputs.",
            "sequence_summary.",
            "cls.",
            "lm_head.",
            "vocab_",
            "generator_",
        ];
        let decoder = self.decoder();
        let known = |name: &str| {
            wanted.contains_key(name)
                || decoder.as_ref().is_some_and(|d| name.starts_with(d))
                || self.source.tensors.contains_key(name)
        };
        head.strange =
            tensors.keys().filter(|n| HEADS.iter().any(|h| n.starts_with(h)) && !known(n)).cloned().collect();
        head
    }

    /// The module that projects onto the vocabulary, if the task has one.
    pub fn decoder(&self) -> Option<String> {
        layout::modules(&self.source.arch)
            .into_iter()
            .find(|m| matches!(m.role, Role::Vocabulary { .. }))
            .map(|m| m.name)
    }
}

/// Weights and biases of the head's linears and norms, with their shapes.
fn head_tensors(arch: &Architecture) -> BTreeMap<String, Vec<usize>> {
    let prefix = arch.family.prefix();
    let mut wanted = BTreeMap::new();
    if arch.head.task == Task::Features {
        return wanted;
    }
    for module in layout::modules(arch).into_iter().filter(|m| !m.name.starts_with(prefix)) {
        let weight = format!("{}.weight", module.name);
        match module.role {
            Role::Linear(role) => {
                wanted.insert(weight, vec![role.out, role.inp]);
                for bias in role.sites.into_iter().filter_map(|(_, bias)| bias) {
                    wanted.insert(bias, vec![role.out]);
                }
            }
            Role::Norm { width, .. } => {
                wanted.insert(weight, vec![width]);
                wanted.insert(format!("{}.bias", module.name), vec![width]);
            }
            _ => {}
        }
    }
    wanted
}

fn tied(source: &Source) -> bool {
    source.arch.head.task == Task::FillMask
        && source.config.get("tie_word_embeddings").and_then(Value::as_bool) != Some(false)
}
