//! What is signed: which manifest, under which name
//! (<https://github.com/containers/image/blob/main/docs/containers-signature.5.md>).
//!
//! Invariant: a payload that is read has no part that we do not know and no key twice, so that no two tools read it
//! differently. Whether it is to be trusted is for others to say.

use std::collections::BTreeMap;
use std::fmt;

use oci_spec::image::Digest;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::identity::Name;
use crate::error::{Cause, Error};

/// How a payload is signed, which it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As cosign and containers/image do it with a key.
    Sigstore,
    /// As containers/image does it with GPG ("simple signing").
    Gpg,
}

impl Form {
    fn words(self) -> &'static str {
        match self {
            Self::Sigstore => "cosign container image signature",
            Self::Gpg => "atomic container signature",
        }
    }
}

/// The content of a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The digest of the manifest.
    pub digest: Digest,
    /// The image's name, as the signer had it: with a tag or digest, or the repository alone; bundles have none.
    pub identity: Option<String>,
    /// What the signer said besides.
    pub annotations: BTreeMap<String, String>,
}

impl Payload {
    /// What is to be signed: a manifest under a name, which is written in full, with its tag or else its digest, or
    /// with neither.
    ///
    /// # Errors
    /// If the name is none, or an annotation has a key that is not the signer's to give.
    pub fn new(digest: Digest, name: &str, annotations: BTreeMap<String, String>) -> Result<Self, Error> {
        let refuse = |what| Error::local("sign", Cause::Input(what));
        // containers/image reads it as a number.
        if annotations.contains_key("timestamp") {
            return Err(refuse("an annotation of the name timestamp has a meaning of its own".to_owned()));
        }
        let name = Name::parse(name).map_err(refuse)?;
        Ok(Self { digest, identity: Some(format!("{}{}", name.repository, name.tail)), annotations })
    }

    /// What is to be signed where names have no place, as in bundles.
    pub fn nameless(digest: Digest, annotations: BTreeMap<String, String>) -> Self {
        Self { digest, identity: None, annotations }
    }

    /// The bytes that are signed; the same for the same payload.
    pub(crate) fn to_bytes(&self, form: Form) -> Vec<u8> {
        // cosign writes null where there is nothing; readers of GPG's take an object only.
        let is_null = self.annotations.is_empty() && form == Form::Sigstore;
        let optional = if is_null { Value::Null } else { json!(self.annotations) };
        let document = json!({
            "critical": {
                "identity": {"docker-reference": self.identity},
                "image": {"docker-manifest-digest": self.digest.as_ref()},
                "type": form.words(),
            },
            "optional": optional,
        });
        document.to_string().into_bytes()
    }

    /// Reads it.
    pub(crate) fn parse(form: Form, bytes: &[u8]) -> Result<Self, String> {
        let document = strict(bytes)?;
        let [critical, optional] = exactly(&document, "the payload", ["critical", "optional"])?;
        let [identity, image, kind] = exactly(critical, "critical", ["identity", "image", "type"])?;
        let [identity] = exactly(identity, "identity", ["docker-reference"])?;
        let [digest] = exactly(image, "image", ["docker-manifest-digest"])?;
        let text = |value: &Value, what| value.as_str().map(str::to_owned).ok_or(format!("its {what} is no text"));
        let kind = text(kind, "type")?;
        if kind != form.words() {
            return Err(format!("it is of type {kind:?}, not {:?}", form.words()));
        }
        let digest =
            Digest::try_from(text(digest, "digest")?).map_err(|error| format!("its digest is none: {error}"))?;
        let annotations = match optional {
            Value::Null if form == Form::Sigstore => BTreeMap::new(),
            // The values of others may be of any kind: `timestamp` is a number.
            Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), shown(value))).collect(),
            _ => return Err("its optional part is no object".to_owned()),
        };
        Ok(Self { digest, identity: Some(text(identity, "identity")?), annotations })
    }
}

pub(super) fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The values of an object that has these keys and no others.
pub(super) fn exactly<'a, const N: usize>(
    value: &'a Value,
    what: &str,
    keys: [&str; N],
) -> Result<[&'a Value; N], String> {
    let object = value.as_object().filter(|object| object.len() == N);
    let found: Vec<&Value> = keys.iter().filter_map(|key| object?.get(*key)).collect();
    found.try_into().ok().ok_or_else(|| format!("{what} has not exactly the parts {}", keys.join(", ")))
}

