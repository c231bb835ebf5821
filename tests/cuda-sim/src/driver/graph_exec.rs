//! Executable graphs.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::abi::{In, Out, current_call, entries};
use super::errors::{Error, Result};
use super::graph_nodes;
use super::handles::Handle;
use super::queue::{Ticket, call_host, perform};
use super::state::{Driver, Locked, current};
use super::stream::issue_after;
use super::types::{HostParams, InstantiateParams, KernelParams, Memcpy3d, MemsetParams, UpdateResult, flags};
use super::work::Work;
use crate::device::Site;
use crate::machine::schedule::Rng;

/// A node of an executable graph.
#[derive(Clone)]
pub struct RunNode {
    /// The node of the graph that it was made of.
    pub origin: Handle,
    /// What it does.
    pub work: Work,
    /// What must be done before: places in the list, all lower.
    pub after: Vec<usize>,
    /// Whether it is left out.
    pub disabled: bool,
}

/// The work of a graph, in an order that its dependencies allow.
#[derive(Clone, Default)]
pub struct GraphRun {
    /// The nodes.
    pub nodes: Vec<RunNode>,
}

/// An executable graph.
pub struct Exec {
    /// Whose it is.
    pub context: Handle,
    /// What it does. A launch keeps what it was given, while the graph may be updated.
    pub run: Arc<GraphRun>,
    /// The flags of its making.
    pub flags: u64,
}

impl GraphRun {
    /// The work of a graph as it is now.
    pub fn new(driver: &Driver, graph: Handle) -> Result<GraphRun> {
        let graph = driver.graphs.get(graph)?;
        let order = graph.order()?;
        let place = |handle: &Handle| order.iter().position(|other| other == handle);
        let nodes = order.iter().map(|handle| {
            let node = &graph.nodes[handle];
            let after = node.after.iter().filter_map(place).collect();
            RunNode { origin: *handle, work: node.work.clone(), after, disabled: false }
        });
        Ok(GraphRun { nodes: nodes.collect() })
    }

    /// Whether a node allocates an address.
    pub fn allocates(&self, address: u64) -> bool {
        self.nodes.iter().any(|node| matches!(node.work, Work::Allocate(a) if a == address))
    }

    /// The events that its nodes mark and wait for, of the graphs inside too.
    fn events(&self) -> (Vec<Handle>, Vec<Handle>) {
        let (mut marked, mut awaited) = (Vec::new(), Vec::new());
        for node in &self.nodes {
            match &node.work {
                Work::Record(event) => marked.push(*event),
                Work::Await(event) => awaited.push(*event),
                Work::Graph(inner) => {
                    let (more_marked, more_awaited) = inner.events();
                    marked.extend(more_marked);
                    awaited.extend(more_awaited);
                }
                _ => {}
            }
        }
        (marked, awaited)
    }

    /// Nodes that do something, of the graphs inside too.
    pub fn count(&self) -> u64 {
        let inner = |node: &RunNode| match &node.work {
            Work::Graph(inner) => inner.count(),
            _ => 1,
        };
        self.nodes.iter().filter(|node| !node.disabled).map(inner).sum()
    }

    /// Does the work; with a seed, in another order that the dependencies allow.
    pub fn run(&self, mut driver: Locked, context: Handle, ticket: Ticket, call: &'static str) -> (Locked, Result<()>) {
        let seed = driver.config.runs.seed;
        let mut random = Rng::new(seed ^ ticket.0);
        let mut open: BTreeSet<usize> = (0..self.nodes.len()).collect();
        while let Some(&first) = open.first() {
            let mut chosen = first;
            if seed != 0 {
                let is_ready = |i: &&usize| self.nodes[**i].after.iter().all(|before| !open.contains(before));
                let ready: Vec<usize> = open.iter().filter(is_ready).copied().collect();
                chosen = ready[random.below(ready.len() as u64) as usize];
            }
            open.remove(&chosen);
            let node = &self.nodes[chosen];
            let outcome;
            (driver, outcome) =
                if node.disabled { (driver, Ok(())) } else { step(driver, context, &node.work, ticket, call) };
            if outcome.is_err() {
                return (driver, outcome);
            }
        }
        (driver, Ok(()))
    }
}

fn step(driver: Locked, context: Handle, work: &Work, ticket: Ticket, call: &'static str) -> (Locked, Result<()>) {
    match work {
        Work::Host(host) => {
            let host = *host;
            let (driver, ()) = driver.unlocked(|| call_host(host));
            (driver, Ok(()))
        }
        Work::Graph(inner) => inner.run(driver, context, ticket, call),
        // Memory of a graph is freed with the graph.
        Work::Free(_) => (driver, Ok(())),
        work => perform(driver, context, ticket, work, call),
    }
}

