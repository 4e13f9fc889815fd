//! HEALTHCHECK and its durations.
//!
//! Invariant: a duration is absent or at least a millisecond.

use std::time::Duration;

use super::Command;
use super::flags::Flags;
use crate::dockerfile::error::DockerfileError;
use crate::dockerfile::parser::{Arguments, Statement};
use crate::dockerfile::source::{Source, Span, Word};

/// What HEALTHCHECK says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// No check, also none from the base image.
    None,
    /// A command to run again and again. What is `None` (zero in the Dockerfile counts) is left to the runtime.
    Command {
        /// The command.
        command: Command,
        /// `--interval`.
        interval: Option<Duration>,
        /// `--timeout`.
        timeout: Option<Duration>,
        /// `--start-period`.
        start_period: Option<Duration>,
        /// `--start-interval`.
        start_interval: Option<Duration>,
        /// `--retries`.
        retries: Option<u32>,
    },
}

pub(super) fn healthcheck(source: &Source, statement: &Statement) -> Result<Healthcheck, DockerfileError> {
    let Arguments::Health(kind, arguments) = &statement.arguments else {
        return Err(source.error(statement.keyword.span, "HEALTHCHECK requires at least one argument"));
    };
    if kind.text.eq_ignore_ascii_case("none") {
        // As in BuildKit, flags say nothing about no check.
        return match **arguments {
            Arguments::None => Ok(Healthcheck::None),
            _ => Err(source.error(kind.span, "HEALTHCHECK NONE takes no arguments")),
        };
    }
    let mut flags = Flags::new(source, statement);
    let mut duration = |name| flags.string(name)?.map_or(Ok(None), |value| duration_flag(source, name, &value));
    let interval = duration("interval")?;
    let timeout = duration("timeout")?;
    let start_period = duration("start-period")?;
    let start_interval = duration("start-interval")?;
    let retries = flags.string("retries")?.map_or(Ok(None), |value| retries_flag(source, &value))?;
    flags.finish()?;
    if !kind.text.eq_ignore_ascii_case("cmd") {
        let message = format!("Unknown type {:?} in HEALTHCHECK (try CMD)", kind.text);
        return Err(source.error(kind.span, message));
    }
    let command = match &**arguments {
        Arguments::Text(text) => Command::Shell(text.clone()),
        Arguments::Json(words) if !words.is_empty() => Command::Exec(words.clone()),
        _ => return Err(source.error(kind.span, "Missing command after HEALTHCHECK CMD")),
    };
    Ok(Healthcheck::Command { command, interval, timeout, start_period, start_interval, retries })
}

fn duration_flag(source: &Source, name: &str, value: &Word) -> Result<Option<Duration>, DockerfileError> {
    let error = |span: Span, message| Err(source.error(span, message));
    match parse_duration(&value.text) {
        None => error(
            value.span,
            format!("--{name}: invalid duration {:?}: a number and a unit, as 30s or 1m30s", value.text),
        ),
        Some(0) => Ok(None),
        // The Engine API refuses less than a millisecond; a negative duration is less, too.
        Some(nanoseconds) if nanoseconds < 1_000_000 => {
            error(value.span, format!("--{name}: {:?} cannot be less than 1ms", value.text))
        }
        Some(nanoseconds) => Ok(u64::try_from(nanoseconds).ok().map(Duration::from_nanos)),
    }
}

fn retries_flag(source: &Source, value: &Word) -> Result<Option<u32>, DockerfileError> {
    match value.text.parse::<i32>() {
        Ok(0) => Ok(None),
        Ok(retries) if retries < 0 => {
            Err(source.error(value.span, format!("--retries cannot be negative ({retries})")))
        }
        Ok(retries) => Ok(Some(retries.unsigned_abs())),
        Err(cause) => Err(source.error(value.span, format!("--retries: invalid number {:?}: {cause}", value.text))),
    }
}

/// Nanoseconds of a duration in Go's notation: <https://pkg.go.dev/time#ParseDuration>.
fn parse_duration(text: &str) -> Option<i64> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i64 = 0;
    loop {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (whole, behind) = rest.split_at(digits);
        let (fraction, behind) = behind.strip_prefix('.').map_or(("", behind), |behind| {
            behind.split_at(behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_digit()).len())
        });
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_length = behind.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, next) = behind.split_at(unit_length);
        let unit: i64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add(fraction_of(unit, fraction))?;
        rest = next;
        if rest.is_empty() {
            return Some(if is_negative { -total } else { total });
        }
    }
}

/// The part of a unit that decimals stand for, rounded down.
fn fraction_of(unit: i64, decimals: &str) -> i64 {
    let mut scale = unit;
    decimals.bytes().fold(0, |sum, digit| {
        scale /= 10;
        sum + scale * i64::from(digit - b'0')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse_duration("1m30s"), Some(90_000_000_000));
        assert_eq!(parse_duration("1.5h"), Some(5_400_000_000_000));
        assert_eq!(parse_duration(".5s"), Some(500_000_000));
        assert_eq!(parse_duration("-2ms"), Some(-2_000_000));
        assert_eq!(parse_duration("0"), Some(0));
        assert_eq!(parse_duration("0s"), Some(0));
        for bad in ["", "4711", "s", "1x", ".s", "5 s", "99999999999h", "1s2", "+"] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }
}
