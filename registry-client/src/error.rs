//! What can go wrong: every error says what could not be done, to what, and why.
//!
//! Invariant: no message holds a secret. URLs are shown without their query, tokens are types that cannot be printed,
//! and a password that somebody wrote into a name or an URL is taken out.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::image::Digest;

use crate::reference::Reference;
use crate::secret::without_credentials;

/// A failure: `cannot <doing>: <cause>`.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {}", without_credentials(&cause.to_string()))]
pub struct Error {
    doing: String,
    cause: Box<Cause>,
    is_local: bool,
}

/// Whose fault an error is; the binary makes its exit code from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A name, a file or an option is wrong.
    User,
    /// The network or a registry failed or refused.
    Registry,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// What was asked for is wrong or not supported.
    #[error("{0}")]
    Input(String),
    /// What was asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes from a registry or a file break the format that they must have.
    #[error("{0}")]
    Malformed(String),
    /// Content does not have the digest that names it.
    #[error("the content has the digest {actual}, not {expected}")]
    DigestMismatch {
        /// The digest that named the content.
        expected: Digest,
        /// The digest of the bytes that came.
        actual: String,
    },
    /// Content is shorter or longer than its descriptor says.
    #[error("the content has {actual}, not {expected_bytes} bytes")]
    SizeMismatch {
        /// The size in the descriptor.
        expected_bytes: u64,
        /// What came, in words: "12 bytes", "more than 12 bytes".
        actual: String,
    },
    /// The registry answered with an error.
    #[error("{0}")]
    Answer(Answer),
    /// The registry wants (other) credentials.
    #[error("{registry} refused access: {message}")]
    Unauthorized {
        /// The registry as the user names it.
        registry: String,
        /// The registry's words, or what was sent.
        message: String,
        /// Whether credentials were sent: "wrong" against "none".
        had_credentials: bool,
    },
    /// A pull quota is used up.
    #[error("the quota of {host} is used up ({})", quota_in_words(limits.as_deref(), *retry_after))]
    Quota {
        /// The host that counts.
        host: String,
        /// Its rate-limit headers in words.
        limits: Option<String>,
        /// When it says to come back.
        retry_after: Option<Duration>,
    },
    /// The name of the host does not resolve.
    #[error("no such host: {host}")]
    HostNotFound {
        /// The name.
        host: String,
    },
    /// Nobody listens there.
    #[error("connection to {host} refused")]
    Refused {
        /// Host and port.
        host: String,
    },
    /// The proxy does not let us through.
    #[error("the proxy refused to connect to {host} ({status})")]
    ProxyRefused {
        /// Host and port.
        host: String,
        /// The status of the proxy's answer.
        status: u16,
    },
    /// TLS could not be set up.
    #[error("TLS with {host} failed: {detail}")]
    Tls {
        /// Host and port.
        host: String,
        /// What the TLS library said.
        detail: String,
    },
    /// The peer went silent.
    #[error("{host} did not answer in time ({detail})")]
    Stalled {
        /// Host and port.
        host: String,
        /// Which wait ran out.
        detail: String,
    },
    /// The connection broke.
    #[error("the connection to {host} broke: {source}")]
    Broken {
        /// Host and port.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// The registry knows no more of an upload that it began.
    #[error("the registry lost the upload: {0}")]
    UploadLost(Answer),
    /// Following a redirect, location or realm would be unsafe.
    #[error("{0}")]
    Unsafe(String),
    /// A credential file or helper failed.
    #[error("{0}")]
    Credential(String),
    /// An image is not signed as it must be.
    #[error("{0}")]
    Untrusted(String),
    /// A place that is no registry, layout or archive failed in its own way.
    #[error("{}", in_full(&**.0))]
    Place(Box<dyn std::error::Error + Send + Sync>),
    /// Another part of the same copy failed first, or the client was stopped.
    #[error("stopped: nobody needs it any more")]
    Stopped,
}

/// An error answer of a registry, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Method and URL without query.
    pub request: String,
    /// The code of the first error in the body, such as `MANIFEST_UNKNOWN`.
    pub code: Option<String>,
    /// Its message.
    pub message: Option<String>,
    /// The wait that the registry asks for.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} answered {}", self.request, self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        match &self.message {
            Some(message) if !message.is_empty() => write!(f, ": {message}"),
            _ => Ok(()),
        }
    }
}

impl Answer {
    /// What can be looked at where something is not there: for `GET https://HOST/v2/REPOSITORY/manifests/TAG` the tags.
    fn missing_hint(&self) -> Option<String> {
        let (_, url) = self.request.split_once("://")?;
        let (host, path) = url.split_once("/v2/")?;
        let is_repository_unknown = self.code.as_deref() == Some("NAME_UNKNOWN");
        match path.split_once("/manifests/") {
            Some((repository, tag)) if !is_repository_unknown && !tag.contains(':') => {
                let repository: Reference = format!("{host}/{repository}").parse().ok()?;
                let name = repository.familiar();
                Some(format!("`nacre tags {name}` lists the tags there are"))
            }
            Some(_) if !is_repository_unknown => None,
            _ if path.contains("/manifests/") || path.contains("/tags/") => Some(format!(
                "check the spelling; `nacre catalog {host}` lists the repositories, where a registry tells them"
            )),
            _ => None,
        }
    }
}

impl Error {
    /// An error while `doing` ("push the blob sha256:..."), because of `cause`.
    pub fn new(doing: impl Into<String>, cause: Cause) -> Self {
        Self { doing: without_credentials(&doing.into()), cause: Box::new(cause), is_local: false }
    }

