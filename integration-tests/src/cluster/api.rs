//! A small blocking client of an API server, for the harness: requests and watches that cost next to nothing, so
//! that a bench on two cores measures the node and not `kubectl`.
//!
//! One connection per request, HTTP/1.1, JSON. Each method may be called from any thread.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// How long one read may take. A watch is ended by the server only after minutes, so it has its own bound.
const ANSWER: Duration = Duration::from_secs(30);

/// An API server and the credentials to speak to it.
#[derive(Clone)]
pub struct Api {
    host: String,
    address: SocketAddr,
    config: Arc<ClientConfig>,
    token: Option<String>,
}

/// What an API server has answered.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub code: u16,
    /// The body, null if it is not JSON.
    pub body: Value,
}

impl Answer {
    /// The body, if the server did what it was asked.
    pub fn ok(self) -> Result<Value> {
        if (200..300).contains(&self.code) {
            return Ok(self.body);
        }
        bail!("the API server answers {}: {}", self.code, self.body["message"].as_str().unwrap_or_default())
    }
}

impl Api {
    /// Reads a kubeconfig that was written by the harness or `kubectl`, with credentials inside.
    pub fn of_kubeconfig(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::of_kubeconfig_text(&text).with_context(|| format!("cannot use {}", path.display()))
    }

    fn of_kubeconfig_text(text: &str) -> Result<Self> {
        let value = |name: &str| {
            let found = text.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix(name));
            found.map(|value| value.trim_start_matches(':').trim().trim_matches('"').to_owned())
        };
        let pem = |name: &str| -> Result<Vec<u8>> {
            let value = value(name).with_context(|| format!("no {name}"))?;
            base64::engine::general_purpose::STANDARD
                .decode(value)
                .with_context(|| format!("{name} is no base64"))
        };
        let server = value("server").context("no server")?;
        let authority =
            server.strip_prefix("https://").context("the server is not https")?.trim_end_matches('/');
        let address =
            authority.to_socket_addrs().with_context(|| format!("cannot resolve {authority}"))?.next();
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).to_owned();

        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem("certificate-authority-data")?) {
            roots
                .add(certificate.context("the authority is no certificate")?)
                .context("the authority is unusable")?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("ring knows TLS 1.2 and 1.3")?
            .with_root_certificates(roots);
        let token = value("token");
        let config = if token.is_some() {
            builder.with_no_client_auth()
        } else {
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(&pem("client-certificate-data")?).collect();
            let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")?).context("no client key")?;
            builder
                .with_client_auth_cert(chain.context("no client certificate")?, key)
                .context("wrong client key")?
        };
        Ok(Self {
            host,
            address: address.context("the server has no address")?,
            config: Arc::new(config),
            token,
        })
    }

    /// Reads an object or a list.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, None)?.ok()
    }

    /// Creates an object.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.request("POST", path, Some(("application/json", object)))?.ok()
    }

    /// Changes an object by a merge patch.
    pub fn merge(&self, path: &str, patch: &Value) -> Result<Value> {
        self.request("PATCH", path, Some(("application/merge-patch+json", patch)))?.ok()
    }

    /// Deletes an object or a collection.
    pub fn delete(&self, path: &str) -> Result<Value> {
        self.request("DELETE", path, None)?.ok()
    }

    /// Sends one request and reads the whole answer.
    pub fn request(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Answer> {
        let (code, mut reader) = self.send(method, path, body, ANSWER)?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).with_context(|| format!("{method} {path}: the answer is cut off"))?;
        Ok(Answer { code, body: serde_json::from_slice(&bytes).unwrap_or_default() })
    }

    /// Reads a path that answers text, such as `/metrics`.
    pub fn text(&self, path: &str) -> Result<String> {
        let (code, mut reader) = self.send("GET", path, None, ANSWER)?;
        let mut text = String::new();
        reader.read_to_string(&mut text).with_context(|| format!("{path}: the answer is cut off"))?;
        if code != 200 {
            bail!("GET {path} is answered {code}: {text}");
        }
        Ok(text)
    }

    /// Watches from now on and calls `each` with every event until it returns false, for at most `limit`.
    pub fn watch(&self, path: &str, limit: Duration, mut each: impl FnMut(&Value) -> bool) -> Result<()> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{joint}watch=true&timeoutSeconds={}", limit.as_secs().max(1));
        let (code, reader) = self.send("GET", &path, None, limit)?;
        if code != 200 {
            bail!("GET {path} is answered {code}");
        }
        for line in BufReader::new(reader).lines() {
            let event: Value = serde_json::from_str(&line.with_context(|| format!("{path}: cut off"))?)
                .with_context(|| format!("{path}: not an event"))?;
            if !each(&event) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
        limit: Duration,
    ) -> Result<(u16, Box<dyn Read>)> {
        let what = || format!("{method} https://{}{path}", self.address);
        let stream = TcpStream::connect_timeout(&self.address, ANSWER).with_context(what)?;
        stream.set_read_timeout(Some(limit)).and_then(|()| stream.set_nodelay(true)).with_context(what)?;
        let name = ServerName::try_from(self.host.clone()).context("the server's name is none")?;
        let session = ClientConnection::new(Arc::clone(&self.config), name).with_context(what)?;
        let mut stream = StreamOwned::new(session, stream);
        let bytes = body.map(|(_, body)| serde_json::to_vec(body)).transpose()?.unwrap_or_default();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: application/json\r\n",
            self.host
        );
        if let Some((kind, _)) = body {
            head.push_str(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", bytes.len()));
        }
        if let Some(token) = &self.token {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend(bytes);
        stream.write_all(&request).with_context(what)?;
        read_head(BufReader::new(stream)).with_context(what)
    }
}

/// Reads the status and the headers, and returns a reader of the body.
fn read_head(
    mut reader: BufReader<StreamOwned<ClientConnection, TcpStream>>,
) -> Result<(u16, Box<dyn Read>)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let code = line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("answer {line:?}"))?;
    let (mut length, mut chunked) = (None, false);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<u64>().ok(),
            "transfer-encoding" => chunked = value.trim() == "chunked",
            _ => {}
        }
    }
    Ok(match (chunked, length) {
        (true, _) => (code, Box::new(Chunks { reader, left: 0, ended: false })),
        (false, Some(length)) => (code, Box::new(reader.take(length))),
        (false, None) => (code, Box::new(std::io::empty())),
    })
}

/// Undoes the chunked transfer encoding.
struct Chunks<R> {
    reader: R,
    left: u64,
    ended: bool,
}

impl<R: std::io::BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut line = String::new();
            while line.trim().is_empty() {
                line.clear();
                if self.reader.read_line(&mut line)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            let size = line.trim().split(';').next().unwrap_or_default();
            self.left = u64::from_str_radix(size, 16).map_err(|_| std::io::ErrorKind::InvalidData)?;
            self.ended = self.left == 0;
        }
        if self.ended {
            return Ok(0);
        }
        let count = (&mut self.reader).take(self.left).read(buffer)?;
        self.left -= count as u64;
        if count == 0 && !buffer.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}
