//! What becomes of pods of the API, change by change.

use serde_json::{Value, json};

use super::*;

fn api(value: Value) -> ApiPod {
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str, uid: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "d", "uid": uid, "creationTimestamp": format!("2026-01-01T00:00:0{}Z", name.len() % 10)},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "600m"}}}]},
        "status": {"phase": "Pending"}})
}

fn node() -> Node {
    serde_json::from_value(
        json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "1", "pods": "10"}}}),
    )
    .unwrap()
}

fn listed(pods: &[Value]) -> Table {
    let mut table = Table::default();
    table.apply(Change::Restart, "t0");
    for pod in pods {
        table.apply(Change::Listed(api(pod.clone())), "t0");
    }
    table.apply(Change::Ready, "t0");
    table
}

fn desired(table: &Table) -> Vec<String> {
    table.desired(&PodSet::default()).keys().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_decided_before_the_list_is_whole_and_the_node_known() {
    let mut table = Table::default();
    table.apply(Change::Restart, "");
    table.apply(Change::Listed(api(pod("a", "1"))), "");
    assert!(table.admit(Some(&node()), &PodSet::default()).is_empty());
    assert!(matches!(table.apply(Change::Ready, "")[..], [News::Complete]));
    assert!(table.admit(None, &PodSet::default()).is_empty());
    assert!(!table.is_settled() && desired(&table).is_empty());
    assert_eq!(table.admit(Some(&node()), &PodSet::default()).len(), 1);
    assert!(table.is_settled());
    assert_eq!(desired(&table), ["1"]);
}

#[test]
fn the_oldest_gets_the_room_and_what_ran_before_keeps_it() {
    let mut table = listed(&[pod("bbb", "younger"), pod("a", "older")]);
    let news = table.admit(Some(&node()), &PodSet::default());
    let Some(News::Seen { part: Part::Idle(Some(rejection)), .. }) = news.last() else { panic!("{news:?}") };
    assert_eq!(rejection.reason, "OutOfcpu");
    assert_eq!(desired(&table), ["older"]);

    let mut started = pod("bbb", "younger");
    started["status"]["startTime"] = json!("2026-01-01T00:00:00Z");
    let mut table = listed(&[started, pod("a", "older")]);
    table.admit(None, &PodSet::default());
    assert_eq!(desired(&table), ["younger"], "no node is needed for what was admitted once");
    table.admit(Some(&node()), &PodSet::default());
    assert_eq!(
        desired(&table),
        ["younger", "older"].map(String::from).into_iter().filter(|u| u == "younger").collect::<Vec<_>>()
    );
}

#[test]
fn a_worker_hears_of_what_it_did_not_write() {
    let mut table = listed(&[pod("a", "1")]);
    table.admit(Some(&node()), &PodSet::default());
    let first = table.pods["1"].pod.clone();
    assert_eq!(first.metadata.annotations[SOURCE_ANNOTATION], "api");
    assert_eq!(first.metadata.annotations[SEEN_ANNOTATION], "t0");
    let mut change = pod("a", "1");
    change["status"] =
        json!({"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]});
    let news = table.apply(Change::Applied(api(change.clone())), "t1");
    assert!(matches!(&news[..], [News::Seen { pod, part: Part::Runs }] if pod.status.phase == "Running"));
    assert!(Arc::ptr_eq(&first, &table.pods["1"].pod), "its own status is no news to it");
    change["status"]["conditions"] = json!([{"type": "example.com/gate", "status": "True"}]);
    table.apply(Change::Applied(api(change.clone())), "t1");
    let second = table.pods["1"].pod.clone();
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(second.metadata.annotations[SEEN_ANNOTATION], "t0");
    change["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:01:00Z");
    change["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    table.apply(Change::Applied(api(change)), "t1");
    assert_eq!(table.pods["1"].pod.metadata.deletion_grace_period_seconds, Some(30));
}

#[test]
fn a_new_list_forgets_what_is_not_in_it_and_a_bad_pod_stays() {
    let mut table = listed(&[pod("a", "1"), pod("b", "2")]);
    let mut big = node();
    big.status.allocatable.insert("cpu".into(), "10".parse().unwrap());
    table.admit(Some(&big), &PodSet::default());
    table.apply(Change::Restart, "");
    let bad = json!({"metadata": {"name": "a", "namespace": "d", "uid": "1"}, "spec": {"containers": 7}});
    assert!(table.apply(Change::Listed(api(bad)), "").is_empty());
    assert_eq!(desired(&table), ["1", "2"], "while a list is read the last word stands");
    let news = table.apply(Change::Ready, "");
    assert!(matches!(&news[..], [News::Gone { uid }] if &**uid == "2"));
    assert_eq!(desired(&table), ["1"]);
}

#[test]
fn mirrors_and_pods_that_ended_before_they_ran_are_not_run() {
    let mut mirror = pod("a", "1");
    mirror["metadata"]["annotations"] = json!({MIRROR: "hash", "kubernetes.io/config.source": "file"});
    let mut failed = pod("b", "2");
    failed["status"]["phase"] = json!("Failed");
    let mut spoofed = pod("c", "3");
    spoofed["metadata"]["annotations"] = json!({"kubernetes.io/config.source": "file"});
    let mut table = listed(&[mirror, failed, spoofed]);
    table.admit(Some(&node()), &PodSet::default());
    assert_eq!(desired(&table), ["3"]);
    assert!(
        !super::super::is_static(&table.pods["3"].pod),
        "the API cannot pass a pod off as this node's own"
    );
}

const MIRROR: &str = super::super::api_pod::MIRROR_ANNOTATION;

#[test]
fn room_is_made_once_for_critical_pods_of_the_api_and_of_the_folder() {
    let started = |name: &str, uid: &str| {
        let mut pod = pod(name, uid);
        pod["status"]["startTime"] = json!("2026-01-01T00:00:00Z");
        pod
    };
    let chosen =
        |table: &Table| table.preempted().iter().map(|pod| pod.metadata.uid.to_string()).collect::<Vec<_>>();
    let mut critical = pod("bb", "critical");
    critical["spec"]["priority"] = json!(2_000_000_000);
    let mut table = listed(&[started("a", "victim"), critical, started("ccc", "other")]);
    let mut roomy = node();
    roomy.status.allocatable.insert("cpu".into(), "1500m".parse().unwrap());
    for _ in 0..2 {
        table.admit(Some(&roomy), &PodSet::default());
        assert_eq!(chosen(&table), ["victim"], "one is enough");
        assert_eq!(desired(&table), ["other", "victim"], "it waits for the end of that one");
    }
    // A pod of the folder does not wait; it takes from whom is left.
    let mut lone = table.pods["victim"].pod.as_ref().clone();
    lone.metadata.uid = Arc::from("lone");
    lone.metadata.annotations.insert(SOURCE_ANNOTATION.to_owned(), "file".to_owned());
    lone.status = crate::api::PodStatus::default();
    let statics: PodSet = Arc::new(BTreeMap::from([(Arc::from("lone"), Arc::new(lone))]));
    table.admit(Some(&roomy), &statics);
    assert_eq!(chosen(&table), ["other", "victim"], "with it the critical one needs more");
    let mut ended = started("ccc", "other");
    ended["status"]["phase"] = json!("Failed");
    table.apply(Change::Applied(api(ended)), "t1");
    table.admit(Some(&roomy), &PodSet::default());
    assert_eq!(chosen(&table), ["victim"], "what has begun to end ends");
    assert!(desired(&table).contains(&"critical".to_owned()));
}

#[test]
fn a_pod_is_given_more_once_there_is_room_and_keeps_what_it_has_until_then() {
    let asking = |name: &str, uid: &str, cpu: &str, generation: i64| {
        let mut pod = pod(name, uid);
        pod["metadata"]["generation"] = json!(generation);
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(cpu);
        pod
    };
    let cpu = |table: &Table, uid: &str| {
        table.pods[uid].pod.spec.containers[0].resources.requests["cpu"].as_str().to_owned()
    };
    let why = |table: &Table, uid: &str| {
        table.pods[uid].pod.pending_resize.as_ref().and_then(|pending| pending.deferred.clone())
    };
    let mut table = listed(&[asking("a", "1", "300m", 1), asking("b", "2", "400m", 1)]);
    let statics = PodSet::default();
    let change = |table: &mut Table, pod: Value| {
        table.apply(Change::Applied(api(pod)), "t1");
        table.admit(Some(&node()), &statics);
    };
    table.admit(Some(&node()), &statics);

    change(&mut table, asking("a", "1", "700m", 2));
    assert_eq!(cpu(&table, "1"), "300m");
    let text = "Node didn't have enough resource: cpu, requested: 700, used: 400, capacity: 1000";
    assert_eq!(why(&table, "1").as_deref(), Some(text));
    let held = table.pods["1"].pod.clone();
    assert_eq!(held.metadata.generation, Some(2), "the rest of the change is taken over");
    change(&mut table, asking("b", "2", "350m", 2));
    assert_eq!((cpu(&table, "1"), cpu(&table, "2")), ("300m".to_owned(), "350m".to_owned()));
    change(&mut table, asking("b", "2", "100m", 3));
    assert_eq!((cpu(&table, "1"), why(&table, "1")), ("700m".to_owned(), None));
    // Less is always given, and what is taken back is not asked for any more.
    change(&mut table, asking("a", "1", "2", 3));
    assert_eq!(cpu(&table, "1"), "700m");
    change(&mut table, asking("a", "1", "700m", 4));
    assert!(table.pods["1"].pod.pending_resize.is_none());
}
