//! What pods refer to, against a scripted API server.

use coracle_cluster::testing::FakeApi;
use http::Method;
use serde_json::{Value, json};

use super::*;

const MAPS: &str = "/api/v1/configmaps";

fn pod(name: &str, spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "d", "uid": format!("uid-{name}"),
            "annotations": {"kubernetes.io/config.source": "api"}},
        "spec": spec
    }))
    .unwrap()
}

fn mounting(map: &str) -> Value {
    json!({"enableServiceLinks": false, "volumes": [{"name": "v", "configMap": {"name": map}}]})
}

fn map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "d"}, "data": {"k": value}})
}

async fn served() -> (FakeApi, ApiObjects) {
    let api = FakeApi::start().await;
    let kubernetes = json!({"metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}});
    api.put("/api/v1/services", kubernetes);
    let objects = ApiObjects::new(api.cluster(), Clock::system());
    (api, objects)
}

async fn until(objects: &ApiObjects, holds: impl Fn() -> bool) {
    let mut heard = objects.0.heard.subscribe();
    let wait = heard.wait_for(|_| holds());
    assert!(tokio::time::timeout(Duration::from_secs(30), wait).await.is_ok(), "{objects:?}");
}

fn value(objects: &ApiObjects, name: &str) -> Option<String> {
    objects.config_map("d", name).map(|map| map.data["k"].clone())
}

#[tokio::test]
async fn an_object_is_followed_while_a_pod_refers_to_it() {
    let (api, objects) = served().await;
    let (one, two) = (pod("one", mounting("m")), pod("two", mounting("m")));
    objects.settle(&one).await;
    assert_eq!(value(&objects, "m"), None);
    assert_eq!(objects.why_unknown("configmap", "d", "m"), None, "it is known not to be there");
    let (before, count) = (objects.revision(&one), *objects.changes().borrow());
    api.put(MAPS, map("m", "1"));
    until(&objects, || value(&objects, "m").as_deref() == Some("1")).await;
    assert!(objects.revision(&one) > before && *objects.changes().borrow() > count);
    objects.settle(&two).await;
    let seen = api.seen();
    let watches = seen.iter().filter(|s| s.path.contains("configmaps") && s.query.contains("watch=true"));
    assert_eq!(watches.count(), 1, "pods share a watch");
    assert!(
        api.seen()
            .iter()
            .any(|s| s.query.contains("metadata.name%3Dm") || s.query.contains("metadata.name=m"))
    );
    objects.release("uid-one");
    assert_eq!(value(&objects, "m").as_deref(), Some("1"));
    objects.release("uid-two");
    assert_eq!(objects.followed(), 0);
    assert_eq!(value(&objects, "m"), None);
    let why = objects.why_unknown("configmap", "d", "m").unwrap();
    assert_eq!(why, "failed to sync configmap cache: timed out waiting for the condition");
}

#[tokio::test]
async fn a_secret_is_known_by_its_uid() {
    let (api, objects) = served().await;
    let secret = json!({"metadata": {"name": "s", "namespace": "d", "uid": "u-s"}, "type": "Opaque"});
    api.put("/api/v1/secrets", secret);
    objects.settle(&pod("one", json!({"imagePullSecrets": [{"name": "s"}]}))).await;
    until(&objects, || objects.secret("d", "s").is_some()).await;
    assert_eq!(&*objects.secret("d", "s").unwrap().metadata.uid, "u-s");
}

#[tokio::test]
async fn a_server_that_does_not_know_of_the_pod_yet_is_asked_again_soon() {
    let (api, objects) = served().await;
    api.put(MAPS, map("m", "1"));
    let asked = std::sync::atomic::AtomicUsize::new(0);
    api.respond(Method::GET, "/api/v1/namespaces/d/configmaps/m", move |_| {
        match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 | 1 => (
                403,
                json!({"kind": "Status", "code": 403, "reason": "Forbidden", "status": "Failure", "message":
                    "configmaps \"m\" is forbidden: no relationship found between node 'n' and this object"}),
            ),
            _ => (200, map("m", "2")),
        }
    });
    objects.settle(&pod("one", mounting("m"))).await;
    assert_eq!(value(&objects, "m").as_deref(), Some("2"), "the read's word, before that of the list");
}

#[tokio::test]
async fn an_immutable_object_is_read_once() {
    let (api, objects) = served().await;
    let mut fixed = map("m", "1");
    fixed["immutable"] = json!(true);
    api.put(MAPS, fixed);
    let pod = pod("one", mounting("m"));
    objects.settle(&pod).await;
    assert_eq!(value(&objects, "m").as_deref(), Some("1"));
    api.put(MAPS, map("m", "2"));
    // Another object that comes later shows that the time for news has passed.
    let other = self::pod("two", mounting("n"));
    api.put(MAPS, map("n", "1"));
    objects.settle(&other).await;
    assert_eq!(value(&objects, "n").as_deref(), Some("1"));
    assert_eq!(value(&objects, "m").as_deref(), Some("1"));
}

#[tokio::test]
async fn services_of_the_namespace_and_the_api_server_s_are_told() {
    let (api, objects) = served().await;
    let service = |name: &str, namespace: &str| {
        json!({"metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": "10.0.0.2", "ports": [{"port": 80}]}})
    };
    api.put("/api/v1/services", service("db", "d"));
    api.put("/api/v1/services", service("other", "elsewhere"));
    let names = |pod: &Pod| -> Option<Vec<String>> {
        Some(objects.services(pod)?.into_iter().map(|service| service.name).collect())
    };
    let linked = pod("one", json!({"enableServiceLinks": true}));
    assert_eq!(names(&linked), None, "not known before it was asked for");
    objects.settle(&linked).await;
    let mut found = names(&linked).unwrap();
    found.sort_unstable();
    assert_eq!(found, ["db", "kubernetes"]);
    let alone = pod("two", json!({"enableServiceLinks": false}));
    objects.settle(&alone).await;
    assert_eq!(names(&alone).unwrap(), ["kubernetes"]);
}

