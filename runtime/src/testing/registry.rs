//! A registry in this process that serves what it is given and misbehaves on request.
//!
//! Plain blocking threads, one per connection, all ended when the [`Registry`] is dropped: what a test measures is
//! the client's cleverness, not ours.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;

use super::TestImage;
use crate::image::Digest;

/// What a request meets instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// The body stops after so many bytes, the connection stays.
    Stall(usize),
    /// A status without what was asked for.
    Status(u16),
    /// The whole body where a range was asked for.
    IgnoreRange,
    /// A body with its byte at this place changed.
    Flip(usize),
}

/// How a registry is set up.
#[derive(Clone, Default)]
pub struct RegistryOptions {
    /// User and password, `None` when anyone may pull.
    pub user: Option<(String, String)>,
    /// Whether bearer tokens of a token server are wanted instead of basic authentication.
    pub token: bool,
    /// The refresh token that the token server takes too.
    pub refresh_token: Option<String>,
    /// Prefix of every repository here, as behind a rewriting mirror.
    pub prefix: String,
    /// TLS, none for plain http.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// A request as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// GET, HEAD or POST.
    pub method: String,
    /// Path with its query.
    pub path: String,
    /// Start of the range asked for.
    pub range: Option<usize>,
    authorization: String,
    body: Vec<u8>,
}

struct Content {
    media_type: &'static str,
    bytes: Arc<Vec<u8>>,
}

#[derive(Default)]
struct State {
    contents: BTreeMap<String, Content>,
    faults: Vec<(String, Fault)>,
    requests: Vec<Request>,
    connections: Vec<TcpStream>,
}

