//! Hands libFuzzer's inputs to the target that `CORACLE_FUZZ_TARGET` names. Built by `cargo xtask fuzz` with the
//! compiler's coverage counters, which stable Rust has.
#![no_main]

use std::sync::LazyLock;

use coracle_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("CORACLE_FUZZ_TARGET").unwrap_or_default();
    coracle_fuzz::target(&name).unwrap_or_else(|| panic!("CORACLE_FUZZ_TARGET names no target: {name:?}"))
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (TARGET.run)(input));
