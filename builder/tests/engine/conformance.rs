//! The shared conformance cases, with goldens recorded from BuildKit: as root, and once more as an ordinary user.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use fixtures::user::User;

use crate::support::run;

/// Left out for an ordinary user: `cp` of a set-user-id file. The kernel takes the bit from a file that is written by
/// whoever has no CAP_FSETID of the machine's own (`setattr_should_drop_suidgid`), on every file system.
const ROOT_ONLY: &str = "stages/scratch-and-whiteouts\n";

/// Runs all cases, and asserts that none failed.
fn cases_pass(user: Option<&User>) {
    let Some(runner) = fixtures::shared("conformance/dockerfile") else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    run("cp", &[env!("CARGO_BIN_EXE_nacre"), &at("nacre")]);
    // The cases may lie where only root can read.
    run("cp", &["-r", runner.to_str().expect("text"), &at("runner")]);
    let mut command = Command::new("python3");
    command.arg(at("runner/run_cases.py")).args(["--builder", "nacre", "--bin", &at("nacre"), &at("runner/cases")]);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("NACRE_ROOT", at("store"));
    command.env("HOME", at("")).env("TMPDIR", at("tmp")).current_dir(directory.path());
    std::fs::create_dir(at("tmp")).expect("a directory");
    if let Some(user) = user {
        std::fs::write(at("root-only"), ROOT_ONLY).expect("written");
        command.args(["--skip-list", &at("root-only")]);
        run("chown", &["-hR", &format!("{}:{}", user.uid(), user.gid()), &at("")]);
        command.uid(user.uid()).gid(user.gid());
    }
    let output = command.output().expect("python3 runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let closing = text.lines().last().unwrap_or_default();
    assert!(closing.contains(" 0 failed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let passed: usize = closing.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
    assert!(passed > 300, "{closing}");
}

#[test]
fn every_conformance_case_passes() {
    cases_pass(None);
}

#[test]
fn every_conformance_case_passes_for_an_ordinary_user() {
    cases_pass(Some(&User::new()));
}
