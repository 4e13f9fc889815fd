//! The digest of what a COPY, ADD or bind mount takes from the build context, for the step's key.
//!
//! A function of names, kinds, modes, link targets and bytes: touched but equal files give equal
//! digests. Times count only where the layer keeps them.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use layerfs::{Attributes, Digester, FileKind, Tree, TreeInode};

use crate::changeset::join;

/// Bytes read from a file at a time: enough for sequential reading to cost no more than that.
const READ_BYTES: usize = 256 << 10;

/// How a digest is taken.
#[derive(Clone, Copy)]
pub(crate) struct ContentRules {
    /// Whether the times of files go into the layer.
    pub(crate) keeps_times: bool,
    /// Threads that read.
    pub(crate) threads: usize,
}

struct Found {
    path: Vec<u8>,
    inode: TreeInode,
    attributes: Attributes,
}

/// The digest of `top` and all below it.
pub(crate) fn digest(tree: &Arc<dyn Tree>, top: TreeInode, rules: ContentRules) -> io::Result<String> {
    let mut found = Vec::new();
    collect(tree, top, Vec::new(), &mut found)?;
    let contents = digest_files(tree, &found, rules.threads)?;
    let mut digester = Digester::new();
    for (entry, content) in found.iter().zip(contents) {
        let attributes = &entry.attributes;
        let link = if attributes.kind == FileKind::Symlink { tree.read_link(entry.inode)? } else { Vec::new() };
        for field in [&entry.path, &link] {
            digester.update(&(field.len() as u64).to_le_bytes());
            digester.update(field);
        }
        let (major, minor) = attributes.device;
        let mut numbers = vec![attributes.kind as u32, attributes.mode, attributes.uid, attributes.gid, major, minor];
        if rules.keeps_times && attributes.kind != FileKind::Directory {
            // Whole seconds, as layers have them.
            let [low, high] = [attributes.modified.seconds as u32, (attributes.modified.seconds >> 32) as u32];
            numbers.extend([low, high]);
        }
        // Hard links make a difference in a layer: the first name of each file is the same for equal trees.
        numbers.push(u32::from(attributes.links > 1 && attributes.kind == FileKind::File));
        for number in numbers {
            digester.update(&number.to_le_bytes());
        }
        for (name, value) in tree.xattrs(entry.inode)? {
            for field in [&name, &value] {
                digester.update(&(field.len() as u64).to_le_bytes());
                digester.update(field);
            }
        }
        digester.update(content.as_bytes());
    }
    Ok(digester.digest().to_string())
}

fn collect(tree: &Arc<dyn Tree>, inode: TreeInode, path: Vec<u8>, found: &mut Vec<Found>) -> io::Result<()> {
    let attributes = tree.attributes(inode)?;
    found.push(Found { path: path.clone(), inode, attributes });
    if attributes.kind == FileKind::Directory {
        for entry in tree.entries(inode, 0, usize::MAX)? {
            collect(tree, entry.inode, join(&path, &entry.name), found)?;
        }
    }
    Ok(())
}

/// The digest of each file's bytes, in order; empty for what is no file.
fn digest_files(tree: &Arc<dyn Tree>, found: &[Found], threads: usize) -> io::Result<Vec<String>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![String::new(); found.len()]);
    let work = || -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let Some(entry) = found.get(position) else { return Ok(()) };
            if entry.attributes.kind == FileKind::File {
                let digest = digest_file(tree, entry.inode, &mut buffer)?;
                results.lock().unwrap_or_else(PoisonError::into_inner)[position] = digest;
            }
        }
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let own = work();
        helpers.into_iter().map(|helper| helper.join().expect("reading a tree does not panic")).fold(own, Result::and)
    })?;
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn digest_file(tree: &Arc<dyn Tree>, inode: TreeInode, buffer: &mut [u8]) -> io::Result<String> {
    let mut digester = Digester::new();
    let mut offset = 0;
    loop {
        let read = tree.read_at(inode, offset, buffer)?;
        if read == 0 {
            return Ok(digester.digest().to_string());
        }
        digester.update(&buffer[..read]);
        offset += read as u64;
    }
}
