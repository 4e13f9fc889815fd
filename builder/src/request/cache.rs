//! Where remote caches are, as `--cache-from` and `--cache-to` write it.
//! <https://docs.docker.com/build/cache/backends/>
//!
//! Invariant: what is not supported is an error that names it.

use std::path::PathBuf;
use std::str::FromStr;

use layerfs::Packing;
use oci_spec::image::Digest;
use registry_client::{ImageName, Reference};

use crate::fields::{Fields, packing};

/// The tag in a directory where none is named.
const DEFAULT_TAG: &str = "latest";

/// What a build asks of remote caches.
#[derive(Debug, Clone, Default)]
pub struct CacheRequest {
    /// Where steps are looked for that this machine has not carried out, the first place first.
    pub imports: Vec<CacheImport>,
    /// Whether the image's configuration says which steps made its layers, for `type=registry,ref=IMAGE` of later
    /// builds.
    pub is_inline: bool,
}

/// A place that holds a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachePlace {
    /// At a registry: a cache, or an image with an inline one.
    Registry(Reference),
    /// An OCI layout, and the tag or digest in it.
    Local {
        /// The directory.
        directory: PathBuf,
        /// A tag, or a digest.
        name: String,
    },
}

/// Where steps are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheImport(pub CachePlace);

/// Which steps are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheScope {
    /// Those whose layers are in the result: `mode=min`.
    Result,
    /// Those of all stages: `mode=max`.
    All,
}

/// Where steps are exported to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheExport {
    /// Into the configuration of the image itself.
    Inline,
    /// To a place of their own.
    To {
        /// The place.
        place: CachePlace,
        /// Which steps.
        scope: CacheScope,
        /// How their layers are packed there.
        packing: Packing,
        /// Whether a failure is only a warning.
        ignores_errors: bool,
    },
}

impl CachePlace {
    /// The same as policies know it.
    pub(crate) fn image_name(&self) -> ImageName {
        match self {
            Self::Registry(reference) => ImageName::Registry(reference.clone()),
            Self::Local { directory, name } => {
                ImageName::OciLayout { directory: directory.clone(), tag: Some(name.clone()) }
            }
        }
    }
}

impl FromStr for CacheImport {
    type Err = String;

    /// `type=registry,ref=REFERENCE`, `type=local,src=DIRECTORY`, or a bare reference.
    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('=') {
            return Ok(Self(CachePlace::Registry(reference(text)?)));
        }
        let mut fields = Fields::parse(text)?;
        let kind = kind(&mut fields)?;
        let place = match kind.as_str() {
            "registry" => CachePlace::Registry(reference(&needed(&mut fields, "ref", &kind)?)?),
            "local" => {
                let directory = needed(&mut fields, "src", &kind)?.into();
                let digest = fields.take("digest").map(|digest| Digest::try_from(digest.as_str()).map_err(|_| digest));
                let digest = digest.transpose().map_err(|digest| format!("digest={digest} is no digest"))?;
                let tag = fields.take("tag");
                if let (Some(_), Some(tag)) = (&digest, &tag) {
                    return Err(format!("digest= and tag={tag} exclude each other"));
                }
                let name = digest.map(|digest| digest.to_string()).or(tag);
                CachePlace::Local { directory, name: name.unwrap_or_else(|| DEFAULT_TAG.to_owned()) }
            }
            "inline" => {
                return Err(
                    "type=inline is only written: to read one, name the image: type=registry,ref=IMAGE".to_owned()
                );
            }
            other => return Err(unsupported(other)),
        };
        fields.finish(&format!("type={kind}"))?;
        Ok(Self(place))
    }
}

impl FromStr for CacheExport {
    type Err = String;

