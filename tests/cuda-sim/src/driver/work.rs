//! The work that streams and graphs hold.

use std::sync::Arc;

use super::copy::{Copy, Fill};
use super::graph_exec::GraphRun;
use super::handles::Handle;
use super::kernel_params::KernelCall;
use super::types::{HostFn, StreamCallback};

/// A piece of work of a stream or a node of a graph.
#[derive(Clone)]
pub enum Work {
    /// A launch.
    Kernel(Arc<KernelCall>),
    /// A copy.
    Copy(Copy),
    /// A fill.
    Fill(Fill),
    /// A host function.
    Host(HostCall),
    /// A stream-ordered free.
    Free(u64),
    /// Memory that a graph allocated; it is there as long as the graph.
    Allocate(u64),
    /// An event's mark.
    Record(Handle),
    /// Waits for what it depends on: a wait for an event, an empty node.
    Nothing,
    /// A wait for an event, as a node of a graph.
    Await(Handle),
    /// A graph.
    Graph(Arc<GraphRun>),
}

/// A host function and its argument.
#[derive(Clone, Copy)]
pub struct HostCall {
    /// What is called.
    pub function: HostFunction,
    /// Its argument: an address of the program's, or what it likes.
    pub data: usize,
}

/// The two kinds of host functions.
#[derive(Clone, Copy)]
pub enum HostFunction {
    /// Of `cuLaunchHostFunc`.
    Plain(HostFn),
    /// Of `cuStreamAddCallback`, with its stream.
    Callback(StreamCallback, Handle),
}

impl Work {
    /// Whether it calls the program back.
    pub fn calls_host(&self) -> bool {
        match self {
            Work::Host(_) => true,
            Work::Graph(graph) => graph.nodes.iter().any(|node| node.work.calls_host()),
            _ => false,
        }
    }

    /// `CUgraphNodeType`.
    pub fn node_type(&self) -> u32 {
        match self {
            Work::Kernel(_) => 0,
            Work::Copy(_) => 1,
            Work::Fill(_) => 2,
            Work::Host(_) => 3,
            Work::Graph(_) => 4,
            Work::Nothing => 5,
            Work::Await(_) => 6,
            Work::Record(_) => 7,
            Work::Allocate(_) => 10,
            Work::Free(_) => 11,
        }
    }
}
