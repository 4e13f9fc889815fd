//! Where a test of signatures works.
//!
//! Invariant: nothing of the person who runs the tests is read or changed.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fixtures::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ended::Ended;

/// A directory, a store, a home, a registry and a key.
pub(crate) struct Desk {
    pub(crate) directory: TempDir,
    pub(crate) registry: Registry,
}

impl Desk {
    /// With a key pair, `release.key` and `release.pub`, of the password `hunter2-key`.
    pub(crate) fn new() -> Self {
        let desk = Self { directory: tempfile::tempdir().expect("a directory"), registry: Registry::open() };
        fs::write(desk.path("password"), "hunter2-key\n").expect("written");
        desk.run(&["key", "generate", "release", "--password-file", "password"]).success();
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.address())
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
        command.args(arguments).stdin(Stdio::null()).current_dir(self.directory.path());
        command.env("NACRE_ROOT", self.path("store")).env("NACRE_PROGRESS", "quiet").env("HOME", self.path("home"));
        command.env("GNUPGHOME", self.path("gnupg"));
        command.env("REGISTRY_AUTH_FILE", self.path("auth.json"));
        for name in ["SOURCE_DATE_EPOCH", "NACRE_KEY_PASSWORD", "COSIGN_PASSWORD"] {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().expect("the program starts").into()
    }

    /// The same with a store of nothing.
    pub(crate) fn run_afresh(&self, arguments: &[&str]) -> Ended {
        let store = tempfile::tempdir_in(self.directory.path()).expect("a directory");
        self.command(arguments).env("NACRE_ROOT", store.path()).output().expect("the program starts").into()
    }

    /// Pushes an image of one file, and gives its digest.
    pub(crate) fn push(&self, name: &str, platform: &str, content: &str) -> String {
        let context = self.path("context");
        fs::create_dir_all(&context).expect("a directory");
        fs::write(context.join("file"), content).expect("written");
        fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY file /\n").expect("written");
        self.run(&["build", "--platform", platform, "-t", &self.at(name), "--push", "context"]).success();
        self.run(&["push", &self.at(name)]).success()
    }

    pub(crate) fn sign(&self, name: &str, more: &[&str]) -> Ended {
        let name = self.at(name);
        self.run(&[&["sign", "--key", "release.key", "--password-file", "password", &name], more].concat())
    }

    /// A policy that demands our signature of the registry's images, and takes no others.
    pub(crate) fn policy(&self, identity: Option<Value>) {
        let mut signed = json!({"type": "sigstoreSigned", "keyPath": self.path("release.pub")});
        if let Some(identity) = identity {
            signed["signedIdentity"] = identity;
        }
        let policy =
            json!({"default": [{"type": "reject"}], "transports": {"docker": {self.registry.address(): [signed]}}});
        fs::write(self.path("policy.json"), policy.to_string()).expect("written");
    }
}
