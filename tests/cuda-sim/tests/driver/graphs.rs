//! Graphs made node by node, and their changes.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUgraphNode, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr};

use crate::support::{Params, kernel, ok, plain_stream};

struct Fixture {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    add: CudaFunction,
    data: CudaSlice<u32>,
    graph: CUgraph,
}

impl Fixture {
    fn new() -> Fixture {
        let (context, stream) = plain_stream();
        let add = kernel(&context, "add");
        let data = stream.alloc_zeros::<u32>(32).unwrap();
        stream.synchronize().unwrap();
        let mut graph = std::ptr::null_mut();
        unsafe { ok(sys::cuGraphCreate(&mut graph, 0)) };
        Fixture { context, stream, add, data, graph }
    }

    fn base(&self) -> u64 {
        self.data.device_ptr(&self.stream).0
    }

    fn params(&self, params: &mut Params, threads: u32) -> sys::CUDA_KERNEL_NODE_PARAMS {
        let mut node: sys::CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
        node.func = self.add.cu_function();
        (node.gridDimX, node.gridDimY, node.gridDimZ) = (1, 1, 1);
        (node.blockDimX, node.blockDimY, node.blockDimZ) = (threads, 1, 1);
        node.kernelParams = params.pointers();
        node
    }

    /// Adds `add(data, value)`, after other nodes.
    fn kernel_node(&self, value: u64, after: &[CUgraphNode]) -> CUgraphNode {
        let mut params = Params::new(&[self.base(), value]);
        let description = self.params(&mut params, 32);
        let mut node = std::ptr::null_mut();
        let (list, count) = (after.as_ptr(), after.len());
        unsafe { ok(sys::cuGraphAddKernelNode_v2(&mut node, self.graph, list, count, &description)) };
        node
    }

    fn memset_node(&self, value: u32, after: &[CUgraphNode]) -> CUgraphNode {
        let mut description: sys::CUDA_MEMSET_NODE_PARAMS = unsafe { std::mem::zeroed() };
        (description.dst, description.value) = (self.base(), value);
        (description.elementSize, description.width, description.height) = (4, 32, 1);
        let mut node = std::ptr::null_mut();
        let context = self.context.cu_ctx();
        let (list, count) = (after.as_ptr(), after.len());
        unsafe { ok(sys::cuGraphAddMemsetNode(&mut node, self.graph, list, count, &description, context)) };
        node
    }

    fn instantiate(&self) -> CUgraphExec {
        let mut exec = std::ptr::null_mut();
        unsafe { ok(sys::cuGraphInstantiateWithFlags(&mut exec, self.graph, 0)) };
        exec
    }

    fn run(&self, exec: CUgraphExec) -> u32 {
        unsafe { ok(sys::cuGraphLaunch(exec, self.stream.cu_stream())) };
        self.stream.clone_dtoh(&self.data).unwrap()[31]
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        unsafe { ok(sys::cuGraphDestroy(self.graph)) };
    }
}

