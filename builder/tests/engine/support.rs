//! A store, a build context and the program, for each test its own.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fixtures::user::User;
use serde_json::Value;
use tempfile::TempDir;

/// The static busybox of Debian.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// The beginning of Dockerfiles with RUN steps; the context has `busybox`.
pub(crate) const SHELL: &str =
    "FROM scratch AS shell\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// One store and one context.
pub(crate) struct Bench {
    directory: TempDir,
    user: Option<(u32, u32)>,
    program: PathBuf,
}

impl Bench {
    /// An empty store and a context with nothing in it.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(directory.path().join("context")).expect("a directory");
        Self { directory, user: None, program: env!("CARGO_BIN_EXE_nacre").into() }
    }

    /// With busybox in the context.
    pub(crate) fn with_busybox() -> Self {
        let bench = Self::new();
        fs::copy(BUSYBOX, bench.path("context/busybox")).expect("busybox-static is installed");
        bench
    }

    /// From here on everything is run by an ordinary user, who owns the directory.
    pub(crate) fn owned_by(mut self, user: &User) -> Self {
        // The build directory may be closed to others.
        let program = self.path("nacre");
        // Not by this process: a child forked meanwhile by another test would hold it open for writing (ETXTBSY).
        run("cp", &[self.program.to_str().expect("text"), program.to_str().expect("text")]);
        self.program = program;
        let owner = format!("{}:{}", user.uid(), user.gid());
        run("chown", &["-hR", &owner, self.directory.path().to_str().expect("text")]);
        self.user = Some((user.uid(), user.gid()));
        self
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

    /// A path in the bench's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the store lies.
    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Writes a file of the context.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.path("context").join(name);
        fs::create_dir_all(path.parent().expect("below the context")).expect("directories");
        fs::write(path, content).expect("written");
        self
    }

    /// Writes the Dockerfile.
    pub(crate) fn dockerfile(&self, text: &str) -> &Self {
        self.file("Dockerfile", text)
    }

    /// The program with nothing of our environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.directory.path());
        command.env("NACRE_ROOT", self.store()).args(arguments).current_dir(self.directory.path());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs the program.
    pub(crate) fn nacre(&self, arguments: &[&str]) -> Done {
        let output = self.command(arguments).stdin(Stdio::null()).output().expect("the program runs");
        self.done(output)
    }

    /// `nacre build ARGUMENTS context`.
    pub(crate) fn build(&self, arguments: &[&str]) -> Done {
        self.nacre(&[&["build", "--progress", "plain"], arguments, &["context"]].concat())
    }

    /// What came of a run of the program.
    pub(crate) fn done(&self, output: Output) -> Done {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code();
        Done { code, stdout: text(output.stdout), stderr: text(output.stderr), store: self.store() }
    }

    /// Builds with a root file system as the result, and gives its directory.
    pub(crate) fn tree(&self, arguments: &[&str]) -> PathBuf {
        let out = self.path("out");
        _ = fs::remove_dir_all(&out);
        self.build(&[arguments, &["-o", "type=tar,dest=out.tar"]].concat()).succeeds();
        fs::create_dir(&out).expect("a directory");
        // GNU tar, as root, restores owners and modes.
        run("tar", &["-C", out.to_str().expect("text"), "-xpf", self.path("out.tar").to_str().expect("text")]);
        out
    }

    /// Asserts that nothing of a step or a transfer is left: no mount, no upper, no unfinished file.
    pub(crate) fn assert_clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts are listed");
        let root = self.directory.path().to_str().expect("text");
        assert!(!mounts.contains(root), "{mounts}");
        assert_eq!(names(&self.store().join("uppers")), [""; 0]);
        assert_eq!(names(&self.store().join("tmp")), [""; 0]);
    }
}

/// The names in a directory, sorted; none where there is no directory.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What a run of the program came to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    store: PathBuf,
}

impl Done {
    /// Asserts success.
    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }

    /// Asserts an exit code and nothing on standard output, and gives what was said.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{}", self.stderr);
        self.stderr
    }

    /// The digest that the build printed.
    #[track_caller]
    pub(crate) fn digest(self) -> String {
        let done = self.succeeds();
        let digest = done.stdout.trim().to_owned();
        assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
        digest
    }

    /// A document of the store.
    pub(crate) fn document(&self, digest: &str) -> Value {
        let path = self.store.join("blobs/sha256").join(digest.trim().trim_start_matches("sha256:"));
        serde_json::from_slice(&fs::read(path).expect("the blob is there")).expect("it is JSON")
    }

    /// The configuration of the image that was built.
    #[track_caller]
    pub(crate) fn config(self) -> Value {
        let done = self.succeeds();
        let manifest = done.document(&done.stdout);
        done.document(manifest["config"]["digest"].as_str().expect("a manifest has a configuration"))
    }

    /// How many steps were taken from the cache.
    #[track_caller]
    pub(crate) fn cached(self) -> usize {
        let done = self.succeeds();
        done.stderr.lines().filter(|line| line.ends_with(" CACHED")).count()
    }
}

/// Runs a program of the system.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
