//! For which machine an image is, and the choice of one from an index as Docker makes it.
//!
//! Invariant: a choice never falls on an image of another system or architecture family.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Descriptor;

use crate::error::{Cause, Error};

/// System, architecture and variant in Go's names: `linux/arm64/v8`, with the default variant left out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
    os_version: Option<String>,
}

impl Platform {
    /// A platform in normal form: `aarch64` is `arm64`, and `arm64/v8` and `amd64/v1` are written without variant
    /// (<https://github.com/containerd/platforms/blob/main/database.go>).
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (os, architecture) = (os.to_ascii_lowercase(), architecture.to_ascii_lowercase());
        let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", Some(variant)) => ("amd64", Some(variant)),
            ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
            ("aarch64" | "arm64", Some(variant)) => ("arm64", Some(variant)),
            ("i386" | "i486" | "i586" | "i686" | "x86" | "386", _) => ("386", None),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            (other, variant) => (other, variant),
        };
        let (architecture, variant) = (architecture.to_owned(), variant.map(str::to_owned));
        Self { os, architecture, variant, os_version: None }
    }

    /// The same for one version of the system: `10.0.17763` of Windows.
    fn with_os_version(self, version: &str) -> Self {
        Self { os_version: Some(version.to_owned()).filter(|version| !version.is_empty()), ..self }
    }

    /// The platform that a descriptor of an index states, without a version of its system.
    pub fn of(descriptor: &Descriptor) -> Option<Self> {
        let platform = descriptor.platform().as_ref()?;
        let (os, architecture) = (platform.os().to_string(), platform.architecture().to_string());
        Some(Self::new(&os, &architecture, platform.variant().as_deref()))
    }

    /// The platform of this program, with Linux as its system.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, None)
    }

    /// The system, such as `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The architecture in Go's name, such as `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant where it is not the architecture's default.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// The version of the system, where one was asked for.
    pub fn os_version(&self) -> Option<&str> {
        self.os_version.as_deref()
    }

    /// Whether an image for a version of the system serves.
    fn takes_version(&self, of_image: Option<&str>) -> bool {
        match (&self.os_version, of_image) {
            (Some(host), Some(image)) if self.os == "windows" => runs_on_windows(host, image),
            _ => true,
        }
    }

    /// What a machine of this platform can run, the best first.
    fn accepted(&self) -> Vec<Self> {
        let number = |variant: &Option<String>, default: u32| -> u32 {
            variant.as_deref().and_then(|text| text.strip_prefix('v')?.parse().ok()).unwrap_or(default)
        };
        let at = |architecture: &str, variant: Option<String>| Self::new(&self.os, architecture, variant.as_deref());
        let mut accepted = vec![at(&self.architecture, self.variant.clone())];
        match self.architecture.as_str() {
            "amd64" => {
                let level = number(&self.variant, 1).min(4);
                accepted.extend((1..level).rev().map(|lower| at("amd64", Some(format!("v{lower}")))));
            }
            "arm" => {
                let level = number(&self.variant, 7).min(8);
                accepted.extend((5..level).rev().map(|lower| at("arm", Some(format!("v{lower}")))));
            }
            "arm64" => {
                accepted.push(at("arm64", None));
                accepted.extend((5..=8).rev().map(|lower| at("arm", Some(format!("v{lower}")))));
            }
            _ => {}
        }
        accepted
    }

    /// The manifest of an index that fits best: exactly, else an older variant that the machine can run; among
    /// equals the first. An entry without platform is taken only if it is the only image there is. `versions` are those
    /// of the systems, entry by entry, where there are any.
    pub(crate) fn choose<'a>(
        &self,
        manifests: &'a [Descriptor],
        versions: &[Option<String>],
    ) -> Option<&'a Descriptor> {
        let version = |at: usize| versions.get(at).and_then(Option::as_deref);
        let serves = |at: usize, one: &Descriptor| !is_attestation(one) && self.takes_version(version(at));
        let images = || manifests.iter().enumerate().filter(|(at, one)| serves(*at, one)).map(|(_, one)| one);
        for wanted in self.accepted() {
            if let Some(found) = images().find(|descriptor| Self::of(descriptor).as_ref() == Some(&wanted)) {
                return Some(found);
            }
        }
        let mut all = images();
        match (all.next(), all.next()) {
            (Some(only), None) if only.platform().is_none() => Some(only),
            _ => None,
        }
    }
}

