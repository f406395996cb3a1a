//! What this machine is and what it can do: processor, memory in use, limits of arithmetic and of reading.
//!
//! The limits are measured, not looked up. Arithmetic: the kernels' own GEMMs on operands that stay in a core's
//! cache, every thread on its own, so neither memory nor splitting work costs anything. That is what qberta's
//! kernels can sustain, not a register peak of the hardware. Reading: sums over a buffer larger than the last
//! cache.

use qberta_kernels::{
    Context, Isa, Matrix, PackedF32, PackedI8, RowGrid, gemm_f32, gemm_i8, quantize_rows,
    quantize_weight_rows,
};
use qberta_model::{Error, Result};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// How the arithmetic limits were measured, for people and records.
pub const BY: &str =
    "gemm_i8 and gemm_f32 of qberta on cache-resident 128x768x768 and 128x3072x768, each thread on its own";

/// Flags of x86 processors that decide how fast int8 runs, as /proc/cpuinfo spells them.
const FLAGS: [&str; 9] =
    ["avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"];

/// Who measures.
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    /// Those of [`FLAGS`] that it has. Empty where the operating system does not list them.
    pub flags: Vec<&'static str>,
    pub isa: Isa,
    pub threads: usize,
}

impl Machine {
    pub fn here(cx: &Context) -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|l| l.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let listed = field("flags").unwrap_or_default();
        Machine {
            cpu: field("model name").unwrap_or_else(|| format!("an {} processor", std::env::consts::ARCH)),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            flags: FLAGS.into_iter().filter(|f| listed.split(' ').any(|l| l == *f)).collect(),
            isa: cx.isa,
            threads: cx.threads.count(),
        }
    }
}

/// Memory of this process in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// The part of it that is pages of files, which the operating system can drop.
    pub file: u64,
    /// Most that was ever resident.
    pub peak: u64,
}

impl Memory {
    /// `None` where the operating system has no /proc.
    pub fn now() -> Option<Memory> {
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        let kilobytes = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
            Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
        };
        Some(Memory { resident: kilobytes("VmRSS")?, file: kilobytes("RssFile")?, peak: kilobytes("VmHWM")? })
    }
}

/// One thread, and as many as the kernels have.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub one: f64,
    pub all: f64,
}

/// Limits of this machine per second: operations (a multiplication and an addition are two), bytes.
pub struct Limits {
    pub int8_ops: Rates,
    pub f32_ops: Rates,
    pub read_bytes: Rates,
    /// Size of the buffer that was read.
    pub buffer: usize,
}

impl Limits {
    /// Takes a few seconds.
    ///
    /// Errors: threads that cannot be started.
    pub fn measure(cx: &Context) -> Result<Limits> {
        let threads = cx.threads.count();
        let both = |rate: &dyn Fn(usize) -> Result<f64>| -> Result<Rates> {
            let one = rate(1)?;
            Ok(Rates { one, all: if threads == 1 { one } else { rate(threads)? } })
        };
        let (size, words) = buffer();
        Ok(Limits {
            int8_ops: both(&|n| arithmetic(cx.isa, n, int8))?,
            f32_ops: both(&|n| arithmetic(cx.isa, n, float))?,
            read_bytes: both(&|n| Ok(read(&words, n)))?,
            buffer: size,
        })
    }

    /// Seconds that `work` takes at least: its arithmetic, or reading its weights once.
    pub fn seconds(&self, work: &super::measure::Work) -> f64 {
        let arithmetic = work.int8_ops / self.int8_ops.all + work.f32_ops / self.f32_ops.all;
        arithmetic.max(work.weight_bytes / self.read_bytes.all)
    }
}

const ROUNDS: usize = 10;
const ROUND: Duration = Duration::from_millis(25);
const ROWS: usize = 128;
const SHAPES: [(usize, usize); 2] = [(768, 768), (3072, 768)];

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 504.0).collect()
}

/// Something to time.
type Call = Box<dyn Fn()>;

