//! The digest of what a COPY, ADD or bind mount takes, for the step's key.
//!
//! A function of names, kinds, modes, link targets and bytes: touched but equal files give equal
//! digests. Times count only where the layer keeps them; a mount shows them, but as in BuildKit they are no input. A stage that was built again with the same files is the same
//! input, whatever else is in it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use layerfs::{Attributes, DiffId, Digester, FileKind, Store, Tree, TreeInode};

use crate::changeset::select::Filter;
use crate::input::{Input, KnownBy};
use crate::key::Key;
use crate::listing::Listing;
use crate::paths::join;

/// Bytes read from a file at a time: enough for sequential reading to cost no more than that.
const READ_BYTES: usize = 256 << 10;

/// How a digest is taken.
#[derive(Clone, Copy)]
pub(crate) struct ContentRules<'a> {
    /// Whether the times of files go into the layer.
    pub(crate) keeps_times: bool,
    /// Whether mode and owner of the directory itself count. COPY takes what is in it.
    pub(crate) counts_top: bool,
    /// Threads that read.
    pub(crate) threads: usize,
    /// What is left out below a directory.
    pub(crate) filter: Filter<'a>,
    /// The text of the filter; nothing is left out where it is empty.
    pub(crate) filter_words: &'a [String],
}

struct Found {
    path: Vec<u8>,
    inode: TreeInode,
    attributes: Attributes,
    /// Of a file with several names, the place of the first of them, counted from 1; else 0.
    first_name: u32,
}

/// The content of an input at `top` and below it, as a key names it. What a stack of layers holds is looked up where it
/// was digested before: it never changes. How the files are called and what is in each is noted for [`Listing`].
pub(crate) fn identify(
    store: &Store,
    input: &Input,
    top: TreeInode,
    rules: ContentRules<'_>,
) -> Result<String, Box<dyn std::error::Error>> {
    let KnownBy::Chain(chain) = &input.known_by else {
        return listed(store, &input.tree, top, rules);
    };
    let place = Key::of("content").bytes(chain).value(top.0).value(rules.keeps_times).value(rules.counts_top);
    let note = format!("content-{}", place.list(rules.filter_words).digest());
    let noted = store.note(&note)?.and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some(digest) = noted.filter(|text| text.parse::<DiffId>().is_ok()) {
        return Ok(digest);
    }
    let digest = listed(store, &input.tree, top, rules)?;
    store.put_note(&note, digest.as_bytes())?;
    Ok(digest)
}

fn listed(
    store: &Store,
    tree: &Arc<dyn Tree>,
    top: TreeInode,
    rules: ContentRules<'_>,
) -> Result<String, Box<dyn std::error::Error>> {
    let (digest, listing) = digest(tree, top, rules)?;
    listing.note(store, &digest)?;
    Ok(digest)
}

/// The digest of `top` and all below it, and what of it is where.
fn digest(tree: &Arc<dyn Tree>, top: TreeInode, rules: ContentRules<'_>) -> io::Result<(String, Listing)> {
    let mut found = Vec::new();
    collect(tree, top, Vec::new(), rules.filter, &mut found)?;
    // Which names are links of one file makes a difference in a layer: each is known by the first of them.
    let mut names: HashMap<TreeInode, u32> = HashMap::new();
    for (position, entry) in (1..).zip(&mut found) {
        if entry.attributes.links > 1 && entry.attributes.kind != FileKind::Directory {
            entry.first_name = *names.entry(entry.inode).or_insert(position);
        }
    }
    if let Some(top) = found.first_mut().filter(|top| !rules.counts_top && top.attributes.kind == FileKind::Directory) {
        top.attributes = Attributes { mode: 0, uid: 0, gid: 0, ..top.attributes };
    }
    let mut whole = Digester::new();
    let mut listing = Listing::default();
    for (entry, sum) in found.iter().zip(digest_entries(tree, &found, rules)?) {
        whole.update(&sum);
        listing.push(&entry.path, sum);
    }
    Ok((whole.digest().to_string(), listing))
}

