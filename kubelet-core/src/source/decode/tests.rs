//! What decodes to what, and the one error of what does not.

use proptest::prelude::*;

use super::*;

fn pods(text: &str) -> Vec<(Pod, ContentHash)> {
    let decoded = decode(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
    decoded
        .objects
        .into_iter()
        .map(|object| match object {
            Object::Pod(pod, hash) => (*pod, hash),
            other => panic!("no pod: {other:?}"),
        })
        .collect()
}

fn error(text: &str) -> String {
    let error = decode(text.as_bytes()).expect_err(text);
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: c
    image: i
    env:
    - {name: A, value: b}
  volumes:
  - name: v
    secret:
      secretName: s
      defaultMode: 0400
";

#[test]
fn pods_come_alone_in_lists_and_in_several_documents() {
    assert_eq!(pods(POD)[0].0.spec.containers[0].env[0].value.as_deref(), Some("b"));
    assert_eq!(pods(&format!("---{POD}---{POD}---\n# nothing\n")).len(), 2);
    let item = "{metadata: {name: a}, spec: {containers: [{name: c}]}}";
    assert_eq!(
        pods(&format!("apiVersion: v1\nkind: PodList\nmetadata: {{}}\nitems: [{item}, {item}]")).len(),
        2
    );
    let item = "{apiVersion: v1, kind: Pod, metadata: {name: a}}";
    assert_eq!(pods(&format!("{{apiVersion: v1, kind: List, items: [{item}]}}")).len(), 1);
    let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}"#;
    assert_eq!(pods(&format!("{json}\n{json}")).len(), 2);
    assert_eq!(decode(b"").unwrap().objects, []);
    assert_eq!(decode(b"# only a comment\n---\n").unwrap().objects, []);
}

#[test]
fn the_hash_follows_the_content_not_the_form() {
    let (pod, hash) = pods(POD).remove(0);
    assert_eq!(pod.spec.volumes[0].secret.as_ref().unwrap().default_mode, Some(0o400));
    let reformatted = POD.replace("metadata:", "status: {phase: Running, newThing: 1}\n# moved\nmetadata:");
    assert_eq!(pods(&reformatted)[0].1, hash);
    assert_eq!(pods(&POD.replace("  name: web", "  name: web\n  uid:\n  labels: null"))[0].1, hash);
    let json = serde_json::to_string(
        &serde_yaml_ng::from_str::<serde_json::Value>(&POD.replace("0400", "256")).unwrap(),
    );
    assert_eq!(pods(&json.unwrap())[0].1, hash);
    assert_ne!(pods(&POD.replace("image: i", "image: j"))[0].1, hash);
}

#[test]
fn config_maps_and_secrets_come_with_their_pods() {
    let text = format!(
        "{POD}---
apiVersion: v1
kind: ConfigMap
metadata: {{name: m}}
data: {{a: x, empty: }}
binaryData: {{b: AAE=}}
---
apiVersion: v1
kind: Secret
metadata: {{name: s}}
data: {{a: eA==, b: eQ==}}
stringData: {{b: plain}}
"
    );
    let objects = decode(text.as_bytes()).unwrap().objects;
    let [Object::Pod(..), Object::ConfigMap(map), Object::Secret(secret)] = &objects[..] else {
        panic!("{objects:?}")
    };
    assert_eq!((map.data["a"].as_str(), map.data["empty"].as_str()), ("x", ""));
    assert_eq!(map.binary_data["b"].0, [0, 1]);
    assert_eq!((&secret.data["a"].0[..], &secret.data["b"].0[..]), (&b"x"[..], &b"plain"[..]));
    assert!(secret.string_data.is_empty());
}

#[test]
fn merge_keys_and_odd_keys_are_read_as_kubectl_reads_them() {
    let text = POD.replace("metadata:\n", "metadata:\n  labels: {<<: {a: b, c: d}, c: e, 1: f, true: g}\n");
    let labels = &pods(&text)[0].0.metadata.labels;
    let listed: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(listed, ["1=f", "a=b", "c=e", "true=g"]);
}

#[test]
fn each_mistake_gives_one_error_that_names_its_place() {
    let many = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(0..9)
            .fold(("a".to_owned(), String::new()), |(last, text), n| {
                let this = format!("b{n}");
                let line = format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 10].join(","));
                (this, text + &line)
            })
            .1;
    for (text, expected) in [
        ("key: [unclosed".to_owned(), "not valid YAML: "),
        ("just text".to_owned(), "an object with apiVersion and kind is expected"),
        ("- a\n- b".to_owned(), "an object with apiVersion and kind is expected"),
        ("{\"apiVersion\": \"v1\", ".to_owned(), "not valid JSON: EOF while parsing"),
        ("kind: Pod".to_owned(), "Object 'apiVersion' is missing"),
        ("apiVersion: v1".to_owned(), "Object 'Kind' is missing"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}".to_owned(),
            "apps/v1 Deployment cannot be used here: only v1 Pod, ConfigMap, Secret and lists of them can",
        ),
        (POD.replace("image: i", "imgae: i"), r#"Pod "web": unknown field "spec.containers[0].imgae""#),
        (
            POD.replace("defaultMode", "mode").replace("image: i", "images: i"),
            r#"Pod "web": unknown field "spec.containers[0].images", unknown field "spec.volumes[0].secret.mode""#,
        ),
        (
            POD.replace("value: b", "value: 8080"),
            "Pod \"web\": spec.containers[0].env[0].value: invalid type: integer `8080`, expected a string",
        ),
        (
            POD.replace("containers:\n", "hostNetwork: yes\n  containers:\n"),
            "Pod \"web\": spec.hostNetwork: invalid type: string \"yes\", expected a boolean",
        ),
        (
            POD.replace("image: i", "image: i\n    resources: {limits: {cpu: 1Kx}}"),
            "Pod \"web\": spec.containers[0].resources.limits.cpu: quantities must match the regular expression",
        ),
        (
            POD.replace("image: i", "image: i\n    image: j"),
            "not valid YAML: spec.containers[0]: key \"image\" is",
        ),
        ("{\"kind\": 1, \"kind\": 2}".to_owned(), "not valid JSON: key \"kind\" is already set in this map"),
        (format!("{POD}---\nkind: Pod"), "document 2: Object 'apiVersion' is missing"),
        (
            "apiVersion: v1\nkind: PodList\nitems: [{metadata: {name: a}, spec: {x: 1}}]".to_owned(),
            r#"Pod "a": unknown field "items[0].spec.x""#,
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: not-base-64!}".to_owned(),
            "Secret \"s\": data.a: not valid base64",
        ),
        (many, "not valid YAML: "),
        ("a: .nan".to_owned(), "not valid YAML: "),
        ("a: !mine b".to_owned(), "not valid YAML: "),
        ("\u{0}".to_owned(), "not valid YAML: "),
    ] {
        let message = error(&text);
        assert!(message.starts_with(expected), "{text}\ngot:      {message}\nexpected: {expected}");
    }
    assert_eq!(
        decode(b"a: \xff").unwrap_err().to_string(),
        "not UTF-8 text (byte 3 is the first that is not)"
    );
    assert_eq!(decode(&vec![b' '; MAX_BYTES + 1]).unwrap_err().to_string(), "larger than 10 MiB");
}

#[test]
fn an_alias_bomb_is_refused_before_it_fills_the_memory() {
    // Within the YAML parser's own limit of aliases, yet a gigabyte when written out.
    let text = format!("a: &a \"{}\"\nb: [{}]", "x".repeat(1 << 20), vec!["*a"; 1000].join(","));
    assert!(error(&text).contains("too large once its aliases are written out"), "{}", error(&text));
    let deep = "[".repeat(100_000);
    assert!(error(&deep).starts_with("not valid YAML"));
    assert!(error(&format!("{{\"a\":{deep}")).starts_with("not valid JSON"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(data: Vec<u8>) {
        let _ = decode(&data);
    }

    #[test]
    fn arbitrary_yaml_never_panics(text in "[ \\-:\\[\\]{}&*!|>'\"#%@`,?a-c0-9\n\t<~]{0,80}") {
        let _ = decode(text.as_bytes());
    }

    #[test]
    fn a_damaged_pod_never_panics(at in 0..POD.len(), with in "[ -~\n]{0,3}") {
        let mut text = POD.to_owned();
        text.replace_range(at..=at, &with);
        let _ = decode(text.as_bytes());
    }
}
