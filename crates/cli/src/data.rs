//! Rows of a data file for verbs that run a model over them: JSONL, or plain lines of text.

use qberta_model::{Error, Result};
use qberta_runtime::Row;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// A row with its place for messages, and its label if it has one.
pub struct Labelled {
    pub place: String,
    pub row: Row,
    pub label: Option<String>,
}

/// The first `limit` rows of the file at `path`.
///
/// Errors: no file, no row in it, a row that cannot be read, named by its line.
pub fn read(path: &Path, limit: Option<usize>) -> Result<Vec<Labelled>> {
    let file = File::open(path).map_err(|e| Error::io("cannot read", path.display(), &e))?;
    let mut rows = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        if limit.is_some_and(|n| rows.len() >= n) {
            break;
        }
        let place = format!("{} line {}", path.display(), i + 1);
        let line = line.map_err(|e| Error::io("cannot read", &place, &e))?;
        if line.trim().is_empty() {
            continue;
        }
        let (row, label) = parse(&line).map_err(|e| e.at(&place))?;
        rows.push(Labelled { place, row, label });
    }
    if rows.is_empty() {
        return Err(Error::input("data file holds no row")
            .at(path.display())
            .expected("one row a line: JSON, or a text"));
    }
    Ok(rows)
}

fn parse(line: &str) -> Result<(Row, Option<String>)> {
    if !line.trim_start().starts_with('{') {
        return Ok((Row::text(line), None));
    }
    let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    let label = match &value["label"] {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    Ok((Row::parse(line)?, label))
}
