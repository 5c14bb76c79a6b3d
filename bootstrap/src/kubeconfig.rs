//! Reads and writes kubeconfig files, as far as a node needs them. No network; what a file points to is read later.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_cluster::{Server, ServerError};
use serde::Deserialize;
use serde_json::json;

/// The name under which more servers of one cluster are kept, beside the one every reader knows.
const SERVERS_EXTENSION: &str = "coracle.io/servers";

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no kubeconfig.
    #[error("{origin} is no kubeconfig")]
    Form {
        /// The file, or what it came in.
        origin: String,
        /// Why.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// A part that others refer to is not there.
    #[error("{origin} names no {what}")]
    Missing {
        /// The file.
        origin: String,
        /// What is not there.
        what: String,
    },
    /// The server's address is none.
    #[error("{origin} names a server that is none")]
    Server {
        /// The file.
        origin: String,
        /// Why.
        #[source]
        source: ServerError,
    },
    /// Data is not in base64.
    #[error("{origin}: {field} is not in base64")]
    Base64 {
        /// The file.
        origin: String,
        /// The field.
        field: &'static str,
    },
    /// It asks for what a node does not do.
    #[error("{origin} uses {what}, which is not supported here; {instead}")]
    Unsupported {
        /// The file.
        origin: String,
        /// The field.
        what: &'static str,
        /// What to use.
        instead: &'static str,
    },
}

/// A file's content, or where it is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Data(Vec<u8>),
    File(PathBuf),
}

/// What a kubeconfig says of one context. Holds secrets: not printable.
#[derive(Clone)]
pub(crate) struct Kubeconfig {
    pub(crate) servers: Vec<Server>,
    pub(crate) ca: Option<Content>,
    pub(crate) insecure: bool,
    pub(crate) client: Option<(Content, Content)>,
    pub(crate) token: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
}

impl Kubeconfig {
    pub(crate) fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| KubeconfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, &path.display().to_string(), path.parent().unwrap_or(Path::new("/")))
    }

    /// Paths are relative to `folder`.
    pub(crate) fn parse(text: &str, origin: &str, folder: &Path) -> Result<Self, KubeconfigError> {
        let file: File = serde_yaml_ng::from_str(text)
            .map_err(|source| KubeconfigError::Form { origin: origin.to_owned(), source })?;
        let reader = Reader { origin, folder };
        let context = reader.context(&file)?;
        let clusters = file.clusters.unwrap_or_default();
        let cluster = match &context {
            Some(context) => clusters.into_iter().find(|cluster| cluster.name == context.cluster),
            None if clusters.len() == 1 => clusters.into_iter().next(),
            None => None,
        };
        let cluster = cluster.and_then(|cluster| cluster.cluster).ok_or_else(|| reader.missing("cluster"))?;
        let user_name = context.map(|context| context.user).unwrap_or_default();
        let user = file.users.unwrap_or_default().into_iter().find(|user| user.name == user_name);
        if user.is_none() && !user_name.is_empty() {
            return Err(reader.missing(&format!("user {user_name:?}")));
        }
        reader.build(cluster, user.and_then(|user| user.user).unwrap_or_default())
    }
}

struct Reader<'a> {
    origin: &'a str,
    folder: &'a Path,
}

