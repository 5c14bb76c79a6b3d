//! Probes and lifecycle hooks of a container.
//!
//! Called by `containers`; pure.

use super::field::{Errors, Path};
use super::names;
use crate::api::{
    Container, ExecAction, GRPCAction, HTTPGetAction, IntOrString, Lifecycle, PodSpec, Probe, SleepAction,
    TCPSocketAction,
};

const NEGATIVE: &str = "must be greater than or equal to 0";

/// What a probe or a hook does, each of them with its field's name.
struct Handler<'p> {
    exec: Option<&'p ExecAction>,
    http_get: Option<&'p HTTPGetAction>,
    tcp_socket: Option<&'p TCPSocketAction>,
    grpc: Option<&'p GRPCAction>,
    sleep: Option<&'p SleepAction>,
}

/// All three probes and both hooks.
pub(super) fn validate_handlers(container: &Container, spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let grace = spec.termination_grace_period_seconds;
    if let Some(hooks) = &container.lifecycle {
        lifecycle(hooks, spec, &path.child("lifecycle"), errors);
    }
    for (name, probe) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ] {
        let Some(probe) = probe else { continue };
        let path = path.child(name);
        validate_probe(probe, grace, &path, errors);
        let is_readiness = name == "readinessProbe";
        if !is_readiness && probe.success_threshold != 1 {
            errors.invalid(&path.child("successThreshold"), probe.success_threshold, "must be 1");
        }
        if let (true, Some(seconds)) = (is_readiness, probe.termination_grace_period_seconds) {
            let path = path.child("terminationGracePeriodSeconds");
            errors.invalid(&path, seconds, "must not be set for readinessProbes");
        }
    }
}

fn validate_probe(probe: &Probe, grace: Option<i64>, path: &Path<'_>, errors: &mut Errors) {
    let handler = Handler {
        exec: probe.exec.as_deref(),
        http_get: probe.http_get.as_deref(),
        tcp_socket: probe.tcp_socket.as_deref(),
        grpc: probe.grpc.as_deref(),
        sleep: None,
    };
    validate_handler(&handler, grace, path, errors);
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if value < 0 {
            errors.invalid(&path.child(name), value, NEGATIVE);
        }
    }
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|seconds| *seconds <= 0) {
        errors.invalid(&path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

fn lifecycle(hooks: &Lifecycle, spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    for (name, hook) in [("postStart", &hooks.post_start), ("preStop", &hooks.pre_stop)] {
        let Some(hook) = hook else { continue };
        let handler = Handler {
            exec: hook.exec.as_deref(),
            http_get: hook.http_get.as_deref(),
            tcp_socket: hook.tcp_socket.as_deref(),
            grpc: None,
            sleep: hook.sleep.as_deref(),
        };
        validate_handler(&handler, spec.termination_grace_period_seconds, &path.child(name), errors);
    }
    if let Some(signal) = &hooks.stop_signal {
        let path = path.child("stopSignal");
        match spec.os.as_ref().map(|os| os.name.as_str()) {
            None => errors.forbidden(&path, "may not be set for containers with empty `spec.os.name`"),
            Some("linux") if !is_signal(signal) => {
                let signals: Vec<String> = signals();
                let listed: Vec<&str> = signals.iter().map(String::as_str).collect();
                errors.not_supported(&path, signal, &listed);
            }
            Some(_) => {}
        }
    }
}

fn is_signal(name: &str) -> bool {
    signals().iter().any(|signal| signal == name)
}

/// Every signal of Linux by the names that the API takes, in alphabetical order.
fn signals() -> Vec<String> {
    const PLAIN: [&str; 35] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
        "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
        "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN",
    ];
    let mut names: Vec<String> = PLAIN.iter().map(|name| format!("SIG{name}")).collect();
    names.push("SIGRTMAX".to_owned());
    names.extend((1..=15).map(|n| format!("SIGRTMIN+{n}")));
    names.extend((1..=14).map(|n| format!("SIGRTMAX-{n}")));
    names.sort_unstable();
    names
}

fn validate_handler(handler: &Handler<'_>, grace: Option<i64>, path: &Path<'_>, errors: &mut Errors) {
    let mut found = false;
    let mut first = |name: &'static str, is_set: bool, errors: &mut Errors| {
        let is_first = is_set && !found;
        if is_set && found {
            errors.forbidden(&path.child(name), "may not specify more than 1 handler type");
        }
        found |= is_set;
        is_first
    };
    if first("exec", handler.exec.is_some(), errors)
        && handler.exec.is_some_and(|action| action.command.is_empty())
    {
        let path = path.child("exec");
        errors.required(&path.child("command"), "");
    }
    if let (true, Some(get)) = (first("httpGet", handler.http_get.is_some(), errors), handler.http_get) {
        http_get(get, &path.child("httpGet"), errors);
    }
    if let (true, Some(tcp)) = (first("tcpSocket", handler.tcp_socket.is_some(), errors), handler.tcp_socket)
    {
        let path = path.child("tcpSocket");
        port(&tcp.port, &path.child("port"), errors);
    }
    if let (true, Some(grpc)) = (first("grpc", handler.grpc.is_some(), errors), handler.grpc) {
        let path = path.child("grpc");
        port(&IntOrString::Int(grpc.port), &path.child("port"), errors);
    }
    if let (true, Some(sleep)) = (first("sleep", handler.sleep.is_some(), errors), handler.sleep)
        && let Some(grace) = grace.filter(|grace| sleep.seconds < 0 || sleep.seconds > *grace)
    {
        let reason = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid(&path.child("sleep"), sleep.seconds, reason);
    }
    if !found {
        errors.required(path, "must specify a handler type");
    }
}

fn http_get(get: &HTTPGetAction, path: &Path<'_>, errors: &mut Errors) {
    if get.path.is_empty() {
        errors.required(&path.child("path"), "");
    }
    port(&get.port, &path.child("port"), errors);
    if !["HTTP", "HTTPS"].contains(&get.scheme.as_str()) {
        errors.not_supported(&path.child("scheme"), &get.scheme, &["HTTP", "HTTPS"]);
    }
    for header in &get.http_headers {
        errors.invalid_each(&path.child("httpHeaders"), &header.name, names::http_header_name(&header.name));
    }
}

fn port(port: &IntOrString, path: &Path<'_>, errors: &mut Errors) {
    match port {
        IntOrString::Int(number) => {
            for message in names::port_number(*number) {
                errors.invalid(path, *number, message);
            }
        }
        IntOrString::String(name) => errors.invalid_each(path, name, names::port_name(name)),
    }
}
