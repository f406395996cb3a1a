//! Measurements as tables for people and JSON for machines.

use super::machine::{BY, Machine, Rates};
use super::{Measured, Run};
use crate::screen::{Screen, bytes, count, facts, table};
use qberta_kernels::Isa;
use serde_json::{Map, Value, json};

impl Run {
    fn seconds(&self) -> f64 {
        self.timing.median() / 1e3
    }

    pub fn tokens_per_second(&self) -> f64 {
        self.shape.tokens() as f64 / self.seconds()
    }

    /// Operations of the linears a second, int8 and f32 together.
    pub fn ops_per_second(&self) -> f64 {
        (self.work.int8_ops + self.work.f32_ops) / self.seconds()
    }
}

impl Measured {
    /// The share of the median that the linears alone would take at the machine's limit.
    pub fn fraction(&self, run: &Run) -> f64 {
        self.limits.seconds(&run.work) / run.seconds()
    }
}

pub fn print(m: &Measured, screen: &Screen) {
    let rates = |r: Rates, scale: f64, unit: &str| {
        format!("{:.3} {unit} a thread, {:.3} with {}", r.one / scale, r.all / scale, m.machine.threads)
    };
    let load = m.load.map(|(seconds, memory)| {
        format!(
            "{seconds:.3} s from the page cache; {} resident after it, {} of that in files",
            bytes(memory.resident),
            bytes(memory.file)
        )
    });
    let peak = m.peak.map(|p| format!("; peak {}", bytes(p))).unwrap_or_default();
    let rows = [
        ("model", format!("{}, {} weights", m.name, m.weights)),
        (
            "load",
            load.map_or_else(|| "not measured (needs a model directory; see --save)".into(), |l| l + &peak),
        ),
        ("machine", machine(&m.machine)),
        ("limit, int8", rates(m.limits.int8_ops, 1e12, "TOP/s")),
        ("limit, f32", rates(m.limits.f32_ops, 1e12, "TFLOP/s")),
        (
            "limit, reading",
            rates(m.limits.read_bytes, 1e9, "GB/s")
                + &format!(", buffer of {}", bytes(m.limits.buffer as u64)),
        ),
    ];
    screen.line(facts(rows));
    let header = [
        "input",
        ">tokens",
        ">repeats",
        ">median ms",
        ">p10",
        ">p90",
        ">tokens/s",
        ">TOP/s of linears",
        ">of limit",
    ];
    let rows = m.runs.iter().map(|run| {
        vec![
            run.shape.to_string(),
            run.shape.tokens().to_string(),
            run.timing.repeats().to_string(),
            ms(run.timing.median()),
            ms(run.timing.quantile(0.1)),
            ms(run.timing.quantile(0.9)),
            count(run.tokens_per_second() as usize),
            format!("{:.3}", run.ops_per_second() / 1e12),
            format!("{:.1} %", 100.0 * m.fraction(run)),
        ]
    });
    screen.line(table(&header, rows).to_string());
    screen.line(format!(
        "Arithmetic limits: {BY}.\n\
         \"of limit\": time of the linears alone at those limits, or of reading their weights once, over the median."
    ));
    if m.runs.iter().any(|r| !r.timing.stages.is_empty()) {
        screen.line(stages(&m.runs).to_string());
    }
}

fn machine(machine: &Machine) -> String {
    let amx = match (machine.flags.is_empty(), machine.flags.iter().any(|f| f.starts_with("amx"))) {
        (true, _) => "",
        (_, true) => ", with AMX",
        (_, false) => ", no AMX",
    };
    format!(
        "{}, {} cores{amx}; running {} on {} threads",
        machine.cpu,
        machine.cores,
        machine.isa.name(),
        machine.threads
    )
}

