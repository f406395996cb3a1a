//! Figures of classifiers: means, confusion counts, sets of labels, calibration.

use super::Figure;

/// The mean of one value a row: accuracy (1 where right), exact match, F1 of answers.
#[derive(Clone, Debug)]
pub struct Mean(pub Vec<f64>);

impl Figure for Mean {
    fn at(&self, weights: &[u32]) -> f64 {
        let (mut sum, mut rows) = (0.0, 0u64);
        for (value, &w) in self.0.iter().zip(weights) {
            sum += f64::from(w) * value;
            rows += u64::from(w);
        }
        sum / rows as f64
    }
}

/// What [`Confusion`] makes of its counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Summary {
    MacroF1,
    Matthews,
}

/// Figures of the confusion matrix of a classifier.
#[derive(Clone, Debug)]
pub struct Confusion {
    pairs: Vec<(u32, u32)>,
    classes: usize,
    summary: Summary,
}

impl Confusion {
    fn new(truth: &[usize], predicted: &[usize], summary: Summary) -> Confusion {
        let classes = truth.iter().chain(predicted).max().map_or(0, |m| m + 1);
        let pairs = truth.iter().zip(predicted).map(|(&t, &p)| (t as u32, p as u32)).collect();
        Confusion { pairs, classes, summary }
    }

    /// The mean over classes of F1 `2 tp / (2 tp + fp + fn)`; classes that occur neither as truth nor as
    /// answer do not count.
    pub fn macro_f1(truth: &[usize], predicted: &[usize]) -> Confusion {
        Confusion::new(truth, predicted, Summary::MacroF1)
    }

    /// Matthews' correlation for any number of classes (Gorodkin 2004):
    /// `(c s - Σ p t) / sqrt((s² - Σ p²)(s² - Σ t²))`, 0 where that divides by 0.
    pub fn matthews(truth: &[usize], predicted: &[usize]) -> Confusion {
        Confusion::new(truth, predicted, Summary::Matthews)
    }
}

impl Figure for Confusion {
    fn at(&self, weights: &[u32]) -> f64 {
        let mut counts = vec![[0u64; 3]; self.classes]; // right, true, predicted
        for (&(t, p), &w) in self.pairs.iter().zip(weights) {
            let w = u64::from(w);
            counts[t as usize][1] += w;
            counts[p as usize][2] += w;
            if t == p {
                counts[t as usize][0] += w;
            }
        }
        match self.summary {
            Summary::MacroF1 => {
                let seen = counts.iter().filter(|[_, t, p]| t + p > 0);
                let (sum, n) = seen.fold((0.0, 0), |(sum, n), &[right, t, p]| {
                    (sum + 2.0 * right as f64 / (t + p) as f64, n + 1)
                });
                sum / f64::from(n)
            }
            Summary::Matthews => {
                let sum = |f: &dyn Fn(&[u64; 3]) -> f64| counts.iter().map(f).sum::<f64>();
                let (c, s) = (sum(&|k| k[0] as f64), sum(&|k| k[1] as f64));
                let cov = c * s - sum(&|k| k[1] as f64 * k[2] as f64);
                let (t, p) =
                    (s * s - sum(&|k| (k[1] as f64).powi(2)), s * s - sum(&|k| (k[2] as f64).powi(2)));
                if t * p > 0.0 { cov / (t * p).sqrt() } else { 0.0 }
            }
        }
    }
}

/// Macro F1 of classifiers with independent labels: the mean over all labels, 0 for a label that occurs
/// neither as truth nor as answer.
#[derive(Clone, Debug)]
pub struct LabelSets {
    truth: Vec<Vec<bool>>,
    predicted: Vec<Vec<bool>>,
}

impl LabelSets {
    /// Over rows of one flag a label.
    pub fn macro_f1(truth: Vec<Vec<bool>>, predicted: Vec<Vec<bool>>) -> LabelSets {
        LabelSets { truth, predicted }
    }
}

impl Figure for LabelSets {
    fn at(&self, weights: &[u32]) -> f64 {
        let labels = self.truth.first().map_or(0, Vec::len);
        let mut counts = vec![[0u64; 2]; labels]; // right, true + predicted
        for ((truth, predicted), &w) in self.truth.iter().zip(&self.predicted).zip(weights) {
            for ((count, &t), &p) in counts.iter_mut().zip(truth).zip(predicted) {
                count[0] += u64::from(w) * u64::from(t && p);
                count[1] += u64::from(w) * (u64::from(t) + u64::from(p));
            }
        }
        let f1 = |[right, all]: &[u64; 2]| if *all > 0 { 2.0 * *right as f64 / *all as f64 } else { 0.0 };
        counts.iter().map(f1).sum::<f64>() / labels as f64
    }
}

/// Expected calibration error (Guo et al. 2017, arXiv:1706.04599): 15 bins of equal width over the
/// probability of the answer, `(0, 1/15], ..`; the mean over rows of |accuracy - mean probability| of a bin.
#[derive(Clone, Debug)]
pub struct Calibration {
    bins: Vec<u8>,
    confidence: Vec<f64>,
    right: Vec<bool>,
}

const BINS: usize = 15;

impl Calibration {
    /// Over the probability of each answer and whether it is right.
    pub fn new(confidence: Vec<f64>, right: Vec<bool>) -> Calibration {
        let bin = |p: &f64| ((p * BINS as f64).ceil() as usize).clamp(1, BINS) as u8 - 1;
        Calibration { bins: confidence.iter().map(bin).collect(), confidence, right }
    }
}

impl Figure for Calibration {
    fn at(&self, weights: &[u32]) -> f64 {
        let mut gaps = [0.0f64; BINS];
        let mut rows = 0u64;
        for (i, &w) in weights.iter().enumerate() {
            gaps[usize::from(self.bins[i])] +=
                f64::from(w) * (f64::from(u8::from(self.right[i])) - self.confidence[i]);
            rows += u64::from(w);
        }
        gaps.iter().map(|g| g.abs()).sum::<f64>() / rows as f64
    }
}
