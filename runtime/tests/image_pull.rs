//! Pulling from a registry that behaves, misbehaves, wants to know who asks, or is somewhere else.
// Also outside of test functions, where clippy does not see that it is a test.
#![allow(clippy::unwrap_used)]

mod image_support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use coracle_runtime::image::{
    AuthEntry, Credentials, FailureKind, ImageError, ImageStore, Mirror, Platform, Progress, RegistryConfig,
};
use coracle_runtime::testing::{Fault, LayerCompression, Registry, RegistryOptions, Tarball, TestImage};
use image_support::{base, open, options, upper};
use serde_json::json;

fn image() -> TestImage {
    TestImage::new()
        .layer(&base(), LayerCompression::Gzip)
        .layer(&upper(), LayerCompression::Zstd)
        .config(json!({"Env": ["A=b"], "Cmd": ["sh"]}))
}

/// An image with a layer of so many incompressible bytes.
fn big(bytes: usize) -> TestImage {
    let mut seed = 0x9e37_79b9_u32;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed as u8
    };
    let content: Vec<u8> = (0..bytes).map(|_| random()).collect();
    TestImage::new().layer(&Tarball::new().file("big", &content).finish(), LayerCompression::Plain)
}

fn count(dir: &Path, folder: &str) -> usize {
    fs::read_dir(dir.join("images").join(folder)).unwrap().count()
}

fn told(error: &ImageError) -> String {
    format!("{error}: {}", std::error::Error::source(error).map(ToString::to_string).unwrap_or_default())
}

fn registry() -> Registry {
    Registry::start(RegistryOptions::default()).unwrap()
}

#[tokio::test]
async fn pulls_by_tag_and_by_digest() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), registry());
    let image = image();
    registry.push("team/app", "v1", &image);
    let store = open(dir.path());
    let (sender, events) = std::sync::mpsc::channel();
    let name = registry.name("team/app:v1");
    let pulled = store.pull(&name, None, move |event| drop(sender.send(event))).await.unwrap();
    assert_eq!(pulled.id, image.id().to_string());
    assert_eq!(pulled.repo_tags, std::slice::from_ref(&name));
    assert_eq!(pulled.repo_digests.len(), 1);
    assert!(pulled.lower_dirs[1].join("bin/sh").exists());
    let events: Vec<Progress> = events.try_iter().collect();
    assert!(matches!(&events[0], Progress::Layers { layers } if layers.len() == 2), "{events:?}");
    assert_eq!(events.iter().filter(|event| matches!(event, Progress::Complete { .. })).count(), 2);
    assert_eq!((count(dir.path(), "ingest"), count(dir.path(), "tmp")), (0, 0));

    let before = registry.requests().len();
    let again = store.pull(&name, None, |_| {}).await.unwrap();
    assert_eq!(again.id, pulled.id);
    assert_eq!(registry.requests().len(), before + 1, "only the manifest is asked for");
    let by_digest = store.pull(&pulled.repo_digests[0], None, |_| {}).await.unwrap();
    assert_eq!(by_digest.id, pulled.id);
    assert_eq!(registry.requests().len(), before + 2, "the registry says who may have what a digest names");
}

#[tokio::test]
async fn takes_the_platform_of_this_machine() {
    let registry = registry();
    let made = |architecture: &str, variant: &str| {
        TestImage::new()
            .layer(&base(), LayerCompression::Gzip)
            .platform(architecture, variant)
            .config(json!({"Env": [format!("ARCH={architecture}{variant}")]}))
    };
    let images = [made("amd64", ""), made("arm", "v5"), made("arm", "v7"), made("arm64", "v8")];
    registry.push_index("app", "latest", &images.iter().collect::<Vec<_>>());
    for (architecture, variant, wanted) in
        [("amd64", "", "amd64"), ("arm", "v6", "armv5"), ("arm", "v7", "armv7"), ("arm64", "v8", "arm64v8")]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path());
        options.platform =
            Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() };
        let store = ImageStore::open(options).unwrap();
        let pulled = store.pull(&registry.name("app"), None, |_| {}).await.unwrap();
        assert_eq!(pulled.config.env, [format!("ARCH={wanted}")]);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.platform =
        Platform { os: "linux".into(), architecture: "riscv64".into(), variant: String::new() };
    let store = ImageStore::open(options).unwrap();
    let error = store.pull(&registry.name("app"), None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::NotFound));
    assert!(
        told(&error).contains("linux/riscv64") && told(&error).contains("linux/arm64"),
        "{}",
        told(&error)
    );
    registry.push("lone", "latest", &images[1]);
    let error = store.pull(&registry.name("lone"), None, |_| {}).await.unwrap_err();
    assert!(told(&error).contains("built for linux/arm/v5"), "{}", told(&error));
}

