//! src/backend/cuda/abi.rs: the Rust side of include/kernel_abi.h, made by bindgen.
//!
//! bindgen and libclang are large, and few need them: they are behind a feature, with which xtask runs itself again.

use std::path::PathBuf;

#[cfg(feature = "abi")]
const HEADER: &str = "include/kernel_abi.h";
const BINDINGS: &str = "src/backend/cuda/abi.rs";

/// Makes the file anew.
pub fn write() -> Result<(), String> {
    let text = generate(&["abi"])?;
    let Some(text) = text else { return Ok(()) };
    std::fs::write(workspace().join(BINDINGS), text).map_err(|e| format!("{BINDINGS}: {e}"))
}

/// Fails if the file is not what the header says.
pub fn check() -> Result<(), String> {
    let Some(text) = generate(&["abi", "--check"])? else { return Ok(()) };
    let committed = std::fs::read_to_string(workspace().join(BINDINGS)).map_err(|e| format!("{BINDINGS}: {e}"))?;
    match committed == text {
        true => Ok(()),
        false => Err(format!("{BINDINGS} is not what include/kernel_abi.h says: run `cargo xtask abi`")),
    }
}

fn workspace() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").into()
}

/// Runs xtask again, with the feature; there is nothing to do after it.
#[cfg(not(feature = "abi"))]
fn generate(again: &[&str]) -> Result<Option<String>, String> {
    let clang = crate::toolkit::clang()?;
    let mut command = std::process::Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--package", "xtask", "--features", "abi", "--"]).args(again);
    match command.env("LIBCLANG_PATH", clang).current_dir(workspace()).status() {
        Ok(status) if status.success() => Ok(None),
        Ok(status) => Err(format!("xtask with bindgen failed ({status})")),
        Err(e) => Err(format!("cannot run cargo: {e}")),
    }
}

/// What bindgen makes of the header.
#[cfg(feature = "abi")]
fn generate(_: &[&str]) -> Result<Option<String>, String> {
    let bindings = bindgen::Builder::default()
        .header(workspace().join(HEADER).to_string_lossy())
        .raw_line("//! Made from include/kernel_abi.h by `cargo xtask abi`: not to be edited.")
        .raw_line("#![allow(missing_docs, dead_code, non_camel_case_types, non_upper_case_globals)]")
        .allowlist_file(".*kernel_abi\\.h")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .generate_comments(true)
        .derive_default(true)
        .no_default("WeftStep|WeftRows|WeftOut|WeftCodebook")
        .derive_partialeq(true)
        .parse_callbacks(Box::new(Derives))
        .use_core()
        .formatter(bindgen::Formatter::Rustfmt)
        .rustfmt_configuration_file(Some(workspace().join("rustfmt.toml")))
        .generate()
        .map_err(|e| e.to_string())?;
    Ok(Some(bindings.to_string()))
}

/// Lets structs without pointers be copied to the device byte by byte.
#[cfg(feature = "abi")]
#[derive(Debug)]
struct Derives;

#[cfg(feature = "abi")]
impl bindgen::callbacks::ParseCallbacks for Derives {
    fn add_derives(&self, of: &bindgen::callbacks::DeriveInfo<'_>) -> Vec<String> {
        match of.name {
            "WeftStep" | "WeftRows" | "WeftOut" | "WeftCodebook" => Vec::new(),
            _ => vec!["bytemuck::Pod".into(), "bytemuck::Zeroable".into()],
        }
    }
}