fn instantiate(out: Out<Handle>, graph: Handle, flags: u64) -> Result<()> {
    let (mut driver, context) = current()?;
    out.check()?;
    let known = flags::GRAPH_AUTO_FREE_ON_LAUNCH | flags::GRAPH_UPLOAD | flags::GRAPH_USE_NODE_PRIORITY;
    if flags & !(known | flags::GRAPH_DEVICE_LAUNCH) != 0 {
        return Err(Error::invalid(format!("instantiation flags {flags:#x}")));
    }
    if flags & flags::GRAPH_DEVICE_LAUNCH != 0 {
        if flags & (flags::GRAPH_AUTO_FREE_ON_LAUNCH | flags::GRAPH_USE_NODE_PRIORITY) != 0 {
            return Err(Error::invalid(format!("instantiation flags {flags:#x} exclude each other")));
        }
        return Err(Error::NotSupported("a graph launched by the device".into()));
    }
    let run = Arc::new(GraphRun::new(&driver, graph)?);
    out.set(driver.execs.insert(Exec { context, run, flags }))
}

/// Issues a graph as one piece of work of a stream.
fn launch(exec: Handle, stream: Handle) -> Result<()> {
    let call = current_call();
    let (mut driver, context) = current()?;
    let stream = driver.stream(context, stream)?;
    let run = driver.execs.get(exec)?.run.clone();
    driver.pass(Site::Launch)?;
    if driver.streams.get(stream)?.capture.is_some() {
        return driver.capture_work(stream, Work::Graph(run));
    }
    let (marked, awaited) = run.events();
    let tickets = awaited.iter().filter_map(|event| driver.events.get(*event).ok()?.ticket).collect();
    driver.count(|tally| tally.graph(run.count()));
    let (mut driver, ticket) = issue_after(driver, stream, Work::Graph(run), tickets, call)?;
    for event in marked {
        if let Ok(event) = driver.events.get_mut(event) {
            (event.ticket, event.time) = (ticket, None);
        }
    }
    Ok(())
}

/// `CUgraphExecUpdateResult`
const UPDATE_TOPOLOGY: u32 = 2;
const UPDATE_NODE_TYPE: u32 = 3;
const UPDATE_FUNCTION: u32 = 4;

/// Why a graph of other nodes cannot take an executable one's place: the reason, the node, what it says.
fn difference(old: &GraphRun, new: &GraphRun) -> Option<(u32, Handle, String)> {
    if old.nodes.len() != new.nodes.len() {
        let text = format!("{} nodes, not {}", new.nodes.len(), old.nodes.len());
        return Some((UPDATE_TOPOLOGY, Handle::NULL, text));
    }
    for (old, new) in old.nodes.iter().zip(&new.nodes) {
        if old.after != new.after {
            return Some((UPDATE_TOPOLOGY, new.origin, "a node has other dependencies".into()));
        }
        if old.work.node_type() != new.work.node_type() {
            return Some((UPDATE_NODE_TYPE, new.origin, "a node is of another kind".into()));
        }
        if let (Work::Kernel(old), Work::Kernel(call)) = (&old.work, &new.work)
            && old.shape.cooperative != call.shape.cooperative
        {
            return Some((UPDATE_FUNCTION, new.origin, "a kernel became cooperative or ceased to be".into()));
        }
        if let (Work::Graph(old), Work::Graph(inner)) = (&old.work, &new.work)
            && let Some((reason, _, text)) = difference(old, inner)
        {
            return Some((reason, new.origin, text));
        }
    }
    None
}

/// Changes the work of a node, found by the node of the graph that it was made of.
fn change(exec: Handle, node: Handle, work: impl FnOnce(&Driver, &Work) -> Result<Work>) -> Result<()> {
    let (mut driver, _) = current()?;
    let run = driver.execs.get(exec)?.run.clone();
    let Some(place) = run.nodes.iter().position(|inside| inside.origin == node) else {
        return Err(Error::invalid("the executable graph was not made with this node"));
    };
    let old = &run.nodes[place].work;
    let work = work(&driver, old)?;
    if work.node_type() != old.node_type() {
        return Err(Error::invalid("the node is of another kind"));
    }
    let exec = driver.execs.get_mut(exec)?;
    Arc::make_mut(&mut exec.run).nodes[place].work = work;
    Ok(())
}

fn enabled(exec: Handle, node: Handle, change: Option<bool>) -> Result<bool> {
    let (mut driver, _) = current()?;
    let run = Arc::make_mut(&mut driver.execs.get_mut(exec)?.run);
    let Some(inside) = run.nodes.iter_mut().find(|inside| inside.origin == node) else {
        return Err(Error::invalid("the executable graph was not made with this node"));
    };
    if !matches!(inside.work, Work::Kernel(_) | Work::Copy(_) | Work::Fill(_)) {
        return Err(Error::invalid("only launches, copies and fills can be left out"));
    }
    if let Some(enabled) = change {
        inside.disabled = !enabled;
    }
    Ok(!inside.disabled)
}

