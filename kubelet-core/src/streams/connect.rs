//! A request to a runtime's streaming server that is to become a stream.
//!
//! Polls the HTTP connection itself until the server has switched protocols: no task stays behind it.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A stream from the runtime.
pub type RuntimeStream = TokioIo<Upgraded>;

/// How long the server may take to be there and to answer. Some begin the command before they do.
const DEADLINE: Duration = Duration::from_secs(60);
/// The longest explanation that is passed on.
const MAX_REFUSAL: usize = 64 * 1024;
/// Memory for the answer's head.
const BUFFER: usize = 16 * 1024;

/// Why the server was not heard.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not a URL that can be connected to.
    #[error("the runtime serves its streams at {0:?}, which is no http:// address")]
    Url(String),
    /// Nobody listens there.
    #[error("cannot connect to the runtime's streaming server at {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It does not speak HTTP.
    #[error("the runtime's streaming server does not answer as HTTP servers do")]
    Http(#[from] hyper::Error),
    /// It takes too long.
    #[error("the runtime's streaming server did not answer within {}s", DEADLINE.as_secs())]
    Late,
}

/// What the server said.
#[derive(Debug)]
pub enum Reply {
    /// The connection is a stream now.
    Switched {
        /// Of the answer.
        headers: HeaderMap,
        /// The stream.
        io: RuntimeStream,
    },
    /// It is none.
    Refused {
        /// Of the answer.
        status: StatusCode,
        /// Of the answer.
        headers: HeaderMap,
        /// Why, in words.
        body: Bytes,
    },
}

/// Sends a request with these headers to a URL that a runtime gave.
pub async fn connect(url: &str, method: Method, headers: HeaderMap) -> Result<Reply, ConnectError> {
    tokio::time::timeout(DEADLINE, ask(url, method, headers)).await.map_err(|_| ConnectError::Late)?
}

async fn ask(url: &str, method: Method, mut headers: HeaderMap) -> Result<Reply, ConnectError> {
    let no_url = || ConnectError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| no_url())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(no_url)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(80);
    let failed = |source| ConnectError::Connect { address: authority.to_string(), source };
    let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
    let _ = stream.set_nodelay(true);
    headers.insert(HOST, HeaderValue::from_str(authority.as_str()).map_err(|_| no_url())?);
    if method == Method::POST {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| no_url())?;
    *request.headers_mut() = headers;

    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let answered = async {
        let response = sender.send_request(request).await;
        // With nothing more to send the connection ends as soon as the answer is read.
        drop(sender);
        reply(response?).await
    };
    let (ended, answered) = tokio::join!(connection.with_upgrades(), answered);
    // What broke the connection says more than that there was no answer.
    answered.or_else(|error| ended.and(Err(error)).map_err(ConnectError::Http))
}

async fn reply(mut response: Response<Incoming>) -> hyper::Result<Reply> {
    let headers = std::mem::take(response.headers_mut());
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let io = hyper::upgrade::on(response).await?;
        return Ok(Reply::Switched { headers, io: TokioIo::new(io) });
    }
    // An explanation that breaks off is none; the status is what counts.
    let body = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Ok(Reply::Refused { status, headers, body })
}
