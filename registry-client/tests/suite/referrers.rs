//! Artifacts and what refers to an image, with registries that know of referrers and with those that do not.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use fixtures::fault::{FaultServer, Reply, Request};
use fixtures::registry::Registry;
use oci_spec::image::{Descriptor, MediaType};
use registry_client::*;
use serde_json::{Value, json};

use crate::support::*;

fn repository(address: &str) -> Repository {
    let reference: Reference = format!("{address}/app:1").parse().expect("a reference");
    Client::new(quick()).repository(&reference).expect("a host")
}

/// An open registry with an image, which is the subject.
fn subject() -> (Registry, Repository, Descriptor) {
    let registry = Registry::open();
    let reference: Reference = format!("{}/app:1", registry.address()).parse().expect("a reference");
    let client = Client::new(quick());
    let destination = RegistryDestination::new(&client, &reference).expect("a host");
    let image = MemoryImage::sample("subject");
    copy(&image, &destination, &CopyOptions::default(), &Silent).expect("pushed");
    let repository = client.repository(&reference).expect("a host");
    (registry, repository, image.top().expect("it has a manifest").descriptor())
}

fn attach(repository: &Repository, subject: &Descriptor, kind: &str, text: &str) -> Result<Manifest, Error> {
    let content = text.as_bytes().to_vec();
    let layer = Descriptor::new(MediaType::from("text/plain"), content.len() as u64, digest_of(&content));
    repository.attach(
        &Artifact {
            artifact_type: kind.to_owned(),
            subject: Some(subject.clone()),
            layers: vec![(layer, &content)],
            annotations: BTreeMap::from([("org.example.note".to_owned(), text.to_owned())]),
        },
        None,
    )
}

fn digests(referrers: &[Descriptor]) -> Vec<String> {
    let mut digests: Vec<String> = referrers.iter().map(|referrer| referrer.digest().to_string()).collect();
    digests.sort();
    digests
}

#[test]
fn what_is_attached_is_listed_and_no_longer_when_it_is_deleted() {
    let (_registry, repository, subject) = subject();
    assert_eq!(repository.referrers(subject.digest(), None).expect("listed"), []);
    let one = attach(&repository, &subject, "text/x-one", "first").expect("attached");
    let two = attach(&repository, &subject, "text/x-two", "second").expect("attached");
    assert_eq!(attach(&repository, &subject, "text/x-two", "second").expect("attached again"), two);
    let all = repository.referrers(subject.digest(), None).expect("listed");
    let mut expected = [one.digest().to_string(), two.digest().to_string()];
    expected.sort();
    assert_eq!(digests(&all), expected);
    let of_two = repository.referrers(subject.digest(), Some("text/x-two")).expect("listed");
    assert_eq!(digests(&of_two), [two.digest().to_string()]);
    assert_eq!(of_two[0].annotations().as_ref().expect("told")["org.example.note"], "second");
    let delete = |manifest: &Manifest| repository.delete_manifest(&Selector::Digest(manifest.digest().clone()));
    delete(&one).expect("deleted");
    assert_eq!(digests(&repository.referrers(subject.digest(), None).expect("listed")), [two.digest().to_string()]);
    delete(&two).expect("deleted");
    assert_eq!(repository.referrers(subject.digest(), None).expect("listed"), []);
    let fallback = format!("sha256-{}", subject.digest().digest());
    assert!(repository.manifest(&Selector::Tag(fallback)).is_err(), "an empty list is none");
    repository.manifest(&Selector::Tag("1".to_owned())).expect("the subject stays");
}

#[test]
fn artifacts_attached_at_once_are_all_listed() {
    let (_registry, repository, subject) = subject();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (repository, subject) = (&repository, &subject);
            scope.spawn(move || attach(repository, subject, "text/x-note", &number.to_string()).expect("attached"));
        }
    });
    assert_eq!(repository.referrers(subject.digest(), None).expect("listed").len(), 6);
}

