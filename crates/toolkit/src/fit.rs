//! Weights fitted to data: rounded so that the outputs on calibration data change least (GPTQ, QuantEase), biases that make up
//! for the mean error of the outputs.
//!
//! Modules are fitted in the order of the network, each on the inputs that it gets from the modules already
//! quantized before it, activations included; only the modules that read one input (query, key and value) are fitted
//! side by side. Data are streamed anew for each step through the layers up to it, so memory does not grow with them:
//! a step keeps one matrix of the size of its input squared.
//!
//! DeBERTa v2 and v3 apply the query and key projections to the relative table too. A row of the table enters the
//! scores of a sequence of `n` tokens `n - |distance|` times where a token enters `n` times, so it counts as
//! `(n - |distance|) / n` of a token. Their biases are not corrected: one bias serves both inputs.

mod gptq;
mod hessian;
mod quantease;

use crate::calibrate::Calibration;
use crate::plan::Plan;
use crate::quantize::Progress;
use crate::weights::{self, Coded};
use hessian::Hessian;
use qberta_kernels::{Context, Matrix};
use qberta_model::forward::project_positions;
use qberta_model::relative::table_row;
use qberta_model::{
    Architecture, Batch, Error, Model, Observe, Observed, Result, Rows, Site, Slot, Tap, encode,
};
use qberta_store::Tensor;
use qberta_store::layout::{self, LinearRole, Role};
use qberta_store::manifest::{Decision, FitRecord, Input, Rounding};
use std::collections::BTreeMap;

/// Whether inputs are rounded by descending importance rather than in their order.
const SORTED: bool = true;

/// Loads the model of a plan carried out on some tensors.
pub(crate) type Load<'a> = dyn Fn(&Plan, &BTreeMap<String, Tensor>) -> Result<Model> + 'a;

/// What to fit and how.
pub(crate) struct Job<'a> {
    /// The float model.
    pub float: &'a Model,
    /// Everything that is to be quantized.
    pub plan: &'a Plan,
    /// What is asked.
    pub how: FitRecord,
    /// What channels of a module's input are divided by, as powers of two; its weights here are multiplied by them.
    pub smooth: &'a BTreeMap<String, Vec<i8>>,
    /// Loads the model in which a plan is carried out on these tensors.
    pub load: &'a Load<'a>,
}

impl Job<'_> {
    /// What each channel of the input of `part` is multiplied by.
    fn factors(&self, part: &Part) -> Vec<f64> {
        match self.smooth.get(&part.module) {
            Some(shifts) => shifts.iter().map(|s| 2f64.powi(-i32::from(*s))).collect(),
            None => vec![1.0; part.role.inp],
        }
    }
}

/// A linear to fit.
struct Part {
    module: String,
    role: LinearRole,
}

/// Modules that are fitted side by side: those of a layer that read the same input.
struct Step {
    layer: usize,
    parts: Vec<Part>,
}

impl Step {
    /// The site that shows all rows of the input.
    fn site(&self) -> Option<Site> {
        self.parts.iter().flat_map(|p| &p.role.sites).map(|(s, _)| *s).rfind(|s| !is_position(*s))
    }
}

