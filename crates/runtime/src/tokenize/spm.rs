//! A SentencePiece model file, decoded and checked before anything is built from it.
//!
//! Only the fields that decide ids are read; whatever else a writer put there (Microsoft's files carry a
//! field 50 that the published schema lacks) is skipped. The outer message is walked by hand, piece by
//! piece, so that a file cannot make us allocate more than a small multiple of its own size.
//!
//! Invariant: an [`SpmModel`] has at least one piece, an unknown piece inside the list, finite scores, no
//! empty, overlong or repeated piece, and a character map that the `tokenizers` crate can walk without
//! leaving its arrays.

use std::collections::HashSet;

use prost::Message;
use qberta_model::error::{Error, Result};

/// Most pieces a model may have. The largest released vocabulary of this family has 256 000.
const MAX_PIECES: usize = 1 << 20;
/// Longest piece in bytes. The prefix tree over the pieces is dropped recursively, one frame per byte, so
/// this is what keeps a hostile piece from overflowing the stack (an abort, not a panic).
pub(super) const MAX_PIECE_BYTES: usize = 1024;
/// Bytes of all pieces together: the prefix tree costs a few hundred bytes of memory per byte of piece.
pub(super) const MAX_TOTAL_BYTES: usize = 8 << 20;
/// Largest character map. nmt_nfkc, which every released DeBERTa uses, has 237 539 bytes.
pub(super) const MAX_CHARSMAP_BYTES: usize = 4 << 20;
/// Longest replacement of one character. The longest in NFKC (U+FDFA) has 33 bytes.
const MAX_REPLACEMENT_BYTES: usize = 1024;

/// Bits of a trie unit: the byte it answers to (bit 31 marks a unit that is a value), whether a key ends
/// there, and the value of a unit that is one.
const LABEL: u32 = (1 << 31) | 0xff;
const HAS_LEAF: u32 = 1 << 8;
const VALUE: u32 = (1 << 31) - 1;

#[derive(Clone, PartialEq, Message)]
struct PieceMessage {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerMessage {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerMessage {
    #[prost(bytes = "vec", tag = "2")]
    precompiled_charsmap: Vec<u8>,
}

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// Ordinary text, a byte, or a reserved slot: matched like any other piece.
    Text,
    /// The piece that stands for everything the vocabulary lacks.
    Unknown,
    /// A marker such as `[CLS]`, never produced from text by SentencePiece itself.
    Control,
    /// Text that must stay one piece.
    UserDefined,
}

/// One entry of the vocabulary; its id is its place in the list.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// A checked unigram SentencePiece model.
#[derive(Clone, Debug, PartialEq)]
pub struct SpmModel {
    pub(super) pieces: Vec<Piece>,
    pub(super) unknown: usize,
    pub(super) charsmap: Vec<u8>,
}

impl SpmModel {
    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Always false: [`parse_spm`] refuses a model without pieces.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Text, score and kind of piece `id`.
    pub fn piece(&self, id: usize) -> Option<(&str, f32, PieceKind)> {
        self.pieces.get(id).map(|p| (p.text.as_str(), p.score, p.kind))
    }
}

/// Decodes and checks a SentencePiece model file.
pub fn parse_spm(bytes: &[u8]) -> Result<SpmModel> {
    let mut pieces = Vec::new();
    let mut trainer = TrainerMessage::default();
    let mut normalizer = NormalizerMessage::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (field, body) = next_field(&mut rest)?;
        match (field, body) {
            (1, Some(body)) => pieces.push(read_piece(body, pieces.len())?),
            (2, Some(body)) => trainer.merge(body).map_err(|e| undecodable("trainer_spec", &e))?,
            (3, Some(body)) => normalizer.merge(body).map_err(|e| undecodable("normalizer_spec", &e))?,
            _ => {}
        }
    }
    if pieces.is_empty() {
        return Err(Error::corrupt("the SentencePiece model has no pieces")
            .hint("is the file complete, and is it a SentencePiece model at all?"));
    }
    check_vocabulary(&pieces)?;
    match trainer.model_type.unwrap_or(1) {
        1 => {}
        2 => {
            return Err(Error::unsupported("the SentencePiece model is of type BPE, not unigram")
                .hint("save a tokenizer.json beside it; that file is read instead"));
        }
        other => {
            return Err(Error::unsupported("the SentencePiece model has an unknown type")
                .expected("1 (unigram)")
                .found(other));
        }
    }
    let unknown = trainer.unk_id.unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().filter(|&id| id < pieces.len()).ok_or_else(|| {
        Error::corrupt("the unknown piece is not in the vocabulary")
            .expected(format!("an id below {}", pieces.len()))
            .found(unknown)
    })?;
    check_charsmap(&normalizer.precompiled_charsmap)?;
    Ok(SpmModel { pieces, unknown, charsmap: normalizer.precompiled_charsmap })
}

/// Cuts one field off the front of a protobuf message: its number, and its bytes if it is length-delimited.
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<(usize, Option<&'a [u8]>)> {
    let short = || Error::corrupt("the SentencePiece model is cut short or is not a protobuf message");
    let varint = |rest: &mut &'a [u8]| prost::decode_length_delimiter(rest).map_err(|_| short());
    let key = varint(rest)?;
    let length = match key & 7 {
        0 => {
            varint(rest)?;
            return Ok((key >> 3, None));
        }
        1 => 8,
        2 => varint(rest)?,
        5 => 4,
        _ => return Err(short()),
    };
    let (body, after) = rest.split_at_checked(length).ok_or_else(short)?;
    *rest = after;
    Ok((key >> 3, (key & 7 == 2).then_some(body)))
}

