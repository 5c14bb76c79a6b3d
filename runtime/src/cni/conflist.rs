//! Network configuration as data: finding the first conflist of a folder, the default network, what each
//! plugin of a chain is told, what its answer says. Pure but for [`first_in`], which reads the folder.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::CniError;
use crate::config::BridgeNetwork;

/// A list of plugins that together make one network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conflist {
    /// The list as written; a single plugin's configuration is wrapped into a list of one.
    pub(crate) raw: Value,
}

/// One plugin of a list.
pub(crate) struct Plugin<'a> {
    list: &'a Value,
    own: &'a Map<String, Value>,
}

impl Conflist {
    /// Accepts a conflist, or a single plugin's configuration as CNI had it before lists.
    pub(crate) fn from_value(value: Value) -> Option<Conflist> {
        let raw = match value.get("plugins") {
            Some(_) => value,
            None => json!({
                "cniVersion": value.get("cniVersion").cloned().unwrap_or_else(|| "0.2.0".into()),
                "name": value.get("name").cloned()?,
                "plugins": [value],
            }),
        };
        let named = raw.get("name").is_some_and(Value::is_string);
        let plugins = raw.get("plugins")?.as_array()?;
        let typed = plugins.iter().all(|plugin| plugin.get("type").is_some_and(Value::is_string));
        (named && typed && !plugins.is_empty()).then_some(Conflist { raw })
    }

    pub(crate) fn name(&self) -> &str {
        self.raw["name"].as_str().unwrap_or_default()
    }

    pub(crate) fn plugins(&self) -> impl DoubleEndedIterator<Item = Plugin<'_>> {
        let plugins = self.raw["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
        plugins.iter().filter_map(|plugin| Some(Plugin { list: &self.raw, own: plugin.as_object()? }))
    }

    /// Names of every executable that the list needs, address managers among them.
    pub(crate) fn executables(&self) -> impl Iterator<Item = &str> {
        let plugins = self.raw["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
        plugins.iter().flat_map(|plugin| {
            let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
            plugin["type"].as_str().into_iter().chain(ipam.filter(|ipam| !ipam.is_empty()))
        })
    }
}

impl Plugin<'_> {
    pub(crate) fn kind(&self) -> &str {
        self.own["type"].as_str().unwrap_or_default()
    }

    /// What the plugin reads on its standard input.
    pub(crate) fn configuration(&self, capabilities: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut config = self.own.clone();
        for key in ["cniVersion", "name"] {
            config.insert(key.into(), self.list[key].clone());
        }
        let declared = self.own.get("capabilities").and_then(Value::as_object);
        let given: Map<String, Value> = declared
            .into_iter()
            .flatten()
            .filter(|(_, wanted)| wanted.as_bool() == Some(true))
            .filter_map(|(name, _)| Some((name.clone(), capabilities.get(name)?.clone())))
            .collect();
        config.remove("capabilities");
        if !given.is_empty() {
            config.insert("runtimeConfig".into(), given.into());
        }
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
        config.into()
    }
}

/// The first usable network of a folder by file name, as every CNI runtime chooses it.
pub(crate) fn first_in(dir: &Path) -> Result<Option<Conflist>, CniError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => return Ok(None),
        Err(source) => return Err(CniError::Read { path: dir.into(), source }),
    };
    let mut paths: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            matches!(path.extension().and_then(|e| e.to_str()), Some("conflist" | "conf" | "json"))
        })
        .collect();
    paths.sort();
    let Some(path) = paths.into_iter().next() else { return Ok(None) };
    let text = fs::read(&path).map_err(|source| CniError::Read { path: path.clone(), source })?;
    let problem = |problem: String| CniError::Parse { path: path.clone(), problem };
    let value: Value = serde_json::from_slice(&text).map_err(|error| problem(error.to_string()))?;
    Conflist::from_value(value)
        .map(Some)
        .ok_or_else(|| problem("it needs a name and at least one plugin, each with a type".into()))
}

/// The default network: a bridge that is the pods' gateway, source NAT, and host ports for a pod that has some.
pub(crate) fn bridge(network: &BridgeNetwork, leases: &Path, host_ports: bool) -> Conflist {
    let everywhere = if network.subnet.contains(':') { "::/0" } else { "0.0.0.0/0" };
    let mut plugins = vec![json!({
        "type": "bridge",
        "bridge": network.bridge,
        "isGateway": true,
        "ipMasq": true,
        "hairpinMode": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": network.subnet}]],
            "routes": [{"dst": everywhere}],
            "dataDir": leases,
        },
    })];
    // Executing a plugin that has nothing to do would cost every pod a tenth of its start.
    if host_ports {
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    Conflist { raw: json!({"cniVersion": "1.0.0", "name": "coracle", "plugins": plugins}) }
}

