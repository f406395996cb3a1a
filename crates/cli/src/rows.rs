//! Data files of verbs that run a model over rows: what was read, as sequences.

use crate::World;
use qberta_model::{Error, Result, Sequence};
use qberta_runtime::dataset::{Columns, Dataset, Form, Target};
use qberta_runtime::{Options, Row, Session};
use std::path::Path;

/// Rows of a data file that a model can run.
pub struct Data {
    /// The rows in order.
    pub rows: Vec<Row>,
    /// The label of each row, as the file spells it.
    pub labels: Vec<Option<String>>,
    /// What the model sees of each row: one sequence, or one for each choice.
    pub sequences: Vec<Vec<Sequence>>,
}

/// The first `limit` rows of the file at `path`, as `session` reads them; `option` is what named the file.
///
/// Errors: no file, no row in it, a row that cannot be read or that the task cannot take, named by its line.
pub fn read(
    session: &Session,
    path: &Path,
    option: &str,
    limit: Option<usize>,
    world: &World,
) -> Result<Data> {
    let form = Form::of(session.architecture().head.task);
    let set = Dataset::open(path, form, &Columns::default()).map_err(|e| e.at(option))?;
    for remark in set.remarks() {
        world.screen.warn(&remark);
    }
    let mut data = Data { rows: Vec::new(), labels: Vec::new(), sequences: Vec::new() };
    for example in set.take(limit.unwrap_or(usize::MAX)) {
        let example = example?;
        let sequences =
            session.sequences(&example.row, &Options::standard()).map_err(|e| e.at(&example.place))?;
        data.sequences.push(sequences);
        data.rows.push(example.row);
        data.labels.push(match example.target {
            Target::Label(label) => Some(label.to_string()),
            _ => None,
        });
    }
    if data.rows.is_empty() {
        return Err(Error::input("data file holds no row")
            .at(option)
            .at(path.display())
            .expected("rows like those the model will see"));
    }
    Ok(data)
}
