//! What works where builds run: a mount on each plane, and the sandbox with its limits.
//!
//! Invariant: every trial is the real thing on an empty image, in a private mount namespace. That a program is not
//! found in the empty image is the success of the sandbox: it came as far as starting it.

use std::sync::Arc;

use layerfs::{MountOptions, Plane, Store, Tree, UpperLife};
use registry_client::in_full;

use super::Finding;
use crate::sandbox::{self, Limits, Network, Process, Security, Streams};
use crate::upper::open_union;

/// A shell's code for a program that is not there.
const NOT_FOUND: i32 = 127;

type Trial = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Tries mounts and the sandbox, with temporary uppers in a store. The caller has entered the namespaces of a build.
pub fn inside(store: &Store) -> Vec<Finding> {
    let fuse = match mounted(store, Plane::Fuse, |_| Ok(())) {
        Ok(()) => Finding::works("fuse plane", "an image can be mounted, read and written"),
        Err(error) => {
            let next = "give the container or machine /dev/fuse (docker run --device /dev/fuse), and permit mount(2)";
            Finding::missing(
                "fuse plane",
                in_full(&*error),
                "RUN steps, `nacre run` and `nacre mount` cannot work",
                next,
            )
        }
    };
    let mut findings = vec![fuse, overlay(store)];
    let run = |what, change: &dyn Fn(&mut Process)| (what, try_sandbox(store, change));
    let trials = [
        run("sandbox", &|process| process.security = Security::Insecure),
        run("seccomp filter", &|process| process.security = Security::Sandbox),
        run("network of its own", &|process| process.network = Network::None),
        run("limits by cgroups", &|process| process.limits = Limits { pids: Some(64), ..Limits::default() }),
    ];
    findings.extend(trials.into_iter().map(|(what, trial)| sandbox_finding(what, trial)));
    findings
}

fn overlay(store: &Store) -> Finding {
    const WHAT: &str = "overlay plane";
    match (mounted(store, Plane::Overlay, |_| Ok(())), mounted(store, Plane::Auto, is_overlay)) {
        (Ok(()), Ok(())) => Finding::works(WHAT, "the kernel's overlayfs can serve; `--plane auto` takes it"),
        (Ok(()), Err(_)) => {
            let found =
                "the kernel's overlayfs works, but splits hard links and cannot rename the directories of an image";
            let cost = "`--plane auto` takes the fuse plane, which writes slower";
            Finding::limited(WHAT, found, cost, "run as root of the machine, where it has no such limits")
        }
        (Err(error), _) => {
            let cost = "`--plane auto` takes the fuse plane, which writes slower";
            let next = "put the store on a file system that can be an overlay's upper (ext4, xfs, btrfs; not overlayfs or NFS)";
            Finding::limited(WHAT, in_full(&*error), cost, next)
        }
    }
}

fn is_overlay(mount: &layerfs::Mount) -> Trial {
    if mount.plane() == Plane::Overlay { Ok(()) } else { Err("the fuse plane was taken".into()) }
}

fn sandbox_finding(what: &str, trial: Trial) -> Finding {
    let Err(error) = trial else {
        return Finding::works(what, "a command can be started with it");
    };
    let found = in_full(&*error);
    match what {
        "limits by cgroups" => {
            let next =
                "as root: give the user's session a delegated cgroup (systemd-run --user --scope -p Delegate=yes)";
            Finding::limited(what, found, "--memory, --cpus and --pids-limit are errors", next)
        }
        "network of its own" => Finding::limited(
            what,
            found,
            "--network=none is an error",
            "permit network namespaces: sysctl user.max_net_namespaces",
        ),
        _ => Finding::missing(
            what,
            found,
            "RUN steps and `nacre run` cannot work",
            "inside of a container: permit mounts of proc and unshare (docker run --privileged, or an outer seccomp and \
             AppArmor profile that lets them through); or take --oci-runtime",
        ),
    }
}

fn try_sandbox(store: &Store, change: &dyn Fn(&mut Process)) -> Trial {
    mounted(store, Plane::Fuse, |mount| {
        let mut process = Process::new(mount.directory(), ["/no-such-program"]);
        change(&mut process);
        let silent = Streams { stdin: None, stdout: None, stderr: None };
        // What it writes is that the program is not there.
        match sandbox::run(&process, silent)?.wait()?.code() {
            NOT_FOUND => Ok(()),
            code => Err(format!("the sandbox ended with code {code}").into()),
        }
    })
}

/// Mounts an empty image with an upper, does something with it, and takes everything away.
fn mounted(store: &Store, plane: Plane, act: impl FnOnce(&layerfs::Mount) -> Trial) -> Trial {
    let tree: Arc<dyn Tree> = store.tree(&[])?;
    let upper = store.create_upper(&[], UpperLife::Temporary)?;
    let directory = upper.scratch()?.join("merged");
    std::fs::create_dir(&directory)?;
    let union = open_union(tree, &upper.upper(), &upper.work(), UpperLife::Temporary)?;
    let mount = layerfs::mount(union, &directory, MountOptions { plane, ..MountOptions::default() })?;
    std::fs::write(directory.join("file"), "written")?;
    if std::fs::read(directory.join("file"))? != b"written" {
        return Err("what was written is not what is read".into());
    }
    act(&mount)?;
    Ok(mount.unmount()?)
}
