//! Watches through everything a server can do to them.

use super::*;
use crate::testing::{Fault, Rule};

#[tokio::test]
async fn a_watch_lists_and_follows() {
    let api = FakeApi::start().await;
    api.put(PODS, pod("a"));
    let mut elsewhere = pod("elsewhere");
    elsewhere["spec"]["nodeName"] = "there".into();
    api.put(PODS, elsewhere);
    let mut pods = Pods::watch(&client(&api));
    pods.expect(&["Restart", "Listed a", "Ready"]).await;
    api.put(PODS, pod("b"));
    api.put(PODS, pod("a"));
    api.remove(PODS, "web", "b");
    pods.expect(&["Applied b", "Applied a", "Deleted b"]).await;
    let query = &api.seen()[0].query;
    for wanted in [
        "watch=true",
        "sendInitialEvents=true",
        "resourceVersionMatch=NotOlderThan",
        "allowWatchBookmarks=true",
    ] {
        assert!(query.contains(wanted), "{query}");
    }
    assert!(!query.contains("resourceVersion="), "{query}");
}

#[tokio::test]
async fn a_server_without_watch_list_lists_in_pages() {
    let api = FakeApi::start().await;
    api.set_watch_list(false);
    for number in 0..300 {
        api.put(PODS, pod(&format!("p{number:03}")));
    }
    let mut pods = Pods::watch(&client(&api));
    let list = pods.until("Ready").await;
    assert_eq!((list.len(), list[0].as_str()), (302, "Restart"));
    api.put(PODS, pod("b"));
    pods.expect(&["Applied b"]).await;
    api.compact();
    api.expire_watches();
    let list = pods.until("Ready").await;
    assert_eq!((list.len(), list[0].as_str()), (303, "Restart"));
}

/// A bookmark a minute for each ConfigMap in use, and for the Node, would be most of what an idle node hears.
#[tokio::test]
async fn one_object_is_watched_without_bookmarks() {
    let api = FakeApi::start().await;
    api.put(PODS, pod("a"));
    api.put(PODS, pod("b"));
    let mut pods = Pods::of(&client(&api), Scope::namespace("web").named("a"));
    pods.expect(&["Restart", "Listed a", "Ready"]).await;
    api.put(PODS, pod("b"));
    api.put(PODS, pod("a"));
    pods.expect(&["Applied a"]).await;
    assert!(api.seen().iter().all(|request| !request.query.contains("Bookmarks")));
    api.compact();
    api.expire_watches();
    pods.expect(&["Restart", "Listed a", "Ready"]).await;
}

#[tokio::test]
async fn a_list_that_breaks_off_begins_anew() {
    let api = FakeApi::start().await;
    for name in ["a", "b", "c"] {
        api.put(PODS, pod(name));
    }
    api.add_rule(Rule::all(Fault::Cut(700)).watch(true).times(2));
    let mut pods = Pods::watch(&client(&api));
    let seen = pods.until("Ready").await;
    assert_eq!(seen.iter().filter(|change| *change == "Restart").count(), 3, "{seen:?}");
    assert_eq!(seen[seen.len() - 5..], ["Restart", "Listed a", "Listed b", "Listed c", "Ready"]);
}

#[tokio::test]
async fn a_watch_that_breaks_off_goes_on_from_its_version() {
    let mut api = FakeApi::start().await;
    api.put(PODS, pod("a"));
    let mut pods = Pods::watch(&client(&api));
    pods.until("Ready").await;
    for number in 0..3 {
        api.put(PODS, pod(&format!("before-{number}")));
        pods.expect(&[&format!("Applied before-{number}")]).await;
        api.stop().await;
        api.put(PODS, pod(&format!("while-{number}")));
        api.restart().await;
        pods.expect(&[&format!("Applied while-{number}")]).await;
    }
}

#[tokio::test]
async fn an_expired_version_leads_to_a_new_list() {
    let mut api = FakeApi::start().await;
    api.put(PODS, pod("a"));
    let mut pods = Pods::watch(&client(&api));
    pods.until("Ready").await;
    api.put(PODS, pod("b"));
    pods.expect(&["Applied b"]).await;
    api.expire_watches();
    pods.expect(&["Restart", "Listed a", "Listed b", "Ready"]).await;
    api.stop().await;
    api.remove(PODS, "web", "a");
    api.compact();
    api.restart().await;
    pods.expect(&["Restart", "Listed b", "Ready"]).await;
}

#[tokio::test]
async fn refusals_delay_a_watch_and_lose_nothing() {
    let api = FakeApi::start().await;
    api.put(PODS, pod("a"));
    for code in [401, 403, 404, 409, 429, 500, 503] {
        api.add_rule(Rule::all(Fault::Status(code, "Scripted", None)).times(1));
    }
    api.add_rule(Rule::all(Fault::Close).times(2));
    api.add_rule(Rule::all(Fault::Html).times(1));
    api.add_rule(Rule::all(Fault::Delay(Duration::from_millis(300))).times(1));
    let cluster = client(&api);
    let mut pods = Pods::watch(&cluster);
    let seen = pods.until("Ready").await;
    assert_eq!(seen[seen.len() - 3..], ["Restart", "Listed a", "Ready"]);
    assert!(api.seen().len() >= 9);
    assert!(cluster.connection().borrow().is_up());
}

#[tokio::test]
async fn a_watch_that_goes_silent_is_replaced() {
    let api = FakeApi::start().await;
    api.put(PODS, pod("a"));
    api.add_rule(Rule::all(Fault::Silent(100)).watch(true).times(1));
    let mut pods = Pods::watch(&client(&api));
    pods.until("Ready").await;
    api.freeze();
    api.put(PODS, pod("b"));
    pods.expect(&["Applied b"]).await;
}

#[tokio::test]
async fn bookmarks_keep_an_idle_watch_open() {
    let api = FakeApi::start().await;
    api.set_bookmark_interval(Duration::from_millis(200));
    let cluster = client(&api);
    let mut pods = Pods::watch(&cluster);
    pods.until("Ready").await;
    let idle = tokio::time::timeout(Duration::from_secs(4), pods.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    assert_eq!(api.seen().len(), 1);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_passed_over() {
    let api = FakeApi::start().await;
    let mut wrong = pod("wrong");
    wrong["metadata"]["labels"] = json!([]);
    api.put(PODS, wrong.clone());
    api.put(PODS, pod("a"));
    let mut pods = Pods::watch(&client(&api));
    pods.expect(&["Restart", "Listed a", "Ready"]).await;
    api.put(PODS, wrong.clone());
    api.put(PODS, pod("b"));
    pods.expect(&["Applied b"]).await;
    wrong["metadata"]["labels"] = json!({"now": "readable"});
    api.put(PODS, wrong);
    pods.expect(&["Applied wrong"]).await;
    assert_eq!(api.seen().len(), 1);
}
