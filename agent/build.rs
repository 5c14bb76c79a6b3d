//! Carries the shim inside the executable when `cargo xtask dist` names one in `CORACLE_EMBED_SHIM`.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=CORACLE_EMBED_SHIM");
    println!("cargo:rustc-check-cfg=cfg(embedded_shim)");
    if let Some(shim) = std::env::var_os("CORACLE_EMBED_SHIM").map(PathBuf::from) {
        println!("cargo:rerun-if-changed={}", shim.display());
        println!("cargo:rustc-env=CORACLE_EMBEDDED_SHIM={}", shim.display());
        println!("cargo:rustc-cfg=embedded_shim");
    }
}
