//! Reads and writes one safetensors file.
//!
//! The `safetensors` crate validates layout, but keeps the last of two equal names, and adds the end of
//! the data to the header length without a check, so that offsets near 2^64 panic or wrap. Hence the header
//! is first read here, strictly, and the crate then has to agree. Invariant: a file that reads covers its
//! bytes exactly: no hole, no overlap, no duplicate name.

use crate::checkpoint::map_file;
use crate::tensor::{Dtype, Tensor, byte_len};
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::path::Path;

/// Longest header accepted, in bytes. An encoder's is tens of kilobytes; the parsed form is several times
/// larger than the text, so the format's own limit (100 MB) is more than a small machine should spend.
pub const MAX_HEADER_BYTES: u64 = 32 << 20;

const METADATA_KEY: &str = "__metadata__";

/// The tensors of the safetensors file at `path`, sharing its memory map.
///
/// Errors: the file cannot be mapped, or anything [`read_bytes`] refuses; both name the file.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    read_bytes(&map_file(path)?).map_err(|e| e.at(path.display()))
}

/// The tensors of a safetensors file held in `file`, sharing its bytes.
///
/// Errors: a header that is truncated, too long, not JSON or names a tensor twice; a dtype outside
/// [`Dtype`]; shapes that disagree with offsets; offsets that overlap, leave holes or do not end with the file.
pub fn read_bytes(file: &Bytes) -> Result<BTreeMap<String, Tensor>> {
    let (entries, data) = header(file)?;
    check_layout(&entries, data.len())?;
    // Second opinion: what every other reader of the format would say.
    safetensors::SafeTensors::read_metadata(file)
        .map_err(|e| Error::corrupt("not a valid safetensors file").found(e))?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        let bytes = data
            .slice(entry.start..entry.end)
            .ok_or_else(|| Error::corrupt("tensor lies outside the file").at(show(&name)))?;
        let tensor = Tensor::new(entry.dtype, entry.shape, bytes).map_err(|e| e.at(show(&name)))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// One safetensors file holding `tensors`, with the metadata `{"format": "pt"}` that Python loaders expect.
/// The bytes depend on nothing but names, dtypes, shapes and contents.
///
/// Errors: a tensor named `__metadata__`; a header longer than [`MAX_HEADER_BYTES`].
pub fn write(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    if tensors.contains_key(METADATA_KEY) {
        return Err(Error::input("a tensor cannot be named __metadata__"));
    }
    // Exactly one entry: the crate writes this map in hash order, which differs between runs.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(tensors.iter().map(|(n, t)| (n, Plain(t))), Some(metadata))
        .map_err(|e| Error::input("tensors cannot be written as safetensors").found(e))?;
    header_length(&bytes)?;
    Ok(bytes)
}

/// A tensor as the crate's writer wants to see it.
struct Plain<'a>(&'a Tensor);

impl safetensors::View for Plain<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.0.dtype() {
            Dtype::F64 => safetensors::Dtype::F64,
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::BF16 => safetensors::Dtype::BF16,
            Dtype::I64 => safetensors::Dtype::I64,
            Dtype::I32 => safetensors::Dtype::I32,
            Dtype::I16 => safetensors::Dtype::I16,
            Dtype::I8 => safetensors::Dtype::I8,
            Dtype::U8 => safetensors::Dtype::U8,
            Dtype::Bool => safetensors::Dtype::BOOL,
        }
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.0.bytes()[..])
    }

    fn data_len(&self) -> usize {
        self.0.bytes().len()
    }
}

/// One tensor of the header: `start..end` in bytes from the end of the header.
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Tensor(RawEntry),
    Metadata(UniqueMap<String>),
}

/// Length of the JSON header that `file` announces, checked against the limit.
fn header_length(file: &[u8]) -> Result<usize> {
    let Some(first) = file.first_chunk::<8>() else {
        return Err(Error::corrupt("file is too short for a safetensors header")
            .expected("at least 8 bytes")
            .found(file.len()));
    };
    let length = u64::from_le_bytes(*first);
    if length > MAX_HEADER_BYTES {
        return Err(Error::corrupt("safetensors header is too long")
            .expected(format!("at most {MAX_HEADER_BYTES} bytes"))
            .found(length)
            .hint("the file is damaged, or not a safetensors file"));
    }
    usize::try_from(length).map_err(|_| Error::corrupt("safetensors header is too long").found(length))
}

