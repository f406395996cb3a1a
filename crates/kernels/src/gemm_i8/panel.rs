//! The lines of a packed panel, sorted by the product they need.
//!
//! AVX2 multiplies bytes with `vpmaddubsw`, which adds two neighbouring products in 16 bits. That is exact for
//! every u8 input if the positive codes of the pair add up to at most 128 and the negative ones to at least
//! -128 (255 * 128 < 2^15). Codes of one sign may break that, and codes of opposite signs never do, so a pair has
//! a second chance: `x w = 255 w + (255 - x)(-w)` for one of the two, whose `255 w` is a constant of the column.
//! Lines that fit neither way are widened first.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX2 has such a product"))]

use std::sync::LazyLock;

use super::GROUP;
use crate::lanes::LANES;

/// Columns that share a product: one AVX2 register.
const HALF: usize = LANES / 2;

/// Which pairs of a line have their second input turned over (255 - x): none, the first, the second, both.
const FORMS: usize = 4;

/// For both halves of each panel, the lines that no input can make saturate, form by form, then the others.
#[derive(Clone)]
pub(super) struct Order {
    groups: Vec<u16>,        // [panels, 2, groups] a permutation of the groups of each half panel
    ends: Vec<[u16; FORMS]>, // [panels, 2] where the run of each form ends
    start: Vec<[i32; HALF]>, // [panels, 2] 255 times the codes of inputs turned over, by column
    shared: bool,            // one panel's worth serves all of them
}

/// A form as masks of a register.
pub(crate) struct Turn {
    /// Bits of the inputs to turn over.
    pub flip: [i32; HALF],
    /// -1 for codes whose sign changes with them, else 1.
    pub sign: [[i8; GROUP]; HALF],
}

/// Made at run time and not constants, for of constants the compiler knows that all words are equal: it would turn one
/// word over and then spread it, a shuffle for each product.
static TURNS: LazyLock<[Turn; FORMS]> = LazyLock::new(|| {
    [[1, 1], [-1, 1], [1, -1], [-1, -1]].map(|[first, second]| {
        let sign: [i8; GROUP] = [1, first, 1, second];
        let flip = sign.map(|sign| if sign < 0 { 0xff } else { 0 });
        Turn { flip: [i32::from_ne_bytes(flip); HALF], sign: [sign; HALF] }
    })
});

impl Order {
    /// Of packed `lines`, `groups` to a panel, at most 65 536 of them.
    pub fn of(lines: &[[[i8; GROUP]; LANES]], groups: usize) -> Order {
        let panels = lines.len().checked_div(groups).unwrap_or(0);
        let mut order = Order {
            groups: Vec::with_capacity(2 * lines.len()),
            ends: Vec::with_capacity(2 * panels),
            start: Vec::with_capacity(2 * panels),
            shared: false,
        };
        let mut other: [Vec<u16>; FORMS] = std::array::from_fn(|_| Vec::with_capacity(groups)); // the last: wide
        for panel in lines.chunks_exact(groups.max(1)) {
            for half in 0..2 {
                let (first, mut start) = (order.groups.len(), [0; HALF]);
                for (g, line) in (0..=u16::MAX).zip(panel) {
                    let words = &line.as_chunks::<HALF>().0[half];
                    match form(words) {
                        Some(0) => order.groups.push(g),
                        Some(form) => {
                            other[form - 1].push(g);
                            let [first, second] = [form & 1, form >> 1].map(|turned| -(turned as i32));
                            for (start, word) in
                                start.iter_mut().zip(bytemuck::cast_ref::<_, [i32; HALF]>(words))
                            {
                                let word = i32::from_le(*word);
                                *start += first & ((word << 16) >> 24);
                                *start += second & (word >> 24);
                            }
                        }
                        None => other[FORMS - 1].push(g),
                    }
                }
                order.ends.push(std::array::from_fn(|form| {
                    let end = order.groups.len() - first;
                    order.groups.append(&mut other[form]);
                    end as u16
                }));
                order.start.push(start.map(|codes| 255 * codes));
            }
        }
        order
    }