/// Fits every linear of the plan. `tensors` hold the checkpoint with its tables quantized; fitted modules replace
/// theirs.
///
/// Errors: no data, sequences that the model cannot take, activations that are not finite.
pub(crate) fn fit(
    job: &Job<'_>,
    mut tensors: BTreeMap<String, Tensor>,
    data: Calibration<'_>,
    cx: &Context,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Tensor>> {
    let arch = job.float.architecture();
    let steps = steps(arch, job.plan);
    progress.stage("fitting weights", ((steps.len() + 1) * data.sequences.len()) as u64);
    let fits = job.how.rounding != Rounding::Nearest;
    let table = relative_table(arch, job.float, data, cx);
    let mut before = Watch::new(cx);
    if job.how.bias_correction {
        steps.iter().filter_map(|s| s.site().map(|site| (site, s))).for_each(|(site, step)| {
            before.seen.insert(site, Seen::new(step.parts[0].role.inp, false));
        });
        run(job.float, arch.layers, data, &mut before, progress)?;
    }
    let linears = linears(arch, job.plan);
    let others = job.plan.iter().filter(|(n, _)| !linears.contains(n));
    let mut done: Plan = others.map(|(n, d)| (n.clone(), without_stored_grid(*d))).collect();
    for step in &steps {
        let mut now = Watch::new(cx);
        if let Some(site) = step.site() {
            now.seen.insert(site, Seen::new(step.parts[0].role.inp, fits));
            run(&(job.load)(&done, &tensors)?, step.layer + 1, data, &mut now, progress)?;
        }
        for part in &step.parts {
            let seen = step.site().and_then(|site| now.seen.get(&site).map(|s| (site, s)));
            let fitted = fit_part(job, part, seen.map(|(_, s)| s), table.as_ref(), &tensors, cx)?;
            if let (true, Some((site, seen))) = (job.how.bias_correction, seen) {
                let factors = job.factors(part);
                let smoothed = |mean: Vec<f64>| mean.iter().zip(&factors).map(|(m, f)| m * f).collect();
                let means = [smoothed(before.seen[&site].mean()), smoothed(seen.mean())];
                correct_biases(arch, part, &fitted, means, &mut tensors)?;
            }
            let decision = job.plan[&part.module];
            let name = format!("{}.weight", part.module);
            let shape = [part.role.out, part.role.inp];
            tensors.remove(&name);
            tensors.extend(weights::tensors(&name, &fitted.coded, shape, decision.weight)?);
            done.insert(part.module.clone(), without_stored_grid(decision));
        }
    }
    Ok(tensors)
}

/// How a module runs while weights are fitted: static inputs have no stored grid yet.
fn without_stored_grid(decision: Decision) -> Decision {
    let input = match decision.input {
        Input::TensorStatic => Input::TokenAsymmetric,
        Input::HeadStatic => Input::TokenSymmetric,
        other => other,
    };
    Decision { input, ..decision }
}

/// The modules that are fitted.
pub(crate) fn linears(arch: &Architecture, plan: &Plan) -> Vec<String> {
    steps(arch, plan).into_iter().flat_map(|s| s.parts).map(|p| p.module).collect()
}

/// The linears of the plan, in the order of the network.
fn steps(arch: &Architecture, plan: &Plan) -> Vec<Step> {
    let mut steps: BTreeMap<(usize, usize), Step> = BTreeMap::new();
    for module in layout::modules(arch) {
        let quantized = plan.get(&module.name).is_some_and(|d| d.weight.is_coded());
        let (Role::Linear(role), true) = (module.role, quantized) else { continue };
        let Some((Site::Layer(layer, slot), _)) = role.sites.first().cloned() else { continue };
        let turn = match slot {
            Slot::AttentionOutput => 1,
            Slot::FfnUp => 2,
            Slot::FfnDown => 3,
            _ => 0,
        };
        let layer = usize::from(layer);
        let step = steps.entry((layer, turn)).or_insert(Step { layer, parts: Vec::new() });
        step.parts.push(Part { module: module.name, role });
    }
    steps.into_values().collect()
}

fn is_position(site: Site) -> bool {
    matches!(site, Site::Layer(_, Slot::PositionKey | Slot::PositionQuery))
}

/// Whether a module also projects the relative table: one that holds query or key while positions have none of
/// their own.
fn shares_table(arch: &Architecture, role: &LinearRole) -> bool {
    let one = |s: Site| matches!(s, Site::Layer(_, Slot::Query | Slot::Key));
    arch.relative.is_some_and(|r| r.shared_projections) && role.sites.iter().any(|(s, _)| one(*s))
}

/// A weight fitted, and the values it stands in for.
struct Fitted {
    values: Vec<f32>,
    coded: Coded,
}

fn fit_part(
    job: &Job<'_>,
    part: &Part,
    seen: Option<&Seen>,
    table: Option<&Hessian>,
    tensors: &BTreeMap<String, Tensor>,
    cx: &Context,
) -> Result<Fitted> {
    let name = format!("{}.weight", part.module);
    let tensor = tensors.get(&name).ok_or_else(|| Error::corrupt("tensor is missing").at(&name))?;
    let values = weights::values(&name, tensor)?;
    let shape = [part.role.out, part.role.inp];
    let weight = job.plan[&part.module].weight;
    let coded = if job.how.rounding != Rounding::Nearest {
        let positions = part.role.sites.iter().all(|(s, _)| is_position(*s));
        let hidden = seen.and_then(|s| s.hessian.clone()).filter(|_| !positions);
        let table = table.filter(|_| positions || shares_table(job.float.architecture(), &part.role));
        let hessian = match (hidden, table) {
            (Some(mut hidden), Some(table)) => {
                hidden.merge(table, cx);
                hidden
            }
            (Some(one), None) => one,
            (None, Some(table)) => table.clone(),
            (None, None) => Hessian::new(part.role.inp),
        };
        let not_finite = || {
            Error::corrupt("activations are not finite")
                .at(&part.module)
                .hint("the float model overflows on this data; check it in its original framework")
        };
        let hessian = hessian.scaled(&job.factors(part), cx);
        let threads = cx.threads.count();
        let gram = match job.how.rounding {
            Rounding::Quantease => Some(hessian.clone().gram(cx).ok_or_else(not_finite)?),
            _ => None,
        };
        let factor = hessian.factor(SORTED, cx).ok_or_else(not_finite)?;
        let coded = gptq::gptq(&values, shape, weight, &factor, threads);
        match (coded, gram) {
            (Some(coded), Some(gram)) => {
                Some(quantease::descend(&values, shape, weight, &gram, coded, threads))
            }
            (coded, _) => coded,
        }
    } else {
        weights::nearest(&values, shape[0], shape[1], weight)
    };
    let coded = coded.ok_or_else(|| Error::input("float weight has no codes").at(name))?;
    Ok(Fitted { values, coded })
}

/// Calls `work(values, codes, scale)` for every `block` rows of a weight `[rows, cols]`, on `threads` threads. A row is
/// computed alone, so who computes it changes nothing.
fn by_rows(
    coded: &mut Coded,
    values: &[f32],
    [rows, cols]: [usize; 2],
    block: usize,
    threads: usize,
    work: impl Fn(&[f32], &mut [i8], &mut [f32]) + Sync,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    let groups = coded.scale.len() / rows;
    let run = rows.div_ceil(threads.max(1)).next_multiple_of(block);
    let work = &work;
    std::thread::scope(|scope| {
        let parts = coded.codes.chunks_mut(run * cols).zip(coded.scale.chunks_mut(run * groups));
        for ((codes, scale), values) in parts.zip(values.chunks(run * cols)) {
            scope.spawn(move || {
                let parts = codes.chunks_mut(block * cols).zip(scale.chunks_mut(block * groups));
                for ((codes, scale), values) in parts.zip(values.chunks(block * cols)) {
                    work(values, codes, scale);
                }
            });
        }
    });
}

/// Takes the mean error of each output from the bias: `b - (Ŵ E[x̂] - W E[x])`, `x` being the float model's input
/// and `x̂` the one that the quantized layers before give.
fn correct_biases(
    arch: &Architecture,
    part: &Part,
    fitted: &Fitted,
    [float, now]: [Vec<f64>; 2],
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    let LinearRole { sites, out, inp, run, .. } = &part.role;
    if shares_table(arch, &part.role) {
        return Ok(());
    }
    let group = out * inp / fitted.coded.scale.len().max(1);
    let shift = |row: usize| -> f64 {
        let cells = row * inp..(row + 1) * inp;
        let weights = cells.clone().map(|i| {
            (
                f64::from(f32::from(fitted.coded.codes[i]) * fitted.coded.scale[i / group]),
                f64::from(fitted.values[i]),
            )
        });
        weights.zip(now.iter().zip(&float)).map(|((q, w), (now, float))| q * now - w * float).sum()
    };
    let parts = sites.len();
    for (number, (site, bias)) in sites.iter().enumerate() {
        let Some(name) = bias.as_ref().filter(|_| !is_position(*site)) else { continue };
        let Some(tensor) = tensors.get(name) else { continue };
        let mut values = weights::values(name, tensor)?;
        for (r, b) in values.iter_mut().enumerate() {
            *b = (f64::from(*b) - shift((r / run * parts + number) * run + r % run)) as f32;
        }
        tensors.insert(name.clone(), Tensor::from_f32(tensor.shape().to_vec(), &values)?);
    }
    Ok(())
}

/// What was seen of an input.
struct Seen {
    hessian: Option<Hessian>,
    sum: Vec<f64>,
    rows: u64,
}

impl Seen {
    fn new(n: usize, products: bool) -> Seen {
        Seen { hessian: products.then(|| Hessian::new(n)), sum: vec![0.0; n], rows: 0 }
    }

    fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.rows.max(1) as f64).collect()
    }
}

