//! Serves any implementor of the two services as CRI on a unix socket.
//!
//! `coracle cri` and tests call it. [`Listener::serve`] owns all it starts: it returns when every connection
//! is closed, at the latest [`DRAIN`] and a moment after its shutdown signal. A call whose caller went away is dropped
//! where it waits, as gRPC has it.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::net::{UnixListener, UnixSocket};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

use crate::MAX_MESSAGE;
use crate::calls::{image_calls, runtime_calls};
use crate::deadline;
use crate::error::bounded;
use crate::service::{ImageService, RuntimeService, Stream};
use crate::v1::image_service_server::{self, ImageServiceServer};
use crate::v1::runtime_service_server::{self, RuntimeServiceServer};
use crate::v1::*;

/// How long open calls may take to end after the shutdown signal; then they are dropped.
pub const DRAIN: Duration = Duration::from_secs(10);

/// How long connections may take to close once every call on them is dropped. Past it the peer does not read.
const GOODBYE: Duration = Duration::from_secs(1);

/// A socket that cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another process listens at this path.
    #[error("another process serves {0}")]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at {path}")]
    Listen {
        /// Path of the socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No further connection can be taken.
    #[error("cannot serve {path}")]
    Serve {
        /// Path of the socket.
        path: PathBuf,
        /// What broke.
        #[source]
        source: tonic::transport::Error,
    },
}

/// A listening socket that only its owner may open (mode 0600), removed when dropped.
///
/// ```
/// use std::sync::Arc;
/// use coracle_cri::{RuntimeService, client::Client, server::Listener, v1::VersionRequest};
/// # #[cfg(feature = "testing")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = std::env::temp_dir().join(format!("coracle-cri-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let socket = dir.join("cri.sock");
/// # let runtime = Arc::new(coracle_cri::testing::FakeRuntime::new());
/// let listener = Listener::bind(&socket)?;
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let server = tokio::spawn(listener.serve(runtime.clone(), runtime, async {
///     let _ = stopped.await;
/// }));
///
/// let client = Client::new(&format!("unix://{}", socket.display()))?;
/// assert_eq!(client.version(VersionRequest::default()).await?.runtime_api_version, "v1");
/// drop((client, stop));
/// server.await??;
/// # std::fs::remove_dir(&dir)?;
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "testing"))]
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    socket: SocketFile,
    drain: Duration,
}

impl Listener {
    /// Listens at `path`, in place of a socket that nobody serves any more. Must be called within a tokio
    /// runtime; waits for nothing.
    ///
    /// # Errors
    ///
    /// When somebody serves the path, or the socket cannot be made there.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self, ServeError> {
        let path = path.into();
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            return Err(ServeError::InUse(path));
        }
        match listen(&path) {
            Ok(listener) => Ok(Listener { listener, socket: SocketFile(path), drain: DRAIN }),
            Err(source) => Err(ServeError::Listen { path, source }),
        }
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.socket.0
    }

    /// Lets others open the socket: sets its permission bits.
    ///
    /// # Errors
    ///
    /// When the socket's file is gone or not ours.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(self.path(), std::fs::Permissions::from_mode(mode))
    }

    /// Another time than [`DRAIN`] for open calls to end.
    #[must_use]
    pub fn with_drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Serves until `shutdown` ends; then event streams end, open calls have [`DRAIN`] to end, and the socket
    /// is removed.
    ///
    /// # Errors
    ///
    /// When the socket breaks.
    pub async fn serve<R, I>(
        self,
        runtime: Arc<R>,
        images: Arc<I>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError>
    where
        R: RuntimeService + ?Sized,
        I: ImageService + ?Sized,
    {
        let phase = watch::Sender::new(Phase::Serving);
        let adapter = |inner| Adapter { inner, phase: phase.subscribe() };
        let routes = Routes {
            runtime: RuntimeServiceServer::new(adapter(runtime))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            images: ImageServiceServer::new(Adapter { inner: images, phase: phase.subscribe() })
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        };
        let mut drained = phase.subscribe();
        let signal = async {
            shutdown.await;
            phase.send_replace(Phase::Draining);
        };
        let serving = tonic::transport::Server::builder().serve_with_incoming_shutdown(
            routes,
            UnixListenerStream::new(self.listener),
            signal,
        );
        let overdue = async {
            // The sender outlives this future, so only the phase ends the wait.
            let _ = drained.wait_for(|phase| *phase != Phase::Serving).await;
            tokio::time::sleep(self.drain).await;
            phase.send_replace(Phase::Over);
            tokio::time::sleep(GOODBYE).await;
        };
        // `overdue` has nothing to lose; `serving` loses only connections whose peers do not read.
        tokio::select! {
            result = serving => result.map_err(|source| ServeError::Serve { path: self.socket.0.clone(), source }),
            () = overdue => Ok(()),
        }
    }
}

/// Makes the socket with its mode from the start: between a bind and a chmod anyone could connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = UnixSocket::new_stream()?;
    // Linux gives the file that bind makes the mode of the socket's inode.
    let inode = std::fs::File::from(socket.as_fd().try_clone_to_owned()?);
    inode.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    socket.bind(path)?;
    socket.listen(128)
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Best effort: what is left of a failure is taken over by the next bind.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Over,
}

/// One of our services as one of tonic's.
struct Adapter<S: ?Sized> {
    inner: Arc<S>,
    phase: watch::Receiver<Phase>,
}

