//! What is booked at every place of a comparison.

use super::tally::Tally;
use crate::observe::Channels;
use qberta_kernels::Matrix;
use qberta_model::{Site, Slot};
use std::collections::BTreeMap;
use std::fmt;

/// A place of a comparison: a site, or a quantity inside a layer that has no weights of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// A site of the network.
    Site(Site),
    /// A term in a layer.
    Term(u16, Term),
}

/// A quantity inside a layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Term {
    /// Scores of content with content.
    ContentToContent,
    /// Scores of content with position.
    ContentToPosition,
    /// Scores of position with content.
    PositionToContent,
    /// Attention weights.
    Softmax,
    /// What attention gives: weights times values.
    Context,
    /// Sum before the LayerNorm after attention.
    AttentionResidual,
    /// Sum before the LayerNorm after the feed-forward block.
    FfnResidual,
}

impl Place {
    /// The encoder layer, if it lies in one.
    pub fn layer(self) -> Option<usize> {
        match self {
            Place::Site(Site::Layer(n, _)) | Place::Term(n, _) => Some(usize::from(n)),
            Place::Site(_) => None,
        }
    }

    /// Whether running `place` alone in quantized form means that `site` is. Attention stands for its products and the
    /// projected tables in it; weights that project both content and the relative table (`shared`) are wrong for both.
    pub fn includes(self, site: Site, shared: bool) -> bool {
        let (Place::Site(Site::Layer(n, own)), Site::Layer(m, slot)) = (self, site) else {
            return match (self, site) {
                (Place::Term(n, Term::Context), Site::Layer(m, slot)) => {
                    let tables = matches!(slot, Slot::PositionKey | Slot::PositionQuery);
                    n == m && (matches!(slot, Slot::Scores | Slot::Context) || !shared && tables)
                }
                (own, site) => own == Place::Site(site),
            };
        };
        let projects = match own {
            Slot::Query => Slot::PositionQuery,
            Slot::Key => Slot::PositionKey,
            other => other,
        };
        n == m && (slot == own || shared && slot == projects)
    }

    /// Whether the place can be quantized on its own. Attention can if its products are of codes (`coded`, by layer), and
    /// projected tables if they have weights of their own, else they belong to the query and key projections.
    pub fn runs_alone(self, shared: bool, coded: impl Fn(usize) -> bool) -> bool {
        match self {
            Place::Site(_) => true,
            Place::Term(layer, Term::Context) => !shared || coded(usize::from(layer)),
            Place::Term(..) => false,
        }
    }
}

impl Term {
    fn name(self) -> &'static str {
        match self {
            Term::ContentToContent => "scores.c2c",
            Term::ContentToPosition => "scores.c2p",
            Term::PositionToContent => "scores.p2c",
            Term::Softmax => "softmax",
            Term::Context => "attention",
            Term::AttentionResidual => "attention_residual",
            Term::FfnResidual => "ffn_residual",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Site(site) => write!(f, "{site}"),
            Place::Term(layer, term) => write!(f, "layer.{layer}.{}", term.name()),
        }
    }
}

/// The sums of one place.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub arriving: Tally,
    pub made: Tally,
    pub output: Tally,
    /// Of what is made: weights alone, on float inputs.
    pub by_weights: Tally,
    /// Of what is made: inputs cut to the range of a stored grid, in float.
    pub by_clipping: Tally,
    /// Of what is made: everything after that cut.
    pub by_rounding: Tally,
    pub clipped: u64,
    pub clippable: u64,
    pub channels: Channels,
    pub tokens: Tokens,
}

/// Entries in the order in which their places are first visited.
#[derive(Default)]
pub(super) struct Ledger {
    pub order: Vec<Place>,
    pub entries: BTreeMap<Place, Entry>,
}

impl Ledger {
    pub fn at(&mut self, place: Place) -> &mut Entry {
        if !self.entries.contains_key(&place) {
            self.order.push(place);
        }
        self.entries.entry(place).or_default()
    }
}

/// Which tokens the error made at a place belongs to. Memory grows with the vocabulary at most.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    /// Noise and rows by token id.
    pub by_id: BTreeMap<u32, (f64, u64)>,
    /// The rows with most noise, most first.
    pub worst: Vec<WorstRow>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct WorstRow {
    pub noise: f64,
    pub example: usize,
    pub position: usize,
    pub id: u32,
}

/// Rows kept by place.
const WORST: usize = 8;

impl Tokens {
    /// Books the difference of each row to its token. Rows are those of all tokens, or of the first.
    pub fn see(&mut self, float: &Matrix, other: &Matrix, ids: &[u32], example: usize) {
        for (position, &id) in ids.iter().enumerate().take(float.rows()) {
            let pairs = float.row(position).iter().zip(other.row(position));
            let noise: f64 = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
            let sums = self.by_id.entry(id).or_default();
            *sums = (sums.0 + noise, sums.1 + 1);
            let row = WorstRow { noise, example, position, id };
            let at = self.worst.partition_point(|w| w.noise >= noise);
            if at < WORST {
                self.worst.insert(at, row);
                self.worst.truncate(WORST);
            }
        }
    }
}
