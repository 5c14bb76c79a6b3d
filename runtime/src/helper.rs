//! The roles in which the runtime executes its own binary anew. Called first thing in `main` by every
//! program that embeds the runtime, before any thread exists.

use std::ffi::OsString;

/// A role's entry: takes the arguments behind the role's name and returns the exit code.
type Role = fn(Vec<OsString>) -> i32;

/// Every role by its first argument. Each owner of a role adds one line.
const ROLES: &[(&str, Role)] = &[("oci", crate::maker::main), ("image-worker", crate::image::worker_main)];

/// Runs the helper role that the first argument names and ends the process; returns when it names none.
///
/// Call it before anything else in `main`: the maker must be single-threaded.
pub fn run_helper() {
    let mut args = std::env::args_os().skip(1);
    let Some(name) = args.next() else { return };
    if let Some((_, role)) = ROLES.iter().find(|(role, _)| name == *role) {
        std::process::exit(role(args.collect()));
    }
}
