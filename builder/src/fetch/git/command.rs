//! git as a process: with nothing of the caller's environment or configuration, and with nothing that a repository
//! says.
//!
//! Invariant: no hook, filter, credential helper or pager ever runs, no question is asked, and a secret is neither on a
//! command line nor in a message.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::error::GitError;
use crate::schedule::Schedule;
use crate::secret::Secret;

/// What git may use of the caller's.
#[derive(Clone, Default)]
pub(crate) struct GitAccess {
    /// Where git and ssh lie, as in `PATH`.
    pub(crate) search_path: OsString,
    /// Proxy variables.
    pub(crate) proxies: Vec<(String, OsString)>,
    /// The keys of hosts that ssh has met, beside those that the user knows.
    pub(crate) known_hosts: PathBuf,
    /// The agent that ssh asks for keys.
    pub(crate) agent: Option<PathBuf>,
    /// A URL, and the `Authorization` header for everything below it.
    pub(crate) authorization: Option<(String, Secret)>,
}

/// Where programs are looked for if the caller does not say.
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The longest answer that is taken: those that are needed have a few lines.
const MOST_ANSWER_BYTES: u64 = 4 << 20;

/// How much of git's messages is shown.
const MOST_SAID_BYTES: usize = 4000;

/// Settings for every call. Repositories of the file system may not be submodules; a server that says nothing for two
/// minutes has gone away.
const SETTINGS: [&str; 12] = [
    "protocol.file.allow=user",
    "protocol.ext.allow=never",
    "core.hooksPath=/dev/null",
    "core.symlinks=true",
    "core.fsmonitor=false",
    "core.logAllRefUpdates=false",
    "safe.directory=*",
    "gc.auto=0",
    "advice.detachedHead=false",
    // HEAD never stays there: what is checked out is a commit.
    "init.defaultBranch=nacre-unborn",
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=120",
];

/// git for one repository.
pub(crate) struct Git<'a> {
    access: &'a GitAccess,
    /// The repository as messages call it.
    pub(crate) repository: String,
    directory: &'a Path,
    schedule: Option<&'a Schedule>,
}

impl<'a> Git<'a> {
    /// Runs in `directory`, which belongs to the caller, and ends with a build that fails.
    pub(crate) fn new(
        access: &'a GitAccess,
        repository: String,
        directory: &'a Path,
        schedule: Option<&'a Schedule>,
    ) -> Self {
        Self { access, repository, directory, schedule }
    }

    /// The repository is not as it was said to be.
    pub(crate) fn wrong(&self, what: impl Into<String>) -> GitError {
        GitError::Repository { repository: self.repository.clone(), what: what.into() }
    }

    /// Runs a subcommand, and gives what it wrote.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String, GitError> {
        self.run_in(self.directory, &[], arguments)
    }

    /// Runs a subcommand in another directory, with more settings.
    pub(crate) fn run_in<S: AsRef<OsStr>>(
        &self,
        directory: &Path,
        settings: &[&str],
        arguments: &[S],
    ) -> Result<String, GitError> {
        let words = arguments.iter().map(|word| word.as_ref().to_string_lossy());
        let verb = words.into_iter().find(|word| !word.starts_with('-')).unwrap_or_default().into_owned();
        let failed = |source| GitError::Run { verb: verb.clone(), source };
        let mut command = self.command(directory);
        for setting in SETTINGS.iter().chain(settings) {
            command.arg("-c").arg(setting);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // What it starts ends with it: a transport may wait for an answer for minutes.
        command.process_group(0);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => GitError::Missing,
            _ => failed(error),
        })?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let watched = self.schedule.zip(group).map(|(schedule, group)| {
            schedule.watch(move || _ = rustix::process::kill_process_group(group, Signal::KILL))
        });
        let (stdout, stderr) = (child.stdout.take().expect("it is piped"), child.stderr.take().expect("it is piped"));
        let said = std::thread::spawn(move || last_bytes(stderr));
        let mut answer = Vec::new();
        let read = stdout.take(MOST_ANSWER_BYTES).read_to_end(&mut answer);
        // A longer answer is cut: the pipe is closed now, and git ends by its signal. Its number is nobody else's
        // before it is waited for, and nobody kills it after that.
        if let Some(group) = group {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while let Err(Errno::INTR) = rustix::process::waitid(WaitId::Pid(group), options) {}
        }
        drop(watched);
        let status = child.wait().map_err(failed)?;
        read.map_err(failed)?;
        let said = said.join().unwrap_or_default();
        if !status.success() {
            let said = self.without_secrets(&said);
            return Err(GitError::Failed { verb, repository: self.repository.clone(), said });
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn command(&self, directory: &Path) -> Command {
        let search_path = match self.access.search_path.is_empty() {
            true => OsStr::new(SEARCH_PATH),
            false => &self.access.search_path,
        };
        let mut command = Command::new("git");
        command.env_clear().current_dir(directory).env("PATH", search_path).env("LC_ALL", "C").env("HOME", "/dev/null");
        command.envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_ATTR_NOSYSTEM", "1")]);
        command.envs([("GIT_TERMINAL_PROMPT", "0"), ("GIT_TEMPLATE_DIR", ""), ("GIT_ASKPASS", "true")]);
        // Never a repository around the directory.
        command.env("GIT_CEILING_DIRECTORIES", directory.parent().unwrap_or(directory));
        command.env("GIT_SSH_COMMAND", ssh_command(&self.access.known_hosts));
        if let Some(agent) = &self.access.agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        command.envs(self.access.proxies.iter().map(|(name, value)| (name, value)));
        if let Some((url, header)) = &self.access.authorization {
            // Not with -c: everybody on this machine may read command lines.
            command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", format!("http.{url}.extraheader"));
            let mut value = b"Authorization: ".to_vec();
            value.extend_from_slice(&header.0);
            command.env("GIT_CONFIG_VALUE_0", <OsString as std::os::unix::ffi::OsStringExt>::from_vec(value));
        }
        command
    }

    /// git repeats URLs in its messages, with the password that is in them.
    fn without_secrets(&self, said: &[u8]) -> String {
        super::url::without_passwords(String::from_utf8_lossy(said).trim())
    }
}

/// How git runs ssh, in the words of a shell. Keys come from the agent only. A host that nobody knows is taken as it is,
/// as in BuildKit, and noted in a file of ours, the first: the user's is only read. One whose key has changed is refused.
fn ssh_command(known_hosts: &Path) -> String {
    let ours = known_hosts.to_string_lossy();
    // Within both kinds of quotes; in ssh's own a percent sign begins a word that is replaced.
    let is_plain = !ours.contains(['"', '\'', '\\', '\n', '\u{fffd}']);
    let ours = if is_plain { ours.replace('%', "%%") } else { "/dev/null".to_owned() };
    format!(
        "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o IdentityFile=none \
         -o 'UserKnownHostsFile=\"{ours}\" ~/.ssh/known_hosts'"
    )
}

/// The last bytes of what comes, all of which is read.
fn last_bytes(mut from: impl Read) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        let too_much = kept.len().saturating_sub(MOST_SAID_BYTES);
        kept.drain(..too_much);
    }
    kept
}
