//! Which API servers there are and how to prove to them who we are. Plain data, changed as a whole.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// One API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// The name in the server's certificate, if not the host (`tls-server-name` of a kubeconfig).
    pub tls_name: Option<String>,
    /// What stands before `/api` in its paths, without a slash at the end.
    pub prefix: String,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}{}", self.host, self.port, self.prefix)
    }
}

/// Why an address of an API server is none.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It does not look like a URL.
    #[error("{0:?} is not the URL of an API server; it looks like https://10.0.0.1:6443")]
    NotUrl(String),
    /// Something in the URL has no meaning here.
    #[error("{0:?} carries a user, a query or a fragment, which the URL of an API server has not")]
    Extra(String),
}

impl FromStr for Server {
    type Err = ServerError;

    /// Reads `https://host[:port][/prefix]`; `host:port` alone means https. Ports default as kubectl's do.
    fn from_str(text: &str) -> Result<Self, ServerError> {
        let not_url = || ServerError::NotUrl(text.to_owned());
        let trimmed = text.trim();
        let with_scheme =
            if trimmed.contains("://") { trimmed.to_owned() } else { format!("https://{trimmed}") };
        if with_scheme.contains('#') {
            return Err(ServerError::Extra(text.to_owned()));
        }
        let uri: http::Uri = with_scheme.parse().map_err(|_| not_url())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(not_url()),
        };
        let authority = uri.authority().ok_or_else(not_url)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(ServerError::Extra(text.to_owned()));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(not_url());
        }
        Ok(Self {
            host,
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            tls,
            tls_name: None,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// A bearer token. Never printed.
#[derive(Clone)]
pub struct Bearer(http::HeaderValue);

impl Bearer {
    /// A token as it stands after `Bearer `; `None` if it holds characters that no header can.
    pub fn new(token: &str) -> Option<Self> {
        let mut value = http::HeaderValue::from_str(&format!("Bearer {}", token.trim())).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }

    pub(crate) fn header(&self) -> http::HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(hidden)")
    }
}

/// Servers and credentials at one moment.
#[derive(Clone, Debug)]
pub struct Access {
    /// The servers of one cluster in order of preference. Never empty.
    pub servers: Vec<Server>,
    /// Trust and client certificate. Needed for servers that speak TLS; its ALPN list says which protocols may be
    /// spoken (see [`Access::ALPN`]).
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// A bearer token.
    pub bearer: Option<Bearer>,
}

impl Access {
    /// What a [`rustls::ClientConfig`] for an API server should offer: one HTTP/2 connection carries every watch,
    /// which costs less than a connection each (measured: 270 KiB and 7 KiB per watch, against 34 KiB per watch).
    pub const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

    /// One server without credentials and without TLS: tests, `kubectl proxy`.
    pub fn plain(server: Server) -> Self {
        Self { servers: vec![server], tls: None, bearer: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<Server>().map(|server| server.to_string());
        assert_eq!(read("https://10.0.0.1:6443").unwrap(), "https://10.0.0.1:6443");
        assert_eq!(read("10.0.0.1:6443/").unwrap(), "https://10.0.0.1:6443");
        assert_eq!(read("https://[fd00::1]:6443").unwrap(), "https://[fd00::1]:6443");
        assert_eq!(
            read("https://rancher.example/k8s/clusters/c-1/").unwrap(),
            "https://rancher.example:443/k8s/clusters/c-1"
        );
        assert_eq!(read("http://localhost:8001").unwrap(), "http://localhost:8001");
        for wrong in ["", "ftp://host", "https://", "https://user:pw@host", "https://host/?a=b", "a b"] {
            assert!(read(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let access = Access {
            servers: vec!["https://host".parse().unwrap()],
            tls: None,
            bearer: Bearer::new("secret-token"),
        };
        assert!(!format!("{access:?}").contains("secret-token"));
    }
}
