//! The program as a person uses it: each verb's main job and main failures, as root and as an ordinary user.
//!
//! Invariant: a test has a store, a home and an image of its own, and leaves no mount, process or user behind. It needs
//! root, /dev/fuse that everyone may open, busybox-static, fusermount3 and the programs of the package uidmap.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use fixtures::registry::{PASSWORD, Registry, USER};
use fixtures::user::User;
use fixtures::{Desk, Ended};
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use serde_json::Value;

/// One person with a build context and a directory to mount on.
struct Person {
    desk: Desk,
    user: Option<User>,
}

impl Deref for Person {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl Person {
    fn new(user: Option<User>) -> Self {
        let desk = Desk::new(env!("CARGO_BIN_EXE_nacre"));
        fs::create_dir(desk.path("mount")).expect("a directory");
        let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\n\
            RUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox --install -s /bin; mkdir -p /etc /home/app; \
            echo app:x:1000:1000::/home/app:/bin/sh > /etc/passwd; chown 1000:1000 /home/app\"]\n\
            ENV GREETING=hello\nCMD [\"sh\", \"-c\", \"echo $GREETING from $(id -u)\"]\n";
        desk.busybox("context/busybox").write("context/Dockerfile", dockerfile);
        let desk = match &user {
            Some(user) => desk.owned_by(user),
            None => desk,
        };
        Self { desk, user }
    }

    /// One with the image `app` in the store.
    fn with_image(user: Option<User>) -> Self {
        let person = Self::new(user);
        person.run(&["build", "-t", "app", "context"]).success();
        person
    }

    /// What a script prints in the mount.
    #[track_caller]
    fn shell(&self, script: &str) -> String {
        self.desk.shell(&format!("cd mount; {script}")).success()
    }

    fn mounts(&self) -> Vec<Value> {
        self.run(&["mount", "--all", "--format", "json"]).json().as_array().expect("a list").clone()
    }

    /// Kills the server as the out-of-memory killer would.
    fn kill_server(&self) {
        let pid = self.mounts()[0]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        rustix::process::kill_process(pid.expect("a live mount"), Signal::KILL).expect("killed");
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        for mount in self.mounts() {
            let directory = mount["directory"].as_str().expect("a path");
            self.run(&["unmount", "--discard", mount["upper"].as_str().unwrap_or(directory)]);
        }
    }
}

fn as_root_and_as_user(test: impl Fn(Person)) {
    test(Person::with_image(None));
    test(Person::with_image(Some(User::new())));
}

#[test]
fn a_command_runs_with_what_the_image_says_unless_it_is_told_otherwise() {
    as_root_and_as_user(|person| {
        let run = |arguments: &[&str]| person.run(&[&["run"], arguments].concat());
        assert_eq!(run(&["app"]).success(), "hello from 0");
        assert_eq!(run(&["-u", "app", "-e", "GREETING=bye", "app"]).success(), "bye from 1000");
        let script = "pwd; hostname; echo $HOME; cat /etc/hosts";
        let text = run(&[
            "-u",
            "1000",
            "-w",
            "/new/dir",
            "--hostname",
            "box",
            "--add-host",
            "db:10.0.0.1",
            "app",
            "sh",
            "-c",
            script,
        ]);
        let text = text.success();
        assert!(text.starts_with("/new/dir\nbox\n/home/app\n"), "{text}");
        assert!(text.lines().any(|line| line.split_whitespace().eq(["10.0.0.1", "db"])), "{text}");
        assert_eq!(run(&["--entrypoint", "echo", "app", "a", "b"]).success(), "a b");
        let volume = format!("{}:/data/here:ro", person.text("context"));
        let text = run(&["-v", &volume, "app", "sh", "-c", "ls /data/here; touch /data/here/x 2>&1"]);
        assert_eq!(text.stdout, "Dockerfile\nbusybox\ntouch: /data/here/x: Read-only file system\n");
        let text = run(&["--read-only", "app", "sh", "-c", "touch /x 2>&1; touch /dev/shm/x && echo shm"]).success();
        assert_eq!(text, "touch: /x: Read-only file system\nshm");
        assert_eq!(run(&["-t", "app", "sh", "-c", "test -t 0 && test -t 2 && tty"]).success(), "/dev/console");
    });
}

#[test]
fn a_terminal_is_handed_on_with_its_size() {
    as_root_and_as_user(|person| {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        rustix::pty::unlockpt(&master).expect("unlocked");
        let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).expect("resized");
        let name = rustix::pty::ptsname(&master, Vec::new()).expect("a name").into_string().expect("UTF-8");
        let side = fs::File::options().read(true).write(true).open(name).expect("the other side");
        let other = || Stdio::from(side.try_clone().expect("a duplicate"));
        let mut master = fs::File::from(master);
        master.write_all(b"stty size; exit 9\n").expect("typed");
        let mut command = person.command(&["run", "-it", "app", "sh"]);
        let mut child = command.stdin(other()).stdout(other()).stderr(other()).spawn().expect("started");
        assert_eq!(child.wait().expect("ended").code(), Some(9));
        drop((command, side));
        let mut shown = Vec::new();
        // The last close of the other side is an error here, after all that was written.
        _ = master.read_to_end(&mut shown);
        assert!(String::from_utf8_lossy(&shown).contains("33 101"), "{}", String::from_utf8_lossy(&shown));
    });
    let person = Person::new(None);
    person.run(&["run", "-it", "app"]).failure(125, "no terminal");
}

