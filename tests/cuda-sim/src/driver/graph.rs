//! Graphs: pieces of work and what they wait for.

use std::collections::{BTreeMap, BTreeSet};

use super::abi::{In, Out, entries};
use super::errors::{Error, Result};
use super::handles::Handle;
use super::state::{Driver, current};
use super::types::EdgeData;
use super::work::Work;

/// A node: work, and the nodes that it waits for.
#[derive(Clone)]
pub struct Node {
    /// What it does.
    pub work: Work,
    /// What must be done before.
    pub after: BTreeSet<Handle>,
    /// The node of which it is a copy, in a cloned graph.
    pub original: Handle,
}

/// A graph.
pub struct Graph {
    /// Whose it is.
    pub context: Handle,
    /// Its nodes in the order of their making.
    pub nodes: BTreeMap<Handle, Node>,
    /// Whether it is the inside of a node of another graph, which owns it.
    pub is_child: bool,
}

/// Which graph a node is in.
pub struct NodeInfo {
    /// The graph.
    pub graph: Handle,
}

impl Graph {
    /// A graph without nodes.
    pub fn new(context: Handle) -> Graph {
        Graph { context, nodes: BTreeMap::new(), is_child: false }
    }

    /// Nodes, and everything that they wait for.
    pub fn ancestors(&self, nodes: &[Handle]) -> BTreeSet<Handle> {
        let mut open = nodes.to_vec();
        let mut found = BTreeSet::new();
        while let Some(handle) = open.pop() {
            if let Some(node) = self.nodes.get(&handle)
                && found.insert(handle)
            {
                open.extend(&node.after);
            }
        }
        found
    }

    /// The nodes, each behind those that it waits for; older ones first where there is a choice.
    pub fn order(&self) -> Result<Vec<Handle>> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut done: BTreeSet<Handle> = BTreeSet::new();
        while order.len() < self.nodes.len() {
            let ready = |(handle, node): &(&Handle, &Node)| {
                !done.contains(*handle) && node.after.iter().all(|before| done.contains(before))
            };
            let round: Vec<Handle> = self.nodes.iter().filter(ready).map(|(handle, _)| *handle).collect();
            if round.is_empty() {
                return Err(Error::invalid("the graph's dependencies go round in a circle"));
            }
            done.extend(&round);
            order.extend(round);
        }
        Ok(order)
    }
}

impl Driver {
    /// Adds a node that waits for others of the same graph.
    pub fn add_node(&mut self, graph: Handle, work: Work, after: Vec<Handle>) -> Result<Handle> {
        let nodes = &self.graphs.get(graph)?.nodes;
        if after.iter().any(|node| !nodes.contains_key(node)) {
            return Err(Error::invalid("a dependency that is no node of the graph"));
        }
        let distinct: BTreeSet<Handle> = after.iter().copied().collect();
        if distinct.len() != after.len() {
            return Err(Error::invalid("a dependency is given twice"));
        }
        let node = self.nodes.insert(NodeInfo { graph });
        self.graphs.get_mut(graph)?.nodes.insert(node, Node { work, after: distinct, original: Handle::NULL });
        Ok(node)
    }

    /// A node.
    pub fn node(&self, handle: Handle) -> Result<&Node> {
        let graph = self.nodes.get(handle)?.graph;
        self.graphs.get(graph)?.nodes.get(&handle).ok_or(Error::invalid("the node's graph has it no more"))
    }

    /// A node, to change.
    pub fn node_mut(&mut self, handle: Handle) -> Result<&mut Node> {
        let graph = self.nodes.get(handle)?.graph;
        self.graphs.get_mut(graph)?.nodes.get_mut(&handle).ok_or(Error::invalid("the node's graph has it no more"))
    }

    /// Ends a graph, its nodes, and the memory that it allocates.
    pub fn destroy_graph(&mut self, handle: Handle) -> Result<()> {
        let graph = self.graphs.remove(handle)?;
        for (node, inside) in graph.nodes {
            self.nodes.remove(node)?;
            if let Work::Allocate(address) = inside.work
                && !self.execs.iter().any(|(_, exec)| exec.run.allocates(address))
            {
                self.release(address)?;
            }
        }
        Ok(())
    }

