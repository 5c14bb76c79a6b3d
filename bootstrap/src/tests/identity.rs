//! Credentials of a running node: renewed, reloaded, served.

use tokio::sync::watch;

use super::*;

const PODS: &str = "/api/v1/pods";

#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Pod(Value);

impl Object for Pod {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "pods", "Pod");
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "web"}})
}

fn names(names: &[&str]) -> Vec<SubjectName> {
    names.iter().map(|name| SubjectName::parse(name)).collect()
}

fn config(
    site: &Site,
    source: Source,
    serving: Serving,
) -> (watch::Sender<Vec<SubjectName>>, IdentityConfig) {
    let (sender, addresses) = watch::channel(names(&["192.0.2.1", "edge-1"]));
    let join = JoinConfig { source, ..site.config() };
    (sender, IdentityConfig { join, serving, addresses, client_ca_file: None })
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("within a minute")
}

#[tokio::test]
async fn the_client_certificate_is_renewed_under_a_watch() {
    let site = Site::new().await;
    site.set_signer(Signer::Signs(-1, 7));
    let (_sender, start) = config(&site, site.config().source, Serving::SelfSigned);
    let identity = Identity::start(start).await.unwrap();
    let cluster = identity.cluster();
    site.api.put(PODS, pod("a"));
    let mut pods = std::pin::pin!(cluster.watch::<Pod>(Scope::all()));
    while !matches!(within(pods.next()).await, Some(Change::Ready)) {}

    let mut client = identity.client_certificate();
    let mut before = client.borrow_and_update().clone().unwrap();
    for round in 0..2 {
        within(client.changed()).await.unwrap();
        let after = client.borrow_and_update().clone().unwrap();
        assert_ne!(after.public_key, before.public_key);
        // Not before 70 % of its life.
        let life = SystemTime::now().duration_since(before.not_before).unwrap();
        assert!(life >= before.lifetime().mul_f64(0.7), "{life:?}");
        before = after;
        let name = format!("after-{round}");
        site.api.put(PODS, pod(&name));
        match within(pods.next()).await {
            Some(Change::Applied(Pod(pod))) => assert_eq!(pod["metadata"]["name"], name.as_str()),
            _ => panic!("the watch began anew"),
        }
        let _: Pod = cluster.get(Some("web"), "a").await.unwrap();
        let carried = site.api.seen().pop().unwrap().certificate.unwrap();
        assert_eq!(Certificate::parse(&carried).unwrap().public_key, before.public_key);
    }
    assert!(!site.path("pki/kubelet-client.pending").exists());
}

#[tokio::test]
async fn a_token_is_read_when_a_join_needs_it() {
    let site = Site::new().await;
    let path = site.path("token");
    let token = TokenSource::File(path.clone());
    let source = Source::Token { token, ca_hashes: vec![site.authority.pin()] };
    let (_sender, start) = config(&site, source, Serving::SelfSigned);
    let error = Identity::start(start.clone()).await.err().unwrap();
    assert!(told(&error).contains("/token: No such file"), "{error:?}");
    std::fs::write(&path, "abcdef").unwrap();
    let error = Identity::start(start.clone()).await.err().unwrap();
    assert!(matches!(error, JoinError::Token { .. }), "{error:?}");
    std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
    Identity::start(start.clone()).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    Identity::start(start).await.unwrap();
}

#[tokio::test]
async fn a_file_of_clients_authorities_is_followed() {
    let site = Site::new().await;
    let (path, own, other) = (site.path("clients.crt"), Authority::new(), Authority::new());
    let (_sender, mut start) = config(&site, site.config().source, Serving::SelfSigned);
    start.client_ca_file = Some(path.clone());
    std::fs::write(&path, "nothing").unwrap();
    let error = Identity::start(start.clone()).await.err().unwrap();
    assert!(error.to_string().contains("clients.crt"), "{error}");
    std::fs::write(&path, own.pem()).unwrap();
    let identity = Identity::start(start).await.unwrap();
    let mut authorities = identity.client_authorities();
    assert_eq!(**authorities.borrow_and_update(), own.pem().into_bytes());
    std::fs::write(&path, other.pem()).unwrap();
    let changed = authorities.wait_for(|pem| **pem == other.pem().into_bytes());
    within(changed).await.unwrap();
}

