//! The image configuration: the JSON document that says how a container of an image runs.
//!
//! `oci-spec`'s own type drops what Docker added (HEALTHCHECK, ONBUILD, SHELL and all unknown
//! fields), so that a rebuild would lose them: these types keep every field. One value has one
//! serialisation: fields in the order below, maps sorted.
//! <https://github.com/opencontainers/image-spec/blob/main/config.md>,
//! <https://github.com/moby/docker-image-spec/blob/main/spec.md>

use std::collections::BTreeMap;

use registry_client::Platform;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The path that processes get where an image sets none, as Docker has it.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The field that says for which version of the system an image is.
const OS_VERSION: &str = "os.version";

/// An image configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made, as RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `v7` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// How a container runs.
    #[serde(default)]
    pub config: RunConfig,
    /// The layers.
    #[serde(default)]
    pub rootfs: RootFs,
    /// What each step did.
    #[serde(default, deserialize_with = "null_is_default")]
    pub history: Vec<History>,
    /// Fields of others, kept as they were.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// What a container of the image runs, and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user[:group]`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports as `80/tcp`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// `NAME=value`, in order.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The program.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Its default arguments.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// How to see whether the container is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Windows quoting, which Docker sets on Linux too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub args_escaped: bool,
    /// Paths that a runtime puts volumes on.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Value>,
    /// Where processes start.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Instructions that a build on this image begins with.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// Labels.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What stops a container.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// What runs the shell form of instructions.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Fields of others, kept as they were.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A health check; times are nanoseconds and 0 means the default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", ...]` or `["CMD-SHELL", "..."]`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// For one check.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// While failures do not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two checks of that time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// The layers of an image, as the digests of their uncompressed tars.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// From the lowest layer to the topmost.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<String>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// What one step did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When, as RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Who.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Anything else.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the step made no layer.
    #[serde(default, skip_serializing_if = "is_false")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// The configuration of an image with nothing in it, for a platform.
    pub fn scratch(platform: &Platform) -> Self {
        let version = platform.os_version().map(|version| (OS_VERSION.to_owned(), version.into()));
        Self {
            architecture: platform.architecture().to_owned(),
            variant: platform.variant().map(str::to_owned),
            os: platform.os().to_owned(),
            rest: version.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Says that the image is for a platform, as BuildKit does it: a variant or a version that was not asked for stays if
    /// the rest is the same.
    pub fn set_platform(&mut self, platform: &Platform) {
        let is_same = self.os == platform.os() && self.architecture == platform.architecture();
        platform.os().clone_into(&mut self.os);
        platform.architecture().clone_into(&mut self.architecture);
        if platform.variant().is_some() || !is_same {
            self.variant = platform.variant().map(str::to_owned);
        }
        if platform.os_version().is_some() || !is_same {
            self.rest.remove(OS_VERSION);
            self.rest.extend(platform.os_version().map(|version| (OS_VERSION.to_owned(), version.into())));
        }
    }

    /// Writes the platform in its normal form: `arm64/v8` is `arm64`.
    pub fn normalize_platform(&mut self) {
        let normal = Platform::new(&self.os, &self.architecture, self.variant.as_deref());
        normal.architecture().clone_into(&mut self.architecture);
        self.variant = normal.variant().map(str::to_owned);
    }

    /// The bytes of the document.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a configuration has string keys only")
    }
}

impl RunConfig {
    /// The value of an environment variable.
    pub fn env(&self, name: &str) -> Option<&str> {
        let entry = self.env.iter().find(|entry| name_of(entry) == name)?;
        Some(entry.split_once('=').map_or("", |(_, value)| value))
    }

    /// Sets an environment variable, in its old place if it had one.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        match self.env.iter_mut().find(|entry| name_of(entry) == name) {
            Some(old) => *old = entry,
            None => self.env.push(entry),
        }
    }
}

fn name_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Go writes an empty list as `null`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_docker_only_fields_survive() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"OnBuild":["RUN x"],"Mystery":1},"rootfs":{"type":"layers","diff_ids":null},"history":null,"os.version":"5","moby.x":true}"#;
        let config: ImageConfig = serde_json::from_str(text).expect("valid");
        let again: Value = serde_json::from_slice(&config.to_bytes()).expect("valid");
        assert_eq!(again["config"]["Mystery"], 1);
        assert_eq!(again["config"]["OnBuild"][0], "RUN x");
        assert_eq!(again["os.version"], "5");
        assert_eq!(again["moby.x"], true);
    }

    #[test]
    fn a_variable_set_again_keeps_its_place() {
        let mut config = RunConfig { env: vec!["A=1".into(), "B=2".into()], ..RunConfig::default() };
        config.set_env("A", "3");
        config.set_env("C", "");
        assert_eq!(config.env, ["A=3", "B=2", "C="]);
        assert_eq!(config.env("C"), Some(""));
        assert_eq!(config.env("D"), None);
    }
}
