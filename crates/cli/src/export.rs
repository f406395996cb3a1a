//! `qberta export`: back out again, as float32.

use crate::screen::{bytes, count, facts};
use crate::{Outcome, World};
use clap::Args;
use qberta_model::{Error, Result};
use qberta_toolkit::export::{Target, export};
use serde_json::json;
use std::path::PathBuf;

/// Write an artefact or checkpoint as plain float32, for transformers or torch
///
/// Int8 weights are multiplied out. What was written is read back and compared before it appears.
#[derive(Args)]
#[command(after_help = "\
Examples:
  qberta export ./int8 -o ./float --to huggingface    # from_pretrained(\"./float\")
  qberta export ./int8 -o float.pt --to torch         # torch.load(\"float.pt\", weights_only=True)")]
pub struct ExportArgs {
    /// Directory of the artefact or checkpoint
    model: PathBuf,
    /// Directory (huggingface) or file (torch) to create
    #[arg(short, long)]
    output: PathBuf,
    /// huggingface or torch
    #[arg(long)]
    to: String,
}

pub fn run(args: &ExportArgs, world: &World) -> Result<Outcome> {
    let target = Target::ALL.iter().find(|(_, n)| *n == args.to).map(|(t, _)| *t).ok_or_else(|| {
        let known: Vec<_> = Target::ALL.iter().map(|(_, n)| *n).collect();
        Error::input("target is not known").at("--to").expected(known.join(" or ")).found(&args.to)
    })?;
    let done = export(&args.model, &args.output, target, &world.cx)?;
    if world.screen.json {
        world.screen.value(&json!({
            "output": args.output,
            "to": args.to,
            "tensors": done.tensors,
            "dequantized": done.dequantized,
            "bytes": done.bytes,
        }));
    } else {
        world.screen.line(format!("{} -> {}", args.model.display(), args.output.display()));
        world.screen.line(facts([
            ("tensors", format!("{} in float32", count(done.tensors))),
            ("multiplied out", format!("{} int8 weights", count(done.dequantized))),
            ("size", bytes(done.bytes)),
            ("proof", "read back, every tensor equal".to_owned()),
        ]));
    }
    Ok(Outcome::Done)
}