/// The parsed header and the data that follows it.
fn header(file: &Bytes) -> Result<(BTreeMap<String, Entry>, Bytes)> {
    let length = header_length(file)?;
    let text = file.get(8..8 + length).ok_or_else(|| {
        Error::corrupt("safetensors header is cut off")
            .expected(format!("{length} bytes of header"))
            .found(file.len() - 8)
            .hint("the file was not copied completely")
    })?;
    let data =
        file.slice(8 + length..file.len()).ok_or_else(|| Error::corrupt("safetensors header is cut off"))?;
    let items: UniqueMap<Item> = serde_json::from_slice(text)
        .map_err(|e| Error::corrupt("safetensors header is not what the format says").found(e))?;
    let mut entries = BTreeMap::new();
    for (name, item) in items.0 {
        match (name == METADATA_KEY, item) {
            (true, Item::Metadata(metadata)) => check_framework(&metadata.0)?,
            (false, Item::Tensor(raw)) => {
                let dtype = Dtype::from_name(&raw.dtype).ok_or_else(|| {
                    Error::unsupported("tensor has a dtype this version does not read")
                        .at(show(&name))
                        .found(show(&raw.dtype))
                })?;
                let (start, end) = raw.data_offsets;
                entries.insert(name, Entry { dtype, shape: raw.shape, start, end });
            }
            _ => return Err(Error::corrupt("header entry has the wrong fields").at(show(&name))),
        }
    }
    Ok((entries, data))
}

/// TensorFlow and Flax name and transpose their weights differently, so their files would be read wrongly.
fn check_framework(metadata: &BTreeMap<String, String>) -> Result<()> {
    match metadata.get("format").map(String::as_str) {
        Some(format @ ("tf" | "flax")) => Err(Error::unsupported(
            "weights are in another framework's layout",
        )
        .expected("format pt")
        .found(format!("format {format}"))
        .hint("convert the model with transformers: load it with from_tf or from_flax and save it again")),
        _ => Ok(()),
    }
}

/// Checks that the entries, in order of offset, tile the `data_len` bytes of data.
fn check_layout(entries: &BTreeMap<String, Entry>, data_len: usize) -> Result<()> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, e)| (e.start, e.end));
    let mut covered = 0;
    for (name, e) in order {
        let trouble =
            |what: &str| Error::corrupt(what).at(show(name)).found(format!("{}..{}", e.start, e.end));
        if e.end < e.start {
            return Err(trouble("offsets run backwards"));
        }
        if e.end > data_len {
            return Err(
                trouble("offsets reach past the end of the file").hint("the file was not copied completely")
            );
        }
        if e.start < covered {
            return Err(trouble("offsets overlap another tensor"));
        }
        if e.start > covered {
            return Err(trouble("offsets leave a hole before the tensor"));
        }
        if byte_len(e.dtype, &e.shape) != Some(e.end - e.start) {
            return Err(
                trouble("offsets disagree with the shape").expected(format!("{:?} {}", e.shape, e.dtype))
            );
        }
        covered = e.end;
    }
    if covered != data_len {
        return Err(Error::corrupt("bytes after the last tensor").expected(covered).found(data_len));
    }
    Ok(())
}

/// A name from a file, made safe to print: quoted, escaped, and cut to a line.
pub fn show(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut shown: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}

