//! `coracle pods`: the table of `kubectl get pods` for this node alone.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;
use coracle_kubelet_core::api::{ContainerState, ContainerStatus, Pod};

use crate::args::{Output, PodsArgs};
use crate::table;

pub(crate) fn run(args: &PodsArgs) -> Result<ExitCode> {
    let records = super::pod_records(&args.state.state_dir)?;
    let pods: Vec<&Pod> = records.iter().map(|record| &record.pod).collect();
    if args.output == Output::Json {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": pods});
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(ExitCode::SUCCESS);
    }
    if pods.is_empty() {
        eprintln!("No pods.");
        return Ok(ExitCode::SUCCESS);
    }
    let wide = args.output == Output::Wide;
    let mut header = vec!["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"];
    if wide {
        header.extend(["IP", "NODE", "UID"]);
    }
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed());
    let rows: Vec<Vec<String>> = pods.iter().map(|pod| row(pod, now, wide)).collect();
    print!("{}", table::render(&header, &rows));
    Ok(ExitCode::SUCCESS)
}

fn row(pod: &Pod, now: i64, wide: bool) -> Vec<String> {
    let statuses = &pod.status.container_statuses;
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.is_restartable_init());
    let ready_sidecars = sidecars
        .clone()
        .filter(|c| status_of(&pod.status.init_container_statuses, &c.name).is_some_and(|s| s.ready));
    let ready = statuses.iter().filter(|status| status.ready).count() + ready_sidecars.count();
    let total = pod.spec.containers.len() + sidecars.count();
    let restarts: i32 =
        statuses.iter().chain(&pod.status.init_container_statuses).map(|s| s.restart_count).sum();
    let age = pod.status.start_time.map_or_else(|| "<unknown>".to_owned(), |start| table::age(now - start.0));
    let mut row = vec![
        pod.metadata.namespace.clone(),
        pod.metadata.name.clone(),
        format!("{ready}/{total}"),
        state(pod),
        restarts.to_string(),
        age,
    ];
    if wide {
        let ip = if pod.status.pod_ip.is_empty() { "<none>" } else { &pod.status.pod_ip };
        row.extend([ip.to_owned(), pod.spec.node_name.clone(), pod.metadata.uid.to_string()]);
    }
    row
}

fn status_of<'a>(statuses: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|status| status.name == name)
}

/// The STATUS column by the rules of kubectl's printer: the phase, unless a container says more.
fn state(pod: &Pod) -> String {
    let status = &pod.status;
    let mut reason = if status.reason.is_empty() { status.phase.clone() } else { status.reason.clone() };
    let init = init_state(pod);
    if let Some(init) = &init {
        reason = init.clone();
    } else {
        let mut has_running = false;
        for container in status.container_statuses.iter().rev() {
            if let Some(text) = container_reason(&container.state) {
                reason = text;
            } else if container.ready && container.state.running.is_some() {
                has_running = true;
            }
        }
        if reason == "Completed" && has_running {
            let is_ready = status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
            reason = if is_ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if pod.metadata.deletion_timestamp.is_some() && !matches!(status.phase.as_str(), "Succeeded" | "Failed") {
        reason = "Terminating".to_owned();
    }
    reason
}

/// What holds the pod in its init containers, or `None` if they are done.
fn init_state(pod: &Pod) -> Option<String> {
    let total = pod.spec.init_containers.len();
    for (index, container) in pod.spec.init_containers.iter().enumerate() {
        let Some(status) = status_of(&pod.status.init_container_statuses, &container.name) else {
            continue;
        };
        let state = &status.state;
        if state.terminated.as_ref().is_some_and(|t| t.exit_code == 0)
            || (container.is_restartable_init() && status.started == Some(true))
        {
            continue;
        }
        let detail = match container_reason(state) {
            Some(reason) if reason != "PodInitializing" => reason,
            _ => format!("{index}/{total}"),
        };
        return Some(format!("Init:{detail}"));
    }
    None
}

fn container_reason(state: &ContainerState) -> Option<String> {
    if let Some(waiting) = state.waiting.as_ref().filter(|waiting| !waiting.reason.is_empty()) {
        return Some(waiting.reason.clone());
    }
    let terminated = state.terminated.as_ref()?;
    Some(if !terminated.reason.is_empty() {
        terminated.reason.clone()
    } else if terminated.signal != 0 {
        format!("Signal:{}", terminated.signal)
    } else {
        format!("ExitCode:{}", terminated.exit_code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: serde_json::Value) -> Pod {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_status_column_is_kubectls() {
        for (text, expected) in [
            (serde_json::json!({"status": {"phase": "Running"}}), "Running"),
            (
                serde_json::json!({"status": {"phase": "Running", "containerStatuses": [
                    {"name": "a", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}}),
                "CrashLoopBackOff",
            ),
            (
                serde_json::json!({"spec": {"initContainers": [{"name": "i"}, {"name": "j"}]}, "status": {"phase": "Pending",
                    "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}},
                        {"name": "j", "state": {"running": {}}}]}}),
                "Init:1/2",
            ),
            (
                serde_json::json!({"status": {"phase": "Failed", "containerStatuses": [
                    {"name": "a", "state": {"terminated": {"exitCode": 3}}}]}}),
                "ExitCode:3",
            ),
        ] {
            assert_eq!(state(&pod(text)), expected);
        }
    }
}
