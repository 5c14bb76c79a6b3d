//! Addresses of a machine that changes: a network namespace of the test's own.
#![allow(unsafe_code, reason = "a thread leaves the machine's network")]

use std::process::Command;

use rustix::thread::UnshareFlags;

use super::*;

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}

#[test]
fn given_addresses_stay_and_none_is_loopback_for_pods() {
    let given = NodeIps::of_flag(&[IpAddr::from([192, 0, 2, 7])]);
    assert_eq!(*given.look(), [IpAddr::from([192, 0, 2, 7])]);
    assert_eq!(given.for_pods(), given.now());
    let none = NodeIps::given([]);
    assert!(none.now().is_empty());
    assert_eq!(*none.for_pods(), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
}

#[test]
fn a_network_that_comes_and_changes_is_followed() {
    let in_a_network_of_its_own = std::thread::spawn(|| {
        // SAFETY: only this thread's network changes, and it ends with the test.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(follow());
    });
    in_a_network_of_its_own.join().unwrap();
}

async fn follow() {
    let ips = NodeIps::of_flag(&[]);
    assert!(ips.now().is_empty());
    let mut seen = ips.follow();
    let keeping = tokio::spawn(ips.clone().keep());
    let mut until = async |wanted: &str| {
        let wanted: IpAddr = wanted.parse().unwrap();
        let found = seen.wait_for(|ips| **ips == [wanted]);
        tokio::time::timeout(Duration::from_secs(60), found).await.expect("within a minute").unwrap();
    };
    // The task is to hear of it, not to find it when it begins.
    tokio::task::yield_now().await;
    ip("link add uplink type veth peer name far");
    ip("link set far up");
    ip("link set uplink up");
    ip("-6 addr add 2001:db8:7::5/64 dev uplink nodad");
    ip("-6 route add default via 2001:db8:7::1 dev uplink");
    until("2001:db8:7::5").await;
    ip("addr add 198.51.100.5/24 dev uplink");
    ip("route add default via 198.51.100.1 dev uplink");
    until("198.51.100.5").await;
    ip("addr add 203.0.113.9/24 dev uplink");
    ip("route replace default via 203.0.113.1 dev uplink");
    until("203.0.113.9").await;
    ip("link set uplink down");
    assert!(ips.look().is_empty());
    assert_eq!(*ips.now(), [IpAddr::from([203, 0, 113, 9])]);
    keeping.abort();
}
