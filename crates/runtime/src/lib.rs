//! Text to answers: tokenizers, sessions, tasks.
//!
//! A [`Session`] is an open model with its tokenizer. [`Session::answer`] takes [`Row`]s (text, or token
//! ids) and gives one [`Answer`] a row, in order; [`Session::raw`] gives the untouched numbers.

pub mod answer;
pub mod dataset;
pub mod row;
pub mod session;
mod tasks;
pub mod tokenize;

pub use answer::{Answer, RawAnswer};
pub use dataset::{Columns, Dataset, Example, Form};
pub use row::Row;
pub use session::{Origin, Session};
pub use tasks::{Aggregation, Options, Pooling};
pub use tokenize::Tokenizer;
