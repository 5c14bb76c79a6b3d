//! Which of an index's images runs here. Pure but for [`Platform::host`].

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, by Go's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, `arm`, …
    #[serde(default)]
    pub architecture: String,
    /// `v8`, `v7`, …; empty where there is none.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", arm_variant()),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// How well an image suits this platform, lower is better; `None` when it does not run here.
    ///
    /// As containerd's `platforms.Only`: an older variant of Arm runs on a newer one, and 32-bit Arm as the last
    /// choice on 64-bit, x86 on amd64 likewise.
    pub fn rank(&self, image: &Platform) -> Option<u32> {
        if image.os != self.os {
            return None;
        }
        let own = level(&self.architecture, &self.variant)?;
        let its = level(&image.architecture, &image.variant)?;
        if self.architecture == image.architecture {
            return own.checked_sub(its);
        }
        match (self.architecture.as_str(), image.architecture.as_str()) {
            ("arm64", "arm") => Some(100 + 8_u32.checked_sub(its)?),
            ("amd64", "386") => Some(100),
            _ => None,
        }
    }

    /// `os/architecture/variant`.
    pub fn name(&self) -> String {
        let parts = [&self.os, &self.architecture, &self.variant];
        let parts: Vec<&str> =
            parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        parts.join("/")
    }
}

/// The number of a variant; an absent one is what builders of that architecture mean by default.
fn level(architecture: &str, variant: &str) -> Option<u32> {
    match (architecture, variant) {
        ("arm64", "") => Some(8),
        ("arm", "") => Some(7),
        ("amd64", "") => Some(1),
        (_, "") => Some(0),
        (_, variant) => variant.strip_prefix('v')?.split('.').next()?.parse().ok(),
    }
}

/// The variant of a 32-bit Arm machine, from what the kernel says of its CPU.
fn arm_variant() -> &'static str {
    let machine = rustix::system::uname();
    match machine.machine().to_bytes() {
        b"armv5l" | b"armv5tel" | b"armv5tejl" => "v5",
        b"armv6l" => "v6",
        // A 64-bit kernel under a 32-bit agent says armv8l or aarch64.
        _ => "v7",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(name: &str) -> Platform {
        let mut parts = name.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    #[test]
    fn takes_the_best_variant() {
        let choose = |host: &str, offered: &[&'static str]| -> Option<&'static str> {
            let ranked = offered.iter().filter_map(|o| Some((platform(host).rank(&platform(o))?, *o)));
            ranked.min().map(|(_, offered)| offered)
        };
        let arms = ["linux/amd64", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"];
        assert_eq!(choose("linux/arm/v7", &arms), Some("linux/arm/v7"));
        assert_eq!(choose("linux/arm/v6", &arms), Some("linux/arm/v6"));
        assert_eq!(choose("linux/arm64/v8", &arms), Some("linux/arm64/v8"));
        assert_eq!(choose("linux/arm64/v8", &arms[..4]), Some("linux/arm/v7"));
        assert_eq!(choose("linux/arm/v7", &["linux/arm/v8", "linux/arm/v5"]), Some("linux/arm/v5"));
        assert_eq!(choose("linux/arm64/v8", &["linux/arm64"]), Some("linux/arm64"));
        assert_eq!(choose("linux/amd64", &["linux/amd64/v3", "linux/amd64"]), Some("linux/amd64"));
        assert_eq!(choose("linux/amd64", &["windows/amd64", "linux/arm64"]), None);
    }
}
