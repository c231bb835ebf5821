//! Streams: creation, order, waiting, host functions.

use std::ffi::c_int;
use std::thread;

use super::abi::{Out, entries};
use super::capture;
use super::errors::{Error, Result};
use super::handles::Handle;
use super::queue::{Item, Ticket, Until, finish, poll};
use super::state::{Driver, Locked, current, lock};
use super::types::{HostFn, StreamCallback, flags};
use super::work::{HostCall, HostFunction, Work};

/// A stream.
pub struct Stream {
    /// Whose it is.
    pub context: Handle,
    /// `CU_STREAM_NON_BLOCKING`: no order with the legacy default stream.
    pub non_blocking: bool,
    /// Whether it is a legacy default stream.
    pub legacy: bool,
    /// Its priority; every stream runs alike here.
    pub priority: i32,
    /// The last work issued.
    pub last: Option<Ticket>,
    /// Whether a query has found it busy already.
    pub polled: bool,
    /// The capture that it is in, and the nodes that its next one depends on.
    pub capture: Option<(u64, Vec<Handle>)>,
}

/// `CU_STREAM_LEGACY`
const LEGACY: Handle = Handle(1);
/// `CU_STREAM_PER_THREAD`
const PER_THREAD: Handle = Handle(2);

impl Stream {
    /// A stream that nothing was issued to.
    pub fn new(context: Handle, non_blocking: bool, priority: i32) -> Stream {
        Stream { context, non_blocking, legacy: false, priority, last: None, polled: false, capture: None }
    }
}

impl Driver {
    /// The stream that a handle means: a live one, or one of the default streams of the context.
    pub fn stream(&mut self, context: Handle, handle: Handle) -> Result<Handle> {
        match handle {
            Handle::NULL | LEGACY => Ok(self.contexts.get(context)?.legacy),
            PER_THREAD => {
                let id = thread::current().id();
                if let Some(stream) = self.contexts.get(context)?.per_thread.get(&id) {
                    return Ok(*stream);
                }
                let stream = self.streams.insert(Stream::new(context, false, 0));
                self.contexts.get_mut(context)?.per_thread.insert(id, stream);
                Ok(stream)
            }
            handle => {
                let context = self.streams.get(handle)?.context;
                self.usable(context)?;
                Ok(handle)
            }
        }
    }

    /// The stream of a call, which must not be one that captures.
    pub fn idle_stream(&mut self, context: Handle, handle: Handle) -> Result<Handle> {
        let stream = self.stream(context, handle)?;
        if let Some((id, _)) = self.streams.get(stream)?.capture {
            self.invalidate(id);
            return Err(capture::UNSUPPORTED);
        }
        self.order_with_captures(stream)?;
        Ok(stream)
    }

    /// What a stream's next work must wait for, besides events.
    fn before(&self, handle: Handle) -> Result<Vec<Ticket>> {
        let stream = self.streams.get(handle)?;
        let mut before: Vec<Ticket> = stream.last.into_iter().collect();
        if stream.legacy {
            let blocking = self.streams.iter().filter(|(_, s)| s.context == stream.context && !s.non_blocking);
            before.extend(blocking.filter_map(|(_, s)| s.last));
            before.extend(&self.contexts.get(stream.context)?.orphans);
        } else if !stream.non_blocking {
            let legacy = self.contexts.get(stream.context)?.legacy;
            before.extend(self.streams.get(legacy)?.last);
        }
        before.retain(|ticket| !self.queue.is_done(*ticket));
        Ok(before)
    }

    /// Whether a stream's next work could run at once.
    pub fn is_idle(&self, stream: Handle) -> Result<bool> {
        Ok(self.before(stream)?.is_empty())
    }
}

/// Issues work to a stream, or adds it to the graph that the stream captures; then there is no ticket.
pub fn issue(driver: Locked, stream: Handle, work: Work, call: &'static str) -> Result<(Locked, Option<Ticket>)> {
    issue_after(driver, stream, work, Vec::new(), call)
}

