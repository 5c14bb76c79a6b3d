//! Where a probe or hook sends its request, and the request's bytes.
//!
//! Pure. Follows the kubelet's `NewRequestForHTTPGetAction`: its User-Agent, its rules for Host and Accept.

use crate::api::{Container, HTTPGetAction};
use crate::probe::check::{join_host_port, resolve_port};

/// The version that probes name themselves by.
const VERSION: &str = "1.36";

/// A URL and the headers to send there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpTarget {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query, starting with a slash.
    path: String,
    headers: Vec<(String, String)>,
    host_header: Option<String>,
}

impl HttpTarget {
    /// The target of an action; `purpose` is `probe` or `lifecycle`.
    pub(crate) fn of(
        action: &HTTPGetAction,
        container: &Container,
        host: &str,
        purpose: &str,
    ) -> Result<Self, String> {
        let port = resolve_port(&action.port, container)?;
        let mut headers = Vec::new();
        let mut host_header = None;
        let (mut has_agent, mut has_accept) = (false, false);
        for header in &action.http_headers {
            let name = header.name.as_str();
            if name.eq_ignore_ascii_case("host") {
                host_header.get_or_insert_with(|| header.value.clone());
                continue;
            }
            has_agent |= name.eq_ignore_ascii_case("user-agent");
            if name.eq_ignore_ascii_case("accept") {
                has_accept = true;
                if header.value.is_empty() {
                    continue;
                }
            }
            headers.push((header.name.clone(), header.value.clone()));
        }
        if !has_agent {
            headers.push(("User-Agent".to_owned(), format!("kube-{purpose}/{VERSION}")));
        }
        if !has_accept {
            headers.push(("Accept".to_owned(), "*/*".to_owned()));
        }
        Ok(Self {
            tls: action.scheme.eq_ignore_ascii_case("https"),
            host: host.to_owned(),
            port,
            path: clean(&action.path),
            headers,
            host_header: host_header.filter(|host| !host.is_empty()),
        })
    }

    /// Host and port.
    pub(crate) fn address(&self) -> String {
        join_host_port(&self.host, self.port)
    }

    /// The whole URL.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.address(), self.path)
    }

    /// The same without TLS, and without what must not be sent in clear.
    pub(crate) fn in_clear(&self) -> Self {
        let mut clear = Self { tls: false, ..self.clone() };
        clear.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        clear
    }

    /// Where a `Location` leads; none if it is no HTTP URL.
    pub(super) fn redirected(&self, location: &str) -> Option<Self> {
        let mut next = Self { host_header: None, ..self.clone() };
        let rest = match location.split_once("://") {
            Some((scheme, rest)) => {
                next.tls = match scheme.to_ascii_lowercase().as_str() {
                    "http" => false,
                    "https" => true,
                    _ => return None,
                };
                Some(rest)
            }
            None => location.strip_prefix("//"),
        };
        let Some(rest) = rest else {
            next.host_header = self.host_header.clone();
            next.path = if location.starts_with('/') {
                clean(location)
            } else {
                let folder = self.path.split('?').next().and_then(|path| path.rfind('/')).unwrap_or(0);
                clean(&format!("{}{location}", &self.path[..=folder]))
            };
            return Some(next);
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = authority.rsplit('@').next().unwrap_or(authority);
        let (host, port) = split_host_port(authority);
        next.host = host.to_owned();
        next.port = match port {
            Some(port) => port.parse().ok()?,
            None if next.tls => 443,
            None => 80,
        };
        next.path = clean(path);
        Some(next)
    }

    /// The bytes of the request.
    pub(super) fn request(&self) -> String {
        let default_port = if self.tls { 443 } else { 80 };
        let host = self.host_header.clone().unwrap_or_else(|| {
            let address = self.address();
            if self.port == default_port {
                address.rsplit_once(':').map_or(address.clone(), |(host, _)| host.to_owned())
            } else {
                address
            }
        });
        let mut request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", self.path, line(&host));
        for (name, value) in &self.headers {
            request.push_str(&format!("{}: {}\r\n", line(name), line(value)));
        }
        request.push_str("Connection: close\r\n\r\n");
        request
    }
}

/// A header cannot smuggle another one in.
fn line(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '\r' | '\n' | '\0')).collect()
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn split_host_port(authority: &str) -> (&str, Option<&str>) {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, tail) = rest.split_once(']').unwrap_or((rest, ""));
        return (host, tail.strip_prefix(':'));
    }
    authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)))
}

/// Path and query as they go on the wire: from a slash on, without fragment, escaped where they must be.
fn clean(path: &str) -> String {
    let path = path.split('#').next().unwrap_or("");
    let mut out = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        out.push('/');
    }
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'`') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ContainerPort, HTTPHeader, IntOrString};

    fn target(path: &str, headers: &[(&str, &str)]) -> HttpTarget {
        let http_headers =
            headers.iter().map(|(n, v)| HTTPHeader { name: (*n).into(), value: (*v).into() }).collect();
        let port = IntOrString::String("web".into());
        let action = HTTPGetAction { path: path.into(), port, http_headers, ..HTTPGetAction::default() };
        let ports =
            vec![ContainerPort { name: "web".into(), container_port: 8080, ..ContainerPort::default() }];
        let container = Container { ports, ..Container::default() };
        HttpTarget::of(&action, &container, "10.0.0.1", "probe").unwrap()
    }

    #[test]
    fn requests_carry_the_kubelets_headers() {
        let request = target("/healthz?full=1#x", &[]).request();
        assert_eq!(
            request,
            "GET /healthz?full=1 HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: kube-probe/1.36\r\n\
             Accept: */*\r\nConnection: close\r\n\r\n"
        );
        let request = target("a b", &[("Host", "web.local"), ("Accept", ""), ("X", "1\r\nY: 2")]).request();
        assert!(request.starts_with("GET /a%20b HTTP/1.1\r\nHost: web.local\r\nX: 1Y: 2\r\n"), "{request}");
        assert!(!request.contains("Accept"));
    }

    #[test]
    fn redirects_are_resolved() {
        let from = target("/a/b?c", &[("Host", "web.local")]);
        let to = |location: &str| from.redirected(location).map(|t| t.url());
        assert_eq!(to("/x").as_deref(), Some("http://10.0.0.1:8080/x"));
        assert_eq!(to("x").as_deref(), Some("http://10.0.0.1:8080/a/x"));
        assert_eq!(to("https://10.0.0.1/y").as_deref(), Some("https://10.0.0.1:443/y"));
        assert_eq!(to("//other:81").as_deref(), Some("http://other:81/"));
        assert_eq!(to("http://[fd00::1]:82/z").as_deref(), Some("http://[fd00::1]:82/z"));
        assert_eq!(to("ftp://x/"), None);
    }
}
