//! The command as its users meet it.

use std::path::Path;
use std::process::{Command, Output};

fn weft(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft")).args(args).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command that must fail: exit code 2, one line on stderr, no files left.
fn refused(args: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = weft(folder.path(), args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{args:?} left something behind");
    text(&output.stderr)
}

fn one_line(args: &[&str]) -> String {
    let error = refused(args);
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn generate_writes_a_png_that_says_how_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["generate", "a", "happy man", "-o", "a.png", "--seed", "7", "--decoder", "exact"];
    let output = weft(folder.path(), &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "no progress bar without a terminal");
    let summary = text(&output.stdout);
    assert_eq!(summary.lines().count(), 1);
    for part in ["exact: ", " passes, ", " tokens/pass, ", "% accepted, ", " ms (", " GB/s of weights"] {
        assert!(summary.contains(part), "{summary}");
    }
    let bytes = std::fs::read(folder.path().join("a.png")).unwrap();
    let reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
    assert_eq!((reader.info().width, reader.info().height), (96, 96));
    let texts: Vec<_> = reader
        .info()
        .uncompressed_latin1_text
        .iter()
        .map(|chunk| (chunk.keyword.as_str(), chunk.text.as_str()))
        .collect();
    assert_eq!(texts[..2], [("prompt", "a happy man"), ("seed", "7")]);
    assert!(texts[2].0 == "decoder" && texts[2].1.starts_with("exact:"), "{texts:?}");
    assert!(texts[3] == ("model", "embedded") && texts[4].0 == "sampling", "{texts:?}");
    weft(folder.path(), &["generate", "a happy man", "-o", "b.png", "--seed", "7", "--exact"]);
    assert!(bytes == std::fs::read(folder.path().join("b.png")).unwrap(), "the same request gives the same file");
}

#[test]
fn json_describes_every_picture() {
    let folder = tempfile::tempdir().unwrap();
    let args =
        ["generate", "a woman", "-o", "x.png", "--n", "2", "--batch", "2", "--json", "--tokens", "--decoder", "ssd"];
    let output = weft(folder.path(), &args);
    let objects: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 2);
    for (object, file) in objects.iter().zip(["x-1.png", "x-2.png"]) {
        assert!(folder.path().join(file).is_file());
        assert_eq!(object["file"], file);
        assert_eq!((&object["decoder"], &object["exact"], &object["nfe"]), (&"ssd".into(), &false.into(), &80.into()));
        assert_eq!(object["token_ids"].as_array().unwrap().len(), 576);
        for key in ["width", "height", "seed", "device", "tokens", "tokens_per_pass", "acceptance", "batch", "seconds"]
        {
            assert!(!object[key].is_null(), "{key}");
        }
    }
    assert_ne!(objects[0]["token_ids"], objects[1]["token_ids"]);
    let seed = objects[1]["seed"].to_string();
    let again = ["generate", "a woman", "-o", "y.png", "--seed", &seed, "--json", "--tokens", "--decoder", "ssd"];
    let again: serde_json::Value = serde_json::from_slice(&weft(folder.path(), &again).stdout).unwrap();
    assert_eq!(again["token_ids"], objects[1]["token_ids"], "every picture can be made again alone");
}

#[test]
fn a_sheet_holds_all_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        weft(folder.path(), &["generate", "a man", "-o", "sheet.png", "--n", "3", "--batch", "2", "--grid-sheet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = std::fs::read(folder.path().join("sheet.png")).unwrap();
    let reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
    assert_eq!((reader.info().width, reader.info().height), (196, 196));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn unknown_words_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = weft(folder.path(), &["generate", "a woman riding a zebra", "-o", "a.png"]);
    assert!(output.status.success());
    let warning = text(&output.stderr);
    assert!(warning.starts_with("weft: warning:") && warning.contains("zebra"), "{warning}");
}

#[test]
fn bad_requests_get_one_line() {
    assert!(one_line(&["generate", "x", "-o", "missing/a.png"]).contains("the directory missing does not exist"));
    assert!(one_line(&["generate", "x", "-o", "."]).contains("this is not a file name"));
    assert!(one_line(&["generate", "x", "-o", "a.png", "--model", "nowhere"]).contains("there is no such directory"));
    assert!(one_line(&["generate", "x", "-o", "a.png", "--temperature", "-1"]).contains("temperature is -1"));
    assert!(one_line(&["generate", "x", "-o", "a.png", "--cfg", "nan"]).contains("cfg is NaN"));
    assert!(one_line(&["generate", "x", "-o", "a.png", "--top-p", "0"]).contains("top-p is 0"));
    assert!(
        one_line(&["generate", "x", "-o", "a.png", "--decoder", "ar", "--rounds", "3"])
            .contains("ar has no knob \"rounds\"")
    );
    assert!(one_line(&["inspect", "."]).contains("config.json"));
}

#[test]
fn bad_options_are_refused() {
    let known = weft::decode::methods::DECODERS.map(|decoder| decoder.name).join(", ");
    assert!(refused(&["generate", "x", "-o", "a.png", "--decoder", "magic"]).contains(&format!("known are {known}")));
    let tree = refused(&["generate", "x", "-o", "a.png", "--decoder", "exact:tree=8:coupling=maximal"]);
    assert!(tree.contains("needs coupling=gumbel"), "{tree}");
    assert!(refused(&["generate", "x", "-o", "a.png", "--n", "0"]).contains("0 is not in 1..=100000"));
    assert!(refused(&["generate", "-o", "a.png"]).contains("PROMPT"));
    assert!(refused(&["eval", "--images", "1"]).contains("1 is not in 2..=1000000"));
}

#[test]
fn inspect_and_decoders_describe() {
    let folder = tempfile::tempdir().unwrap();
    let inspect = text(&weft(folder.path(), &["inspect"]).stdout);
    assert!(inspect.contains("24x24 tokens of 512") && inspect.contains("bytes of weights"), "{inspect}");
    let decoders = text(&weft(folder.path(), &["decoders"]).stdout);
    for part in ["gsd        relaxed  none           arXiv 2508.07747", "window=32:init=random:coupling=maximal"] {
        assert!(decoders.contains(part), "{decoders}");
    }
}

#[test]
fn eval_measures_every_decoder() {
    let folder = tempfile::tempdir().unwrap();
    let output = weft(folder.path(), &["eval", "--images", "3", "--json", "--decoders", "ar,exact"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let objects: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 2);
    for key in ["nll", "fid", "attribute_accuracy"] {
        assert_eq!(objects[0][key], objects[1][key], "exact makes the pictures of ar, so {key} is the same");
    }
    assert_eq!(objects[0]["nfe"]["value"], 576.0);
}

/// A picture of the continuous model has positions and no tokens, so no likelihood under the tokens' model; its passes are
/// compared with plain decoding of its own target.
#[test]
fn continuous_pictures_have_no_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let decoders = ["cspd:drafts=0:rounds=8:steps=3", "cspd:schedule=fixed:drafts=4:prefill=0:rounds=8:steps=3"];
    let args = ["generate", "a woman", "-o", "x.png", "--json", "--tokens", "--decoder", decoders[1]];
    let output = weft(folder.path(), &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let object: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert!(object["token_ids"].is_null() && object["tokens"] == 144 && object["width"] == 96, "{object}");
    assert_eq!((&object["nfe"], &object["draft_passes"]), (&2.into(), &8.into()));
    let output = weft(folder.path(), &["eval", "--images", "2", "--json", "--decoders", &decoders.join(",")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let objects: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(objects.iter().all(|object| object["nll"].is_null() && !object["fid"]["value"].is_null()));
    assert_eq!(objects[1]["passes_ratio"], 4.0);
}
