//! Where credentials come from and are kept: given by the caller, Docker's `config.json`, containers' `auth.json`,
//! and the credential helpers that these name.
//!
//! Invariant: a file is replaced whole, readable by its owner alone, and what we do not know in it stays as it was.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::draft::Draft;
use crate::error::{Cause, Error};
use crate::secret::Secret;

/// What proves who one is to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user name and its password or personal token.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token of the OAuth2 flow.
    IdentityToken(Secret),
    /// A bearer token that is sent to the registry as it is.
    RegistryToken(Secret),
}

/// Credentials to look through, the first match wins: those given, then the files in order.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// By registry (`ghcr.io`, `docker.io`) or repository prefix (`ghcr.io/me`).
    pub given: BTreeMap<String, Credential>,
    /// `config.json` and `auth.json` files; one that is missing is empty.
    pub files: Vec<PathBuf>,
    /// Where credential helpers lie, mostly the directories of `PATH`.
    pub helper_directories: Vec<PathBuf>,
}

/// Docker's name for Docker Hub in its files and helpers.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

impl Credentials {
    /// The credential for a repository at a registry, if there is one.
    ///
    /// # Errors
    /// If a file is not understood or a helper fails.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Option<Credential>, Error> {
        let doing = || format!("find the credentials for {registry}");
        let keys = keys(registry, repository);
        if let Some(given) = keys.iter().find_map(|key| self.given.get(key)) {
            return Ok(Some(given.clone()));
        }
        for path in &self.files {
            let Some(file) = CredentialFile::read(path).map_err(|cause| Error::new(doing(), cause))? else { continue };
            if let Some(found) =
                file.find(&keys, registry, &self.helpers()).map_err(|cause| Error::new(doing(), cause))?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The files that hold a credential for a registry, themselves or by the helper that they name.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn files_with(&self, registry: &str) -> Result<Vec<&Path>, Error> {
        let mut found = Vec::new();
        for path in &self.files {
            let alone = Self { given: BTreeMap::new(), files: vec![path.clone()], ..self.clone() };
            found.extend(alone.find(registry, "")?.map(|_| path.as_path()));
        }
        Ok(found)
    }

    /// Stores a credential for a registry in `path`, or in the helper that this file names for it.
    ///
    /// # Errors
    /// If the file cannot be understood or replaced, or the helper fails.
    pub fn store(&self, path: &Path, registry: &str, credential: &Credential) -> Result<(), Error> {
        let stored = change(path, registry, Some(credential), &self.helpers());
        stored.map(|_| ()).map_err(|cause| Error::new(format!("store the credentials for {registry}"), cause))
    }

    /// Forgets what `path` or its helper holds for a registry (log out); says whether there was anything.
    ///
    /// # Errors
    /// If the file cannot be understood or replaced, or the helper fails.
    pub fn erase(&self, path: &Path, registry: &str) -> Result<bool, Error> {
        let erased = change(path, registry, None, &self.helpers());
        erased.map_err(|cause| Error::new(format!("forget the credentials for {registry}"), cause))
    }

    fn helpers(&self) -> Programs<'_> {
        Programs(&self.helper_directories)
    }
}

/// The keys under which files may hold a credential, the most special first (containers-auth.json(5)).
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut prefix = repository;
    while !prefix.is_empty() {
        keys.push(format!("{registry}/{prefix}"));
        prefix = prefix.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    keys.push(registry.to_owned());
    keys
}

/// The key that Docker and its helpers use for a registry.
fn docker_key(registry: &str) -> &str {
    if registry == "docker.io" { DOCKER_HUB_KEY } else { registry }
}

/// The keys that helpers are asked with: podman keeps Docker Hub's credential under the name that it has in references.
fn helper_keys(registry: &str) -> impl Iterator<Item = &str> {
    [docker_key(registry)].into_iter().chain((docker_key(registry) != registry).then_some(registry))
}

/// `https://index.docker.io/v1/` -> `docker.io`; `https://r.example/v2/` -> `r.example`; others stay.
fn normal_key(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let bare = bare.map_or(key, |rest| rest.split('/').next().unwrap_or_default());
    match bare {
        "index.docker.io" | "registry-1.docker.io" | "index.docker.io/v1" => "docker.io".to_owned(),
        other => other.trim_end_matches('/').to_owned(),
    }
}

/// One file, parsed as far as we know it.
struct CredentialFile {
    path: PathBuf,
    json: serde_json::Map<String, Value>,
}

/// Far more than any real file; keeps a wrong path from filling the memory.
const FILE_LIMIT_BYTES: u64 = 16 << 20;

