//! A shim of somebody else's, beside ours: started for pods of a handler that names it, driven by containerd's Task API,
//! ended with the pod.
//!
//! Ours then keeps the logs and takes the other's events, which must be taken for it to go on. What is known of the
//! other is in a record of the sandbox's folder, written before it is started, so that a killed runtime leaves none that
//! nobody ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use coracle_shim::protocol::bootstrap::{
    BootstrapParams, BootstrapResult, Extension, GENERIC_OPTIONS, GenericOptions, RUNC_OPTIONS, RuncOptions,
};
use coracle_shim::protocol::call::Peer;
use coracle_shim::protocol::method::{TASK_SERVICE, TASK_SERVICE_V3};
use coracle_shim::protocol::{Any, method, task};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::config::{CgroupDriver, Config, ForeignShim, HandlerKind, Layout};
use crate::record::write_by_rename;
use crate::service::Engine;
use crate::service_error::{ServiceError, chain};
use crate::shim_client::ShimClient;

/// containerd's namespace of Kubernetes' containers.
const NAMESPACE: &str = "k8s.io";

/// How long the other shim may take to start, and to clean up.
const START_BOUND: Duration = Duration::from_secs(60);

/// How long it may take to end, and to say who it is.
const END_BOUND: Duration = Duration::from_secs(10);

const RECORD: &str = "shim.json";

/// What is known of another shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Its executable.
    path: PathBuf,
    /// Where its socket is; empty until it is started.
    socket: PathBuf,
    /// The version of the Task API that it speaks.
    api: i32,
    options: String,
}

impl Record {
    fn load(folder: &Path) -> Option<Record> {
        serde_json::from_slice(&fs::read(folder.join(RECORD)).ok()?).ok()
    }

    fn store(&self, folder: &Path) -> Result<(), ServiceError> {
        let text = serde_json::to_vec(self).map_err(|error| ServiceError::Spec(Box::new(error)))?;
        let path = folder.join(RECORD);
        write_by_rename(folder, ".shim.json.new", RECORD, &text).map_err(ServiceError::file("write", path))
    }

    fn peer(&self) -> Peer {
        let task_service = if self.api >= 3 { TASK_SERVICE_V3 } else { TASK_SERVICE };
        Peer { task_service, namespace: NAMESPACE.into() }
    }
}

/// The options that containerd would give a shim.
pub(crate) fn foreign_options(shim: &ForeignShim, config: &Config, layout: &Layout) -> Any {
    if shim.is_runc() {
        let options = RuncOptions {
            binary_name: shim.binary_name.clone(),
            root: layout.foreign_root().to_string_lossy().into_owned(),
            systemd_cgroup: config.cgroup_driver == CgroupDriver::Systemd,
            ..RuncOptions::default()
        };
        return Any { type_url: RUNC_OPTIONS.into(), value: options.encode_to_vec() };
    }
    let options = GenericOptions {
        type_url: String::new(),
        config_path: shim.config_path.clone(),
        config_body: Vec::new(),
    };
    Any { type_url: GENERIC_OPTIONS.into(), value: options.encode_to_vec() }
}

impl Engine {
    /// Where another shim of a sandbox is started: its bundle, as far as `start` looks at one.
    fn foreign_folder(&self, id: &str) -> PathBuf {
        self.layout.sandbox(id).join("foreign")
    }

    /// Whether a sandbox has, or was to have, another shim.
    pub(crate) fn has_foreign_shim(&self, id: &str) -> bool {
        self.foreign_folder(id).join(RECORD).exists()
    }

    /// The shim that a handler names, if it names one.
    pub(crate) fn foreign_shim(&self, handler: &str) -> Option<&ForeignShim> {
        match &self.config.handler(handler)?.kind {
            HandlerKind::Shim(shim) => Some(shim),
            HandlerKind::Maker(_) => None,
        }
    }

