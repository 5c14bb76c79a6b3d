//! Starts etcd, the API server, the controllers and the scheduler in the control plane's machine.
//!
//! They are unmodified and secured as kubeadm does it: Node and RBAC authorization, NodeRestriction, bootstrap tokens.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::api::Api;
use super::certificates::{Authority, write_signing_key};
use super::machine::Machine;
use super::network::Network;
use super::{Join, Options, bootstrap_objects};
use crate::peers::Peers;

/// How long the control plane may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

/// The files that nodes and users need.
pub(super) struct Files {
    pub(super) folder: PathBuf,
}

impl Files {
    /// Credentials of an administrator.
    pub(super) fn admin(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// Credentials of kube-proxy.
    pub(super) fn proxy(&self) -> PathBuf {
        self.folder.join("kube-proxy.kubeconfig")
    }

    /// Credentials with which a kubelet asks for its own.
    pub(super) fn bootstrap(&self) -> PathBuf {
        self.folder.join("bootstrap.kubeconfig")
    }

    /// The authority that signs everybody.
    pub(super) fn authority(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }
}

/// A cluster that answers.
pub(super) struct Started {
    pub(super) api: Api,
    pub(super) join: Join,
}

/// Starts all of it and waits until a node can join.
pub(super) fn start(
    machine: &Machine,
    network: Network,
    files: &Files,
    peers: &Peers,
    options: &Options,
) -> Result<Started> {
    let programs = peers.program("control-plane")?;
    let programs = programs.parent().context("a program lies in a folder")?;
    let join = make_files(network, files)?;
    let mut services = vec!["etcd", "kube-apiserver", "registry"];
    machine.start_service("etcd", &programs.join("etcd"), &etcd())?;
    let arguments = api_server(network, files, options);
    machine.start_service("kube-apiserver", &programs.join("kube-apiserver"), &arguments)?;
    start_registry(machine, network, files, peers)?;
    let api = Api::of_kubeconfig(&files.admin())?;
    wait(machine, &services, "the API server is ready", || {
        Ok(api.request("GET", "/readyz", None).is_ok_and(|answer| answer.code == 200))
    })?;
    let controllers = controllers(network, files, options);
    for (name, arguments) in [
        ("kube-controller-manager", controllers),
        ("kube-scheduler", scheduler(files)),
        ("serving-approver", vec![files.admin().display().to_string()]),
    ] {
        machine.start_service(name, &programs.join(name), &arguments)?;
        services.push(name);
    }
    let anybody = anybody(&join, files)?;
    for (path, object) in bootstrap_objects::objects(&join, &anybody) {
        // A namespace of the system may come a moment after the server is ready.
        wait(machine, &services, path, || {
            let answer = api.request("POST", path, Some(("application/json", &object)))?;
            Ok(answer.code != 404 && answer.ok().map(|_| true)?)
        })?;
    }
    let signature = format!("jws-kubeconfig-{}", join.token.split('.').next().unwrap_or_default());
    wait(machine, &services, "cluster-info is signed and pods have their account", || {
        let info = api.get("/api/v1/namespaces/kube-public/configmaps/cluster-info")?;
        let account = api.request("GET", "/api/v1/namespaces/default/serviceaccounts/default", None)?;
        let authority = api.request("GET", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt", None)?;
        Ok(info["data"][&signature].is_string() && account.code == 200 && authority.code == 200)
    })?;
    Ok(Started { api, join })
}

fn make_files(network: Network, files: &Files) -> Result<Join> {
    let folder = &files.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let authority = Authority::new(folder, "ca", "kubernetes")?;
    let front = Authority::new(folder, "front-proxy-ca", "front-proxy-ca")?;
    write_signing_key(folder, "sa")?;
    let names = [
        "kube-apiserver",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let addresses = [
        network.control_plane(),
        network.control_plane_for_proxies(),
        network.first_service(),
        std::net::Ipv4Addr::LOCALHOST.into(),
    ];
    authority.server(&names, &addresses)?.write(folder, "apiserver")?;
    authority
        .client("kube-apiserver-kubelet-client", Some("system:masters"))?
        .write(folder, "apiserver-kubelet-client")?;
    front.client("front-proxy-client", None)?.write(folder, "front-proxy-client")?;

    let server = format!("https://{}:6443", network.control_plane());
    let local = "https://127.0.0.1:6443";
    authority.kubeconfig("admin", &server, &authority.client("kubernetes-admin", Some("system:masters"))?)?;
    authority.kubeconfig("controllers", local, &authority.client("system:kube-controller-manager", None)?)?;
    authority.kubeconfig("scheduler", local, &authority.client("system:kube-scheduler", None)?)?;
    let proxies = format!("https://{}:6443", network.control_plane_for_proxies());
    authority.kubeconfig("kube-proxy", &proxies, &authority.client("system:kube-proxy", None)?)?;
    let token = format!("{}.{}", random(6)?, random(16)?);
    authority.token_kubeconfig(&files.bootstrap(), &server, &token)?;
    Ok(Join { server, token, ca_cert_hash: authority.pin.clone() })
}

/// Serves the images that were made for clusters; more may be written while it runs.
fn start_registry(machine: &Machine, network: Network, files: &Files, peers: &Peers) -> Result<()> {
    let config = json!({
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": true}},
        "storage": {
            "filesystem": {"rootdirectory": crate::images::folder()},
            "maintenance": {"readonly": {"enabled": true}, "uploadpurging": {"enabled": false}},
        },
        "http": {"addr": format!("{}:5000", network.control_plane()), "secret": "not one"},
    });
    let path = files.folder.join("registry.json");
    std::fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    let arguments = ["serve".to_owned(), path.display().to_string()];
    machine.start_service("registry", &peers.program("registry")?, &arguments)
}

/// The kubeconfig without a user that cluster-info holds.
fn anybody(join: &Join, files: &Files) -> Result<String> {
    use base64::Engine as _;
    let authority = std::fs::read(files.authority()).context("cannot read the authority")?;
    let authority = base64::engine::general_purpose::STANDARD.encode(authority);
    Ok(format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {authority}\n    server: {}\n  name: \"\"\n\
         contexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n",
        join.server
    ))
}

/// Characters of a bootstrap token.
fn random(count: usize) -> Result<String> {
    use std::io::Read as _;
    let mut bytes = vec![0; count];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("no random bytes")?;
    let letters = b"abcdefghijklmnopqrstuvwxyz012345";
    Ok(bytes.iter().map(|byte| char::from(letters[usize::from(byte % 32)])).collect())
}

fn etcd() -> Vec<String> {
    // Its data need not outlive anything, so it need not be synced either.
    [
        "--data-dir=/run/etcd",
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn api_server(network: Network, files: &Files, options: &Options) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", files.folder.join(name).display());
    let mut arguments = vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--advertise-address={}", network.control_plane()),
        "--secure-port=6443".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--enable-bootstrap-token-auth=true".to_owned(),
        // No kube-proxy runs beside the API server, so it finds the pods of aggregated APIs by itself.
        "--enable-aggregator-routing=true".to_owned(),
        "--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-cluster-ip-range={}", network.services()),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        file("client-ca-file", "ca.crt"),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        file("kubelet-client-certificate", "apiserver-kubelet-client.crt"),
        file("kubelet-client-key", "apiserver-kubelet-client.key"),
        file("proxy-client-cert-file", "front-proxy-client.crt"),
        file("proxy-client-key-file", "front-proxy-client.key"),
        file("requestheader-client-ca-file", "front-proxy-ca.crt"),
        file("service-account-key-file", "sa.pub"),
        file("service-account-signing-key-file", "sa.key"),
    ];
    arguments.extend(options.api_server_flags.iter().cloned());
    arguments
}

fn controllers(network: Network, files: &Files, options: &Options) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", files.folder.join(name).display());
    let mut arguments = vec![
        "--controllers=*,bootstrap-signer-controller,token-cleaner-controller".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--allocate-node-cidrs=true".to_owned(),
        format!("--cluster-cidr={}", network.pods()),
        format!("--service-cluster-ip-range={}", network.services()),
        file("kubeconfig", "controllers.kubeconfig"),
        file("authentication-kubeconfig", "controllers.kubeconfig"),
        file("authorization-kubeconfig", "controllers.kubeconfig"),
        file("client-ca-file", "ca.crt"),
        file("requestheader-client-ca-file", "front-proxy-ca.crt"),
        file("cluster-signing-cert-file", "ca.crt"),
        file("cluster-signing-key-file", "ca.key"),
        file("root-ca-file", "ca.crt"),
        file("service-account-private-key-file", "sa.key"),
    ];
    arguments.extend(options.controller_flags.iter().cloned());
    arguments
}

