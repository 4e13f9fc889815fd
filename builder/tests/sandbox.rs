//! The sandbox, run for real on a root made of busybox: as root, and the same tests once more as an ordinary user.
//!
//! Needs root, /bin/busybox (statically linked), useradd, newuidmap and newgidmap.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use builder::sandbox::{
    self, Error, Exit, Limits, Mount, MountSource, Network, Process, Security, Step, Streams, Ulimit, User,
};
use fixtures::Desk;
use fixtures::user::User as OrdinaryUser;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// Where the helper program is: beside this test when it runs as the ordinary user, who cannot read the build
/// directory.
fn helper() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_nacre"));
    if !in_user_namespace() {
        return program;
    }
    std::env::current_exe().unwrap().with_file_name(program.file_name().unwrap())
}

/// A root file system with busybox as every program.
struct Root(TempDir);

impl Root {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["bin", "etc", "tmp"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::copy(fixtures::BUSYBOX, dir.path().join("bin/busybox")).unwrap();
        let root = Self(dir);
        for applet in [
            "sh", "cat", "id", "ls", "env", "hostname", "sleep", "su", "mount", "unshare", "ps", "mkdir", "stat", "ip",
            "tty", "readlink", "grep", "true", "mknod", "touch", "setsid", "rm", "tail",
        ] {
            symlink("busybox", root.path().join("bin").join(applet)).unwrap();
        }
        root
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Every path below the root that the fixture did not put there.
    fn additions(&self) -> Vec<String> {
        fn walk(directory: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                found.push(format!("/{}", path.strip_prefix(root).unwrap().display()));
                if path.symlink_metadata().unwrap().is_dir() {
                    walk(&path, root, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.path(), self.path(), &mut found);
        found.retain(|path| !path.starts_with("/bin") && path != "/etc" && path != "/tmp");
        found.sort();
        found
    }

    fn shell(&self, script: &str) -> Process {
        let mut process = Process::new(self.path(), ["/bin/sh", "-c", script]);
        process.env = vec!["PATH=/bin".into()];
        process
    }

    fn run(&self, script: &str) -> Output {
        run(&self.shell(script))
    }
}

/// What a step wrote, and how it ended.
#[derive(Debug)]
struct Output {
    exit: Result<Exit, Error>,
    text: String,
}

impl Output {
    fn success(self) -> String {
        assert!(matches!(self.exit, Ok(Exit::Code(0))), "{self:?}");
        self.text
    }
}

fn start(process: &Process) -> (Step, fs::File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let streams = Streams { stdin: None, stdout: Some(writer.as_fd()), stderr: Some(writer.as_fd()) };
    let step = sandbox::run_with(&helper(), process, streams).unwrap();
    (step, reader.into())
}

fn run(process: &Process) -> Output {
    let (step, mut reader) = start(process);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    Output { exit: step.wait(), text }
}

#[test]
fn exit_code_and_output_are_those_of_the_command() {
    let root = Root::new();
    let output = root.run("echo out; echo err >&2; exit 7");
    assert_eq!((output.exit.unwrap(), output.text.as_str()), (Exit::Code(7), "out\nerr\n"));
}

#[test]
fn signal_of_the_command_is_told_from_an_exit_code() {
    let root = Root::new();
    assert_eq!(root.run("kill -9 $$").exit.unwrap(), Exit::Signal(9));
    assert_eq!(root.run("kill -15 $$").exit.unwrap(), Exit::Signal(15));
    assert_eq!(Exit::Signal(9).code(), 137);
}

#[test]
fn environment_is_exact_and_in_order() {
    let root = Root::new();
    let mut process = root.shell("");
    process.argv = vec!["cat".into(), "/proc/self/environ".into()];
    process.env = vec!["Z=1".into(), "PATH=/nowhere:/bin".into(), "A=two words\n".into(), "Z=again".into()];
    assert_eq!(run(&process).success(), "Z=1\0PATH=/nowhere:/bin\0A=two words\n\0Z=again\0");
}

#[test]
fn missing_program_gives_127_and_one_that_is_no_program_126() {
    let root = Root::new();
    fs::write(root.path().join("bin/data"), "no program").unwrap();
    let mut process = root.shell("");
    for (name, code, words) in [
        ("nothing", 127, "exec: \"nothing\": executable file not found in $PATH\n"),
        ("/bin/nothing", 127, "exec: \"/bin/nothing\": no such file or directory"),
        ("data", 126, "exec: \"data\": Permission denied"),
        ("/etc", 126, "exec: \"/etc\": Permission denied"),
    ] {
        process.argv = vec![name.into()];
        let output = run(&process);
        assert_eq!(output.exit.unwrap(), Exit::Code(code), "{name}");
        assert!(output.text.starts_with(words), "{}", output.text);
    }
}

#[test]
fn working_directory_host_name_and_ids_are_those_asked_for() {
    let root = Root::new();
    let mut process = root.shell("echo $PWD; hostname; id -u; id -g; id -G; umask");
    process.cwd = "/tmp".into();
    process.hostname = "builder".into();
    process.user = User { uid: 1000, gid: 1001, groups: vec![1002, 1004] };
    assert_eq!(run(&process).success(), "/tmp\nbuilder\n1000\n1001\n1001 1002 1004\n0022\n");
}

#[test]
fn missing_working_directory_is_an_error_that_names_it() {
    let root = Root::new();
    let mut process = root.shell("true");
    process.cwd = "/none".into();
    let error = run(&process).exit.unwrap_err().to_string();
    assert!(error.contains("/none") && error.contains("No such file"), "{error}");
}

#[test]
fn missing_root_is_an_error_that_names_it() {
    let error = run(&Process::new("/no/such/root", ["true"])).exit.unwrap_err().to_string();
    assert!(error.contains("/no/such/root"), "{error}");
}

#[test]
fn process_1_is_ours_and_the_host_is_not_seen() {
    let root = Root::new();
    let text = root.run("cat /proc/1/cmdline; echo; set -- /proc/[0-9]*; echo $# $$").success();
    // Process 1 and the shell.
    assert_eq!(text, "nacre\0sandbox-init\0\n2 2\n");
}

#[test]
fn orphans_are_reaped_while_the_step_runs() {
    let root = Root::new();
    // The inner shell leaves orphans behind that end at once; what is left of them would be zombies of process 1.
    let script = "for n in 1 2 3 4 5; do sh -c 'true & true & exec true'; done
        while grep -l '^PPid:.1$' /proc/[0-9]*/status 2>/dev/null | grep -vq \"/proc/$$/\"; do :; done; echo none left";
    assert_eq!(root.run(script).success(), "none left\n");
}

#[test]
fn orphans_die_with_the_step() {
    let root = Root::new();
    // The orphan holds the pipe open: reading its end of file proves that it is gone.
    let output = root.run("setsid sleep 1000000 & echo started");
    assert_eq!(output.success(), "started\n");
}

#[test]
fn network_none_has_only_a_loopback_device_that_is_up() {
    let root = Root::new();
    let mut process = root.shell("ls /sys/class/net; ip -o addr show up | grep -c 127.0.0.1");
    process.network = Network::None;
    assert_eq!(run(&process).success(), "lo\n1\n");
    let here = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(root.run("readlink /proc/self/ns/net").success().trim(), here.to_str().unwrap());
}

#[test]
fn capabilities_are_those_of_docker() {
    let root = Root::new();
    let show = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";
    let expected = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
                    CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n";
    assert_eq!(root.run(show).success(), expected);
    let mut process = root.shell(show);
    process.user.uid = 1000;
    let expected = expected.replacen("00000000a80425fb", "0000000000000000", 2);
    assert_eq!(run(&process).success(), expected);
}

#[test]
fn setuid_programs_work() {
    let root = Root::new();
    let program = root.path().join("bin/su");
    fs::remove_file(&program).unwrap();
    fs::copy(fixtures::BUSYBOX, &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(root.path().join("etc/passwd"), "root::0:0::/:/bin/sh\nann::1000:1000::/:/bin/sh\n").unwrap();
    let mut process = root.shell("");
    process.argv = ["/bin/su", "-c", "id -u", "root"].map(Into::into).into();
    process.user = User { uid: 1000, gid: 1000, groups: vec![] };
    assert_eq!(run(&process).success(), "0\n");
}

#[test]
fn seccomp_and_capabilities_forbid_mounts_and_namespaces() {
    let root = Root::new();
    let mut process = root.shell("");
    for script in ["unshare -m true", "unshare -U true", "mount -t tmpfs none /tmp", "hostname other"] {
        process.argv[2] = script.into();
        for uid in [0, 1000] {
            process.user.uid = uid;
            let output = run(&process);
            assert_ne!(output.exit.unwrap(), Exit::Code(0), "{script}");
            assert!(output.text.to_lowercase().contains("permi"), "{}", output.text);
        }
    }
    process.user.uid = 0;
    process.argv[2] = "ls /dev/fuse /dev/loop-control /dev/net/tun".into();
    assert!(!run(&process).text.lines().any(|line| line.starts_with("/dev")));
    process.security = Security::Insecure;
    // A user namespace may make no device.
    if fs::read_to_string("/proc/self/uid_map").expect("readable").contains("4294967295") {
        assert_eq!(run(&process).success(), "/dev/fuse\n/dev/loop-control\n/dev/net/tun\n");
    }
    process.argv[2] = "unshare -m true && mount -t tmpfs none /tmp && hostname other && hostname".into();
    assert_eq!(run(&process).success(), "other\n");
}

#[test]
fn kernel_interfaces_are_hidden_or_read_only() {
    let root = Root::new();
    let script =
        "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null; ls /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | grep -v :
        for file in /proc/sys/kernel/hostname /proc/irq/default_smp_affinity; do echo x 2>&1 >$file; done
        mkdir /sys/x";
    let text = root.run(script).text;
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines.len() == 3 && lines.iter().all(|line| line.contains("Read-only file system")), "{text}");
}

#[test]
fn devices_work() {
    let root = Root::new();
    let script =
        "echo gone > /dev/null; head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c; echo x > /dev/full
        ls /dev; echo mine > /dev/shm/file; cat < /dev/stdin; readlink /dev/ptmx
        while read _ target kind options _; do case $target in /dev/*) echo $target $kind;; esac; done < /proc/mounts";
    fs::copy(fixtures::BUSYBOX, root.path().join("bin/head")).unwrap();
    fs::copy(fixtures::BUSYBOX, root.path().join("bin/wc")).unwrap();
    let text = root.run(script).text;
    for part in [
        "3\n5\n",
        "No space left",
        "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n",
        "pts/ptmx\n",
        "/dev/shm tmpfs\n",
        "/dev/mqueue mqueue\n",
        "/dev/pts devpts\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn a_step_cannot_open_devices_of_its_own_making() {
    let root = Root::new();
    fs::copy("/bin/busybox", root.path().join("bin/mknod")).unwrap();
    let shown = tempfile::tempdir().unwrap();
    // In a user namespace none can be made to begin with. /dev/null stands for the disks.
    let script = "for file in /dev/own /dev/shm/own /shown/own /memory/own; do
            mknod $file c 1 3 2>/dev/null; (: > $file) 2>/dev/null && [ -c $file ] && echo opened $file; done
        : > /dev/null && echo done";
    let mut process = root.shell(script);
    process.mounts = vec![bind(shown.path(), "/shown", false), tmpfs("/memory")];
    assert_eq!(run(&process).success(), "done\n");
}

#[test]
fn size_of_shared_memory_is_the_one_asked_for() {
    let root = Root::new();
    let mut process = root.shell("stat -f -c '%b %S' /dev/shm");
    process.shm_size_bytes = 1 << 20;
    assert_eq!(run(&process).success(), "256 4096\n");
}

#[test]
fn hosts_and_resolver_are_ours_and_leave_no_trace() {
    let root = Root::new();
    let mut process =
        root.shell("cat /etc/resolv.conf; grep 192 /etc/hosts; echo x >> /etc/hosts; grep -c localhost /etc/hosts");
    process.resolv_conf = Some("nameserver 192.0.2.1\n".into());
    process.extra_hosts = vec![("192.0.2.7".into(), "db".into())];
    assert_eq!(run(&process).success(), "nameserver 192.0.2.1\n192.0.2.7\tdb\n2\n");
    assert_eq!(root.additions(), ["/dev", "/proc", "/sys"]);
    fs::write(root.path().join("etc/hosts"), "kept\n").unwrap();
    run(&process).success();
    assert_eq!(fs::read_to_string(root.path().join("etc/hosts")).unwrap(), "kept\n");
}

#[test]
fn a_step_cannot_write_the_files_of_etc_that_are_ours() {
    let root = Root::new();
    let mut process =
        root.shell("cat /etc/hosts; (echo x >> /etc/hosts || echo x >> /etc/resolv.conf || echo kept) 2> /dev/null");
    process.resolv_conf = Some("nameserver 192.0.2.1\n".into());
    process.etc_files = sandbox::EtcFiles::Step;
    let hosts = "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    assert_eq!(run(&process).success(), format!("{hosts}kept\n"));
}

#[test]
fn no_signal_is_ignored_and_no_device_link_leads_nowhere() {
    let root = Root::new();
    let process =
        root.shell("grep SigIgn /proc/self/status; for l in /dev/*; do [ -e $l ] || [ -c $l ] || echo $l; done");
    assert_eq!(run(&process).success(), "SigIgn:\t0000000000000000\n");
}

fn bind(path: impl Into<PathBuf>, target: &str, read_only: bool) -> Mount {
    Mount { target: target.into(), source: MountSource::Bind { path: path.into(), read_only } }
}

fn tmpfs(target: &str) -> Mount {
    Mount {
        target: target.into(),
        source: MountSource::Tmpfs { size_bytes: Some(1 << 20), mode: Some(0o700), read_only: false },
    }
}

#[test]
fn mounts_show_their_source_and_their_stubs_vanish() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s3cret\n").unwrap();
    let before = fs::metadata(root.path().join("etc")).unwrap();
    let mut process = root.shell(
        "cat /run/secrets/deep/token /cache/secret; echo new > /cache/new; echo x > /ro/x; stat -c %a /scratch /scratch/sub
         cat /etc/app/token",
    );
    process.mounts = vec![
        bind(outside.path().join("secret"), "/run/secrets/deep/token", true),
        bind(outside.path().join("secret"), "/etc/app/token", true),
        bind(outside.path(), "/cache", false),
        bind(outside.path(), "/ro", true),
        tmpfs("/scratch"),
        bind(outside.path(), "/scratch/sub", false),
    ];
    let text = run(&process).success();
    let mode = format!("{:o}", fs::metadata(outside.path()).unwrap().mode() & 0o777);
    let expected = ["s3cret\ns3cret\n", "Read-only file system\n", &format!("700\n{mode}\n"), "s3cret\n"];
    for part in expected {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert_eq!(fs::read_to_string(outside.path().join("new")).unwrap(), "new\n");
    assert_eq!(root.additions(), ["/dev", "/proc", "/sys"]);
    let after = fs::metadata(root.path().join("etc")).unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
}

#[test]
fn what_a_step_puts_beside_a_mount_point_stays() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let mut process = root.shell("echo kept > /made/file");
    process.mounts = vec![bind(outside.path(), "/made/mount", false)];
    run(&process).success();
    assert_eq!(root.additions(), ["/dev", "/made", "/made/file", "/proc", "/sys"]);
}

#[test]
fn failed_setup_removes_its_stubs_too() {
    let root = Root::new();
    let mut process = root.shell("true");
    process.mounts = vec![tmpfs("/a/b/c"), bind("/no/such/source", "/x", false)];
    let error = run(&process).exit.unwrap_err().to_string();
    assert!(error.contains("/no/such/source"), "{error}");
    let left = root.additions();
    assert!(left.iter().all(|path| ["/dev", "/proc", "/sys"].contains(&path.as_str())), "{left:?}");
}

#[test]
fn killed_step_removes_its_stubs_too() {
    let root = Root::new();
    let mut process = root.shell("echo up; sleep 1000000");
    process.mounts = vec![tmpfs("/a/b/c")];
    let (step, mut reader) = start(&process);
    reader.read_exact(&mut [0; 3]).unwrap();
    step.killer().kill();
    assert_eq!(step.wait().unwrap(), Exit::Signal(9));
    assert_eq!(root.additions(), ["/dev", "/proc", "/sys"]);
}

#[test]
fn links_of_a_hostile_image_stay_inside_the_root() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let depth = "../".repeat(40);
    symlink(&victim, root.path().join("etc/resolv.conf")).unwrap();
    symlink(format!("{depth}{}", victim.display()), root.path().join("etc/hosts")).unwrap();
    symlink(format!("/{depth}{}", outside.path().display()), root.path().join("leave")).unwrap();
    let mut process = root.shell("cat /etc/resolv.conf; echo evil > /etc/resolv.conf; echo evil > /leave/new/file");
    process.resolv_conf = Some("ours\n".into());
    process.mounts = vec![tmpfs("/leave/new")];
    assert_eq!(run(&process).success(), "ours\n");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(root.additions(), ["/dev", "/etc/hosts", "/etc/resolv.conf", "/leave", "/proc", "/sys"]);
}

#[test]
fn links_for_the_kernel_directories_are_refused() {
    for name in ["proc", "sys", "dev"] {
        let root = Root::new();
        symlink("/../../tmp", root.path().join(name)).unwrap();
        let error = root.run("true").exit.unwrap_err().to_string();
        assert!(error.contains(&format!("/{name}")) && error.contains("directory"), "{error}");
    }
}

#[test]
fn mounts_of_the_wrong_kind_or_on_the_root_are_refused() {
    let root = Root::new();
    fs::write(root.path().join("file"), "").unwrap();
    for (mount, words) in [
        (tmpfs("/file"), "Not a directory"),
        (tmpfs("/file/below"), "Not a directory"),
        (bind("/bin/busybox", "/tmp", true), "Is a directory"),
        (tmpfs("/tmp/.."), "cannot be mounted over"),
    ] {
        let mut process = root.shell("true");
        process.mounts = vec![mount];
        let error = run(&process).exit.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn mounts_of_a_step_are_not_seen_by_the_caller() {
    let root = Root::new();
    let mut process = root.shell("echo up; cat");
    process.mounts = vec![tmpfs("/a")];
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (stdin, stdin_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let streams = Streams { stdin: Some(stdin.as_fd()), stdout: Some(writer.as_fd()), stderr: None };
    let step = sandbox::run_with(&helper(), &process, streams).unwrap();
    let mut reader = fs::File::from(reader);
    reader.read_exact(&mut [0; 3]).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(root.path().to_str().unwrap()), "{mounts}");
    fs::File::from(stdin_writer).write_all(b"end\n").unwrap();
    assert_eq!(step.wait().unwrap(), Exit::Code(0));
}

#[test]
fn limits_lower_those_of_the_process() {
    let root = Root::new();
    let mut process = root.shell("ulimit -Sn; ulimit -Hn");
    process.ulimits = vec![Ulimit { name: "nofile".into(), soft: Some(100), hard: Some(200) }];
    assert_eq!(run(&process).success(), "100\n200\n");
    process.ulimits[0].name = "nothing".into();
    let error = run(&process).exit.unwrap_err().to_string();
    assert!(error.contains("nothing=100:200"), "{error}");
}

#[test]
fn signals_reach_the_program() {
    let root = Root::new();
    let process = root.shell("trap 'echo told; exit 3' TERM; echo up; while :; do sleep 1000000 & wait; done");
    let (step, mut reader) = start(&process);
    reader.read_exact(&mut [0; 3]).unwrap();
    step.killer().signal(Signal::TERM);
    assert_eq!(step.wait().unwrap(), Exit::Code(3));
}

#[test]
fn no_descriptor_of_ours_reaches_the_program() {
    let root = Root::new();
    // 3 is the directory that ls itself reads.
    assert_eq!(root.run("ls /proc/self/fd").success(), "0\n1\n2\n3\n");
}

#[test]
fn dropped_step_is_gone() {
    let root = Root::new();
    let (step, mut reader) = start(&root.shell("echo up; sleep 1000000"));
    reader.read_exact(&mut [0; 3]).unwrap();
    drop(step);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn helper_that_is_another_program_is_an_error() {
    let root = Root::new();
    let streams = Streams { stdin: None, stdout: None, stderr: None };
    let step = sandbox::run_with(Path::new("/bin/true"), &root.shell("true"), streams).unwrap();
    assert!(matches!(step.wait(), Err(Error::Lost { .. })));
    let missing = sandbox::run_with(Path::new("/no/helper"), &root.shell("true"), streams);
    assert!(missing.err().unwrap().to_string().contains("/no/helper"));
}

/// The parent of a process: field 4 of /proc/PID/stat.
fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 1..].split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn steps_of_one_starter_end_each_by_itself_and_a_starter_that_was_killed_is_replaced() {
    // One for each that runs beside another: a step makes mount points in its root.
    let (root, other_root) = (Root::new(), Root::new());
    let starter = sandbox::Starter::new(&helper());
    let (stdin, stdin_writer) = std::io::pipe().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let streams = Streams { stdin: Some(stdin.as_fd()), stdout: None, stderr: None };
    let short = starter.run(&root.shell("read line; exit 3"), streams).unwrap();
    // Starts when the starter holds what is the first one's.
    let streams = Streams { stdin: None, stdout: Some(writer.as_fd()), stderr: None };
    // These tests run twice at once: as an ordinary user, too.
    let word = format!("step-of-{}", std::process::id());
    let long = starter.run(&other_root.shell(&format!("echo up; sleep 1000000; : {word}")), streams).unwrap();
    drop(writer);
    reader.read_exact(&mut [0; 3]).unwrap();
    drop((stdin, stdin_writer));
    assert_eq!(short.wait().unwrap(), Exit::Code(3));

    let has_word = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&word)
    };
    let command =
        fixtures::names(Path::new("/proc")).iter().filter_map(|name| name.parse().ok()).find(has_word).unwrap();
    let process = Pid::from_raw(parent(parent(parent(command)))).unwrap();
    fixtures::process::ends(process, || rustix::process::kill_process(process, Signal::KILL).unwrap());
    let streams = Streams { stdin: None, stdout: None, stderr: None };
    assert_eq!(starter.run(&root.shell("exit 4"), streams).unwrap().wait().unwrap(), Exit::Code(4));
    long.killer().kill();
    assert_eq!(long.wait().unwrap(), Exit::Signal(9));
}

/// Not a fact of its own: the caller that `killed_caller_leaves_nothing` kills. Without a root in the environment it is
/// idle.
#[test]
fn caller_for_other_tests() {
    let Some(root) = std::env::var_os("SANDBOX_TEST_ROOT") else { return };
    let mut process = Process::new(root, ["/bin/sh", "-c", "sleep 1000000 & echo up; setsid sleep 1000000"]);
    process.mounts = vec![tmpfs("/a/b")];
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let streams = Streams { stdin: None, stdout: Some(stdout.as_fd()), stderr: Some(stderr.as_fd()) };
    sandbox::run_with(&helper(), &process, streams).unwrap().wait().unwrap();
}

#[test]
fn killed_caller_leaves_nothing() {
    let root = Root::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut caller = fixtures::this_test("caller_for_other_tests")
        .env("SANDBOX_TEST_ROOT", root.path())
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    while line.trim() != "up" {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the step started");
    }
    caller.kill().unwrap();
    caller.wait().unwrap();
    // Every process of the step, and the helper, holds the pipe: its end is theirs.
    reader.read_to_string(&mut line).unwrap();
    assert_eq!(root.additions(), ["/dev", "/proc", "/sys"]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(root.path().to_str().unwrap()), "{mounts}");
}

fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().ne(["0", "0", "4294967295"])
}

/// Where somebody runs the helper, and this test, which lies beside it.
fn desk_of(owner: impl Into<(u32, u32)>) -> Desk {
    let desk = Desk::new(helper());
    fixtures::run("cp", &[std::env::current_exe().unwrap(), desk.path("tests")]);
    desk.owned_by(owner).with("TMPDIR", "/tmp")
}

#[test]
fn every_fact_here_also_holds_for_an_ordinary_user() {
    if in_user_namespace() {
        return;
    }
    let user = OrdinaryUser::new();
    let desk = desk_of(&user);
    let text = desk.run(&["unshare", &desk.text("tests")]).success();
    assert!(text.contains("test capabilities_are_those_of_docker ... ok"), "{text}");
}

#[test]
fn ordinary_user_is_root_with_the_subordinate_ids_inside() {
    if in_user_namespace() {
        return;
    }
    let user = OrdinaryUser::new();
    let desk = desk_of(&user);
    let script = "id -u; id -g; id -G; set -- $(cat /proc/self/uid_map); echo $2 $3 $4; touch /tmp/$$; chown 1000 /tmp/$$; \
                  stat -c %u /tmp/$$; rm /tmp/$$; exit 9";
    let ended = desk.run(&["unshare", "/bin/sh", "-c", script]);
    let expected = format!("0\n0\n0\n{} 1 1\n1000\n", user.uid());
    assert_eq!((ended.code, ended.stdout), (Some(9), expected), "{}", ended.stderr);
}

#[test]
fn user_without_subordinate_ids_is_told_what_to_do() {
    if in_user_namespace() {
        return;
    }
    // No user of this number exists, nor any range.
    let ended = desk_of((64_999, 64_999)).run(&["unshare", "/bin/true"]);
    let text = ended.stderr;
    assert_ne!(ended.code, Some(0));
    assert!(text.contains("no subordinate ids for user 64999 in /etc/subuid") && text.contains("hint: "), "{text}");
}

#[test]
fn signals_to_the_outer_process_reach_the_program_and_its_death_ends_it() {
    if in_user_namespace() {
        return;
    }
    let user = OrdinaryUser::new();
    let desk = desk_of(&user);
    let script = "trap 'exit 5' TERM; echo up; read line";
    for signal in [Signal::TERM, Signal::KILL] {
        let mut outer = desk
            .command(&["unshare", "/bin/sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = outer.stdout.take().unwrap();
        // Waiting would close it, and the program would end of that.
        let stdin = outer.stdin.take().unwrap();
        stdout.read_exact(&mut [0; 3]).unwrap();
        let pid = rustix::process::Pid::from_child(&outer);
        rustix::process::kill_process(pid, signal).unwrap();
        let status = outer.wait().unwrap();
        drop(stdin);
        if signal == Signal::TERM {
            assert_eq!(status.code(), Some(5));
        } else {
            assert_eq!(status.signal(), Some(9));
        }
        // Its end is the end of the program inside.
        assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
    }
}

/// Limits are refused where the machine lets nobody make cgroups; that they hold is not seen then.
fn without_cgroups(said: &str) {
    assert!(said.contains("cgroup"), "{said}");
    fixtures::left_out("what needs cgroups that can be made");
}

#[test]
fn limits_of_the_step_are_in_force_or_an_error_names_the_group() {
    let root = Root::new();
    let mut process = root.shell("for n in 1 2 3 4 5 6 7 8; do sleep 1000000 & done");
    process.limits = Limits { pids: Some(4), memory_bytes: Some(64 << 20), cpu_millis: Some(500), ..Limits::default() };
    let output = run(&process);
    match output.exit {
        Ok(exit) => {
            assert_ne!(exit, Exit::Code(0));
            assert!(output.text.contains("can't fork"), "{}", output.text);
        }
        Err(error) => without_cgroups(&error.to_string()),
    }
}

#[test]
fn a_step_that_took_too_much_memory_says_so_and_its_groups_are_gone() {
    let root = Root::new();
    let mut process = root.shell("tail /dev/zero; exit 3");
    let parent = format!("/nacre-test-{}", std::process::id());
    process.limits = Limits {
        memory_bytes: Some(8 << 20),
        cpu_shares: Some(512),
        parent: Some(parent.clone()),
        ..Limits::default()
    };
    match run(&process).exit {
        // Which process dies is the kernel's choice: the command, or the shell that waits for it.
        Ok(exit) => assert!(matches!(exit, Exit::OutOfMemory(3 | 137)), "{exit:?}"),
        Err(error) => without_cgroups(&error.to_string()),
    }
    assert_eq!(fixtures::run("find", &["/sys/fs/cgroup", "-path", &format!("*{parent}*")]), "");
}

#[test]
fn single_id_is_enough_for_a_step_as_root_and_names_the_id_it_lacks() {
    if in_user_namespace() {
        return;
    }
    let user = OrdinaryUser::new();
    let desk = desk_of(&user);
    let run = |test: &str| desk.run(&["unshare", "--single-id", &desk.text("tests"), "--exact", test]);
    run("devices_work").success();
    let ended = run("working_directory_host_name_and_ids_are_those_asked_for");
    assert!(ended.code != Some(0) && ended.stdout.contains("supplementary groups"), "{}", ended.stdout);
}
