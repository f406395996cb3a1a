//! `cargo xtask fuzz`: libFuzzer on stable Rust. The coverage flags are ordinary code generation options;
//! what makes libFuzzer blind is leaving one out, so a run without coverage feedback fails.

use crate::run::{self, Program};
use crate::{Outcome, root, target};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Seconds per target when nothing is said.
pub const DEFAULT_SECONDS: u64 = 15;

const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions -Ccodegen-units=1";

/// Name and longest input in bytes.
const TARGETS: [(&str, usize); 9] = [
    ("artefact", 65), // a base and sixteen edits
    ("config", 16 << 10),
    ("manifest", 16 << 10),
    ("onnx", 4 << 10),
    ("row", 4 << 10),
    ("safetensors", 4 << 10),
    ("spm", 16 << 10),
    ("tokenizer_json", 64 << 10),
    ("torch_bin", 64 << 10),
];

/// Parses `[--seconds N] [TARGET..]`.
pub fn command(args: &[String]) -> Outcome {
    let (mut seconds, mut chosen) = (DEFAULT_SECONDS, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            seconds = args.next().and_then(|n| n.parse().ok()).ok_or("--seconds takes a number")?;
        } else if TARGETS.iter().any(|(name, _)| name == arg) {
            chosen.push(arg.clone());
        } else {
            let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            return Err(format!("no fuzz target {arg}: expected {}", known.join(", ")));
        }
    }
    fuzz(seconds, &chosen)
}

/// Builds, seeds and runs `chosen` targets (all if empty), as many at a time as there are cores.
pub fn fuzz(seconds: u64, chosen: &[String]) -> Outcome {
    let bin = build()?;
    let work = target().join("fuzz-work");
    let seeds = work.join("seeds");
    if !Command::new(bin.join("seeds")).arg(&seeds).status().map_err(|e| e.to_string())?.success() {
        return Err("the seeds could not be made".into());
    }
    let wanted = TARGETS.iter().filter(|(name, _)| chosen.is_empty() || chosen.iter().any(|c| c == name));
    let queue = Mutex::new(wanted.rev().copied().collect::<Vec<_>>());
    let results = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..cores.min(4) {
            scope.spawn(|| {
                loop {
                    let Some((name, longest)) = queue.lock().unwrap_or_else(|e| e.into_inner()).pop() else {
                        break;
                    };
                    let result = one(&bin, &work, name, longest, seconds);
                    results.lock().unwrap_or_else(|e| e.into_inner()).push((name, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    results.sort_by_key(|(name, _)| *name);
    println!("{:<16} {:>12} {:>10} {:>10}", "target", "executions", "cov before", "cov after");
    let mut all = true;
    for (name, result) in results {
        match result {
            Ok(r) => println!("{name:<16} {:>12} {:>10} {:>10}", r.executions, r.before, r.after),
            Err(why) => {
                all = false;
                println!("{name:<16} FAIL: {why}");
            }
        }
    }
    Ok(all)
}

/// The directory of the built targets.
fn build() -> Result<PathBuf, String> {
    let host =
        Command::new("rustc").args(["--print", "host-tuple"]).output().map_err(|e| format!("rustc: {e}"))?;
    let host = String::from_utf8_lossy(&host.stdout).trim().to_owned();
    let dir = target().join("fuzz");
    // Naming the target keeps the flags away from build scripts and procedural macros.
    let build = Program::new("cargo build --quiet --release --manifest-path fuzz/Cargo.toml --target")
        .arg(&host)
        .env("CARGO_TARGET_DIR", dir.display().to_string())
        .env("RUSTFLAGS", FLAGS);
    if !run::command(&build)?.success {
        return Err("the fuzz targets do not build".into());
    }
    Ok(dir.join(host).join("release"))
}

struct Ran {
    executions: u64,
    before: u64,
    after: u64,
}

/// Runs one target. New inputs stay in `fuzz-work/corpus`, so the next run begins where this one ended.
fn one(bin: &Path, work: &Path, name: &str, longest: usize, seconds: u64) -> Result<Ran, String> {
    let corpus = work.join("corpus").join(name);
    let crashes = work.join("crashes").join(name);
    for dir in [&corpus, &crashes] {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    let mut command = Command::new(bin.join(name));
    command.arg(&corpus).arg(work.join("seeds").join(name));
    // Inputs that once failed, kept in the repository.
    let kept = root().join("fuzz/regressions").join(name);
    if kept.is_dir() {
        command.arg(kept);
    }
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={longest}"),
        format!("-artifact_prefix={}/", crashes.display()),
    ]);
    command.args(["-rss_limit_mb=2048", "-malloc_limit_mb=1024", "-timeout=10", "-print_final_stats=1"]);
    let output = command.output().map_err(|e| e.to_string())?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let lines: Vec<&str> = log.lines().filter(|l| !l.starts_with('#')).collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n    ");
        return Err(format!("{}\n    {tail}\n    the input is under {}", output.status, crashes.display()));
    }
    let coverage: Vec<u64> = log.lines().filter_map(|l| number_after(l, "cov: ")).collect();
    let executions =
        log.lines().find_map(|l| number_after(l, "stat::number_of_executed_units: ")).unwrap_or(0);
    match (coverage.first(), coverage.last()) {
        (Some(&before), Some(&after)) if before > 0 => Ok(Ran { executions, before, after }),
        _ => Err("no coverage feedback: the build flags did not reach the code".into()),
    }
}

fn number_after(line: &str, what: &str) -> Option<u64> {
    let rest = line.split_once(what)?.1.trim_start();
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
