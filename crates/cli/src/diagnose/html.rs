//! The report as one HTML page: no script, no font, no picture from elsewhere.

use super::plot::{Series, bars, escape, lines};
use super::{Subject, clipped, db, outlier, shortened, token, token_name};
use crate::screen::count;
use qberta_toolkit::diagnose::{Diagnosis, Errors, PlaceReport};
use std::fmt::Write;

pub const STYLE: &str = "\
:root{color-scheme:light}\
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;max-width:1080px;margin:2em auto;padding:0 1.5em}\
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2.2em;border-bottom:1px solid #d0d7de;padding-bottom:.2em}\
table{border-collapse:collapse;font-size:13px;width:100%}th,td{padding:4px 8px;text-align:left;border-bottom:1px solid #e6e9ed;vertical-align:top}\
th{background:#f6f8fa}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
.facts{display:flex;flex-wrap:wrap;gap:1em;margin:1em 0}.facts div{border:1px solid #d0d7de;border-radius:6px;padding:.6em 1em;min-width:9em}\
.facts b{display:block;font-size:1.35em}.facts span{color:#57606a;font-size:13px}\
p.how{color:#57606a;font-size:13.5px;max-width:56em}code{background:#f6f8fa;padding:0 .3em;border-radius:3px}\
svg{width:100%;height:auto;display:block;margin:.8em 0}svg text{font:12px system-ui,sans-serif;fill:#1b1f24}\
svg .end{text-anchor:end}svg .mid{text-anchor:middle}svg .rule{stroke:#e6e9ed}.bad{color:#b42318;font-weight:600}\
.wide{overflow-x:auto}.wide td{white-space:nowrap}.wide th.n{white-space:normal}";

/// Places in the table, channels and changed answers shown.
const PLACES: usize = 25;
const CHANNELS: usize = 20;
const FLIPS: usize = 100;

pub(super) fn page(subject: &Subject<'_>, found: &Diagnosis) -> String {
    let mut html = format!(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>\
         <meta name='viewport' content='width=device-width,initial-scale=1'>\
         <link rel='icon' href='data:,'><title>qberta diagnose</title><style>{STYLE}</style></head><body>"
    );
    head(&mut html, subject, found);
    ranking(&mut html, found);
    by_layer(&mut html, found);
    attention(&mut html, found);
    channels(&mut html, found);
    tokens(&mut html, subject, found);
    flips(&mut html, subject, found);
    let _ = writeln!(
        html,
        "<p class='how'>Written by qberta {}. Every number of this page and more: <code>qberta diagnose … --json</code>.</p>\
         </body></html>",
        env!("CARGO_PKG_VERSION")
    );
    html
}

fn head(html: &mut String, subject: &Subject<'_>, found: &Diagnosis) {
    let path = |p: &std::path::Path| escape(&p.display().to_string());
    let _ = write!(
        html,
        "<h1>Where error enters</h1><p><code>{}</code> against <code>{}</code>, {} rows of <code>{}</code></p>",
        path(&subject.args.quantized),
        path(&subject.args.float),
        count(found.examples),
        path(&subject.args.data)
    );
    let mut facts = vec![
        (format!("{} dB", db(Some(found.outputs))), "outputs, signal to noise"),
        (format!("{:.4}", found.mean_largest), "largest difference of an output, mean of rows"),
        (format!("{:.4}", found.outputs.max), "largest difference of all"),
    ];
    if found.decides {
        facts.push((format!("{} of {}", count(found.flips.len()), count(found.examples)), "answers changed"));
        if let Some(stage) = found.first_flip {
            facts.push((stage.to_string(), "earliest part whose quantization changes an answer"));
        }
    }
    if let Some(worst) = found.ranked().next() {
        facts.push((worst.place.clone(), "place with most damage"));
    }
    html.push_str("<div class='facts'>");
    for (value, name) in facts {
        let _ = write!(html, "<div><b>{}</b><span>{name}</span></div>", escape(&value));
    }
    html.push_str("</div>");
}

fn ranking(html: &mut String, found: &Diagnosis) {
    let _ = write!(
        html,
        "<h2>Places by damage</h2><p class='how'>Damage: how far the outputs move (root mean square, {} rows) when \
         this place alone is quantized. Made: the quantized operation on the float input against the float \
         operation. Arriving and leaving: the quantized run against the float run, before and after. All \
         in dB; 20 dB more is a tenth of the error. By weights, clipping and rounding: parts of what is made.</p>",
        found.alone_examples
    );
    let rows: Vec<_> = found
        .ranked()
        .take(PLACES)
        .filter_map(|p| Some((p.place.clone(), p.damage?.rms, format!("{:.5}", p.damage?.rms))))
        .take(12)
        .collect();
    html.push_str(&bars(&rows, "damage by place"));
    // Without stored grids nothing can clip, and there are no parts to tell apart.
    let parts = found.places.iter().any(|p| p.clipped.is_some());
    html.push_str("<table><tr><th>place</th>");
    for name in ["damage", "made", "by weights"] {
        let _ = write!(html, "<th class='n'>{name}</th>");
    }
    for name in ["by clipping", "by rounding", "clipped"].iter().filter(|_| parts) {
        let _ = write!(html, "<th class='n'>{name}</th>");
    }
    html.push_str(
        "<th class='n'>arriving</th><th class='n'>leaving</th><th>outlier channel</th><th>most error in</th></tr>",
    );
    for p in found.ranked().take(PLACES) {
        let poor = p.made.and_then(|e| e.sqnr_db).is_some_and(|db| db < 20.0);
        let _ = write!(html, "<tr><td>{}</td>", escape(&p.place));
        cell(html, &p.damage.map_or(String::new(), |d| format!("{:.5}", d.rms)), "n");
        cell(html, &db(p.made), if poor { "n bad" } else { "n" });
        cell(html, &db(p.made_by_weights), "n");
        if parts {
            for text in [db(p.made_by_clipping), db(p.made_by_rounding), clipped(p)] {
                cell(html, &text, "n");
            }
        }
        cell(html, &db(p.arriving), "n");
        cell(html, &db(Some(p.accumulated)), "n");
        cell(html, &outlier(p), "");
        cell(html, &token(p), "");
        html.push_str("</tr>");
    }
    html.push_str("</table>");
}

fn cell(html: &mut String, text: &str, class: &str) {
    let _ = write!(html, "<td class='{class}'>{}</td>", escape(text));
}

/// Slots whose plots would repeat another's.
const LINEARS: [&str; 6] = ["query", "key", "value", "attention_output", "ffn_up", "ffn_down"];

fn by_layer(html: &mut String, found: &Diagnosis) {
    let layers = found.places.iter().filter_map(|p| p.layer).max().map_or(0, |n| n + 1);
    let ticks: Vec<String> = (0..layers).map(|n| n.to_string()).collect();
    let series = |slots: &[&str], value: &dyn Fn(&PlaceReport) -> Option<Errors>, suffix: &str| {
        let one = |slot: &&str| Series {
            name: format!("{slot}{suffix}"),
            values: (0..layers)
                .map(|n| {
                    let place = found.places.iter().find(|p| p.layer == Some(n) && p.slot == **slot)?;
                    value(place)?.sqnr_db
                })
                .collect(),
        };
        let all: Vec<Series> = slots.iter().map(one).collect();
        all.into_iter().filter(|s| s.values.iter().any(Option::is_some)).collect::<Vec<_>>()
    };
    html.push_str(
        "<h2>Error made in each linear, by layer</h2><p class='how'>Signal to noise of the quantized operation on \
         float input. A dip is a place where this model is hard to quantize, whatever came before.</p>",
    );
    html.push_str(&lines(&series(&LINEARS, &|p| p.made, ""), &ticks, "layer", "made, dB"));
    html.push_str(
        "<h2>Error arriving at each linear, by layer</h2><p class='how'>Signal to noise of what the quantized run \
         feeds it. Where it falls errors add up, where it rises they average out. A classifier reads one row of the \
         last layer, so its last points are over first tokens only (key and value: all).</p>",
    );
    html.push_str(&lines(&series(&LINEARS, &|p| p.arriving, ""), &ticks, "layer", "arriving, dB"));
    html.push_str(
        "<h2>Residual stream, by layer</h2><p class='how'>Sums before each LayerNorm, and what leaves it: \
         the accumulated error on its way through the network.</p>",
    );
    let stream = ["attention_residual", "attention_norm", "ffn_residual", "ffn_norm"];
    html.push_str(&lines(&series(&stream, &|p| Some(p.accumulated), ""), &ticks, "layer", "leaving, dB"));
}

fn attention(html: &mut String, found: &Diagnosis) {
    let terms = ["scores.c2c", "scores.c2p", "scores.p2c", "softmax", "attention"];
    html.push_str(
        "<h2>Attention, term by term</h2><p class='how'>Scores of content with content (c2c), content with position \
         (c2p) and position with content (p2c), the attention weights, and weights times values. Errors of the three \
         scores add; rms is in units of the score, so that they can be compared.</p>\
         <table><tr><th class='n'>layer</th>",
    );
    for term in terms {
        let _ = write!(html, "<th class='n'>{term} dB</th>");
        if term.starts_with("scores") {
            html.push_str("<th class='n'>rms</th>");
        }
    }
    html.push_str("</tr>");
    let layers = found.places.iter().filter_map(|p| p.layer).max().map_or(0, |n| n + 1);
    for layer in 0..layers {
        let _ = write!(html, "<tr><td class='n'>{layer}</td>");
        for term in terms {
            let place = found.places.iter().find(|p| p.layer == Some(layer) && p.slot == term);
            cell(html, &db(place.map(|p| p.accumulated)), "n");
            if term.starts_with("scores") {
                let rms = place.map_or(String::new(), |p| format!("{:.4}", p.accumulated.rms));
                cell(html, &rms, "n");
            }
        }
        html.push_str("</tr>");
    }
    html.push_str("</table>");
}

fn channels(html: &mut String, found: &Diagnosis) {
    let mut all: Vec<(&PlaceReport, usize, f64, f64)> = found
        .places
        .iter()
        .flat_map(|p| p.outlier_channels.iter().map(move |c| (p, c.channel, c.ratio, c.largest)))
        .filter(|(p, ..)| !matches!(p.slot.as_str(), "query" | "key")) // the input of value
        .collect();
    all.sort_by(|a, b| b.2.total_cmp(&a.2));
    let rows: Vec<_> = all
        .iter()
        .take(CHANNELS)
        .map(|(p, channel, ratio, largest)| {
            (format!("{} #{channel}", p.place), *ratio, format!("{ratio:.0}x the median, up to {largest:.2}"))
        })
        .collect();
    html.push_str(
        "<h2>Outlier channels</h2><p class='how'>Input channels of linears by how far they reach, over the median \
         channel of the same input. Query and key read what value reads.</p>",
    );
    html.push_str(&bars(&rows, "outlier channels"));
}

fn tokens(html: &mut String, subject: &Subject<'_>, found: &Diagnosis) {
    html.push_str(
        "<h2>Tokens of the worst places</h2><p class='how'>Share: part of the error made at the place that lies in \
         rows of this token. Times: its error per row over the average row's.</p>\
         <table><tr><th>place</th><th>tokens by share</th><th>worst single row</th></tr>",
    );
    for p in found.ranked().filter(|p| !p.tokens.is_empty()).take(10) {
        let shares: Vec<String> = p
            .tokens
            .iter()
            .map(|t| format!("{} {:.0} % ({:.1}x)", token_name(&t.text, t.id), 100.0 * t.share, t.ratio))
            .collect();
        let worst = p.worst_tokens.first().map_or(String::new(), |w| {
            format!(
                "{} at {} of row {}: \"{}\"",
                token_name(&w.text, w.id),
                w.position,
                w.example + 1,
                shortened(&subject.text(w.example), 70)
            )
        });
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&p.place),
            escape(&shares.join(", ")),
            escape(&worst)
        );
    }
    html.push_str("</table>");
}

fn flips(html: &mut String, subject: &Subject<'_>, found: &Diagnosis) {
    if !found.decides {
        return;
    }
    let _ = write!(
        html,
        "<h2>Changed answers</h2><p class='how'>{} of {}. Led by: how far the float model's answer was ahead. Changes \
         with: the first part of the network that, quantized together with everything before it, changes the answer.</p>",
        count(found.flips.len()),
        count(found.examples)
    );
    if found.flips.is_empty() {
        return;
    }
    html.push_str(
        "<table><tr><th class='n'>row</th><th>text</th><th>label</th><th>float</th><th>quantized</th>\
         <th class='n'>led by</th><th>changes with</th></tr>",
    );
    for flip in found.flips.iter().take(FLIPS) {
        let told = subject.flip(flip);
        let part = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
        let _ = write!(html, "<tr><td class='n'>{}</td>", flip.example + 1);
        cell(html, &shortened(&part("text"), 160), "");
        for key in ["label", "float", "quantized"] {
            cell(html, &part(key), "");
        }
        cell(html, &format!("{:.3}", flip.margin), "n");
        cell(html, &part("first"), "");
        html.push_str("</tr>");
    }
    html.push_str("</table>");
    if found.flips.len() > FLIPS {
        let _ = write!(html, "<p class='how'>{} more in --json.</p>", count(found.flips.len() - FLIPS));
    }
}
