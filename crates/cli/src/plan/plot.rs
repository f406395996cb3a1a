//! A curve of damage over cost: characters for a terminal, SVG for a page.

use crate::diagnose::plot::{COLOURS, escape};
use std::fmt::Write;

/// A dot: where it lies, what is written beside it.
pub struct Dot {
    pub x: f64,
    /// Damage; 0 has no place on a logarithmic axis and lies on the floor.
    pub y: f64,
    pub name: String,
    /// The plan.
    pub chosen: bool,
    /// On the curve, or a choice throughout to compare with.
    pub on_curve: bool,
}

/// Round ends of a logarithmic axis, and of a linear one.
struct Frame {
    low: f64,
    high: f64,
    left: f64,
    right: f64,
}

impl Frame {
    fn over(dots: &[Dot]) -> Option<Frame> {
        let logs: Vec<f64> = dots.iter().filter(|d| d.y > 0.0).map(|d| d.y.log10()).collect();
        let low = logs.iter().copied().reduce(f64::min)?.floor();
        let high = logs.iter().copied().reduce(f64::max)?.ceil();
        let left = dots.iter().map(|d| d.x).reduce(f64::min)?;
        let right = dots.iter().map(|d| d.x).reduce(f64::max)?;
        let margin = 0.04 * (right - left).max(1e-12 * right.abs().max(1e-300));
        Some(Frame { low: low.min(high - 1.0), high, left: left - margin, right: right + margin })
    }

    /// Where a dot lies, in parts of the frame: from the left, from the top.
    fn place(&self, dot: &Dot) -> (f64, f64) {
        let y = if dot.y > 0.0 { dot.y.log10() } else { self.low };
        ((dot.x - self.left) / (self.right - self.left), 1.0 - (y - self.low) / (self.high - self.low))
    }
}

const COLUMNS: usize = 64;
const LINES: usize = 14;

/// The curve in characters: `o` points, `@` the plan, `x` a choice throughout.
pub fn text(dots: &[Dot], low: &str, high: &str) -> String {
    let Some(frame) = Frame::over(dots) else { return "  nothing differs from float".into() };
    let mut cells = vec![vec![' '; COLUMNS]; LINES];
    let rank = |d: &Dot| (d.chosen, d.on_curve);
    let mut order: Vec<&Dot> = dots.iter().collect();
    order.sort_by_key(|d| rank(d));
    for dot in order {
        let (x, y) = frame.place(dot);
        let at = |part: f64, n: usize| ((part * (n - 1) as f64).round() as usize).min(n - 1);
        let mark = if dot.chosen {
            '@'
        } else if dot.on_curve {
            'o'
        } else {
            'x'
        };
        cells[at(y, LINES)][at(x, COLUMNS)] = mark;
    }
    let mut text = String::new();
    for (i, line) in cells.iter().enumerate() {
        let exponent = match i {
            0 => format!("1e{:.0}", frame.high),
            _ if i == LINES - 1 => format!("1e{:.0}", frame.low),
            _ => String::new(),
        };
        let line: String = line.iter().collect();
        let _ = writeln!(text, "{exponent:>7} |{}", line.trim_end());
    }
    let _ = write!(
        text,
        "        +{}\n         {low}{high:>width$}",
        "-".repeat(COLUMNS),
        width = COLUMNS - low.len()
    );
    text
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// The curve as SVG; `shown` writes an amount of the horizontal axis.
pub fn svg(dots: &[Dot], title: &str, shown: &dyn Fn(f64) -> String) -> String {
    let Some(frame) = Frame::over(dots) else { return "<p>Nothing differs from float.</p>".into() };
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let place = |d: &Dot| {
        let (x, y) = frame.place(d);
        (LEFT + width * x, TOP + height * y)
    };
    let mut svg = format!(
        "<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{0}' style='max-width:{WIDTH}px'>\
         <text x='14' y='{1:.0}' class='mid' transform='rotate(-90 14 {1:.0})'>damage (log)</text>\
         <text x='{2:.0}' y='{3:.0}' class='mid'>{0}</text>",
        escape(title),
        TOP + height / 2.0,
        LEFT + width / 2.0,
        HEIGHT - 8.0
    );
    for exponent in frame.low as i32..=frame.high as i32 {
        let y = TOP + height * (1.0 - (f64::from(exponent) - frame.low) / (frame.high - frame.low));
        let _ = write!(
            svg,
            "<line x1='{LEFT}' x2='{:.0}' y1='{y:.1}' y2='{y:.1}' class='rule'/>\
             <text x='{:.0}' y='{:.1}' class='end'>1e{exponent}</text>",
            LEFT + width,
            LEFT - 6.0,
            y + 4.0
        );
    }
    for i in 0..=4 {
        let amount = frame.left + (frame.right - frame.left) * f64::from(i) / 4.0;
        let _ = write!(
            svg,
            "<text x='{:.1}' y='{:.0}' class='mid'>{}</text>",
            LEFT + width * f64::from(i) / 4.0,
            HEIGHT - BOTTOM + 18.0,
            escape(&shown(amount))
        );
    }
    let path: Vec<String> = dots
        .iter()
        .filter(|d| d.on_curve && !d.chosen)
        .map(place)
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let _ = write!(
        svg,
        "<polyline points='{}' fill='none' stroke='{}' stroke-width='2'/>",
        path.join(" "),
        COLOURS[0]
    );
    let mut labels: Vec<(f64, f64)> = Vec::new();
    for dot in dots {
        let (x, y) = place(dot);
        let (colour, radius) = match (dot.chosen, dot.on_curve) {
            (true, _) => (COLOURS[1], 7.0),
            (_, true) => (COLOURS[0], 4.0),
            _ => (COLOURS[2], 5.0),
        };
        let _ = write!(
            svg,
            "<circle cx='{x:.1}' cy='{y:.1}' r='{radius}' fill='{colour}'><title>{}</title></circle>",
            escape(&dot.name)
        );
        if dot.chosen || !dot.on_curve {
            // Below the labels that it would cover.
            let (x, mut y) = (x + 10.0, y - 6.0);
            while labels.iter().any(|(u, v)| (x - u).abs() < 120.0 && (y - v).abs() < 12.0) {
                y += 14.0;
            }
            labels.push((x, y));
            let _ = write!(svg, "<text x='{x:.1}' y='{y:.1}'>{}</text>", escape(&dot.name));
        }
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(x: f64, y: f64, name: &str) -> Dot {
        Dot { x, y, name: name.into(), chosen: name == "plan", on_curve: name != "dynamic" }
    }

    #[test]
    fn every_dot_is_inside_and_names_cannot_become_markup() {
        let dots =
            [dot(1.0, 1e-3, "<b>"), dot(2.0, 1e-5, "plan"), dot(2.0, 0.0, "<i>"), dot(1.5, 2e-3, "dynamic")];
        let frame = Frame::over(&dots).unwrap();
        for d in &dots {
            let (x, y) = frame.place(d);
            assert!((0.0..=1.0).contains(&x) && (0.0..=1.0).contains(&y), "{}", d.name);
        }
        let drawn = svg(&dots, "<u>", &|v| format!("<{v}>"));
        assert!(!drawn.contains("<b>") && !drawn.contains("<i>") && !drawn.contains("<u>"), "{drawn}");
        let text = text(&dots, "low", "high");
        assert!(text.contains('@') && text.contains('x') && text.lines().count() == LINES + 2, "{text}");
        assert!(Frame::over(&[dot(1.0, 0.0, "a")]).is_none() && Frame::over(&[]).is_none());
    }
}