#[tokio::test]
async fn a_token_is_bound_to_its_pod_and_why_there_is_none_is_told() {
    let (api, objects) = served().await;
    let path = "/api/v1/namespaces/d/serviceaccounts/robot/token";
    api.respond(Method::POST, path, |seen| {
        let mut answer = seen.body.clone();
        answer["status"] = json!({"token": format!("for {}", seen.body["spec"]["boundObjectRef"]["uid"])});
        (201, answer)
    });
    let spec = |account: &str| {
        json!({"serviceAccountName": account, "enableServiceLinks": false, "volumes": [{"name": "t", "projected":
            {"sources": [{"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 600}}]}}]})
    };
    let source = ServiceAccountTokenProjection {
        audience: "vault".into(),
        expiration_seconds: Some(600),
        path: "token".into(),
    };
    let robot = pod("one", spec("robot"));
    objects.settle(&robot).await;
    assert_eq!(&*objects.token(&robot, &source).unwrap().unwrap(), "for \"uid-one\"");
    let asked: Vec<Value> = api.seen().into_iter().filter(|s| s.path == path).map(|s| s.body).collect();
    assert_eq!(asked[0]["spec"]["audiences"], json!(["vault"]));
    assert_eq!(asked[0]["spec"]["expirationSeconds"], 600);
    assert_eq!(asked[0]["spec"]["boundObjectRef"]["name"], "one");
    let renewal = objects.renewal("uid-one").unwrap();
    let now = Clock::system().now().boot;
    assert!(renewal > now + Duration::from_secs(400) && renewal <= now + Duration::from_secs(480));
    objects.settle(&robot).await;
    assert_eq!(
        api.seen().iter().filter(|s| s.path == path).count(),
        1,
        "one that is not due is not asked for"
    );

    api.respond(Method::POST, "/api/v1/namespaces/d/serviceaccounts/nobody/token", |_| {
        (
            404,
            json!({"kind": "Status", "code": 404, "reason": "NotFound", "status": "Failure",
            "message": "serviceaccounts \"nobody\" not found"}),
        )
    });
    let nobody = pod("two", spec("nobody"));
    objects.settle(&nobody).await;
    let why = objects.token(&nobody, &source).unwrap().unwrap_err();
    assert_eq!(why, "failed to fetch token: serviceaccounts \"nobody\" not found");
    objects.release("uid-one");
    assert_eq!(objects.renewal("uid-one"), None);
}

#[tokio::test]
async fn a_runtime_class_names_the_handler_also_while_the_api_server_is_away() {
    let (api, objects) = served().await;
    api.put("/apis/node.k8s.io/v1/runtimeclasses", json!({"metadata": {"name": "small"}, "handler": "crun"}));
    let none = pod("none", json!({}));
    let small = pod("small", json!({"runtimeClassName": "small"}));
    let absent = pod("absent", json!({"runtimeClassName": "absent"}));
    assert_eq!(objects.runtime_handler(&none).await, Ok(String::new()));
    assert_eq!(objects.runtime_handler(&small).await.as_deref(), Ok("crun"));
    let refused = objects.runtime_handler(&absent).await;
    assert_eq!(refused, Err("runtimeclass.node.k8s.io \"absent\" not found".into()));
    drop(api);
    assert_eq!(objects.runtime_handler(&small).await.as_deref(), Ok("crun"));
}
