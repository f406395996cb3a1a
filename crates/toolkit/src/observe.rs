//! Calibration observers: what range of values a grid should cover, from numbers seen one after another.
//!
//! Every observer is streaming (its memory does not depend on how much it sees) and mergeable: observers of
//! consecutive parts of the data, merged in order, answer as one observer of the whole. The names and
//! definitions are the field's (PyTorch `torch.ao.quantization`, ONNX Runtime's calibrators, the MSE observer
//! of compressed-tensors); where a mergeable version has to differ, its file says how.
//!
//! | method | range | from |
//! |---|---|---|
//! | `minmax` | smallest to largest value | [`MinMax`] |
//! | `moving-average` | moving averages of each call's smallest and largest value | [`MovingAverage`] |
//! | `histogram` | least squared rounding and clipping error, tails shrunk step by step | [`Bins`], [`l2`] |
//! | `percentile` | what is left when the tails are cut | [`Bins`] |
//! | `entropy` | symmetric, least Kullback-Leibler divergence | [`Bins`], [`entropy`] |
//! | `mse` | least squared error over ranges shrunk evenly | [`Bins`], [`mse`] |

pub mod bins;
pub mod channels;
pub mod entropy;
pub mod l2;
pub mod mse;
pub mod simple;
#[cfg(test)]
mod tests;

pub use bins::{Bins, Dense};
pub use channels::Channels;
pub use simple::{MinMax, MovingAverage};

use qberta_kernels::FixedGrid;
use qberta_model::{Error, Result};

/// How a range is chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Method {
    /// `minmax`
    MinMax,
    /// `moving-average`
    MovingAverage,
    /// `histogram`
    Histogram,
    /// `percentile`: the share in percent that stays inside.
    Percentile(f64),
    /// `entropy`
    Entropy,
    /// `mse`
    Mse,
}

/// ONNX Runtime's default, and the best of NVIDIA's study of BERT (arXiv:2004.09602).
const PERCENTILE: f64 = 99.999;

impl Method {
    /// Every method with its name and one line for people.
    pub const ALL: [(Method, &'static str, &'static str); 6] = [
        (Method::MinMax, "minmax", "smallest to largest value"),
        (Method::MovingAverage, "moving-average", "moving averages (0.01) of smallest and largest value"),
        (Method::Histogram, "histogram", "least squared error, tails shrunk step by step (PyTorch)"),
        (Method::Percentile(PERCENTILE), "percentile", "99.999 % of the values, or percentile:P"),
        (Method::Entropy, "entropy", "least Kullback-Leibler divergence, symmetric (TensorRT)"),
        (Method::Mse, "mse", "least squared error, both ends shrunk evenly"),
    ];

    /// The method called `name`.
    ///
    /// Errors: an unknown name, a percentile outside 50 to 100.
    pub fn parse(name: &str) -> Result<Method> {
        if let Some(share) = name.strip_prefix("percentile:") {
            return match share.parse() {
                Ok(p) if (50.0..=100.0).contains(&p) => Ok(Method::Percentile(p)),
                _ => Err(Error::input("percentile is out of range")
                    .at("--observer")
                    .expected("50 to 100")
                    .found(share)),
            };
        }
        Method::ALL.iter().find(|(_, n, _)| *n == name).map(|(m, ..)| *m).ok_or_else(|| {
            let known: Vec<_> = Method::ALL.iter().map(|(_, n, _)| *n).collect();
            Error::input("observer is not known").at("--observer").expected(known.join(", ")).found(name)
        })
    }

    /// The name that [`Method::parse`] reads.
    pub fn name(self) -> String {
        match self {
            Method::Percentile(p) if p != PERCENTILE => format!("percentile:{p}"),
            _ => {
                let same = |m: &Method| std::mem::discriminant(m) == std::mem::discriminant(&self);
                Method::ALL.iter().find(|(m, ..)| same(m)).map_or("", |(_, n, _)| n).to_owned()
            }
        }
    }
}

/// Smallest and largest value that a grid should hold.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Range {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

impl Range {
    /// The 8-bit grid over the range, widened to hold zero.
    ///
    /// Errors: a sentence, for a range that leaves f32.
    pub fn grid(self) -> std::result::Result<FixedGrid, String> {
        FixedGrid::over(self.lo as f32, self.hi as f32)
    }

    /// The symmetric 8-bit grid that reaches as far as the range does either way.
    ///
    /// Errors: a sentence, for a range that leaves f32.
    pub fn symmetric_grid(self) -> std::result::Result<FixedGrid, String> {
        FixedGrid::reaching(self.hi.max(-self.lo) as f32)
    }

    /// The part of the range that lies in `other`; all of `other` if there is none.
    fn within(self, other: Range) -> Range {
        let (lo, hi) = (self.lo.max(other.lo), self.hi.min(other.hi));
        if lo <= hi { Range { lo, hi } } else { other }
    }
}

/// A statistic and the method that reads a range from it.
#[derive(Clone, Debug)]
pub struct Observer {
    method: Method,
    statistic: Statistic,
    unusable: u64,
}

#[derive(Clone, Debug)]
enum Statistic {
    MinMax(MinMax),
    Moving(MovingAverage),
    Bins(Bins),
}

impl Observer {
    /// An observer that has seen nothing.
    pub fn new(method: Method) -> Observer {
        let statistic = match method {
            Method::MinMax => Statistic::MinMax(MinMax::default()),
            Method::MovingAverage => Statistic::Moving(MovingAverage::default()),
            _ => Statistic::Bins(Bins::default()),
        };
        Observer { method, statistic, unusable: 0 }
    }

    /// One call's values. Only [`Method::MovingAverage`] cares how values are divided into calls.
    pub fn see(&mut self, values: &[f32]) {
        let unusable = values.iter().filter(|v| !v.is_finite()).count();
        if unusable > 0 {
            // Counted, never binned: whoever asks for a range has to look at the count first.
            self.unusable += unusable as u64;
            return;
        }
        match &mut self.statistic {
            Statistic::MinMax(s) => s.see(values),
            Statistic::Moving(s) => s.see(values),
            Statistic::Bins(s) => s.see(values),
        }
    }

    /// Takes in what `later` saw after this observer. Panics if it has another method.
    pub fn merge(&mut self, later: &Observer) {
        self.unusable += later.unusable;
        match (&mut self.statistic, &later.statistic) {
            (Statistic::MinMax(a), Statistic::MinMax(b)) => a.merge(b),
            (Statistic::Moving(a), Statistic::Moving(b)) => a.merge(b),
            (Statistic::Bins(a), Statistic::Bins(b)) => a.merge(b),
            _ => panic!("observers of {:?} and {:?} cannot be merged", self.method, later.method),
        }
    }

    /// Values that were NaN or infinite.
    pub fn unusable(&self) -> u64 {
        self.unusable
    }

    /// The chosen range; `None` if nothing was seen.
    pub fn range(&self) -> Option<Range> {
        let bins = match &self.statistic {
            Statistic::MinMax(s) => return s.range(),
            Statistic::Moving(s) => return s.range(),
            Statistic::Bins(bins) => bins,
        };
        let seen = bins.range()?;
        let chosen = match self.method {
            Method::Histogram => l2::range(&bins.dense()),
            Method::Percentile(share) => bins.dense().percentile(share),
            Method::Entropy => entropy::range(bins),
            Method::Mse => mse::range(bins, seen),
            Method::MinMax | Method::MovingAverage => seen,
        };
        Some(chosen.within(seen))
    }
}
