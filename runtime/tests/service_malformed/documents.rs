//! Images whose documents are wrong, with digests that are right, so that they are read and not refused for those.

use std::fs;
use std::path::Path;

use coracle_runtime::image::Digest;
use coracle_runtime::testing::TestImage;
use serde_json::{Value, json};

use crate::mutation::Random;

/// Writes the layout of an image with changed documents into `dir`.
pub(crate) fn write(image: &TestImage, name: &str, dir: &Path, random: &mut Random) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for (digest, blob) in image.all_blobs() {
        fs::write(blobs.join(digest.hex()), blob).unwrap();
    }
    let put = |document: &Value| {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        fs::write(blobs.join(digest.hex()), &bytes).unwrap();
        (digest, bytes.len())
    };
    let read = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
    let mut config = read(image.config_bytes());
    if random.below(4) > 0 {
        mutate(&mut config, random);
    }
    let (digest, size) = put(&config);
    let mut manifest = read(image.manifest_bytes());
    manifest["config"]["digest"] = json!(digest);
    manifest["config"]["size"] = json!(size);
    if random.below(3) == 0 {
        mutate(&mut manifest, random);
    }
    let (digest, size) = put(&manifest);
    let mut descriptor = image.descriptor();
    descriptor["digest"] = json!(digest);
    descriptor["size"] = json!(size);
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let mut index = json!({"schemaVersion": 2, "manifests": [descriptor]});
    if random.below(6) == 0 {
        mutate(&mut index, random);
    }
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

/// Changes one value somewhere.
fn mutate(value: &mut Value, random: &mut Random) {
    let inner = match value {
        Value::Object(fields) if !fields.is_empty() && random.below(8) > 0 => {
            let key = fields.keys().nth(random.below(fields.len())).unwrap().clone();
            if random.below(10) == 0 {
                fields.remove(&key);
                return;
            }
            fields.get_mut(&key)
        }
        Value::Array(items) if !items.is_empty() && random.below(8) > 0 => {
            let at = random.below(items.len());
            if random.below(10) == 0 {
                let copy = items[at].clone();
                items.push(copy);
                return;
            }
            items.get_mut(at)
        }
        _ => None,
    };
    match inner {
        Some(inner) => mutate(inner, random),
        None => *value = odd(random),
    }
}

fn odd(random: &mut Random) -> Value {
    match random.below(18) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(u64::MAX),
        4 => json!(1.5e308),
        5 => json!([]),
        6 => json!({}),
        7 => json!("x".repeat(100_000)),
        8 => json!("\0"),
        9 => json!("../../../../etc/passwd"),
        10 => json!(["a\0b", "=", "", "A=B=C", "\u{202e}"]),
        11 => json!("65536:65536"),
        12 => json!("4294967296"),
        13 => json!("nobody-of-that-name:x"),
        14 => json!(format!("sha256:{}", "0".repeat(64))),
        15 => json!(format!("sha512:{}", "g".repeat(128))),
        16 => (0..100).fold(json!(1), |inner, _| json!([inner])),
        _ => json!({"a": {"b": [null, 1, "c"]}}),
    }
}
