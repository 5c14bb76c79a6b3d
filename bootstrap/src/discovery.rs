//! The first look at a cluster: its signed `cluster-info`, believed because of a token and a pin.
//!
//! The rules are kubeadm's: read without trust, check the token's signature over what was read, check the pin of the
//! authority in it, read again with that authority, compare.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_cluster::{Access, ApiError, Cluster, Object, Resource, Server};
use ring::hmac;
use serde::Deserialize;

use crate::clock::WallClock;
use crate::credentials::pins;
use crate::error::JoinError;
use crate::join::retry;
use crate::kubeconfig::{Content, Kubeconfig};
use crate::tls::{self, Trust};
use crate::token::{CaHash, Token};

/// A new token's signature comes a little later than the token, and an API server that has just started refuses to
/// everybody what its roles will allow: so long is waited for both.
const SIGNATURE: Duration = Duration::from_secs(15);

/// What is known of the cluster now.
pub(crate) struct Discovered {
    pub(crate) servers: Vec<Server>,
    /// In PEM.
    pub(crate) ca: Vec<u8>,
}

pub(crate) async fn discover(
    servers: &[Server],
    token: &Token,
    hashes: &[CaHash],
    clock: &WallClock,
    wait: Duration,
) -> Result<Discovered, JoinError> {
    if hashes.is_empty() {
        return Err(JoinError::NoHash);
    }
    let insecure = tls::client(&Trust::Anybody, None, clock)?;
    let access = Access { servers: servers.to_vec(), tls: Some(insecure), bearer: None };
    let text = signed(&Cluster::with(access), servers, token, wait).await?;

    let origin = "the ConfigMap kube-public/cluster-info";
    let config = Kubeconfig::parse(&text, origin, Path::new("/"))?;
    let Some(Content::Data(ca)) = config.ca else { return Err(JoinError::NoAuthority) };
    let found = pins(&ca);
    if !hashes.iter().any(|hash| found.contains(&hash.to_string())) {
        let wanted = hashes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(JoinError::Pin { server: servers[0].to_string(), found: found.join(", "), wanted });
    }

    let trusting = tls::client(&Trust::Authorities(&ca, origin), None, clock)?;
    let access = Access { servers: servers.to_vec(), tls: Some(trusting), bearer: None };
    let cluster = Cluster::with(access);
    let again = retry(wait, || cluster.get::<ConfigMap>(Some("kube-public"), "cluster-info")).await;
    let again = again.map_err(|error| explain(servers, error))?;
    if again.data.get("kubeconfig") != Some(&text) {
        return Err(JoinError::Changed { server: servers[0].to_string() });
    }
    // Those that were given have just answered; the one of cluster-info may be a better name for the same.
    let mut servers = servers.to_vec();
    servers.extend(config.servers.into_iter().filter(|server| !servers.contains(server)).collect::<Vec<_>>());
    Ok(Discovered { servers, ca })
}

/// The kubeconfig in cluster-info, once its signature by the token was found and is right.
async fn signed(
    cluster: &Cluster,
    servers: &[Server],
    token: &Token,
    wait: Duration,
) -> Result<String, JoinError> {
    let deadline = tokio::time::Instant::now() + SIGNATURE.min(wait);
    loop {
        let info = retry(wait, || cluster.get::<ConfigMap>(Some("kube-public"), "cluster-info")).await;
        let info = match info.map_err(|error| explain(servers, error)) {
            Err(JoinError::Anonymous { .. } | JoinError::NoClusterInfo { .. })
                if tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            info => info?,
        };
        let text = info
            .data
            .get("kubeconfig")
            .ok_or_else(|| JoinError::NoClusterInfo { server: servers[0].to_string() })?;
        if let Some(signature) = info.data.get(&format!("jws-kubeconfig-{}", token.id())) {
            if *signature != sign(text, token) {
                return Err(JoinError::Signature { id: token.id().to_owned() });
            }
            return Ok(text.clone());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(JoinError::UnknownToken {
                id: token.id().to_owned(),
                server: servers[0].to_string(),
            });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The detached JWS (RFC 7515, appendix F) that the bootstrap signer writes.
pub(crate) fn sign(content: &str, token: &Token) -> String {
    detached(content, token.id(), token.secret())
}

fn detached(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, format!("{header}.{}", URL_SAFE_NO_PAD.encode(content)).as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature))
}

/// What a failed read of cluster-info means.
fn explain(servers: &[Server], error: ApiError) -> JoinError {
    let server = servers.first().map(ToString::to_string).unwrap_or_default();
    match &error {
        ApiError::Decode { .. } | ApiError::TooLarge { .. } => JoinError::NotApiServer { server },
        ApiError::Status { status, .. } => match (status.code, status.reason.as_str()) {
            (_, "") => JoinError::NotApiServer { server },
            (404, _) => JoinError::NoClusterInfo { server },
            (401 | 403, _) => JoinError::Anonymous { server },
            _ => JoinError::Api(error),
        },
        _ => JoinError::Api(error),
    }
}

#[derive(Deserialize)]
struct ConfigMap {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

impl Object for ConfigMap {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "configmaps", "ConfigMap");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Kubernetes's own tests, whose token has another form than kubeadm's.
    #[test]
    fn signatures_are_those_of_the_bootstrap_signer() {
        let content = "Hello from the other side. I must have called a thousand times.";
        assert_eq!(
            detached(content, "joshua", "my voice is my passcode"),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
        );
    }

    #[test]
    fn the_signature_is_a_detached_jws() {
        let token: Token = "abcdef.0123456789abcdef".parse().unwrap();
        let signature = sign("Hello", &token);
        let parts: Vec<&str> = signature.split('.').collect();
        assert_eq!((parts.len(), parts[1]), (3, ""));
        let header = URL_SAFE_NO_PAD.decode(parts[0]).unwrap();
        assert_eq!(header, br#"{"alg":"HS256","kid":"abcdef"}"#);
        assert_eq!(URL_SAFE_NO_PAD.decode(parts[2]).unwrap().len(), 32);
        let other: Token = "abcdef.0123456789abcdee".parse().unwrap();
        assert_ne!(sign("Hello", &other), signature);
    }
}
