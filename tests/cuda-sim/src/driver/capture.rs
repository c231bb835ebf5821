//! Stream capture: what is issued to a stream becomes the nodes of a graph.

use std::cell::Cell;
use std::thread::{self, ThreadId};

use super::abi::{In, Out, entries};
use super::errors::{CuResult, Error, Result};
use super::event;
use super::graph::Graph;
use super::handles::Handle;
use super::state::{Driver, current, lock};
use super::types::{EdgeData, flags};
use super::work::Work;

/// A capture under way.
pub struct Capture {
    /// Whose it is.
    pub context: Handle,
    /// The stream that began it.
    pub origin: Handle,
    /// `CUstreamCaptureMode`.
    pub mode: u32,
    /// The thread that began it.
    pub thread: ThreadId,
    /// The graph that it makes.
    pub graph: Handle,
    /// Whether the program's own graph is captured to.
    pub borrowed: bool,
    /// Whether a forbidden call has spoilt it.
    pub invalidated: bool,
}

/// The call is not allowed while the stream captures.
pub const UNSUPPORTED: Error =
    Error::Capture(CuResult::ERROR_STREAM_CAPTURE_UNSUPPORTED, "the call is not allowed while a stream captures");

const INVALIDATED: Error =
    Error::Capture(CuResult::ERROR_STREAM_CAPTURE_INVALIDATED, "a forbidden call has spoilt the capture");

thread_local! {
    /// `cuThreadExchangeStreamCaptureMode`.
    static MODE: Cell<u32> = const { Cell::new(flags::CAPTURE_GLOBAL) };
}

impl Driver {
    /// Spoils a capture.
    pub fn invalidate(&mut self, id: u64) {
        if let Some(capture) = self.captures.get_mut(&id) {
            capture.invalidated = true;
        }
    }

    /// The capture of a number, if it is not spoilt.
    pub fn alive(&self, id: u64) -> Result<&Capture> {
        self.captures.get(&id).filter(|capture| !capture.invalidated).ok_or(INVALIDATED)
    }

    /// Adds a node for work that was issued to a capturing stream.
    pub fn capture_work(&mut self, stream: Handle, work: Work) -> Result<()> {
        let Some((id, after)) = self.streams.get(stream)?.capture.clone() else {
            return Err(UNSUPPORTED);
        };
        let graph = self.alive(id)?.graph;
        let node = self.add_node(graph, work, after)?;
        self.streams.get_mut(stream)?.capture = Some((id, vec![node]));
        Ok(())
    }

    /// A wait for an event, if it concerns a capture: the stream joins the event's, or waits inside its own.
    pub fn capture_wait(&mut self, stream: Handle, event: Handle) -> Result<bool> {
        let event = self.events.get(event)?;
        let captured = event::captured(event, &self.captures);
        let recorded = event.ticket.is_some();
        let own = self.streams.get(stream)?.capture.clone();
        let capture = match (own, captured) {
            (None, None) => return Ok(false),
            // Work that was never issued is done.
            (Some(_), None) if !recorded => return Ok(true),
            (Some((id, _)), None) => {
                self.invalidate(id);
                let text = "a wait in a capture for work that was issued before it, in another stream";
                return Err(Error::Capture(CuResult::ERROR_STREAM_CAPTURE_ISOLATION, text));
            }
            (Some((id, _)), Some((other, _))) if id != other => {
                self.invalidate(id);
                self.invalidate(other);
                let text = "the wait would join two captures";
                return Err(Error::Capture(CuResult::ERROR_STREAM_CAPTURE_MERGE, text));
            }
            (Some((id, mut nodes)), Some((_, more))) => {
                nodes.extend(more);
                nodes.sort();
                nodes.dedup();
                (id, nodes)
            }
            (None, Some((id, nodes))) => {
                if self.streams.get(stream)?.legacy {
                    self.invalidate(id);
                    return Err(IMPLICIT);
                }
                (id, nodes)
            }
        };
        self.alive(capture.0)?;
        self.streams.get_mut(stream)?.capture = Some(capture);
        Ok(true)
    }