#[test]
fn exit_codes_of_run_are_those_of_docker() {
    let person = Person::with_image(None);
    assert_eq!(person.run(&["run", "app", "sh", "-c", "exit 7"]).code, Some(7));
    assert_eq!(person.run(&["run", "app", "sh", "-c", "kill -9 $$"]).code, Some(137));
    assert_eq!(person.run(&["run", "app", "/etc/passwd"]).code, Some(126));
    assert_eq!(person.run(&["run", "app", "nothere"]).code, Some(127));
    person.run(&["run", "-u", "stranger", "app"]).failure(125, "stranger");
    person.run(&["run", "--name", "x", "app"]).failure(125, "--name");
    person.run(&["run", "-v", "data:/data", "app"]).failure(125, "named volumes");
    person.run(&["run", "127.0.0.1:1/app"]).failure(125, "127.0.0.1:1");
    person.run(&["run", "--nonsense", "app"]).failure(125, "--nonsense");
}

#[test]
fn what_docker_has_and_this_does_not_is_told_with_the_way() {
    let person = Person::with_image(None);
    person.run(&["run", "-p", "80:80", "app"]).failure(125, "its ports are open as they are");
    person.run(&["build", "--provenance=version=v0.2", "."]).failure(2, "version=v0.2 is not supported");
    person.run(&["build", "nowhere"]).failure(1, "cannot find the build context nowhere");
    person.run(&["inspect", "docker-archive:x.tar"]).failure(1, "x.tar");
    person.run(&["copy", "app", "store:app:1"]).failure(1, "store:app:1");
    // The variable NACRE_ROOT is no argument.
    person.run(&["build"]).failure(2, "Usage: nacre build [OPTIONS] <CONTEXT>");
}

#[test]
fn run_mounts_memory_and_directories_whatever_the_order() {
    as_root_and_as_user(|person| {
        let here = person.path("here");
        std::fs::create_dir_all(here.join("sub")).expect("a directory");
        std::fs::write(here.join("file"), "x").expect("written");
        let mount = format!("type=bind,src={},dst=/mnt,readonly", here.display());
        let script = "cat /mnt/file && ! touch /mnt/new 2> /dev/null && touch /mnt/sub/new && stat -c %a /mnt/sub";
        let flags = ["--tmpfs", "/mnt/sub:size=1m,mode=711", "--mount", &mount];
        let ran = person.run(&[&["run"][..], &flags, &["app", "sh", "-c", script]].concat()).success();
        assert_eq!(ran, "x711");
    });
    let person = Person::with_image(None);
    for (mount, words) in [
        ("type=volume,src=a,dst=/x", "named volumes"),
        ("type=bind,src=/nowhere,dst=/x", "/nowhere"),
        ("type=tmpfs,dst=/x,readonly", "not of this type"),
        ("type=bind,src=/,dst=/x,bind-propagation=shared", "bind-propagation"),
        ("type=bind,src=/,dst=/", "below /"),
    ] {
        person.run(&["run", "--mount", mount, "app"]).failure(125, words);
    }
}