struct Watch<'a> {
    cx: &'a Context,
    seen: BTreeMap<Site, Seen>,
}

impl<'a> Watch<'a> {
    fn new(cx: &'a Context) -> Watch<'a> {
        Watch { cx, seen: BTreeMap::new() }
    }
}

impl Observe for &mut Watch<'_> {
    fn wants(&self, tap: Tap) -> bool {
        matches!(tap, Tap::Input(site) if self.seen.contains_key(&site))
    }

    fn see(&mut self, tap: Tap, x: &Matrix) {
        let Tap::Input(site) = tap else { return };
        let Some(seen) = self.seen.get_mut(&site) else { return };
        for i in 0..x.rows() {
            seen.sum.iter_mut().zip(x.row(i)).for_each(|(s, v)| *s += f64::from(*v));
        }
        seen.rows += x.rows() as u64;
        if let Some(hessian) = &mut seen.hessian {
            hessian.see(x, self.cx);
        }
    }
}

/// Runs the first `layers` layers of `model` over the data.
fn run(
    model: &Model,
    layers: usize,
    data: Calibration<'_>,
    watch: &mut Watch<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let arch = Architecture { layers, ..model.architecture().clone() };
    let cx = watch.cx;
    for (i, sequence) in data.sequences.iter().enumerate() {
        let batch = Batch::new(&arch, std::slice::from_ref(sequence))
            .map_err(|e| e.at(format!("calibration row {}", i + 1)))?;
        encode(&arch, &mut Observed::new(model, cx, &mut *watch), &batch, Rows::All);
        progress.step();
    }
    Ok(())
}

