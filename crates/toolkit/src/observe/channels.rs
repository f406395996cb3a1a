//! Extremes of every channel (PyTorch `PerChannelMinMaxObserver`).

use qberta_kernels::Matrix;

/// Smallest and largest value of each column.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Channels {
    lo: Vec<f32>,
    hi: Vec<f32>,
}

impl Channels {
    /// Takes in `x [rows, channels]`. Panics if the number of channels changed.
    pub fn see(&mut self, x: &Matrix) {
        for i in 0..x.rows() {
            self.reach(x.row(i), x.row(i));
        }
    }

    /// Takes in what another one saw.
    pub fn merge(&mut self, other: &Channels) {
        if !other.lo.is_empty() {
            self.reach(&other.lo, &other.hi);
        }
    }

    /// Smallest value of each channel; empty before anything was seen.
    pub fn lo(&self) -> &[f32] {
        &self.lo
    }

    /// Largest value of each channel.
    pub fn hi(&self) -> &[f32] {
        &self.hi
    }

    /// Largest absolute value of each channel.
    pub fn magnitudes(&self) -> Vec<f64> {
        self.lo.iter().zip(&self.hi).map(|(lo, hi)| f64::from(hi.max(-lo))).collect()
    }

    fn reach(&mut self, lo: &[f32], hi: &[f32]) {
        if self.lo.is_empty() {
            (self.lo, self.hi) = (lo.to_vec(), hi.to_vec());
            return;
        }
        assert_eq!(self.lo.len(), lo.len(), "channels of an observed input");
        self.lo.iter_mut().zip(lo).for_each(|(a, b)| *a = a.min(*b));
        self.hi.iter_mut().zip(hi).for_each(|(a, b)| *a = a.max(*b));
    }
}
