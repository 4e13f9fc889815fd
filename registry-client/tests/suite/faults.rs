//! Peers that break, stall, lie or lead astray: every transfer ends right, or with an error that names the cause,
//! and no credential reaches a host that it is not for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fixtures::fault::{FaultServer, Reply, Request};
use oci_spec::image::{Descriptor, MediaType};
use registry_client::*;

use crate::support::*;

const PASSWORD: &str = "very-secret-password";

fn blob() -> (Vec<u8>, Descriptor) {
    let bytes = noise("blob", 300_000);
    let descriptor = Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest_of(&bytes));
    (bytes, descriptor)
}

fn repository(server: &FaultServer) -> Repository {
    let reference: Reference = format!("{}/a:1", server.address()).parse().expect("a reference");
    Client::new(with_password(server)).repository(&reference).expect("a host")
}

fn with_password(server: &FaultServer) -> ClientOptions {
    let credential = Credential::Password { user: "me".to_owned(), password: Secret::new(PASSWORD) };
    let given = BTreeMap::from([(server.address().to_owned(), credential)]);
    ClientOptions { credentials: Credentials { given, ..Credentials::default() }, ..quick() }
}

fn pull(server: &FaultServer, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    pull_from(&repository(server), descriptor)
}

fn pull_from(repository: &Repository, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut content = repository.open_blob(descriptor)?;
    std::io::Read::read_to_end(&mut content, &mut bytes).map_err(|error| Error::from_io("read", "x", error))?;
    Ok(bytes)
}

/// The first byte that a request asks for.
fn from(request: &Request) -> usize {
    let range = request.header("range").and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    range.unwrap_or(0)
}

/// Answers a GET with the rest of the content, as ranges are asked for.
fn rest(request: &Request, content: &[u8]) -> Reply {
    match from(request) {
        0 => Reply::new(200).body(content),
        start => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            Reply::new(206).header("Content-Range", range).body(&content[start..])
        }
    }
}

#[test]
fn a_broken_download_resumes_where_it_broke() {
    let (content, descriptor) = blob();
    let (served, tries) = (content.clone(), AtomicUsize::new(0));
    let server = FaultServer::start(move |request| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => rest(request, &served).cut_after(100_000),
        1 => rest(request, &served).cut_after(50_000),
        _ => rest(request, &served),
    });
    assert!(pull(&server, &descriptor).expect("resumed") == content);
    let starts: Vec<usize> = server.requests().iter().map(from).collect();
    assert_eq!(starts, [0, 100_000, 150_000]);
}

#[test]
fn a_stalled_download_is_noticed_and_resumes() {
    let (content, descriptor) = blob();
    let (served, tries) = (content.clone(), AtomicUsize::new(0));
    let server = FaultServer::start(move |request| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => rest(request, &served).silent_after(100_000),
        _ => rest(request, &served),
    });
    let transport = TransportOptions { stall_timeout: Duration::from_millis(200), ..TransportOptions::default() };
    let client = Client::new(ClientOptions { transport, ..quick() });
    let reference: Reference = format!("{}/a:1", server.address()).parse().expect("a reference");
    let repository = client.repository(&reference).expect("a host");
    assert!(pull_from(&repository, &descriptor).expect("resumed") == content);
    assert_eq!(from(&server.requests()[1]), 100_000);
}

#[test]
fn a_registry_without_ranges_is_read_again_from_the_start() {
    let (content, descriptor) = blob();
    let (served, tries) = (content.clone(), AtomicUsize::new(0));
    let server = FaultServer::start(move |_| {
        let whole = Reply::new(200).body(served.clone());
        if tries.fetch_add(1, Ordering::SeqCst) == 0 { whole.cut_after(100_000) } else { whole }
    });
    assert!(pull(&server, &descriptor).expect("restarted") == content);
}

#[test]
fn a_download_that_always_breaks_is_an_error_that_says_so() {
    let (content, descriptor) = blob();
    let server = FaultServer::start(move |request| rest(request, &content).cut_after(10));
    let error = pull(&server, &descriptor).expect_err("it never ends");
    assert!(matches!(error.cause(), Cause::Broken { .. }), "{error}");
    assert_eq!(server.requests().len(), 4, "as many tries as allowed");
}