/// Milliseconds with three digits that mean something.
fn ms(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn stages(runs: &[Run]) -> comfy_table::Table {
    let mut header = vec!["stage, median ms".to_owned()];
    header.extend(runs.iter().map(|r| format!(">{}", r.shape)));
    let names = runs.first().map(|r| &r.timing.stages[..]).unwrap_or_default();
    let rows = names.iter().enumerate().map(|(i, (name, _))| {
        let mut row = vec![(*name).to_owned()];
        row.extend(runs.iter().map(|run| {
            let (sum, value) =
                (run.timing.stages.iter().map(|(_, v)| v).sum::<f64>(), run.timing.stages[i].1);
            format!("{} ({:.0} %)", ms(value), 100.0 * value / sum)
        }));
        row
    });
    table(&header.iter().map(String::as_str).collect::<Vec<_>>(), rows)
}

pub fn json(m: &Measured) -> Value {
    let rates = |r: Rates| json!({"one_thread": r.one, "all_threads": r.all});
    let runs = m.runs.iter().map(|run| {
        let stages: Map<String, Value> =
            run.timing.stages.iter().map(|(name, ms)| ((*name).to_owned(), json!(ms))).collect();
        json!({
            "shape": run.shape.to_string(),
            "sequences": run.shape.batch,
            "tokens": run.shape.tokens(),
            "repeats": run.timing.repeats(),
            "median_ms": run.timing.median(),
            "p10_ms": run.timing.quantile(0.1),
            "p90_ms": run.timing.quantile(0.9),
            "tokens_per_second": run.tokens_per_second(),
            "linear_int8_ops": run.work.int8_ops,
            "linear_f32_ops": run.work.f32_ops,
            "linear_ops_per_second": run.ops_per_second(),
            "fraction_of_limit": m.fraction(run),
            "stages_ms": stages,
        })
    });
    json!({
        "model": m.name,
        "weights": m.weights,
        "tool": format!("qberta {}", env!("CARGO_PKG_VERSION")),
        "machine": {
            "cpu": m.machine.cpu, "cores": m.machine.cores, "flags": m.machine.flags,
            "isa": m.machine.isa.name(), "threads": m.machine.threads,
        },
        "limits": {
            "int8_ops_per_second": rates(m.limits.int8_ops),
            "f32_ops_per_second": rates(m.limits.f32_ops),
            "read_bytes_per_second": rates(m.limits.read_bytes),
            "read_buffer_bytes": m.limits.buffer,
            "arithmetic_by": BY,
        },
        "load": m.load.map(|(seconds, memory)| json!({
            "seconds": seconds, "resident_bytes": memory.resident, "resident_file_bytes": memory.file,
        })),
        "peak_resident_bytes": m.peak,
        "runs": runs.collect::<Vec<_>>(),
    })
}

/// Which instruction sets kernels can use here, and what the others lack.
pub fn isas(screen: &Screen) {
    let best = Isa::best();
    let entries = Isa::ALL.map(|isa| {
        let needs = isa.needs();
        let list = |wanted: bool| -> Vec<&str> {
            needs.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name).collect()
        };
        (isa, list(true), list(false))
    });
    if screen.json {
        let entries = entries.map(|(isa, has, missing)| {
            json!({
                "name": isa.name(), "available": isa.is_available(), "default": isa == best,
                "has": has, "missing": missing,
            })
        });
        return screen.value(&entries.to_vec());
    }
    let rows = entries.map(|(isa, _, missing)| {
        let state = match (isa == best, isa.is_available()) {
            (true, _) => "yes, the default",
            (false, true) => "yes",
            (false, false) => "no",
        };
        let missing = match (isa.is_available(), missing.is_empty()) {
            (true, _) => "-".to_owned(),
            (false, true) => format!("{} processors do not have it", std::env::consts::ARCH),
            (false, false) => missing.join(", "),
        };
        vec![isa.name().to_owned(), state.to_owned(), missing]
    });
    screen.line(table(&["instruction set", "available", "what is missing"], rows).to_string());
}
