//! How messages with secrets print: registry credentials never reach a log. Pure formatting.

use std::fmt;

use crate::v1::AuthConfig;

/// Names and addresses in clear, of each secret only whether it is there.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &str| if secret.is_empty() { "" } else { "[redacted]" };
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &hidden(&self.password))
            .field("auth", &hidden(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &hidden(&self.identity_token))
            .field("registry_token", &hidden(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::PullImageRequest;

    #[test]
    fn secrets_do_not_print() {
        let secret = || "hunter2".to_owned();
        let auth = AuthConfig {
            username: "reader".to_owned(),
            password: secret(),
            auth: secret(),
            server_address: "registry.example".to_owned(),
            identity_token: secret(),
            registry_token: secret(),
        };
        let printed = format!("{:?}", PullImageRequest { auth: Some(auth), ..Default::default() });
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(printed.contains("reader") && printed.contains("registry.example"), "{printed}");
    }
}