#[test]
fn a_signal_is_for_the_command() {
    as_root_and_as_user(|person| {
        let script = "trap 'exit 7' TERM; echo ready; sleep 1000 & wait";
        let mut child =
            person.command(&["run", "app", "sh", "-c", script]).stdout(Stdio::piped()).spawn().expect("started");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n");
        rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).expect("sent");
        assert_eq!(child.wait().expect("ended").code(), Some(7));
    });
}

#[test]
fn standard_input_is_handed_on_only_if_that_is_asked_for() {
    let person = Person::with_image(None);
    for (flags, text) in [(&["run", "-i", "app", "cat"][..], "typed\n"), (&["run", "app", "cat"][..], "")] {
        let mut child = person.command(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
        // A command that reads nothing may be gone already.
        _ = child.stdin.take().expect("piped").write_all(b"typed\n");
        let output = child.wait_with_output().expect("ended");
        assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    }
}

#[test]
fn changes_of_a_mount_can_be_committed_while_it_is_live_and_survive_it() {
    as_root_and_as_user(|person| {
        let mount = person.text("mount");
        let id = person.run(&["mount", "app", &mount]).success();
        assert_eq!(
            person.shell("cat etc/passwd; echo new > new; rm etc/passwd; cat new"),
            "app:x:1000:1000::/home/app:/bin/sh\nnew"
        );
        assert_eq!(person.mounts()[0]["state"], "mounted");
        person.run(&["commit", &mount, "app:two", "-m", "words", "-a", "me"]).success();
        let text = person.run(&["run", "app:two", "sh", "-c", "cat /new; stat -c %u:%g /new; ls /etc"]).success();
        assert!(text.starts_with("new\n0:0\n") && !text.contains("passwd"), "{text}");
        let history = person.run(&["history", "app:two", "--format", "json"]).json();
        assert_eq!((&history[0]["created_by"], &history[0]["comment"]), (&"nacre commit".into(), &"words".into()));
        let unmounted = person.run(&["unmount", &mount]);
        assert!(unmounted.stderr.contains("--upper"), "{}", unmounted.stderr);
        assert_eq!(unmounted.success(), id);
        assert_eq!(person.shell("ls"), "");
        person.run(&["commit", &id, "app:three"]).success();
        let layers = |name: &str| person.run(&["inspect", name, "--format", "json"]).json()["layers"].clone();
        assert_eq!(layers("app:two"), layers("app:three"), "a live upper and a quiet one give the same layer");
        person.run(&["unmount", "--discard", &id]).success();
        assert_eq!(person.mounts(), [Value::Null; 0]);
    });
}

#[test]
fn changes_of_a_mount_a_layer_and_between_images_are_listed() {
    as_root_and_as_user(|person| {
        let mount = person.text("mount");
        person.run(&["mount", "app", &mount]).success();
        assert_eq!(person.run(&["diff", &mount]).success(), "");
        person.shell("mkdir new; echo x > new/file; rm etc/passwd; chmod 700 home");
        let expected = "D /etc/passwd\nC /home\nA /new\nA /new/file";
        let listed = |target: &str| {
            let text = person.run(&["diff", target]).success();
            // What a change in a directory does to its time is a change, too.
            text.lines().filter(|line| !matches!(*line, "C /" | "C /etc")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(listed(&mount), expected);
        person.run(&["diff", &mount, "--long"]).failure(2, "--long");
        person.run(&["commit", &mount, "app:two"]).success();
        let id = person.run(&["unmount", &mount]).success();
        for target in [&id, "app:two"] {
            assert_eq!(listed(target), expected, "{target}");
        }
        let compared = person.run(&["diff", "app", "app:two", "--format", "json"]).json();
        let of = |path: &str| {
            let mut files = compared["files"].as_array().expect("a list").iter();
            files.find(|file| file["path"] == path).cloned().unwrap_or_default()
        };
        assert_eq!(of("/etc/passwd"), serde_json::json!({"path": "/etc/passwd", "change": "removed"}));
        assert_eq!(of("/home")["differs"][0], "mode");
        assert!(
            compared["config"].as_array().is_some_and(|at| at.contains(&"/rootfs/diff_ids/2".into())),
            "{compared}"
        );
        let long = person.run(&["diff", "app", "app:two", "--long"]).success();
        assert!(long.contains("C /home  (mode") && long.contains("config /history/"), "{long}");
        person.run(&["diff", "app", "app", "--exit-code"]).success();
        assert_eq!(person.run(&["diff", "app", "app:two", "--exit-code"]).code, Some(1));
        person.run(&["diff", "nothere"]).failure(1, "nothere");
        person.run(&["diff", "/nothere"]).failure(1, "/nothere");
        person.run(&["unmount", "--discard", &id]).success();
    });
}

#[test]
fn files_of_an_image_are_exported_as_tar_reads_them_and_the_same_each_time() {
    as_root_and_as_user(|person| {
        let file = person.text("mount/app.tar");
        person.run(&["export", "app", "-o", &file]).success();
        let piped = fixtures::output(&mut person.command(&["export", "app"]));
        assert_eq!(fs::read(&file).expect("written"), piped);
        let listed = fixtures::run("tar", &["--numeric-owner", "-tvf", &file]);
        let has = |owner: &str, name: &str| listed.lines().any(|line| line.contains(owner) && line.ends_with(name));
        assert!(has("1000/1000", "home/app/") && has("0/0", "etc/passwd"), "{listed}");
        person.run(&["export", "nothere", "-o", &file]).failure(1, "nothere");
        assert_eq!(fs::read(&file).expect("still there"), piped);
    });
}

#[test]
fn files_that_come_and_go_meanwhile_hinder_no_commit() {
    as_root_and_as_user(|person| {
        let mount = person.text("mount");
        person.run(&["mount", "app", &mount]).success();
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| {
                person.shell("for n in $(seq 30); do mkdir d; touch $(seq -f d/%g 300); rm -r d; done; echo done")
            });
            for _ in 0..5 {
                person.run(&["commit", &mount, "app:busy"]).success();
            }
            assert_eq!(busy.join().expect("no panic"), "done");
        });
        person.run(&["unmount", "--discard", &mount]).success();
    });
}

