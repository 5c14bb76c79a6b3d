//! The process of a container: command line, environment, working directory, user, terminal. Pure.

use std::path::PathBuf;

use coracle_cri::v1;
use oci_spec::runtime::{Process, User};

use super::{SpecError, SpecInput};

/// The search path of a container whose image names none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process with these arguments and nothing else.
pub(super) fn bare(args: Vec<String>) -> Process {
    let mut process = Process::default();
    process
        .set_terminal(None)
        .set_args(Some(args))
        .set_cwd(PathBuf::from("/"))
        .set_rlimits(None)
        .set_no_new_privileges(None)
        .set_capabilities(None);
    process.set_env(Some(vec![DEFAULT_PATH.to_owned()]));
    process
}

/// The container's process without capabilities and labels, which `security` decides.
pub(super) fn container_process(
    input: &SpecInput<'_>,
    sc: &v1::LinuxContainerSecurityContext,
) -> Result<Process, SpecError> {
    let config = input.config;
    let mut process = bare(args(input)?);
    process.set_terminal(config.tty.then_some(true));
    process.set_env(Some(environment(input)));
    let cwd =
        [config.working_dir.as_str(), input.image.working_dir, "/"].into_iter().find(|dir| !dir.is_empty());
    process.set_cwd(absolute(cwd.unwrap_or("/")));
    let mut user = User::default();
    user.set_uid(input.user.uid).set_gid(input.user.gid);
    user.set_additional_gids(Some(input.user.additional_gids.clone()).filter(|gids| !gids.is_empty()));
    process.set_user(user);
    process.set_no_new_privileges(sc.no_new_privs.then_some(true));
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    process.set_oom_score_adj(
        resources.map(|resources| input.host.possible_oom_score_adj(resources.oom_score_adj as i32)),
    );
    Ok(process)
}

/// The pod's command replaces the image's entrypoint and drops its cmd; the pod's args replace only the cmd.
fn args(input: &SpecInput<'_>) -> Result<Vec<String>, SpecError> {
    let mut command = input.config.command.clone();
    let mut args = input.config.args.clone();
    if command.is_empty() {
        if args.is_empty() {
            args = input.image.cmd.to_vec();
        }
        // docker's way to reset an entrypoint: one empty string.
        if input.image.entrypoint.len() != 1 || !input.image.entrypoint[0].is_empty() {
            command = input.image.entrypoint.to_vec();
        }
    }
    command.append(&mut args);
    if command.is_empty() { Err(SpecError::NoCommand) } else { Ok(command) }
}

fn environment(input: &SpecInput<'_>) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned()];
    if input.config.tty {
        set_env(&mut env, "TERM=xterm");
    }
    let hostname = match input.sandbox.hostname.as_str() {
        "" => &input.host.hostname,
        name => name,
    };
    set_env(&mut env, &format!("HOSTNAME={hostname}"));
    for entry in input.image.env {
        set_env(&mut env, entry);
    }
    for pair in &input.config.envs {
        set_env(&mut env, &format!("{}={}", pair.key, String::from_utf8_lossy(pair.value.as_ref())));
    }
    env
}

/// Sets one variable in place, or at the end; an entry without `=` removes it.
pub(super) fn set_env(env: &mut Vec<String>, entry: &str) {
    let name = entry.split('=').next().unwrap_or_default();
    let same = |existing: &String| existing.split('=').next() == Some(name);
    let position = env.iter().position(same);
    match (entry.contains('='), position) {
        (true, Some(index)) => entry.clone_into(&mut env[index]),
        (true, None) => env.push(entry.to_owned()),
        (false, Some(index)) => drop(env.remove(index)),
        (false, None) => {}
    }
}

/// Images may name a directory without the leading slash; runtimes want it.
fn absolute(dir: &str) -> PathBuf {
    if dir.starts_with('/') { PathBuf::from(dir) } else { PathBuf::from(format!("/{dir}")) }
}