impl<S: ?Sized> Adapter<S> {
    /// A call, dropped when draining took too long.
    async fn answer<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<Response<T>, Status> {
        let mut phase = self.phase.clone();
        // Both arms may be dropped: the call by contract, the watch holds nothing.
        tokio::select! {
            answer = call => answer.map(Response::new).map_err(bounded),
            () = ended(&mut phase, Phase::Over) => Err(Status::unavailable("the runtime is shutting down")),
        }
    }

    /// A stream that ends when `end` is reached.
    fn until<T: Send + 'static>(&self, stream: Stream<T>, end: Phase) -> Stream<T> {
        let mut phase = self.phase.clone();
        let over = async move { ended(&mut phase, end).await };
        stream.map(|item| item.map_err(bounded)).take_until(Box::pin(over)).boxed()
    }
}

/// Waits for `end` or what comes after it.
async fn ended(phase: &mut watch::Receiver<Phase>, end: Phase) {
    // An error means that the server is gone altogether.
    let _ = phase.wait_for(|phase| *phase == end || *phase == Phase::Over).await;
}

macro_rules! adapt {
    (
        $service:ident, $module:ident,
        unary { $($unary:ident($request:ident) -> $response:ident;)* }
        streams { $($stream:ident($ask:ident) -> stream $item:ident as $assoc:ident;)* }
        events { $($events:ident($subscribe:ident) -> stream $event:ident as $events_assoc:ident;)* }
    ) => {
        #[async_trait]
        impl<S: $service + ?Sized> $module::$service for Adapter<S> {
            $(async fn $unary(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                self.answer(self.inner.$unary(request.into_inner())).await
            })*
            $(
                type $assoc = Stream<$item>;
                async fn $stream(&self, request: Request<$ask>) -> Result<Response<Stream<$item>>, Status> {
                    let answer = self.answer(self.inner.$stream(request.into_inner())).await?;
                    Ok(answer.map(|stream| self.until(stream, Phase::Over)))
                }
            )*
            $(
                type $events_assoc = Stream<$event>;
                async fn $events(&self, request: Request<$subscribe>) -> Result<Response<Stream<$event>>, Status> {
                    let answer = self.answer(self.inner.$events(request.into_inner())).await?;
                    Ok(answer.map(|stream| self.until(stream, Phase::Draining)))
                }
            )*
        }
    };
}

runtime_calls!(adapt! RuntimeService, runtime_service_server,);
image_calls!(adapt! ImageService, image_service_server,);

/// Which service a path belongs to. tonic's own router would bring a web framework along.
struct Routes<R: ?Sized, I: ?Sized> {
    runtime: RuntimeServiceServer<Adapter<R>>,
    images: ImageServiceServer<Adapter<I>>,
}

impl<R: ?Sized, I: ?Sized> Clone for Routes<R, I> {
    fn clone(&self) -> Self {
        Routes { runtime: self.runtime.clone(), images: self.images.clone() }
    }
}

impl<R, I> Service<http::Request<Body>> for Routes<R, I>
where
    R: RuntimeService + ?Sized,
    I: ImageService + ?Sized,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let limit = request.headers().get("grpc-timeout").and_then(|limit| limit.to_str().ok());
        let Some(limit) = limit.and_then(deadline::of_caller) else { return self.route(request) };
        // tonic ends such a call too, a moment later, but calls it cancelled.
        let answer = tokio::time::timeout(limit, self.route(request));
        Box::pin(async {
            let late = || Ok(Status::deadline_exceeded("context deadline exceeded").into_http());
            answer.await.unwrap_or_else(|_| late())
        })
    }
}

impl<R, I> Routes<R, I>
where
    R: RuntimeService + ?Sized,
    I: ImageService + ?Sized,
{
    fn route(
        &mut self,
        request: http::Request<Body>,
    ) -> BoxFuture<'static, Result<http::Response<Body>, Infallible>> {
        let service = request.uri().path().split('/').nth(1).unwrap_or("");
        if service == <RuntimeServiceServer<Adapter<R>> as NamedService>::NAME {
            return self.runtime.call(request);
        }
        if service == <ImageServiceServer<Adapter<I>> as NamedService>::NAME {
            return self.images.call(request);
        }
        let refusal = bounded(Status::unimplemented(format!("unknown service {service}"))).into_http();
        Box::pin(async { Ok(refusal) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeRuntime, Method};

    /// A client's own timer mostly ends the call first; where the server's answer is there before, it has to say the
    /// same.
    #[tokio::test]
    async fn a_call_that_takes_longer_than_its_caller_waits_exceeds_its_deadline() {
        let runtime = Arc::new(FakeRuntime::new());
        runtime.hang(Method::Version);
        let phase = watch::Sender::new(Phase::Serving);
        let mut routes = Routes {
            runtime: RuntimeServiceServer::new(Adapter { inner: runtime.clone(), phase: phase.subscribe() }),
            images: ImageServiceServer::new(Adapter { inner: runtime, phase: phase.subscribe() }),
        };
        let request = http::Request::post("/runtime.v1.RuntimeService/Version")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "20m")
            .body(Body::new("\0\0\0\0\0".to_owned()))
            .unwrap();
        let Ok(answer) = routes.call(request).await;
        let code = (tonic::Code::DeadlineExceeded as i32).to_string();
        assert_eq!(answer.headers()["grpc-status"], code.as_str());
    }
}
