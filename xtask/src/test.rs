//! `cargo xtask test`: every check, each once, in one table at the end.

use crate::run::{self, Program};
use crate::{fuzz, root, target, tidy};
use std::time::Instant;

/// How much of it to run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What CI runs.
    Full,
    /// Without what needs a network or minutes: models, deny, fuzz.
    Quick,
}

/// Golden cases whose artefacts a Python program checks.
const CHECKED: [&str; 4] = ["v3-sequence", "v1-sequence", "bert-sequence", "v3-mlm-legacy"];

enum State {
    Pass,
    Fail,
    Skipped(String),
}

struct Step {
    name: String,
    seconds: f64,
    state: State,
}

#[derive(Default)]
struct Run {
    steps: Vec<Step>,
    passed: usize,
    failed: usize,
}

impl Run {
    /// Runs one step; whatever becomes of it, the next one follows.
    fn step(&mut self, name: &str, body: impl FnOnce(&mut Run) -> Result<bool, String>) {
        println!("\n== {name}");
        let (begin, failed_before) = (Instant::now(), self.failed);
        let state = match body(self) {
            Ok(true) => State::Pass,
            Ok(false) => State::Fail,
            Err(why) => {
                println!("{why}");
                State::Fail
            }
        };
        // A step that fails without a failed test still counts as one failure.
        if matches!(state, State::Fail) && self.failed == failed_before {
            self.failed += 1;
        }
        self.steps.push(Step { name: name.to_owned(), seconds: begin.elapsed().as_secs_f64(), state });
    }

    fn skip(&mut self, name: &str, why: &str) {
        println!("\n== {name}: skipped, {why}");
        self.steps.push(Step { name: name.to_owned(), seconds: 0.0, state: State::Skipped(why.to_owned()) });
    }

    fn program(&mut self, program: &Program) -> Result<bool, String> {
        let done = run::command(program)?;
        self.passed += done.passed;
        self.failed += done.failed;
        Ok(done.success)
    }

    fn programs(&mut self, name: &str, program: Program) {
        self.step(name, |run| run.program(&program));
    }

