//! The union file system from outside: mounted beside kernel overlayfs, by its functions, and by its changes.
//!
//! Invariant: every test leaves the machine as it found it. Needs root and /dev/fuse, and fails loudly without.

mod acls;
mod ahead;
mod bench;
mod changes;
mod facts;
mod faults;
mod found;
mod kills;
mod layers;
mod memory_tree;
mod model;
mod planes;
mod processes;
mod random;
mod split;
