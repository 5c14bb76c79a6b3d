//! The verbs. A handle that many tasks clone.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{Response, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::core::Status;
use kube::core::params::{DeleteParams, GetParams, ListParams, PostParams, Preconditions};
use kube::core::request::{Error as RequestError, Request};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::Access;
use crate::error::ApiError;
use crate::event;
use crate::items::{Items, TooLarge};
use crate::lines::LINE_LIMIT;
use crate::patience::Patience;
use crate::pool::{Connection, Pool, Service, TransportError};
use crate::protobuf;
use crate::resource::{Object, Resource, Scope};
use crate::watch::{Change, Watcher};

/// Objects per page of a list.
const PAGE: u32 = 250;

/// A server that asks for a longer pause is asked again all the same.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A cluster's API. Cheap to clone; servers and credentials may change under it.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
    pool: Arc<Pool>,
}

/// How an object is to be changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// A JSON merge patch: lists are replaced, null removes.
    Merge(Value),
    /// A strategic merge patch: lists of built-in kinds are merged by key.
    Strategic(Value),
    /// A list of JSON patch operations.
    Json(Value),
}

/// Conditions and wishes for a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// How long the object may take to end, in seconds; its own period if absent.
    pub grace_period_seconds: Option<u32>,
    /// Only an object with this UID is deleted.
    pub uid: Option<String>,
}

/// What a request is called in errors.
pub(crate) struct What<'a> {
    pub(crate) verb: &'static str,
    pub(crate) resource: Resource,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
    pub(crate) subresource: Option<&'a str>,
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource.plural)?;
        if let Some(subresource) = self.subresource {
            write!(f, "/{subresource}")?;
        }
        match (self.namespace.filter(|_| self.resource.namespaced), self.name) {
            (Some(namespace), Some(name)) => write!(f, " {namespace}/{name}"),
            (Some(namespace), None) => write!(f, " in {namespace}"),
            (None, Some(name)) => write!(f, " {name}"),
            (None, None) => Ok(()),
        }
    }
}

impl Cluster {
    /// A client whose servers and credentials are what `access` last said. Call it within a tokio runtime.
    pub fn new(access: watch::Receiver<Arc<Access>>) -> Self {
        Self::patient(access, Patience::default())
    }

    pub(crate) fn patient(access: watch::Receiver<Arc<Access>>, patience: Patience) -> Self {
        let pool = Pool::new(access, patience);
        let client = kube::Client::new(Service(pool.clone()), "default");
        Self { client, pool }
    }

    /// A client whose servers and credentials never change. Call it within a tokio runtime.
    pub fn with(access: Access) -> Self {
        Self::new(watch::Sender::new(Arc::new(access)).subscribe())
    }

    /// Reads one object.
    pub async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<K, ApiError> {
        let what = What::of::<K>("get", namespace, Some(name), None);
        let request = collection::<K>(namespace).get(name, &GetParams::default());
        self.object(&what, request).await
    }

    /// Reads all objects in scope, page by page. One that cannot be read is told and left out.
    pub async fn list<K: Object>(&self, scope: &Scope) -> Result<Vec<K>, ApiError> {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let page = self.page::<K>(scope, token.as_deref()).await?;
            found.extend(page.objects.into_iter().filter_map(|object| match object {
                Ok(object) => Some(object),
                Err(unreadable) => {
                    unreadable.tell(&K::RESOURCE);
                    None
                }
            }));
            token = page.token;
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Creates an object, or posts to the subresource (name, subresource) of one: `("web", "token")`.
    pub async fn create<K: Object>(
        &self,
        namespace: Option<&str>,
        subresource: Option<(&str, &str)>,
        body: &Value,
    ) -> Result<K, ApiError> {
        let (name, sub) = subresource.unzip();
        let what = What::of::<K>("create", namespace, name, sub);
        let target = collection::<K>(namespace);
        let request =
            serde_json::to_vec(body).map_err(RequestError::SerializeBody).and_then(
                |body| match subresource {
                    Some((name, sub)) => target.create_subresource(sub, name, &PostParams::default(), body),
                    None => target.create(&PostParams::default(), body),
                },
            );
        self.object(&what, request).await
    }

    /// Changes parts of an object or of one of its subresources.
    pub async fn patch<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        subresource: Option<&str>,
        patch: &Patch,
    ) -> Result<K, ApiError> {
        let what = What::of::<K>("patch", namespace, Some(name), subresource);
        let request = self.change::<K>(namespace, name, subresource, patch);
        self.object(&what, request).await
    }

