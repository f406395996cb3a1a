//! What a linear's inputs look like on data, as far as rounding its weights cares: `H = Σ x xᵀ`, streamed. It has the
//! size of the input squared, however much data there are.

use qberta_kernels::{Context, Matrix, PackedF32, gemm_f32};

/// What is added to the diagonal, as a part of its mean: the usual 1 %.
const DAMPING: f64 = 0.01;

/// Rows that are multiplied out at a time.
const ROWS: usize = 256;

/// `Σ x xᵀ` over rows of `n` values, f64 `[n, n]`.
#[derive(Clone)]
pub(super) struct Hessian {
    n: usize,
    sum: Vec<f64>,
    waiting: Vec<f32>, // rows not yet multiplied out
}

/// `U [n, n]`, upper triangular, with `(H + damping)⁻¹ = Uᵀ U`, columns in the order in which they are rounded.
pub(super) struct Factor {
    pub n: usize,
    pub upper: Vec<f64>,
    /// The column that comes at each place.
    pub order: Vec<usize>,
    /// The diagonal of `H` by column.
    pub importance: Vec<f64>,
}

/// `H` with damping, symmetric and regular.
pub(super) struct Gram {
    pub n: usize,
    sum: Vec<f64>,
}

impl Gram {
    /// Row (and column) `j`.
    pub fn line(&self, j: usize) -> &[f64] {
        &self.sum[j * self.n..(j + 1) * self.n]
    }
}

impl Hessian {
    pub fn new(n: usize) -> Hessian {
        Hessian { n, sum: vec![0.0; n * n], waiting: Vec::new() }
    }

    /// Adds the rows of `x [_, n]`.
    pub fn see(&mut self, x: &Matrix, cx: &Context) {
        for i in 0..x.rows() {
            self.waiting.extend_from_slice(x.row(i));
            if self.waiting.len() == ROWS * self.n {
                self.flush(cx);
            }
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Hessian, cx: &Context) {
        let mut other = other.clone();
        other.flush(cx);
        self.flush(cx);
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
    }

    /// Multiplies the waiting rows out: chains of at most [`ROWS`] terms in f32, added up in f64.
    fn flush(&mut self, cx: &Context) {
        let rows = self.waiting.len() / self.n.max(1);
        if rows == 0 {
            return;
        }
        let mut columns = Matrix::zeros(self.n, rows);
        for c in 0..self.n {
            for (r, y) in columns.row_mut(c).iter_mut().enumerate() {
                *y = self.waiting[r * self.n + c];
            }
        }
        let product = gemm_f32(cx, &columns, &PackedF32::pack(columns.as_slice(), self.n, rows), None);
        self.sum.iter_mut().zip(product.as_slice()).for_each(|(a, b)| *a += f64::from(*b));
        self.waiting.clear();
    }

    /// The sum over inputs whose channels are multiplied by `factors`.
    pub fn scaled(mut self, factors: &[f64], cx: &Context) -> Hessian {
        self.flush(cx);
        for (row, a) in self.sum.chunks_exact_mut(self.n.max(1)).zip(factors) {
            row.iter_mut().zip(factors).for_each(|(v, b)| *v *= a * b);
        }
        self
    }

    /// The sum with the usual damping; `None` if it is not finite.
    pub fn gram(mut self, cx: &Context) -> Option<Gram> {
        self.flush(cx);
        let (importance, mean) = self.importance()?;
        for (i, value) in importance.into_iter().enumerate() {
            self.sum[i * self.n + i] = value + DAMPING * mean;
        }
        self.sum.iter().all(|v| v.is_finite()).then_some(Gram { n: self.n, sum: self.sum })
    }

    /// The diagonal, and its mean; `None` if that is not finite.
    fn importance(&self) -> Option<(Vec<f64>, f64)> {
        let mut importance: Vec<f64> = (0..self.n).map(|i| self.sum[i * self.n + i]).collect();
        let mean = importance.iter().sum::<f64>() / self.n.max(1) as f64;
        if !mean.is_finite() {
            return None;
        }
        let mean = if mean > 0.0 { mean } else { 1.0 };
        // A channel that is always zero has no say; any positive number keeps the matrix regular.
        importance.iter_mut().filter(|d| **d <= 0.0).for_each(|d| *d = mean);
        Some((importance, mean))
    }

    /// The factor of the damped inverse, columns by descending importance if `sorted`.
    ///
    /// `None` if the sum is not finite or not positive definite at any damping.
    pub fn factor(mut self, sorted: bool, cx: &Context) -> Option<Factor> {
        self.flush(cx);
        let n = self.n;
        let (importance, mean) = self.importance()?;
        let mut order: Vec<usize> = (0..n).collect();
        if sorted {
            order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]).then(a.cmp(&b)));
        }
        // More than usual where that is not enough for f64.
        [DAMPING, 0.1, 1.0].into_iter().find_map(|damping| {
            let at = |i: usize, j: usize| {
                let (a, b) = (order[i], order[j]);
                if a == b { importance[a] + damping * mean } else { self.sum[a * n + b] }
            };
            let upper = inverse_upper(&cholesky(n, at)?, n);
            Some(Factor { n, upper, order: order.clone(), importance: importance.clone() })
        })
    }
}

/// Rows that go through earlier rows together, so that those are read from memory once for all of them.
const BLOCK: usize = 8;

/// `a[i] -= factor * b[i]`.
fn subtract(a: &mut [f64], factor: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a -= factor * b);
}

