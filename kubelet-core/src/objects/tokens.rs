//! Tokens of service accounts, bound to pods.
//!
//! The table is pure and owned by [`super::ApiObjects`]; [`request`] asks the API server. A token is renewed at four
//! fifths of its life or after a day, as a kubelet does it; both are counted since boot, because the wall clock of
//! these machines jumps. One that cannot be renewed serves until it expires.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cluster::{ApiError, Cluster, Object, Resource};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::early::once_known;
use crate::api::{Pod, ServiceAccountTokenProjection};

/// A token older than this is renewed in any case.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Between tries to renew a token that still serves.
const RETRY: Duration = Duration::from_secs(60);
/// An hour, for an answer that names no life.
const DEFAULT_LIFE: i64 = 3600;

/// What a token is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct TokenKey {
    account: String,
    audience: String,
    seconds: Option<i64>,
}

impl TokenKey {
    pub(super) fn of(pod: &Pod, source: &ServiceAccountTokenProjection) -> Self {
        Self {
            account: pod.spec.service_account_name.clone(),
            audience: source.audience.clone(),
            seconds: source.expiration_seconds,
        }
    }
}

/// All tokens that the pod's volumes ask for.
pub(super) fn keys(pod: &Pod) -> Vec<TokenKey> {
    let sources = pod.spec.volumes.iter().filter_map(|volume| volume.projected.as_ref());
    let tokens = sources.flat_map(|source| &source.sources).filter_map(|s| s.service_account_token.as_ref());
    let mut keys: Vec<TokenKey> = Vec::new();
    for key in tokens.map(|token| TokenKey::of(pod, token)) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// The tokens of one pod.
#[derive(Default)]
pub(super) struct Tokens(HashMap<TokenKey, State>);

enum State {
    Held { token: Arc<str>, renew_at: Duration, expires_at: Duration, error: Option<String> },
    Failed(String),
}

impl Tokens {
    /// Whether a token is to be asked for.
    pub(super) fn is_due(&self, key: &TokenKey, now: Duration) -> bool {
        match self.0.get(key) {
            Some(State::Held { renew_at, .. }) => *renew_at <= now,
            Some(State::Failed(_)) | None => true,
        }
    }

    /// The token, or why there is none.
    pub(super) fn get(&self, key: &TokenKey, now: Duration) -> Option<Result<Arc<str>, String>> {
        Some(match self.0.get(key)? {
            State::Held { token, expires_at, .. } if now < *expires_at => Ok(token.clone()),
            State::Held { error, .. } => {
                let why = error.as_deref().unwrap_or("the API server was not asked in time");
                Err(format!("token of service account {:?} expired and refresh failed: {why}", key.account))
            }
            State::Failed(error) => Err(format!("failed to fetch token: {error}")),
        })
    }

    /// The tokens that serve.
    pub(super) fn held(&self) -> impl Iterator<Item = (&TokenKey, &Arc<str>)> {
        self.0.iter().filter_map(|(key, state)| match state {
            State::Held { token, .. } => Some((key, token)),
            State::Failed(_) => None,
        })
    }

    /// Takes over a token that was kept over a reboot, unless there is a newer one. It serves until then.
    pub(super) fn restore(&mut self, key: TokenKey, token: Arc<str>, now: Duration) {
        let renew_at = now + super::kept::ASK_AFTER;
        let kept = || State::Held { token, renew_at, expires_at: Duration::MAX, error: None };
        self.0.entry(key).or_insert_with(kept);
    }

    /// When the first of them is to be renewed.
    pub(super) fn renewal(&self) -> Option<Duration> {
        let held = self.0.values().filter_map(|state| match state {
            State::Held { renew_at, .. } => Some(*renew_at),
            State::Failed(_) => None,
        });
        held.min()
    }

    /// Takes over an answer: a token and its life in seconds.
    pub(super) fn set(&mut self, key: TokenKey, answer: Result<(Arc<str>, i64), String>, now: Duration) {
        let state = match (answer, self.0.remove(&key)) {
            (Ok((token, seconds)), _) => {
                let life = Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1));
                let renew_at = now + (life * 4 / 5).min(MAX_AGE);
                State::Held { token, renew_at, expires_at: now + life, error: None }
            }
            (Err(error), Some(State::Held { token, expires_at, .. })) => {
                State::Held { token, renew_at: now + RETRY, expires_at, error: Some(error) }
            }
            (Err(error), _) => State::Failed(error),
        };
        self.0.insert(key, state);
    }
}

