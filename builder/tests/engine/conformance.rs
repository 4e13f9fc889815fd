//! The shared conformance cases, with goldens recorded from BuildKit: as root, and once more as an ordinary user.

use fixtures::user::User;
use fixtures::{Desk, run};

/// Left out for an ordinary user: `cp` of a set-user-id file. The kernel takes the bit from a file that is written by
/// whoever has no CAP_FSETID of the machine's own (`setattr_should_drop_suidgid`), on every file system.
const ROOT_ONLY: &str = "stages/scratch-and-whiteouts\n";

/// Runs all cases, and asserts that none failed.
fn cases_pass(user: Option<&User>) {
    let Some(runner) = fixtures::shared("conformance/dockerfile") else { return };
    let mut desk = Desk::new(env!("CARGO_BIN_EXE_nacre")).with("NACRE_PROGRESS", "plain");
    // The cases may lie where only root can read.
    run("cp", &["-r".as_ref(), runner.as_os_str(), desk.path("runner").as_os_str()]);
    desk.write("root-only", ROOT_ONLY).write("tmp/here", "");
    let mut script =
        "TMPDIR=$PWD/tmp python3 runner/run_cases.py --builder nacre --bin $PROGRAM runner/cases".to_owned();
    if let Some(user) = user {
        script += " --skip-list root-only";
        desk = desk.owned_by(user);
    }
    let ended = desk.shell(&script);
    let closing = ended.stdout.lines().last().unwrap_or_default();
    assert!(closing.contains(" 0 failed"), "{}{}", ended.stdout, ended.stderr);
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
