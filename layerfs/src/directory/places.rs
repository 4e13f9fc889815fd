//! Directories of layers, and a bounded number of open descriptors.
//!
//! Invariant: a directory is opened by one name below the descriptor of the one above it, never by a path and never
//! through a link, so it lies in its layer whatever the layer holds. Nothing here knows what hides what.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::numbers::Root;

/// A directory of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PlaceId(u32);

#[derive(Debug)]
struct Place {
    layer: usize,
    parent: PlaceId,
    name: Arc<[u8]>,
}

/// The directories that were met so far. The first ones are the roots of the layers.
#[derive(Debug)]
pub(super) struct Places {
    roots: Vec<(Arc<OwnedFd>, Root)>,
    below: RwLock<Vec<Place>>,
    open: Descriptors<PlaceId>,
}

impl Places {
    pub(super) fn new(roots: Vec<OwnedFd>, open_files: usize) -> io::Result<Self> {
        let root = |fd: OwnedFd| {
            let root = Root::of(&rustix::fs::fstat(&fd)?);
            Ok((Arc::new(fd), root))
        };
        let roots = roots.into_iter().map(root).collect::<io::Result<_>>()?;
        Ok(Self { roots, below: RwLock::default(), open: Descriptors::new(open_files) })
    }

    pub(super) fn layer_count(&self) -> usize {
        self.roots.len()
    }

    pub(super) fn root(layer: usize) -> PlaceId {
        PlaceId(u32::try_from(layer).expect("a command line holds fewer layers"))
    }

    /// What numbers in a layer are made from.
    pub(super) fn numbering(&self, layer: usize) -> Root {
        self.roots[layer].1
    }

    pub(super) fn layer(&self, place: PlaceId) -> usize {
        let at = place.0 as usize;
        if at < self.roots.len() { at } else { self.read(place).0 }
    }

    /// Names a directory below another one.
    pub(super) fn add(&self, parent: PlaceId, name: &Arc<[u8]>) -> io::Result<PlaceId> {
        let layer = self.layer(parent);
        let mut below = self.below.write().unwrap_or_else(PoisonError::into_inner);
        let id = u32::try_from(self.roots.len() + below.len()).map_err(|_| Errno::OVERFLOW)?;
        below.push(Place { layer, parent, name: Arc::clone(name) });
        Ok(PlaceId(id))
    }

    /// The descriptor of a directory, `O_PATH`.
    pub(super) fn open(&self, place: PlaceId) -> io::Result<Arc<OwnedFd>> {
        let mut missing = Vec::new();
        let mut at = place;
        let mut directory = loop {
            if let Some((root, _)) = self.roots.get(at.0 as usize) {
                break Arc::clone(root);
            }
            if let Some(open) = self.open.find(at) {
                break open;
            }
            let (_, parent, name) = self.read(at);
            missing.push((at, name));
            at = parent;
        };
        for (place, name) in missing.into_iter().rev() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            directory = Arc::new(rustix::fs::openat(&*directory, &*name, flags, Mode::empty())?);
            self.open.insert(place, &directory);
        }
        Ok(directory)
    }

    fn read(&self, place: PlaceId) -> (usize, PlaceId, Arc<[u8]>) {
        let below = self.below.read().unwrap_or_else(PoisonError::into_inner);
        let place = &below[place.0 as usize - self.roots.len()];
        (place.layer, place.parent, Arc::clone(&place.name))
    }
}

/// Recently used descriptors: those of two generations, of which the older falls away as a whole.
#[derive(Debug)]
pub(super) struct Descriptors<K> {
    generation: usize,
    cached: Mutex<Generations<K>>,
}

#[derive(Debug)]
struct Generations<K> {
    young: HashMap<K, Arc<OwnedFd>>,
    old: HashMap<K, Arc<OwnedFd>>,
}

impl<K: Copy + Eq + Hash> Descriptors<K> {
    /// Keeps at most `capacity` descriptors, or two.
    pub(super) fn new(capacity: usize) -> Self {
        let cached = Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() });
        Self { generation: (capacity / 2).max(1), cached }
    }

    pub(super) fn find(&self, key: K) -> Option<Arc<OwnedFd>> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = cached.young.get(&key) {
            return Some(Arc::clone(found));
        }
        let found = cached.old.remove(&key)?;
        cached.add(key, &found, self.generation);
        Some(found)
    }

    pub(super) fn insert(&self, key: K, descriptor: &Arc<OwnedFd>) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.add(key, descriptor, self.generation);
    }
}

impl<K: Eq + Hash> Generations<K> {
    fn add(&mut self, key: K, descriptor: &Arc<OwnedFd>, generation: usize) {
        if self.young.len() >= generation {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, Arc::clone(descriptor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_descriptors_are_kept_than_asked_for() {
        let cache = Descriptors::new(8);
        let open = || Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("the null device")));
        let all: Vec<_> = (0..100).map(|_| open()).collect();
        for (key, descriptor) in all.iter().enumerate() {
            cache.insert(key, descriptor);
            assert!(cache.find(key).is_some(), "what was just kept is found");
        }
        assert!(all.iter().filter(|descriptor| Arc::strong_count(descriptor) > 1).count() <= 8);
        assert!(cache.find(0).is_none());
    }
}
