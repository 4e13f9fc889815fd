//! The registries' settings in files: mirrors, other places, certificates and headers.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use fixtures::fault::{FaultServer, Reading, Reply, Request};
use fixtures::registry::{Registry, make_certificate};
use oci_spec::image::{Descriptor, MediaType};
use registry_client::*;

use crate::support::*;

/// A directory of settings.
struct Settings(tempfile::TempDir);

impl Settings {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn registries_conf(self, text: &str) -> Self {
        std::fs::write(self.0.path().join("registries.conf"), text).expect("written");
        self
    }

    fn directory(&self, registry: &str) -> PathBuf {
        let directory = self.0.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&directory).expect("made");
        directory
    }

    fn hosts_toml(self, registry: &str, text: &str) -> Self {
        std::fs::write(self.directory(registry).join("hosts.toml"), text).expect("written");
        self
    }

    fn options(&self) -> ClientOptions {
        let at = |name: &str| self.0.path().join(name);
        let hosts = Hosts::load(&[at("registries.conf")], &[at("certs.d")]).expect("understood");
        let retry = RetryPolicy { tries: 2, base_wait: Duration::from_millis(1), ..quick().retry };
        ClientOptions { hosts, retry, ..quick() }
    }

    fn client(&self) -> Client {
        Client::new(self.options())
    }
}

fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}

fn push(client: &Client, image: &MemoryImage, name: &str) -> Result<Copied, Error> {
    let destination = RegistryDestination::new(client, &reference(name))?;
    copy(image, &destination, &CopyOptions::default(), &Silent)
}

fn pull(client: &Client, name: &str) -> Result<MemoryImage, Error> {
    let image = MemoryImage::empty();
    copy(&RegistrySource::new(client, &reference(name))?, &image, &CopyOptions::default(), &Silent)?;
    Ok(image)
}

/// Serves the manifest and blobs of an image.
fn serve(request: &Request, image: &MemoryImage) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    let top = image.top().expect("it has a manifest");
    match image.blobs().get(last) {
        Some(bytes) => Reply::new(200).body(bytes.clone()),
        None if path.contains("/manifests/") => {
            Reply::new(200).header("Content-Type", top.media_type()).body(top.bytes())
        }
        None => Reply::new(404),
    }
}

/// A server that has an image, under any name.
fn server_of(image: &'static MemoryImage) -> FaultServer {
    FaultServer::start(move |request| serve(request, image))
}

/// Lives as long as the tests, as the servers that share it do.
fn image(seed: &str) -> &'static MemoryImage {
    Box::leak(Box::new(MemoryImage::sample(seed)))
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_for_what_it_has_not() {
    let image = image("mirror");
    let config = image.top().expect("it has a manifest").content();
    let ManifestContent::Image { config, .. } = config else { panic!("an image") };
    let mirror = FaultServer::start(move |request| {
        if request.path.contains(config.digest().as_ref()) { Reply::new(404) } else { serve(request, image) }
    });
    let registry = server_of(image);
    let settings = Settings::new().registries_conf(&format!(
        "[[registry]]\nprefix = \"{}\"\n[[registry.mirror]]\nlocation = \"{}/cache\"",
        registry.address(),
        mirror.address()
    ));
    let name = format!("{}/team/app:1", registry.address());
    assert!(pull(&settings.client(), &name).expect("pulled").blobs() == image.blobs());
    assert_eq!(mirror.count("GET", "/v2/cache/team/app/"), 4, "a manifest and three blobs");
    assert_eq!(registry.requests().len(), 1, "the blob that the mirror has not");
}

#[test]
fn a_mirror_for_digests_is_not_asked_for_tags() {
    let image = image("digests");
    let (mirror, registry) = (server_of(image), server_of(image));
    let settings = Settings::new().registries_conf(&format!(
        "[[registry]]\nprefix = \"{}\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"{}\"",
        registry.address(),
        mirror.address()
    ));
    pull(&settings.client(), &format!("{}/app:1", registry.address())).expect("pulled");
    assert_eq!((mirror.count("GET", "/manifests/"), registry.count("GET", "/manifests/1")), (0, 1));
    assert_eq!((mirror.count("GET", "/blobs/"), registry.count("GET", "/blobs/")), (3, 0));
}

