//! containerd's `certs.d/<host>/hosts.toml`
//! (<https://github.com/containerd/containerd/blob/main/docs/hosts.md>) and the certificate files that Docker keeps in
//! `certs.d/<host>/` (<https://docs.docker.com/engine/security/certificates/>).
//!
//! Invariant: a key that is not known is an error, never ignored.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::error::{Cause, Error};
use crate::peer::{Identity, Peer};
use crate::secret::Secret;

/// What a directory says of a registry.
#[derive(Debug, Default)]
pub(crate) struct HostDirectory {
    /// Hosts to be asked before the registry itself, in order.
    pub(crate) hosts: Vec<HostEntry>,
    /// The registry itself.
    pub(crate) server: Option<HostEntry>,
}

/// One way to a registry.
#[derive(Debug, Clone)]
pub(crate) struct HostEntry {
    /// `https://host[:port][/path]`, or without scheme; `None` for the registry's usual address.
    pub(crate) address: Option<String>,
    pub(crate) pulls: bool,
    pub(crate) resolves: bool,
    pub(crate) pushes: bool,
    /// The address is that of the API, with no `/v2` to be added.
    pub(crate) is_whole_path: bool,
    pub(crate) headers: Vec<(String, Secret)>,
    pub(crate) peer: Arc<Peer>,
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    /// In the order of the file.
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    own: Settings,
}

