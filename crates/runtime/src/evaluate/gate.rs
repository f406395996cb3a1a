//! Accuracy gates: `accuracy>=-0.2` (at most 0.2 points below the float model), `f1>=abs:90`.
//!
//! A gate is decided on the unfavourable end of the two-sided 95 % interval, unless the point estimate is
//! asked for. The end that is printed is the end that decides: it holds 97.5 % alone, the usual level for a
//! claim of non-inferiority (ICH E9), and stricter than the one-sided 95 % of the literature's
//! `d + 1.645 SE <= margin`. A set that is too small to prove the margin therefore fails the gate; a point
//! estimate would let it pass by luck.

use super::{Estimate, Report};
use qberta_model::{Error, Result};

/// What decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    /// The lower end of the 95 % interval.
    Interval,
    /// The estimate itself.
    Point,
}

impl On {
    /// Every choice by name.
    pub const ALL: [(On, &'static str); 2] = [(On::Interval, "interval"), (On::Point, "point")];

    /// Its name.
    pub fn name(self) -> &'static str {
        On::ALL.iter().find(|(o, _)| *o == self).map_or("", |(_, n)| n)
    }
}

/// A bound on one figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    text: String,
    metric: String,
    least: f64,
    absolute: bool,
}

/// The share of rows with the same decision, as a figure of two models.
pub const AGREEMENT: &str = "agreement";