#[test]
fn lies_about_content_are_found_out() {
    let (content, descriptor) = blob();
    let mut flipped = content.clone();
    flipped[7] ^= 1;
    let mut longer = content.clone();
    longer.push(0);
    let wrong_range = Reply::new(206).header("Content-Range", "bytes 5-299999/300000").body(&content[5..]);
    for (reply, expected) in [
        (Reply::new(200).body(flipped), "the content has the digest"),
        (Reply::new(200).body(longer), "more than 300000 bytes"),
        (wrong_range, "the registry sent \"bytes 5-299999/300000\""),
        (Reply::new(204), "answered 204"),
    ] {
        let server = FaultServer::start(move |_| reply.clone());
        let error = pull(&server, &descriptor).expect_err("a lie was believed").to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(server.requests().len(), 1, "a lie is not asked for again");
    }
}

#[test]
fn a_blob_that_came_damaged_is_fetched_once_more_from_its_begin() {
    let (content, descriptor) = blob();
    let said = Arc::new(Said::default());
    for lies in [1, 2] {
        let (served, asked) = (content.clone(), AtomicUsize::new(0));
        let server = FaultServer::start(move |_| {
            let mut content = served.clone();
            content[7] ^= u8::from(asked.fetch_add(1, Ordering::SeqCst) < lies);
            Reply::new(200).body(content)
        });
        let reference: Reference = format!("{}/a:1", server.address()).parse().expect("a reference");
        let source = RegistrySource::new(&Client::new(quick()), &reference).expect("a host");
        let outcome = copy_blob(&source, &MemoryImage::empty(), &descriptor, &*said);
        assert_eq!(server.requests().len(), 2, "it is asked for twice and not more often");
        match lies {
            1 => assert!(outcome.expect("the second time it is right")),
            _ => assert!(outcome.expect_err("it lies each time").to_string().contains("the content has the digest")),
        }
    }
    let said = said.0.lock().expect("no panic");
    assert_eq!(said.len(), 2);
    assert!(said[0].contains(descriptor.digest().as_ref()) && said[0].contains("not sha256:"), "{said:?}");
}

/// What was said of new tries.
#[derive(Default)]
struct Said(Mutex<Vec<String>>);

impl Progress for Said {
    fn retrying(&self, what: &str, cause: &str, _: Duration) {
        self.0.lock().expect("no panic").push(format!("{what}: {cause}"));
    }
}

#[test]
fn credentials_stay_with_their_registry_when_it_redirects() {
    let (content, descriptor) = blob();
    let served = content.clone();
    let elsewhere = FaultServer::start(move |request| rest(request, &served));
    let target = format!("http://{}/cdn?signature=abc", elsewhere.address());
    let server = FaultServer::start(move |request| match request.header("authorization") {
        None => Reply::new(401).header("WWW-Authenticate", "Basic realm=x"),
        Some(_) => Reply::new(307).header("Location", target.clone()),
    });
    assert!(pull(&server, &descriptor).expect("redirected") == content);
    assert_eq!(server.requests().len(), 2);
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
    assert_eq!(elsewhere.requests().len(), 1);
}

#[test]
fn redirects_in_a_circle_end() {
    let (_, descriptor) = blob();
    let server = FaultServer::start(|request| Reply::new(307).header("Location", request.path.clone()));
    let error = pull(&server, &descriptor).expect_err("a circle").to_string();
    assert!(error.contains("redirects more than 10 times"), "{error}");
}

