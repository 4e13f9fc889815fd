//! Steps that fail, and what they may use: the shell on a failed step, limits, OCI runtimes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::OpenptFlags;

use crate::support::{Bench, SHELL};

/// A terminal with a program on it.
struct Terminal {
    master: File,
    slave: OwnedFd,
    child: Child,
    seen: String,
}

impl Terminal {
    fn with(mut command: Command) -> Self {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pty");
        rustix::pty::grantpt(&master).expect("granted");
        rustix::pty::unlockpt(&master).expect("unlocked");
        let name = rustix::pty::ptsname(&master, Vec::new()).expect("named");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).expect("opened");
        let side = || slave.try_clone().expect("duplicated");
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("runs");
        Self { master: master.into(), slave, child, seen: String::new() }
    }

    fn wait_for(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !self.seen.contains(text) {
            let read = self.master.read(&mut buffer).unwrap_or_else(|error| panic!("{error} after {}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("typed");
    }

    fn is_raw(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.slave).expect("a terminal").local_modes;
        !modes.contains(rustix::termios::LocalModes::ICANON)
    }

    /// Shows all that comes, until the program and its terminal are over.
    fn finish(mut self) -> (Option<i32>, String) {
        assert!(!self.is_raw() || self.child.try_wait().expect("asked").is_none());
        let code = self.child.wait().expect("ended").code();
        assert!(!self.is_raw(), "the terminal is as it was");
        drop(self.slave);
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = self.master.read(&mut buffer) {
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        (code, self.seen)
    }
}

/// The step changes a file and fails; the shell is to find all of it.
fn failing() -> String {
    format!(
        "{SHELL}ENV COLOUR=blue\nWORKDIR /work\nRUN --network=none --mount=type=tmpfs,target=/scratch \\\n \
         echo changed > file; exit 3"
    )
}

#[test]
fn a_shell_opens_where_the_step_failed_and_the_build_fails_as_it_would() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&failing());
    let mut terminal = Terminal::with(bench.command(&["build", "--on-failure=shell", "context"]));
    terminal.wait_for("leaving it ends the build");
    terminal.wait_for("# ");
    // What is typed is shown as well: only the shell's answer has the values.
    terminal.type_in(
        "echo \"[$PWD] [$COLOUR] [$(cat file)] [$(id -u)] [$(grep -c : /proc/net/dev)]\"; test -t 0 && echo t-$?\r",
    );
    terminal.wait_for("[/work] [blue] [changed] [0] [1]");
    terminal.wait_for("t-0");
    assert!(terminal.is_raw());
    terminal.type_in("grep -q ' /scratch ' /proc/self/mounts && echo m-$?; exit 7\r");
    terminal.wait_for("m-0");
    let (code, text) = terminal.finish();
    assert_eq!(code, Some(1));
    assert!(text.ends_with("^\r\n") && text.contains("exit code: 3"), "{text}");
    bench.assert_clean();
}

#[test]
fn a_signal_ends_the_shell_too_and_gives_the_terminal_back() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&failing());
    let mut terminal = Terminal::with(bench.command(&["build", "--on-failure=shell", "context"]));
    terminal.wait_for("leaving it ends the build");
    terminal.wait_for("# ");
    let pid = Pid::from_raw(i32::try_from(terminal.child.id()).expect("small")).expect("positive");
    kill_process(pid, Signal::TERM).expect("it is there");
    assert_eq!(terminal.finish().0, Some(143));
    bench.assert_clean();
}

#[test]
fn a_shell_without_a_terminal_is_an_error_before_anything_is_built() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch");
    let said = bench.build(&["--on-failure=shell"]).fails(1);
    assert!(said.contains("--on-failure=shell needs a terminal") && said.contains("hint:"), "{said}");
    assert!(bench.build(&["--on-failure=panic"]).fails(2).contains("panic"));
}

#[test]
fn a_failed_step_shows_its_line_its_code_and_its_last_words() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN echo last words; exit 42"));
    let said = bench.build(&[]).fails(1);
    let line = "context/Dockerfile:4:1: process \"/bin/sh -c echo last words; exit 42\" did not complete successfully: exit code: 42";
    assert!(said.contains(&format!("error: {line}\n")), "{said}");
    assert!(
        said.contains("  | last words\n") && said.contains(" 4 | RUN echo last words; exit 42\n   | ^^^"),
        "{said}"
    );
}