    /// A copy of a graph.
    pub fn clone_graph(&mut self, original: Handle) -> Result<Handle> {
        let source = self.graphs.get(original)?;
        if source.nodes.values().any(|node| matches!(node.work, Work::Allocate(_) | Work::Free(_))) {
            return Err(Error::NotSupported("a copy of a graph that allocates memory".into()));
        }
        let (context, order, nodes) = (source.context, source.order()?, source.nodes.clone());
        let copy = self.graphs.insert(Graph::new(context));
        let mut names = BTreeMap::new();
        for handle in order {
            let node = &nodes[&handle];
            let after = node.after.iter().map(|before| names[before]).collect();
            let made = self.add_node(copy, node.work.clone(), after)?;
            self.node_mut(made)?.original = handle;
            names.insert(handle, made);
        }
        Ok(copy)
    }

    fn dependents(&self, handle: Handle) -> Result<Vec<Handle>> {
        let graph = self.graphs.get(self.nodes.get(handle)?.graph)?;
        Ok(graph.nodes.iter().filter(|(_, node)| node.after.contains(&handle)).map(|(other, _)| *other).collect())
    }

    fn connect(&mut self, graph: Handle, from: Vec<Handle>, to: Vec<Handle>, connected: bool) -> Result<()> {
        let inside = self.graphs.get_mut(graph)?;
        for (from, to) in from.into_iter().zip(to) {
            if !inside.nodes.contains_key(&from) || from == to {
                return Err(Error::invalid("a dependency between nodes that are not two of the graph"));
            }
            let Some(node) = inside.nodes.get_mut(&to) else {
                return Err(Error::invalid("a dependency of a node that is not in the graph"));
            };
            let changed = if connected { node.after.insert(from) } else { node.after.remove(&from) };
            if !changed {
                let text = if connected { "the dependency is there already" } else { "there is no such dependency" };
                return Err(Error::invalid(text));
            }
        }
        inside.order().map(drop)
    }
}

/// Gives a list by the API's protocol: with no array the length alone; else up to `count`, the rest null.
fn give(list: &[Handle], out: Out<Handle>, count: Out<usize>) -> Result<()> {
    if out.is_null() {
        return count.set(list.len());
    }
    let room = count.read()?;
    for i in 0..room {
        out.at(i).set(list.get(i).copied().unwrap_or_default())?;
    }
    count.set(room.min(list.len()))
}

/// Only full dependencies are known.
fn plain(edges: In<EdgeData>, count: usize) -> Result<()> {
    if !edges.is_null() && edges.list(count)?.iter().any(|edge| *edge != EdgeData::default()) {
        return Err(Error::NotSupported("a dependency of a special kind".into()));
    }
    Ok(())
}

fn give_edges(graph: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) -> Result<()> {
    let (driver, _) = current()?;
    let nodes = &driver.graphs.get(graph)?.nodes;
    let edges = nodes.iter().flat_map(|(to, node)| node.after.iter().map(|from| (*from, *to)));
    let (sources, targets): (Vec<Handle>, Vec<Handle>) = edges.unzip();
    if from.is_null() != to.is_null() {
        return Err(Error::Null);
    }
    if !from.is_null() {
        // The count goes in and out: the first list may not spoil it for the second.
        let room = count.read()?;
        give(&sources, from, count)?;
        count.set(room)?;
    }
    give(&targets, to, count)
}

fn dependencies(node: Handle, out: Out<Handle>, count: Out<usize>) -> Result<()> {
    let (driver, _) = current()?;
    let after: Vec<Handle> = driver.node(node)?.after.iter().copied().collect();
    give(&after, out, count)
}

fn dependents(node: Handle, out: Out<Handle>, count: Out<usize>) -> Result<()> {
    let (driver, _) = current()?;
    give(&driver.dependents(node)?, out, count)
}

fn connect(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize, connected: bool) -> Result<()> {
    let (mut driver, _) = current()?;
    driver.connect(graph, from.list(count)?, to.list(count)?, connected)
}

