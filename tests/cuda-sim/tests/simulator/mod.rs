//! The simulator as tests load it: a shared library, and what it has beside the driver API.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// `RTLD_NOW | RTLD_GLOBAL`
const NOW_FOR_ALL: c_int = 0x102;

/// Where cargo has put the library: beside the tests, or above.
pub fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let mut folders = test.ancestors().skip(1).take(2).map(|folder| folder.join("libcuda_sim.so"));
    let found = folders.find(|path| path.exists());
    found.expect("libcuda_sim.so is built with the tests")
}

/// Loads the simulator. Its SONAME is the driver's, so that cudarc's own loading finds it from then on. `prepare` runs
/// once, before.
pub fn load_after(prepare: impl FnOnce()) -> *mut c_void {
    static LOADED: OnceLock<usize> = OnceLock::new();
    let handle = LOADED.get_or_init(|| {
        prepare();
        let path = CString::new(library().to_str().unwrap()).unwrap();
        let handle = unsafe { dlopen(path.as_ptr(), NOW_FOR_ALL) };
        assert!(!handle.is_null(), "{path:?} cannot be loaded");
        handle as usize
    });
    *handle as *mut c_void
}

/// A function of the simulator that is no part of the driver API.
pub fn function(name: &CStr) -> *mut c_void {
    let found = unsafe { dlsym(load_after(|| ()), name.as_ptr()) };
    assert!(!found.is_null(), "{name:?} is exported");
    found
}

/// What one of the functions that give a text has to say: they are asked for its length first.
pub fn text(name: &CStr) -> String {
    type Give = unsafe extern "C" fn(*mut u8, usize) -> usize;
    let give: Give = unsafe { std::mem::transmute(function(name)) };
    let length = unsafe { give(std::ptr::null_mut(), 0) };
    let mut text = vec![0; length + 1];
    // Asked with too little room, it forgets nothing.
    assert_eq!(unsafe { give(text.as_mut_ptr(), length) }, length);
    assert_eq!(unsafe { give(text.as_mut_ptr(), length + 1) }, length);
    text.truncate(length);
    String::from_utf8(text).unwrap()
}
