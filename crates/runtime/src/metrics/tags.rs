//! Entities of tagged words, as seqeval finds them, and figures of counts.

use super::Figure;

/// An entity: its type, its first word, its last word.
pub type Entity<'t> = (&'t str, usize, usize);

/// How entities are found among tags: [`entities`] or [`strict_entities`].
pub type Finder = for<'t> fn(&[&'t str]) -> Vec<Entity<'t>>;

/// `B-PER` is (`B`, `PER`); a label without a prefix is inside an entity of its own name.
fn parts(tag: &str) -> (char, &str) {
    let mut chars = tag.chars();
    match (tag, chars.next(), chars.as_str().strip_prefix('-')) {
        ("O" | "", ..) => ('O', ""),
        (_, Some(prefix @ ('B' | 'I' | 'E' | 'S')), Some(kind)) => (prefix, kind),
        (_, Some('L'), Some(kind)) => ('E', kind), // BILOU's names
        (_, Some('U'), Some(kind)) => ('S', kind),
        _ => ('I', tag),
    }
}

/// Entities as seqeval finds them when asked for nothing else (and conlleval before it): an `I` after
/// something else begins an entity, and tags of BIOES are understood.
pub fn entities<'t>(tags: &[&'t str]) -> Vec<Entity<'t>> {
    let mut found = Vec::new();
    let (mut begin, mut last) = (0, ('O', ""));
    for (i, tag) in tags.iter().copied().chain(["O"]).enumerate() {
        let next = parts(tag);
        let other = last.1 != next.1;
        let ends = match last.0 {
            'E' | 'S' => true,
            'B' | 'I' => matches!(next.0, 'B' | 'S' | 'O') || other,
            _ => false,
        };
        if ends {
            found.push((last.1, begin, i - 1));
        }
        let begins = match (last.0, next.0) {
            (_, 'O') => false,
            (_, 'B' | 'S') => true,
            ('E' | 'S' | 'O', 'E' | 'I') => true,
            _ => other,
        };
        if begins {
            begin = i;
        }
        last = next;
    }
    found
}

/// Entities by the letter of IOB2 (seqeval's `mode="strict", scheme=IOB2`): a `B` and the `I`s of its type
/// right after it; any other `I` is no entity.
pub fn strict_entities<'t>(tags: &[&'t str]) -> Vec<Entity<'t>> {
    let mut found: Vec<Entity<'t>> = Vec::new();
    let mut open = false;
    for (i, tag) in tags.iter().enumerate() {
        match (parts(tag), found.last_mut()) {
            (('B', kind), _) => {
                found.push((kind, i, i));
                open = true;
            }
            (('I', kind), Some(entity)) if open && entity.0 == kind => entity.2 = i,
            _ => open = false,
        }
    }
    found
}

/// Right, predicted and true entities of one row.
pub fn entity_counts(truth: &[Entity<'_>], predicted: &[Entity<'_>]) -> [u32; 3] {
    let right = predicted.iter().filter(|e| truth.contains(e)).count();
    [right as u32, predicted.len() as u32, truth.len() as u32]
}

/// Precision, recall or F1 of counts added over rows; 0 where that divides by 0.
#[derive(Clone, Debug)]
pub struct Counts {
    rows: Vec<[u32; 3]>,
    /// How much the predicted and the true count weigh in the denominator.
    share: [f64; 2],
}

impl Counts {
    /// Right over predicted.
    pub fn precision(rows: Vec<[u32; 3]>) -> Counts {
        Counts { rows, share: [1.0, 0.0] }
    }

    /// Right over true.
    pub fn recall(rows: Vec<[u32; 3]>) -> Counts {
        Counts { rows, share: [0.0, 1.0] }
    }

    /// The harmonic mean of both.
    pub fn f1(rows: Vec<[u32; 3]>) -> Counts {
        Counts { rows, share: [0.5, 0.5] }
    }
}

impl Figure for Counts {
    fn at(&self, weights: &[u32]) -> f64 {
        let mut sums = [0u64; 3];
        for (row, &w) in self.rows.iter().zip(weights) {
            for (sum, &n) in sums.iter_mut().zip(row) {
                *sum += u64::from(w) * u64::from(n);
            }
        }
        let all = self.share[0] * sums[1] as f64 + self.share[1] * sums[2] as f64;
        if all > 0.0 { sums[0] as f64 / all } else { 0.0 }
    }
}
