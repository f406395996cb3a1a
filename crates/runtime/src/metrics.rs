//! Figures of merit, and what a sample proves about them.
//!
//! Each figure is computed over rows that count a whole number of times ([`Figure::at`]): once each for the
//! figure itself, as often as drawn for a bootstrap resample. Names and definitions are those of
//! scikit-learn, scipy, seqeval and the SQuAD script; `testdata/metrics.json` holds their values.

mod answers;
mod classes;
mod ranks;
pub mod statistics;
mod tags;

pub use answers::{exact_match, f1 as answer_f1, normalized};
pub use classes::{Calibration, Confusion, LabelSets, Mean};
pub use ranks::{Area, Pearson, Spearman};
pub use tags::{Counts, Entity, Finder, entities, entity_counts, strict_entities};

/// A number over rows, each counted `weights[i]` times.
pub trait Figure: Sync {
    /// The figure; not a number where it is undefined (a correlation with a constant, an area with one
    /// class).
    fn at(&self, weights: &[u32]) -> f64;
}

#[cfg(test)]
mod tests;
