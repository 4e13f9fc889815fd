//! `--ssh`: the agents that a build may ask, and one of our own where keys are given in place of an agent.
//!
//! Invariant: a key never leaves ssh-agent's memory, and that ends with this program, however it ends: it waits for a
//! pipe that the kernel closes. Its directory goes with it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::Context;

use crate::report::Usage;

/// What an id stands for.
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) socket: PathBuf,
    /// Ends with this.
    _own: Option<Own>,
}

/// An ssh-agent that was started here.
struct Own {
    child: Child,
    /// It ends when this is closed.
    lifeline: Option<ChildStdin>,
}

/// Starts the agent, adds the keys, says so, and waits for the lifeline. An agent that is not killed would outlive it;
/// other signals it may have been started with as blocked.
const SCRIPT: &str = r#"
directory=$1; shift
export SSH_AUTH_SOCK="$directory/socket"
ssh-agent -D -a "$SSH_AUTH_SOCK" >/dev/null & agent=$!
while ssh-add -l >/dev/null 2>&1; [ $? = 2 ] && kill -0 $agent; do sleep 0.02; done
ssh-add -q -- "$@" >&2 </dev/null && echo ready && cat
kill -KILL $agent; wait $agent 2>/dev/null
rm -rf "$directory"
"#;

impl Agent {
    /// Reads `default`, `ID`, `ID=SOCKET` or `ID=KEY[,KEY]`, and starts an agent for keys.
    pub(crate) fn open(text: &str) -> anyhow::Result<Self> {
        let (id, value) = text.split_once('=').map_or((text, None), |(id, value)| (id, Some(value)));
        let id = if id.is_empty() { "default" } else { id }.to_owned();
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            let socket = std::env::var_os("SSH_AUTH_SOCK").ok_or_else(|| {
                Usage(format!("--ssh {text}: SSH_AUTH_SOCK is not set; name a socket or a key: {text}=PATH"))
            })?;
            return Ok(Self { id, socket: socket.into(), _own: None });
        };
        let paths: Vec<&Path> = value.split(',').map(Path::new).collect();
        let mut sockets = 0;
        for path in &paths {
            let kind = std::fs::metadata(path)
                .with_context(|| format!("--ssh {text}: cannot find {}", path.display()))?
                .file_type();
            sockets += usize::from(kind.is_socket());
        }
        match (sockets, paths.as_slice()) {
            (1, [socket]) => Ok(Self { id, socket: socket.into(), _own: None }),
            (0, keys) => start(keys).map(|(socket, own)| Self { id, socket, _own: Some(own) }),
            _ => Err(Usage(format!("--ssh {text}: it is one socket, or keys")).into()),
        }
    }
}

fn start(keys: &[&Path]) -> anyhow::Result<(PathBuf, Own)> {
    let directory = tempfile::Builder::new().prefix("nacre-agent-").tempdir().context("cannot make a directory")?;
    let socket = directory.path().join("socket");
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "sh"]).arg(directory.path());
    // Nobody is there to be asked for a passphrase.
    command.args(keys).env("SSH_ASKPASS", "false").env("SSH_ASKPASS_REQUIRE", "force");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start ssh-agent for the keys of --ssh: is OpenSSH installed?")?;
    // From here on the script removes it.
    let _ = directory.keep();
    let (lifeline, stdout) = (child.stdin.take(), child.stdout.take().expect("it is piped"));
    let mut own = Own { child, lifeline };
    let mut answer = String::new();
    // What cannot be read is no answer.
    _ = BufReader::new(stdout).read_line(&mut answer);
    if answer != "ready\n" {
        let mut said = String::new();
        let stderr = own.child.stderr.take().expect("it is piped");
        drop(own.lifeline.take());
        _ = stderr.take(4096).read_to_string(&mut said);
        let shown: Vec<_> = keys.iter().map(|key| key.display().to_string()).collect();
        anyhow::bail!("ssh-agent does not take {}: {}", shown.join(", "), said.trim());
    }
    Ok((socket, own))
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // Its end is all that is waited for.
        _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_an_agent_that_ends_with_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let key = directory.path().join("key");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.expect("OpenSSH is installed").success());
        let agent = Agent::open(&format!("id={}", key.display())).expect("a key");
        let listed = Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", &agent.socket).output().expect("runs");
        assert!(String::from_utf8_lossy(&listed.stdout).contains("ED25519"));
        let place = agent.socket.parent().expect("a directory").to_owned();
        drop(agent);
        assert!(!place.exists());
        std::fs::write(&key, "no key").expect("written");
        let error = Agent::open(&format!("id={}", key.display())).err().expect("no key").to_string();
        assert!(error.contains("key"), "{error}");
        assert!(Agent::open("id=/nowhere/at/all").err().expect("nothing").to_string().contains("/nowhere/at/all"));
    }
}