#[test]
fn an_artifact_comes_back_as_it_was_from_a_file() {
    let (_registry, repository, subject) = subject();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), noise("file", 2_000_000)).expect("written");
    let content = FileContent::new(file.path(), "application/x-data").expect("read");
    let artifact = |content| Artifact {
        artifact_type: "application/x-data".to_owned(),
        subject: Some(subject.clone()),
        layers: vec![content],
        annotations: BTreeMap::new(),
    };
    let made = artifact((content.descriptor().clone(), &content as &dyn Content));
    let manifest = repository.attach(&made, Some("data")).expect("attached");
    assert_eq!(repository.manifest(&Selector::Tag("data".to_owned())).expect("tagged"), manifest);
    let mut bytes = Vec::new();
    let mut back = repository.open_blob(content.descriptor()).expect("there");
    std::io::Read::read_to_end(&mut back, &mut bytes).expect("right");
    assert!(bytes == noise("file", 2_000_000));
    std::fs::write(file.path(), noise("other", 2_000_000)).expect("written");
    let mut changed = content.open().expect("opened");
    assert!(std::io::copy(&mut changed, &mut std::io::sink()).is_err(), "the file changed");
}

/// An index with one entry of this type.
fn page(kind: &str) -> String {
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": kind,
        "digest": digest_of(kind.as_bytes()).as_ref(), "size": 1});
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]})
        .to_string()
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[test]
fn a_list_of_referrers_is_read_page_by_page_and_filtered() {
    let server = FaultServer::start(|request| {
        let reply = Reply::new(200).header("Content-Type", INDEX);
        match request.path.contains("page=2") {
            true => reply.body(page("text/two")),
            false => reply.header("Link", r#"<?page=2>; rel="next""#).body(page("text/one")),
        }
    });
    let repository = repository(server.address());
    assert_eq!(repository.referrers(&digest_of(b"x"), None).expect("listed").len(), 2);
    assert!(server.requests()[0].path.starts_with("/v2/app/referrers/sha256:"));
    let two = repository.referrers(&digest_of(b"x"), Some("text/two")).expect("listed");
    assert_eq!(digests(&two), [digest_of(b"text/two").to_string()], "the registry did not filter, so we do");
    assert!(server.requests()[2].path.ends_with("?artifactType=text/two"), "{}", server.requests()[2].path);
}

/// A registry of that many pages of referrers with an annotation of some length each.
fn paged(pages: usize, entries: usize, annotation_bytes: usize) -> FaultServer {
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "text/x-note",
        "digest": digest_of(b"note").as_ref(), "size": 1, "annotations": {"text": "x".repeat(annotation_bytes)}});
    let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": vec![entry; entries]}).to_string();
    FaultServer::start(move |request| {
        let page = request.path.split_once("page=").map_or(1, |(_, page)| page.parse().expect("a number"));
        let reply = Reply::new(200).header("Content-Type", INDEX).body(list.clone());
        if page < pages { reply.header("Link", format!("<?page={}>; rel=\"next\"", page + 1)) } else { reply }
    })
}

#[test]
fn a_list_of_referrers_is_bounded_by_its_size_and_types_alone_take_little() {
    let heavy = paged(12, 4, 1 << 20);
    let error = repository(heavy.address()).referrers(&digest_of(b"x"), None).expect_err("too large").to_string();
    assert!(error.contains("larger than 32 MiB") && heavy.requests().len() < 10, "{error}");
    let bare = |server: &FaultServer| {
        let reference: Reference = format!("{}/app:1", server.address()).parse().expect("a reference");
        RegistrySource::new(&Client::new(quick()), &reference).expect("a host").bare_referrers(&digest_of(b"x"))
    };
    let listed = bare(&heavy).expect("they are few");
    assert!(listed.len() == 48 && listed.iter().all(|one| one.annotations().is_none()));
    assert_eq!(listed[0].artifact_type().as_ref().map(ToString::to_string).as_deref(), Some("text/x-note"));
    let endless = paged(usize::MAX, 8000, 1);
    assert!(bare(&endless).expect_err("endless").to_string().contains("larger than 32 MiB"));
    assert!(endless.requests().len() < 20);
}

