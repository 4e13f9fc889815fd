//! The binary `layerfs` in the place of fuse-overlayfs: its command line, and podman and buildah with it.
//!
//! Invariant: nothing outlives a [`Place`]: what is mounted below it is unmounted, whatever fails. Needs root and
//! /dev/fuse; podman and buildah must be installed. What a union shows is tested with the union.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use fixtures::process::ends;
use fixtures::user::User;
use fixtures::{Desk, Ended};
use rustix::process::{Pid, Signal};

const PROGRAM: &str = env!("CARGO_BIN_EXE_layerfs");

/// A temporary directory with two layers in `a` and `b`, and the places of an upper.
struct Place(Desk);

impl Place {
    fn new() -> Self {
        let place = Self(Desk::new(PROGRAM));
        place.sh("mkdir a b upper work mnt; echo a >a/top; mkdir a/dir b/dir; echo b >b/low; echo b >b/dir/file
             chown 7:8 b/low; touch b/.wh.gone a/.wh.hidden b/hidden");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// Runs a script and returns what it printed.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        self.0.shell(&format!("set -e; {script}")).succeeds().stdout
    }

    /// Runs the program, which must succeed, and returns what it said.
    #[track_caller]
    fn layerfs(&self, words: &[&str]) -> String {
        self.0.run(words).succeeds().stderr
    }

    /// Runs the program, which must fail, and returns what it said.
    #[track_caller]
    fn refused(&self, words: &[&str]) -> String {
        let ended = self.0.run(words);
        assert_ne!(ended.code, Some(0), "{words:?}");
        assert!(!self.is_mounted(), "{words:?}");
        ended.stderr
    }

    fn mount(&self, more: &str) {
        self.layerfs(&["-o", &format!("lowerdir=a:b,upperdir=upper,workdir=work{more}"), "mnt"]);
    }

    fn is_mounted(&self) -> bool {
        self.mounts().contains(&self.path("mnt"))
    }

    /// What is mounted below, the innermost first.
    fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts").expect("readable");
        let mut paths: Vec<PathBuf> =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Into::into).collect();
        paths.retain(|path| path.starts_with(self.path("")));
        paths.reverse();
        paths
    }

    /// The process that serves `mnt`.
    fn server(&self) -> Pid {
        let is_below = |link: PathBuf| fs::read_link(link).is_ok_and(|file| file.starts_with(self.path("")));
        let is_ours = |process: &Path| {
            fs::read_link(process.join("exe")).is_ok_and(|path| path == Path::new(PROGRAM))
                && fs::read_dir(process.join("fd"))
                    .is_ok_and(|mut all| all.any(|fd| fd.is_ok_and(|fd| is_below(fd.path()))))
        };
        let processes = fs::read_dir("/proc").expect("readable").filter_map(|entry| Some(entry.ok()?.path()));
        let found: Vec<PathBuf> = processes.filter(|process| is_ours(process)).collect();
        let [process] = &found[..] else { panic!("servers: {found:?}") };
        let number = process.file_name().and_then(|name| name.to_str()?.parse().ok());
        number.and_then(Pid::from_raw).expect("a number")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for path in self.mounts() {
            drop(Command::new("umount").arg("-l").arg(path).output());
        }
    }
}

#[test]
fn every_form_of_the_command_line_mounts_before_it_returns() {
    let options = "lowerdir=a:b,upperdir=upper,workdir=work";
    let attached = format!("-o{options}");
    let forms: [&[&str]; 4] = [
        &["-o", options, "mnt"],
        &["overlay", "mnt", "-o", options],
        &["-orw", &attached, "mnt"],
        &["-t", "fuse.layerfs", "source", "mnt", "-s", "-n", &attached],
    ];
    for form in forms {
        let place = Place::new();
        assert_eq!(place.layerfs(form), "", "{form:?}");
        assert_eq!(
            place.sh("ls -A mnt; findmnt -n -o FSTYPE mnt"),
            "dir
low
top
fuse.layerfs
"
        );
        place.sh("echo new >mnt/dir/new; cmp mnt/dir/new upper/dir/new; umount mnt");
    }
}

