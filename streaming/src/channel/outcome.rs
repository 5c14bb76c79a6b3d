//! How a command ended, as the error stream says it. Called by `server` and `client`.

use serde::{Deserialize, Serialize};

use super::Version;

/// The longest error stream that is read, in bytes.
pub const MAX_OUTCOME: usize = 64 * 1024;

/// How a command or an attachment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With exit code zero.
    Success,
    /// With another exit code.
    Exited(i32),
    /// It could not be run, or not to its end.
    Failed(String),
}

/// The part of metav1.Status that is used here.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(skip_serializing_if = "String::is_empty")]
    status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Cause {
    /// The API calls a cause's type its reason.
    reason: String,
    message: String,
}

impl Outcome {
    /// What the error stream says. Before v4 success says nothing.
    pub fn encode(&self, version: Version) -> Vec<u8> {
        if version < Version::V4 {
            return match self {
                Self::Success => Vec::new(),
                Self::Exited(code) => exit_text(*code).into_bytes(),
                Self::Failed(message) => failure_text(message).into_bytes(),
            };
        }
        let status = match self {
            Self::Success => Status { status: "Success".into(), ..Status::default() },
            Self::Exited(code) => Status {
                status: "Failure".into(),
                message: exit_text(*code),
                reason: "NonZeroExitCode".into(),
                details: Some(Details {
                    causes: vec![Cause { reason: "ExitCode".into(), message: code.to_string() }],
                }),
                code: None,
            },
            Self::Failed(message) => Status {
                status: "Failure".into(),
                message: failure_text(message),
                reason: "InternalError".into(),
                details: None,
                code: Some(500),
            },
        };
        serde_json::to_vec(&status).expect("a struct of strings and numbers is JSON")
    }

    /// What a whole error stream said. An empty one is success, for the server's end of it is all that older ones say.
    pub fn decode(version: Version, said: &[u8]) -> Self {
        if said.is_empty() {
            return Self::Success;
        }
        let text = String::from_utf8_lossy(said);
        if version < Version::V4 {
            return Self::Failed(text.into_owned());
        }
        let Ok(status) = serde_json::from_slice::<Status>(said) else {
            return Self::Failed(format!("error stream protocol error: not a Status: {text:?}"));
        };
        if status.status == "Success" {
            return Self::Success;
        }
        if status.reason != "NonZeroExitCode" {
            return Self::Failed(status.message);
        }
        let causes = status.details.map(|details| details.causes).unwrap_or_default();
        let code = causes
            .iter()
            .find(|cause| cause.reason == "ExitCode")
            .and_then(|cause| cause.message.parse().ok());
        code.map_or_else(
            || Self::Failed("error stream protocol error: no exit code given".into()),
            Self::Exited,
        )
    }
}

fn exit_text(code: i32) -> String {
    format!("command terminated with non-zero exit code: {code}")
}

fn failure_text(message: &str) -> String {
    format!("Internal error occurred: {message}")
}
