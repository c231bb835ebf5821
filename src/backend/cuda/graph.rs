//! Steps recorded as graphs: one for each size of step, replayed with one launch.

use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::CudaBackend;
use super::device::{Device, count_one, lock};
use super::kernels::Launcher;
use super::memory::Allocation;
use super::step::{Bucket, DeviceStep};
use crate::backend::Error;

/// Graphs of a step at most; the one that was used longest ago goes first.
const GRAPHS: usize = 64;

/// The graphs of a step, the last used at the end.
#[derive(Default)]
pub(super) struct Graphs(Vec<(Bucket, Graph)>);

/// A recorded step, and the memory and the kernels that it uses.
struct Graph {
    device: Arc<Device>,
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    _memory: Vec<Arc<Allocation>>,
    _kernels: Arc<Launcher>,
}

// SAFETY: a graph has one owner, and is used by one thread at a time.
unsafe impl Send for Graph {}
// SAFETY: as above; a shared reference does nothing.
unsafe impl Sync for Graph {}

impl Graph {
    fn launch(&self) {
        // SAFETY: the graph lives until the device has done what it queues.
        let launched = self.device.call(|| unsafe { result::graph::launch(self.executable, self.device.stream()) });
        match launched {
            Ok(()) => count_one(&self.device.counters.replays),
            Err(e) => drop(self.device.failed_with(self.device.error(e, "replaying a step"))),
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // It may be running.
        let _ = self.device.wait();
        // SAFETY: both are this object's.
        unsafe {
            let _ = self.device.call(|| result::graph::exec_destroy(self.executable));
            let _ = self.device.call(|| result::graph::destroy(self.graph));
        }
    }
}

impl Graphs {
    fn find(&mut self, bucket: &Bucket) -> Option<&Graph> {
        let place = self.0.iter().position(|(of, _)| of == bucket)?;
        let found = self.0.remove(place);
        self.0.push(found);
        self.0.last().map(|(_, graph)| graph)
    }

    fn insert(&mut self, bucket: Bucket, graph: Graph) {
        if self.0.len() == GRAPHS {
            self.0.remove(0);
        }
        self.0.push((bucket, graph));
    }
}

impl CudaBackend {
    /// See [`Backend::reserve`](crate::backend::Backend::reserve). Every size of step is measured: which kernels serve it,
    /// and what they leave for each other, is not the same for all.
    pub(super) fn reserve_step(
        &self,
        step: &mut DeviceStep,
        ops: &mut dyn FnMut(&Self, &DeviceStep),
    ) -> Result<(), Error> {
        self.device.check()?;
        let _inside = self.device.enter();
        let was = step.bucket();
        let mut most = 0;
        for bucket in Bucket::sizes(step.capacity()) {
            step.pad_to(bucket);
            most = most.max(self.launcher.measure(|| ops(self, step)));
        }
        step.pad_to(was);
        self.device.check()?;
        self.launcher.grow(most)
    }

    /// Records `ops` for the step's size if that was not done, and replays what was recorded.
    pub(super) fn run_step(&self, step: &mut DeviceStep, ops: &mut dyn FnMut(&Self, &DeviceStep)) {
        if self.device.failed() {
            return;
        }
        let _inside = self.device.enter();
        let bucket = step.bucket();
        if step.graphs.find(&bucket).is_none() {
            match self.record(step, ops) {
                Some(graph) => step.graphs.insert(bucket, graph),
                // What failed is reported by the next call that can.
                None => return,
            }
        }
        if let Some(graph) = step.graphs.find(&bucket) {
            graph.launch();
        }
    }

    /// A graph of `ops`.
    fn record(&self, step: &DeviceStep, ops: &mut dyn FnMut(&Self, &DeviceStep)) -> Option<Graph> {
        let capture = Capture::begin(self)?;
        ops(self, step);
        let (graph, memory) = capture.end()?;
        self.instantiate(graph, memory)
    }

    fn instantiate(&self, graph: sys::CUgraph, memory: Vec<Arc<Allocation>>) -> Option<Graph> {
        // SAFETY: the graph was captured whole.
        let made = self.device.call(|| unsafe { result::graph::instantiate(graph, CUgraphInstantiate_flags(0)) });
        match made {
            Ok(executable) => {
                count_one(&self.device.counters.recordings);
                let (device, kernels) = (self.device.clone(), self.launcher.clone());
                Some(Graph { device, graph, executable, _memory: memory, _kernels: kernels })
            }
            Err(e) => {
                self.destroy(graph);
                self.device.failed_with(self.device.error(e, "making a graph of a step"));
                None
            }
        }
    }

    fn destroy(&self, graph: sys::CUgraph) {
        // SAFETY: the graph was captured and is not used again.
        let _ = self.device.call(|| unsafe { result::graph::destroy(graph) });
    }
}

/// A capture that is under way; it ends, also if an op panics.
struct Capture<'a> {
    backend: &'a CudaBackend,
    ended: bool,
}

impl<'a> Capture<'a> {
    fn begin(backend: &'a CudaBackend) -> Option<Self> {
        let device = &backend.device;
        assert!(!device.is_recording(), "a step is run inside a step");
        // Relaxed: kernels that are loaded at their first launch may be loaded during the capture.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as the device; the capture is ended by this object.
        if let Err(e) = device.call(|| unsafe { result::stream::begin_capture(device.stream(), mode) }) {
            device.failed_with(device.error(e, "recording a step"));
            return None;
        }
        *lock(&backend.launcher.recording) = Some(Vec::new());
        device.set_recording(true);
        Some(Capture { backend, ended: false })
    }

    /// The graph and the memory that it uses.
    fn end(mut self) -> Option<(sys::CUgraph, Vec<Arc<Allocation>>)> {
        self.ended = true;
        let (graph, memory) = self.stop();
        let device = &self.backend.device;
        match graph {
            Ok(graph) if !device.failed() => return Some((graph, memory)),
            Ok(graph) => self.backend.destroy(graph),
            Err(e) => drop(device.failed_with(device.error(e, "recording a step"))),
        }
        None
    }

    fn stop(&self) -> (Result<sys::CUgraph, DriverError>, Vec<Arc<Allocation>>) {
        let device = &self.backend.device;
        device.set_recording(false);
        let memory = lock(&self.backend.launcher.recording).take().unwrap_or_default();
        // SAFETY: the capture was begun by this object.
        (device.call(|| unsafe { result::stream::end_capture(device.stream()) }), memory)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let (Ok(graph), _) = self.stop()
        {
            self.backend.destroy(graph);
        }
    }
}
