//! The allocations as a launch sees them.

use std::fmt;
use std::sync::Arc;

use super::Allocation;

/// A frozen table of allocations, sorted by address.
#[derive(Clone)]
pub struct View {
    list: Arc<Vec<Arc<Allocation>>>,
}

/// What is at an address that no live allocation holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nothing is there; the nearest allocation below, and by how many bytes its end is passed.
    Nothing(Option<(String, u64)>),
    /// It was freed: the allocation.
    Freed(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Nothing(None) => write!(f, "no allocation is there"),
            Missing::Nothing(Some((name, past))) => write!(f, "{past} bytes past the end of {name}"),
            Missing::Freed(name) => write!(f, "{name} was freed"),
        }
    }
}

impl View {
    pub(super) fn new(list: Arc<Vec<Arc<Allocation>>>) -> View {
        View { list }
    }

    /// The allocation of an index that [`View::locate`] gave.
    #[inline(always)]
    pub fn get(&self, index: usize) -> &Arc<Allocation> {
        &self.list[index]
    }

    /// How many there are, freed ones included.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing was ever allocated.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The parts of a range that lie in live allocations, up to the first byte that does not: allocation, offset in it and
    /// bytes. `last` is the allocation that is tried first.
    #[inline(always)]
    pub fn parts<'a>(
        &'a self,
        last: &'a mut usize,
        mut address: u64,
        mut length: u64,
    ) -> impl Iterator<Item = (usize, u64, u64)> + 'a {
        std::iter::from_fn(move || {
            if length == 0 {
                return None;
            }
            let (offset, room) = self.find(last, address)?;
            let here = room.min(length);
            address = address.wrapping_add(here);
            length -= here;
            Some((*last, offset, here))
        })
    }

    /// Makes `index` the live allocation that holds an address, if it is not; the offset there, and the bytes from there on.
    #[inline(always)]
    fn find(&self, index: &mut usize, address: u64) -> Option<(u64, u64)> {
        let room = |found: &Allocation| {
            let offset = address.wrapping_sub(found.base);
            (found.is_live() && offset < found.size).then(|| (offset, found.size - offset))
        };
        if let Some(found) = self.list.get(*index).and_then(|found| room(found)) {
            return Some(found);
        }
        *index = self.locate(address, 1).ok()?;
        room(&self.list[*index])
    }

    /// The live allocation that holds `length` bytes at `address`.
    pub fn locate(&self, address: u64, length: u64) -> Result<usize, Missing> {
        let Some(index) = self.list.partition_point(|a| a.base <= address).checked_sub(1) else {
            return Err(Missing::Nothing(None));
        };
        let found = &self.list[index];
        let offset = address - found.base;
        if !found.is_live() && offset < found.size {
            return Err(Missing::Freed(found.describe()));
        }
        if offset.checked_add(length).is_none_or(|end| end > found.size) {
            let past = offset.saturating_add(length).saturating_sub(found.size);
            return Err(Missing::Nothing(Some((found.describe(), past))));
        }
        Ok(index)
    }
}
