//! `qberta diagnose`: where the error of a quantized model enters.

pub mod html;
pub mod plot;

use crate::rows::{self, Data};
use crate::screen::{count, table};
use crate::{Outcome, World, output, task};
use clap::Args;
use qberta_model::{Architecture, Error, Result};
use qberta_runtime::{Row, Session};
use qberta_toolkit::diagnose::{Diagnosis, Errors, Flip, PlaceReport, diagnose};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Show where error enters a quantized model, place by place
///
/// Runs a float model and a quantized one in lock-step. For every place of the network: the error that
/// arrives, the error made there (the quantized operation on the float input), and what it does to the answers
/// when it alone is quantized, by which places are ranked. Names outlier channels, tokens and changed answers.
#[derive(Args)]
#[command(after_help = "\
Examples:
  qberta diagnose ./float ./int8 --data dev.jsonl
  qberta diagnose ./float ./int8 --data dev.csv --limit 500 --html report.html
  qberta diagnose ./float ./int8 --data dev.parquet --json > report.json

Columns: damage is the root mean square change of the outputs when this place alone is quantized; made,
arriving and leaving are signal-to-noise ratios in dB (20 dB more is a tenth of the error).")]
pub struct DiagnoseArgs {
    /// Directory of the float checkpoint
    float: PathBuf,
    /// Directory of the artefact made from it
    quantized: PathBuf,
    /// Rows to run, labelled or not (.jsonl, .csv, .tsv, .parquet, .txt)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Rows of it to use
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Places in the table
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    /// Write a report that a browser shows, in one file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Head to use instead of the one config.json names
    #[arg(long)]
    task: Option<String>,
}

/// What the report is about.
struct Subject<'a> {
    args: &'a DiagnoseArgs,
    data: &'a Data,
    arch: &'a Architecture,
    session: &'a Session,
}

pub fn run(args: &DiagnoseArgs, world: &World) -> Result<Outcome> {
    let task = task(&args.task)?;
    let html = args.html.as_deref().map(|path| output::open(path, "--html", &[&args.data])).transpose()?;
    let float = Session::open(&args.float, task, world.cx.clone())?;
    let quantized = Session::open(&args.quantized, task, world.cx.clone())?;
    let data = rows::read(&float, &args.data, "--data", Some(args.limit as usize), world)?;
    let mut found = diagnose(float.model(), quantized.model(), &data.sequences, &world.cx, &world.screen)?;
    world.screen.finish();
    if let Ok(tokenizer) = float.tokenizer() {
        // SentencePiece writes the space before a word as a bar.
        found.name_tokens(|id| tokenizer.token(id).map(|t| t.replace('\u{2581}', " ")));
    }
    let subject = Subject { args, data: &data, arch: float.architecture(), session: &float };
    if let (Some(path), Some(mut file)) = (&args.html, html) {
        let page = html::page(&subject, &found);
        output::begin(&file, path.display())?;
        file.write_all(page.as_bytes()).map_err(|e| Error::io("cannot write", path.display(), &e))?;
    }
    if world.screen.json {
        let flips: Vec<_> = found.flips.iter().map(|f| subject.flip(f)).collect();
        world.screen.value(&json!({
            "float": args.float, "quantized": args.quantized, "data": args.data,
            "diagnosis": found, "flipped": flips,
        }));
    } else {
        print(&subject, &found, world);
    }
    Ok(Outcome::Done)
}

impl Subject<'_> {
    /// The text of a row as people wrote it.
    fn text(&self, example: usize) -> String {
        match &self.data.rows[example] {
            Row::Text { text, pair: None } => text.clone(),
            Row::Text { text, pair: Some(pair) } => format!("{text} / {pair}"),
            Row::Question { question, context } => format!("{question} / {context}"),
            Row::Choices { text, choices } => format!("{text} / {}", choices.join(" | ")),
            Row::Tokens(s) => self.decoded(&s.ids),
            Row::TokenChoices(all) => all.first().map_or(String::new(), |s| self.decoded(&s.ids)),
        }
    }

    fn decoded(&self, ids: &[u32]) -> String {
        let text = self.session.tokenizer().and_then(|t| t.decode(ids));
        text.unwrap_or_else(|_| format!("{} token ids", ids.len()))
    }

    /// The outputs that a decision names: labels where the model has them.
    fn decided(&self, choices: &[usize], changed: impl Fn(usize) -> bool) -> String {
        let label = |i: usize| self.arch.labels.get(i).cloned().unwrap_or_else(|| i.to_string());
        let changed: Vec<String> =
            (0..choices.len()).filter(|i| changed(*i)).map(|i| label(choices[i])).collect();
        changed.join(", ")
    }

    /// A changed answer in words.
    fn flip(&self, flip: &Flip) -> serde_json::Value {
        let changed = |i: usize| flip.float[i] != flip.other[i];
        json!({
            "example": flip.example,
            "text": self.text(flip.example),
            "label": self.data.labels[flip.example],
            "float": self.decided(&flip.float, changed),
            "quantized": self.decided(&flip.other, changed),
            "margin": flip.margin,
            "largest_difference": flip.largest,
            "first": flip.first.map(|s| s.to_string()),
        })
    }
}

