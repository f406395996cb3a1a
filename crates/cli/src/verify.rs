//! `qberta verify`: an artefact proves itself again.

use crate::{Outcome, World};
use clap::Args;
use qberta_model::{Kind, Result};
use qberta_toolkit::verify;
use serde_json::json;
use std::path::PathBuf;

/// Reopen an artefact: digests, structure, recorded outputs bit for bit
///
/// Exit status 0 if everything agrees, 1 with the first difference if not, 2 if there is no artefact.
#[derive(Args)]
#[command(after_help = "Example:\n  qberta verify ./int8 && echo safe to deploy")]
pub struct VerifyArgs {
    /// Directory of the artefact
    artefact: PathBuf,
}

pub fn run(args: &VerifyArgs, world: &World) -> Result<Outcome> {
    let verified = match verify(&args.artefact, &world.cx) {
        Ok(verified) => verified,
        Err(e) if matches!(e.kind(), Kind::Mismatch | Kind::Corrupt | Kind::Unsupported) => {
            world.screen.error(&e);
            return Ok(Outcome::CheckFailed);
        }
        Err(e) => return Err(e),
    };
    for name in &verified.unlisted {
        world.screen.warn(&format!("{name} is not part of the artefact; it was not checked"));
    }
    if world.screen.json {
        world.screen.value(&json!({
            "artefact": args.artefact,
            "files": verified.files,
            "isa": world.cx.isa.name(),
            "probes": verified.probes,
            "tensors": verified.tensors,
            "unlisted": verified.unlisted,
            "verified": true,
        }));
    } else {
        world.screen.line(format!(
            "{}: verified. {} files and {} tensors agree with their digests; {} probes gave the recorded bits, \
             alone and in one batch ({}).",
            args.artefact.display(),
            verified.files,
            verified.tensors,
            verified.probes,
            world.cx.isa.name(),
        ));
    }
    Ok(Outcome::Done)
}