#[test]
fn the_kernel_s_mount_command_starts_it() {
    let place = Place::new();
    let at = place.0.text("");
    place.sh(&format!(
        "mount -t fuse3 {PROGRAM}#layerfs mnt -orw -olowerdir={at}/a:{at}/b,upperdir={at}/upper,workdir={at}/work
         grep -q ' {at}/mnt fuse[.]' /proc/mounts; cat mnt/low; umount mnt"
    ));
}

#[test]
fn what_is_mounted_shows_under_the_name_that_it_was_given() {
    for (words, name) in [
        (&["-o", "lowerdir=a", "mnt"][..], "layerfs"),
        (&["given", "mnt", "-olowerdir=a"], "given"),
        (&["given", "mnt", "-olowerdir=a,fsname=other"], "other"),
    ] {
        let place = Place::new();
        place.layerfs(words);
        assert_eq!(place.sh("findmnt -n -o SOURCE mnt").trim(), name);
    }
}

#[test]
fn a_remount_changes_the_flags_of_what_is_mounted_and_mounts_nothing() {
    let place = Place::new();
    place.mount("");
    let said = place.layerfs(&["-o", "remount,ro,nodev,user_id=0,group_id=0", "mnt"]);
    assert_eq!(said, "");
    place.sh("! touch mnt/new 2>/dev/null; findmnt -n -o OPTIONS mnt | grep -q nodev; test $(grep -c $PWD/mnt /proc/mounts) = 1");
    place.layerfs(&["source", "mnt", "-o", "remount,rw"]);
    place.sh("touch mnt/new; umount mnt");
    assert!(place.refused(&["-o", "remount,ro", "mnt"]).contains("no FUSE mount"));
}

#[test]
fn unmounting_ends_the_server_and_it_mounts_again_at_once() {
    let place = Place::new();
    for round in 0..3 {
        place.mount("");
        place.sh(&format!("echo {round} >>mnt/low; mkdir mnt/{round}"));
        let server = place.server();
        ends(server, || drop(place.sh("fusermount3 -u mnt")));
    }
    place.mount("");
    // The lock of the last server may still be held.
    place.sh("umount mnt");
    place.mount("");
    assert_eq!(place.sh("cat mnt/low; ls mnt"), "b\n0\n1\n2\n0\n1\n2\ndir\nlow\ntop\n");
}

#[test]
fn sigterm_unmounts_and_a_killed_server_loses_nothing() {
    let place = Place::new();
    place.mount("");
    place.sh("echo kept >mnt/dir/file; rm mnt/low; mv mnt/dir mnt/moved");
    let server = place.server();
    ends(server, || rustix::process::kill_process(server, Signal::TERM).expect("ours"));
    assert!(!place.is_mounted());

    place.mount("");
    let server = place.server();
    ends(server, || rustix::process::kill_process(server, Signal::KILL).expect("ours"));
    place.sh("! ls mnt 2>/dev/null; umount mnt");
    place.mount("");
    assert_eq!(place.sh("ls mnt; cat mnt/moved/file"), "moved\ntop\nkept\n");
}

#[test]
fn an_upper_that_is_in_use_is_refused_with_its_user() {
    let place = Place::new();
    place.mount("");
    let server = place.server().to_string();
    place.sh("mkdir second");
    let Ended { code, stderr: said, .. } = place.0.run(&["-o", "lowerdir=b,upperdir=upper,workdir=work", "second"]);
    assert!(code != Some(0) && said.contains(&server) && said.contains("in use"), "{said}");
    assert_eq!(place.sh("cat mnt/top"), "a\n", "the first goes on");
}

#[test]
fn without_an_upper_nothing_can_be_changed() {
    let place = Place::new();
    place.layerfs(&["-o", "lowerdir=a:b", "mnt"]);
    assert_eq!(
        place.sh("cat mnt/low; LC_ALL=C touch mnt/x 2>&1 || true"),
        "b\ntouch: cannot touch 'mnt/x': Read-only file system\n"
    );
}

#[test]
fn the_root_is_the_upper_s_own() {
    let place = Place::new();
    place.sh("chmod 2751 upper; chown 3:4 upper; chmod 700 a b");
    place.mount("");
    assert_eq!(place.sh("stat -c %a:%u:%g mnt"), "2751:3:4\n");
}