#[test]
fn a_blob_that_a_mirror_damages_comes_from_the_registry() {
    let image = image("damaged");
    let layer = image.layers().remove(0);
    let damaged = layer.clone();
    let mirror = FaultServer::start(move |request| match request.path.contains(damaged.digest().as_ref()) {
        true => Reply::new(200).body(vec![b'x'; damaged.size() as usize]),
        false => serve(request, image),
    });
    let registry = server_of(image);
    let settings = Settings::new().registries_conf(&format!(
        "[[registry]]\nprefix = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"",
        registry.address(),
        mirror.address()
    ));
    let client = settings.client();
    let name = format!("{}/app:1", registry.address());
    assert!(pull(&client, &name).expect("pulled").blobs() == image.blobs());
    assert!(pull(&client, &name).expect("pulled again").blobs() == image.blobs());
    assert_eq!(mirror.count("GET", layer.digest().as_ref()), 1, "once is enough");
    assert_eq!(registry.requests().len(), 2, "the damaged blob, each time");
}

/// Says that it compresses.
struct Unchanged;

impl Repacker for Unchanged {
    fn compression(&self) -> LayerCompression {
        LayerCompression::Gzip
    }

    fn name(&self) -> String {
        "unchanged".to_owned()
    }

    fn repack(&self, layer: &mut (dyn Read + Send), out: &mut (dyn std::io::Write + Send)) -> std::io::Result<()> {
        std::io::copy(layer, out).map(drop)
    }
}

#[test]
fn what_a_mirror_damages_comes_from_the_registry_under_a_policy_too() {
    let image = image("guarded");
    let top = image.top().expect("it has a manifest");
    let serve_signed = move |request: &Request| match request.path.rsplit('/').next() {
        Some(tag) if tag.ends_with(".sig") => {
            let signatures = image.tag(tag).expect("it is signed");
            Reply::new(200).header("Content-Type", signatures.media_type()).body(signatures.bytes())
        }
        _ => serve(request, image),
    };
    let registry = FaultServer::start(serve_signed);
    // Every blob of it is damaged: payload, config and layers.
    let mirror = FaultServer::start(move |request| {
        let reply = serve_signed(request);
        match image.blobs().iter().find(|(digest, _)| request.path.ends_with(digest.as_str())) {
            Some((_, bytes)) => Reply::new(200).body(vec![b'x'; bytes.len()]),
            None => reply,
        }
    });
    let name = reference(&format!("{}/app:1", registry.address()));
    let key = PrivateKey::generate().expect("made");
    let payload = Payload::new(top.digest().clone(), &name.to_string(), Default::default()).expect("a payload");
    sign(image, image, &top, &payload, &key, false).expect("signed");
    let settings = Settings::new().registries_conf(&format!(
        "[[registry]]\nprefix = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"",
        registry.address(),
        mirror.address()
    ));
    let file = settings.0.path().join("policy.json");
    std::fs::write(settings.0.path().join("key.pub"), key.public().to_pem()).expect("written");
    let rule = serde_json::json!({"type": "sigstoreSigned", "keyPath": settings.0.path().join("key.pub")});
    std::fs::write(&file, serde_json::json!({"default": [rule]}).to_string()).expect("written");
    let policy = Policy::load(&file, &[]).expect("a policy");
    let guarded = || {
        let source = RegistrySource::new(&settings.client(), &name).expect("a host");
        policy.guard(Box::new(source), &ImageName::Registry(name.clone()), true).expect("demanded")
    };
    let here = MemoryImage::empty();
    copy(&*guarded(), &here, &CopyOptions::default(), &Silent).expect("pulled");
    assert_eq!(here.blobs().len(), 3);
    let options = RepackOptions {
        repacker: &Unchanged,
        is_forced: true,
        platforms: PlatformChoice::All,
        jobs: 1,
        directory: settings.0.path(),
        ahead: None,
    };
    let guarded = guarded();
    let repacked = RepackedSource::new(&*guarded, &options, &Silent).expect("compressed");
    copy(&repacked, &MemoryImage::empty(), &CopyOptions::default(), &Silent).expect("copied");
}