#[test]
fn foreign_layers_are_fetched_without_credentials() {
    let (content, mut descriptor) = blob();
    let served = content.clone();
    let owner = FaultServer::start(move |request| rest(request, &served));
    descriptor.set_urls(Some(vec![format!("http://{}/layer", owner.address())]));
    let server = FaultServer::start(|request| match request.header("authorization") {
        None => Reply::new(401).header("WWW-Authenticate", "Basic realm=x"),
        Some(_) => Reply::new(404),
    });
    assert!(pull(&server, &descriptor).expect("fetched from its owner") == content);
    assert!(owner.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn rate_limits_are_waited_for_and_quotas_are_not() {
    let (content, descriptor) = blob();
    for wait in ["0", "880µs", "Sun, 06 Nov 1994 08:49:37 GMT"] {
        let (served, tries) = (content.clone(), AtomicUsize::new(0));
        let server = FaultServer::start(move |request| match tries.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::new(429).header("Retry-After", wait),
            1 => Reply::new(503),
            _ => rest(request, &served),
        });
        assert!(pull(&server, &descriptor).expect("waited") == content, "{wait}");
    }
    let server = FaultServer::start(|_| {
        let reply = Reply::new(429).header("ratelimit-limit", "100;w=21600").header("ratelimit-remaining", "0;w=21600");
        reply.header("Retry-After", "20000")
    });
    let error = pull(&server, &descriptor).expect_err("a quota");
    assert!(error.to_string().contains("0 of 100 pulls left in 6 hours, try again in 5 h 34 min"), "{error}");
    assert_eq!(server.requests().len(), 1);
    assert_eq!(error.kind(), ErrorKind::Registry);
}

/// A registry that takes uploads, with its tokens and oddities.
#[derive(Default)]
struct Uploads {
    /// Tokens are refused from the nth use on, once.
    refuse_use: Option<usize>,
    uses: AtomicUsize,
    /// Whole uploads get this status.
    whole_status: Option<u16>,
    /// The answer to chunks.
    chunk_status: Option<u16>,
    /// Uploads lie at this host.
    upload_host: Option<String>,
    mount_status: Option<u16>,
    stored: Mutex<Vec<u8>>,
}

impl Uploads {
    fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        if path == "/token" {
            return Reply::new(200).body(format!(r#"{{"token":"t{}"}}"#, self.uses.load(Ordering::SeqCst)));
        }
        if request.header("authorization").is_none_or(|header| !header.starts_with("Bearer "))
            || self.refuse_use == Some(self.uses.fetch_add(1, Ordering::SeqCst))
        {
            let host = request.header("host").expect("every request has a host");
            let challenge = format!(r#"Bearer realm="http://{host}/token",service="s",scope="repository:a:pull,push""#);
            return Reply::new(401).header("WWW-Authenticate", challenge);
        }
        match request.method.as_str() {
            "POST" if request.path.contains("mount=") && self.mount_status == Some(201) => Reply::new(201),
            "POST" => {
                let host = self.upload_host.as_ref().map_or(String::new(), |host| format!("http://{host}"));
                Reply::new(202).header("Location", format!("{host}/v2/a/blobs/uploads/id?state=1"))
            }
            "PUT" if !request.body.is_empty() && self.whole_status.is_some() => {
                Reply::new(self.whole_status.unwrap_or(0))
            }
            "PUT" => {
                self.stored.lock().expect("no panic").extend(&request.body);
                Reply::new(201)
            }
            "PATCH" => self.take_chunk(request),
            "DELETE" => Reply::new(204),
            _ => Reply::new(404),
        }
    }

    fn take_chunk(&self, request: &Request) -> Reply {
        let mut stored = self.stored.lock().expect("no panic");
        stored.extend(&request.body);
        let range = format!("0-{}", stored.len() - 1);
        let reply = Reply::new(self.chunk_status.unwrap_or(202)).header("Range", range);
        reply.header("Location", "/v2/a/blobs/uploads/id?state=2")
    }
}

fn push(uploads: &Arc<Uploads>, image: &MemoryImage, layer: &Descriptor) -> (FaultServer, Result<Stored, Error>) {
    let answering = Arc::clone(uploads);
    let server = FaultServer::start(move |request| answering.answer(request));
    let stored = repository(&server).put_blob(layer, &Sent(image, layer, server.address().to_owned()));
    (server, stored)
}

/// A blob of an image in memory, said to come from another repository of the same registry.
struct Sent<'a>(&'a MemoryImage, &'a Descriptor, String);

impl Content for Sent<'_> {
    fn open(&self) -> Result<Box<dyn std::io::Read + Send + '_>, Error> {
        self.0.open_blob(self.1)
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin { registry: self.2.clone(), repository: "source".to_owned() })
    }
}

