//! From measurements to a proven plan: the curve, the choice on it, the proof, the repair.

use super::judge::{Judge, Part};
use super::memo::Memo;
use super::{Job, bounds};
use qberta_model::{Error, Model, Result};
use qberta_store::{digest, safetensors};
use qberta_toolkit::select::{
    Amounts, Axis, Drop, Palette, Selection, amounts, curve, latencies, solve, total, within,
};
use qberta_toolkit::{Recipe, quantize_in_memory_under};

/// A selection with what it costs and what it was measured to lose.
#[derive(Clone, Debug)]
pub struct Point {
    pub selection: Selection,
    /// Of the whole model: damage, seconds of a call, bytes.
    pub costs: Amounts,
    /// On the measuring rows.
    pub drop: Drop,
}

/// The plan.
pub struct Chosen {
    pub point: Point,
    /// Of the model that was built from the recipe, on the held-out rows.
    pub held_out: Drop,
    /// Whether the held-out rows prove what was asked.
    pub proven: bool,
    /// Times that the held-out rows asked for a better selection.
    pub repairs: usize,
    /// Seconds of a call, measured in turn: float, the first other choice throughout, this plan.
    pub latencies: [f64; 3],
    /// Bytes of the weight file.
    pub file_bytes: u64,
    /// The recipe file.
    pub recipe: String,
}

/// Everything found.
pub struct Found {
    /// Of everything in float, and of each other choice throughout.
    pub throughout: Vec<Amounts>,
    /// Cheapest first.
    pub curve: Vec<Point>,
    pub chosen: Option<Chosen>,
}

pub struct Search<'s, 'a> {
    pub job: &'s Job<'a>,
    pub judge: &'s mut Judge<'a>,
    pub palette: &'s Palette,
    pub memo: &'s mut Memo,
}

/// Halvings of the gap between the last point that loses too much and the first that does not.
const REFINEMENTS: usize = 4;
/// Halvings of the damage when held-out rows are not satisfied, before everything goes to its best choice.
const REPAIRS: usize = 8;

impl Search<'_, '_> {
    pub fn run(&mut self) -> Result<Found> {
        let timed = self.memo.state.timed.clone().ok_or_else(|| Error::input("nothing was timed"))?;
        let units = amounts(self.palette, &self.memo.state.damages, &timed.costs);
        let fixed = [0.0, timed.costs.rest, self.palette.fixed_bytes as f64];
        let whole = |selection: &[usize]| {
            let sums = total(&units, selection);
            [sums[0], sums[1] + fixed[1], sums[2] + fixed[2]]
        };
        let throughout: Vec<Amounts> =
            (0..self.palette.choices.len()).map(|c| whole(&self.palette.throughout(c))).collect();
        let limits = self.job.bounds.amounts(&throughout[0], &fixed)?;
        let points = usize::from(self.job.args.points);
        let selections = curve(&units, self.job.bounds.axis(), &limits, points);
        if selections.is_empty() {
            return Err(nothing(&units, &fixed, &limits));
        }
        let mut curve = Vec::with_capacity(selections.len());
        for selection in selections {
            curve.push(self.point(selection, &whole)?);
        }
        if !self.job.bounds.any() {
            return Ok(Found { throughout, curve, chosen: None });
        }
        let pick = |limits: &Amounts| solve(&units, self.job.bounds.aim(), limits);
        let point = match self.job.bounds.drop {
            None => curve.last().cloned().ok_or_else(|| nothing(&units, &fixed, &limits))?,
            Some(most) => self.cheapest(&curve, most, &limits, &pick, &whole)?,
        };
        let chosen = self.proven(point, &limits, &pick, &whole)?;
        Ok(Found { throughout, curve, chosen: Some(chosen) })
    }

    fn name(&self, selection: &[usize]) -> String {
        let choices =
            (0..selection.len()).map(|u| self.palette.choices[self.palette.choice(selection, u)].name);
        choices.collect::<Vec<_>>().join(" ")
    }

    /// The drop of a selection, measured once.
    fn drop(&mut self, selection: &[usize], part: Part) -> Result<Drop> {
        let key = format!("{} {}", part.name(), self.name(selection));
        let (judge, palette, cx) = (&mut *self.judge, self.palette, &self.job.world.cx);
        self.memo.drop(&key, || judge.drop(palette.model(selection, cx)?, part, "a selection"))
    }

    fn point(&mut self, selection: Selection, whole: &dyn Fn(&[usize]) -> Amounts) -> Result<Point> {
        let drop = self.drop(&selection, Part::Measure)?;
        Ok(Point { costs: whole(&selection), selection, drop })
    }

    /// The cheapest selection whose drop on the measuring rows is at most `most`: a point of the curve, and then
    /// between it and the one before. The most accurate one if there is none.
    fn cheapest(
        &mut self,
        curve: &[Point],
        most: f64,
        limits: &Amounts,
        pick: &dyn Fn(&Amounts) -> Option<Selection>,
        whole: &dyn Fn(&[usize]) -> Amounts,
    ) -> Result<Point> {
        let good = |p: &Point| p.drop.value <= most;
        let Some(at) = curve.iter().position(good) else {
            let last = curve.last().cloned();
            return last.ok_or_else(|| Error::input("there is no selection"));
        };
        let mut best = curve[at].clone();
        let Some(mut bad) = at.checked_sub(1).map(|i| curve[i].costs[0]) else { return Ok(best) };
        for _ in 0..REFINEMENTS {
            let mut limits = *limits;
            limits[0] = (bad * best.costs[0].max(bad * 1e-3)).sqrt();
            let Some(selection) = pick(&limits).filter(|s| *s != best.selection) else { break };
            let point = self.point(selection, whole)?;
            if good(&point) { best = point } else { bad = limits[0] }
        }
        Ok(best)
    }