#[tokio::test]
async fn says_who_it_is() {
    let user = Some(("user".to_owned(), "secret".to_owned()));
    let basic = Credentials::Basic { username: "user".into(), password: "secret".into() };
    let wrong = Credentials::Basic { username: "user".into(), password: "wrong".into() };
    let refresh = Some("refresh".to_owned());
    let cases = [
        (RegistryOptions { user: user.clone(), ..Default::default() }, Some(basic.clone()), Ok(())),
        (
            RegistryOptions { user: user.clone(), ..Default::default() },
            Some(wrong.clone()),
            Err("pull access denied"),
        ),
        (RegistryOptions { user: user.clone(), ..Default::default() }, None, Err("pull access denied")),
        (RegistryOptions { user: user.clone(), token: true, ..Default::default() }, Some(basic), Ok(())),
        (
            RegistryOptions { user, token: true, ..Default::default() },
            Some(wrong),
            Err("failed to authorize"),
        ),
        (RegistryOptions { token: true, ..Default::default() }, None, Ok(())),
        (
            RegistryOptions { token: true, refresh_token: refresh, ..Default::default() },
            Some(Credentials::Identity("refresh".into())),
            Ok(()),
        ),
    ];
    for (number, (settings, credentials, wanted)) in cases.into_iter().enumerate() {
        let registry = Registry::start(settings).unwrap();
        registry.push("app", "v1", &image());
        let dir = tempfile::tempdir().unwrap();
        let pulled = open(dir.path()).pull(&registry.name("app:v1"), credentials, |_| {}).await;
        match (pulled, wanted) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(text)) => {
                assert_eq!(error.kind(), Some(FailureKind::Unauthorized), "case {number}");
                assert!(told(&error).contains(text), "case {number}: {}", told(&error));
                assert!(!told(&error).contains("secret") && !told(&error).contains("wrong"));
            }
            (pulled, wanted) => panic!("case {number}: {pulled:?}, wanted {wanted:?}"),
        }
    }
}

#[tokio::test]
async fn mirrors_come_first_and_the_registry_after() {
    let settings = RegistryOptions {
        user: Some(("m".into(), "p".into())),
        prefix: "cache/".into(),
        ..RegistryOptions::default()
    };
    let mirror = Registry::start(settings).unwrap();
    let own = registry();
    mirror.push("public/busybox", "1", &image());
    own.push("only/here", "1", &image());
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    let rewrite = [("^library/(.*)".to_owned(), "public/$1".to_owned())].into();
    let entry = Mirror { endpoint: vec![format!("http://{}/v2/cache", mirror.host())], rewrite };
    options.registries.mirrors.insert("docker.io".into(), entry.clone());
    options.registries.mirrors.insert(own.host(), entry);
    let auth = AuthEntry { username: "m".into(), password: "p".into(), ..AuthEntry::default() };
    options
        .registries
        .configs
        .insert(mirror.host(), RegistryConfig { auth: Some(auth), ..RegistryConfig::default() });
    let store = ImageStore::open(options).unwrap();
    let pulled = store.pull("busybox:1", None, |_| {}).await.unwrap();
    assert_eq!(pulled.repo_tags, ["docker.io/library/busybox:1"]);
    assert!(mirror.requests()[0].path.ends_with("?ns=docker.io"), "{:?}", mirror.requests()[0]);
    let pulled = store.pull(&own.name("only/here:1"), None, |_| {}).await.unwrap();
    assert_eq!(pulled.id, image().id().to_string());
}

