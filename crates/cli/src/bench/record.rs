//! Measurements as lines of a CSV file that grows run by run.

use super::Measured;
use qberta_model::{Error, Result};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const HEADER: &str = "date,tool,cpu,flags,isa,threads,model,weights,shape,sequences,tokens,repeats,median_ms,p10_ms,\
p90_ms,tokens_per_s,linear_top_per_s,fraction_of_limit,int8_top_per_s_limit,f32_tflop_per_s_limit,read_gb_per_s,load_s,\
rss_mb,peak_rss_mb";

/// Checks before any work that `path` can take lines of this kind.
///
/// Errors: a file with another header.
pub fn check(path: &Path) -> Result<bool> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(Error::io("cannot read", path.display(), &e).at("--csv")),
    };
    match text.lines().next() {
        None => Ok(true),
        Some(first) if first == HEADER => Ok(false),
        Some(first) => Err(Error::input("file holds something else")
            .at(path.display())
            .at("--csv")
            .expected("the columns of `qberta bench --csv`")
            .found(first.chars().take(60).collect::<String>())
            .hint("name another file")),
    }
}

/// Appends one line per shape, with a header if the file is new.
pub fn append(path: &Path, m: &Measured) -> Result<()> {
    let mut text = String::new();
    if check(path)? {
        text.push_str(HEADER);
        text.push('\n');
    }
    let megabytes = |b: Option<u64>| b.map(|b| format!("{:.1}", b as f64 / 1e6)).unwrap_or_default();
    for run in &m.runs {
        let fields = [
            today(),
            format!("qberta {}", env!("CARGO_PKG_VERSION")),
            m.machine.cpu.clone(),
            m.machine.flags.join(" "),
            m.machine.isa.name().to_owned(),
            m.machine.threads.to_string(),
            m.name.clone(),
            m.weights.to_owned(),
            run.shape.to_string(),
            run.shape.batch.to_string(),
            run.shape.tokens().to_string(),
            run.timing.repeats().to_string(),
            format!("{:.4}", run.timing.median()),
            format!("{:.4}", run.timing.quantile(0.1)),
            format!("{:.4}", run.timing.quantile(0.9)),
            format!("{:.0}", run.tokens_per_second()),
            format!("{:.4}", run.ops_per_second() / 1e12),
            format!("{:.4}", m.fraction(run)),
            format!("{:.4}", m.limits.int8_ops.all / 1e12),
            format!("{:.4}", m.limits.f32_ops.all / 1e12),
            format!("{:.1}", m.limits.read_bytes.all / 1e9),
            m.load.map(|(s, _)| format!("{s:.4}")).unwrap_or_default(),
            megabytes(m.load.map(|(_, memory)| memory.resident)),
            megabytes(m.peak),
        ];
        text.push_str(&fields.map(|f| quoted(&f)).join(","));
        text.push('\n');
    }
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut f| f.write_all(text.as_bytes()))
        .map_err(|e| Error::io("cannot write", path.display(), &e).at("--csv"))
}

/// RFC 4180: quotes around a field that needs them.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

/// The date in UTC, `2026-11-23`.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = date(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of the `days`-th day after 1970-01-01 (Hinnant, chrono-compatible algorithms).
fn date(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153; // months since March
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + 400 * era + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases =
            [(0, (1970, 1, 1)), (11_016, (2000, 2, 29)), (11_017, (2000, 3, 1)), (20_780, (2026, 11, 23))];
        for (days, expected) in cases {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn fields_with_commas_are_quoted() {
        assert_eq!(quoted("a b"), "a b");
        assert_eq!(quoted("a, \"b\""), "\"a, \"\"b\"\"\"");
        assert_eq!(HEADER.split(',').count(), 24);
    }
}
