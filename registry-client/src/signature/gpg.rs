//! Signatures of GPG: `gpgv` checks them, `gpg` makes them; both know what may be wrong with a key
//! (<https://github.com/gpg/gnupg/blob/master/doc/DETAILS>).
//!
//! Invariant: what counts is one good signature of a key that is neither expired nor revoked, and what it is of is what
//! `gpgv` gave out beside it. What is checked is bounded in size and time, and nothing is read of the person's own keys.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use super::pem;
use crate::error::{Cause, Error};
use crate::secret::Secret;

/// Of a file with keys: a whole distribution's have some hundred KiB.
const KEYS_LIMIT_BYTES: u64 = 4 << 20;
/// Of what is signed, and of what `gpgv` says of it.
const OUTPUT_LIMIT_BYTES: usize = 64 << 10;
/// For all signatures of an image together. One takes milliseconds; one that unpacks to terabytes of nothing does not.
const PATIENCE: Duration = Duration::from_secs(30);
/// MD5, SHA-1 and RIPEMD-160 (RFC 9580 section 9.5): who can make two texts of one digest moves a signature.
const BROKEN_DIGESTS: [&str; 3] = ["1", "2", "3"];
/// The block of public keys as text (RFC 9580 section 6.2).
const PUBLIC_KEYS: &str = "PGP PUBLIC KEY BLOCK";

/// Public keys, and the program that checks with them.
#[derive(Debug, Clone)]
pub struct GpgKeyring {
    gpgv: PathBuf,
    /// In the binary form.
    keys: Vec<u8>,
}

impl GpgKeyring {
    /// Reads files as `gpg --export` makes them, as text or binary; `gpgv` is looked for in `programs`.
    ///
    /// # Errors
    /// If a file cannot be read or holds no public key, or there is no `gpgv`.
    pub fn open(files: &[PathBuf], programs: &[PathBuf]) -> Result<Self, Error> {
        let doing = "read a GPG key";
        let mut keys = Vec::new();
        for path in files {
            let mut bytes = Vec::new();
            let read = fs::File::open(path).and_then(|file| file.take(KEYS_LIMIT_BYTES + 1).read_to_end(&mut bytes));
            read.map_err(|error| Error::disk(doing, path, error))?;
            let binary = binary_keys(&bytes);
            keys.extend(
                binary.map_err(|what| Error::local(doing, Cause::Input(format!("{}: {what}", path.display()))))?,
            );
        }
        Self::of_binary(keys, programs)
    }

    /// The same of what a file would hold.
    pub(super) fn of_bytes(bytes: &[u8], programs: &[PathBuf]) -> Result<Self, Error> {
        let keys = binary_keys(bytes).map_err(|what| Error::local("read a GPG key", Cause::Input(what)))?;
        Self::of_binary(keys, programs)
    }

    fn of_binary(keys: Vec<u8>, programs: &[PathBuf]) -> Result<Self, Error> {
        let gpgv = program("gpgv", programs).map_err(|cause| Error::local("check GPG signatures", cause))?;
        Ok(Self { gpgv, keys })
    }

    /// What checks the signatures of one image.
    pub(super) fn checker(&self) -> Result<Checker<'_>, String> {
        let make = || {
            let directory = tempfile::Builder::new().prefix("nacre-gpg-").tempdir()?;
            fs::write(directory.path().join("keys"), &self.keys)?;
            Ok(directory)
        };
        let directory = make().map_err(|error: std::io::Error| format!("cannot hand the keys to gpgv: {error}"))?;
        Ok(Checker { gpgv: &self.gpgv, directory, end: Instant::now() + PATIENCE })
    }
}

/// Keys as text in any number of blocks, or as they are.
fn binary_keys(bytes: &[u8]) -> Result<Vec<u8>, String> {
    if bytes.len() as u64 > KEYS_LIMIT_BYTES {
        return Err("it is larger than a file of keys".to_owned());
    }
    let is_text = bytes.trim_ascii_start().starts_with(b"-----BEGIN ") || bytes.is_ascii();
    let keys = if is_text { pem::armored(PUBLIC_KEYS, bytes)? } else { bytes.to_owned() };
    // The first packet's tag, in the old or the new form (RFC 9580 section 4.2).
    let tag = match keys.first() {
        Some(first) if first & 0xc0 == 0xc0 => first & 0x3f,
        Some(first) if first & 0x80 != 0 => first >> 2 & 0xf,
        _ => return Err("it holds no GPG keys".to_owned()),
    };
    match tag {
        6 => Ok(keys),
        5 => Err("it holds a private key; a public one is wanted: gpg --export".to_owned()),
        _ => Err("it does not begin with a public key of GPG".to_owned()),
    }
}

