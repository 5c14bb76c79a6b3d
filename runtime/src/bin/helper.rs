//! The helper executable of this crate's own tests: nothing but the roles of [`coracle_runtime::run_helper`].

use std::process::ExitCode;

fn main() -> ExitCode {
    coracle_runtime::run_helper();
    ExitCode::from(2)
}
