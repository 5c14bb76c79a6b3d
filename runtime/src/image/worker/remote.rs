//! One repository behind its endpoints: mirrors first, the registry last. Runs in the worker, one per pull.
//!
//! Not `oci-client`: that crate knows neither client certificates per host, nor mirrors with paths and rewrites, nor a
//! retry that goes on in the middle of a blob, and its references cost a regular expression engine; what would be left
//! of it is its manifest types.

use std::cell::RefCell;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, RANGE};

use super::auth::{self, Challenge};
use super::http::{Client, HttpError, Response, reason};
use super::tls;
use crate::image::digest::Digest;
use crate::image::error::{Failure, FailureKind};
use crate::image::manifest::MAX_DOCUMENT;
use crate::image::reference::Reference;
use crate::image::registries::{Credentials, Endpoint, Registries};

/// How often a document is asked for before its failure counts.
const ATTEMPTS: u32 = 4;

/// A repository and the ways to it.
pub(super) struct Remote {
    endpoints: Vec<Host>,
    name: String,
}

/// One endpoint with its client and what it has granted.
pub(super) struct Host {
    client: Client,
    endpoint: Endpoint,
    credentials: Option<Credentials>,
    authorization: RefCell<Option<String>>,
}

/// What is asked of a repository.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    /// `manifests` or `blobs`.
    pub(super) kind: &'a str,
    /// Tag or digest.
    pub(super) name: &'a str,
    pub(super) accept: Option<&'a str>,
    /// The first byte wanted, 0 for all.
    pub(super) from: u64,
}

impl Remote {
    /// The repository of a reference. `credentials` come from the caller and go before configured ones at the
    /// registry itself; a mirror's own configuration goes before them.
    pub(super) fn new(
        reference: &Reference,
        registries: &Registries,
        credentials: Option<Credentials>,
        stall: Duration,
    ) -> Result<Self, Failure> {
        let endpoints = registries.endpoints(&reference.registry, &reference.repository);
        let endpoints = endpoints.map_err(|error| Failure::of(FailureKind::Invalid, &error))?;
        let host = |endpoint: Endpoint| {
            let configured = registries.credentials(&endpoint.host);
            let credentials = match endpoint.namespace.is_empty() {
                true => credentials.clone().or(configured),
                false => configured.or_else(|| credentials.clone()),
            };
            let client = Client::new(tls::config(&endpoint, registries.tls(&endpoint.host))?, stall);
            Ok(Host { client, endpoint, credentials, authorization: RefCell::default() })
        };
        let endpoints = endpoints.into_iter().map(host).collect::<Result<_, Failure>>()?;
        Ok(Self { endpoints, name: reference.to_string() })
    }

    /// The endpoints in their order.
    pub(super) fn hosts(&self) -> &[Host] {
        &self.endpoints
    }

    /// Fetches a manifest, index or config from the first endpoint that has it.
    pub(super) async fn document(&self, ask: Ask<'_>, wanted: Option<&Digest>) -> Result<Vec<u8>, Failure> {
        let mut failures: Vec<Failure> = Vec::new();
        for host in &self.endpoints {
            match host.document(ask, wanted).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failures.push(failure),
            }
        }
        Err(self.summary(failures))
    }

    /// One failure of several endpoints' ones: that none has it only if all say so, else the last that knew more.
    pub(super) fn summary(&self, failures: Vec<Failure>) -> Failure {
        if failures.iter().all(|failure| failure.kind == FailureKind::NotFound) {
            return Failure::new(FailureKind::NotFound, format!("{}: not found", self.name));
        }
        let mut telling = failures.into_iter().filter(|failure| failure.kind != FailureKind::NotFound);
        let first = telling.next().expect("one failure is none of not found");
        let kind = first.kind;
        telling.fold(first, |all, next| Failure::new(kind, format!("{}; {}", all.message, next.message)))
    }
}

impl Host {
    /// `host[:port]`.
    pub(super) fn name(&self) -> &str {
        &self.endpoint.host
    }

