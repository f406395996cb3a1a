//! Ragged batches: token rows of several sequences one after another. Nothing is padded, so no
//! computation can depend on padding.

use crate::config::Architecture;
use crate::error::{Error, Result};
pub use qberta_kernels::Span;

/// One input sequence: token ids with special tokens, and token types (empty means all zero).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Sequence {
    /// Token ids, at least one.
    pub ids: Vec<u32>,
    /// Token types, one per id, or empty for all zero.
    pub types: Vec<u32>,
}

impl Sequence {
    /// A sequence of token ids whose types are all zero.
    pub fn of(ids: Vec<u32>) -> Sequence {
        Sequence { ids, types: Vec::new() }
    }
}

/// Sequences laid out row after row, checked against an architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    types: Vec<u32>,
    positions: Vec<u32>,
    spans: Vec<Span>,
}

impl Batch {
    /// The most tokens of one sequence; attention memory grows with the square.
    pub const MOST_TOKENS: usize = 8192;

    /// Lays out `sequences`.
    ///
    /// Errors: an empty batch or sequence, an id outside the word table, a type outside the type table
    /// (ignored when the model has none), a length the model cannot embed.
    pub fn new(arch: &Architecture, sequences: &[Sequence]) -> Result<Batch> {
        let rows = sequences.iter().map(|s| s.ids.len()).sum();
        let mut batch = Batch {
            ids: Vec::with_capacity(rows),
            types: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            spans: Vec::with_capacity(sequences.len()),
        };
        if sequences.is_empty() {
            return Err(Error::input("batch has no sequence"));
        }
        for (number, sequence) in sequences.iter().enumerate() {
            let named = |e: Error| if sequences.len() == 1 { e } else { e.at(format!("sequence {number}")) };
            batch.push(arch, sequence).map_err(named)?;
        }
        Ok(batch)
    }

    fn push(&mut self, arch: &Architecture, sequence: &Sequence) -> Result<()> {
        let len = sequence.ids.len();
        let limit = arch.length_limit().unwrap_or(Self::MOST_TOKENS).min(Self::MOST_TOKENS);
        if len == 0 {
            return Err(Error::input("sequence has no token"));
        }
        if len > limit {
            return Err(Error::input("sequence is too long")
                .expected(format!("at most {limit} tokens"))
                .found(len)
                .hint("shorten the input or pass --max-length"));
        }
        if let Some(i) = sequence.ids.iter().position(|&id| id as usize >= arch.vocabulary) {
            return Err(Error::input("token id is outside the vocabulary")
                .at(format!("token {i}"))
                .expected(format!("0 to {}", arch.vocabulary - 1))
                .found(sequence.ids[i]));
        }
        if !sequence.types.is_empty() && sequence.types.len() != len {
            return Err(Error::input("token types do not match token ids")
                .expected(len)
                .found(sequence.types.len()));
        }
        if arch.types > 0
            && let Some(i) = sequence.types.iter().position(|&t| t as usize >= arch.types)
        {
            return Err(Error::input("token type is outside the type table")
                .at(format!("token {i}"))
                .expected(format!("0 to {}", arch.types - 1))
                .found(sequence.types[i]));
        }
        self.spans.push(Span { start: self.ids.len(), len });
        self.ids.extend_from_slice(&sequence.ids);
        match (arch.types, sequence.types.is_empty()) {
            (0, _) | (_, true) => self.types.extend(std::iter::repeat_n(0, len)),
            _ => self.types.extend_from_slice(&sequence.types),
        }
        match arch.positions.and_then(|p| p.after_pad) {
            None => self.positions.extend(0..len as u32),
            Some(pad) => {
                let mut seen = 0;
                self.positions.extend(sequence.ids.iter().map(|&id| {
                    seen += u32::from(id != pad);
                    if id == pad { pad } else { seen + pad }
                }));
            }
        }
        Ok(())
    }

    /// Token ids of every row.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Token types of every row.
    pub fn types(&self) -> &[u32] {
        &self.types
    }

    /// Absolute positions of every row.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The rows of each sequence.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Length of the longest sequence.
    pub fn longest(&self) -> usize {
        self.spans.iter().map(|s| s.len).max().unwrap_or(0)
    }

    /// The first row of each sequence.
    pub fn first_rows(&self) -> Vec<usize> {
        self.spans.iter().map(|s| s.start).collect()
    }
}
