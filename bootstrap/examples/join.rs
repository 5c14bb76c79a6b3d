//! Joins a cluster and stays joined, without being a node:
//! `join NAME FOLDER [SERVER TOKEN CA-HASH]`. Without the last three it uses what an earlier run left in FOLDER.
//!
//! Prints the certificates it has and every new one, and whether the API server answers.
#![allow(clippy::print_stdout, reason = "it is a command")]

use coracle_bootstrap::{Certificate, Identity, IdentityConfig, JoinConfig, Serving, Source, SubjectName};
use coracle_cluster::{Change, Object, Resource, Scope};
use futures_util::StreamExt as _;

#[derive(serde::Deserialize)]
struct Service {
    metadata: Metadata,
}

#[derive(serde::Deserialize)]
struct Metadata {
    name: String,
}

impl Object for Service {
    const RESOURCE: Resource = Resource::namespaced("", "v1", "services", "Service");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (name, folder, servers, source) = match words[..] {
        [name, folder] => (name, folder, Vec::new(), Source::Held),
        [name, folder, server, token, hash] => {
            let source = Source::Token { token: token.parse()?, ca_hashes: vec![hash.parse()?] };
            (name, folder, vec![server.parse()?], source)
        }
        _ => return Err("usage: join NAME FOLDER [SERVER TOKEN CA-HASH]".into()),
    };
    let mut join = JoinConfig::new(name, folder, source);
    join.servers = servers;
    let names = vec![SubjectName::parse(name), SubjectName::parse("127.0.0.1")];
    let (_sender, addresses) = tokio::sync::watch::channel(names);
    let identity = match Identity::start(IdentityConfig {
        join,
        serving: Serving::Request,
        addresses,
        client_ca_file: None,
    })
    .await
    {
        Ok(identity) => identity,
        Err(error) => {
            let mut cause = std::error::Error::source(&error);
            println!("{error}");
            while let Some(error) = cause {
                println!("  because: {error}");
                cause = error.source();
            }
            std::process::exit(1);
        }
    };

    let mut client = identity.client_certificate();
    let mut serving = identity.serving().watch();
    let cluster = identity.cluster();
    let mut connection = cluster.connection();
    let mut services = std::pin::pin!(cluster.watch::<Service>(Scope::all()));
    client.mark_changed();
    serving.mark_changed();
    loop {
        // All arms are cancel-safe: what they wait for stays noted.
        tokio::select! {
            Ok(()) = client.changed() => {
                let certificate = client.borrow_and_update().clone();
                println!("client certificate: {}", certificate.map_or_else(|| "none".to_owned(), |it| show(&it)));
            }
            Ok(()) = serving.changed() => {
                let certificate = Certificate::parse(&serving.borrow_and_update().cert[0]);
                println!("serving certificate: {}", certificate.map_or_else(|| "odd".to_owned(), |it| show(&it)));
            }
            Ok(()) = connection.changed() => println!("connection: {:?}", *connection.borrow_and_update()),
            Some(change) = services.next() => match change {
                Change::Listed(service) | Change::Applied(service) => println!("service {}", service.metadata.name),
                Change::Deleted(service) => println!("service {} is gone", service.metadata.name),
                Change::Restart => println!("services:"),
                Change::Ready => println!("that is all"),
            },
        }
    }
}

fn show(certificate: &Certificate) -> String {
    let life = certificate.lifetime().as_secs();
    format!("{} for {:?}, counts for {life} s", certificate.common_name, certificate.names)
}
