//! Finding driver functions by name.

use std::ffi::{c_int, c_void};

use super::abi::{HostPtr, Out, Symbol, Text, entries};
use super::errors::{Error, Result};
use super::{
    attributes, capture, context, control, copy, errors, event, function, graph, graph_exec, graph_nodes, host_memory,
    launch, library, memory, module, occupancy, pointer, pool, stream, tensor_map, unsupported,
};

/// The functions of every chapter.
const CHAPTERS: &[&[Symbol]] = &[
    attributes::SYMBOLS,
    capture::SYMBOLS,
    context::SYMBOLS,
    control::SYMBOLS,
    copy::SYMBOLS,
    errors::SYMBOLS,
    event::SYMBOLS,
    function::SYMBOLS,
    graph::SYMBOLS,
    graph_exec::SYMBOLS,
    graph_nodes::SYMBOLS,
    host_memory::SYMBOLS,
    launch::SYMBOLS,
    library::SYMBOLS,
    memory::SYMBOLS,
    module::SYMBOLS,
    occupancy::SYMBOLS,
    pointer::SYMBOLS,
    pool::SYMBOLS,
    stream::SYMBOLS,
    tensor_map::SYMBOLS,
    unsupported::SYMBOLS,
    SYMBOLS,
];

/// A function by the name that programs use, which leaves the version out: the newest version is meant.
fn find(name: &str) -> Option<*const c_void> {
    let exact = |wanted: &str| CHAPTERS.iter().flat_map(|chapter| chapter.iter()).find(|s| s.name == wanted);
    let versions = ["_v4", "_v3", "_v2", ""].iter().map(|version| format!("{name}{version}"));
    versions.filter_map(|wanted| exact(&wanted)).map(|symbol| symbol.address).next()
}

const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;
/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`
const PER_THREAD: u64 = 2;

fn look_up(name: Text, out: Out<*const c_void>, flags: u64, status: Out<u32>) -> Result<()> {
    out.check()?;
    if flags & PER_THREAD != 0 {
        return Err(Error::NotSupported("functions for the default stream of each thread".into()));
    }
    let name = name.string()?;
    let found = find(&name);
    status.set_if_wanted(if found.is_some() { FOUND } else { NOT_FOUND });
    out.set(found.unwrap_or(std::ptr::null()))?;
    match found {
        Some(_) => Ok(()),
        // With a place for the status the call succeeds and says it there.
        None if !status.is_null() => Ok(()),
        None => Err(Error::NotFound { kind: "the driver function", name }),
    }
}

entries! {
    /// A driver function by name. Works without `cuInit`.
    fn cuGetProcAddress(name: Text, out: Out<*const c_void>, _version: c_int, flags: u64) {
        look_up(name, out, flags, HostPtr::default().out())
    }

    /// A driver function by name, and whether there is one. Works without `cuInit`.
    fn cuGetProcAddress_v2(name: Text, out: Out<*const c_void>, _version: c_int, flags: u64, status: Out<u32>) {
        look_up(name, out, flags, status)
    }

    /// Tables of undocumented functions: there are none, which NVRTC and the runtime must be told.
    fn cuGetExportTable(out: Out<*const c_void>, _id: HostPtr) {
        out.set_if_wanted(std::ptr::null());
        Err(Error::NoTable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_version_mean_the_newest() {
        assert_eq!(find("cuMemAlloc"), find("cuMemAlloc_v2"));
        assert_eq!(find("cuCtxCreate"), find("cuCtxCreate_v4"));
        assert!(find("cuInit").is_some() && find("cuGetProcAddress").is_some());
        assert_eq!(find("cuNoSuchThing"), None);
    }

    #[test]
    fn no_function_is_listed_twice() {
        let mut names: Vec<_> = CHAPTERS.iter().flat_map(|chapter| chapter.iter()).map(|s| s.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