    /// Compares with the float model on the held-out rows, and while they are not satisfied halves the damage:
    /// the knapsack then moves those modules to better choices that gain most for what they cost.
    fn proven(
        &mut self,
        mut point: Point,
        limits: &Amounts,
        pick: &dyn Fn(&Amounts) -> Option<Selection>,
        whole: &dyn Fn(&[usize]) -> Amounts,
    ) -> Result<Chosen> {
        let mut repairs = 0;
        if let Some(most) = self.job.bounds.drop {
            let mut limits = *limits;
            limits[0] = point.costs[0];
            loop {
                let drop = self.drop(&point.selection, Part::HeldOut)?;
                if self.judge.passes(&drop, most) {
                    break;
                }
                let mut better = None;
                while better.is_none() && limits[0] > 0.0 {
                    limits[0] = if repairs < REPAIRS { limits[0] / 2.0 } else { 0.0 };
                    better = pick(&limits).filter(|s| *s != point.selection);
                }
                let Some(selection) = better else { break };
                point = self.point(selection, whole)?;
                repairs += 1;
            }
        }
        self.built(point, repairs)
    }

    /// Builds the model from the text of the recipe, as `quantize` would, and proves that one.
    fn built(&mut self, point: Point, repairs: usize) -> Result<Chosen> {
        let (job, palette) = (self.job, self.palette);
        let (cx, screen) = (&job.world.cx, &job.world.screen);
        let plan = palette.plan(&point.selection);
        let stem =
            job.args.output.as_ref().and_then(|p| p.file_stem()).map(|s| s.to_string_lossy().into_owned());
        let name = recipe_name(stem.as_deref());
        let about = about(job, self.judge, palette, &point);
        let everything_float = point.selection == palette.float();
        let (model, file_bytes, recipe): (Model, u64, String) = if everything_float {
            // Then there is nothing that quantize could do.
            (palette.model(&point.selection, cx)?, palette.bytes(&point.selection), String::new())
        } else {
            let recipe = Recipe::text_of(&name, &about, palette.architecture(), &plan)?;
            let calibrated = (0..palette.units.len())
                .any(|u| palette.choices[palette.choice(&point.selection, u)].calibrated());
            let data = job.calibration().filter(|_| calibrated);
            let parsed = Recipe::parse(&recipe, &name)?;
            let source = quantize_in_memory_under(job.source()?, &parsed, data, cx, screen)?;
            let bytes = safetensors::write(&source.tensors)?.len() as u64;
            (source.load(cx)?.model, bytes, recipe)
        };
        let reference = [palette.model(&palette.float(), cx)?, palette.model(&palette.throughout(1), cx)?];
        let times = latencies(&[&reference[0], &reference[1], &model], &job.calls, cx, screen)?;
        drop(reference);
        let key = format!("built {} {}", self.name(&point.selection), digest::of_bytes(recipe.as_bytes()));
        let judge = &mut *self.judge;
        let held_out = self.memo.drop(&key, || judge.drop(model, Part::HeldOut, "the plan"))?;
        let assembled = format!("{} {}", Part::HeldOut.name(), self.name(&point.selection));
        let known = self.memo.known(&assembled);
        if known.is_some_and(|known| known != held_out) {
            return Err(Error::mismatch(
                "the model built from the recipe answers otherwise than the one measured",
            )
            .hint("please report this"));
        }
        let proven =
            job.bounds.drop.is_none_or(|most| self.judge.passes(&held_out, most)) && !recipe.is_empty();
        let latencies = [times[0], times[1], times[2]];
        Ok(Chosen { point, held_out, proven, repairs, latencies, file_bytes, recipe })
    }
}

/// What a recipe may be called: the file's stem, or `plan`.
fn recipe_name(stem: Option<&str>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let taken = |s: &str| qberta_toolkit::recipe::PRESETS.iter().any(|(n, _)| *n == s);
    let usable = stem.filter(|s| !s.is_empty() && s.len() <= 64 && s.chars().all(plain) && !taken(s));
    usable.unwrap_or("plan").to_owned()
}

fn about(job: &Job<'_>, judge: &Judge<'_>, palette: &Palette, point: &Point) -> String {
    let float = palette.in_float(&point.selection).len();
    let all = palette.modules();
    let data = job.args.data.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "chosen by qberta plan on {data}: {float} of {all} modules in float; {} {:+.2} points on {} measuring rows",
        judge.figure,
        0.0 - point.drop.value,
        judge.rows(Part::Measure)
    )
}

/// Why there is no selection.
fn nothing(units: &[Vec<Amounts>], fixed: &Amounts, limits: &Amounts) -> Error {
    let mut error = Error::input("no selection is within the bounds");
    for (axis, option) in [(Axis::Latency, "--max-latency"), (Axis::Size, "--max-size")] {
        let a = axis as usize;
        if !limits[a].is_finite() {
            continue;
        }
        let least = solve(units, axis, &qberta_toolkit::select::UNBOUNDED);
        let least = least.map_or(0.0, |s| total(units, &s)[a]);
        if !within(&[0.0, least, least], &{
            let mut only = qberta_toolkit::select::UNBOUNDED;
            only[a] = limits[a];
            only
        }) {
            error = error
                .at(option)
                .expected(format!("at least {}", bounds::shown(axis, least + fixed[a])))
                .found(bounds::shown(axis, limits[a] + fixed[a]));
        }
    }
    error.hint("raise a bound, or add choices with --among")
}
