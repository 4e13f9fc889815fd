//! A desk with a build context, for each test its own.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fixtures::user::User;
use fixtures::{BUSYBOX, Desk, Ended, run};

/// The beginning of Dockerfiles with RUN steps; the context has `busybox`.
pub(crate) const SHELL: &str =
    "FROM scratch AS shell\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// One store and one context.
pub(crate) struct Bench(Desk);

impl Deref for Bench {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.0
    }
}

impl Bench {
    /// An empty store and a context with nothing in it.
    pub(crate) fn new() -> Self {
        let desk = Desk::new(env!("CARGO_BIN_EXE_nacre")).with("NACRE_PROGRESS", "plain");
        fs::create_dir(desk.path("context")).expect("a directory");
        Self(desk)
    }

    /// With busybox in the context.
    pub(crate) fn with_busybox() -> Self {
        let bench = Self::new();
        bench.busybox("context/busybox");
        bench
    }

    /// From here on everything is run by an ordinary user, who owns the directory.
    pub(crate) fn owned_by(self, user: &User) -> Self {
        Self(self.0.owned_by(user))
    }

    /// Whether an OCI runtime works on this machine: not all do on each layout of cgroups.
    pub(crate) fn has_runtime(&self, program: &str) -> bool {
        let (bundle, state) = (self.path("probe"), self.path("probe-state"));
        fs::create_dir_all(bundle.join("rootfs")).expect("directories");
        fs::copy(BUSYBOX, bundle.join("rootfs/true")).expect("busybox-static is installed");
        let config = serde_json::json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/true"], "cwd": "/"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        });
        fs::write(bundle.join("config.json"), config.to_string()).expect("written");
        let mut command = Command::new(program);
        command.arg("--root").arg(state).args(["run", "--bundle"]).arg(&bundle).arg("nacre-probe");
        let works = command.stdin(Stdio::null()).output().is_ok_and(|output| output.status.success());
        if !works {
            fixtures::left_out(&format!("what needs a working {program}"));
        }
        works
    }

    /// Writes a file of the context.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        self.write(&format!("context/{name}"), content);
        self
    }

    /// Writes the Dockerfile.
    pub(crate) fn dockerfile(&self, text: &str) -> &Self {
        self.file("Dockerfile", text)
    }

    /// `nacre build ARGUMENTS context`.
    #[track_caller]
    pub(crate) fn build(&self, arguments: &[&str]) -> Ended {
        self.run(&[&["build", "--progress", "plain"], arguments, &["context"]].concat())
    }

    /// Builds with a root file system as the result, and gives its directory.
    #[track_caller]
    pub(crate) fn tree(&self, arguments: &[&str]) -> PathBuf {
        let out = self.path("out");
        _ = fs::remove_dir_all(&out);
        self.build(&[arguments, &["-o", "type=tar,dest=out.tar"]].concat()).succeeds();
        fs::create_dir(&out).expect("a directory");
        // GNU tar, as root, restores owners and modes.
        run("tar", &["-C", &self.text("out"), "-xpf", &self.text("out.tar")]);
        out
    }
}
