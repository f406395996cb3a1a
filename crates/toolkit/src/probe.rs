//! Probes: fixed inputs whose output bits an artefact records and must reproduce.

use qberta_kernels::{Context, Matrix};
use qberta_model::{Architecture, Batch, Error, Model, Native, Result, Sequence, Task, forward};
use qberta_store::digest;
use qberta_store::manifest::Probe;

/// Lengths in tokens: one, few, odd, past the window of plain distances (129), past a row block.
const LENGTHS: [usize; 6] = [1, 2, 7, 33, 96, 150];

/// Values whose bits are recorded one by one; the digest covers the rest.
const LISTED: usize = 1024;

/// The probe inputs of `arch`: the same for every model of that shape.
pub fn inputs(arch: &Architecture) -> Vec<Sequence> {
    let longest = match arch.head.task {
        Task::FillMask => 33, // each token costs a row of the vocabulary
        _ => arch.length_limit().unwrap_or(usize::MAX),
    };
    let mut random = SplitMix(0x5142_4552_5441_0001); // an arbitrary constant, part of the format
    LENGTHS
        .iter()
        .map(|&n| n.min(longest))
        .map(|n| Sequence {
            ids: (0..n).map(|_| random.below(arch.vocabulary)).collect(),
            types: if arch.types > 0 {
                (0..n).map(|_| random.below(arch.types)).collect()
            } else {
                Vec::new()
            },
        })
        .collect()
}

/// Runs `sequences` one at a time and records the bits of each output.
///
/// Errors: an output that is not finite.
pub fn record(model: &Model, sequences: &[Sequence], cx: &Context) -> Result<Vec<Probe>> {
    sequences
        .iter()
        .enumerate()
        .map(|(number, s)| {
            let at = |e: Error| e.at(format!("probe {number}"));
            let y = run(model, std::slice::from_ref(s), cx).map_err(at)?.remove(0);
            let bits = bits(&y);
            Ok(Probe {
                sha256: digest::of_bytes(&bits),
                bits: digest::hex(&bits[..bits.len().min(4 * LISTED)]),
                input_ids: s.ids.clone(),
                token_type_ids: s.types.clone(),
                shape: [y.rows(), y.cols()],
            })
        })
        .collect()
}

/// Runs every probe alone and all of them as one batch, and compares bits.
///
/// Errors: the first value that differs, with both readings.
pub fn replay(model: &Model, probes: &[Probe], cx: &Context) -> Result<()> {
    let sequences: Vec<Sequence> = probes
        .iter()
        .map(|p| Sequence { ids: p.input_ids.clone(), types: p.token_type_ids.clone() })
        .collect();
    for (number, (probe, sequence)) in probes.iter().zip(&sequences).enumerate() {
        let at = |e: Error| e.at(format!("probe {number}"));
        let y = run(model, std::slice::from_ref(sequence), cx).map_err(at)?.remove(0);
        compare(probe, &y).map_err(|e| e.at(format!("probe {number}")))?;
    }
    for (number, (probe, y)) in probes.iter().zip(run(model, &sequences, cx)?).enumerate() {
        compare(probe, &y).map_err(|e| e.at(format!("probe {number}, in a batch of {}", probes.len())))?;
    }
    Ok(())
}

fn compare(probe: &Probe, y: &Matrix) -> Result<()> {
    if [y.rows(), y.cols()] != probe.shape {
        return Err(Error::mismatch("output has another shape")
            .expected(format!("{:?}", probe.shape))
            .found(format!("{:?}", [y.rows(), y.cols()])));
    }
    let found = bits(y);
    let listed = digest::unhex(&probe.bits)
        .filter(|b| b.len() == found.len().min(4 * LISTED))
        .ok_or_else(|| Error::corrupt("recorded bits are malformed"))?;
    if let Some(i) = listed.chunks_exact(4).zip(found.chunks_exact(4)).position(|(a, b)| a != b) {
        let value = |b: &[u8]| f32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]]);
        let show = |v: f32| format!("{v:e} (bits {:08x})", v.to_bits());
        return Err(Error::mismatch("output differs from the recorded bits")
            .at(format!("row {} column {}", i / y.cols(), i % y.cols()))
            .expected(show(value(&listed)))
            .found(show(value(&found))));
    }
    if digest::of_bytes(&found) != probe.sha256 {
        return Err(Error::mismatch(format!("output differs from the recorded digest after value {LISTED}")));
    }
    Ok(())
}

/// Outputs of each sequence, batch cut back into sequences.
pub(crate) fn run(model: &Model, sequences: &[Sequence], cx: &Context) -> Result<Vec<Matrix>> {
    let arch = model.architecture();
    let batch = Batch::new(arch, sequences)?;
    let y = forward(arch, &mut Native::new(model, cx), &batch);
    if let Some(i) = y.as_slice().iter().position(|v| !v.is_finite()) {
        return Err(Error::mismatch("output is not finite")
            .at(format!("row {} column {}", i / y.cols(), i % y.cols()))
            .found(y.as_slice()[i])
            .hint("the weights overflow in f32; check the checkpoint in its original framework"));
    }
    let per_sequence = matches!(arch.head.task, Task::SequenceClassification | Task::MultipleChoice);
    Ok(batch
        .spans()
        .iter()
        .enumerate()
        .map(|(i, span)| {
            let (start, rows) = if per_sequence { (i, 1) } else { (span.start, span.len) };
            let cells = start * y.cols()..(start + rows) * y.cols();
            Matrix::from_vec(rows, y.cols(), y.as_slice()[cells].to_vec())
        })
        .collect())
}

fn bits(y: &Matrix) -> Vec<u8> {
    y.as_slice().iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Vigna's splitmix64: small, fixed, the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, n: usize) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as u32
    }
}
