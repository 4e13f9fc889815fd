//! Pull and push against Debian's docker-registry, with skopeo as the other opinion.

use std::collections::BTreeMap;

use crate::support::*;
use fixtures::registry::{PASSWORD, Registry, USER};
use registry_client::*;

fn credentials(registry: &Registry, password: &str) -> Credentials {
    let credential = Credential::Password { user: USER.to_owned(), password: Secret::new(password) };
    Credentials { given: BTreeMap::from([(registry.address().to_owned(), credential)]), ..Credentials::default() }
}

fn client(credentials: Credentials) -> Client {
    Client::new(ClientOptions { credentials, ..quick() })
}

/// Pushes an image and pulls it again; what comes back is what went.
fn round_trip(client: &Client, registry: &Registry, name: &str) {
    let image = MemoryImage::sample(name);
    let reference: Reference = format!("{}/{name}:v1", registry.address()).parse().expect("a reference");
    let destination = RegistryDestination::new(client, &reference).expect("a host");
    let copied = copy(&image, &destination, &CopyOptions::default(), &Silent).expect("pushed");
    assert_eq!((copied.sent, copied.skipped), (3, 0));
    let again = copy(&image, &destination, &CopyOptions::default(), &Silent).expect("pushed again");
    assert_eq!((again.sent, again.skipped), (0, 3));
    let pulled = MemoryImage::empty();
    let source = RegistrySource::new(client, &reference).expect("a host");
    let copied = copy(&source, &pulled, &CopyOptions::default(), &Silent).expect("pulled");
    assert_eq!(*copied.manifest.digest(), image.digest());
    assert!(pulled.blobs() == image.blobs());
}

#[test]
fn what_is_pushed_to_an_open_registry_comes_back() {
    let registry = Registry::open();
    round_trip(&client(Credentials::default()), &registry, "team/app");
}

#[test]
fn what_is_pushed_with_a_password_comes_back() {
    let registry = Registry::with_password();
    round_trip(&client(credentials(&registry, PASSWORD)), &registry, "app");
}

#[test]
fn what_is_pushed_with_tokens_comes_back() {
    let Some(registry) = Registry::with_tokens(60) else { return };
    round_trip(&client(credentials(&registry, PASSWORD)), &registry, "app");
    assert_eq!(
        registry.token_log().lines().filter(|line| line.contains("pull,push")).count(),
        1,
        "{}",
        registry.token_log()
    );
}

fn reference(registry: &Registry, name: &str) -> Reference {
    format!("{}/{name}", registry.address()).parse().expect("a reference")
}

fn push(client: &Client, image: &MemoryImage, reference: &Reference) -> Result<Copied, Error> {
    let destination = RegistryDestination::new(client, reference).expect("a host");
    copy(image, &destination, &CopyOptions::default(), &Silent)
}

/// Asserts that a copy from one repository to another sends nothing.
#[track_caller]
fn assert_mounted(client: &Client, from: Reference, to: Reference) {
    push(client, &MemoryImage::sample("mount"), &from).expect("pushed");
    let source = RegistrySource::new(client, &from).expect("a host");
    let destination = RegistryDestination::new(client, &to).expect("a host");
    let copied = copy(&source, &destination, &CopyOptions::default(), &Silent).expect("copied");
    assert_eq!((copied.sent, copied.skipped), (0, 3));
}

#[test]
fn blobs_of_another_repository_are_mounted_not_sent() {
    let registry = Registry::open();
    assert_mounted(
        &client(Credentials::default()),
        reference(&registry, "team/source:1"),
        reference(&registry, "other/target:1"),
    );
}

#[test]
fn a_mount_between_repositories_works_with_tokens() {
    let Some(registry) = Registry::with_tokens(60) else { return };
    assert_mounted(
        &client(credentials(&registry, PASSWORD)),
        reference(&registry, "a/source:1"),
        reference(&registry, "z/target:1"),
    );
}

#[test]
fn who_has_no_credentials_may_pull_with_an_anonymous_token_and_is_told_to_log_in_for_more() {
    let Some(registry) = Registry::with_tokens(60) else { return };
    let name = reference(&registry, "app:1");
    let image = MemoryImage::sample("anonymous");
    push(&client(credentials(&registry, PASSWORD)), &image, &name).expect("pushed");
    let anonymous = client(Credentials::default());
    let pulled = MemoryImage::empty();
    let source = RegistrySource::new(&anonymous, &name).expect("a host");
    copy(&source, &pulled, &CopyOptions::default(), &Silent).expect("pulled");
    assert!(pulled.blobs() == image.blobs());
    let error = push(&anonymous, &MemoryImage::sample("more"), &name).expect_err("anonymous push");
    assert!(matches!(error.cause(), Cause::Unauthorized { had_credentials: false, .. }), "{error}");
    assert!(error.hint().expect("a hint").contains(&format!("nacre login {}", registry.address())));
}

