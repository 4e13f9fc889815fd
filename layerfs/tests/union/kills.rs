//! The server is killed after every single system call that changes the disk, and the upper is opened again: what is
//! visible is the old state or the new one, never a third.
//!
//! Invariant: the place of the kill is counted, not timed: strace lists the calls of an operation that gets through,
//! and then ends the process at each of them in turn.

use std::{
    collections::HashMap,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
};

use fixtures::this_test;
use layerfs::{AttributeChange, Making, NodeId, Owner, RenameMode, Union};
use rustix::io::Result;

use crate::{
    bench::{Bench, OPTIONS, listing, open_directory, shell},
    memory_tree::MemoryTree,
};

/// Every system call with which the union changes the disk.
const CALLS: &str = "mkdirat,linkat,unlinkat,renameat,renameat2,symlinkat,mknodat,fsetxattr,setxattr,fremovexattr,\
                     fchmod,fchmodat,fchownat,utimensat,ftruncate,pwrite64";

const LOWER: &str = "mkdir -p d/e x; echo one > one; echo big > h1; ln h1 h2; ln h1 d/h3; echo s > d/e/s; echo t > d/t
    echo g > gone; echo y > x/y";

/// An operation: the script that leads up to it, the script that is it, and what it is in calls of the union.
struct Operation {
    before: &'static str,
    script: &'static str,
    run: fn(&Union<MemoryTree>) -> Result<()>,
}

fn find(union: &Union<MemoryTree>, path: &str) -> Result<NodeId> {
    path.split('/')
        .try_fold(NodeId::ROOT, |at, name| Ok(union.lookup(at, name.as_bytes())?.ok_or(rustix::io::Errno::NOENT)?.id))
}

fn write(union: &Union<MemoryTree>, path: &str) -> Result<()> {
    union.write(find(union, path)?, 0, b"NEW")
}

fn change_mode(union: &Union<MemoryTree>, path: &str) -> Result<()> {
    let change = AttributeChange { mode: Some(0o600), ..AttributeChange::default() };
    union.set_attributes(find(union, path)?, change).map(drop)
}

fn rename(union: &Union<MemoryTree>, from: &[u8], to: &[u8], mode: RenameMode) -> Result<()> {
    union.rename(NodeId::ROOT, from, NodeId::ROOT, to, mode)
}

fn create(union: &Union<MemoryTree>, name: &[u8], making: Making<'_>) -> Result<()> {
    let mode = if making == Making::Directory { 0o755 } else { 0o644 };
    union.create(NodeId::ROOT, name, Owner { uid: 0, gid: 0 }, mode, making).map(drop)
}

const OPERATIONS: &[Operation] = &[
    Operation { before: "true", script: "chmod 600 one", run: |union| change_mode(union, "one") },
    Operation { before: "true", script: "chmod 600 d/e/s", run: |union| change_mode(union, "d/e/s") },
    Operation { before: "true", script: "chmod 600 h2", run: |union| change_mode(union, "h2") },
    Operation { before: "true", script: "rm gone", run: |union| union.unlink(NodeId::ROOT, b"gone") },
    Operation { before: "echo more >> gone", script: "rm gone", run: |union| union.unlink(NodeId::ROOT, b"gone") },
    Operation { before: "rm x/y", script: "rmdir x", run: |union| union.rmdir(NodeId::ROOT, b"x") },
    Operation { before: "rm gone", script: "touch gone", run: |union| create(union, b"gone", Making::File) },
    Operation { before: "rm -r d", script: "mkdir d", run: |union| create(union, b"d", Making::Directory) },
    Operation { before: "true", script: "mv one two", run: |union| rename(union, b"one", b"two", RenameMode::Replace) },
    Operation {
        before: "true",
        script: "mv one gone",
        run: |union| rename(union, b"one", b"gone", RenameMode::Replace),
    },
    Operation {
        before: "chmod 600 one",
        script: "mv one two",
        run: |union| rename(union, b"one", b"two", RenameMode::Replace),
    },
    Operation { before: "true", script: "mv d m", run: |union| rename(union, b"d", b"m", RenameMode::Replace) },
    Operation {
        before: "mkdir n; touch n/f; rm -r d",
        script: "mv -T n d",
        run: |union| rename(union, b"n", b"d", RenameMode::Replace),
    },
    Operation { before: "rm x/y", script: "mv -T d x", run: |union| rename(union, b"d", b"x", RenameMode::Replace) },
    Operation {
        before: "true",
        script: "mv d t; mv x d; mv t x",
        run: |union| rename(union, b"d", b"x", RenameMode::Exchange),
    },
    Operation {
        before: "true",
        script: "ln one two",
        run: |union| union.link(find(union, "one")?, NodeId::ROOT, b"two").map(drop),
    },
];

/// Writing is two steps for whoever looks on, the copy and the write; these are complete where the first is.
const WRITES: &[Operation] = &[
    Operation { before: "true", script: "printf NEW | dd of=one conv=notrunc", run: |union| write(union, "one") },
    Operation {
        before: "chmod 600 one",
        script: "printf NEW | dd of=one conv=notrunc",
        run: |union| write(union, "one"),
    },
    Operation { before: "true", script: "printf NEW | dd of=d/h3 conv=notrunc", run: |union| write(union, "d/h3") },
    Operation {
        before: "chmod 600 h1",
        script: "printf NEW | dd of=d/h3 conv=notrunc",
        run: |union| write(union, "d/h3"),
    },
];

