//! Where GPG signatures lie: at stores of their own, directories or web servers, as files `signature-1` and on
//! (<https://github.com/containers/image/blob/main/docs/signature-protocols.md>).
//!
//! Invariant: what is there stays when one is added. What is read is bounded, and not to be trusted before it is
//! verified.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::Digest;

use super::gpg::GpgKey;
use super::identity::Name;
use super::payload::{Form, Payload};
use super::registries_d::{RegistriesD, Use};
use crate::client::Client;
use crate::draft::Draft;
use crate::error::{Answer, Cause, Error};
use crate::fetch::Sink;
use crate::manifest::Manifest;
use crate::reference::Reference;

/// As containers/image has it.
const SIGNATURES_LIMIT: usize = 128;
/// One has some hundred bytes, and a long key's less than two thousand.
const SIGNATURE_LIMIT_BYTES: u64 = 64 << 10;

/// The settings of signature stores, which are read when signatures are asked for.
#[derive(Debug, Clone, Default)]
pub struct SignatureStores {
    /// The directory of their files, containers' `registries.d`.
    pub settings: Option<PathBuf>,
    /// The directory that is the store of all that no file speaks of.
    pub usual: Option<PathBuf>,
}

/// The signatures of a repository's images, but for their digests.
#[derive(Debug, PartialEq, Eq)]
enum Store {
    Files(PathBuf),
    Web(String),
}

impl SignatureStores {
    /// Where those of a name lie; `None` if nothing says where.
    fn store(&self, reference: &Reference, wanted: Use) -> Result<Option<Store>, Error> {
        let settings = self.settings.as_deref().map(RegistriesD::load).transpose()?.unwrap_or_default();
        let repository = reference.repository();
        match settings.store(&Name::of(reference), wanted) {
            Some(url) => {
                let wrong = |what| Error::local("find the signature store", Cause::Input(format!("{url:?} {what}")));
                Store::parse(url, repository).map(Some).map_err(wrong)
            }
            None => Ok(self.usual.as_ref().map(|usual| Store::Files(usual.join(repository)))),
        }
    }
}

impl Store {
    /// Of a repository in one with this URL.
    fn parse(url: &str, repository: &str) -> Result<Self, &'static str> {
        if url.contains(['?', '#']) {
            return Err("has a query or a fragment, which no signature store has");
        }
        if let Some(path) = url.strip_prefix("file://") {
            let path = percent_decoded(path).filter(|path| path.starts_with('/'));
            let path = path.ok_or("is no file:///absolute/path")?;
            return Ok(Self::Files(Path::new(&path).join(repository)));
        }
        match url.starts_with("http://") || url.starts_with("https://") {
            // Put together as containers/image does it, a slash at its end and all: servers were made for that.
            true => Ok(Self::Web(format!("{url}/{repository}"))),
            false => Err("is no URL of file, http or https"),
        }
    }

    fn read(&self, client: &Client, subject: &Digest) -> Result<Vec<Vec<u8>>, Error> {
        let under = under(subject);
        match self {
            Self::Files(path) => {
                let directory = of_manifest(path, subject);
                all(&format!("the signatures in {}", directory.display()), |name| read_file(&directory.join(name)))
            }
            Self::Web(url) => all(&format!("the signatures at {url}{under}"), |name| {
                let mut found = Memory::default();
                match client.fetch(&format!("{url}{under}/{name}"), None, SIGNATURE_LIMIT_BYTES, &mut found) {
                    Err(error) if matches!(error.cause(), Cause::Answer(Answer { status: 404, .. })) => Ok(None),
                    fetched => fetched.map(|_| Some(found.0)),
                }
            }),
        }
    }
}

/// Signatures that lie in a directory as `PREFIXsignature-1` and on.
pub(crate) fn files(directory: &Path, prefix: &str) -> Result<Vec<Vec<u8>>, Error> {
    let what = format!("the signatures in {}", directory.display());
    all(&what, |name| read_file(&directory.join(format!("{prefix}{name}"))))
}

