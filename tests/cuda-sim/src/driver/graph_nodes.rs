//! The nodes of graphs by kind: adding them, asking for their parameters, changing those.

use std::sync::Arc;

use super::abi::{HostPtr, In, Out, entries};
use super::copy::{Copy, Fill, spatial};
use super::errors::{Error, Result};
use super::graph_exec::GraphRun;
use super::handles::Handle;
use super::kernel_params::{KernelCall, Shape};
use super::state::{Driver, current};
use super::types::{HostParams, KernelParams, Memcpy3d, MemsetParams};
use super::work::{HostCall, HostFunction, Work};

/// The work that parameters of each kind describe, checked as when it is issued to a stream.
pub fn kernel(driver: &Driver, params: In<KernelParams>, cooperative: bool) -> Result<Work> {
    let p = params.get()?;
    let function = if p.function.is_null() { p.kernel } else { p.function };
    let shape = Shape { grid: p.grid, block: p.block, cluster: [0; 3], shared: p.shared, cooperative };
    Ok(Work::Kernel(Arc::new(KernelCall::new(driver, function, shape, p.params, p.extra)?)))
}

/// A copy.
pub fn memcpy(driver: &Driver, params: In<Memcpy3d>) -> Result<Work> {
    let copy: Copy = spatial(driver, &params.get()?)?;
    copy.check(driver)?;
    Ok(Work::Copy(copy))
}

/// A fill.
pub fn memset(driver: &Driver, params: In<MemsetParams>) -> Result<Work> {
    let fill = Fill(params.get()?);
    fill.check(driver)?;
    Ok(Work::Fill(fill))
}

/// A host function.
pub fn host(params: In<HostParams>) -> Result<Work> {
    let p = params.get()?;
    if p.function.is_none() {
        return Err(Error::Null);
    }
    Ok(Work::Host(HostCall { function: HostFunction::Plain(p.function), data: p.data }))
}

/// A graph as the work of a node of another.
pub fn child(driver: &Driver, graph: Handle) -> Result<Work> {
    Ok(Work::Graph(Arc::new(GraphRun::new(driver, graph)?)))
}

fn add(
    out: Out<Handle>,
    graph: Handle,
    after: In<Handle>,
    count: usize,
    work: impl FnOnce(&Driver) -> Result<Work>,
) -> Result<()> {
    let (mut driver, _) = current()?;
    out.check()?;
    let work = work(&driver)?;
    out.set(driver.add_node(graph, work, after.list(count)?)?)
}

/// Changes a node's work to other work of its kind.
fn change(node: Handle, work: impl FnOnce(&Driver) -> Result<Work>) -> Result<()> {
    let (mut driver, _) = current()?;
    let work = work(&driver)?;
    let node = driver.node_mut(node)?;
    if node.work.node_type() != work.node_type() {
        return Err(Error::invalid("the node is of another kind"));
    }
    node.work = work;
    Ok(())
}

fn other_kind<T>() -> Result<T> {
    Err(Error::invalid("the node is of another kind"))
}

fn cooperative(driver: &Driver, node: Handle) -> Result<bool> {
    match &driver.node(node)?.work {
        Work::Kernel(call) => Ok(call.shape.cooperative),
        _ => other_kind(),
    }
}

entries! {
    /// Adds a launch.
    fn cuGraphAddKernelNode_v2(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<KernelParams>,
    ) {
        add(out, graph, after, count, |driver| kernel(driver, params, false))
    }

    /// A launch's parameters. The pointers live as long as the node is not changed.
    fn cuGraphKernelNodeGetParams_v2(node: Handle, out: Out<KernelParams>) {
        let (driver, context) = current()?;
        let Work::Kernel(call) = &driver.node(node)?.work else { return other_kind() };
        out.set(KernelParams {
            function: call.function,
            grid: call.shape.grid,
            block: call.shape.block,
            shared: call.shape.shared,
            params: HostPtr(call.pointers.as_ptr() as usize),
            extra: HostPtr::default(),
            kernel: Handle::NULL,
            context,
        })
    }

    /// Changes a launch.
    fn cuGraphKernelNodeSetParams_v2(node: Handle, params: In<KernelParams>) {
        change(node, |driver| kernel(driver, params, cooperative(driver, node)?))
    }

    /// Adds a copy.
    fn cuGraphAddMemcpyNode(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<Memcpy3d>, _context: Handle,
    ) {
        add(out, graph, after, count, |driver| memcpy(driver, params))
    }

    /// Changes a copy.
    fn cuGraphMemcpyNodeSetParams(node: Handle, params: In<Memcpy3d>) {
        change(node, |driver| memcpy(driver, params))
    }

    /// Adds a fill.
    fn cuGraphAddMemsetNode(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<MemsetParams>, _context: Handle,
    ) {
        add(out, graph, after, count, |driver| memset(driver, params))
    }

    /// A fill's parameters.
    fn cuGraphMemsetNodeGetParams(node: Handle, out: Out<MemsetParams>) {
        let (driver, _) = current()?;
        match &driver.node(node)?.work {
            Work::Fill(fill) => out.set(fill.0),
            _ => other_kind(),
        }
    }

    /// Changes a fill.
    fn cuGraphMemsetNodeSetParams(node: Handle, params: In<MemsetParams>) {
        change(node, |driver| memset(driver, params))
    }

    /// Adds a host function.
    fn cuGraphAddHostNode(out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<HostParams>) {
        add(out, graph, after, count, |_| host(params))
    }

    /// A host function and its argument.
    fn cuGraphHostNodeGetParams(node: Handle, out: Out<HostParams>) {
        let (driver, _) = current()?;
        match &driver.node(node)?.work {
            Work::Host(HostCall { function: HostFunction::Plain(function), data }) => {
                out.set(HostParams { function: *function, data: *data })
            }
            _ => other_kind(),
        }
    }

    /// Changes a host function.
    fn cuGraphHostNodeSetParams(node: Handle, params: In<HostParams>) {
        change(node, |_| host(params))
    }

    /// Adds a graph as it is now.
    fn cuGraphAddChildGraphNode(out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, inner: Handle) {
        add(out, graph, after, count, |driver| child(driver, inner))
    }

    /// Adds a node that does nothing.
    fn cuGraphAddEmptyNode(out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize) {
        add(out, graph, after, count, |_| Ok(Work::Nothing))
    }

    /// Adds an event's mark.
    fn cuGraphAddEventRecordNode(out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, event: Handle) {
        add(out, graph, after, count, |driver| driver.events.get(event).map(|_| Work::Record(event)))
    }

    /// Adds a wait for an event.
    fn cuGraphAddEventWaitNode(out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, event: Handle) {
        add(out, graph, after, count, |driver| driver.events.get(event).map(|_| Work::Await(event)))
    }

    /// The event that a node marks.
    fn cuGraphEventRecordNodeGetEvent(node: Handle, out: Out<Handle>) {
        let (driver, _) = current()?;
        match driver.node(node)?.work {
            Work::Record(event) => out.set(event),
            _ => other_kind(),
        }
    }

    /// The event that a node waits for.
    fn cuGraphEventWaitNodeGetEvent(node: Handle, out: Out<Handle>) {
        let (driver, _) = current()?;
        match driver.node(node)?.work {
            Work::Await(event) => out.set(event),
            _ => other_kind(),
        }
    }
}
