//! Labelled and unlabelled text from files: JSONL, CSV, TSV, Parquet, plain lines.
//!
//! ```no_run
//! use qberta_runtime::dataset::{Columns, Dataset, Form};
//!
//! # fn main() -> qberta_model::Result<()> {
//! let data = Dataset::open("dev.jsonl".as_ref(), Form::Text, &Columns::default())?;
//! for remark in data.remarks() {
//!     eprintln!("{remark}"); // which column was taken for what, where that was guessed
//! }
//! for example in data.take(500) {
//!     let example = example?; // an error names the file and the line
//!     println!("{}: {:?} {:?}", example.place, example.row, example.target);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Rows are read one at a time; memory does not grow with the file (Parquet: one page of each column
//! that is used). Columns are found by name: those the caller names, else the usual names of the field
//! ([`Dataset::remarks`] says which were taken). Nothing is skipped in silence except empty lines: a line
//! that cannot be read is an error with its number.

mod columns;
mod lines;
mod parquet;

use crate::row::Row;
pub use columns::Columns;
use columns::Mapping;
use qberta_model::{Error, Result, Task};
use serde_json::Value;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// What an example consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A text, or a pair of texts, with a label.
    Text,
    /// A question about a context, with its accepted answers.
    Question,
    /// A text with several continuations, and the number of the right one.
    Choices,
    /// Words with a tag each; plain text where there are no words.
    Words,
}

impl Form {
    /// The form of examples for `task`. Masked words and features need nothing but text.
    pub fn of(task: Task) -> Form {
        match task {
            Task::QuestionAnswering => Form::Question,
            Task::MultipleChoice => Form::Choices,
            Task::TokenClassification => Form::Words,
            Task::SequenceClassification | Task::FillMask | Task::Features => Form::Text,
        }
    }
}

/// One example.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Where it was read.
    pub place: Place,
    /// What the model sees. The words of [`Form::Words`] are joined by single spaces.
    pub row: Row,
    /// What the right answer is, if the file says so.
    pub target: Target,
}

/// Where an example was read: a file and a line (Parquet: a row), counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: Arc<str>,
    unit: &'static str,
    /// The line or row.
    pub number: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.file, self.unit, self.number)
    }
}

/// The right answer of an example, as its file spells it.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The file has none.
    None,
    /// A label, a score or the number of a choice.
    Label(Label),
    /// Accepted answers to a question; none if it has no answer.
    Answers(Vec<String>),
    /// One tag per word.
    Tags {
        /// Characters of each word in the text.
        words: Vec<Range<usize>>,
        /// The tag of each word.
        tags: Vec<Label>,
    },
}

/// A label as a file spells it.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// An integer.
    Id(i64),
    /// A number with a fraction.
    Number(f64),
    /// A text (every cell of a CSV file).
    Name(String),
    /// Several.
    Many(Vec<Label>),
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Label::Id(id) => write!(f, "{id}"),
            Label::Number(x) => write!(f, "{x}"),
            Label::Name(name) => f.write_str(name),
            Label::Many(all) => {
                f.write_str("[")?;
                for (i, label) in all.iter().enumerate() {
                    write!(f, "{}{label}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// One record of a file before anyone knows what its columns mean.
struct Record {
    /// Line or row, from 1.
    number: usize,
    /// Values by column.
    fields: Vec<(String, Value)>,
}

impl Record {
    fn take(&mut self, column: &str) -> Option<Value> {
        let (_, value) = self.fields.iter_mut().find(|(name, _)| name == column)?;
        Some(std::mem::take(value))
    }
}

/// What every file format gives.
trait Records: Iterator<Item = Result<Record>> {
    /// Names of the columns there are.
    fn columns(&self) -> &[String];
    /// Reads these columns only, where the format can.
    fn project(&mut self, _columns: &[String]) -> Result<()> {
        Ok(())
    }
    /// Names of the ids of a column, where the format records them.
    fn names(&self, _column: &str) -> Option<Vec<String>> {
        None
    }
    /// What a record is called in messages.
    fn unit(&self) -> &'static str {
        "line"
    }
}

/// A file of examples, read as an iterator.
pub struct Dataset {
    records: Box<dyn Records>,
    mapping: Mapping,
    file: Arc<str>,
    names: Option<Vec<String>>,
    failed: bool,
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset").field("file", &self.file).field("mapping", &self.mapping).finish()
    }
}

impl Dataset {
    /// Opens `path`: `.jsonl` (also `.ndjson`, `.json`: one object a line), `.csv`, `.tsv` (with a header),
    /// `.parquet`, `.txt` (one text a line).
    ///
    /// Errors: a file that cannot be read, is empty, or lacks a column that `form` needs.
    pub fn open(path: &Path, form: Form, columns: &Columns) -> Result<Dataset> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let name = path.display();
        let records: Result<Box<dyn Records>> = match extension.as_str() {
            "jsonl" | "ndjson" | "json" => {
                lines::Json::open(path, columns.names().map(str::to_owned).collect())
                    .map(|r| Box::new(r) as _)
            }
            "csv" => lines::Csv::open(path, b',').map(|r| Box::new(r) as _),
            "tsv" => lines::Csv::open(path, b'\t').map(|r| Box::new(r) as _),
            "parquet" => parquet::Parquet::open(path).map(|r| Box::new(r) as _),
            "txt" => lines::Plain::open(path).map(|r| Box::new(r) as _),
            _ => Err(Error::input("kind of data file is not known")
                .expected("a name ending in .jsonl, .csv, .tsv, .parquet or .txt")),
        };
        let mut records = records.map_err(|e| e.at(&name))?;
        let mapping = Mapping::decide(form, columns, records.columns()).map_err(|e| e.at(&name))?;
        records.project(&mapping.used()).map_err(|e| e.at(&name))?;
        let names = mapping.label().and_then(|column| records.names(column));
        Ok(Dataset { records, mapping, file: name.to_string().into(), names, failed: false })
    }

    /// Which column was taken for what, one sentence each: the guessed ones only.
    pub fn remarks(&self) -> Vec<String> {
        self.mapping.remarks()
    }

    /// Names of the label ids, where the file records them (Parquet files of Hugging Face datasets do).
    pub fn label_names(&self) -> Option<&[String]> {
        self.names.as_deref()
    }
}

impl Iterator for Dataset {
    type Item = Result<Example>;

    fn next(&mut self) -> Option<Result<Example>> {
        // After an error the position in the file is unknown.
        if self.failed {
            return None;
        }
        let example = self.records.next()?.map_err(|e| e.at(&self.file)).and_then(|mut record| {
            let unit = self.records.unit();
            let place = Place { file: self.file.clone(), unit, number: record.number };
            let (row, target) = self.mapping.example(&mut record).map_err(|e| e.at(&place))?;
            Ok(Example { place, row, target })
        });
        self.failed = example.is_err();
        Some(example)
    }
}

#[cfg(test)]
mod tests;
