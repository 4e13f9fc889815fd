//! What an image must have before it is let in, as podman and skopeo have it in policy.json.
//!
//! Invariant: what is understood but not supported lets nothing in. It decides; the form of the file is
//! [`super::rules`]'s, and what guards a place is [`super::guard`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::attached::{Found, Payloads};
use super::identity::{Name, SignedIdentity};
use super::payload::Payload;
use super::rules::Rules;
use super::trust::{Accepted, TrustedKeys};
use crate::error::{Cause, Error};
use crate::manifest::Manifest;
use crate::place::Source;
use crate::reference::ImageName;

/// Larger than any policy.
const FILE_LIMIT_BYTES: u64 = 4 << 20;
/// Reasons that are told; thousands of bad signatures do not fill the screen.
const REASONS_SHOWN: usize = 3;

/// Which images are let in.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What it was read from, for messages.
    origin: String,
    rules: Rules,
    /// Where GPG's programs are.
    programs: Vec<PathBuf>,
}

impl Default for Policy {
    /// Everything is let in.
    fn default() -> Self {
        Self { origin: "the default".to_owned(), rules: Rules::default(), programs: Vec::new() }
    }
}

impl Policy {
    /// Reads a policy from a file. Where it demands GPG's signatures, `gpgv` is looked for in `programs`.
    ///
    /// # Errors
    /// If it cannot be read, or is none.
    pub fn load(path: &Path, programs: &[PathBuf]) -> Result<Self, Error> {
        let doing = "read the signature policy";
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(|error| Error::disk(doing, path, error))?;
        let in_file = |what: String| Error::local(doing, Cause::Input(format!("{}: {what}", path.display())));
        if bytes.len() as u64 > FILE_LIMIT_BYTES {
            return Err(in_file("it is larger than a policy".to_owned()));
        }
        let rules = Rules::parse(&bytes).map_err(in_file)?;
        Ok(Self { origin: path.display().to_string(), rules, programs: programs.to_owned() })
    }

    /// What it demands of the images of a place.
    ///
    /// # Errors
    /// If it lets nothing in from there, demands what is not supported, or names a key that cannot be read.
    pub fn demands(&self, place: &ImageName) -> Result<Demands, Error> {
        let scope = Scope::of(place);
        let refuse = |what: String| {
            Error::local(format!("accept {place}"), Cause::Untrusted(format!("the policy {} {what}", self.origin)))
        };
        let mut signed = Vec::new();
        for requirement in self.rules.requirements(scope.transport, &scope.names) {
            if let Some((keys, identity)) = requirement.wanted(&self.programs).map_err(refuse)? {
                signed.push(Signed { keys, identity, takes_nameless: false, annotations: BTreeMap::new() });
            }
        }
        Ok(Demands { place: place.to_string(), name: scope.name, signed })
    }
}

/// What signatures an image must have; all of these.
#[derive(Debug, Clone)]
pub struct Demands {
    /// The place in words.
    place: String,
    /// The name of the image there, if it has one.
    name: Option<Name>,
    signed: Vec<Signed>,
}

/// One signature: of one of these keys, for a name that agrees.
#[derive(Debug, Clone)]
struct Signed {
    keys: TrustedKeys,
    identity: SignedIdentity,
    /// Whether one counts that is for no name.
    takes_nameless: bool,
    annotations: BTreeMap<String, String>,
}

impl Demands {
    /// That one of these keys signed the image, for a name that agrees, with these annotations among others.
    ///
    /// # Errors
    /// If the identity is not well formed.
    pub fn of_keys(
        place: &ImageName,
        keys: impl Into<TrustedKeys>,
        identity: SignedIdentity,
        annotations: BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        identity.check().map_err(|what| Error::local("check signatures", Cause::Input(what)))?;
        let signed = vec![Signed { keys: keys.into(), identity, takes_nameless: false, annotations }];
        Ok(Self { place: place.to_string(), name: Scope::of(place).name, signed })
    }

    /// Signatures that are for no name, bundles, count too.
    #[must_use]
    pub fn or_nameless(mut self) -> Self {
        self.signed.iter_mut().for_each(|signed| signed.takes_nameless = true);
        self
    }

    /// Whether nothing is demanded.
    pub fn is_empty(&self) -> bool {
        self.signed.is_empty()
    }

