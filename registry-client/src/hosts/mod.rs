//! Where a registry is reached, and what is special about some of them.
//!
//! Invariant: only loopback registries and those that the caller or its files name are spoken to in plain http.

mod certs_d;
mod registries_conf;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::certs_d::{HostDirectory, HostEntry};
use self::registries_conf::{Location, RegistriesConf, Takes};
use crate::error::{Cause, Error};
use crate::peer::Peer;
use crate::secret::Secret;
use crate::url::{Origin, Url};

/// A registry, or a mirror of one: its name as people write it and the URL where it answers.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) endpoint: Url,
    /// The path of the API, `/v2` mostly.
    pub(crate) api_path: String,
    /// Sent with each request to it, and to nobody else.
    pub(crate) headers: Arc<Vec<(String, Secret)>>,
    pub(crate) peer: Arc<Peer>,
    /// For a mirror of several registries: the one that is meant (containerd's parameter `ns`).
    pub(crate) namespace: Option<String>,
    /// Plain http will do where https does not work.
    pub(crate) may_be_plain: bool,
}

/// The registries' settings in files: containers' `registries.conf`, containerd's and Docker's `certs.d`.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    registries: RegistriesConf,
    certs_directories: Vec<PathBuf>,
}

/// The ways to a repository.
#[derive(Debug)]
pub(crate) struct Route {
    /// To read from, in order; the registry itself comes last.
    pub(crate) pulls: Vec<Way>,
    /// To write to.
    pub(crate) push: Way,
}

/// One way to a repository.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) host: Host,
    pub(crate) repository: String,
    pub(crate) takes_tags: bool,
    pub(crate) takes_digests: bool,
}

impl Hosts {
    /// Reads `registries.conf` files and directories of them (version 2; what comes later wins). The `certs.d`
    /// directories, `/etc/containerd/certs.d` or `/etc/docker/certs.d` say, are looked at when a registry is used: the
    /// first with a directory for it counts. What does not exist is empty.
    ///
    /// # Errors
    /// If a file cannot be read or is not understood.
    pub fn load(registries_conf: &[PathBuf], certs_directories: &[PathBuf]) -> Result<Self, Error> {
        let registries = RegistriesConf::load(registries_conf)?;
        Ok(Self { registries, certs_directories: certs_directories.to_vec() })
    }

    /// The ways to a repository.
    pub(crate) fn route(&self, registry: &str, repository: &str, schemes: &Schemes) -> Result<Route, Error> {
        let fail = |cause| Error::new(format!("reach the registry {registry:?}"), cause);
        let located = self.registries.locate(registry, repository).map_err(|cause| match cause {
            Cause::Input(_) => Error::local(format!("reach the registry {registry:?}"), cause),
            _ => fail(cause),
        })?;
        let mut pulls = Vec::new();
        for mirror in &located.mirrors {
            pulls.extend(self.ways(mirror, schemes)?.0);
        }
        let (ways, push) = self.ways(&located.location, schemes)?;
        pulls.extend(ways);
        if pulls.is_empty() {
            return Err(fail(Cause::Input("its hosts.toml allows nobody to pull".to_owned())));
        }
        Ok(Route { pulls, push })
    }

    /// The ways to one location: the hosts of its `hosts.toml`, then itself; and the way to push to.
    fn ways(&self, location: &Location, schemes: &Schemes) -> Result<(Vec<Way>, Way), Error> {
        let fail = |cause| Error::new(format!("reach the registry {:?}", location.registry), cause);
        let mut usual = Host::new(&location.registry, schemes).map_err(fail)?;
        let is_insecure = location.is_insecure && usual.endpoint.origin().is_https;
        usual.may_be_plain = is_insecure;
        if is_insecure {
            usual.peer = Arc::new(Peer { skips_verification: true, ..Peer::default() });
        }
        let directory = HostDirectory::find(&self.certs_directories, &location.registry)?.unwrap_or_default();
        let (tags, digests) = (location.takes != Takes::DigestOnly, location.takes != Takes::TagOnly);
        let way = |host: Host, can_resolve: bool| Way {
            host,
            repository: location.repository.clone(),
            takes_tags: tags && can_resolve,
            takes_digests: digests,
        };
        let (mut ways, mut push) = (Vec::new(), None);
        for entry in &directory.hosts {
            let mut host = entry.host(&usual, schemes).map_err(fail)?;
            host.namespace = (host.name != usual.name).then(|| usual.name.clone());
            let found = way(host, entry.resolves);
            push = push.or_else(|| entry.pushes.then(|| found.clone()));
            ways.extend(entry.pulls.then_some(found));
        }
        let server = match &directory.server {
            Some(entry) => {
                let mut host = entry.host(&usual, schemes).map_err(fail)?;
                // Another address for it is not another registry: its credentials are the same.
                host.name.clone_from(&usual.name);
                way(host, entry.resolves)
            }
            None => way(usual, true),
        };
        if directory.server.as_ref().is_none_or(|entry| entry.pulls) {
            ways.push(server.clone());
        }
        Ok((ways, push.unwrap_or(server)))
    }
}