#[test]
fn a_mirror_that_is_down_costs_one_warning_and_no_pull() {
    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);
    impl Progress for Warnings {
        fn warning(&self, registry: &str, text: &str) {
            self.0.lock().expect("no panic").push(format!("{registry}: {text}"));
        }
    }
    let image = image("down");
    let registry = server_of(image);
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|held| held.local_addr()).expect("a port");
    let settings = Settings::new().registries_conf(&format!(
        "[[registry]]\nprefix = \"{}\"\n[[registry.mirror]]\nlocation = \"{free}\"",
        registry.address()
    ));
    let warnings = std::sync::Arc::new(Warnings::default());
    let progress: std::sync::Arc<dyn Progress> = warnings.clone();
    let client = Client::new(ClientOptions { progress, ..settings.options() });
    assert!(pull(&client, &format!("{}/app:1", registry.address())).expect("pulled").blobs() == image.blobs());
    let warnings = warnings.0.lock().expect("no panic");
    assert!(warnings.len() == 1 && warnings[0].contains("refused"), "{warnings:?}");
}

#[test]
fn a_mirror_that_answers_nothing_but_failures_costs_two_requests() {
    let image = image("sick");
    let registry = server_of(image);
    for is_broken in [false, true] {
        let reply = move || Reply::new(503).body("x".repeat(10));
        let watch = move |_: &Request| if is_broken { Reading::Break } else { Reading::On };
        let mirror = FaultServer::watching(watch, move |_| reply());
        let settings = Settings::new().registries_conf(&format!(
            "[[registry]]\nprefix = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"",
            registry.address(),
            mirror.address()
        ));
        let client =
            Client::new(ClientOptions { retry: RetryPolicy { tries: 6, ..quick().retry }, ..settings.options() });
        assert!(pull(&client, &format!("{}/app:1", registry.address())).expect("pulled").blobs() == image.blobs());
        // Broken connections are made anew by the library itself once.
        assert!(mirror.requests().len() <= if is_broken { 4 } else { 2 }, "{}", mirror.requests().len());
    }
}

#[test]
fn a_mirror_that_wants_a_pause_is_not_waited_for() {
    let image = image("busy");
    let registry = server_of(image);
    let mirror = FaultServer::start(|_| Reply::new(429).header("Retry-After", "2"));
    let settings = Settings::new().registries_conf(&format!(
        "[[registry]]\nprefix = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"",
        registry.address(),
        mirror.address()
    ));
    assert!(pull(&settings.client(), &format!("{}/app:1", registry.address())).is_ok());
    assert_eq!(mirror.requests().len(), 4, "each is asked for once");
}

#[test]
fn names_are_rewritten_for_pull_and_push_and_what_is_blocked_is_not_reached() {
    let registry = Registry::open();
    let settings = Settings::new().registries_conf(&format!(
        "[[registry]]\nprefix = \"corp.example/team\"\nlocation = \"{}/inner\"\n\
         [[registry]]\nlocation = \"bad.example\"\nblocked = true",
        registry.address()
    ));
    let image = image("rewritten");
    push(&settings.client(), image, "corp.example/team/app:1").expect("pushed");
    assert!(pull(&settings.client(), "corp.example/team/app:1").expect("pulled").blobs() == image.blobs());
    let inner = format!("{}/inner/app:1", registry.address());
    assert_eq!(pull(&Client::new(quick()), &inner).expect("it lies there").digest(), image.digest());
    let error = pull(&settings.client(), "bad.example/app:1").err().expect("blocked");
    assert!(error.to_string().contains("blocks bad.example") && error.kind() == ErrorKind::User, "{error}");
}

#[test]
fn hosts_toml_leads_to_mirrors_with_headers_and_the_name_of_the_registry() {
    let image = image("containerd");
    let (mirror, registry) = (server_of(image), server_of(image));
    let settings = Settings::new().hosts_toml(
        "hub.example",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}/api/hub\"]\ncapabilities = [\"pull\"]\noverride_path = true\n\
             [host.\"http://{}/api/hub\".header]\nx-key = \"k\"",
            registry.address(),
            mirror.address(),
            mirror.address()
        ),
    );
    assert!(pull(&settings.client(), "hub.example/app:1").expect("pulled").blobs() == image.blobs());
    assert_eq!(registry.count("GET", "/v2/app/manifests/1"), 1, "the mirror may not resolve tags");
    assert!(registry.requests().iter().all(|request| request.header("x-key").is_none()));
    let asked = mirror.requests();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|request| request.header("x-key") == Some("k")));
    assert!(asked.iter().all(|request| request.path.starts_with("/api/hub/app/blobs/sha256:")));
    assert!(asked.iter().all(|request| request.path.ends_with("?ns=hub.example")), "{:?}", asked[0].path);
}