    /// Starts the shim that the sandbox's handler names; ours must serve already.
    pub(crate) async fn start_foreign(
        &self,
        id: &str,
        shim: &ForeignShim,
    ) -> Result<ShimClient, ServiceError> {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let path = shim.find(std::env::split_paths(&folders)).ok_or_else(|| ServiceError::Invalid {
            what: format!("the shim of type {:?} is not installed; give its path", shim.runtime_type),
        })?;
        let folder = self.foreign_folder(id);
        fs::create_dir(&folder).map_err(ServiceError::file("create", &folder))?;
        let config = json!({
            "ociVersion": "1.0.2",
            "annotations": {"io.kubernetes.cri.sandbox-id": id, "io.kubernetes.cri.container-type": "sandbox"},
        });
        for (name, text) in [("config.json", config.to_string()), ("log", String::new())] {
            fs::write(folder.join(name), text).map_err(ServiceError::file("write", folder.join(name)))?;
        }
        let options = hex::encode(foreign_options(shim, &self.config, &self.layout).encode_to_vec());
        let mut record = Record { version: 1, path, socket: PathBuf::new(), api: 2, options };
        record.store(&folder)?;
        self.begin_foreign(id, &mut record).await?;
        let client = ShimClient::connect_to(&record.socket, Some(record.peer())).await?;
        let connect = task::ConnectRequest { id: id.to_owned() };
        let pid = client.call::<method::Connect>(&connect, END_BOUND).await?.shim_pid;
        self.cgroups.enter(&self.config.shim_cgroup, pid)?;
        Ok(client)
    }

    /// The options that a container of the sandbox is created with, as its shim was started with.
    pub(crate) fn task_options(&self, sandbox_id: &str) -> Option<Any> {
        let record = Record::load(&self.foreign_folder(sandbox_id))?;
        Any::decode(hex::decode(record.options).ok()?.as_slice()).ok()
    }

    /// Runs `start`, which answers where the sandbox's shim listens and starts it when there is none.
    async fn begin_foreign(&self, id: &str, record: &mut Record) -> Result<(), ServiceError> {
        let folder = self.foreign_folder(id);
        let options = hex::decode(&record.options).unwrap_or_default();
        let ours = self.layout.shim_socket(id).to_string_lossy().into_owned();
        let sockets = self.layout.foreign_sockets();
        let params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: NAMESPACE.into(),
            // Warnings and worse.
            log_level: 4,
            containerd_version: env!("CARGO_PKG_VERSION").into(),
            containerd_ttrpc_address: ours.clone(),
            containerd_grpc_address: ours,
            containerd_binary: self.config.helper.to_string_lossy().into_owned(),
            extensions: vec![Extension { value: Any::decode(options.as_slice()).ok() }],
            socket_dir: Some(sockets.to_string_lossy().into_owned()),
        };
        let start = async |input| self.run_foreign(&record.path, id, &folder, &["start"], input).await;
        let output = match start(params.encode_to_vec()).await {
            Ok(output) => output,
            // Shims from before containerd 2.3 know nothing but their options.
            Err(new) => match start(options).await {
                Ok(output) => output,
                Err(old) => return Err(ServiceError::Several(vec![new, old])),
            },
        };
        let silent = |problem: String| ServiceError::ShimSilent { path: record.path.clone(), problem };
        let result = started(&output).map_err(silent)?;
        record.socket = result.address.strip_prefix("unix://").unwrap_or_default().into();
        record.api = result.version;
        if result.protocol != "ttrpc" || !record.socket.is_absolute() {
            let problem =
                format!("it listens on {} by {}, not on a socket by ttrpc", result.address, result.protocol);
            return Err(silent(problem));
        }
        record.store(&folder)
    }

    async fn run_foreign(
        &self,
        path: &Path,
        id: &str,
        folder: &Path,
        action: &[&str],
        input: Vec<u8>,
    ) -> Result<Vec<u8>, ServiceError> {
        let ours = self.layout.shim_socket(id);
        let mut command = Command::new(path);
        command
            .args(["-namespace", NAMESPACE, "-id", id, "-address"])
            .arg(&ours)
            .arg("-publish-binary")
            .arg(&self.config.helper)
            .args(action)
            .current_dir(folder)
            .env("TTRPC_ADDRESS", &ours)
            .env("GRPC_ADDRESS", &ours)
            .env("NAMESPACE", NAMESPACE)
            .env("MAX_SHIM_VERSION", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(limit) = self.config.descriptor_limit {
            crate::sys::limit_descriptors(&mut command, limit);
        }
        let fail = |source| ServiceError::ShimStart { path: path.to_path_buf(), source };
        let silent = |problem: String| ServiceError::ShimSilent { path: path.to_path_buf(), problem };
        let mut child = command.spawn().map_err(fail)?;
        let act = async {
            if let Some(mut stdin) = child.stdin.take() {
                // One that does not want to know ends its side.
                let _ = stdin.write_all(&input).await;
            }
            child.wait_with_output().await
        };
        match tokio::time::timeout(START_BOUND, act).await {
            Ok(Ok(output)) if output.status.success() => Ok(output.stdout),
            Ok(Ok(output)) => {
                let told = String::from_utf8_lossy(&output.stderr);
                Err(silent(format!("{}: {}", output.status, told.trim())))
            }
            Ok(Err(source)) => Err(fail(source)),
            Err(_) => Err(silent(format!("no end in {} s", START_BOUND.as_secs()))),
        }
    }

    /// Connects to the other shim of a sandbox that has one. Outer `None`: it has none.
    pub(crate) async fn connect_foreign(&self, id: &str) -> Option<Option<ShimClient>> {
        let record = Record::load(&self.foreign_folder(id))?;
        if record.socket.as_os_str().is_empty() {
            return Some(None);
        }
        Some(ShimClient::connect_to(&record.socket, Some(record.peer())).await.ok())
    }

    /// Ends the other shim of a sandbox. Its containers must be gone. Idempotent.
    pub(crate) async fn end_foreign(&self, id: &str) -> Result<(), ServiceError> {
        let folder = self.foreign_folder(id);
        let Some(mut record) = Record::load(&folder) else { return Ok(()) };
        if record.socket.as_os_str().is_empty()
            && let Err(error) = self.begin_foreign(id, &mut record).await
        {
            // A runtime that was killed may have left one that only the shim itself can find.
            tracing::debug!(sandbox = %id, error = %chain(&error), "no shim of another kind to end");
        }
        if let Some(Some(client)) = self.connect_foreign(id).await {
            let pid = client
                .call::<method::Connect>(&task::ConnectRequest { id: id.to_owned() }, END_BOUND)
                .await
                .map_or(0, |answer| answer.shim_pid);
            let request = task::ShutdownRequest { id: id.to_owned(), now: true };
            // One that refuses is ended all the same.
            let _ = client.call::<method::Shutdown>(&request, END_BOUND).await;
            if tokio::time::timeout(END_BOUND, client.closed()).await.is_err()
                && let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed())
            {
                tracing::warn!(sandbox = %id, "the shim does not end and is killed");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if record.socket.starts_with(self.layout.foreign_sockets()) {
            // One that was killed could not.
            let _ = fs::remove_file(&record.socket);
        }
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ServiceError::file("remove", folder)(error))
            }
            _ => Ok(()),
        }
    }

    /// Has the other shim's executable clean up after a container that no shim holds any more.
    pub(crate) async fn delete_by_foreign(&self, sandbox_id: &str, id: &str, bundle: &Path) {
        let Some(record) = Record::load(&self.foreign_folder(sandbox_id)) else { return };
        // containerd's shims look for the bundle by the container's name, beside the one that they are started in.
        let expected = bundle.with_file_name(id);
        let link = (expected != bundle).then(|| std::os::unix::fs::symlink(bundle, &expected));
        let words = ["-bundle", &bundle.to_string_lossy(), "delete"];
        if let Err(error) = self.run_foreign(&record.path, id, bundle, &words, Vec::new()).await {
            tracing::warn!(task = %id, error = %chain(&error), "what a dead shim left is not deleted by its kind");
        }
        if link.is_some() {
            let _ = fs::remove_file(&expected);
        }
    }
}

