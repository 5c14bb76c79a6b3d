//! `demo`: from a fresh clone to running pods, with what they print and what it takes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use coracle_integration_tests::example_image;
use coracle_integration_tests::node::{self, Node};

use crate::{artifacts, process, setup};

/// Sets up, builds, makes the images, runs `examples/pods`, shows them, and stops them again.
pub(crate) fn run() -> Result<()> {
    setup::for_demo()?;
    let built = artifacts::build()?;
    let folder = process::target_dir().join("demo");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let archive = folder.join("example.tar");
    example_image::write(&built.example, &archive)?;

    let manifests = process::repository().join("examples/pods");
    println!("\n$ coracle run --manifests {}", manifests.display());
    let mut node = Node::start(&built, "demo", &manifests, &archive)?;
    let took = node.wait("the example pods run", Duration::from_secs(60), |node| {
        let pods = node.pods()?;
        let done = |pod: &serde_json::Value| pod["status"]["phase"] == "Succeeded";
        Ok(pods.len() == 3 && node.running()? + pods.iter().filter(|pod| done(pod)).count() == 3)
    })?;
    println!("  all pods run or have completed after {:.2} s\n", took.as_secs_f64());

    for arguments in
        [&["pods", "-o", "wide"][..], &["images", "ls"], &["logs", "counter"], &["logs", "web"], &["events"]]
    {
        println!("$ coracle {}", arguments.join(" "));
        println!("{}", node.ask(arguments)?);
    }
    println!("$ GET http://127.0.0.1:18080/ (hostPort of the pod web)");
    println!("{}", node.in_network(|| get("127.0.0.1:18080"))?);
    show_memory(&node)?;
    node.stop()?;
    println!("The pods are stopped and everything the demo made is gone; run it yourself:");
    println!("  {} run --shim {} --manifests examples/pods", built.coracle.display(), built.shim.display());
    Ok(())
}

fn show_memory(node: &Node) -> Result<()> {
    let own = node.own_processes()?;
    let agent = node::pss_kib(node.agent_pid());
    let shims: u64 = own.iter().skip(1).map(|pid| node::pss_kib(*pid)).sum();
    println!("Memory (proportional set size) of everything that is not a pod's own process:");
    println!("  agent              {:>7.2} MiB", agent as f64 / 1024.0);
    println!("  {:>2} shims           {:>7.2} MiB", own.len() - 1, shims as f64 / 1024.0);
    println!("  together           {:>7.2} MiB\n", (agent + shims) as f64 / 1024.0);
    Ok(())
}

fn get(address: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream =
        std::net::TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{address} answered {answer:?}");
    Ok(answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned())
}
