//! The C boundary: the types of arguments, and what every exported function is wrapped in.
//!
//! Pointers come in as [`Out`], [`In`], [`InOut`] and [`Text`]. Only C makes them, as arguments of a driver function, and
//! its caller vouches by the API's contract that they are null or valid; null is checked here.

use std::any::Any;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::errors::{CuResult, Error, Result};
use super::findings;

/// Where a result goes.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// Whether the caller does not want it.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Fails for a null pointer, before the call has done anything.
    pub fn check(self) -> Result<()> {
        if self.0.is_null() { Err(Error::Null) } else { Ok(()) }
    }

    /// Gives the result. The pointer may not be null.
    pub fn set(self, value: T) -> Result<()> {
        self.check()?;
        // SAFETY: an argument of a driver function, which points to room for a `T` (see the module's text).
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Gives the result to a caller that wants it.
    pub fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: as in `set`.
            unsafe { self.0.write_unaligned(value) };
        }
    }

    /// Element `index` of an array that the caller says is longer.
    pub fn at(self, index: usize) -> Out<T> {
        Out(self.0.wrapping_add(index))
    }

    /// The same place as another type, for calls whose result depends on what is asked.
    pub fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }

    /// What is there now: for arguments that go in and out.
    pub fn read(self) -> Result<T>
    where
        T: Copy,
    {
        In(self.0.cast_const()).get()
    }

    /// Writes `bytes` as a C string, cut to `room` bytes with its end.
    pub fn set_text(self, bytes: &[u8], room: usize) -> Result<()> {
        self.check()?;
        if room == 0 {
            return Err(Error::invalid("a buffer of no bytes"));
        }
        let length = bytes.len().min(room - 1);
        // SAFETY: the caller gives `room` bytes at this pointer.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.cast(), length);
            self.0.cast::<u8>().add(length).write(0);
        }
        Ok(())
    }
}

/// Where an argument is read from.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for In<T> {}

impl<T: Copy> In<T> {
    /// Whether the argument is left out.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// What is there.
    pub fn get(self) -> Result<T> {
        if self.0.is_null() {
            return Err(Error::Null);
        }
        // SAFETY: an argument of a driver function, which points to a `T` (see the module's text).
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// An array of `length`; a null one may only be empty.
    pub fn list(self, length: usize) -> Result<Vec<T>> {
        (0..length)
            .map(|i| if self.0.is_null() { Err(Error::Null) } else { In(self.0.wrapping_add(i)).get() })
            .collect()
    }

    /// The address itself.
    pub fn address(self) -> usize {
        self.0 as usize
    }
}

/// A C string.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text(*const c_char);

impl Text {
    /// Its bytes without the end.
    pub fn bytes(self) -> Result<Vec<u8>> {
        if self.0.is_null() {
            return Err(Error::Null);
        }
        // SAFETY: an argument of a driver function, which is a C string (see the module's text).
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes().to_vec())
    }

    /// As a string.
    pub fn string(self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }
}

/// Host memory of unknown extent: the image of a module, the target of a copy, a kernel's parameter.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct HostPtr(pub usize);

impl HostPtr {
    /// Null is an error, and so is what lies so low that nothing ever is there: the pointers of empty lists.
    pub fn check(self) -> Result<HostPtr> {
        if self.0 < 4096 { Err(Error::Null) } else { Ok(self) }
    }

    /// Copies `length` bytes out.
    pub fn bytes(self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Copies out.
    pub fn read(self, into: &mut [u8]) -> Result<()> {
        if into.is_empty() {
            return Ok(());
        }
        let from = self.check()?.0 as *const u8;
        // SAFETY: the caller of the driver function vouches for the bytes that its arguments describe.
        unsafe { std::ptr::copy(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies in.
    pub fn write(self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let to = self.check()?.0 as *mut u8;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// The bytes up to the first zero.
    pub fn text(self) -> Result<Vec<u8>> {
        Text(self.check()?.0 as *const c_char).bytes()
    }

    /// What the pointer at this place points to.
    pub fn pointer_at(self, index: usize) -> Result<HostPtr> {
        In((self.check()?.0 as *const usize).wrapping_add(index)).get().map(HostPtr)
    }

    /// The place seen as a result's.
    pub fn out<T>(self) -> Out<T> {
        Out(self.0 as *mut T)
    }

    /// The place seen as an argument's.
    pub fn input<T: Copy>(self) -> In<T> {
        In(self.0 as *const T)
    }

    /// As a C pointer.
    pub fn raw(self) -> *mut c_void {
        self.0 as *mut c_void
    }
}

/// An exported function, for `cuGetProcAddress`.
pub struct Symbol {
    /// Its name.
    pub name: &'static str,
    /// Its address.
    pub address: *const c_void,
}

// SAFETY: the address of a function of this library, which any thread may call.
unsafe impl Sync for Symbol {}

/// Defines exported driver functions and the table `SYMBOLS` of a file. A body is the inside of a function that returns
/// [`Result<()>`]; the macro gives it the C name, the C result, and the wrapper.
macro_rules! entries {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            /// By the contract of the driver API: each pointer is null or valid for what the function does with it.
            #[allow(non_snake_case, clippy::too_many_arguments)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> $crate::driver::errors::CuResult {
                $crate::driver::abi::guard(stringify!($name), move || -> $crate::driver::errors::Result<()> { $body })
            }
        )*

        /// The functions of this chapter.
        pub(super) const SYMBOLS: &[$crate::driver::abi::Symbol] = &[$(
            $crate::driver::abi::Symbol { name: stringify!($name), address: $name as *const std::ffi::c_void },
        )*];
    };
}
pub(crate) use entries;

thread_local! {
    static CALL: Cell<&'static str> = const { Cell::new("") };
}

/// The driver function that this thread is in, for reports.
pub fn current_call() -> &'static str {
    CALL.get()
}

/// Runs the body of a driver function: reports its error, and stops a panic from crossing into C.
pub fn guard(call: &'static str, body: impl FnOnce() -> Result<()>) -> CuResult {
    let outer = CALL.replace(call);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    CALL.set(outer);
    match outcome {
        Ok(Ok(())) => CuResult::SUCCESS,
        Ok(Err(error)) => {
            findings::failed_call(call, &error);
            error.result()
        }
        Err(panic) => {
            report_panic(call, &*panic);
            CuResult::ERROR_UNKNOWN
        }
    }
}

/// Prints a panic, which is a bug of the simulator.
pub fn report_panic(call: &str, panic: &(dyn Any + Send)) {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    findings::report(&format!("{call}: internal error of the simulator: {}", text.unwrap_or("a panic")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_result() {
        assert_eq!(guard("cuTest", || panic!("planted")), CuResult::ERROR_UNKNOWN);
        assert_eq!(guard("cuTest", || Err(Error::NotReady)), CuResult::ERROR_NOT_READY);
        assert_eq!(guard("cuTest", || Ok(())), CuResult::SUCCESS);
    }

    #[test]
    fn null_is_refused_and_texts_are_cut() {
        assert!(matches!(Out::<u32>(std::ptr::null_mut()).set(1), Err(Error::Null)));
        assert!(matches!(In::<u32>(std::ptr::null()).list(1), Err(Error::Null)));
        assert!(In::<u32>(std::ptr::null()).list(0).unwrap().is_empty());
        let mut room = [b'x'; 5];
        Out(room.as_mut_ptr()).set_text(b"abcdef", 4).unwrap();
        assert_eq!(&room, b"abc\0x");
    }
}
