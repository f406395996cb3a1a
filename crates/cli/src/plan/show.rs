//! A plan for people and for machines.

use super::bounds::shown;
use super::judge::{Judge, Part};
use super::memo::Memo;
use super::plot::{self, Dot};
use super::search::{Chosen, Found, Point};
use super::{Job, Spent};
use crate::screen::{bytes, count, table};
use qberta_model::Result;
use qberta_toolkit::select::{Axis, Drop, Palette, rank_correlation};
use serde_json::{Value, json};

pub fn tell(
    job: &Job<'_>,
    judge: &Judge<'_>,
    palette: &Palette,
    memo: &Memo,
    found: &Found,
    spent: &Spent,
) -> Result<()> {
    let screen = &job.world.screen;
    if screen.json {
        let mut told = machine(job, judge, palette, memo, found);
        told["spent_seconds"] =
            json!({"cost": spent.cost, "search": spent.search, "sensitivity": spent.sensitivity});
        screen.value(&told);
        return Ok(());
    }
    screen.line(head(job, judge, palette, memo, found).join("\n"));
    screen.line(modules(palette, memo, found.chosen.as_ref().map(|c| &c.point)).to_string());
    screen.line(points(palette, found).to_string());
    let axis = job.bounds.axis();
    let dots = dots(palette, found, axis);
    let ends = |f: fn(f64, f64) -> f64| dots.iter().map(|d| d.x).reduce(f).unwrap_or(0.0);
    let name = if axis == Axis::Size { "size" } else { "latency" };
    screen.line(format!(
        "\ndamage over {name}: o curve{}, x one choice throughout",
        if found.chosen.is_some() { ", @ plan" } else { "" }
    ));
    screen.line(plot::text(&dots, &shown(axis, ends(f64::min)), &shown(axis, ends(f64::max))));
    if let Some(chosen) = &found.chosen {
        screen.line(format!("\n{}", verdict(job, judge, palette, chosen).join("\n")));
    }
    screen.line(format!(
        "seconds: sensitivity {:.1}, cost {:.1}, curve and proof {:.1}",
        spent.sensitivity, spent.cost, spent.search
    ));
    Ok(())
}

/// The curve and the choices throughout, as dots.
pub fn dots(palette: &Palette, found: &Found, axis: Axis) -> Vec<Dot> {
    let x = |costs: &[f64; 3]| costs[axis as usize];
    let dot = |costs: &[f64; 3], name: String, chosen, on_curve| Dot {
        x: x(costs),
        y: costs[0],
        name,
        chosen,
        on_curve,
    };
    let on_curve = found.curve.iter().map(|p| {
        let float = palette.in_float(&p.selection).len();
        dot(&p.costs, format!("{}, {float} modules in float", shown(axis, x(&p.costs))), false, true)
    });
    let throughout = found
        .throughout
        .iter()
        .zip(&palette.choices)
        .map(|(c, choice)| dot(c, choice.name.to_owned(), false, false));
    let plan = found.chosen.iter().map(|c| dot(&c.point.costs, "plan".into(), true, true));
    on_curve.chain(throughout).chain(plan).collect()
}

/// What was measured, in sentences.
pub fn head(job: &Job<'_>, judge: &Judge<'_>, palette: &Palette, memo: &Memo, found: &Found) -> Vec<String> {
    let args = job.args;
    let rows = |part| count(judge.rows(part));
    let mut lines = vec![format!(
        "plan of {} on {}: {} rows measure, {} others are held out{}; drop in {}",
        args.model.display(),
        args.data.display(),
        rows(Part::Measure),
        rows(Part::HeldOut),
        match judge.repeated {
            0 => String::new(),
            n => format!(", {} that repeat a measuring row are left out", count(n)),
        },
        judge.figure
    )];
    let damages = &memo.state.damages;
    let whole: Vec<String> = palette
        .choices
        .iter()
        .skip(1)
        .map(|c| c.name)
        .map(|name| {
            let sum: f64 = palette.units.iter().map(|u| damages.score(&u.name, name)).sum();
            format!("{name} {:.2}", sum / damages.whole(name).max(f64::MIN_POSITIVE))
        })
        .collect();
    lines.push(format!(
        "sensitivity {} on {} rows{}; damages of modules over the damage of all together: {}",
        args.sensitivity.name(),
        count(damages.examples),
        halves(palette, memo).map_or(String::new(), |r| format!(", ranks of its halves agree to {r:.2}")),
        whole.join(", ")
    ));
    let times: Vec<String> = palette
        .choices
        .iter()
        .zip(&found.throughout)
        .map(|(c, costs)| {
            format!("{} {}, {}", c.name, shown(Axis::Latency, costs[1]), bytes(costs[2] as u64))
        })
        .collect();
    let (isa, threads) = (job.world.cx.isa.name(), job.world.cx.threads.count());
    lines.push(format!("cost: {}; {threads} threads, {isa}; throughout: {}", job.shape, times.join("; ")));
    if job.calibration.is_none() && args.among.is_empty() {
        lines.push("static is not among the choices: it needs --calibration FILE".into());
    }
    lines
}