#[test]
fn a_killed_server_leaves_a_mount_that_can_be_removed_and_its_changes() {
    as_root_and_as_user(|person| {
        let mount = person.text("mount");
        let id = person.run(&["mount", "app", &mount]).success();
        person.shell("echo kept > kept; sync kept");
        person.kill_server();
        assert_eq!(person.run(&["unmount", &mount]).success(), id);
        assert_eq!(person.shell("ls"), "");
        assert_eq!(person.run(&["mount", "--upper", &id, &mount]).success(), id);
        assert_eq!(person.shell("cat kept"), "kept");
        person.run(&["unmount", "--discard", &mount]).success();
        assert_eq!(fs::read_dir(person.path("store/uppers")).expect("readable").count(), 0);
    });
}

#[test]
fn what_another_program_unmounted_can_be_mounted_again_at_once() {
    let person = Person::with_image(None);
    let mount = person.text("mount");
    let id = person.run(&["mount", "app", &mount]).success();
    for _ in 0..5 {
        person.shell("head -c 5000000 /dev/zero > zeros");
        rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()).expect("unmounted");
        assert_eq!(person.run(&["mount", "--upper", &id, &mount]).success(), id);
    }
    person.run(&["mount", "--upper", &id, &mount]).failure(1, "mounted on");
    person.run(&["unmount", "--discard", &mount]).success();
}