/// As [`issue`], after other work too.
pub fn issue_after(
    mut driver: Locked,
    stream: Handle,
    work: Work,
    mut after: Vec<Ticket>,
    call: &'static str,
) -> Result<(Locked, Option<Ticket>)> {
    if driver.streams.get(stream)?.capture.is_some() {
        driver.capture_work(stream, work)?;
        return Ok((driver, None));
    }
    driver.order_with_captures(stream)?;
    let context = driver.streams.get(stream)?.context;
    if driver.queue.is_full() {
        driver = wait(driver, context, Until::Idle(context))?;
    }
    after.retain(|ticket| !driver.queue.is_done(*ticket));
    after.extend(driver.before(stream)?);
    let ticket = driver.queue.add(Item { context, after, work, call, running: false });
    let stream = driver.streams.get_mut(stream)?;
    stream.last = Some(ticket);
    stream.polled = false;
    Ok((driver, Some(ticket)))
}

/// Runs work until `until`, and fails if the context is dead then.
pub fn wait(driver: Locked, context: Handle, until: Until) -> Result<Locked> {
    let (driver, outcome) = finish(driver, until);
    outcome?;
    driver.usable(context)?;
    Ok(driver)
}

fn create(out: Out<Handle>, flags: u32, priority: i32) -> Result<()> {
    let (mut driver, context) = current()?;
    out.check()?;
    if flags & !flags::STREAM_NON_BLOCKING != 0 {
        return Err(Error::invalid(format!("stream flags {flags:#x}")));
    }
    let priority = priority.clamp(GREATEST_PRIORITY, LEAST_PRIORITY);
    let stream = Stream::new(context, flags & flags::STREAM_NON_BLOCKING != 0, priority);
    out.set(driver.streams.insert(stream))
}

const LEAST_PRIORITY: i32 = 0;
const GREATEST_PRIORITY: i32 = -5;

fn host(stream: Handle, function: HostFunction, data: usize, call: &'static str) -> Result<()> {
    let (mut driver, context) = current()?;
    let stream = driver.stream(context, stream)?;
    issue(driver, stream, Work::Host(HostCall { function, data }), call)?;
    Ok(())
}