    /// Asks once, and again after authorization when the registry wants one.
    pub(super) async fn ask(&self, ask: Ask<'_>) -> Result<Response, Failure> {
        let mut response = self.send(ask).await?;
        if response.status == StatusCode::UNAUTHORIZED {
            self.authorize(&response).await?;
            response = self.send(ask).await?;
        }
        let status = response.status;
        if status.is_success() {
            return Ok(response);
        }
        let path = self.url(ask);
        let kind = match status {
            StatusCode::NOT_FOUND => FailureKind::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(Failure::new(
                    FailureKind::Unauthorized,
                    format!(
                        "pull access denied, repository does not exist or may require authorization: {path}: {status}"
                    ),
                ));
            }
            // The caller starts anew without a range.
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(response),
            _ => FailureKind::Network,
        };
        Err(Failure::new(kind, format!("unexpected status from GET request to {path}: {status}")))
    }

    fn url(&self, ask: Ask<'_>) -> String {
        let Endpoint { base, repository, namespace, .. } = &self.endpoint;
        let query = if namespace.is_empty() { String::new() } else { format!("?ns={namespace}") };
        format!("{base}/{repository}/{}/{}{query}", ask.kind, ask.name)
    }

    async fn send(&self, ask: Ask<'_>) -> Result<Response, Failure> {
        let url = self.url(ask);
        let failed = |error: HttpError| {
            Failure::new(FailureKind::Network, format!("failed to do request: GET {url}: {}", reason(&error)))
        };
        let headers = self.headers(ask).map_err(failed)?;
        self.client.get(&url, headers).await.map_err(failed)
    }

    fn headers(&self, ask: Ask<'_>) -> Result<HeaderMap, HttpError> {
        let mut headers = HeaderMap::new();
        if let Some(accept) = ask.accept {
            headers.insert(ACCEPT, accept.parse()?);
        }
        if ask.from > 0 {
            headers.insert(RANGE, format!("bytes={}-", ask.from).parse()?);
        }
        if let Some(authorization) = &*self.authorization.borrow() {
            headers.insert(AUTHORIZATION, authorization.parse()?);
        }
        Ok(headers)
    }

    /// Meets the challenge of a 401.
    async fn authorize(&self, response: &Response) -> Result<(), Failure> {
        let granted = match (auth::challenges(&response.headers).first(), &self.credentials) {
            (_, Some(Credentials::Bearer(token))) => Some(format!("Bearer {token}")),
            (Some(Challenge::Bearer { realm, service, scope }), credentials) => {
                let own = format!("repository:{}:pull", self.endpoint.repository);
                // The scope of the challenge may name another path behind a proxy; ours is what we pull.
                let scope = scope.as_deref().filter(|scope| scope.contains(&self.endpoint.repository));
                let scope = scope.unwrap_or(&own);
                let token =
                    auth::token(&self.client, realm, service.as_deref(), scope, credentials.as_ref()).await?;
                Some(format!("Bearer {token}"))
            }
            (_, Some(Credentials::Basic { username, password })) => Some(auth::basic(username, password)),
            _ => None,
        };
        *self.authorization.borrow_mut() = granted;
        Ok(())
    }

    async fn document(&self, ask: Ask<'_>, wanted: Option<&Digest>) -> Result<Vec<u8>, Failure> {
        let mut attempt = 0;
        loop {
            match self.document_once(ask, wanted).await {
                Err(failure) if failure.kind == FailureKind::Network && attempt < ATTEMPTS - 1 => {
                    attempt += 1;
                    super::download::pause(attempt).await;
                }
                other => return other,
            }
        }
    }

    async fn document_once(&self, ask: Ask<'_>, wanted: Option<&Digest>) -> Result<Vec<u8>, Failure> {
        let mut response = self.ask(ask).await?;
        let url = self.url(ask);
        let mut bytes = Vec::new();
        loop {
            let chunk = response.chunk().await;
            match chunk
                .map_err(|e| Failure::new(FailureKind::Network, format!("GET {url}: {}", reason(&e))))?
            {
                Some(chunk) if (bytes.len() + chunk.len()) as u64 > MAX_DOCUMENT => {
                    return Err(Failure::new(
                        FailureKind::Refused,
                        format!("GET {url}: answer is past 8 MiB"),
                    ));
                }
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => break,
            }
        }
        match wanted {
            Some(wanted) if Digest::of(&bytes) != *wanted => Err(Failure::new(
                FailureKind::Digest,
                format!("GET {url}: content has digest {}, not what was asked for", Digest::of(&bytes)),
            )),
            _ => Ok(bytes),
        }
    }
}
