//! The addresses of this node: those that were given, or the one that packets to elsewhere leave from, as it changes.
//!
//! Whoever needs them reads [`NodeIps`] at that moment, or follows it. [`NodeIps::keep`], a task of the agent's, hears
//! from the kernel when addresses or routes change and looks again; nothing is asked for meanwhile.

mod sys;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use sys::RouteChanges;

/// One change brings many messages: so long after the first they are read.
const SETTLE: Duration = Duration::from_millis(500);

/// A handle on the node's addresses, primary first. Clones are the same.
#[derive(Clone, Debug)]
pub struct NodeIps {
    /// Which routes are asked; none where the addresses were given.
    families: &'static [Family],
    now: watch::Sender<Arc<[IpAddr]>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl NodeIps {
    /// These, whatever becomes of the machine.
    pub fn given(ips: impl Into<Arc<[IpAddr]>>) -> Self {
        Self { families: &[], now: watch::Sender::new(ips.into()) }
    }

    /// As the flag `--node-ip` names them: with none, the address of the default route, which is looked for now;
    /// with `0.0.0.0` or `::`, that of this family.
    pub fn of_flag(given: &[IpAddr]) -> Self {
        let families: &[Family] = match given {
            [] => &[Family::V4, Family::V6],
            [IpAddr::V4(ip)] if ip.is_unspecified() => &[Family::V4],
            [IpAddr::V6(ip)] if ip.is_unspecified() => &[Family::V6],
            given => return Self::given(given),
        };
        let ips = Self { families, now: watch::Sender::default() };
        ips.look();
        ips
    }

    /// The addresses now; none while the machine has had none yet.
    pub fn now(&self) -> Arc<[IpAddr]> {
        self.now.borrow().clone()
    }

    /// The same for pods, which run without a network too: loopback while there is nothing else.
    pub fn for_pods(&self) -> Arc<[IpAddr]> {
        let now = self.now();
        if now.is_empty() { Arc::new([IpAddr::V4(Ipv4Addr::LOCALHOST)]) } else { now }
    }

    /// The addresses as they change.
    pub fn follow(&self) -> watch::Receiver<Arc<[IpAddr]>> {
        self.now.subscribe()
    }

    /// What the machine's routes say at this moment, perhaps nothing; who follows is told. A network that is away for
    /// a while leaves what was known.
    pub fn look(&self) -> Arc<[IpAddr]> {
        if self.families.is_empty() {
            return self.now();
        }
        let Some(ip) = self.families.iter().find_map(|family| routed(*family)) else { return Arc::new([]) };
        self.now.send_if_modified(|now| {
            let is_news = **now != [ip];
            if is_news {
                *now = Arc::new([ip]);
            }
            is_news
        });
        self.now()
    }

    /// Looks again whenever the kernel tells of a change. Runs until dropped.
    pub async fn keep(self) {
        if self.families.is_empty() {
            return;
        }
        if let Err(error) = self.hear().await {
            tracing::warn!(%error, "changes of the machine's addresses are not heard of; restart after one, or give --node-ip");
        }
    }

    async fn hear(&self) -> io::Result<()> {
        let mut changes = RouteChanges::new()?;
        loop {
            // The first look sees what changed before.
            self.look();
            changes.next().await?;
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// What a change of the machine does.
    #[cfg(test)]
    pub(crate) fn set(&self, ips: impl Into<Arc<[IpAddr]>>) {
        self.now.send_replace(ips.into());
    }
}

/// Connecting a datagram socket asks the routing table and sends nothing; the targets are nobody's addresses.
fn routed(family: Family) -> Option<IpAddr> {
    let (own, target): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    };
    let socket = UdpSocket::bind((own, 0)).ok()?;
    socket.connect((target, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests;