/// Rank correlation of the damages of two halves of the rows.
fn halves(palette: &Palette, memo: &Memo) -> Option<f64> {
    let damages = &memo.state.damages;
    let n = damages.examples;
    let of = |range: std::ops::Range<usize>| -> Vec<f64> {
        let offers = palette.units.iter().flat_map(|u| u.offers.iter().skip(1).map(move |o| (u, o.choice)));
        offers.map(|(u, c)| damages.score_over(&u.name, palette.choices[c].name, range.clone())).collect()
    };
    if n < 2 { None } else { rank_correlation(&of(0..n / 2), &of(n / 2..n)) }
}

/// Modules in the table.
const SHOWN: usize = 12;

/// Units by their largest damage.
pub fn ranked(palette: &Palette, memo: &Memo) -> Vec<usize> {
    let damages = &memo.state.damages;
    let largest = |u: usize| {
        let unit = &palette.units[u];
        let of =
            |o: &qberta_toolkit::select::Offer| damages.score(&unit.name, palette.choices[o.choice].name);
        unit.offers.iter().skip(1).map(of).fold(0.0, f64::max)
    };
    let mut order: Vec<usize> = (0..palette.units.len()).collect();
    order.sort_by(|&a, &b| largest(b).total_cmp(&largest(a)));
    order
}

/// One row of the table of modules: name, then damage and time of each choice, bytes saved, the choice made.
pub fn module(palette: &Palette, memo: &Memo, unit: usize, plan: Option<&Point>) -> Vec<String> {
    let u = &palette.units[unit];
    let costs = memo.state.timed.as_ref().map(|t| &t.costs);
    let mut cells = vec![u.name.clone()];
    for (index, choice) in palette.choices.iter().enumerate() {
        let offered = u.offers.iter().any(|o| o.choice == index);
        let text = |t: String| if offered { t } else { String::new() };
        if index > 0 {
            cells.push(text(format!("{:.1e}", memo.state.damages.score(&u.name, choice.name))));
        }
        cells.push(text(costs.map_or(String::new(), |c| format!("{:.1}", 1e6 * c.of(&u.name, choice.name)))));
    }
    if let Some(plan) = plan {
        cells.push(palette.choices[palette.choice(&plan.selection, unit)].name.to_owned());
    }
    cells
}

pub fn module_heads(palette: &Palette, plan: bool) -> Vec<String> {
    let mut heads = vec!["module".to_owned()];
    for (index, choice) in palette.choices.iter().enumerate() {
        if index > 0 {
            heads.push(format!(">{} damage", choice.name));
        }
        heads.push(format!(">{} us", choice.name));
    }
    heads.extend(plan.then(|| "plan".to_owned()));
    heads
}

fn modules(palette: &Palette, memo: &Memo, plan: Option<&Point>) -> comfy_table::Table {
    let heads = module_heads(palette, plan.is_some());
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    table(&heads, ranked(palette, memo).into_iter().take(SHOWN).map(|u| module(palette, memo, u, plan)))
}

fn signed(drop: &Drop) -> String {
    format!("{:+.2}", 0.0 - drop.value + 0.0)
}

pub const POINT_HEADS: [&str; 6] = [">latency", ">size", ">damage", ">drop, measuring rows", ">in float", ""];

/// One row of the table of points.
pub fn point(palette: &Palette, p: &Point, remark: &str) -> Vec<String> {
    let all = palette.modules();
    vec![
        shown(Axis::Latency, p.costs[1]),
        shown(Axis::Size, p.costs[2]),
        format!("{:.2e}", p.costs[0]),
        format!("{:.2}", p.drop.value + 0.0),
        format!("{} of {all}", palette.in_float(&p.selection).len()),
        remark.to_owned(),
    ]
}

fn points(palette: &Palette, found: &Found) -> comfy_table::Table {
    let curve = found.curve.iter().map(|p| point(palette, p, ""));
    let plan = found.chosen.iter().map(|c| point(palette, &c.point, "plan"));
    table(&POINT_HEADS, curve.chain(plan))
}