/// The addresses in a result of any version of the specification, the primary first.
pub(crate) fn addresses(result: &Value) -> Vec<String> {
    let bare = |address: &Value| Some(address.as_str()?.split('/').next()?.to_owned());
    if let Some(ips) = result.get("ips").and_then(Value::as_array) {
        return ips.iter().filter_map(|ip| bare(ip.get("address")?)).collect();
    }
    // Version 0.2 had at most one address of each family.
    ["ip4", "ip6"].iter().filter_map(|family| bare(result.get(family)?.get("ip")?)).collect()
}

/// The bandwidth capability out of a pod's annotations; `None` when it sets no limit.
pub(crate) fn bandwidth(annotations: &HashMap<String, String>) -> Option<Value> {
    let rate = |name: &str| bits(annotations.get(&format!("kubernetes.io/{name}-bandwidth"))?);
    // Unlimited bursts are what a kubelet's plugins assume: the largest value the plugin takes.
    const BURST: u64 = i32::MAX as u64;
    let mut limits = Map::new();
    for direction in ["ingress", "egress"] {
        if let Some(rate) = rate(direction) {
            limits.insert(format!("{direction}Rate"), rate.into());
            limits.insert(format!("{direction}Burst"), BURST.into());
        }
    }
    (!limits.is_empty()).then(|| limits.into())
}

/// A Kubernetes quantity of bits per second.
fn bits(quantity: &str) -> Option<u64> {
    let split = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(split);
    let scale: f64 = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some((number.parse::<f64>().ok()? * scale) as u64).filter(|rate| *rate > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_name_version_previous_result_and_only_the_capabilities_it_declares() {
        let network = BridgeNetwork { bridge: "b0".into(), subnet: "10.1.0.0/24".into() };
        let list = bridge(&network, Path::new("/leases"), true);
        let capabilities = json!({"portMappings": [{"hostPort": 80}], "dns": {}});
        let previous = json!({"ips": []});
        let configs: Vec<Value> = list
            .plugins()
            .map(|plugin| plugin.configuration(capabilities.as_object().unwrap(), Some(&previous)))
            .collect();
        assert_eq!(configs[0]["name"], "coracle");
        assert_eq!(configs[0]["prevResult"], previous);
        assert!(configs[0].get("runtimeConfig").is_none());
        assert_eq!(configs[1]["runtimeConfig"], json!({"portMappings": [{"hostPort": 80}]}));
        assert!(configs[1].get("capabilities").is_none());
        assert_eq!(list.executables().collect::<Vec<_>>(), ["bridge", "host-local", "portmap"]);
    }

    #[test]
    fn the_first_file_by_name_wins_and_a_broken_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(first_in(dir.path()).unwrap(), None);
        fs::write(dir.path().join("20-b.conflist"), r#"{"name":"b","plugins":[{"type":"bridge"}]}"#).unwrap();
        fs::write(dir.path().join("10-a.conf"), r#"{"name":"a","type":"macvlan"}"#).unwrap();
        fs::write(dir.path().join("00-readme.txt"), "not ours").unwrap();
        let list = first_in(dir.path()).unwrap().unwrap();
        assert_eq!((list.name(), list.plugins().next().unwrap().kind()), ("a", "macvlan"));
        fs::write(dir.path().join("05-broken.conflist"), "{").unwrap();
        let error = first_in(dir.path()).unwrap_err().to_string();
        assert!(error.contains("05-broken.conflist"), "{error}");
    }

    #[test]
    fn addresses_of_old_and_new_results() {
        let new = json!({"ips": [{"address": "10.1.0.5/24"}, {"address": "fd00::5/64"}]});
        assert_eq!(addresses(&new), ["10.1.0.5", "fd00::5"]);
        let old = json!({"ip4": {"ip": "10.1.0.6/24"}});
        assert_eq!(addresses(&old), ["10.1.0.6"]);
    }

    #[test]
    fn bandwidth_annotations_become_bits() {
        let annotations = HashMap::from([("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned())]);
        assert_eq!(bandwidth(&annotations).unwrap()["ingressRate"], 10_000_000);
        assert_eq!(bandwidth(&HashMap::new()), None);
    }
}