    /// Changes parts of an object of a built-in kind and returns its new version alone, which costs half the bytes.
    pub async fn patch_unread<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
    ) -> Result<String, ApiError> {
        let what = What::of::<K>("patch", namespace, Some(name), None);
        let request = self.change::<K>(namespace, name, None, patch).map(|mut request| {
            let accepted = header::HeaderValue::from_static(protobuf::ACCEPT);
            request.headers_mut().insert(header::ACCEPT, accepted);
            request
        });
        let body = self.answer(&what, request, LINE_LIMIT).await?;
        if let Some(version) = protobuf::resource_version(&body) {
            return Ok(version);
        }
        let object: Versioned = serde_json::from_slice(&body)
            .map_err(|source| ApiError::Decode { what: what.to_string(), source })?;
        Ok(object.metadata.resource_version.unwrap_or_default())
    }

    /// Replaces an object or one of its subresources.
    pub async fn replace<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        subresource: Option<&str>,
        body: &Value,
    ) -> Result<K, ApiError> {
        let what = What::of::<K>("replace", namespace, Some(name), subresource);
        let request = self.replacement::<K>(namespace, name, subresource, body);
        self.object(&what, request).await
    }

    /// Deletes an object, or begins to.
    pub async fn delete<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        let what = What::of::<K>("delete", namespace, Some(name), None);
        let preconditions =
            options.uid.clone().map(|uid| Preconditions { uid: Some(uid), resource_version: None });
        let params = DeleteParams {
            grace_period_seconds: options.grace_period_seconds,
            preconditions,
            ..DeleteParams::default()
        };
        self.answer(&what, collection::<K>(namespace).delete(name, &params), LINE_LIMIT).await?;
        Ok(())
    }

    /// What is there and every change of it. Never ends and never errs: it backs off, tries again, and tells in
    /// one log line when that begins or ends.
    pub fn watch<K: Object>(&self, scope: Scope) -> impl Stream<Item = Change<K>> + Send + use<K> {
        stream::unfold(Watcher::new(self.clone(), scope), async |mut watcher| {
            let change = watcher.next().await;
            Some((change, watcher))
        })
    }

    /// Whether an API server answers.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.pool.connection()
    }

    /// What the clock of the API server that answered last says now, within a second or two; `None` before the first
    /// answer.
    pub fn server_time(&self) -> Option<std::time::SystemTime> {
        self.pool.server_time()
    }

    pub(crate) fn patience(&self) -> &Patience {
        &self.pool.patience
    }

    pub(crate) fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.pool.access()
    }

    fn replacement<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        subresource: Option<&str>,
        body: &Value,
    ) -> Result<http::Request<Vec<u8>>, RequestError> {
        let body = serde_json::to_vec(body).map_err(RequestError::SerializeBody)?;
        let target = collection::<K>(namespace);
        match subresource {
            Some(sub) => target.replace_subresource(sub, name, &PostParams::default(), body),
            None => target.replace(name, &PostParams::default(), body),
        }
    }

    fn change<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        subresource: Option<&str>,
        patch: &Patch,
    ) -> Result<http::Request<Vec<u8>>, RequestError> {
        let (kind, body) = match patch {
            Patch::Merge(body) => ("application/merge-patch+json", body),
            Patch::Strategic(body) => ("application/strategic-merge-patch+json", body),
            Patch::Json(body) => ("application/json-patch+json", body),
        };
        // The same as a replacement but for verb and type; kube's own patches want a type for each.
        let mut request = self.replacement::<K>(namespace, name, subresource, body)?;
        *request.method_mut() = http::Method::PATCH;
        request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        Ok(request)
    }

    async fn object<K: Object>(
        &self,
        what: &What<'_>,
        request: Result<http::Request<Vec<u8>>, RequestError>,
    ) -> Result<K, ApiError> {
        let body = self.answer(what, request, LINE_LIMIT).await?;
        serde_json::from_slice(&body).map_err(|source| ApiError::Decode { what: what.to_string(), source })
    }

    pub(crate) async fn page<K: Object>(
        &self,
        scope: &Scope,
        token: Option<&str>,
    ) -> Result<Page<K>, ApiError> {
        let what = What::of::<K>("list", scope.namespace.as_deref(), None, None);
        let params = ListParams {
            field_selector: scope.field_selector.clone(),
            label_selector: scope.label_selector.clone(),
            limit: Some(PAGE),
            continue_token: token.map(str::to_owned),
            ..ListParams::default()
        };
        let request = collection::<K>(scope.namespace.as_deref()).list(&params);
        let request = request.map_err(|source| ApiError::Request { what: what.to_string(), source })?;
        let (body, deadline) = self.open(&what, request).await?;
        self.within(&what, deadline, read_page(&what, body)).await
    }

    /// The whole body of a good answer.
    async fn answer(
        &self,
        what: &What<'_>,
        request: Result<http::Request<Vec<u8>>, RequestError>,
        limit: usize,
    ) -> Result<Bytes, ApiError> {
        let request = request.map_err(|source| ApiError::Request { what: what.to_string(), source })?;
        let (body, deadline) = self.open(what, request).await?;
        self.within(what, deadline, read(what, body, limit)).await
    }

    /// Asks, and waits out short pauses that the server asks for. A good answer's body is to be read by the deadline.
    async fn open(
        &self,
        what: &What<'_>,
        request: http::Request<Vec<u8>>,
    ) -> Result<(Body, Instant), ApiError> {
        let (parts, body) = request.into_parts();
        let body = Bytes::from(body);
        let deadline = Instant::now() + self.patience().request;
        let mut pauses = 0;
        loop {
            let request = http::Request::from_parts(parts.clone(), Body::from(body.clone()));
            let error = match self.within(what, deadline, self.send(what, request)).await {
                Ok(response) => return Ok((response.into_body(), deadline)),
                Err(error) => error,
            };
            // A server that names a pause has not begun with the request; a short one is waited out here.
            match error.retry_after() {
                Some(pause) if pauses < 2 && Instant::now() + pause * 2 < deadline => {
                    pauses += 1;
                    tokio::time::sleep(pause).await;
                }
                _ => return Err(error),
            }
        }
    }

    async fn within<T>(
        &self,
        what: &What<'_>,
        deadline: Instant,
        step: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let after = self.patience().request;
        match tokio::time::timeout_at(deadline, step).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::Deadline { what: what.to_string(), after }),
        }
    }

    /// The answer, if it is a good one.
    pub(crate) async fn send(
        &self,
        what: &What<'_>,
        mut request: http::Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let headers = request.headers_mut();
        headers.entry(header::ACCEPT).or_insert(header::HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static(USER_AGENT));
        let response = self.client.send(request).await.map_err(|error| transport(what, error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        let body = read(what, response.into_body(), LINE_LIMIT).await?;
        let told = protobuf::status(&body).or_else(|| serde_json::from_slice(&body).ok());
        let mut status = told.unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&body[..body.len().min(300)]).trim().to_owned();
            Status { message: text, ..Status::default() }
        });
        status.code = code;
        let told =
            status.details.as_ref().map(|details| details.retry_after_seconds).filter(|told| *told > 0);
        let retry_after =
            retry_after.or(told.map(|told| Duration::from_secs(told.into()).min(LONGEST_PAUSE)));
        Err(ApiError::Status { what: what.to_string(), status: Box::new(status), retry_after })
    }
}

