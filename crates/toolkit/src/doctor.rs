//! Says what a file that PyTorch's quantization left behind is, what is wrong with it, and what to do.
//!
//! Reading order: [`subject`] (a path to named entries, nothing executed), [`weights`] (entries to modules
//! with their codes and scales), [`base`] (the float checkpoint it should fit), [`findings`] and [`advice`]
//! (what is wrong, why, and the right way), [`mod@rescue`] (what is sound, as an artefact).
//! Invariant: findings follow from the bytes. A file's name only decides whether it matters that nothing
//! in it is quantized.

pub mod advice;
pub mod base;
pub mod findings;
pub mod graph;
mod observers;
mod recipe;
pub mod rescue;
pub mod subject;
pub mod weights;

use base::Base;
use findings::{Finding, Severity, View};
use qberta_kernels::Context;
use qberta_model::{Kind, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use subject::{Form, Subject};

pub use rescue::{Rescued, rescue};

/// What a file is and what is wrong with it.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// The file or directory.
    pub path: PathBuf,
    /// How it is stored.
    pub form: String,
    /// What made it, as far as the bytes tell.
    pub recipe: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Names of the files that were read.
    pub files: Vec<String>,
    /// Names of files beside them that may hold a model and were not read.
    pub unread: Vec<String>,
    /// Whether nothing is wrong.
    pub sound: bool,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What is as its maker meant it, and worth knowing.
    pub notes: Vec<Finding>,
    /// Every tensor.
    pub tensors: Vec<Row>,
    /// Tensors of the base that `load_state_dict(..., strict=False)` would leave as they were initialised.
    pub left_random: Vec<String>,
}

/// One tensor as listed. Sizes in bytes.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name, of the module for packed parameters.
    pub name: String,
    /// `qint8`, `F32`, ...
    pub dtype: String,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// How codes become numbers; absent for plain tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Smallest and largest scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<[f64; 2]>,
    /// Smallest and largest zero point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_points: Option<[f64; 2]>,
    /// Size of the values.
    pub bytes: u64,
}

/// Diagnoses `path`, against the float checkpoint at `base` where there is one.
///
/// Errors: nothing that can be read there, a pickle that would run code, an unusable base.
pub fn diagnose(path: &Path, base: Option<&Path>, cx: &Context) -> Result<Diagnosis> {
    let subject = subject::read(path)?;
    let base = match (base, &subject.form) {
        (Some(dir), _) => Some(Base::open(dir, cx)?),
        // A directory says itself what it should hold; one that does not open is judged without.
        (None, Form::Directory) => Base::configured(path),
        (None, _) => None,
    };
    if subject.form == Form::Artefact {
        return artefact(&subject, cx);
    }
    let view = View::new(&subject, base.as_ref());
    let (mut findings, mut notes) = (Vec::new(), Vec::new());
    for finding in findings::all(&view) {
        match finding.severity {
            Severity::Problem => findings.push(finding),
            Severity::Note => notes.push(finding),
        }
    }
    Ok(Diagnosis {
        path: path.to_owned(),
        form: subject.form.describe().to_owned(),
        recipe: recipe::name(&view),
        bytes: subject.bytes,
        files: names(&subject),
        unread: subject.unread.clone(),
        sound: findings.is_empty(),
        findings,
        notes,
        tensors: rows(&view),
        left_random: view.left_random(),
    })
}

/// An artefact is sound when it proves itself.
fn artefact(subject: &Subject, cx: &Context) -> Result<Diagnosis> {
    let findings = match crate::verify(&subject.path, cx) {
        Ok(_) => Vec::new(),
        Err(e) if matches!(e.kind(), Kind::Io | Kind::Input) => return Err(e),
        Err(e) => vec![Finding::new("artefact-damaged", Severity::Problem, vec![e.to_string()], 1)],
    };
    let view = View::new(subject, None);
    Ok(Diagnosis {
        path: subject.path.clone(),
        form: subject.form.describe().to_owned(),
        recipe: "qberta artefact".to_owned(),
        bytes: subject.bytes,
        files: names(subject),
        unread: subject.unread.clone(),
        sound: findings.is_empty(),
        findings,
        notes: Vec::new(),
        tensors: rows(&view),
        left_random: Vec::new(),
    })
}

fn names(subject: &Subject) -> Vec<String> {
    let name = |p: &PathBuf| Some(p.file_name()?.to_string_lossy().into_owned());
    subject.files.iter().filter_map(name).collect()
}

fn rows(view: &View<'_>) -> Vec<Row> {
    let plain = view.weights.plain.iter().chain(&view.weights.buffers).map(|(name, t)| {
        let row = Row {
            name: name.clone(),
            dtype: t.dtype().name().to_owned(),
            shape: t.shape().to_vec(),
            scheme: None,
            scales: None,
            zero_points: None,
            bytes: t.bytes().len() as u64,
        };
        (name.clone(), row)
    });
    let parts = view.weights.parts.iter().map(|part| (part.key.clone(), part.row()));
    plain.chain(parts).collect::<BTreeMap<_, _>>().into_values().collect()
}