entries! {
    /// Makes a graph executable.
    fn cuGraphInstantiateWithFlags(out: Out<Handle>, graph: Handle, flags: u64) {
        instantiate(out, graph, flags)
    }

    /// Makes a graph executable.
    fn cuGraphInstantiateWithParams(out: Out<Handle>, graph: Handle, params: In<InstantiateParams>) {
        instantiate(out, graph, params.get()?.flags)
    }

    /// Ends an executable graph. What was launched goes on.
    fn cuGraphExecDestroy(exec: Handle) {
        let (mut driver, _) = current()?;
        let gone = driver.execs.remove(exec)?;
        for node in &gone.run.nodes {
            // The memory of a graph goes with the last that knows it.
            if let Work::Allocate(address) = node.work
                && !driver.nodes.contains(node.origin)
                && !driver.execs.iter().any(|(_, exec)| exec.run.allocates(address))
            {
                driver.release(address)?;
            }
        }
        Ok(())
    }

    /// The flags that an executable graph was made with.
    fn cuGraphExecGetFlags(exec: Handle, flags: Out<u64>) {
        let (driver, _) = current()?;
        flags.set(driver.execs.get(exec)?.flags)
    }

    /// Launches a graph.
    fn cuGraphLaunch(exec: Handle, stream: Handle) {
        launch(exec, stream)
    }

    /// Brings a graph to the device: it is there.
    fn cuGraphUpload(exec: Handle, stream: Handle) {
        let (mut driver, context) = current()?;
        driver.stream(context, stream)?;
        driver.execs.get(exec).map(|_| ())
    }

    /// Lets an executable graph do what another graph of the same nodes and dependencies says.
    fn cuGraphExecUpdate_v2(exec: Handle, graph: Handle, out: Out<UpdateResult>) {
        let (mut driver, _) = current()?;
        let new = GraphRun::new(&driver, graph)?;
        let exec = driver.execs.get_mut(exec)?;
        if let Some((result, node, text)) = difference(&exec.run, &new) {
            out.set_if_wanted(UpdateResult { result, node, from: Handle::NULL });
            return Err(Error::GraphUpdate(text));
        }
        let run = Arc::make_mut(&mut exec.run);
        for (old, new) in run.nodes.iter_mut().zip(new.nodes) {
            old.work = new.work;
        }
        out.set_if_wanted(UpdateResult { result: 0, node: Handle::NULL, from: Handle::NULL });
        Ok(())
    }

    /// Changes a launch.
    fn cuGraphExecKernelNodeSetParams_v2(exec: Handle, node: Handle, params: In<KernelParams>) {
        change(exec, node, |driver, old| {
            let cooperative = matches!(old, Work::Kernel(call) if call.shape.cooperative);
            graph_nodes::kernel(driver, params, cooperative)
        })
    }

    /// Changes a copy.
    fn cuGraphExecMemcpyNodeSetParams(exec: Handle, node: Handle, params: In<Memcpy3d>, _context: Handle) {
        change(exec, node, |driver, _| graph_nodes::memcpy(driver, params))
    }

    /// Changes a fill.
    fn cuGraphExecMemsetNodeSetParams(exec: Handle, node: Handle, params: In<MemsetParams>, _context: Handle) {
        change(exec, node, |driver, _| graph_nodes::memset(driver, params))
    }

    /// Changes a host function.
    fn cuGraphExecHostNodeSetParams(exec: Handle, node: Handle, params: In<HostParams>) {
        change(exec, node, |_, _| graph_nodes::host(params))
    }

    /// Changes a graph inside, which must have the same nodes and dependencies.
    fn cuGraphExecChildGraphNodeSetParams(exec: Handle, node: Handle, inner: Handle) {
        change(exec, node, |driver, old| {
            let new = GraphRun::new(driver, inner)?;
            match old {
                Work::Graph(old) if difference(old, &new).is_some() => {
                    Err(Error::GraphUpdate("the graph inside has other nodes or dependencies".into()))
                }
                _ => Ok(Work::Graph(Arc::new(new))),
            }
        })
    }

    /// Changes the event that a node marks.
    fn cuGraphExecEventRecordNodeSetEvent(exec: Handle, node: Handle, event: Handle) {
        change(exec, node, |driver, _| driver.events.get(event).map(|_| Work::Record(event)))
    }

    /// Changes the event that a node waits for.
    fn cuGraphExecEventWaitNodeSetEvent(exec: Handle, node: Handle, event: Handle) {
        change(exec, node, |driver, _| driver.events.get(event).map(|_| Work::Await(event)))
    }

    /// Leaves a node out, or takes it in again.
    fn cuGraphNodeSetEnabled(exec: Handle, node: Handle, on: u32) {
        enabled(exec, node, Some(on != 0)).map(drop)
    }

    /// Whether a node is left out.
    fn cuGraphNodeGetEnabled(exec: Handle, node: Handle, on: Out<u32>) {
        on.set(enabled(exec, node, None)? as u32)
    }
}