#[test]
fn both_planes_give_the_same_images_and_are_cleared_alike() {
    let person = Person::with_image(None);
    let mount = person.text("mount");
    let changes = "echo new > etc/new; mv home house; rm bin/vi; echo x >> etc/passwd; chmod 700 bin; ln etc/new etc/other; \
        mkdir home; touch -d @1000 etc etc/new etc/passwd . house bin home";
    let images = ["fuse", "overlay", "auto"].map(|plane| {
        person.run(&["mount", "--plane", plane, "app", &mount]).success();
        let shown = if plane == "auto" { "overlay" } else { plane };
        assert_eq!(person.mounts()[0]["plane"], shown);
        person.shell(changes);
        let commit = ["commit", &mount, &format!("app:{plane}")];
        let image = Ended::of(person.command(&commit).env("SOURCE_DATE_EPOCH", "5000")).success();
        person.run(&["unmount", "--discard", &mount]).success();
        assert_eq!(person.shell("ls"), "");
        image
    });
    assert!(images.iter().all(|image| *image == images[0]), "{images:?}");
    let id = person.run(&["mount", "--plane", "overlay", "app", &mount]).success();
    person.shell("echo kept > kept; sync kept");
    person.kill_server();
    assert_eq!(person.run(&["unmount", &mount]).success(), id);
    assert_eq!(person.shell("ls"), "");
    assert_eq!(person.run(&["mount", "--plane", "overlay", "--upper", &id, &mount]).success(), id);
    assert_eq!(person.shell("cat kept"), "kept");
    person.run(&["unmount", &mount]).success();
    person.run(&["mount", "--upper", &id, &mount]).success();
    assert_eq!((person.shell("cat kept"), &person.mounts()[0]["plane"]), ("kept".to_owned(), &"fuse".into()));
    person.run(&["unmount", &mount]).success();
    // The fuse plane has taken it over.
    person.run(&["mount", "--plane", "overlay", "--upper", &id, &mount]).failure(1, "written on the fuse plane");
    person.run(&["unmount", "--discard", &id]).success();
    person.run(&["mount", "--plane", "overlay", "--read-only", "app", &mount]).failure(1, "needs a writable layer");
    let mounts = ["run", "--plane", "overlay", "app", "head", "-n1", "/proc/mounts"];
    assert!(person.run(&mounts).success().starts_with("nacre / overlay "));
}

#[test]
fn an_ordinary_user_gets_the_overlay_only_where_nothing_is_made_from_it() {
    let person = Person::with_image(Some(User::new()));
    let mount = person.text("mount");
    person.run(&["mount", "--plane", "overlay", "app", &mount]).failure(1, "as an ordinary user");
    person.run(&["mount", "--plane", "auto", "app", &mount]).success();
    assert_eq!(person.mounts()[0]["plane"], "fuse");
    person.run(&["unmount", &mount]).success();
    let build = ["build", "--no-cache", "--plane", "overlay", &person.text("context")];
    person.run(&build).failure(1, "would depend on the plane");
    person.run(&["build", "--no-cache", "--plane", "auto", &person.text("context")]).success();
    let mounts = ["run", "--plane", "overlay", "app", "head", "-n1", "/proc/mounts"];
    assert!(person.run(&mounts).success().starts_with("nacre / overlay "));
}