entries! {
    /// Makes a graph.
    fn cuGraphCreate(out: Out<Handle>, flags: u32) {
        let (mut driver, context) = current()?;
        out.check()?;
        if flags != 0 {
            return Err(Error::invalid("flags must be 0"));
        }
        out.set(driver.graphs.insert(Graph::new(context)))
    }

    /// Ends a graph. Executable graphs made of it live on.
    fn cuGraphDestroy(graph: Handle) {
        let (mut driver, _) = current()?;
        if driver.graphs.get(graph)?.is_child {
            return Err(Error::invalid("the graph belongs to a node"));
        }
        driver.destroy_graph(graph)
    }

    /// Copies a graph.
    fn cuGraphClone(out: Out<Handle>, graph: Handle) {
        let (mut driver, _) = current()?;
        out.check()?;
        out.set(driver.clone_graph(graph)?)
    }

    /// The node of a copy that was made of a node.
    fn cuGraphNodeFindInClone(out: Out<Handle>, original: Handle, clone: Handle) {
        let (driver, _) = current()?;
        driver.nodes.get(original)?;
        let found = driver.graphs.get(clone)?.nodes.iter().find(|(_, node)| node.original == original);
        out.set(*found.ok_or_else(|| Error::invalid("the graph has no copy of the node"))?.0)
    }

    /// Ends a node.
    fn cuGraphDestroyNode(node: Handle) {
        let (mut driver, _) = current()?;
        let graph = driver.nodes.get(node)?.graph;
        if matches!(driver.node(node)?.work, Work::Allocate(_) | Work::Free(_)) {
            return Err(Error::NotSupported("taking an allocation out of a graph".into()));
        }
        driver.nodes.remove(node)?;
        let graph = driver.graphs.get_mut(graph)?;
        graph.nodes.remove(&node);
        graph.nodes.values_mut().for_each(|other| {
            other.after.remove(&node);
        });
        Ok(())
    }

    /// A graph's nodes.
    fn cuGraphGetNodes(graph: Handle, out: Out<Handle>, count: Out<usize>) {
        let (driver, _) = current()?;
        let nodes: Vec<Handle> = driver.graphs.get(graph)?.nodes.keys().copied().collect();
        give(&nodes, out, count)
    }

    /// The nodes that wait for nothing.
    fn cuGraphGetRootNodes(graph: Handle, out: Out<Handle>, count: Out<usize>) {
        let (driver, _) = current()?;
        let nodes = driver.graphs.get(graph)?.nodes.iter().filter(|(_, node)| node.after.is_empty());
        give(&nodes.map(|(handle, _)| *handle).collect::<Vec<_>>(), out, count)
    }

    /// What kind of work a node is.
    fn cuGraphNodeGetType(node: Handle, out: Out<u32>) {
        let (driver, _) = current()?;
        out.set(driver.node(node)?.work.node_type())
    }

    /// A graph's dependencies.
    fn cuGraphGetEdges(graph: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) {
        give_edges(graph, from, to, count)
    }

    /// A graph's dependencies, all of the full kind.
    fn cuGraphGetEdges_v2(
        graph: Handle, from: Out<Handle>, to: Out<Handle>, edges: Out<EdgeData>, count: Out<usize>,
    ) {
        if !edges.is_null() {
            return Err(Error::NotSupported("asking for the kinds of dependencies".into()));
        }
        give_edges(graph, from, to, count)
    }

    /// What a node waits for.
    fn cuGraphNodeGetDependencies(node: Handle, out: Out<Handle>, count: Out<usize>) {
        dependencies(node, out, count)
    }

    /// What a node waits for.
    fn cuGraphNodeGetDependencies_v2(node: Handle, out: Out<Handle>, edges: Out<EdgeData>, count: Out<usize>) {
        if !edges.is_null() {
            return Err(Error::NotSupported("asking for the kinds of dependencies".into()));
        }
        dependencies(node, out, count)
    }

    /// What waits for a node.
    fn cuGraphNodeGetDependentNodes(node: Handle, out: Out<Handle>, count: Out<usize>) {
        dependents(node, out, count)
    }

    /// What waits for a node.
    fn cuGraphNodeGetDependentNodes_v2(node: Handle, out: Out<Handle>, edges: Out<EdgeData>, count: Out<usize>) {
        if !edges.is_null() {
            return Err(Error::NotSupported("asking for the kinds of dependencies".into()));
        }
        dependents(node, out, count)
    }

    /// Adds dependencies.
    fn cuGraphAddDependencies(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) {
        connect(graph, from, to, count, true)
    }

    /// Adds dependencies of the full kind.
    fn cuGraphAddDependencies_v2(graph: Handle, from: In<Handle>, to: In<Handle>, edges: In<EdgeData>, count: usize) {
        plain(edges, count)?;
        connect(graph, from, to, count, true)
    }

    /// Takes dependencies away.
    fn cuGraphRemoveDependencies(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) {
        connect(graph, from, to, count, false)
    }

    /// Takes dependencies of the full kind away.
    fn cuGraphRemoveDependencies_v2(graph: Handle, from: In<Handle>, to: In<Handle>, edges: In<EdgeData>, count: usize) {
        plain(edges, count)?;
        connect(graph, from, to, count, false)
    }
}
