//! Timing requests of another program, one JSON object a line: how `bench/peers` runs qberta in turn with others.
//!
//! Out, once: `{"ready": true, "load_s": .., "rss_mb": .., "peak_mb": .., "isa": .., "threads": .., "version": ..}`.
//! In: `{"sequences": [[ids], ..], "warm": 1, "repeats": 3}`.
//! Out: `{"ms": [..], "logits": [[..], ..], "rss_mb": .., "peak_mb": ..}`.

use super::machine::Memory;
use qberta_model::{Error, Result, Sequence};
use qberta_runtime::Session;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::time::Instant;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    sequences: Vec<Vec<u32>>,
    #[serde(default)]
    warm: u16,
    repeats: u16,
}

/// Answers until standard input ends.
///
/// Errors: a line that is no request, sequences the model refuses, a reader that went away.
pub fn serve(session: &Session, load: Option<&(f64, Memory)>) -> Result<()> {
    let megabytes = |b: u64| b as f64 / 1e6;
    say(&json!({
        "ready": true,
        "load_s": load.map(|(s, _)| s),
        "rss_mb": load.map(|(_, m)| megabytes(m.resident)),
        "peak_mb": load.map(|(_, m)| megabytes(m.peak)),
        "isa": session.context().isa.name(),
        "threads": session.context().threads.count(),
        "version": env!("CARGO_PKG_VERSION"),
    }))?;
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let at = |e: Error| e.at(format!("standard input line {}", number + 1));
        let line = line.map_err(|e| at(Error::io("cannot read", "a request", &e)))?;
        if line.trim().is_empty() {
            continue;
        }
        let request: Request = serde_json::from_str(&line).map_err(|e| {
            at(Error::input("request cannot be read")
                .expected("{\"sequences\": [[ids], ..], \"warm\": 1, \"repeats\": 3}")
                .found(e))
        })?;
        say(&answer(session, request).map_err(at)?)?;
    }
    Ok(())
}

fn answer(session: &Session, request: Request) -> Result<Value> {
    let sequences: Vec<Sequence> = request.sequences.into_iter().map(Sequence::of).collect();
    for _ in 0..request.warm {
        session.run(&sequences)?;
    }
    let mut ms = Vec::with_capacity(usize::from(request.repeats));
    let mut logits = Vec::new();
    for _ in 0..request.repeats {
        let begin = Instant::now();
        let outputs = session.run(&sequences)?;
        ms.push(1e3 * begin.elapsed().as_secs_f64());
        logits = outputs.iter().map(|y| y.as_slice().to_vec()).collect();
    }
    let memory = Memory::now();
    Ok(json!({
        "ms": ms,
        "logits": logits,
        "rss_mb": memory.map(|m| m.resident as f64 / 1e6),
        "peak_mb": memory.map(|m| m.peak as f64 / 1e6),
    }))
}

fn say(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")
        .and_then(|()| out.flush())
        .map_err(|e| Error::io("cannot write", "standard output", &e))
}
