//! Files of lines: JSONL, CSV and TSV, plain text.

use super::{Record, Records};
use qberta_model::{Error, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The longest line or CSV record in bytes: far beyond any text a model reads, short of what a file
/// without line breaks would allocate.
const LONGEST: u64 = 16 << 20;

const BOM: &[u8] = b"\xef\xbb\xbf";

fn open(path: &Path) -> Result<BufReader<File>> {
    let io = |e: std::io::Error| Error::io("cannot read", "data", &e);
    if path.is_dir() {
        return Err(Error::input("data is a directory").expected("a file"));
    }
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).map_err(io)?);
    if reader.fill_buf().map_err(io)?.starts_with(BOM) {
        reader.consume(BOM.len());
    }
    Ok(reader)
}

fn empty() -> Error {
    Error::input("file holds no rows").expected("at least one")
}

/// Lines that are not empty, with their numbers, without their ends.
struct Lines {
    reader: BufReader<File>,
    number: usize,
}

impl Lines {
    fn open(path: &Path) -> Result<Lines> {
        Ok(Lines { reader: open(path)?, number: 0 })
    }

    fn read(&mut self) -> Result<Option<String>> {
        loop {
            self.number += 1;
            let at = |e: Error| e.at(format!("line {}", self.number));
            let mut line = Vec::new();
            let mut limited = self.reader.by_ref().take(LONGEST + 1);
            let n =
                limited.read_until(b'\n', &mut line).map_err(|e| at(Error::io("cannot read", "data", &e)))?;
            if n == 0 {
                return Ok(None);
            }
            if n as u64 > LONGEST {
                return Err(
                    at(Error::input("line is too long").expected(format!("at most {LONGEST} bytes"))),
                );
            }
            let text = String::from_utf8(line).map_err(|e| {
                at(Error::input("line is not UTF-8 text")
                    .found(format!("a bad byte at position {}", e.utf8_error().valid_up_to() + 1))
                    .hint("convert the file, for example with `iconv -f latin1 -t utf8`"))
            })?;
            let text = text.strip_suffix('\n').unwrap_or(&text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if !text.trim().is_empty() {
                return Ok(Some(text.to_owned()));
            }
        }
    }
}

/// One text a line.
pub(super) struct Plain {
    lines: Lines,
    first: Option<(usize, String)>,
    columns: Vec<String>,
}

impl Plain {
    pub fn open(path: &Path) -> Result<Plain> {
        let mut lines = Lines::open(path)?;
        let first = lines.read()?.ok_or_else(empty)?;
        Ok(Plain { first: Some((lines.number, first)), lines, columns: vec!["text".into()] })
    }
}

impl Iterator for Plain {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        let (number, line) = match self.first.take() {
            Some(first) => first,
            None => match self.lines.read().transpose()? {
                Ok(line) => (self.lines.number, line),
                Err(e) => return Some(Err(e)),
            },
        };
        Some(Ok(Record { number, fields: vec![("text".into(), Value::String(line))] }))
    }
}

impl Records for Plain {
    fn columns(&self) -> &[String] {
        &self.columns
    }
}

/// One JSON object a line.
pub(super) struct Json {
    lines: Lines,
    first: Option<Record>,
    columns: Vec<String>,
}

impl Json {
    /// The first object says which columns there are; `asked` may be missing from it (an optional one).
    pub fn open(path: &Path, asked: Vec<String>) -> Result<Json> {
        let mut lines = Lines::open(path)?;
        let first = lines.read()?.ok_or_else(empty)?;
        let first = parse(&first, lines.number)?;
        let columns = first.fields.iter().map(|(name, _)| name.clone()).chain(asked).collect();
        Ok(Json { lines, first: Some(first), columns })
    }
}

impl Iterator for Json {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let line = self.lines.read().transpose()?;
        Some(line.and_then(|line| parse(&line, self.lines.number)))
    }
}

impl Records for Json {
    fn columns(&self) -> &[String] {
        &self.columns
    }
}