#[derive(Deserialize, Default)]
struct Settings {
    capabilities: Option<Vec<Capability>>,
    ca: Option<OneOrMany>,
    client: Option<ClientFiles>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: toml::Table,
    dial_timeout: Option<String>,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Capability {
    Pull,
    Resolve,
    Push,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ClientFiles {
    One(String),
    Many(Vec<String>),
    Pairs(Vec<(String, String)>),
}

impl HostDirectory {
    /// Reads the directory of a registry, `host[:port]`, in the first of these `certs.d` directories that has one;
    /// where none has, the one named `_default`.
    pub(crate) fn find(directories: &[PathBuf], registry: &str) -> Result<Option<Self>, Error> {
        // A colon is not possible everywhere, so containerd knows another form.
        let other = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
        let named = |name: &str| directories.iter().map(|directory| directory.join(name)).find(|path| path.is_dir());
        let found = named(registry).or_else(|| named(other.as_deref()?)).or_else(|| named("_default"));
        found.map(|directory| Self::read(&directory)).transpose()
    }

    fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("hosts.toml");
        let Some(text) = super::read_optional(&path)? else {
            let peer = Arc::new(docker_files(directory)?);
            let server = HostEntry {
                address: None,
                pulls: true,
                resolves: true,
                pushes: true,
                is_whole_path: false,
                headers: Vec::new(),
                peer,
            };
            return Ok(Self { hosts: Vec::new(), server: Some(server) });
        };
        let wrong = |what: String| wrong(&path, what);
        let file: File = toml::from_str(&text).map_err(|error| wrong(super::words_of(&error, &text)))?;
        let mut hosts = Vec::new();
        for (address, settings) in file.host {
            let settings: Settings = settings
                .try_into()
                .map_err(|error| wrong(format!("host {address:?}: {}", super::words_of(&error, ""))))?;
            hosts.push(settings.entry(Some(address), directory, &path)?);
        }
        let server = file.own.entry(file.server.filter(|server| !server.is_empty()), directory, &path)?;
        Ok(Self { hosts, server: Some(server) })
    }
}

impl Settings {
    fn entry(self, address: Option<String>, directory: &Path, path: &Path) -> Result<HostEntry, Error> {
        let wrong = |what: String| wrong(path, what);
        if let Some(key) = self.unknown.keys().next() {
            return Err(wrong(format!("the key {key:?} is not known")));
        }
        let read = |file: &str| read(&directory.join(file));
        let authorities = match self.ca {
            None => Vec::new(),
            Some(OneOrMany::One(file)) => vec![read(&file)?],
            Some(OneOrMany::Many(files)) => files.iter().map(|file| read(file)).collect::<Result<_, _>>()?,
        };
        let pair = match self.client {
            None => None,
            Some(ClientFiles::One(file)) => Some((file.clone(), file)),
            Some(ClientFiles::Many(files)) => only(files).map_err(wrong)?.map(|file| (file.clone(), file)),
            Some(ClientFiles::Pairs(pairs)) => only(pairs).map_err(wrong)?,
        };
        let identity = match pair {
            None => None,
            // An empty key means that it lies beside its certificate.
            Some((certificate, key)) => {
                let key = if key.is_empty() { read(&certificate)? } else { read(&key)? };
                Some(Identity::new(read(&certificate)?, Secret::new(key)).map_err(wrong)?)
            }
        };
        let timeout = |text: String| {
            // Go's durations of one unit are what a lenient Retry-After may hold too.
            crate::retry::parse_retry_after(&text, SystemTime::UNIX_EPOCH)
                .filter(|wait| *wait > Duration::ZERO)
                .ok_or_else(|| wrong(format!("dial_timeout {text:?} is no duration")))
        };
        let connect_timeout = self.dial_timeout.map(timeout).transpose()?;
        let skips_verification = self.skip_verify;
        let peer = Peer { authorities_pem: authorities, identity, skips_verification, connect_timeout };
        let can = |what| self.capabilities.as_ref().is_none_or(|list| list.contains(&what));
        Ok(HostEntry {
            address,
            pulls: can(Capability::Pull),
            resolves: can(Capability::Resolve),
            pushes: can(Capability::Push),
            is_whole_path: self.override_path,
            headers: headers(self.header).map_err(wrong)?,
            peer: Arc::new(peer),
        })
    }
}

fn wrong(path: &Path, what: String) -> Error {
    Error::local("read the registries' settings", Cause::Input(format!("{}: {what}", path.display())))
}

fn only<T>(mut list: Vec<T>) -> Result<Option<T>, String> {
    match list.len() {
        0 | 1 => Ok(list.pop()),
        _ => Err("several client certificates for one host are not supported".to_owned()),
    }
}

/// `name = "value"` or `name = ["value", ...]`. Values may be secrets: no message shows them.
fn headers(table: toml::Table) -> Result<Vec<(String, Secret)>, String> {
    let mut headers = Vec::new();
    for (name, value) in table {
        let values = match value {
            toml::Value::String(one) => vec![one],
            toml::Value::Array(many) => {
                let texts: Option<Vec<String>> = many.iter().map(|one| one.as_str().map(str::to_owned)).collect();
                texts.ok_or_else(|| format!("the header {name:?} is neither a text nor a list of texts"))?
            }
            _ => return Err(format!("the header {name:?} is neither a text nor a list of texts")),
        };
        let is_token = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        // The length and the end of a message are the transport's to say.
        let is_ours = ["host", "content-length", "transfer-encoding", "connection", "range"]
            .contains(&name.to_ascii_lowercase().as_str());
        let is_text = values.iter().flat_map(|value| value.bytes()).all(|b| (b' '..0x7f).contains(&b));
        if !is_token || is_ours || !is_text {
            return Err(format!("the header {name:?} cannot be sent"));
        }
        headers.extend(values.into_iter().map(|value| (name.clone(), Secret::new(value))));
    }
    Ok(headers)
}

/// Docker's files: `*.crt` are authorities, `NAME.cert` with `NAME.key` is a client certificate.
fn docker_files(directory: &Path) -> Result<Peer, Error> {
    let doing = "read the registries' certificates";
    let entries = std::fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|error| Error::disk(doing, directory, error))?;
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    let has = |path: &Path, extension: &str| path.extension().is_some_and(|found| found == extension);
    let mut peer = Peer::default();
    for path in &paths {
        if has(path, "crt") {
            peer.authorities_pem.push(read(path)?);
        } else if has(path, "cert") {
            if peer.identity.is_some() {
                return Err(wrong(path, "several client certificates for one host are not supported".to_owned()));
            }
            let key = Secret::new(read(&path.with_extension("key"))?);
            peer.identity = Some(Identity::new(read(path)?, key).map_err(|what| wrong(path, what))?);
        } else if has(path, "key") && !path.with_extension("cert").exists() {
            return Err(wrong(path, "it is the key of no certificate: the .cert beside it is missing".to_owned()));
        }
    }
    Ok(peer)
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| Error::disk("read the registries' certificates", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<HostDirectory, Error> {
        let directory = tempfile::tempdir().expect("a directory");
        let own = directory.path().join("r.example_5000_");
        std::fs::create_dir(&own).expect("made");
        std::fs::write(own.join("hosts.toml"), text).expect("written");
        std::fs::write(own.join("ca.pem"), "authority").expect("written");
        let found = HostDirectory::find(&[directory.path().to_owned()], "r.example:5000")?;
        Ok(found.expect("it has a directory"))
    }

    #[test]
    fn hosts_keep_the_order_of_the_file_and_their_settings() {
        let read = read_text(
            r#"
            server = "https://r.example:5000"
            ca = "ca.pem"
            [host."https://z.example"]
            capabilities = ["pull"]
            dial_timeout = "5s"
            [host."http://a.example/prefix/v2"]
            override_path = true
            skip_verify = true
            [host."http://a.example/prefix/v2".header]
            x-one = "1"
            x-two = ["2", "3"]
            "#,
        )
        .expect("valid");
        let [z, a] = &read.hosts[..] else { panic!("{read:?}") };
        assert_eq!(z.address.as_deref(), Some("https://z.example"));
        assert!(z.pulls && !z.resolves && !z.pushes && !z.is_whole_path);
        assert_eq!(z.peer.connect_timeout, Some(Duration::from_secs(5)));
        assert!(a.pulls && a.resolves && a.pushes && a.is_whole_path && a.peer.skips_verification);
        let headers: Vec<_> = a.headers.iter().map(|(name, value)| format!("{name}={}", value.reveal())).collect();
        assert_eq!(headers, ["x-one=1", "x-two=2", "x-two=3"]);
        let server = read.server.expect("it names the server");
        assert_eq!(server.peer.authorities_pem, ["authority"]);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_file_and_key() {
        for (text, expected) in [
            ("unheard_of = 1", "unheard_of"),
            ("[host.\"https://a\"]\nunheard_of = 1", "unheard_of"),
            ("capabilities = [\"dance\"]", "dance"),
            ("dial_timeout = \"soon\"", "soon"),
            ("ca = \"missing.pem\"", "missing.pem"),
            ("client = [\"a\", \"b\"]", "several"),
            ("[header]\nhost = \"x\"", "host"),
            ("[header]\nx = \"a\\r\\nb\"", "cannot be sent"),
            ("server =", "hosts.toml"),
        ] {
            let error = read_text(text).expect_err(text).to_string();
            assert!(error.contains(expected) && error.contains("r.example_5000_"), "{text}: {error}");
        }
    }

    #[test]
    fn no_message_shows_a_key_or_a_header() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = directory.path().join("r.example");
        std::fs::create_dir(&own).expect("made");
        std::fs::write(own.join("c.cert"), "hunter2").expect("written");
        std::fs::write(own.join("c.key"), "hunter2").expect("written");
        let find = || HostDirectory::find(&[directory.path().to_owned()], "r.example");
        assert!(!format!("{:?}", find().expect_err("no PEM")).contains("hunter2"));
        std::fs::write(own.join("hosts.toml"), "[header]\nx = \"hunter2\"").expect("written");
        assert!(!format!("{:?}", find().expect("valid")).contains("hunter2"));
        for text in [
            "[header]\nx = \"hunter2\\n\"",
            "[header]\nx = \"hunter2",
            "header = \"hunter2\"",
            "[header]\nx = [\"hunter2\", 1]",
            "[host.\"https://m.example\"]\nheader = \"x \\\"hunter2\\\"\"",
            "[host.\"https://me:hunter2@m.example\"]\nx = 1",
        ] {
            std::fs::write(own.join("hosts.toml"), text).expect("written");
            let error = find().expect_err("no header");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error} {error:?}");
            assert!(error.to_string().contains("hosts.toml"), "{error}");
        }
    }

    #[test]
    fn the_default_directory_is_for_registries_without_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let find = || HostDirectory::find(&[directory.path().to_owned()], "r.example").expect("readable");
        assert!(find().is_none());
        std::fs::create_dir(directory.path().join("_default")).expect("made");
        std::fs::write(directory.path().join("_default/hosts.toml"), "[host.\"https://m\"]").expect("written");
        assert_eq!(find().expect("found").hosts.len(), 1);
    }
}