    /// The legacy stream waits for every blocking stream, and none of them may capture then.
    pub fn order_with_captures(&mut self, stream: Handle) -> Result<()> {
        let Some(legacy) = self.streams.get(stream).ok().filter(|s| s.legacy) else {
            return Ok(());
        };
        let context = legacy.context;
        let blocking = |s: &super::stream::Stream| s.context == context && !s.non_blocking;
        let spoilt: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, s)| blocking(s))
            .filter_map(|(_, s)| s.capture.as_ref())
            .map(|c| c.0)
            .collect();
        spoilt.iter().for_each(|id| self.invalidate(*id));
        if spoilt.is_empty() { Ok(()) } else { Err(IMPLICIT) }
    }

    /// Fails in calls that the API forbids while captures are under way ("potentially unsafe"), and spoils those.
    pub fn forbid_in_capture(&mut self) -> Result<()> {
        let (mode, thread) = (MODE.get(), thread::current().id());
        let concerns = |capture: &Capture| match mode {
            flags::CAPTURE_RELAXED => false,
            flags::CAPTURE_THREAD_LOCAL => capture.thread == thread && capture.mode != flags::CAPTURE_RELAXED,
            _ => match capture.mode {
                flags::CAPTURE_GLOBAL => true,
                flags::CAPTURE_THREAD_LOCAL => capture.thread == thread,
                _ => false,
            },
        };
        let mut found = false;
        for capture in self.captures.values_mut().filter(|capture| concerns(capture)) {
            capture.invalidated = true;
            found = true;
        }
        if found { Err(UNSUPPORTED) } else { Ok(()) }
    }

    /// Whether the stream that began a capture has waited for all its work.
    fn is_joined(&self, id: u64, capture: &Capture) -> Result<bool> {
        let graph = self.graphs.get(capture.graph)?;
        let tips = |stream: &super::stream::Stream| stream.capture.clone().filter(|c| c.0 == id).map(|c| c.1);
        let origin = tips(self.streams.get(capture.origin)?).unwrap_or_default();
        let before = graph.ancestors(&origin);
        let mut others = self.streams.iter().filter_map(|(_, s)| tips(s)).flatten();
        Ok(others.all(|node| before.contains(&node)))
    }

    fn end(&mut self, id: u64) -> Option<Capture> {
        for stream in self.streams.values_mut() {
            if stream.capture.as_ref().is_some_and(|c| c.0 == id) {
                stream.capture = None;
            }
        }
        for event in self.events.values_mut() {
            if event.captured.as_ref().is_some_and(|c| c.0 == id) {
                event.captured = None;
            }
        }
        self.captures.remove(&id)
    }
}

const IMPLICIT: Error = Error::Capture(
    CuResult::ERROR_STREAM_CAPTURE_IMPLICIT,
    "the legacy default stream would depend on a stream that captures",
);

fn begin(stream: Handle, mode: u32, target: Option<(Handle, Vec<Handle>)>) -> Result<()> {
    let (mut driver, context) = current()?;
    let stream = driver.stream(context, stream)?;
    if mode > flags::CAPTURE_RELAXED {
        return Err(Error::invalid(format!("capture mode {mode}")));
    }
    let state = driver.streams.get(stream)?;
    if state.legacy {
        return Err(Error::Capture(
            CuResult::ERROR_STREAM_CAPTURE_UNSUPPORTED,
            "the legacy default stream cannot be captured",
        ));
    }
    if let Some((id, _)) = state.capture {
        driver.invalidate(id);
        return Err(Error::State("the stream captures already"));
    }
    let borrowed = target.is_some();
    let (graph, after) = match target {
        Some((graph, after)) => {
            let inside = driver.graphs.get(graph)?;
            if after.iter().any(|node| !inside.nodes.contains_key(node)) {
                return Err(Error::invalid("a dependency that is no node of the graph"));
            }
            (graph, after)
        }
        None => (driver.graphs.insert(Graph::new(context)), Vec::new()),
    };
    let id = driver.next_capture;
    driver.next_capture += 1;
    let thread = thread::current().id();
    let capture = Capture { context, origin: stream, mode, thread, graph, borrowed, invalidated: false };
    driver.captures.insert(id, capture);
    driver.streams.get_mut(stream)?.capture = Some((id, after));
    Ok(())
}

fn status(driver: &Driver, stream: Handle) -> Result<u32> {
    Ok(match driver.streams.get(stream)?.capture {
        None => flags::CAPTURE_STATUS_NONE,
        Some((id, _)) if driver.alive(id).is_ok() => flags::CAPTURE_STATUS_ACTIVE,
        Some(_) => flags::CAPTURE_STATUS_INVALIDATED,
    })
}