/// Carries out the operation that this process was started for.
fn carry_out(directory: &Path, operations: &[Operation]) {
    let number: usize = std::env::var("KILLED_OPERATION").expect("said").parse().expect("a number");
    let tree = MemoryTree::from_directory(&directory.join("lower"));
    let (upper, work) = (open_directory(&directory.join("upper")), open_directory(&directory.join("work")));
    let union = Union::open(tree, upper, work, OPTIONS).expect("opens");
    (operations[number].run)(&union).expect("it is carried out");
}

/// Runs an operation in a process of its own under strace, with further arguments for it; whether it got through.
fn run(test: &str, directory: &Path, number: usize, arguments: &[&str]) -> bool {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", &format!("trace={CALLS}")]).args(arguments);
    // Modes hold for its root as they do for everybody.
    command.args(["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]);
    let test = this_test(test);
    command.arg(test.get_program()).args(test.get_args()).arg("--test-threads=1");
    command.env("KILLED_DIRECTORY", directory).env("KILLED_OPERATION", number.to_string());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("strace runs");
    assert!(status.success() || status.signal() == Some(9) || status.code() == Some(137), "{status}");
    status.success()
}

/// The changes of the disk that an operation makes, in order: each call, and how many of its name there were by then.
fn changes_of(test: &str, directory: &Path, number: usize) -> Vec<(String, usize)> {
    let log = directory.join("trace");
    assert!(run(test, directory, number, &["-o", log.to_str().expect("a plain path")]));
    let mut seen: HashMap<String, usize> = HashMap::new();
    let text = std::fs::read_to_string(log).expect("traced");
    let calls = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.split_once('('));
    calls
        .map(|(call, _)| {
            let count = seen.entry(call.to_owned()).or_default();
            *count += 1;
            (call.to_owned(), *count)
        })
        .collect()
}

fn kill_everywhere(test: &str, operations: &[Operation]) {
    if let Some(directory) = std::env::var_os("KILLED_DIRECTORY") {
        return carry_out(Path::new(&directory), operations);
    }
    for (number, operation) in operations.iter().enumerate() {
        let mut bench = Bench::new(LOWER);
        bench.both(operation.before);
        bench.unmount_ours();
        let old = listing(&bench.path("overlay"));
        let (done, output) = shell(&bench.path("overlay"), operation.script);
        assert!(done, "{output}");
        let new = listing(&bench.path("overlay"));
        let saved = shell(&bench.path(""), "mkdir saved; cp -a upper work saved");
        assert!(saved.0, "{}", saved.1);
        let changes = changes_of(test, &bench.path(""), number);
        assert!(!changes.is_empty(), "{} changes nothing", operation.script);
        for (call, count) in changes {
            let reset = shell(&bench.path(""), "rm -r upper work && cp -a saved/upper saved/work .");
            assert!(reset.0, "{}", reset.1);
            let what = format!("{} after {}, killed at {call} {count}", operation.script, operation.before);
            let fault = format!("inject={call}:signal=SIGKILL:when={count}");
            assert!(!run(test, &bench.path(""), number, &["-o", "/dev/null", "-e", &fault]), "{what}");
            bench.mount_ours();
            let seen = listing(&bench.path("ours"));
            assert!(seen == old || seen == new, "{what}:\n{seen}\nold:\n{old}\nnew:\n{new}");
            let script = "echo lives > one2 && rm one2 && echo more >> h2 && cat h2 h1";
            let (done, output) = shell(&bench.path("ours"), script);
            assert!(done && output.matches("more").count() == 2, "{what}: {output}");
            bench.unmount_ours();
        }
    }
}

#[test]
fn a_kill_at_any_step_leaves_the_old_or_the_new_state() {
    kill_everywhere("kills::a_kill_at_any_step_leaves_the_old_or_the_new_state", OPERATIONS);
}

#[test]
fn a_kill_at_any_step_of_a_write_leaves_the_old_or_the_new_content() {
    kill_everywhere("kills::a_kill_at_any_step_of_a_write_leaves_the_old_or_the_new_content", WRITES);
}

#[test]
fn content_is_handed_to_the_disk_before_it_has_a_name() {
    const NAME: &str = "kills::content_is_handed_to_the_disk_before_it_has_a_name";
    if let Some(directory) = std::env::var_os("KILLED_DIRECTORY") {
        return carry_out(Path::new(&directory), WRITES);
    }
    // A new copy, and one that had its metadata only: the mark that says so goes last.
    for (number, last) in [(0, "linkat"), (1, "fremovexattr")] {
        let mut bench = Bench::new(LOWER);
        bench.both(WRITES[number].before);
        bench.unmount_ours();
        let log = bench.path("trace");
        let traced = ["-o", log.to_str().expect("a plain path"), "-e", "trace=sync_file_range,linkat,fremovexattr"];
        assert!(run(NAME, &bench.path(""), number, &traced));
        let text = std::fs::read_to_string(log).expect("traced");
        let calls: Vec<_> =
            text.lines().filter_map(|line| Some(line.split_whitespace().nth(1)?.split_once('(')?.0)).collect();
        let at = |call| calls.iter().position(|made| *made == call);
        assert!(at("sync_file_range").is_some() && at("sync_file_range") < at(last), "{calls:?}");
    }
}

/// Renamings that need a second step, where the file system cannot leave a whiteout behind in one.
const SECOND_STEPS: &[Operation] = &[
    Operation { before: "chmod 600 one gone", script: "true", run: |union| half_renamed(union, "one", "gone") },
    Operation { before: "chmod 600 one", script: "true", run: |union| half_renamed(union, "one", "gone") },
    Operation {
        before: "chmod 600 one; rm gone; echo g > gone",
        script: "true",
        run: |union| half_renamed(union, "one", "gone"),
    },
    Operation { before: "chmod 600 one; rm gone", script: "true", run: |union| half_renamed(union, "one", "gone") },
    Operation { before: "mkdir e; chmod 700 d", script: "true", run: |union| half_renamed(union, "d", "e") },
];

/// Fails, and both names lead to what they led to.
fn half_renamed(union: &Union<MemoryTree>, from: &str, to: &str) -> Result<()> {
    let both = || [from, to].map(|name| find(union, name));
    let before = both();
    let renamed = rename(union, from.as_bytes(), to.as_bytes(), RenameMode::Replace);
    assert_eq!((renamed, both()), (Err(rustix::io::Errno::IO), before));
    Ok(())
}

#[test]
fn a_renaming_that_fails_in_its_second_step_changes_nothing() {
    const NAME: &str = "kills::a_renaming_that_fails_in_its_second_step_changes_nothing";
    if let Some(directory) = std::env::var_os("KILLED_DIRECTORY") {
        return carry_out(Path::new(&directory), SECOND_STEPS);
    }
    for (number, operation) in SECOND_STEPS.iter().enumerate() {
        let mut bench = Bench::new(LOWER);
        bench.both(operation.before);
        bench.unmount_ours();
        let faults = ["-o", "/dev/null", "-e", "inject=renameat2:error=EINVAL:when=1", "-e", "inject=linkat:error=EIO"];
        assert!(run(NAME, &bench.path(""), number, &faults), "{}", operation.before);
        bench.mount_ours();
        bench.both("ls; cat one gone");
        assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")), "{}", operation.before);
    }
}

/// The names are the upper's before the count of those that are the tree's own is.
const COUNTED: &[Operation] = &[Operation {
    before: "chmod 600 h1",
    script: "mv d/h3 h3; mv h2 h4",
    run: |union| {
        let links = |name| Ok::<_, rustix::io::Errno>(union.lookup(NodeId::ROOT, name)?.map(|found| found.links));
        let directory = find(union, "d")?;
        union.rename(directory, b"h3", NodeId::ROOT, b"h3", RenameMode::Replace)?;
        rename(union, b"h2", b"h4", RenameMode::Replace)?;
        assert_eq!([links(b"h1")?, links(b"h3")?, links(b"h4")?], [Some(3); 3]);
        Ok(())
    },
}];

#[test]
fn a_name_whose_count_finds_no_room_is_renamed_and_counted_later() {
    const NAME: &str = "kills::a_name_whose_count_finds_no_room_is_renamed_and_counted_later";
    if let Some(directory) = std::env::var_os("KILLED_DIRECTORY") {
        return carry_out(Path::new(&directory), COUNTED);
    }
    let mut bench = Bench::new(LOWER);
    bench.both(COUNTED[0].before);
    bench.unmount_ours();
    assert!(run(NAME, &bench.path(""), 0, &["-o", "/dev/null", "-e", "inject=symlinkat:error=ENOSPC"]));
    let (done, output) = shell(&bench.path("overlay"), COUNTED[0].script);
    assert!(done, "{output}");
    bench.mount_ours();
    assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")));
    bench.both("stat -c %h h1 h3 h4; rm h3; stat -c %h h1; rm h1; stat -c %h h4");
}

/// What takes a mode for a moment that its owner has not given: a process without the capability for that.
const GRANTED: &[Operation] = &[
    Operation {
        before: "echo x >> one; chmod 0 one",
        script: "printf NEW | dd of=one conv=notrunc",
        run: |union| write(union, "one"),
    },
    Operation {
        before: "mkdir s; touch s/f; chmod 0 s",
        script: "mv s t",
        run: |union| rename(union, b"s", b"t", RenameMode::Replace),
    },
    Operation {
        before: "echo x >> h1; chmod 0 h1",
        script: "printf NEW | dd of=h2 conv=notrunc",
        run: |union| write(union, "h2"),
    },
];

#[test]
fn a_kill_while_a_mode_is_changed_for_a_moment_leaves_the_mode_that_was_set() {
    const NAME: &str = "kills::a_kill_while_a_mode_is_changed_for_a_moment_leaves_the_mode_that_was_set";
    kill_everywhere(NAME, GRANTED);
}
