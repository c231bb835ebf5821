//! Broken, hostile and foreign checkpoints: each is refused with an error that names what is wrong.

use std::path::Path;
use weft::backend::cpu::CpuBackend;
use weft::checkpoint::Files;
use weft::engine::Generator;
use weft::models::embedded;

/// A copy of the embedded model in a directory.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors", "vq.safetensors"] {
        std::fs::write(folder.path().join(name), embedded::avatar().read(name).unwrap()).unwrap();
    }
    folder
}

/// Loads the model after `change` was done to the bytes of `name`; returns the error's text.
fn error_after(name: &str, change: impl Fn(&mut Vec<u8>)) -> String {
    let folder = model();
    let path = folder.path().join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    load(folder.path()).expect_err("a broken model must not load")
}

fn load(folder: &Path) -> Result<(), String> {
    let files = Files::Directory(folder.to_owned());
    Generator::load(CpuBackend::new(), &files).map(drop).map_err(|error| error.to_string())
}

fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(text.contains(from), "{from} is not in the file");
    *bytes = text.replacen(from, to, 1).into_bytes();
}

/// Rewrites the JSON header of a safetensors file.
fn header(bytes: &mut Vec<u8>, change: impl Fn(&mut serde_json::Map<String, serde_json::Value>)) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut parsed: serde_json::Map<_, _> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut parsed);
    let mut text = serde_json::to_vec(&parsed).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    let data = bytes.split_off(8 + length);
    *bytes = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
}

#[test]
fn the_copy_loads() {
    load(model().path()).unwrap();
}

#[test]
fn truncated_and_hostile_files_are_refused() {
    for (cut, expected) in
        [(4, "too few"), (5_000, "model.safetensors is not valid"), (1_000_000, "model.safetensors is not valid")]
    {
        let error = error_after("model.safetensors", |bytes| bytes.truncate(cut));
        assert!(error.contains(expected), "{error}");
    }
    let error = error_after("model.safetensors", |bytes| bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes()));
    assert!(error.contains("the header claims 18446744073709551615 bytes"), "{error}");
    let error = error_after("vq.safetensors", |bytes| bytes[8] = b'!');
    assert!(error.contains("vq.safetensors is not valid"), "{error}");
    let error = error_after("model.safetensors", |bytes| bytes.clear());
    assert!(error.contains("0 bytes are too few"), "{error}");
}

#[test]
fn tensors_are_named_when_missing_unknown_or_misshapen() {
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    let renamed = error_after("model.safetensors", |bytes| {
        header(bytes, |tensors| {
            let tensor = tensors.remove(NAME).unwrap();
            tensors.insert("model.layers.1.mlp.other.weight".into(), tensor);
        });
    });
    assert_eq!(renamed, format!("model.safetensors: tensor {NAME} is missing"));
    let reshaped = error_after("model.safetensors", |bytes| {
        header(bytes, |tensors| tensors[NAME]["shape"] = serde_json::json!([192, 512]));
    });
    assert_eq!(
        reshaped,
        format!("model.safetensors: tensor {NAME} has shape [192, 512], the config asks for [512, 192]")
    );
    let retyped = error_after("model.safetensors", |bytes| {
        header(bytes, |tensors| tensors[NAME]["dtype"] = "F16".into());
    });
    assert_eq!(retyped, format!("model.safetensors: tensor {NAME} is F16, only BF16 is supported here"));
    let fewer =
        error_after("config.json", |bytes| replace(bytes, "\"num_hidden_layers\": 9", "\"num_hidden_layers\": 8"));
    assert!(fewer.starts_with("model.safetensors: unknown tensors: model.layers.8."), "{fewer}");
    let outside = error_after("model.safetensors", |bytes| {
        header(bytes, |tensors| tensors[NAME]["data_offsets"] = serde_json::json!([0, 1u64 << 60]));
    });
    assert!(outside.contains("model.safetensors is not valid"), "{outside}");
}

#[test]
fn configs_are_checked() {
    for (from, to, expected) in [
        ("\"hidden_size\": 192", "\"hidden_size\": 0", "hidden_size is 0"),
        (
            "\"hidden_size\": 192",
            "\"hidden_size\": 999999999999",
            "hidden_size is 999999999999, it must lie in 1..=65536",
        ),
        ("\"num_key_value_heads\": 3", "\"num_key_value_heads\": 2", "num_key_value_heads must divide"),
        ("\"model_type\"", "\"surprise\": 1, \"model_type\"", "unknown field `surprise`"),
        ("AvatarForImageGeneration", "LlamaForCausalLM", "known is"),
        ("{", "", "config.json is not valid"),
    ] {
        let error = error_after("config.json", |bytes| replace(bytes, from, to));
        assert!(error.contains(expected), "{error}");
    }
    let error = error_after("tokenizer.json", |bytes| replace(bytes, "[BOS]", "[EOS]"));
    assert!(error.contains("tokenizer.json is not valid"), "{error}");
}

#[test]
fn missing_files_are_named() {
    let folder = model();
    std::fs::remove_file(folder.path().join("vq.safetensors")).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(error.starts_with("cannot read") && error.contains("vq.safetensors"), "{error}");
}

/// Decodes with a drafter from a directory that `change` was made to; the error's text.
fn drafter_error_after(change: impl Fn(&Path)) -> String {
    let folder = model();
    let extra = folder.path().join("extra");
    std::fs::create_dir(&extra).unwrap();
    let drafter = extra.join("eagle.safetensors");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/avatar/extra/eagle.safetensors");
    std::fs::copy(shipped, &drafter).unwrap();
    change(&drafter);
    let generator = Generator::load(CpuBackend::new(), &Files::Directory(folder.path().to_owned())).unwrap();
    generator.eagle("eagle1").map(drop).expect_err("a broken drafter must not load").to_string()
}

#[test]
fn a_broken_drafter_is_refused_when_it_is_needed() {
    let rewritten = |change: &dyn Fn(&mut Vec<u8>)| {
        drafter_error_after(|path| {
            let mut bytes = std::fs::read(path).unwrap();
            change(&mut bytes);
            std::fs::write(path, bytes).unwrap();
        })
    };
    let missing = drafter_error_after(|path| std::fs::remove_file(path).unwrap());
    assert!(missing.starts_with("eagle1 needs eagle.safetensors, which is not in "), "{missing}");
    let truncated = rewritten(&|bytes| bytes.truncate(1_000_000));
    assert!(truncated.starts_with("eagle.safetensors is not valid"), "{truncated}");
    let reshaped = rewritten(&|bytes| {
        header(bytes, |tensors| tensors["eagle.fc.weight"]["shape"] = serde_json::json!([384, 192]))
    });
    let expected = "eagle.safetensors: tensor eagle.fc.weight has shape [384, 192], the config asks for [192, 384]";
    assert_eq!(reshaped, expected);
}

/// A checkpoint in shards loads as the same model; a shard name must not lead out of the directory.
#[test]
fn shards_are_followed_and_confined() {
    let folder = model();
    let path = |name: &str| folder.path().join(name);
    std::fs::rename(path("model.safetensors"), path("model-00001-of-00001.safetensors")).unwrap();
    let index = |shard: &str| format!("{{\"metadata\": {{}}, \"weight_map\": {{\"lm_head.weight\": {shard:?}}}}}");
    std::fs::write(path("model.safetensors.index.json"), index("model-00001-of-00001.safetensors")).unwrap();
    load(folder.path()).unwrap();
    std::fs::write(path("model.safetensors.index.json"), index("../model.safetensors")).unwrap();
    assert!(load(folder.path()).unwrap_err().contains("is not a plain file name"));
}
