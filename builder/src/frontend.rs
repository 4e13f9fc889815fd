//! The build arguments that mean something to the builder itself, besides what ARG makes of them.
//! <https://docs.docker.com/reference/dockerfile/#buildkit-built-in-build-args>
//!
//! Invariant: each is understood here or refused by name. `BUILDKIT_BUILD_NAME` names a build in a history that we do
//! not keep, and those for SBOM scanners have no scanner to tell: they change no result, so any value is right.

use std::collections::BTreeMap;

use crate::dockerfile::is_own_frontend;
use crate::error::BuildError;
use crate::fields::truth;

/// Build arguments for the scanner of packages, which are no variables.
pub(crate) const SCAN_ARGUMENTS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// What the arguments say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FrontendArguments {
    /// `BUILDKIT_MULTI_PLATFORM`: make an index even of one image.
    pub(crate) makes_index: bool,
    /// `BUILDKIT_SANDBOX_HOSTNAME`: the host name in RUN steps.
    pub(crate) hostname: Option<String>,
    /// `BUILDKIT_CACHE_MOUNT_NS`: goes before the id of each cache mount.
    pub(crate) cache_namespace: Option<String>,
}

impl FrontendArguments {
    /// Reads them from a build's arguments.
    pub(crate) fn of(arguments: &BTreeMap<String, String>, platforms: usize) -> Result<Self, BuildError> {
        let given = |name: &str| arguments.get(name).filter(|value| !value.is_empty());
        let wrong = |message: String| BuildError::Request(message);
        if let Some(syntax) = given("BUILDKIT_SYNTAX").filter(|syntax| !is_own_frontend(syntax)) {
            let message = format!(
                "BUILDKIT_SYNTAX: the frontend {syntax:?} is not supported: only docker/dockerfile is built in"
            );
            return Err(wrong(message));
        }
        let multi = given("BUILDKIT_MULTI_PLATFORM");
        let is_multi = multi.map(|text| {
            truth(text).ok_or_else(|| wrong(format!("invalid boolean value for BUILDKIT_MULTI_PLATFORM: {text}")))
        });
        let is_multi = is_multi.transpose()?;
        if is_multi == Some(false) && platforms > 1 {
            return Err(wrong("BUILDKIT_MULTI_PLATFORM=false contradicts several platforms".to_owned()));
        }
        let hostname = given("BUILDKIT_SANDBOX_HOSTNAME").cloned();
        // HOST_NAME_MAX of Linux; the file /etc/hosts has it, too.
        if let Some(name) = hostname.as_ref().filter(|name| name.len() > 64 || name.contains(char::is_whitespace)) {
            return Err(wrong(format!("BUILDKIT_SANDBOX_HOSTNAME {name:?} is no host name")));
        }
        Ok(Self {
            makes_index: is_multi == Some(true),
            hostname,
            cache_namespace: given("BUILDKIT_CACHE_MOUNT_NS").cloned(),
        })
    }

    /// The id of a cache mount in its namespace.
    pub(crate) fn cache_id(&self, id: &str) -> String {
        match &self.cache_namespace {
            Some(namespace) => format!("{namespace}/{id}"),
            None => id.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str, platforms: usize) -> Result<FrontendArguments, String> {
        let arguments = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        FrontendArguments::of(&arguments, platforms).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        assert!(of("BUILDKIT_SYNTAX", "docker/dockerfile:1", 1).is_ok());
        assert!(of("BUILDKIT_SYNTAX", "other/frontend", 1).expect_err("foreign").contains("other/frontend"));
        assert!(of("BUILDKIT_MULTI_PLATFORM", "1", 1).expect("valid").makes_index);
        assert!(of("BUILDKIT_MULTI_PLATFORM", "maybe", 1).is_err());
        assert!(of("BUILDKIT_MULTI_PLATFORM", "0", 2).is_err());
        assert!(of("BUILDKIT_SANDBOX_HOSTNAME", "a b", 1).is_err());
        assert_eq!(of("BUILDKIT_CACHE_MOUNT_NS", "ns", 1).expect("valid").cache_id("x"), "ns/x");
        assert_eq!(of("OTHER", "x", 1).expect("valid"), FrontendArguments::default());
    }
}
