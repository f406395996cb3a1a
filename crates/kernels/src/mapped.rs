//! File bytes as memory, and memory given back. The only unsafe lines outside arithmetic, kept here so that
//! every other crate can forbid unsafe code.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// Gives memory that was freed back to the system, where its allocator would rather keep it: a model that was
/// loaded a moment ago leaves tens of megabytes of this. Does nothing on systems other than Linux with glibc.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's `malloc_trim` takes any number, may be called at any time from any thread, and touches
        // free memory only.
        unsafe { malloc_trim(0) };
    }
}

/// A shared, immutable run of bytes: a memory-mapped file, a heap buffer, or a slice of either.
/// Cloning and slicing copy nothing.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Mapped(Arc<memmap2::Mmap>),
    Heap(Arc<Vec<u8>>),
    Static(&'static [u8]),
}

impl Bytes {
    /// Maps `path` read-only. An empty file gives empty bytes.
    ///
    /// Errors: whatever the operating system reports. A file that another process truncates while it is
    /// mapped raises SIGBUS on access, as for every memory-mapped reader.
    pub fn map(path: &Path) -> std::io::Result<Bytes> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::from(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only, and `Mmap` owns it for as long as any clone lives;
        // the bytes are only ever exposed as `&[u8]`, for which every bit pattern is valid.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        let range = 0..map.len();
        Ok(Bytes { owner: Owner::Mapped(Arc::new(map)), range })
    }

    /// Bytes that are part of the program itself.
    pub fn from_static(bytes: &'static [u8]) -> Bytes {
        Bytes { range: 0..bytes.len(), owner: Owner::Static(bytes) }
    }

    /// Says that these bytes will hardly be read again: whole pages of a mapped file stop being resident, and
    /// are read from the file when somebody does. A hint, without effect on what the bytes are.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Mapped(map) = &self.owner {
            const PAGE: usize = 4096; // where pages are larger, the system refuses, which is no harm
            let (start, end) = (self.range.start.next_multiple_of(PAGE), self.range.end / PAGE * PAGE);
            if start < end {
                // SAFETY: the mapping is of a file, shared by nobody as writable and never written, so pages that
                // are dropped come back with the bytes of the file.
                let _ = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
    }

    /// The sub-run `range`, or `None` if it does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        let (start, end) =
            (self.range.start.checked_add(range.start)?, self.range.start.checked_add(range.end)?);
        (start <= end && end <= self.range.end)
            .then(|| Bytes { owner: self.owner.clone(), range: start..end })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(v: Vec<u8>) -> Bytes {
        Bytes { range: 0..v.len(), owner: Owner::Heap(Arc::new(v)) }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner {
            Owner::Mapped(m) => m,
            Owner::Heap(v) => v,
            Owner::Static(s) => s,
        };
        &all[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_outside_are_refused_and_slices_inside_share() {
        let b = Bytes::from(vec![1u8, 2, 3, 4]);
        let s = b.slice(1..3).unwrap();
        assert_eq!(&*s, &[2, 3]);
        assert_eq!(&*s.slice(1..2).unwrap(), &[3]);
        assert!(s.slice(1..3).is_none());
        assert!(b.slice(usize::MAX..usize::MAX).is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    fn released_bytes_are_still_those_of_the_file() {
        let path = std::env::temp_dir().join(format!("qberta-released-{}", std::process::id()));
        let written: Vec<u8> = (0..50_000u32).map(|i| (i * 31 / 7) as u8).collect();
        std::fs::write(&path, &written).unwrap();
        let mapped = Bytes::map(&path).unwrap();
        for part in [0..50_000, 1..4095, 4097..20_000, 7..7] {
            let slice = mapped.slice(part.clone()).unwrap();
            assert_eq!(slice[..], written[part.clone()]);
            slice.release();
            assert_eq!(slice[..], written[part]);
        }
        Bytes::from(written).release();
        std::fs::remove_file(path).unwrap();
    }
}
