//! A commit found out and checked out: reference to commit id, commit id to a directory.
//!
//! Invariant: the files are a function of the commit id and the options. What git keeps beside them (`.git`) is made
//! anew in a form that depends on nothing else: no log, no times, no delta that a server chose.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::command::Git;
use super::url::{GitReference, without_passwords};

use crate::error::GitError;

/// What a reference names at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// What is checked out: a commit, or an annotated tag if it matters that it is one.
    pub(crate) id: String,
    /// The whole ref that it was found under; `None` for a commit id.
    pub(crate) full_ref: Option<String>,
}

/// Refs that are fetched only to find a commit in them.
const SCRATCH_REFS: &str = "refs/nacre/";

/// Asks the repository which commit a reference names; a whole commit id is not asked for.
pub(crate) fn resolve(git: &Git<'_>, reference: &GitReference, keeps_git_dir: bool) -> Result<Resolved, GitError> {
    let checksum = reference.checksum.as_deref().map(str::to_ascii_lowercase);
    let matches = |id: &str| checksum.as_ref().is_none_or(|sum| id.starts_with(sum.as_str()));
    let mismatch = |found: &str| {
        git.wrong(format!("expected checksum to match {}, got {found}", checksum.as_deref().unwrap_or_default()))
    };
    if let Some(id) = reference.reference.as_deref().filter(|text| is_commit_id(text)) {
        let resolved = Resolved { id: id.to_owned(), full_ref: None };
        return if matches(id) { Ok(resolved) } else { Err(mismatch(id)) };
    }
    if reference.fetch_by_commit {
        return match checksum.as_deref().filter(|sum| is_commit_id(sum)) {
            Some(id) => Ok(Resolved { id: id.to_owned(), full_ref: None }),
            None => Err(git.wrong("fetch-by-commit needs a whole commit id as its checksum")),
        };
    }
    let found = match &reference.reference {
        None => default_branch(git, &reference.address())?,
        Some(name) => named(git, &reference.address(), name)?,
    };
    let ids: Vec<&str> = [Some(found.id.as_str()), found.commit.as_deref()].into_iter().flatten().collect();
    if !ids.iter().any(|id| matches(id)) {
        return Err(mismatch(&ids.join(" or ")));
    }
    // The commit that a tag leads to is the same whatever leads there, unless the tag itself is kept.
    let id = found.commit.filter(|_| !keeps_git_dir).unwrap_or(found.id);
    Ok(Resolved { id, full_ref: Some(found.full_ref) })
}

/// What a server advertises under one name.
struct Advertised {
    id: String,
    /// Where an annotated tag leads.
    commit: Option<String>,
    full_ref: String,
}

fn default_branch(git: &Git<'_>, address: &str) -> Result<Advertised, GitError> {
    let answer = git.run(&["ls-remote", "--symref", "--", address, "HEAD"])?;
    let lines = || answer.lines().filter_map(|line| line.split_once('\t')).filter(|(_, name)| *name == "HEAD");
    let branch = lines().find_map(|(value, _)| value.strip_prefix("ref: "));
    let id = lines().map(|(value, _)| value).find(|value| is_commit_id(value));
    match (branch, id) {
        (Some(branch), Some(id)) if branch.starts_with("refs/heads/") => {
            Ok(Advertised { id: id.to_owned(), commit: None, full_ref: branch.to_owned() })
        }
        _ => Err(git.wrong("it has no default branch: name a ref, as in URL#main")),
    }
}

/// As git itself, a branch before a tag of the same name.
fn named(git: &Git<'_>, address: &str, name: &str) -> Result<Advertised, GitError> {
    let answer = git.run(&["ls-remote", "--", address, name, &format!("{name}^{{}}")])?;
    let prefixed = |prefix: &str| format!("{prefix}{}", name.strip_prefix(prefix).unwrap_or(name));
    let id_of = |wanted: &str| {
        let mut lines = answer.lines().filter_map(|line| line.split_once('\t'));
        lines.find(|(id, found)| *found == wanted && is_commit_id(id)).map(|(id, _)| id.to_owned())
    };
    for full_ref in [prefixed("refs/"), prefixed("refs/heads/"), prefixed("refs/tags/")] {
        if let Some(id) = id_of(&full_ref) {
            let commit = id_of(&format!("{full_ref}^{{}}"));
            return Ok(Advertised { id, commit, full_ref });
        }
    }
    Err(git.wrong(format!("repository does not contain ref {name}")))
}

/// Fetches and checks out into `tree`, which is made; gives the time of the commit.
pub(crate) fn check_out(
    git: &Git<'_>,
    reference: &GitReference,
    resolved: &Resolved,
    tree: &Path,
) -> Result<i64, GitError> {
    let format = if resolved.id.len() == 64 { "sha256" } else { "sha1" };
    let directory = tree.as_os_str();
    let flag = std::ffi::OsString::from(format!("--object-format={format}"));
    git.run(&["init".as_ref(), "--quiet".as_ref(), flag.as_os_str(), "--".as_ref(), directory])?;
    let run = |arguments: &[&str]| git.run_in(tree, &[], arguments);
    run(&["remote", "add", "--", "origin", &reference.address()])?;
    fetch(&run, git, resolved, tree)?;
    run(&["checkout", "--quiet", "--detach", &resolved.id])?;
    if !reference.skip_submodules && fs::symlink_metadata(tree.join(".gitmodules")).is_ok() {
        shallow_first(&["submodule", "update", "--init", "--recursive"], &[], &run)?;
    }
    let time = run(&["show", "--no-patch", "--format=%ct", &format!("{}^{{commit}}", resolved.id)])?;
    time.trim().parse().map_err(|_| git.wrong(format!("its commit has the time {:?}", time.trim())))
}

