//! `peers`: builds the programs that judge the node or stand beside it.

use anyhow::Result;

use coracle_integration_tests::peers::Peers;

use crate::setup;

/// Builds all of them, or those named, and says where they are.
pub(crate) fn run(names: &[&str]) -> Result<()> {
    let all: Vec<&str> = Peers::names().collect();
    let wanted = if names.is_empty() { &all[..] } else { names };
    for (name, path) in wanted.iter().zip(ensure(wanted)?) {
        println!("{name:<24} {path}");
    }
    Ok(())
}

/// Builds what is missing of `names`, with what building needs, and returns their paths.
pub(crate) fn ensure(names: &[&str]) -> Result<Vec<String>> {
    let peers = Peers::new();
    if names.iter().any(|name| peers.program(name).is_err()) {
        setup::for_peers()?;
        peers.build(names)?;
    }
    names.iter().map(|name| Ok(peers.program(name)?.display().to_string())).collect()
}
