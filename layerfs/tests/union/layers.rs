//! Layers with everything that real ones have: GNU tar packs them, a store indexes them, both planes mount them, and
//! kernel overlayfs over the same layers as directories says what is to be seen.
//!
//! Invariant: a layer is made twice by one script, once with the marks of a tar and once with those of overlayfs.

use std::{path::Path, process::Command, sync::Arc};

use layerfs::{MountOptions, Plane, Store, Tree, Union, digest_of, mount};
use oci_spec::image::{Descriptor, MediaType};

use crate::bench::{OPTIONS, open_directory, shell};

/// `gone NAME` removes a name, `opaque DIR` hides what is below: in the tar's words, and in overlayfs'.
const DIALECTS: [(&str, &str); 2] = [
    ("tar", "gone() { : > \"$(dirname \"$1\")/.wh.$(basename \"$1\")\"; }; opaque() { : > $1/.wh..wh..opq; }"),
    ("kernel", "gone() { mknod \"$1\" c 0 0; }; opaque() { setfattr -n trusted.overlay.opaque -v y $1; }"),
];

/// Names, and layers, lowest first.
const CASES: &[(&str, &[&str])] = &[
    (
        "special files and modes",
        &[
            "mkfifo p; mknod c c 1 3; mknod b b 7 300; mknod big c 300 70000; echo x > s; chmod 6755 s; mkdir t; chmod 1777 t; mkdir g; chmod 2750 g; ln -s nowhere l; chown -h 5:6 l; chown 70000:80000 p; : > e; chmod 000 e",
        ],
    ),
    (
        "extended attributes",
        &[
            "cp /bin/true cap; setcap cap_net_raw+ep cap; echo u > u; setfattr -n user.key -v value u; setfattr -n user.empty u; setfattr -n security.foo -v bar u; setfattr -n trusted.mine -v x u; mkdir d; setfattr -n user.d -v d d; setfacl -m d:u:3:rwx,u:4:r d; setfacl -m g:5:w u",
            "echo over > u; setfattr -n user.other -v 2 u",
        ],
    ),
    (
        "sparse and large files",
        &[
            "truncate -s 5G huge; printf end | dd of=huge bs=1 seek=5368709000 conv=notrunc status=none; truncate -s 1M hole; truncate -s 300K mixed; printf a | dd of=mixed bs=1 seek=100000 conv=notrunc status=none; : > empty",
        ],
    ),
    (
        "names",
        &[
            "n=$(printf 'n%.0s' {1..255}); echo long > $n; mkdir d${n:1}; echo i > d${n:1}/$n; printf '\\xff\\xfe' | xargs -0 -I{} sh -c 'echo bytes > \"{}\"'; touch -- $'new\\nline' $'tab\\t' 'blank ' ' ' '\\' '*' '-n' $'\\x01' 'ü'; ln -s \"$n$n$n\" farlink; echo e > $'esc\\x1b'",
            "n=$(printf 'n%.0s' {1..251}); echo x > ${n}y; echo z > '-n'",
        ],
    ),
    (
        "deep paths",
        &[
            "n=$(printf 'd%.0s' {1..200}); for i in {1..18}; do mkdir $n; cd $n; done; echo deep > f; mkdir s; echo x > s/x",
            "n=$(printf 'd%.0s' {1..200}); for i in {1..18}; do mkdir $n; cd $n; done; echo deeper > g; gone f; mkdir s; opaque s; echo y > s/y",
        ],
    ),
    (
        "hard links over directories",
        &[
            "mkdir -p d/e f; echo x > d/e/x; echo y > f/y; echo k > k",
            "echo a > a; ln a d; ln a f; ln a z; mkdir k; ln a k/in",
            "mkdir d; echo new > d/new; gone f; ln -s d a",
        ],
    ),
    (
        "links that a later layer takes apart",
        &["echo h > h1; ln h1 h2; ln h1 h3; mkdir d; ln h1 d/h4", "echo other > h2; gone h3; chmod 600 h2"],
    ),
    (
        "whiteouts of everything",
        &[
            "mkdir -p a/b/c; echo f > f; ln -s x l; mkfifo p; mknod n c 1 3; ln f h; echo deep > a/b/c/d",
            "gone f; gone l; gone p; gone n; gone h; gone a; gone never",
            "mkdir a; echo back > a/back; echo f2 > f; mkdir p",
        ],
    ),
    (
        "opaque over opaque",
        &[
            "mkdir -p d/s; echo 1 > d/one; echo 1 > d/s/one; mkdir keep; echo k > keep/k",
            "mkdir -p d/s; opaque d; opaque d/s; echo 2 > d/two; echo 2 > d/s/two; mkdir keep; chmod 700 keep",
            "mkdir -p d/s; opaque d/s; opaque d; echo 3 > d/three; echo 3 > d/s/three",
            "mkdir d; gone d/s; mkdir keep; opaque keep",
        ],
    ),
    (
        "kinds that change",
        &[
            "echo f > a; mkdir b; echo x > b/x; ln -s b c; mkfifo d; echo e > e",
            "mkdir a; echo in > a/in; echo f > b; mkdir c; echo c > c/c; ln -s a d; mknod e c 1 5",
            "ln -s b a; gone b; echo c > c; mkdir d; echo e > e",
        ],
    ),
];

