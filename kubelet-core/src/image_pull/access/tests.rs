//! The kubelet's rules as tables, and its files to the letter.

use super::*;

fn secret(name: &str, hash: &str) -> PullSecret {
    let text = |text: &str| text.to_owned();
    PullSecret { uid: text("u-") + name, namespace: text("d"), name: text(name), credential_hash: text(hash) }
}

fn record(image: &str, access: Access) -> PulledRecord {
    let mut record = PulledRecord::new("sha256:1");
    assert!(record.grant(image, access));
    record
}

#[test]
fn names_lose_tag_and_digest() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    for (image, expected) in [
        ("busybox", "busybox"),
        ("busybox:1", "busybox"),
        ("busybox:latest", "busybox"),
        ("r.x:5000/a/b", "r.x:5000/a/b"),
        ("r.x:5000/a/b:1", "r.x:5000/a/b"),
        (&format!("r.x/latest@{digest}"), "r.x/latest"),
        (&format!("r.x/a:1@{digest}"), "r.x/a"),
    ] {
        assert_eq!(without_tag(image), Some(expected), "{image}");
    }
    assert_eq!(without_tag("Not A Name"), None);
}

#[test]
fn policies_are_named_and_checked_as_a_kubelet_does() {
    let list = |entries: &[&str]| entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        VerificationPolicy::new("NeverVerifyPreloadedImages", vec![]),
        Ok(VerificationPolicy::default())
    );
    assert_eq!(VerificationPolicy::new("never", vec![]), Err(PolicyError::Unknown("never".to_owned())));
    for policy in ["NeverVerify", "NeverVerifyPreloadedImages", "AlwaysVerify"] {
        assert_eq!(VerificationPolicy::new(policy, list(&["r.x/*"])), Err(PolicyError::ListUnread));
    }
    for (pattern, is_good) in [
        ("r.x/a", true),
        ("r.x/*", true),
        ("r.x/a/*", true),
        ("", false),
        ("*", false),
        ("/*", false),
        ("r.x/a*", false),
        ("r.x/*/a", false),
        ("*.x/*", false),
        ("r.x/a:1", false),
        (" r.x/*", false),
        ("r.x/a ", false),
    ] {
        let policy = VerificationPolicy::new("NeverVerifyAllowlistedImages", list(&["b", pattern]));
        assert_eq!(policy.is_ok(), is_good, "{pattern:?}");
    }
}

#[test]
fn the_policy_says_which_images_need_credentials() {
    let allowlist = VerificationPolicy::NeverVerifyAllowlistedImages(vec!["r.x/a".into(), "r.x/b/*".into()]);
    for (policy, image, preloaded, pulled) in [
        (VerificationPolicy::NeverVerify, "r.x/a:1", Decision::Use, Decision::Use),
        (VerificationPolicy::default(), "r.x/a:1", Decision::Use, Decision::Pull),
        (VerificationPolicy::AlwaysVerify, "r.x/a:1", Decision::Pull, Decision::Pull),
        (allowlist.clone(), "r.x/a:1", Decision::Use, Decision::Use),
        (allowlist.clone(), "r.x/b/c:1", Decision::Use, Decision::Use),
        (allowlist.clone(), "r.x/b:1", Decision::Pull, Decision::Pull),
        (allowlist, "r.x/ab:1", Decision::Pull, Decision::Pull),
    ] {
        assert_eq!(decide(&policy, image, Known::Nothing), preloaded, "{policy:?} {image}");
        assert_eq!(decide(&policy, image, Known::Begun), pulled, "{policy:?} {image}");
        let unknown = Known::Pulled(PulledRecord::new("sha256:1"));
        assert_eq!(decide(&policy, image, unknown), pulled, "{policy:?} {image}");
        assert_eq!(decide(&policy, image, Known::Unreadable), Decision::Pull);
    }
}

#[test]
fn what_was_pulled_is_for_whom_the_record_names() {
    let policy = VerificationPolicy::default();
    let of_node = Known::Pulled(record("r.x/a:1", Access::by(None)));
    assert_eq!(decide(&policy, "r.x/a@sha256:1", of_node), Decision::Pull, "not a name");
    let of_node = || Known::Pulled(record("r.x/a:1", Access::by(None)));
    assert_eq!(decide(&policy, "r.x/a:2", of_node()), Decision::Use, "whatever the tag");
    assert_eq!(decide(&policy, "r.x/b:1", of_node()), Decision::Pull, "the same image by another name");
    let access = Access::by(Some(secret("s", "h")));
    let of_secret = Known::Pulled(record("r.x/a:1", access.clone()));
    assert_eq!(decide(&policy, "r.x/a", of_secret), Decision::Compare(access));
    let json = br#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":null,
        "imageRef":"i","credentialMapping":{"r.x/a":{"kubernetesServiceAccounts":[{"uid":"u","namespace":"d","name":"n"}]}}}"#;
    let of_account = Known::Pulled(PulledRecord::decode(json).unwrap());
    assert_eq!(decide(&policy, "r.x/a", of_account), Decision::Pull, "no plugin here takes a token");
}

