//! Pods under a filter that answers ENOSYS to every system call newer than Linux 4.9, as on a Jetson Nano: the
//! runtime chooses the host's OCI runtime by itself and every newer call of ours has its fallback.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod service_support;

use std::process::Command;

use coracle_cri::RuntimeService as _;
use coracle_cri::v1::*;
use coracle_runtime::Maker;
use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use service_support::{Node, namespaces};

const TEST: &str = "pods_run_adopt_and_end_without_any_newer_system_call";

/// System calls that came after Linux 4.9, by name; one that this machine does not have is passed over.
const NEWER: [&str; 46] = [
    "statx",
    "io_pgetevents",
    "rseq",
    "pidfd_send_signal",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "pidfd_open",
    "clone3",
    "close_range",
    "openat2",
    "pidfd_getfd",
    "faccessat2",
    "process_madvise",
    "epoll_pwait2",
    "mount_setattr",
    "quotactl_fd",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
    "memfd_secret",
    "process_mrelease",
    "futex_waitv",
    "set_mempolicy_home_node",
    "cachestat",
    "fchmodat2",
    "map_shadow_stack",
    "futex_wake",
    "futex_wait",
    "futex_requeue",
    "statmount",
    "listmount",
    "lsm_get_self_attr",
    "lsm_set_self_attr",
    "lsm_list_modules",
    "mseal",
    "setxattrat",
    "getxattrat",
    "listxattrat",
    "open_tree_attr",
];

/// Filters the calling thread, and all threads and processes that come from it.
fn filter() {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).unwrap();
    // Root needs no such promise, and containers must still be able to change users.
    filter.set_ctl_nnp(false).unwrap();
    for name in NEWER {
        if let Ok(call) = ScmpSyscall::from_name(name) {
            filter.add_rule(ScmpAction::Errno(rustix::io::Errno::NOSYS.raw_os_error()), call).unwrap();
        }
    }
    filter.load().unwrap();
}

#[tokio::test]
async fn pods_run_adopt_and_end_without_any_newer_system_call() {
    if std::env::var_os("CORACLE_TEST_FILTERED").is_none() {
        // A fresh process, because the C library of this one has begun to use newer calls already.
        let shim = service_support::shim();
        filter();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env("CORACLE_TEST_FILTERED", "1")
            .env("CORACLE_SHIM", shim)
            .status()
            .unwrap();
        assert!(status.success(), "the test failed under the filter");
        return;
    }
    let refused =
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
    assert_eq!(refused.unwrap_err(), rustix::io::Errno::NOSYS, "the filter holds");
    let mut node = Node::with(|config| config.maker = Maker::Auto).await;
    let status = node.runtime().status(StatusRequest { verbose: true }).await.unwrap();
    assert!(
        status.info["config"].contains("runc") || status.info["config"].contains("crun"),
        "{:?}",
        status.info
    );
    let mut pod = node.sandbox("old");
    let context = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options = Some(namespaces(NamespaceMode::Node, NamespaceMode::Pod));
    let sandbox = node.run_sandbox(&pod).await;
    let id =
        node.run(&sandbox, &pod, "main", "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done").await;
    node.log_has(&id, "up").await;
    let answer = node.exec(&id, &["sh", "-c", "echo in; exit 6"]).await;
    assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"in\n"[..], 6));
    node.restart().await;
    assert_eq!(node.status(&id).await.state(), ContainerState::ContainerRunning);
    node.stop_container(&id, 20).await;
    assert_eq!(node.status(&id).await.exit_code, 4);
    node.remove_sandbox(&sandbox).await;
    node.finish().await;
}
