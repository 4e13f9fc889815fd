//! Mounts of other processes: one that is killed, and one of root of a user namespace.
//!
//! Invariant: a child process runs one test of this binary again and is told its directory in the environment; it is
//! waited for before the test ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use fixtures::this_test;
use layerfs::{MarkNamespace, Mount, MountOptions, Union, UpperOptions, mount, unmount};

use crate::{
    bench::{Bench, OPTIONS, listing, open_directory, shell},
    memory_tree::MemoryTree,
};

const DIRECTORY: &str = "UNION_TEST_DIRECTORY";

/// What a child says once it serves, on a line of its own.
const READY: &str = "the union is mounted";

fn child_directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

fn serve(directory: &Path, marks: MarkNamespace) -> Mount {
    let tree = MemoryTree::from_directory(&directory.join("lower"));
    let (upper, work) = (open_directory(&directory.join("upper")), open_directory(&directory.join("work")));
    let union = Union::open(tree, upper, work, UpperOptions { marks, ..OPTIONS }).expect("the upper opens");
    mount(union, &directory.join("ours"), MountOptions::default()).expect("it mounts")
}

fn start(mut command: Command, directory: &Path) -> Child {
    command.env(DIRECTORY, directory).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the child starts")
}

#[test]
fn a_killed_server_leaves_a_mount_that_unmount_clears_and_an_upper_that_mounts_again() {
    if let Some(directory) = child_directory() {
        let _mount = serve(&directory, MarkNamespace::Trusted);
        writeln!(std::io::stdout(), "\n{READY}").expect("the parent listens");
        // Until killed.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let mut bench = Bench::new("mkdir d; echo x > d/x; echo f > f; echo h > h; ln h d/h");
    bench.unmount_ours();
    let test = "processes::a_killed_server_leaves_a_mount_that_unmount_clears_and_an_upper_that_mounts_again";
    let mut child = start(this_test(test), &bench.path(""));
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let ready = output.lines().any(|line| line.expect("text").contains(READY));
    bench.both("mv d e; echo more >> e/x; rm f; echo new > f; echo more >> h; cat e/h");
    child.kill().expect("it runs");
    child.wait().expect("it ended");
    assert!(ready);
    let error = std::fs::metadata(bench.path("ours/never-asked-for")).expect_err("nobody serves");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()));
    unmount(&bench.path("ours")).expect("clears");
    bench.mount_ours();
    bench.both("cat e/x f h; mv e d");
}

#[test]
fn root_of_a_user_namespace_mounts_and_changes_a_union() {
    const SCRIPT: &str = "mv d m; echo more >> m/x; rm f; mkdir f; touch f/n; rm m/y; echo h >> h; cat m/h; ln -s x l; chmod 600 g; rm -r r; mkdir r";
    if let Some(directory) = child_directory() {
        let options = [MarkNamespace::User; 2];
        for (round, marks) in options.into_iter().enumerate() {
            let mount = serve(&directory, marks);
            if round == 0 {
                let (done, output) = shell(&directory.join("ours"), &format!("set -e; {SCRIPT}"));
                assert!(done, "{output}");
            }
            std::fs::write(directory.join("seen"), listing(&directory.join("ours"))).expect("writes");
            mount.unmount().expect("unmounts");
        }
        return;
    }
    let mut bench =
        Bench::new("mkdir d r; touch r/a; echo x > d/x; echo y > d/y; echo f > f; echo g > g; echo h > h; ln h d/h");
    bench.unmount_ours();
    let (done, output) = shell(&bench.path("overlay"), SCRIPT);
    assert!(done, "{output}");
    let test = this_test("processes::root_of_a_user_namespace_mounts_and_changes_a_union");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(test.get_program()).args(test.get_args());
    let child = start(command, &bench.path(""));
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let seen = std::fs::read_to_string(bench.path("seen")).expect("the child wrote it");
    assert_eq!(seen, listing(&bench.path("overlay")));
}