    /// Checks the signatures that lie beside a manifest, and tells those that count. Referrers are looked for only
    /// where those under the tag do not do, so that who can list one cannot keep a signed image out.
    ///
    /// # Errors
    /// If one that is demanded is not there; if they cannot be read, and what could be does not do.
    pub fn check(&self, source: &dyn Source, manifest: &Manifest) -> Result<Vec<Accepted>, Error> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let (mut found, mut payloads) = (Found::default(), Payloads::of(source));
        let is_gpg = |signed: &&Signed| signed.keys.is_gpg();
        let of_gpg = self.signed.iter().filter(is_gpg).count();
        let mut read = if of_gpg > 0 { found.add_gpg(source, manifest.digest()) } else { Ok(()) };
        let has_sigstore = of_gpg < self.signed.len();
        if has_sigstore {
            read = read.and(found.add_tagged(source, manifest.digest()));
        }
        let mut met = self.met_by(&found, manifest, &mut payloads);
        if met.is_err() && has_sigstore {
            read = read.and(found.add_referrers(source, manifest.digest()));
            met = self.met_by(&found, manifest, &mut payloads);
        }
        let refuse = |what| Error::local(format!("accept {}", self.place), Cause::Untrusted(what));
        met.map_err(|what| read.err().unwrap_or_else(|| refuse(what)))
    }

    /// All that count, if each demand is met, else why one is not.
    fn met_by(&self, found: &Found, manifest: &Manifest, payloads: &mut Payloads<'_>) -> Result<Vec<Accepted>, String> {
        let mut all = Vec::new();
        for signed in &self.signed {
            let (mut accepted, mut reasons) = (Vec::new(), BTreeMap::<String, usize>::new());
            for outcome in signed.keys.verified(found, payloads)? {
                let checked =
                    outcome.and_then(|one| signed.check(self.name.as_ref(), manifest, &one.payload).map(|()| one));
                match checked {
                    Ok(one) => accepted.push(one),
                    Err(reason) => *reasons.entry(reason).or_default() += 1,
                }
            }
            if accepted.is_empty() {
                found.unread.iter().for_each(|reason| *reasons.entry(reason.clone()).or_default() += 1);
                let has_bundles = found.has_other_bundles && !signed.keys.is_gpg();
                return Err(refused(manifest, &reasons, has_bundles));
            }
            all.extend(accepted);
        }
        Ok(all)
    }
}

/// Why no signature counts.
fn refused(manifest: &Manifest, reasons: &BTreeMap<String, usize>, has_bundles: bool) -> String {
    let image = format!("no signature of {}", manifest.digest());
    if reasons.is_empty() && has_bundles {
        return format!("there is {image} but bundles of a version that is not supported; v0.3 is");
    }
    if reasons.is_empty() {
        return format!("there is {image}");
    }
    let told = reasons.iter().take(REASONS_SHOWN).map(|(reason, count)| match count {
        1 => reason.clone(),
        count => format!("{reason} ({count} of them)"),
    });
    let more = reasons.len().saturating_sub(REASONS_SHOWN);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{image} counts: {}{more}", told.collect::<Vec<_>>().join("; "))
}

impl Signed {
    /// Whether what one of the keys signed is about this image.
    fn check(&self, name: Option<&Name>, manifest: &Manifest, payload: &Payload) -> Result<(), String> {
        if payload.digest != *manifest.digest() {
            return Err(format!("it is of another image, {}", payload.digest));
        }
        match &payload.identity {
            None if self.takes_nameless => {}
            None => return Err("it is a bundle, which is for no name, and one is demanded".to_owned()),
            Some(identity) if self.identity.accepts(name, identity) => {}
            Some(identity) => return Err(format!("it is for another name, {identity:?}")),
        }
        let missing = self.annotations.iter().find(|(key, value)| payload.annotations.get(*key) != Some(value));
        match missing {
            Some((key, value)) => Err(format!("it does not say {key}={value}")),
            None => Ok(()),
        }
    }
}

/// Where an image comes from, as policies name it.
struct Scope {
    transport: &'static str,
    /// The narrowest first.
    names: Vec<String>,
    name: Option<Name>,
}

