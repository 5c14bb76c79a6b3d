//! One-time tokens: what waits for the client that shows one. Takes `now`; the caller holds the lock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a token works, as with every CRI runtime.
const LIFETIME: Duration = Duration::from_secs(60);

/// How many may wait at a time; a client that never comes back for its URLs costs no more.
const MAX_WAITING: usize = 1000;

/// No further token is given out.
#[derive(Debug)]
pub(super) struct Full;

/// What waits, the oldest first.
#[derive(Debug)]
pub(super) struct Tokens<T> {
    waiting: VecDeque<(Instant, String, T)>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<T> Tokens<T> {
    /// Keeps something for whoever shows `token`.
    pub(super) fn insert(&mut self, token: String, what: T, now: Instant) -> Result<(), Full> {
        self.expire(now);
        if self.waiting.len() >= MAX_WAITING {
            return Err(Full);
        }
        self.waiting.push_back((now, token, what));
        Ok(())
    }

    /// What waits for `token`; the token is used up.
    pub(super) fn take(&mut self, token: &str, now: Instant) -> Option<T> {
        self.expire(now);
        let at = self.waiting.iter().position(|(_, known, _)| known == token)?;
        let (_, _, what) = self.waiting.remove(at)?;
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        Some(what)
    }

    fn expire(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|(since, _, _)| now.duration_since(*since) >= LIFETIME) {
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_works_once_and_for_a_minute() {
        let (mut tokens, start) = (Tokens::default(), Instant::now());
        tokens.insert("a".into(), 1, start).unwrap();
        tokens.insert("b".into(), 2, start + Duration::from_secs(30)).unwrap();
        let later = start + Duration::from_secs(61);
        assert_eq!(tokens.take("a", later), None);
        assert_eq!(tokens.take("", later), None);
        assert_eq!(tokens.take("b", later), Some(2));
        assert_eq!(tokens.take("b", later), None);
    }

    #[test]
    fn those_who_never_come_make_room_after_a_minute() {
        let (mut tokens, start) = (Tokens::default(), Instant::now());
        for number in 0..MAX_WAITING {
            tokens.insert(number.to_string(), number, start).unwrap();
        }
        assert!(tokens.insert("x".into(), 0, start).is_err());
        tokens.insert("x".into(), 0, start + LIFETIME).unwrap();
        assert_eq!(tokens.waiting.len(), 1);
    }
}