fn read_piece(body: &[u8], id: usize) -> Result<Piece> {
    if id >= MAX_PIECES {
        return Err(Error::unsupported("the SentencePiece model has too many pieces")
            .expected(format!("at most {MAX_PIECES}")));
    }
    if body.len() > MAX_PIECE_BYTES + 64 {
        return Err(overlong(id, body.len()));
    }
    let message = PieceMessage::decode(body).map_err(|e| undecodable(&format!("piece {id}"), &e))?;
    if message.piece.is_empty() {
        return Err(Error::corrupt("a piece is empty").at(format!("piece {id}")));
    }
    if message.piece.len() > MAX_PIECE_BYTES {
        return Err(overlong(id, message.piece.len()));
    }
    if !message.score.is_finite() {
        return Err(Error::corrupt("a score is not finite").at(format!("piece {id}")).found(message.score));
    }
    let kind = match message.kind.unwrap_or(1) {
        2 => PieceKind::Unknown,
        3 => PieceKind::Control,
        4 => PieceKind::UserDefined,
        _ => PieceKind::Text,
    };
    Ok(Piece { text: message.piece, score: message.score, kind })
}

fn overlong(id: usize, bytes: usize) -> Error {
    Error::unsupported("a piece is too long")
        .at(format!("piece {id}"))
        .expected(format!("at most {MAX_PIECE_BYTES} bytes"))
        .found(bytes)
}

fn undecodable(part: &str, e: &prost::DecodeError) -> Error {
    Error::corrupt("the SentencePiece model cannot be decoded").at(part).found(e)
}

fn check_vocabulary(pieces: &[Piece]) -> Result<()> {
    let mut seen = HashSet::with_capacity(pieces.len());
    let mut total = 0;
    for (id, piece) in pieces.iter().enumerate() {
        total += piece.text.len();
        if !seen.insert(piece.text.as_str()) {
            return Err(Error::corrupt("a piece is listed twice")
                .at(format!("piece {id}"))
                .found(&piece.text));
        }
    }
    if total > MAX_TOTAL_BYTES {
        return Err(Error::unsupported("the pieces are too long together")
            .expected(format!("at most {MAX_TOTAL_BYTES} bytes"))
            .found(total));
    }
    Ok(())
}

/// Walks every path of a precompiled character map.
///
/// The map is `[u32 bytes of trie][trie: u32 units][replacements, each ended by NUL]`. The trie is a double
/// array: from a node with base `b` the byte `c` leads to unit `b ^ c`, which counts only if its label is
/// `c`; the `tokenizers` crate indexes that unit without a check, and slices the replacements at the value
/// it finds at a leaf. So each reachable base needs its whole block of 256 units inside the array, and each
/// reachable value needs to be a character boundary of the replacements.
pub(super) fn check_charsmap(map: &[u8]) -> Result<()> {
    if map.is_empty() {
        return Ok(());
    }
    let broken = |what: &str| Error::corrupt(format!("the character map {what}"));
    if map.len() > MAX_CHARSMAP_BYTES {
        return Err(Error::unsupported("the character map is too large")
            .expected(format!("at most {MAX_CHARSMAP_BYTES} bytes"))
            .found(map.len()));
    }
    let (head, body) = map.split_first_chunk::<4>().ok_or_else(|| broken("is cut short"))?;
    let trie_bytes = usize::try_from(u32::from_le_bytes(*head)).map_err(|_| broken("is too large"))?;
    // The reader rounds the size down to whole units and takes the rest for text; a map of which that
    // would be true has lost its place already.
    if !trie_bytes.is_multiple_of(4) || trie_bytes > body.len() {
        return Err(broken("is cut short"));
    }
    let (trie, text) = body.split_at(trie_bytes);
    let text = std::str::from_utf8(text).map_err(|_| broken("has replacements that are not UTF-8"))?;
    let (units, _) = trie.as_chunks::<4>();
    let units: Vec<u32> = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();

    let root = offset(*units.first().ok_or_else(|| broken("has no trie"))?);
    let mut visited = vec![false; units.len()];
    let mut stack = vec![root];
    while let Some(base) = stack.pop() {
        if base | 0xff >= units.len() {
            return Err(broken("points outside itself"));
        }
        if std::mem::replace(&mut visited[base], true) {
            continue;
        }
        for byte in 1..=255u8 {
            let position = base ^ usize::from(byte);
            let unit = units[position];
            if unit & LABEL != u32::from(byte) {
                continue;
            }
            let child = position ^ offset(unit);
            if unit & HAS_LEAF != 0 {
                let value = *units.get(child).ok_or_else(|| broken("points outside itself"))?;
                check_replacement(text, value & VALUE).map_err(broken)?;
            }
            stack.push(child);
        }
    }
    Ok(())
}

/// How far the children of a unit are from it, in units.
fn offset(unit: u32) -> usize {
    let shift = if unit & (1 << 9) == 0 { 0 } else { 8 };
    // 22 bits shifted by at most 8 fit; a platform where they did not would see an offset out of range.
    usize::try_from((unit >> 10) << shift).unwrap_or(usize::MAX)
}

fn check_replacement(text: &str, start: u32) -> std::result::Result<(), &'static str> {
    let rest = usize::try_from(start).ok().and_then(|start| text.get(start..));
    let rest = rest.ok_or("names a replacement that is not there")?;
    let length = rest.bytes().take(MAX_REPLACEMENT_BYTES + 1).take_while(|&b| b != 0).count();
    if length > MAX_REPLACEMENT_BYTES {
        return Err("has a replacement that is too long");
    }
    Ok(())
}
