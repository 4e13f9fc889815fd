//! Builds that are killed in the middle: the next one works, and nothing of the first is left.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use fixtures::names;
use fixtures::process::{Watched, with_word};
use fixtures::user::User;

use crate::support::{Bench, SHELL};

fn a_killed_run_step_leaves_nothing(bench: &Bench) {
    // The word is in the command line of the step's processes and of nothing else.
    let word = format!("marker-{}", bench.store().display()).replace('/', "-");
    bench.dockerfile(&format!("{SHELL}RUN echo begun; echo {word} > /x; while true; do sleep 1000; done"));
    let mut command = bench.command(&["build", "--progress", "plain", "context"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let begun = lines.map_while(Result::ok).find(|line| line.ends_with(" begun"));
    assert!(begun.is_some(), "the step began");
    let of_step = with_word(&word);
    assert!(!of_step.is_empty());
    child.kill().expect("killed");
    child.wait().expect("ended");
    of_step.into_iter().for_each(Watched::ends);
    bench.dockerfile(&format!("{SHELL}RUN echo done > /x"));
    bench.build(&[]).succeeds();
    // The next build has swept the directory of the killed step, which belonged to nobody any more.
    assert_eq!(std::fs::read_dir(bench.store().join("uppers")).expect("listed").count(), 0);
    bench.assert_clean();
}

/// What a build does when it gets a signal, and what of its output tells that.
const MOMENTS: [(&str, &str); 4] = [
    ("RUN echo begun; echo WORD > /x; while true; do sleep 1000; done", " begun"),
    // Nobody in the step listens to signals, and not all are in its session.
    ("RUN trap '' INT TERM HUP; (setsid sleep 100000 & sleep 100000) & echo begun WORD; wait", " begun WORD"),
    // In the middle of the steps before it.
    ("RUN head -c 30000000 /dev/zero > /WORD", "COPY busybox /bin/busybox"),
    ("RUN head -c 30000000 /dev/zero > /WORD", "#3 [shell"),
];

/// Sends `signal` at each moment, and asserts that at the end of the program nothing of the build is left.
fn an_interrupted_build_leaves_nothing(bench: &Bench, arguments: &[&str], signal: Signal) {
    for (number, (step, sign)) in MOMENTS.iter().enumerate() {
        let word = format!("marker-{number}-{}", bench.store().display()).replace('/', "-");
        bench.dockerfile(&format!("{SHELL}{}", step.replace("WORD", &word)));
        let arguments = [&["build", "--progress", "plain", "--no-cache"], arguments, &["context"]].concat();
        let mut command = bench.command(&arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let sign = sign.replace("WORD", &word);
        assert!(lines.by_ref().any(|line| line.contains(&sign)), "{sign:?} was told");
        let of_step = with_word(&word);
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("small")).expect("positive");
        kill_process(pid, signal).expect("it is there");
        let rest: Vec<String> = lines.collect();
        let status = child.wait().expect("ended");
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{rest:?}");
        of_step.into_iter().for_each(Watched::ends);
        assert!(with_word(&word).is_empty());
        bench.assert_clean();
    }
    bench.dockerfile(&format!("{SHELL}RUN echo done > /x"));
    bench.build(&[]).succeeds();
    bench.assert_clean();
}

#[test]
fn an_interrupted_build_leaves_nothing_at_any_moment() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        an_interrupted_build_leaves_nothing(&Bench::with_busybox(), &[], signal);
    }
}

#[test]
fn an_interrupted_build_of_an_ordinary_user_leaves_nothing_either() {
    let user = User::new();
    an_interrupted_build_leaves_nothing(&Bench::with_busybox().owned_by(&user), &[], Signal::TERM);
}

#[test]
fn an_interrupted_build_with_a_runtime_leaves_nothing_either() {
    if Bench::new().has_runtime("runc") {
        an_interrupted_build_leaves_nothing(&Bench::with_busybox(), &["--oci-runtime", "runc"], Signal::INT);
    }
}

#[test]
fn a_build_killed_in_a_run_step_leaves_no_process_no_mount_and_a_good_store() {
    a_killed_run_step_leaves_nothing(&Bench::with_busybox());
}

#[test]
fn a_build_of_an_ordinary_user_killed_in_a_run_step_leaves_nothing_either() {
    let user = User::new();
    a_killed_run_step_leaves_nothing(&Bench::with_busybox().owned_by(&user));
}

#[test]
fn a_build_killed_while_it_writes_a_layer_publishes_nothing_of_it() {
    use rustix::fs::inotify;
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nCOPY small /small").file("small", "s");
    bench.build(&[]).succeeds();
    let layers = names(&bench.store().join("layers"));
    // Large enough that writing it takes far longer than being told that it began.
    let noise: Vec<u8> = (0..48_u64 << 20).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8).collect();
    bench.dockerfile("FROM scratch\nCOPY large /large").file("large", noise);
    let events = inotify::init(inotify::CreateFlags::CLOEXEC).expect("inotify");
    let changes = inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY | inotify::WatchFlags::DELETE;
    inotify::add_watch(&events, bench.store().join("tmp"), changes).expect("watched");
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&events, &mut buffer);
    let mut command = bench.command(&["build", "context"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
    // First the session's directory appears, then in it the draft of the layer grows.
    while child.try_wait().expect("asked").is_none() && !has_large_draft(&bench) {
        let event = reader.next().expect("an event");
        let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let session = bench.store().join("tmp").join(name);
        if session.is_dir() {
            // It may be gone again; then the next event tells.
            _ = inotify::add_watch(&events, &session, changes);
        }
    }
    assert!(child.try_wait().expect("asked").is_none(), "the build ended before it could be killed");
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(names(&bench.store().join("layers")), layers, "a layer was published");
    let digest = bench.build(&[]).digest();
    let other = Bench::new();
    fs::copy(bench.path("context/large"), other.path("context/large")).expect("copied");
    assert_eq!(other.dockerfile("FROM scratch\nCOPY large /large").build(&[]).digest(), digest);
    bench.assert_clean();
}

/// Whether a layer is being written.
fn has_large_draft(bench: &Bench) -> bool {
    let tmp = bench.store().join("tmp");
    let is_large = |path: std::path::PathBuf| fs::metadata(path).is_ok_and(|found| found.len() > 1 << 20);
    names(&tmp)
        .iter()
        .any(|session| names(&tmp.join(session)).iter().any(|name| is_large(tmp.join(session).join(name))))
}