#[derive(Deserialize)]
struct TokenRequest {
    #[serde(default)]
    spec: TokenRequestSpec,
    status: TokenRequestStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TokenRequestSpec {
    expiration_seconds: Option<i64>,
}

#[derive(Deserialize)]
struct TokenRequestStatus {
    token: Arc<str>,
}

impl Object for TokenRequest {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "serviceaccounts", "TokenRequest");
}

/// Asks for a token bound to the pod; answers it with its life in seconds.
pub(super) async fn request(cluster: &Cluster, pod: &Pod, key: &TokenKey) -> Result<(Arc<str>, i64), String> {
    let audiences: Vec<&str> =
        Some(key.audience.as_str()).filter(|text| !text.is_empty()).into_iter().collect();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": key.seconds,
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod.metadata.name,
                "uid": &*pod.metadata.uid,
            },
        },
    });
    let namespace = Some(pod.metadata.namespace.as_str());
    let target = Some((key.account.as_str(), "token"));
    let answer = once_known(|| cluster.create::<TokenRequest>(namespace, target, &body)).await;
    let answer = answer.map_err(|error| words(&error))?;
    let life = answer.spec.expiration_seconds.or(key.seconds).unwrap_or(DEFAULT_LIFE);
    Ok((answer.status.token, life))
}

/// The server's own words where there are some, as they stand in a kubelet's events.
fn words(error: &ApiError) -> String {
    if !error.message().is_empty() {
        return error.message().to_owned();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn key() -> TokenKey {
        TokenKey { account: "default".into(), audience: String::new(), seconds: Some(3607) }
    }

    #[test]
    fn a_token_is_renewed_at_four_fifths_of_its_life_and_serves_to_its_end() {
        let mut tokens = Tokens::default();
        assert!(tokens.is_due(&key(), at(0)));
        tokens.set(key(), Ok(("one".into(), 1000)), at(100));
        assert!(!tokens.is_due(&key(), at(899)));
        assert_eq!(tokens.renewal(), Some(at(900)));
        assert!(tokens.is_due(&key(), at(900)));
        tokens.set(key(), Err("no answer".into()), at(900));
        assert_eq!(tokens.renewal(), Some(at(960)), "tried again a little later, not at once");
        assert_eq!(tokens.get(&key(), at(1099)).unwrap().unwrap(), "one".into());
        let expired = tokens.get(&key(), at(1100)).unwrap().unwrap_err();
        assert_eq!(expired, "token of service account \"default\" expired and refresh failed: no answer");
        tokens.set(key(), Ok(("two".into(), 1000)), at(1200));
        assert_eq!(tokens.get(&key(), at(1200)).unwrap().unwrap(), "two".into());
    }

    #[test]
    fn a_long_life_is_cut_to_a_day_and_a_first_failure_is_told() {
        let mut tokens = Tokens::default();
        tokens.set(key(), Err("serviceaccounts \"x\" not found".into()), at(0));
        assert!(tokens.is_due(&key(), at(0)));
        assert_eq!(
            tokens.get(&key(), at(0)).unwrap().unwrap_err(),
            "failed to fetch token: serviceaccounts \"x\" not found"
        );
        tokens.set(key(), Ok(("long".into(), 7 * 86_400)), at(0));
        assert_eq!(tokens.renewal(), Some(MAX_AGE));
    }
}
