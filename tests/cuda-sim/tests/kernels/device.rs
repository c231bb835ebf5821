//! The driver that runs the kernels: the simulator, or with `WEFT_GPU=1` the one that the machine has.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::OnceLock;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

use crate::simulator;

/// Whether the kernels run on a real GPU, where nothing can be asked of the driver beside its API.
pub fn is_gpu() -> bool {
    std::env::var_os("WEFT_GPU").is_some_and(|value| value == "1")
}

/// Loads and initialises the driver; the device's compute capability.
fn open() -> (u32, u32) {
    static CAPABILITY: OnceLock<(u32, u32)> = OnceLock::new();
    *CAPABILITY.get_or_init(|| {
        if is_gpu() {
            assert!(unsafe { sys::is_culib_present() }, "WEFT_GPU=1, but there is no driver (libcuda.so.1)");
        } else {
            simulator::load_after(|| {
                // All checks can be chosen later; few multiprocessors make blocks wait for others to end.
                for (name, value) in [("CUDA_SIM_CHECK", "all"), ("CUDA_SIM_SMS", "4")] {
                    unsafe { std::env::set_var(name, value) };
                }
            });
        }
        result::init().expect("the driver initialises");
        let device = result::device::get(0).expect("there is a device");
        let attribute = |attribute| {
            unsafe { result::device::get_attribute(device, attribute) }.expect("the device says what it is") as u32
        };
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        (major, attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR))
    })
}

/// Why a PTX text cannot run on the device, if it cannot: its `.target` is newer, or of one architecture alone.
pub fn unfit(text: &str) -> Option<String> {
    let (major, minor) = open();
    let target = text.split_once(".target sm_").expect("the PTX has a target").1;
    let digits = target.find(|c: char| !c.is_ascii_digit()).unwrap_or(target.len());
    let (number, device) = (target[..digits].parse::<u32>().expect("digits"), major * 10 + minor);
    let alone = target[digits..].starts_with('a');
    let fits = if alone { number == device } else { number <= device };
    let suffix = if alone { "a" } else { "" };
    (!fits).then(|| format!("its PTX is for sm_{number}{suffix}, the device is sm_{device}"))
}

/// A context of its own, current in this thread; it ends with the value.
pub struct Context(sys::CUcontext);

impl Context {
    pub fn new() -> Context {
        open();
        let mut context = std::ptr::null_mut();
        let made = unsafe { sys::cuCtxCreate_v4(&mut context, std::ptr::null_mut(), 0, 0) };
        assert_eq!(made, CUresult::CUDA_SUCCESS);
        Context(context)
    }

    /// Chooses how the simulator runs the launches of the context. Not for a GPU.
    pub fn set(&self, variable: &str, value: &str) {
        type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> CUresult;
        let set: Set = unsafe { std::mem::transmute(simulator::function(c"cuda_sim_set")) };
        let texts = [variable, value].map(|text| CString::new(text).unwrap());
        assert_eq!(unsafe { set(texts[0].as_ptr(), texts[1].as_ptr()) }, CUresult::CUDA_SUCCESS, "{variable}={value}");
    }

    /// What the simulator has found in the context; from the first call on it does not print it. Not for a GPU.
    pub fn findings(&self) -> String {
        simulator::text(c"cuda_sim_findings")
    }

    /// Waits for all work.
    pub fn synchronize(&self) -> Result<(), CUresult> {
        unsafe { sys::cuCtxSynchronize() }.result().map_err(|error| error.0)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A context that a kernel has killed ends all the same.
        let _ = unsafe { sys::cuCtxDestroy_v2(self.0) };
    }
}

/// A module of a context.
pub struct Module(sys::CUmodule);

impl Module {
    /// Loads a PTX text.
    pub fn new(text: &str) -> Module {
        let text = CString::new(text).expect("PTX has no zero byte");
        Module(unsafe { result::module::load_data(text.as_ptr().cast()) }.expect("the PTX is loaded"))
    }

    /// A kernel.
    pub fn kernel(&self, name: &CStr) -> Kernel {
        let found = unsafe { result::module::get_function(self.0, name.to_owned()) };
        Kernel(found.unwrap_or_else(|_| panic!("no kernel {name:?} in the fixture")))
    }
}

/// A kernel of a module.
pub struct Kernel(sys::CUfunction);

impl Kernel {
    /// The sizes of its parameters.
    fn parameters(&self) -> Vec<usize> {
        let size = |index| {
            let (mut offset, mut size) = (0, 0);
            let found = unsafe { sys::cuFuncGetParamInfo(self.0, index, &mut offset, &mut size) };
            (found == CUresult::CUDA_SUCCESS).then_some(size)
        };
        (0..).map_while(size).collect()
    }

    /// Issues a launch on the default stream.
    pub fn launch(&self, shape: crate::harness::Shape, arguments: &mut [Vec<u8>]) -> Result<(), CUresult> {
        assert_eq!(arguments.iter().map(Vec::len).collect::<Vec<_>>(), self.parameters(), "sizes of the arguments");
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let mut pointers: Vec<_> = arguments.iter_mut().map(|argument| argument.as_mut_ptr().cast()).collect();
        let issued = unsafe { sys::cuFuncSetAttribute(self.0, most, shape.dynamic_shared as i32) }
            .result()
            .and_then(|()| unsafe { self.issue(shape, pointers.as_mut_ptr()) }.result());
        issued.map_err(|error| error.0)
    }

    unsafe fn issue(&self, shape: crate::harness::Shape, arguments: *mut *mut c_void) -> CUresult {
        use sys::CUlaunchAttributeID_enum::{CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, CU_LAUNCH_ATTRIBUTE_COOPERATIVE};
        let attribute = |id, fill: &dyn Fn(&mut sys::CUlaunchAttributeValue)| {
            let mut value: sys::CUlaunchAttributeValue = unsafe { std::mem::zeroed() };
            fill(&mut value);
            sys::CUlaunchAttribute { id, pad: [0; 4], value }
        };
        let mut attributes = Vec::new();
        if shape.cooperative {
            attributes.push(attribute(CU_LAUNCH_ATTRIBUTE_COOPERATIVE, &|value| value.cooperative = 1));
        }
        if shape.cluster != [0; 3] {
            let [x, y, z] = shape.cluster;
            attributes.push(attribute(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, &|value| {
                value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            }));
        }
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (shape.grid, shape.block);
        let config = sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: shape.dynamic_shared,
            hStream: std::ptr::null_mut(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        unsafe { sys::cuLaunchKernelEx(&config, self.0, arguments, std::ptr::null_mut()) }
    }
}
