//! Calibration: every stored grid (of static inputs, of the queries and keys of static scores), from sequences run
//! through the float model.
//!
//! Sequences run one at a time, so that a call of an observer is a sequence and the result does not depend on
//! how anything was batched. The last eighth is held out first: the grids of the rest say how much of it they
//! would clip, which tells whether more data like it are needed. Then it is merged in, and the stored grids
//! come from everything.

use crate::observe::{Channels, Method, Observer};
use crate::outliers;
use crate::plan::Plan;
use crate::quantize::Progress;
use crate::smooth::Shifts;
use qberta_kernels::{Context, FixedGrid, Matrix, Shaping};
use qberta_model::{Batch, Error, Model, Observe, Observed, Operand, Result, Sequence, Site, Tap, forward};
use qberta_store::assemble::{HEAD_GRIDS, INPUT_GRID};
use qberta_store::layout::{self, Role};
use qberta_store::manifest::{CalibrationRecord, Decision, Input};
use qberta_store::{Tensor, digest};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// What to calibrate with.
#[derive(Clone, Copy, Debug)]
pub struct Calibration<'a> {
    /// Token ids like those the model will see.
    pub sequences: &'a [Sequence],
    /// How ranges are chosen.
    pub method: Method,
}

/// What calibration found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CalibrationReport {
    /// How ranges were chosen.
    pub observer: String,
    /// Sequences seen.
    pub sequences: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Sequences at the end that were held out to measure clipping.
    pub held_out: usize,
    /// Part of their values that lay outside the grids of the others, over all inputs.
    pub clipped: f64,
    /// The same for each module; of an attention the queries and keys of all heads.
    pub clipped_by_module: BTreeMap<String, f64>,
}

/// One part in so many is held out.
const HELD_OUT: usize = 8;

/// Grids as the tensors that an artefact holds, and what there is to say about them.
pub(crate) struct Calibrated {
    pub tensors: BTreeMap<String, Tensor>,
    pub report: CalibrationReport,
}

/// Calibrates everything static in `plan` on the float `model`, whose inputs get these extra columns and shifts.
///
/// Errors: no sequence, a sequence the model cannot take, activations that are not finite.
pub(crate) fn calibrate(
    model: &Model,
    plan: &Plan,
    channels: (&BTreeMap<String, Vec<u32>>, &Shifts),
    data: Calibration<'_>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<Calibrated> {
    if data.sequences.is_empty() {
        return Err(empty());
    }
    progress.stage("calibrating", data.sequences.len() as u64);
    let mut inputs = inputs(model, plan, channels, data.method)?;
    inputs.extend(operands(model, plan, data.method));
    let held_out = (data.sequences.len() / HELD_OUT).max(usize::from(data.sequences.len() > 1));
    let (main, tail) = data.sequences.split_at(data.sequences.len() - held_out);

    let mut seen = Watch { inputs };
    run(model, main, &mut seen, cx, progress)?;
    let mut ahead = Watch { inputs: seen.inputs.clone() };
    for watched in ahead.inputs.values_mut().flatten() {
        watched.grid = Some(watched.choose()?);
        watched.observer = Observer::new(data.method);
    }
    run(model, tail, &mut ahead, cx, progress)
        .map_err(|e| e.at(format!("held-out, after {}", main.len())))?;

    let mut tensors = BTreeMap::new();
    let mut counts: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for (tap, mut input) in seen.inputs {
        let mut grids = Vec::new();
        for (watched, later) in input.iter_mut().zip(&ahead.inputs[&tap]) {
            watched.observer.merge(&later.observer);
            grids.push(watched.choose()?);
            let [clipped, values] = counts.entry(later.module.clone()).or_default();
            *clipped += later.clipped;
            *values += later.values;
        }
        let Some(Watched { module, .. }) = input.first() else { continue };
        tensors.extend(stored(tap, module, &grids)?);
    }
    let clipped_by_module = counts.iter().map(|(m, [clipped, values])| (m.clone(), part(*clipped, *values)));
    let [clipped, values] = counts.values().fold([0, 0], |all, one| [all[0] + one[0], all[1] + one[1]]);
    let tokens = data.sequences.iter().map(|s| s.ids.len()).sum();
    let report = CalibrationReport {
        observer: data.method.name(),
        sequences: data.sequences.len(),
        tokens,
        held_out,
        clipped: part(clipped, values),
        clipped_by_module: clipped_by_module.collect(),
    };
    Ok(Calibrated { tensors, report })
}

