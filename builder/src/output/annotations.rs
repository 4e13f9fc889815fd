//! Annotations of images: on which document each goes, as `--annotation` and the outputs write it.
//! <https://github.com/opencontainers/image-spec/blob/main/annotations.md>
//!
//! Invariant: an annotation that an output has no place for is an error, never dropped.

use std::collections::BTreeMap;

use registry_client::Platform;

/// The document that an annotation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnotationPlace {
    /// The manifest of each image.
    Manifest,
    /// The entry of each image in the index; without one, that of the layout's `index.json`.
    ManifestDescriptor,
    /// The index of several platforms.
    Index,
    /// The index's entry in a layout's `index.json`.
    IndexDescriptor,
}

/// One annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// Where it goes.
    pub place: AnnotationPlace,
    /// The image that it is for; `None` for all.
    pub platform: Option<Platform>,
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Annotation {
    /// Reads buildx's `[type[platform],...:]key=value`; several types give several annotations.
    ///
    /// # Errors
    /// In words, if there is no such type, platform or key.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        let (left, value) = text.split_once('=').ok_or("it is not KEY=VALUE")?;
        let Some((types, key)) = left.split_once(':') else {
            return Ok(vec![Self::new("manifest", left, value)?]);
        };
        types.split(',').map(|kind| Self::new(kind, key, value)).collect()
    }

    /// Reads the `.key`, `-type.key` or `-type[platform].key` behind `annotation` in an output.
    pub(super) fn of_field(rest: &str, value: &str) -> Result<Self, String> {
        let unknown = || format!("annotation{rest}= is not supported: annotation[-TYPE][[PLATFORM]].KEY=");
        // A platform may have a dot in it.
        let end_of_platform =
            rest.find(']').filter(|end| rest.find('.').is_none_or(|dot| rest.find('[') < Some(dot) && dot < *end));
        let dot = rest[end_of_platform.unwrap_or(0)..].find('.').ok_or_else(unknown)? + end_of_platform.unwrap_or(0);
        let (kind, key) = (&rest[..dot], &rest[dot + 1..]);
        let kind = match kind.strip_prefix('-') {
            Some(kind) => kind.to_owned(),
            None if kind.is_empty() || kind.starts_with('[') => format!("manifest{kind}"),
            None => return Err(unknown()),
        };
        Self::new(&kind, key, value)
    }

    fn new(kind: &str, key: &str, value: &str) -> Result<Self, String> {
        let (name, platform) = match kind.split_once('[') {
            None => (kind, None),
            Some((name, rest)) => {
                let platform = rest.strip_suffix(']').ok_or_else(|| format!("{kind:?} has no closing bracket"))?;
                (name, Some(platform.parse::<Platform>().map_err(|error| error.to_string())?))
            }
        };
        let place = match name {
            "manifest" => AnnotationPlace::Manifest,
            "manifest-descriptor" => AnnotationPlace::ManifestDescriptor,
            "index" => AnnotationPlace::Index,
            "index-descriptor" => AnnotationPlace::IndexDescriptor,
            other => {
                return Err(format!(
                    "an annotation of type {other:?} is not supported: manifest, manifest-descriptor, index or index-descriptor"
                ));
            }
        };
        if platform.is_some() && matches!(place, AnnotationPlace::Index | AnnotationPlace::IndexDescriptor) {
            return Err(format!("an annotation of type {name} has no platform"));
        }
        if key.is_empty() {
            return Err("an annotation needs a key".to_owned());
        }
        Ok(Self { place, platform, key: key.to_owned(), value: value.to_owned() })
    }
}

/// Those of one document; `platform` is its image's.
pub(super) fn at(
    annotations: &[Annotation],
    place: AnnotationPlace,
    platform: Option<&Platform>,
) -> BTreeMap<String, String> {
    // What is for one platform counts before what is for all.
    let (mut for_all, mut for_one) = (BTreeMap::new(), BTreeMap::new());
    for annotation in annotations.iter().filter(|annotation| annotation.place == place) {
        let Annotation { key, value, .. } = annotation.clone();
        match &annotation.platform {
            None => for_all.insert(key, value),
            Some(wanted) if platform == Some(wanted) => for_one.insert(key, value),
            Some(_) => None,
        };
    }
    for_all.extend(for_one);
    for_all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(place: AnnotationPlace, platform: Option<&str>, key: &str, value: &str) -> Annotation {
        let platform = platform.map(|text| text.parse().expect("a platform"));
        Annotation { place, platform, key: key.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn annotations_are_written_as_buildx_writes_them() {
        use AnnotationPlace::{Index, Manifest, ManifestDescriptor};
        assert_eq!(Annotation::parse("a.b=c=d"), Ok(vec![one(Manifest, None, "a.b", "c=d")]));
        assert_eq!(
            Annotation::parse("index,manifest[linux/arm64]:k=v"),
            Ok(vec![one(Index, None, "k", "v"), one(Manifest, Some("linux/arm64"), "k", "v")])
        );
        assert_eq!(Annotation::of_field(".a.b", "v"), Ok(one(Manifest, None, "a.b", "v")));
        assert_eq!(Annotation::of_field("[linux/amd64].k", "v"), Ok(one(Manifest, Some("linux/amd64"), "k", "v")));
        assert_eq!(
            Annotation::of_field("-manifest-descriptor[linux/arm/v7].a.b", "v"),
            Ok(one(ManifestDescriptor, Some("linux/arm/v7"), "a.b", "v"))
        );
        for wrong in
            ["key", "layer:k=v", "index[linux/amd64]:k=v", "manifest[linux:k=v", "manifest[x]:k=v", ":k=v", "=v"]
        {
            assert!(Annotation::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "x.k", "-layer.k", ".", "].", "[.", "-manifest"] {
            assert!(Annotation::of_field(wrong, "v").is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_for_one_platform_counts_before_what_is_for_all() {
        let all = [
            one(AnnotationPlace::Manifest, Some("linux/arm64"), "k", "arm"),
            one(AnnotationPlace::Manifest, None, "k", "all"),
        ];
        let of = |platform: &str| at(&all, AnnotationPlace::Manifest, platform.parse().ok().as_ref())["k"].clone();
        assert_eq!((of("linux/arm64"), of("linux/amd64")), ("arm".to_owned(), "all".to_owned()));
    }
}