impl HostEntry {
    /// The host that it describes, on the way to the registry `usual`.
    fn host(&self, usual: &Host, schemes: &Schemes) -> Result<Host, Cause> {
        let mut host = usual.clone();
        if let Some(address) = &self.address {
            let url = match address.contains("://") {
                true => Url::parse(address).map_err(Cause::Input)?,
                false => {
                    let (authority, path) = address.split_once('/').unwrap_or((address, ""));
                    Host::new(authority, schemes)?.endpoint.at(&format!("/{path}"))
                }
            };
            if url.origin() != usual.endpoint.origin() {
                host.name = url.origin().authority();
            }
            let path = url.path().trim_end_matches('/').to_owned();
            host.api_path = if self.is_whole_path { path } else { format!("{}/v2", path.trim_end_matches("/v2")) };
            host.endpoint = url;
            host.may_be_plain = false;
        }
        host.headers = Arc::new(self.headers.clone());
        let skips_verification = self.peer.skips_verification || (self.address.is_none() && usual.may_be_plain);
        host.peer = Arc::new(Peer { skips_verification, ..(*self.peer).clone() });
        Ok(host)
    }
}

/// How registries are spoken to where it is not as usual: in https, and on loopback in plain http. Both lists hold
/// names as in references, `host[:port]`.
#[derive(Debug, Clone, Default)]
pub struct Schemes {
    /// In plain http although not on loopback.
    pub plain_http: Vec<String>,
    /// In https although on loopback.
    pub https: Vec<String>,
}

impl Host {
    /// A server that is no registry: nothing is configured for it.
    pub(crate) fn of_url(url: &Url) -> Self {
        Self {
            name: url.origin().authority(),
            endpoint: url.at("/"),
            api_path: String::new(),
            headers: Arc::default(),
            peer: Arc::default(),
            namespace: None,
            may_be_plain: false,
        }
    }

    /// The usual endpoint of a registry, `host[:port]`.
    pub(crate) fn new(name: &str, schemes: &Schemes) -> Result<Self, Cause> {
        // Docker Hub answers under another name than the one in references.
        let authority = if name == "docker.io" { "registry-1.docker.io" } else { name };
        let parse = |scheme: &str| Url::parse(&format!("{scheme}://{authority}")).map_err(Cause::Input);
        let https = parse("https")?;
        let names = |list: &[String]| list.iter().any(|listed| listed == name);
        let is_plain = names(&schemes.plain_http) || (https.origin().is_loopback() && !names(&schemes.https));
        Ok(Self {
            name: name.to_owned(),
            endpoint: if is_plain { parse("http")? } else { https },
            api_path: "/v2".to_owned(),
            headers: Arc::default(),
            peer: Arc::default(),
            namespace: None,
            may_be_plain: false,
        })
    }

    /// How to connect to an origin that this host named: itself, or somebody else.
    pub(crate) fn peer_at(&self, origin: &Origin) -> Peer {
        if origin == self.endpoint.origin() { (*self.peer).clone() } else { self.peer.for_others() }
    }

    /// The same in plain http.
    pub(crate) fn in_plain_http(&self) -> Result<Self, Cause> {
        let url = Url::parse(&format!("http://{}", self.endpoint.origin().authority())).map_err(Cause::Input)?;
        Ok(Self { endpoint: url, may_be_plain: false, ..self.clone() })
    }

    /// Whether an upload may be cut into chunks when a single request is refused. Google's registries have no
    /// chunked upload, and Amazon's keeps only the first chunk (aws/containers-roadmap 2831).
    pub(crate) fn allows_chunks(&self) -> bool {
        let host = &self.endpoint.origin().host;
        let is_google = host == "gcr.io" || host.ends_with(".gcr.io") || host.ends_with(".pkg.dev");
        let is_amazon = host == "public.ecr.aws" || (host.contains(".dkr.ecr.") && host.contains(".amazonaws.com"));
        !is_google && !is_amazon
    }
}

/// What is wrong with a settings file, without the line itself and without texts: a header's value may be a password.
fn words_of(error: &toml::de::Error, text: &str) -> String {
    let message = error.message();
    let message = match (message.find("string \""), message.rfind('"')) {
        (Some(start), Some(end)) if end > start + 7 => format!("{}a text{}", &message[..start], &message[end + 1..]),
        _ => message.to_owned(),
    };
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

/// A small text file; `None` where there is none.
fn read_optional(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::disk("read the registries' settings", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str) -> String {
        let schemes = Schemes { plain_http: vec!["lan.example:5000".into()], https: vec!["127.0.0.1:5443".into()] };
        Host::new(name, &schemes).expect("valid name").endpoint.to_wire()
    }

    #[test]
    fn loopback_is_plain_http_and_the_rest_is_not() {
        assert_eq!(endpoint("127.0.0.1:5000"), "http://127.0.0.1:5000/");
        assert_eq!(endpoint("localhost"), "http://localhost/");
        assert_eq!(endpoint("[::1]:5000"), "http://[::1]:5000/");
        assert_eq!(endpoint("ghcr.io"), "https://ghcr.io/");
        assert_eq!(endpoint("127.0.0.1:5443"), "https://127.0.0.1:5443/");
        assert_eq!(endpoint("lan.example:5000"), "http://lan.example:5000/");
    }

    #[test]
    fn docker_hub_answers_at_its_registry_host() {
        assert_eq!(endpoint("docker.io"), "https://registry-1.docker.io/");
    }

    #[test]
    fn chunks_are_kept_from_registries_that_lose_them() {
        let allows = |name: &str| Host::new(name, &Schemes::default()).expect("valid").allows_chunks();
        assert!(allows("ghcr.io") && allows("docker.io"));
        assert!(!allows("europe-docker.pkg.dev") && !allows("eu.gcr.io"));
        assert!(!allows("1234.dkr.ecr.eu-west-1.amazonaws.com") && !allows("public.ecr.aws"));
    }
}