impl Scope {
    fn of(place: &ImageName) -> Self {
        let at = |transport, names| Self { transport, names, name: None };
        match place {
            ImageName::Registry(reference) => {
                let name = Name::of(reference);
                let names = name.scopes();
                Self { transport: "docker", names, name: Some(name) }
            }
            ImageName::OciLayout { directory, tag } => {
                let directories = path_scopes(directory);
                let tag = tag.as_deref().unwrap_or_default();
                let own = directories.first().map(|directory| format!("{directory}:{tag}"));
                at("oci", own.into_iter().chain(directories).collect())
            }
            ImageName::Directory(path) => at("dir", path_scopes(path)),
            ImageName::OciArchive { file, .. } => at("oci-archive", path_scopes(file)),
            ImageName::DockerArchive { .. } => at("docker-archive", Vec::new()),
            ImageName::Store(name) => {
                Self { name: name.parse().ok().map(|name| Name::of(&name)), ..at("store", Vec::new()) }
            }
        }
    }
}

/// A path without links, and the directories that it is in, but not the root.
fn path_scopes(path: &Path) -> Vec<String> {
    let whole = path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
    let below_root = |path: &&Path| path.parent().is_some();
    whole.ancestors().filter(below_root).map(|path| path.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::key::PrivateKey;
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    fn policy(rules: &Value) -> Result<Policy, String> {
        let rules = Rules::parse(rules.to_string().as_bytes())?;
        Ok(Policy { origin: "test".to_owned(), rules, programs: Vec::new() })
    }

    fn is_open(policy: &Policy, place: &str) -> bool {
        policy.demands(&place.parse().expect("a place")).is_ok()
    }

    #[test]
    fn the_narrowest_scope_counts() {
        let (accept, reject) = (json!([{"type": "insecureAcceptAnything"}]), json!([{"type": "reject"}]));
        let tests = [
            ("docker.io", "docker://app", "docker://r.example/app"),
            ("docker.io/library/app:1", "docker://app:1", "docker://app:2"),
            ("docker.io/library/app", "docker://app:2", "docker://app2"),
            ("r.example:5000", "docker://r.example:5000/a/b", "docker://r.example/a/b"),
            ("r.example/team", "docker://r.example/team/deep/app", "docker://r.example/team2/app"),
            ("*.example", "docker://r.example:5000/app", "docker://example/app"),
            ("*.com", "docker://a.b.com/app", "docker://a.b.org/app"),
        ];
        for (scope, inside, outside) in tests {
            let policy = policy(&json!({"default": reject, "transports": {"docker": {scope: accept}}})).expect("valid");
            assert!(is_open(&policy, inside) && !is_open(&policy, outside), "{scope}");
            assert!(!is_open(&policy, "oci:/tmp/x"), "{scope}");
        }
        let both = json!({"default": accept, "transports": {
            "docker": {"": reject, "r.example": accept, "r.example/closed": reject, "r.example/closed/but:this": accept},
            "dir": {"/tmp/closed": reject},
        }});
        let policy = policy(&both).expect("valid");
        for (place, expected) in [
            ("docker://app", false),
            ("docker://r.example/app", true),
            ("docker://r.example/closed/app", false),
            ("docker://r.example/closed/but:this", true),
            ("dir:/tmp/closed/below", false),
            ("dir:/tmp/closed2", true),
            ("oci:/tmp/closed", true),
        ] {
            assert_eq!(is_open(&policy, place), expected, "{place}");
        }
    }

    #[test]
    fn what_is_not_supported_lets_nothing_in_where_it_applies_and_only_there() {
        let data = STANDARD.encode(PrivateKey::generate().expect("made").public().to_pem());
        for (requirement, word) in [
            (json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/key.gpg"}), "/key.gpg"),
            (json!({"type": "signedBy", "keyType": "GPGKeys", "keyData": "AAAA"}), "signedBy"),
            (json!({"type": "signedBy", "keyType": "GPGKeys", "keyData": "mQA="}), "gpgv, which is not in PATH"),
            (json!({"type": "signedBy", "keyType": "X509Certificates", "keyPath": "/key"}), "X509Certificates"),
            (json!({"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchExact"}}), "signedBaseLayer"),
            (
                json!({"type": "sigstoreSigned", "fulcio": {"caPath": "/no/such/ca", "oidcIssuer": "i", "subjectEmail": "e"},
                "rekorPublicKeyData": data}),
                "/no/such/ca",
            ),
            (
                json!({"type": "sigstoreSigned", "fulcio": {"caData": "AAAA", "oidcIssuer": "i", "subjectEmail": "e"},
                "rekorPublicKeyData": data}),
                "certificates of no use",
            ),
            (
                json!({"type": "sigstoreSigned", "pki": {"caRootsPath": "/no/such/root", "subjectEmail": "e"}}),
                "/no/such/root",
            ),
            (json!({"type": "sigstoreSigned", "keyData": data, "rekorPublicKeyPath": "/x"}), "/x"),
            (json!({"type": "sigstoreSigned", "keyPath": "/no/such/key"}), "/no/such/key"),
            (json!({"type": "sigstoreSigned", "keyPath": "/tmp"}), "directory"),
            (json!({"type": "sigstoreSigned", "keyData": "AAAA"}), "keyData"),
        ] {
            let rules = json!({"default": [{"type": "insecureAcceptAnything"}],
                "transports": {"docker": {"r.example": [requirement]}}});
            let policy = policy(&rules).expect("valid");
            let error = policy.demands(&"docker://r.example/app".parse().expect("a place")).expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
            assert!(matches!(error.cause(), Cause::Untrusted(_)));
            assert!(is_open(&policy, "docker://app"), "{word}");
        }
    }

    #[test]
    fn what_is_no_policy_is_an_error() {
        let reject = json!([{"type": "reject"}]);
        for bad in [
            json!({}),
            json!({"default": []}),
            json!({"default": [{"type": "accept"}]}),
            json!({"default": [{"type": "reject", "more": 1}]}),
            json!({"default": reject, "more": 1}),
            json!({"default": reject, "transports": {"docker": {"": []}}}),
            json!({"default": [{"type": "sigstoreSigned"}]}),
            json!({"default": [{"type": "sigstoreSigned", "keyPath": "/a", "keyData": "b"}]}),
            json!({"default": [{"type": "sigstoreSigned", "keyPaths": []}]}),
            json!({"default": [{"type": "sigstoreSigned", "keyPath": "/a", "signedIdentity": {"type": "all"}}]}),
            json!({"default": [{"type": "sigstoreSigned", "keyPath": "/a", "keypath": "/b"}]}),
            json!({"default": [{"type": "sigstoreSigned", "fulcio": {}, "rekorPublicKeyPath": "/a"}]}),
            json!({"default": [{"type": "sigstoreSigned", "rekorPublicKeyPath": "/a"}]}),
            json!({"default": [{"type": "sigstoreSigned", "pki": {}}]}),
            json!({"default": [{"type": "sigstoreSigned", "pki": {"caRootsPath": "/a"}}]}),
            json!({"default": [{"type": "sigstoreSigned", "pki": {"caRootsPath": "/a", "subjectEmail": ""}}]}),
            json!({"default": [{"type": "sigstoreSigned", "pki": {"subjectEmail": "e"}}]}),
            json!({"default": [{"type": "sigstoreSigned", "rekorPublicKeyPath": "/a",
                "pki": {"caRootsPath": "/a", "subjectEmail": "e"}}]}),
            json!({"default": [{"type": "sigstoreSigned",
                "fulcio": {"caPath": "/a", "oidcIssuer": "i", "subjectEmail": "e"}}]}),
            json!({"default": [{"type": "sigstoreSigned", "rekorPublicKeyPath": "/a",
                "fulcio": {"caPath": "/a", "oidcIssuer": "", "subjectEmail": "e"}}]}),
            json!({"default": [{"type": "sigstoreSigned", "rekorPublicKeyPath": "/a",
                "fulcio": {"caPath": "/a", "caData": "AAAA", "oidcIssuer": "i", "subjectEmail": "e"}}]}),
            json!({"default": [{"type": "sigstoreSigned", "keyPath": "/a", "rekorPublicKeyPath": "/a",
                "rekorPublicKeyData": "AAAA"}]}),
            json!({"default": [{"type": "sigstoreSigned", "keyPath": "/a", "rekorPublicKeyPaths": []}]}),
            json!({"default": [{"type": "signedBy", "keyPath": "/a"}]}),
            json!({"default": [{"type": "signedBy", "keyType": "keys", "keyPath": "/a"}]}),
            json!({"default": [{"type": "signedBy", "keyType": "GPGKeys"}]}),
            json!({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/a", "keyData": "b"}]}),
            json!({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPaths": []}]}),
            json!({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/a", "signedIdentity": {"type": "all"}}]}),
        ] {
            assert!(policy(&bad).is_err(), "{bad}");
        }
        let twice = r#"{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"reject"}],"":[{"type":"insecureAcceptAnything"}]}}}"#;
        assert!(Rules::parse(twice.as_bytes()).expect_err("twice").contains("twice"));
        assert!(
            Policy::load(Path::new("/no/such/policy"), &[]).is_err() && Policy::load(Path::new("/tmp"), &[]).is_err()
        );
    }
}
