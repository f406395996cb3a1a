//! What a plan may cost, as written on the command line.

use qberta_model::{Error, Result};
use qberta_toolkit::select::{Amounts, Axis, UNBOUNDED};

/// A bound: an amount, or a share of what the float model costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    Amount(f64),
    Share(f64),
}

impl Bound {
    fn of(self, float: f64) -> f64 {
        match self {
            Bound::Amount(amount) => amount,
            Bound::Share(share) => share * float,
        }
    }
}

fn parse(text: &str, units: &[(&str, f64)]) -> std::result::Result<Bound, String> {
    let number = |t: &str| t.trim().parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0);
    let names: Vec<&str> = units.iter().map(|(n, _)| *n).collect();
    let wrong = || format!("expected a number above 0 with {} (or %, of the float model)", names.join(", "));
    if let Some(percent) = text.strip_suffix('%') {
        return number(percent).map(|p| Bound::Share(p / 100.0)).ok_or_else(wrong);
    }
    let unit = units.iter().find(|(n, _)| text.to_ascii_lowercase().ends_with(&n.to_ascii_lowercase()));
    let (name, factor) = unit.ok_or_else(wrong)?;
    number(&text[..text.len() - name.len()]).map(|v| Bound::Amount(v * factor)).ok_or_else(wrong)
}

/// `12ms`, `0.5s` or `60%`, in seconds.
pub fn latency(text: &str) -> std::result::Result<Bound, String> {
    parse(text, &[("ms", 1e-3), ("us", 1e-6), ("s", 1.0)])
}

/// `80MB`, `190kB` or `40%`, in bytes.
pub fn size(text: &str) -> std::result::Result<Bound, String> {
    parse(text, &[("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("B", 1.0)])
}

/// A drop in points.
pub fn points(text: &str) -> std::result::Result<f64, String> {
    let points = text.parse::<f64>().ok().filter(|v| (0.0..=100.0).contains(v) && *v > 0.0);
    points.ok_or_else(|| "expected points of 100 above 0, such as 0.1".into())
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub drop: Option<f64>,
    pub latency: Option<Bound>,
    pub size: Option<Bound>,
    pub objective: Option<Axis>,
}

impl Bounds {
    /// What the plan has least of: what was asked, else what nothing bounds.
    pub fn aim(&self) -> Axis {
        match (self.drop, self.objective) {
            (None, _) => Axis::Damage,
            (Some(_), Some(axis)) => axis,
            (Some(_), None) if self.latency.is_some() && self.size.is_none() => Axis::Size,
            (Some(_), None) => Axis::Latency,
        }
    }

    /// What the curve is drawn over.
    pub fn axis(&self) -> Axis {
        match self.aim() {
            Axis::Damage
                if self.latency.is_none() && (self.size.is_some() || self.objective == Some(Axis::Size)) =>
            {
                Axis::Size
            }
            Axis::Damage => Axis::Latency,
            axis => axis,
        }
    }

    pub fn any(&self) -> bool {
        self.drop.is_some() || self.latency.is_some() || self.size.is_some()
    }

    /// Bounds on what modules may cost, after what no choice changes. `float` is the whole float model.
    ///
    /// Errors: a bound that what no choice changes is above alone.
    pub fn amounts(&self, float: &Amounts, fixed: &Amounts) -> Result<Amounts> {
        let mut bounds = UNBOUNDED;
        let asked = [(Axis::Latency, self.latency, "--max-latency"), (Axis::Size, self.size, "--max-size")];
        for (axis, bound, option) in asked {
            let (Some(bound), a) = (bound, axis as usize) else { continue };
            let whole = bound.of(float[a]);
            bounds[a] = whole - fixed[a];
            if bounds[a] <= 0.0 {
                return Err(Error::input("bound is below what no choice changes")
                    .at(option)
                    .expected(format!("more than {}", shown(axis, fixed[a])))
                    .found(shown(axis, whole)));
            }
        }
        Ok(bounds)
    }
}

/// An amount for people.
pub fn shown(axis: Axis, amount: f64) -> String {
    match axis {
        Axis::Damage => format!("{amount:.2e}"),
        Axis::Latency => format!("{:.3} ms", 1e3 * amount),
        Axis::Size => crate::screen::bytes(amount as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_with_their_units() {
        assert_eq!(latency("12ms"), Ok(Bound::Amount(0.012)));
        assert_eq!(latency("60%"), Ok(Bound::Share(0.6)));
        assert_eq!(size("80MB"), Ok(Bound::Amount(80e6)));
        assert_eq!(size("1.5 kb"), Ok(Bound::Amount(1500.0)));
        for text in ["", "12", "ms", "-1ms", "0MB", "nan%", "80XB"] {
            assert!(latency(text).is_err() && (text == "80XB" || size(text).is_err()), "{text}");
        }
        assert!(points("0.1").is_ok() && points("0").is_err() && points("-1").is_err());
    }
}