impl Reader<'_> {
    fn missing(&self, what: &str) -> KubeconfigError {
        KubeconfigError::Missing { origin: self.origin.to_owned(), what: what.to_owned() }
    }

    fn unsupported(&self, what: &'static str, instead: &'static str) -> KubeconfigError {
        KubeconfigError::Unsupported { origin: self.origin.to_owned(), what, instead }
    }

    fn context(&self, file: &File) -> Result<Option<Context>, KubeconfigError> {
        let contexts = file.contexts.as_deref().unwrap_or_default();
        let current = file.current.as_deref().unwrap_or_default();
        let found = match (current, contexts) {
            ("", []) => return Ok(None),
            ("", [one]) => Some(one),
            (name, all) => all.iter().find(|context| context.name == name),
        };
        let context = found.and_then(|context| context.context.clone());
        context.map(Some).ok_or_else(|| self.missing(&format!("context {current:?}")))
    }

    fn build(&self, cluster: Cluster, user: User) -> Result<Kubeconfig, KubeconfigError> {
        self.check(&cluster, &user)?;
        let invalid = |source| KubeconfigError::Server { origin: self.origin.to_owned(), source };
        let mut names = vec![cluster.server.ok_or_else(|| self.missing("server"))?];
        for extension in cluster.extensions.unwrap_or_default() {
            if extension.name == SERVERS_EXTENSION {
                names.extend(extension.extension.servers);
            }
        }
        let mut servers: Vec<Server> = Vec::new();
        for name in &names {
            let mut server: Server = name.parse().map_err(invalid)?;
            server.tls_name = cluster.tls_name.clone().filter(|name| !name.is_empty());
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        let certificate = self.content("client-certificate-data", user.certificate_data, user.certificate)?;
        let key = self.content("client-key-data", user.key_data, user.key)?;
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(self.missing("client-key beside its client-certificate")),
            (None, Some(_)) => return Err(self.missing("client-certificate beside its client-key")),
        };
        Ok(Kubeconfig {
            servers,
            ca: self.content("certificate-authority-data", cluster.ca_data, cluster.ca)?,
            insecure: cluster.insecure.unwrap_or(false),
            client,
            token: user.token.filter(|token| !token.is_empty()),
            token_file: user.token_file.filter(|path| !path.is_empty()).map(|path| self.folder.join(path)),
        })
    }

    fn check(&self, cluster: &Cluster, user: &User) -> Result<(), KubeconfigError> {
        let certificates = "use a client certificate, a token or a token file";
        if user.exec.is_some() {
            return Err(self.unsupported("exec", certificates));
        }
        if user.auth_provider.is_some() {
            return Err(self.unsupported("auth-provider", certificates));
        }
        if user.username.as_ref().is_some_and(|name| !name.is_empty()) {
            return Err(self.unsupported("username and password", certificates));
        }
        if cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()) {
            return Err(self.unsupported("proxy-url", "the API server must be reached directly"));
        }
        Ok(())
    }

    fn content(
        &self,
        field: &'static str,
        data: Option<String>,
        file: Option<String>,
    ) -> Result<Option<Content>, KubeconfigError> {
        let wrong = || KubeconfigError::Base64 { origin: self.origin.to_owned(), field };
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let data: String = data.split_whitespace().collect();
            return STANDARD.decode(data).map(|data| Some(Content::Data(data))).map_err(|_| wrong());
        }
        Ok(file.filter(|file| !file.is_empty()).map(|file| Content::File(self.folder.join(file))))
    }
}

/// Whom a kubeconfig trusts as API server.
#[derive(Clone, Copy)]
pub(crate) struct WrittenTrust<'a> {
    /// The file with the cluster's authorities.
    pub(crate) ca: Option<&'a Path>,
    /// Anybody.
    pub(crate) insecure: bool,
}

/// A kubeconfig for a node, with its certificate and key in one file.
pub(crate) fn write(servers: &[Server], trust: WrittenTrust<'_>, client: &Path) -> String {
    let first = servers.first().map(ToString::to_string).unwrap_or_default();
    let mut cluster = json!({"server": first});
    if let Some(ca) = trust.ca {
        cluster["certificate-authority"] = json!(ca);
    }
    if trust.insecure {
        cluster["insecure-skip-tls-verify"] = true.into();
    }
    if let Some(name) = servers.first().and_then(|server| server.tls_name.as_ref()) {
        cluster["tls-server-name"] = name.as_str().into();
    }
    if servers.len() > 1 {
        let rest: Vec<String> = servers[1..].iter().map(ToString::to_string).collect();
        cluster["extensions"] = json!([{"name": SERVERS_EXTENSION, "extension": {"servers": rest}}]);
    }
    let file = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": cluster}],
        "users": [{"name": "node", "user": {"client-certificate": client, "client-key": client}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "node"}}],
        "current-context": "default",
    });
    serde_yaml_ng::to_string(&file).expect("JSON without odd keys is YAML")
}