    /// An error about the user's own files, in which no registry had a part.
    pub(crate) fn local(doing: impl Into<String>, cause: Cause) -> Self {
        Self { is_local: true, ..Self::new(doing, cause) }
    }

    /// An error of a file operation.
    pub fn disk(doing: impl Into<String>, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::new(doing, Cause::Disk { path: path.into(), source })
    }

    /// The error behind an [`io::Error`]: one of ours that travelled through a reader, else a file error at `path`.
    pub fn from_io(doing: impl Into<String>, path: impl Into<PathBuf>, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(error) => Self::disk(doing, path, error),
        }
    }

    /// The same, told as a part of something else.
    pub(crate) fn while_doing(self, doing: String) -> Self {
        Self { doing, ..self }
    }

    /// Why.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    pub(crate) fn into_cause(self) -> Cause {
        *self.cause
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match *self.cause {
            _ if self.is_local => ErrorKind::User,
            Cause::Place(ref place) => carried(&**place).map_or(ErrorKind::User, Self::kind),
            Cause::Input(_) | Cause::Disk { .. } | Cause::Credential(_) | Cause::Untrusted(_) => ErrorKind::User,
            _ => ErrorKind::Registry,
        }
    }

    /// The next step for a person, where there is one that helps.
    pub fn hint(&self) -> Option<String> {
        match &*self.cause {
            Cause::Unauthorized { registry, had_credentials: false, .. } => {
                Some(format!("log in first: nacre login {registry}"))
            }
            Cause::Unauthorized { registry, had_credentials: true, .. } => Some(format!(
                "the stored credentials may be wrong or lack the right to do this: nacre login {registry}"
            )),
            Cause::Answer(Answer { status: 403, .. }) => {
                Some("the account may lack the right to this repository".to_owned())
            }
            Cause::Answer(answer) if answer.status == 404 => answer.missing_hint(),
            Cause::Tls { detail, host } if detail.contains("InvalidContentType") => {
                Some(format!("{host} seems to speak plain http; allow that for this registry if you trust the network"))
            }
            Cause::Tls { detail, .. } if detail.contains("UnknownIssuer") => {
                Some("the registry's certificate authority is not among the trusted ones of this system".to_owned())
            }
            Cause::ProxyRefused { status: 407, .. } => {
                Some("the proxy wants a user and a password: https_proxy=http://USER:PASSWORD@HOST:PORT".to_owned())
            }
            Cause::ProxyRefused { .. } => {
                Some("check https_proxy; no_proxy lists hosts to reach without it".to_owned())
            }
            Cause::HostNotFound { .. } => Some("check the spelling of the registry and the network".to_owned()),
            Cause::Refused { .. } => Some("is the registry running, and is the port right?".to_owned()),
            Cause::Quota { .. } => Some("wait, or log in: accounts have larger quotas".to_owned()),
            _ => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

impl Cause {
    /// Whether the same request may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::Stalled { .. } | Self::Broken { .. } | Self::UploadLost(_) => true,
            Self::Answer(answer) => is_transient_status(answer.status),
            _ => false,
        }
    }

    /// The wait that the registry asked for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer(answer) => answer.retry_after,
            _ => None,
        }
    }
}

/// The error of ours that another crate met when it read from us.
fn carried<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if let Some(ours) = inner.downcast_ref() {
            return Some(ours);
        }
        // An I/O error shows the causes of what it carries, but not that itself.
        let carried = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = carried.map(|carried| carried as &(dyn std::error::Error + 'static)).or_else(|| inner.source());
    }
    None
}

/// An error and all its causes, on one line; a cause that a message tells already is not told again.
pub fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = inner.source();
    }
    words
}

/// "0 of 100 pulls left in 6 hours, try again in 5 h 33 min".
fn quota_in_words(limits: Option<&str>, retry_after: Option<Duration>) -> String {
    let again = retry_after.map(|wait| {
        let minutes = wait.as_secs().div_ceil(60);
        match minutes / 60 {
            0 => format!("try again in {minutes} min"),
            hours => format!("try again in {hours} h {} min", minutes % 60),
        }
    });
    match (limits, again) {
        (Some(limits), Some(again)) => format!("{limits}, {again}"),
        (Some(limits), None) => limits.to_owned(),
        (None, again) => again.unwrap_or_else(|| "it says no more".to_owned()),
    }
}

/// Statuses worth another try: timeouts, rate limits and broken gateways; 499 and 522 are nginx's and Cloudflare's.
pub(crate) fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 499 | 500 | 502 | 503 | 504 | 522)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("making a mount failed")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read x: {0}")]
    struct Telling(#[source] Outer);

    #[test]
    fn a_cause_is_told_once() {
        let bare = Outer(io::Error::other("no such device"));
        assert_eq!(in_full(&bare), "making a mount failed: no such device");
        assert_eq!(in_full(&Telling(bare)), "cannot read x: making a mount failed: no such device");
    }

    #[test]
    fn a_place_that_failed_because_a_registry_did_is_no_fault_of_the_user() {
        let kind = |error: io::Error| Error::new("keep it", Cause::Place(Box::new(io::Error::other(error)))).kind();
        let ours = Error::new("fetch it", Cause::Malformed("not what it says".to_owned()));
        assert_eq!(kind(ours.into()), ErrorKind::Registry);
        assert_eq!(kind(io::Error::other("full")), ErrorKind::User);
        assert_eq!(kind(Error::local("read it", Cause::Missing("gone".to_owned())).into()), ErrorKind::User);
    }
}
