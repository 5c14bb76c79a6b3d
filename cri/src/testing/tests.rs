//! The fake behaves as containerd where a kubelet can tell.
