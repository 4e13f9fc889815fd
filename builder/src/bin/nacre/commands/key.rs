//! `nacre key`: key pairs for signatures, in cosign's form.
//!
//! Invariant: no file is replaced, and a private key is readable for its owner only.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use registry_client::{KeyFile, PrivateKey, Secret};

use crate::ask::{Shown, ask};
use crate::report::{Hinted, Usage};
use crate::session::{self, Session};

/// Make keys for signatures
#[derive(clap::Args)]
#[command(
    after_help = "Keys are those of ECDSA with P-256, in files that cosign and podman read too. The password comes \
    from --password-file, else $NACRE_KEY_PASSWORD, else $COSIGN_PASSWORD, else it is asked for.\n\n\
    Examples:\n  nacre key generate release      # release.key and release.pub\n  nacre key public release.key"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make a key pair: NAME.key and NAME.pub
    Generate {
        /// The files without their endings
        #[arg(value_name = "NAME")]
        name: PathBuf,
        /// Write the private key open, as PKCS#8
        #[arg(long, conflicts_with = "password_file")]
        no_password: bool,
        #[command(flatten)]
        password: PasswordFlag,
    },
    /// Print the public half of a private key
    Public {
        /// The private key
        #[arg(value_name = "FILE")]
        key: PathBuf,
        #[command(flatten)]
        password: PasswordFlag,
    },
}

/// Where the password of a key comes from; never an argument, which every user of the machine sees.
#[derive(clap::Args)]
pub(crate) struct PasswordFlag {
    /// A file with the password of the key; - is standard input
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

const INSTEAD: &str = "give --password-file FILE, or set NACRE_KEY_PASSWORD";

impl PasswordFlag {
    /// The password that was given, if one was.
    fn given(&self) -> anyhow::Result<Option<Secret>> {
        /// Longer than any password; a wrong file is not read to its end.
        const MOST_BYTES: u64 = 64 << 10;
        let Some(path) = &self.password_file else { return session::key_password() };
        let mut bytes = Vec::new();
        let read = match path.as_os_str() == "-" {
            // A byte more than permitted, to tell one that is cut from one that ends.
            true => std::io::stdin().take(MOST_BYTES + 1).read_to_end(&mut bytes),
            false => std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes)),
        };
        let reading = || format!("cannot read the password from {}", path.display());
        if read.with_context(reading)? as u64 > MOST_BYTES {
            anyhow::bail!("{}: it is longer than {MOST_BYTES} bytes", reading());
        }
        let text = String::from_utf8(bytes).ok().with_context(|| format!("{}: it is not UTF-8", reading()))?;
        // Without the end of line that `echo` and editors add.
        Ok(Some(Secret::new(text.trim_end_matches(['\r', '\n']))))
    }

    /// The password for a program that asks for it where there is none.
    pub(crate) fn for_others(&self) -> anyhow::Result<Option<Secret>> {
        if self.password_file.is_some() { self.given() } else { Ok(None) }
    }

    /// A private key from its file, opened with its password if it has one.
    pub(crate) fn open(&self, session: &Session, path: &Path) -> anyhow::Result<PrivateKey> {
        let sealed = match KeyFile::open(path)? {
            // A password that opens nothing may mean that another key was meant.
            KeyFile::Plain(_) if self.password_file.is_some() => {
                return Err(Usage(format!("{}: it has no password; leave --password-file away", path.display())).into());
            }
            KeyFile::Plain(key) => return Ok(key),
            KeyFile::Sealed(sealed) => sealed,
        };
        let password = match self.given()? {
            Some(password) => password,
            None => {
                let question = format!("Password of {}: ", path.display());
                Secret::new(ask(session, &question, Shown::No, INSTEAD)?)
            }
        };
        sealed.open(&password).with_context(|| format!("cannot open {}", path.display()))
    }

    /// A password for a new key, asked for twice.
    fn new_one(&self, session: &Session) -> anyhow::Result<Secret> {
        if let Some(password) = self.given()? {
            return Ok(password);
        }
        let question = |text| ask(session, text, Shown::No, &format!("{INSTEAD}, or write it open with --no-password"));
        let password = question("Password of the new key: ")?;
        if question("The same again: ")? != password {
            anyhow::bail!("the two passwords are not the same");
        }
        Ok(Secret::new(password))
    }
}

/// Makes keys, or shows the public half of one.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Generate { name, no_password, password } => {
            let password = if *no_password { None } else { Some(password.new_one(session)?) };
            generate(session, name, password.as_ref())?;
        }
        Verb::Public { key, password } => {
            let text = password.open(session, key)?.public().to_pem();
            session.print(text.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn generate(session: &Session, name: &Path, password: Option<&Secret>) -> anyhow::Result<()> {
    let key = PrivateKey::generate()?;
    let text = match password {
        Some(password) => key.to_sealed_pem(password)?,
        None => key.to_plain_pem(),
    };
    let ending = |ending: &str| PathBuf::from(format!("{}.{ending}", name.display()));
    let (private, public) = (ending("key"), ending("pub"));
    write_new(&private, 0o600, text.reveal())?;
    if let Err(error) = write_new(&public, 0o644, &key.public().to_pem()) {
        // Half a pair is of no use, and would be in the way of the next try.
        std::fs::remove_file(&private).with_context(|| format!("cannot remove {}", private.display()))?;
        return Err(error);
    }
    session.print(&private.display().to_string())?;
    session.print(&public.display().to_string())
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let make = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        if written.is_err() {
            // A part of a key is of no use, and would be in the way of the next try.
            std::fs::remove_file(path)?;
        }
        written
    };
    match make() {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(Hinted::error(
            format!("{} is there already", path.display()),
            "keys are not replaced: name another file",
        )),
        written => written.with_context(|| format!("cannot write {}", path.display())),
    }
}
