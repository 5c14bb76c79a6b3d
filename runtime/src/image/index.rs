//! The images in memory: who is called what, who is held by whom, who was used when. Pure; the store guards it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::digest::Digest;
use super::layout::Layout;
use super::record::{Image, Record};
use super::reference::Reference;

/// One image and what hangs on it.
struct Entry {
    image: Arc<Image>,
    removed: bool,
    holders: HashSet<String>,
    /// A counter's value at the last use; larger is later. A wall clock may jump by decades here.
    used: u64,
}

/// All images.
#[derive(Default)]
pub(crate) struct Index {
    images: BTreeMap<Digest, Entry>,
    names: HashMap<String, Digest>,
    /// Which image an owner holds.
    holds: HashMap<String, Digest>,
    clock: u64,
}

impl Index {
    /// Adds or replaces an image. Its names point to it from now on.
    pub(crate) fn insert(&mut self, layout: &Layout, record: Record) -> Arc<Image> {
        let image = Arc::new(Image {
            id: record.id.to_string(),
            repo_tags: record.repo_tags,
            repo_digests: record.repo_digests,
            size_bytes: record.size_bytes,
            config: record.config,
            lower_dirs: record.layers.iter().rev().map(|chain| layout.layer(chain).join("fs")).collect(),
            layers: record.layers,
            added_at: record.added_at,
            pinned: record.pinned,
        });
        self.clock += 1;
        let (holders, used) = match self.images.remove(&record.id) {
            Some(old) => {
                self.names.retain(|_, id| *id != record.id);
                (old.holders, old.used.max(self.clock))
            }
            None => (HashSet::new(), self.clock),
        };
        if !record.removed {
            for name in image.repo_tags.iter().chain(&image.repo_digests) {
                self.names.insert(name.clone(), record.id.clone());
            }
        }
        let entry = Entry { image: image.clone(), removed: record.removed, holders, used };
        self.images.insert(record.id, entry);
        image
    }

    /// Forgets an image.
    pub(crate) fn forget(&mut self, id: &Digest) -> Option<Arc<Image>> {
        let entry = self.images.remove(id)?;
        self.names.retain(|_, named| named != id);
        self.holds.retain(|_, held| held != id);
        Some(entry.image)
    }

    /// The record of an image as it should be on disk.
    pub(crate) fn record(&self, id: &Digest) -> Option<Record> {
        let entry = self.images.get(id)?;
        let image = &entry.image;
        Some(Record {
            version: 1,
            id: id.clone(),
            repo_tags: image.repo_tags.clone(),
            repo_digests: image.repo_digests.clone(),
            size_bytes: image.size_bytes,
            layers: image.layers.clone(),
            config: image.config.clone(),
            added_at: image.added_at,
            pinned: image.pinned,
            removed: entry.removed,
        })
    }

    /// Finds a visible image by ID (also shortened or without its algorithm), name, or name with digest.
    pub(crate) fn find(&self, name: &str) -> Option<Digest> {
        let visible = |id: &Digest| self.images.get(id).is_some_and(|entry| !entry.removed);
        if let Some(id) = self.find_id(name).filter(&visible) {
            return Some(id);
        }
        let reference: Reference = name.parse().ok()?;
        let by_digest = || {
            let digest = reference.digest.as_ref()?;
            self.names.get(&reference.at(digest))
        };
        // A name with both tag and digest means the digest; the tag may have moved on.
        let found = match &reference.digest {
            Some(_) => by_digest(),
            None => self.names.get(&reference.to_string()),
        };
        found.filter(|id| visible(id)).cloned()
    }

