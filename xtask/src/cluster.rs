//! `cluster`: a real control plane on this machine, and nodes beside it, until it is taken down.

use anyhow::{Context, Result, bail};

use coracle_integration_tests::cluster::machine::Machine;
use coracle_integration_tests::cluster::{Cluster, Kind, Options};
use coracle_integration_tests::peers::{CNI, CONTROL_PLANE, Peers, REFERENCE_NODE};
use coracle_integration_tests::{Executables, images};

use crate::{artifacts, peers, setup};

const USAGE: &str = "cluster up | status | down | metrics-server | kill MACHINE SERVICE | start MACHINE SERVICE | node add --reference | --coracle [-- FLAG…] | node exec NODE [--cluster NAME] COMMAND… | node remove NODE  [--cluster NAME]";

/// Runs one of the subcommands.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    match words {
        ["up", rest @ ..] => up(option(rest, "--cluster")?.unwrap_or("test")),
        ["status", ..] => status(),
        ["down", rest @ ..] => {
            let cluster = Cluster::open(option(rest, "--cluster")?.unwrap_or("test"))?;
            let name = cluster.name.clone();
            cluster.down()?;
            println!("the cluster {name} is gone");
            Ok(())
        }
        ["metrics-server", rest @ ..] => {
            peers::ensure(&["metrics-server"])?;
            Cluster::open(option(rest, "--cluster")?.unwrap_or("test"))?.start_metrics_server()
        }
        ["node", "add", rest @ ..] => add(rest),
        ["node", "remove", node, rest @ ..] => {
            Cluster::open(option(rest, "--cluster")?.unwrap_or("test"))?.remove_node(node)
        }
        ["kill", machine, service, rest @ ..] => {
            on_machine(rest, machine, |machine| machine.kill_service(service))
        }
        ["start", machine, service, rest @ ..] => {
            on_machine(rest, machine, |machine| machine.start_service_again(service))
        }
        ["node", "exec", node, "--cluster", name, command @ ..] => exec(&["--cluster", name], node, command),
        ["node", "exec", node, command @ ..] => exec(&[], node, command),
        other => bail!("no such command: cluster {}\n{USAGE}", other.join(" ")),
    }
}

/// The words after a separator.
fn after(words: &[&str], separator: &str) -> Vec<String> {
    let rest = words.iter().skip_while(|word| **word != separator).skip(1);
    rest.map(|word| (*word).to_owned()).collect()
}

/// The value after a flag.
fn option<'a>(words: &[&'a str], flag: &str) -> Result<Option<&'a str>> {
    match words.iter().position(|word| *word == flag) {
        None => Ok(None),
        Some(at) => words.get(at + 1).copied().map(Some).with_context(|| format!("{flag} wants a value")),
    }
}

fn up(name: &str) -> Result<()> {
    peers::ensure(CONTROL_PLANE)?;
    write_images()?;
    let start = std::time::Instant::now();
    let cluster = Cluster::start(&Options::staying(name))?;
    println!("the cluster {name} is ready after {:.1} s\n", start.elapsed().as_secs_f64());
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("export PATH=$PATH:{}\n", kubectl_folder(&cluster)?);
    println!("server        {}", cluster.join.server);
    println!("token         {}", cluster.join.token);
    println!("ca-cert-hash  {}", cluster.join.ca_cert_hash);
    println!("ca file       {}", cluster.authority().display());
    println!("\ncargo xtask cluster node add --reference\ncargo xtask cluster down");
    Ok(())
}

/// Serves the images of the suites too where what they are made of is there.
fn write_images() -> Result<()> {
    let peers = Peers::new();
    let is_whole = peers.program("agnhost").is_ok() && setup::has_suites();
    let set = if is_whole { images::Set::Conformance } else { images::Set::Basic };
    let example = Executables::of_this_build().example;
    images::write(&peers, set, Some(example.as_path()).filter(|path| path.exists()))
}

fn kubectl_folder(cluster: &Cluster) -> Result<String> {
    let kubectl = cluster.kubectl()?;
    let folder = std::path::Path::new(kubectl.get_program()).parent().context("kubectl lies in a folder")?;
    Ok(folder.display().to_string())
}

fn status() -> Result<()> {
    let names = Cluster::names();
    if names.is_empty() {
        println!("no cluster: cargo xtask cluster up");
    }
    for name in names {
        let cluster = Cluster::open(&name)?;
        match cluster.status() {
            Ok(status) => println!("{name}: {status}\n  KUBECONFIG={}", cluster.kubeconfig().display()),
            Err(error) => println!("{name}: does not answer: {error:#}"),
        }
        for node in cluster.nodes() {
            let alive = if node.machine.is_alive() { "runs" } else { "has ended" };
            println!(
                "  {:<20} {:<10} {alive}  {}",
                node.machine.name,
                node.kind,
                node.machine.folder.display()
            );
        }
    }
    Ok(())
}

fn add(words: &[&str]) -> Result<()> {
    let mut cluster = Cluster::open(option(words, "--cluster")?.unwrap_or("test"))?;
    let kind = match words.iter().find(|word| matches!(**word, "--reference" | "--coracle")) {
        Some(&"--reference") => {
            peers::ensure(REFERENCE_NODE)?;
            Kind::Reference
        }
        Some(_) => {
            // The conflist is the same for both kinds, and so are its plugins.
            peers::ensure(CNI)?;
            let executables = artifacts::build_or_given()?;
            Kind::Coracle { executables, flags: after(words, "--") }
        }
        None => bail!("which kind of node? --reference or --coracle"),
    };
    let name = match option(words, "--name")? {
        Some(name) => name.to_owned(),
        None => format!("node-{}", cluster.nodes().len()),
    };
    let start = std::time::Instant::now();
    cluster.add_node(&name, &kind)?;
    println!("{name} is Ready after {:.1} s", start.elapsed().as_secs_f64());
    print!("{}", cluster.ask(&["get", "nodes", "-o", "wide"])?);
    Ok(())
}

fn exec(cluster: &[&str], node: &str, command: &[&str]) -> Result<()> {
    let (program, arguments) = command.split_first().context("which command?")?;
    on_machine(cluster, node, |machine| {
        let status =
            machine.command(program).args(arguments).stdin(std::process::Stdio::inherit()).status()?;
        if !status.success() {
            bail!("`{}` ended with {status}", command.join(" "));
        }
        Ok(())
    })
}

/// Does something with a node's machine or the control plane's.
fn on_machine(options: &[&str], name: &str, work: impl FnOnce(&Machine) -> Result<()>) -> Result<()> {
    let cluster = Cluster::open(option(options, "--cluster")?.unwrap_or("test"))?;
    work(if name == "control-plane" { cluster.control_plane() } else { &cluster.node(name)?.machine })
}