struct Shared {
    options: RegistryOptions,
    state: Mutex<State>,
    address: SocketAddr,
    ended: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A running registry.
pub struct Registry {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    /// Starts a registry on a free port of 127.0.0.1.
    pub fn start(options: RegistryOptions) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let shared = Arc::new(Shared {
            options,
            state: Mutex::default(),
            address: listener.local_addr()?,
            ended: AtomicBool::new(false),
        });
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if let Ok(copy) = stream.try_clone() {
                    serving.state().connections.push(copy);
                }
                let shared = serving.clone();
                std::thread::spawn(move || {
                    let handle = stream.try_clone();
                    serve(&shared, stream);
                    // A copy of the handle is kept for the end of the registry, so closing ours ends nothing.
                    if let Ok(handle) = handle {
                        let _ = handle.shutdown(std::net::Shutdown::Both);
                    }
                });
            }
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    /// `host/repository`, for names of images.
    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.host())
    }

    /// Serves content below `/v2/`.
    pub fn put(&self, path: &str, media_type: &'static str, bytes: impl Into<Arc<Vec<u8>>>) {
        let content = Content { media_type, bytes: bytes.into() };
        self.shared.state().contents.insert(format!("/v2/{}{path}", self.shared.options.prefix), content);
    }

    /// Serves an image under a tag. Returns the digest of its manifest.
    pub fn push(&self, repository: &str, tag: &str, image: &TestImage) -> Digest {
        self.push_blobs(repository, image);
        let manifest = Arc::new(image.manifest_bytes());
        let digest = Digest::of(&manifest);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.put(&format!("{repository}/manifests/{tag}"), media_type, manifest.clone());
        self.put(&format!("{repository}/manifests/{digest}"), media_type, manifest);
        digest
    }

    /// Serves an index of images under a tag. Returns its digest.
    pub fn push_index(&self, repository: &str, tag: &str, images: &[&TestImage]) -> Digest {
        for image in images {
            self.push(repository, &image.id().hex()[..12], image);
        }
        let index = Arc::new(TestImage::index_bytes(images));
        let digest = Digest::of(&index);
        let media_type = "application/vnd.oci.image.index.v1+json";
        self.put(&format!("{repository}/manifests/{tag}"), media_type, index.clone());
        self.put(&format!("{repository}/manifests/{digest}"), media_type, index);
        digest
    }

    fn push_blobs(&self, repository: &str, image: &TestImage) {
        let config = image.config_bytes();
        self.put(&format!("{repository}/blobs/{}", Digest::of(&config)), "application/octet-stream", config);
        for (digest, bytes) in &image.blobs {
            self.put(&format!("{repository}/blobs/{digest}"), "application/octet-stream", bytes.clone());
        }
    }

    /// Makes the next request whose path contains `path` meet a fault. Several queue up.
    pub fn fault(&self, path: &str, fault: Fault) {
        self.shared.state().faults.push((path.to_owned(), fault));
    }

    /// Takes back the faults that nobody met.
    pub fn clear_faults(&self) {
        self.shared.state().faults.clear();
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let connections = std::mem::take(&mut self.shared.state().connections);
        for connection in connections {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        // Wakes the accept call.
        let _ = TcpStream::connect(self.shared.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn serve(shared: &Arc<Shared>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let stream: Box<dyn Stream> = match &shared.options.tls {
        None => Box::new(stream),
        Some(tls) => match rustls::ServerConnection::new(tls.clone()) {
            Ok(connection) => Box::new(rustls::StreamOwned::new(connection, stream)),
            Err(_) => return,
        },
    };
    let mut stream = BufReader::with_capacity(16 << 10, stream);
    while let Ok(Some(request)) = read_request(&mut stream) {
        shared.state().requests.push(request.clone());
        // An error ends the connection, which is what a client sees of it anyway.
        if answer(shared, &request, stream.get_mut().as_mut()).is_err() {
            return;
        }
    }
}

fn read_request(stream: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut parts = line.split_whitespace().map(str::to_owned);
    let mut request = Request {
        method: parts.next().unwrap_or_default(),
        path: parts.next().unwrap_or_default(),
        ..Request::default()
    };
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let start = value.strip_prefix("bytes=").and_then(|range| range.split('-').next());
                request.range = start.and_then(|start| start.parse().ok());
            }
            "authorization" => value.clone_into(&mut request.authorization),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    request.body = vec![0; length];
    stream.read_exact(&mut request.body)?;
    Ok(Some(request))
}

fn status(stream: &mut dyn Stream, code: u16, headers: &str, body: &[u8]) -> io::Result<()> {
    let head = format!("HTTP/1.1 {code} x\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()
}

fn basic(user: &(String, String)) -> String {
    let text = format!("{}:{}", user.0, user.1);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
}

const TOKEN: &str = "a-token-of-the-test-registry";

fn answer(shared: &Shared, request: &Request, stream: &mut dyn Stream) -> io::Result<()> {
    let options = &shared.options;
    let path = request.path.split('?').next().unwrap_or_default();
    if path == "/token" {
        return answer_token(options, request, stream);
    }
    let wanted = match (&options.user, options.token) {
        (_, true) => Some(format!("Bearer {TOKEN}")),
        (Some(user), false) => Some(basic(user)),
        (None, false) => None,
    };
    if wanted.is_some_and(|wanted| wanted != request.authorization) {
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let challenge = match options.token {
            true => format!(
                "Bearer realm=\"{scheme}://{}/token\",service=\"test, with a comma\",scope=\"repository:x:pull\"",
                shared.address
            ),
            false => "Basic realm=\"test\"".to_owned(),
        };
        let headers = format!("WWW-Authenticate: {challenge}\r\n");
        return status(stream, 401, &headers, br#"{"errors":[{"code":"UNAUTHORIZED"}]}"#);
    }
    let (fault, content) = {
        let mut state = shared.state();
        let met = state.faults.iter().position(|(part, _)| request.path.contains(part.as_str()));
        let fault = met.map(|at| state.faults.remove(at).1);
        let content = state.contents.get(path).map(|content| (content.media_type, content.bytes.clone()));
        (fault, content)
    };
    if let Some(Fault::Status(code)) = fault {
        return status(stream, code, "", br#"{"errors":[{"code":"FAULT","message":"on purpose"}]}"#);
    }
    if path == "/v2/" {
        return status(stream, 200, "", b"{}");
    }
    let Some((media_type, bytes)) = content else {
        return status(stream, 404, "", br#"{"errors":[{"code":"NOT_FOUND","message":"not here"}]}"#);
    };
    send_content(shared, request, stream, media_type, &bytes, fault)
}

fn send_content(
    shared: &Shared,
    request: &Request,
    stream: &mut dyn Stream,
    media_type: &str,
    bytes: &[u8],
    fault: Option<Fault>,
) -> io::Result<()> {
    let start = request.range.filter(|_| fault != Some(Fault::IgnoreRange));
    if start.is_some_and(|start| start >= bytes.len()) {
        return status(stream, 416, &format!("Content-Range: bytes */{}\r\n", bytes.len()), b"");
    }
    let mut head = match start {
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
        Some(start) => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{}\r\n",
            bytes.len() - 1,
            bytes.len()
        ),
    };
    let body = &bytes[start.unwrap_or(0)..];
    head.push_str(&format!(
        "Content-Type: {media_type}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\r\n",
        body.len(),
        // Large blobs would be hashed for every range; their URL has the digest anyway.
        if bytes.len() < 1 << 20 { Digest::of(bytes).to_string() } else { String::new() },
    ));
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return stream.flush();
    }
    match fault {
        Some(Fault::Cut(at)) => {
            stream.write_all(&body[..at.min(body.len())])?;
            stream.flush()?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Some(Fault::Stall(at)) => {
            stream.write_all(&body[..at.min(body.len())])?;
            stream.flush()?;
            while !shared.ended.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Some(Fault::Flip(at)) => {
            let mut changed = body.to_vec();
            let at = at.min(changed.len() - 1);
            changed[at] ^= 1;
            stream.write_all(&changed)?;
            stream.flush()
        }
        _ => {
            stream.write_all(body)?;
            stream.flush()
        }
    }
}

fn answer_token(options: &RegistryOptions, request: &Request, stream: &mut dyn Stream) -> io::Result<()> {
    let body = String::from_utf8_lossy(&request.body);
    let refreshed = options.refresh_token.as_ref().is_some_and(|token| {
        request.method == "POST" && body.split('&').any(|pair| pair == format!("refresh_token={token}"))
    });
    let known = match &options.user {
        Some(user) => request.method == "GET" && request.authorization == basic(user),
        None => request.method == "GET" && options.refresh_token.is_none(),
    };
    if known || refreshed {
        let json = format!(r#"{{"token":"{TOKEN}","access_token":"{TOKEN}","expires_in":300}}"#);
        return status(stream, 200, "Content-Type: application/json\r\n", json.as_bytes());
    }
    status(stream, 401, "", br#"{"errors":[{"code":"DENIED","message":"who are you"}]}"#)
}
