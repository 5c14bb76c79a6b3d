//! The project's commands: `cargo xtask COMMAND`.
//!
//! Developers and CI call it; each command is one module. Commands that need a tool of the system call
//! `setup` first, so that a fresh Debian or Ubuntu machine needs no other step.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "these are commands for a terminal")]

mod artifacts;
mod bench;
mod ci;
mod cluster;
mod conformance;
mod critest;
mod demo;
mod fuzz;
mod guest;
mod old_kernel;
mod peers;
mod process;
mod setup;
mod test;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  setup          install the Debian packages that builds and tests need and that are missing
  build          build coracle and coracle-shim for this machine, as small as they ship
  demo           build, make the example images, run examples/pods and show what it takes
  test [FILTER]  run every test
  ci             what CI runs: format, lints, every test, the demo
  chaos [N] [--victim agent|shim|maker|worker]
                 kill such processes N times (200) at random moments while pods come and go
  fuzz [TARGET…] [--seconds N] [--keep]
                 libFuzzer on the parsers of references, manifests, tars and streams, ten minutes each
  old-kernel [NAME]
                 the tests with runc as maker, without the system calls that came after Linux 4.9
  guest [--systemd] [--cgroup-v1] [--kernel-arg WORD] [--maker PATH] [--test NAME]
                 the whole node in a virtual machine: cgroups of version 2, systemd, no memory controller;
                 with --maker the runtime's tests with an OCI runtime of the guest, such as /usr/bin/crun
  bench local    pods from a folder: memory, idle cost, start times
  bench node     a joined node beside kubelet and containerd: memory, idle cost, start times [--node KIND]
  bench pull     pull and unpack of a 200 MB image beside Debian's containerd
  bench runtime  coracle cri beside containerd with runc: every call alone and 50 side by side, memory per pod,
                 critest's own benchmarks
  peers [NAME…]  build a real control plane and a stock node from Go modules, into a cache outside the tree
  cluster up     start a control plane and print how to reach and join it [--cluster NAME]
  cluster status show the clusters of this machine and their nodes
  cluster node add --reference | --coracle   add a node [--name NODE]
  cluster node exec NODE COMMAND…            run a command where the node runs
  cluster node remove NODE
  cluster metrics-server                     for kubectl top
  cluster kill | start MACHINE SERVICE       such as `control-plane kube-apiserver` or `node-0 coracle`
  cluster down   end it and take away all it made
  cluster-test   the tests that need such a cluster
  runtime-test [FILTER]
                 the tests of pods from a folder with containerd as runtime: Debian's, and the newest of the peers
  maker-test [PATH…]
                 the runtime's tests with other OCI runtimes: Debian's runc, runc and nvidia-container-runtime of the peers
  shim-test [FILTER]
                 our shim under containerd, 1.6 and 2.4, and containerd's shim under our runtime
  streaming-peers [FILTER]
                 coracle-streaming against Kubernetes' own clients and streaming server
  conformance    Kubernetes' conformance specs on the reference and on coracle, and where they differ
                 [--focus sig-node|RE] [--nodes N] [--procs N]
                 [--node coracle|coracle-on-containerd|reference]
  critest        cri-tools' suite on containerd with runc and on coracle cri, and where they differ
                 [--runtime containerd|coracle] [-- FLAGS of critest]
  dist           one self-contained coracle in target/dist
";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["setup"] => setup::run(),
        ["build"] => artifacts::build().map(|built| {
            println!("{}\n{}", built.coracle.display(), built.shim.display());
        }),
        ["dist"] => artifacts::dist().map(|path| println!("{}", path.display())),
        ["demo"] => demo::run(),
        ["test", filter @ ..] => test::run(filter),
        ["ci"] => ci::run(),
        ["cluster-test", filter @ ..] => test::with_cluster(filter),
        ["runtime-test", filter @ ..] => test::on_other_runtimes(filter),
        ["maker-test", paths @ ..] => test::with_makers(paths),
        ["shim-test", filter @ ..] => test::with_shims(filter),
        ["streaming-peers", filter @ ..] => test::with_streaming_peers(filter),
        ["peers", names @ ..] => peers::run(names),
        ["cluster", words @ ..] => cluster::run(words),
        ["conformance", words @ ..] => conformance::run(words),
        ["critest", words @ ..] => critest::run(words),
        ["fuzz", words @ ..] => fuzz::run(words),
        ["chaos", options @ ..] => test::chaos(options),
        ["old-kernel", filter @ ..] => old_kernel::run(filter),
        ["guest", options @ ..] => guest::run(&guest::Options::parse(options)?),
        ["bench", "local"] => bench::local::run(),
        ["bench", "node", words @ ..] => bench::node::run(words),
        ["bench", "pull"] => bench::pull::run(),
        ["bench", "runtime", words @ ..] => bench::runtime::run(words),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("no such command: {}\n\n{USAGE}", other.join(" ")),
    }
}