/// All that is visible, with the names that are one file; of large files the size and the end. Not the link counts: the
/// kernel's are those of a layer alone, whatever the layers above have hidden of it.
const SEEN: &str = r#"find . -mindepth 1 -printf '%P|%y|%m|%U:%G|%l|%T@|' \( -type d -printf '\n' -o -printf '%s\n' \) | LC_ALL=C sort
    find . ! -type d -printf '%i|%P\n' | LC_ALL=C sort -t'|' -k2 | awk -F'|' '{ names[$1] = names[$1] " " $2 } END { for (n in names) print names[n] }' | LC_ALL=C sort
    find . -type f -size -2G -print0 | LC_ALL=C sort -z | xargs -0 -r md5sum
    find . -type f -size +2G -print0 | LC_ALL=C sort -z | xargs -0 -r tail -c 500 | md5sum
    find . \( -type c -o -type b \) -print0 | LC_ALL=C sort -z | xargs -0 -r stat -c '%n %t %T'
    find . ! -type l -print0 | LC_ALL=C sort -z | xargs -0 -r getfattr -h -d -m - -e hex --"#;

fn seen(directory: &Path) -> String {
    let (listed, output) = shell(directory, SEEN);
    assert!(listed, "{output}");
    output
}

/// The layers as directories in both dialects, times of long ago, as `tar0`, `kernel0` and so on.
fn make(place: &Path, layers: &[String]) {
    for (number, script) in layers.iter().enumerate() {
        for (dialect, marks) in DIALECTS {
            let directory = place.join(format!("{dialect}{number}"));
            std::fs::create_dir(&directory).expect("fresh");
            let script =
                format!("set -e; umask 022; {marks}; chmod 755 .; {{ {script}; }}; cd {}", directory.display());
            let (made, output) =
                shell(&directory, &format!("{script}; find . -depth -exec touch -h -d @1000000 {{}} +"));
            assert!(made, "{script}: {output}");
        }
    }
}

fn import(store: &Store, place: &Path, count: usize) -> Arc<dyn Tree> {
    let stack: Vec<_> = (0..count)
        .map(|number| {
            let mut tar = Command::new("tar");
            tar.args([
                "--format=posix",
                "--sparse",
                "--xattrs",
                "--xattrs-include=*",
                "--numeric-owner",
                "-cf",
                "layer",
                "-C",
            ]);
            tar.arg(format!("tar{number}")).arg(".").current_dir(place);
            assert!(tar.status().expect("GNU tar runs").success());
            let blob = std::fs::read(place.join("layer")).expect("written");
            let descriptor = Descriptor::new(MediaType::ImageLayer, blob.len() as u64, digest_of(&blob));
            store.ingest_layer(&blob[..], &descriptor, None).expect("a good layer").diff_id
        })
        .collect();
    store.tree(&stack).expect("the layers are there")
}

/// What kernel overlayfs, and each plane, shows of layers; and the same after everything was copied up.
fn compare(name: &str, layers: &[String]) {
    let place = tempfile::Builder::new().prefix("layers").tempdir().expect("a directory");
    let at = |name: &str| place.path().join(name);
    make(place.path(), layers);
    std::fs::create_dir(at("store")).expect("fresh");
    let tree = import(&Store::open(&at("store")).expect("a store"), place.path(), layers.len());
    let change = "find . -depth -exec chown -h 9:9 {} +; find . -type f -size -2G -exec sh -c 'for f; do echo more >> \"$f\"; done' - {} + 
        find . -depth -exec touch -h -d @2000000 {} +";
    let mut expected = Vec::new();
    let lower: Vec<String> = (0..layers.len()).rev().map(|number| format!("kernel{number}")).collect();
    for directory in ["upper", "work", "merged"] {
        std::fs::create_dir(at(directory)).expect("fresh");
    }
    let options = format!("lowerdir={},upperdir=upper,workdir=work,index=on,redirect_dir=on", lower.join(":"));
    let (mounted, output) = shell(place.path(), &format!("mount -t overlay -o {options} overlay merged"));
    assert!(mounted, "{name}: {output}");
    expected.push(seen(&at("merged")));
    let changed = shell(&at("merged"), change);
    expected.push(seen(&at("merged")));
    assert!(shell(place.path(), "umount merged").0);
    for plane in [Plane::Fuse, Plane::Overlay] {
        for directory in ["upper", "work"] {
            std::fs::remove_dir_all(at(directory)).expect("removed");
            std::fs::create_dir(at(directory)).expect("fresh");
        }
        let (upper, work) = (open_directory(&at("upper")), open_directory(&at("work")));
        let union = Union::open(Arc::clone(&tree), upper, work, OPTIONS).expect("opens");
        let options = MountOptions { plane, ..MountOptions::default() };
        let mounted = mount(union, &at("merged"), options).expect("mounts");
        assert_eq!(seen(&at("merged")), expected[0], "{name} on {plane}");
        assert_eq!(shell(&at("merged"), change), changed, "{name} on {plane}");
        assert_eq!(seen(&at("merged")), expected[1], "{name} on {plane}, copied up");
        mounted.unmount().expect("unmounts");
    }
}

#[test]
fn layers_with_everything_show_what_kernel_overlayfs_shows() {
    for (name, layers) in CASES {
        compare(name, &layers.iter().map(|script| (*script).to_owned()).collect::<Vec<_>>());
    }
}

#[test]
fn a_stack_of_127_layers_shows_what_kernel_overlayfs_shows() {
    let layer = |number: usize| {
        let over = number % 7;
        let gone =
            number.checked_sub(7).map_or(String::new(), |under| format!("; gone f{under}; gone d{over}/{under}"));
        format!(
            "echo {number} > f{number}; echo {number} > same; mkdir d{over}; echo {number} > d{over}/{number}{gone}"
        )
    };
    compare("127 layers", &(0..127).map(layer).collect::<Vec<_>>());
}