fn program(name: &str, directories: &[PathBuf]) -> Result<PathBuf, Cause> {
    let found = directories.iter().map(|directory| directory.join(name)).find(|program| program.is_file());
    found.ok_or_else(|| Cause::Missing(format!("that takes the program {name}, which is not in PATH")))
}

/// Keys where `gpgv` finds them, and nothing else.
pub(super) struct Checker<'a> {
    gpgv: &'a Path,
    directory: TempDir,
    end: Instant,
}

impl Checker<'_> {
    /// What was signed, and the fingerprint of the key that did.
    pub(super) fn check(&self, signature: &[u8]) -> Result<(Vec<u8>, String), String> {
        let at = |name: &str| self.directory.path().join(name);
        fs::write(at("signature"), signature).map_err(|error| format!("cannot hand it to gpgv: {error}"))?;
        let mut command = Command::new(self.gpgv);
        // The words for people must not go where the words for programs do: they quote what others wrote.
        command.arg("--homedir").arg(self.directory.path()).arg("--keyring").arg(at("keys"));
        command.args(["--log-file", "/dev/null", "--status-fd", "2", "--output", "-"]).arg(at("signature"));
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| format!("gpgv does not start: {error}"))?;
        let output = bounded(child, self.end)?;
        let fingerprint = judged(&String::from_utf8_lossy(&output.stderr))?;
        match output.status.success() {
            true => Ok((output.stdout, fingerprint)),
            false => Err(format!("gpgv does not take it ({})", output.status)),
        }
    }
}

/// What a program says until it ends; it is killed if that is too much, or takes too long.
fn bounded(mut child: Child, end: Instant) -> Result<Output, String> {
    let result = read_both(&mut child, end);
    if result.is_err() {
        // It may have ended meanwhile; it is reaped in both cases.
        _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("gpgv failed: {error}"))?;
    let [stdout, stderr] = result?;
    Ok(Output { status, stdout, stderr })
}

fn read_both(child: &mut Child, end: Instant) -> Result<[Vec<u8>; 2], String> {
    let mut stdout = child.stdout.take().expect("it is piped");
    let mut stderr = child.stderr.take().expect("it is piped");
    let (mut said, mut is_open) = ([Vec::new(), Vec::new()], [true, true]);
    let mut buffer = [0; 4096];
    while is_open != [false, false] {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let fds = [stdout.as_fd(), stderr.as_fd()];
        let open = (0..2).filter(|number| is_open[*number]);
        let (numbers, mut polled): (Vec<_>, Vec<_>) =
            open.map(|number| (number, PollFd::from_borrowed_fd(fds[number], PollFlags::IN))).unzip();
        match poll(&mut polled, Some(&left)) {
            Ok(0) => return Err("gpgv took too long with these signatures".to_owned()),
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled.map_err(|error| format!("cannot wait for gpgv: {error}"))?,
        };
        let ready: Vec<usize> = numbers
            .into_iter()
            .zip(&polled)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(number, _)| number)
            .collect();
        for number in ready {
            let read = if number == 0 { stdout.read(&mut buffer) } else { stderr.read(&mut buffer) };
            let count = read.map_err(|error| format!("cannot read what gpgv says: {error}"))?;
            is_open[number] = count > 0;
            said[number].extend_from_slice(&buffer[..count]);
            if said[number].len() > OUTPUT_LIMIT_BYTES {
                return Err(format!("what is signed is larger than {OUTPUT_LIMIT_BYTES} bytes"));
            }
        }
    }
    Ok(said)
}

