//! The addresses of a cluster: a /16 of its own under 10.0.0.0/8, so that clusters meet neither each other nor the host.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::machine::{Machine, checked};

/// The second bytes that clusters take.
const NUMBERS: std::ops::Range<u8> = 20..90;

/// Where records of clusters and their claims on addresses lie.
pub(super) fn records() -> PathBuf {
    PathBuf::from("/run/coracle-clusters")
}

/// The addresses of one cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    number: u8,
}

impl Network {
    /// The network of a record.
    pub(super) fn of_number(number: u8) -> Self {
        Self { number }
    }

    /// Takes addresses that nothing on this machine uses; `is_stale` says whether a cluster's claim may be dropped.
    pub(super) fn claim(name: &str, is_stale: impl Fn(&str) -> bool) -> Result<Self> {
        let folder = records();
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let routes = checked(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?;
        let first = (std::process::id() % u32::from(NUMBERS.end - NUMBERS.start)) as u8;
        for offset in 0..NUMBERS.end - NUMBERS.start {
            let number = NUMBERS.start + (first + offset) % (NUMBERS.end - NUMBERS.start);
            let network = Self { number };
            if let Ok(owner) = std::fs::read_to_string(network.claim_file())
                && !owner.is_empty()
                && is_stale(&owner)
            {
                network.release();
            }
            if routes.contains(&format!("10.{number}.")) {
                continue;
            }
            let claimed = std::fs::OpenOptions::new().write(true).create_new(true).open(network.claim_file());
            if claimed.is_ok() {
                std::fs::write(network.claim_file(), name).context("cannot claim a network")?;
                return Ok(network);
            }
        }
        bail!("every network from 10.{}.0.0/16 on is in use; see `cargo xtask cluster status`", NUMBERS.start)
    }

    /// Gives the addresses back.
    pub(super) fn release(self) {
        let _ = std::fs::remove_file(self.claim_file());
    }

    fn claim_file(self) -> PathBuf {
        Path::new(&records()).join(format!("10.{}", self.number))
    }

    /// What records keep.
    pub(super) fn number(self) -> u8 {
        self.number
    }

    /// The API server and the way out of every node.
    pub fn control_plane(self) -> IpAddr {
        self.machine(1)
    }

    /// The API server for kube-proxy alone, so that its bytes can be told from a node's.
    pub fn control_plane_for_proxies(self) -> IpAddr {
        self.machine(3)
    }

    /// The host, on the network of the nodes.
    pub fn host(self) -> IpAddr {
        self.machine(2)
    }

    /// A node, by its number from 0.
    pub fn node(self, index: u8) -> IpAddr {
        self.machine(10 + index)
    }

    fn machine(self, last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, self.number, 0, last))
    }

    /// The addresses of services.
    pub fn services(self) -> String {
        format!("10.{}.64.0/18", self.number)
    }

    /// The address of the service `kubernetes`.
    pub fn first_service(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, self.number, 64, 1))
    }

    /// Where a cluster's DNS would answer.
    pub fn dns(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, self.number, 64, 10))
    }

    /// The addresses of pods; each node gets a /24 of it.
    pub fn pods(self) -> String {
        format!("10.{}.128.0/17", self.number)
    }

    /// Makes the bridge that all nodes hang on, in the control plane, and the host's way to it.
    pub(super) fn connect_host(self, control_plane: &Machine) -> Result<()> {
        let init = control_plane.init().to_string();
        let host = format!("cl{}", self.number);
        control_plane.run(&["ip", "link", "add", "nodes", "type", "bridge"])?;
        for address in [self.control_plane(), self.control_plane_for_proxies()] {
            control_plane.run(&["ip", "address", "add", &format!("{address}/24"), "dev", "nodes"])?;
        }
        control_plane.run(&["ip", "link", "set", "nodes", "up"])?;
        ip(&["link", "add", &host, "type", "veth", "peer", "name", "host", "netns", &init])?;
        control_plane.run(&["ip", "link", "set", "host", "master", "nodes", "up"])?;
        ip(&["address", "add", &format!("{}/24", self.host()), "dev", &host])?;
        ip(&["link", "set", &host, "up"])?;
        // Pods and services too, so that tests reach them from where they run.
        let all = format!("10.{}.0.0/16", self.number);
        ip(&["route", "add", &all, "via", &self.control_plane().to_string(), "dev", &host])
    }

    /// Hangs a node on the bridge and gives it its way out.
    pub(super) fn connect_node(self, control_plane: &Machine, node: &Machine, index: u8) -> Result<()> {
        let (there, here) = (control_plane.init().to_string(), node.init().to_string());
        let link = format!("node{index}");
        ip(&["link", "add", "eth0", "netns", &here, "type", "veth", "peer", "name", &link, "netns", &there])?;
        control_plane.run(&["ip", "link", "set", &link, "master", "nodes", "up"])?;
        node.run(&["ip", "address", "add", &format!("{}/24", self.node(index)), "dev", "eth0"])?;
        node.run(&["ip", "link", "set", "eth0", "up"])?;
        node.run(&["ip", "route", "add", "default", "via", &self.control_plane().to_string()]).map(drop)
    }

    /// Says where a node's pods are, to everybody: all others ask the control plane.
    pub(super) fn route_pods(self, control_plane: &Machine, index: u8, pods: &str) -> Result<()> {
        let node = self.node(index).to_string();
        control_plane.run(&["ip", "route", "replace", pods, "via", &node]).map(drop)
    }
}

fn ip(words: &[&str]) -> Result<()> {
    checked(Command::new("ip").args(words)).map(drop)
}
