//! Command lines that are not understood: what docker and podman have under that name is called by ours.
//!
//! Invariant: nothing is carried out. In `nacre run` the exit code is 125, so that it is none of the command's.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches, Parser};
use registry_client::without_credentials;

use crate::args::Cli;
use crate::commands::run::OWN_FAILURE;
use crate::report;

/// Verbs of docker and podman that are none here, and what does their work.
const VERBS: [(&str, &str); 20] = [
    ("trust", "`nacre sign` signs, `nacre verify --key` checks; policy.json says what is let in (--signature-policy)"),
    ("exec", "no container goes on in the background; `nacre run IMAGE COMMAND` runs one in a fresh state"),
    ("ps", "no container goes on in the background; `nacre mount` lists what is mounted"),
    ("start", "no container stays: `nacre run IMAGE` runs one in a fresh state"),
    ("stop", "no container goes on in the background: Ctrl-C or a signal ends `nacre run`"),
    ("kill", "no container goes on in the background: Ctrl-C or a signal ends `nacre run`"),
    ("rm", "no container stays; `nacre remove` (rmi) removes names of images"),
    ("create", "`nacre mount IMAGE DIRECTORY` makes a copy-on-write copy, `nacre commit` an image of it"),
    ("logs", "no container goes on in the background: its output is that of `nacre run`"),
    ("import", "a Dockerfile of `FROM scratch` and `ADD FILE.tar /` makes an image of a tar file"),
    ("cp", "`nacre mount IMAGE DIRECTORY` shows the files of an image"),
    ("search", "registries have no common search; `nacre tags` and `nacre catalog` list what one has"),
    ("buildx", "`nacre build` has the flags of `docker buildx build`"),
    ("builder", "there is no builder to manage: `nacre build` is all of it, `nacre prune --all` empties its cache"),
    ("container", "no container stays: `nacre run IMAGE` runs one in a fresh state"),
    ("system", "`nacre prune` frees disk space, `nacre doctor` tells what this host permits"),
    ("info", "`nacre doctor` tells what this host permits"),
    ("version", "`nacre --version`"),
    ("volume", "there are no named volumes: `-v DIRECTORY:TARGET` mounts a directory"),
    ("network", "there are no networks of our own: `--network default|none|host`"),
];

/// Flags of docker that are none here, by verb, and what does their work.
const FLAGS: [(&[&str], &[&str], &str); 22] = [
    (&["run"], &["-p", "--publish", "-P", "--publish-all", "--expose"], NO_PORTS),
    (&["run"], &["-d", "--detach", "--restart", "--cidfile", "-a", "--attach", "--detach-keys"], NO_DAEMON),
    (
        &["run"],
        &["--name", "--volumes-from", "--link", "--pod", "--replace"],
        "a command has no name, and nothing of it stays",
    ),
    (&["run"], &["--privileged", "--cap-add", "--cap-drop", "--security-opt", "--device", "--gpus"], NO_PRIVILEGES),
    (&["run"], &["--init"], "the sandbox has an init of its own, which reaps what the command leaves behind"),
    (
        &["run"],
        &["--dns", "--dns-search", "--dns-option"],
        "the command has this machine's resolv.conf; -v can mount another on it",
    ),
    (&["run"], &["-l", "--label", "--annotation"], "labels are an image's: `nacre build --label`"),
    (
        &["run"],
        &["--health-cmd", "--no-healthcheck", "--log-driver", "--log-opt", "--stop-signal", "--stop-timeout"],
        NO_DAEMON,
    ),
    (
        &["run"],
        &["--ipc", "--pid", "--uts", "--userns", "--cgroupns"],
        "each command has namespaces of its own, and no others",
    ),
    (
        &["build"],
        &["-v", "--volume"],
        "RUN --mount=type=bind mounts files, and --build-context brings further directories",
    ),
    (&["build"], &["--squash", "--squash-all", "--layers", "--rm", "--force-rm"], NO_CONTAINERS),
    (&["build"], &["--builder", "--isolation", "--userns"], NO_SETTING),
    (&["build"], &["--compress"], "a context is not sent anywhere; -o type=image,compression=zstd compresses layers"),
    (&REGISTRY_VERBS, &["--tls-verify", "--src-tls-verify", "--dest-tls-verify", "--insecure"], NO_TLS_FLAG),
    (&REGISTRY_VERBS, &["--cert-dir", "--src-cert-dir", "--dest-cert-dir"], NO_CERT_FLAG),
    (
        &REGISTRY_VERBS,
        &["--creds", "--src-creds", "--dest-creds", "--authfile", "--registry-token"],
        NO_CREDENTIALS_FLAG,
    ),
    (
        &["push", "copy"],
        &["--sign-by", "--sign-by-sigstore", "--sign-by-sigstore-private-key", "--sign-passphrase-file"],
        "`nacre sign` signs an image where it lies: with --key FILE as cosign does, with --gpg-key ID as GPG",
    ),
    (&["build"], &["--timestamp"], "--source-date-epoch sets the newest time in the layers"),
    (&["build"], &["--cpu-period", "--cpu-quota"], "--cpus sets the most processors, as 1.5"),
    (
        &["build"],
        &["--cap-add", "--cap-drop", "--privileged", "--device"],
        "RUN --security=insecure has all privileges, with --allow security.insecure",
    ),
    (&["build"], &["--ignorefile"], "FILE.dockerignore beside the Dockerfile FILE counts before .dockerignore"),
    (
        &["images"],
        &["-a", "--all", "--filter", "-f", "--no-trunc", "--digests"],
        "every name of the store is listed; --format json has whole digests",
    ),
];

