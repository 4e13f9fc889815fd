//! How much a registry still lets us pull.
//!
//! Invariant: only what the registry said is told; what is unknown is said to be.

use std::fmt;
use std::time::Duration;

use crate::transport::Response;

/// A quota as Docker Hub tells it (<https://docs.docker.com/docker-hub/usage/pulls/>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Pulls in all.
    pub limit: u64,
    /// Pulls that are left.
    pub remaining: Option<u64>,
    /// The time after which they are full again.
    pub window: Option<Duration>,
    /// What is counted: an address or an account.
    pub source: Option<String>,
}

impl Limits {
    /// From `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 76;w=21600` and `docker-ratelimit-source`.
    pub(crate) fn of(response: &Response) -> Option<Self> {
        let (limit, window) = count(response.header("ratelimit-limit")?)?;
        let remaining = response.header("ratelimit-remaining").and_then(count).map(|(remaining, _)| remaining);
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).take(200).collect();
        Some(Self { limit, remaining, window, source: response.header("docker-ratelimit-source").map(clean) })
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remaining {
            Some(remaining) => write!(f, "{remaining} of {} pulls left", self.limit)?,
            None => write!(f, "an unknown number of {} pulls left", self.limit)?,
        }
        match self.window {
            Some(window) => write!(f, " in {} hours", (window.as_secs() as f64 / 360.0).round() / 10.0),
            None => Ok(()),
        }
    }
}

/// `76;w=21600`: a count, and the window that it is for.
fn count(text: &str) -> Option<(u64, Option<Duration>)> {
    let (count, parameters) = text.split_once(';').unwrap_or((text, ""));
    let window = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("w=")?.parse().ok());
    Some((count.trim().parse().ok()?, window.map(Duration::from_secs)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_are_read_with_their_window() {
        assert_eq!(count("76;w=21600"), Some((76, Some(Duration::from_secs(21600)))));
        assert_eq!(count("5"), Some((5, None)));
        assert_eq!(count("5; x=1; w=2"), Some((5, Some(Duration::from_secs(2)))));
        assert_eq!(count("many"), None);
    }

    #[test]
    fn limits_are_said_in_words() {
        let window = Some(Duration::from_secs(21600));
        let limits = Limits { limit: 100, remaining: Some(7), window, source: None };
        assert_eq!(limits.to_string(), "7 of 100 pulls left in 6 hours");
        let unknown = Limits { remaining: None, window: None, ..limits };
        assert_eq!(unknown.to_string(), "an unknown number of 100 pulls left");
    }

    proptest! {
        #[test]
        fn any_count_is_read_without_panic(text in ".{0,30}", digits in "[0-9;=w]{0,40}") {
            let _ = (count(&text), count(&digits));
        }
    }
}
