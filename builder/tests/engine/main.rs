//! The binary `nacre build`, run for real. Needs root, /dev/fuse, /bin/busybox (statically linked), useradd, sshd and skopeo.

mod attestations;
mod build;
mod cache_mounts;
mod conformance;
mod contexts;
mod determinism;
mod failures;
mod frontend;
mod hostile;
mod interrupted;
mod language;
mod outputs;
mod placement;
mod public;
mod pulling;
mod pushing;
mod remote_cache;
mod side_by_side;
mod stages;
mod support;
mod syntax;
mod trust;
