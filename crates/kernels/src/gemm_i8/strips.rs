//! int8 products whose rows are finished while they lie in a near cache: activation and the codes of the next
//! product, or residual and LayerNorm. The same bits as the steps one after the other, with fewer passes over
//! memory and fewer waits for all threads.

use std::cell::RefCell;
use std::ops::Range;

use super::{I8, PackedI8, check, compute, gemm_i8, gemm_i8_by};
use crate::matrix::Lines;
use crate::parallel::{Tile, for_each_tile, steps};
use crate::rows::{
    Activate, Activation, InputGrid, LayerNorm, QuantizedRows, Room, Shaping, add_layer_norm, quantize_input,
};
use crate::{Context, Matrix};

/// Parameters of a LayerNorm over `[cols]` values.
#[derive(Clone, Copy, Debug)]
pub struct NormParameters<'a> {
    /// `[cols]`.
    pub weight: &'a [f32],
    /// `[cols]`.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// Codes of `f(gemm_i8(x, w) + bias)`: `x [rows, in]` to `[rows, out + split columns]`. The bits of [`gemm_i8`],
/// [`crate::activate`] and [`quantize_input`] in turn; panics as they do.
pub fn gemm_i8_codes(
    cx: &Context,
    x: &QuantizedRows,
    w: &PackedI8,
    bias: Option<&[f32]>,
    f: Activation,
    (grid, split): (InputGrid, &Shaping),
) -> QuantizedRows {
    check(x, w, bias);
    let Some(strips) = strips(cx, x.rows(), w.out()) else {
        let y = gemm_i8_by(cx, x, w, bias, |product, out| {
            compute(cx.isa, product, out);
            for i in 0..out.rows.len() {
                cx.isa.run(Activate { f, values: out.row(i) });
            }
        });
        return quantize_input(cx, &y, grid, split);
    };
    let mut codes = QuantizedRows::empty(x.rows(), w.out(), split);
    let mut rows = codes.rows_mut();
    let height = strips[0].len();
    let mut parts: Vec<_> = strips.into_iter().zip(rows.chunks_mut(height)).collect();
    cx.threads.for_each_rows(&mut parts, 1, 1, |_, parts| {
        let mut room = Room::default();
        for (strip, to) in parts {
            with_room(strip.len() * w.out(), |values| {
                let mut tile = Tile::over(values, w.out(), strip.len(), w.out());
                compute(cx.isa, I8::part(x, w, bias, strip, &(0..w.out())), &mut tile);
                for (values, to) in values.chunks_exact_mut(w.out()).zip(to.iter_mut()) {
                    cx.isa.run(Activate { f, values });
                    to.fill(cx.isa, values, grid, split, &mut room);
                }
            });
        }
    });
    codes
}

/// `LayerNorm(gemm_i8(x, w) + bias + residual)`, `residual [rows, out]`. The bits of [`gemm_i8`] and
/// [`add_layer_norm`] in turn; panics as they do.
pub fn gemm_i8_add_norm(
    cx: &Context,
    x: &QuantizedRows,
    w: &PackedI8,
    bias: Option<&[f32]>,
    residual: &Matrix,
    norm: NormParameters,
) -> Matrix {
    check(x, w, bias);
    assert_eq!((residual.rows(), residual.cols()), (x.rows(), w.out()), "shape of the residual");
    let NormParameters { weight, bias: shift, eps } = norm;
    assert_eq!((weight.len(), shift.len()), (w.out(), w.out()), "weight and bias of the LayerNorm");
    let Some(strips) = strips(cx, x.rows(), w.out()) else {
        let mut y = gemm_i8(cx, x, w, bias);
        add_layer_norm(cx, &mut y, residual, weight, shift, eps);
        return y;
    };
    let mut y = Matrix::zeros(x.rows(), w.out());
    for_each_tile(&cx.threads, &mut y, &strips, std::slice::from_ref(&(0..w.out())), |_, _, mut tile| {
        let rows = tile.rows.clone();
        compute(cx.isa, I8::part(x, w, bias, &rows, &(0..w.out())), &mut tile);
        for (i, from) in rows.enumerate() {
            let residual = Some(residual.row(from));
            cx.isa.run(LayerNorm { x: tile.row(i), residual, weight, bias: shift, eps });
        }
    });
    y
}