    fn summary(&self) -> bool {
        println!("\n{:<28} {:>8}  result", "step", "seconds");
        for step in &self.steps {
            let state = match &step.state {
                State::Pass => "PASS".to_owned(),
                State::Fail => "FAIL".to_owned(),
                State::Skipped(why) => format!("skipped: {why}"),
            };
            println!("{:<28} {:>8.1}  {state}", step.name, step.seconds);
        }
        let total: f64 = self.steps.iter().map(|s| s.seconds).sum();
        println!("{:<28} {total:>8.1}\n", "total");
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
}

/// The fetch of the real models.
pub fn fetch_models() -> Program {
    Program::new("python3 tools/fetch_models.py")
}

/// Runs everything; `Ok(false)` if anything failed.
pub fn test(extent: Extent) -> crate::Outcome {
    let mut run = Run::default();
    run.programs("fmt", Program::new("cargo fmt --all --check"));
    run.step("tidy", |_| tidy::tidy());
    run.programs("clippy", Program::new("cargo clippy --quiet --workspace --all-targets -- -D warnings"));
    let doc = Program::new("cargo doc --quiet --workspace --no-deps --document-private-items");
    run.programs("doc", doc.env("RUSTDOCFLAGS", "-D warnings"));

    let tests = Program::new("cargo test --quiet --workspace --no-fail-fast");
    match extent {
        Extent::Full => {
            run.programs("models", fetch_models());
            run.programs("test", tests.env("QBERTA_REQUIRE_MODELS", "1"));
        }
        Extent::Quick => {
            run.skip("models", "--quick");
            // A place without models, so that their tests skip even where they were fetched before.
            run.programs(
                "test",
                tests.env("QBERTA_MODELS", target().join("no-models").display().to_string()),
            );
        }
    }
    let mut isas = Vec::new();
    run.step("instruction sets", |_| {
        isas = instruction_sets()?;
        Ok(true)
    });
    for (isa, available) in isas {
        let name = format!("test on {isa}");
        if available {
            // The whole workspace, as above: with one package alone cargo would choose other features and build anew.
            let tests = "cargo test --quiet --workspace --no-fail-fast --test golden --test artefact --test invariance";
            run.programs(&name, Program::new(tests).env("QBERTA_ISA", &isa));
        } else {
            run.skip(&name, "this machine lacks it");
        }
    }
    run.step("artefacts by numpy", |run| artefacts(run, extent));
    match extent {
        Extent::Full => {
            deny(&mut run);
            run.step("fuzz", |_| fuzz::fuzz(fuzz::DEFAULT_SECONDS, &[]));
        }
        Extent::Quick => {
            run.skip("deny", "--quick");
            run.skip("fuzz", "--quick");
        }
    }
    Ok(run.summary())
}

/// Licences, bans and sources always; advisories where their database can be reached, which is a git
/// repository and no package registry.
fn deny(run: &mut Run) {
    let installed = run::exists(&Program::new("cargo deny --version"));
    let ci = std::env::var("CI").is_ok_and(|v| v == "true" || v == "1");
    if !installed && !ci {
        return run.skip("deny", "cargo-deny is not installed: cargo install --locked cargo-deny");
    }
    run.programs("deny", Program::new("cargo deny --log-level error check bans licenses sources"));
    if !run::exists(&Program::new("cargo deny --log-level off fetch db")) {
        return run.skip("deny advisories", "the advisory database cannot be reached");
    }
    run.programs(
        "deny advisories",
        Program::new("cargo deny --log-level error check --disable-fetch advisories"),
    );
}

/// The command-line program that the tests before have built.
fn qberta() -> Program {
    let name = format!("qberta{}", std::env::consts::EXE_SUFFIX);
    Program::of(&target().join("debug").join(name).display().to_string())
}

/// Every name that `QBERTA_ISA` reads, and whether this machine has it, as the program itself says.
fn instruction_sets() -> Result<Vec<(String, bool)>, String> {
    let list = qberta().arg("bench").arg("--isa").arg("list").arg("--json");
    let output = list.command().output().map_err(|e| format!("cannot run {}: {e}", list.words[0]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let unexpected = || format!("bench --isa list: expected a JSON list of sets, found {text:?}");
    let list: Vec<serde_json::Value> = serde_json::from_str(&text).map_err(|_| unexpected())?;
    let set =
        |entry: &serde_json::Value| Some((entry["name"].as_str()?.to_owned(), entry["available"].as_bool()?));
    let sets: Vec<_> = list.iter().filter_map(set).inspect(|(name, has)| println!("{name}: {has}")).collect();
    if sets.is_empty() { Err(unexpected()) } else { Ok(sets) }
}

/// Quantizes a few models with the command line and has tools/check_artefact.py judge what was written.
fn artefacts(run: &mut Run, extent: Extent) -> crate::Outcome {
    let python = root().join("target/venv/bin/python");
    let python = if python.is_file() { python.display().to_string() } else { "python3".to_owned() };
    let numpy = Program::of(&python).arg("-c").arg("import numpy");
    if extent == Extent::Quick && !run::exists(&numpy) {
        println!("not checked: {python} has no numpy; `cargo xtask models` makes an environment that has");
        return Ok(true);
    }
    let out = target().join("checked-artefacts");
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let mut models: Vec<_> = CHECKED.iter().map(|case| root().join("testdata/golden").join(case)).collect();
    let gloss = root().join("crates/cli/assets/gloss");
    models.push(gloss.clone());
    let mut cases: Vec<_> = models.into_iter().map(|m| (m, "dynamic")).collect();
    cases.extend(["w4a8", "weight-only-4bit"].map(|recipe| (gloss.clone(), recipe)));
    let mut all = true;
    for (model, recipe) in cases {
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        let artefact = out.join(format!("{name}-{recipe}")).display().to_string();
        let quantize = qberta().arg("quantize").arg(model.display().to_string());
        all &= run.program(&quantize.arg("--recipe").arg(recipe).arg("--output").arg(&artefact))?;
        let check = Program::of(&python).arg("tools/check_artefact.py").arg(&artefact);
        all &= run.program(&check.arg(model.display().to_string()))?;
    }
    Ok(all)
}
