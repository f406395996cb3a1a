//! Tiles as arrays, with the rules that make the processor fault: what the instructions mean, for tests.

use super::{BYTES, Block, Dots, ROWS, Tiles, Unit, listing};

/// Runs on any machine.
#[derive(Clone, Copy)]
pub(crate) struct Emulator;

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    bytes: [[u8; BYTES]; ROWS],
}

/// Tiles of one height.
pub(crate) struct Emulated {
    height: usize,
    tiles: [Tile; 8],
}

impl Unit for Emulator {
    type Tiles = Emulated;
    fn configure(self, height: usize) -> Emulated {
        assert!((1..=ROWS).contains(&height), "tiles of {height} rows");
        let tile = |t| Tile { rows: if t < 6 { height } else { ROWS }, bytes: [[0; BYTES]; ROWS] };
        Emulated { height, tiles: std::array::from_fn(tile) }
    }
}

impl Emulated {
    fn zero(&mut self, tile: usize) {
        self.tiles[tile].bytes = [[0; BYTES]; ROWS];
    }

    /// `tileloadd`: the rows of the tile, `stride` bytes apart; the rest of it becomes zero.
    fn load(&mut self, tile: usize, from: &[u8], stride: usize) {
        self.zero(tile);
        let tile = &mut self.tiles[tile];
        for row in 0..tile.rows {
            tile.bytes[row].copy_from_slice(&from[row * stride..][..BYTES]);
        }
    }

    /// `tdpbusd`: `sum[m][n] += a[m][4k..] . b[k][4n..]` in i32, a unsigned, b signed, four bytes each.
    fn dot(&mut self, sum: usize, a: usize, b: usize) {
        let (a, b, sum) = (self.tiles[a], self.tiles[b], &mut self.tiles[sum]);
        assert!(a.rows == sum.rows && b.rows == BYTES / 4, "shapes that fault");
        for m in 0..sum.rows {
            for n in 0..BYTES / 4 {
                let mut acc = i32::from_le_bytes(sum.bytes[m][4 * n..][..4].try_into().unwrap());
                for k in 0..b.rows {
                    for i in 0..4 {
                        let (x, w) = (a.bytes[m][4 * k + i], b.bytes[k][4 * n + i] as i8);
                        acc = acc.wrapping_add(i32::from(x) * i32::from(w));
                    }
                }
                sum.bytes[m][4 * n..][..4].copy_from_slice(&acc.to_le_bytes());
            }
        }
        sum.bytes[sum.rows..].fill([0; BYTES]);
    }

    /// `tilestored`.
    fn store(&self, tile: usize, to: &mut [u8], stride: usize) {
        let tile = &self.tiles[tile];
        for row in 0..tile.rows {
            to[row * stride..][..BYTES].copy_from_slice(&tile.bytes[row]);
        }
    }
}

/// Where the operands of a step begin, and their strides.
struct At<'a> {
    a0: &'a [u8],
    a1: &'a [u8],
    b0: &'a [u8],
    b1: &'a [u8],
    row: usize,
    line: usize,
}

macro_rules! instruction {
    ($unit:ident $at:ident load $tile:literal $from:ident $by:ident) => {
        $unit.load($tile, $at.$from, $at.$by)
    };
    ($unit:ident $at:ident dot $sum:literal $a:literal $b:literal) => {
        $unit.dot($sum, $a, $b)
    };
}

macro_rules! emulate {
    (
        ($unit:ident $steps:ident $dots:ident $stride:expr)
        zero $(($zero:literal))*
        step $(($($step:tt)*))*
        store $(($sum:literal $at:literal))*
    ) => {{
        $($unit.zero($zero);)*
        for at in $steps {
            $(instruction!($unit at $($step)*);)*
        }
        $($unit.store($sum, &mut $dots[$at..], $stride);)*
    }};
}

impl Tiles for Emulated {
    fn height(&self) -> usize {
        self.height
    }

    fn block<const R: usize, const P: usize>(&mut self, block: &Block<'_, R, P>, dots: &mut Dots<P>) {
        block.check(self.height);
        let step = |k: usize| {
            let panel = |p: usize| match block.rest {
                Some(rest) if k == block.steps => bytemuck::cast_slice(&rest[p]),
                _ => bytemuck::cast_slice(&block.panels[p][ROWS * k..]),
            };
            let band = |b: usize| &block.bands[b][BYTES * k..];
            At {
                a0: band(0),
                a1: band(R - 1),
                b0: panel(0),
                b1: panel(P - 1),
                row: block.stride,
                line: BYTES,
            }
        };
        let steps = (0..block.steps + usize::from(block.rest.is_some())).map(step);
        let dots: &mut [u8] = bytemuck::cast_slice_mut(dots.0.as_flattened_mut());
        match (R, P) {
            (2, 2) => listing!(emulate (self steps dots (2 * BYTES)) 2 by 2),
            (2, 1) => listing!(emulate (self steps dots BYTES) 2 by 1),
            (1, 2) => listing!(emulate (self steps dots (2 * BYTES)) 1 by 2),
            (1, 1) => listing!(emulate (self steps dots BYTES) 1 by 1),
            _ => unreachable!("a block of {R} by {P} tiles"),
        }
    }
}
