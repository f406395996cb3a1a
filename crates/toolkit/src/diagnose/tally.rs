//! Sums from which the error of one run against another is told; memory does not depend on the data.

use serde::Serialize;

/// Sums over pairs of values (float run, other run).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    signal: f64,
    noise: f64,
    product: f64,
    other: f64,
    largest: f64,
    count: u64,
}

/// The error of one run against the float run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Errors {
    /// `10 log10(sum x^2 / sum (x - y)^2)` in dB; `None` if nothing differs.
    pub sqnr_db: Option<f64>,
    /// `sum x y / sqrt(sum x^2 sum y^2)`; 1 if both are zero.
    pub cosine: f64,
    /// Root of the mean squared difference.
    pub rms: f64,
    /// Largest difference.
    pub max: f64,
}

impl Tally {
    /// Takes in values of the float run `x` and of the other, `y`. Panics unless equally many.
    pub fn see(&mut self, x: &[f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "values of two runs");
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            let d = x - y;
            self.signal += x * x;
            self.noise += d * d;
            self.product += x * y;
            self.other += y * y;
            self.largest = self.largest.max(d.abs());
        }
        self.count += x.len() as u64;
    }

    /// Takes in what another tally saw.
    pub fn merge(&mut self, more: &Tally) {
        self.signal += more.signal;
        self.noise += more.noise;
        self.product += more.product;
        self.other += more.other;
        self.largest = self.largest.max(more.largest);
        self.count += more.count;
    }

    /// Sum of squared differences.
    pub fn noise(&self) -> f64 {
        self.noise
    }

    /// Whether anything was seen.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What the sums say.
    pub fn errors(&self) -> Errors {
        let both = (self.signal * self.other).sqrt();
        Errors {
            sqnr_db: (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).max(1e-30).log10()),
            cosine: if both > 0.0 {
                self.product / both
            } else {
                f64::from(u8::from(self.signal == self.other))
            },
            rms: (self.noise / self.count.max(1) as f64).sqrt(),
            max: self.largest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_the_formulas() {
        let mut tally = Tally::default();
        tally.see(&[3.0, 4.0], &[3.0, 3.0]);
        tally.see(&[0.0], &[0.0]);
        let e = tally.errors();
        assert!((e.sqnr_db.unwrap() - 10.0 * 25f64.log10()).abs() < 1e-12);
        assert!((e.cosine - 21.0 / (5.0 * 18f64.sqrt())).abs() < 1e-12);
        assert_eq!((e.rms, e.max), ((1.0f64 / 3.0).sqrt(), 1.0));
        let mut same = Tally::default();
        same.see(&[0.0, 0.0], &[0.0, -0.0]);
        assert_eq!((same.errors().sqnr_db, same.errors().cosine), (None, 1.0));
    }
}
