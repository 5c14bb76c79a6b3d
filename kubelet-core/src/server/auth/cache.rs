//! A table of answers that are valid for a while, bounded in number.
//!
//! Plain data without a clock: the caller says how late it is.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// Answers by question.
pub(super) struct Cache<K, V> {
    capacity: usize,
    entries: HashMap<K, (V, Duration)>,
}

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, entries: HashMap::new() }
    }

    /// The answer, if it is still valid.
    pub(super) fn get(&self, key: &K, now: Duration) -> Option<V> {
        self.entries.get(key).filter(|(_, until)| now < *until).map(|(value, _)| value.clone())
    }

    /// Keeps an answer. A full table forgets what is not valid any more, and then what ends first.
    pub(super) fn put(&mut self, key: K, value: V, now: Duration, until: Duration) {
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            self.entries.retain(|_, (_, until)| now < *until);
        }
        while self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            let first = self.entries.iter().min_by_key(|(_, (_, until))| *until);
            let Some(first) = first.map(|(key, _)| key.clone()) else { break };
            self.entries.remove(&first);
        }
        self.entries.insert(key, (value, until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_and_their_number_is_bounded() {
        let at = Duration::from_secs;
        let mut cache = Cache::new(2);
        cache.put("a", 1, at(0), at(10));
        assert_eq!((cache.get(&"a", at(9)), cache.get(&"a", at(10))), (Some(1), None));
        cache.put("b", 2, at(1), at(30));
        cache.put("c", 3, at(2), at(20));
        assert_eq!((cache.get(&"a", at(3)), cache.get(&"b", at(3))), (None, Some(2)));
        cache.put("d", 4, at(25), at(40));
        assert_eq!((cache.get(&"b", at(25)), cache.get(&"d", at(25))), (Some(2), Some(4)));
        assert_eq!(cache.entries.len(), 2);
    }
}
