//! What a container uses, as containerd's shims answer Stats: `io.containerd.cgroups.v1.Metrics` and `….v2.Metrics` of
//! `github.com/containerd/cgroups`, by field number, as far as a kubelet reads them. Plain data.

/// The type of [`v1::Metrics`].
pub const V1: &str = "io.containerd.cgroups.v1.Metrics";
/// The type of [`v2::Metrics`].
pub const V2: &str = "io.containerd.cgroups.v2.Metrics";

/// Of cgroup version 1.
pub mod v1 {
    /// A container's use.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Metrics {
        /// Processes.
        #[prost(message, optional, tag = "2")]
        pub pids: Option<Pids>,
        /// Processor time.
        #[prost(message, optional, tag = "3")]
        pub cpu: Option<Cpu>,
        /// Memory.
        #[prost(message, optional, tag = "4")]
        pub memory: Option<Memory>,
    }

    /// Processes.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct Pids {
        /// How many there are.
        #[prost(uint64, tag = "1")]
        pub current: u64,
        /// How many there may be; 0 is without a limit.
        #[prost(uint64, tag = "2")]
        pub limit: u64,
    }

    /// Processor time.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct Cpu {
        /// Used.
        #[prost(message, optional, tag = "1")]
        pub usage: Option<CpuUsage>,
        /// Denied.
        #[prost(message, optional, tag = "2")]
        pub throttling: Option<Throttle>,
    }

    /// Nanoseconds.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct CpuUsage {
        /// In all.
        #[prost(uint64, tag = "1")]
        pub total: u64,
        /// Of these in the kernel.
        #[prost(uint64, tag = "2")]
        pub kernel: u64,
        /// Of these in user space.
        #[prost(uint64, tag = "3")]
        pub user: u64,
    }

    /// How often the quota held it up.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct Throttle {
        /// Periods that have passed.
        #[prost(uint64, tag = "1")]
        pub periods: u64,
        /// Of these with a hold-up.
        #[prost(uint64, tag = "2")]
        pub throttled_periods: u64,
        /// Nanoseconds.
        #[prost(uint64, tag = "3")]
        pub throttled_time: u64,
    }

    /// Memory in bytes, faults in numbers.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct Memory {
        /// Of files, this cgroup alone.
        #[prost(uint64, tag = "1")]
        pub cache: u64,
        /// Of processes, this cgroup alone.
        #[prost(uint64, tag = "2")]
        pub rss: u64,
        /// Mapped files, this cgroup alone.
        #[prost(uint64, tag = "4")]
        pub mapped_file: u64,
        /// Faults, this cgroup alone.
        #[prost(uint64, tag = "9")]
        pub pg_fault: u64,
        /// Faults that read from a disk, this cgroup alone.
        #[prost(uint64, tag = "10")]
        pub pg_maj_fault: u64,
        /// Of files.
        #[prost(uint64, tag = "18")]
        pub total_cache: u64,
        /// Of processes.
        #[prost(uint64, tag = "19")]
        pub total_rss: u64,
        /// Mapped files.
        #[prost(uint64, tag = "21")]
        pub total_mapped_file: u64,
        /// Faults.
        #[prost(uint64, tag = "26")]
        pub total_pg_fault: u64,
        /// Faults that read from a disk.
        #[prost(uint64, tag = "27")]
        pub total_pg_maj_fault: u64,
        /// Of processes, long unused.
        #[prost(uint64, tag = "28")]
        pub total_inactive_anon: u64,
        /// Of processes, in use.
        #[prost(uint64, tag = "29")]
        pub total_active_anon: u64,
        /// Of files, long unused.
        #[prost(uint64, tag = "30")]
        pub total_inactive_file: u64,
        /// Of files, in use.
        #[prost(uint64, tag = "31")]
        pub total_active_file: u64,
        /// What is charged.
        #[prost(message, optional, tag = "33")]
        pub usage: Option<MemoryEntry>,
        /// What is charged, swap among it.
        #[prost(message, optional, tag = "34")]
        pub swap: Option<MemoryEntry>,
    }

    /// One counter of memory.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct MemoryEntry {
        /// What it may grow to.
        #[prost(uint64, tag = "1")]
        pub limit: u64,
        /// Now.
        #[prost(uint64, tag = "2")]
        pub usage: u64,
        /// At most so far.
        #[prost(uint64, tag = "3")]
        pub max: u64,
        /// How often the limit was hit.
        #[prost(uint64, tag = "4")]
        pub failcnt: u64,
    }
}

/// Of cgroup version 2.
pub mod v2 {
    pub use super::v1::Pids;

    /// A container's use.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Metrics {
        /// Processes.
        #[prost(message, optional, tag = "1")]
        pub pids: Option<Pids>,
        /// Processor time.
        #[prost(message, optional, tag = "2")]
        pub cpu: Option<Cpu>,
        /// Memory.
        #[prost(message, optional, tag = "4")]
        pub memory: Option<Memory>,
    }

    /// Microseconds, and numbers of periods.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct Cpu {
        /// In all.
        #[prost(uint64, tag = "1")]
        pub usage_usec: u64,
        /// Of these in user space.
        #[prost(uint64, tag = "2")]
        pub user_usec: u64,
        /// Of these in the kernel.
        #[prost(uint64, tag = "3")]
        pub system_usec: u64,
        /// Periods that have passed.
        #[prost(uint64, tag = "4")]
        pub nr_periods: u64,
        /// Of these with a hold-up.
        #[prost(uint64, tag = "5")]
        pub nr_throttled: u64,
        /// Held up.
        #[prost(uint64, tag = "6")]
        pub throttled_usec: u64,
    }

    /// Memory in bytes, faults in numbers.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct Memory {
        /// Of processes.
        #[prost(uint64, tag = "1")]
        pub anon: u64,
        /// Of files.
        #[prost(uint64, tag = "2")]
        pub file: u64,
        /// Mapped files.
        #[prost(uint64, tag = "7")]
        pub file_mapped: u64,
        /// Of processes, long unused.
        #[prost(uint64, tag = "11")]
        pub inactive_anon: u64,
        /// Of processes, in use.
        #[prost(uint64, tag = "12")]
        pub active_anon: u64,
        /// Of files, long unused.
        #[prost(uint64, tag = "13")]
        pub inactive_file: u64,
        /// Of files, in use.
        #[prost(uint64, tag = "14")]
        pub active_file: u64,
        /// Faults.
        #[prost(uint64, tag = "18")]
        pub pgfault: u64,
        /// Faults that read from a disk.
        #[prost(uint64, tag = "19")]
        pub pgmajfault: u64,
        /// What is charged.
        #[prost(uint64, tag = "32")]
        pub usage: u64,
        /// What that may grow to; the largest number is without a limit.
        #[prost(uint64, tag = "33")]
        pub usage_limit: u64,
        /// Swap.
        #[prost(uint64, tag = "34")]
        pub swap_usage: u64,
        /// What that may grow to.
        #[prost(uint64, tag = "35")]
        pub swap_limit: u64,
    }
}
