//! Table tests of the spec builder.
