//! A histogram that does not depend on the order of what it sees.
//!
//! PyTorch's HistogramObserver spans exactly the values seen so far and spreads old counts over new bins when
//! the span grows, so its counts depend on the order of the data. Here a bin is `[i w, (i + 1) w)` with `w` a
//! power of two, the smallest for which the values seen and zero fit in [`MOST`] bins. When the span grows, bins
//! are joined in pairs, which is exact: the counts are those of a histogram made at once with the final
//! width, in any order, merged or not. The price is a width up to twice that of `MOST` equal bins.

use super::{MinMax, Range};

/// Most bins: at least half as many are in use, no fewer than PyTorch's 2048.
pub const MOST: usize = 4096;

/// Narrowest bins: the step of the smallest subnormal number.
const NARROWEST: i32 = -149;

/// Counts of values by bin, and their extremes.
#[derive(Clone, Debug, PartialEq)]
pub struct Bins {
    exponent: i32,
    /// Bins 0, 1, 2, ..
    up: Vec<u64>,
    /// Bins -1, -2, -3, ..
    down: Vec<u64>,
    extremes: MinMax,
}

impl Default for Bins {
    fn default() -> Bins {
        Bins { exponent: NARROWEST, up: Vec::new(), down: Vec::new(), extremes: MinMax::default() }
    }
}

/// Equal bins from `start`, dense.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// Lower end of the first bin.
    pub start: f64,
    /// Width of a bin.
    pub width: f64,
    /// Values in each.
    pub counts: Vec<f64>,
}

impl Bins {
    /// Takes in finite `values`.
    pub fn see(&mut self, values: &[f32]) {
        let mut extremes = MinMax::default();
        extremes.see(values);
        self.fit(&extremes);
        let steps = self.width().recip();
        for &v in values {
            let at = f64::from(v) * steps;
            if at >= 0.0 {
                self.up[at as usize] += 1;
            } else {
                self.down[below(at)] += 1;
            }
        }
    }

    /// Takes in what another histogram saw.
    pub fn merge(&mut self, other: &Bins) {
        self.fit(&other.extremes);
        let mut other = other.clone();
        while other.exponent < self.exponent {
            other.join();
        }
        for (mine, theirs) in [(&mut self.up, &other.up), (&mut self.down, &other.down)] {
            for (a, b) in mine.iter_mut().zip(theirs) {
                *a += b;
            }
        }
    }

    /// Extremes of what was seen.
    pub fn range(&self) -> Option<Range> {
        self.extremes.range()
    }

    /// Width of a bin, a power of two.
    pub fn width(&self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    /// The bins between the extremes. Panics if nothing was seen.
    pub fn dense(&self) -> Dense {
        let Range { lo, hi } = self.range().expect("a histogram that has seen values");
        let width = self.width();
        let (first, last) = ((lo / width).floor() as i64, (hi / width).floor() as i64);
        let counts = (first..=last).map(|i| self.count(i) as f64).collect();
        Dense { start: first as f64 * width, width, counts }
    }

    /// Bins around zero, as many on each side as hold the extremes, joined in pairs until there are at most
    /// `most`.
    pub fn symmetric(&self, most: usize) -> Dense {
        let mut bins = self.clone();
        while 2 * bins.up.len().max(bins.down.len()) > most {
            bins.join();
        }
        let half = bins.up.len().max(bins.down.len()) as i64;
        let counts = (-half..half).map(|i| bins.count(i) as f64).collect();
        Dense { start: -(half as f64) * bins.width(), width: bins.width(), counts }
    }

    fn count(&self, bin: i64) -> u64 {
        let (side, at) = if bin >= 0 { (&self.up, bin) } else { (&self.down, -1 - bin) };
        side.get(at as usize).copied().unwrap_or(0)
    }

    /// Makes room for values between `extremes`.
    fn fit(&mut self, extremes: &MinMax) {
        self.extremes.merge(extremes);
        let Some(Range { lo, hi }) = self.extremes.range() else { return };
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        let needed = |width: f64| {
            let down = if lo < 0.0 { below(lo / width).saturating_add(1) } else { 0 };
            (down, ((hi / width) as usize).saturating_add(1))
        };
        let mut exponent = self.exponent;
        loop {
            let (down, up) = needed(f64::from(exponent).exp2());
            if down.saturating_add(up) <= MOST {
                while self.exponent < exponent {
                    self.join();
                }
                self.down.resize(down.max(self.down.len()), 0);
                self.up.resize(up.max(self.up.len()), 0);
                return;
            }
            exponent += 1;
        }
    }

    /// Doubles the width of the bins.
    fn join(&mut self) {
        self.exponent += 1;
        for side in [&mut self.up, &mut self.down] {
            *side = side.chunks(2).map(|pair| pair.iter().sum()).collect();
        }
    }
}

/// Which of the bins -1, -2, .. holds `at < 0`, in bins: `-1 - floor(at)`.
fn below(at: f64) -> usize {
    (-1.0 - at.floor()) as usize
}

impl Dense {
    /// Lower end of bin `i`.
    pub fn edge(&self, i: usize) -> f64 {
        self.start + i as f64 * self.width
    }

    /// The bins in which `share` percent of the values lie, half of the rest cut on each side (ONNX Runtime's
    /// asymmetric percentile calibrator, which leaves out the uppermost of these bins too).
    pub fn percentile(&self, share: f64) -> Range {
        let cut = (100.0 - share) / 200.0;
        Range { lo: self.edge(self.reaching(cut)), hi: self.edge(self.reaching(1.0 - cut) + 1) }
    }

    /// The first bin with which at least this part of all values has been counted.
    fn reaching(&self, part: f64) -> usize {
        let total: f64 = self.counts.iter().sum();
        let mut sum = 0.0;
        let found = self.counts.iter().position(|count| {
            sum += count / total;
            sum >= part
        });
        found.unwrap_or(self.counts.len() - 1)
    }
}