#[test]
fn headers_of_a_host_stay_with_it_when_it_redirects() {
    let (elsewhere, image) = (FaultServer::start(|_| Reply::new(200).body(*b"{}")), image("headers"));
    let location = format!("http://{}/x", elsewhere.address());
    let registry = FaultServer::start(move |_| Reply::new(307).header("Location", location.clone()));
    let text = format!("server = \"http://{}\"\n[header]\nx-key = \"k\"", registry.address());
    let settings = Settings::new().hosts_toml("r.example", &text);
    let layer = &image.layers()[0];
    let repository = settings.client().repository(&reference("r.example/app:1")).expect("a host");
    let mut bytes = Vec::new();
    let read = repository
        .open_blob(layer)
        .and_then(|mut content| content.read_to_end(&mut bytes).map_err(|error| Error::from_io("read", "x", error)));
    assert!(read.is_err(), "two bytes are not the blob");
    assert_eq!(registry.requests()[0].header("x-key"), Some("k"));
    assert!(elsewhere.requests().iter().all(|request| request.header("x-key").is_none()));
}

#[test]
fn an_authority_and_a_client_certificate_open_a_registry_that_demands_one() {
    let files = tempfile::tempdir().expect("a directory");
    let (certificate, key) = make_certificate(files.path(), "client");
    let (registry, authority) = Registry::with_client_certificate(&certificate);
    let image = image("certificates");
    let name = format!("{}/app:1", registry.address());
    let options = |settings: &Settings| ClientOptions {
        schemes: Schemes { https: vec![registry.address().to_owned()], ..Schemes::default() },
        ..settings.options()
    };
    // Docker's files.
    let settings = Settings::new();
    let directory = settings.directory(registry.address());
    let without = push(&Client::new(options(&settings)), image, &name).expect_err("an unknown authority");
    assert!(matches!(without.cause(), Cause::Tls { .. }), "{without}");
    std::fs::write(directory.join("ca.crt"), &authority).expect("written");
    let without = push(&Client::new(options(&settings)), image, &name).expect_err("no client certificate");
    assert!(without.to_string().to_lowercase().contains("certificate"), "{without}");
    std::fs::copy(&certificate, directory.join("client.cert")).expect("copied");
    std::fs::copy(&key, directory.join("client.key")).expect("copied");
    push(&Client::new(options(&settings)), image, &name).expect("pushed");
    // containerd's.
    let client = format!("client = [[\"{}\", \"{}\"]]", certificate.display(), key.display());
    let host = format!("server = \"https://{}\"\nskip_verify = true\n{client}", registry.address());
    let settings = Settings::new().hosts_toml("r.example", &host);
    assert!(pull(&settings.client(), "r.example/app:1").expect("pulled").blobs() == image.blobs());
}

#[test]
fn a_client_certificate_that_does_not_fit_its_key_is_an_error_that_says_so() {
    let settings = Settings::new();
    let directory = settings.directory("r.example");
    let (certificate, _) = make_certificate(&directory, "client");
    make_certificate(&directory.join(".."), "other");
    std::fs::rename(directory.join("../other.key"), certificate.with_extension("key")).expect("renamed");
    let error = pull(&settings.client(), "r.example/app:1").err().expect("no pair");
    assert!(error.to_string().contains("cannot be used") && error.kind() == ErrorKind::User, "{error}");
}