/// A JSON object that refuses to hold a key twice; serde's own maps keep the last.
pub(crate) struct UniqueMap<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut seen = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value()?;
                    if seen.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("the key {} appears twice", show(&key))));
                    }
                    seen.insert(key, value);
                }
                Ok(UniqueMap(seen))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Bytes {
        let mut b = (header.len() as u64).to_le_bytes().to_vec();
        b.extend_from_slice(header.as_bytes());
        b.extend_from_slice(data);
        Bytes::from(b)
    }

    fn sample() -> Vec<(String, Tensor)> {
        vec![
            ("b".into(), Tensor::from_f32(vec![2, 1], &[1.0, -2.0]).unwrap()),
            ("a".into(), Tensor::from_i8(vec![3], &[1, 2, 3]).unwrap()),
            ("zero".into(), Tensor::from_f32(vec![0, 4], &[]).unwrap()),
            ("scalar".into(), Tensor::new(Dtype::I64, vec![], Bytes::from(vec![7; 8])).unwrap()),
        ]
    }

    #[test]
    fn what_is_written_reads_back_and_order_of_insertion_changes_no_byte() {
        let forward: BTreeMap<_, _> = sample().into_iter().collect();
        let backward: BTreeMap<_, _> = sample().into_iter().rev().collect();
        let first = write(&forward).unwrap();
        for _ in 0..20 {
            assert_eq!(first, write(&backward).unwrap());
        }
        assert_eq!(read_bytes(&Bytes::from(first)).unwrap(), forward);
    }

    #[test]
    fn every_dtype_survives_the_round_trip() {
        let all: BTreeMap<String, Tensor> = Dtype::ALL
            .into_iter()
            .map(|d| (d.to_string(), Tensor::new(d, vec![3], Bytes::from(vec![1; 3 * d.bytes()])).unwrap()))
            .collect();
        assert_eq!(read_bytes(&Bytes::from(write(&all).unwrap())).unwrap(), all);
    }

    #[test]
    fn lying_headers_are_refused_with_a_sentence() {
        let one = |fields: &str| format!(r#"{{"w":{{{fields}}}}}"#);
        let cases: Vec<(String, usize, &str)> = vec![
            (one(r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#), 4, "disagree with the shape"),
            (one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#), 4, "past the end"),
            (one(r#""dtype":"F32","shape":[1],"data_offsets":[0,4]"#), 8, "after the last tensor"),
            (one(r#""dtype":"F32","shape":[1],"data_offsets":[4,8]"#), 8, "hole"),
            (one(r#""dtype":"F32","shape":[1],"data_offsets":[8,4]"#), 8, "backwards"),
            (one(r#""dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]"#), 4, "F8_E4M3"),
            (one(r#""dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1"#), 4, "not what the format says"),
            (one(r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#), 4, "not what the format says"),
            (
                r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#
                    .into(),
                1,
                "w appears twice",
            ),
            (
                r#"{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"v":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#
                    .into(),
                3,
                "overlap",
            ),
            (r#"{"__metadata__":{"a":"b","a":"c"}}"#.into(), 0, "not what the format says"),
            (r#"{"__metadata__":{"format":"tf"}}"#.into(), 0, "another framework"),
            (r#"{"__metadata__":{"a":1}}"#.into(), 0, "not what the format says"),
            (r#"{"w":{"format":"pt"}}"#.into(), 0, "wrong fields"),
            ("[".repeat(100_000), 0, "not what the format says"),
            (format!(r#"{{"w":{}"#, "[".repeat(100_000)), 0, "not what the format says"),
        ];
        for (header, data, sentence) in cases {
            let e = read_bytes(&file(&header, &vec![0; data])).unwrap_err().to_string();
            assert!(e.contains(sentence), "{header:.80}: {e}");
        }
        let huge = Bytes::from(vec![0xff; 64]);
        assert!(read_bytes(&huge).unwrap_err().to_string().contains("too long"));
        assert!(read_bytes(&file("{}", &[]).slice(0..9).unwrap()).is_err());
    }

    #[test]
    fn ends_near_two_to_the_64_do_not_wrap() {
        // Nine tensors whose sizes are each possible but whose end, plus the header, is not.
        let step = usize::MAX / 8;
        let mut items = Vec::new();
        let mut start = 0usize;
        for i in 0..9 {
            let end = start.saturating_add(step);
            items.push(format!(
                r#""t{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#,
                end - start
            ));
            start = end;
        }
        let e = read_bytes(&file(&format!("{{{}}}", items.join(",")), &[])).unwrap_err();
        assert!(e.to_string().contains("past the end"), "{e}");
    }

    #[test]
    fn a_tensor_cannot_be_named_like_the_metadata() {
        let t = BTreeMap::from([("__metadata__".to_string(), Tensor::from_i8(vec![1], &[1]).unwrap())]);
        assert!(write(&t).is_err());
    }
}