impl CredentialFile {
    fn read(path: &Path) -> Result<Option<Self>, Cause> {
        let disk = |source| Cause::Disk { path: path.to_owned(), source };
        let bytes = match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > FILE_LIMIT_BYTES => {
                return Err(Cause::Credential(format!("{} is too large", path.display())));
            }
            Ok(_) => std::fs::read(path).map_err(disk)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk(error)),
        };
        if bytes.trim_ascii().is_empty() {
            return Ok(Some(Self { path: path.to_owned(), json: serde_json::Map::new() }));
        }
        // serde_json's messages quote no more than a type, but a line and column suffice.
        let json = serde_json::from_slice(&bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Cause::Credential(format!("{} is not a JSON object (line {line}, column {column})", path.display()))
        })?;
        Ok(Some(Self { path: path.to_owned(), json }))
    }

    fn find(&self, keys: &[String], registry: &str, helpers: &Programs<'_>) -> Result<Option<Credential>, Cause> {
        if let Some(helper) = self.helper_of(registry) {
            for key in helper_keys(registry) {
                if let Some(found) = helpers.find(&helper, key)? {
                    return Ok(Some(found));
                }
            }
        }
        let Some(auths) = self.json.get("auths").and_then(Value::as_object) else { return Ok(None) };
        for key in keys {
            let entry = auths.iter().find(|(name, _)| normal_key(name) == *key);
            if let Some((_, entry)) = entry
                && let Some(found) = self.decode(key, entry)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The helper for a registry: one of its own, else the store for all.
    fn helper_of(&self, registry: &str) -> Option<String> {
        let helpers = self.json.get("credHelpers").and_then(Value::as_object);
        let own =
            helpers.and_then(|all| all.iter().find(|(name, _)| normal_key(name) == registry)).map(|(_, name)| name);
        own.or_else(|| self.json.get("credsStore")).and_then(Value::as_str).filter(|n| !n.is_empty()).map(str::to_owned)
    }

    fn decode(&self, key: &str, entry: &Value) -> Result<Option<Credential>, Cause> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credential::IdentityToken(Secret::new(token))));
        }
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credential::RegistryToken(Secret::new(token))));
        }
        let Some(auth) = text("auth") else {
            let both = text("username").zip(text("password"));
            let plain = |(user, password): (&str, &str)| Credential::Password {
                user: user.to_owned(),
                password: Secret::new(password),
            };
            return Ok(both.map(plain));
        };
        let decoded = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|both| both.split_once(':')) else {
            let path = self.path.display();
            return Err(Cause::Credential(format!("the entry {key} in {path} is not the base64 of user:password")));
        };
        // Docker pads passwords with NUL bytes in some versions.
        let password = Secret::new(password.trim_end_matches('\0'));
        Ok(Some(Credential::Password { user: user.to_owned(), password }))
    }

    fn write(&self) -> Result<(), Cause> {
        let disk = |source| Cause::Disk { path: self.path.clone(), source };
        // A symbolic link to the file, as dotfile managers make them, stays one.
        let target = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let directory = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(disk)?;
        let bytes = serde_json::to_vec_pretty(&self.json).expect("a JSON map has a text");
        let mut draft = Draft::with_mode(directory, 0o600).map_err(disk)?;
        draft.write_all(&bytes).and_then(|()| draft.write_all(b"\n")).map_err(disk)?;
        draft.publish(&target).map_err(disk)
    }
}

/// Puts (`Some`) or removes (`None`) an entry; says whether there was one before.
fn change(path: &Path, registry: &str, credential: Option<&Credential>, helpers: &Programs<'_>) -> Result<bool, Cause> {
    let empty = || CredentialFile { path: path.to_owned(), json: serde_json::Map::new() };
    let mut file = CredentialFile::read(path)?.unwrap_or_else(empty);
    let mut existed = false;
    let helper = file.helper_of(registry);
    if let Some(helper) = &helper {
        for key in helper_keys(registry) {
            let is_there = helpers.find(helper, key)?.is_some();
            existed |= is_there;
            if credential.is_none() && is_there {
                helpers.run(helper, "erase", key.as_bytes())?;
            }
        }
        if let Some(credential) = credential {
            helpers.store(helper, docker_key(registry), credential)?;
        }
    }
    let auths = file.json.entry("auths").or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Some(auths) = auths.as_object_mut() else {
        return Err(Cause::Credential(format!("\"auths\" in {} is not an object", path.display())));
    };
    let before = auths.len();
    auths.retain(|name, _| normal_key(name) != registry);
    let removed = auths.len() < before;
    if let (Some(credential), None) = (credential, &helper) {
        auths.insert(docker_key(registry).to_owned(), encode(credential));
    }
    if removed || (credential.is_some() && helper.is_none()) {
        file.write()?;
    }
    Ok(existed || removed)
}