/// What `start` printed: a message, or of older shims JSON, or an address alone.
fn started(output: &[u8]) -> Result<BootstrapResult, String> {
    #[derive(Deserialize)]
    struct Json {
        version: i32,
        address: String,
        protocol: String,
    }
    if let Ok(result) = BootstrapResult::decode(output)
        && !result.address.is_empty()
    {
        return Ok(result);
    }
    let text = String::from_utf8_lossy(output);
    let text = text.trim();
    if let Ok(Json { version, address, protocol }) = serde_json::from_str(text) {
        return Ok(BootstrapResult { version, address, protocol });
    }
    if text.is_empty() {
        return Err("it did not say where it listens".into());
    }
    Ok(BootstrapResult { version: 2, address: text.into(), protocol: "ttrpc".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_where_a_shim_listens_is_understood() {
        let message =
            BootstrapResult { version: 3, address: "unix:///run/s/a".into(), protocol: "ttrpc".into() };
        assert_eq!(started(&message.encode_to_vec()).unwrap(), message);
        let json = br#"{"version":3,"address":"unix:///run/s/a","protocol":"ttrpc"}"#;
        assert_eq!(started(json).unwrap(), message);
        let plain = started(b"unix:///run/s/a\n").unwrap();
        assert_eq!((plain.version, plain.address.as_str()), (2, "unix:///run/s/a"));
        assert!(started(b"").is_err());
    }
}
