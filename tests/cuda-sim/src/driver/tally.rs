//! Counters over the process, and their file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::copy::{Copy, Place};
use super::findings;
use super::kernel_params::KernelCall;
use super::state::Driver;
use crate::counters::Totals;
use crate::counters::traffic::AllocationTraffic;
use crate::device::Device;
use crate::machine::Report;

/// What was counted so far.
#[derive(Default)]
pub struct Tally {
    /// Launches of each kernel.
    kernels: BTreeMap<String, u64>,
    launches: Vec<Launch>,
    graph_launches: u64,
    graph_nodes: u64,
    copies: BTreeMap<&'static str, (u64, u64)>,
    fills: u64,
    /// Whether the file is behind.
    changed: bool,
}

/// A launch that ran.
struct Launch {
    call: Arc<KernelCall>,
    counters: Totals,
}

/// A file of more launches would be of no use, and memory has an end. Those beyond are still counted by kernel.
const LAUNCHES: usize = 100_000;

impl Tally {
    /// Counts a launch that ran to its end.
    pub fn launched(&mut self, call: &Arc<KernelCall>, report: &Report) {
        self.changed = true;
        *self.kernels.entry(call.name.clone()).or_default() += 1;
        if self.launches.len() < LAUNCHES {
            self.launches.push(Launch { call: call.clone(), counters: report.counters.clone() });
        }
    }

    /// Counts the launch of a graph.
    pub fn graph(&mut self, nodes: u64) {
        self.changed = true;
        self.graph_launches += 1;
        self.graph_nodes += nodes;
    }

    /// Counts a copy that a stream was given.
    pub fn copied(&mut self, copy: &Copy) {
        self.changed = true;
        let direction = match (&copy.from.place, &copy.to.place) {
            (Place::Device(_), Place::Device(_)) => "device_to_device",
            (Place::Device(_), _) => "device_to_host",
            (_, Place::Device(_)) => "host_to_device",
            _ => "host_to_host",
        };
        let bytes: u64 = copy.shape.iter().map(|&n| n as u64).product();
        let counted = self.copies.entry(direction).or_default();
        counted.0 += 1;
        counted.1 += bytes;
    }

    /// Counts a fill that a stream was given.
    pub fn filled(&mut self) {
        self.changed = true;
        self.fills += 1;
    }

    /// The JSON object of everything that was counted, on a device.
    pub fn json(&self, device: &Device) -> Value {
        let (major, minor) = device.capability;
        let copies =
            self.copies.iter().map(|(name, (count, bytes))| (*name, json!({ "count": count, "bytes": bytes })));
        let kernel = |(name, launches): (&String, &u64)| {
            (name.clone(), json!({ "launches": launches, "totals": self.totals(name) }))
        };
        json!({
            "device": {
                "compute_capability": format!("{major}.{minor}"),
                "multiprocessors": device.sms,
                "memory": device.memory,
                "l2": device.l2,
            },
            "kernels": self.kernels.iter().map(kernel).collect::<Map<_, _>>(),
            "launches": self.launches.iter().map(Launch::json).collect::<Vec<_>>(),
            "graphs": { "launches": self.graph_launches, "nodes": self.graph_nodes },
            "copies": copies.collect::<BTreeMap<_, _>>(),
            "fills": self.fills,
        })
    }

    /// The sums of a kernel's launches: every number of their counters, also inside.
    fn totals(&self, kernel: &str) -> Value {
        let mut total = Value::Null;
        for launch in self.launches.iter().filter(|launch| launch.call.name == kernel) {
            add(&mut total, &launch.counters.json());
        }
        total
    }
}

impl Launch {
    fn json(&self) -> Value {
        let (call, shape) = (&self.call, &self.call.shape);
        let mut launch = json!({
            "kernel": call.name,
            "grid": shape.grid,
            "block": shape.block,
            "cluster": shape.cluster.map(|n| n.max(1)),
            "dynamic_shared": shape.shared,
            "static_shared": call.entry.static_shared,
            "cooperative": shape.cooperative,
            "counters": self.counters.json(),
        });
        if let Some(traffic) = &self.counters.traffic {
            launch["allocations"] = traffic.allocations.iter().map(AllocationTraffic::json).collect();
            launch["l2_simulated"] = traffic.simulated.into();
        }
        launch
    }
}

/// Adds numbers to numbers, through objects.
fn add(total: &mut Value, more: &Value) {
    match (&mut *total, more) {
        (Value::Null, more) => *total = more.clone(),
        (Value::Object(total), Value::Object(more)) => {
            for (key, value) in more {
                add(total.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let sum = a.as_u64().zip(b.as_u64()).map(|(a, b)| a.saturating_add(b));
            *total = match sum {
                Some(sum) => json!(sum),
                None => json!(a.as_f64().unwrap_or_default() + b.as_f64().unwrap_or_default()),
            };
        }
        _ => {}
    }
}

impl Driver {
    /// Whether the costly counters are wanted.
    pub fn counting(&self) -> bool {
        self.config.counters.is_some() || self.recent.is_some()
    }

    /// Counts, where that is wanted.
    pub fn count(&mut self, what: impl Fn(&mut Tally)) {
        if self.config.counters.is_some() {
            what(self.tally.get_or_insert_default());
        }
        if let Some(recent) = &mut self.recent {
            what(recent);
        }
    }

    /// Writes the counters to their file, if there is one and something was counted since.
    pub fn write_counters(&mut self) {
        let (Some(path), Some(tally)) = (&self.config.counters, &mut self.tally) else { return };
        if !tally.changed {
            return;
        }
        let text = tally.json(&self.config.device).to_string();
        match replace(path, text.as_bytes()) {
            Ok(()) => tally.changed = false,
            Err(error) => findings::report(&format!("CUDA_SIM_COUNTERS={}: {error}", path.display())),
        }
    }
}

/// Writes a file whole or not at all: a reader never sees a part of it.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.write_all(b"\n")?;
    drop(file);
    std::fs::rename(&temporary, path).inspect_err(|_| {
        // The reason to tell is why the rename failed.
        let _ = std::fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_through_objects() {
        let mut total = Value::Null;
        add(&mut total, &json!({ "a": 1, "b": { "c": 2 } }));
        add(&mut total, &json!({ "a": 5, "b": { "c": 3, "d": 1 } }));
        assert_eq!(total, json!({ "a": 6, "b": { "c": 5, "d": 1 } }));
    }
}