    /// `type=registry,ref=REFERENCE[,mode=max]`, `type=local,dest=DIRECTORY`, `type=inline`, or a bare reference.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut fields = match text.contains('=') {
            true => Fields::parse(text)?,
            false => Fields::parse(&format!("type=registry,ref={text}"))?,
        };
        let kind = kind(&mut fields)?;
        let place = match kind.as_str() {
            "inline" => {
                fields.finish("type=inline")?;
                return Ok(Self::Inline);
            }
            "registry" => {
                let reference = reference(&needed(&mut fields, "ref", &kind)?)?;
                if reference.digest().is_some() {
                    return Err(format!("ref={reference} has a digest: a cache is written to a tag"));
                }
                CachePlace::Registry(reference)
            }
            "local" => {
                let directory = needed(&mut fields, "dest", &kind)?.into();
                CachePlace::Local { directory, name: fields.take("tag").unwrap_or_else(|| DEFAULT_TAG.to_owned()) }
            }
            other => return Err(unsupported(other)),
        };
        let scope = match fields.take("mode").as_deref() {
            None | Some("min") => CacheScope::Result,
            Some("max") => CacheScope::All,
            Some(other) => return Err(format!("mode={other} is not supported: min or max")),
        };
        for (key, why) in [
            ("image-manifest", "several registries refuse an index of blobs"),
            ("oci-mediatypes", "Docker has no media type for a cache"),
        ] {
            if fields.boolean(key)? == Some(false) {
                return Err(format!("{key}=false is not supported: {why}"));
            }
        }
        let ignores_errors = fields.boolean("ignore-error")?.unwrap_or(false);
        let packing = packing(&mut fields)?;
        fields.finish(&format!("type={kind}"))?;
        Ok(Self::To { place, scope, packing, ignores_errors })
    }
}

impl std::fmt::Display for CachePlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "{reference}"),
            Self::Local { directory, name } => write!(f, "{} ({name})", directory.display()),
        }
    }
}

fn kind(fields: &mut Fields) -> Result<String, String> {
    fields.take("type").ok_or_else(|| "it has no type=".to_owned())
}

fn needed(fields: &mut Fields, key: &str, kind: &str) -> Result<String, String> {
    fields.take(key).ok_or_else(|| format!("type={kind} needs {key}="))
}

fn reference(text: &str) -> Result<Reference, String> {
    text.parse().map_err(|error: registry_client::Error| error.to_string())
}

fn unsupported(kind: &str) -> String {
    format!("type={kind} is not supported: registry, local or inline")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_buildkit_writes_them() {
        let registry = CachePlace::Registry("r.example/a:cache".parse().expect("a reference"));
        assert_eq!("r.example/a:cache".parse(), Ok(CacheImport(registry.clone())));
        assert_eq!("type=registry,ref=r.example/a:cache".parse(), Ok(CacheImport(registry.clone())));
        let local = CachePlace::Local { directory: "d".into(), name: "latest".to_owned() };
        assert_eq!("type=local,src=d".parse(), Ok(CacheImport(local)));
        assert_eq!("type=inline".parse(), Ok(CacheExport::Inline));
        let text =
            "type=registry,ref=r.example/a:cache,mode=max,image-manifest=true,compression=zstd,ignore-error=true";
        let packing = "zstd".parse().expect("a packing");
        let export = CacheExport::To { place: registry, scope: CacheScope::All, packing, ignores_errors: true };
        assert_eq!(text.parse(), Ok(export));
    }

    #[test]
    fn what_is_not_supported_names_itself() {
        for (text, words) in [
            ("type=gha", "type=gha"),
            ("type=s3,bucket=b", "type=s3"),
            ("type=azblob", "type=azblob"),
            ("type=registry", "ref="),
            ("type=local,tag=x", "dest="),
            ("type=registry,ref=A", "A"),
            ("type=registry,ref=a,mode=all", "mode=all"),
            ("type=registry,ref=a,image-manifest=false", "image-manifest"),
            ("type=registry,ref=a,oci-mediatypes=false", "oci-mediatypes"),
            ("type=registry,ref=a,registry.insecure=true", "registry.insecure"),
            ("type=registry,ref=a,force-compression=true", "force-compression"),
            ("type=inline,mode=max", "mode"),
        ] {
            let error = text.parse::<CacheExport>().expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
        for (text, words) in [
            ("type=gha", "type=gha"),
            ("type=inline", "type=inline"),
            ("type=local", "src="),
            ("type=local,src=d,digest=x", "digest=x"),
            ("type=registry,ref=a,mode=max", "mode"),
        ] {
            let error = text.parse::<CacheImport>().expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
