//! Errors about fields, in the words of an API server.
//!
//! Built by the other files of `validate`; plain data. A [`Path`] borrows its parent, so that naming a
//! field costs nothing until it is wrong.

use std::fmt;

/// One thing wrong with one field: `spec.containers[0].name: Required value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `spec.containers[0].name`.
    pub field: String,
    /// What is wrong.
    pub kind: FieldErrorKind,
    /// More about it; may be empty.
    pub detail: String,
}

/// The classes of errors, with the value as JSON where an API server shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// Not there.
    Required,
    /// Malformed or out of bounds.
    Invalid(String),
    /// Not one of a fixed set.
    NotSupported(String),
    /// Set twice.
    Duplicate(String),
    /// Refers to what is not there.
    NotFound(String),
    /// Well-formed and not allowed.
    Forbidden,
    /// Too long; the value is not shown.
    TooLong,
    /// More items than allowed.
    TooMany(usize),
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.field)?;
        match &self.kind {
            FieldErrorKind::Required => f.write_str("Required value")?,
            FieldErrorKind::Invalid(value) => write!(f, "Invalid value: {value}")?,
            FieldErrorKind::NotSupported(value) => write!(f, "Unsupported value: {value}")?,
            FieldErrorKind::Duplicate(value) => write!(f, "Duplicate value: {value}")?,
            FieldErrorKind::NotFound(value) => write!(f, "Not found: {value}")?,
            FieldErrorKind::Forbidden => f.write_str("Forbidden")?,
            FieldErrorKind::TooLong => f.write_str("Too long")?,
            FieldErrorKind::TooMany(count) => write!(f, "Too many: {count}")?,
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// The path of a field, built on the way down.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root(&'a str),
    Child(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    Key(&'a Path<'a>, &'a str),
}

impl<'a> Path<'a> {
    pub(crate) fn child(&'a self, name: &'a str) -> Path<'a> {
        Path::Child(self, name)
    }

    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }

    pub(crate) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root(name) => f.write_str(name),
            Path::Child(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Path::Key(parent, key) => write!(f, "{parent}[{key}]"),
        }
    }
}

/// The errors found so far.
#[derive(Debug, Default)]
pub(crate) struct Errors(pub(crate) Vec<FieldError>);

impl Errors {
    fn push(&mut self, path: &Path<'_>, kind: FieldErrorKind, detail: impl Into<String>) {
        self.0.push(FieldError { field: path.to_string(), kind, detail: detail.into() });
    }

    pub(crate) fn required(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.push(path, FieldErrorKind::Required, detail);
    }

    pub(crate) fn invalid(&mut self, path: &Path<'_>, value: impl Shown, detail: impl Into<String>) {
        self.push(path, FieldErrorKind::Invalid(value.shown()), detail);
    }

    pub(crate) fn duplicate(&mut self, path: &Path<'_>, value: impl Shown) {
        self.push(path, FieldErrorKind::Duplicate(value.shown()), "");
    }

    pub(crate) fn not_found(&mut self, path: &Path<'_>, value: &str) {
        self.push(path, FieldErrorKind::NotFound(value.shown()), "");
    }

    pub(crate) fn forbidden(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.push(path, FieldErrorKind::Forbidden, detail);
    }

    pub(crate) fn too_long(&mut self, path: &Path<'_>, limit: usize) {
        self.push(path, FieldErrorKind::TooLong, format!("may not be more than {limit} bytes"));
    }

    pub(crate) fn too_many(&mut self, path: &Path<'_>, count: usize, limit: usize) {
        self.push(path, FieldErrorKind::TooMany(count), format!("must have at most {limit} items"));
    }

    /// `supported` in the order in which an API server lists them.
    pub(crate) fn not_supported(&mut self, path: &Path<'_>, value: &str, supported: &[&str]) {
        let listed: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let detail = format!("supported values: {}", listed.join(", "));
        self.push(path, FieldErrorKind::NotSupported(value.shown()), detail);
    }

    /// One invalid value for each message.
    pub(crate) fn invalid_each(&mut self, path: &Path<'_>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(path, value, message);
        }
    }
}

/// How an API server prints a bad value.
pub(crate) trait Shown {
    fn shown(self) -> String;
}

impl Shown for &str {
    fn shown(self) -> String {
        format!("{self:?}")
    }
}

impl Shown for &String {
    fn shown(self) -> String {
        self.as_str().shown()
    }
}

macro_rules! shown_plain {
    ($($type:ty),*) => { $(impl Shown for $type {
        fn shown(self) -> String { self.to_string() }
    })* };
}
shown_plain!(i32, i64, usize, bool);
