//! Eight tiles of 16 rows by 64 bytes, and the product of two of them: what AMX computes in one instruction.
//!
//! A block of up to 2 x 2 output tiles is one list of instructions ([`listing`]), written once and run by two
//! machines: by the processor (`hardware`), as one piece of assembly, so that no tile is live in compiled
//! code, which knows nothing of tiles; and by arrays (`emulated`), which every machine can test.

#[cfg(test)]
mod emulated;
#[cfg(target_arch = "x86_64")]
mod hardware;

#[cfg(test)]
pub(crate) use emulated::Emulator;
#[cfg(target_arch = "x86_64")]
pub(crate) use hardware::Amx;

use crate::lanes::LANES;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of a tile row: consecutive codes of an input row, or one line of a packed weight.
pub(crate) const BYTES: usize = 64;

/// Sixteen lines of a packed weight panel: one tile.
pub(crate) type Lines = [[i32; LANES]; ROWS];

/// Something that has tiles.
pub(crate) trait Unit: Copy {
    type Tiles: Tiles;
    /// Sets up the tiles of this thread: those of inputs and of sums have `height` rows, 1..=16, those of
    /// weights 16. They go back to the operating system with the value; one at a time per thread.
    fn configure(self, height: usize) -> Self::Tiles;
}

/// Tiles that are set up.
pub(crate) trait Tiles {
    /// Rows of an input tile.
    fn height(&self) -> usize;
    /// `dots[b * 16 + i][p] = rows of band b times panel p`, exact modulo 2^32, for `i < height`; the other
    /// rows of `dots` may be anything.
    fn block<const R: usize, const P: usize>(&mut self, block: &Block<'_, R, P>, dots: &mut Dots<P>);
}

/// Operands of a block of `R` bands of rows by `P` panels of 16 columns, `R` and `P` 1 or 2.
pub(crate) struct Block<'a, const R: usize, const P: usize> {
    /// u8 codes, from the first of each band on; rows are `stride` bytes apart.
    pub bands: [&'a [u8]; R],
    pub stride: usize,
    /// Lines of s8 codes, from the first of each panel on.
    pub panels: [&'a [[i32; LANES]]; P],
    /// Steps of 64 codes that the panels hold whole.
    pub steps: usize,
    /// The step after those, if the panels end in it: what is left of their lines, then zeros.
    pub rest: Option<&'a [Lines; P]>,
}

impl<const R: usize, const P: usize> Block<'_, R, P> {
    /// Panics unless every byte that a block of `height` rows reads is there.
    fn check(&self, height: usize) {
        let depth = BYTES * (self.steps + usize::from(self.rest.is_some()));
        for band in &self.bands {
            assert!((height - 1) * self.stride + depth <= band.len(), "rows of codes end inside a block");
        }
        for panel in &self.panels {
            assert!(self.steps * ROWS <= panel.len(), "a panel ends inside a block");
        }
    }
}

/// Sums of a block: 16 rows for each of two bands, by panels of 16 columns.
#[repr(C, align(64))]
pub(crate) struct Dots<const P: usize>(pub [[[i32; LANES]; P]; 2 * ROWS]);

impl<const P: usize> Dots<P> {
    pub fn zero() -> Dots<P> {
        Dots([[[0; LANES]; P]; 2 * ROWS])
    }
}

/// The instructions of a block: `$with!` gets `$args`, then those that clear the sums, those of one step of 64
/// codes, and those that store a sum at a byte of [`Dots`].
///
/// Sums are tiles 0 to 3, inputs 4 and 5, weights 6 and 7: all eight, each operand loaded once per step.
macro_rules! listing {
    ($with:ident $args:tt 2 by 2) => {
        $with! { $args
            zero (0) (1) (2) (3)
            step (load 4 a0 row) (load 6 b0 line) (dot 0 4 6) (load 7 b1 line) (dot 1 4 7)
                (load 5 a1 row) (dot 2 5 6) (dot 3 5 7)
            store (0 0) (1 64) (2 2048) (3 2112)
        }
    };
    ($with:ident $args:tt 2 by 1) => {
        $with! { $args
            zero (0) (2)
            step (load 6 b0 line) (load 4 a0 row) (dot 0 4 6) (load 5 a1 row) (dot 2 5 6)
            store (0 0) (2 1024)
        }
    };
    ($with:ident $args:tt 1 by 2) => {
        $with! { $args
            zero (0) (1)
            step (load 4 a0 row) (load 6 b0 line) (dot 0 4 6) (load 7 b1 line) (dot 1 4 7)
            store (0 0) (1 64)
        }
    };
    ($with:ident $args:tt 1 by 1) => {
        $with! { $args zero (0) step (load 4 a0 row) (load 6 b0 line) (dot 0 4 6) store (0 0) }
    };
}
use listing;

#[cfg(test)]
mod tests;
