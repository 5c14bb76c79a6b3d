//! Image names as the distribution project defines them: `[host[:port]/]path[:tag][@digest]`.
//!
//! Called by defaulting, validation and the image puller; pure. Parsed by hand, because the regular
//! expression that others use for it costs 18 MB of memory for good.

/// The parts of an image name in its full form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageName {
    /// Registry; `docker.io` when none was named.
    pub(crate) domain: String,
    /// Repository inside the registry, such as `library/busybox`.
    pub(crate) path: String,
    /// Tag; `latest` when there is neither tag nor digest.
    pub(crate) tag: Option<String>,
    /// Digest with its algorithm.
    pub(crate) digest: Option<String>,
}

/// Why a text is no image name, in the words of the distribution project.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageNameError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
}

impl ImageName {
    /// Registry and repository.
    pub(crate) fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }
}

/// Parses a name, filling in registry, `library/` and tag as the docker command does.
pub(crate) fn parse_image_name(text: &str) -> Result<ImageName, ImageNameError> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(ImageNameError::LooksLikeId(text.to_owned()));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
        Some(_) => return Err(ImageNameError::Format),
        None => (text, None),
    };
    let (domain, remainder) = match rest.split_once('/') {
        Some((first, remainder)) if is_host_like(first) => {
            (if first == "index.docker.io" { "docker.io" } else { first }, remainder)
        }
        _ => ("docker.io", rest),
    };
    let (path, tag) = match remainder.split_once(':') {
        Some((path, tag)) => (path, Some(tag.to_owned())),
        None => (remainder, None),
    };
    let path = if domain == "docker.io" && !path.contains('/') && !path.is_empty() {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ImageNameError::Uppercase(path));
    }
    if tag.as_deref().is_some_and(|tag| !is_tag(tag))
        || !is_domain(domain)
        || !path.split('/').all(is_path_component)
    {
        return Err(ImageNameError::Format);
    }
    if domain.len() + 1 + path.len() > 255 {
        return Err(ImageNameError::TooLong);
    }
    let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
    Ok(ImageName { domain: domain.to_owned(), path, tag, digest })
}

/// A first component with a dot, a port or a capital letter is a host, as is `localhost`.
fn is_host_like(first: &str) -> bool {
    first == "localhost" || first.bytes().any(|b| b == b'.' || b == b':' || b.is_ascii_uppercase())
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rfind(']') {
        Some(end) => (&text[..=end], text[end + 1..].strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port_is_good = match port {
        Some(port) => !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()),
        None => host.len() == text.len(),
    };
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    port_is_good
        && match inside {
            Some(address) => {
                !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
            }
            None => host.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            }),
        }
}

/// Lower-case alphanumerics with single separators between: `.`, `_`, `__` or any number of dashes.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let edges =
        text.bytes().next().is_some_and(alphanumeric) && text.bytes().last().is_some_and(alphanumeric);
    let separators = text.split(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase());
    edges
        && separators.into_iter().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && !text.starts_with(['.', '-'])
        && !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let lower_hex = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match algorithm {
        "sha256" => hex.len() == 64 && lower_hex,
        "sha384" => hex.len() == 96 && lower_hex,
        "sha512" => hex.len() == 128 && lower_hex,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, repository, tag) in [
            ("busybox", "docker.io/library/busybox", Some("latest")),
            ("busybox:1.37", "docker.io/library/busybox", Some("1.37")),
            ("org/app", "docker.io/org/app", Some("latest")),
            ("localhost/app:a", "localhost/app", Some("a")),
            ("localhost:5000/app", "localhost:5000/app", Some("latest")),
            ("ghcr.io/a/b-c__d.e:v1", "ghcr.io/a/b-c__d.e", Some("v1")),
            ("[::1]:5000/app", "[::1]:5000/app", Some("latest")),
            ("index.docker.io/app", "docker.io/library/app", Some("latest")),
            (&format!("app@{digest}"), "docker.io/library/app", None),
            (&format!("app:t@{digest}"), "docker.io/library/app", Some("t")),
        ] {
            let name = parse_image_name(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((name.repository().as_str(), name.tag.as_deref()), (repository, tag), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_in_docker_s_words() {
        for (text, message) in [
            ("", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("No:Such:Tag", "invalid reference format: repository name (library/No) must be lowercase"),
            ("app:", "invalid reference format"),
            ("app:-x", "invalid reference format"),
            ("app@sha256:12", "invalid reference format"),
            ("-app", "invalid reference format"),
            ("a..b", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("host.x:port/app", "invalid reference format"),
            ("App", "invalid reference format: repository name (library/App) must be lowercase"),
            (
                &"ab".repeat(32),
                &format!(
                    "invalid repository name ({}), cannot specify 64-byte hexadecimal strings",
                    "ab".repeat(32)
                ),
            ),
            (&format!("a.b/{}", "a".repeat(300)), "repository name must not be more than 255 characters"),
        ] {
            assert_eq!(parse_image_name(text).unwrap_err().to_string(), message, "{text}");
        }
    }
}