#[test]
fn nodes_run_in_the_order_of_their_dependencies() {
    let f = Fixture::new();
    // Made first, run last.
    let add = f.kernel_node(5, &[]);
    let set = f.memset_node(100, &[]);
    unsafe { ok(sys::cuGraphAddDependencies_v2(f.graph, &set, &add, std::ptr::null(), 1)) };
    let exec = f.instantiate();
    assert_eq!((f.run(exec), f.run(exec)), (105, 105));
    // Round in a circle.
    let circle = unsafe { sys::cuGraphAddDependencies_v2(f.graph, &add, &set, std::ptr::null(), 1) };
    assert_eq!(circle, CUresult::CUDA_ERROR_INVALID_VALUE);
    unsafe { ok(sys::cuGraphExecDestroy(exec)) };
    assert_eq!(unsafe { sys::cuGraphExecDestroy(exec) }, CUresult::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn parameters_of_nodes_can_be_asked_and_changed() {
    let f = Fixture::new();
    let set = f.memset_node(1, &[]);
    let add = f.kernel_node(5, &[set]);
    let mut found: sys::CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
    unsafe {
        ok(sys::cuGraphKernelNodeGetParams_v2(add, &mut found));
        assert_eq!((found.func, found.blockDimX, found.gridDimX), (f.add.cu_function(), 32, 1));
        assert_eq!(found.kernelParams.read().cast::<u64>().read(), f.base());
        assert_eq!(found.kernelParams.add(1).read().cast::<u32>().read(), 5);
    }
    let exec = f.instantiate();
    let mut params = Params::new(&[f.base(), 7]);
    let description = f.params(&mut params, 32);
    unsafe { ok(sys::cuGraphExecKernelNodeSetParams_v2(exec, add, &description)) };
    // The executable graph has changed, the graph has not.
    assert_eq!(f.run(exec), 8);
    let again = f.instantiate();
    assert_eq!(f.run(again), 6);
    let wrong = unsafe { sys::cuGraphExecKernelNodeSetParams_v2(exec, set, &description) };
    assert_eq!(wrong, CUresult::CUDA_ERROR_INVALID_VALUE);
    let mut params = Params::new(&[f.base(), 7]);
    let too_wide = f.params(&mut params, 2000);
    let wrong = unsafe { sys::cuGraphExecKernelNodeSetParams_v2(exec, add, &too_wide) };
    assert_eq!(wrong, CUresult::CUDA_ERROR_INVALID_VALUE);
    unsafe {
        ok(sys::cuGraphNodeSetEnabled(exec, add, 0));
        assert_eq!(f.run(exec), 1);
        ok(sys::cuGraphExecDestroy(exec));
        ok(sys::cuGraphExecDestroy(again));
    }
}

#[test]
fn an_executable_graph_takes_another_graph_of_its_form() {
    let f = Fixture::new();
    let set = f.memset_node(1, &[]);
    f.kernel_node(5, &[set]);
    let exec = f.instantiate();
    assert_eq!(f.run(exec), 6);
    let update = |graph: CUgraph| {
        let mut info: sys::CUgraphExecUpdateResultInfo = unsafe { std::mem::zeroed() };
        let result = unsafe { sys::cuGraphExecUpdate_v2(exec, graph, &mut info) };
        (result, info.result as u32)
    };
    let same = Fixture::new();
    let set = same.memset_node(10, &[]);
    same.kernel_node(20, &[set]);
    assert_eq!(update(same.graph), (CUresult::CUDA_SUCCESS, 0));
    unsafe { ok(sys::cuGraphLaunch(exec, f.stream.cu_stream())) };
    f.stream.synchronize().unwrap();
    assert_eq!(same.stream.clone_dtoh(&same.data).unwrap(), [30; 32]);
    let failure = CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    let more = Fixture::new();
    more.memset_node(1, &[]);
    assert_eq!(update(more.graph), (failure, 2));
    let loose = Fixture::new();
    loose.memset_node(1, &[]);
    loose.kernel_node(5, &[]);
    assert_eq!(update(loose.graph), (failure, 2));
    let kinds = Fixture::new();
    let first = kinds.kernel_node(5, &[]);
    kinds.memset_node(1, &[first]);
    assert_eq!(update(kinds.graph), (failure, 3));
    unsafe { ok(sys::cuGraphExecDestroy(exec)) };
}

#[test]
fn graphs_hold_graphs_and_host_functions() {
    unsafe extern "C" fn double(data: *mut c_void) {
        let value = data.cast::<u32>();
        unsafe { value.write(value.read() * 2) };
    }
    let f = Fixture::new();
    let inner = Fixture::new();
    let mut params = Params::new(&[f.base(), 4]);
    let description = f.params(&mut params, 32);
    let mut inside = std::ptr::null_mut();
    let mut value = Box::new(1u32);
    let host = sys::CUDA_HOST_NODE_PARAMS { fn_: Some(double), userData: (&raw mut *value).cast() };
    let (mut child, mut call, mut empty) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    unsafe {
        ok(sys::cuGraphAddKernelNode_v2(&mut inside, inner.graph, std::ptr::null(), 0, &description));
        ok(sys::cuGraphAddChildGraphNode(&mut child, f.graph, std::ptr::null(), 0, inner.graph));
        ok(sys::cuGraphAddHostNode(&mut call, f.graph, &child, 1, &host));
        ok(sys::cuGraphAddEmptyNode(&mut empty, f.graph, &call, 1));
    }
    let exec = f.instantiate();
    assert_eq!((f.run(exec), f.run(exec)), (4, 8));
    assert_eq!(*value, 4);
    let mut clone = std::ptr::null_mut();
    let mut found = std::ptr::null_mut();
    unsafe {
        ok(sys::cuGraphClone(&mut clone, f.graph));
        ok(sys::cuGraphNodeFindInClone(&mut found, call, clone));
        assert_ne!(found, call);
        ok(sys::cuGraphDestroy(clone));
        ok(sys::cuGraphExecDestroy(exec));
    }
}

#[test]
fn nodes_of_other_graphs_are_no_dependencies() {
    let (f, other) = (Fixture::new(), Fixture::new());
    let foreign = other.memset_node(1, &[]);
    let mut node = std::ptr::null_mut();
    let result = unsafe { sys::cuGraphAddEmptyNode(&mut node, f.graph, &foreign, 1) };
    assert_eq!(result, CUresult::CUDA_ERROR_INVALID_VALUE);
    let own = f.memset_node(1, &[]);
    unsafe { ok(sys::cuGraphDestroyNode(own)) };
    let result = unsafe { sys::cuGraphAddEmptyNode(&mut node, f.graph, &own, 1) };
    assert_eq!(result, CUresult::CUDA_ERROR_INVALID_VALUE);
}
