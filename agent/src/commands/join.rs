//! `coracle join`: obtains a node's credentials, writes the settings that `coracle run` needs, and ends.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_yaml_ng::{Mapping, Value};

use crate::args::JoinCommandArgs;
use crate::replace::replace_durably;
use crate::run::node_name;

/// How long an API server that does not answer is asked again.
const WAIT: Duration = Duration::from_secs(20);

/// Joins.
pub(crate) fn run(args: &JoinCommandArgs) -> Result<ExitCode> {
    let name = node_name(args.hostname_override.as_deref())?;
    let data_dir = std::path::absolute(&args.data_dir).context("--data-dir")?;
    let Some(config) = args.join.resolve(&name, &data_dir, WAIT)? else {
        bail!(
            "say which cluster: --server URL with --token-file FILE and --ca-cert-hash HASH, or a kubeconfig"
        );
    };
    let settings = settings(args)?;
    // Before anything is asked of the cluster: a file that says otherwise is told first.
    let text = merged(&args.config, &settings)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?
        .block_on(coracle_bootstrap::join(&config))?;
    replace_durably(&args.config, text.as_bytes(), mode_of(&args.config))?;
    println!("joined as {name}; settings are in {}; start the node with: coracle run", args.config.display());
    Ok(ExitCode::SUCCESS)
}

/// What `coracle run` must know besides the credentials, which name the servers. The token has done its work.
fn settings(args: &JoinCommandArgs) -> Result<Vec<(&'static str, Value)>> {
    let mut settings = Vec::new();
    if let Some(name) = &args.hostname_override {
        settings.push(("hostname-override", Value::from(name.as_str())));
    }
    if args.data_dir != Path::new(crate::args::DATA_DIR) {
        settings.push(("data-dir", path_value("--data-dir", &args.data_dir)?));
    }
    let files = [
        ("kubeconfig", "--kubeconfig", &args.join.kubeconfig),
        ("cert-dir", "--cert-dir", &args.join.cert_dir),
        ("tls-cert-file", "--tls-cert-file", &args.join.tls_cert_file),
        ("tls-private-key-file", "--tls-private-key-file", &args.join.tls_private_key_file),
    ];
    for (key, flag, path) in files {
        if let Some(path) = path {
            settings.push((key, path_value(flag, path)?));
        }
    }
    Ok(settings)
}

fn path_value(flag: &'static str, path: &Path) -> Result<Value> {
    let path: PathBuf = std::path::absolute(path).context(flag)?;
    Ok(Value::from(path.to_str().with_context(|| format!("{flag}: {} is no text", path.display()))?))
}

/// The mode of a settings file that is there. A new one may be read by everybody: what is written there holds names and
/// paths, no secret.
fn mode_of(path: &Path) -> u32 {
    std::fs::metadata(path).map_or(0o644, |known| known.permissions().mode() & 0o7777)
}

/// The settings file with these settings in it. What somebody wrote there stays as it is.
fn merged(path: &Path, settings: &[(&'static str, Value)]) -> Result<String> {
    let mut text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let present: Option<Mapping> = serde_yaml_ng::from_str(&text)
        .with_context(|| format!("{} is not a mapping of flag names to values", path.display()))?;
    for (key, value) in settings {
        match present.as_ref().and_then(|present| present.get(*key)) {
            Some(known) if known == value => {}
            Some(_) => bail!("{} says another {key}: change it there, or remove it", path.display()),
            None => {
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
                let line = Mapping::from_iter([(Value::from(*key), value.clone())]);
                text.push_str(&serde_yaml_ng::to_string(&line).context("cannot write settings as YAML")?);
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settings_file_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        assert_eq!(mode_of(&path), 0o644);
        for mode in [0o600, 0o640] {
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(mode_of(&path), mode);
        }
    }

    #[test]
    fn settings_are_added_to_what_somebody_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        let settings = [("hostname-override", Value::from("edge-1"))];
        assert_eq!(merged(&path, &settings).unwrap(), "hostname-override: edge-1\n");
        std::fs::write(&path, "# mine\nmax-pods: 30").unwrap();
        assert_eq!(merged(&path, &settings).unwrap(), "# mine\nmax-pods: 30\nhostname-override: edge-1\n");
        std::fs::write(&path, "hostname-override: edge-1\n").unwrap();
        assert_eq!(merged(&path, &settings).unwrap(), "hostname-override: edge-1\n");
        std::fs::write(&path, "hostname-override: other\n").unwrap();
        assert!(merged(&path, &settings).unwrap_err().to_string().contains("hostname-override"));
    }
}
