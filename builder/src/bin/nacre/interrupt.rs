//! Ctrl-C and its kin: a verb that is interrupted leaves no process, no mount and no unfinished file, and ends at once.
//!
//! Invariant: no cooperation of the work is needed, at whatever moment it is. Uploads that nobody could go on with are
//! given up at their registries, which get a moment for it. The mounts are ended by force, then the program replaces
//! itself (exec) with a sweeper: with that every thread stops between two system calls, every lifeline
//! of a sandbox closes, every lease of the store ends. The sweeper waits for what it inherited as children, opens the
//! store, which removes what dead sessions left, and ends with the signal's code. A second signal ends without
//! sweeping; then the next opening of the store does it.
//!
//! Not for `nacre run`: there signals are the command's.

use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context;
use builder::signals::Signals;
use registry_client::Client;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::termios::{OptionalActions, Termios};

use crate::progress::Display;
use crate::report;
use crate::terminal;

/// The first argument with which the program replaces itself; `main` then calls [`sweep`] before all else.
pub(crate) const SWEEPER_VERB: &str = "interrupt-sweeper";

/// What children get to end by themselves: the helpers of sandboxes need some milliseconds, all together are to be gone
/// within a second.
const GRACE: Duration = Duration::from_millis(600);

/// What registries get to end the uploads that nobody can go on with: some round trips.
const TIDYING: Duration = Duration::from_secs(1);

/// What has to be put right before the program ends.
#[derive(Clone, Default)]
pub(crate) struct Interrupts(Arc<State>);

#[derive(Default)]
struct State {
    /// How the terminal was, while it is otherwise; and where a shell has a terminal of its own, our side of that.
    terminal: Mutex<Option<(Termios, Option<File>)>>,
    is_interrupted: AtomicBool,
    /// The mounts that are not ours; `None` where we make none.
    known_mounts: Option<HashSet<u32>>,
}

/// A terminal that was handed over; it is ours again when this is dropped.
pub(crate) struct HandedOver<'a>(&'a Interrupts);

impl Interrupts {
    /// Takes over the signals of the process. Call it before any thread is started, and before any mount is made.
    /// `client`: who may be uploading. `has_mounts`: the process has a mount namespace of its own, and makes mounts there.
    pub(crate) fn catch(
        root: &Path,
        display: &Arc<Display>,
        client: Option<&Client>,
        has_mounts: bool,
    ) -> anyhow::Result<Self> {
        let interrupts = Self(Arc::new(State { known_mounts: has_mounts.then(mount_ids), ..State::default() }));
        let signals = Signals::block().context("cannot block signals")?;
        let (root, display, state) = (root.to_owned(), Arc::clone(display), Arc::clone(&interrupts.0));
        let client = client.cloned();
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                match signal {
                    Signal::INT | Signal::TERM | Signal::HUP | Signal::QUIT => {
                        state.interrupt(signal, &root, &display, client.as_ref());
                    }
                    Signal::WINCH => {
                        if let Some((_, Some(master))) = state.terminal().as_ref() {
                            terminal::resize(master);
                        }
                    }
                    _ => {}
                }
            }
        });
        Ok(interrupts)
    }

    /// Never returns once there was a signal: what the work came to is of no interest any more, and the program ends as
    /// soon as it is swept.
    pub(crate) fn hold(&self) {
        while self.0.is_interrupted.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }

    /// Notes how the terminal was before it is changed, or a shell gets it; `master` is then resized with it.
    pub(crate) fn hand_over(&self, before: &Termios, master: Option<&File>) -> anyhow::Result<HandedOver<'_>> {
        let master = master.map(File::try_clone).transpose().context("cannot duplicate the pseudo terminal")?;
        *self.0.terminal() = Some((before.clone(), master));
        Ok(HandedOver(self))
    }
}

impl Drop for HandedOver<'_> {
    fn drop(&mut self) {
        self.0.0.terminal().take();
    }
}

impl State {
    fn terminal(&self) -> std::sync::MutexGuard<'_, Option<(Termios, Option<File>)>> {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(self: &Arc<Self>, signal: Signal, root: &Path, display: &Arc<Display>, client: Option<&Client>) {
        if let Some((before, _)) = self.terminal().as_ref() {
            // A terminal that is gone needs nothing.
            _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
        if self.is_interrupted.swap(true, Ordering::SeqCst) {
            // The second one: whoever types it does not want to wait for anything.
            std::process::exit(128 + signal.as_raw());
        }
        let (state, root, display, client) = (Arc::clone(self), root.to_owned(), Arc::clone(display), client.cloned());
        // Beside the thread that waits for the second signal.
        std::thread::spawn(move || {
            display.close();
            report::show("interrupted\n");
            if let Some(client) = client {
                client.end_streams(TIDYING);
            }
            if let Some(known) = &state.known_mounts {
                end_mounts(&root, known);
            }
            let Err(error) = become_sweeper(signal, &root, state.known_mounts.as_ref());
            report::show(&format!("cannot sweep the store: {error}\n"));
            std::process::exit(128 + signal.as_raw());
        });
    }
}

