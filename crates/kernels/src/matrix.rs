//! The one container of float activations: a dense row-major matrix that starts on a cache line.
//!
//! Alignment is only for speed (a full line per vector load); no kernel relies on it for soundness.

use bytemuck::{Pod, Zeroable};

/// 64 bytes on a cache line: 16 lanes of f32 or i32, or 64 codes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u32; 16]);

/// A run of plain numbers that starts on a 64-byte boundary; the room up to the next one is zero.
#[derive(Clone)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// Zeros: room for `bytes` bytes.
    pub fn zeroed(bytes: usize) -> Lines {
        Lines(vec![Line([0; 16]); bytes.div_ceil(64)])
    }

    /// Grows to at least `bytes` bytes; what it held stays.
    pub fn reserve(&mut self, bytes: usize) {
        if self.0.len() < bytes.div_ceil(64) {
            self.0.resize(bytes.div_ceil(64), Line([0; 16]));
        }
    }

    /// The whole run as numbers of type `T`.
    pub fn of<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.0)
    }

    /// The whole run as numbers of type `T`, mutable.
    pub fn of_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// `[rows, cols]` f32, row-major and contiguous, starting on a 64-byte boundary.
#[derive(Clone)]
pub struct Matrix {
    lines: Lines,
    rows: usize,
    cols: usize,
}

impl Matrix {
    /// `[rows, cols]` of +0.0.
    pub fn zeros(rows: usize, cols: usize) -> Matrix {
        let count = rows.checked_mul(cols).and_then(|n| n.checked_mul(4)).expect("matrix size fits usize");
        Matrix { lines: Lines::zeroed(count), rows, cols }
    }

    /// `[rows, cols]` from row-major `values`. Panics unless `values.len() == rows * cols`.
    pub fn from_vec(rows: usize, cols: usize, values: Vec<f32>) -> Matrix {
        assert_eq!(values.len(), rows * cols, "values for a [{rows}, {cols}] matrix");
        let mut matrix = Matrix::zeros(rows, cols);
        matrix.as_mut_slice().copy_from_slice(&values);
        matrix
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `i`, `[cols]`. Panics if there is none.
    pub fn row(&self, i: usize) -> &[f32] {
        assert!(i < self.rows, "row {i} of a matrix with {} rows", self.rows);
        &self.as_slice()[i * self.cols..(i + 1) * self.cols]
    }

    /// Row `i`, `[cols]`, mutable. Panics if there is none.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of a matrix with {} rows", self.rows);
        let cols = self.cols;
        &mut self.as_mut_slice()[i * cols..(i + 1) * cols]
    }

    /// All values, `[rows * cols]`, row-major.
    pub fn as_slice(&self) -> &[f32] {
        &self.lines.of()[..self.rows * self.cols]
    }

    /// All values, `[rows * cols]`, row-major, mutable.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        let count = self.rows * self.cols;
        &mut self.lines.of_mut()[..count]
    }
}

impl PartialEq for Matrix {
    fn eq(&self, other: &Matrix) -> bool {
        (self.rows, self.cols) == (other.rows, other.cols) && self.as_slice() == other.as_slice()
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.as_slice()[..self.as_slice().len().min(8)];
        write!(f, "Matrix[{}, {}] {shown:?}", self.rows, self.cols)?;
        if shown.len() < self.rows * self.cols { f.write_str("..") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_slices_of_the_values_and_start_on_a_line() {
        let mut m = Matrix::from_vec(2, 3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(m.as_slice().as_ptr() as usize % 64, 0);
        m.row_mut(1)[0] = 9.0;
        assert_eq!((m.row(0), m.row(1)), (&[1.0, 2.0, 3.0][..], &[9.0, 5.0, 6.0][..]));
        assert_eq!(Matrix::zeros(0, 5).as_slice().len(), 0);
        assert_eq!(Matrix::zeros(3, 0).row(2).len(), 0);
        assert_ne!(Matrix::zeros(2, 3), Matrix::zeros(3, 2));
    }
}
