//! Float checkpoint to trustworthy int8 artefact: recipes, plans, quantization, probes, verification.
//! Sees token ids, never text.

pub mod calibrate;
mod channels;
pub mod diagnose;
pub mod doctor;
pub mod export;
mod fit;
pub mod hf_config;
mod mixed;
pub mod observe;
pub mod outliers;
pub mod plan;
pub mod probe;
pub mod quantize;
pub mod recipe;
pub mod select;
pub mod shapes;
mod smooth;
pub mod verify;
pub mod weights;

pub use calibrate::{Calibration, CalibrationReport};
pub use observe::Method;
pub use plan::{Plan, needs_calibration};
pub use quantize::{
    Conditions, Gate, Progress, Report, Request, quantize, quantize_in_memory, quantize_in_memory_under,
    quantize_source, quantize_under,
};
pub use recipe::{Pattern, Recipe};
pub use shapes::Shape;
pub use verify::{Verified, check_digests, verify};
