//! A CRI runtime at the other end of a unix socket: containerd, CRI-O or `coracle cri`.
//!
//! [`Client`] implements both services; kubelet-core holds it where the runtime is not embedded. Clones
//! share one HTTP/2 connection, made at the first call and made anew at the first call after it broke.
//! The connection's task ends with the last clone. Nothing wakes up while no call is open.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::codegen::{Service, http::Uri};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::calls::{image_calls, runtime_calls};
use crate::deadline::{Bounded, Deadlines};
use crate::service::Stream;
use crate::v1::image_service_client::ImageServiceClient;
use crate::v1::runtime_service_client::RuntimeServiceClient;
use crate::v1::*;
use crate::{MAX_MESSAGE, service};

/// How long `GetContainerEvents` waits for a refusal. Go servers say nothing until the first event.
const REFUSAL: Duration = Duration::from_millis(200);

/// An endpoint that cannot be one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Neither `unix:///path` nor `/path`.
    #[error("endpoint {0:?} is not an absolute socket path, such as unix:///run/containerd/containerd.sock")]
    NotASocket(String),
}

/// The client of a CRI runtime.
///
/// ```
/// use coracle_cri::client::Client;
/// use coracle_cri::{Code, RuntimeService, v1::VersionRequest};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Nothing connects yet, so a kubelet may start before its runtime.
/// let client = Client::new("unix:///run/nobody/listens/here.sock")?;
/// let error = client.version(VersionRequest::default()).await.unwrap_err();
/// assert_eq!(error.code(), Code::Unavailable);
/// assert!(error.message().contains("/run/nobody/listens/here.sock"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    deadlines: Deadlines,
}

impl Client {
    /// A client of the runtime at `endpoint` (`unix:///path` or `/path`), with a kubelet's deadlines. Connects
    /// at the first call. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the endpoint is not the path of a socket.
    pub fn new(endpoint: &str) -> Result<Self, EndpointError> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(EndpointError::NotASocket(endpoint.to_owned()));
        }
        let socket = PathBuf::from(path);
        // The authority only fills a header; the connector decides where to go.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector_lazy(Connector { socket: socket.clone() });
        let runtime = RuntimeServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let images = ImageServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Client { socket, runtime, images, deadlines: Deadlines::default() })
    }

    /// The same connection with other deadlines.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for a call within `limit`; the answer's envelope is dropped, an error says what to look at.
    async fn bounded<T>(
        &self,
        limit: Option<Duration>,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let begun = Instant::now();
        let late = |limit| {
            Status::deadline_exceeded(format!("no answer from {} in {limit:?}", self.socket.display()))
        };
        let answer = match limit {
            Some(limit) => tokio::time::timeout(limit, call).await.map_err(|_| late(limit))?,
            None => call.await,
        };
        match answer {
            Ok(response) => Ok(response.into_inner()),
            // tonic watches the same limit and, where it wins the race, calls it a cancellation.
            Err(status)
                if status.code() == Code::Cancelled && limit.is_some_and(|l| begun.elapsed() >= l) =>
            {
                Err(late(limit.unwrap_or_default()))
            }
            Err(status) => Err(self.explain(status)),
        }
    }

    /// Names the socket and the cause where the connection failed rather than the runtime.
    fn explain(&self, status: Status) -> Status {
        let Some(mut cause) = status.source() else { return status };
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let socket = self.socket.display();
        Status::new(Code::Unavailable, format!("cannot talk to the container runtime at {socket}: {cause}"))
    }

    /// A list in pieces: the whole of it arrives within `limit`, or its reader is told so.
    async fn bounded_stream<T: Send + 'static>(
        &self,
        limit: Option<Duration>,
        call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    ) -> Result<Stream<T>, Status> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let stream = self.bounded(limit, call).await?;
        let Some(deadline) = deadline else { return Ok(stream.boxed()) };
        let timed = futures_util::stream::try_unfold(stream, move |mut stream| async move {
            let next = tokio::time::timeout_at(deadline, stream.message()).await;
            let next = next.map_err(|_| Status::deadline_exceeded("the list did not end in time"))??;
            Ok(next.map(|message| (message, stream)))
        });
        Ok(timed.boxed())
    }

    /// Subscribes to events. A Go server sends no header before the first event, so the call is given a
    /// moment to be refused and goes on inside the stream otherwise.
    async fn events(&self, request: GetEventsRequest) -> Result<Stream<ContainerEventResponse>, Status> {
        let client = self.clone();
        let mut call: BoxFuture<'static, _> = Box::pin(async move {
            let mut stub = client.runtime.clone();
            client.bounded(None, stub.get_container_events(request)).await
        });
        // Cancel-safe: the call is only borrowed, and goes into the stream when it is not done.
        match tokio::time::timeout(REFUSAL, &mut call).await {
            Ok(answer) => Ok(answer?.boxed()),
            Err(_) => Ok(futures_util::stream::once(call).try_flatten().boxed()),
        }
    }
}

/// A request with the header that tells the server how long its caller waits.
fn with_limit<T>(request: T, limit: Option<Duration>) -> Request<T> {
    let mut request = Request::new(request);
    if let Some(limit) = limit {
        request.set_timeout(limit);
    }
    request
}

/// Implements a service by the stub in a field of [`Client`].
macro_rules! by_stub {
    (
        $service:ident, $stub:ident,
        unary { $($unary:ident($request:ident) -> $response:ident;)* }
        streams { $($stream:ident($ask:ident) -> stream $item:ident as $assoc:ident;)* }
        events { $($events:ident($subscribe:ident) -> stream $event:ident as $events_assoc:ident;)* }
    ) => {
        #[async_trait]
        impl service::$service for Client {
            $(async fn $unary(&self, request: $request) -> Result<$response, Status> {
                let limit = request.limit(&self.deadlines);
                let mut stub = self.$stub.clone();
                self.bounded(limit, stub.$unary(with_limit(request, limit))).await
            })*
            $(async fn $stream(&self, request: $ask) -> Result<Stream<$item>, Status> {
                let limit = request.limit(&self.deadlines);
                let mut stub = self.$stub.clone();
                self.bounded_stream(limit, stub.$stream(with_limit(request, limit))).await
            })*
            $(async fn $events(&self, request: $subscribe) -> Result<Stream<$event>, Status> {
                self.events(request).await
            })*
        }
    };
}

runtime_calls!(by_stub! RuntimeService, runtime,);
image_calls!(by_stub! ImageService, images,);

/// Opens the socket, whatever address tonic asks for.
#[derive(Debug, Clone)]
struct Connector {
    socket: PathBuf,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _address: Uri) -> Self::Future {
        let socket = self.socket.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(socket).await?)) })
    }
}
