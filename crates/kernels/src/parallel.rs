//! The one place that splits work. A split only decides *who* computes an output element, never *how*, so
//! results do not depend on the number of threads.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::pool::Pool;
use crate::{Isa, Matrix};

/// How kernels are run: on which instruction set and on how many threads. Cloning shares the threads.
#[derive(Clone, Debug)]
pub struct Context {
    /// The instruction set of every kernel.
    pub isa: Isa,
    /// The threads of every kernel.
    pub threads: Threads,
}

impl Context {
    /// A context on `isa` with `threads` >= 1 threads of its own (none are started for 1).
    ///
    /// Errors: a sentence, when the machine lacks `isa`, when `threads` is 0 or when they cannot be started.
    pub fn new(isa: Isa, threads: usize) -> Result<Context, String> {
        if !isa.is_available() {
            return Err(isa.lacking());
        }
        Ok(Context { isa, threads: Threads::new(threads)? })
    }
}

/// A fixed number of threads that kernels split their work over.
#[derive(Clone)]
pub struct Threads {
    pool: Option<Arc<Pool>>, // None: work on the calling thread
}

impl Threads {
    fn new(count: usize) -> Result<Threads, String> {
        match count {
            0 => Err("a context needs at least one thread, found 0".to_string()),
            1 => Ok(Threads { pool: None }),
            _ => Pool::new(count - 1)
                .map(|pool| Threads { pool: Some(Arc::new(pool)) })
                .map_err(|e| format!("cannot start {count} threads: {e}")),
        }
    }

    /// Number of threads, at least 1.
    pub fn count(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.threads())
    }

    /// Calls `work(task)` once for each task in `0..tasks`, in any order, and returns when all are done.
    pub(crate) fn for_each(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        match &self.pool {
            Some(pool) if tasks > 1 => pool.for_each(tasks, &work),
            _ => (0..tasks).for_each(work),
        }
    }

    /// `work(task)` for each task in `0..tasks`, done in any order: for work other than kernels, of which a task is
    /// worth a thread. Kernels that a task calls run on its own thread.
    pub fn each<T: Send>(&self, tasks: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let done: Vec<Mutex<Option<T>>> = (0..tasks).map(|_| Mutex::new(None)).collect();
        let slot = |i: usize| done[i].lock().unwrap_or_else(PoisonError::into_inner);
        self.for_each(tasks, |i| *slot(i) = Some(work(i)));
        (0..tasks).filter_map(|i| slot(i).take()).collect()
    }

    /// Calls `work(first row, rows, values)` for runs of whole rows of `[_, cols]` values that cover them all.
    /// A run has at least `least` rows (but for the last), so that small inputs stay on one thread.
    pub(crate) fn for_each_rows<T: Send>(
        &self,
        values: &mut [T],
        cols: usize,
        least: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        if cols == 0 || values.is_empty() {
            return;
        }
        assert!(values.len().is_multiple_of(cols), "whole rows of {cols} values");
        let rows = values.len() / cols;
        let run = rows.div_ceil(4 * self.count()).max(least).min(rows);
        if run >= rows {
            return work(0, values);
        }
        let (len, base) = (values.len(), Base(values.as_mut_ptr()));
        self.for_each(rows.div_ceil(run), |task| {
            let (start, end) = (task * run * cols, ((task + 1) * run * cols).min(len));
            // SAFETY: `start..end` is inside `values`, which is borrowed for this call, and no other task has it;
            // `T` may be sent to the thread of the task.
            let values = unsafe { std::slice::from_raw_parts_mut(base.at(start), end - start) };
            work(task * run, values);
        });
    }
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Threads({})", self.count())
    }
}

/// A rectangle of an output matrix that one task alone may write.
pub(crate) struct Tile<'a> {
    start: *mut f32,
    stride: usize,
    /// The rows of the matrix it covers.
    pub rows: Range<usize>,
    /// The columns of the matrix it covers.
    pub cols: Range<usize>,
    matrix: PhantomData<&'a mut [f32]>,
}