type Run<'a> = dyn Fn(&[&str]) -> Result<String, GitError> + 'a;

/// One commit without its past where the server can do that; all of the past where not.
fn fetch(run: &Run<'_>, git: &Git<'_>, resolved: &Resolved, tree: &Path) -> Result<(), GitError> {
    let has_it = || run(&["cat-file", "-e", &resolved.id]).is_ok();
    if let Some(full_ref) = &resolved.full_ref {
        let refspec = format!("+{full_ref}:{full_ref}");
        shallow_first(&["fetch", "--quiet", "--no-tags"], &["--", "origin", &refspec], run)?;
        if run(&["rev-parse", &format!("{full_ref}^{{}}")])?.trim() == peeled(run, resolved)? {
            return Ok(());
        }
        // The ref has moved since it was asked for: the commit that was found counts.
        run(&["update-ref", "-d", full_ref])?;
    }
    if run(&["fetch", "--quiet", "--no-tags", "--depth=1", "--", "origin", &resolved.id]).is_ok() && has_it() {
        return Ok(());
    }
    // Not every server gives a commit by its id: all that branches and tags lead to is fetched, to find it there.
    let refspecs = ["heads", "tags"].map(|kind| format!("+refs/{kind}/*:{SCRATCH_REFS}{kind}/*"));
    let mut arguments = vec!["fetch", "--quiet", "--no-tags"];
    arguments.extend(tree.join(".git/shallow").exists().then_some("--unshallow"));
    arguments.extend(["--", "origin"].into_iter().chain(refspecs.iter().map(String::as_str)));
    run(&arguments)?;
    if has_it() { Ok(()) } else { Err(git.wrong(format!("it has no commit {}", resolved.id))) }
}

/// The commit that was found, as far as it is there: nothing for one that was not fetched.
fn peeled(run: &Run<'_>, resolved: &Resolved) -> Result<String, GitError> {
    Ok(run(&["rev-parse", &format!("{}^{{}}", resolved.id)]).map(|id| id.trim().to_owned()).unwrap_or_default())
}

/// Without the past, unless the server cannot leave it out: plain file servers cannot.
fn shallow_first(verb: &[&str], rest: &[&str], run: &Run<'_>) -> Result<String, GitError> {
    match run(&[verb, &["--depth=1"], rest].concat()) {
        Err(GitError::Failed { said, .. }) if said.contains("shallow") || said.contains("--depth") => {
            run(&[verb, rest].concat())
        }
        result => result,
    }
}

/// Makes what git keeps a function of the commit: see the invariant.
pub(crate) fn make_repeatable(git: &Git<'_>, tree: &Path) -> Result<(), GitError> {
    let failed = |source| GitError::Run { verb: "cleanup".to_owned(), source };
    for directory in git_directories(&tree.join(".git")).map_err(failed)? {
        let settings =
            ["pack.threads=1", "pack.compression=0", "pack.writeReverseIndex=false", "repack.writeBitmaps=false"];
        let run = |arguments: &[&str]| git.run_in(&directory, &settings, arguments);
        let own = ["--git-dir=."];
        let run = |arguments: &[&str]| run(&[&own, arguments].concat());
        let scratch = run(&["for-each-ref", "--format=%(refname)", SCRATCH_REFS])?;
        for name in scratch.lines() {
            run(&["update-ref", "-d", name])?;
        }
        run(&["repack", "-a", "-d", "-F", "-q", "--window=0", "--depth=0"])?;
        for name in ["index", "logs", "FETCH_HEAD", "ORIG_HEAD", "description", "branches", "hooks", "refs/nacre"] {
            remove(&directory.join(name)).map_err(failed)?;
        }
        // An index with no times of files in it.
        run(&["read-tree", "HEAD"])?;
        redact(&directory.join("config")).map_err(failed)?;
    }
    Ok(())
}

/// A repository's own directory, and those of its submodules.
fn git_directories(top: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut pending) = (Vec::new(), vec![top.to_owned()]);
    while let Some(directory) = pending.pop() {
        let is_repository = directory.join("HEAD").is_file() && directory.join("objects").is_dir();
        let below = if is_repository { directory.join("modules") } else { directory.clone() };
        if is_repository {
            found.push(directory);
        }
        if below.is_dir() {
            for entry in fs::read_dir(&below)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(entry.path());
                }
            }
        }
    }
    Ok(found)
}

fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// URLs in a configuration lose their passwords.
fn redact(config: &Path) -> io::Result<()> {
    let text = fs::read_to_string(config)?;
    let redacted = without_passwords(&text);
    fs::write(config, redacted)
}

/// A whole commit id of either kind.
pub(crate) fn is_commit_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}