fn large_layer() -> (MemoryImage, Descriptor) {
    let image = MemoryImage::empty();
    let layer = image.add_blob(MediaType::ImageLayer, noise("large", 9_000_000));
    (image, layer)
}

#[test]
fn a_token_that_ends_in_the_middle_of_a_push_is_renewed() {
    let (image, layer) = large_layer();
    // The first use is the POST, the second the PUT with the content.
    let uploads = Arc::new(Uploads { refuse_use: Some(1), ..Uploads::default() });
    let (server, stored) = push(&uploads, &image, &layer);
    assert_eq!(stored.expect("pushed"), Stored::Sent);
    assert!(*uploads.stored.lock().expect("no panic") == image.blobs()[layer.digest().as_ref()]);
    assert_eq!((server.count("PUT", "digest="), server.count("POST", "/token")), (2, 3));
}

#[test]
fn a_registry_token_is_sent_as_it_is_and_no_other_is_asked_for() {
    let (content, descriptor) = blob();
    let server = FaultServer::start(move |request| match request.header("authorization") {
        Some("Bearer given-token") => rest(request, &content),
        _ => Reply::new(401).header("WWW-Authenticate", r#"Bearer realm="http://127.0.0.1:1/token""#),
    });
    let repository = |token: &str| {
        let given = BTreeMap::from([(server.address().to_owned(), Credential::RegistryToken(Secret::new(token)))]);
        let credentials = Credentials { given, ..Credentials::default() };
        let reference: Reference = format!("{}/a:1", server.address()).parse().expect("a reference");
        Client::new(ClientOptions { credentials, ..quick() }).repository(&reference).expect("a host")
    };
    pull_from(&repository("given-token"), &descriptor).expect("pulled");
    let error = pull_from(&repository("wrong-token"), &descriptor).expect_err("refused");
    assert!(matches!(error.cause(), Cause::Unauthorized { had_credentials: true, .. }), "{error}");
}

#[test]
fn a_mount_sends_nothing_and_a_refused_one_goes_on_with_its_session() {
    let (image, layer) = large_layer();
    let (server, stored) = push(&Arc::new(Uploads { mount_status: Some(201), ..Uploads::default() }), &image, &layer);
    assert_eq!(stored.expect("mounted"), Stored::Unsent);
    assert_eq!(server.count("PUT", ""), 0);
    let scopes = "repository:a:pull,push%20repository:source:pull";
    let asked = |request: &Request| String::from_utf8_lossy(&request.body).contains(scopes);
    assert!(server.requests().iter().any(asked), "a mount needs the right to read its source");
    let (server, stored) = push(&Arc::default(), &image, &layer);
    assert_eq!(stored.expect("pushed"), Stored::Sent);
    assert_eq!((server.count("POST", "/v2/"), server.count("PUT", "digest=")), (2, 1), "POST: refused, then accepted");
}

#[test]
fn what_is_too_large_for_one_request_goes_in_chunks() {
    let (image, layer) = large_layer();
    let uploads = Arc::new(Uploads { whole_status: Some(413), ..Uploads::default() });
    let (server, stored) = push(&uploads, &image, &layer);
    assert_eq!(stored.expect("pushed"), Stored::Sent);
    assert!(*uploads.stored.lock().expect("no panic") == image.blobs()[layer.digest().as_ref()]);
    let is_small = |request: &Request| request.body.len() <= 4 << 20;
    assert!(server.requests().iter().filter(|request| request.method == "PATCH").all(is_small));
    assert_eq!(server.count("PATCH", "state=2"), 2, "each chunk goes where the last answer said");
}

#[test]
fn a_proxy_that_refuses_large_bodies_unread_gets_chunks_too() {
    let (image, layer) = large_layer();
    let uploads = Arc::new(Uploads::default());
    let answering = Arc::clone(&uploads);
    let server = FaultServer::with_body_limit(5 << 20, move |request| answering.answer(request));
    let stored = repository(&server).put_blob(&layer, &Sent(&image, &layer, server.address().to_owned()));
    assert_eq!(stored.expect("pushed"), Stored::Sent);
    assert!(*uploads.stored.lock().expect("no panic") == image.blobs()[layer.digest().as_ref()]);
    assert_eq!((server.count("PUT", "digest="), server.count("PATCH", "")), (2, 3));
}

#[test]
fn a_peer_that_refuses_to_be_asked_first_is_sent_the_body_at_once() {
    let (image, layer) = large_layer();
    let uploads = Arc::new(Uploads::default());
    let answering = Arc::clone(&uploads);
    let server = FaultServer::start(move |request| match request.header("expect") {
        Some(_) => Reply::new(417),
        None => answering.answer(request),
    });
    let stored = repository(&server).put_blob(&layer, &Sent(&image, &layer, "another.example".to_owned()));
    assert_eq!(stored.expect("pushed"), Stored::Sent);
    assert!(*uploads.stored.lock().expect("no panic") == image.blobs()[layer.digest().as_ref()]);
    assert_eq!(server.count("PUT", "digest="), 2);
}

#[test]
fn a_broken_chunk_is_resumed_where_the_registry_says() {
    let (image, layer) = large_layer();
    let uploads = Arc::new(Uploads { whole_status: Some(413), ..Uploads::default() });
    let (answering, chunks) = (Arc::clone(&uploads), AtomicUsize::new(0));
    let server = FaultServer::start(move |request| {
        if request.method == "PATCH" && chunks.fetch_add(1, Ordering::SeqCst) == 1 {
            // A million bytes of the second chunk arrived before something broke.
            answering.stored.lock().expect("no panic").extend(&request.body[..1_000_000]);
            return Reply::new(502);
        }
        if request.method == "GET" && request.path.contains("/uploads/") {
            let length = answering.stored.lock().expect("no panic").len();
            return Reply::new(204).header("Range", format!("0-{}", length - 1));
        }
        answering.answer(request)
    });
    let stored = repository(&server).put_blob(&layer, &Sent(&image, &layer, "another.example".to_owned()));
    assert_eq!(stored.expect("pushed"), Stored::Sent);
    assert!(*uploads.stored.lock().expect("no panic") == image.blobs()[layer.digest().as_ref()]);
    let requests = server.requests();
    let ranges: Vec<&str> = requests.iter().filter_map(|request| request.header("content-range")).collect();
    assert_eq!(ranges, ["0-4194303", "4194304-8388607", "5194304-8388607", "8388608-8999999"]);
}

#[test]
fn a_registry_that_drops_chunks_is_found_out() {
    let (image, layer) = large_layer();
    let uploads = Uploads { whole_status: Some(413), chunk_status: Some(201), ..Uploads::default() };
    let (_server, stored) = push(&Arc::new(uploads), &image, &layer);
    let error = stored.expect_err("chunks were dropped").to_string();
    assert!(error.contains("answered 201 instead of 202 to a chunk"), "{error}");
}

#[test]
fn uploads_that_lie_at_another_host_carry_no_credentials() {
    let (image, layer) = large_layer();
    let elsewhere = FaultServer::start(|_| Reply::new(201));
    let uploads = Uploads { upload_host: Some(elsewhere.address().to_owned()), ..Uploads::default() };
    let (_server, stored) = push(&Arc::new(uploads), &image, &layer);
    assert_eq!(stored.expect("pushed"), Stored::Sent);
    let requests = elsewhere.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].header("authorization").is_none());
    assert_eq!(requests[0].body.len() as u64, layer.size());
}