fn scheduler(files: &Files) -> Vec<String> {
    let file = |flag: &str| format!("--{flag}={}", files.folder.join("scheduler.kubeconfig").display());
    let mut arguments = vec!["--leader-elect=false".to_owned(), "--bind-address=127.0.0.1".to_owned()];
    arguments.extend(["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"].map(file));
    arguments
}

/// Waits for a predicate; the end of a service or the deadline is an error that shows what was said last.
fn wait(
    machine: &Machine,
    services: &[&str],
    what: &str,
    mut predicate: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        let last = predicate();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if let Some(ended) = services.iter().find(|service| machine.pid_of(service).is_none()) {
            bail!("{ended} has ended:\n{}", machine.last_words(ended, 20));
        }
        if start.elapsed() > LIMIT {
            let words = machine.last_words("kube-apiserver", 20);
            bail!("{what}: not within {LIMIT:?} ({last:?})\n{words}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A summary for `cluster status`.
pub(super) fn status(api: &Api) -> Result<String> {
    let version = api.get("/version")?;
    let nodes = api.get("/api/v1/nodes")?;
    let nodes = nodes["items"].as_array().map_or(0, Vec::len);
    let ready = api.request("GET", "/readyz", None)?.code == 200;
    Ok(json!({"version": version["gitVersion"], "ready": ready, "nodes": nodes}).to_string())
}
