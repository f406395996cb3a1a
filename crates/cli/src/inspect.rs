//! `qberta inspect`: what a checkpoint or artefact holds.

use crate::screen::{self, bytes, count, table};
use crate::{Outcome, World, task};
use clap::Args;
use qberta_model::{Architecture, Reading, Result, Task};
use qberta_store::assemble::{HEAD_GRIDS, INPUT_GRID};
use qberta_store::checkpoint::Checkpoint;
use qberta_store::int4::{PACKED, PARTS};
use qberta_store::manifest::{Decision, Weight};
use qberta_store::{Source, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Say what a checkpoint, artefact or weight file holds
///
/// Architecture, head, every tensor's type and shape, what is quantized, what is left out and why.
#[derive(Args)]
#[command(after_help = "\
Examples:
  qberta inspect ./deberta-v3-base
  qberta inspect ./int8 --json
  qberta inspect pytorch_model.bin --all")]
pub struct InspectArgs {
    /// Directory of a model, or a weight file
    path: PathBuf,
    /// List every tensor instead of one line for all layers
    #[arg(long)]
    all: bool,
    /// Head to use instead of the one config.json names
    #[arg(long)]
    task: Option<String>,
}

/// A tensor as listed.
struct Entry {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: u64,
    role: String,
}

pub fn run(args: &InspectArgs, world: &World) -> Result<Outcome> {
    if args.path.is_file() {
        return file(args, world);
    }
    let source = Source::open(&args.path, task(&args.task)?)?;
    let account = source.load(&world.cx)?.account;
    let plan = source.manifest.as_ref().map(|m| &m.plan);
    let role = |name: &str| -> String {
        for (ends, role) in [(INPUT_GRID, "grid of the input"), (HEAD_GRIDS, "grids of the heads")] {
            let module = ends.iter().find_map(|end| name.strip_suffix(end)?.strip_suffix('.'));
            if module.is_some_and(|module| plan.is_some_and(|p| p.contains_key(module))) {
                return role.into();
            }
        }
        let weight = PARTS.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let module = weight.trim_end_matches(".weight");
        match (account.ignored.get(name), plan.and_then(|p| p.get(module)).map(|d| d.weight)) {
            (Some(reason), _) => format!("left out: {reason}"),
            (None, Some(Weight::Bf16)) => "bf16".into(),
            (None, Some(Weight::Int8Channel)) if name.ends_with("_scale") => "scale per channel".into(),
            (None, Some(Weight::Int8Channel)) => "int8 per channel".into(),
            (None, Some(Weight::Int4(group))) if name.ends_with(PACKED) => {
                format!("4 bits in groups of {}", group.inputs())
            }
            (None, Some(Weight::Int4(_))) if name.ends_with("_scale") => "scale per group".into(),
            (None, Some(Weight::Int4(_))) if weight != name => "shape".into(),
            _ => "float".into(),
        }
    };
    let entries: Vec<Entry> = source.tensors.iter().map(|(n, t)| entry(n, t, role(n))).collect();
    let arch = &source.arch;
    if world.screen.json {
        world.screen.value(&json!({
            "path": args.path,
            "kind": if source.is_artefact() { "artefact" } else { "checkpoint" },
            "architecture": facts(arch).into_iter().map(|(k, v)| (k.to_owned(), Value::from(v))).collect::<serde_json::Map<_, _>>(),
            "labels": arch.labels,
            "plan": plan,
            "tensors": entries.iter().map(|e| json!({
                "name": e.name, "dtype": e.dtype, "shape": e.shape, "bytes": e.bytes, "role": e.role,
            })).collect::<Vec<_>>(),
        }));
        return Ok(Outcome::Done);
    }
    let kind = match &source.manifest {
        Some(m) => format!("artefact, recipe {}, written by {}", m.recipe.name, m.tool),
        None => "float checkpoint, nothing is quantized".to_owned(),
    };
    world.screen.line(format!("{}: {kind}", args.path.display()));
    let mut lines = facts(arch);
    lines.extend(plan.map(|plan| ("attention", attention(plan.values(), arch.layers))));
    world.screen.line(screen::facts(lines));
    print_entries(args, &entries, world);
    Ok(Outcome::Done)
}

/// A weight file on its own: no configuration, so no roles.
fn file(args: &InspectArgs, world: &World) -> Result<Outcome> {
    let checkpoint = Checkpoint::open(&args.path)?;
    let entries: Vec<Entry> = checkpoint.tensors.iter().map(|(n, t)| entry(n, t, String::new())).collect();
    if world.screen.json {
        world.screen.value(&json!({
            "path": args.path,
            "kind": "weight file",
            "skipped": checkpoint.skipped,
            "tensors": entries.iter().map(|e| json!({
                "name": e.name, "dtype": e.dtype, "shape": e.shape, "bytes": e.bytes,
            })).collect::<Vec<_>>(),
        }));
        return Ok(Outcome::Done);
    }
    world.screen.line(format!("{}: weight file", args.path.display()));
    for name in &checkpoint.skipped {
        world.screen.line(format!("not a tensor, skipped: {name}"));
    }
    print_entries(args, &entries, world);
    Ok(Outcome::Done)
}

fn entry(name: &str, tensor: &Tensor, role: String) -> Entry {
    Entry {
        name: name.to_owned(),
        dtype: tensor.dtype().name(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.bytes().len() as u64,
        role,
    }
}

/// How the products of attention are computed, in words.
fn attention<'a>(decisions: impl Iterator<Item = &'a Decision>, layers: usize) -> String {
    let decided: Vec<&Decision> = decisions.filter(|d| d.of_attention()).collect();
    let known = [
        (Decision::INT8_SCORES, "scores int8"),
        (Decision::STATIC_SCORES, "scores int8 on stored grids"),
        (Decision::INT8_CONTEXT, "context int8"),
    ];
    let named = known.map(|(decision, name)| (decided.iter().filter(|d| ***d == decision).count(), name));
    let named =
        named.iter().filter(|(n, _)| *n > 0).map(|(n, name)| format!("{name} in {n} of {layers} layers"));
    let named: Vec<String> = named.collect();
    if named.is_empty() { "scores and context in float".to_owned() } else { named.join(", ") }
}

/// The architecture in words.
fn facts(arch: &Architecture) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("family", arch.family.name().to_owned()),
        ("task", arch.head.task.name().to_owned()),
        (
            "encoder",
            format!(
                "{} layers, hidden {}, {} heads of {}, feed-forward {}",
                arch.layers, arch.hidden, arch.heads, arch.head_size, arch.intermediate
            ),
        ),
        ("vocabulary", count(arch.vocabulary)),
    ];
    let positions = match (&arch.relative, arch.positions) {
        (Some(r), absolute) => {
            let terms = [(r.content_to_position, "c2p"), (r.position_to_content, "p2c")];
            let terms: Vec<&str> = terms.iter().filter(|(on, _)| *on).map(|(_, t)| *t).collect();
            let buckets = r.buckets.map_or("no buckets".to_owned(), |b| format!("{b} log buckets"));
            let also = if absolute.is_some() { ", and absolute" } else { "" };
            format!("relative ({}), distances to {}, {buckets}{also}", terms.join(" and "), r.max_distance)
        }
        (None, Some(p)) => format!("absolute, {} rows", p.rows),
        (None, None) => "none".to_owned(),
    };
    facts.push(("positions", positions));
    if let Some(c) = arch.convolution {
        facts.push(("convolution", format!("{} taps, {} groups, after layer 0", c.kernel, c.groups)));
    }
    if !arch.labels.is_empty() {
        let mut names = arch.labels.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
        if arch.labels.len() > 8 {
            names.push_str(", ...");
        }
        facts.push(("labels", format!("{}: {names}", arch.labels.len())));
    }
    if arch.head.task == Task::SequenceClassification {
        let reading = match arch.reading {
            Reading::Exclusive => "softmax over labels",
            Reading::Independent => "sigmoid of each label",
            Reading::Regression => "the logit itself",
        };
        facts.push(("score", reading.to_owned()));
    }
    facts
}

