//! Holds our CRI definition against the official one: every message, field, number, type and call.
//!
//! `testdata/cri-api-v0.36.3.txt` is what `wire-go` prints of the Go module `k8s.io/cri-api`, which
//! containerd and the kubelet are built from. Where Go is installed the list itself is checked too.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

const OFFICIAL: &str = include_str!("testdata/cri-api-v0.36.3.txt");

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Lines that one list has and the other lacks.
fn differences(ours: &[String], theirs: &[String]) -> Vec<String> {
    let missing = theirs.iter().filter(|line| !ours.contains(line)).map(|line| format!("missing: {line}"));
    let extra = ours.iter().filter(|line| !theirs.contains(line)).map(|line| format!("not theirs: {line}"));
    missing.chain(extra).collect()
}

/// Our definition as `wire-go` prints the official one.
fn our_lines() -> Vec<String> {
    let set = protox::compile([here().join("proto/runtime_v1.proto")], [here().join("proto")]).unwrap();
    let file = &set.file[0];
    let mut lines = Vec::new();
    let mut messages: Vec<_> =
        file.message_type.iter().map(|message| (file.package().to_owned(), message)).collect();
    let mut enums: Vec<_> = file.enum_type.iter().map(|each| (file.package().to_owned(), each)).collect();
    while let Some((scope, message)) = messages.pop() {
        let name = format!("{scope}.{}", message.name());
        for field in &message.field {
            lines.push(format!(
                "field {name}.{} = {} {} {} {}",
                field.name(),
                field.number(),
                field.label().as_str_name(),
                field.r#type().as_str_name(),
                field.type_name()
            ));
        }
        messages.extend(message.nested_type.iter().map(|nested| (name.clone(), nested)));
        enums.extend(message.enum_type.iter().map(|each| (name.clone(), each)));
        lines.push(format!("message {name}"));
    }
    for (scope, each) in enums {
        let name = each.name();
        lines.extend(each.value.iter().map(|v| format!("enum {scope}.{name}.{} = {}", v.name(), v.number())));
    }
    for service in &file.service {
        lines.extend(service.method.iter().map(|method| {
            let (input, output) = (method.input_type(), method.output_type());
            let call = format!("{}.{}({input}) {output}", service.name(), method.name());
            format!("rpc {call} stream={}", method.server_streaming())
        }));
    }
    lines
}

#[test]
fn our_definition_is_the_official_one() {
    let theirs: Vec<String> = OFFICIAL.lines().map(str::to_owned).collect();
    assert!(theirs.len() > 800, "the list of the official definition is torn: {} lines", theirs.len());
    let differences = differences(&our_lines(), &theirs);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn the_list_is_what_the_go_module_says() {
    let run = Command::new("go")
        .args(["run", "."])
        .current_dir(here().join("tests/wire-go"))
        .env("CGO_ENABLED", "0")
        .output();
    match run {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let fresh: Vec<String> =
                String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
            let kept: Vec<String> = OFFICIAL.lines().map(str::to_owned).collect();
            assert_eq!(differences(&kept, &fresh), Vec::<String>::new());
        }
        // Go judges the list but is no prerequisite of building Coracle; the list itself was checked above.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
    }
}