#[test]
fn web_pages_and_refusals_are_told_apart() {
    let server = FaultServer::start(|request| match request.path.contains("/referrers/") {
        true => Reply::new(200).header("Content-Type", "text/html").body("<html>"),
        false => Reply::new(200).header("Content-Type", INDEX).body(page("text/tagged")),
    });
    let found = repository(server.address()).referrers(&digest_of(b"x"), None).expect("listed");
    assert_eq!(digests(&found), [digest_of(b"text/tagged").to_string()]);
    let server = FaultServer::start(|_| Reply::new(403));
    assert!(repository(server.address()).referrers(&digest_of(b"x"), None).is_err());
}

/// A registry of manifests alone that heeds `If-Match`, and perhaps knows subjects.
#[derive(Default)]
struct Manifests {
    stored: Mutex<BTreeMap<String, Vec<u8>>>,
    knows_subjects: bool,
    /// So many changes of the list are overtaken by somebody else's.
    overtaken: AtomicUsize,
}

impl Manifests {
    fn answer(&self, request: &Request) -> Reply {
        let name = request.path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut stored = self.stored.lock().expect("no panic");
        match (request.method.as_str(), request.path.contains("/manifests/")) {
            ("POST", false) => Reply::new(202).header("Location", "/v2/app/blobs/uploads/id"),
            ("PUT", false) => Reply::new(201),
            (_, false) => Reply::new(404),
            ("PUT", true) => {
                let current = stored.get(&name).map(|bytes| digest_of(bytes).to_string());
                if name.starts_with("sha256-") && self.overtaken.load(Ordering::SeqCst) > 0 {
                    let others = self.overtaken.fetch_sub(1, Ordering::SeqCst);
                    stored.insert(name, page(&format!("text/other-{others}")).into_bytes());
                    return Reply::new(412);
                }
                if request.header("if-match").is_some_and(|wanted| Some(wanted.to_owned()) != current) {
                    return Reply::new(412);
                }
                let reply = Reply::new(201);
                let subject = serde_json::from_slice::<Value>(&request.body).expect("JSON")["subject"].clone();
                stored.insert(name, request.body.clone());
                match subject["digest"].as_str().filter(|_| self.knows_subjects) {
                    Some(subject) => reply.header("OCI-Subject", subject),
                    None => reply,
                }
            }
            (_, true) => match stored.get(&name) {
                Some(bytes) => Reply::new(200)
                    .header("ETag", digest_of(bytes).to_string())
                    .header("Content-Type", INDEX)
                    .body(bytes.clone()),
                None => Reply::new(404),
            },
        }
    }
}

fn manifests(manifests: Manifests) -> (FaultServer, std::sync::Arc<Manifests>) {
    let manifests = std::sync::Arc::new(manifests);
    let answering = std::sync::Arc::clone(&manifests);
    (FaultServer::start(move |request| answering.answer(request)), manifests)
}

#[test]
fn a_registry_that_knows_subjects_keeps_its_list_itself() {
    let (server, stored) = manifests(Manifests { knows_subjects: true, ..Manifests::default() });
    let subject = Descriptor::new(MediaType::ImageManifest, 1, digest_of(b"x"));
    attach(&repository(server.address()), &subject, "text/x-note", "n").expect("attached");
    assert_eq!(stored.stored.lock().expect("no panic").len(), 1);
    assert_eq!(server.count("PUT", "/manifests/sha256-"), 0);
}

#[test]
fn a_change_that_was_overtaken_is_made_again_and_loses_nothing() {
    let (server, stored) = manifests(Manifests { overtaken: 2.into(), ..Manifests::default() });
    let subject = Descriptor::new(MediaType::ImageManifest, 1, digest_of(b"x"));
    let repository = repository(server.address());
    let note = attach(&repository, &subject, "text/x-note", "n").expect("attached");
    let listed = repository.referrers(subject.digest(), None).expect("listed");
    let mut expected = [digest_of(b"text/other-1").to_string(), note.digest().to_string()];
    expected.sort();
    assert_eq!(digests(&listed), expected);
    stored.overtaken.store(1000, Ordering::SeqCst);
    let error = attach(&repository, &subject, "text/x-note", "m").expect_err("always overtaken");
    assert!(error.to_string().contains("again and again"), "{error}");
}

