//! Compiles our CRI v1 definition without a system protoc: protox parses it, tonic-prost-build renders it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/runtime_v1.proto");
    let descriptors = protox::compile(["proto/runtime_v1.proto"], ["proto"])?;
    // Passwords must not reach a log through `{:?}`: `lib.rs` writes this one by hand.
    tonic_prost_build::configure().skip_debug([".runtime.v1.AuthConfig"]).compile_fds(descriptors)?;
    Ok(())
}