/// The tensors that hold the grids of what `tap` shows of a module.
fn stored(tap: Tap, module: &str, grids: &[FixedGrid]) -> Result<Vec<(String, Tensor)>> {
    let scales: Vec<f32> = grids.iter().map(|g| g.scale()).collect();
    let scale = |end| Ok((format!("{module}.{end}"), Tensor::from_f32(vec![scales.len()], &scales)?));
    match tap {
        Tap::Operand(_, Operand::Query) => Ok(vec![scale(HEAD_GRIDS[0])?]),
        Tap::Operand(..) => Ok(vec![scale(HEAD_GRIDS[1])?]),
        Tap::Input(_) | Tap::Normed(_) => {
            // compressed-tensors counts codes from -128.
            let zeros: Vec<i8> = grids.iter().map(|g| (g.zero() ^ 0x80).cast_signed()).collect();
            let zero = (format!("{module}.{}", INPUT_GRID[1]), Tensor::from_i8(vec![zeros.len()], &zeros)?);
            Ok(vec![scale(INPUT_GRID[0])?, zero])
        }
    }
}

/// What an artefact says about its calibration data; `observer` if they set the grid of some input.
///
/// Errors: no sequence.
pub(crate) fn record(data: Calibration<'_>, observer: bool) -> Result<CalibrationRecord> {
    if data.sequences.is_empty() {
        return Err(empty());
    }
    Ok(CalibrationRecord {
        observer: observer.then(|| data.method.name()),
        sequences: data.sequences.len() as u64,
        sha256: fingerprint(data.sequences),
        tokens: data.sequences.iter().map(|s| s.ids.len() as u64).sum(),
    })
}

fn empty() -> Error {
    Error::input("calibration data hold no row")
        .at("--calibration")
        .expected("rows like those the model will see; a few hundred are usual")
        .hint("what is set by data would be wrong everywhere without them, so nothing is written")
}

fn part(some: u64, all: u64) -> f64 {
    some as f64 / all.max(1) as f64
}

/// The digest of token ids and types: for each sequence its length, ids, number of types, types, as
/// little-endian u32.
fn fingerprint(sequences: &[Sequence]) -> String {
    let mut bytes = Vec::new();
    for s in sequences {
        for part in [&s.ids, &s.types] {
            bytes.extend((part.len() as u32).to_le_bytes());
            bytes.extend(part.iter().flat_map(|id| id.to_le_bytes()));
        }
    }
    digest::of_bytes(&bytes)
}

/// Extra columns for the outlier channels of every static input of `plan`, from how far each channel reaches
/// on the data. Unlike a row's own grid, one for all rows has to hold the largest value of all.
///
/// Errors: no sequence, a sequence the model cannot take.
pub(crate) fn splits(
    model: &Model,
    plan: &Plan,
    smooth: &Shifts,
    data: Calibration<'_>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Vec<u32>>> {
    let inputs = inputs(model, plan, (&BTreeMap::new(), smooth), data.method)?;
    let modules: BTreeMap<Site, String> = inputs
        .into_iter()
        .filter_map(|(tap, watched)| match tap {
            Tap::Input(site) => Some((site, watched.into_iter().next()?.module)),
            _ => None,
        })
        .collect();
    let sites: Vec<Site> = modules.keys().copied().collect();
    let reach = reach(model, &sites, data, cx, progress)?;
    let columns = modules.into_iter().map(|(site, module)| {
        let magnitudes = outliers::smoothed(reach[&site].magnitudes(), smooth.get(&module));
        (module, outliers::split_by(&magnitudes))
    });
    Ok(columns.filter(|(_, columns)| !columns.is_empty()).collect())
}

/// How far the channels of the inputs at `sites` reach on the data.
///
/// Errors: a sequence the model cannot take.
pub(crate) fn reach(
    model: &Model,
    sites: &[Site],
    data: Calibration<'_>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<BTreeMap<Site, Channels>> {
    progress.stage("finding outlier channels", data.sequences.len() as u64);
    let mut reach = Reach(sites.iter().map(|site| (*site, Channels::default())).collect());
    run(model, data.sequences, &mut reach, cx, progress)?;
    Ok(reach.0)
}

/// How far the channels of each input reach.
struct Reach(BTreeMap<Site, Channels>);

impl Observe for &mut Reach {
    fn wants(&self, tap: Tap) -> bool {
        matches!(tap, Tap::Input(site) if self.0.contains_key(&site))
    }

    fn see(&mut self, tap: Tap, x: &Matrix) {
        if let Tap::Input(site) = tap
            && let Some(channels) = self.0.get_mut(&site)
        {
            channels.see(x);
        }
    }
}

/// One grid in the making.
#[derive(Clone)]
struct Watched {
    module: String,
    what: What,
    observer: Observer,
    /// Counts what it clips, once it is set.
    grid: Option<FixedGrid>,
    clipped: u64,
    values: u64,
}

/// What of a tap's rows lies on a grid.
#[derive(Clone)]
enum What {
    /// Everything, once it has got its shape; on an asymmetric grid.
    Input(Shaping),
    /// The columns of a head; on a symmetric grid.
    Head(Range<usize>),
}

