//! The commands on a container that is there: start, kill, delete, state, ps, pause, resume, update.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use libcgroups::common::{AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt, FreezerState};
use libcontainer::config::YoukiConfig;
use libcontainer::container::{Container, ContainerStatus};
use oci_spec::runtime::LinuxResources;
use rustix::fs::FlockOperation;

use super::args::Globals;
use super::cgroup;
use super::record::{Record, Status};
use super::{Fault, create, error_chain, sys};

/// How long processes that a killed `create` left may go on by themselves.
const REMAINS_END_WITHIN: Duration = Duration::from_secs(5);

/// A container found by its id.
pub(super) struct Found {
    pub record: Record,
    pub container: Container,
    pub status: Status,
}

/// Loads a container and how it stands.
pub(super) fn find(root: &Path, id: &str) -> Result<Found, Fault> {
    let record = Record::load(root, id)
        .map_err(|source| Fault::Os { what: "read the container's record", source })?
        .ok_or_else(|| Fault::NotFound(id.to_owned()))?;
    let container = Container::load(root.join(id)).map_err(|error| Fault::Library(error_chain(&error)))?;
    let status = match container.status() {
        _ if !record.alive() => Status::Stopped,
        ContainerStatus::Creating | ContainerStatus::Created => Status::Created,
        ContainerStatus::Paused => Status::Paused,
        ContainerStatus::Running | ContainerStatus::Stopped => Status::Running,
    };
    Ok(Found { record, container, status })
}

/// Lets the program run.
pub(super) fn start(globals: &Globals, id: &str) -> Result<(), Fault> {
    let mut found = find(&globals.root, id)?;
    if found.status != Status::Created {
        return Err(Fault::State { id: id.to_owned(), verb: "start", status: found.status.name() });
    }
    found.container.start().map_err(|error| Fault::Library(error_chain(&error)))
}

/// Sends a signal to the first process, or to all.
pub(super) fn kill(globals: &Globals, id: &str, signal: &str, all: bool) -> Result<(), Fault> {
    let number = crate::spec::signal::number(signal).ok_or_else(|| Fault::Signal(signal.to_owned()))?;
    let found = find(&globals.root, id)?;
    if all {
        for pid in cgroup::processes(&found.record.cgroups) {
            // One that ended meanwhile is what was wanted.
            let _ = sys::kill(pid, number);
        }
        return Ok(());
    }
    if found.status == Status::Stopped {
        return Err(Fault::NotRunning);
    }
    sys::kill(found.record.pid, number).map_err(|source| match source.raw_os_error() {
        Some(libc::ESRCH) => Fault::NotRunning,
        _ => Fault::Os { what: "send the signal", source },
    })?;
    if number == libc::SIGKILL && found.status == Status::Paused {
        // A frozen process of cgroup v1 dies only when thawed.
        manager(&found.record)?
            .freeze(FreezerState::Thawed)
            .map_err(|error| Fault::Library(error_chain(&error)))?;
    }
    Ok(())
}

/// Removes a container. With `force`, also one that runs, and one that is not there.
pub(super) fn delete(globals: &Globals, id: &str, force: bool) -> Result<(), Fault> {
    let dir = globals.root.join(id);
    let found = match find(&globals.root, id) {
        Ok(found) => found,
        Err(_) if force => return delete_remains(globals, id),
        Err(fault) => return Err(fault),
    };
    if !force && matches!(found.status, Status::Running | Status::Paused) {
        return Err(Fault::State { id: id.to_owned(), verb: "delete", status: found.status.name() });
    }
    if found.status != Status::Stopped {
        let _ = sys::kill(found.record.pid, libc::SIGKILL);
    }
    cgroup::kill_and_remove(&found.record.cgroups)
        .map_err(|source| Fault::Os { what: "remove the cgroup", source })?;
    let config = YoukiConfig::load(&dir).ok();
    if let Some(hooks) =
        config.as_ref().and_then(|config| config.hooks.as_ref()).and_then(|h| h.poststop().as_ref())
    {
        // The container is gone; a hook that fails cannot bring it back.
        let _ = libcontainer::hooks::run_hooks(Some(hooks), Some(&found.container.state), None, None, None);
    }
    fs::remove_dir_all(&dir).map_err(|source| Fault::Io { what: "remove", path: dir, source })
}