#[test]
fn limits_bound_a_step_and_are_no_part_of_its_key() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN tail /dev/zero"));
    let said = bench.build(&["-m", "16m"]).fails(1);
    if said.contains("cgroup") {
        fixtures::left_out("what needs cgroups that can be made");
    } else {
        assert!(said.contains("the step's memory limit was reached"), "{said}");
    }
    bench.dockerfile(&format!("{SHELL}RUN echo x > /x"));
    bench.build(&[]).succeeds();
    assert_eq!(bench.build(&["-m", "1g", "--cpus", "0.5", "--pids-limit", "100"]).cached(), 3);
    for (flag, value) in [
        ("--memory", "much"),
        ("--memory-swap", "1g"),
        ("--cpus", "0"),
        ("--cpu-shares", "1"),
        ("--cpuset-cpus", "a"),
        ("--pids-limit", "-2"),
        ("--oci-runtime", "no-such-runtime"),
    ] {
        let said = bench.build(&[flag, value]).fails(2);
        assert!(said.contains(flag), "{said}");
    }
}

#[test]
fn a_runtime_gives_the_same_digest_and_the_same_exit_codes() {
    let bench = Bench::with_busybox();
    let text = format!(
        "{SHELL}WORKDIR /w\nUSER 5:7\nUSER 0\n\
         RUN --mount=type=secret,id=s --mount=type=cache,target=/c --mount=type=bind,target=/b \\\n\
         cat /run/secrets/s > /w/s; touch /c/x /w/f; cp /b/busybox /w/; chmod 4755 /w/f; ln /w/f /w/g; rm /bin/yes; mknod /w/p p\n\
         RUN --network=none grep -c : /proc/net/dev > /n; id > /id; umask > /umask; cat /proc/self/status | grep -e ^Cap -e ^SigBlk > /cap\n\
         RUN <<E\n#!/bin/sh\necho script > /script\nE\n"
    );
    bench.file("../secret", "hush");
    let build = |more: &[&str]| bench.build(&[&["--no-cache", "--secret", "id=s,src=secret"], more].concat());
    let own = bench.dockerfile(&text).build(&["--secret", "id=s,src=secret"]).digest();
    for program in ["runc", "crun"].into_iter().filter(|program| bench.has_runtime(program)) {
        bench.dockerfile(&text);
        assert_eq!(build(&["--oci-runtime", program]).digest(), own, "{program}");
        for (command, code) in [("exit 9", 9), ("[\"nowhere\"]", 127), ("[\"/etc/passwd\"]", 126)] {
            bench.dockerfile(&format!("{SHELL}COPY Dockerfile /etc/passwd\nRUN {command}"));
            let said = bench.build(&["--oci-runtime", program]).fails(1);
            assert!(said.contains(&format!("exit code: {code}\n")), "{program}, {command}: {said}");
        }
    }
    bench.assert_clean();
}

#[test]
fn a_step_of_a_runtime_that_took_too_much_memory_says_so() {
    let bench = Bench::with_busybox();
    if !bench.has_runtime("runc") {
        return;
    }
    bench.dockerfile(&format!("{SHELL}RUN tail /dev/zero; exit 3\n"));
    let said = bench.build(&["--oci-runtime", "runc", "--memory", "32m"]).fails(1);
    if said.contains("cgroup") {
        fixtures::left_out("what needs cgroups that can be made");
    } else {
        assert!(said.contains("memory limit was reached"), "{said}");
    }
    bench.dockerfile(&format!("{SHELL}RUN exit 3\n"));
    let said = bench.build(&["--oci-runtime", "runc", "--memory", "32m"]).fails(1);
    assert!(!said.contains("memory limit was reached"), "{said}");
    bench.assert_clean();
}

#[test]
fn devices_for_a_step_are_an_error_that_names_the_flag() {
    let bench = Bench::with_busybox();
    let said = bench.dockerfile(&format!("{SHELL}RUN --device=vendor.com/device=foo true")).build(&[]).fails(1);
    assert!(said.contains("--device"), "{said}");
}

#[test]
fn a_trigger_that_fails_is_shown_at_the_from_that_brought_it() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}ONBUILD RUN exit 4\n\n# between\nFROM shell\n"));
    let failed = bench.build(&[]);
    assert!(failed.stderr.contains("exit code: 4"), "{}", failed.stderr);
    // SHELL has three lines.
    assert!(failed.stderr.contains("Dockerfile:7"), "{}", failed.stderr);
}