const NO_PORTS: &str = "the command has this machine's network (--network default): its ports are open as they are";
const NO_DAEMON: &str =
    "there is no daemon: a command ends with `nacre run`; systemd-run, nohup or `&` keep that going";
const NO_PRIVILEGES: &str = "a command has docker's default capabilities and devices, and no others";
const NO_CONTAINERS: &str = "one instruction is one layer, and no container is left behind that had to be removed";
/// Verbs that speak with registries.
const REGISTRY_VERBS: [&str; 17] = [
    "build",
    "run",
    "push",
    "pull",
    "copy",
    "sync",
    "tags",
    "catalog",
    "delete",
    "referrers",
    "sign",
    "verify",
    "attach",
    "artifact",
    "manifest",
    "limits",
    "login",
];
const NO_TLS_FLAG: &str = "what a registry may do is kept by registry: `[[registry]]`, `location = \"HOST\"` and `insecure = true` \
    in ~/.config/containers/registries.conf permit plain http and certificates that nobody has signed";
const NO_CERT_FLAG: &str = "certificates lie in /etc/containers/certs.d/HOST or ~/.config/containers/certs.d/HOST";
const NO_CREDENTIALS_FLAG: &str = "`nacre login` keeps credentials; REGISTRY_AUTH_FILE names another file for them";
const NO_SETTING: &str = "there is one builder, in this process, and a build has a user namespace where it needs one";

/// Parses the command line. What a flag is switched on by alone may also be given a value, as docker's users write it:
/// `--no-cache=true`, `--pull=false`.
pub(crate) fn parse(line: &[OsString]) -> Result<Cli, clap::Error> {
    match Cli::try_parse_from(line) {
        Err(error) if error.kind() == ErrorKind::TooManyValues => {}
        parsed => return parsed,
    }
    // Not from the beginning, so that the help does not offer it for each flag.
    let mut matches = with_values(Cli::command()).try_get_matches_from(line)?;
    Cli::from_arg_matches_mut(&mut matches)
}

fn with_values(command: Command) -> Command {
    let switched = |flag: Arg| match flag.get_action() {
        ArgAction::SetTrue => {
            let flag = flag.action(ArgAction::Set).num_args(0..=1).require_equals(true);
            flag.default_value("false").default_missing_value("true").value_parser(BoolishValueParser::new())
        }
        _ => flag,
    };
    command.mut_args(switched).mut_subcommands(with_values)
}

/// Shows what is wrong with a command line, or the help that was asked for, and gives the exit code.
pub(crate) fn answer(mut error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe wants no more help.
        _ = error.print();
        return ExitCode::SUCCESS;
    }
    let mut command = Cli::command();
    command.build();
    let verbs = spoken(&command, std::env::args().skip(1));
    let verb = match verbs.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["image", "ls", ..] => "images",
        ["image", "rm", ..] => "remove",
        ["image", verb, ..] | [verb, ..] => verb,
        [] => "",
    };
    match elsewhere(&error, verb) {
        Some((what, hint)) => report::show(&format!("error: {what} is not supported\nhint: {hint}\n")),
        None => {
            // Clap's own takes variables of the environment for arguments that were given.
            let asked = verbs.iter().fold(&mut command, |at, verb| at.find_subcommand_mut(verb).expect("it was found"));
            error.insert(ContextKind::Usage, ContextValue::StyledStr(asked.render_usage()));
            // Who types a flag that is not there mostly wants no value that looks like one.
            if error.kind() == ErrorKind::UnknownArgument {
                error.remove(ContextKind::Suggested);
            }
            // Clap quotes what was typed.
            let text = error.render();
            let plain = text.to_string();
            match without_credentials(&plain) {
                hidden if hidden != plain => report::show(&hidden),
                _ => _ = error.print(),
            }
        }
    }
    ExitCode::from(if verb == "run" { OWN_FAILURE } else { 2 })
}