impl Watched {
    fn new(module: &str, what: What, method: Method) -> Watched {
        let observer = Observer::new(method);
        Watched { module: module.to_owned(), what, observer, grid: None, clipped: 0, values: 0 }
    }

    fn see(&mut self, x: &Matrix) {
        let rows = 0..x.rows();
        let some: Vec<f32>;
        let values = match &self.what {
            What::Input(shaping) if *shaping == Shaping::default() => x.as_slice(),
            What::Input(shaping) => {
                some = rows.flat_map(|i| shaping.shared(x.row(i))).collect();
                &some
            }
            What::Head(columns) => {
                some = rows.flat_map(|i| x.row(i)[columns.clone()].to_vec()).collect();
                &some
            }
        };
        self.observer.see(values);
        if let Some(grid) = self.grid {
            self.clipped += values.iter().filter(|v| grid.clips(**v)).count() as u64;
            self.values += values.len() as u64;
        }
    }

    fn choose(&self) -> Result<FixedGrid> {
        let at = |e: Error| e.at(&self.module);
        if self.observer.unusable() > 0 {
            return Err(at(Error::corrupt("activations are not finite")
                .found(format!("{} values that are NaN or infinite", self.observer.unusable()))
                .hint("the float model overflows on this data; check it in its original framework")));
        }
        let range = self.observer.range();
        let range = range.ok_or_else(|| at(Error::input("calibration data never reach this module")))?;
        let grid = match self.what {
            What::Input(_) => range.grid(),
            What::Head(_) => range.symmetric_grid(),
        };
        grid.map_err(|e| at(Error::corrupt("activations have no 8-bit grid").found(e)))
    }
}

/// The static inputs of `plan` by the tap that shows all their rows.
fn inputs(
    model: &Model,
    plan: &Plan,
    (splits, smooth): (&BTreeMap<String, Vec<u32>>, &Shifts),
    method: Method,
) -> Result<BTreeMap<Tap, Vec<Watched>>> {
    let mut inputs = BTreeMap::new();
    for module in layout::modules(model.architecture()) {
        let decision = plan.get(&module.name);
        let (Role::Linear(role), Some(Input::TensorStatic)) = (&module.role, decision.map(|d| d.input))
        else {
            continue;
        };
        // Of a fused projection the value sees every token, the query of the last layer only those asked.
        let Some((site, _)) = role.sites.last() else { continue };
        let shifts = smooth.get(&module.name).map_or(&[][..], Vec::as_slice);
        let shaping = Shaping::new(splits.get(&module.name).cloned().unwrap_or_default(), role.inp)
            .and_then(|split| split.smoothed(shifts, role.inp))
            .map_err(|e| Error::corrupt("channels of the input are unusable").at(&module.name).found(e))?;
        let watched = Watched::new(&module.name, What::Input(shaping), method);
        inputs.insert(Tap::Input(*site), vec![watched]);
    }
    Ok(inputs)
}

/// Queries and keys of the static scores of `plan`, each head on its own.
fn operands(model: &Model, plan: &Plan, method: Method) -> Vec<(Tap, Vec<Watched>)> {
    let size = model.architecture().head_size;
    let mut operands = Vec::new();
    for module in layout::modules(model.architecture()) {
        let (Role::Scores { layer, heads }, Some(&Decision::STATIC_SCORES)) =
            (&module.role, plan.get(&module.name))
        else {
            continue;
        };
        let head = |h: usize| Watched::new(&module.name, What::Head(h * size..(h + 1) * size), method);
        for operand in [Operand::Query, Operand::Key] {
            operands.push((Tap::Operand(*layer as u16, operand), (0..*heads).map(head).collect()));
        }
    }
    operands
}

struct Watch {
    inputs: BTreeMap<Tap, Vec<Watched>>,
}

impl Observe for &mut Watch {
    fn wants(&self, tap: Tap) -> bool {
        self.inputs.contains_key(&tap)
    }

    fn see(&mut self, tap: Tap, x: &Matrix) {
        for watched in self.inputs.get_mut(&tap).into_iter().flatten() {
            watched.see(x);
        }
    }
}

fn run<O>(
    model: &Model,
    sequences: &[Sequence],
    watch: &mut O,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<()>
where
    for<'a> &'a mut O: Observe,
{
    let arch = model.architecture();
    for (i, sequence) in sequences.iter().enumerate() {
        let batch = Batch::new(arch, std::slice::from_ref(sequence))
            .map_err(|e| e.at(format!("calibration row {}", i + 1)))?;
        forward(arch, &mut Observed::new(model, cx, &mut *watch), &batch);
        progress.step();
    }
    Ok(())
}