/// Counts on until there is none.
fn all(what: &str, read: impl Fn(&str) -> Result<Option<Vec<u8>>, Error>) -> Result<Vec<Vec<u8>>, Error> {
    let mut found = Vec::new();
    while let Some(signature) = read(&format!("signature-{}", found.len() + 1))? {
        if found.len() == SIGNATURES_LIMIT {
            let many = Cause::Malformed(format!("there are more than {SIGNATURES_LIMIT} of them"));
            return Err(Error::new(format!("read {what}"), many));
        }
        found.push(signature);
    }
    Ok(found)
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let disk = |error| Error::disk("read a signature", path, error);
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(disk)?,
    };
    let mut bytes = Vec::new();
    file.take(SIGNATURE_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(disk)?;
    if bytes.len() as u64 > SIGNATURE_LIMIT_BYTES {
        let what = format!("{}: it is larger than {SIGNATURE_LIMIT_BYTES} bytes", path.display());
        return Err(Error::local("read a signature", Cause::Malformed(what)));
    }
    Ok(Some(bytes))
}

/// What is written behind the name of a repository.
fn under(subject: &Digest) -> String {
    format!("@{}={}", subject.algorithm(), subject.digest())
}

/// The directory for a manifest of a repository's directory: one beside it.
fn of_manifest(path: &Path, subject: &Digest) -> PathBuf {
    let mut whole = path.as_os_str().to_owned();
    whole.push(under(subject));
    whole.into()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = match first {
            b'%' => {
                let (hex, after) = after.split_at_checked(2)?;
                (u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?, after)
            }
            _ => (first, after),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// What is fetched to memory.
#[derive(Default)]
struct Memory(Vec<u8>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Memory {
    fn restart(&mut self) -> io::Result<()> {
        self.0.clear();
        Ok(())
    }
}

impl Client {
    /// The GPG signatures of a manifest of a name, at the store of that.
    pub(crate) fn gpg_signatures(&self, reference: &Reference, subject: &Digest) -> Result<Vec<Vec<u8>>, Error> {
        match self.signature_stores().store(reference, Use::Read)? {
            Some(store) => store.read(self, subject),
            None => Ok(Vec::new()),
        }
    }

    /// Where GPG signatures of a name are written, but for the digest.
    pub(crate) fn signature_directory(&self, reference: &Reference) -> Result<PathBuf, Error> {
        let what = match self.signature_stores().store(reference, Use::Write)? {
            Some(Store::Files(path)) => return Ok(path),
            Some(Store::Web(url)) => {
                format!("the signature store {url} can only be read; lookaside-staging names where it is written")
            }
            None => "no signature store is named for it".to_owned(),
        };
        Err(Error::local(format!("write GPG signatures of {reference}"), Cause::Input(what)))
    }

    /// Adds signatures to those that are there of a manifest, but for those that are there already.
    pub(crate) fn add_gpg_signatures(
        &self,
        reference: &Reference,
        subject: &Digest,
        signatures: &[Vec<u8>],
    ) -> Result<(), Error> {
        let directory = of_manifest(&self.signature_directory(reference)?, subject);
        let existing = files(&directory, "")?;
        let new = signatures.iter().filter(|signature| !existing.contains(signature));
        let disk = |error| Error::disk(format!("write GPG signatures of {reference}"), &directory, error);
        new.enumerate()
            .try_for_each(|(more, signature)| add(&directory, existing.len() + more, signature))
            .map_err(disk)
    }
}

/// Signs what a payload names with GPG, and puts the signature into the store of `reference`. Signing the same again
/// with the same key changes nothing; false if there was nothing to change.
///
/// # Errors
/// If `gpg` does not sign; if the settings of the store are not understood, or it cannot be written.
pub fn sign_with_gpg(
    client: &Client,
    reference: &Reference,
    subject: &Manifest,
    payload: &Payload,
    key: &GpgKey,
) -> Result<bool, Error> {
    let doing = || format!("sign {reference}");
    let refuse = |what: String| Error::local(doing(), Cause::Input(what));
    let directory = of_manifest(&client.signature_directory(reference)?, subject.digest());
    let checker = key.public().checker().map_err(refuse)?;
    let says_the_same = |signature: &[u8]| {
        checker.check(signature).is_ok_and(|(text, _)| Payload::parse(Form::Gpg, &text).as_ref() == Ok(payload))
    };
    let existing = files(&directory, "")?;
    if existing.iter().any(|signature| says_the_same(signature)) {
        return Ok(false);
    }
    let signature = key.sign(&payload.to_bytes(Form::Gpg))?;
    if !says_the_same(&signature) {
        return Err(refuse(format!("what gpg made with {} is no good signature of it", key.fingerprint())));
    }
    add(&directory, existing.len(), &signature).map_err(|error| Error::disk(doing(), &directory, error))?;
    Ok(true)
}

/// Adds one to those that are there, also where somebody else adds one at the same time.
fn add(directory: &Path, existing: usize, signature: &[u8]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for number in existing + 1..=SIGNATURES_LIMIT {
        let mut draft = Draft::new_in(directory)?;
        draft.write_all(signature)?;
        if draft.publish_new(&directory.join(format!("signature-{number}")))? {
            return Ok(());
        }
    }
    Err(io::Error::other(format!("there are {SIGNATURES_LIMIT} signatures, and more are not read")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::digest_of;

    #[test]
    fn stores_are_directories_and_web_servers() {
        let store = |url: &str| Store::parse(url, "library/app");
        assert_eq!(store("file:///var/a%20b"), Ok(Store::Files("/var/a b/library/app".into())));
        assert_eq!(store("https://x/sigs"), Ok(Store::Web("https://x/sigs/library/app".to_owned())));
        assert_eq!(store("https://x/sigs/"), Ok(Store::Web("https://x/sigs//library/app".to_owned())));
        for bad in
            ["file://relative", "/var/sigs", "ftp://x", "https://x?y", "file:///a#b", "file:///%zz", "file:///%00", ""]
        {
            assert!(store(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_no_file_speaks_of_lies_in_the_usual_store() {
        let reference: Reference = "app:1".parse().expect("a reference");
        let stores =
            SignatureStores { settings: Some("/nonexistent/registries.d".into()), usual: Some("/usual".into()) };
        let found = stores.store(&reference, Use::Read).expect("no file is no error");
        assert_eq!(found, Some(Store::Files("/usual/library/app".into())));
        assert_eq!(SignatureStores::default().store(&reference, Use::Read).expect("nothing is read"), None);
    }

    #[test]
    fn signatures_are_numbered_and_bounded_and_none_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let subject = digest_of(b"manifest");
        let store = Store::Files(directory.path().join("app"));
        let client = Client::new(crate::ClientOptions::default());
        assert!(store.read(&client, &subject).expect("nothing is there").is_empty());
        let own = directory.path().join(format!("app@sha256={}", subject.digest()));
        // The second one was counted before the first one was there.
        for text in [b"one", b"two"] {
            add(&own, 0, text).expect("added");
        }
        assert_eq!(store.read(&client, &subject).expect("read"), [b"one", b"two"]);
        fs::write(own.join("signature-3"), vec![0; (64 << 10) + 1]).expect("written");
        assert!(store.read(&client, &subject).expect_err("large").to_string().contains("signature-3: it is larger"));
        for number in 3..=SIGNATURES_LIMIT {
            fs::write(own.join(format!("signature-{number}")), "x").expect("written");
        }
        assert_eq!(store.read(&client, &subject).expect("read").len(), SIGNATURES_LIMIT);
        assert!(add(&own, 127, b"more").is_err());
        fs::write(own.join(format!("signature-{}", SIGNATURES_LIMIT + 1)), "x").expect("written");
        assert!(store.read(&client, &subject).expect_err("many").to_string().contains("more than 128"));
    }
}