/// `Σ u r rᵀ` over the rows of the relative table, `u` saying how many tokens' worth of scores a row has on the data.
fn relative_table(
    arch: &Architecture,
    float: &Model,
    data: Calibration<'_>,
    cx: &Context,
) -> Option<Hessian> {
    let relative = arch.relative?;
    let mut counts = vec![0.0f64; 2 * relative.span as usize];
    for sequence in data.sequences {
        let n = sequence.ids.len() as i64;
        for distance in 1 - n..n {
            counts[table_row(distance, &relative) as usize] += (n - distance.abs()) as f64 / n as f64;
        }
    }
    struct Table(Option<Matrix>);
    impl Observe for &mut Table {
        fn wants(&self, tap: Tap) -> bool {
            matches!(tap, Tap::Input(site) if is_position(site))
        }
        fn see(&mut self, _: Tap, x: &Matrix) {
            self.0 = Some(x.clone());
        }
    }
    let mut table = Table(None);
    project_positions(arch, &mut Observed::new(float, cx, &mut table), 0);
    let mut rows = table.0?;
    for (i, count) in counts.iter().enumerate().take(rows.rows()) {
        let root = count.sqrt() as f32;
        rows.row_mut(i).iter_mut().for_each(|v| *v *= root);
    }
    let mut hessian = Hessian::new(rows.cols());
    hessian.see(&rows, cx);
    Some(hessian)
}