/// What a killed `create` left: a directory without a record, a cgroup, a process that waits for a start that never
/// comes, and maybe one that still makes these. The last holds the lock, so it is waited for.
fn delete_remains(globals: &Globals, id: &str) -> Result<(), Fault> {
    let dir = globals.root.join(id);
    let prepared = create::prepared_dir(&globals.root, id);
    let lock = fs::File::open(prepared.join(create::LOCK)).ok();
    let deadline = Instant::now() + REMAINS_END_WITHIN;
    loop {
        let settled = lock
            .as_ref()
            .is_none_or(|lock| rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok());
        if let Ok(config) = YoukiConfig::load(&dir) {
            remove_cgroup_of(globals, id, &config.cgroup_path)?;
        }
        if settled || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    for path in [prepared, dir] {
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Fault::Io { what: "remove", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes a cgroup that is known only by the path of its spec.
fn remove_cgroup_of(globals: &Globals, id: &str, path: &Path) -> Result<(), Fault> {
    if globals.systemd_cgroup {
        return manager_of(id, path, true)?.remove().map_err(|error| Fault::Library(error_chain(&error)));
    }
    let mounts = cgroup::Mounts::read().map_err(|source| Fault::Os { what: "read the mounts", source })?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let roots = mounts.v1.values().chain(&mounts.v2);
    let cgroups: Vec<_> = roots.map(|root| root.join(relative)).filter(|dir| dir.is_dir()).collect();
    cgroup::kill_and_remove(&cgroups).map_err(|source| Fault::Os { what: "remove the cgroup", source })
}

/// The OCI state as JSON.
pub(super) fn state(globals: &Globals, id: &str) -> Result<String, Fault> {
    let found = find(&globals.root, id)?;
    let pid = if found.status == Status::Stopped { 0 } else { found.record.pid };
    let state = serde_json::json!({
        "ociVersion": oci_spec::runtime::VERSION,
        "id": id,
        "pid": pid,
        "status": found.status.name(),
        "bundle": found.record.bundle,
        "rootfs": found.record.rootfs,
        "created": found.container.created(),
        "annotations": found.container.state.annotations,
        "owner": "",
    });
    Ok(format!("{state:#}"))
}

/// The processes of a container, one pid a line or as a JSON list.
pub(super) fn ps(globals: &Globals, id: &str, json: bool) -> Result<String, Fault> {
    let found = find(&globals.root, id)?;
    let pids: Vec<i32> = cgroup::processes(&found.record.cgroups).into_iter().collect();
    if json {
        return Ok(serde_json::json!(pids).to_string());
    }
    let lines: Vec<String> = pids.iter().map(i32::to_string).collect();
    Ok(lines.join("\n"))
}

/// Freezes or thaws a container.
pub(super) fn freeze(globals: &Globals, id: &str, freeze: bool) -> Result<(), Fault> {
    let mut found = find(&globals.root, id)?;
    let (wanted, state, after, verb) = if freeze {
        (Status::Running, FreezerState::Frozen, ContainerStatus::Paused, "pause")
    } else {
        (Status::Paused, FreezerState::Thawed, ContainerStatus::Running, "resume")
    };
    if found.status != wanted {
        return Err(Fault::State { id: id.to_owned(), verb, status: found.status.name() });
    }
    manager(&found.record)?.freeze(state).map_err(|error| Fault::Library(error_chain(&error)))?;
    found.container.set_status(after).save().map_err(|error| Fault::Library(error_chain(&error)))
}

/// Changes the limits of a container.
pub(super) fn update(
    globals: &Globals,
    id: &str,
    resources: &str,
    warn: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    let found = find(&globals.root, id)?;
    if found.status == Status::Stopped {
        return Err(Fault::NotRunning);
    }
    let mut text = Vec::new();
    if resources == "-" {
        io::stdin()
            .read_to_end(&mut text)
            .map_err(|source| Fault::Os { what: "read the resources", source })?;
    } else {
        text = fs::read(resources).map_err(|source| Fault::Io {
            what: "read",
            path: resources.into(),
            source,
        })?;
    }
    let mut resources: LinuxResources =
        serde_json::from_slice(&text).map_err(|source| Fault::Json { path: resources.into(), source })?;
    for controller in create::node()?.mounts.keep_possible(&mut resources) {
        warn(&format!("cgroup controller {controller} is not available, its limits are not applied"));
    }
    // Devices cannot change while a container runs; v1 would otherwise get the defaults once more.
    resources.set_devices(None);
    let options = ControllerOpt {
        resources: &resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    manager(&found.record)?.apply(&options).map_err(|error| Fault::Library(error_chain(&error)))
}

fn manager(record: &Record) -> Result<AnyCgroupManager, Fault> {
    let path = record.cgroups_path.as_deref().unwrap_or(Path::new(&record.id));
    manager_of(&record.id, path, record.systemd_cgroup)
}

fn manager_of(id: &str, path: &Path, systemd: bool) -> Result<AnyCgroupManager, Fault> {
    libcgroups::common::create_cgroup_manager(CgroupConfig {
        cgroup_path: path.to_owned(),
        systemd_cgroup: systemd,
        container_name: id.to_owned(),
    })
    .map_err(|error| Fault::Library(error_chain(&error)))
}