#[tokio::test]
async fn servers_that_are_given_come_before_those_that_are_held() {
    let site = Site::new().await;
    join(&site.config()).await.unwrap();
    let other = FakeApi::start_tls(site.authority.server()).await;
    let gone: coracle_cluster::Server = "https://127.0.0.1:1".parse().unwrap();
    for (given, answers) in [(other.server(), &other), (gone, &*site.api)] {
        answers.put(PODS, pod("a"));
        let (_sender, mut start) = config(&site, Source::Held, Serving::SelfSigned);
        start.join.servers = vec![given.clone()];
        let identity = Identity::start(start).await.unwrap();
        assert_eq!(identity.access().borrow().servers, [given, site.api.server()]);
        let before = answers.seen().len();
        let _: Pod = within(identity.cluster().get(Some("web"), "a")).await.unwrap();
        assert!(answers.seen().len() > before);
    }
}

#[tokio::test]
async fn the_serving_certificate_is_self_signed_until_approved_and_follows_addresses() {
    let site = Site::new().await;
    join(&site.config()).await.unwrap();
    site.set_signer(Signer::Ignores);
    let (sender, start) = config(&site, Source::Held, Serving::Request);
    let identity = Identity::start(start.clone()).await.unwrap();
    let mut current = identity.serving().watch();
    let read = |key: &rustls::sign::CertifiedKey| Certificate::parse(&key.cert[0]).unwrap();
    let first = read(&current.borrow_and_update());
    assert_eq!((first.common_name.as_str(), first.names), ("edge-1", names(&["edge-1", "192.0.2.1"])));

    let serving = |csr: &Value| csr["spec"]["signerName"] == "kubernetes.io/kubelet-serving";
    site.set_signer(Signer::Signs(-300, 86400));
    let signed = within(async {
        loop {
            current.changed().await.unwrap();
            let now = read(&current.borrow_and_update());
            if now.common_name == "system:node:edge-1" {
                return now;
            }
        }
    })
    .await;
    assert_eq!(signed.names, names(&["edge-1", "192.0.2.1"]));
    let csr = site.api.objects(CSRS).into_iter().find(serving).unwrap();
    assert_eq!(csr["spec"]["usages"], json!(["digital signature", "server auth"]));

    sender.send_replace(names(&["192.0.2.9", "edge-1"]));
    within(async {
        loop {
            current.changed().await.unwrap();
            let now = read(&current.borrow_and_update());
            if now.common_name == "system:node:edge-1" && now.names == names(&["edge-1", "192.0.2.9"]) {
                return;
            }
        }
    })
    .await;
    // A restart finds it.
    drop(identity);
    let requests = site.api.objects(CSRS).len();
    let identity = Identity::start(start).await.unwrap();
    assert_eq!(read(&identity.serving().watch().borrow()).common_name, "system:node:edge-1");
    assert_eq!(site.api.objects(CSRS).len(), requests);
}

#[tokio::test]
async fn a_provided_serving_certificate_is_followed() {
    let site = Site::new().await;
    join(&site.config()).await.unwrap();
    let path = site.path("serving.pem");
    let end = SystemTime::now() + Duration::from_secs(86400);
    std::fs::write(&path, site.authority.client("first", end)).unwrap();
    let serving = Serving::Files { certificate: path.clone(), key: path.clone() };
    let (_sender, start) = config(&site, Source::Held, serving);
    let identity = Identity::start(start).await.unwrap();
    let mut current = identity.serving().watch();
    let name = |key: &rustls::sign::CertifiedKey| Certificate::parse(&key.cert[0]).unwrap().common_name;
    assert_eq!(name(&current.borrow_and_update()), "first");
    // What cannot be used changes nothing.
    std::fs::write(&path, "half").unwrap();
    std::fs::write(&path, site.authority.client("second", end)).unwrap();
    within(current.wait_for(|key| name(key) == "second")).await.unwrap();
}

#[tokio::test]
async fn files_of_credentials_are_followed() {
    let site = Site::new().await;
    let (ca, pair, path) = (site.path("ca.crt"), site.path("client.pem"), site.path("node.conf"));
    let end = SystemTime::now() + Duration::from_secs(86400);
    std::fs::write(&ca, site.authority.pem()).unwrap();
    std::fs::write(&pair, site.authority.client("gateway", end)).unwrap();
    let text = format!(
        "clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: ca.crt}}}}]\n\
         users: [{{name: u, user: {{client-certificate: client.pem, client-key: client.pem}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
        site.api.server()
    );
    std::fs::write(&path, text).unwrap();
    let (_sender, mut start) = config(&site, Source::Kubeconfig(path), Serving::SelfSigned);
    start.join.servers.clear();
    let identity = Identity::start(start).await.unwrap();
    let _ = identity.cluster().list::<Pod>(&Scope::all()).await.unwrap();

    let mut authorities = identity.client_authorities();
    let both = format!("{}{}", site.authority.pem(), Authority::new().pem());
    std::fs::write(site.path("draft"), &both).unwrap();
    std::fs::rename(site.path("draft"), &ca).unwrap();
    within(authorities.wait_for(|pem| pem.as_slice() == both.as_bytes())).await.unwrap();

    let before = identity.client_certificate().borrow().clone().unwrap();
    // What cannot be used changes nothing.
    std::fs::write(&pair, "half").unwrap();
    std::fs::write(&pair, site.authority.client("gateway", end)).unwrap();
    let mut client = identity.client_certificate();
    within(client.wait_for(|now| now.as_ref().is_some_and(|now| now.public_key != before.public_key)))
        .await
        .unwrap();
    let _ = identity.cluster().list::<Pod>(&Scope::all()).await.unwrap();
    assert!(site.api.objects(CSRS).is_empty());
}

