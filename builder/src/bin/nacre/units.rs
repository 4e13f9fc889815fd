//! Numbers with units, as people type and read them.

use crate::report::Usage;

/// A size such as `64m` or `1073741824`: bytes, or binary thousands with b, k, m, g or t.
pub(crate) fn parse_size(flag: &str, text: &str) -> Result<u64, Usage> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(Usage(format!("{flag} {text:?} is no size such as 64m"))),
    };
    let number: Option<u64> = digits.parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| Usage(format!("{flag} {text:?} is no size such as 64m")))
}

/// A number of bytes with three digits and a decimal unit, as registries and docker show sizes.
pub(crate) fn human_size(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["kB", "MB", "GB", "TB"].iter();
    let mut unit = "B";
    while size >= 999.5
        && let Some(next) = units.next()
    {
        size /= 1000.0;
        unit = next;
    }
    if unit == "B" || size >= 99.95 { format!("{size:.0} {unit}") } else { format!("{size:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people_have_three_digits() {
        for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (123_456_789, "123 MB")] {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [("64m", 64 << 20), ("128", 128), ("1G", 1 << 30), ("2kb", 2048)] {
            assert_eq!(parse_size("--shm-size", text).ok(), Some(bytes), "{text}");
        }
        for text in ["", "m", "64x", "99999999999t", "-1"] {
            assert!(parse_size("--shm-size", text).is_err(), "{text}");
        }
    }
}