#[test]
fn secrets_serve_by_name_or_by_content() {
    let mut recorded = Access::by(Some(secret("s", "h")));
    let elsewhere = PullSecret { namespace: "e".into(), ..secret("s", "h") };
    let again = PullSecret { uid: "u2".into(), ..secret("s", "h2") };
    for (of_pod, expected) in [
        (vec![], Comparison::HasNot),
        (vec![secret("s", "h")], Comparison::Has),
        (vec![secret("s", "h2")], Comparison::HasAlike(&secret("s", "h2"))),
        (vec![secret("t", "h")], Comparison::HasAlike(&secret("t", "h"))),
        (vec![elsewhere.clone()], Comparison::HasAlike(&elsewhere)),
        (vec![again], Comparison::HasNot),
        (vec![secret("t", "h2"), secret("s", "h")], Comparison::Has),
    ] {
        assert_eq!(compare(&recorded, &of_pod), expected, "{of_pod:?}");
    }
    let unhashed = Access::by(Some(secret("s", "")));
    assert_eq!(compare(&unhashed, &[secret("t", "")]), Comparison::HasNot);
    for n in 1..MOST_SECRETS {
        assert!(recorded.add(Access::by(Some(secret(&n.to_string(), "other")))));
    }
    assert_eq!(compare(&recorded, &[secret("t", "h")]), Comparison::Has, "full: not noted");
    assert_eq!(compare(&recorded, &[secret("s", "h2")]), Comparison::HasNot, "full: not taken on trust");
}

#[test]
fn a_grant_is_recorded_once() {
    let mut record = record("r.x/a:1", Access::by(Some(secret("s", "h"))));
    assert!(!record.grant("r.x/a:2", Access::by(Some(secret("s", "h")))));
    assert!(record.grant("r.x/a", Access::by(Some(secret("b", "h")))));
    assert!(record.grant("r.x/a", Access::by(Some(secret("s", "h2")))));
    let secrets = &record.credential_mapping["r.x/a"].kubernetes_secrets;
    assert_eq!(secrets[..], [secret("b", "h"), secret("s", "h2")], "sorted, one entry of each Secret");
    assert!(record.grant("r.x/a", Access::by(None)));
    assert_eq!(record.credential_mapping["r.x/a"], Access::by(None), "the Secrets matter no more");
    assert!(!record.grant("r.x/a", Access::by(Some(secret("s", "h3")))));
    assert!(record.grant("r.x/other", Access::by(None)));
}

#[test]
fn records_are_those_of_a_kubelet() {
    let mut record = record("r.x/a:1", Access::by(Some(secret("s", "h"))));
    record.stamp("2026-01-31T12:00:00Z".parse().unwrap());
    let json = r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2026-01-31T12:00:00Z","imageRef":"sha256:1","credentialMapping":{"r.x/a":{"kubernetesSecrets":[{"uid":"u-s","namespace":"d","name":"s","credentialHash":"h"}]}}}"#;
    assert_eq!(serde_json::to_string(&record).unwrap(), json);
    assert_eq!(PulledRecord::decode(json.as_bytes()), Some(record));
    let open = r#"{"r.x/a":{"nodePodsAccessible":true}}"#;
    assert_eq!(serde_json::to_string(&BTreeMap::from([("r.x/a", Access::by(None))])).unwrap(), open);
    let intent = r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"a:1"}"#;
    assert_eq!(serde_json::to_string(&PullIntent::new("a:1")).unwrap(), intent);
    assert_eq!(PullIntent::decode(intent.as_bytes()).unwrap().image, "a:1");
    assert!(PullIntent::decode(intent.replace("v1beta1", "v1alpha1").as_bytes()).is_some());
    for broken in [
        "",
        "{",
        &json[..json.len() - 1],
        &json.replace("v1beta1", "v2"),
        &json.replace("PulledRecord", "PullIntent"),
        &json.replace("uid", "id"),
        &json.replace("2026-01", "soon"),
    ] {
        assert_eq!(PulledRecord::decode(broken.as_bytes()), None, "{broken}");
    }
}

#[test]
fn credentials_have_the_hashes_that_go_makes() {
    assert_eq!(
        credential_hash("u", "p", ""),
        "edbd57ca9372e64eb1c9070ecf3a049ac553596b0529acf034c7a71d4e618e88"
    );
    // What JSON must escape and what Go escapes besides.
    assert_eq!(
        credential_hash("ü", "<&>\u{2028}\"\\\n\u{1}\u{7f}\u{8}\u{c}/", "e@x"),
        "4d53b6e0003d39ce335d82fa0ed7b21db2fee67e0d195c43753ebc8833f1f49a"
    );
}