/// What became of the plan.
pub fn verdict(job: &Job<'_>, judge: &Judge<'_>, palette: &Palette, c: &Chosen) -> Vec<String> {
    let d = &c.held_out;
    let mut lines = vec![format!(
        "held out: {} {} points, 95 % interval [{:+.2}, {:+.2}], on {} rows that nothing was chosen on{}",
        judge.figure,
        signed(d),
        0.0 - d.interval[1],
        0.0 - d.interval[0],
        count(judge.rows(Part::HeldOut)),
        match c.repairs {
            0 => String::new(),
            n => format!(" but {n} {}, which looked at them", if n == 1 { "repair" } else { "repairs" }),
        }
    )];
    if judge.figure == "output-error" || judge.figure == "agreement" {
        let what =
            if judge.figure == "agreement" { "rows with another answer" } else { "error of the outputs" };
        lines[0] = format!(
            "held out: {what} {:.2} %, 95 % interval [{:.2}, {:.2}], on {} rows that nothing was chosen on",
            d.value,
            d.interval[0],
            d.interval[1],
            count(judge.rows(Part::HeldOut))
        );
    }
    let [float, other, plan] = c.latencies.map(|t| shown(Axis::Latency, t));
    lines.push(format!(
        "measured in turn: plan {plan} a call (predicted {}), float {float}, {} throughout {other}; weight file {}",
        shown(Axis::Latency, c.point.costs[1]),
        palette.choices[1].name,
        bytes(c.file_bytes)
    ));
    let in_float = palette.in_float(&c.point.selection);
    if (1..=10).contains(&in_float.len()) {
        lines.push(format!("in float: {}", in_float.join(", ")));
    }
    let most = job.bounds.drop.unwrap_or(0.0);
    lines.push(match (&job.args.output, c.proven) {
        (_, false) if c.recipe.is_empty() => {
            "everything in float is the best there is within these bounds: there is nothing to quantize, and no recipe".into()
        }
        (_, false) => format!(
            "not proven: the held-out rows do not exclude a drop of {most} points, so no recipe is written; use more rows, a larger bound, or --gate-on point"
        ),
        (Some(path), true) => format!("recipe -> {}; run: {}", path.display(), command(job, palette, c, &path.display().to_string())),
        (None, true) => "no recipe was asked for: -o plan.toml writes it".into(),
    });
    lines
}

/// The command that executes the plan.
fn command(job: &Job<'_>, palette: &Palette, c: &Chosen, path: &str) -> String {
    let args = job.args;
    let mut text = format!("qberta quantize {} -o OUT --recipe {path}", args.model.display());
    let calibrated =
        (0..palette.units.len()).any(|u| palette.choices[palette.choice(&c.point.selection, u)].calibrated());
    if calibrated {
        text.push_str(&args.calibration.words());
    }
    text
}

fn drop_value(d: &Drop) -> Value {
    json!({"points": d.value, "interval": d.interval})
}

fn machine(job: &Job<'_>, judge: &Judge<'_>, palette: &Palette, memo: &Memo, found: &Found) -> Value {
    let names = |selection: &[usize]| -> Value {
        let of = |u: usize| palette.choices[palette.choice(selection, u)].name;
        (0..palette.units.len())
            .map(|u| (palette.units[u].name.clone(), json!(of(u))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let point = |p: &Point| {
        json!({
            "bytes": p.costs[2], "choices": names(&p.selection), "damage": p.costs[0], "drop": drop_value(&p.drop),
            "in_float": palette.in_float(&p.selection), "seconds": p.costs[1],
        })
    };
    let costs = memo.state.timed.as_ref().map(|t| &t.costs);
    let units = palette.units.iter().map(|u| {
        let offers = u.offers.iter().map(|o| {
            let choice = palette.choices[o.choice].name;
            json!({
                "bytes": o.bytes, "choice": choice, "damage": memo.state.damages.score(&u.name, choice),
                "seconds": costs.map(|c| c.of(&u.name, choice)),
            })
        });
        json!({"modules": u.modules, "offers": offers.collect::<Vec<_>>()})
    });
    let throughout = found.throughout.iter().zip(&palette.choices).map(|(c, choice)| {
        json!({
            "bytes": c[2], "choice": choice.name, "damage_of_modules": c[0],
            "damage": memo.state.damages.whole(choice.name), "seconds": c[1],
        })
    });
    let chosen = found.chosen.as_ref().map(|c| {
        json!({
            "file_bytes": c.file_bytes, "held_out": drop_value(&c.held_out), "point": point(&c.point),
            "proven": c.proven, "recipe": c.recipe, "repairs": c.repairs,
            "seconds": {"float": c.latencies[0], palette.choices[1].name: c.latencies[1], "plan": c.latencies[2]},
        })
    });
    json!({
        "chosen": chosen,
        "curve": found.curve.iter().map(point).collect::<Vec<_>>(),
        "data": job.args.data,
        "figure": judge.figure,
        "isa": job.world.cx.isa.name(),
        "model": job.args.model,
        "rows": {"held_out": judge.rows(Part::HeldOut), "left_out": judge.repeated, "measuring": judge.rows(Part::Measure),
                 "sensitivity": memo.state.damages.examples},
        "sensitivity": {"halves_rank_correlation": halves(palette, memo), "how": job.args.sensitivity.name()},
        "shape": job.shape,
        "threads": job.world.cx.threads.count(),
        "throughout": throughout.collect::<Vec<_>>(),
        "units": units.collect::<Vec<_>>(),
    })
}
