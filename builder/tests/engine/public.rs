//! What Dockerfiles of public projects do, and no table of cases has.

use fixtures::read;

use crate::support::{Bench, SHELL};

#[test]
fn a_mount_without_a_target_is_at_the_working_directory() {
    let bench = Bench::with_busybox();
    bench.file("sub/name", "context");
    bench.dockerfile(&format!(
        "{SHELL}FROM scratch AS files\nCOPY sub /\nFROM shell\nWORKDIR /src\n\
         RUN --mount=type=bind cat sub/name > /1\n\
         RUN --mount=from=files,rw cat name > /2 && echo > lost\n\
         RUN --mount=type=tmpfs,target=sub/ --mount=rw [ ! -e sub/name ] && cat Dockerfile > /3\n\
         WORKDIR /c\nRUN --mount=type=cache,id=n echo kept > a\nRUN --mount=type=cache,id=n cat a > /4\n\
         RUN --mount=type=tmpfs echo lost > b\n"
    ));
    let out = bench.tree(&[]);
    let seen: Vec<String> = ["1", "2", "3", "4"].iter().map(|name| read(out.join(name))).collect();
    let dockerfile = read(bench.path("context/Dockerfile"));
    assert_eq!(seen, ["context", "context", &dockerfile, "kept\n"]);
    for directory in ["src", "c"] {
        assert_eq!(std::fs::read_dir(out.join(directory)).expect("a directory").count(), 0, "{directory}");
    }
    bench.dockerfile(&format!("{SHELL}FROM shell\nRUN --mount=from=shell true\n"));
    assert!(bench.build(&[]).fails(1).contains("WORKDIR"));
    bench.assert_clean();
}