#[test]
fn limits_are_asked_for_without_being_counted() {
    let server = FaultServer::start(|_| {
        Reply::new(200)
            .header("RateLimit-Limit", "100;w=21600")
            .header("RateLimit-Remaining", "76;w=21600")
            .header("Docker-RateLimit-Source", "192.0.2.1")
    });
    let limits = repository(server.address()).limits(&Selector::Tag("latest".to_owned())).expect("told");
    let limits = limits.expect("it has some");
    assert_eq!((limits.limit, limits.remaining, limits.source.as_deref()), (100, Some(76), Some("192.0.2.1")));
    assert_eq!(server.count("HEAD", ""), server.requests().len());
    let (_registry, repository, subject) = subject();
    assert_eq!(repository.limits(&Selector::Digest(subject.digest().clone())).expect("told"), None);
}

#[test]
fn tags_are_listed_from_one_on_and_no_more_than_asked_for() {
    let (_registry, repository, subject) = subject();
    let manifest = repository.manifest(&Selector::Digest(subject.digest().clone())).expect("there");
    for tag in ["2", "3", "4"] {
        repository.put_manifest(&manifest, &Selector::Tag(tag.to_owned())).expect("tagged");
    }
    assert_eq!(repository.tags().expect("listed").len(), 4);
    let server = FaultServer::start(|request| match request.path.as_str() {
        "/v2/app/tags/list?n=2&last=b" => {
            Reply::new(200).header("Link", r#"<?n=2&last=d>; rel="next""#).body(r#"{"tags":["c","d"]}"#)
        }
        _ => Reply::new(500),
    });
    assert_eq!(self::repository(server.address()).tags_after(Some("b"), 2).expect("listed"), ["c", "d"]);
}

#[test]
fn a_tag_is_deleted_and_what_it_points_to_stays() {
    let (_registry, repository, subject) = subject();
    let by_digest = Selector::Digest(subject.digest().clone());
    let manifest = repository.manifest(&by_digest).expect("there");
    repository.put_manifest(&manifest, &Selector::Tag("other".to_owned())).expect("tagged");
    repository.delete_tag("other").expect("deleted");
    assert_eq!(repository.tags().expect("listed"), ["1"]);
    assert_eq!(repository.manifest(&by_digest).expect("it stays"), manifest);
    let error = repository.delete_tag("other").expect_err("it is gone");
    assert!(error.to_string().contains("404"), "{error}");
}

/// A registry that deletes by digest alone, or (`refuses`) not at all.
fn by_digest_alone(refuses: bool) -> (FaultServer, std::sync::Arc<Manifests>) {
    let manifests = std::sync::Arc::new(Manifests::default());
    let answering = std::sync::Arc::clone(&manifests);
    let server = FaultServer::start(move |request| {
        let name = request.path.rsplit('/').next().unwrap_or_default();
        match request.method.as_str() {
            "DELETE" if refuses || !name.starts_with("sha256:") => Reply::new(405),
            "DELETE" => {
                let mut stored = answering.stored.lock().expect("no panic");
                stored.retain(|_, bytes| digest_of(bytes).as_ref() != name);
                Reply::new(202)
            }
            _ => answering.answer(request),
        }
    });
    (server, manifests)
}

#[test]
fn where_only_digests_are_deleted_a_tag_goes_without_its_manifest() {
    for refuses in [false, true] {
        let (server, manifests) = by_digest_alone(refuses);
        let image = page("text/x");
        for name in ["tag", "other"] {
            manifests.stored.lock().expect("no panic").insert(name.to_owned(), image.clone().into_bytes());
        }
        let outcome = repository(server.address()).delete_tag("tag");
        let stored = manifests.stored.lock().expect("no panic");
        assert_eq!(stored.get("other").map(Vec::as_slice), Some(image.as_bytes()));
        match refuses {
            false => assert!(outcome.is_ok() && !stored.contains_key("tag"), "{outcome:?}"),
            true => {
                assert!(outcome.expect_err("refused").to_string().contains("405"));
                assert_eq!(stored.get("tag").map(Vec::as_slice), Some(image.as_bytes()), "it is put back");
            }
        }
    }
}
