//! When to try again, and how long to wait.
//!
//! Invariant: only what [`Cause::is_transient`] says is tried again, and never longer than the policy allows.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Cause, Error};
use crate::progress::Progress;

/// How often and how patiently a request is repeated.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Tries in all, the first included.
    pub tries: u32,
    /// The first wait; each next one is twice as long, and each is shortened by up to half at random.
    pub base_wait: Duration,
    /// No wait is longer, whether ours or the registry's.
    pub longest_wait: Duration,
}

impl Default for RetryPolicy {
    /// Six tries over about half a minute: long enough for a registry's restart, short enough for a person.
    fn default() -> Self {
        Self { tries: 6, base_wait: Duration::from_millis(500), longest_wait: Duration::from_secs(60) }
    }
}

/// Nothing listens at the port: a restart is over soon, a wrong name never is.
const TRIES_IF_REFUSED: u32 = 3;

/// Of hosts that have the same, one that fails is asked no more often than this.
const TRIES_IF_OTHERS_CAN: u32 = 2;

impl RetryPolicy {
    /// The wait before the next try, or `None` if there is none after `tries` tries.
    pub(crate) fn wait_after(&self, tries: u32, cause: &Cause) -> Option<Duration> {
        let limit = if matches!(cause, Cause::Refused { .. }) { self.tries.min(TRIES_IF_REFUSED) } else { self.tries };
        if !cause.is_transient() || tries >= limit {
            return None;
        }
        if let Some(asked) = cause.retry_after() {
            // A longer pause than we may make is a quota in disguise: the caller decides.
            return (asked <= self.longest_wait).then_some(asked);
        }
        let doubled = self.base_wait.saturating_mul(1 << (tries - 1).min(16)).min(self.longest_wait);
        // RandomState is seeded by the system: enough to keep clients from knocking in step.
        let random = RandomState::new().hash_one(tries) % 512;
        Some(doubled.mul_f64(1.0 - (random as f64) / 1024.0))
    }
}

/// How patiently a host is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    policy: RetryPolicy,
    /// Whether another can be asked in its place.
    others_can: bool,
}

impl Patience {
    pub(crate) fn new(policy: RetryPolicy, others_can: bool) -> Self {
        let longest_wait = if others_can { policy.longest_wait.min(2 * policy.base_wait) } else { policy.longest_wait };
        let tries = if others_can { policy.tries.min(TRIES_IF_OTHERS_CAN) } else { policy.tries };
        Self { policy: RetryPolicy { tries, longest_wait, ..policy }, others_can }
    }

    pub(crate) fn longest_wait(&self) -> Duration {
        self.policy.longest_wait
    }

    /// The wait before the next try, as [`RetryPolicy::wait_after`]. A host that says nothing has taken its time already.
    pub(crate) fn wait_after(&self, tries: u32, cause: &Cause) -> Option<Duration> {
        let is_next_better = self.others_can && matches!(cause, Cause::Stalled { .. } | Cause::Refused { .. });
        if is_next_better { None } else { self.policy.wait_after(tries, cause) }
    }
}

/// Fetches content, and once more from its begin if it came with another digest than it has: a bit flips on its way
/// once, but who lies does so again. The second time `fetch` is told so.
///
/// # Errors
/// That of the second time, or the first one if it was another.
pub fn twice_if_damaged<T>(
    what: &str,
    progress: &dyn Progress,
    mut fetch: impl FnMut(bool) -> Result<T, Error>,
) -> Result<T, Error> {
    match fetch(false) {
        Err(error) if matches!(error.cause(), Cause::DigestMismatch { .. }) => {
            progress.retrying(what, &error.cause().to_string(), Duration::ZERO);
            fetch(true)
        }
        outcome => outcome,
    }
}

/// Reads a `Retry-After`: seconds, an HTTP date (RFC 9110 section 10.2.3), or a duration with a unit as GHCR
/// sends ("880µs").
pub(crate) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    if digits > 0 {
        let amount: f64 = text[..digits].parse().ok()?;
        let scale = match text[digits..].trim() {
            "" | "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        return Duration::try_from_secs_f64(amount * scale).ok();
    }
    let then = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text).ok()?;
    let now_seconds = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(Duration::from_secs(u64::try_from(then.as_second()).ok()?.saturating_sub(now_seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Answer;
    use proptest::prelude::*;

    fn answer(status: u16, retry_after: Option<Duration>) -> Cause {
        Cause::Answer(Answer { status, request: "GET x".into(), code: None, message: None, retry_after })
    }

    #[test]
    fn every_form_of_retry_after_is_read() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        let parse = |text: &str| parse_retry_after(text, now);
        assert_eq!(parse("120"), Some(Duration::from_secs(120)));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(parse("Sun, 06 Nov 1974 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("880µs"), Some(Duration::from_micros(880)));
        assert_eq!(parse("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("1e999"), None);
    }

    #[test]
    fn waits_double_and_stay_below_the_limit() {
        let policy = RetryPolicy::default();
        let first = policy.wait_after(1, &answer(503, None)).expect("worth it");
        assert!(first <= policy.base_wait && first >= policy.base_wait / 2);
        let third = policy.wait_after(3, &answer(503, None)).expect("worth it");
        assert!(third <= policy.base_wait * 4 && third >= policy.base_wait * 2);
        assert_eq!(policy.wait_after(6, &answer(503, None)), None);
        assert_eq!(policy.wait_after(1, &answer(404, None)), None);
    }

    #[test]
    fn a_host_that_others_can_stand_in_for_is_asked_no_more_than_twice_and_not_waited_for() {
        let (alone, replaceable) = (RetryPolicy::default(), Patience::new(RetryPolicy::default(), true));
        let stalled = Cause::Stalled { host: "h".to_owned(), detail: "connect".to_owned() };
        assert!(alone.wait_after(1, &stalled).is_some() && replaceable.wait_after(1, &stalled).is_none());
        assert!(replaceable.wait_after(1, &answer(503, None)).is_some());
        assert!(replaceable.wait_after(2, &answer(503, None)).is_none());
        assert!(replaceable.wait_after(1, &answer(503, Some(Duration::from_secs(10)))).is_none());
    }

    #[test]
    fn a_wait_longer_than_ours_is_not_waited_for() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.wait_after(1, &answer(429, Some(Duration::from_secs(2)))), Some(Duration::from_secs(2)));
        assert_eq!(policy.wait_after(1, &answer(429, Some(Duration::from_secs(3600)))), None);
    }

    proptest! {
        #[test]
        fn any_retry_after_is_read_without_panic(text in ".{0,40}") {
            let _ = parse_retry_after(&text, SystemTime::now());
        }
    }
}