#[test]
fn owners_are_shown_and_recorded_through_the_mapping() {
    let place = Place::new();
    place.mount(",uidmapping=:0:100000:1000,gidmapping=0:200000:1000");
    place.sh("chown 100003:200004 mnt/top");
    place.sh("chmod 777 mnt/dir; setpriv --reuid 100005 --regid 200006 --clear-groups touch mnt/dir/new");
    assert_eq!(place.sh("stat -c %u:%g mnt/low mnt/top mnt/dir/new"), "100007:200008\n100003:200004\n100005:200006\n");
    assert_eq!(place.sh("stat -c %u:%g upper/top upper/dir/new"), "3:4\n5:6\n");
    assert!(place.sh("LC_ALL=C chown 5 mnt/low 2>&1 || true").contains("Value too large"));
    // podman 5 makes the places of its mounts as root, which is not mapped.
    place.sh("mkdir mnt/etc; touch mnt/etc/f; chown 100000:200000 mnt/etc");
    assert_eq!(
        place.sh("stat -c %u:%g mnt/etc mnt/etc/f upper/etc upper/etc/f"),
        "100000:200000\n65534:65534\n0:0\n65534:65534\n"
    );
    place.sh("umount mnt");
    place.mount(",squash_to_uid=42,squash_to_gid=43");
    assert_eq!(place.sh("stat -c %u:%g mnt/low mnt/top"), "42:43\n42:43\n");
}

/// Binds a directory to another one with ids shown 100000 higher, by `open_tree`, `mount_setattr` and `move_mount`, for
/// which the `mount` command of older distributions has no option.
const IDMAP: &str = r#"
import ctypes, os, struct, sys
c = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = c.syscall(number, *arguments)
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
ready, done = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    c.unshare(0x10000000)
    os.write(ready[1], b"x"); os.read(done[0], 1); os._exit(0)
os.read(ready[0], 1)
for kind in "uid_map", "gid_map":
    open(f"/proc/{child}/{kind}", "w").write("0 100000 1000")
users = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
tree = call(428, -100, sys.argv[1].encode(), 1 | os.O_CLOEXEC)
call(442, tree, b"", 0x1000, struct.pack("QQQQ", 0x100000, 0, 0, users), 32)
call(429, tree, b"", -100, sys.argv[2].encode(), 4)
os.write(done[1], b"x"); os.wait()
"#;

#[test]
fn layers_on_idmapped_mounts_are_mapped_once() {
    let place = Place::new();
    fs::write(place.path("idmap.py"), IDMAP).expect("writable");
    place.sh("mkdir mapped; python3 idmap.py b mapped; grep -q mapped.*idmapped /proc/self/mountinfo");
    place.layerfs(&["-o", "lowerdir=mapped,uidmapping=:0:100000:1000,gidmapping=:0:100000:1000", "mnt"]);
    assert_eq!(place.sh("stat -c %u:%g mnt/low"), "100007:100008\n");
    place.sh("umount mnt");
    let said = place.refused(&["-o", "lowerdir=mapped:a,uidmapping=:0:100000:1000", "mnt"]);
    assert!(said.contains("1 of 2 lower directories are on idmapped mounts"), "{said}");
}

#[test]
fn renaming_a_lower_directory_is_exdev_only_where_asked_for() {
    let place = Place::new();
    let rename = "python3 -c 'import os; os.rename(\"mnt/dir\", \"mnt/renamed\")' 2>&1 | tail -1";
    place.mount(",redirect_dir=off");
    assert!(place.sh(rename).contains("Invalid cross-device link"));
    place.sh("mkdir mnt/own; mv -T mnt/own mnt/other; mv mnt/dir mnt/copied; cat mnt/copied/file; umount mnt");
    place.sh("rm -rf upper work; mkdir upper work");
    place.mount("");
    assert_eq!(place.sh(rename), "");
    place.sh("cat mnt/renamed/file; umount mnt; mkdir upper2 work2");
    // What was an upper is a layer of the next mount, as with `podman commit`.
    place.layerfs(&["-o", "lowerdir=upper:a:b,upperdir=upper2,workdir=work2", "mnt"]);
    assert_eq!(place.sh("ls mnt mnt/renamed"), "mnt:\nlow\nrenamed\ntop\n\nmnt/renamed:\nfile\n");
}

