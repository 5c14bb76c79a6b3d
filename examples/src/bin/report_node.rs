//! Joins a cluster and reports a node that runs no pods: `report_node SERVER TOKEN CA_HASH NAME`. Ends when it is Ready.
//!
//! Uses `coracle-bootstrap` for the credentials and `coracle-kubelet-core` for the Node, without any runtime.
#![allow(clippy::print_stdout, reason = "it is a command")]

use coracle_bootstrap::{Identity, IdentityConfig, JoinConfig, Serving, Source, SubjectName};
use coracle_kubelet_core::clock::Clock;
use coracle_kubelet_core::events::EventRecorder;
use coracle_kubelet_core::node::{NodeAgent, NodeConfig, parse_taints};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [server, token, hash, name] = words.as_slice() else {
        anyhow::bail!("usage: report_node https://HOST:6443 TOKEN sha256:HASH NAME");
    };
    let folder = std::env::var("BASE").unwrap_or_else(|_| "/var/lib/report-node".to_owned());
    let source = Source::Token { token: token.parse()?, ca_hashes: vec![hash.parse()?] };
    let mut join = JoinConfig::new(name, format!("{folder}/pki"), source);
    join.servers = vec![server.parse()?];
    let (_names, addresses) = tokio::sync::watch::channel(vec![SubjectName::parse(name)]);
    let serving = Serving::SelfSigned; // There is no kubelet API to serve.
    let identity = Identity::start(IdentityConfig { join, serving, addresses, client_ca_file: None }).await?;

    let mut config = NodeConfig::new(name);
    config.root_dir = folder.into();
    config.taints = parse_taints("example.com/no-pods:NoExecute")?;
    let events = EventRecorder::new(Clock::system(), 100);
    let agent = NodeAgent::start(config, identity.cluster(), None, events);
    let mut nodes = agent.node();
    while nodes.changed().await.is_ok() {
        let node = nodes.borrow_and_update().clone();
        if let Some(node) = node.filter(|node| node.status.is_ready()) {
            println!("{} is Ready with {} processors", node.metadata.name, node.status.capacity["cpu"]);
            break;
        }
    }
    Ok(())
}
