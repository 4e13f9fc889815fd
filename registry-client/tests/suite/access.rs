//! What registries want to see before they answer, and what is said to those that want it otherwise than most.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use fixtures::fault::{FaultServer, Reply, Request};
use registry_client::*;

use crate::support::*;

fn repository(client: &Client, server: &FaultServer, name: &str) -> Repository {
    let reference: Reference = format!("{}/{name}", server.address()).parse().expect("a reference");
    client.repository(&reference).expect("a host")
}

fn manifest() -> Manifest {
    MemoryImage::sample("access").top().expect("a manifest")
}

fn served(manifest: &Manifest) -> Reply {
    Reply::new(200).header("Content-Type", manifest.media_type()).body(manifest.bytes())
}

fn tag(name: &str) -> Selector {
    Selector::Tag(name.to_owned())
}

#[test]
fn a_public_repository_is_read_where_another_one_asked_for_a_password() {
    let server = FaultServer::start(|request| match request.path.contains("/private/") {
        true => Reply::new(401).header("WWW-Authenticate", "Basic realm=x"),
        false => served(&manifest()),
    });
    let client = Client::new(quick());
    let error = repository(&client, &server, "private").manifest(&tag("1")).expect_err("no password");
    assert!(matches!(error.cause(), Cause::Unauthorized { had_credentials: false, .. }), "{error}");
    repository(&client, &server, "public").manifest(&tag("1")).expect("no password is needed");
    let error = repository(&client, &server, "private").manifest(&tag("1")).expect_err("no password");
    assert!(error.hint().expect("a way out").contains("log in first"), "{error}");
}

/// Serves tokens that hold the scopes that were asked for, and a manifest to those with the scope `extra`.
fn wants_extra(request: &Request) -> Reply {
    let challenge = |server: &str| {
        format!("Bearer realm=\"http://{server}/token\",scope=\"extra:x:y\",error=\"insufficient_scope\"")
    };
    if request.path.starts_with("/token") {
        let token = if request.path.contains("extra:x:y") { "wide" } else { "narrow" };
        return Reply::new(200).body(format!("{{\"token\": \"{token}\"}}"));
    }
    match request.header("authorization") {
        Some("Bearer wide") => served(&manifest()),
        _ => Reply::new(401).header("WWW-Authenticate", challenge(request.header("host").expect("a host"))),
    }
}

#[test]
fn rights_that_only_the_registry_knows_of_are_asked_for_on_the_first_request_too() {
    let server = FaultServer::start(wants_extra);
    let client = Client::new(quick());
    repository(&client, &server, "app").manifest(&tag("1")).expect("with the wider token");
    assert_eq!(server.count("GET", "/token"), 2);
    // A token with all that was wanted, and refused all the same, is not asked for again and again.
    let server = FaultServer::start(|request| match request.path.starts_with("/token") {
        true => wants_extra(request),
        false => {
            let mut anonymous = request.clone();
            anonymous.headers.retain(|(name, _)| name != "authorization");
            wants_extra(&anonymous)
        }
    });
    let error = repository(&client, &server, "app").manifest(&tag("1")).expect_err("refused");
    assert!(matches!(error.cause(), Cause::Unauthorized { .. }), "{error}");
    assert!(server.count("GET", "/token") <= 2);
}

#[test]
fn a_token_server_that_wants_a_pause_is_given_it() {
    let asked = AtomicUsize::new(0);
    let server = FaultServer::start(move |request| match request.path.starts_with("/token") {
        true if asked.fetch_add(1, Ordering::SeqCst) == 0 => Reply::new(429).header("Retry-After", "3600"),
        _ => wants_extra(request),
    });
    let error = repository(&Client::new(quick()), &server, "app").manifest(&tag("1")).expect_err("a long pause");
    assert!(matches!(error.cause(), Cause::Answer(answer) if answer.retry_after.is_some()), "{error}");
    assert_eq!(server.count("GET", "/token"), 1, "an hour is not waited for, and nobody knocks meanwhile");
}

#[test]
fn a_registry_without_head_is_asked_for_the_whole_manifest() {
    for status in [400, 404, 405, 501] {
        let server = FaultServer::start(move |request| match request.method.as_str() {
            "HEAD" => Reply::new(status),
            _ => served(&manifest()),
        });
        let found = repository(&Client::new(quick()), &server, "app").resolve(&tag("1")).expect("it is there");
        assert_eq!(found.digest(), manifest().digest());
    }
    let server = FaultServer::start(|_| Reply::new(404));
    let error = repository(&Client::new(quick()), &server, "app").resolve(&tag("1")).expect_err("not there");
    assert!(matches!(error.cause(), Cause::Answer(answer) if answer.status == 404), "{error}");
}

#[test]
fn the_next_page_is_found_among_all_links() {
    let server = FaultServer::start(|request| match request.path.contains("p=2") {
        true => Reply::new(200).body(r#"{"tags": ["b"]}"#),
        false => Reply::new(200)
            .header("Link", r#"<?p=0>;rel="first""#)
            .header("Link", r#"<?p=1>;rel="prev",<?p=2>;rel="next""#)
            .body(r#"{"tags": ["a"]}"#),
    });
    assert_eq!(repository(&Client::new(quick()), &server, "app").tags().expect("listed"), ["a", "b"]);
}

#[test]
fn loopback_is_never_proxied_and_what_the_list_covers_is_not() {
    let server = FaultServer::start(|_| Reply::new(200).body(r#"{"tags": []}"#));
    let proxy = FaultServer::start(|_| Reply::new(403));
    let transport = |list: &str| TransportOptions {
        http_proxy: Some(Secret::new(format!("http://{}", proxy.address()))),
        no_proxy: Some(list.to_owned()),
        ..quick().transport
    };
    let given = BTreeMap::new();
    let credentials = Credentials { given, ..Credentials::default() };
    let client = |list: &str, plain: &[&str]| {
        let schemes = Schemes { plain_http: plain.iter().map(ToString::to_string).collect(), ..Schemes::default() };
        let credentials = credentials.clone();
        Client::new(ClientOptions { transport: transport(list), schemes, credentials, ..quick() })
    };
    let port = server.address().rsplit(':').next().expect("a port");
    for host in [server.address().to_owned(), format!("127.0.0.2:{port}"), format!("a.localhost:{port}")] {
        // Whether somebody listens there is the system's matter.
        let _ = client("", &[]).repository(&format!("{host}/a").parse().expect("a name")).expect("a host").tags();
    }
    assert_eq!(proxy.requests().len(), 0);
    let far = ["registry.corp.invalid", "other.invalid"];
    let ask = |registry: &str| {
        let reference: Reference = format!("{registry}/a").parse().expect("a name");
        let _ = client("corp.invalid", &far).repository(&reference).expect("a host").tags();
    };
    ask(far[0]);
    assert_eq!(proxy.requests().len(), 0);
    ask(far[1]);
    assert_eq!(proxy.requests().len(), 1);
}
