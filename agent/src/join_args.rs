//! The flags that say which cluster the node belongs to, and how it proves itself. Shared by `run` and `join`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_bootstrap::{CaHash, JoinConfig, Serving, Source, TokenSource};

/// Where a token is looked for when no flag gives one.
const TOKEN_VARIABLE: &str = "CORACLE_TOKEN";

/// Flags of joining.
#[derive(Args, Clone, Debug)]
pub(crate) struct JoinArgs {
    /// API server to join, several in order of preference
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub server: Vec<String>,

    /// File with the bootstrap token, as kubeadm makes it; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,

    /// The bootstrap token itself; seen by everybody who lists processes
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,

    /// Pin of the cluster's authority: sha256:…
    #[arg(long, value_name = "HASH", value_delimiter = ',')]
    pub ca_cert_hash: Vec<String>,

    /// Kubeconfig whose credentials may request a certificate for the node
    #[arg(long, value_name = "FILE")]
    pub bootstrap_kubeconfig: Option<PathBuf>,

    /// Kubeconfig with the node's own credentials
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Folder of the node's credentials; DATA_DIR/pki if not given
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,

    /// Certificate of the kubelet API; with none the cluster is asked for one
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,

    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
}

impl JoinArgs {
    /// How to join; none if nothing says that the node belongs to a cluster. `wait` is how long a server that does not
    /// answer is asked again.
    pub(crate) fn resolve(
        &self,
        node_name: &str,
        data_dir: &Path,
        wait: Duration,
    ) -> Result<Option<JoinConfig>> {
        let pki = self.cert_dir.clone().unwrap_or_else(|| data_dir.join("pki"));
        let pki = std::path::absolute(pki).context("--cert-dir")?;
        let Some(source) = self.source(&pki)? else { return Ok(None) };
        let mut config = JoinConfig::new(node_name, pki, source);
        config.wait = wait;
        for server in &self.server {
            config.servers.push(server.parse().context("--server")?);
        }
        Ok(Some(config))
    }

    fn source(&self, pki: &Path) -> Result<Option<Source>> {
        if let Some(path) = &self.kubeconfig {
            return Ok(Some(Source::Kubeconfig(path.clone())));
        }
        if let Some(path) = &self.bootstrap_kubeconfig {
            return Ok(Some(Source::BootstrapKubeconfig(path.clone())));
        }
        let is_held = pki.join("kubeconfig").exists();
        let Some(token) = self.token(is_held, std::env::var(TOKEN_VARIABLE).ok())? else {
            if !is_held && !self.server.is_empty() {
                bail!(
                    "--server is given and nothing to prove this node with: give --token-file with a token of \
                     `kubeadm token create`, or --bootstrap-kubeconfig"
                );
            }
            return Ok(is_held.then_some(Source::Held));
        };
        if self.server.is_empty() {
            bail!("a token is given and no --server to join");
        }
        let hashes: Result<Vec<CaHash>, _> = self.ca_cert_hash.iter().map(|hash| hash.parse()).collect();
        Ok(Some(Source::Token { token, ca_hashes: hashes.context("--ca-cert-hash")? }))
    }

    /// The token, or where a join finds it. What is in the environment may be left over from the join that was: it does
    /// not bother a node that holds credentials.
    fn token(&self, is_held: bool, variable: Option<String>) -> Result<Option<TokenSource>> {
        let text = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(path)) if path.as_os_str() == "-" => return Ok(Some(TokenSource::Stdin)),
            (None, Some(path)) => return Ok(Some(TokenSource::File(path.clone()))),
            (None, None) => match variable {
                Some(text) if !is_held => text,
                Some(text) if !self.server.is_empty() => return Ok(text.parse().ok()),
                _ => return Ok(None),
            },
        };
        Ok(Some(text.parse().context("the bootstrap token")?))
    }

    /// Where the certificate of the kubelet API comes from.
    pub(crate) fn serving(&self) -> Serving {
        match (&self.tls_cert_file, &self.tls_private_key_file) {
            (Some(certificate), Some(key)) => {
                Serving::Files { certificate: certificate.clone(), key: key.clone() }
            }
            _ => Serving::Request,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const TOKEN: &str = "abcdef.0123456789abcdef";

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        join: JoinArgs,
    }

    fn args(words: &[&str]) -> JoinArgs {
        Flags::parse_from(["coracle"].iter().chain(words)).join
    }

    #[test]
    fn a_token_is_looked_for_when_a_join_needs_it() {
        let pki = tempfile::tempdir().unwrap();
        let missing = args(&["--server=https://a:6443", "--token-file=/nonexistent/token"]);
        std::fs::write(pki.path().join("kubeconfig"), "").unwrap();
        let source = missing.source(pki.path()).unwrap();
        assert!(matches!(source, Some(Source::Token { token: TokenSource::File(_), .. })), "{source:?}");
        let source = args(&["--server=https://a:6443", "--token-file=-"]).source(pki.path()).unwrap();
        assert!(matches!(source, Some(Source::Token { token: TokenSource::Stdin, .. })), "{source:?}");
    }

    #[test]
    fn a_left_over_variable_bothers_nobody_who_has_joined() {
        let of = |words: &[&str], is_held, text: &str| args(words).token(is_held, Some(text.to_owned()));
        let server = "--server=https://a:6443";
        assert!(of(&[], true, TOKEN).unwrap().is_none());
        assert!(of(&[server], true, "old").unwrap().is_none());
        // It may serve once the credentials have ended.
        assert!(of(&[server], true, TOKEN).unwrap().is_some());
        assert!(of(&[], false, TOKEN).unwrap().is_some());
        assert!(of(&[server], false, "old").is_err());
    }
}
