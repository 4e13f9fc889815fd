//! `nacre login`.

use std::io::Read;
use std::process::ExitCode;

use anyhow::Context;
use registry_client::{Credential, Secret};

use crate::ask::{Shown, ask};
use crate::report::Usage;
use crate::session::{Session, login_file};

/// Docker's registry, where no other is named.
const DEFAULT_REGISTRY: &str = "docker.io";

/// What there is in place of a terminal.
const HINT: &str = "give -u USER and --password-stdin";

/// Log in to a registry
#[derive(clap::Args)]
#[command(after_help = "The password is verified, then kept in $REGISTRY_AUTH_FILE, else in docker's config.json, \
    or in the credential helper that this file names.\n\n\
    Example:\n  echo $TOKEN | nacre login ghcr.io -u me --password-stdin")]
pub(crate) struct Args {
    /// The registry [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
    /// The user [default: asked for]
    #[arg(short, long, value_name = "USER")]
    username: Option<String>,
    /// The password; other users of this machine can see it while the program runs
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Take the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

/// Verifies a credential and keeps it.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let registry = registry(args.registry.as_deref())?;
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask(session, "Username: ", Shown::Yes, HINT)?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None if args.password_stdin => piped_password()?,
        None => ask(session, "Password: ", Shown::No, HINT)?,
    };
    if user.is_empty() || password.is_empty() {
        return Err(Usage("the user name and the password must not be empty".to_owned()).into());
    }
    let credential = Credential::Password { user, password: Secret::new(password) };
    session.client.log_in(&registry, &credential, &login_file()?)?;
    session.print(&format!("logged in to {registry}"))?;
    Ok(ExitCode::SUCCESS)
}

/// A registry as docker's users type it: with a scheme or a path that say nothing, or not at all.
pub(super) fn registry(typed: Option<&str>) -> anyhow::Result<String> {
    let Some(typed) = typed else { return Ok(DEFAULT_REGISTRY.to_owned()) };
    if typed.contains('@') {
        let what = format!("{typed}: a registry's name holds no user; give -u USER and --password-stdin");
        return Err(Usage(what).into());
    }
    let host = typed.strip_prefix("https://").or_else(|| typed.strip_prefix("http://")).unwrap_or(typed);
    let host = host.split('/').next().unwrap_or_default();
    Ok(match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        host => host.to_owned(),
    })
}

/// Without the end of line that `echo` adds.
fn piped_password() -> anyhow::Result<String> {
    /// No registry takes longer ones; a wrong file on standard input is not read to its end.
    const MOST_BYTES: u64 = 64 << 10;
    let mut text = String::new();
    std::io::stdin()
        .take(MOST_BYTES)
        .read_to_string(&mut text)
        .context("cannot read the password from standard input")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_a_host_however_it_is_typed() {
        let registry = |typed| registry(typed).expect("a host");
        assert_eq!(registry(None), "docker.io");
        assert_eq!(registry(Some("https://index.docker.io/v1/")), "docker.io");
        assert_eq!(registry(Some("ghcr.io/me/app")), "ghcr.io");
        assert_eq!(registry(Some("localhost:5000")), "localhost:5000");
        assert!(super::registry(Some("me:secret@ghcr.io")).is_err());
    }
}
