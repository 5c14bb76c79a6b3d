//! Single requests and their errors.

use std::time::Instant;

use super::*;
use crate::testing::{Fault, Rule};
use crate::{ApiError, DeleteOptions, Patch};

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() {
    let api = FakeApi::start().await;
    let cluster = client(&api);
    let made: Pod = cluster.create(Some("web"), None, &pod("a")).await.unwrap();
    assert_eq!((made.metadata.name.as_str(), made.spec.node_name.as_deref()), ("a", Some("here")));
    assert_eq!(cluster.get::<Pod>(Some("web"), "a").await.unwrap(), made);

    let status = Patch::Strategic(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
    let _: Pod = cluster.patch(Some("web"), "a", Some("status"), &status).await.unwrap();
    let labels = Patch::Merge(json!({"metadata": {"labels": {"app": "web"}}, "status": null}));
    let _: Pod = cluster.patch(Some("web"), "a", None, &labels).await.unwrap();
    let step = Patch::Json(json!([{"op": "add", "path": "/metadata/labels/tier", "value": "front"}]));
    let _: Pod = cluster.patch(Some("web"), "a", None, &step).await.unwrap();
    let again = Patch::Merge(json!({"metadata": {"labels": {"app": "web"}}}));
    let version = cluster.patch_unread::<Pod>(Some("web"), "a", &again).await.unwrap();
    let held = api.object(PODS, "web", "a").unwrap();
    assert_eq!(held["metadata"]["resourceVersion"], version);
    assert_eq!(held["metadata"]["labels"], json!({"app": "web", "tier": "front"}));
    assert_eq!(held["status"]["conditions"][0]["status"], "True");

    let mut whole = held.clone();
    whole["metadata"]["labels"] = json!({});
    let _: Pod = cluster.replace(Some("web"), "a", None, &whole).await.unwrap();
    let error = cluster.replace::<Pod>(Some("web"), "a", None, &whole).await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    let error = cluster.create::<Pod>(Some("web"), None, &pod("a")).await.unwrap_err();
    assert!(error.is_already_exists() && !error.is_conflict(), "{error}");

    let other = DeleteOptions { uid: Some("another".into()), grace_period_seconds: Some(0) };
    assert!(cluster.delete::<Pod>(Some("web"), "a", &other).await.unwrap_err().is_conflict());
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    cluster.delete::<Pod>(Some("web"), "a", &now).await.unwrap();
    let error = cluster.get::<Pod>(Some("web"), "a").await.unwrap_err();
    assert!(error.is_not_found() && error.reason() == "NotFound", "{error}");
    assert_eq!(error.to_string(), "get pods web/a: pods \"a\" not found (404)");
    assert_eq!(api.connections(), 1);
}

#[tokio::test]
async fn a_list_comes_in_pages_without_what_cannot_be_read() {
    let api = FakeApi::start().await;
    for number in 0..600 {
        api.put(PODS, pod(&format!("p{number:03}")));
    }
    let mut wrong = pod("wrong");
    wrong["spec"]["nodeName"] = 7.into();
    api.put(PODS, wrong);
    let pods = client(&api).list::<Pod>(&Scope::namespace("web")).await.unwrap();
    assert_eq!(pods.len(), 600);
    assert_eq!(api.seen().len(), 3);
    assert!(client(&api).list::<Pod>(&Scope::namespace("empty")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_pause_the_server_asks_for_is_obeyed() {
    let api = FakeApi::start().await;
    api.put(PODS, pod("a"));
    api.add_rule(Rule::all(Fault::Status(429, "TooManyRequests", Some(1))).times(1));
    let begun = Instant::now();
    client(&api).get::<Pod>(Some("web"), "a").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));

    api.add_rule(Rule::all(Fault::Status(429, "TooManyRequests", Some(3600))));
    let error = client(&api).get::<Pod>(Some("web"), "a").await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
    assert!(error.is_transient());
}

#[tokio::test]
async fn refusals_carry_code_and_reason() {
    let api = FakeApi::start().await;
    for (code, reason) in [
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (409, "Conflict"),
        (410, "Expired"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
    ] {
        api.clear_rules();
        api.add_rule(Rule::all(Fault::Status(code, reason, None)));
        let error = client(&api).get::<Pod>(Some("web"), "a").await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Some(code), reason));
    }
}

#[tokio::test]
async fn what_is_no_api_server_is_told() {
    let api = FakeApi::start().await;
    api.add_rule(Rule::all(Fault::Html));
    let error = client(&api).get::<Pod>(Some("web"), "a").await.unwrap_err();
    assert!(matches!(error, ApiError::Decode { .. }), "{error:?}");
}

#[tokio::test]
async fn a_read_over_a_connection_that_died_is_asked_again() {
    let mut api = FakeApi::start().await;
    api.put(PODS, pod("a"));
    let cluster = client(&api);
    cluster.get::<Pod>(Some("web"), "a").await.unwrap();
    api.stop().await;
    let error = cluster.get::<Pod>(Some("web"), "a").await.unwrap_err();
    assert!(matches!(error, ApiError::Transport { .. }) && error.is_transient(), "{error:?}");
    assert!(!cluster.connection().borrow().is_up());
    api.restart().await;
    cluster.get::<Pod>(Some("web"), "a").await.unwrap();
    api.stop().await;
    api.restart().await;
    cluster.get::<Pod>(Some("web"), "a").await.unwrap();
    assert!(cluster.connection().borrow().is_up());
}

#[tokio::test]
async fn a_name_that_no_object_can_have_is_no_request() {
    let api = FakeApi::start().await;
    let error = client(&api).get::<Pod>(Some("web"), "").await.unwrap_err();
    assert!(matches!(error, ApiError::Request { .. }), "{error:?}");
    assert!(api.seen().is_empty());
}
