//! `qberta doctor`: what a PyTorch file is, what is wrong with it, and what of it can be saved.

use crate::screen::{bytes, count, error_value, facts, table};
use crate::{Outcome, World};
use clap::Args;
use qberta_model::{Error, Result};
use qberta_toolkit::Progress;
use qberta_toolkit::doctor::findings::Finding;
use qberta_toolkit::doctor::{Diagnosis, Rescued, Row, diagnose, rescue};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Say what a quantized PyTorch file is, what is wrong with it, and rescue what is in it
///
/// Reads .pt, .pth, .bin (zip and legacy), TorchScript, safetensors, ONNX graphs and model directories.
/// Nothing in the file is executed. Exit status 0 if the file is sound, 1 if something is wrong with
/// it, 2 if it cannot be read or not be rescued; --json then holds `error` beside what was found.
#[derive(Args)]
#[command(after_help = "\
Examples:
  qberta doctor quantized_model.pt
  qberta doctor quantized_model.pt --base ./deberta-v3-base-mnli --json
  qberta doctor quantized_model.pt --base ./deberta-v3-base-mnli --rescue ./int8

--base is the float checkpoint that the file was made from: with it, heads and layers that the file lacks
are found. --rescue keeps int8 weights bit for bit, floats as they are, and takes what is missing or broken
from the base; the result is proven like any artefact.")]
pub struct DoctorArgs {
    /// The file or directory
    path: PathBuf,
    /// Directory of the float checkpoint it was made from
    #[arg(long, value_name = "CHECKPOINT")]
    base: Option<PathBuf>,
    /// Write an artefact of what is sound in the file
    #[arg(long, value_name = "OUT", requires = "base")]
    rescue: Option<PathBuf>,
}

pub fn run(args: &DoctorArgs, world: &World) -> Result<Outcome> {
    let diagnosis = diagnose(&args.path, args.base.as_deref(), &world.cx)?;
    // Whatever becomes of the rescue, the diagnosis is said first.
    if !world.screen.json {
        print(args, &diagnosis, world);
    }
    let rescued = match (&args.rescue, &args.base) {
        (Some(out), Some(base)) => Some(
            rescue(&args.path, base, out, &world.cx, &world.screen as &dyn Progress)
                .map_err(|e: Error| e.at("--rescue")),
        ),
        _ => None,
    };
    let rescued = match rescued.transpose() {
        Ok(rescued) => rescued,
        Err(error) if world.screen.json => {
            // One value on standard output: what was found, and why there is no more.
            let mut answer = error_value(&error);
            answer.insert("diagnosis".to_owned(), json!(diagnosis));
            answer.insert("rescued".to_owned(), Value::Null);
            world.screen.value(&answer);
            world.screen.complain(&error);
            return Ok(Outcome::Stopped);
        }
        Err(error) => return Err(error),
    };
    if world.screen.json {
        world.screen.value(&json!({"diagnosis": diagnosis, "rescued": rescued}));
    } else if let (Some(rescued), Some(out)) = (&rescued, &args.rescue) {
        print_rescued(rescued, &out.display().to_string(), world);
    }
    Ok(if diagnosis.sound { Outcome::Done } else { Outcome::CheckFailed })
}

fn print(args: &DoctorArgs, diagnosis: &Diagnosis, world: &World) {
    let screen = &world.screen;
    let names: Vec<&str> = diagnosis.findings.iter().map(|f| f.name).collect();
    let float = diagnosis.notes.iter().any(|n| n.name == "nothing-quantized");
    let verdict = match (names.len(), float) {
        (0, true) => "sound, and nothing in it is quantized".to_owned(),
        (0, false) => "sound".to_owned(),
        _ => names.join(", "),
    };
    screen.line(format!("{}: {verdict}", args.path.display()));
    screen.line(facts([
        ("form", format!("{}, {}", diagnosis.form, bytes(diagnosis.bytes))),
        ("made by", diagnosis.recipe.clone()),
    ]));
    if !diagnosis.unread.is_empty() {
        let (read, unread) = (diagnosis.files.join(", "), diagnosis.unread.join(", "));
        screen.line(format!("\nRead: {read}. Also there and not read: {unread}"));
    }
    for (title, findings) in [("problem", &diagnosis.findings), ("note", &diagnosis.notes)] {
        for finding in findings {
            print_finding(title, finding, world);
        }
    }
    let random = &diagnosis.left_random;
    if !random.is_empty() {
        let some: Vec<&str> = random.iter().take(3).map(String::as_str).collect();
        screen.line(format!(
            "\nload_state_dict(strict=False) into the float model would leave {} tensors random: {}{}",
            count(random.len()),
            some.join(", "),
            if random.len() > some.len() { ", ..." } else { "" }
        ));
    }
    if args.base.is_none() && !["qberta artefact", "ONNX graph"].contains(&diagnosis.form.as_str()) {
        screen.line("\nWith --base CHECKPOINT the head and missing layers are checked too.");
    }
    screen.line("");
    let heads = ["type", "scheme", ">tensors", ">values", ">size", ">scales", ">zero points"];
    // A file without codes has no scales to show.
    let shown = if diagnosis.tensors.iter().any(|t| t.scales.is_some()) { 7 } else { 5 };
    let rows = summary(&diagnosis.tensors).into_iter().map(|mut row| {
        row.truncate(shown);
        row
    });
    screen.line(table(&heads[..shown], rows.collect::<Vec<_>>()).to_string());
}