const USER_AGENT: &str = concat!("coracle/", env!("CARGO_PKG_VERSION"));

impl<'a> What<'a> {
    pub(crate) fn of<K: Object>(
        verb: &'static str,
        namespace: Option<&'a str>,
        name: Option<&'a str>,
        subresource: Option<&'a str>,
    ) -> Self {
        Self { verb, resource: K::RESOURCE, namespace, name, subresource }
    }
}

pub(crate) fn collection<K: Object>(namespace: Option<&str>) -> Request {
    Request::new(K::RESOURCE.path(namespace))
}

async fn read(what: &What<'_>, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match http_body_util::Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => match error.downcast::<kube::Error>() {
            Ok(error) => Err(transport(what, *error)),
            Err(_) => Err(ApiError::TooLarge { what: what.to_string(), limit }),
        },
    }
}

/// The pool's own error, unpacked from what kube wraps around it.
fn transport(what: &What<'_>, error: kube::Error) -> ApiError {
    let source = match error {
        kube::Error::Service(error) => match error.downcast::<TransportError>() {
            Ok(error) => *error,
            Err(error) => TransportError::Body(Arc::new(kube::Error::Service(error))),
        },
        error => TransportError::Body(Arc::new(error)),
    };
    ApiError::Transport { what: what.to_string(), source }
}

fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// A page of a list.
pub(crate) struct Page<K> {
    pub(crate) objects: Vec<Result<K, event::Unreadable>>,
    pub(crate) version: Option<String>,
    pub(crate) token: Option<String>,
}

/// Decodes the items of a page as they come.
async fn read_page<K: Object>(what: &What<'_>, mut body: Body) -> Result<Page<K>, ApiError> {
    let mut items = Items::default();
    let mut objects = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| transport(what, error))?;
        let Ok(data) = frame.into_data() else { continue };
        items
            .push(&data, LINE_LIMIT, |item| objects.push(event::object(item)))
            .map_err(|TooLarge| ApiError::TooLarge { what: what.to_string(), limit: LINE_LIMIT })?;
    }
    let list: List = serde_json::from_slice(items.around())
        .map_err(|source| ApiError::Decode { what: what.to_string(), source })?;
    let token = list.metadata.token.filter(|token| !token.is_empty());
    Ok(Page { objects, version: list.metadata.resource_version, token })
}

#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
}

#[derive(Deserialize)]
struct Versioned {
    metadata: ListMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    token: Option<String>,
}