#[test]
fn an_insecure_registry_may_speak_tls_with_any_certificate_or_none() {
    let ((tls, _), plain) = (Registry::with_tls(), Registry::open());
    for registry in [&tls, &plain] {
        let settings = Settings::new()
            .registries_conf(&format!("[[registry]]\nlocation = \"{}\"\ninsecure = true", registry.address()));
        // As if it were not on loopback, where plain http is tried anyway.
        let schemes = Schemes { https: vec![registry.address().to_owned()], ..Schemes::default() };
        let client = Client::new(ClientOptions { schemes: schemes.clone(), ..settings.options() });
        let (image, name) = (image("insecure"), format!("{}/app:1", registry.address()));
        push(&client, image, &name).expect("pushed");
        assert!(pull(&client, &name).expect("pulled").blobs() == image.blobs());
        let strict = Client::new(ClientOptions { schemes, ..quick() });
        assert!(pull(&strict, &name).is_err(), "others stay strict");
    }
}

#[test]
fn settings_that_are_not_understood_are_errors_that_name_the_file() {
    let settings = Settings::new().registries_conf("[[registry]]\nlocation = \"a.example\"\ninsecure = \"yes\"");
    let load = |path: &Path| Hosts::load(&[path.to_owned()], &[]);
    let error = load(&settings.0.path().join("registries.conf")).expect_err("no boolean");
    assert!(error.to_string().contains("registries.conf"), "{error}");
    let settings = Settings::new().hosts_toml("r.example", "server = 1");
    let error = pull(&settings.client(), "r.example/app:1").err().expect("no text");
    assert!(error.to_string().contains("hosts.toml"), "{error}");
}

#[test]
fn a_mirror_is_not_shown_the_registrys_password() {
    let image = image("secret");
    let mirror = FaultServer::start(|_| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""));
    let registry = FaultServer::start(move |request| match request.header("authorization") {
        Some(_) => serve(request, image),
        None => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
    });
    let settings = Settings::new().registries_conf(&format!(
        "[[registry]]\nprefix = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"",
        registry.address(),
        mirror.address()
    ));
    let credential = Credential::Password { user: "me".to_owned(), password: Secret::new("very-secret") };
    let given = [(registry.address().to_owned(), credential)].into();
    let credentials = Credentials { given, ..Credentials::default() };
    let client = Client::new(ClientOptions { credentials, ..settings.options() });
    assert!(pull(&client, &format!("{}/app:1", registry.address())).expect("pulled").blobs() == image.blobs());
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
    assert!(!mirror.requests().is_empty());
}

/// Answers a GET with the range that it asks for, or all.
fn serve_range(request: &Request, content: &[u8]) -> Reply {
    let range = request.header("range").and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    let Some((first, last)) = range else { return Reply::new(200).body(content) };
    let start: usize = first.parse().expect("a number");
    let end = last.parse::<usize>().map_or(content.len(), |last| last + 1);
    let header = format!("bytes {start}-{}/{}", end - 1, content.len());
    Reply::new(206).header("Content-Range", header).body(&content[start..end])
}

fn is_from_start(request: &Request) -> bool {
    request.header("range").is_none_or(|range| range.starts_with("bytes=0-"))
}

#[test]
fn a_blob_goes_on_at_the_registry_where_its_mirror_fails_in_the_middle() {
    const MIB: usize = 1 << 20;
    let content: &'static [u8] = noise("middle", 3 * MIB).leak();
    let layer = Descriptor::new(MediaType::ImageLayer, content.len() as u64, digest_of(content));
    for has_spool in [false, true] {
        let mirror = FaultServer::start(move |request| match is_from_start(request) {
            true => serve_range(request, content).cut_after(MIB),
            false => Reply::new(410),
        });
        let registry = FaultServer::start(move |request| serve_range(request, content));
        let settings = Settings::new().registries_conf(&format!(
            "[[registry]]\nprefix = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"",
            registry.address(),
            mirror.address()
        ));
        let spool = has_spool.then(|| settings.0.path().join("spool"));
        let ranges = RangePolicy { piece_bytes: MIB as u64, parallel_from_bytes: MIB as u64, lanes: 2 };
        let client = Client::new(ClientOptions { spool, ranges, ..settings.options() });
        let repository = client.repository(&reference(&format!("{}/app:1", registry.address()))).expect("a host");
        let mut bytes = Vec::new();
        repository.open_blob(&layer).expect("opened").read_to_end(&mut bytes).expect("read at both");
        assert!(bytes == content);
        assert!(!registry.requests().iter().any(is_from_start), "what the mirror sent is kept");
    }
}
