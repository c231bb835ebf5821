//! Libraries: modules that belong to no context in the API. Here a library is a module of the current context, and a
//! `CUkernel` is its function.

use std::ffi::c_int;

use super::abi::{HostPtr, In, Out, Text, entries};
use super::context::device;
use super::function;
use super::handles::Handle;
use super::module::{self, JitOptions};
use super::state::current;
use super::types::DevicePtr;

entries! {
    /// Loads a library from PTX text or a fat binary.
    fn cuLibraryLoadData(
        out: Out<Handle>, image: HostPtr, options: In<u32>, values: HostPtr, count: u32, _library_options: HostPtr,
        _library_values: HostPtr, _library_count: u32,
    ) {
        module::load_data(out, image, &JitOptions::read(count, options, values)?)
    }

    /// Loads a library from a file.
    fn cuLibraryLoadFromFile(
        out: Out<Handle>, path: Text, _options: In<u32>, _values: HostPtr, _count: u32, _library_options: HostPtr,
        _library_values: HostPtr, _library_count: u32,
    ) {
        module::load_file(out, path)
    }

    /// Ends a library once all work is done.
    fn cuLibraryUnload(library: Handle) {
        module::unload_call(library)
    }

    /// A kernel by name.
    fn cuLibraryGetKernel(out: Out<Handle>, library: Handle, name: Text) {
        let (mut driver, _) = current()?;
        out.check()?;
        out.set(driver.function(library, &name.string()?)?)
    }

    /// The library as a module.
    fn cuLibraryGetModule(out: Out<Handle>, library: Handle) {
        current()?.0.modules.get(library)?;
        out.set(library)
    }

    /// A variable by name.
    fn cuLibraryGetGlobal(address: Out<DevicePtr>, size: Out<usize>, library: Handle, name: Text) {
        module::global(address, size, library, name)
    }

    /// A kernel as a function.
    fn cuKernelGetFunction(out: Out<Handle>, kernel: Handle) {
        current()?.0.functions.get(kernel)?;
        out.set(kernel)
    }

    /// A kernel's attribute.
    fn cuKernelGetAttribute(out: Out<c_int>, attribute: u32, kernel: Handle, number: c_int) {
        device(number)?;
        function::get_attribute(out, attribute, kernel)
    }

    /// Sets a kernel's attribute.
    fn cuKernelSetAttribute(attribute: u32, value: c_int, kernel: Handle, number: c_int) {
        device(number)?;
        function::set_attribute(kernel, attribute, value)
    }
}
