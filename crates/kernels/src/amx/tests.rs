//! Blocks against sums written out, on the tiles that this machine has and on emulated ones.

use super::*;

/// Codes that reach both ends of their range.
fn codes(count: usize, seed: u32) -> Vec<u8> {
    (0..count as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 23) as u8).collect()
}

/// `R` bands (the second begins `gap` rows after the first) by `P` panels of `groups` lines.
fn check<const R: usize, const P: usize>(unit: impl Unit, height: usize, gap: usize, groups: usize) {
    let stride = (4 * groups).next_multiple_of(BYTES) + BYTES;
    let rows = codes((gap + height) * stride, 7);
    let weights = codes(P * groups * BYTES, 11);
    let lines: &[[i32; LANES]] =
        &weights.chunks_exact(BYTES).map(bytemuck::pod_read_unaligned).collect::<Vec<_>>();
    let steps = groups / ROWS;
    let mut rest: [Lines; P] = [[[0; LANES]; ROWS]; P];
    for p in 0..P {
        let left = &lines[p * groups + steps * ROWS..(p + 1) * groups];
        rest[p][..left.len()].copy_from_slice(left);
    }
    let block = Block {
        bands: std::array::from_fn::<_, R, _>(|b| &rows[b * gap * stride..]),
        stride,
        panels: std::array::from_fn(|p| &lines[p * groups..(p + 1) * groups]),
        steps,
        rest: (!groups.is_multiple_of(ROWS)).then_some(&rest),
    };
    let mut dots = Dots::zero();
    unit.configure(height).block(&block, &mut dots);
    for b in 0..R {
        for i in 0..height {
            for p in 0..P {
                for j in 0..LANES {
                    let x = &rows[(b * gap + i) * stride..][..4 * groups];
                    let w = |k: usize| i32::from(lines[p * groups + k / 4][j].to_le_bytes()[k % 4] as i8);
                    let sum: i32 = x.iter().enumerate().map(|(k, &x)| i32::from(x) * w(k)).sum();
                    let at = format!(
                        "{R}x{P}, {height} rows of {groups} groups: band {b} row {i} panel {p} column {j}"
                    );
                    assert_eq!(dots.0[b * ROWS + i][p][j], sum, "{at}");
                }
            }
        }
    }
}

fn check_all(unit: impl Unit) {
    for height in 1..=ROWS {
        for groups in [0, 1, 2, 15, 16, 17, 32, 47] {
            check::<1, 1>(unit, height, 0, groups);
            check::<1, 2>(unit, height, 0, groups);
            check::<2, 1>(unit, height, height, groups);
            check::<2, 2>(unit, height, height / 2, groups); // bands may overlap
        }
    }
}

#[test]
fn blocks_are_exact_on_emulated_tiles() {
    check_all(Emulator);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn blocks_are_exact_on_the_tiles_of_this_machine() {
    match Amx::detect() {
        Some(amx) => {
            check_all(amx);
            std::thread::spawn(move || check_all(amx)).join().unwrap();
        }
        None => println!("SKIPPED: this machine lacks AMX: {:?}", Amx::needs()),
    }
}

#[test]
#[should_panic(expected = "rows of codes end inside a block")]
fn a_block_that_would_read_past_its_rows_is_refused() {
    let (rows, lines) = ([0; 3 * BYTES], [[0; LANES]; ROWS]);
    let block = Block { bands: [&rows[1..]], stride: BYTES, panels: [&lines], steps: 1, rest: None };
    Emulator.configure(3).block(&block, &mut Dots::<1>::zero());
}

#[test]
#[should_panic(expected = "a panel ends inside a block")]
fn a_block_that_would_read_past_its_weights_is_refused() {
    let (rows, lines) = ([0; 3 * BYTES], [[0; LANES]; ROWS - 1]);
    let block = Block { bands: [&rows[..]], stride: BYTES, panels: [&lines], steps: 1, rest: None };
    Emulator.configure(3).block(&block, &mut Dots::<1>::zero());
}
