//! Relative positions: distance `query - key` to row of the relative table.
//!
//! One index serves content-to-position and position-to-content: the bucket function is odd, so the
//! gather of the second, written over (key, query), reads the same row. Buckets follow DeBERTa v2
//! (microsoft/DeBERTa, `make_log_bucket_position`); v1 uses the distance itself.

use crate::config::RelativeAttention;

/// The bucket of distance `x`, in `-(max_distance)..=max_distance` or so; identity without buckets.
fn bucket(x: i64, spec: &RelativeAttention) -> i64 {
    let Some(buckets) = spec.buckets else { return x };
    let mid = i64::from(buckets / 2);
    let distance = x.abs();
    if distance <= mid {
        return x;
    }
    // Written as the quotient of two logarithms: at distance = max_distance - 1 they are equal and the
    // quotient is exactly one. Any rearrangement can land just above an integer before `ceil`.
    let ratio =
        (distance as f64 / mid as f64).ln() / ((f64::from(spec.max_distance) - 1.0) / mid as f64).ln();
    let log = (ratio * (mid - 1) as f64).ceil() as i64 + mid;
    log * x.signum()
}

/// The table row for distance `x = query - key`.
pub fn table_row(x: i64, spec: &RelativeAttention) -> u32 {
    let span = i64::from(spec.span);
    (bucket(x, spec) + span).clamp(0, 2 * span - 1) as u32
}

/// Rows for every distance of sequences up to `longest` tokens: entry `x + longest - 1` is distance `x`.
pub fn index(longest: usize, spec: &RelativeAttention) -> Vec<u32> {
    let reach = longest as i64 - 1;
    (-reach..=reach).map(|x| table_row(x, spec)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(buckets: Option<u32>, max_distance: u32) -> RelativeAttention {
        RelativeAttention {
            buckets,
            max_distance,
            span: buckets.unwrap_or(max_distance),
            content_to_position: true,
            position_to_content: true,
            shared_projections: true,
            normalized_table: true,
        }
    }

    #[test]
    fn released_bucket_values() {
        let v3 = spec(Some(256), 512);
        let cases = [
            (0, 0),
            (1, 1),
            (128, 128),
            (129, 129),
            (132, 131),
            (255, 192),
            (256, 192),
            (383, 229),
            (511, 255),
        ];
        for (x, b) in cases {
            assert_eq!(bucket(x, &v3), b, "distance {x}");
            assert_eq!(bucket(-x, &v3), -b, "distance -{x}");
        }
        assert_eq!(bucket(512, &v3), 256);
        assert_eq!(bucket(1023, &v3), 319);
    }

    #[test]
    fn rows_clamp_at_the_ends_of_the_table() {
        let v3 = spec(Some(256), 512);
        assert_eq!(table_row(511, &v3), 511);
        assert_eq!(table_row(512, &v3), 511);
        assert_eq!(table_row(-511, &v3), 1);
        assert_eq!(table_row(-512, &v3), 0);
        assert_eq!(table_row(1, &v3), 257, "query after key reads above the middle");
    }

    #[test]
    fn v1_is_the_plain_distance() {
        let v1 = spec(None, 512);
        assert_eq!(table_row(-3, &v1), 509);
        assert_eq!(table_row(1000, &v1), 1023);
        assert_eq!(index(3, &v1), vec![510, 511, 512, 513, 514]);
    }
}