#[test]
fn mistakes_are_errors_that_name_them() {
    let place = Place::new();
    let upper = "lowerdir=a,upperdir=upper,workdir=work";
    for (words, named) in [
        (&["-o", "lowerdir=a:missing", "mnt"][..], "missing"),
        (&["-o", "lowerdir=a,upperdir=upper", "mnt"], "workdir"),
        (&["-o", "upperdir=upper,workdir=work", "mnt"], "lowerdir"),
        (&["-o", upper, "nowhere"], "nowhere"),
        (&["-o", "lowerdir=a,xattr_permissions=1", "mnt"], "xattr_permissions"),
        (&["-o", "lowerdir=a/top", "mnt"], "a/top"),
        (&["-o", upper], "directory to mount on"),
        (&["-f", "-o", "lowerdir=a,plugins=x", "mnt"], "plugins"),
    ] {
        let said = place.refused(words);
        assert!(said.contains(named), "{words:?}: {said}");
    }
    assert_eq!(place.layerfs(&["-o", "lowerdir=a,shiny", "mnt"]), "layerfs: unknown option shiny is ignored\n");
}

#[test]
fn the_version_begins_as_callers_expect() {
    let place = Place::new();
    for word in ["-V", "--version"] {
        let printed = place.0.run(&[word]).stdout;
        assert!(printed.starts_with("fuse-overlayfs: version "), "{printed}");
    }
}

#[test]
fn root_of_a_user_namespace_mounts_and_changes_everything() {
    let place = Place::new();
    let script = format!(
        "{PROGRAM} -o lowerdir=a:b,upperdir=upper,workdir=work mnt; rm mnt/top; echo x >>mnt/dir/file; mkdir mnt/new
         umount mnt; {PROGRAM} -o lowerdir=a:b,upperdir=upper,workdir=work mnt; ls -A mnt; cat mnt/dir/file"
    );
    let output = place.sh(&format!("unshare --user --map-root-user --mount --fork bash -ec '{script}'"));
    assert_eq!(output, "dir\nlow\nnew\nb\nx\n");
}

/// Commands of an image: each RUN does what unions are known to get wrong.
const DOCKERFILE: &str = r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox","--install","-s","/bin"]
COPY sub /data/sub
RUN mkdir -p /data/gone /data/keep && echo a >/data/gone/a && echo b >/data/keep/b && ln /data/keep/b /data/keep/hard
RUN rm -r /data/gone && rm /data/sub/file && mkdir /data/gone && echo again >/data/gone/b && echo c >>/data/keep/b
RUN chown 5:6 /data/keep && mv /data/keep /data/moved && chmod u+s /bin/busybox && mkfifo /data/pipe
RUN rm /data/moved/hard && ln -s /nowhere /data/moved/link && mv /data/moved /data/gone/
CMD ["/bin/sh"]
"#;

/// Lists the layers of an image in an OCI layout, without times.
const LIST: &str = r#"blob() { echo $1/blobs/${2/:/\/}; }
list() { for d in $(jq -r '.layers[].digest' $(blob $1 $(jq -r '.manifests[0].digest' $1/index.json))); do
    echo "layer"; tar -tvz --numeric-owner -f $(blob $1 $d) | awk '{ $4 = $5 = ""; print }' | LC_ALL=C sort -k4; done; }
"#;

/// podman and buildah in a place of their own.
fn containers(place: &Place) -> String {
    place.sh("mkdir context context/sub; cp $(command -v busybox) context/busybox; echo hello >context/sub/file");
    fs::write(place.path("context/Dockerfile"), DOCKERFILE).expect("writable");
    format!(
        "{LIST}ours=\"--root $PWD/root --runroot $PWD/run --storage-driver overlay --storage-opt overlay.mount_program={PROGRAM}\"
         vfs=\"--root $PWD/root.vfs --runroot $PWD/run.vfs --storage-driver vfs\"
         build() {{ buildah $1 bud --isolation chroot --layers -t app context >log 2>&1 || {{ cat log >&2; exit 1; }}; }}
         "
    )
}

#[test]
fn buildah_builds_the_same_layers_as_on_plain_copies() {
    let place = Place::new();
    let prepared = containers(&place);
    let lists = place.sh(&format!(
        "{prepared} for k in ours vfs; do build \"${{!k}}\"; buildah ${{!k}} push -q app oci:$PWD/$k:app; list $k >$k.list; done
         diff ours.list vfs.list; cat ours.list"
    ));
    assert!(lists.contains("data/gone/moved/link"), "{lists}");
}

