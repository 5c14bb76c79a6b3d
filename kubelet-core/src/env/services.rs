//! Variables that tell a container where the services of its namespace are.
//!
//! Pure; the names and values are those of the kubelet's `envvars.FromServices`.

use crate::objects::Service;

/// Sets the variables of each service, a later one over an earlier one of the same name.
pub(super) fn service_variables(services: &[Service], mut set: impl FnMut(String, String)) {
    for service in services {
        if matches!(service.cluster_ip.as_str(), "" | "None") {
            continue;
        }
        let Some(first) = service.ports.first() else { continue };
        let prefix = variable_name(&service.name);
        set(format!("{prefix}_SERVICE_HOST"), service.cluster_ip.clone());
        set(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
            let name = variable_name(&port.name);
            set(format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string());
        }
        for (index, port) in service.ports.iter().enumerate() {
            let protocol = if port.protocol.is_empty() { "TCP" } else { port.protocol.as_str() };
            let scheme = protocol.to_lowercase();
            let url = if service.cluster_ip.contains(':') {
                format!("{scheme}://[{}]:{}", service.cluster_ip, port.port)
            } else {
                format!("{scheme}://{}:{}", service.cluster_ip, port.port)
            };
            if index == 0 {
                set(format!("{prefix}_PORT"), url.clone());
            }
            let prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            set(prefix.clone(), url);
            set(format!("{prefix}_PROTO"), scheme);
            set(format!("{prefix}_PORT"), port.port.to_string());
            set(format!("{prefix}_ADDR"), service.cluster_ip.clone());
        }
    }
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::ServicePort;

    #[test]
    fn a_service_is_told_as_docker_links_were() {
        let port = |name: &str, protocol: &str, port| ServicePort {
            name: name.into(),
            protocol: protocol.into(),
            port,
        };
        let services = [
            Service { name: "no-ip".into(), cluster_ip: "None".into(), ports: vec![port("", "TCP", 1)] },
            Service {
                name: "my-db".into(),
                cluster_ip: "10.0.0.9".into(),
                ports: vec![port("sql", "TCP", 5432), port("stats", "UDP", 9)],
            },
            Service { name: "six".into(), cluster_ip: "fd00::1".into(), ports: vec![port("", "", 80)] },
        ];
        let mut variables = Vec::new();
        service_variables(&services, |name, value| variables.push(format!("{name}={value}")));
        assert_eq!(
            variables,
            [
                "MY_DB_SERVICE_HOST=10.0.0.9",
                "MY_DB_SERVICE_PORT=5432",
                "MY_DB_SERVICE_PORT_SQL=5432",
                "MY_DB_SERVICE_PORT_STATS=9",
                "MY_DB_PORT=tcp://10.0.0.9:5432",
                "MY_DB_PORT_5432_TCP=tcp://10.0.0.9:5432",
                "MY_DB_PORT_5432_TCP_PROTO=tcp",
                "MY_DB_PORT_5432_TCP_PORT=5432",
                "MY_DB_PORT_5432_TCP_ADDR=10.0.0.9",
                "MY_DB_PORT_9_UDP=udp://10.0.0.9:9",
                "MY_DB_PORT_9_UDP_PROTO=udp",
                "MY_DB_PORT_9_UDP_PORT=9",
                "MY_DB_PORT_9_UDP_ADDR=10.0.0.9",
                "SIX_SERVICE_HOST=fd00::1",
                "SIX_SERVICE_PORT=80",
                "SIX_PORT=tcp://[fd00::1]:80",
                "SIX_PORT_80_TCP=tcp://[fd00::1]:80",
                "SIX_PORT_80_TCP_PROTO=tcp",
                "SIX_PORT_80_TCP_PORT=80",
                "SIX_PORT_80_TCP_ADDR=fd00::1",
            ]
        );
    }
}
