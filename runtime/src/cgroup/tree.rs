//! What is done in one cgroup tree, by its files alone: short system calls, no state. Called by `cgroup` for each tree.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::CgroupError;

/// A cgroup's folder.
pub(super) fn below(tree: &Path, path: &str) -> PathBuf {
    tree.join(path.trim_start_matches('/'))
}

/// Makes a cgroup and those above it that are missing, and prepares each; tells whether one was missing.
pub(super) fn make_below(
    tree: &Path,
    path: &str,
    prepare: impl Fn(&Path) -> io::Result<()>,
) -> Result<bool, CgroupError> {
    let mut dir = tree.to_path_buf();
    let mut made = false;
    for component in path.split('/').filter(|component| !component.is_empty()) {
        dir.push(component);
        let created = match fs::create_dir(&dir) {
            Ok(()) => {
                made = true;
                prepare(&dir)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => prepare(&dir),
            Err(error) => Err(error),
        };
        created.map_err(|source| CgroupError::Create { path: dir.clone(), source })?;
    }
    Ok(made)
}

/// A fresh version 1 cpuset is empty and takes no process until it has CPUs and memory nodes.
pub(super) fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(dir.join(file))?.trim().is_empty() {
            fs::write(dir.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Lets children of `dir` have every controller that `dir` has. One that cannot be given is left out: what
/// then lacks it says so where it sets the limit.
pub(super) fn delegate_controllers(dir: &Path) -> io::Result<()> {
    let available = fs::read_to_string(dir.join("cgroup.controllers"))?;
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control"))?;
    for controller in available.split_whitespace() {
        if !enabled.split_whitespace().any(|name| name == controller) {
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    Ok(())
}

/// Kills what was listed while nothing could fork: frozen, or plainly where there is no freezer.
pub(super) fn kill_frozen(dir: &Path) -> Result<(), CgroupError> {
    let kill = |source| CgroupError::Kill { path: dir.into(), source };
    // An ended container leaves an empty cgroup: nearly every call is for one of those.
    if processes(dir).map_err(kill)?.is_empty() {
        return Ok(());
    }
    let freezers = [("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0")];
    let frozen = freezers.iter().find(|(file, freeze, _)| fs::write(dir.join(file), freeze).is_ok());
    let listed = processes(dir).map_err(kill);
    if let Ok(pids) = &listed {
        kill_all(pids);
    }
    if let Some((file, _, thaw)) = frozen {
        fs::write(dir.join(file), thaw).map_err(kill)?;
    }
    listed.map(drop)
}

fn kill_all(pids: &[u32]) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid as i32)) {
        // One that is gone already is what we want.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Processes of a cgroup directory and all below it.
pub(super) fn processes(dir: &Path) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(list) => {
                pids.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0))
            }
            // Removed meanwhile, or a threaded cgroup whose processes its parent lists.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        pending.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    Ok(pids)
}

/// Removes a cgroup and all below it. Idempotent.
pub(super) fn remove_tree(dir: &Path) -> io::Result<()> {
    // Almost every cgroup of ours is a leaf: one call.
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