/// The verb, and the verb below it, that a command line names; by their first names.
fn spoken(command: &Command, arguments: impl Iterator<Item = String>) -> Vec<String> {
    let (mut at, mut verbs) = (command, Vec::new());
    for argument in arguments {
        if let Some(next) = at.find_subcommand(&argument) {
            verbs.push(next.get_name().to_owned());
            at = next;
        }
        if !at.has_subcommands() {
            break;
        }
    }
    verbs
}

/// What was typed, and what there is in its place.
fn elsewhere(error: &clap::Error, verb: &str) -> Option<(String, &'static str)> {
    let typed = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let typed = typed(ContextKind::InvalidSubcommand)?;
            VERBS.iter().find(|(name, _)| *name == typed).map(|(_, hint)| (format!("`nacre {typed}`"), *hint))
        }
        ErrorKind::UnknownArgument => {
            let typed = typed(ContextKind::InvalidArg)?;
            let (_, _, hint) = FLAGS.iter().find(|(of, flags, _)| of.contains(&verb) && flags.contains(&typed))?;
            Some((format!("{typed} of `nacre {verb}`"), *hint))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Verb;

    #[test]
    fn what_docker_has_is_named_only_where_it_is_missing_here() {
        for (verb, _) in VERBS {
            let error = Cli::try_parse_from(["nacre", verb]).err().expect(verb);
            assert!(elsewhere(&error, "").is_some(), "{verb}");
        }
        let of_all = |(verbs, flags, _): (&'static [&'static str], &'static [&'static str], _)| {
            verbs.iter().flat_map(move |verb| flags.iter().map(move |flag| (*verb, *flag)))
        };
        for (verb, flag) in FLAGS.into_iter().flat_map(of_all) {
            {
                let error = Cli::try_parse_from(["nacre", verb, flag, "x"]).err().expect(flag);
                assert!(elsewhere(&error, verb).is_some(), "{verb} {flag}: {error}");
            }
        }
        let error = Cli::try_parse_from(["nacre", "run", "--nonsense"]).err().expect("no such flag");
        assert_eq!(elsewhere(&error, "run"), None);
    }

    #[test]
    fn a_switch_may_have_a_value_as_docker_has_it() {
        let parsed = |line: &str| parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        let quiet = |line: &str| match parsed(line).expect(line).verb {
            Verb::Build(args) => args.quiet,
            _ => unreachable!("it is a build"),
        };
        assert!(quiet("nacre build --quiet=true --no-cache=false --platform linux/arm64 ."));
        assert!(!quiet("nacre build --quiet=0 --pull=1 -t app --label a=true ."));
        assert!(!quiet("nacre build --pull=t ."));
        assert!(parsed("nacre run --rm=true -it app ls --all=true").is_ok());
        assert!(parsed("nacre prune --all=perhaps").is_err());
        let error = parsed("nacre build --pull=true --nonsense .").err().expect("no such flag");
        assert_eq!(error.kind(), ErrorKind::UnknownArgument);
    }

    #[test]
    fn the_last_of_a_flag_counts_and_lists_grow() {
        let line = "nacre --progress plain build --progress tty --target x --target y --pull --pull \
            --tag one --tag two --label a --label b .";
        let matches = Cli::command().try_get_matches_from(line.split_whitespace()).expect("as in docker");
        let (_, build) = matches.subcommand().expect("a verb");
        let strings = |id: &str| build.get_many::<String>(id).expect(id).map(String::as_str).collect::<Vec<_>>();
        assert_eq!(
            (strings("target"), strings("tags"), strings("label")),
            (vec!["y"], vec!["one", "two"], vec!["a", "b"])
        );
        assert_eq!(build.get_one("progress"), Some(&crate::progress::Mode::Tty));
        let line = ["nacre", "build", "--quiet=true", "--quiet=false", "."].map(OsString::from);
        let Verb::Build(args) = parse(&line).expect("as in docker").verb else { unreachable!("it is a build") };
        assert!(!args.quiet);
    }

    #[test]
    fn the_verb_is_found_behind_global_flags() {
        let spoken = |line: &str| spoken(&Cli::command(), line.split(' ').map(str::to_owned));
        assert_eq!(spoken("--root /s rmi -f x"), ["remove"]);
        assert_eq!(spoken("manifest create run"), ["manifest", "create"]);
        assert_eq!(spoken("run image push"), ["run"]);
    }
}
