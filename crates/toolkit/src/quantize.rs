//! Float checkpoint to artefact: plan, quantize, write beside the target, sync, reopen, replay, rename.

use crate::calibrate::{self, Calibration, CalibrationReport, calibrate};
use crate::channels::{Channels, may_split, of_plan, splits};
use crate::fit;
use crate::hf_config::artefact_config;
use crate::plan::{Plan, is_static, plan, takes_data, unties};
use crate::probe;
use crate::recipe::Recipe;
use crate::smooth::{self, Shifts};
use crate::verify::verify_at;
use crate::weights;
use qberta_kernels::Context;
use qberta_model::{Error, Result, Site, Task};
use qberta_store::atomic::{Staging, check_target};
use qberta_store::layout::{self, Role};
use qberta_store::load::{COMPANIONS, CONFIG};
use qberta_store::manifest::{
    self, CalibrationRecord, FileRecord, FitRecord, GateRecord, Input, Manifest, RecipeRecord,
};
use qberta_store::{Account, Loaded, Source, Tensor, digest, safetensors, whole};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// File name of the weights of an artefact.
pub const WEIGHTS: &str = "model.safetensors";

/// What long work tells whoever watches.
pub trait Progress {
    /// A stage begins: `name` (a gerund), `steps` in it.
    fn stage(&self, name: &str, steps: u64);
    /// One step of it is done.
    fn step(&self);
}

/// Nobody watches.
impl Progress for () {
    fn stage(&self, _name: &str, _steps: u64) {}
    fn step(&self) {}
}

/// What to quantize and where to put it.
pub struct Request<'a> {
    /// A directory with `config.json`, float weights, tokenizer files.
    pub model: &'a Path,
    /// The directory to create.
    pub out: &'a Path,
    /// How.
    pub recipe: &'a Recipe,
    /// Overrides the head named by the configuration.
    pub task: Option<Task>,
}

/// What was done. Sizes in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One decision per quantizable module.
    pub plan: Plan,
    /// Size of the weights in the source, as f32.
    pub float_bytes: u64,
    /// Size of the source's weight files.
    pub source_bytes: u64,
    /// Size of the artefact's weight file.
    pub weight_bytes: u64,
    /// Size of the whole artefact.
    pub artefact_bytes: u64,
    /// Tensors left out, with the reason.
    pub ignored: BTreeMap<String, String>,
    /// Probes replayed.
    pub probes: usize,
    /// What calibration of static inputs found, if there was any.
    pub calibration: Option<CalibrationReport>,
    /// How weights were fitted to the data, if they were.
    pub fitted: Option<FitRecord>,
}

/// Decides whether an artefact may appear: opens the directory it is given (complete but for the proof) and
/// gives what is to be recorded, or the error that keeps the artefact from being written.
pub type Gate<'a> = dyn Fn(&Path) -> Result<Vec<GateRecord>> + 'a;

/// Quantizes a checkpoint into an artefact that has reproduced its own outputs.
///
/// Errors: an unusable source, a recipe that does not fit it or needs calibration data, a target with content,
/// a full disk, or a reopened artefact that answers differently. On every error the target is as it was before.
pub fn quantize(request: &Request<'_>, cx: &Context, progress: &dyn Progress) -> Result<Report> {
    quantize_under(request, Conditions::default(), cx, progress)
}

/// What else [`quantize_under`] takes into account.
#[derive(Default)]
pub struct Conditions<'a> {
    /// Data for static inputs and for fitting weights.
    pub calibration: Option<Calibration<'a>>,
    /// What decides whether the artefact may appear.
    pub gate: Option<&'a Gate<'a>>,
}

/// [`quantize`] with calibration data or under a gate.
///
/// Errors: also data that are empty, that the model cannot take, or that no part of the recipe uses; those of
/// the gate. On every error the target is as it was before.
pub fn quantize_under(
    request: &Request<'_>,
    conditions: Conditions<'_>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Report> {
    check_target(request.out)?;
    progress.stage("reading the checkpoint", 1);
    let source = Source::open(request.model, request.task)?;
    progress.step();
    source_under(source, request.out, request.recipe, conditions, cx, progress)
}