/// BuildKit's attestations lie in indexes as images of the platform unknown/unknown.
pub(crate) fn is_attestation(descriptor: &Descriptor) -> bool {
    let annotations = descriptor.annotations().as_ref();
    annotations.is_some_and(|all| all.contains_key("vnd.docker.reference.type"))
        || Platform::of(descriptor).is_some_and(|platform| platform.os == "unknown")
}

/// Whether Windows of one version runs containers of another: exactly its own build, and from Server 2022 on all since
/// the long-term release before it (<https://github.com/containerd/platforms/blob/main/platform_windows_compat.go>).
fn runs_on_windows(host: &str, image: &str) -> bool {
    /// Builds of Windows Server 2022 and 2025.
    const LONG_TERM: [u32; 2] = [20348, 26100];
    let parts = |text: &str| -> Option<(u32, u32, u32)> {
        let mut numbers = text.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    // What is no version says nothing.
    let (Some(host), Some(image)) = (parts(host), parts(image)) else { return true };
    if (host.0, host.1) != (image.0, image.1) || host.2 < LONG_TERM[0] {
        return host == image;
    }
    let oldest = LONG_TERM.into_iter().rev().find(|build| host.2 > *build).unwrap_or(LONG_TERM[0]);
    (oldest..=host.2).contains(&image.2)
}

/// Systems that may stand alone, of those that Go knows.
const KNOWN_SYSTEMS: [&str; 4] = ["linux", "windows", "darwin", "freebsd"];

/// Architectures that may stand alone: those that images are made for.
const KNOWN_ARCHITECTURES: [&str; 11] =
    ["386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x", "mipsle", "wasm"];

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let is_word =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        let wrong = |what: &str| Error::new(format!("understand the platform {text:?}"), Cause::Input(what.to_owned()));
        let mut parts: Vec<&str> = text.split('/').collect();
        let mut version = "";
        if let Some((os, options)) = parts[0].split_once('(') {
            parts[0] = os;
            version = options.strip_suffix(')').unwrap_or_default();
            if version.contains('+') {
                return Err(wrong("features of a system are not supported"));
            }
            if !is_word(&version) {
                return Err(wrong("a version of the system is written OS(VERSION), such as windows(10.0.20348)"));
            }
        }
        let is_good = parts.iter().all(is_word);
        let found = match parts.as_slice() {
            // As containerd has it, what is left out is the machine's own.
            [os] if KNOWN_SYSTEMS.contains(os) => Self::new(os, Self::host().architecture(), None),
            [architecture]
                if version.is_empty()
                    && KNOWN_ARCHITECTURES.contains(&Self::new("linux", architecture, None).architecture()) =>
            {
                Self::new(Self::host().os(), architecture, None)
            }
            [os, architecture] if is_good => Self::new(os, architecture, None),
            [os, architecture, variant] if is_good => Self::new(os, architecture, Some(variant)),
            _ => {
                return Err(wrong("it is written OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64"));
            }
        };
        Ok(found.with_os_version(version))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        self.os_version.as_ref().map_or(Ok(()), |version| write!(f, "({version})"))?;
        write!(f, "/{}", self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_or_an_architecture_may_stand_alone() {
        let parsed = |text: &str| text.parse::<Platform>().map(|platform| platform.to_string());
        assert_eq!(parsed("arm64").expect("valid"), "linux/arm64");
        assert_eq!(parsed("x86_64").expect("valid"), "linux/amd64");
        assert_eq!(parsed("windows").expect("valid"), format!("windows/{}", Platform::host().architecture()));
        assert!(parsed("").is_err() && parsed("sparrow").is_err() && parsed("linux/").is_err());
    }

    #[test]
    fn an_image_for_windows_is_chosen_by_the_version_that_the_host_runs() {
        let versions = ["10.0.17763.1", "10.0.26100.1", "10.0.20348.5"].map(|version| Some(version.to_owned()));
        let manifests = index(&["windows/amd64"; 3]);
        let chosen = |text: &str| {
            let platform = text.parse::<Platform>().expect("valid");
            platform.choose(&manifests, &versions).map(Descriptor::size)
        };
        assert_eq!(chosen("windows(10.0.17763)/amd64"), Some(0));
        assert_eq!(chosen("windows(10.0.20348.1)/amd64"), Some(2));
        assert_eq!(chosen("windows(10.0.26100)/amd64"), Some(1));
        assert_eq!(chosen("windows(10.0.14393)/amd64"), None);
        assert_eq!(chosen("windows/amd64"), Some(0));
        let platform: Platform = "Windows(10.0.17763)/x86_64".parse().expect("valid");
        assert_eq!((platform.to_string().as_str(), platform.os()), ("windows(10.0.17763)/amd64", "windows"));
        assert!(
            "windows(10.0+win32k)/amd64".parse::<Platform>().expect_err("features").to_string().contains("features")
        );
    }

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let one = |(number, text): (usize, &&str)| {
            let mut descriptor = serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": number,
                "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            });
            let parts: Vec<&str> = text.split('/').collect();
            if let [os, architecture, variant @ ..] = parts.as_slice() {
                descriptor["platform"] = serde_json::json!({"os": os, "architecture": architecture});
                if let [variant] = variant {
                    descriptor["platform"]["variant"] = (*variant).into();
                }
            }
            serde_json::from_value(descriptor).expect("a valid descriptor")
        };
        platforms.iter().enumerate().map(one).collect()
    }

    fn choice(wanted: &str, platforms: &[&str]) -> Option<u64> {
        wanted.parse::<Platform>().expect("valid").choose(&index(platforms), &[]).map(Descriptor::size)
    }

    #[test]
    fn the_exact_platform_wins_over_an_older_variant() {
        assert_eq!(choice("linux/amd64", &["linux/arm64/v8", "linux/amd64", "linux/386"]), Some(1));
        assert_eq!(choice("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"]), Some(1));
        assert_eq!(choice("linux/arm/v7", &["linux/arm/v6", "linux/arm/v7"]), Some(1));
        assert_eq!(choice("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"]), Some(1));
    }

    #[test]
    fn an_older_variant_serves_where_the_exact_one_is_missing() {
        assert_eq!(choice("linux/arm/v7", &["linux/amd64", "linux/arm/v6"]), Some(1));
        assert_eq!(choice("linux/amd64/v3", &["linux/amd64"]), Some(0));
        assert_eq!(choice("linux/arm/v6", &["linux/arm/v7"]), None);
        assert_eq!(choice("linux/amd64", &["linux/arm64", "windows/amd64"]), None);
    }

    #[test]
    fn an_entry_without_platform_serves_only_alone() {
        assert_eq!(choice("linux/amd64", &["?"]), Some(0));
        assert_eq!(choice("linux/amd64", &["?", "unknown/unknown"]), Some(0));
        assert_eq!(choice("linux/amd64", &["?", "?"]), None);
    }

    #[test]
    fn platforms_have_one_spelling() {
        for (text, normal) in [
            ("linux/aarch64", "linux/arm64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/amd64/v2", "linux/amd64/v2"),
        ] {
            assert_eq!(text.parse::<Platform>().expect("valid").to_string(), normal);
        }
        for bad in ["", "sparrow", "linux/", "a/b/c/d", "linux/a b", "windows(1/amd64", "windows()/amd64", "amd64(1)"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