/// `C`, upper triangular, with `A = P Cᵀ C P` for the symmetric `A = at(i, j)` and `P` the reversal of all indices:
/// `P Cᵀ P` is then an upper triangular root of `A`, and its inverse the one of `A⁻¹`.
fn cholesky(n: usize, at: impl Fn(usize, usize) -> f64) -> Option<Vec<f64>> {
    let mut c = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            c[i * n + j] = at(n - 1 - i, n - 1 - j);
        }
    }
    for start in (0..n).step_by(BLOCK) {
        let (done, rest) = c.split_at_mut(start * n);
        let rows = &mut rest[..BLOCK.min(n - start) * n];
        for before in done.chunks_exact(n) {
            for (r, row) in rows.chunks_exact_mut(n).enumerate() {
                let i = start + r;
                subtract(&mut row[i..], before[i], &before[i..]);
            }
        }
        for r in 0..rows.len() / n {
            let (earlier, row) = rows.split_at_mut(r * n);
            let (row, i) = (&mut row[..n], start + r);
            for before in earlier.chunks_exact(n) {
                subtract(&mut row[i..], before[i], &before[i..]);
            }
            if !(row[i] > 0.0 && row[i].is_finite()) {
                return None;
            }
            let root = row[i].sqrt();
            row[i..].iter_mut().for_each(|v| *v /= root);
        }
    }
    Some(c)
}

/// The inverse of the upper triangular `R = P Cᵀ P`.
fn inverse_upper(c: &[f64], n: usize) -> Vec<f64> {
    let mut r = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            r[i * n + j] = c[(n - 1 - j) * n + (n - 1 - i)];
        }
    }
    let mut u = vec![0.0; n * n];
    for start in (0..n).step_by(BLOCK) {
        let rows = &mut u[start * n..(start + BLOCK).min(n) * n];
        for (i, row) in rows.chunks_exact_mut(n).enumerate() {
            row[start + i] = 1.0;
        }
        // Row i of U R = 1, column by column; what is left of the row is kept up to date.
        for k in start..n {
            let line = &r[k * n..(k + 1) * n];
            for (i, row) in rows.chunks_exact_mut(n).enumerate().filter(|(i, _)| start + i <= k) {
                debug_assert!(start + i <= k);
                row[k] /= line[k];
                let value = row[k];
                subtract(&mut row[k + 1..], value, &line[k + 1..]);
            }
        }
    }
    u
}

#[cfg(test)]
mod tests {
    use super::*;
    use qberta_kernels::Isa;

    fn inputs(rows: usize, n: usize) -> Matrix {
        let value = |i: usize| ((i * 7919 % 1013) as f32 * 0.37).sin() + 0.2;
        Matrix::from_vec(rows, n, (0..rows * n).map(value).collect())
    }

    #[test]
    fn the_factor_is_a_root_of_the_damped_inverse() {
        let cx = Context::new(Isa::best(), 1).unwrap();
        for (rows, n) in [(300, 21), (5, 13), (40, 1)] {
            let x = inputs(rows, n);
            let mut h = Hessian::new(n);
            h.see(&x, &cx);
            for sorted in [false, true] {
                let f = h.clone().factor(sorted, &cx).unwrap();
                let trace: f64 = x.as_slice().iter().map(|v| f64::from(*v).powi(2)).sum();
                let entry = |a: usize, b: usize| -> f64 {
                    let sum: f64 = (0..rows).map(|r| f64::from(x.row(r)[a]) * f64::from(x.row(r)[b])).sum();
                    sum + if a == b { 0.01 * trace / n as f64 } else { 0.0 }
                };
                // Uᵀ U H = 1 in the order of the factor.
                for i in 0..n {
                    for j in 0..n {
                        let inverse =
                            |k: usize| (0..n).map(|m| f.upper[m * n + i] * f.upper[m * n + k]).sum::<f64>();
                        let one: f64 = (0..n).map(|k| inverse(k) * entry(f.order[k], f.order[j])).sum();
                        assert!((one - f64::from(u8::from(i == j))).abs() < 1e-3, "{i} {j}: {one}");
                    }
                }
                let by_order: Vec<f64> = f.order.iter().map(|&c| f.importance[c]).collect();
                assert!(!sorted || by_order.is_sorted_by(|a, b| a >= b));
            }
        }
    }

    #[test]
    fn halves_merge_to_the_whole_and_bad_sums_have_no_factor() {
        let cx = Context::new(Isa::best(), 1).unwrap();
        let (whole, n) = (inputs(64, 9), 9);
        let half = |rows: std::ops::Range<usize>| {
            let mut h = Hessian::new(n);
            h.see(&Matrix::from_vec(32, n, whole.as_slice()[rows.start * n..rows.end * n].to_vec()), &cx);
            h
        };
        let mut merged = half(0..32);
        merged.merge(&half(32..64), &cx);
        let mut h = Hessian::new(n);
        h.see(&whole, &cx);
        h.flush(&cx);
        for (a, b) in merged.sum.iter().zip(&h.sum) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0));
        }
        let mut bad = Hessian::new(2);
        bad.see(&Matrix::from_vec(1, 2, vec![f32::INFINITY, 1.0]), &cx);
        assert!(bad.factor(false, &cx).is_none());
        assert!(Hessian::new(3).factor(true, &cx).is_some(), "no data: every channel counts the same");
    }
}
