//! What an encoder computes: configuration, one forward definition, heads. Pure: no files, no text.
//!
//! Reading order: [`config`] (what a checkpoint says it is), [`site`] (names of places), [`batch`],
//! [`engine`] (the verbs), [`forward`](mod@forward) (the network, one page), [`linear`] and [`model`]
//! (how weights are stored), [`native`] (the verbs on this machine), [`observe`] (the same with someone
//! looking), [`timed`] (where the time goes), [`scores`] (attention term by term, for those who look).
//!
//! Invariant: there is one forward. `tidy` checks that the verbs of [`Engine`] are called from
//! `forward.rs` and from implementations of `Engine` only.

pub mod batch;
pub mod config;
pub mod engine;
pub mod error;
pub mod forward;
pub mod linear;
pub mod model;
pub mod native;
pub mod observe;
pub mod relative;
pub mod scores;
pub mod site;
pub mod timed;

pub use batch::{Batch, Sequence};
pub use config::{Architecture, EmbeddingProjection, Family, Reading, Task};
pub use engine::{Engine, Rows};
pub use error::{Error, Kind, Result};
pub use forward::{encode, forward, forward_rows};
pub use linear::{FloatFormat, Linear, Norm, Table};
pub use model::{Model, TalkingHeads, Weights};
pub use native::Native;
pub use observe::{Observe, Observed, Operand, Tap};
pub use qberta_kernels::InputGrid;
pub use site::{HeadSlot, Site, Slot};
pub use timed::{Stage, StageTimes, Timed};
