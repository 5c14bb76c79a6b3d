//! The cgroups of a process, of either version.

use std::path::{Path, PathBuf};

/// The folder of a process's cgroup for a controller.
pub(crate) fn cgroup(pid: u32, controller: &str) -> PathBuf {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of_controller = groups.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some((controller, path))
    });
    // No hierarchy of its own: it is one of the controllers of version 2.
    let unified = || Some(("", groups.lines().find_map(|line| line.strip_prefix("0::"))?));
    let (controller, path) = of_controller.or_else(unified).unwrap();
    Path::new("/sys/fs/cgroup").join(controller).join(path.trim_start_matches('/'))
}

/// The first of these files that is there: those of version 2, then those of version 1.
pub(crate) fn read(folder: &Path, files: [&str; 2]) -> String {
    let found = files.iter().find_map(|file| std::fs::read_to_string(folder.join(file)).ok());
    found.unwrap_or_else(|| panic!("none of {files:?} in {}", folder.display())).trim().to_owned()
}
