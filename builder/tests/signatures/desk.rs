//! Where a test of signatures works.

use std::ops::Deref;

use fixtures::Ended;
use serde_json::{Value, json};

/// A desk with a registry and a key.
pub(crate) struct Desk(fixtures::Desk);

impl Deref for Desk {
    type Target = fixtures::Desk;

    fn deref(&self) -> &fixtures::Desk {
        &self.0
    }
}

impl Desk {
    /// With a key pair, `release.key` and `release.pub`, of the password `hunter2-key`.
    pub(crate) fn new() -> Self {
        let desk = Self(fixtures::Desk::new(env!("CARGO_BIN_EXE_nacre")).with_registry());
        desk.write("password", "hunter2-key\n");
        desk.run(&["key", "generate", "release", "--password-file", "password"]).success();
        desk
    }

    /// Runs the program with a store of nothing.
    pub(crate) fn run_afresh(&self, arguments: &[&str]) -> Ended {
        let store = tempfile::tempdir_in(self.path("")).expect("a directory");
        self.command(arguments).env("NACRE_ROOT", store.path()).output().expect("the program starts").into()
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
        let policy = json!({"default": [{"type": "reject"}], "transports": {"docker": {self.address(): [signed]}}});
        self.write("policy.json", policy.to_string());
    }
}