#[derive(Deserialize)]
struct File {
    clusters: Option<Vec<NamedCluster>>,
    contexts: Option<Vec<NamedContext>>,
    users: Option<Vec<NamedUser>>,
    #[serde(rename = "current-context")]
    current: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    #[serde(default)]
    name: String,
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct Cluster {
    server: Option<String>,
    #[serde(rename = "certificate-authority")]
    ca: Option<String>,
    #[serde(rename = "certificate-authority-data")]
    ca_data: Option<String>,
    #[serde(rename = "insecure-skip-tls-verify")]
    insecure: Option<bool>,
    #[serde(rename = "tls-server-name")]
    tls_name: Option<String>,
    #[serde(rename = "proxy-url")]
    proxy_url: Option<String>,
    extensions: Option<Vec<Extension>>,
}

#[derive(Deserialize)]
struct Extension {
    name: String,
    #[serde(default)]
    extension: ServersExtension,
}

#[derive(Default, Deserialize)]
struct ServersExtension {
    #[serde(default)]
    servers: Vec<String>,
}

#[derive(Deserialize)]
struct NamedContext {
    #[serde(default)]
    name: String,
    context: Option<Context>,
}

#[derive(Clone, Deserialize)]
struct Context {
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct NamedUser {
    #[serde(default)]
    name: String,
    user: Option<User>,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(rename = "client-certificate")]
    certificate: Option<String>,
    #[serde(rename = "client-certificate-data")]
    certificate_data: Option<String>,
    #[serde(rename = "client-key")]
    key: Option<String>,
    #[serde(rename = "client-key-data")]
    key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    username: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    #[serde(rename = "auth-provider")]
    auth_provider: Option<serde::de::IgnoredAny>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Kubeconfig, String> {
        Kubeconfig::parse(text, "test", Path::new("/etc/k")).map_err(|error| error.to_string())
    }

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "clusters: [{{name: c, cluster: {{server: 'https://api:6443', {cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        )
    }

    #[test]
    fn files_are_relative_to_the_kubeconfig_and_data_wins() {
        let read = parse(&config(
            "certificate-authority: ca.crt, tls-server-name: kubernetes",
            "client-certificate-data: Y2VydA==, client-certificate: other, client-key: /abs/key, tokenFile: tok",
        ))
        .unwrap();
        assert!(read.ca == Some(Content::File("/etc/k/ca.crt".into())));
        let wanted = (Content::Data(b"cert".to_vec()), Content::File("/abs/key".into()));
        assert!(read.client == Some(wanted));
        assert_eq!(read.token_file, Some("/etc/k/tok".into()));
        assert_eq!(read.servers[0].tls_name.as_deref(), Some("kubernetes"));
    }

    #[test]
    fn what_a_node_cannot_do_is_told() {
        for (cluster, user, wanted) in [
            ("", "exec: {command: x}", "test uses exec, which is not supported here"),
            ("", "auth-provider: {name: x}", "uses auth-provider"),
            ("", "username: me, password: x", "uses username and password"),
            ("proxy-url: 'http://p'", "token: t", "uses proxy-url"),
            ("", "client-certificate: c", "names no client-key"),
            ("certificate-authority-data: '!'", "token: t", "certificate-authority-data is not in base64"),
        ] {
            let error = parse(&config(cluster, user)).err().unwrap_or_default();
            assert!(error.contains(wanted), "{error}");
        }
        for (text, wanted) in [
            ("", "names no"),
            ("[1]", "is no kubeconfig"),
            ("current-context: gone\ncontexts: []", "names no context \"gone\""),
            ("clusters: [{name: a, cluster: {server: 'ftp://x'}}]", "names a server that is none"),
        ] {
            let error = parse(text).err().unwrap_or_default();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn one_cluster_without_a_context_is_enough() {
        let read =
            parse("clusters: [{name: '', cluster: {server: 'https://a'}}]\ncontexts: null\nusers: null")
                .unwrap();
        assert_eq!(read.servers[0].to_string(), "https://a:443");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let servers: Vec<Server> =
            ["https://a:6443", "https://b:6443"].map(|text| text.parse().unwrap()).into();
        let of = |trust| parse(&write(&servers, trust, Path::new("/p/client.pem"))).unwrap();
        let read = of(WrittenTrust { ca: Some(Path::new("/p/ca.crt")), insecure: false });
        assert_eq!(read.servers, servers);
        assert!(read.ca == Some(Content::File("/p/ca.crt".into())) && read.client.is_some());
        assert!(!read.insecure);
        let read = of(WrittenTrust { ca: None, insecure: true });
        assert!(read.insecure && read.ca.is_none());
    }
}
