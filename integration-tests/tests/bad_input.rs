//! Bad input: each gives one clear error or event that says what and what to do, and harms nothing else.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use coracle_integration_tests::node::Options;
use support::{Fixture, LIMIT, is_running, pod};

/// Puts a file in and waits until the agent's log tells of it; a good pod beside it keeps running.
fn expect_logged(fixture: &mut Fixture, file: &str, text: &str, expected: &[&str]) {
    fixture.put(file, text);
    let what = format!("{file} is told of with {expected:?}");
    let is_told = |log: &str| {
        log.lines().any(|line| line.contains(file) && expected.iter().all(|word| line.contains(word)))
    };
    fixture.node.wait(&what, LIMIT, |node| Ok(is_told(&node.log()))).unwrap();
    let told = fixture.node.log().lines().filter(|line| line.contains(&format!("/{file}"))).count();
    assert_eq!(told, 1, "{file} is told of once:\n{}", fixture.node.log());
}

#[test]
fn bad_manifests_are_told_once_and_harm_no_other() {
    let mut fixture = Fixture::start("bad-manifests");
    fixture.put("good.yaml", &pod("good", &["sleep"], ""));
    fixture.wait_pod("good", "the good pod runs", is_running);
    let process = fixture.node.processes_with("sleep");
    expect_logged(&mut fixture, "no-yaml.yaml", "{ this: is [ not\n", &["line"]);
    expect_logged(
        &mut fixture,
        "unknown.yaml",
        &pod("unknown", &["sleep"], "    imagePullPolcy: Never\n"),
        &["spec.containers[0].imagePullPolcy"],
    );
    expect_logged(
        &mut fixture,
        "empty.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: empty}\nspec: {containers: []}\n",
        &["spec.containers", "Required value"],
    );
    expect_logged(&mut fixture, "twice.yaml", &pod("good", &["count", "1"], ""), &["good"]);
    assert_eq!(fixture.node.pods().unwrap().len(), 1);
    assert_eq!(process, fixture.node.processes_with("sleep"));
    fixture.finish();
}

#[test]
fn pods_that_cannot_start_say_why() {
    let mut fixture = Fixture::start("bad-pods");
    let waiting = |pod: &serde_json::Value, reasons: &[&str]| {
        let reason =
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or("");
        reasons.contains(&reason)
    };
    let missing =
        pod("missing", &["sleep"], "").replace("example.coracle/example:1", "127.0.0.1:9/no/such:image");
    fixture.put("missing.yaml", &missing);
    fixture.wait_pod("missing", "the image cannot be pulled", |pod| {
        waiting(pod, &["ErrImagePull", "ImagePullBackOff"])
    });
    let invalid =
        pod("invalid", &["sleep"], "").replace("example.coracle/example:1", "example.coracle/UPPER:1");
    fixture.put("invalid.yaml", &invalid);
    fixture.wait_pod("invalid", "the image's name is no name", |pod| waiting(pod, &["InvalidImageName"]));
    fixture.put(
        "command.yaml",
        &pod("command", &[], "    command: [/no/such/command]\n  restartPolicy: Never\n"),
    );
    let command = fixture.wait_pod("command", "the command does not exist", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "StartError"
    });
    let ended = &command["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["exitCode"].as_i64(), Some(128), "{command}");
    assert!(ended["message"].as_str().unwrap_or("").contains("/no/such/command"), "{command}");
    let no_map = "    env: [{name: A, valueFrom: {configMapKeyRef: {name: nowhere, key: a}}}]\n";
    fixture.put("settings.yaml", &pod("settings", &["sleep"], no_map));
    let settings = fixture.wait_pod("settings", "its ConfigMap is missing", |pod| {
        waiting(pod, &["CreateContainerConfigError"])
    });
    let message = settings["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("configmap \"nowhere\" not found"), "{message}");
    fixture.put("good.yaml", &pod("good", &["sleep"], ""));
    fixture.wait_pod("good", "a good pod runs beside them", is_running);
    fixture.finish();
}

#[test]
fn a_pod_that_forks_without_end_harms_only_itself() {
    let flags = vec!["--pod-max-pids=24".to_owned()];
    let mut fixture = Fixture::start_with("fork-bomb", Options { flags, ..Options::default() });
    fixture.put("bomb.yaml", &pod("bomb", &["spawn", "4096"], ""));
    let is_told = |events: &str| {
        let mut lines = events.lines().filter(|line| line.contains("PidsLimitReached"));
        lines.any(|line| {
            line.contains("bomb") && line.contains("limit of 24 processes") && line.contains("--pod-max-pids")
        })
    };
    let told = fixture
        .node
        .wait("an event tells of the refusal", LIMIT, |node| Ok(is_told(&node.ask(&["events"])?)));
    told.unwrap_or_else(|error| panic!("{error}\n{}", fixture.node.ask(&["events"]).unwrap()));
    let log = fixture.log_of("bomb");
    assert!(log.contains("refused after"), "{log}");
    fixture.put("good.yaml", &pod("good", &["count", "1"], ""));
    fixture.wait_pod("good", "a good pod starts beside it", is_running);
    assert!(fixture.node.processes_with("sleep").len() < 24);
    fixture.finish();
}