#[test]
fn content_that_fails_is_not_pushed_again_and_again() {
    let (image, layer) = large_layer();
    let lie = Descriptor::new(MediaType::ImageLayer, layer.size() + 1, layer.digest().clone());
    let (server, stored) = push(&Arc::default(), &image, &lie);
    let error = stored.expect_err("the content is too short");
    assert!(matches!(error.cause(), Cause::SizeMismatch { .. }), "{error}");
    assert!(server.count("POST", "/v2/") <= 2);
}

#[test]
fn a_password_that_expired_is_looked_up_again() {
    let (content, descriptor) = blob();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("auth.json");
    let store = |server: &str, password: &str| {
        let credential = Credential::Password { user: "me".to_owned(), password: Secret::new(password) };
        Credentials::default().store(&file, server, &credential).expect("stored");
    };
    let served = content.clone();
    // "me:old" and "me:new" in base64; Amazon's registry says 403 to an expired password.
    let server = FaultServer::start(move |request| match request.header("authorization") {
        None => Reply::new(401).header("WWW-Authenticate", "Basic realm=x"),
        Some("Basic bWU6bmV3") => rest(request, &served),
        Some(_) => Reply::new(403),
    });
    store(server.address(), "old");
    let credentials = Credentials { files: vec![file.clone()], ..Credentials::default() };
    let client = Client::new(ClientOptions { credentials, ..quick() });
    let reference: Reference = format!("{}/a:1", server.address()).parse().expect("a reference");
    let repository = client.repository(&reference).expect("a host");
    let error = pull_from(&repository, &descriptor).expect_err("the password is old");
    assert!(error.to_string().contains("403"), "{error}");
    store(server.address(), "new");
    assert!(pull_from(&repository, &descriptor).expect("the password is new") == content);
}

