//! The options of every verb that calibrates.

use crate::{World, rows};
use clap::Args;
use qberta_model::{Result, Sequence};
use qberta_runtime::Session;
use qberta_toolkit::Method;
use std::path::PathBuf;

#[derive(Args)]
pub struct CalibrationArgs {
    /// Unlabelled rows like those the model will see (.jsonl, .csv, .tsv, .parquet, .txt), for static inputs
    /// and scores, and fitted weights
    #[arg(long = "calibration", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Rows of the calibration file to use [default: all]
    #[arg(long, value_name = "N", requires = "file", value_parser = clap::value_parser!(u32).range(1..))]
    rows: Option<u32>,
    /// How ranges are chosen: minmax, moving-average, histogram, percentile, percentile:99.9, entropy, mse
    #[arg(long, value_name = "NAME", requires = "file", default_value = "minmax")]
    pub observer: String,
}

impl CalibrationArgs {
    /// The rows as sequences of `session`'s tokenizer, and the observer; `None` if no file was given.
    pub fn read(&self, session: &Session, world: &World) -> Result<Option<(Vec<Sequence>, Method)>> {
        let Some(file) = &self.file else { return Ok(None) };
        let method = Method::parse(&self.observer)?;
        let data = rows::read(session, file, "--calibration", self.rows.map(|n| n as usize), world)?;
        Ok(Some((data.sequences.concat(), method)))
    }

    /// The options as a user would write them, where they are not the default.
    pub fn words(&self) -> String {
        let Some(file) = &self.file else { return String::new() };
        let rows = self.rows.map_or(String::new(), |n| format!(" --rows {n}"));
        let observer = match self.observer.as_str() {
            "minmax" => String::new(),
            name => format!(" --observer {name}"),
        };
        format!(" --calibration {}{rows}{observer}", file.display())
    }
}
