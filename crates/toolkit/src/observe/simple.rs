//! Ranges from extremes.

use super::Range;

/// Smallest and largest value seen (PyTorch `MinMaxObserver`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MinMax(Option<(f32, f32)>);

impl MinMax {
    /// Takes in `values`.
    pub fn see(&mut self, values: &[f32]) {
        for &v in values {
            self.reach(v, v);
        }
    }

    /// Takes in what another one saw.
    pub fn merge(&mut self, other: &MinMax) {
        if let Some((lo, hi)) = other.0 {
            self.reach(lo, hi);
        }
    }

    /// The extremes.
    pub fn range(&self) -> Option<Range> {
        self.0.map(|(lo, hi)| Range { lo: f64::from(lo), hi: f64::from(hi) })
    }

    fn reach(&mut self, lo: f32, hi: f32) {
        self.0 = Some(self.0.map_or((lo, hi), |(l, h)| (l.min(lo), h.max(hi))));
    }
}

/// Weight of the newest call (PyTorch's `averaging_constant`).
const NEWEST: f64 = 0.01;

/// Moving averages of the extremes of each call: `m_1 = x_1, m_t = m_{t-1} + 0.01 (x_t - m_{t-1})` (PyTorch
/// `MovingAverageMinMaxObserver`).
///
/// One call is one sequence here, where PyTorch's is a padded batch, so the result depends on the order of the
/// data and not on how it was batched. Merging needs the order too: `m` over a part is affine in what came
/// before it, so the first call and the weighted sum of the others are kept apart:
/// `m_n = 0.99^(n-1) x_1 + sum_{t>1} 0.01 * 0.99^(n-t) x_t`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MovingAverage {
    calls: u64,
    first: (f64, f64),
    later: (f64, f64),
}

impl MovingAverage {
    /// Takes in one call.
    pub fn see(&mut self, values: &[f32]) {
        let mut call = MinMax::default();
        call.see(values);
        if let Some(Range { lo, hi }) = call.range() {
            self.merge(&MovingAverage { calls: 1, first: (lo, hi), later: (0.0, 0.0) });
        }
    }

    /// Takes in the calls that `next` saw after these.
    pub fn merge(&mut self, next: &MovingAverage) {
        if self.calls == 0 || next.calls == 0 {
            if self.calls == 0 {
                *self = next.clone();
            }
            return;
        }
        let kept = (1.0 - NEWEST).powf(next.calls as f64);
        let first = NEWEST * (1.0 - NEWEST).powf((next.calls - 1) as f64);
        let join = |old: f64, x: f64, new: f64| kept * old + first * x + new;
        self.later =
            (join(self.later.0, next.first.0, next.later.0), join(self.later.1, next.first.1, next.later.1));
        self.calls += next.calls;
    }

    /// The averages.
    pub fn range(&self) -> Option<Range> {
        let old = (1.0 - NEWEST).powf(self.calls.checked_sub(1)? as f64);
        Some(Range { lo: old * self.first.0 + self.later.0, hi: old * self.first.1 + self.later.1 })
    }
}