    fn find_id(&self, name: &str) -> Option<Digest> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !digits || hex.len() < 12 || hex.len() > 64 {
            return None;
        }
        let mut matching = self.images.keys().filter(|id| id.hex().starts_with(hex));
        match (matching.next(), matching.next()) {
            (Some(id), None) => Some(id.clone()),
            _ => None,
        }
    }

    /// An image, visible or not.
    pub(crate) fn get(&self, id: &Digest) -> Option<Arc<Image>> {
        self.images.get(id).map(|entry| entry.image.clone())
    }

    /// Visible images.
    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        self.images.values().filter(|entry| !entry.removed).map(|entry| entry.image.clone()).collect()
    }

    /// Notes that `owner` uses an image; an owner has one at a time.
    pub(crate) fn hold(&mut self, owner: &str, id: &Digest) -> Option<Arc<Image>> {
        if self.holds.get(owner).is_some_and(|held| held != id) {
            self.release(owner);
        }
        self.clock += 1;
        let entry = self.images.get_mut(id)?;
        entry.used = self.clock;
        entry.holders.insert(owner.to_owned());
        self.holds.insert(owner.to_owned(), id.clone());
        Some(entry.image.clone())
    }

    /// Ends a hold; returns the image when it was removed meanwhile and nobody else holds it.
    pub(crate) fn release(&mut self, owner: &str) -> Option<Digest> {
        let id = self.holds.remove(owner)?;
        self.clock += 1;
        let entry = self.images.get_mut(&id)?;
        entry.used = self.clock;
        entry.holders.remove(owner);
        (entry.removed && entry.holders.is_empty()).then_some(id)
    }

    /// How many hold an image.
    pub(crate) fn holders(&self, id: &Digest) -> usize {
        self.images.get(id).map_or(0, |entry| entry.holders.len())
    }

    /// Every layer that some image, visible or not, is made of.
    pub(crate) fn layers(&self) -> BTreeSet<Digest> {
        self.images.values().flat_map(|entry| entry.image.layers.iter().cloned()).collect()
    }

    /// Every image's ID, visible or not.
    pub(crate) fn ids(&self) -> BTreeSet<Digest> {
        self.images.keys().cloned().collect()
    }

    /// Images that may be removed to make room, the one unused for longest first; pinned ones only if that is said.
    pub(crate) fn unused(&self, with_pinned: bool) -> Vec<Digest> {
        let free = |entry: &&Entry| {
            entry.holders.is_empty() && (with_pinned || entry.removed || !entry.image.pinned)
        };
        let mut unused: Vec<&Entry> = self.images.values().filter(free).collect();
        unused.sort_by_key(|entry| (!entry.removed, entry.used));
        unused.iter().map(|e| e.image.id.parse().expect("an image's ID is its digest")).collect()
    }

    /// Which other images lose which of these names when they move to `id`: their records without them.
    pub(crate) fn losing(&self, id: &Digest, names: &[String]) -> Vec<Record> {
        let losers: BTreeSet<&Digest> =
            names.iter().filter_map(|name| self.names.get(name)).filter(|&owner| owner != id).collect();
        let without = |owner: &&Digest| {
            let mut record = self.record(owner)?;
            record.repo_tags.retain(|tag| !names.contains(tag));
            record.repo_digests.retain(|digest| !names.contains(digest));
            Some(record)
        };
        losers.iter().filter_map(without).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageConfig;

    fn record(seed: &str, tags: &[&str]) -> Record {
        Record {
            version: 1,
            id: Digest::of(seed.as_bytes()),
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            repo_digests: vec![format!("q.io/a@{}", Digest::of(format!("manifest {seed}").as_bytes()))],
            size_bytes: 1,
            layers: vec![Digest::of(b"base"), Digest::of(seed.as_bytes())],
            config: ImageConfig::default(),
            added_at: 0,
            pinned: false,
            removed: false,
        }
    }

    fn index(records: &[Record]) -> Index {
        let mut index = Index::default();
        for record in records {
            index.insert(&Layout::new("/store"), record.clone());
        }
        index
    }

    #[test]
    fn finds_by_every_name() {
        let a = record("a", &["docker.io/library/a:latest"]);
        let index = index(std::slice::from_ref(&a));
        let digest = a.repo_digests[0].clone();
        let tagged = digest.replace('@', ":moved@");
        for name in [
            "a",
            "a:latest",
            "docker.io/library/a",
            a.id.as_str(),
            a.id.hex(),
            &a.id.hex()[..12],
            &digest,
            &tagged,
        ] {
            assert_eq!(index.find(name), Some(a.id.clone()), "{name}");
        }
        for name in ["b", "a:other", &a.id.hex()[..11], "sha256:", ""] {
            assert_eq!(index.find(name), None, "{name}");
        }
    }

    #[test]
    fn a_moved_tag_leaves_its_image() {
        let old = record("old", &["q.io/a:1", "q.io/a:2"]);
        let index = index(std::slice::from_ref(&old));
        let losing = index.losing(&Digest::of(b"new"), &["q.io/a:1".to_owned()]);
        assert_eq!(losing.len(), 1);
        assert_eq!(losing[0].repo_tags, ["q.io/a:2"]);
        assert!(index.losing(&old.id, &["q.io/a:1".to_owned()]).is_empty());
    }

    #[test]
    fn oldest_unused_first_and_held_never() {
        let (a, b, c) = (record("a", &[]), record("b", &[]), record("c", &[]));
        let mut index = index(&[a.clone(), b.clone(), c.clone()]);
        index.hold("pod", &a.id).unwrap();
        index.hold("other", &b.id).unwrap();
        assert_eq!(index.unused(false), std::slice::from_ref(&c.id));
        index.release("pod");
        assert_eq!(index.unused(false), [c.id, a.id]);
    }

    #[test]
    fn a_removed_image_lives_as_long_as_it_is_held() {
        let mut removed = record("a", &["q.io/a:1"]);
        let mut index = index(std::slice::from_ref(&removed));
        index.hold("one", &removed.id).unwrap();
        index.hold("two", &removed.id).unwrap();
        removed.removed = true;
        index.insert(&Layout::new("/store"), removed.clone());
        assert_eq!(index.find("q.io/a:1"), None);
        assert!(index.list().is_empty());
        assert_eq!(index.release("one"), None);
        assert_eq!(index.release("two"), Some(removed.id));
    }
}
