//! Whether this machine can run programs of a platform: by itself, or through an interpreter that the kernel knows
//! (binfmt_misc). Asked before a RUN, because "exec format error" tells nobody what to do.
//! <https://www.kernel.org/doc/html/latest/admin-guide/binfmt-misc.html>

use std::path::Path;

use registry_client::Platform;

/// Where the kernel lists its interpreters.
const REGISTRY: &str = "/proc/sys/fs/binfmt_misc";

/// Programs of a platform do not run here.
#[derive(Debug, thiserror::Error)]
#[error(
    "this machine is {machine} and cannot run programs for {wanted}: the kernel has no interpreter for them that works \
     inside of containers (install qemu-user-static and binfmt-support, or build on such a machine)"
)]
pub(crate) struct ForeignMachine {
    machine: String,
    wanted: String,
}

/// Checks that `machine` runs programs for `wanted`.
pub(crate) fn check(wanted: &Platform, machine: &Platform) -> Result<(), ForeignMachine> {
    let is_native = match (machine.architecture(), wanted.architecture()) {
        (same, other) if same == other => true,
        // The processors run both, and kernels are mostly built so.
        ("amd64", "386") | ("arm64", "arm") => true,
        _ => false,
    };
    if wanted.os() == "linux" && (is_native || has_interpreter(Path::new(REGISTRY), wanted.architecture())) {
        return Ok(());
    }
    Err(ForeignMachine { machine: machine.to_string(), wanted: wanted.to_string() })
}

fn has_interpreter(registry: &Path, architecture: &str) -> bool {
    let Some(header) = elf_header(architecture) else { return false };
    let Ok(entries) = std::fs::read_dir(registry) else { return false };
    let texts = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.into_iter().any(|text| interprets(&text, &header))
}

/// Whether an entry of the registry takes programs that begin so, wherever they run: without the flag F, the
/// interpreter would have to be in the container.
fn interprets(entry: &str, header: &[u8]) -> bool {
    let field = |name: &str| entry.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let bytes = |name: &str| field(name).and_then(hex);
    let Some(magic) = bytes("magic ") else { return false };
    let mask = bytes("mask ").unwrap_or_else(|| vec![0xff; magic.len()]);
    let is_fitting = magic.len() <= header.len()
        && mask.len() == magic.len()
        && magic.iter().zip(&mask).zip(header).all(|((magic, mask), byte)| magic & mask == byte & mask);
    entry.lines().next() == Some("enabled")
        && field("flags:").is_some_and(|flags| flags.contains('F'))
        && field("offset ") == Some("0")
        && is_fitting
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// The first bytes of a program: class, byte order and machine of the ELF header (`e_ident`, `e_type`, `e_machine`).
fn elf_header(architecture: &str) -> Option<[u8; 20]> {
    let (machine, is_64_bit, is_big_endian): (u16, bool, bool) = match architecture {
        "amd64" => (62, true, false),
        "386" => (3, false, false),
        "arm64" => (183, true, false),
        "arm" => (40, false, false),
        "ppc64le" => (21, true, false),
        "s390x" => (22, true, true),
        "riscv64" => (243, true, false),
        "loong64" => (258, true, false),
        "mips64le" => (8, true, false),
        _ => return None,
    };
    let mut header = [0; 20];
    header[..4].copy_from_slice(b"\x7fELF");
    header[4] = if is_64_bit { 2 } else { 1 };
    header[5] = if is_big_endian { 2 } else { 1 };
    header[6] = 1;
    let half = |value: u16| if is_big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    // ET_EXEC.
    header[16..18].copy_from_slice(&half(2));
    header[18..20].copy_from_slice(&half(machine));
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As qemu-user-static registers it.
    const ARM64: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[test]
    fn an_interpreter_is_known_by_the_header_it_takes() {
        let header = |architecture| elf_header(architecture).expect("known");
        assert!(interprets(ARM64, &header("arm64")));
        assert!(!interprets(ARM64, &header("amd64")));
        assert!(!interprets(ARM64, &header("s390x")));
        assert!(!interprets(&ARM64.replace("OCF", "OC"), &header("arm64")));
        assert!(!interprets(&ARM64.replace("enabled", "disabled"), &header("arm64")));
        for broken in ["", "enabled\nmagic zz\n", "enabled\nflags: F\noffset 0\nmagic 7\nmask ff\n"] {
            assert!(!interprets(broken, &header("arm64")), "{broken}");
        }
    }

    #[test]
    fn a_machine_runs_its_own_programs_and_says_which_it_does_not() {
        let platform = |text: &str| text.parse::<Platform>().expect("valid");
        assert!(check(&platform("linux/amd64/v3"), &platform("linux/amd64")).is_ok());
        assert!(check(&platform("linux/386"), &platform("linux/amd64")).is_ok());
        let error = check(&platform("windows/amd64"), &platform("linux/amd64")).expect_err("another system");
        assert!(error.to_string().contains("linux/amd64") && error.to_string().contains("windows/amd64"), "{error}");
        assert!(check(&platform("linux/vax"), &platform("linux/amd64")).is_err());
    }
}
