//! The inputs of a measurement: how many sequences, how long each.

use qberta_model::{Architecture, Batch, Error, Result, Sequence};
use std::fmt;

/// Shapes measured when none are asked for.
pub const DEFAULT: &str = "1x32,1x128,1x384,1x512,8x128,ragged:8x64..128";

/// `batch` sequences with lengths in `from..=to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub from: usize,
    pub to: usize,
}

const MOST_BATCH: usize = 4096;

impl Shape {
    /// Parses `8x128` or `ragged:8x64..128`.
    ///
    /// Errors: anything else, zero, more than [`MOST_BATCH`] sequences, lengths that descend.
    pub fn parse(text: &str) -> Result<Shape> {
        let wrong = |why: &str| {
            Error::input(why)
                .at("--shapes")
                .expected("BATCHxTOKENS such as 8x128, or ragged:BATCHxFROM..TO such as ragged:8x64..128")
                .found(format!("{text:?}"))
        };
        let number = |part: &str, most: usize, what: &str| match part.parse::<usize>() {
            Ok(n) if (1..=most).contains(&n) => Ok(n),
            Ok(_) => Err(wrong(&format!("{what} is out of range, 1 to {most}"))),
            Err(_) => Err(wrong("shape cannot be read")),
        };
        let text = text.trim();
        let (ragged, rest) = match text.strip_prefix("ragged:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (batch, lengths) = rest.split_once('x').ok_or_else(|| wrong("shape cannot be read"))?;
        let batch = number(batch, MOST_BATCH, "number of sequences")?;
        let length = |part: &str| number(part, Batch::MOST_TOKENS, "number of tokens");
        let (from, to) = match (ragged, lengths.split_once("..")) {
            (true, Some((from, to))) => (length(from)?, length(to)?),
            (false, None) => (length(lengths)?, length(lengths)?),
            _ => return Err(wrong("shape cannot be read")),
        };
        if from > to {
            return Err(wrong("lengths of a ragged shape descend"));
        }
        Ok(Shape { batch, from, to })
    }

    /// Checks that `arch` can read the longest sequence.
    pub fn fits(&self, arch: &Architecture) -> Result<()> {
        match arch.length_limit() {
            Some(limit) if self.to > limit => Err(Error::input("sequence is longer than the model reads")
                .expected(format!("at most {limit} tokens"))
                .found(self.to)),
            _ => Ok(()),
        }
    }

    /// The length of each sequence: spread evenly over the range, neighbours not in order.
    pub fn lengths(&self) -> Vec<usize> {
        let steps = self.batch.saturating_sub(1).max(1);
        // 37 is prime, so that (almost) every batch size visits every step once.
        (0..self.batch).map(|i| self.from + (self.to - self.from) * (i * 37 % self.batch) / steps).collect()
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.lengths().iter().sum()
    }

    /// Sequences of this shape with fixed pseudo-random ids; the second half of each is the second text of a
    /// pair where the model tells them apart.
    pub fn sequences(&self, arch: &Architecture) -> Vec<Sequence> {
        let mut state = 1u64;
        let first = 5.min(arch.vocabulary.saturating_sub(1)); // past the usual special tokens
        let mut id = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let free = arch.vocabulary - first;
            u32::try_from(first + (state >> 33) as usize % free).unwrap_or(0)
        };
        self.lengths()
            .into_iter()
            .map(|n| Sequence {
                ids: (0..n).map(|_| id()).collect(),
                types: match arch.types {
                    0 | 1 => Vec::new(),
                    _ => (0..n).map(|i| u32::from(i >= n / 2)).collect(),
                },
            })
            .collect()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { batch, from, to } = self;
        if from == to { write!(f, "{batch}x{to}") } else { write!(f, "ragged:{batch}x{from}..{to}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_read_and_print_the_same() {
        for text in ["1x32", "8x128", "ragged:8x64..128"] {
            assert_eq!(Shape::parse(text).unwrap().to_string(), text);
        }
        for text in DEFAULT.split(',') {
            assert!(Shape::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn bad_shapes_are_refused_with_what_was_expected() {
        for text in [
            "",
            "8",
            "x8",
            "0x8",
            "8x0",
            "8x1e3",
            "-1x8",
            "8x64..128",
            "ragged:8x64",
            "ragged:8x9..3",
            "5000x8",
        ] {
            let error = Shape::parse(text).unwrap_err().to_string();
            assert!(error.contains("--shapes") && error.contains("8x128"), "{text}: {error}");
        }
    }

    #[test]
    fn ragged_lengths_reach_both_ends() {
        let lengths = Shape::parse("ragged:8x64..128").unwrap().lengths();
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&64), Some(&128)));
        assert_eq!(lengths.iter().sum::<usize>(), 765);
        assert_eq!(Shape::parse("ragged:1x4..9").unwrap().lengths(), [4]);
    }
}
