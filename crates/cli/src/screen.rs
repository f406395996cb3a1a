//! What people and machines see: progress on standard error, results on standard output.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use qberta_model::{Error, Kind};
use qberta_toolkit::Progress;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

/// Where output goes.
pub struct Screen {
    /// Machines read standard output.
    pub json: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Screen {
    pub fn new(json: bool) -> Screen {
        Screen { json, bar: Mutex::new(None) }
    }

    /// Prints a line of results. A reader that went away (`| head`) is not an error.
    pub fn line(&self, text: impl AsRef<str>) {
        self.finish();
        let _ = writeln!(std::io::stdout(), "{}", tame(text.as_ref()));
    }

    /// Prints a value as JSON.
    pub fn value(&self, value: &impl serde::Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(e) => self.warn(&format!("result cannot be written as JSON: {e}")),
        }
    }

    /// Prints a remark for people on standard error.
    pub fn warn(&self, text: &str) {
        self.finish();
        let _ = writeln!(std::io::stderr(), "warning: {text}");
    }

    /// Prints an error with its advice; as JSON on standard output when machines read it.
    pub fn error(&self, error: &Error) {
        if self.json {
            self.value(&error_value(error));
        }
        self.complain(error);
    }

    /// Prints an error with its advice for people, on standard error.
    pub fn complain(&self, error: &Error) {
        self.finish();
        let mut err = std::io::stderr();
        let _ = writeln!(err, "error: {}", tame(&error.to_string()));
        if let Some(hint) = error.advice() {
            let _ = writeln!(err, " hint: {}", tame(hint));
        }
    }

    /// Ends the progress bar, if one is shown.
    pub fn finish(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

/// An error as machines read it: the members `error`, `hint` and `kind`.
pub fn error_value(error: &Error) -> Map<String, Value> {
    let kind = match error.kind() {
        Kind::Input => "input",
        Kind::Corrupt => "corrupt",
        Kind::Unsupported => "unsupported",
        Kind::Io => "io",
        Kind::Mismatch => "mismatch",
    };
    let members = [
        ("error", Value::from(error.to_string())),
        ("hint", Value::from(error.advice())),
        ("kind", Value::from(kind)),
    ];
    members.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// The text without characters that a terminal would obey: names in it may come from a file.
fn tame(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut tamed = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) { tamed.extend(c.escape_default()) } else { tamed.push(c) }
    }
    Cow::Owned(tamed)
}

impl Progress for Screen {
    fn stage(&self, name: &str, steps: u64) {
        self.finish();
        if !std::io::stderr().is_terminal() {
            return;
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(steps).with_style(style).with_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        if let Ok(mut slot) = self.bar.lock() {
            *slot = Some(bar);
        }
    }

    fn step(&self) {
        if let Ok(bar) = self.bar.lock()
            && let Some(bar) = bar.as_ref()
        {
            bar.inc(1);
        }
    }
}

/// A table with a header; columns whose header starts with `>` are right-aligned.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    let right: Vec<bool> = header.iter().map(|h| h.starts_with('>')).collect();
    let align = |i: usize, text: &str| {
        let side = if right[i] { CellAlignment::Right } else { CellAlignment::Left };
        Cell::new(text).set_alignment(side)
    };
    table.set_header(header.iter().enumerate().map(|(i, h)| align(i, h.trim_start_matches('>'))));
    for row in rows {
        table.add_row(row.iter().enumerate().map(|(i, c)| align(i, c)));
    }
    table
}

/// Facts, one a line: a name and what there is to say about it.
pub fn facts<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, text)| format!("  {name:width$}  {text}")).collect::<Vec<_>>().join("\n")
}

/// Bytes for people: `190.3 MB`, powers of ten.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// A count with spaces between thousands.
pub fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}