#[test]
fn a_proxy_that_cannot_be_used_is_an_error_without_its_password() {
    for proxy in ["socks5://me:hunter2@127.0.0.1:1", "http://me:hunter2@"] {
        let transport = TransportOptions { https_proxy: Some(Secret::new(proxy)), ..TransportOptions::default() };
        let client = Client::new(ClientOptions { transport, ..quick() });
        let reference: Reference = "far.invalid:1/a".parse().expect("a reference");
        let error = client.repository(&reference).expect("a host").tags().expect_err("no such proxy");
        assert!(error.to_string().contains("the proxy"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn a_proxy_is_used_but_for_the_hosts_that_are_left_out() {
    let proxy = FaultServer::start(|_| Reply::new(403));
    let transport = TransportOptions {
        http_proxy: Some(Secret::new(format!("http://me:hunter2@{}", proxy.address()))),
        no_proxy: Some("left-out.invalid".to_owned()),
        ..TransportOptions::default()
    };
    let registries = ["proxied.invalid:5000", "left-out.invalid:5000"];
    let schemes = Schemes { plain_http: registries.map(str::to_owned).to_vec(), ..Schemes::default() };
    let client = Client::new(ClientOptions { transport, schemes, ..quick() });
    let [proxied, left_out] = registries.map(|registry| {
        let reference: Reference = format!("{registry}/a").parse().expect("a reference");
        client.repository(&reference).expect("a host").tags().expect_err("there is no such host")
    });
    let requests = proxy.requests();
    assert!(requests.iter().all(|request| request.method == "CONNECT" && request.path == "proxied.invalid:5000"));
    assert!(!requests.is_empty(), "{proxied}");
    assert!(requests[0].header("proxy-authorization").is_some());
    assert!(!format!("{proxied:?}").contains("hunter2"), "{proxied:?}");
    // Without a name server the lookup fails in another way.
    assert!(matches!(left_out.cause(), Cause::HostNotFound { .. } | Cause::Broken { .. }), "{left_out}");
}

#[test]
fn a_proxy_that_refuses_is_named_at_once() {
    for (status, hint) in [(407, "USER:PASSWORD"), (403, "no_proxy")] {
        let proxy = FaultServer::start(move |_| Reply::new(status));
        let https_proxy = Some(Secret::new(format!("http://me:hunter2@{}", proxy.address())));
        let transport = TransportOptions { https_proxy, ..quick().transport };
        let client = Client::new(ClientOptions { transport, ..quick() });
        let reference: Reference = "far.example/a:1".parse().expect("a reference");
        let error = client.repository(&reference).expect("a host").tags().expect_err("refused");
        assert!(matches!(error.cause(), Cause::ProxyRefused { status: found, .. } if *found == status), "{error}");
        assert!(error.hint().expect("there is a way out").contains(hint) && !error.to_string().contains("hunter2"));
        assert_eq!(proxy.requests().len(), 1, "it is not asked again");
    }
}

/// Remembers what a transfer told.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn retrying(&self, _: &str, cause: &str, _: Duration) {
        self.0.lock().expect("no panic").push(format!("retry: {cause}"));
    }

    fn warning(&self, _: &str, text: &str) {
        self.0.lock().expect("no panic").push(format!("warning: {text}"));
    }
}

#[test]
fn retries_are_told_and_warnings_once() {
    let (content, descriptor) = blob();
    let tries = AtomicUsize::new(0);
    let server = FaultServer::start(move |request| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503),
        _ => rest(request, &content).header("Warning", "299 - \"this registry closes soon\""),
    });
    let heard = Arc::new(Heard::default());
    let client = Client::new(ClientOptions { progress: Arc::clone(&heard) as Arc<dyn Progress>, ..quick() });
    let reference: Reference = format!("{}/a:1", server.address()).parse().expect("a reference");
    let repository = client.repository(&reference).expect("a host");
    for _ in 0..2 {
        pull_from(&repository, &descriptor).expect("pulled");
    }
    let heard = heard.0.lock().expect("no panic").clone();
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0].starts_with("retry: GET http://") && heard[0].ends_with("answered 503"), "{heard:?}");
    assert_eq!(heard[1], "warning: this registry closes soon");
}

