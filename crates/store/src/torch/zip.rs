//! The members of a PyTorch zip archive, as slices of the file.
//!
//! A strict reader of the part of zip that torch writes: stored members, one disk, nothing before the first
//! member, the end record last in the file. Compressed members (TorchScript has some) have a name and no
//! bytes. Everything is stated twice in a zip (local header, central directory), and archives that lie do so
//! by making the two differ, so both are read and must agree.
//! Invariant: members lie inside the file, do not overlap, and no name occurs twice. Opening does not compare
//! checksums, which would fault in every page of the weights: who asks for [`Archive::damaged`] does.
//!
//! The `zip` crate is not used for reading: given many end records it parses the directory once for each
//! (time quadratic in the file), and of two members with one name it keeps the last.

use super::crc32::crc32;
use crate::safetensors::show;
use qberta_kernels::mapped::Bytes;
use qberta_model::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Most members accepted; a checkpoint has one per storage and a handful more.
pub const MAX_MEMBERS: u64 = 1 << 18;

const END_LEN: usize = 22;
const END64_LEN: usize = 56;
const LOCATOR64_LEN: usize = 20;
const CENTRAL_LEN: usize = 46;
const LOCAL_LEN: usize = 30;

/// An archive whose directory has been read and checked.
#[derive(Debug)]
pub struct Archive {
    file: Bytes,
    members: BTreeMap<String, Member>,
}

/// Where a member lies, how it is compressed (0: stored), and the checksum of its bytes (0: none was kept).
#[derive(Debug)]
struct Member {
    data: Range<usize>,
    method: u16,
    crc: u32,
}

/// A member whose bytes are not those that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its name.
    pub name: String,
    /// The checksum in the directory.
    pub recorded: u32,
    /// The checksum of the bytes.
    pub found: u32,
}

impl Archive {
    /// Reads the directory of the archive that is `file`.
    ///
    /// Errors: anything but the layout described above: encrypted members, several disks, members that overlap, reach outside or repeat a name, headers that contradict each other.
    pub fn open(file: &Bytes) -> Result<Archive> {
        let directory = Directory::find(file)?;
        let mut members = BTreeMap::new();
        let mut extents = Vec::new();
        let mut at = directory.bytes.start;
        for _ in 0..directory.count {
            let entry = Entry::read(file, at, directory.bytes.end)?;
            at = entry.next;
            let data = entry.data(file, directory.bytes.start).map_err(|e| e.at(show(&entry.name)))?;
            extents.push((entry.header, data.end));
            if members.contains_key(&entry.name) {
                return Err(Error::corrupt("archive holds the same name twice").at(show(&entry.name)));
            }
            members.insert(entry.name, Member { data, method: entry.method, crc: entry.crc });
        }
        if at != directory.bytes.end {
            return Err(Error::corrupt("zip directory has bytes after its last entry"));
        }
        extents.sort_unstable();
        if extents.windows(2).any(|w| w[1].0 < w[0].1) {
            return Err(Error::corrupt("members of the archive overlap"));
        }
        Ok(Archive { file: file.clone(), members })
    }

    /// Names of the members, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// The bytes of the stored member `name`, shared with the file.
    pub fn member(&self, name: &str) -> Option<Bytes> {
        let member = self.members.get(name).filter(|m| m.method == 0)?;
        self.file.slice(member.data.clone())
    }

    /// The stored members whose bytes changed since they were written, as far as checksums were kept
    /// (`torch.serialization.set_crc32_options(False)` leaves them 0). Reads the whole file.
    pub fn damaged(&self) -> Vec<Damaged> {
        let changed = |(name, m): (&String, &Member)| {
            let bytes = self.file.get(m.data.clone()).filter(|_| m.method == 0 && m.crc != 0)?;
            let (recorded, found) = (m.crc, crc32(bytes));
            (recorded != found).then(|| Damaged { name: name.clone(), recorded, found })
        };
        self.members.iter().filter_map(changed).collect()
    }

    /// Refuses archives with compressed members.
    ///
    /// Errors: names the first of them.
    pub fn check_stored(&self) -> Result<()> {
        match self.members.iter().find(|(_, m)| m.method != 0) {
            None => Ok(()),
            Some((name, m)) => {
                Err(Error::unsupported("member is compressed; torch stores members as they are")
                    .at(show(name))
                    .found(format!("method {}", m.method)))
            }
        }
    }
}

/// Where the central directory lies and how many entries it has.
struct Directory {
    bytes: Range<usize>,
    count: u64,
}

