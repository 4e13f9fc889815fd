//! The tests of this crate from outside: one program, so that it links once.

mod access;
mod bundles;
mod companions;
mod contract;
mod faults;
mod hosts;
mod keyless;
mod large;
mod nginx;
mod oracle;
mod ranges;
mod referrers;
mod registry;
mod resume;
mod sick;
mod signatures;
mod stream;
mod support;
mod taken;
