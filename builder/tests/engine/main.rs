//! The binary `nacre build`, run for real. Needs root, /dev/fuse, /bin/busybox (statically linked), useradd and skopeo.

mod build;
mod conformance;
mod determinism;
mod hostile;
mod interrupted;
mod support;
