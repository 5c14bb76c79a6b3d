//! Probes against the fake runtime (exec) and small servers on this machine (HTTP, TCP, gRPC).

use coracle_cri::testing::{ExecScript, Script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::api::{ExecAction, GRPCAction, HTTPGetAction, IntOrString, Probe, TCPSocketAction};

fn exec_probe(period: i32, failures: i32) -> Option<Box<Probe>> {
    let exec = Some(Box::new(ExecAction { command: vec!["check".into()] }));
    Some(Box::new(Probe { exec, ..probe(period, failures) }))
}

fn probe(period: i32, failures: i32) -> Probe {
    Probe {
        period_seconds: period,
        timeout_seconds: 1,
        success_threshold: 1,
        failure_threshold: failures,
        ..Probe::default()
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_comes_and_goes_and_ends_with_the_run() {
    let mut web = pod("web");
    web.spec.containers[0].readiness_probe = exec_probe(5, 2);
    let bench = Bench::new().await;
    let fails = || ExecScript::exits(1).stdout("not yet");
    bench.fake.script_exec("main", [fails(), fails(), ExecScript::exits(0), ExecScript::exits(0), fails()]);
    bench.desire([web]);
    let status = bench.until("web", |s| s.phase == "Running").await;
    let text = "False|ContainersNotReady|containers with unready status: [main]";
    assert_eq!(condition(&status, "Ready"), text);
    bench.until("web", is_running).await;
    let event = bench.until_event(|e| e.reason == "Unhealthy").await;
    assert_eq!(event.message, "Readiness probe failed: not yet");
    bench.until("web", |s| condition(s, "Ready").starts_with("False")).await;
    assert_eq!(bench.fake.count(coracle_cri::testing::Method::StopContainer), 0);
    bench.fake.script_exec("main", [ExecScript::exits(0)]);
    bench.until("web", is_running).await;
    bench.fake.exit_container("web/main", 1);
    bench.until("web", |s| is_running(s) && of(s, "main").restart_count == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_restarts_with_its_own_grace_period() {
    let mut web = pod("web");
    let liveness = exec_probe(10, 3).unwrap();
    let liveness = Probe { termination_grace_period_seconds: Some(5), ..*liveness };
    web.spec.containers[0].liveness_probe = Some(Box::new(liveness));
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::runs().ignores_stop_signal(), Script::runs()]);
    bench.fake.script_exec("main", [ExecScript::exits(0), ExecScript::exits(1)]);
    bench.desire([web]);
    bench.until("web", is_running).await;
    let killed = bench.until_event(|e| e.reason == "Killing").await;
    assert_eq!(killed.message, "Container main failed liveness probe, will be restarted");
    let begun = tokio::time::Instant::now();
    bench.fake.script_exec("main", [ExecScript::exits(0)]);
    let status = bench.until("web", |s| of(s, "main").restart_count == 1 && is_running(s)).await;
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!(of(&status, "main").last_state.terminated.as_ref().unwrap().exit_code, 137);
    let unhealthy = bench.until_event(|e| e.reason == "Unhealthy").await;
    assert_eq!(unhealthy.count, 3);
}

#[tokio::test(start_paused = true)]
async fn startup_gates_the_other_probes() {
    let mut web = pod("web");
    web.spec.containers[0].startup_probe = exec_probe(10, 5);
    web.spec.containers[0].liveness_probe = exec_probe(1, 1);
    let bench = Bench::new().await;
    bench.fake.script_exec("main", [ExecScript::exits(1), ExecScript::exits(1), ExecScript::exits(0)]);
    bench.desire([web]);
    let status = bench.until("web", |s| s.phase == "Running").await;
    assert_eq!(of(&status, "main").started, Some(false));
    let status = bench.until("web", is_running).await;
    assert_eq!(of(&status, "main").started, Some(true));
    assert_eq!(of(&status, "main").restart_count, 0);
    let events = bench.events();
    assert!(events.iter().all(|e| !e.contains("Liveness")), "{events:?}");
    bench.fake.script_exec("main", [ExecScript::exits(1)]);
    bench.until_event(|e| e.message.starts_with("Liveness probe failed")).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_never_starts_up_is_killed() {
    let mut web = pod("web");
    web.spec.containers[0].startup_probe = exec_probe(10, 2);
    let bench = Bench::new().await;
    bench.fake.script_exec("main", [ExecScript::exits(0).takes(Duration::from_secs(5))]);
    bench.desire([web]);
    let unhealthy = bench.until_event(|e| e.reason == "Unhealthy").await;
    assert_eq!(unhealthy.message, "Startup probe failed: command timed out: \"check\" timed out after 1s");
    let killed = bench.until_event(|e| e.reason == "Killing").await;
    assert_eq!(killed.message, "Container main failed startup probe, will be restarted");
}

#[tokio::test(start_paused = true)]
async fn a_check_that_cannot_be_made_is_told_and_counts_for_nothing() {
    let mut web = pod("web");
    web.spec.containers[0].liveness_probe = exec_probe(10, 1);
    let bench = Bench::new().await;
    bench.fake.script_exec("main", [ExecScript::fails(coracle_cri::Status::unknown("no shim"))]);
    bench.desire([web]);
    let event = bench.until_event(|e| e.reason == "Unhealthy" && e.count == 3).await;
    assert_eq!(
        event.message,
        "Liveness probe errored and resulted in unknown state: rpc error: code = Unknown desc = no shim"
    );
    assert!(bench.events().iter().all(|e| !e.starts_with("Killing")));
}

#[tokio::test(start_paused = true)]
async fn a_sidecars_startup_probe_holds_the_next_container_back() {
    let mut web = pod("web");
    web.spec.init_containers = vec![Container { startup_probe: exec_probe(10, 9), ..sidecar("proxy") }];
    let bench = Bench::new().await;
    bench.fake.script_exec("proxy", [ExecScript::exits(1), ExecScript::exits(1), ExecScript::exits(0)]);
    bench.desire([web]);
    bench.until_event(|e| e.reason == "Unhealthy" && e.count == 2).await;
    assert_eq!(bench.running("main"), 0);
    bench.until("web", is_running).await;
}

/// A pod on the host's network whose one container has this readiness probe.
fn with_readiness(probe: Probe) -> Pod {
    let mut web = pod("web");
    web.spec.host_network = true;
    web.spec.containers[0].readiness_probe = Some(Box::new(probe));
    web
}

/// A server that answers each connection with what `answer` makes of its request.
async fn serve(answer: impl Fn(String) -> String + Send + 'static) -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let length = stream.read(&mut bytes).await.unwrap_or(0);
            let text = answer(String::from_utf8_lossy(&bytes[..length]).into_owned());
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    (port, task)
}

fn http_probe(port: u16, path: &str) -> Probe {
    let action = HTTPGetAction {
        path: path.into(),
        port: IntOrString::Int(port.into()),
        host: "127.0.0.1".into(),
        ..HTTPGetAction::default()
    };
    Probe { http_get: Some(Box::new(action)), ..probe(1, 1) }
}

#[tokio::test]
async fn http_probes_judge_by_status_and_follow_redirects_at_home() {
    let answer = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\n{more}Content-Length: 2\r\n\r\nhi");
    let (port, server) = serve(move |request| match request.split(' ').nth(1).unwrap_or("") {
        "/good" if request.contains("User-Agent: kube-probe/1.36\r\n") => answer("204 No Content", ""),
        "/home" => answer("302 Found", "Location: /good\r\n"),
        "/away" => answer("302 Found", "Location: http://elsewhere.invalid/\r\n"),
        _ => answer("500 Internal Server Error", ""),
    })
    .await;
    let bench = Bench::new().await;
    for (path, ready, event) in [
        ("/good", true, ""),
        ("/home", true, ""),
        ("/away", true, "Readiness probe warning: Probe terminated redirects, Response body: hi"),
        ("/bad", false, "Readiness probe failed: HTTP probe failed with statuscode: 500"),
    ] {
        bench.desire([with_readiness(http_probe(port, path))]);
        if ready {
            bench.until("web", is_running).await;
        }
        if !event.is_empty() {
            bench.until_event(|e| e.message == event).await;
        }
        bench.desire([]);
        bench.until_gone("web").await;
    }
    server.abort();
}

#[tokio::test]
async fn tcp_probes_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let action = TCPSocketAction { port: IntOrString::String("x".into()), host: "127.0.0.1".into() };
    let mut web = with_readiness(Probe { tcp_socket: Some(Box::new(action)), ..probe(1, 1) });
    web.spec.containers[0].ports = vec![crate::api::ContainerPort {
        name: "x".into(),
        container_port: port.into(),
        ..Default::default()
    }];
    let bench = Bench::with_pods([web]).await;
    bench.until("web", is_running).await;
    drop(listener);
    bench.until("web", |s| !of(s, "main").ready).await;
    let event = bench.until_event(|e| e.reason == "Unhealthy").await;
    assert_eq!(
        event.message,
        format!("Readiness probe failed: dial tcp 127.0.0.1:{port}: connect: connection refused")
    );
}

#[tokio::test]
async fn https_probes_take_any_certificate_and_tell_plain_servers() {
    let (port, server) = serve(|_| "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".into()).await;
    let mut probe = http_probe(port, "/");
    probe.http_get.as_mut().unwrap().scheme = "HTTPS".into();
    let bench = Bench::with_pods([with_readiness(probe)]).await;
    let event = bench.until_event(|e| e.reason == "Unhealthy").await;
    assert_eq!(
        event.message,
        format!(
            "Readiness probe failed: Get \"https://127.0.0.1:{port}/\": http: server gave HTTP response to HTTPS client"
        )
    );
    server.abort();
}

#[tokio::test]
async fn grpc_probes_ask_the_health_service() {
    let (port, server) = serve(|_| String::new()).await;
    let action = GRPCAction { port: port.into(), service: Some("db".into()) };
    let mut web = with_readiness(Probe { grpc: Some(Box::new(action)), ..probe(1, 1) });
    web.spec.host_network = false;
    let bench = Bench::new().await;
    bench.fake.set_pod_ips("web", ["127.0.0.1"]);
    bench.desire([web]);
    let event = bench.until_event(|e| e.reason == "Unhealthy").await;
    assert!(event.message.starts_with("Readiness probe failed: "), "{}", event.message);
    let status = bench.until("web", |_| true).await;
    assert!(!of(&status, "main").ready);
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn what_a_probe_found_holds_over_a_restart_of_the_kubelet() {
    let mut web = pod("web");
    web.spec.containers[0].readiness_probe = exec_probe(60, 1);
    web.spec.containers[0].startup_probe = exec_probe(60, 1);
    let bench = Bench::new().await;
    bench.fake.script_exec("main", [ExecScript::exits(0)]);
    bench.desire([web]);
    bench.until("web", is_running).await;
    let last = bench.kubelet.statuses().borrow().clone();
    let bench = bench.restart_knowing(last).await;
    let status = bench.until("web", |_| true).await;
    assert!(is_running(&status), "{status:#?}");
    bench.fake.script_exec("main", [ExecScript::exits(1)]);
    bench.until("web", |s| condition(s, "Ready").starts_with("False")).await;
    // A container that ended meanwhile is not ready because it was.
    let last = bench.kubelet.statuses().borrow().clone();
    bench.fake.exit_container("web/main", 1);
    let bench = bench.restart_knowing(last).await;
    let status = bench.until("web", |_| true).await;
    assert!(!is_running(&status), "{status:#?}");
}