/// [`quantize`] for a checkpoint already read, or never on a disk (then it has no companion files).
///
/// Errors: as [`quantize`].
pub fn quantize_source(
    source: Source,
    out: &Path,
    recipe: &Recipe,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Report> {
    check_target(out)?;
    source_under(source, out, recipe, Conditions::default(), cx, progress)
}

fn source_under(
    source: Source,
    out: &Path,
    recipe: &Recipe,
    conditions: Conditions<'_>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Report> {
    let Conditions { calibration, gate } = conditions;
    let Quantized { source, tensors, plan, channels, account, record, report: calibration } =
        transform(source, recipe, calibration, cx, progress)?;
    let artefact = Artefact {
        source: &source,
        tensors,
        plan: &plan,
        channels,
        ignored: &account.ignored,
        recipe: recipe.record(),
        provenance: source_records(&source)?,
        gate,
        calibration: record,
        fitted: recipe.fit(),
        out,
    };
    let Written { weight_bytes, artefact_bytes, probes } = write(artefact, cx, progress)?;

    let float_bytes = source
        .tensors
        .iter()
        .filter(|(n, _)| account.used.contains(*n))
        .map(|(_, t)| 4 * t.elements() as u64)
        .sum();
    let source_bytes = source.files.iter().filter_map(|f| std::fs::metadata(f).ok()).map(|m| m.len()).sum();
    Ok(Report {
        plan,
        float_bytes,
        source_bytes,
        weight_bytes,
        artefact_bytes,
        ignored: account.ignored,
        probes,
        calibration,
        fitted: recipe.fit(),
    })
}

/// A checkpoint quantized without writing anything: it loads and answers as the artefact would.
///
/// Errors: a recipe that does not fit `source`, tensors that are missing or not finite.
pub fn quantize_in_memory(
    source: Source,
    recipe: &Recipe,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Source> {
    quantize_in_memory_under(source, recipe, None, cx, progress)
}

/// [`quantize_in_memory`] with data for static inputs.
///
/// Errors: also data that are missing, or that no part of the recipe uses.
pub fn quantize_in_memory_under(
    source: Source,
    recipe: &Recipe,
    calibration: Option<Calibration<'_>>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Source> {
    let Quantized { source, tensors, plan, channels, account, .. } =
        transform(source, recipe, calibration, cx, progress)?;
    let manifest = unproven(plan, channels, account.ignored, recipe.record());
    in_memory(&source, source.config.clone(), manifest, tensors)
}

/// A float source and what its artefact will hold.
struct Quantized {
    source: Source,
    tensors: BTreeMap<String, Tensor>,
    plan: Plan,
    channels: Channels,
    account: Account,
    record: Option<CalibrationRecord>,
    report: Option<CalibrationReport>,
}

/// Plans and quantizes; nothing is written.
fn transform(
    source: Source,
    recipe: &Recipe,
    data: Option<Calibration<'_>>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Quantized> {
    if source.is_artefact() {
        return Err(Error::input("model is an artefact already: it is quantized")
            .at(source.dir.display())
            .hint("start from the float checkpoint; `qberta inspect` shows what this one holds"));
    }
    let plan = plan(&source.arch, recipe)?;
    let is_static = is_static(&plan);
    let asks = takes_data(&plan, recipe);
    if asks && data.is_none() {
        return Err(Error::input(format!("recipe {} needs calibration data", recipe.name))
            .at("--calibration")
            .hint("give a file of rows like those the model will see; a few hundred are usual"));
    }
    if !asks && data.is_some() {
        return Err(Error::input("recipe uses no calibration data")
            .at("--calibration")
            .found(format!("recipe {}", recipe.name))
            .hint("drop the option, or use --recipe static"));
    }
    if recipe.fit().is_some() && fit::linears(&source.arch, &plan).is_empty() {
        return Err(Error::input("recipe fits weights or biases, but quantizes no linear")
            .at("rounding / bias_correction")
            .expected("linears with weight = \"int8\" or \"int4\"")
            .hint("drop them, or quantize linears"));
    }
    let record = data.map(|data| calibrate::record(data, is_static)).transpose()?;
    progress.stage("checking the float model", 1);
    // Building the float model checks every tensor (presence, shape, finite values) before any work.
    let Loaded { model, mut account } = source.load(cx)?;
    progress.step();
    let smooth = match recipe.smooth.zip(data) {
        Some((alpha, data)) => smooth::shifts(&model, &plan, alpha, data, cx, progress)?,
        None => Shifts::new(),
    };
    let mut splits = splits(&model, &plan, &smooth);
    let static_data = data.filter(|_| is_static);
    if let Some(data) = static_data {
        // What calibration saw is better than what the weights predict.
        splits.retain(|module, _| plan.get(module).is_none_or(|d| d.input != Input::TensorStatic));
        let seen = calibrate::splits(&model, &plan, &smooth, data, cx, progress)?;
        splits.extend(seen.into_iter().filter(|(module, _)| may_split(&plan, module)));
    }
    let calibrate = |data| calibrate(&model, &plan, (&splits, &smooth), data, cx, progress);
    let calibrated = static_data.map(calibrate).transpose()?;

    let mut kept = account.used.clone();
    let source = smooth::apply(untied(source, &plan, &mut kept)?, &smooth)?;
    account.ignored.retain(|name, _| !kept.contains(name));
    let mut tensors = match recipe.fit().zip(data) {
        None => weights::all(&source, &plan, &kept, progress)?,
        Some((how, data)) => {
            let load = |plan: &Plan, tensors: &BTreeMap<String, Tensor>| {
                let channels = (of_plan(&splits, plan), of_plan(&smooth, plan));
                let manifest = unproven(plan.clone(), channels, BTreeMap::new(), recipe.record());
                let partial = in_memory(&source, source.config.clone(), manifest, tensors.clone())?;
                Ok(partial.load(cx)?.model)
            };
            let job = fit::Job { float: &model, plan: &plan, how, smooth: &smooth, load: &load };
            // Only linears are fitted; a table has no inputs.
            let linears: Vec<String> = fit::linears(&source.arch, &plan);
            let tables = plan.iter().filter(|(n, _)| !linears.contains(n)).map(|(n, d)| (n.clone(), *d));
            let tensors = weights::all(&source, &tables.collect(), &kept, progress)?;
            fit::fit(&job, tensors, data, cx, progress)?
        }
    };
    drop(model);
    let report = calibrated.map(|calibrated| {
        tensors.extend(calibrated.tensors);
        calibrated.report
    });
    Ok(Quantized { source, tensors, plan, channels: (splits, smooth), account, record, report })
}

/// A manifest that says how to run quantized tensors, without digests and probes.
fn unproven(
    plan: Plan,
    (splits, smooth): Channels,
    ignored: BTreeMap<String, String>,
    recipe: RecipeRecord,
) -> Manifest {
    Manifest {
        calibration: None,
        digest: String::new(),
        files: BTreeMap::new(),
        fitted: None,
        format_version: manifest::FORMAT_VERSION,
        gates: Vec::new(),
        ignored_tensors: ignored,
        plan,
        probes: Vec::new(),
        recipe,
        smooth,
        source: BTreeMap::new(),
        splits,
        tensors: BTreeMap::new(),
        tool: format!("qberta {}", env!("CARGO_PKG_VERSION")),
    }
}

/// Quantized `tensors` of `source` as a model to load.
fn in_memory(
    source: &Source,
    config: Map<String, Value>,
    manifest: Manifest,
    tensors: BTreeMap<String, Tensor>,
) -> Result<Source> {
    let task = Some(source.arch.head.task);
    Source::from_parts(&source.dir, config, Some(manifest), tensors, Vec::new(), task)
}

/// Everything an artefact is made of, before it is written.
pub(crate) struct Artefact<'a> {
    /// Configuration, architecture and companion files.
    pub source: &'a Source,
    /// The tensors, as they are to be stored.
    pub tensors: BTreeMap<String, Tensor>,
    /// How each quantizable module is stored and run.
    pub plan: &'a Plan,
    /// Extra columns for outlier channels, and smoothing.
    pub channels: Channels,
    /// Tensors left out, with the reason.
    pub ignored: &'a BTreeMap<String, String>,
    /// What was asked.
    pub recipe: RecipeRecord,
    /// Files the weights came from.
    pub provenance: BTreeMap<String, FileRecord>,
    /// What has to agree before it appears.
    pub gate: Option<&'a Gate<'a>>,
    /// The data behind static inputs and fitted weights.
    pub calibration: Option<CalibrationRecord>,
    /// How weights were fitted to them.
    pub fitted: Option<FitRecord>,
    /// The directory to create.
    pub out: &'a Path,
}

/// What was written. Sizes in bytes.
pub(crate) struct Written {
    pub weight_bytes: u64,
    pub artefact_bytes: u64,
    /// Probes replayed.
    pub probes: usize,
}

/// Writes an artefact beside its place, proves it and moves it there.
pub(crate) fn write(artefact: Artefact<'_>, cx: &Context, progress: &dyn Progress) -> Result<Written> {
    let Artefact {
        source,
        tensors,
        plan,
        channels,
        ignored,
        recipe,
        provenance,
        gate,
        calibration,
        fitted,
        out,
    } = artefact;
    let file = safetensors::write(&tensors)?;
    let config = artefact_config(&source.config, &source.arch, plan, &channels, &tensors);
    let mut config_bytes =
        serde_json::to_vec_pretty(&config).map_err(|e| Error::corrupt("configuration").found(e))?;
    config_bytes.push(b'\n');

    progress.stage("recording probes", 1);
    let sequences = probe::inputs(&source.arch);
    let mut manifest = Manifest {
        calibration,
        fitted,
        source: provenance,
        tensors: tensors.iter().map(|(n, t)| (n.clone(), digest::of_tensor(t))).collect(),
        ..unproven(plan.clone(), channels, ignored.clone(), recipe)
    };
    // The model as it stands in memory says what the file must answer once it is read back.
    let plain = config.clone().into_iter().filter(|(k, _)| k != "quantization_config").collect();
    let in_memory = in_memory(source, plain, manifest.clone(), tensors)?;
    manifest.probes = probe::record(&in_memory.load(cx)?.model, &sequences, cx)?;
    drop(in_memory);
    progress.step();

    progress.stage("writing and reopening", 2);
    let staging = Staging::begin(out)?;
    let mut put = |name: &str, bytes: &[u8]| -> Result<u64> {
        staging.write(name, bytes)?;
        let record = FileRecord { bytes: bytes.len() as u64, sha256: digest::of_bytes(bytes) };
        manifest.files.insert(name.to_owned(), record);
        Ok(bytes.len() as u64)
    };
    let weight_bytes = put(WEIGHTS, &file)?;
    drop(file);
    let mut artefact_bytes = weight_bytes + put(CONFIG, &config_bytes)?;
    for name in companions(source) {
        let path = source.dir.join(&name);
        let bytes =
            whole::read(&path, whole::LARGE).map_err(|e| Error::io("cannot read", path.display(), &e))?;
        artefact_bytes += put(&name, &bytes)?;
    }
    let mut sealed = manifest.seal();
    staging.write(manifest::NAME, &sealed)?;
    if let Some(gate) = gate {
        manifest.gates = gate(staging.path())?;
        sealed = manifest.seal();
        staging.write(manifest::NAME, &sealed)?;
    }
    artefact_bytes += sealed.len() as u64;
    progress.step();
    let verified = verify_at(staging.path(), cx).map_err(|e| {
        e.at(format!("{} (not written)", out.display()))
            .hint("the saved model does not reproduce the one in memory; please report this")
    })?;
    staging.publish()?;
    progress.step();
    Ok(Written { weight_bytes, artefact_bytes, probes: verified.probes })
}

/// Gives a masked-LM head tied to the word table weights of its own where the plan [`unties`] them.
fn untied(mut source: Source, plan: &Plan, used: &mut BTreeSet<String>) -> Result<Source> {
    let modules = layout::modules(&source.arch);
    let word = modules.iter().find(|m| matches!(m.role, Role::Table { site: Site::WordTable, .. }));
    let projection = modules.iter().find_map(|m| match &m.role {
        Role::Vocabulary { bias, .. } => Some((m, bias)),
        _ => None,
    });
    let (Some(word), Some((projection, bias))) = (word, projection) else { return Ok(source) };
    if !unties(&source.arch, plan) {
        return Ok(source);
    }
    let mut copy = |from: String, to: String| {
        if !used.contains(&to)
            && let Some(tensor) = source.tensors.get(&from).cloned()
        {
            source.tensors.insert(to.clone(), tensor);
            used.insert(to);
        }
    };
    copy(format!("{}.weight", word.name), format!("{}.weight", projection.name));
    for from in bias {
        copy(from.clone(), format!("{}.bias", projection.name));
    }
    Ok(source)
}

/// Digests of the files the weights came from, by file name; none if they came from no file.
pub(crate) fn source_records(source: &Source) -> Result<BTreeMap<String, FileRecord>> {
    if source.files.is_empty() {
        return Ok(BTreeMap::new());
    }
    let config = source.dir.join(CONFIG);
    source
        .files
        .iter()
        .chain([&config])
        .map(|path| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let (sha256, bytes) = digest::of_file(path)?;
            Ok((name, FileRecord { bytes, sha256 }))
        })
        .collect()
}

/// The [`COMPANIONS`] of `source`; none if its weights came from no file.
pub(crate) fn companions(source: &Source) -> Vec<String> {
    let there = |n: &&&str| !source.files.is_empty() && source.dir.join(n).is_file();
    COMPANIONS.iter().filter(there).map(|&n| n.to_owned()).collect()
}
