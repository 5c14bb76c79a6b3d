//! Gates: a maker and a network plugin that stop at a named point until they may go on, so that a test kills in just that
//! phase and not at a random moment.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::LIMIT;

/// The functions that both scripts begin with.
const HOLD: &str = r#"#!/bin/sh
hold() {
    [ -e "GATES/$1.hold" ] || return 0
    echo $$ > "GATES/$1.$$"
    mv "GATES/$1.$$" "GATES/$1.at"
    while [ -e "GATES/$1.hold" ]; do sleep 0.02; done
}
"#;

/// A maker, called by a script that may stop before and after it.
const MAKER: &str = r#"
for word; do case $word in create|start|exec|delete) verb=$word; break;; esac; done
hold "$verb-before"
MAKER "$@"
code=$?
hold "$verb-after"
exit $code
"#;

/// A network whose only trace is a file for each sandbox in it.
const PLUGIN: &str = r#"
cat > /dev/null
hold "net-$CNI_COMMAND"
case $CNI_COMMAND in
ADD) touch "GATES/net/$CNI_CONTAINERID"
    echo '{"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.9.9.9/32"}]}';;
DEL) rm -f "GATES/net/$CNI_CONTAINERID";;
esac
"#;

/// The gates of one node.
pub(super) struct Gates(PathBuf);

impl Gates {
    /// Writes the scripts `maker` and `bin/gate` into a folder. The maker is ours, or that of `CORACLE_TEST_MAKER`.
    pub(super) fn make(folder: &Path, coracle: &Path) -> Self {
        let given = std::env::var("CORACLE_TEST_MAKER").ok();
        let maker = given.unwrap_or_else(|| format!("{} oci", coracle.display()));
        let gates = folder.join("gates");
        fs::create_dir_all(gates.join("net")).unwrap();
        fs::create_dir_all(folder.join("bin")).unwrap();
        for (name, text) in [("maker", MAKER), ("bin/gate", PLUGIN)] {
            let text = format!("{HOLD}{text}").replace("GATES", &gates.to_string_lossy());
            let path = folder.join(name);
            fs::write(&path, text.replace("MAKER", &maker)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(gates)
    }

    /// From now on whoever comes to this point waits.
    pub(super) fn close(&self, name: &str) {
        let _ = fs::remove_file(self.0.join(format!("{name}.at")));
        fs::write(self.0.join(format!("{name}.hold")), "").unwrap();
    }

    /// Waits until somebody waits there; its process.
    pub(super) fn reached(&self, name: &str) -> u32 {
        let begun = Instant::now();
        loop {
            let text = fs::read_to_string(self.0.join(format!("{name}.at"))).unwrap_or_default();
            if let Ok(pid) = text.trim().parse() {
                return pid;
            }
            assert!(begun.elapsed() < LIMIT, "nobody came to {name}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn open(&self, name: &str) {
        let _ = fs::remove_file(self.0.join(format!("{name}.hold")));
    }

    /// Sandboxes that the network still knows.
    pub(super) fn in_network(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.join("net")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }
}