fn encode(credential: &Credential) -> Value {
    match credential {
        Credential::Password { user, password } => {
            serde_json::json!({ "auth": STANDARD.encode(format!("{user}:{}", password.reveal())) })
        }
        Credential::IdentityToken(token) => serde_json::json!({ "identitytoken": token.reveal() }),
        Credential::RegistryToken(token) => serde_json::json!({ "registrytoken": token.reveal() }),
    }
}

/// What helpers read and write (<https://github.com/docker/docker-credential-helpers#development>).
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireCredential {
    #[serde(default, rename = "ServerURL")]
    server_url: String,
    username: String,
    secret: String,
}

/// The user name by which helpers mark an identity token.
const TOKEN_USER: &str = "<token>";

/// The helper programs, by the directories where they lie.
struct Programs<'a>(&'a [PathBuf]);

impl Programs<'_> {
    fn find(&self, helper: &str, server: &str) -> Result<Option<Credential>, Cause> {
        let Some(output) = self.run(helper, "get", server.as_bytes())? else { return Ok(None) };
        let record: WireCredential = serde_json::from_slice(&output).map_err(|_| {
            Cause::Credential(format!("docker-credential-{helper} get did not answer with a credential"))
        })?;
        Ok(Some(match record.username.as_str() {
            TOKEN_USER => Credential::IdentityToken(Secret::new(record.secret)),
            _ => Credential::Password { user: record.username, password: Secret::new(record.secret) },
        }))
    }

    fn store(&self, helper: &str, server: &str, credential: &Credential) -> Result<(), Cause> {
        let (username, secret) = match credential {
            Credential::Password { user, password } => (user.as_str(), password),
            Credential::IdentityToken(token) => (TOKEN_USER, token),
            Credential::RegistryToken(_) => {
                let what =
                    format!("docker-credential-{helper} keeps passwords and identity tokens, no registry tokens");
                return Err(Cause::Credential(what));
            }
        };
        let record = WireCredential {
            server_url: server.to_owned(),
            username: username.to_owned(),
            secret: secret.reveal().to_owned(),
        };
        let input = serde_json::to_vec(&record).expect("three strings have a JSON text");
        self.run(helper, "store", &input).map(|_| ())
    }

    /// Runs `docker-credential-HELPER VERB`; `None` if it says that it has no such credential.
    fn run(&self, helper: &str, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>, Cause> {
        let name = format!("docker-credential-{helper}");
        let fail = |what: &str| Cause::Credential(format!("{name} {verb} {what}"));
        if helper.contains('/') {
            return Err(fail("is not run: a helper's name has no slash"));
        }
        let program = self.0.iter().map(|directory| directory.join(&name)).find(|program| program.is_file());
        let program = program.ok_or_else(|| fail("cannot be run: there is no such program in PATH"))?;
        let mut command = Command::new(program);
        command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| fail(&format!("does not start: {error}")))?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A helper that does not read its input fails by its status.
        let _ = stdin.write_all(input);
        drop(stdin);
        let output = child.wait_with_output().map_err(|error| fail(&format!("failed: {error}")))?;
        if output.status.success() {
            return Ok(Some(output.stdout));
        }
        let said = String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout });
        // The only way in which the protocol tells absence from failure is this sentence.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let first_line = said.lines().next().unwrap_or_default();
        Err(fail(&format!("failed ({}): {first_line}", output.status)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password { user: user.to_owned(), password: Secret::new(password) }
    }

    fn with_file(json: &str) -> (tempfile::TempDir, Credentials) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("auth.json");
        std::fs::write(&path, json).expect("written");
        (directory, Credentials { files: vec![path], ..Credentials::default() })
    }

    #[test]
    fn the_longest_repository_path_wins() {
        let json = r#"{"auths": {
            "r.example": {"auth": "YTox"}, "r.example/team": {"auth": "Yjoy"}, "r.example/team/app": {"auth": "Yzoz"}}}"#;
        let (_keep, credentials) = with_file(json);
        let find = |repository| credentials.find("r.example", repository).expect("readable");
        assert_eq!(find("team/app"), Some(password("c", "3")));
        assert_eq!(find("team/other"), Some(password("b", "2")));
        assert_eq!(find("teamwork"), Some(password("a", "1")));
        assert_eq!(credentials.find("other.example", "team/app").expect("readable"), None);
    }

    #[test]
    fn every_form_of_an_entry_is_read() {
        for (entry, expected) in [
            (r#"{"username": "me", "password": "p"}"#, Some(password("me", "p"))),
            (r#"{"auth": "bWU6cA==", "username": "other", "password": "x"}"#, Some(password("me", "p"))),
            (r#"{"registrytoken": "t"}"#, Some(Credential::RegistryToken(Secret::new("t")))),
            (r#"{"identitytoken": "t", "auth": "bWU6"}"#, Some(Credential::IdentityToken(Secret::new("t")))),
            (r#"{"username": "me"}"#, None),
            ("{}", None),
        ] {
            let (_keep, credentials) = with_file(&format!(r#"{{"auths": {{"r.example": {entry}}}}}"#));
            assert_eq!(credentials.find("r.example", "a").expect("readable"), expected, "{entry}");
            assert_eq!(credentials.files_with("r.example").expect("readable").len(), usize::from(expected.is_some()));
        }
    }

    #[test]
    fn docker_hub_has_its_own_key() {
        let (_keep, credentials) = with_file(r#"{"auths": {"https://index.docker.io/v1/": {"identitytoken": "t"}}}"#);
        let expected = Some(Credential::IdentityToken(Secret::new("t")));
        assert_eq!(credentials.find("docker.io", "library/app").expect("readable"), expected);
    }

    #[test]
    fn stored_credentials_are_private_found_again_and_leave_the_rest_alone() {
        let (keep, credentials) = with_file(r#"{"auths": {"x.example": {"auth": "YTox"}}, "detachKeys": "ctrl-q"}"#);
        let path = keep.path().join("auth.json");
        credentials.store(&path, "docker.io", &password("me", "p:w")).expect("stored");
        assert_eq!(credentials.find("docker.io", "a").expect("readable"), Some(password("me", "p:w")));
        assert_eq!(credentials.find("x.example", "a").expect("readable"), Some(password("a", "1")));
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(std::fs::read_to_string(&path).expect("text").contains("ctrl-q"));
        assert!(credentials.erase(&path, "docker.io").expect("erased"));
        assert!(!credentials.erase(&path, "docker.io").expect("erased"));
        assert_eq!(credentials.find("docker.io", "a").expect("readable"), None);
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it_and_shows_nothing_of_it() {
        for json in [r#"{"auths": {"r": {"auth": "c2VjcmV0"}}}"#, "secret"] {
            let (_keep, credentials) = with_file(json);
            let error = credentials.find("r", "a").expect_err("broken").to_string();
            assert!(error.contains("auth.json") && !error.contains("secret") && !error.contains("c2VjcmV0"), "{error}");
        }
    }

    #[test]
    fn a_helper_that_is_missing_is_named() {
        let (_keep, credentials) = with_file(r#"{"credHelpers": {"r.example": "no-such-helper"}}"#);
        let error = credentials.find("r.example", "a").expect_err("missing").to_string();
        assert!(error.contains("docker-credential-no-such-helper get cannot be run"), "{error}");
    }

    /// A helper that keeps one credential in a file beside it.
    fn with_helper() -> (tempfile::TempDir, Credentials) {
        let (keep, mut credentials) = with_file(r#"{"credsStore": "test"}"#);
        let program = keep.path().join("docker-credential-test");
        let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\ncase $1 in\nstore) cat > kept;;\nerase) rm kept;;\n\
            get) cat kept 2>/dev/null || { echo 'credentials not found in native keychain'; exit 1; };;\nesac\n";
        std::fs::write(&program, script).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("made executable");
        credentials.helper_directories = vec![keep.path().to_owned()];
        (keep, credentials)
    }

    #[test]
    fn a_helper_that_podman_filled_is_asked_for_docker_hub_by_its_name_too() {
        let (keep, credentials) = with_helper();
        let script = "#!/bin/sh\nread -r key\n[ \"$key\" = docker.io ] && [ $1 = get ] && exec echo \
            '{\"Username\": \"me\", \"Secret\": \"p\"}'\necho 'credentials not found in native keychain'; exit 1\n";
        std::fs::write(keep.path().join("docker-credential-test"), script).expect("written");
        std::fs::write(keep.path().join("auth.json"), r#"{"credHelpers": {"docker.io": "test"}}"#).expect("written");
        assert_eq!(credentials.find("docker.io", "library/app").expect("asked"), Some(password("me", "p")));
        assert_eq!(credentials.find("other.example", "app").expect("not asked"), None);
    }

    #[test]
    fn a_helper_keeps_what_the_file_then_does_not() {
        let (keep, credentials) = with_helper();
        let path = keep.path().join("auth.json");
        let find = || credentials.find("r.example", "a").expect("asked");
        assert_eq!(find(), None);
        credentials.store(&path, "r.example", &password("me", "hunter2")).expect("stored");
        assert_eq!(find(), Some(password("me", "hunter2")));
        assert!(!std::fs::read_to_string(&path).expect("text").contains("me"), "the file keeps nothing");
        let token = Credential::IdentityToken(Secret::new("t"));
        credentials.store(&path, "r.example", &token).expect("stored");
        assert_eq!(find(), Some(token));
        assert!(credentials.erase(&path, "r.example").expect("erased"));
        assert!(!credentials.erase(&path, "r.example").expect("erased"));
        assert_eq!(find(), None);
    }
}