/// A JSON document in which no object has a key twice.
pub(super) fn strict(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(bytes).map(|Strict(value)| value).map_err(|error| format!("it is not valid JSON: {error}"))
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if object.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("it has the key {key:?} twice")));
            }
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::digest_of;
    use proptest::prelude::*;

    fn payload() -> Payload {
        let annotations = BTreeMap::from([("commit".to_owned(), "abc".to_owned())]);
        Payload { digest: digest_of(b"manifest"), identity: Some("r.example/app:1".to_owned()), annotations }
    }

    #[test]
    fn what_is_written_is_read_and_always_the_same() {
        let bytes = payload().to_bytes(Form::Sigstore);
        assert_eq!(Payload::parse(Form::Sigstore, &bytes), Ok(payload()));
        assert_eq!(bytes, payload().to_bytes(Form::Sigstore));
        let bare = Payload { annotations: BTreeMap::new(), ..payload() };
        assert!(bare.to_bytes(Form::Sigstore).ends_with(br#""optional":null}"#));
        assert_eq!(Payload::parse(Form::Sigstore, &bare.to_bytes(Form::Sigstore)), Ok(bare));
    }

    #[test]
    fn what_others_write_is_read() {
        let digest = digest_of(b"manifest");
        let theirs = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"app"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":{{"creator":"containers/image 5.23.1","timestamp":1700000000}}}}"#
        );
        let read = Payload::parse(Form::Sigstore, theirs.as_bytes()).expect("read");
        assert_eq!((read.digest, read.identity.as_deref()), (digest, Some("app")));
        assert_eq!(read.annotations["timestamp"], "1700000000");
    }

    #[test]
    fn what_gpg_signs_is_of_another_type_and_neither_is_taken_for_the_other() {
        let bare = Payload { annotations: BTreeMap::new(), ..payload() };
        for payload in [payload(), bare] {
            let bytes = payload.to_bytes(Form::Gpg);
            assert_eq!(Payload::parse(Form::Gpg, &bytes), Ok(payload.clone()));
            assert!(
                Payload::parse(Form::Sigstore, &bytes).expect_err("another").contains("atomic container signature")
            );
            assert!(Payload::parse(Form::Gpg, &payload.to_bytes(Form::Sigstore)).is_err());
            let null = String::from_utf8(bytes).expect("text").replace("\"optional\":{}", "\"optional\":null");
            assert_eq!(Payload::parse(Form::Gpg, null.as_bytes()).is_err(), payload.annotations.is_empty());
        }
    }

    #[test]
    fn odd_payloads_are_refused() {
        let good = String::from_utf8(payload().to_bytes(Form::Sigstore)).expect("text");
        for (from, to) in [
            ("\"optional\"", "\"more\":1,\"optional\""),
            ("\"optional\":{\"commit\":\"abc\"}", "\"optional\":[]"),
            (",\"optional\":{\"commit\":\"abc\"}", ""),
            ("\"type\"", "\"kind\""),
            ("cosign container image signature", "atomic container signature"),
            ("sha256:", "sha256-"),
            ("\"r.example/app:1\"", "7"),
            ("\"docker-reference\":", "\"docker-reference\":\"other\",\"docker-reference\":"),
            ("{\"docker-reference\":\"r.example/app:1\"}", "[\"r.example/app:1\"]"),
        ] {
            let odd = good.replacen(from, to, 1);
            assert_ne!(odd, good, "{from}");
            assert!(Payload::parse(Form::Sigstore, odd.as_bytes()).is_err(), "{odd}");
        }
        let deep = "[".repeat(1 << 20);
        assert!(
            Payload::parse(Form::Sigstore, deep.as_bytes()).is_err() && Payload::parse(Form::Sigstore, b"").is_err()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..250, byte: u8) {
            let _ = Payload::parse(Form::Sigstore, &bytes);
            let mut near = payload().to_bytes(Form::Sigstore);
            let at = at % near.len();
            near[at] = byte;
            let _ = Payload::parse(Form::Sigstore, &near);
        }
    }
}