#[tokio::test]
async fn goes_through_a_proxy_unless_told_not_to() {
    // A registry takes requests in proxy form too when its paths are prefixed accordingly, so it is its own proxy.
    let proxy = registry();
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    let address = format!("http://{}", proxy.host());
    options.environment =
        vec![("HTTP_PROXY".into(), address.clone().into()), ("http_proxy".into(), address.into())];
    options.registries.mirrors.insert(
        "far.example".into(),
        Mirror { endpoint: vec!["http://far.example".into()], ..Mirror::default() },
    );
    let store = ImageStore::open(options.clone()).unwrap();
    let _ = store.pull("far.example/app:v1", None, |_| {}).await.unwrap_err();
    let asked = proxy.requests();
    assert!(asked.iter().any(|r| r.path.starts_with("http://far.example/v2/app/manifests/v1")), "{asked:?}");
    drop(store);
    options.environment.push(("NO_PROXY".into(), "far.example".into()));
    let before = proxy.requests().len();
    let store = ImageStore::open(options).unwrap();
    let _ = store.pull("far.example/app:v1", None, |_| {}).await.unwrap_err();
    let after = &proxy.requests()[before..];
    assert!(!after.iter().any(|r| r.path.starts_with("http://")), "{after:?}");
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was() {
    let registry = registry();
    let image = big(3 << 20);
    registry.push("big", "1", &image);
    let blob = format!("/blobs/{}", image.layer_digests()[0]);
    let dir = tempfile::tempdir().unwrap();
    for fault in
        [Fault::Cut(0), Fault::Cut(100_000), Fault::Cut(1), Fault::Status(503), Fault::Cut(2_000_000)]
    {
        registry.fault(&blob, fault);
    }
    open(dir.path()).pull(&registry.name("big:1"), None, |_| {}).await.unwrap();
    let ranges: Vec<_> =
        registry.requests().into_iter().filter(|r| r.path.contains(&blob)).map(|r| r.range).collect();
    // The cuts lie behind the last byte that came through, so each request asks from there.
    assert_eq!(ranges, [None, None, Some(100_000), Some(100_001), Some(100_001), Some(2_100_001)]);
}

#[tokio::test]
async fn a_server_without_ranges_sends_it_anew() {
    let registry = registry();
    let image = big(1 << 20);
    registry.push("big", "1", &image);
    let blob = format!("/blobs/{}", image.layer_digests()[0]);
    registry.fault(&blob, Fault::Cut(300_000));
    registry.fault(&blob, Fault::IgnoreRange);
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).pull(&registry.name("big:1"), None, |_| {}).await.unwrap();
}

#[tokio::test]
async fn a_stalled_registry_is_asked_again_and_at_last_given_up() {
    let registry = registry();
    let image = big(1 << 20);
    registry.push("big", "1", &image);
    let blob = format!("/blobs/{}", image.layer_digests()[0]);
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.stall = Duration::from_millis(200);
    let store = ImageStore::open(options).unwrap();
    for _ in 0..6 {
        registry.fault(&blob, Fault::Stall(0));
    }
    let error = store.pull(&registry.name("big:1"), None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Network));
    assert!(told(&error).contains("stalls"), "{}", told(&error));
    registry.fault(&blob, Fault::Stall(500_000));
    store.pull(&registry.name("big:1"), None, |_| {}).await.unwrap();
}

#[tokio::test]
async fn an_abandoned_pull_resumes_after_a_restart() {
    let registry = registry();
    let image = big(3 << 20);
    registry.push("big", "1", &image);
    let blob = format!("/blobs/{}", image.layer_digests()[0]);
    registry.fault(&blob, Fault::Stall(2_000_000));
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = registry.name("big:1");
    {
        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        let pull = store.pull(&name, None, move |event| drop(sender.send(event)));
        let half = async {
            while let Some(event) = events.recv().await {
                if matches!(event, Progress::Fetched { bytes, .. } if bytes >= 1_000_000) {
                    return;
                }
            }
        };
        tokio::select! {
            pulled = pull => panic!("ended: {pulled:?}"),
            () = half => {}
        }
    }
    // Closing waits for the worker that nobody waits for any more.
    tokio::time::timeout(Duration::from_secs(20), store.close()).await.unwrap().unwrap();
    assert_eq!(count(dir.path(), "tmp"), 0);
    assert_eq!(count(dir.path(), "ingest"), 1);
    drop(store);
    let pulled = open(dir.path()).pull(&name, None, |_| {}).await.unwrap();
    assert_eq!(fs::metadata(pulled.lower_dirs[0].join("big")).unwrap().len(), 3 << 20);
    let last = registry.requests().into_iter().rfind(|r| r.path.contains(&blob)).unwrap();
    assert!(last.range.is_some_and(|from| from >= 1_000_000), "{last:?}");
}

#[tokio::test]
async fn a_torn_download_is_fetched_again() {
    let registry = registry();
    let image = big(1 << 20);
    registry.push("big", "1", &image);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let partial = dir.path().join("images/ingest").join(image.layer_digests()[0].hex());
    fs::write(&partial, vec![0; 700_000]).unwrap();
    let pulled = store.pull(&registry.name("big:1"), None, |_| {}).await.unwrap();
    assert_eq!(fs::metadata(pulled.lower_dirs[0].join("big")).unwrap().len(), 1 << 20);
    fs::write(&partial, vec![0; 2 << 20]).unwrap();
    store.remove(&pulled.id).await.unwrap();
    store.pull(&registry.name("big:1"), None, |_| {}).await.unwrap();
}