    /// Every line as if it could saturate, for panels that are not worth a look: `groups` lines, at most 65 535.
    pub fn wide(groups: usize) -> Order {
        Order::alike(groups, 0)
    }

    /// No line can, since every input is at most 127 (2 * 127 * 127 < 2^15).
    pub fn narrow(groups: usize) -> Order {
        Order::alike(groups, groups)
    }

    fn alike(groups: usize, end: usize) -> Order {
        debug_assert!(groups <= usize::from(u16::MAX), "{groups} lines");
        let all = (0..=u16::MAX).take(groups);
        Order {
            groups: all.clone().chain(all).collect(),
            ends: vec![[end as u16; FORMS]; 2],
            start: vec![[0; HALF]; 2],
            shared: true,
        }
    }
}

/// The form in which no input can take a pair of products of these columns out of 16 bits, with no more turned over
/// than that takes.
fn form(words: &[[i8; GROUP]; HALF]) -> Option<usize> {
    let pairs: &[i16; 2 * HALF] = bytemuck::cast_ref(words);
    // Negative if a sum is out of reach: bits to look at once, so that the loops are loops of vectors. Most lines are
    // done after the first, and loading a model waits for this.
    let plain = |pair: i16| {
        let (a, b) = ((pair << 8) >> 8, pair >> 8);
        (128 - (a.max(0) + b.max(0))) | (128 + (a.min(0) + b.min(0)))
    };
    let turned = |pair: i16| {
        let (a, b) = ((pair << 8) >> 8, pair >> 8);
        // The negative of -128 is not a code: `b + 127`.
        (128 - (a.max(0) - b.min(0))) | (128 + (a.min(0) - b.max(0))) | (b + 127)
    };
    let mut all = 0;
    for pair in pairs {
        all |= plain(*pair);
    }
    if all >= 0 {
        return Some(0);
    }
    // A bit for the first and for the second pairs of all words.
    let misfits = |left: [i16; 2 * HALF]| {
        let [first, second] = left.as_chunks().0.iter().fold([0; 2], |[a, b], [x, y]| [a | x, b | y]);
        usize::from(first < 0) | usize::from(second < 0) << 1
    };
    let form = misfits(pairs.map(plain));
    (form & misfits(pairs.map(turned)) == 0).then_some(form)
}

/// One panel of 16 output columns.
pub(crate) struct Panel<'a> {
    lines: &'a [[i32; LANES]],
    order: &'a Order,
    number: usize,
}

/// The lines of half a panel by the product they need. All are below `lines().len()`.
pub(crate) struct Runs<'a> {
    /// Those whose pairs fit 16 bits in each form.
    pub narrow: [&'a [u16]; FORMS],
    /// The others.
    pub wide: &'a [u16],
    /// What to start the sums of the columns from.
    pub start: &'a [i32; HALF],
    /// The forms.
    pub turns: &'static [Turn; FORMS],
}