#[test]
fn an_identity_token_pushes_too() {
    let Some(registry) = Registry::with_tokens(60) else { return };
    let token = Credential::IdentityToken(Secret::new(format!("refresh-{USER}")));
    let given = BTreeMap::from([(registry.address().to_owned(), token)]);
    let client = client(Credentials { given, ..Credentials::default() });
    push(&client, &MemoryImage::sample("identity"), &reference(&registry, "app:1")).expect("pushed");
    assert!(registry.token_log().contains("grant=refresh_token"), "{}", registry.token_log());
}

#[test]
fn only_a_login_that_works_is_stored_and_logging_out_forgets_it() {
    let registries = [Some(Registry::with_password()), Registry::with_tokens(60)];
    for registry in registries.into_iter().flatten() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("new/auth.json");
        let logins = Credentials { files: vec![file.clone()], ..Credentials::default() };
        let client = client(logins.clone());
        let credential =
            |password: &str| Credential::Password { user: USER.to_owned(), password: Secret::new(password) };
        let error = client.log_in(registry.address(), &credential("wrong"), &file).expect_err("a wrong password");
        assert!(matches!(error.cause(), Cause::Unauthorized { had_credentials: true, .. }), "{error}");
        assert!(!file.exists());
        client.log_in(registry.address(), &credential(PASSWORD), &file).expect("logged in");
        push(&client, &MemoryImage::sample("login"), &reference(&registry, "app:1")).expect("pushed");
        assert!(logins.erase(&file, registry.address()).expect("logged out"));
        assert_eq!(logins.find(registry.address(), "app").expect("readable"), None);
    }
}

#[test]
fn tags_are_listed_resolved_and_deleted() {
    let registry = Registry::open();
    let client = client(Credentials::default());
    for tag in ["b", "a", "c"] {
        push(&client, &MemoryImage::sample(tag), &reference(&registry, &format!("app:{tag}"))).expect("pushed");
    }
    let repository = client.repository(&reference(&registry, "app")).expect("a host");
    let mut tags = repository.tags().expect("listed");
    // The specification wants them sorted; this registry does not.
    tags.sort();
    assert_eq!(tags, ["a", "b", "c"]);
    let resolved = repository.resolve(&Selector::Tag("a".to_owned())).expect("resolved");
    let manifest = repository.manifest(&Selector::Tag("a".to_owned())).expect("fetched");
    assert_eq!(resolved, manifest.descriptor());
    repository.delete_manifest(&Selector::Digest(resolved.digest().clone())).expect("deleted");
    let error = repository.manifest(&Selector::Tag("a".to_owned())).expect_err("it was deleted").to_string();
    assert!(error.contains("404 MANIFEST_UNKNOWN"), "{error}");
}

#[test]
fn a_reference_with_a_digest_is_pulled_by_it_and_pushed_only_if_it_matches() {
    let registry = Registry::open();
    let client = client(Credentials::default());
    let (image, other) = (MemoryImage::sample("pinned"), MemoryImage::sample("other"));
    let pinned = reference(&registry, &format!("app@{}", image.digest()));
    push(&client, &image, &pinned).expect("pushed");
    assert!(matches!(push(&client, &other, &pinned).expect_err("another image").cause(), Cause::DigestMismatch { .. }));
    let source = RegistrySource::new(&client, &pinned).expect("a host");
    assert_eq!(*source.manifest(None).expect("pulled").digest(), image.digest());
}

#[test]
fn tls_is_verified_against_the_authorities_we_trust() {
    let (registry, authority) = Registry::with_tls();
    let schemes = Schemes { https: vec![registry.address().to_owned()], ..Schemes::default() };
    let options = |extra_roots_pem| ClientOptions {
        schemes: schemes.clone(),
        transport: TransportOptions { extra_roots_pem, ..TransportOptions::default() },
        ..quick()
    };
    let (image, name) = (MemoryImage::sample("tls"), reference(&registry, "app:1"));
    push(&Client::new(options(vec![authority])), &image, &name).expect("pushed");
    let error = push(&Client::new(options(Vec::new())), &image, &name).expect_err("an unknown authority");
    assert!(matches!(error.cause(), Cause::Tls { .. }), "{error}");
    assert!(error.hint().expect("a hint").contains("certificate authority"), "{error}");
    let open = Registry::open();
    let schemes = Schemes { https: vec![open.address().to_owned()], ..Schemes::default() };
    let client = Client::new(ClientOptions { schemes, ..quick() });
    let error = push(&client, &image, &reference(&open, "app:1")).expect_err("TLS to plain http");
    assert!(error.hint().expect("a hint").contains("plain http"), "{error}");
}