/// The fingerprint of the key, of a subkey that of the one that it is part of, if there is one good signature and
/// nothing else.
fn judged(status: &str) -> Result<String, String> {
    let lines = || status.lines().filter_map(|line| line.strip_prefix("[GNUPG:] ")).map(|line| line.split(' '));
    let only = |keyword: &str| {
        let mut found = lines().filter(|words| words.clone().next() == Some(keyword));
        found.next().filter(|_| found.next().is_none())
    };
    for words in lines() {
        let words: Vec<&str> = words.collect();
        let [keyword, rest @ ..] = words.as_slice() else { continue };
        let key = rest.first().copied().unwrap_or_default();
        let why = match *keyword {
            "NO_PUBKEY" => format!("it is of another key, {key}"),
            "BADSIG" => "it is damaged, or of something else".to_owned(),
            "EXPSIG" => "it has expired".to_owned(),
            "EXPKEYSIG" => format!("the key {key} that it is of has expired"),
            "REVKEYSIG" => format!("the key {key} that it is of was revoked"),
            "NODATA" => "it is no GPG signature".to_owned(),
            _ => continue,
        };
        return Err(why);
    }
    let (Some(_), Some(_), Some(_), Some(valid)) =
        (only("NEWSIG"), only("PLAINTEXT"), only("GOODSIG"), only("VALIDSIG"))
    else {
        return Err("it is not one good signature of one text".to_owned());
    };
    let fields: Vec<&str> = valid.collect();
    let [_, own, _, _, _, _, _, _, digest, class, rest @ ..] = fields.as_slice() else {
        return Err("gpgv says of it what is not understood".to_owned());
    };
    if BROKEN_DIGESTS.contains(digest) {
        return Err(format!("it is made with a digest that is broken (algorithm {digest})"));
    }
    if *class != "00" {
        return Err(format!("it is a signature of class {class}, not of a file"));
    }
    Ok((*rest.first().unwrap_or(own)).to_owned())
}

/// A private key that `gpg` keeps, or asks a card for.
#[derive(Debug)]
pub struct GpgKey {
    gpg: PathBuf,
    fingerprint: String,
    password: Option<Secret>,
    public: GpgKeyring,
}

impl GpgKey {
    /// The one that `gpg` has for an id, a fingerprint or a part of the owner's name; the programs are looked for in
    /// `programs`. Without `password` it is asked for as usual, by GPG's agent.
    ///
    /// # Errors
    /// If there is none or more than one, or the programs are missing.
    pub fn find(id: &str, password: Option<Secret>, programs: &[PathBuf]) -> Result<Self, Error> {
        let refuse = |what: String| Error::local("find the GPG key", Cause::Input(format!("{id:?}: {what}")));
        let gpg = program("gpg", programs).map_err(|cause| Error::local("sign", cause))?;
        let run = |arguments: &[&str]| {
            let output =
                Command::new(&gpg).arg("--batch").args(arguments).arg("--").arg(id).stdin(Stdio::null()).output();
            let output = output.map_err(|error| refuse(format!("gpg does not start: {error}")))?;
            if output.status.success() { Ok(output.stdout) } else { Err(refuse(last_line(&output))) }
        };
        let listed = run(&["--with-colons", "--list-secret-keys"])?;
        let listed = String::from_utf8_lossy(&listed);
        let field = |line: &str, number: usize| line.split(':').nth(number).unwrap_or_default().to_owned();
        if listed.lines().filter(|line| field(line, 0) == "sec").count() != 1 {
            return Err(refuse("more than one key has it; a fingerprint names one".to_owned()));
        }
        let fingerprint = listed.lines().find(|line| field(line, 0) == "fpr").map(|line| field(line, 9));
        let fingerprint = fingerprint.ok_or_else(|| refuse("gpg tells no fingerprint of it".to_owned()))?;
        let public = GpgKeyring::of_bytes(&run(&["--export"])?, programs)?;
        Ok(Self { gpg, fingerprint, password, public })
    }

    /// Its fingerprint.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn public(&self) -> &GpgKeyring {
        &self.public
    }

    /// A message that holds the text and its signature.
    pub(super) fn sign(&self, text: &[u8]) -> Result<Vec<u8>, Error> {
        let fail = |what: String| Error::local(format!("sign with the key {}", self.fingerprint), Cause::Input(what));
        let system = |error: std::io::Error| fail(format!("gpg cannot be run: {error}"));
        let mut file = tempfile::NamedTempFile::new().map_err(system)?;
        file.write_all(text).map_err(system)?;
        let mut command = Command::new(&self.gpg);
        command.args([
            "--batch",
            "--yes",
            "--local-user",
            &self.fingerprint,
            "--digest-algo",
            "SHA256",
            "--output",
            "-",
        ]);
        if self.password.is_some() {
            command.args(["--pinentry-mode", "loopback", "--passphrase-fd", "0"]);
        }
        command.arg("--sign").arg(file.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(system)?;
        let mut stdin = child.stdin.take().expect("it is piped");
        if let Some(password) = &self.password {
            // One that does not read it fails by its status.
            _ = stdin.write_all(format!("{}\n", password.reveal()).as_bytes());
        }
        drop(stdin);
        let output = child.wait_with_output().map_err(system)?;
        if output.status.success() { Ok(output.stdout) } else { Err(fail(last_line(&output))) }
    }
}

