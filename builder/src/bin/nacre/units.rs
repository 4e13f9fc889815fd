//! Numbers with units, as people type and read them.

use crate::report::Usage;

/// A size such as `64m`, `1.5g` or `1073741824`: bytes, or binary thousands with b, k, m, g or t.
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
    bytes(digits, shift).ok_or_else(|| Usage(format!("{flag} {text:?} is no size such as 64m")))
}

/// A number that may have a fraction, shifted; what is less than a byte does not count.
fn bytes(digits: &str, shift: u32) -> Option<u64> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    // Below one, where the 52 bits of a double are more than any shift.
    let fraction: f64 = format!("0.{fraction}").parse().ok()?;
    let fraction = (fraction * (1_u64 << shift) as f64) as u64;
    whole.checked_mul(1 << shift)?.checked_add(fraction)
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
        for (text, bytes) in
            [("64m", 64 << 20), ("128", 128), ("1G", 1 << 30), ("2kb", 2048), ("1.5g", 3 << 29), ("0.9", 0)]
        {
            assert_eq!(parse_size("--shm-size", text).ok(), Some(bytes), "{text}");
        }
        for text in ["", "m", "64x", "99999999999t", "-1", ".5g", "1.g", "1.5.2m", "1e3", "+1"] {
            assert!(parse_size("--shm-size", text).is_err(), "{text}");
        }
    }
}
