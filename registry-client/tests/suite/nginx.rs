//! An nginx (Debian package nginx-light) between us and a registry: it limits bodies, rates and idle connections, and
//! demands a certificate.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fixtures::registry::{Nginx, Registry, make_certificate};
use oci_spec::image::MediaType;
use registry_client::*;

use crate::support::*;

fn reference(address: &str) -> Reference {
    format!("{address}/app:1").parse().expect("a reference")
}

/// An image with a layer that is larger than three chunks.
fn image(seed: &str) -> MemoryImage {
    let image = MemoryImage::empty();
    let config = image.add_blob(MediaType::ImageConfig, b"{}".to_vec());
    let layer = image.add_blob(MediaType::ImageLayer, noise(seed, 13_000_000));
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer],
        "mediaType": "application/vnd.oci.image.manifest.v1+json"});
    image.set_top(Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest"));
    image
}

fn push(client: &Client, image: &MemoryImage, address: &str) -> Result<Copied, Error> {
    let destination = RegistryDestination::new(client, &reference(address))?;
    copy(image, &destination, &CopyOptions::default(), &Silent)
}

fn pull(client: &Client, address: &str) -> Result<MemoryImage, Error> {
    let image = MemoryImage::empty();
    let source = RegistrySource::new(client, &reference(address))?;
    copy(&source, &image, &CopyOptions::default(), &Silent)?;
    Ok(image)
}

#[test]
fn a_body_limit_makes_a_push_go_in_chunks_and_one_below_a_chunk_is_told() {
    let (registry, image) = (Registry::open(), image("chunks"));
    let nginx = Nginx::before(&registry, "", "client_max_body_size 5m;", "");
    let client = Client::new(quick());
    push(&client, &image, nginx.address()).expect("pushed in chunks");
    assert!(pull(&client, nginx.address()).expect("pulled").blobs() == image.blobs());
    let other = Registry::open();
    let nginx = Nginx::before(&other, "", "client_max_body_size 1m;", "");
    let error = push(&client, &image, nginx.address()).expect_err("no chunk is small enough");
    assert!(error.to_string().contains("413"), "{error}");
}

#[test]
fn a_rate_limit_is_waited_for() {
    #[derive(Default)]
    struct Retries(AtomicUsize);
    impl Progress for Retries {
        fn retrying(&self, _: &str, cause: &str, _: Duration) {
            assert!(cause.contains("429"), "{cause}");
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let registry = Registry::open();
    let http = "limit_req_zone $server_addr zone=all:1m rate=50r/s;";
    let nginx =
        Nginx::before(&registry, http, "client_max_body_size 0;\nlimit_req zone=all;\nlimit_req_status 429;", "");
    let retries = Arc::new(Retries::default());
    let progress: Arc<dyn Progress> = retries.clone();
    let retry = RetryPolicy { tries: 16, base_wait: Duration::from_millis(5), ..quick().retry };
    let client = Client::new(ClientOptions { retry, progress, ..quick() });
    let image = image("rate");
    push(&client, &image, nginx.address()).expect("pushed slowly");
    assert!(pull(&client, nginx.address()).expect("pulled slowly").blobs() == image.blobs());
    assert!(retries.0.load(Ordering::SeqCst) > 0, "no limit was met");
}

#[test]
fn connections_that_the_proxy_closes_when_idle_harm_nothing() {
    let (registry, image) = (Registry::open(), image("idle"));
    // Closed a moment after each answer, mostly while they lie in our pool.
    let nginx = Nginx::before(&registry, "", "client_max_body_size 0;\nkeepalive_timeout 1ms;", "");
    let client = Client::new(quick());
    for _ in 0..3 {
        push(&client, &image, nginx.address()).expect("pushed");
        assert!(pull(&client, nginx.address()).expect("pulled").blobs() == image.blobs());
    }
    let repository = client.repository(&reference(nginx.address())).expect("a host");
    for _ in 0..100 {
        repository.resolve(&Selector::Tag("1".to_owned())).expect("resolved");
    }
}

#[test]
fn a_proxy_that_demands_a_certificate_lets_in_who_has_it() {
    let (files, registry, image) = (tempfile::tempdir().expect("a directory"), Registry::open(), image("mtls"));
    let (server, server_key) = make_certificate(files.path(), "server");
    let (ours, our_key) = make_certificate(files.path(), "ours");
    let (stranger, stranger_key) = make_certificate(files.path(), "stranger");
    let block = format!(
        "client_max_body_size 0;\nssl_certificate {};\nssl_certificate_key {};\nssl_client_certificate {};\n\
         ssl_verify_client on;",
        server.display(),
        server_key.display(),
        ours.display()
    );
    let nginx = Nginx::before(&registry, "", &block, "ssl");
    let with = |certificate: &std::path::Path, key: &std::path::Path| {
        let directory = files.path().join("certs.d/proxy.example");
        std::fs::create_dir_all(&directory).expect("made");
        let text = format!(
            "server = \"https://{}\"\nca = \"{}\"\nclient = [[\"{}\", \"{}\"]]",
            nginx.address(),
            server.display(),
            certificate.display(),
            key.display()
        );
        std::fs::write(directory.join("hosts.toml"), text).expect("written");
        let hosts = Hosts::load(&[], &[files.path().join("certs.d")]).expect("understood");
        Client::new(ClientOptions { hosts, ..quick() })
    };
    push(&with(&ours, &our_key), &image, "proxy.example").expect("pushed");
    assert!(pull(&with(&ours, &our_key), "proxy.example").expect("pulled").blobs() == image.blobs());
    let error = pull(&with(&stranger, &stranger_key), "proxy.example").err().expect("a stranger");
    assert!(error.to_string().contains("400"), "{error}");
}
