//! Plots as inline SVG: nothing to fetch, nothing to run.

use std::fmt::Write;

/// Colours that people with colour-blindness tell apart (Okabe and Ito).
pub const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#555555"];

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One line of a plot: a name and a value for each place of the horizontal axis that has one.
pub struct Series {
    pub name: String,
    pub values: Vec<Option<f64>>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// Lines over equally spaced `ticks`.
pub fn lines(series: &[Series], ticks: &[String], x_title: &str, y_title: &str) -> String {
    let values: Vec<f64> = series.iter().flat_map(|s| s.values.iter().flatten().copied()).collect();
    let Some(axis) = Axis::over(&values) else { return "<p>Nothing differs.</p>".into() };
    let x = |i: usize| {
        let span = WIDTH - LEFT - RIGHT;
        LEFT + span * (i as f64 + 0.5) / ticks.len().max(1) as f64
    };
    let y = |v: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - axis.part(v));
    let mut svg = open(y_title);
    for v in axis.ticks() {
        let _ = write!(
            svg,
            "<line x1='{LEFT}' x2='{:.0}' y1='{1:.1}' y2='{1:.1}' class='rule'/>\
             <text x='{2:.0}' y='{3:.1}' class='end'>{v:.0}</text>",
            WIDTH - RIGHT,
            y(v),
            LEFT - 6.0,
            y(v) + 4.0
        );
    }
    let every = ticks.len().div_ceil(24);
    for (i, tick) in ticks.iter().enumerate().filter(|(i, _)| i % every == 0) {
        let _ = write!(
            svg,
            "<text x='{:.1}' y='{:.0}' class='mid'>{}</text>",
            x(i),
            HEIGHT - BOTTOM + 16.0,
            escape(tick)
        );
    }
    let _ = write!(
        svg,
        "<text x='{:.0}' y='{:.0}' class='mid'>{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0,
        escape(x_title)
    );
    for (number, s) in series.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let dash = if number < COLOURS.len() { "" } else { " stroke-dasharray='5 3'" };
        let points: Vec<(f64, f64)> =
            s.values.iter().enumerate().filter_map(|(i, v)| Some((x(i), y((*v)?)))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(
            svg,
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'{dash}/>",
            path.join(" ")
        );
        for (i, v) in s.values.iter().enumerate() {
            let Some(v) = v else { continue };
            let _ = write!(
                svg,
                "<circle cx='{:.1}' cy='{:.1}' r='3' fill='{colour}'><title>{}, {}: {v:.1}</title></circle>",
                x(i),
                y(*v),
                escape(&s.name),
                escape(&ticks[i])
            );
        }
        let at = TOP + 8.0 + 17.0 * number as f64;
        let _ = write!(
            svg,
            "<line x1='{0:.0}' x2='{1:.0}' y1='{at:.0}' y2='{at:.0}' stroke='{colour}' stroke-width='3'{dash}/>\
             <text x='{2:.0}' y='{3:.0}'>{4}</text>",
            WIDTH - RIGHT + 14.0,
            WIDTH - RIGHT + 34.0,
            WIDTH - RIGHT + 40.0,
            at + 4.0,
            escape(&s.name)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Horizontal bars: a name, a value, and what stands behind the bar.
pub fn bars(rows: &[(String, f64, String)], title: &str) -> String {
    const ROW: f64 = 22.0;
    const NAMES: f64 = 220.0;
    const NOTES: f64 = 240.0;
    let most = rows.iter().map(|(_, v, _)| *v).fold(0.0, f64::max);
    if most <= 0.0 {
        return "<p>Nothing to show.</p>".into();
    }
    let height = ROW * rows.len() as f64 + 8.0;
    let mut svg = format!(
        "<svg viewBox='0 0 {WIDTH} {height:.0}' role='img' aria-label='{}' style='max-width:{WIDTH}px'>",
        escape(title)
    );
    for (i, (name, value, note)) in rows.iter().enumerate() {
        let y = 4.0 + ROW * i as f64;
        let width = (WIDTH - NAMES - NOTES) * value / most;
        let _ = write!(
            svg,
            "<text x='{:.0}' y='{1:.0}' class='end'>{2}</text>\
             <rect x='{NAMES}' y='{3:.0}' width='{width:.1}' height='14' fill='{4}'/>\
             <text x='{5:.1}' y='{1:.0}'>{6}</text>",
            NAMES - 8.0,
            y + 14.0,
            escape(name),
            y + 3.0,
            COLOURS[0],
            NAMES + width + 8.0,
            escape(note)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn open(title: &str) -> String {
    format!(
        "<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{0}' style='max-width:{WIDTH}px'>\
         <text x='12' y='{1:.0}' class='mid' transform='rotate(-90 12 {1:.0})'>{0}</text>",
        escape(title),
        (TOP + HEIGHT - BOTTOM) / 2.0
    )
}

/// A vertical axis with round ticks.
struct Axis {
    lo: f64,
    hi: f64,
    step: f64,
}

impl Axis {
    fn over(values: &[f64]) -> Option<Axis> {
        let lo = values.iter().copied().reduce(f64::min)?;
        let hi = values.iter().copied().reduce(f64::max)?;
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
            .into_iter()
            .find(|s| (hi - lo) / s <= 7.0)
            .unwrap_or((hi - lo) / 5.0);
        let (lo, hi) = ((lo / step).floor() * step, (hi / step).ceil() * step);
        Some(Axis { lo, hi: if hi > lo { hi } else { lo + step }, step })
    }

    fn part(&self, v: f64) -> f64 {
        (v - self.lo) / (self.hi - self.lo)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let n = ((self.hi - self.lo) / self.step).round() as usize;
        (0..=n).map(|i| self.lo + self.step * i as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_their_values_and_end_on_ticks() {
        for values in [&[3.2, 41.7][..], &[5.0], &[-9.5, 60.0], &[0.0, 0.0]] {
            let axis = Axis::over(values).unwrap();
            assert!(values.iter().all(|v| (0.0..=1.0).contains(&axis.part(*v))), "{values:?}");
            let ticks: Vec<f64> = axis.ticks().collect();
            assert!(ticks.len() >= 2 && ticks.len() <= 9, "{ticks:?}");
            assert_eq!((ticks[0], *ticks.last().unwrap()), (axis.lo, axis.hi));
        }
        assert!(Axis::over(&[]).is_none());
    }

    #[test]
    fn names_cannot_become_markup() {
        let series = [Series { name: "<b>&'\"".into(), values: vec![Some(1.0)] }];
        let svg = lines(&series, &["<i>".into()], "x", "y");
        assert!(!svg.contains("<b>") && !svg.contains("<i>"), "{svg}");
        let svg = bars(&[("<b>".into(), 1.0, "<u>".into())], "<s>");
        assert!(["<b>", "<u>", "<s>"].iter().all(|tag| !svg.contains(tag)), "{svg}");
        assert!(svg.contains("&lt;b&gt;") && svg.contains("&lt;u&gt;"), "{svg}");
    }
}
