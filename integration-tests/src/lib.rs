//! What tests, benches and the demo start: a node of its own folders, a cluster, and the images that pods run.
//!
//! Tests in `tests/` drive the built executables as a user would; `cargo xtask test` builds them and says
//! where they lie.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this crate is for a terminal")]

pub mod cluster;
pub mod containerd;
pub mod cri;
pub mod example_image;
pub mod images;
pub mod node;
pub mod peers;
pub mod random;
pub mod sys;
pub mod terminal;
pub mod victims;

use std::path::{Path, PathBuf};

/// The executables that a node consists of.
#[derive(Clone, Debug)]
pub struct Executables {
    /// The node.
    pub coracle: PathBuf,
    /// What stays alive per pod.
    pub shim: PathBuf,
    /// The program inside the example images.
    pub example: PathBuf,
}

impl Executables {
    /// Those that `cargo xtask test` has built, by the environment, or those of the debug build.
    pub fn of_this_build() -> Self {
        let named = |variable: &str, name: &str| {
            std::env::var_os(variable).map_or_else(|| target_dir().join("debug").join(name), PathBuf::from)
        };
        Self {
            coracle: named("CORACLE_BIN", "coracle"),
            shim: named("CORACLE_SHIM", "coracle-shim"),
            example: named("CORACLE_EXAMPLE", "example"),
        }
    }
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

/// The folder that cargo builds into.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}
