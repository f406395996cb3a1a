//! `qberta doctor`: what a PyTorch file is, what is wrong with it, and what of it can be saved.

use crate::screen::{bytes, count, facts, table};
use crate::{Outcome, World};
use clap::Args;
use qberta_model::{Error, Result};
use qberta_toolkit::Progress;
use qberta_toolkit::doctor::findings::Finding;
use qberta_toolkit::doctor::{Diagnosis, Rescued, Row, diagnose, rescue};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Say what a quantized PyTorch file is, what is wrong with it, and rescue what is in it
///
/// Reads .pt, .pth, .bin (zip and legacy), TorchScript, safetensors and model directories, and identifies
/// ONNX. Nothing in the file is executed. Exit status 0 if the file is sound, 1 if something is wrong with
/// it, 2 if it cannot be read.
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
    let rescued = match (&args.rescue, &args.base) {
        (Some(out), Some(base)) => Some(
            rescue(&args.path, base, out, &world.cx, &world.screen as &dyn Progress)
                .map_err(|e: Error| e.at("--rescue"))?,
        ),
        _ => None,
    };
    if world.screen.json {
        world.screen.value(&json!({"diagnosis": diagnosis, "rescued": rescued}));
    } else {
        print(args, &diagnosis, world);
        if let (Some(rescued), Some(out)) = (&rescued, &args.rescue) {
            print_rescued(rescued, &out.display().to_string(), world);
        }
    }
    Ok(if diagnosis.sound { Outcome::Done } else { Outcome::CheckFailed })
}

fn print(args: &DoctorArgs, diagnosis: &Diagnosis, world: &World) {
    let screen = &world.screen;
    let names: Vec<&str> = diagnosis.findings.iter().map(|f| f.name).collect();
    let verdict = match names.len() {
        0 => "sound".to_owned(),
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
    if args.base.is_none() && diagnosis.recipe != "qberta artefact" {
        screen.line("\nWith --base CHECKPOINT the head and missing layers are checked too.");
    }
    screen.line("");
    screen.line(
        table(&["type", "scheme", ">tensors", ">values", ">size"], summary(&diagnosis.tensors)).to_string(),
    );
}

fn print_finding(title: &str, finding: &Finding, world: &World) {
    let screen = &world.screen;
    screen.line(format!("\n{title}: {}", finding.name));
    for line in &finding.evidence {
        screen.line(format!("  {line}"));
    }
    if finding.count > finding.evidence.len() {
        screen.line(format!("  ... {} in all", count(finding.count)));
    }
    screen.line(format!("  cause: {}", finding.cause));
    screen.line(format!("  cure:  {}", finding.cure));
}

/// One row for each type and scheme.
fn summary(rows: &[Row]) -> Vec<Vec<String>> {
    let mut kinds: BTreeMap<(&str, &str), (usize, usize, u64)> = BTreeMap::new();
    for row in rows {
        let kind = kinds.entry((&row.dtype, row.scheme.as_deref().unwrap_or(""))).or_default();
        *kind = (kind.0 + 1, kind.1 + row.shape.iter().product::<usize>(), kind.2 + row.bytes);
    }
    let line = |((dtype, scheme), (n, values, size)): ((&str, &str), (usize, usize, u64))| {
        vec![dtype.to_owned(), scheme.to_owned(), count(n), count(values), bytes(size)]
    };
    kinds.into_iter().map(line).collect()
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