#[tokio::test]
async fn bad_content_is_one_clear_error_and_leaves_nothing() {
    let registry = registry();
    let whole = big(1 << 20);
    let blob = format!("/blobs/{}", whole.layer_digests()[0]);
    registry.push("big", "1", &whole);
    registry.push("short", "1", &whole.clone());
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());

    registry.fault(&blob, Fault::Flip(1000));
    let error = store.pull(&registry.name("big:1"), None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Digest));
    assert!(told(&error).contains("content has digest"), "{}", told(&error));

    let gzip = TestImage::new().layer(&base(), LayerCompression::Gzip);
    registry.push("gzip", "1", &gzip);
    registry.fault(&format!("/blobs/{}", gzip.layer_digests()[0]), Fault::Flip(40));
    let error = store.pull(&registry.name("gzip:1"), None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Digest), "{}", told(&error));

    let cut = gzip.clone().damage(0, |blob| blob.truncate(blob.len() - 20));
    registry.push("cut", "1", &cut);
    let error = store.pull(&registry.name("cut:1"), None, |_| {}).await.unwrap_err();
    assert!(matches!(error.kind(), Some(FailureKind::Digest | FailureKind::Corrupt)), "{}", told(&error));

    let error = store.pull(&registry.name("big:none"), None, |_| {}).await.unwrap_err();
    let name = registry.name("big:none");
    assert_eq!(error.kind(), Some(FailureKind::NotFound));
    assert_eq!(
        told(&error),
        format!(
            "failed to pull and unpack image {name:?}: failed to resolve reference {name:?}: {name}: not found"
        )
    );

    registry.push("diff", "1", &gzip.wrong_diff_id(0));
    let error = store.pull(&registry.name("diff:1"), None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Digest), "{}", told(&error));

    registry.put("html/manifests/1", "text/html", b"<html>a captive portal</html>".to_vec());
    let error = store.pull(&registry.name("html:1"), None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Corrupt), "{}", told(&error));

    assert!(store.list().is_empty());
    for folder in ["layers", "tmp", "records", "configs"] {
        assert_eq!(count(dir.path(), folder), 0, "{folder}");
    }
}

#[tokio::test]
async fn equal_layers_and_equal_images_side_by_side() {
    let registry = registry();
    let empty = Tarball::new().finish();
    let made = |cmd: &str| {
        TestImage::new()
            .layer(&empty, LayerCompression::Gzip)
            .layer(&base(), LayerCompression::Gzip)
            .layer(&empty, LayerCompression::Gzip)
            .config(json!({"Cmd": [cmd]}))
    };
    let (one, two) = (made("one"), made("two"));
    registry.push("one", "1", &one);
    registry.push("two", "1", &two);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (name_one, name_two) = (registry.name("one:1"), registry.name("two:1"));
    let (a, b, c) = tokio::join!(
        store.pull(&name_one, None, |_| {}),
        store.pull(&name_two, None, |_| {}),
        store.pull(&name_one, None, |_| {}),
    );
    assert_eq!(a.unwrap().lower_dirs, b.unwrap().lower_dirs);
    assert_eq!(c.unwrap().config.cmd, ["one"]);
    assert_eq!(
        (count(dir.path(), "ingest"), count(dir.path(), "tmp"), count(dir.path(), "layers")),
        (0, 0, 3)
    );
}

#[tokio::test]
async fn equal_layers_in_opposite_order_do_not_wait_for_each_other() {
    let registry = registry();
    let (x, y) = (
        Tarball::new().file("x", &vec![1; 1 << 20]).finish(),
        Tarball::new().file("y", &vec![2; 1 << 20]).finish(),
    );
    for (name, layers) in [("xy", [&x, &y]), ("yx", [&y, &x])] {
        let image = TestImage::new()
            .layer(layers[0], LayerCompression::Plain)
            .layer(layers[1], LayerCompression::Plain);
        registry.push(name, "1", &image);
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (xy, yx) = (registry.name("xy:1"), registry.name("yx:1"));
    let both = async { tokio::join!(store.pull(&xy, None, |_| {}), store.pull(&yx, None, |_| {})) };
    let (xy, yx) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    assert!(xy.unwrap().lower_dirs[0].join("y").exists() && yx.unwrap().lower_dirs[0].join("x").exists());
    assert_eq!((count(dir.path(), "ingest"), count(dir.path(), "tmp")), (0, 0));
}