/// `31.2`, or that nothing differs.
fn db(errors: Option<Errors>) -> String {
    match errors {
        None => String::new(),
        Some(Errors { sqnr_db: None, .. }) => "exact".into(),
        Some(Errors { sqnr_db: Some(db), .. }) => format!("{db:.1}"),
    }
}

/// The largest input channel, if it stands out.
fn outlier(place: &PlaceReport) -> String {
    match place.outlier_channels.first() {
        Some(c) if c.ratio >= 4.0 => format!("{} ({:.0}x median)", c.channel, c.ratio),
        _ => String::new(),
    }
}

/// A token in quotes, so that the space before a word shows.
fn token_name(text: &Option<String>, id: u32) -> String {
    text.as_ref().map_or_else(|| format!("id {id}"), |t| format!("\"{t}\""))
}

/// The token that carries most of the error.
fn token(place: &PlaceReport) -> String {
    match place.tokens.first() {
        Some(t) => format!("{} ({:.0} %)", token_name(&t.text, t.id), 100.0 * t.share),
        None => String::new(),
    }
}

fn clipped(place: &PlaceReport) -> String {
    place.clipped.map_or(String::new(), |c| format!("{:.3} %", 100.0 * c))
}

fn print(subject: &Subject<'_>, found: &Diagnosis, world: &World) {
    let screen = &world.screen;
    screen.line(format!(
        "{} against {} on {} rows of {}",
        subject.args.quantized.display(),
        subject.args.float.display(),
        count(found.examples),
        subject.args.data.display()
    ));
    screen.line(format!(
        "outputs: {} dB, largest difference {:.4} on average and {:.4} at most\n",
        db(Some(found.outputs)),
        found.mean_largest,
        found.outputs.max
    ));
    let rows = found.ranked().take(usize::from(subject.args.top)).map(|p| {
        vec![
            p.place.clone(),
            p.damage.map_or(String::new(), |d| format!("{:.5}", d.rms)),
            db(p.made),
            db(p.made_by_weights),
            db(p.arriving),
            db(Some(p.accumulated)),
            clipped(p),
            outlier(p),
            token(p),
        ]
    });
    screen.line(
        table(
            &[
                "place",
                ">damage",
                ">made",
                ">by weights",
                ">arriving",
                ">leaving",
                ">clipped",
                "outlier channel",
                "most error in",
            ],
            rows,
        )
        .to_string(),
    );
    screen.line(attention(found));
    screen.line(changed(subject, found));
}

/// The terms of attention, over all layers: which of them carries the error.
fn attention(found: &Diagnosis) -> String {
    let terms = ["scores.c2c", "scores.c2p", "scores.p2c", "softmax", "attention"];
    let line = |slot: &&str| {
        let all: Vec<&PlaceReport> = found.places.iter().filter(|p| p.slot == **slot).collect();
        let worst = all.iter().max_by(|a, b| a.accumulated.rms.total_cmp(&b.accumulated.rms))?;
        Some(format!(
            "  {slot:<11} leaving {:>5} dB where it is worst, {} (rms {:.5})",
            db(Some(worst.accumulated)),
            worst.place,
            worst.accumulated.rms
        ))
    };
    let lines: Vec<String> = terms.iter().filter_map(line).collect();
    format!("\nattention, term by term:\n{}", lines.join("\n"))
}

/// Answers shown on the terminal.
const SHOWN: usize = 5;

fn changed(subject: &Subject<'_>, found: &Diagnosis) -> String {
    if !found.decides {
        return "\nthis task has no answers that could change".into();
    }
    let mut text = format!(
        "\nanswers changed: {} of {} ({:.2} %)",
        count(found.flips.len()),
        count(found.examples),
        100.0 * found.flips.len() as f64 / found.examples as f64
    );
    if let Some(stage) = found.first_flip {
        text.push_str(&format!("; the earliest once {stage} is quantized"));
    }
    for flip in found.flips.iter().take(SHOWN) {
        let told = subject.flip(flip);
        let part = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
        text.push_str(&format!(
            "\n  row {}: {} -> {} (led by {:.3}{}) \"{}\"",
            flip.example + 1,
            part("float"),
            part("quantized"),
            flip.margin,
            flip.first.map_or(String::new(), |s| format!("; changes with {s}")),
            shortened(&part("text"), 60)
        ));
    }
    text
}

/// At most `most` characters of `text`.
fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most - 1).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("né à Paris", 4), "né…");
        assert_eq!(shortened("né", 2), "né");
    }
}
