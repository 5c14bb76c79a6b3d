//! `-info`: tells containerd what this shim is and what its maker can, as a process of its own.

use std::io::{self, Write};
use std::process::{Command as Program, Stdio};

use coracle_shim::protocol::Any;
use coracle_shim::protocol::bootstrap::{FEATURES, RuntimeInfo, RuntimeVersion};
use prost::Message;

use super::RUNTIME_TYPE;
use super::options::{self, Options, OptionsError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum InfoError {
    #[error("cannot read the runtime options")]
    Options(#[source] OptionsError),
    #[error("cannot answer")]
    Answer(#[source] io::Error),
}

pub(crate) fn info() -> Result<(), InfoError> {
    let (any, options) =
        options::input().and_then(|input| Options::alone(&input)).map_err(InfoError::Options)?;
    let info = RuntimeInfo {
        name: RUNTIME_TYPE.into(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), revision: String::new() }),
        options: (!any.type_url.is_empty()).then_some(any),
        features: features(&options),
        annotations: Default::default(),
    };
    io::stdout().write_all(&info.encode_to_vec()).map_err(InfoError::Answer)
}

/// What the maker says that it can; an old one does not know the question.
fn features(options: &Options) -> Option<Any> {
    let mut maker = Program::new(options.program());
    let output = maker.arg("features").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let known = output.status.success() && output.stdout.starts_with(b"{");
    known.then(|| Any { type_url: FEATURES.into(), value: output.stdout })
}
