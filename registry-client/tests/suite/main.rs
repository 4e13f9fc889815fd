//! The tests of this crate from outside: one program, so that it links once.

mod contract;
mod faults;
mod hosts;
mod nginx;
mod oracle;
mod ranges;
mod referrers;
mod registry;
mod support;