entries! {
    /// Begins a capture.
    fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) {
        begin(stream, mode, None)
    }

    /// Begins a capture into a graph of the program's.
    fn cuStreamBeginCaptureToGraph(
        stream: Handle, graph: Handle, nodes: In<Handle>, edges: In<EdgeData>, count: usize, mode: u32,
    ) {
        if !edges.is_null() && edges.list(count)?.iter().any(|edge| *edge != EdgeData::default()) {
            return Err(Error::NotSupported("a dependency of a special kind".into()));
        }
        begin(stream, mode, Some((graph, nodes.list(count)?)))
    }

    /// Ends a capture and gives the graph; null when it was spoilt.
    fn cuStreamEndCapture(stream: Handle, out: Out<Handle>) {
        let (mut driver, context) = current()?;
        out.check()?;
        let stream = driver.stream(context, stream)?;
        let Some((id, _)) = driver.streams.get(stream)?.capture else {
            return Err(Error::State("the stream does not capture"));
        };
        let Some(capture) = driver.captures.get(&id) else { return Err(INVALIDATED) };
        if capture.origin != stream {
            driver.invalidate(id);
            let text = "a capture ends in the stream that began it";
            return Err(Error::Capture(CuResult::ERROR_STREAM_CAPTURE_UNMATCHED, text));
        }
        if capture.mode != flags::CAPTURE_RELAXED && capture.thread != thread::current().id() {
            let text = "a capture that is not relaxed ends in the thread that began it";
            return Err(Error::Capture(CuResult::ERROR_STREAM_CAPTURE_WRONG_THREAD, text));
        }
        let joined = driver.is_joined(id, capture)?;
        let Some(capture) = driver.end(id) else { return Err(INVALIDATED) };
        if capture.invalidated || !joined {
            if !capture.borrowed {
                driver.destroy_graph(capture.graph)?;
            }
            out.set(Handle::NULL)?;
            if capture.invalidated {
                return Err(INVALIDATED);
            }
            let text = "another stream has captured work that the first does not wait for";
            return Err(Error::Capture(CuResult::ERROR_STREAM_CAPTURE_UNJOINED, text));
        }
        out.set(capture.graph)
    }

    /// Whether a stream captures.
    fn cuStreamIsCapturing(stream: Handle, out: Out<u32>) {
        let (mut driver, context) = current()?;
        let stream = driver.stream(context, stream)?;
        driver.order_with_captures(stream)?;
        out.set(status(&driver, stream)?)
    }

    /// A capture's state, number and graph. The dependencies are not given.
    fn cuStreamGetCaptureInfo_v2(
        stream: Handle, out: Out<u32>, id: Out<u64>, graph: Out<Handle>, nodes: Out<usize>, count: Out<usize>,
    ) {
        capture_info(stream, out, id, graph, !nodes.is_null() || !count.is_null())
    }

    /// A capture's state, number and graph. The dependencies are not given.
    fn cuStreamGetCaptureInfo_v3(
        stream: Handle, out: Out<u32>, id: Out<u64>, graph: Out<Handle>, nodes: Out<usize>, edges: Out<usize>,
        count: Out<usize>,
    ) {
        capture_info(stream, out, id, graph, !nodes.is_null() || !edges.is_null() || !count.is_null())
    }

    /// Exchanges what the thread lets captures forbid it.
    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) {
        drop(lock()?);
        let new = mode.read()?;
        if new > flags::CAPTURE_RELAXED {
            return Err(Error::invalid(format!("capture mode {new}")));
        }
        mode.set(MODE.replace(new))
    }
}

fn capture_info(stream: Handle, out: Out<u32>, id: Out<u64>, graph: Out<Handle>, dependencies: bool) -> Result<()> {
    let (mut driver, context) = current()?;
    let stream = driver.stream(context, stream)?;
    out.set(status(&driver, stream)?)?;
    if let Some((number, _)) = driver.streams.get(stream)?.capture {
        if dependencies {
            return Err(Error::NotSupported("asking for a capture's dependencies".into()));
        }
        id.set_if_wanted(number);
        graph.set_if_wanted(driver.captures.get(&number).map_or(Handle::NULL, |capture| capture.graph));
    }
    Ok(())
}