impl<'a> Panel<'a> {
    /// Panel `number` of a weight, whose own lines are `lines`.
    #[inline(always)]
    pub(super) fn new(lines: &'a [[i32; LANES]], order: &'a Order, number: usize) -> Panel<'a> {
        Panel { lines, order, number: if order.shared { 0 } else { number } }
    }

    /// One line for each group of four inputs.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn lines(&self) -> &[[i32; LANES]] {
        self.lines
    }

    /// The runs of a half.
    #[inline(always)]
    pub fn runs(&self, half: usize) -> Runs<'a> {
        let (groups, at) = (self.lines.len(), 2 * self.number + half);
        let (Order { groups: all, ends, start, .. }, turns) = (self.order, &*TURNS);
        if groups == 0 {
            return Runs { narrow: [&[]; FORMS], wide: &[], start: &[0; HALF], turns };
        }
        let all = &all[at * groups..(at + 1) * groups];
        let ends = ends[at].map(usize::from);
        let narrow =
            [&all[..ends[0]], &all[ends[0]..ends[1]], &all[ends[1]..ends[2]], &all[ends[2]..ends[3]]];
        Runs { narrow, wide: &all[ends[3]..], start: &start[at], turns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    /// Whether `vpmaddubsw` is exact for every input of a pair of codes.
    fn fits(a: i32, b: i32) -> bool {
        let sums = [(0, 0), (0, 255), (255, 0), (255, 255)].map(|(x, y)| x * a + y * b);
        sums.iter().all(|sum| i16::try_from(*sum).is_ok())
    }

    #[test]
    fn a_line_has_a_form_exactly_if_no_input_saturates_it() {
        for a in i8::MIN..=i8::MAX {
            for b in i8::MIN..=i8::MAX {
                let plain = fits(a.into(), b.into());
                let turned = b != i8::MIN && fits(a.into(), -i32::from(b));
                let expected = |form| if plain { Some(0) } else { turned.then_some(form) };
                let mut words = [[0; GROUP]; HALF];
                (words[5][0], words[5][1]) = (a, b);
                assert_eq!(form(&words), expected(1), "{a} and {b}");
                (words[2][2], words[2][3]) = (a, b);
                assert_eq!(form(&words), expected(3), "twice {a} and {b}");
                words[5] = [0; GROUP];
                assert_eq!(form(&words), expected(2), "{a} and {b} in the second pair");
            }
        }
    }

    #[test]
    fn a_line_is_wide_if_its_columns_need_both_forms_of_a_pair() {
        let mut words = [[0; GROUP]; HALF];
        words[0] = [100, 100, 0, 0];
        words[1] = [100, -100, 0, 0];
        assert_eq!(form(&words), None);
        words[1] = [0, 0, 100, -100];
        assert_eq!(form(&words), Some(1));
    }

    #[test]
    fn an_order_is_a_permutation_of_each_half_panel() {
        // Codes up to 127, 80 and 60: lines that are mostly wide, of all forms, and plain.
        let lines: Vec<[[i8; GROUP]; LANES]> = values(3 * 50 * LANES * GROUP, 1)
            .chunks(LANES * GROUP)
            .zip([127.0, 80.0, 60.0].into_iter().cycle())
            .map(|(line, most)| {
                let code = |k: usize| (line[k].clamp(-1.0, 1.0) * most) as i8;
                std::array::from_fn(|l| std::array::from_fn(|k| code(l * GROUP + k)))
            })
            .collect();
        let order = Order::of(&lines, 50);
        let words: Vec<[i32; LANES]> =
            lines.iter().map(|line| line.map(|w| i32::from_ne_bytes(w.map(|c| c as u8)))).collect();
        let mut seen = [0; FORMS + 1];
        for (number, panel) in words.chunks(50).enumerate() {
            let panel = Panel::new(panel, &order, number);
            for half in 0..2 {
                let Runs { narrow, wide, start, .. } = panel.runs(half);
                assert!(narrow.iter().all(|run| run.is_sorted()) && wide.is_sorted());
                let all = narrow.into_iter().chain([wide]);
                seen.iter_mut().zip(all).for_each(|(seen, run)| *seen += run.len());
                let mut expected = [0; HALF];
                for (form, run) in narrow.iter().enumerate() {
                    for &g in *run {
                        for (l, sum) in expected.iter_mut().enumerate() {
                            let word = lines[number * 50 + usize::from(g)][half * HALF + l];
                            *sum += if form & 1 != 0 { 255 * i32::from(word[1]) } else { 0 };
                            *sum += if form & 2 != 0 { 255 * i32::from(word[3]) } else { 0 };
                        }
                    }
                }
                assert_eq!(*start, expected);
                let mut all = [narrow.concat(), wide.to_vec()].concat();
                all.sort();
                assert_eq!(all, (0..50).collect::<Vec<u16>>());
            }
        }
        assert!(seen.iter().all(|&lines| lines > 0), "{seen:?}");
    }
}
