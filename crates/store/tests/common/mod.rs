//! Builders of PyTorch files, honest and hostile, and a small generator of reproducible noise.

#![allow(dead_code, missing_docs)]

/// xorshift64*: the same noise on every machine.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A member as it is written; the `fake_` fields, where set, replace what the central directory says.
#[derive(Clone, Default)]
pub struct Member {
    pub name: String,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub fake_name: Option<String>,
    pub fake_size: Option<u32>,
    pub fake_header: Option<u32>,
    /// Appended to the central entry, e.g. a zip64 field.
    pub extra: Vec<u8>,
}

pub fn member(name: &str, data: &[u8]) -> Member {
    Member { name: name.into(), data: data.into(), ..Member::default() }
}

/// A zip archive of stored members.
pub fn zip(members: &[Member]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for m in members {
        let header = m.fake_header.unwrap_or(file.len() as u32);
        let size = m.data.len() as u32;
        file.extend(0x0403_4b50u32.to_le_bytes());
        for v in [20, m.flags, m.method, 0, 0] {
            file.extend(v.to_le_bytes());
        }
        for v in [0, size, size] {
            file.extend(v.to_le_bytes());
        }
        file.extend((m.name.len() as u16).to_le_bytes());
        file.extend(0u16.to_le_bytes());
        file.extend(m.name.as_bytes());
        file.extend(&m.data);

        let name = m.fake_name.as_ref().unwrap_or(&m.name);
        let size = m.fake_size.unwrap_or(size);
        directory.extend(0x0201_4b50u32.to_le_bytes());
        for v in [20, 20, m.flags, m.method, 0, 0] {
            directory.extend(v.to_le_bytes());
        }
        for v in [0, size, size] {
            directory.extend(v.to_le_bytes());
        }
        for v in [name.len() as u16, m.extra.len() as u16, 0, 0, 0, 0, 0] {
            directory.extend(v.to_le_bytes());
        }
        directory.extend(header.to_le_bytes());
        directory.extend(name.as_bytes());
        directory.extend(&m.extra);
    }
    let start = file.len() as u32;
    file.extend(&directory);
    end(&mut file, members.len() as u16, directory.len() as u32, start);
    file
}

/// The end record.
pub fn end(file: &mut Vec<u8>, count: u16, size: u32, start: u32) {
    file.extend(0x0605_4b50u32.to_le_bytes());
    for v in [0, 0, count, count] {
        file.extend(v.to_le_bytes());
    }
    file.extend(size.to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend(0u16.to_le_bytes());
}

/// An archive as torch.save lays it out.
pub fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut members = vec![member("m/data.pkl", pickle), member("m/byteorder", b"little")];
    members.extend(storages.iter().map(|(key, data)| member(&format!("m/data/{key}"), data)));
    members.push(member("m/version", b"3\n"));
    zip(&members)
}

/// Writes pickles, protocol 2.
#[derive(Clone)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn new() -> Pickle {
        Pickle(vec![0x80, 2])
    }

    pub fn op(mut self, bytes: &[u8]) -> Pickle {
        self.0.extend(bytes);
        self
    }

    pub fn text(self, s: &str) -> Pickle {
        self.op(b"X").op(&(s.len() as u32).to_le_bytes()).op(s.as_bytes())
    }

    pub fn int(self, v: i64) -> Pickle {
        self.op(&[0x8a, 8]).op(&v.to_le_bytes())
    }

    pub fn global(self, module: &str, name: &str) -> Pickle {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn ints(mut self, values: &[i64]) -> Pickle {
        self = self.op(b"(");
        for &v in values {
            self = self.int(v);
        }
        self.op(b"t")
    }

    /// A tensor over the storage `key`.
    pub fn tensor(self, key: &str, elements: i64, view: (i64, &[i64], &[i64])) -> Pickle {
        let (offset, shape, stride) = view;
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .text("storage")
            .global("torch", "FloatStorage")
            .text(key)
            .text("cpu")
            .int(elements)
            .op(b"tQ")
            .int(offset)
            .ints(shape)
            .ints(stride)
            .op(b"\x89}tR")
    }

    pub fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// A pickle of `{"w": tensor}`.
pub fn one(elements: i64, view: (i64, &[i64], &[i64])) -> Vec<u8> {
    Pickle::new().op(b"}").text("w").tensor("0", elements, view).op(b"s").stop()
}

/// `n` floats 0, 1, 2, ... as bytes.
pub fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
}
