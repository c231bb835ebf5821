//! Handles: numbers that look like pointers to the program and are never dereferenced, so that a null, a freed or a wild
//! one is an error and not undefined behaviour. A number is never used twice.

use std::collections::BTreeMap;
use std::fmt;

use super::errors::{Error, Result};

/// What a handle names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Context = 1,
    Module,
    Function,
    Stream,
    Event,
    Graph,
    Node,
    Exec,
    Pool,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Context => "context",
            Kind::Module => "module",
            Kind::Function => "function",
            Kind::Stream => "stream",
            Kind::Event => "event",
            Kind::Graph => "graph",
            Kind::Node => "graph node",
            Kind::Exec => "executable graph",
            Kind::Pool => "memory pool",
        })
    }
}

/// A handle as C passes it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Handle(pub usize);

impl Handle {
    /// The null handle.
    pub const NULL: Handle = Handle(0);

    /// Whether it is null.
    pub fn is_null(self) -> bool {
        self == Handle::NULL
    }
}

/// The live objects of one kind, in the order of their creation.
pub struct Table<T> {
    kind: Kind,
    next: usize,
    live: BTreeMap<Handle, T>,
}

impl<T> Table<T> {
    /// An empty table.
    pub fn new(kind: Kind) -> Self {
        Table { kind, next: 1, live: BTreeMap::new() }
    }

    /// Adds an object.
    pub fn insert(&mut self, object: T) -> Handle {
        let handle = Handle((0xc0 + self.kind as usize) << 40 | self.next << 4);
        self.next += 1;
        self.live.insert(handle, object);
        handle
    }

    /// A live object.
    pub fn get(&self, handle: Handle) -> Result<&T> {
        self.live.get(&handle).ok_or(Error::Handle { kind: self.kind, handle: handle.0 })
    }

    /// A live object, to change.
    pub fn get_mut(&mut self, handle: Handle) -> Result<&mut T> {
        self.live.get_mut(&handle).ok_or(Error::Handle { kind: self.kind, handle: handle.0 })
    }

    /// Ends an object.
    pub fn remove(&mut self, handle: Handle) -> Result<T> {
        self.live.remove(&handle).ok_or(Error::Handle { kind: self.kind, handle: handle.0 })
    }

    /// Whether the handle is live.
    pub fn contains(&self, handle: Handle) -> bool {
        self.live.contains_key(&handle)
    }

    /// Every live object.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.live.iter().map(|(handle, object)| (*handle, object))
    }

    /// Every live object, to change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.live.values_mut()
    }

    /// Ends the objects that `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.live.retain(|_, object| keep(object));
    }

    /// How many are live.
    pub fn len(&self) -> usize {
        self.live.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_handle_stays_dead() {
        let mut table = Table::new(Kind::Event);
        let first = table.insert('a');
        assert_eq!(table.remove(first).unwrap(), 'a');
        let second = table.insert('b');
        assert_ne!(first, second);
        assert!(matches!(table.get(first), Err(Error::Handle { kind: Kind::Event, .. })));
        assert!(matches!(table.remove(Handle::NULL), Err(Error::Handle { .. })));
        let mut other = Table::new(Kind::Stream);
        assert_ne!(other.insert('c'), first);
    }
}