/// Rows in strips of equal height (the last may be lower) whose outputs stay in a near cache; `None` where too
/// few rows would be left to a thread, so that columns must be shared out instead.
fn strips(cx: &Context, rows: usize, out: usize) -> Option<Vec<Range<usize>>> {
    const LEAST: usize = 32; // rows that reading all weights is worth: at 16 it cost 1.15 times (AVX2, 2 threads)
    const CACHED: usize = 384 << 10; // bytes of outputs
    let threads = cx.threads.count();
    if rows == 0 || out == 0 || threads > 1 && rows < LEAST * threads {
        return None;
    }
    let most = (CACHED / (4 * out)).clamp(LEAST, 6 * LEAST);
    let count = rows.div_ceil(most).next_multiple_of(threads);
    Some(steps(rows, rows.div_ceil(count)))
}

/// Calls `work` with room for `count` values, whatever they are, that this thread uses again and again.
fn with_room<T>(count: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local! {
        static ROOM: RefCell<Lines> = RefCell::new(Lines::zeroed(0));
    }
    ROOM.with_borrow_mut(|room| {
        room.reserve(count * 4);
        work(&mut room.of_mut()[..count])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::RowGrid;
    use crate::testing::{assert_same, contexts, matrix, values};
    use crate::{FixedGrid, activate, quantize_rows, quantize_weight_rows};

    fn weight(out: usize, inp: usize, seed: u64) -> PackedI8 {
        let (codes, scale) = quantize_weight_rows(&values(out * inp, seed), out, inp);
        PackedI8::pack(&codes, &scale, out, inp).unwrap()
    }

    #[test]
    fn finished_strips_have_the_bits_of_the_steps_in_turn() {
        for (rows, inp, out) in [(1, 20, 40), (17, 64, 33), (65, 48, 130), (100, 33, 3100), (200, 16, 48)] {
            let w = weight(out, inp, 1);
            let bias = values(out, 2);
            let x = matrix(rows, inp, 3);
            let residual = matrix(rows, out, 4);
            let (gain, shift) = (values(out, 5), values(out, 6));
            let norm = NormParameters { weight: &gain, bias: &shift, eps: 1e-7 };
            let split = Shaping::new(vec![3, 3, 17], out).unwrap();
            let grids =
                [InputGrid::Row(RowGrid::Asymmetric), InputGrid::Fixed(FixedGrid::over(-1.0, 2.0).unwrap())];
            for cx in contexts() {
                let what = format!("{rows} x {inp} x {out} on {} {:?}", cx.isa, cx.threads);
                let x = quantize_rows(&cx, &x, RowGrid::Asymmetric);
                for grid in grids {
                    let got = gemm_i8_codes(&cx, &x, &w, Some(&bias), Activation::Gelu, (grid, &split));
                    let mut y = gemm_i8(&cx, &x, &w, Some(&bias));
                    activate(&cx, Activation::Gelu, &mut y);
                    let expected = quantize_input(&cx, &y, grid, &split);
                    for i in 0..rows {
                        assert_eq!(got.codes(i), expected.codes(i), "{what}");
                        assert_eq!((got.scale(i), got.zero(i)), (expected.scale(i), expected.zero(i)));
                    }
                }
                let got = gemm_i8_add_norm(&cx, &x, &w, None, &residual, norm);
                let mut y = gemm_i8(&cx, &x, &w, None);
                add_layer_norm(&cx, &mut y, &residual, &gain, &shift, 1e-7);
                assert_same(got.as_slice(), y.as_slice(), &what);
            }
        }
    }
}
