//! Who asks, and whether they may: client certificates, TokenReview, SubjectAccessReview.
//!
//! Shared by all connections. Answers of the API server are kept for as long as a kubelet keeps them, a bounded
//! number of them; one short lock on each table, no await under it.

mod cache;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_cluster::{ApiError, Cluster, Object, Resource};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::route::Permission;
use super::subject::Subject;
use crate::clock::Clock;
use cache::Cache;

/// A token's user is asked for again after so long (`authentication.webhook.cacheTTL`).
const TOKEN_TTL: Duration = Duration::from_secs(120);
/// What was allowed is asked again after so long (`authorization.webhook.cacheAuthorizedTTL`).
const ALLOWED_TTL: Duration = Duration::from_secs(300);
/// What was denied (`authorization.webhook.cacheUnauthorizedTTL`).
const DENIED_TTL: Duration = Duration::from_secs(30);
/// Answers of each kind that are kept.
const ENTRIES: usize = 256;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub(super) struct User {
    pub(super) username: String,
    pub(super) uid: String,
    pub(super) groups: Vec<String>,
    /// In a fixed order, so that it may be a part of a key.
    pub(super) extra: std::collections::BTreeMap<String, Vec<String>>,
}

impl From<Subject> for User {
    fn from(subject: Subject) -> Self {
        let mut groups = subject.organizations;
        groups.push("system:authenticated".to_owned());
        Self { username: subject.common_name, groups, ..Self::default() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenReview {
    status: TokenReviewStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenReviewStatus {
    authenticated: bool,
    user: User,
}

impl Object for TokenReview {
    const RESOURCE: Resource =
        Resource::cluster_wide("authentication.k8s.io", "v1", "tokenreviews", "TokenReview");
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SubjectAccessReview {
    status: AccessStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AccessStatus {
    allowed: bool,
}

impl Object for SubjectAccessReview {
    const RESOURCE: Resource =
        Resource::cluster_wide("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview");
}

/// What a question of permission was about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    user: User,
    verb: &'static str,
    subresource: &'static str,
}

/// Asks the API server, and remembers.
pub(super) struct Reviewer {
    cluster: Cluster,
    node: String,
    clock: Clock,
    tokens: Mutex<Cache<[u8; 32], Option<User>>>,
    access: Mutex<Cache<Question, bool>>,
}

impl Reviewer {
    pub(super) fn new(cluster: Cluster, node: String, clock: Clock) -> Self {
        let (tokens, access) = (Mutex::new(Cache::new(ENTRIES)), Mutex::new(Cache::new(ENTRIES)));
        Self { cluster, node, clock, tokens, access }
    }

    /// Whose token it is; none if the cluster does not know it.
    pub(super) async fn user_of(&self, token: &str) -> Result<Option<User>, ApiError> {
        // Tokens are not kept: a dump of this process must not hold them.
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = lock(&self.tokens).get(&key, self.now()) {
            return Ok(known);
        }
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token },
        });
        let review: TokenReview = self.cluster.create(None, None, &body).await?;
        let user = review.status.authenticated.then_some(review.status.user);
        let now = self.now();
        lock(&self.tokens).put(key, user.clone(), now, now + TOKEN_TTL);
        Ok(user)
    }

    /// Whether the user may: any of the subresources suffices.
    pub(super) async fn is_allowed(&self, user: &User, permission: &Permission) -> Result<bool, ApiError> {
        for subresource in &permission.subresources {
            let question = Question { user: user.clone(), verb: permission.verb, subresource };
            if self.is_allowed_one(question).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn is_allowed_one(&self, question: Question) -> Result<bool, ApiError> {
        if let Some(known) = lock(&self.access).get(&question, self.now()) {
            return Ok(known);
        }
        let body = access_review(&question, &self.node);
        let review: SubjectAccessReview = self.cluster.create(None, None, &body).await?;
        let allowed = review.status.allowed;
        let now = self.now();
        let until = now + if allowed { ALLOWED_TTL } else { DENIED_TTL };
        lock(&self.access).put(question, allowed, now, until);
        Ok(allowed)
    }

    fn now(&self) -> Duration {
        self.clock.now().boot
    }
}

/// The tables are whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn access_review(question: &Question, node: &str) -> Value {
    let user = &question.user;
    let mut spec = Map::from_iter([
        ("user".to_owned(), json!(user.username)),
        ("groups".to_owned(), json!(user.groups)),
        (
            "resourceAttributes".to_owned(),
            json!({
                "verb": question.verb,
                "version": "v1",
                "resource": "nodes",
                "subresource": question.subresource,
                "name": node,
            }),
        ),
    ]);
    if !user.uid.is_empty() {
        spec.insert("uid".to_owned(), json!(user.uid));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".to_owned(), json!(user.extra));
    }
    json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec })
}

/// Who decides about requests.
#[derive(Clone)]
pub(super) struct Auth {
    /// None on a node without a cluster: then a certificate of a trusted authority suffices.
    pub(super) reviewer: Option<Arc<Reviewer>>,
    /// Whether tokens are reviewed (`authentication.webhook.enabled`).
    pub(super) tokens: bool,
    /// Whether permissions are reviewed (`authorization.mode: Webhook`).
    pub(super) webhook: bool,
}

/// A request that is not served: the status and what a kubelet answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denied(pub(super) u16, pub(super) String);

impl Auth {
    /// Lets a request through or says why not. `certificate` is whom the client's certificate names.
    pub(super) async fn check(
        &self,
        certificate: Option<&User>,
        authorization: Option<&str>,
        permission: &Permission,
    ) -> Result<(), Denied> {
        let unauthorized = || Denied(401, "Unauthorized".to_owned());
        let user = match certificate {
            Some(user) => user.clone(),
            None => self.token_user(authorization).await.ok_or_else(unauthorized)?,
        };
        let Some(reviewer) = self.reviewer.as_ref().filter(|_| self.webhook) else { return Ok(()) };
        let (name, verb) = (&user.username, permission.verb);
        match reviewer.is_allowed(&user, permission).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Denied(
                403,
                format!(
                    "Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
                    permission.subresources.join(" ")
                ),
            )),
            Err(error) => {
                tracing::warn!(user = %name, error = &error as &dyn std::error::Error, "permission not reviewed");
                let subresource = permission.subresources.first().copied().unwrap_or_default();
                let text = format!(
                    "Authorization error (user={name}, verb={verb}, resource=nodes, subresource={subresource})"
                );
                Err(Denied(500, text))
            }
        }
    }

    async fn token_user(&self, authorization: Option<&str>) -> Option<User> {
        let reviewer = self.reviewer.as_ref().filter(|_| self.tokens)?;
        let token = bearer(authorization?)?;
        match reviewer.user_of(token).await {
            Ok(user) => user,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "token not reviewed");
                None
            }
        }
    }
}

/// The token of an Authorization header.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_in_headers() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc "), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("Bearer "), None);
    }

    #[test]
    fn reviews_ask_what_a_kubelet_asks() {
        let subject = Subject { common_name: "me".into(), organizations: vec!["g".into()] };
        let question = Question { user: subject.into(), verb: "get", subresource: "metrics" };
        let review = access_review(&question, "gateway-7");
        assert_eq!(review["spec"]["groups"], json!(["g", "system:authenticated"]));
        assert_eq!(review["spec"]["resourceAttributes"]["name"], "gateway-7");
        assert_eq!(review["spec"].get("uid"), None);
    }

    #[tokio::test]
    async fn nobody_is_served_without_proof() {
        let auth = Auth { reviewer: None, tokens: true, webhook: true };
        let permission = Permission { verb: "get", subresources: vec!["proxy"] };
        let denied = auth.check(None, Some("Bearer x"), &permission).await;
        assert_eq!(denied, Err(Denied(401, "Unauthorized".into())));
        let user = User { username: "me".into(), ..User::default() };
        assert_eq!(auth.check(Some(&user), None, &permission).await, Ok(()));
    }
}