impl<'a> Tile<'a> {
    /// All of `values`, seen as rows of `cols` values that start `stride` apart.
    pub fn over(values: &'a mut [f32], stride: usize, rows: usize, cols: usize) -> Tile<'a> {
        assert!(cols <= stride && (rows == 0 || (rows - 1) * stride + cols <= values.len()));
        Tile { start: values.as_mut_ptr(), stride, rows: 0..rows, cols: 0..cols, matrix: PhantomData }
    }

    /// The part of this tile in its rows `rows` and columns `cols`, counted from its own corner.
    pub fn part(&mut self, rows: Range<usize>, cols: Range<usize>) -> Tile<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows.len());
        assert!(cols.start <= cols.end && cols.end <= self.cols.len());
        let start = self.start.wrapping_add(rows.start * self.stride + cols.start);
        let rows = self.rows.start + rows.start..self.rows.start + rows.end;
        let cols = self.cols.start + cols.start..self.cols.start + cols.end;
        Tile { start, stride: self.stride, rows, cols, matrix: PhantomData }
    }

    /// Row `i` of the tile (not of the matrix), `[cols.len()]`.
    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows.len());
        // SAFETY: the rows and columns lie inside the values borrowed for `'a`, and no other tile has them
        // (`over` and `part` borrow alone, `for_each_tile` refuses overlaps); `i` is inside by the assert.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride), self.cols.len()) }
    }
}

/// The base of an output, shared between tasks that write disjoint parts of it.
struct Base<T>(*mut T);

// SAFETY: the pointer is only used to make tiles and runs, each of which is handed to one task and is disjoint
// from every other.
unsafe impl<T: Send> Sync for Base<T> {}

impl<T> Base<T> {
    // A method, so that closures capture `&Base` (which is Sync) and not the bare pointer inside it.
    fn at(&self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

/// Calls `work(row range index, column range index, tile)` for each pair of a row range and a column range
/// of `out`. Each list must ascend without overlap and lie inside the matrix; otherwise this panics.
pub(crate) fn for_each_tile(
    threads: &Threads,
    out: &mut Matrix,
    rows: &[Range<usize>],
    cols: &[Range<usize>],
    work: impl Fn(usize, usize, Tile) + Sync,
) {
    assert!(ascend_within(rows, out.rows()), "row ranges overlap or leave the matrix");
    assert!(ascend_within(cols, out.cols()), "column ranges overlap or leave the matrix");
    let stride = out.cols();
    let base = Base(out.as_mut_slice().as_mut_ptr());
    // Row ranges vary fastest: neighbouring tasks then share the weight panels of one column range.
    threads.for_each(rows.len() * cols.len(), |task| {
        let (r, c) = (task % rows.len(), task / rows.len());
        let (rows, cols) = (rows[r].clone(), cols[c].clone());
        let start = base.at(rows.start * stride + cols.start);
        work(r, c, Tile { start, stride, rows, cols, matrix: PhantomData });
    });
}

fn ascend_within(ranges: &[Range<usize>], end: usize) -> bool {
    let mut reached = 0;
    for range in ranges {
        if range.start < reached || range.end < range.start || range.end > end {
            return false;
        }
        reached = range.end;
    }
    true
}

/// `0..len` in consecutive ranges of `step`, the last one shorter.
pub(crate) fn steps(len: usize, step: usize) -> Vec<Range<usize>> {
    (0..len).step_by(step.max(1)).map(|start| start..(start + step).min(len)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_matrix_once_with_any_number_of_threads() {
        for threads in 1..4 {
            let threads = Threads::new(threads).unwrap();
            let mut m = Matrix::zeros(7, 10);
            for_each_tile(&threads, &mut m, &steps(7, 3), &steps(10, 4), |r, c, mut tile| {
                for i in 0..tile.rows.len() {
                    tile.row(i).iter_mut().for_each(|y| *y += (10 * r + c) as f32 + 1.0);
                }
            });
            assert_eq!((m.row(0)[0], m.row(3)[4], m.row(6)[9]), (1.0, 12.0, 23.0));
            assert!(m.as_slice().iter().all(|&y| y > 0.0));
        }
        assert!(Threads::new(0).is_err());
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_tiles_are_refused() {
        let threads = Threads::new(1).unwrap();
        for_each_tile(&threads, &mut Matrix::zeros(4, 4), &[0..2, 1..4], &steps(4, 4), |_, _, _| {});
    }
}