/// A call that does `2 * ROWS * inp * out` operations, on one thread.
fn int8(cx: &Context, inp: usize, out: usize) -> Call {
    let (codes, scale) = quantize_weight_rows(&numbers(inp * out), out, inp);
    let weight = PackedI8::pack(&codes, &scale, out, inp).expect("finite weights of a small shape");
    let x = quantize_rows(cx, &Matrix::from_vec(ROWS, inp, numbers(ROWS * inp)), RowGrid::Asymmetric);
    let cx = cx.clone();
    Box::new(move || drop(black_box(gemm_i8(&cx, &x, &weight, None))))
}

fn float(cx: &Context, inp: usize, out: usize) -> Call {
    let weight = PackedF32::pack(&numbers(inp * out), out, inp);
    let x = Matrix::from_vec(ROWS, inp, numbers(ROWS * inp));
    let cx = cx.clone();
    Box::new(move || drop(black_box(gemm_f32(&cx, &x, &weight, None))))
}

/// Operations a second of `threads` threads side by side: the best round of the best shape.
fn arithmetic(isa: Isa, threads: usize, call: fn(&Context, usize, usize) -> Call) -> Result<f64> {
    let cx = Context::new(isa, 1).map_err(|e| Error::input(e).at("--isa"))?;
    let mut best = 0.0f64;
    for (inp, out) in SHAPES {
        let ops = (2 * ROWS * inp * out) as f64;
        let rates = side_by_side(threads, |barrier| {
            let call = call(&cx, inp, out);
            call();
            let round = |_| {
                barrier.wait();
                let (begin, mut calls) = (Instant::now(), 0u32);
                while begin.elapsed() < ROUND {
                    call();
                    calls += 1;
                }
                f64::from(calls) * ops / begin.elapsed().as_secs_f64()
            };
            (0..ROUNDS).map(round).collect()
        });
        best = rates.into_iter().fold(best, f64::max);
    }
    Ok(best)
}

/// Runs `work` on `threads` threads; the sum over threads of what each says for every round.
fn side_by_side(threads: usize, work: impl Fn(&Barrier) -> Vec<f64> + Sync) -> Vec<f64> {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&barrier))).collect();
        running.into_iter().fold(vec![0.0; ROUNDS], |sums, thread| {
            let rates = thread.join().expect("a measuring thread does not panic");
            sums.iter().zip(rates).map(|(a, b)| a + b).collect()
        })
    })
}

/// Twice the last cache if its size is known, within what is reasonable to ask of a machine.
fn buffer() -> (usize, Vec<u64>) {
    let kilobytes = |path: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok()
    };
    let last = kilobytes("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or(64 << 10) << 10;
    let free = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
        line.split_whitespace().next()?.parse::<usize>().ok()
    });
    let most = free.map_or(256 << 20, |kilobytes| (kilobytes << 10) / 4).min(1 << 30);
    let size = (2 * last).max(64 << 20).min(most) & !63;
    (size, (0..size as u64 / 8).collect())
}

/// Bytes a second that `threads` threads read, each its own part of `words`: the best round.
fn read(words: &[u64], threads: usize) -> f64 {
    let part = words.len().div_ceil(threads).max(1);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let rates = side_by_side(threads, |barrier| {
        let mine = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mine = words.chunks(part).nth(mine).unwrap_or(&[]);
        let round = |_| {
            barrier.wait();
            let begin = Instant::now();
            black_box(sum(black_box(mine)));
            (8 * mine.len()) as f64 / begin.elapsed().as_secs_f64()
        };
        (0..ROUNDS).map(round).collect()
    });
    rates.into_iter().fold(0.0, f64::max)
}

/// Eight sums side by side, so that the adds keep up with memory.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    for line in words.chunks_exact(8) {
        for (s, w) in sums.iter_mut().zip(line) {
            *s = s.wrapping_add(*w);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_available_instruction_set_lacks_nothing() {
        for isa in Isa::ALL {
            let lacks = isa.needs().iter().any(|(_, has)| !has);
            assert!(!(isa.is_available() && lacks), "{isa}");
        }
    }

    #[test]
    fn reading_and_arithmetic_take_time() {
        let words: Vec<u64> = (0..1 << 16).collect();
        assert!(read(&words, 2).is_finite() && read(&words, 1) > 1e6);
        assert_eq!(sum(&[1; 16]), 16);
        assert!(arithmetic(Isa::best(), 1, int8).unwrap() > 1e6);
    }
}