#[test]
fn podman_runs_commits_and_maps_owners() {
    // The runtime for hosts where limits cannot be raised.
    let Some(runtime) = fixtures::shared("runtime/runc-without-rlimits") else { return };
    let place = Place::new();
    let prepared = containers(&place);
    let prepared = format!(
        "{prepared} podman() {{ command podman --runtime {} $ours \"$@\"; }}
         run() {{ podman run --network host \"$@\"; }}; build \"$ours\" ",
        runtime.display()
    );
    let printed = place.sh(&format!(
        "{prepared}; run --name one app /bin/sh -c 'rm -r /data/gone/moved; mv /data/sub /data/other; echo x >/data/new; chown 3 /data/new'
         podman diff one | LC_ALL=C sort | grep data; podman commit -q one two >/dev/null
         run --rm two /bin/sh -c 'ls /data; stat -c %u /data/new'; podman rm -f one >/dev/null"
    ));
    let changes = "A /data/new\nA /data/other\nC /data\nC /data/gone\nD /data/gone/moved\nD /data/sub\n";
    assert_eq!(printed, format!("{changes}gone\nnew\nother\npipe\n3\n"));
    let mapped = place.sh(&format!(
        "{prepared}; run --rm --uidmap 0:100000:65536 --gidmap 0:100000:65536 app \
             /bin/sh -c 'stat -c %u:%g /data/gone /data/gone/moved; echo x >/data/own; stat -c %u:%g /data/own; cat /data/gone/b'"
    ));
    assert_eq!(mapped, "0:0\n5:6\n0:0\nagain\n");
}

#[test]
fn an_ordinary_user_builds_and_may_leave_a_mount_behind() {
    let place = Place::new();
    containers(&place);
    let user = User::new();
    place.sh(&format!("cp {PROGRAM} /home/{0}/layerfs; chmod 755 /home/{0}/layerfs", user.name()));
    // The second part mounts in a namespace that ends with the mount in it; its server would hold the upper for ever.
    let script = format!(
        r#"{LIST} set -e; cd; export XDG_RUNTIME_DIR=$PWD/xdg; mkdir -m 700 xdg
        b() {{ buildah --root $PWD/root --runroot $PWD/run --storage-driver overlay --storage-opt overlay.mount_program=$PWD/layerfs "$@"; }}
        b bud --isolation chroot --layers -t app context >log 2>&1 || {{ cat log >&2; exit 1; }}
        c=$(b from app); export -f b; b unshare bash -c "echo left >\$(b mount $c)/left"
        b commit -q $c two >/dev/null; b push -q two oci:$PWD/image:two; list image; b rm $c >/dev/null; rm -rf image
        b unshare rm -rf root run"#
    );
    fs::write(place.path("script"), script).expect("writable");
    let listed = place.sh(&format!(
        "cp -r context script /home/{0}; chown -R {0} /home/{0}; su {0} -s /bin/bash /home/{0}/script",
        user.name()
    ));
    assert!(listed.contains(" left\n") && listed.contains("data/gone/moved/link"), "{listed}");
}

#[test]
fn a_deletion_mark_that_somebody_keeps_files_in_hides_what_it_says_and_itself() {
    let place = Place::new();
    place.sh("mkdir -p upper/.wh.low upper/dir/.wh.file upper/dir/.wh..wh.plnk; echo k >upper/.wh.low/kept; touch upper/dir/.wh.file/x");
    for _ in 0..2 {
        place.mount("");
        assert_eq!(
            place.sh("ls -A mnt mnt/dir; cat mnt/.wh.low/kept 2>&1 | grep -o 'No such'"),
            "mnt:\ndir\ntop\n\nmnt/dir:\nNo such\n"
        );
        ends(place.server(), || drop(place.sh("umount mnt")));
        assert_eq!(place.sh("cat upper/.wh.low/kept"), "k\n");
    }
    place.mount("");
    place.sh("rmdir mnt/dir; mkdir mnt/dir; echo again >mnt/low; ls -A mnt/dir; umount mnt");
}

#[test]
fn a_name_that_would_be_a_deletion_mark_is_refused() {
    let place = Place::new();
    place.mount("");
    let script =
        "for do in 'touch mnt/.wh.low' 'mkdir mnt/dir/.wh..wh..opq' 'ln mnt/low mnt/.wh.top' 'mv mnt/low mnt/.wh.top' \
             'ln -s x mnt/.wh.x' 'mkfifo mnt/dir/.wh.file'
         do $do 2>&1 | grep -oE 'Invalid argument|subdirectory of itself' || echo \"done: $do\"; done; cd mnt; find . | LC_ALL=C sort; cat low";
    // The second is what mv makes of it.
    let refused = "Invalid argument\n";
    let refused = [&refused.repeat(3), "subdirectory of itself\n", &refused.repeat(2)].concat();
    let seen = format!("{refused}.\n./dir\n./dir/file\n./low\n./top\nb\n");
    assert_eq!(place.sh(script), seen);
    place.sh("umount mnt");
    place.mount("");
    assert!(place.sh("find mnt -name '.wh.*'; cat mnt/low mnt/top mnt/dir/file").starts_with("b\na\nb"));
}

#[test]
fn lists_of_the_layers_are_enforced_and_passed_on_unless_that_is_forbidden() {
    let place = Place::new();
    let others = "as() { setpriv --reuid $1 --regid $2 --clear-groups cat mnt/f 2>&1 | sed 's/.*: //'; }";
    place.sh("chmod 755 .; echo secret >b/f; chown 0:12345 b/f; chmod 600 b/f; setfacl -m g::---,u:4242:r,m::r b/f
         mkdir b/d; setfacl -d -m g:42:rwx b/d");
    let look =
        format!("{others}; as 5 12345; as 4242 4242; (umask 077; touch mnt/d/n); getfacl -cn mnt/d/n | grep mask");
    place.mount("");
    assert_eq!(place.sh(&look), "Permission denied\nsecret\nmask::rw-\n");
    // Also once it was copied up.
    assert_eq!(place.sh(&format!("{others}; chown 1 mnt/f; as 5 12345; as 4242 4242")), "Permission denied\nsecret\n");
    place.sh("umount mnt; rm -rf upper/* work/*");
    place.mount(",noacl");
    assert_eq!(place.sh(&format!("{others}; as 5 12345; as 4242 4242")), "secret\nPermission denied\n");
}

#[test]
fn an_ordinary_user_has_files_that_their_modes_keep_even_from_their_owner() {
    const SCRIPT: &str = r#"set -e; mkdir lower upper work mnt; echo l >lower/l; mkdir -m 0 lower/shut
        serve() { ../layerfs -o lowerdir=lower,upperdir=upper,workdir=work mnt; }
        serve; umask 0; mkdir -m 0 mnt/z; echo t >mnt/f; chmod 0 mnt/f; mkdir mnt/q mnt/d; echo i >mnt/q/i; chmod 300 mnt/q
        touch mnt/d/x; chmod 0 mnt/d mnt/l
        # Written once the handle with which it was made is closed.
        exec 3>mnt/ro; chmod 444 mnt/ro; mkdir mnt/o; (cd mnt/o; touch $(seq 5000)); echo data >&3; sync mnt/ro; exec 3>&-; cat upper/ro
        for round in 1 2; do
            fusermount3 -u mnt; serve; echo $(ls mnt); stat -c '%a %s' mnt/f mnt/l; stat -c '%a %F' mnt/z mnt/q mnt/d; cat mnt/q/i
        done
        chmod 700 mnt/z mnt/d; ls mnt/z mnt/d; chmod 600 mnt/f; cat mnt/f; chmod 0 mnt/f; rm -f mnt/f mnt/ro; rmdir mnt/z
        stat -c %a upper/q; chmod 700 mnt/q; rm -r mnt/q mnt/d mnt/o; ls mnt; fusermount3 -u mnt"#;
    let place = Place::new();
    let user = User::new();
    // The program lies where the user can reach it, and all is served below the place, so that nothing stays mounted.
    place.sh(&format!("chmod 755 .; cp {PROGRAM} layerfs; chmod 755 layerfs; mkdir own; chown {} own", user.name()));
    fs::write(place.path("script"), SCRIPT).expect("writable");
    let seen = place.sh(&format!("cd own; su {} -s /bin/bash ../script", user.name()));
    let round = "d f l o q ro shut z\n0 2\n0 2\n0 directory\n300 directory\n0 directory\ni\n";
    assert_eq!(seen, format!("data\n{round}{round}mnt/d:\nx\n\nmnt/z:\nt\n300\nl\nshut\n"));
}

#[test]
fn an_ordinary_user_s_marks_are_translated_where_modes_keep_even_their_owner_out() {
    let place = Place::new();
    let user = User::new();
    place.sh(&format!("chmod 755 .; cp {PROGRAM} layerfs; chmod 755 layerfs; mkdir own; chown {} own", user.name()));
    let script = "set -e; mkdir -p lower/d/x upper/d/x work mnt; touch lower/d/x/low lower/d/gone upper/d/.wh.x upper/d/.wh.gone
         chmod 0 upper/d/x upper/d; ../layerfs -o lowerdir=lower,upperdir=upper,workdir=work mnt; stat -c %a mnt/d; ls mnt
         stat -c %a upper/d; chmod 700 mnt/d; ls mnt/d; stat -c %a mnt/d/x; chmod 700 mnt/d/x; ls -A mnt/d/x; fusermount3 -u mnt";
    fs::write(place.path("script"), script).expect("writable");
    let seen = place.sh(&format!("cd own; timeout 60 su {} -s /bin/bash ../script", user.name()));
    assert_eq!(seen, "0\nd\n0\nx\n0\n");
}

#[test]
fn an_upper_without_attributes_or_whiteouts_of_its_own_can_be_renamed_in() {
    let place = Place::new();
    place.sh("mkdir ram; mount -t ramfs ramfs ram; mkdir ram/upper ram/work; echo c >b/c; setcap cap_net_raw+ep b/c; mkdir b/d; echo x >b/d/x");
    let options = "lowerdir=a:b,upperdir=ram/upper,workdir=ram/work";
    place.layerfs(&["-o", options, "mnt"]);
    // The last one is a program that changes its directory; what says what it may do cannot be kept.
    let script = "cd mnt; mv top free; mv low dir/file; mv dir/file free; mv d e; find . | LC_ALL=C sort; cat free e/x
         chmod 600 c 2>&1 | grep -o 'not supported'; getcap c; python3 -c 'import os; os.rename(\"e\", \"f\"); os.rename(\"dir\", \"g\")' 2>&1 | grep -o cross-device";
    assert_eq!(
        place.sh(script).replace("Invalid c", "c"),
        ".\n./c\n./dir\n./e\n./e/x\n./free\nb\nx\nnot supported\nc cap_net_raw=ep\ncross-device\n"
    );
    let server = place.server();
    ends(server, || drop(place.sh("umount mnt")));
    place.layerfs(&["-o", options, "mnt"]);
    assert_eq!(place.sh("cd mnt; find . | LC_ALL=C sort; cat free"), ".\n./c\n./dir\n./f\n./f/x\n./free\nb\n");
    place.sh("umount mnt");
}

#[test]
fn a_directory_over_a_removed_one_is_empty_also_where_an_upper_has_no_attributes() {
    let place = Place::new();
    place.sh("mkdir ram; mount -t ramfs ramfs ram; mkdir ram/upper ram/work; mkdir -p b/d b/e/f b/g; touch b/d/x b/e/f/y b/g/z");
    let options = "lowerdir=a:b,upperdir=ram/upper,workdir=ram/work";
    place.layerfs(&["-o", options, "mnt"]);
    // One is written to, one removed and made again, one takes a name of the tree, and one is moved away.
    let script = "cd mnt; rm -r d e g; mkdir d e; ls -A d e; touch d/n; rmdir e; mkdir e new; touch new/m; mv -T new g
         ls -A g; mkdir e/f; rmdir e/f e; mkdir e; mv e gone; rmdir gone; find . | LC_ALL=C sort";
    let seen = ".\n./d\n./d/n\n./dir\n./g\n./g/m\n./low\n./top\n";
    assert_eq!(place.sh(script), format!("d:\n\ne:\nm\n{}", seen.replace("./dir\n", "./dir\n./dir/file\n")));
    for _ in 0..2 {
        ends(place.server(), || drop(place.sh("umount mnt")));
        place.layerfs(&["-o", options, "mnt"]);
        let found = place.sh("cd mnt; find . | LC_ALL=C sort; touch d/x; rm d/x; test ! -e d/.wh..wh..opq");
        assert_eq!(found, seen.replace("./dir\n", "./dir\n./dir/file\n"));
    }
    place.sh("rm -r mnt/d; mkdir mnt/d; ls -A mnt/d; umount mnt");
}

#[test]
fn link_counts_that_a_kill_left_wrong_are_counted_again() {
    let place = Place::new();
    place.sh("echo h >b/h1; ln b/h1 b/h2; ln b/h1 b/h3; echo g >b/g1; ln b/g1 b/g2");
    place.mount("");
    assert_eq!(place.sh("rm mnt/h3; echo more >>mnt/g1; stat -c %h mnt/h1 mnt/g2"), "2\n2\n");
    ends(place.server(), || drop(place.sh("umount mnt")));
    place.sh("cd work/nacre/index; mkdir counting; for f in *.links; do rm $f; ln -s 5 $f; done");
    place.mount("");
    assert_eq!(place.sh("stat -c %h mnt/h1 mnt/g2"), "2\n2\n");
    ends(place.server(), || drop(place.sh("umount mnt")));
    assert!(!place.path("work/nacre/index/counting").exists());
}

/// As containers/storage unpacks layers, and makes the upper of a container, with `force_mask`.
#[test]
fn owner_and_mode_are_those_that_a_store_with_one_mode_for_all_keeps_beside_them() {
    let place = Place::new();
    place.sh("say() { setfattr -n user.containers.override_stat -v $2 $1; }
         say a 0:0:0755:dir; say b 0:0:0555:dir; chmod 700 a b; chmod 777 b/low b/dir; say b/low 5:6:4711:file; say a/dir 7:7:1750:dir
         touch b/pipe b/null; say b/pipe 1:1:0640:pipe; say b/null 0:0:0666:char-1-3; say upper 9:9:0711:dir
         touch upper/made; say upper/made 3:4:2751:file; setcap cap_net_raw+ep upper/made; mkdir upper/sub; say upper/sub 3:3:0700:dir
         touch -d @5 upper/sub/p upper/sub; say upper/sub/p 8:8:0620:pipe; touch -d @5 upper/sub");
    let shown = "stat -c '%n %a %u:%g %F' mnt mnt/low mnt/dir mnt/pipe mnt/null mnt/made mnt/sub mnt/sub/p
         getcap mnt/made; getfattr -d -m - mnt/low mnt/made mnt/dir; stat -c %Y mnt/sub mnt/sub/p; cat mnt/low; head -c 2 mnt/null";
    let wanted = "mnt 711 9:9 directory\nmnt/low 4711 5:6 regular file\nmnt/dir 1750 7:7 directory\nmnt/pipe 640 1:1 fifo\n\
                  mnt/null 666 0:0 character special file\nmnt/made 2751 3:4 regular empty file\nmnt/sub 700 3:3 directory\n\
                  mnt/sub/p 620 8:8 fifo\nmnt/made cap_net_raw=ep\n";
    let wanted = format!("{wanted}# file: mnt/made\nsecurity.capability=0sAQAAAgAgAAAAAAAAAAAAAAAAAAA=\n\n5\n5\nb\n");
    for _ in 0..2 {
        place.mount(",xattr_permissions=2");
        assert_eq!(place.sh(shown), wanted);
        // A user of the mount cannot have the next one take over what no owner said.
        assert!(
            place
                .sh("setfattr -n user.containers.override_stat -v 0:0:4755 mnt/low 2>&1 || true")
                .contains("not permitted")
        );
        ends(place.server(), || drop(place.sh("umount mnt")));
    }
    place.mount(",xattr_permissions=2");
    place.sh("chown 1 mnt/pipe; echo more >>mnt/low; mv mnt/dir/file mnt/dir/moved; umount mnt");
    assert_eq!(
        place.sh("stat -c '%n %a %u:%g %F' upper/pipe upper/low upper/dir; getfattr -R -d -m user.containers upper"),
        "upper/pipe 640 1:1 fifo\nupper/low 4711 5:6 regular file\nupper/dir 1750 7:7 directory\n"
    );
    // A layer alone says so by itself, as in a store that others use too.
    place.layerfs(&["-o", "lowerdir=b", "mnt"]);
    assert_eq!(
        place.sh("stat -c '%a %u:%g %F' mnt mnt/low mnt/pipe"),
        "555 0:0 directory\n4711 5:6 regular file\n640 1:1 fifo\n"
    );
}
