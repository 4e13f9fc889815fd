//! Steps at the same time: of one build, of two builds; and what one failure does to the others.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use fixtures::names;

use crate::support::{Bench, SHELL};

/// Waits for a file of the cache mount, but not for ever: a build that goes wrong is to fail.
fn until(path: &str) -> String {
    format!("timeout 60 sh -c 'until [ -e {path} ]; do :; done'")
}

const CACHE: &str = "RUN --mount=type=cache,id=c,target=/c ";

#[test]
fn independent_stages_run_at_the_same_time() {
    let bench = Bench::with_busybox();
    let (for_a, for_b) = (until("/c/a"), until("/c/b"));
    bench.dockerfile(&format!(
        "{SHELL}FROM shell AS a\n{CACHE}touch /c/a && {for_b} && echo a > /a\n\
         FROM shell AS b\n{CACHE}touch /c/b && {for_a} && echo b > /b\n\
         FROM shell\nCOPY --from=a /a /\nCOPY --from=b /b /\n"
    ));
    bench.build(&["--jobs", "2"]).succeeds();
    bench.assert_clean();
}

#[test]
fn a_step_that_runs_waits_for_no_other_stage() {
    let bench = Bench::with_busybox();
    let text = format!(
        "{SHELL}FROM shell AS seed\nRUN echo one > /file\n\
         FROM shell\nRUN --mount=type=cache,id=c,target=/c,from=seed cat /c/file > /copy\n"
    );
    bench.dockerfile(&text);
    let first = bench.build(&["--jobs", "1"]).succeeds().digest();
    bench.assert_clean();
    // What a cache begins with is an input of its step.
    bench.dockerfile(&text.replace("echo one", "echo two"));
    let second = bench.build(&["--jobs", "1"]).succeeds();
    assert_ne!(second.digest(), first, "a cache that begins with something else is another");
    assert_eq!(bench.build(&["--jobs", "1"]).cached(), 4);
    bench.dockerfile(&text.replace("echo one", "echo three"));
    assert_eq!(bench.build(&["--jobs", "1"]).cached(), 2, "those of the shell");
}

#[test]
fn locked_caches_are_waited_for_in_one_order() {
    let bench = Bench::with_busybox();
    let mount = |id: &str, target: &str| format!("--mount=type=cache,sharing=locked,id={id},target={target} ");
    let (a, b, again) = (mount("a", "/a"), mount("b", "/b"), mount("a", "/again"));
    let step = |mounts: &str, name: &str, number: usize| format!("RUN {mounts}touch /a/x && echo {number} > /{name}\n");
    let steps = |mounts: &str, name: &str| (0..4).map(|number| step(mounts, name, number)).collect::<String>();
    bench.dockerfile(&format!(
        "{SHELL}FROM shell AS one\n{}FROM shell AS two\n{}FROM shell\n\
         RUN {a}{again}touch /a/z && test -e /again/z\n\
         COPY --from=one /one /\nCOPY --from=two /two /\n",
        steps(&format!("{a}{b}"), "one"),
        steps(&format!("{b}{a}"), "two"),
    ));
    bench.build(&["--jobs", "3"]).succeeds();
    bench.assert_clean();
}

#[test]
fn one_failure_stops_the_others_and_shows_itself() {
    let bench = Bench::with_busybox();
    let for_a = until("/c/a");
    bench.dockerfile(&format!(
        "{SHELL}FROM shell AS a\n{CACHE}touch /c/a && while true; do sleep 1000; done\n\
         FROM shell AS b\n{CACHE}{for_a} && exit 7\n\
         FROM shell\nCOPY --from=a /a /\nCOPY --from=b /b /\n"
    ));
    let said = bench.build(&["--jobs", "4"]).fails(1);
    assert!(said.contains("exit code: 7"), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    bench.assert_clean();
}

#[test]
fn the_number_of_jobs_changes_neither_digest_nor_names_of_steps() {
    let stage = |name: &str| format!("FROM shell AS {name}\nRUN echo {name} > /{name}\nRUN echo same > /same\n");
    let stages = ["a", "b", "c"].map(stage).concat();
    let text = format!("{SHELL}{stages}FROM a\nCOPY --from=b /b /same /\nCOPY --from=c /c /\nRUN ls / > /list\n");
    let built = ["1", "8"].map(|jobs| {
        let bench = Bench::with_busybox();
        bench.dockerfile(&text);
        let done = bench.build(&["--jobs", jobs]).succeeds();
        let mut steps: Vec<String> =
            done.stderr.lines().filter(|line| line.starts_with('#') && line.contains('[')).map(str::to_owned).collect();
        steps.sort();
        (done.digest(), steps)
    });
    assert_eq!(built[0], built[1]);
    assert_eq!(built[0].1.len(), 2 + 3 * 2 + 3);
    let bench = Bench::with_busybox();
    bench.dockerfile(&text);
    bench.build(&[]).succeeds();
    assert_eq!(bench.build(&["--jobs", "8"]).digest(), built[0].0, "from the cache");
}

/// A running build, and what it says.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

fn start(bench: &Bench) -> Running {
    let mut command = bench.command(&["build", "--progress", "plain", "context"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    Running { child, lines }
}

impl Running {
    fn says(&mut self, end: &str) {
        let found = self.lines.by_ref().map_while(Result::ok).any(|line| line.ends_with(end));
        assert!(found, "nothing that ends in {end}");
    }

    fn digest(mut self) -> String {
        let rest: Vec<String> = self.lines.map_while(Result::ok).collect();
        let mut digest = String::new();
        self.child.stdout.take().expect("piped").read_to_string(&mut digest).expect("text");
        assert!(self.child.wait().expect("ends").success(), "{rest:?}");
        digest
    }
}

#[test]
fn two_builds_of_one_step_carry_it_out_once() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}{CACHE}echo x >> /c/runs; echo begun; {}\n", until("/c/go")));
    let mut first = start(&bench);
    first.says(" begun");
    let mut second = start(&bench);
    second.says("until [ -e /c/go ]; do :; done'");
    let caches = bench.store().join("cache-mounts");
    let cache: PathBuf = caches.join(&names(&caches)[0]);
    let runs = find(&cache, "runs");
    fs::write(runs.with_file_name("go"), "").expect("written");
    assert_eq!(first.digest(), second.digest());
    assert_eq!(fs::read_to_string(runs).expect("there"), "x\n");
    bench.assert_clean();
}

/// Where a file lies below a directory.
fn find(directory: &std::path::Path, name: &str) -> PathBuf {
    let mut pending = vec![directory.to_owned()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(at).expect("listed") {
            let path = entry.expect("listed").path();
            if path.file_name().is_some_and(|found| found == name) {
                return path;
            }
            if path.is_dir() {
                pending.push(path);
            }
        }
    }
    panic!("no {name} below {}", directory.display());
}