fn print_entries(args: &InspectArgs, entries: &[Entry], world: &World) {
    let screen = &world.screen;
    let mut types: BTreeMap<&str, (usize, usize, u64)> = BTreeMap::new();
    for e in entries {
        let t = types.entry(e.dtype).or_default();
        *t = (t.0 + 1, t.1 + e.shape.iter().product::<usize>(), t.2 + e.bytes);
    }
    let rows = types.iter().map(|(d, (n, p, b))| vec![d.to_string(), count(*n), count(*p), bytes(*b)]);
    screen.line(table(&["type", ">tensors", ">values", ">size"], rows).to_string());
    let shown: Vec<(String, &Entry)> =
        if args.all { entries.iter().map(|e| (e.name.clone(), e)).collect() } else { folded(entries) };
    let rows = shown.into_iter().map(|(name, e)| {
        vec![name, e.dtype.to_owned(), format!("{:?}", e.shape), bytes(e.bytes), e.role.clone()]
    });
    screen.line(table(&["tensor", "type", "shape", ">size", "role"], rows).to_string());
}

/// One line for tensors that differ in their layer number only: `layer.{0..11}.output.dense.weight`.
fn folded(entries: &[Entry]) -> Vec<(String, &Entry)> {
    let mut groups: Vec<(String, Vec<usize>, &Entry)> = Vec::new();
    for e in entries {
        let (pattern, number) = layer_of(&e.name);
        let same = |g: &&mut (String, Vec<usize>, &Entry)| {
            g.0 == pattern && (g.2.dtype, &g.2.shape, &g.2.role) == (e.dtype, &e.shape, &e.role)
        };
        match (number, groups.iter_mut().find(same)) {
            (Some(n), Some(group)) => group.1.push(n),
            (n, _) => groups.push((pattern, n.into_iter().collect(), e)),
        }
    }
    groups
        .into_iter()
        .map(|(pattern, mut numbers, e)| {
            numbers.sort_unstable();
            (pattern.replace("{}", &ranges(&numbers)), e)
        })
        .collect()
}

/// A name with its layer number replaced by `{}`, and the number.
fn layer_of(name: &str) -> (String, Option<usize>) {
    let parts: Vec<&str> = name.split('.').collect();
    let at = parts.iter().position(|p| p.parse::<usize>().is_ok());
    match at {
        None => (name.to_owned(), None),
        Some(i) => {
            let mut folded = parts.clone();
            folded[i] = "{}";
            (folded.join("."), parts[i].parse().ok())
        }
    }
}

/// `{0..11}`, `{0,3..5}` or a single number.
fn ranges(numbers: &[usize]) -> String {
    let runs: Vec<String> = numbers
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}..{last}"),
            [] => String::new(),
        })
        .collect();
    match &runs[..] {
        [one] if !one.contains("..") => one.clone(),
        runs => format!("{{{}}}", runs.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_fold_into_ranges() {
        assert_eq!(ranges(&[0, 1, 2]), "{0..2}");
        assert_eq!(ranges(&[0, 3, 4, 5]), "{0,3..5}");
        assert_eq!(ranges(&[7]), "7");
        assert_eq!(layer_of("a.layer.11.b"), ("a.layer.{}.b".into(), Some(11)));
        assert_eq!(layer_of("a.b"), ("a.b".into(), None));
    }
}
