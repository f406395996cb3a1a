//! Parquet files, through the `parquet` crate's record reader: only the columns in use are read.

use super::{Record, Records};
use ::parquet::basic::{Compression, Type as Physical};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::reader::RowIter;
use ::parquet::record::{Field, Row};
use ::parquet::schema::types::Type;
use qberta_model::{Error, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// Most uncompressed bytes of one column chunk: what a file may make us allocate.
const LARGEST: i64 = 2 << 30;

pub(super) struct Parquet {
    reader: Arc<SerializedFileReader<File>>,
    rows: Option<RowIter<'static>>,
    columns: Vec<String>,
    features: Option<Value>,
    number: usize,
    total: usize,
}

impl Parquet {
    pub fn open(path: &Path) -> Result<Parquet> {
        if path.is_dir() {
            return Err(Error::input("data is a directory").expected("a file"));
        }
        let mut file = File::open(path).map_err(|e| Error::io("cannot read", "data", &e))?;
        let mut magic = [0; 4];
        if file.read_exact(&mut magic).is_err() || &magic != b"PAR1" {
            return Err(Error::input("this is not a Parquet file").expected("a file that begins with PAR1"));
        }
        let reader = guard(|| SerializedFileReader::new(file))?;
        let metadata = reader.metadata();
        for group in metadata.row_groups() {
            for chunk in group.columns() {
                if !(0..=LARGEST).contains(&chunk.uncompressed_size()) {
                    return Err(Error::input("column is too large")
                        .at(chunk.column_path().string())
                        .expected(format!("at most {LARGEST} bytes in a row group"))
                        .found(chunk.uncompressed_size()));
                }
            }
        }
        let total = usize::try_from(metadata.file_metadata().num_rows()).unwrap_or(0);
        if total == 0 {
            return Err(Error::input("file holds no rows").expected("at least one"));
        }
        let columns = reader.metadata().file_metadata().schema().get_fields();
        let columns = columns.iter().map(|f| f.name().to_owned()).collect();
        let features = metadata
            .file_metadata()
            .key_value_metadata()
            .and_then(|all| all.iter().find(|kv| kv.key == "huggingface")?.value.as_deref())
            .and_then(|text| serde_json::from_str::<Value>(text).ok())
            .and_then(|v| v.pointer("/info/features").cloned());
        Ok(Parquet { reader: Arc::new(reader), rows: None, columns, features, number: 0, total })
    }
}

/// Runs a call into the `parquet` crate, which asserts on what it read from a file: a file from a stranger
/// must not end the program.
fn guard<T>(call: impl FnOnce() -> std::result::Result<T, ParquetError>) -> Result<T> {
    let damaged = || Error::corrupt("the Parquet file is damaged");
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| damaged().found(e)),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("its parts disagree");
            Err(damaged().found(said))
        }
    }
}

impl Records for Parquet {
    fn columns(&self) -> &[String] {
        &self.columns
    }

    fn unit(&self) -> &'static str {
        "row"
    }

    fn project(&mut self, columns: &[String]) -> Result<()> {
        let metadata = self.reader.metadata();
        let used = |path: &str| columns.iter().any(|c| c == path);
        for chunk in metadata.row_groups().iter().flat_map(|g| g.columns()) {
            let Some(column) = chunk.column_path().parts().first().filter(|c| used(c)) else { continue };
            if !matches!(chunk.compression(), Compression::UNCOMPRESSED | Compression::SNAPPY) {
                return Err(Error::unsupported("compression of the Parquet file is not supported")
                    .at(format!("column {column:?}"))
                    .expected("snappy or none")
                    .found(format!("{:?}", chunk.compression()))
                    .hint(
                        "write it again, for example with pandas: to_parquet(.., compression=\"snappy\")",
                    ));
            }
            if chunk.column_type() == Physical::INT96 {
                return Err(Error::unsupported("column holds timestamps").at(format!("column {column:?}")));
            }
        }
        let schema = metadata.file_metadata().schema();
        let fields = schema.get_fields().iter().filter(|f| used(f.name())).cloned().collect();
        let projection = Type::group_type_builder(schema.name()).with_fields(fields).build();
        let reader: Box<dyn FileReader> = Box::new(Shared(self.reader.clone()));
        self.rows = Some(guard(|| RowIter::from_file_into(reader).project(Some(projection?)))?);
        Ok(())
    }

    fn names(&self, column: &str) -> Option<Vec<String>> {
        let feature = self.features.as_ref()?.get(column)?;
        // A list of class labels keeps the class one level down.
        let inner = ["feature", "0"].iter().find_map(|k| feature.get(k)).or_else(|| feature.get(0));
        let names = feature.get("names").or_else(|| inner?.get("names"))?;
        names.as_array()?.iter().map(|n| Some(n.as_str()?.to_owned())).collect()
    }
}

impl Iterator for Parquet {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        let rows = self.rows.as_mut()?;
        let at = |e: Error, number: usize| e.at(format!("row {number}"));
        self.number += 1;
        match guard(|| rows.next().transpose()) {
            Ok(Some(row)) => Some(Ok(Record { number: self.number, fields: fields(row) })),
            Ok(None) if self.number <= self.total => {
                self.rows = None;
                let error = Error::corrupt("the Parquet file ends early")
                    .expected(format!("{} rows", self.total))
                    .found(self.number - 1);
                Some(Err(error))
            }
            Ok(None) => None,
            Err(e) => Some(Err(at(e, self.number))),
        }
    }
}

fn fields(row: Row) -> Vec<(String, Value)> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect()
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => b.into(),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Float(x) => f64::from(x).into(),
        Field::Double(x) => x.into(),
        Field::Str(text) => text.into(),
        // Some writers leave out the mark that says a column of bytes is text.
        Field::Bytes(bytes) => match String::from_utf8(bytes.data().to_vec()) {
            Ok(text) => text.into(),
            Err(_) => Value::Null,
        },
        Field::Group(row) => Value::Object(fields(row).into_iter().collect::<Map<_, _>>()),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        other => other.to_string().into(),
    }
}

/// The reader is used for metadata and rows both.
struct Shared(Arc<SerializedFileReader<File>>);

impl FileReader for Shared {
    fn metadata(&self) -> &::parquet::file::metadata::ParquetMetaData {
        self.0.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.0.num_row_groups()
    }

    fn get_row_group(
        &self,
        i: usize,
    ) -> ::parquet::errors::Result<Box<dyn ::parquet::file::reader::RowGroupReader + '_>> {
        self.0.get_row_group(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> ::parquet::errors::Result<RowIter<'_>> {
        self.0.get_row_iter(projection)
    }
}