/// In place of the list of others' mounts, where there are none of ours.
const NO_MOUNTS: &str = "-";

/// The sweeper is told which mounts are not ours: one may be made between the look at them and the exec.
fn become_sweeper(signal: Signal, root: &Path, known: Option<&HashSet<u32>>) -> Result<Infallible, io::Error> {
    let mut command = Command::new("/proc/self/exe");
    let known = known.map(|known| known.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    command.arg0("nacre").arg(SWEEPER_VERB).arg((128 + signal.as_raw()).to_string()).arg(root);
    // No thread makes another one from here on.
    let drafts = registry_client::abandon_drafts();
    command.arg(known.unwrap_or_else(|| NO_MOUNTS.to_owned())).args(drafts);
    Err(command.exec())
}

/// Ends our mounts by force: whoever waits for an answer of ours gets an error, and no thread hangs.
fn end_mounts(root: &Path, known: &HashSet<u32>) {
    let Ok(uppers) = root.join("uppers").canonicalize() else { return };
    for place in own_mounts(&std::fs::read("/proc/self/mountinfo").unwrap_or_default(), &uppers, known) {
        // What cannot be unmounted ends with the process that serves it.
        _ = rustix::mount::unmount(&place, UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// The mount points below a directory that this process made, the last first: none that was `known` before, and none
/// that came from another namespace (those are slaves or shared). Fields are `id parent device root target options
/// tags... -`.
/// <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>
fn own_mounts(mountinfo: &[u8], below: &Path, known: &HashSet<u32>) -> Vec<PathBuf> {
    let own = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let target = unescaped(fields.nth(3)?);
        let is_of_others = fields.skip(1).take_while(|tag| *tag != b"-").any(|tag| tag.contains(&b':'));
        (!is_of_others && !known.contains(&id) && target.starts_with(below)).then_some(target)
    };
    mountinfo.split(|byte| *byte == b'\n').rev().filter_map(own).collect()
}

/// The numbers of all mounts.
fn mount_ids() -> HashSet<u32> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mountinfo.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

fn unescaped(text: &[u8]) -> PathBuf {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some((&first, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &behind[3..];
            }
            None => {
                out.push(first);
                rest = behind;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// What the program does after it replaced itself; its arguments are the exit code, the store, the mounts of others
/// if there may be some of ours, and the drafts that lie outside of the store.
pub(crate) fn sweep() -> ExitCode {
    let mut arguments = std::env::args_os().skip(2);
    let code = arguments.next().and_then(|code| code.to_str()?.parse().ok()).unwrap_or(1);
    if let Some(root) = arguments.next() {
        wait_for_children();
        let root = Path::new(&root);
        if let Some(known) = arguments.next().filter(|known| known != NO_MOUNTS) {
            let known = known.to_string_lossy().split(',').filter_map(|id| id.parse().ok()).collect();
            end_mounts(root, &known);
        }
        arguments.for_each(|draft| remove(Path::new(&draft)));
        // Opening it sweeps. A failure leaves the rest for the next opening; and where there is no store, none is made.
        if root.join("oci-layout").exists() {
            drop(layerfs::Store::open(root));
        }
    }
    ExitCode::from(code)
}

/// Removes a draft: a file, or a directory with all that is in it. One that is gone is as good.
fn remove(draft: &Path) {
    if std::fs::remove_file(draft).is_err() {
        _ = std::fs::remove_dir_all(draft);
    }
}

/// Waits until all children are gone, and kills those that take their time.
fn wait_for_children() {
    let (gone, all_gone) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(Some(_)) | Err(rustix::io::Errno::INTR) = rustix::process::wait(WaitOptions::empty()) {}
        _ = gone.send(());
    });
    if all_gone.recv_timeout(GRACE).is_err() {
        for pid in children() {
            // Those that have a group have helpers in it, such as git's transports.
            _ = rustix::process::kill_process_group(pid, Signal::KILL);
            _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        _ = all_gone.recv_timeout(GRACE / 2);
    }
}

/// <https://man7.org/linux/man-pages/man5/proc_tid_children.5.html>
fn children() -> Vec<Pid> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_our_own_are_ended_the_last_first() {
        let mountinfo = b"20 1 0:1 / / rw - ext4 a rw\n21 20 0:2 / /s/uppers/1/m\\040x rw - fuse b rw\n\
            22 21 0:3 / /s/uppers/1/m\\040x/y rw - fuse c rw\n23 20 0:4 / /s/uppers/2 rw master:7 - fuse d rw\n\
            24 20 0:5 / /s/uppers/3 rw - fuse e rw\n25 20 0:6 / /s/uppers2 rw - fuse f rw\n";
        let found = own_mounts(mountinfo, Path::new("/s/uppers"), &HashSet::from([24]));
        assert_eq!(found, [Path::new("/s/uppers/1/m x/y"), Path::new("/s/uppers/1/m x")]);
    }
}
