//! The command `nacre`.

fn main() {}