#[test]
fn the_doctor_says_what_the_host_permits_and_leaves_nothing() {
    as_root_and_as_user(|person| {
        let report = person.run(&["doctor", "--format", "json"]).json();
        assert_eq!(report["builds"], true, "{report}");
        let findings = report["findings"].as_array().expect("a list");
        let state = |what: &str| {
            findings.iter().find(|finding| finding["what"] == what).map(|finding| finding["state"].clone())
        };
        let overlay = if person.user.is_some() { "limited" } else { "works" };
        assert_eq!(state("overlay plane"), Some(overlay.into()), "{report}");
        for what in ["/dev/fuse", "fuse plane", "sandbox", "seccomp filter", "namespaces of a build"] {
            assert_eq!(state(what), Some("works".into()), "{what}: {report}");
        }
        let text = person.run(&["doctor"]).success();
        assert!(text.ends_with("builds can work here") && text.contains("next: "), "{text}");
        assert_eq!(fs::read_dir(person.path("store/uppers")).expect("readable").count(), 0);
    });
    let unable = Person::new(None);
    let file = unable.text("context/Dockerfile");
    let ended = unable.run(&["--root", &file, "doctor", "--format", "json"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stdout.contains("\"builds\": false") && ended.stdout.contains("name another place"),
        "{}",
        ended.stdout
    );
}

#[test]
fn files_of_other_users_of_the_image_show_as_the_ids_that_stand_for_them() {
    use std::os::unix::fs::MetadataExt;
    let person = Person::with_image(Some(User::new()));
    let mount = person.text("mount");
    person.run(&["mount", "app", &mount]).success();
    let user = person.user.as_ref().expect("an ordinary user");
    let lines = fs::read_to_string("/etc/subuid").expect("readable");
    let line = lines.lines().find(|line| line.starts_with(&format!("{}:", user.name()))).expect("a range");
    let first: u32 = line.split(':').nth(1).expect("a field").parse().expect("a number");
    // Id 1 is the first of the range.
    let home = person.shell("stat -c %u home/app bin");
    assert_eq!(home, format!("{}\n{}", first + 999, user.uid()));
    let inside = person.run(&[
        "unshare",
        "sh",
        "-c",
        &format!("cd {mount}; stat -c %u home/app; echo x > of-app; chown 1000:1000 of-app"),
    ]);
    assert_eq!(inside.success(), "1000");
    assert_eq!(person.shell("stat -c %u of-app"), (first + 999).to_string());
    let upper = person.mounts()[0]["upper"].as_str().expect("an id").to_owned();
    let stored = fs::metadata(person.path("store/uppers").join(upper).join("upper/of-app")).expect("in the upper");
    assert_eq!(stored.uid(), first + 999);
    let denied = person.desk.shell(&format!("chown 0 {mount}/of-app"));
    assert!(denied.stderr.contains("not permitted"), "{}", denied.stderr);
}

#[test]
fn a_mount_without_changes_or_read_only_leaves_nothing() {
    as_root_and_as_user(|person| {
        let mount = person.text("mount");
        person.run(&["mount", "app", &mount]).success();
        assert_eq!(person.run(&["unmount", &mount]).success(), "");
        assert_eq!(person.run(&["mount", "--read-only", "app", &mount]).success(), "");
        assert_eq!(person.mounts()[0]["read_only"], true);
        assert!(person.shell("touch new 2>&1 || true").contains("Read-only file system"));
        person.run(&["commit", &mount, "x"]).failure(2, "read-only");
        person.run(&["unmount", &mount]).success();
        assert_eq!(fs::read_dir(person.path("store/uppers")).expect("readable").count(), 0);
    });
}

#[test]
fn what_cannot_be_mounted_or_unmounted_says_why() {
    as_root_and_as_user(|person| {
        let mount = person.text("mount");
        person.run(&["mount", "nothere", &mount]).failure(1, "nacre pull nothere");
        person.run(&["mount", "app", "/nothere"]).failure(1, "/nothere");
        person.run(&["mount", "app", &person.text("context/busybox")]).failure(2, "no directory");
        person.run(&["mount", "app"]).failure(2, "nacre mount IMAGE DIR");
        person.run(&["mount", "--upper", "../../etc", &mount]).failure(1, "../../etc");
        person.run(&["unmount", &mount]).failure(1, "neither a mount");
        if person.user.is_some() {
            // fusermount3 asks for a directory that the user may write to.
            person.run(&["mount", "app", "/etc"]).failure(1, "fusermount3");
        }
        assert_eq!(fs::read_dir(person.path("store/uppers")).expect("readable").count(), 0, "nothing is left");
        person.run(&["commit", &mount, "x"]).failure(1, "neither a mount");
        person.run(&["mount", "app", &mount]).success();
        person.run(&["mount", "app", &mount]).failure(1, "already");
        let mut busy = person
            .command_of("sh")
            .args(["-c", "echo here; cat"])
            .current_dir(&mount)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        BufReader::new(busy.stdout.as_mut().expect("piped")).read_line(&mut line).expect("read");
        person.run(&["unmount", &mount]).failure(1, "in use");
        drop(busy.stdin.take());
        busy.wait().expect("ended");
        person.run(&["unmount", &mount]).success();
    });
}

#[test]
fn a_server_that_is_asked_to_end_unmounts_and_keeps_what_was_written() {
    as_root_and_as_user(|person| {
        let mount = person.text("mount");
        let mut server =
            person.command(&["mount", "--foreground", "app", &mount]).stdout(Stdio::piped()).spawn().expect("started");
        let mut id = String::new();
        BufReader::new(server.stdout.as_mut().expect("piped")).read_line(&mut id).expect("read");
        person.shell("echo new > new");
        rustix::process::kill_process(Pid::from_child(&server), Signal::TERM).expect("sent");
        assert_eq!(server.wait().expect("ended").code(), Some(0));
        assert_eq!(person.shell("ls"), "");
        assert_eq!((&person.mounts()[0]["state"], &person.mounts()[0]["upper"]), (&"kept".into(), &id.trim().into()));
        person.run(&["commit", id.trim(), "app:two"]).success();
        assert_eq!(person.run(&["run", "app:two", "cat", "/new"]).success(), "new");
    });
}

/// runc, because crun refuses machines with both versions of cgroups mounted.
#[test]
fn an_oci_runtime_runs_a_bundle_whose_root_is_a_mount() {
    as_root_and_as_user(|person| {
        person.run(&["mount", "app", &person.text("mount")]).success();
        let bundle = person.path("context");
        let spec: &[&str] = if person.user.is_some() { &["spec", "--rootless"] } else { &["spec"] };
        Ended::of(person.command_of("runc").args(spec).current_dir(&bundle)).success();
        let file = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
        config["root"] = serde_json::json!({ "path": person.text("mount"), "readonly": false });
        config["process"]["terminal"] = false.into();
        // Raising a limit takes a capability that root of a container may lack.
        config["process"]["rlimits"] = serde_json::json!([]);
        config["process"]["args"] = serde_json::json!(["/bin/sh", "-c", "echo here > /ran; cat /ran"]);
        fs::write(&file, config.to_string()).expect("written");
        let name = format!("nacre-{}-{}", std::process::id(), person.user.is_some());
        let mut command = person.command_of("runc");
        command.arg("--root").arg(bundle.join("state")).args(["run", &name]).current_dir(&bundle);
        assert_eq!(Ended::of(&mut command).success(), "here");
        assert_eq!(person.shell("cat ran"), "here");
    });
}

#[test]
fn names_are_given_and_taken_however_they_are_spelled() {
    let person = Person::with_image(None);
    let names = || {
        let images = person.run(&["images", "--format", "json"]).json();
        images
            .as_array()
            .expect("a list")
            .iter()
            .map(|image| image["name"].as_str().expect("a name").to_owned())
            .collect::<Vec<_>>()
    };
    person.run(&["tag", "app", "other:1", "example.org/x/y"]).success();
    assert_eq!(names(), ["app", "example.org/x/y", "other:1"]);
    person.run(&["remove", "docker.io/library/app:latest"]).success();
    assert_eq!(names(), ["example.org/x/y", "other:1"]);
    person.run(&["remove", "other:1", "nothere"]).failure(1, "nothere");
    assert_eq!(names().len(), 2, "all or none");
    let digest = person.run(&["images", "--quiet"]).success().lines().next().expect("a line").to_owned();
    assert_eq!(person.run(&["remove", &digest]).success(), "example.org/x/y\nother:1");
    person.run(&["tag", "nothere", "x"]).failure(1, "nothere");
    let pruned = person.run(&["prune", "--all", "--format", "json"]).json();
    assert!(pruned["freed_bytes"].as_u64().is_some_and(|bytes| bytes > 0) && pruned["layers"] == 2, "{pruned}");
}

#[test]
fn an_image_is_shown_with_its_documents_byte_for_byte() {
    let person = Person::with_image(None);
    let shown = person.run(&["inspect", "app", "--format", "json"]).json();
    let raw = |document: &str| person.command(&["inspect", "app", "--raw", document]).output().expect("run").stdout;
    assert_eq!(shown["digest"], layerfs::digest_of(&raw("manifest")).to_string());
    assert_eq!(shown["config_digest"], layerfs::digest_of(&raw("config")).to_string());
    assert_eq!(person.run(&["digest", "app"]).success(), shown["digest"]);
    person.run(&["digest", "nothere"]).failure(1, "nothere");
    assert_eq!(shown["names"], serde_json::json!(["app"]));
    assert_eq!(shown["config"]["config"]["Env"][1], "GREETING=hello");
    let layers = shown["layers"].as_array().expect("a list");
    assert_eq!(layers.len(), 2);
    assert!(layers.iter().all(|layer| layer["diff_id"].as_str().is_some_and(|id| id.starts_with("sha256:"))));
    assert!(person.run(&["inspect", "app"]).success().contains("hello"));
    let history = person.run(&["history", "app"]).success();
    assert!(
        history.contains('…') && !person.run(&["history", "app", "--no-trunc"]).success().contains('…'),
        "{history}"
    );
    person.run(&["inspect", "nothere"]).failure(1, "nothere");
    person.run(&["history", "nothere"]).failure(1, "nothere");
}

#[test]
fn a_password_is_verified_kept_used_and_forgotten() {
    let registry = Registry::with_password();
    let person = Person::with_image(None);
    let image = format!("{}/app", registry.address());
    person.run(&["push", "app", &image]).failure(3, "nacre login");
    person.run(&["login", registry.address(), "-u", USER, "-p", "wrong"]).failure(3, registry.address());
    assert!(!person.path(".docker/config.json").exists());
    person.run(&["login", registry.address()]).failure(2, "--password-stdin");
    let mut login = person.command(&["login", registry.address(), "-u", USER, "--password-stdin"]);
    let mut login = login.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("started");
    login.stdin.take().expect("piped").write_all(format!("{PASSWORD}\n").as_bytes()).expect("written");
    assert!(login.wait().expect("ended").success());
    assert_eq!(fs::metadata(person.path(".docker/config.json")).expect("kept").permissions().mode() & 0o777, 0o600);
    person.run(&["push", "app", &image]).success();
    person.run(&["remove", "app"]).success();
    assert_eq!(person.run(&["run", &image]).success(), "hello from 0", "an image that the store lacks is pulled");
    person.run(&["logout", registry.address()]).success();
    person.run(&["pull", &image]).failure(3, "nacre login");
}

#[test]
fn a_reader_that_goes_away_is_no_error_to_talk_about() {
    let person = Person::new(None);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = person.command(&["completions", "bash"]).stdout(writer).output().expect("run");
    assert_eq!((output.status.code(), output.stderr), (Some(141), Vec::new()));
    for shell in ["bash", "zsh", "fish"] {
        assert!(person.run(&["completions", shell]).success().contains("unmount"), "{shell}");
    }
}

#[test]
fn a_flag_that_is_not_there_is_named() {
    let person = Person::new(None);
    let ended = person.run(&["run", "--privileged", "app"]);
    assert!(ended.code == Some(125) && ended.stderr.contains("--privileged"), "{}", ended.stderr);
    assert!(Path::new("/dev/fuse").exists(), "the other tests need it");
}

#[test]
fn files_without_a_name_are_bounded_by_the_hard_limit_and_a_step_has_the_one_it_was_started_with() {
    let person = Person::with_image(None);
    let limited = |arguments: &str| person.desk.shell(&format!("ulimit -Sn 300; exec $PROGRAM {arguments}")).success();
    assert_eq!(limited("run app sh -c 'ulimit -Sn'"), "300");
    let mount = person.path("mount");
    limited(&format!("mount app {}", mount.display()));
    let unnamed = || {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
        rustix::fs::open(&mount, flags, rustix::fs::Mode::from_raw_mode(0o600)).expect("a file without a name")
    };
    let held: Vec<_> = (0..600).map(|_| unnamed()).collect();
    assert_eq!(person.shell("echo x > new; ls -d etc; cat new"), "etc\nx");
    drop(held);
}