/// Most lines of evidence that a note shows; `--json` has more.
const NOTE_LINES: usize = 4;

fn print_finding(title: &str, finding: &Finding, world: &World) {
    let screen = &world.screen;
    screen.line(format!("\n{title}: {}", finding.name));
    // A problem shows what there is; of a note a few lines tell enough, and the last one may sum it up.
    let (lines, most) = (&finding.evidence, if title == "note" { NOTE_LINES } else { usize::MAX });
    let skipped = lines.len().saturating_sub(most);
    let first = if skipped > 0 { most - 1 } else { lines.len() };
    for line in lines.iter().take(first).chain(lines.iter().skip(first + skipped)) {
        screen.line(format!("  {line}"));
    }
    if finding.count > lines.len() || skipped > 0 {
        screen.line(format!("  ... {} in all", count(finding.count)));
    }
    screen.line(format!("  cause: {}", finding.cause));
    screen.line(format!("  cure:  {}", finding.cure));
}

/// One row for each type and scheme, with the ranges of scales and zero points.
fn summary(rows: &[Row]) -> Vec<Vec<String>> {
    let mut kinds: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        kinds.entry((&row.dtype, row.scheme.as_deref().unwrap_or(""))).or_default().push(row);
    }
    let line = |((dtype, scheme), rows): ((&str, &str), Vec<&Row>)| {
        let values = rows.iter().map(|r| r.shape.iter().product::<usize>()).sum();
        vec![
            dtype.to_owned(),
            scheme.to_owned(),
            count(rows.len()),
            count(values),
            bytes(rows.iter().map(|r| r.bytes).sum()),
            span(rows.iter().filter_map(|r| r.scales), |v| format!("{v:.1e}")),
            span(rows.iter().filter_map(|r| r.zero_points), |v| format!("{v}")),
        ]
    };
    kinds.into_iter().map(line).collect()
}

/// The range of several ranges; NaN is what a reader must see, so it wins.
fn span(ranges: impl Iterator<Item = [f64; 2]>, show: fn(f64) -> String) -> String {
    let joined = ranges.reduce(|a, b| {
        if a[0].is_nan() || b[0].is_nan() { [f64::NAN; 2] } else { [a[0].min(b[0]), a[1].max(b[1])] }
    });
    match joined {
        None => String::new(),
        Some([low, high]) if low == high || low.is_nan() => show(low),
        Some([low, high]) => format!("{} to {}", show(low), show(high)),
    }
}

fn print_rescued(rescued: &Rescued, out: &str, world: &World) {
    let screen = &world.screen;
    screen.line(format!("\nrescued -> {out}"));
    screen.line(facts([
        ("int8, bit for bit", format!("{} modules", count(rescued.int8.len()))),
        ("int8, as float", format!("{} modules", count(rescued.dequantized.len()))),
        ("float, as they are", format!("{} tensors", count(rescued.float))),
        ("from the base", format!("{} tensors", count(rescued.from_base.len()))),
        ("left out", format!("{} tensors", count(rescued.ignored.len()))),
        (
            "away from the base",
            format!(
                "at most {:.3e}, {:.3e} on average, on outputs up to {:.3e}",
                rescued.max_difference, rescued.mean_difference, rescued.max_output
            ),
        ),
        ("proof", format!("reopened; {} probes gave the same bits, alone and in one batch", rescued.probes)),
        ("size", bytes(rescued.artefact_bytes)),
    ]));
    for (title, list) in [("as float", &rescued.dequantized), ("from the base", &rescued.from_base)] {
        for (name, reason) in list {
            screen.line(format!("  {title}: {name} ({reason})"));
        }
    }
}