entries! {
    /// Makes a stream.
    fn cuStreamCreate(stream: Out<Handle>, flags: u32) {
        create(stream, flags, 0)
    }

    /// Makes a stream with a priority, which is kept and has no effect.
    fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: u32, priority: c_int) {
        create(stream, flags, priority)
    }

    /// Ends a stream. Its work goes on.
    fn cuStreamDestroy_v2(stream: Handle) {
        let (mut driver, _) = current()?;
        let gone = driver.streams.get(stream)?;
        if let Some((id, _)) = gone.capture {
            driver.invalidate(id);
        }
        let gone = driver.streams.remove(stream)?;
        let is_done = |ticket: &Ticket| driver.queue.is_done(*ticket);
        let mut orphans = driver.contexts.get(gone.context)?.orphans.clone();
        orphans.extend(gone.last.filter(|_| !gone.non_blocking));
        orphans.retain(|ticket| !is_done(ticket));
        driver.contexts.get_mut(gone.context)?.orphans = orphans;
        Ok(())
    }

    /// Waits for a stream's work.
    fn cuStreamSynchronize(stream: Handle) {
        let (mut driver, context) = current()?;
        let stream = driver.idle_stream(context, stream)?;
        // The legacy stream's work waits for that of the blocking streams, and so does who waits for it.
        for before in driver.before(stream)? {
            driver = wait(driver, context, Until::Done(before))?;
        }
        Ok(())
    }

    /// Whether a stream's work is done.
    fn cuStreamQuery(stream: Handle) {
        let (mut driver, context) = current()?;
        let stream = driver.idle_stream(context, stream)?;
        let before = driver.before(stream)?;
        let asked = std::mem::replace(&mut driver.streams.get_mut(stream)?.polled, true);
        poll(driver, context, &before, asked)
    }

    /// Lets a stream's later work wait for an event.
    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) {
        let (mut driver, context) = current()?;
        let stream = driver.stream(context, stream)?;
        if flags & !flags::EVENT_EXTERNAL != 0 {
            return Err(Error::invalid(format!("event wait flags {flags:#x}")));
        }
        if flags & flags::EVENT_EXTERNAL != 0 {
            driver.events.get(event)?;
            if driver.streams.get(stream)?.capture.is_none() {
                return Err(Error::invalid("an external wait outside of a capture"));
            }
            return driver.capture_work(stream, Work::Await(event));
        }
        if driver.capture_wait(stream, event)? {
            return Ok(());
        }
        match driver.events.get(event)?.ticket {
            Some(ticket) if !driver.queue.is_done(ticket) => {
                issue_after(driver, stream, Work::Nothing, vec![ticket], "cuStreamWaitEvent")?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Calls a function of the program when the stream gets there.
    fn cuLaunchHostFunc(stream: Handle, function: HostFn, data: usize) {
        if function.is_none() {
            return Err(Error::Null);
        }
        host(stream, HostFunction::Plain(function), data, "cuLaunchHostFunc")
    }

    /// The older form of `cuLaunchHostFunc`. Not in captures.
    fn cuStreamAddCallback(stream: Handle, callback: StreamCallback, data: usize, flags: u32) {
        if callback.is_none() {
            return Err(Error::Null);
        }
        if flags != 0 {
            return Err(Error::invalid("flags must be 0"));
        }
        let (mut driver, context) = current()?;
        driver.idle_stream(context, stream)?;
        drop(driver);
        host(stream, HostFunction::Callback(callback, stream), data, "cuStreamAddCallback")
    }

    /// A stream's priority.
    fn cuStreamGetPriority(stream: Handle, priority: Out<c_int>) {
        let (mut driver, context) = current()?;
        let stream = driver.stream(context, stream)?;
        priority.set(driver.streams.get(stream)?.priority)
    }

    /// A stream's flags.
    fn cuStreamGetFlags(stream: Handle, flags: Out<u32>) {
        let (mut driver, context) = current()?;
        let stream = driver.stream(context, stream)?;
        flags.set(driver.streams.get(stream)?.non_blocking as u32)
    }

    /// A number for a stream that no other one has.
    fn cuStreamGetId(stream: Handle, id: Out<u64>) {
        let (mut driver, context) = current()?;
        id.set(driver.stream(context, stream)?.0 as u64)
    }

    /// A stream's context.
    fn cuStreamGetCtx(stream: Handle, out: Out<Handle>) {
        let (mut driver, context) = current()?;
        let stream = driver.stream(context, stream)?;
        out.set(driver.streams.get(stream)?.context)
    }

    /// A stream's device.
    fn cuStreamGetDevice(stream: Handle, device: Out<c_int>) {
        let (mut driver, context) = current()?;
        driver.stream(context, stream)?;
        device.set(0)
    }

    /// The priorities that there are; lower numbers are greater.
    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        drop(lock()?);
        least.set_if_wanted(LEAST_PRIORITY);
        greatest.set_if_wanted(GREATEST_PRIORITY);
        Ok(())
    }

    /// Says which stream uses managed memory. All of it is coherent here: only the arguments are checked.
    fn cuStreamAttachMemAsync(stream: Handle, address: u64, _length: usize, flags: u32) {
        let (mut driver, context) = current()?;
        driver.stream(context, stream)?;
        if !matches!(flags, 1 | 2 | 4) {
            return Err(Error::invalid(format!("attach flags {flags:#x}")));
        }
        driver.managed(address)?;
        Ok(())
    }
}