fn parse(line: &str, number: usize) -> Result<Record> {
    let Object(fields) = serde_json::from_str(line).map_err(|e| {
        let error =
            Error::input("line is not a JSON object").at(format!("line {number}")).found(shortened(&e));
        match line.trim_start().starts_with('[') {
            true => error.hint("write one object a line (JSON Lines), not one list of them"),
            false => error,
        }
    })?;
    Ok(Record { number, fields })
}

/// What serde says, with its column but without its line, which is 1 in a one-line document.
fn shortened(e: &serde_json::Error) -> String {
    e.to_string().replace(" at line 1 column ", " at column ")
}

/// A JSON object whose keys are all different: of two equal keys one would be lost in silence.
struct Object(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Object, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object such as {\"text\": .., \"label\": ..}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Object, A::Error> {
                let mut fields: Vec<(String, Value)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if fields.iter().any(|(known, _)| *known == name) {
                        return Err(serde::de::Error::custom(format!("key {name:?} stands twice")));
                    }
                    fields.push((name, value));
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Comma- or tab-separated records under a header; every cell is a text.
pub(super) struct Csv {
    records: ::csv::StringRecordsIntoIter<Bounded<BufReader<File>>>,
    first: Option<::csv::StringRecord>,
    columns: Vec<String>,
}

impl Csv {
    pub fn open(path: &Path, delimiter: u8) -> Result<Csv> {
        let mut reader = ::csv::ReaderBuilder::new()
            .delimiter(delimiter)
            // Tab-separated files of the field quote nothing.
            .quoting(delimiter != b'\t')
            .from_reader(Bounded::new(open(path)?));
        let columns: Vec<String> =
            reader.headers().map_err(malformed)?.iter().map(|h| h.trim().to_owned()).collect();
        if let Some(twice) = columns.iter().enumerate().find(|(i, name)| columns[..*i].contains(name)) {
            return Err(Error::input("two columns have one name")
                .at("line 1")
                .found(format!("{:?}", twice.1))
                .hint("the first line must be a header with a name for every column"));
        }
        let mut records = reader.into_records();
        let first = records.next().ok_or_else(empty)?.map_err(malformed)?;
        Ok(Csv { records, first: Some(first), columns })
    }
}

fn malformed(e: ::csv::Error) -> Error {
    let line = e.position().map_or_else(|| "data".to_owned(), |p| format!("line {}", p.line()));
    match e.kind() {
        ::csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            Error::input("record has another number of cells than the header")
                .at(line)
                .expected(expected_len)
                .found(len)
                .hint("a text with the delimiter in it needs quotes around it")
        }
        ::csv::ErrorKind::Utf8 { .. } => Error::input("record is not UTF-8 text").at(line),
        ::csv::ErrorKind::Io(io) => Error::io("cannot read", "data", io),
        _ => Error::input("record cannot be read").at(line).found(e),
    }
}

impl Iterator for Csv {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        let record = match self.first.take() {
            Some(first) => first,
            None => {
                self.records.reader_mut().get_mut().record();
                match self.records.next()? {
                    Ok(record) => record,
                    Err(e) => return Some(Err(malformed(e))),
                }
            }
        };
        let number = record.position().map_or(0, |p| p.line() as usize);
        let cells = record.iter().map(|cell| Value::String(cell.to_owned()));
        Some(Ok(Record { number, fields: self.columns.iter().cloned().zip(cells).collect() }))
    }
}

impl Records for Csv {
    fn columns(&self) -> &[String] {
        &self.columns
    }
}

/// Ends a record that never ends: an opening quote without its partner would read the whole file.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R> Bounded<R> {
    fn new(inner: R) -> Bounded<R> {
        Bounded { inner, left: LONGEST }
    }

    /// A new record begins.
    fn record(&mut self) {
        self.left = LONGEST;
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            std::io::Error::other(format!(
                "a record is longer than {LONGEST} bytes; is a quote never closed?"
            ))
        })?;
        Ok(n)
    }
}
