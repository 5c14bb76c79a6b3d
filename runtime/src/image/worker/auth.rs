//! What a registry's 401 asks for: challenges parsed, tokens fetched. Runs in the worker.
//!
//! Sources: RFC 9110 section 11, the Distribution project's token authentication specification.

use base64::Engine as _;
use form_urlencoded::Serializer;
use hyper::header::{AUTHORIZATION, HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::http::{Client, HttpError, Response, reason};
use crate::image::error::{Failure, FailureKind};
use crate::image::registries::Credentials;

/// The largest answer of a token server taken.
const MAX_TOKEN: usize = 1 << 20;

/// One challenge of a `WWW-Authenticate` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges of a response that we can meet, the strongest first.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut found: Vec<Challenge> = values.flat_map(parse).collect();
    found.sort_by_key(|challenge| *challenge == Challenge::Basic);
    found
}

fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let (scheme, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let (parameters, next) = parameters(after);
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => found.push(Challenge::Basic),
            "bearer" => {
                if let Some(realm) = get("realm") {
                    found.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
                }
            }
            _ => {}
        }
        rest = next;
    }
    found
}

/// Reads `name=value` or `name="value"` pairs until something else, the next scheme, begins.
fn parameters(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        text = text.trim_start_matches([' ', ',']);
        let end =
            text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))).unwrap_or(text.len());
        let Some(after) = text[end..].strip_prefix('=') else { return (found, text) };
        let name = text[..end].to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find([',', ' ']).unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        found.push((name, value));
        text = after;
    }
}

fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            '"' if !escaped => return (value, &quoted[at + 1..]),
            '\\' if !escaped => escaped = true,
            c => {
                value.push(c);
                escaped = false;
            }
        }
    }
    (value, "")
}

/// The header of basic authentication.
pub(super) fn basic(username: &str, password: &str) -> String {
    let text = format!("{username}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
}

/// What a token server answers; some write the one name, some the other.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// Fetches a token to pull `repository`, anonymously when there are no credentials.
pub(super) async fn token(
    client: &Client,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    credentials: Option<&Credentials>,
) -> Result<String, Failure> {
    let who = if credentials.is_some() { "OAuth" } else { "anonymous" };
    let failed = |kind, why: String| {
        Failure::new(kind, format!("failed to authorize: failed to fetch {who} token from {realm}: {why}"))
    };
    let unreached = |error: HttpError| failed(FailureKind::Network, reason(&error));
    let mut response = ask(client, realm, service, scope, credentials).await.map_err(unreached)?;
    let status = response.status;
    if !status.is_success() {
        let kind = if status.is_client_error() { FailureKind::Unauthorized } else { FailureKind::Network };
        return Err(failed(kind, format!("unexpected status: {status}")));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreached)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_TOKEN {
            return Err(failed(FailureKind::Network, "its answer is past 1 MiB".to_owned()));
        }
    }
    let answer: Token =
        serde_json::from_slice(&body).map_err(|error| failed(FailureKind::Network, error.to_string()))?;
    match [answer.token, answer.access_token].into_iter().find(|token| !token.is_empty()) {
        Some(token) => Ok(token),
        None => Err(failed(FailureKind::Network, "its answer has no token".to_owned())),
    }
}

/// Asks for a token: with a refresh token by a form, else by a query.
async fn ask(
    client: &Client,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    credentials: Option<&Credentials>,
) -> Result<Response, HttpError> {
    let mut words = Serializer::new(String::new());
    if let Some(Credentials::Identity(refresh)) = credentials {
        words
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", service.unwrap_or_default())
            .append_pair("client_id", "coracle")
            .append_pair("scope", scope)
            .append_pair("refresh_token", refresh);
        return client.post_form(realm, words.finish()).await;
    }
    words.append_pair("scope", scope);
    if let Some(service) = service {
        words.append_pair("service", service);
    }
    let mut headers = HeaderMap::new();
    if let Some(Credentials::Basic { username, password }) = credentials {
        headers.insert(AUTHORIZATION, basic(username, password).parse()?);
    }
    let joint = if realm.contains('?') { '&' } else { '?' };
    client.get(&format!("{realm}{joint}{}", words.finish()), headers).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_registries_write() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        };
        for (header, wanted) in [
            ("Basic realm=\"x\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                "Bearer realm=\"https://a/token\",service=\"a, b\",scope=\"repository:x:pull,push\"",
                vec![bearer("https://a/token", Some("a, b"), Some("repository:x:pull,push"))],
            ),
            ("Bearer realm=https://a/token, service=s", vec![bearer("https://a/token", Some("s"), None)]),
            (
                "Basic realm=\"q \\\" q\", Bearer realm=\"https://a\"",
                vec![Challenge::Basic, bearer("https://a", None, None)],
            ),
            ("Negotiate", vec![]),
            ("Bearer", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse(header), wanted, "{header}");
        }
    }
}
