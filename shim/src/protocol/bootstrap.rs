//! What a containerd and a shim tell each other when the shim starts, by field number after
//! `runtime/bootstrap/v1/bootstrap.proto`, `types/introspection.proto` and the two kinds of runtime options. Plain data
//! for both sides.
//!
//! containerd 2.3 and newer write [`BootstrapParams`] to `start`'s standard input and read [`BootstrapResult`] from its
//! standard output; older ones write the options alone and read an address.

use std::collections::BTreeMap;

use super::Any;

/// What a shim is started with.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapParams {
    /// The container that is to be made first; for a pod, its sandbox.
    #[prost(string, tag = "1")]
    pub instance_id: String,
    /// containerd's namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// 0 is info, less is more.
    #[prost(int32, tag = "3")]
    pub log_level: i32,
    /// Release of the caller.
    #[prost(string, tag = "4")]
    pub containerd_version: String,
    /// Where events go.
    #[prost(string, tag = "5")]
    pub containerd_ttrpc_address: String,
    /// The caller's API.
    #[prost(string, tag = "6")]
    pub containerd_grpc_address: String,
    /// The caller's program.
    #[prost(string, tag = "7")]
    pub containerd_binary: String,
    /// Options of the runtime, among others.
    #[prost(message, repeated, tag = "8")]
    pub extensions: Vec<Extension>,
    /// Where the shim's socket is to be.
    #[prost(string, optional, tag = "9")]
    pub socket_dir: Option<String>,
}

/// Something of a type that is named in it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Extension {
    /// It.
    #[prost(message, optional, tag = "1")]
    pub value: Option<Any>,
}

/// How the started shim is reached.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapResult {
    /// Version of the Task API: 2 or 3.
    #[prost(int32, tag = "1")]
    pub version: i32,
    /// `unix://` and a path.
    #[prost(string, tag = "2")]
    pub address: String,
    /// `ttrpc`, or `grpc` for shims that speak that.
    #[prost(string, tag = "3")]
    pub protocol: String,
}

/// `containerd.runc.v1.Options`: the options of a runtime whose type is runc's.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuncOptions {
    /// Not to use pivot_root.
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    /// Not to make a session keyring.
    #[prost(bool, tag = "2")]
    pub no_new_keyring: bool,
    /// The shim's cgroup.
    #[prost(string, tag = "3")]
    pub shim_cgroup: String,
    /// Owner of the container's standard streams.
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    /// Its group.
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    /// The maker.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// The maker's state folder.
    #[prost(string, tag = "7")]
    pub root: String,
    /// Whether cgroup paths are systemd's.
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
}

/// `runtimeoptions.v1.Options`: the options of every other type of runtime.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GenericOptions {
    /// Not read.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// A file of TOML.
    #[prost(string, tag = "2")]
    pub config_path: String,
    /// The options as TOML, when there is no file.
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

/// The type of [`RuncOptions`].
pub const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// The type of [`GenericOptions`].
pub const GENERIC_OPTIONS: &str = "runtimeoptions.v1.Options";

/// What `-info` prints.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeInfo {
    /// Type of the runtime.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Release of the shim.
    #[prost(message, optional, tag = "2")]
    pub version: Option<RuntimeVersion>,
    /// The options that were given.
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
    /// What the maker's `features` prints.
    #[prost(message, optional, tag = "4")]
    pub features: Option<Any>,
    /// None.
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
}

/// A release.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeVersion {
    /// Its number.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Its commit.
    #[prost(string, tag = "2")]
    pub revision: String,
}

/// The type of a maker's features, which are JSON.
pub const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