/// Why it failed, in its own words.
fn last_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    said.trim().lines().last().map_or_else(|| format!("gpg failed ({})", output.status), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[GNUPG:] PLAINTEXT 62 1753303215 \n[GNUPG:] PLAINTEXT_LENGTH 231\n[GNUPG:] NEWSIG\n\
        [GNUPG:] GOODSIG D75B3109B3BAAEAF a name\n\
        [GNUPG:] VALIDSIG 57D1 2025-07-23 1753303215 0 4 0 1 8 00 B9F4\n";

    #[test]
    fn one_good_signature_counts_and_nothing_else() {
        assert_eq!(judged(GOOD), Ok("B9F4".to_owned()));
        let alone = GOOD.replace(" B9F4", "");
        assert_eq!(judged(&alone), Ok("57D1".to_owned()));
        for (from, to, why) in [
            ("GOODSIG", "EXPSIG", "expired"),
            ("GOODSIG", "EXPKEYSIG", "the key D75B3109B3BAAEAF that it is of has expired"),
            ("GOODSIG", "REVKEYSIG", "revoked"),
            ("GOODSIG", "BADSIG", "damaged"),
            ("[GNUPG:] GOODSIG", "gpgv: GOODSIG", "not one good"),
            ("[GNUPG:] NEWSIG\n", "[GNUPG:] NEWSIG\n[GNUPG:] NEWSIG\n", "not one good"),
            ("[GNUPG:] NEWSIG\n", "[GNUPG:] NEWSIG\n[GNUPG:] PLAINTEXT 62 1 \n", "not one good"),
            ("[GNUPG:] NEWSIG\n", "", "not one good"),
            ("VALIDSIG 57D1 2025", "VALIDSIG 2025", "class"),
            (" 1 8 00", " 1 2 00", "digest that is broken"),
            (" 8 00", " 8 13", "class 13"),
            (" 4 0 1 8 00 B9F4", "", "not understood"),
            ("GOODSIG D", "NO_PUBKEY D", "another key"),
            (GOOD, "", "not one good"),
        ] {
            let changed = GOOD.replacen(from, to, 1);
            assert_ne!(changed, GOOD);
            let refused = judged(&changed).expect_err(&changed);
            assert!(refused.contains(why), "{refused}: {changed}");
        }
        let two = format!("{GOOD}{}", GOOD.replace("57D1", "66AA"));
        assert!(judged(&two).is_err());
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let private = pem::encode("PGP PRIVATE KEY BLOCK", &[0x95, 0]);
        for (bytes, why) in [
            (&b""[..], "no line"),
            (b"text", "no line"),
            (private.as_bytes(), "PGP PUBLIC KEY BLOCK"),
            (&[0x95, 1, 0xff], "private key"),
            (&[0xc5, 1, 0xff], "private key"),
            (&[0xb4, 1, 0xff], "does not begin with a public key"),
            (&[0x01, 0xff], "no GPG keys"),
            (&vec![0x99; (4 << 20) + 1], "larger"),
        ] {
            assert!(binary_keys(bytes).expect_err(why).contains(why), "{:?}", binary_keys(bytes));
        }
        assert_eq!(binary_keys(&[0x99, 0, 0xff]), Ok(vec![0x99, 0, 0xff]));
        let missing = GpgKeyring::of_bytes(&[0x99, 0, 0xff], &["/nowhere".into()]).expect_err("no gpgv");
        assert!(missing.to_string().contains("gpgv, which is not in PATH"), "{missing}");
    }

    #[test]
    fn a_program_that_says_too_much_or_does_not_end_is_killed() {
        let run = |script: &str, patience: Duration| {
            let mut command = Command::new("sh");
            let child = command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
            bounded(child.expect("sh starts"), Instant::now() + patience)
        };
        let output = run("echo out; echo err >&2; exit 3", PATIENCE).expect("it ends");
        assert_eq!((output.stdout, output.stderr, output.status.code()), (b"out\n".into(), b"err\n".into(), Some(3)));
        assert!(run("exec cat /dev/zero", PATIENCE).expect_err("endless").contains("larger"));
        assert!(run("exec cat /dev/zero >&2", PATIENCE).expect_err("endless").contains("larger"));
        assert!(run("exec sleep 60", Duration::from_millis(10)).expect_err("silent").contains("too long"));
    }
}
