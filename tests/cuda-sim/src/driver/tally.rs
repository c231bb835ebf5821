//! Counters over the process, and their file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::copy::{Copy, Place};
use super::findings;
use super::kernel_params::KernelCall;
use super::state::Driver;
use crate::machine::Report;

/// What was counted so far.
#[derive(Default)]
pub struct Tally {
    /// Launches of each kernel.
    kernels: BTreeMap<String, u64>,
    /// Each launch's counters.
    launches: Vec<Value>,
    graph_launches: u64,
    graph_nodes: u64,
    copies: BTreeMap<&'static str, (u64, u64)>,
    fills: u64,
    /// Whether the file is behind.
    changed: bool,
}

/// A file of more launches would be of no use, and memory has an end. Those beyond are still counted by kernel.
const LAUNCHES: usize = 100_000;

impl Tally {
    /// Counts a launch that ran to its end.
    pub fn launched(&mut self, call: &KernelCall, report: &Report) {
        self.changed = true;
        *self.kernels.entry(call.name.clone()).or_default() += 1;
        if self.launches.len() < LAUNCHES {
            self.launches.push(json!({
                "kernel": call.name,
                "grid": call.shape.grid,
                "block": call.shape.block,
                "cluster": call.shape.cluster.map(|n| n.max(1)),
                "dynamic_shared": call.shape.shared,
                "static_shared": call.entry.static_shared,
                "cooperative": call.shape.cooperative,
                "counters": report.counters.json(),
            }));
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

    fn json(&self, driver: &Driver) -> Value {
        let (major, minor) = driver.config.device.capability;
        let copies: BTreeMap<_, _> = self
            .copies
            .iter()
            .map(|(name, (count, bytes))| (*name, json!({ "count": count, "bytes": bytes })))
            .collect();
        json!({
            "device": {
                "compute_capability": format!("{major}.{minor}"),
                "multiprocessors": driver.config.device.sms,
                "memory": driver.config.device.memory,
            },
            "kernels": self.kernels.iter().map(|(name, n)| (name.clone(), json!({ "launches": n, "totals": self.totals(name) })))
                .collect::<serde_json::Map<_, _>>(),
            "launches": self.launches,
            "graphs": { "launches": self.graph_launches, "nodes": self.graph_nodes },
            "copies": copies,
            "fills": self.fills,
        })
    }

    /// The sums of a kernel's launches: every number of their counters, also inside.
    fn totals(&self, kernel: &str) -> Value {
        let mut total = Value::Null;
        for launch in self.launches.iter().filter(|launch| launch["kernel"] == kernel) {
            add(&mut total, &launch["counters"]);
        }
        total
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
    /// Writes the counters to their file, if there is one and something was counted since.
    pub fn write_counters(&mut self) {
        let Some(path) = self.config.counters.clone().filter(|_| self.tally.changed) else { return };
        let text = self.tally.json(self).to_string();
        match replace(&path, text.as_bytes()) {
            Ok(()) => self.tally.changed = false,
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
