//! The walk over register tiles that every matrix kernel shares.
//!
//! A tile is R rows by P panels of 16 columns, held in registers over the whole depth. Which R and P are
//! used depends on the shape and on the number of registers, and cannot matter to the result: each output
//! element is a chain of its own.

use std::ops::Range;

use crate::lanes::{Kernel, LANES, Registers, Simd};
use crate::parallel::{Threads, Tile, steps};

/// A matrix product that can compute any one register tile of its output.
pub(crate) trait Product {
    /// Computes rows `row..row + R` by panels `panel..panel + P` (both counted from the start of `out`) and
    /// stores them; columns past `out.cols` are dropped. `#[inline(always)]`, like every lanes code.
    fn tile<S: Simd, const R: usize, const P: usize>(&self, s: S, row: usize, panel: usize, out: &mut Tile);
}

/// [`sweep`] as a kernel.
pub(crate) struct Sweep<'a, 'o, P> {
    pub product: P,
    pub out: &'a mut Tile<'o>,
}

impl<P: Product> Kernel for Sweep<'_, '_, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        sweep(s, &self.product, self.out);
    }
}

/// Computes all of `out`. Panels are the outer loop: their weights stay in the cache over all rows.
#[inline(always)]
pub(crate) fn sweep<S: Simd>(s: S, product: &impl Product, out: &mut Tile) {
    let rows = out.rows.len();
    let most = match S::REGISTERS {
        Registers::Few => 6,
        Registers::Many => 8,
    };
    // Blocks of equal height, give or take one row: 9 rows are 5 + 4, since a block of 1 row would read all
    // of the weights for itself.
    let blocks = rows.div_ceil(most);
    if blocks == 0 {
        return;
    }
    let (height, taller) = (rows / blocks, rows % blocks);
    let split = taller * (height + 1);
    band(s, product, height + 1, 0..split, out);
    band(s, product, height, split..rows, out);
}

/// Rows `rows`, a multiple of `height`, in tiles of that height.
#[inline(always)]
fn band<S: Simd>(s: S, product: &impl Product, height: usize, rows: Range<usize>, out: &mut Tile) {
    if rows.is_empty() {
        return;
    }
    // Accumulators and weights of a tile fill the registers; low tiles are wide to hide the latency of fma.
    match S::REGISTERS {
        Registers::Many => match height {
            1 => panels::<S, 1, 8>(s, product, rows, out),
            2 => panels::<S, 2, 8>(s, product, rows, out),
            3 => panels::<S, 3, 6>(s, product, rows, out),
            4 => panels::<S, 4, 6>(s, product, rows, out),
            5 => panels::<S, 5, 4>(s, product, rows, out),
            6 => panels::<S, 6, 4>(s, product, rows, out),
            7 => panels::<S, 7, 3>(s, product, rows, out),
            8 => panels::<S, 8, 3>(s, product, rows, out),
            _ => unreachable!("tiles of {height} rows"),
        },
        Registers::Few => match height {
            1 => panels::<S, 1, 4>(s, product, rows, out),
            2 => panels::<S, 2, 2>(s, product, rows, out),
            3 => panels::<S, 3, 2>(s, product, rows, out),
            4 => panels::<S, 4, 1>(s, product, rows, out),
            5 => panels::<S, 5, 1>(s, product, rows, out),
            6 => panels::<S, 6, 1>(s, product, rows, out),
            _ => unreachable!("tiles of {height} rows"),
        },
    }
}

#[inline(always)]
fn panels<S: Simd, const R: usize, const P: usize>(
    s: S,
    product: &impl Product,
    rows: Range<usize>,
    out: &mut Tile,
) {
    let count = out.cols.len().div_ceil(LANES);
    let wide = count - count % P;
    for panel in (0..wide).step_by(P) {
        for row in rows.clone().step_by(R) {
            s.enter(OneTile::<_, R, P> { product, row, panel, out });
        }
    }
    for panel in wide..count {
        for row in rows.clone().step_by(R) {
            s.enter(OneTile::<_, R, 1> { product, row, panel, out });
        }
    }
}

/// A tile as a function of its own: side by side, the tiles of a product would make one very large function.
struct OneTile<'a, 'o, M, const R: usize, const P: usize> {
    product: &'a M,
    row: usize,
    panel: usize,
    out: &'a mut Tile<'o>,
}

impl<M: Product, const R: usize, const P: usize> Kernel for OneTile<'_, '_, M, R, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.product.tile::<S, R, P>(s, self.row, self.panel, self.out);
    }
}

/// `N` runs of `len` values, the first at `start`, each `stride` after the one before.
///
/// All have the same length by construction, so the loops over them need no further bounds checks.
#[inline(always)]
pub(crate) fn runs<T, const N: usize>(values: &[T], start: usize, stride: usize, len: usize) -> [&[T]; N] {
    let mut runs: [&[T]; N] = [&[]; N];
    // A loop and not `array::from_fn`: a closure is compiled without the instruction set of its caller.
    for i in 0..N {
        runs[i] = &values[start + i * stride..][..len];
    }
    runs
}

/// Finished accumulators, out of registers.
///
/// What a tile does with them afterwards indexes by row and panel in a loop too long to unroll. Done on the
/// accumulators themselves that would keep them in memory from the start (measured: 68 instead of 185 GF/s).
#[inline(always)]
pub(crate) fn spill<S: Simd, const R: usize, const P: usize>(
    s: S,
    acc: [[S::F; P]; R],
) -> [[[f32; LANES]; P]; R] {
    let mut memory = [[[0.0; LANES]; P]; R];
    for r in 0..R {
        for p in 0..P {
            s.store(acc[r][p], &mut memory[r][p]);
        }
    }
    memory
}

/// The same for integers.
#[inline(always)]
pub(crate) fn spill_i<S: Simd, const R: usize, const P: usize>(
    s: S,
    acc: [[S::I; P]; R],
) -> [[[i32; LANES]; P]; R] {
    let mut memory = [[[0; LANES]; P]; R];
    for r in 0..R {
        for p in 0..P {
            s.store_i(acc[r][p], &mut memory[r][p]);
        }
    }
    memory
}

/// The columns of `out` that a panel covers, 16 unless it is the last.
#[inline(always)]
pub(crate) fn columns(panel: usize, out: &Tile) -> Range<usize> {
    panel * LANES..((panel + 1) * LANES).min(out.cols.len())
}

/// How an output `[rows, out]` is split into tasks, as row ranges and column ranges; `row_bytes` is the size
/// of one input row.
pub(crate) fn grid(
    threads: &Threads,
    rows: usize,
    out: usize,
    row_bytes: usize,
) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    const CACHED: usize = 512 << 10; // bytes of input rows that stay in a private cache beside the weights
    const PANELS: usize = 24; // least panels of a task; a multiple of every tile width
    const ROWS: usize = 24; // a multiple of every tile height
    let cached = (CACHED / row_bytes.max(1)).clamp(ROWS, 8 * ROWS);
    let fair = rows.div_ceil(2 * threads.count()).max(ROWS);
    let height = cached.min(fair).next_multiple_of(ROWS);
    let row_ranges = steps(rows, if threads.count() == 1 { cached.next_multiple_of(ROWS) } else { height });
    let tasks =
        if threads.count() == 1 { 1 } else { (4 * threads.count()).div_ceil(row_ranges.len().max(1)) };
    let width = out.div_ceil(tasks).next_multiple_of(PANELS / 2 * LANES);
    (row_ranges, steps(out, width))
}
