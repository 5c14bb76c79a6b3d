//! Which program comes from which module, and how it is built. Data only; versions are read from go.mod.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// How a program is compiled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Compiler {
    /// `go build` without C.
    Go,
    /// `go build` with C.
    Cgo,
    /// `go test -c`: a suite.
    GoTest,
    /// A C file of the module's main dependency.
    C,
}

/// A program.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) name: &'static str,
    /// A package for Go, a file for C.
    pub(super) package: &'static str,
    pub(super) compiler: Compiler,
    pub(super) tags: &'static str,
    /// Names it is called by besides, which decide what it does.
    pub(super) aliases: &'static [&'static str],
}

/// A Go module of ours.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: &'static str,
    /// The module whose version the programs bear.
    pub(super) of: &'static str,
    /// Variables that the linker sets, with `{version}`, `{major}` and `{minor}` to be filled in.
    variables: &'static [&'static str],
    pub(super) products: &'static [Product],
}

const fn go(name: &'static str, package: &'static str) -> Product {
    Product { name, package, compiler: Compiler::Go, tags: "", aliases: &[] }
}

/// All of them, in the order in which they are built.
pub(super) const MODULES: &[Module] = &[
    Module {
        name: "kubernetes",
        of: "k8s.io/kubernetes",
        // Without these every component calls itself v0.0.0, and version skews are judged by it.
        variables: &[
            "k8s.io/component-base/version.gitVersion={version}",
            "k8s.io/component-base/version.gitMajor={major}",
            "k8s.io/component-base/version.gitMinor={minor}",
            "k8s.io/client-go/pkg/version.gitVersion={version}",
            "k8s.io/client-go/pkg/version.gitMajor={major}",
            "k8s.io/client-go/pkg/version.gitMinor={minor}",
        ],
        products: &[
            Product {
                aliases: &[
                    "etcd",
                    "kube-apiserver",
                    "kube-controller-manager",
                    "kube-proxy",
                    "kube-scheduler",
                    "kubectl",
                    "serving-approver",
                ],
                ..go("control-plane", "./control-plane")
            },
            Product { compiler: Compiler::C, ..go("pause", "build/pause/linux/pause.c") },
            go("kubelet", "./kubelet"),
            go("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
            go("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo"),
            Product { compiler: Compiler::GoTest, ..go("e2e.test", "k8s.io/kubernetes/test/e2e") },
        ],
    },
    Module {
        name: "containers",
        of: "github.com/containerd/containerd/v2",
        variables: &["github.com/containerd/containerd/v2/version.Version={version}"],
        products: &[
            go("registry", "github.com/distribution/distribution/v3/cmd/registry"),
            go("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            go("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
            go("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
            Product {
                compiler: Compiler::Cgo,
                tags: "seccomp",
                ..go("runc", "github.com/opencontainers/runc")
            },
            go("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            go("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
            go("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            go("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
        ],
    },
    Module {
        name: "nvidia-container-toolkit",
        of: "github.com/NVIDIA/nvidia-container-toolkit",
        variables: &["github.com/NVIDIA/nvidia-container-toolkit/internal/info.version={version}"],
        products: &[Product {
            compiler: Compiler::Cgo,
            ..go(
                "nvidia-container-runtime",
                "github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-container-runtime",
            )
        }],
    },
    Module {
        name: "metrics-server",
        of: "sigs.k8s.io/metrics-server",
        variables: &["sigs.k8s.io/metrics-server/pkg/version.gitVersion={version}"],
        products: &[go("metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server")],
    },
    Module {
        name: "cri-tools",
        of: "sigs.k8s.io/cri-tools",
        variables: &["sigs.k8s.io/cri-tools/pkg/version.Version={version}"],
        products: &[
            go("crictl", "sigs.k8s.io/cri-tools/cmd/crictl"),
            Product { compiler: Compiler::GoTest, ..go("critest", "sigs.k8s.io/cri-tools/cmd/critest") },
        ],
    },
];

impl Module {
    /// Where its files lie.
    pub(super) fn folder(&self) -> PathBuf {
        crate::repository().join("integration-tests/peers").join(self.name)
    }

    /// The version that go.mod pins, such as `v1.36.3`.
    pub(super) fn version(&self) -> Result<String> {
        let path = self.folder().join("go.mod");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let version = text.lines().find_map(|line| {
            let line = line.trim().trim_start_matches("require ");
            let version = line.strip_prefix(self.of)?.strip_prefix(' ')?;
            version.split_whitespace().next().filter(|version| version.starts_with('v')).map(str::to_owned)
        });
        version.with_context(|| format!("{} names no version of {}", path.display(), self.of))
    }

    /// The flags of the linker: no symbols, as releases have it, and the version.
    pub(super) fn ldflags(&self) -> Result<String> {
        let version = self.version()?;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        let mut flags = "-s -w".to_owned();
        for variable in self.variables {
            let set =
                variable.replace("{version}", &version).replace("{major}", major).replace("{minor}", minor);
            flags.push_str(" -X ");
            flags.push_str(&set);
        }
        Ok(flags)
    }
}
