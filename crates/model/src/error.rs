//! The one error type of the workspace above the kernels: what, where, expected, found, and what to do.

use std::fmt;

/// Which kind of trouble an [`Error`] reports. Callers branch on it; people read the sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong: an option, a pattern, a row of input.
    Input,
    /// A file exists but is malformed, truncated, or lies about its content.
    Corrupt,
    /// A well-formed model or file that this version refuses to run.
    Unsupported,
    /// The operating system said no.
    Io,
    /// A check ran and failed: a digest, a probe, a gate.
    Mismatch,
}

/// An error with the five things a reader needs. Built with [`Error::new`] and the `at`, `expected`,
/// `found` and `hint` setters; printed as one sentence, the hint on a line of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    kind: Kind,
    what: String,
    place: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    hint: Option<String>,
}

impl Error {
    /// An error of `kind`; `what` is a short clause without a full stop ("weight has the wrong shape").
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            what: what.into(),
            place: None,
            expected: None,
            found: None,
            hint: None,
        }))
    }

    /// Something the user asked for is wrong.
    pub fn input(what: impl Into<String>) -> Self {
        Error::new(Kind::Input, what)
    }

    /// A file is malformed.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Error::new(Kind::Corrupt, what)
    }

    /// A model or file this version refuses.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Error::new(Kind::Unsupported, what)
    }

    /// A check that ran and failed.
    pub fn mismatch(what: impl Into<String>) -> Self {
        Error::new(Kind::Mismatch, what)
    }

    /// An operating-system error while doing `what` ("read", "create") at `place`.
    pub fn io(what: impl Into<String>, place: impl fmt::Display, source: &std::io::Error) -> Self {
        // What the system gives is then there, and wrong: not UTF-8, not a file, too large.
        let wrong = source.kind() == std::io::ErrorKind::InvalidData;
        let kind = if wrong { Kind::Corrupt } else { Kind::Io };
        let mut e = Error::new(kind, what).at(place).found(source);
        if source.kind() == std::io::ErrorKind::StorageFull {
            e = e
                .hint("the disk is full; nothing was changed. Free space or choose another output directory");
        }
        e
    }

    /// Names the place: a file, a tensor, a field, an option.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(match self.0.place.take() {
            Some(inner) => format!("{place}: {inner}"),
            None => place.to_string(),
        });
        self
    }

    /// What should have been there.
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self
    }

    /// What was there.
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(found.to_string());
        self
    }

    /// What the reader can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The kind of trouble.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The advice, if there is any; [`fmt::Display`] does not print it.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.0;
        if let Some(place) = &e.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&e.what)?;
        match (&e.expected, &e.found) {
            (Some(x), Some(y)) => write!(f, ": expected {x}, found {y}"),
            (Some(x), None) => write!(f, ": expected {x}"),
            (None, Some(y)) => write!(f, ": {y}"),
            (None, None) => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Shorthand for results of this workspace.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_one_sentence_with_its_place() {
        let e = Error::corrupt("weight has the wrong shape")
            .at("encoder.layer.3.output.dense.weight")
            .at("model.safetensors")
            .expected("[3072, 768]")
            .found("[768, 3072]")
            .hint("is the file transposed?");
        assert_eq!(
            e.to_string(),
            "model.safetensors: encoder.layer.3.output.dense.weight: weight has the wrong shape: \
             expected [3072, 768], found [768, 3072]"
        );
        assert_eq!(e.advice(), Some("is the file transposed?"));
    }
}
