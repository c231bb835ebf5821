//! The paged 2D KV cache: which page holds what.
//!
//! A page holds [`PAGE`] tokens of every layer. The prompt of a branch lies in linear pages, shared and counted
//! among the images of that prompt; the grid of an image lies in its own pages in raster order. So the slot of a
//! position is a function of the position: re-verifying a block overwrites it in place, rolling back costs
//! nothing, and what is visible is one number per grid row (the frontier), not a mask over the sequence.

use crate::backend::{PAGE, PageTable};
use crate::grid::Grid;
use std::sync::Arc;

/// The cache has no room.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the KV cache is full: {needed} pages of {PAGE} tokens needed, {free} of {total} free")]
pub struct OutOfPages {
    /// Pages that were asked for.
    pub needed: usize,
    /// Pages that are free.
    pub free: usize,
    /// Pages in all.
    pub total: usize,
}

/// Hands out pages.
#[derive(Debug)]
pub struct Allocator {
    free: Vec<u32>,
    total: usize,
}

/// The pages of a prompt, shared by the images made from it.
#[derive(Debug)]
pub struct Prompt {
    pages: Vec<u32>,
    len: usize,
}

/// The pages of one branch of one image.
#[derive(Debug)]
pub struct Sequence {
    prompt: Arc<Prompt>,
    grid_pages: Vec<u32>,
}

impl Allocator {
    /// An allocator over pages `0..total`.
    pub fn new(total: usize) -> Self {
        Self { free: (0..total as u32).rev().collect(), total }
    }

    /// Pages that `tokens` tokens need.
    pub fn pages_for(tokens: usize) -> usize {
        tokens.div_ceil(PAGE)
    }

    /// Pages that are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    fn take(&mut self, tokens: usize) -> Result<Vec<u32>, OutOfPages> {
        let needed = Self::pages_for(tokens);
        let free = self.free.len();
        if needed > free {
            return Err(OutOfPages { needed, free, total: self.total });
        }
        let mut pages = self.free.split_off(free - needed);
        pages.reverse();
        Ok(pages)
    }

    /// Pages for a prompt of `len` tokens.
    pub fn prompt(&mut self, len: usize) -> Result<Arc<Prompt>, OutOfPages> {
        Ok(Arc::new(Prompt { pages: self.take(len)?, len }))
    }

    /// Pages for an image after `prompt`.
    pub fn sequence(&mut self, prompt: &Arc<Prompt>, grid: Grid) -> Result<Sequence, OutOfPages> {
        Ok(Sequence { prompt: prompt.clone(), grid_pages: self.take(grid.len())? })
    }

    /// Pages for so many draft nodes of an image.
    pub fn scratch(&mut self, slots: usize) -> Result<Vec<u32>, OutOfPages> {
        self.take(slots)
    }

    /// Takes back the pages of an image, and those of its prompt when it was the last user.
    pub fn release(&mut self, sequence: Sequence) {
        self.free.extend(sequence.grid_pages.into_iter().rev());
        self.release_prompt(sequence.prompt);
    }

    /// Takes back the pages of a prompt unless an image still uses them.
    pub fn release_prompt(&mut self, prompt: Arc<Prompt>) {
        if let Some(prompt) = Arc::into_inner(prompt) {
            self.free.extend(prompt.pages.into_iter().rev());
        }
    }
}

impl Prompt {
    /// The page table of a pass over the prompt alone.
    pub fn page_table(&self) -> PageTable {
        PageTable { prefix: self.pages.clone(), prefix_len: self.len, ..PageTable::default() }
    }
}

impl Sequence {
    /// The page table of a pass, with nothing of the grid visible yet.
    pub fn page_table(&self, grid: Grid) -> PageTable {
        PageTable {
            grid: self.grid_pages.clone(),
            width: grid.width,
            frontier: vec![0; grid.height],
            ..self.prompt.page_table()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { height: 4, width: 10 };

    #[test]
    fn images_share_their_prompt_and_everything_comes_back() {
        let mut pages = Allocator::new(10);
        let prompt = pages.prompt(PAGE + 1).unwrap();
        let first = pages.sequence(&prompt, GRID).unwrap();
        let second = pages.sequence(&prompt, GRID).unwrap();
        assert_eq!(pages.free(), 10 - 2 - 3 - 3);
        let (a, b) = (first.page_table(GRID), second.page_table(GRID));
        assert_eq!(a.prefix, b.prefix);
        assert!(a.grid.iter().all(|page| !b.grid.contains(page) && !a.prefix.contains(page)));
        drop(prompt);
        pages.release(first);
        assert_eq!(pages.free(), 5);
        pages.release(second);
        assert_eq!(pages.free(), 10);
    }

    #[test]
    fn a_full_cache_names_need_and_room_and_loses_nothing() {
        let mut pages = Allocator::new(4);
        let prompt = pages.prompt(20).unwrap();
        let error = pages.sequence(&prompt, GRID).unwrap_err();
        assert_eq!(error, OutOfPages { needed: 3, free: 2, total: 4 });
        assert_eq!(pages.free(), 2);
        pages.release_prompt(prompt);
        assert_eq!(pages.free(), 4);
    }
}
