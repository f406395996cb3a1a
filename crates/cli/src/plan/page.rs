//! A plan as one HTML page: no script, no font, no picture from elsewhere.

use super::Job;
use super::bounds::shown;
use super::judge::Judge;
use super::memo::Memo;
use super::plot;
use super::search::Found;
use super::show::{POINT_HEADS, dots, head, module, module_heads, point, ranked, verdict};
use crate::diagnose::html::STYLE;
use crate::diagnose::plot::escape;
use qberta_toolkit::select::{Axis, Palette};
use std::fmt::Write;

pub fn page(job: &Job<'_>, judge: &Judge<'_>, palette: &Palette, memo: &Memo, found: &Found) -> String {
    let mut html = format!(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>\
         <meta name='viewport' content='width=device-width,initial-scale=1'>\
         <link rel='icon' href='data:,'><title>qberta plan</title><style>{STYLE}</style></head><body>\
         <h1>Which modules to quantize how</h1>"
    );
    for line in head(job, judge, palette, memo, found) {
        let _ = write!(html, "<p>{}</p>", escape(&line));
    }
    if let Some(chosen) = &found.chosen {
        html.push_str("<h2>The plan</h2>");
        for line in verdict(job, judge, palette, chosen) {
            let class = if chosen.proven { "" } else { " class='bad'" };
            let _ = write!(html, "<p{class}>{}</p>", escape(&line));
        }
    }
    let axis = job.bounds.axis();
    let name = if axis == Axis::Size { "bytes of the weights" } else { "time of a call" };
    let _ = write!(
        html,
        "<h2>Damage over {name}</h2><p class='how'>Each point is the selection with least damage for at most so much. \
         Damage: how far probabilities move, the second-order Kullback-Leibler divergence of the outputs from the \
         float model's, summed over modules. Points without damage lie on the floor.</p>{}",
        plot::svg(&dots(palette, found, axis), name, &|v| shown(axis, v))
    );
    html.push_str("<h2>Points of the curve</h2>");
    let curve = found.curve.iter().map(|p| point(palette, p, ""));
    let plan = found.chosen.iter().map(|c| point(palette, &c.point, "plan"));
    let heads = POINT_HEADS.map(str::to_owned);
    rows(&mut html, &heads, curve.chain(plan));
    html.push_str("<h2>Modules by damage</h2>");
    let plan = found.chosen.as_ref().map(|c| &c.point);
    let modules = ranked(palette, memo).into_iter().map(|u| module(palette, memo, u, plan));
    rows(&mut html, &module_heads(palette, plan.is_some()), modules);
    let _ = write!(
        html,
        "<p class='how'>Written by qberta {}. Every number: <code>qberta plan .. --json</code>.</p></body></html>",
        env!("CARGO_PKG_VERSION")
    );
    html
}

/// A table; columns whose head starts with `>` hold numbers.
fn rows(html: &mut String, heads: &[String], rows: impl Iterator<Item = Vec<String>>) {
    let class = |i: usize| if heads[i].starts_with('>') { " class='n'" } else { "" };
    html.push_str("<div class='wide'><table><tr>");
    for (i, name) in heads.iter().enumerate() {
        let _ = write!(html, "<th{}>{}</th>", class(i), escape(name.trim_start_matches('>')));
    }
    html.push_str("</tr>");
    for row in rows {
        html.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            let _ = write!(html, "<td{}>{}</td>", class(i), escape(cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div>");
}
