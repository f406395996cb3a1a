//! The lines of a packed panel, sorted by how wide a product they need.
//!
//! AVX2 multiplies bytes with `vpmaddubsw`, which adds two neighbouring products in 16 bits. That is exact for
//! every u8 input if the positive codes of the pair add up to at most 128 and the negative ones to at least
//! -128 (255 * 128 < 2^15). Only a few pairs of a weight break that; their lines are widened first instead.

use super::GROUP;
use crate::lanes::LANES;

/// Columns that share a product: one AVX2 register.
const HALF: usize = LANES / 2;

/// For both halves of each panel, the lines that no input can make saturate, then the others.
#[derive(Clone)]
pub(super) struct Order {
    groups: Vec<u16>, // [panels, 2, groups] a permutation of the groups of each half panel
    narrow: Vec<u16>, // [panels, 2] how many of them come first
    shared: bool,     // one panel's worth serves all of them
}

impl Order {
    /// Of packed `lines`, `groups` to a panel, at most 65 536 of them.
    pub fn of(lines: &[[[i8; GROUP]; LANES]], groups: usize) -> Order {
        let panels = lines.len().checked_div(groups).unwrap_or(0);
        let (mut order, mut narrow) = (Vec::with_capacity(2 * lines.len()), Vec::with_capacity(2 * panels));
        let mut wide = Vec::with_capacity(groups);
        for panel in lines.chunks_exact(groups.max(1)) {
            for half in 0..2 {
                let first = order.len();
                for (g, line) in (0..=u16::MAX).zip(panel) {
                    let fits = is_narrow(&line.as_chunks::<HALF>().0[half]);
                    if fits { &mut order } else { &mut wide }.push(g);
                }
                narrow.push((order.len() - first) as u16);
                order.append(&mut wide);
            }
        }
        Order { groups: order, narrow, shared: false }
    }

    /// Every line as if it could saturate, for panels that are not worth a look: `groups` lines, at most 65 536.
    pub fn wide(groups: usize) -> Order {
        let all = (0..=u16::MAX).take(groups);
        Order { groups: all.clone().chain(all).collect(), narrow: vec![0; 2], shared: true }
    }
}

/// Whether no input can take a pair of products of these columns out of 16 bits.
fn is_narrow(words: &[[i8; GROUP]; HALF]) -> bool {
    let pairs: &[i16; 2 * HALF] = bytemuck::cast_ref(words);
    // Negative if a sum is out of reach: one bit to look at, so that the loop is one of vectors.
    let mut left = 0;
    for pair in pairs {
        let (a, b) = ((pair << 8) >> 8, pair >> 8);
        left |= (128 - (a.max(0) + b.max(0))) | (128 + (a.min(0) + b.min(0)));
    }
    left >= 0
}

/// One panel of 16 output columns.
pub(crate) struct Panel<'a> {
    lines: &'a [[i32; LANES]],
    groups: &'a [u16], // [2, groups]
    narrow: &'a [u16], // [2]
}

impl<'a> Panel<'a> {
    /// Panel `number` of a weight, whose own lines are `lines`.
    #[inline(always)]
    pub(super) fn new(lines: &'a [[i32; LANES]], order: &'a Order, number: usize) -> Panel<'a> {
        let groups = lines.len();
        let number = if order.shared { 0 } else { number };
        let narrow = if groups == 0 { &[0; 2] } else { &order.narrow[2 * number..][..2] };
        Panel { lines, groups: &order.groups[2 * number * groups..][..2 * groups], narrow }
    }

    /// One line for each group of four inputs.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn lines(&self) -> &[[i32; LANES]] {
        self.lines
    }

    /// The lines of a half: those whose pairs fit 16 bits, and the others. All are below `lines().len()`.
    #[inline(always)]
    pub fn runs(&self, half: usize) -> (&[u16], &[u16]) {
        let groups = self.lines.len();
        self.groups[half * groups..(half + 1) * groups].split_at(usize::from(self.narrow[half]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_narrow_exactly_if_no_input_saturates_it() {
        for a in i8::MIN..=i8::MAX {
            for b in i8::MIN..=i8::MAX {
                let sums = [(0, 0), (0, 255), (255, 0), (255, 255)]
                    .map(|(x, y): (i32, i32)| x * i32::from(a) + y * i32::from(b));
                let fits = sums.iter().all(|sum| i16::try_from(*sum).is_ok());
                for at in [0, 2] {
                    let mut words = [[0; GROUP]; HALF];
                    (words[5][at], words[5][at + 1]) = (a, b);
                    assert_eq!(is_narrow(&words), fits, "{a} and {b}");
                }
            }
        }
    }

    #[test]
    fn an_order_is_a_permutation_of_each_half_panel() {
        let lines: Vec<[[i8; GROUP]; LANES]> = (0..3 * 50)
            .map(|i| std::array::from_fn(|l| [(i * 37 + l * 11) as i8, (i * l) as i8, 1, (i * 101) as i8]))
            .collect();
        let order = Order::of(&lines, 50);
        let words: Vec<[i32; LANES]> =
            lines.iter().map(|line| line.map(|w| i32::from_ne_bytes(w.map(|c| c as u8)))).collect();
        for (number, panel) in words.chunks(50).enumerate() {
            let panel = Panel::new(panel, &order, number);
            for half in 0..2 {
                let (narrow, wide) = panel.runs(half);
                assert!(narrow.is_sorted() && wide.is_sorted() && !narrow.is_empty() && !wide.is_empty());
                let mut all = [narrow, wide].concat();
                all.sort();
                assert_eq!(all, (0..50).collect::<Vec<u16>>());
            }
        }
    }
}
