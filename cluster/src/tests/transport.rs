//! Connections: TLS, HTTP/2, several servers, changed credentials, stalls.

use futures_util::future::join_all;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::Bearer;
use crate::testing::{Fault, Rule};

/// A server's TLS and the trust in it.
fn tls(protocols: &[&[u8]]) -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&key).unwrap();
    let der = CertificateDer::from(certificate.der().to_vec());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    server.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = Access::ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    (Arc::new(server), Arc::new(client))
}

async fn http2() -> (FakeApi, Access) {
    let (server, client) = tls(&[b"h2"]);
    let api = FakeApi::start_tls(server).await;
    let access = Access { tls: Some(client), ..api.access() };
    (api, access)
}

#[tokio::test]
async fn one_http2_connection_carries_many_watches_and_a_second_the_rest() {
    let (api, access) = http2().await;
    api.put(PODS, pod("a"));
    let cluster = fixed(access);
    let mut watches: Vec<Pods> = (0..60).map(|_| Pods::watch(&cluster)).collect();
    join_all(watches.iter_mut().map(|pods| pods.until("Ready"))).await;
    assert_eq!(api.connections(), 1);
    watches.extend((0..60).map(|_| Pods::watch(&cluster)));
    join_all(watches[60..].iter_mut().map(|pods| pods.until("Ready"))).await;
    assert_eq!(api.connections(), 2);
    api.put(PODS, pod("b"));
    join_all(watches.iter_mut().map(|pods| pods.expect(&["Applied b"]))).await;
    cluster.get::<Pod>(Some("web"), "a").await.unwrap();
    assert_eq!(api.connections(), 2);
}

#[tokio::test]
async fn http1_over_tls_serves_where_http2_is_not_offered() {
    let (server, client) = tls(&[]);
    let api = FakeApi::start_tls(server).await;
    api.put(PODS, pod("a"));
    let cluster = fixed(Access { tls: Some(client), ..api.access() });
    let mut pods = Pods::watch(&cluster);
    pods.until("Ready").await;
    for _ in 0..5 {
        cluster.get::<Pod>(Some("web"), "a").await.unwrap();
    }
    assert_eq!(api.connections(), 2);
}

#[tokio::test]
async fn a_stalled_http2_connection_is_replaced_under_watches_and_requests() {
    let (api, access) = http2().await;
    api.put(PODS, pod("a"));
    let cluster = fixed(access);
    let mut pods = Pods::watch(&cluster);
    pods.until("Ready").await;
    api.freeze();
    api.put(PODS, pod("b"));
    pods.expect(&["Applied b"]).await;
    cluster.get::<Pod>(Some("web"), "b").await.unwrap();
    assert_eq!(api.connections(), 2);
}

#[tokio::test]
async fn a_request_without_an_answer_takes_its_connection_with_it() {
    let (api, access) = http2().await;
    api.put(PODS, pod("a"));
    let patience =
        Patience { read_idle: Duration::from_secs(3600), request: Duration::from_secs(1), ..short() };
    let cluster = Cluster::patient(watch::Sender::new(Arc::new(access)).subscribe(), patience);
    cluster.get::<Pod>(Some("web"), "a").await.unwrap();
    api.freeze();
    let error = cluster.get::<Pod>(Some("web"), "a").await.unwrap_err();
    assert!(matches!(error, crate::ApiError::Deadline { .. }), "{error:?}");
    cluster.get::<Pod>(Some("web"), "a").await.unwrap();
    assert_eq!(api.connections(), 2);
}

#[tokio::test]
async fn the_next_server_is_tried_when_one_fails() {
    let mut first = FakeApi::start().await;
    let second = FakeApi::start().await;
    for api in [&first, &second] {
        api.put(PODS, pod("a"));
    }
    let access = Access { servers: vec![first.server(), second.server()], tls: None, bearer: None };
    let cluster = fixed(access);
    let mut pods = Pods::watch(&cluster);
    pods.until("Ready").await;
    assert_eq!((first.connections(), second.connections()), (1, 0));
    first.stop().await;
    second.put(PODS, pod("b"));
    pods.expect(&["Applied b"]).await;
    assert!(cluster.connection().borrow().is_up());
    // One that answers but cannot serve is left too.
    first.restart().await;
    first.put(PODS, pod("c"));
    second.add_rule(Rule::all(Fault::Status(503, "ServiceUnavailable", None)));
    let error = cluster.get::<Pod>(Some("web"), "c").await.unwrap_err();
    assert_eq!(error.code(), Some(503));
    cluster.get::<Pod>(Some("web"), "c").await.unwrap();
}

#[tokio::test]
async fn new_credentials_are_carried_by_new_connections_and_watches_go_on() {
    let api = FakeApi::start().await;
    api.put(PODS, pod("a"));
    let with = |token: &str| Arc::new(Access { bearer: Bearer::new(token), ..api.access() });
    let sender = watch::Sender::new(with("one"));
    let cluster = Cluster::patient(sender.subscribe(), short());
    let mut pods = Pods::watch(&cluster);
    pods.until("Ready").await;
    sender.send_replace(with("two"));
    api.put(PODS, pod("b"));
    pods.expect(&["Applied b"]).await;
    api.put(PODS, pod("c"));
    pods.expect(&["Applied c"]).await;
    cluster.get::<Pod>(Some("web"), "a").await.unwrap();
    let last = api.seen().pop().unwrap();
    assert_eq!(last.authorization.as_deref(), Some("Bearer two"));
    let watched: Vec<_> = api.seen().into_iter().filter(|seen| seen.query.contains("watch=true")).collect();
    assert_eq!(watched[0].authorization.as_deref(), Some("Bearer one"));
    assert_eq!(watched.last().unwrap().authorization.as_deref(), Some("Bearer two"));
    assert_ne!(watched[0].connection, watched.last().unwrap().connection);
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_is_refused() {
    let (api, access) = http2().await;
    let (_, stranger) = tls(&[b"h2"]);
    let cluster = fixed(Access { tls: Some(stranger), ..access });
    let error = cluster.get::<Pod>(Some("web"), "a").await.unwrap_err();
    let text = crate::pool::chain(&error);
    assert!(text.contains("certificate"), "{text}");
    assert!(api.seen().is_empty());
}
