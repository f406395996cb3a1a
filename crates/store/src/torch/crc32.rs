//! The checksum that a zip keeps of each member.

/// The checksum of zip (polynomial 0xEDB88320), eight bytes at a time.
pub(super) fn crc32(data: &[u8]) -> u32 {
    const TABLES: [[u32; 256]; 8] = tables();
    let (blocks, rest) = data.as_chunks::<8>();
    let mut crc = !0u32;
    for b in blocks {
        let low = crc ^ u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let [l0, l1, l2, l3] = low.to_le_bytes();
        crc = [l0, l1, l2, l3, b[4], b[5], b[6], b[7]]
            .iter()
            .enumerate()
            .fold(0, |sum, (i, &byte)| sum ^ TABLES[7 - i][usize::from(byte)]);
    }
    for &byte in rest {
        crc = (crc >> 8) ^ TABLES[0][usize::from(crc.to_le_bytes()[0] ^ byte)];
    }
    !crc
}

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xEDB8_8320 } else { value >> 1 };
            bit += 1;
        }
        tables[0][i] = value;
        i += 1;
    }
    let mut t = 1;
    while t < 8 {
        let mut i = 0;
        while i < 256 {
            let before = tables[t - 1][i];
            tables[t][i] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            i += 1;
        }
        t += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_zip() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
