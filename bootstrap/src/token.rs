//! Bootstrap tokens and pins of certificate authorities, as people type them. Pure.

use std::fmt;
use std::str::FromStr;

/// A kubeadm bootstrap token. Its secret is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
}

/// Why a text is no bootstrap token. The text is never repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It has another form.
    #[error(
        "the token does not look like abcdef.0123456789abcdef; `kubeadm token create` on the control plane makes one"
    )]
    Form,
    /// It is a token of k3s.
    #[error(
        "this is a token of k3s; joining k3s servers is not supported yet: use a kubeadm token, --bootstrap-kubeconfig or --kubeconfig"
    )]
    K3s,
    /// There is nothing.
    #[error("the token is empty")]
    Empty,
}

impl Token {
    /// The public half, which names the token.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// The whole token, for `Authorization`.
    pub(crate) fn whole(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.starts_with("K10") {
            return Err(TokenError::K3s);
        }
        let (id, secret) = text.split_once('.').ok_or(TokenError::Form)?;
        let fits = |text: &str, length| {
            text.len() == length
                && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if !fits(id, 6) || !fits(secret, 16) {
            return Err(TokenError::Form);
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}.hidden)", self.id)
    }
}

/// The pin of a certificate authority: SHA-256 of its SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaHash(String);

/// Why a text is no pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no hash of a certificate authority: it is sha256: and 64 hexadecimal digits, as `kubeadm token create --print-join-command` prints it"
)]
pub struct CaHashError(String);

impl FromStr for CaHash {
    type Err = CaHashError;

    fn from_str(text: &str) -> Result<Self, CaHashError> {
        let wrong = || CaHashError(text.to_owned());
        let (format, digits) = text.trim().split_once(':').ok_or_else(wrong)?;
        let hexadecimal = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !format.eq_ignore_ascii_case("sha256") || !hexadecimal {
            return Err(wrong());
        }
        Ok(Self(format!("sha256:{}", digits.to_ascii_lowercase())))
    }
}

impl fmt::Display for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_one_form() {
        let token: Token = " abcdef.0123456789abcdef\n".parse().unwrap();
        assert_eq!((token.id(), token.secret()), ("abcdef", "0123456789abcdef"));
        assert_eq!(format!("{token:?}"), "Token(abcdef.hidden)");
        for wrong in ["abcdef", "abcdef.short", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdef0"] {
            assert_eq!(wrong.parse::<Token>(), Err(TokenError::Form), "{wrong}");
        }
        assert_eq!("K10aa::node:secret".parse::<Token>(), Err(TokenError::K3s));
        assert_eq!("\n".parse::<Token>(), Err(TokenError::Empty));
    }

    #[test]
    fn pins_are_sha256() {
        let digits = "AB".repeat(32);
        let pin: CaHash = format!("SHA256:{digits}").parse().unwrap();
        assert_eq!(pin.to_string(), format!("sha256:{}", "ab".repeat(32)));
        for wrong in ["", "sha256:12", &digits, &format!("sha512:{digits}"), "sha256:zz"] {
            assert!(wrong.parse::<CaHash>().is_err(), "{wrong}");
        }
    }
}
