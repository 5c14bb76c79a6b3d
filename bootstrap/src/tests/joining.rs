//! From tokens and kubeconfigs to credentials, and what is told when it goes wrong.

use std::os::unix::fs::PermissionsExt as _;

use coracle_cluster::testing::{Fault, Rule};

use super::*;

#[tokio::test]
async fn a_token_becomes_credentials() {
    let site = Site::new().await;
    join(&site.config()).await.unwrap();

    let csrs = site.api.objects(CSRS);
    assert_eq!(csrs.len(), 1);
    let (name, spec) = (csrs[0]["metadata"]["name"].as_str().unwrap(), &csrs[0]["spec"]);
    assert!(name.starts_with("node-csr-"), "{name}");
    assert_eq!(spec["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
    assert_eq!(spec["usages"], json!(["digital signature", "client auth"]));

    let mut held = Vec::new();
    for entry in std::fs::read_dir(site.path("pki")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        let text = std::fs::read_to_string(entry.path()).unwrap();
        assert!(!text.contains("0123456789abcdef"), "{entry:?} holds the token");
        held.push(entry.file_name().into_string().unwrap());
    }
    held.sort();
    assert_eq!(held, ["ca.crt", "kubeconfig", "kubelet-client.pem"]);

    // The first look is without credentials, the request with the token.
    let seen = site.api.seen();
    let requests: Vec<_> = seen.iter().filter(|seen| seen.path == CSRS && seen.method == "POST").collect();
    assert_eq!(requests[0].authorization.as_deref(), Some("Bearer abcdef.0123456789abcdef"));
    let looks: Vec<_> = seen.iter().filter(|seen| seen.path.ends_with("/configmaps/cluster-info")).collect();
    assert!(looks.len() == 2 && looks.iter().all(|look| look.authorization.is_none()));

    // What was written serves.
    let again = JoinConfig { source: Source::Held, servers: Vec::new(), ..site.config() };
    join(&again).await.unwrap();
    let last = site.api.seen().pop().unwrap();
    let certificate = Certificate::parse(&last.certificate.expect("a client certificate")).unwrap();
    assert_eq!(certificate.common_name, "system:node:edge-1");
    assert_eq!(last.authorization, None);
}

#[tokio::test]
async fn a_bootstrap_kubeconfig_becomes_credentials() {
    let site = Site::new().await;
    let (ca, path) = (site.path("given-ca.crt"), site.path("bootstrap.conf"));
    std::fs::write(&ca, site.authority.pem()).unwrap();
    let text = format!(
        "clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: given-ca.crt}}}}]\n\
         users: [{{name: u, user: {{token: {TOKEN}}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
        site.api.server()
    );
    std::fs::write(&path, text).unwrap();
    let config =
        JoinConfig { source: Source::BootstrapKubeconfig(path), servers: Vec::new(), ..site.config() };
    join(&config).await.unwrap();
    // The file that was named stays the one that is watched.
    let written = std::fs::read_to_string(site.path("pki/kubeconfig")).unwrap();
    assert!(written.contains("given-ca.crt") && !site.path("pki/ca.crt").exists(), "{written}");
    join(&JoinConfig { source: Source::Held, ..config }).await.unwrap();
}

#[tokio::test]
async fn who_trusts_anybody_to_join_trusts_anybody_afterwards() {
    let site = Site::new().await;
    let path = site.path("bootstrap.conf");
    let text = format!(
        "clusters: [{{name: c, cluster: {{server: '{}', insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: u, user: {{token: {TOKEN}}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
        site.api.server()
    );
    std::fs::write(&path, text).unwrap();
    let config =
        JoinConfig { source: Source::BootstrapKubeconfig(path), servers: Vec::new(), ..site.config() };
    join(&config).await.unwrap();
    let written = std::fs::read_to_string(site.path("pki/kubeconfig")).unwrap();
    assert!(written.contains("insecure-skip-tls-verify: true"), "{written}");
    assert!(!site.path("pki/ca.crt").exists());
    join(&JoinConfig { source: Source::Held, ..config }).await.unwrap();
}

#[tokio::test]
async fn a_restart_finds_the_request_it_made() {
    let site = Site::new().await;
    site.set_signer(Signer::Ignores);
    let mut config = site.config();
    config.approval = Duration::from_secs(1);
    let error = join(&config).await.unwrap_err();
    assert!(matches!(error, JoinError::NotApproved { .. }), "{error:?}");
    site.set_signer(Signer::Signs(-300, 86400));
    join(&site.config()).await.unwrap();
    assert_eq!(site.api.objects(CSRS).len(), 1);
}

#[tokio::test]
async fn a_certificate_issued_long_ago_is_asked_for_anew() {
    let site = Site::new().await;
    site.set_signer(Signer::Ignores);
    let mut config = site.config();
    config.approval = Duration::from_secs(1);
    join(&config).await.unwrap_err();
    site.set_signer(Signer::Signs(-7200, 3600));
    site.api.wait_for(CSRS, "", &name_of(&site), |csr| csr["status"].is_object()).await;
    site.set_signer(Signer::Signs(-300, 86400));
    join(&site.config()).await.unwrap();
    assert_eq!(site.api.objects(CSRS).len(), 2);
}

fn name_of(site: &Site) -> String {
    site.api.objects(CSRS)[0]["metadata"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_denied_request_is_told_and_the_next_try_makes_another() {
    let site = Site::new().await;
    site.set_signer(Signer::Denies);
    let error = join(&site.config()).await.unwrap_err();
    assert!(error.to_string().contains("was denied (Test: said so)"), "{error}");
    site.set_signer(Signer::Signs(-300, 86400));
    join(&site.config()).await.unwrap();
    assert_eq!(site.api.objects(CSRS).len(), 2);
}

#[tokio::test]
async fn a_token_that_is_unknown_or_wrong_is_told() {
    let site = Site::new().await;
    let with = |token: &str, pin: CaHash| {
        let source = Source::Token { token: token.parse().unwrap(), ca_hashes: vec![pin] };
        JoinConfig { source, ..site.config() }
    };
    let error = join(&with("zzzzzz.0123456789abcdef", site.authority.pin())).await.unwrap_err();
    assert!(matches!(error, JoinError::UnknownToken { .. }), "{error:?}");
    assert!(error.to_string().contains("kubeadm token create"), "{error}");
    let error = join(&with("abcdef.ffffffffffffffff", site.authority.pin())).await.unwrap_err();
    assert!(matches!(error, JoinError::Signature { .. }), "{error:?}");
    let error = join(&with(TOKEN, Authority::new().pin())).await.unwrap_err();
    assert!(
        matches!(&error, JoinError::Pin { found, .. } if *found == site.authority.pin().to_string()),
        "{error:?}"
    );
    let source = Source::Token { token: TOKEN.parse().unwrap(), ca_hashes: Vec::new() };
    let error = join(&JoinConfig { source, ..site.config() }).await.unwrap_err();
    assert!(matches!(error, JoinError::NoHash), "{error:?}");
    // Expired between the first look and the request.
    site.api
        .add_rule(Rule::all(Fault::Status(401, "Unauthorized", None)).path(CSRS).method(http::Method::POST));
    let error = join(&site.config()).await.unwrap_err();
    assert!(matches!(error, JoinError::Unauthorized(_)), "{error:?}");
    site.api.clear_rules();
    site.api.add_rule(Rule::all(Fault::Status(403, "Forbidden", None)).path(CSRS).method(http::Method::POST));
    let error = join(&site.config()).await.unwrap_err();
    assert!(matches!(error, JoinError::Forbidden(_)), "{error:?}");
}

#[tokio::test]
async fn what_is_no_api_server_is_told() {
    let site = Site::new().await;
    site.api.add_rule(Rule::all(Fault::Html).path("cluster-info"));
    let error = join(&site.config()).await.unwrap_err();
    assert!(matches!(error, JoinError::NotApiServer { .. }), "{error:?}");
    site.api.clear_rules();
    site.api.add_rule(Rule::all(Fault::Status(404, "NotFound", None)).path("cluster-info"));
    let error = join(&site.config()).await.unwrap_err();
    assert!(matches!(error, JoinError::NoClusterInfo { .. }), "{error:?}");
    site.api.clear_rules();
    site.api.add_rule(Rule::all(Fault::Status(403, "Forbidden", None)).path("cluster-info"));
    let error = join(&site.config()).await.unwrap_err();
    assert!(matches!(error, JoinError::Anonymous { .. }), "{error:?}");

    let plain = FakeApi::start().await;
    let mut config = site.config();
    config.servers = vec![format!("https://{}", plain.address()).parse().unwrap()];
    let error = told(&join(&config).await.unwrap_err());
    assert!(error.contains("does not speak TLS"), "{error}");
    config.servers = vec!["https://127.0.0.1:1".parse().unwrap()];
    let error = told(&join(&config).await.unwrap_err());
    assert!(error.contains("127.0.0.1:1") && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_name_that_is_taken_is_told() {
    let site = Site::new().await;
    let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    site.api.put("/api/v1/nodes", json!({"metadata": {"name": "edge-1"}, "status": ready}));
    let error = join(&site.config()).await.unwrap_err();
    assert!(matches!(error, JoinError::NameTaken { .. }), "{error:?}");
    let gone = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
    site.api.put("/api/v1/nodes", json!({"metadata": {"name": "edge-1"}, "status": gone}));
    join(&site.config()).await.unwrap();
}

#[tokio::test]
async fn a_clock_that_is_off_is_told() {
    let site = Site::new().await;
    let mut config = site.config();
    config.clock = WallClock::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(180));
    let error = told(&join(&config).await.unwrap_err());
    assert!(
        error.contains("the clock says 1970-01-01T00:03:00Z") && error.contains("set the clock"),
        "{error}"
    );
    config.clock = WallClock::new(|| SystemTime::now() - Duration::from_secs(3600));
    let error = join(&config).await.unwrap_err();
    assert!(matches!(error, JoinError::Clock { .. }), "{error:?}");
    config.clock = WallClock::new(|| SystemTime::now() + Duration::from_secs(3600));
    let error = join(&config).await.unwrap_err();
    assert!(matches!(error, JoinError::Clock { .. }), "{error:?}");
    // A clock within bounds, and a certificate that begins later still.
    site.set_signer(Signer::Signs(60, 3600));
    let error = join(&site.config()).await.unwrap_err();
    assert!(error.to_string().contains("before the new certificate's notBefore"), "{error}");
}