impl Gate {
    /// Parses `METRIC>=-DROP` or `METRIC>=abs:VALUE`, in points.
    ///
    /// Errors: anything else, with what was meant where that can be told.
    pub fn parse(text: &str) -> Result<Gate> {
        const FORM: &str =
            "METRIC>=-DROP (relative to the float model) or METRIC>=abs:VALUE, in points of 100";
        let refuse = |why: &str| Error::input(why).at("--gate").expected(FORM).found(format!("{text:?}"));
        let (metric, bound) = text.split_once(">=").ok_or_else(|| refuse("gate cannot be read"))?;
        let (metric, bound) = (metric.trim(), bound.trim());
        let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if metric.is_empty() || !metric.chars().all(name) {
            return Err(refuse("gate does not begin with the name of a figure"));
        }
        let (absolute, number) = match bound.strip_prefix("abs:") {
            Some(number) => (true, number.trim()),
            None => (false, bound),
        };
        let least: f64 = number
            .parse()
            .ok()
            .filter(|x: &f64| x.is_finite())
            .ok_or_else(|| refuse("gate has no number"))?;
        if !(-100.0..=100.0).contains(&least) {
            return Err(refuse("gate is outside -100 to 100 points"));
        }
        if !absolute && least > 0.0 {
            return Err(refuse("gate asks for more than the float model has")
                .hint(format!("write {metric}>=abs:{number} for a value, {metric}>=-{number} for a drop")));
        }
        if absolute && least > 0.0 && least <= 1.0 {
            return Err(refuse("gate is in points of 100, and this is next to nothing")
                .hint(format!("write {metric}>=abs:{}", 100.0 * least)));
        }
        if metric == AGREEMENT && !absolute {
            return Err(refuse("agreement is a value, not a difference")
                .hint(format!("write {AGREEMENT}>=abs:99.5 to allow half a point of changed answers")));
        }
        Ok(Gate { text: text.to_owned(), metric: metric.to_owned(), least, absolute })
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The figure it is about.
    pub fn metric(&self) -> &str {
        &self.metric
    }

    /// Whether it compares two models.
    pub fn is_relative(&self) -> bool {
        !self.absolute || self.metric == AGREEMENT
    }

    /// Whether a figure is among `known`, before any work is done.
    ///
    /// Errors: a figure this task does not have, or one that is better the lower it is.
    pub fn check(&self, known: &[super::Metric]) -> Result<()> {
        let found = known.iter().find(|m| m.name == self.metric);
        let names: Vec<&str> = known.iter().filter(|m| !m.lower_is_better).map(|m| m.name).collect();
        match found {
            Some(metric) if metric.lower_is_better => {
                Err(Error::input("gate is about a figure that is better the lower it is")
                    .at("--gate")
                    .expected(names.join(", "))
                    .found(&self.metric))
            }
            Some(_) => Ok(()),
            None if self.metric == AGREEMENT => Ok(()),
            None => Err(Error::input("this task has no such figure")
                .at("--gate")
                .expected(format!("{}, {AGREEMENT}", names.join(", ")))
                .found(&self.metric)),
        }
    }

    /// Decides the gate: for the last trial of `report`, against the first where it is relative.
    ///
    /// Errors: an unknown figure, or a comparison that was not made.
    pub fn decide(&self, report: &Report, on: On) -> Result<Verdict> {
        let known: Vec<_> = report.figures.iter().map(|(m, _)| *m).collect();
        self.check(&known)?;
        let comparison = report.comparison.as_ref();
        if self.is_relative() && comparison.is_none() {
            return Err(Error::input("gate compares two models, and there is one")
                .at("--gate")
                .found(&self.text)
                .hint(format!("name a second model, or write {}>=abs:VALUE", self.metric)));
        }
        let estimates = report.figures.iter().find(|(m, _)| m.name == self.metric).map(|(_, e)| e);
        let last = estimates.and_then(|e| e.last().copied());
        let estimate = match (self.absolute, comparison) {
            (true, Some(c)) if self.metric == AGREEMENT => {
                c.agreement.map(|a| Estimate { value: Some(a.value), interval: Some(a.interval) })
            }
            (false, Some(c)) => {
                c.differences.iter().find(|d| d.metric.name == self.metric).map(|d| d.estimate)
            }
            _ => last,
        };
        let undefined = || {
            Error::input("figure is undefined on this data, so the gate cannot be decided")
                .at("--gate")
                .found(&self.text)
                .hint("it needs more rows, or rows of more than one kind")
        };
        let Some(Estimate { value: Some(value), interval }) = estimate else { return Err(undefined()) };
        let decided = match on {
            On::Point => value,
            On::Interval => interval.ok_or_else(undefined)?[0],
        };
        Ok(Verdict {
            gate: self.text.clone(),
            metric: self.metric.clone(),
            // A hair for the rounding of `100 * (lost / rows)`.
            passed: decided >= self.least - 1e-9,
            least: self.least,
            relative: !self.absolute,
            value,
            interval,
            figure: if self.metric == AGREEMENT { Some(value) } else { last.and_then(|e| e.value) },
            reference: estimates.filter(|e| e.len() > 1).and_then(|e| e[0].value),
            on,
        })
    }
}

/// How a gate was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The gate as written.
    pub gate: String,
    /// Its figure.
    pub metric: String,
    /// Whether it holds.
    pub passed: bool,
    /// The least it allows.
    pub least: f64,
    /// Whether `value` is a difference of two models.
    pub relative: bool,
    /// What was compared with it.
    pub value: f64,
    /// The 95 % interval of that.
    pub interval: Option<[f64; 2]>,
    /// The figure of the model itself.
    pub figure: Option<f64>,
    /// The figure of the model it was compared with.
    pub reference: Option<f64>,
    /// What decided.
    pub on: On,
}

impl Verdict {
    /// One sentence.
    pub fn sentence(&self) -> String {
        let sign = |x: f64| if self.relative { format!("{x:+.2}") } else { format!("{x:.2}") };
        let interval = match self.interval {
            Some([low, high]) => format!(", 95 % interval [{}, {}]", sign(low), sign(high)),
            None => String::new(),
        };
        let models = match (self.relative, self.reference, self.figure) {
            (true, Some(a), Some(b)) => format!(" (from {a:.2} to {b:.2})"),
            _ => String::new(),
        };
        let what = if self.relative { "changed by " } else { "is " };
        let by = match self.on {
            On::Interval => "the lower end of the interval",
            On::Point => "the estimate",
        };
        let holds = if self.passed { "passed" } else { "failed" };
        format!(
            "gate {} {holds}: {} {what}{} points{models}{interval}; {by} must be at least {}",
            self.gate,
            self.metric,
            sign(self.value),
            self.least
        )
    }
}