impl Directory {
    fn find(file: &[u8]) -> Result<Directory> {
        let cut = || {
            Error::corrupt("zip archive has no end record at its end")
                .hint("the file was not copied completely, or bytes were appended to it")
        };
        let end = file.len().checked_sub(END_LEN).ok_or_else(cut)?;
        if u32_at(file, end) != Some(0x0605_4b50) || u16_at(file, end + 20) != Some(0) {
            return Err(cut());
        }
        let field = |i: usize| u16_at(file, end + i).map(u64::from).ok_or_else(cut);
        let long = |i: usize| u32_at(file, end + i).map(u64::from).ok_or_else(cut);
        let mut stop = end;
        let (mut disks, mut here, mut count) = (field(4)? | field(6)?, field(8)?, field(10)?);
        let (mut size, mut start) = (long(12)?, long(16)?);
        // A zip64 record, where there is one, holds the true numbers; it must lie directly before its locator.
        if let Some(locator) = end.checked_sub(LOCATOR64_LEN)
            && u32_at(file, locator) == Some(0x0706_4b50)
        {
            let lies = || Error::corrupt("zip64 end record is malformed");
            let record = locator.checked_sub(END64_LEN).ok_or_else(lies)?;
            if u32_at(file, record) != Some(0x0606_4b50)
                || u64_at(file, locator + 8) != u64::try_from(record).ok()
                || u64_at(file, record + 4) != Some(44)
            {
                return Err(lies());
            }
            let wide = |i: usize| u64_at(file, record + i).ok_or_else(lies);
            disks = u64::from(u32_at(file, record + 16).ok_or_else(lies)?)
                | u64::from(u32_at(file, record + 20).ok_or_else(lies)?);
            (here, count, size, start) = (wide(24)?, wide(32)?, wide(40)?, wide(48)?);
            stop = record;
        }
        if disks != 0 || here != count {
            return Err(Error::unsupported("zip archive is split over several files"));
        }
        let bytes = range(start, size).filter(|r| r.end == stop).ok_or_else(|| {
            Error::corrupt("zip directory does not lie before the end record")
                .found(format!("{size} bytes at {start}"))
        })?;
        let room = u64::try_from(bytes.len() / CENTRAL_LEN).unwrap_or(u64::MAX);
        if count > MAX_MEMBERS.min(room) {
            return Err(Error::corrupt("zip archive announces too many members").found(count));
        }
        Ok(Directory { bytes, count })
    }
}

/// One entry of the central directory; offsets in bytes from the start of the file.
struct Entry {
    name: String,
    header: usize,
    method: u16,
    crc: u32,
    /// Bytes in the file.
    size: u64,
    next: usize,
}

impl Entry {
    fn read(file: &[u8], at: usize, end: usize) -> Result<Entry> {
        let cut = || Error::corrupt("zip directory entry is malformed").found(format!("at byte {at}"));
        let short = |i: usize| u16_at(file, at + i).ok_or_else(cut);
        let long = |i: usize| u32_at(file, at + i).ok_or_else(cut);
        if end.checked_sub(at).is_none_or(|room| room < CENTRAL_LEN) || long(0)? != 0x0201_4b50 {
            return Err(cut());
        }
        let (name_len, extra_len, note_len) = (short(28)?, short(30)?, short(32)?);
        let name_at = at + CENTRAL_LEN;
        let extra_at = name_at + usize::from(name_len);
        let next = extra_at + usize::from(extra_len) + usize::from(note_len);
        if next > end {
            return Err(cut());
        }
        let name = std::str::from_utf8(&file[name_at..extra_at])
            .map_err(|_| Error::corrupt("member name is not UTF-8").found(format!("at byte {at}")))?
            .to_string();
        if short(8)? & 0x2041 != 0 {
            return Err(Error::unsupported("member is encrypted").at(show(&name)));
        }
        let method = short(10)?;
        let wide =
            Wide::read(&file[extra_at..extra_at + usize::from(extra_len)], [long(24)?, long(20)?, long(42)?])
                .ok_or_else(|| Error::corrupt("member has a malformed zip64 field").at(show(&name)))?;
        if method == 0 && wide.size != wide.stored {
            return Err(Error::corrupt("stored member has two sizes")
                .at(show(&name))
                .found(format!("{} and {}", wide.size, wide.stored)));
        }
        let header = usize::try_from(wide.header)
            .map_err(|_| Error::corrupt("member lies outside the file").at(show(&name)))?;
        Ok(Entry { name, header, method, crc: long(16)?, size: wide.stored, next })
    }

    /// The member's bytes, once its local header has been compared with this entry.
    fn data(&self, file: &[u8], limit: usize) -> Result<Range<usize>> {
        let outside = || Error::corrupt("member lies outside the file");
        let fixed_end = self.header.checked_add(LOCAL_LEN).filter(|&e| e <= limit).ok_or_else(outside)?;
        let name_len = u16_at(file, self.header + 26).map(usize::from).ok_or_else(outside)?;
        let extra_len = u16_at(file, self.header + 28).map(usize::from).ok_or_else(outside)?;
        if u32_at(file, self.header) != Some(0x0403_4b50)
            || u16_at(file, self.header + 8) != Some(self.method)
            || file.get(fixed_end..fixed_end + name_len) != Some(self.name.as_bytes())
        {
            return Err(Error::corrupt("member's two headers contradict each other"));
        }
        let start = fixed_end + name_len + extra_len;
        let data = u64::try_from(start).ok().and_then(|s| range(s, self.size)).ok_or_else(outside)?;
        if data.end > limit { Err(outside()) } else { Ok(data) }
    }
}

/// The three numbers of an entry that zip64 may widen.
struct Wide {
    size: u64,
    stored: u64,
    header: u64,
}

impl Wide {
    /// `narrow` = (size, stored size, header offset); each that is all ones is replaced, in this order,
    /// by the next eight bytes of the extra field with tag 1.
    fn read(mut extra: &[u8], narrow: [u32; 3]) -> Option<Wide> {
        let mut values = narrow.map(u64::from);
        if narrow.contains(&u32::MAX) {
            let mut body = loop {
                let (tag, len) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
                let field = extra.get(4..4 + len)?;
                if tag == 1 {
                    break field;
                }
                extra = &extra[4 + len..];
            };
            for (value, narrow) in values.iter_mut().zip(narrow) {
                if narrow == u32::MAX {
                    *value = u64_at(body, 0)?;
                    body = &body[8..];
                }
            }
        }
        let [size, stored, header] = values;
        Some(Wide { size, stored, header })
    }
}

fn range(start: u64, len: u64) -> Option<Range<usize>> {
    let end = start.checked_add(len)?;
    Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*b.get(at..)?.first_chunk()?))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*b.get(at..)?.first_chunk()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*b.get(at..)?.first_chunk()?))
}
