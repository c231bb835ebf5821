//! Events: marks in streams.

use std::time::Instant;

use super::abi::{Out, entries};
use super::capture;
use super::errors::{CuResult, Error, Result};
use super::handles::Handle;
use super::queue::{Ticket, Until, poll};
use super::state::{Driver, current};
use super::stream::{issue, wait};
use super::types::flags;
use super::work::Work;

/// An event.
#[derive(Default)]
pub struct Event {
    /// Whose it is.
    pub context: Handle,
    /// `CU_EVENT_*`.
    pub flags: u32,
    /// Where it was last recorded.
    pub ticket: Option<Ticket>,
    /// When that was reached.
    pub time: Option<Instant>,
    /// Whether a query has found it unreached already.
    pub polled: bool,
    /// The capture and its nodes that it stands for, when it was last recorded in one.
    pub captured: Option<(u64, Vec<Handle>)>,
}

const CAPTURED: Error =
    Error::Capture(CuResult::ERROR_CAPTURED_EVENT, "the event was last recorded in a stream that captures");

fn record(event: Handle, stream: Handle, flags: u32, call: &'static str) -> Result<()> {
    let (mut driver, context) = current()?;
    if flags & !flags::EVENT_EXTERNAL != 0 {
        return Err(Error::invalid(format!("event record flags {flags:#x}")));
    }
    let stream = driver.stream(context, stream)?;
    let owner = driver.streams.get(stream)?.context;
    if driver.events.get(event)?.context != owner {
        return Err(Error::invalid("the event and the stream are of two contexts"));
    }
    if let Some((id, nodes)) = driver.streams.get(stream)?.capture.clone() {
        if flags & flags::EVENT_EXTERNAL != 0 {
            return driver.capture_work(stream, Work::Record(event));
        }
        driver.alive(id)?;
        driver.events.get_mut(event)?.captured = Some((id, nodes));
        return Ok(());
    }
    if flags & flags::EVENT_EXTERNAL != 0 {
        return Err(Error::invalid("an external record outside of a capture"));
    }
    let (mut driver, ticket) = issue(driver, stream, Work::Record(event), call)?;
    let event = driver.events.get_mut(event)?;
    *event = Event { context: event.context, flags: event.flags, ticket, ..Event::default() };
    Ok(())
}

impl Driver {
    /// An event that stands for nodes of a capture cannot be waited for; asking spoils the capture.
    fn not_captured(&mut self, event: Handle) -> Result<()> {
        match self.events.get(event)?.captured {
            Some((id, _)) => {
                self.invalidate(id);
                Err(CAPTURED)
            }
            None => Ok(()),
        }
    }
}

/// When an event that measures time was reached.
fn time(event: &Event) -> Result<Instant> {
    if event.captured.is_some() {
        return Err(CAPTURED);
    }
    if event.flags & flags::EVENT_DISABLE_TIMING != 0 {
        return Err(Error::Registration(CuResult::ERROR_INVALID_HANDLE, "the event was made with DISABLE_TIMING"));
    }
    match (event.ticket, event.time) {
        (None, _) => Err(Error::Registration(CuResult::ERROR_INVALID_HANDLE, "the event was never recorded")),
        (Some(_), None) => Err(Error::NotReady),
        (Some(_), Some(time)) => Ok(time),
    }
}

fn elapsed(out: Out<f32>, start: Handle, end: Handle) -> Result<()> {
    let (driver, _) = current()?;
    out.check()?;
    let (start, end) = (time(driver.events.get(start)?)?, time(driver.events.get(end)?)?);
    let forward = end.saturating_duration_since(start).as_secs_f64();
    let back = start.saturating_duration_since(end).as_secs_f64();
    out.set(((forward - back) * 1e3) as f32)
}

entries! {
    /// Makes an event.
    fn cuEventCreate(event: Out<Handle>, flags: u32) {
        let (mut driver, context) = current()?;
        event.check()?;
        let known = flags::EVENT_BLOCKING_SYNC | flags::EVENT_DISABLE_TIMING | flags::EVENT_INTERPROCESS;
        if flags & !known != 0 {
            return Err(Error::invalid(format!("event flags {flags:#x}")));
        }
        if flags & flags::EVENT_INTERPROCESS != 0 {
            return Err(Error::NotSupported("an event for several processes".into()));
        }
        event.set(driver.events.insert(Event { context, flags, ..Event::default() }))
    }

    /// Ends an event. What waits for it goes on waiting for the work.
    fn cuEventDestroy_v2(event: Handle) {
        let (mut driver, _) = current()?;
        driver.events.remove(event)?;
        Ok(())
    }

    /// Marks where a stream is.
    fn cuEventRecord(event: Handle, stream: Handle) {
        record(event, stream, 0, "cuEventRecord")
    }

    /// Marks where a stream is; in a capture, as a node of the graph if the flags say so.
    fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: u32) {
        record(event, stream, flags, "cuEventRecordWithFlags")
    }

    /// Whether the mark is reached.
    fn cuEventQuery(event: Handle) {
        let (mut driver, context) = current()?;
        driver.not_captured(event)?;
        driver.forbid_in_capture()?;
        let state = driver.events.get_mut(event)?;
        let asked = std::mem::replace(&mut state.polled, true);
        let ticket: Vec<Ticket> = state.ticket.into_iter().collect();
        poll(driver, context, &ticket, asked)
    }

    /// Waits until the mark is reached.
    fn cuEventSynchronize(event: Handle) {
        let (mut driver, context) = current()?;
        driver.not_captured(event)?;
        driver.forbid_in_capture()?;
        match driver.events.get(event)?.ticket {
            Some(ticket) => wait(driver, context, Until::Done(ticket)).map(drop),
            None => Ok(()),
        }
    }

    /// Milliseconds between two marks, by the host's clock: the simulator's time, no device's.
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    /// Milliseconds between two marks, by the host's clock: the simulator's time, no device's.
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }
}

/// The nodes of a capture that an event stands for, if that capture goes on.
pub fn captured(
    event: &Event,
    captures: &std::collections::BTreeMap<u64, capture::Capture>,
) -> Option<(u64, Vec<Handle>)> {
    event.captured.clone().filter(|(id, _)| captures.contains_key(id))
}