#[test]
fn a_registry_that_stays_down_is_asked_as_often_as_allowed_and_no_more() {
    let server = FaultServer::start(|_| Reply::new(503));
    let (image, layer) = large_layer();
    let repository = repository(&server);
    let tag = Selector::Tag("1".to_owned());
    let asked = |action: &dyn Fn()| {
        let before = server.requests().len();
        action();
        server.requests().len() - before
    };
    assert_eq!(asked(&|| drop(repository.manifest(&tag).expect_err("down"))), 4);
    assert_eq!(asked(&|| drop(repository.resolve(&tag).expect_err("down"))), 4);
    assert_eq!(asked(&|| drop(pull_from(&repository, &layer).expect_err("down"))), 4);
    let content = Sent(&image, &layer, "another.example".to_owned());
    repository.put_blob(&layer, &content).expect_err("down");
    assert_eq!(server.count("POST", "/blobs/uploads/"), 4);
}

#[test]
fn one_failed_layer_ends_a_copy_with_its_error_and_leaves_the_tag_alone() {
    let (image, answers) = (MemoryImage::sample("fail"), Arc::new(Uploads::default()));
    let broken = image.layers()[1].digest().to_string();
    let server = FaultServer::start(move |request| {
        let is_broken = request.method == "PUT" && request.path.contains(&broken);
        if is_broken {
            Reply::new(400).body(r#"{"errors":[{"code":"BLOB_UPLOAD_INVALID"}]}"#)
        } else {
            answers.answer(request)
        }
    });
    let reference: Reference = format!("{}/a:1", server.address()).parse().expect("a reference");
    let destination = RegistryDestination::new(&Client::new(quick()), &reference).expect("a host");
    for jobs in [1, 2, 64] {
        let options = CopyOptions { jobs, ..CopyOptions::default() };
        let error = copy(&image, &destination, &options, &Silent).expect_err("a layer was refused").to_string();
        assert!(error.contains("400 BLOB_UPLOAD_INVALID"), "{error}");
    }
    assert_eq!(server.count("PUT", "/manifests/"), 0);
}

#[test]
fn no_error_shows_a_secret() {
    let server = FaultServer::start(|_| Reply::new(401).header("WWW-Authenticate", "Basic realm=x"));
    let (_, descriptor) = blob();
    let error = pull(&server, &descriptor).expect_err("refused");
    assert!(matches!(error.cause(), Cause::Unauthorized { had_credentials: true, .. }), "{error}");
    assert!(error.hint().expect("there is a way out").contains("nacre login"));
    let shown = format!("{error} {error:?} {:?}", repository(&server));
    assert!(!shown.contains(PASSWORD) && !shown.contains("bWU6"), "{shown}");
}

#[test]
fn what_a_registry_quotes_of_a_secret_is_not_shown() {
    let server = FaultServer::start(|request| {
        let token = "T0ken-of-the-realm";
        let host = request.header("host").expect("every request has a host");
        match request.header("authorization") {
            _ if request.path.starts_with("/token") => Reply::new(200).body(format!(r#"{{"token":"{token}"}}"#)),
            None => {
                Reply::new(401).header("WWW-Authenticate", format!(r#"Bearer realm="http://{host}/token?k=s3cret""#))
            }
            Some(header) => {
                let words = format!("no {header} for me:{PASSWORD}@{host}, {PASSWORD}");
                let body = format!(r#"{{"errors": [{{"code": "{token}", "message": "{words}"}}]}}"#);
                Reply::new(400).header("Warning", format!("299 - \"{words}\"")).body(body)
            }
        }
    });
    let progress = Arc::new(Heard::default());
    let options = ClientOptions { progress: Arc::clone(&progress) as Arc<dyn Progress>, ..with_password(&server) };
    let reference: Reference = format!("{}/a:1", server.address()).parse().expect("a reference");
    let repository = Client::new(options).repository(&reference).expect("a host");
    let error = pull_from(&repository, &blob().1).expect_err("refused");
    let shown = format!("{error} {error:?} {:?}", progress.0.lock().expect("no panic"));
    assert!(shown.contains("no Bearer ***"), "{shown}");
    for secret in [PASSWORD, "T0ken", "s3cret"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn a_host_where_nobody_listens_is_named_at_once() {
    let server = FaultServer::start(|_| Reply::new(200));
    let address = server.address().to_owned();
    drop(server);
    let reference: Reference = format!("{address}/a:1").parse().expect("a reference");
    let retry = RetryPolicy { base_wait: Duration::ZERO, ..RetryPolicy::default() };
    let client = Client::new(ClientOptions { retry, ..quick() });
    let error = client.repository(&reference).expect("a host").tags().expect_err("nobody listens");
    assert!(error.to_string().contains(&format!("connection to {address} refused")), "{error}");
    assert_eq!(error.kind(), ErrorKind::Registry);
}

#[test]
fn manifests_that_are_not_what_was_asked_for_are_refused() {
    let image = MemoryImage::sample("manifest");
    let manifest = image.top().expect("it has a manifest");
    let wanted = Selector::Digest(manifest.digest().clone());
    let other = MemoryImage::sample("other").top().expect("it has a manifest");
    let endless = Reply::new(200).body(vec![b' '; 9 << 20]);
    for (reply, expected) in [
        (Reply::new(200).body(other.bytes()), "the content has the digest"),
        (endless, "larger than 8388608 bytes"),
        (
            Reply::new(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not\u001b here"}]}"#),
            "404 MANIFEST_UNKNOWN: not here",
        ),
        (Reply::new(200).body("<html>"), "the content has the digest"),
    ] {
        let server = FaultServer::start(move |_| reply.clone());
        let error = repository(&server).manifest(&wanted).expect_err("it was taken").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tags_are_read_page_by_page_and_never_at_another_host() {
    let server = FaultServer::start(|request| {
        if request.path.contains("last=b") {
            Reply::new(200).body(r#"{"name":"a","tags":["c"]}"#)
        } else {
            let reply = Reply::new(200).header("Link", r#"</v2/a/tags/list?n=2&last=b>; rel="next""#);
            reply.body(r#"{"name":"a","tags":["a","b"]}"#)
        }
    });
    assert_eq!(repository(&server).tags().expect("listed"), ["a", "b", "c"]);
    let server = FaultServer::start(|_| {
        Reply::new(200).header("Link", "<http://127.0.0.2:1/x>; rel=next").body(r#"{"tags":null}"#)
    });
    let error = repository(&server).tags().expect_err("led astray").to_string();
    assert!(error.contains("another host"), "{error}");
}
