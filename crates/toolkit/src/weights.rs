//! Codes and scales of weight matrices.

use qberta_kernels::quantize_weight_rows;

/// Codes `[rows, cols]` in [-127, 127] and one scale per row for `values [rows, cols]`, all finite.
///
/// A row whose values already lie on an int8 grid (a checkpoint trained with fake quantization, or one
/// that was int8 before) keeps that grid and is stored without loss; any other row gets
/// `scale = absmax / 127`. The grid of a row need not reach 127: per-tensor quantization leaves rows whose
/// largest code is smaller, and rescaling those would add the rounding error a second time.
pub fn quantize(values: &[f32], rows: usize, cols: usize) -> (Vec<i8>, Vec<f32>) {
    let (mut codes, mut scales) = quantize_weight_rows(values, rows, cols);
    for (row, (codes, scale)) in codes.chunks_exact_mut(cols.max(1)).zip(&mut scales).enumerate() {
        let values = &values[row * cols..(row + 1) * cols];
        if let Some(grid) = grid(values) {
            *scale = grid;
            for (code, w) in codes.iter_mut().zip(values) {
                *code = (w / grid).round_ties_even() as i8;
            }
        }
    }
    (codes, scales)
}

/// The step of the coarsest int8 grid that holds every value, if there is one short of `absmax / 127`.
fn grid(values: &[f32]) -> Option<f32> {
    /// Half precision rounds a product by at most this much of itself. What passes by chance is still
    /// closer than `absmax / 1024`, and half a step of the usual grid is `absmax / 254`.
    const TOLERANCE: f32 = 1.0 / 1024.0;
    let most = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    (1..127).map(|largest| most / largest as f32).find(|&step| {
        let near = |w: &f32| ((w / step).round_ties_even() * step - w).abs() <= TOLERANCE * w.abs();
        step >= f32::MIN_POSITIVE && values.iter().all(near)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_on_a_grid_is_stored_without_loss() {
        let step = 0.0371f32;
        let values: Vec<f32> = [-90, 3, 0, 41, 7, 90, -1, 64].map(|q| q as f32 * step).into();
        let (codes, scale) = quantize(&values, 1, 8);
        assert_eq!(codes, [-90, 3, 0, 41, 7, 90, -1, 64]);
        assert!((scale[0] - step).abs() <= step * f32::EPSILON);
        // Half-precision storage of the same weights changes nothing but the last bits.
        let half: Vec<f32> = values.iter().map(|v| f32::from_bits(v.to_bits() & 0xffff_e000)).collect();
        assert_eq!(quantize(&half, 1, 8).0, codes);
    }

    #[test]
    fn other_rows_use_the_full_range() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 101) as f32 * 0.731).sin()).collect();
        let (codes, scale) = quantize(&values, 1, 64);
        let most = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert_eq!(scale[0], most / 127.0);
        assert_eq!(codes.iter().map(|c| c.unsigned_abs()).max(), Some(127));
    }

    #[test]
    fn zero_rows_have_scale_one() {
        assert_eq!(quantize(&[0.0; 6], 2, 3), (vec![0; 6], vec![1.0; 2]));
    }
}