#[tokio::test]
async fn a_node_kubeconfig_is_renewed_into_the_own_folder() {
    let site = Site::new().await;
    let path = site.path("kubelet.conf");
    // Ninety percent of its life are over.
    let end = SystemTime::now() + Duration::from_secs(600);
    let pair = STANDARD.encode(site.authority.client("system:node:edge-1", end));
    let text = format!(
        "clusters: [{{name: c, cluster: {{server: '{}', certificate-authority-data: {}}}}}]\n\
         users: [{{name: u, user: {{client-certificate-data: {pair}, client-key-data: {pair}}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
        site.api.server(),
        STANDARD.encode(site.authority.pem())
    );
    std::fs::write(&path, text).unwrap();
    let (_sender, start) = config(&site, Source::Kubeconfig(path), Serving::SelfSigned);
    let identity = Identity::start(start.clone()).await.unwrap();
    let mut client = identity.client_certificate();
    within(client.wait_for(|now| now.as_ref().is_some_and(|now| now.not_after > end))).await.unwrap();
    drop(identity);
    let identity = Identity::start(start).await.unwrap();
    assert!(identity.client_certificate().borrow().as_ref().unwrap().not_after > end);
}

#[tokio::test]
async fn a_node_starts_with_the_credentials_it_holds_whatever_the_clock_says() {
    let site = Site::new().await;
    let (_sender, start) = config(&site, Source::Held, Serving::SelfSigned);
    let error = Identity::start(start.clone()).await.err().unwrap();
    assert!(matches!(error, JoinError::NotJoined { .. }), "{error:?}");
    join(&site.config()).await.unwrap();
    let mut late = start.clone();
    late.join.clock = WallClock::new(|| SystemTime::now() + Duration::from_secs(10 * 86400));
    Identity::start(late).await.unwrap();
    // In 1970 too: its pods are to run.
    let mut early = start.clone();
    early.join.clock = WallClock::new(|| SystemTime::UNIX_EPOCH);
    let identity = Identity::start(early).await.unwrap();
    let error = identity.cluster().list::<Pod>(&Scope::all()).await.err().unwrap();
    assert!(told(&error).contains("set the clock"), "{}", told(&error));
}

#[tokio::test]
async fn a_node_whose_certificate_has_ended_joins_again_with_a_token_once_the_cluster_answers() {
    use coracle_cluster::testing::{Fault, Rule};
    let site = Site::new().await;
    join(&site.config()).await.unwrap();
    let end = SystemTime::now() - Duration::from_secs(60);
    std::fs::write(site.path("pki/kubelet-client.pem"), site.authority.client("system:node:edge-1", end))
        .unwrap();
    site.api.add_rule(Rule::all(Fault::Close));
    let (_sender, start) = config(&site, site.config().source, Serving::SelfSigned);
    let identity = within(Identity::start(start)).await.unwrap();
    let mut client = identity.client_certificate();
    assert_eq!(client.borrow().as_ref().unwrap().not_after, whole_seconds(end));
    // As the cluster knows it from a moment ago.
    let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    site.api.put("/api/v1/nodes", json!({"metadata": {"name": "edge-1"}, "status": ready}));
    site.api.clear_rules();
    within(client.wait_for(|now| now.as_ref().is_some_and(|now| now.not_after > SystemTime::now())))
        .await
        .unwrap();
    let _ = identity.cluster().list::<Pod>(&Scope::all()).await.unwrap();
}

/// As certificates write it.
fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[tokio::test]
async fn a_node_starts_without_its_api_server() {
    let site = Site::new().await;
    join(&site.config()).await.unwrap();
    site.api.add_rule(coracle_cluster::testing::Rule::all(coracle_cluster::testing::Fault::Stall));
    let (_sender, start) = config(&site, Source::Held, Serving::Request);
    let _identity =
        tokio::time::timeout(Duration::from_secs(20), Identity::start(start)).await.unwrap().unwrap();
}
