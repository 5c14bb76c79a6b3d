//! containerd's settings, in the form that its release reads. Whoever starts one fills them in.

use std::path::Path;

use super::Release;

/// Where a containerd has what.
pub(crate) struct Settings<'a> {
    pub(crate) release: Release,
    pub(crate) root: &'a Path,
    pub(crate) state: &'a Path,
    pub(crate) socket: &'a Path,
    /// The image of sandboxes.
    pub(crate) sandbox: &'a str,
    /// CNI's plugins.
    pub(crate) plugins: &'a Path,
    /// CNI's networks.
    pub(crate) networks: &'a Path,
    /// runc, if not the one in `PATH`.
    pub(crate) runc: Option<&'a Path>,
    /// Other runtime handlers, by name and type.
    pub(crate) handlers: &'a [(&'a str, &'a str)],
}

impl Settings<'_> {
    /// The file's text. Tables may follow.
    pub(crate) fn text(&self) -> String {
        let Settings { root, state, socket, sandbox, plugins, networks, .. } = self;
        let (version, cri, image, plugins) = match self.release {
            Release::Debian => (
                2,
                "io.containerd.grpc.v1.cri",
                format!("sandbox_image = {sandbox:?}\n"),
                format!("bin_dir = {plugins:?}"),
            ),
            Release::Newest => {
                (3, "io.containerd.cri.v1.runtime", String::new(), format!("bin_dirs = [{plugins:?}]"))
            }
        };
        let mut text = format!(
            r#"version = {version}
root = {root:?}
state = {state:?}
[grpc]
address = {socket:?}
[plugins.'{cri}']
disable_apparmor = true
restrict_oom_score_adj = true
{image}[plugins.'{cri}'.cni]
{plugins}
conf_dir = {networks:?}
"#
        );
        if self.release == Release::Newest {
            text +=
                &format!("[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = {sandbox:?}\n");
        }
        for (name, kind) in [("runc", "io.containerd.runc.v2")].iter().chain(self.handlers) {
            let handler = format!("plugins.'{cri}'.containerd.runtimes.{name}");
            text += &format!("[{handler}]\nruntime_type = {kind:?}\n");
            if let Some(runc) = self.runc {
                text += &format!("[{handler}.options]\nBinaryName = {runc:?}\n");
            }
        }
        text
    }
}