/// The digest of each entry, in order.
fn digest_entries(tree: &Arc<dyn Tree>, found: &[Found], rules: ContentRules<'_>) -> io::Result<Vec<[u8; 32]>> {
    /// Taken at a time: few, since any of them may be large.
    const CHUNK: usize = 8;
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<Vec<(usize, [u8; 32])>> {
        let (mut buffer, mut done) = (Vec::new(), Vec::new());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = found.chunks(CHUNK).nth(number) else { return Ok(done) };
            for (entry, position) in chunk.iter().zip(number * CHUNK..) {
                done.push((position, digest_entry(tree, entry, rules.keeps_times, &mut buffer)?));
            }
        }
    };
    let done = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..rules.threads.max(1)).map(|_| scope.spawn(work)).collect();
        let own = work();
        let helped = helpers.into_iter().map(|helper| helper.join().expect("reading a tree does not panic"));
        std::iter::once(own).chain(helped.collect::<Vec<_>>()).collect::<io::Result<Vec<_>>>()
    })?;
    let mut sums = vec![[0; 32]; found.len()];
    done.into_iter().flatten().for_each(|(position, sum)| sums[position] = sum);
    Ok(sums)
}

/// The digest of all that counts of one entry.
fn digest_entry(tree: &Arc<dyn Tree>, entry: &Found, keeps_times: bool, buffer: &mut Vec<u8>) -> io::Result<[u8; 32]> {
    fn put(fields: &mut Vec<u8>, field: &[u8]) {
        fields.extend((field.len() as u64).to_le_bytes());
        fields.extend(field);
    }
    let attributes = &entry.attributes;
    let content = match attributes.kind {
        FileKind::File => match tree.content_digest(entry.inode)? {
            Some(known) => known,
            None => digest_file(tree, entry.inode, buffer)?,
        },
        // Zeros for what is no file, whose kind counts, too.
        _ => [0; 32],
    };
    let link = if attributes.kind == FileKind::Symlink { tree.read_link(entry.inode)? } else { Vec::new() };
    let mut fields = Vec::with_capacity(entry.path.len() + 128);
    put(&mut fields, &entry.path);
    put(&mut fields, &link);
    let (major, minor) = attributes.device;
    let numbers = [attributes.kind as u32, attributes.mode, attributes.uid, attributes.gid, major, minor];
    numbers.iter().for_each(|number| fields.extend(number.to_le_bytes()));
    if keeps_times && attributes.kind != FileKind::Directory {
        // Whole seconds, as layers have them.
        fields.extend(attributes.modified.seconds.to_le_bytes());
    }
    fields.extend(entry.first_name.to_le_bytes());
    for (name, value) in tree.xattrs(entry.inode)? {
        put(&mut fields, &name);
        put(&mut fields, &value);
    }
    fields.extend(content);
    Ok(layerfs::sum_of(&fields))
}

/// Everything that is copied, in the order of the walk; a directory that is not copied itself is there only if something
/// in it is.
fn collect(
    tree: &Arc<dyn Tree>,
    inode: TreeInode,
    path: Vec<u8>,
    filter: Filter<'_>,
    found: &mut Vec<Found>,
) -> io::Result<()> {
    let attributes = tree.attributes(inode)?;
    let is_taken = path.is_empty() || filter.takes(&path);
    let is_directory = attributes.kind == FileKind::Directory;
    let may_be_on_the_way = is_directory && filter.may_take_below(&path);
    if !is_taken && !may_be_on_the_way {
        return Ok(());
    }
    let begin = found.len();
    found.push(Found { path: path.clone(), inode, attributes, first_name: 0 });
    if is_directory {
        for entry in tree.entries(inode, 0, usize::MAX)? {
            collect(tree, entry.inode, join(&path, &entry.name), filter, found)?;
        }
    }
    if !is_taken && found.len() == begin + 1 {
        found.pop();
    }
    Ok(())
}

/// The SHA-256 of a file's bytes.
fn digest_file(tree: &Arc<dyn Tree>, inode: TreeInode, buffer: &mut Vec<u8>) -> io::Result<[u8; 32]> {
    buffer.resize(READ_BYTES, 0);
    let mut digester = Digester::new();
    let mut offset = 0;
    loop {
        let read = tree.read_at(inode, offset, buffer)?;
        if read == 0 {
            return Ok(digester.sum());
        }
        digester.update(&buffer[..read]);
        offset += read as u64;
    }
}
