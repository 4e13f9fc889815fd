//! POSIX access control lists: shown, enforced and inherited as on kernel overlayfs over ext4, on both planes.

use std::os::unix::fs::PermissionsExt;

use layerfs::{MountOptions, Plane, Union, mount};

use crate::bench::{Bench, OPTIONS, open_directory, shell};

const LOWER: &str = "umask 022; chmod 755 .; mkdir d e; echo secret > f; chmod 600 f; setfacl -m u:1000:r f
    setfacl -m u:1000:rwx,d:u:1000:rw,d:g:7:r d; echo x > d/x; echo y > e/y; echo closed > g; setfacl -m g:1000:- g";

/// As somebody else, who fails or not.
const OTHERS: &str = "other() { setpriv --reuid 1000 --regid 1000 --clear-groups \"$@\"; }
    third() { setpriv --reuid 1001 --regid 1001 --clear-groups \"$@\"; }
    lists() { find . | LC_ALL=C sort | getfacl -n - 2>&1; stat -c '%n %a' d/* e/* f g 2>&1; };";

const SCRIPTS: &[&str] = &[
    "lists; other cat f g; third cat f g",
    "other touch d/made; third touch d/none; umask 077; mkdir d/sub; echo n > d/new; mkfifo d/p; ln -s x d/l; lists",
    "chmod 640 f; other cat f; chmod 777 d; third touch d/none; lists; setfacl -b f; other cat f; lists",
    "umask 027; setfacl -m d:u:1001:rwx e; echo n > e/n; mkdir e/m; touch e/m/z; cp -a e e2; third cat e/n; lists; getfacl -n e2",
    "setfacl -m u:1001:rw e/y; mv e/y y; rm -r d; mkdir d; lists; third cat y; echo more >> y; getfacl -n y",
    "rm f; echo new > f; setfacl -d -m u:1000:rx d/; rm d/x; echo again > d/x; setfacl -k d; touch d/plain; lists",
];

#[test]
fn lists_of_the_tree_and_new_ones_do_what_they_do_on_kernel_overlayfs() {
    for plane in [Plane::Fuse, Plane::Overlay] {
        let mut bench = Bench::new(LOWER);
        bench.unmount_ours();
        std::fs::set_permissions(bench.path(""), PermissionsExt::from_mode(0o755)).expect("permitted");
        let tree = bench.tree.clone();
        let serve = |bench: &Bench| {
            let directory = |name: &str| open_directory(&bench.path(name));
            let union = Union::open(tree.clone(), directory("upper"), directory("work"), OPTIONS).expect("opens");
            mount(union, &bench.path("ours"), MountOptions { plane, ..MountOptions::default() }).expect("mounts")
        };
        let mut mounted = serve(&bench);
        for script in SCRIPTS {
            bench.both(&format!("{OTHERS} {script}"));
            mounted.unmount().expect("unmounts");
            mounted = serve(&bench);
            bench.both(&format!("{OTHERS} lists"));
        }
    }
}

#[test]
fn a_list_in_a_mount_without_any_is_kept_and_enforced_by_the_next_one() {
    let mut bench = Bench::new("umask 022; chmod 755 .; echo secret > f; chmod 600 f; mkdir d");
    std::fs::set_permissions(bench.path(""), PermissionsExt::from_mode(0o755)).expect("permitted");
    bench.both(
        "setfacl -m u:1000:r f; setfacl -m d:u:1000:rwx d; getfacl -n f d; touch d/inherits; getfacl -n d/inherits",
    );
    bench.remount();
    bench.both(&format!(
        "{OTHERS} other cat f; third cat f; getfacl -n f; touch d/n; mkdir d/m; find d | LC_ALL=C sort | getfacl -n -"
    ));
    let (_, listed) = shell(&bench.path("ours"), "stat -c %a f");
    assert_eq!(listed.trim(), "640");
}

#[test]
fn an_owner_who_is_not_in_the_group_takes_the_set_group_id_bit_with_a_list() {
    let bench = Bench::new(
        "umask 022; chmod 755 .; for f in f g; do echo x > $f; done; mkdir d; chown 1000:8 *; chmod 2755 *; setfacl -m u:7:r g",
    );
    std::fs::set_permissions(bench.path(""), PermissionsExt::from_mode(0o755)).expect("permitted");
    bench.both(&format!("{OTHERS} other setfacl -m u:99:r f d; other setfacl -b g; stat -c '%n %a' *"));
    bench.both("chmod 2755 *; setpriv --reuid 1000 --regid 1000 --groups 8 setfacl -m u:98:r *; stat -c '%n %a' *");
    bench.both("setfacl -m u:97:r *; stat -c '%n %a' *");
}
