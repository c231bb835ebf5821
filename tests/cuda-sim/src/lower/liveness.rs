//! Gives the registers of a function rows of the machine's register files.
//!
//! Compilers write PTX with a fresh register for nearly every value. A row is 128 or 256 bytes, so a row for each would
//! drive the values that matter out of the host's caches. A function is therefore lowered twice: the first time notes
//! where registers are read and written, then registers that never live at the same time are given one row, and the
//! second time uses these rows. Each lane follows its own path through the program, and each lane has its own column of
//! a row: what holds for the flow of control holds for every lane.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::File;

/// Rows of the 32-bit file, the 64-bit file and the predicates.
pub type Rows = (u32, u32, u32);

/// A file and a row of it.
type Register = (usize, u32);

/// How an instruction touches a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Reads it.
    Read,
    /// Writes it in some lanes only.
    Write,
    /// Writes it in every lane that executes the instruction: what it held before is gone.
    Overwrite,
}

/// What the first lowering saw.
#[derive(Default)]
pub struct Trace {
    /// The instruction that is being lowered.
    pub instruction: u32,
    touches: Vec<(u32, Register, Touch)>,
    /// Registers of one instruction alone, which writes them first.
    temporaries: HashSet<Register>,
    /// Registers that keep a row of their own.
    pinned: Vec<Register>,
    /// Instructions and the labels that they may branch to.
    branches: Vec<(u32, u32)>,
    /// Instructions after which the next is not run.
    stops: HashSet<u32>,
}

impl Trace {
    /// Notes a touch of a row.
    pub fn touch(&mut self, file: File, row: u32, touch: Touch) {
        let register = (index(file), row);
        if !self.temporaries.contains(&register) {
            self.touches.push((self.instruction, register, touch));
        }
    }

    /// Notes a row that only the current instruction uses.
    pub fn temporary(&mut self, file: File, row: u32) {
        self.touch(file, row, Touch::Overwrite);
        self.temporaries.insert((index(file), row));
    }

    /// Keeps a row for one register alone.
    pub fn pin(&mut self, file: File, row: u32) {
        self.pinned.push((index(file), row));
        if file == File::B128 {
            self.pinned.push((index(file), row + 1));
        }
    }

    /// Notes a branch of the current instruction.
    pub fn branch(&mut self, label: u32) {
        self.branches.push((self.instruction, label));
    }

    /// Notes that the current instruction never goes on with the next.
    pub fn stop(&mut self) {
        self.stops.insert(self.instruction);
    }
}

fn index(file: File) -> usize {
    match file {
        File::B32 => 0,
        File::B64 | File::B128 => 1,
        File::Pred => 2,
    }
}

/// The rows that the second lowering uses.
#[derive(Debug, Default)]
pub struct Assignment {
    rows: [HashMap<u32, u32>; 3],
    counts: [u32; 3],
}

impl Assignment {
    /// The row of what the first lowering called `row`. Registers that no instruction touches have none.
    pub fn row(&self, file: File, row: u32) -> u32 {
        self.rows[index(file)].get(&row).copied().unwrap_or(0)
    }

    /// How many rows there are. One at least: a row that is asked for in vain must be somewhere.
    pub fn counts(&self) -> Rows {
        let [a, b, c] = self.counts.map(|n| n.max(1));
        (a, b, c)
    }

    /// Gives each of these a row of its own. Neighbours stay neighbours: vectors and 128-bit registers need it.
    fn pinned(mut registers: Vec<Register>) -> Assignment {
        let mut out = Assignment::default();
        registers.sort_unstable();
        registers.dedup();
        for (file, row) in registers {
            out.rows[file].insert(row, out.counts[file]);
            out.counts[file] += 1;
        }
        out
    }

    /// Assigns rows. `labels` has the instruction that each label stands before.
    pub fn new(trace: &Trace, labels: &[u32]) -> Assignment {
        let mut pinned = trace.pinned.clone();
        let Some(blocks) = Blocks::new(trace, labels) else {
            // Too large to think about, which no compiler's function is: a row for each.
            for &(_, (file, row), _) in &trace.touches {
                pinned.push((file, row));
            }
            return Assignment::pinned(pinned);
        };
        let mut out = Assignment::pinned(pinned);
        let mut ranges: Vec<_> = blocks.ranges(trace).into_iter().collect();
        ranges.retain(|((file, row), _)| !out.rows[*file].contains_key(row));
        ranges.sort_unstable_by_key(|(register, (start, end))| (*start, *end, *register));
        // Rows in use, by the last instruction that needs them, and rows that are free, the lowest first.
        let mut busy: [BTreeSet<(u32, u32)>; 3] = Default::default();
        let mut free: [BTreeSet<u32>; 3] = Default::default();
        for ((file, row), (start, end)) in ranges {
            // An instruction that writes one register and last reads another gives them two rows: it may write before
            // it has read everything.
            while let Some(&(last, given)) = busy[file].first().filter(|(last, _)| *last < start) {
                busy[file].remove(&(last, given));
                free[file].insert(given);
            }
            let given = free[file].pop_first().unwrap_or_else(|| {
                out.counts[file] += 1;
                out.counts[file] - 1
            });
            busy[file].insert((end, given));
            out.rows[file].insert(row, given);
        }
        out
    }
}

/// A set of small numbers.
#[derive(Clone, Default, PartialEq, Eq)]
struct Bits(Vec<u64>);

impl Bits {
    fn get(&self, n: usize) -> bool {
        self.0.get(n / 64).is_some_and(|word| word >> (n % 64) & 1 != 0)
    }

    fn insert(&mut self, n: usize) {
        if self.0.len() <= n / 64 {
            self.0.resize(n / 64 + 1, 0);
        }
        self.0[n / 64] |= 1 << (n % 64);
    }

    /// Adds `other` less `except`; whether that added anything.
    fn add(&mut self, other: &Bits, except: &Bits) -> bool {
        let mut grown = false;
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (n, word) in other.0.iter().enumerate() {
            let new = word & !except.0.get(n).copied().unwrap_or(0) & !self.0[n];
            self.0[n] |= new;
            grown |= new != 0;
        }
        grown
    }
}

/// Blocks times registers.
const MOST_WORK: usize = 1 << 25;

/// Basic blocks and the registers that live at their borders.
struct Blocks {
    /// First and last instruction.
    bounds: Vec<(u32, u32)>,
    /// Registers that more than one block touches, by their number in the sets.
    registers: Vec<Register>,
    live_in: Vec<Bits>,
    live_out: Vec<Bits>,
}

impl Blocks {
    /// None if the function is so large that solving would take long.
    fn new(trace: &Trace, labels: &[u32]) -> Option<Blocks> {
        let count = trace.instruction + 1;
        let mut begins: Vec<u32> = vec![0];
        begins.extend(trace.branches.iter().map(|(at, _)| at + 1));
        begins.extend(trace.stops.iter().map(|at| at + 1));
        begins.extend(trace.branches.iter().map(|(_, label)| labels[*label as usize]));
        begins.sort_unstable();
        begins.dedup();
        begins.retain(|at| *at < count);
        let block_of = |at: u32| begins.partition_point(|b| *b <= at) - 1;
        let ends = begins.iter().skip(1).copied().chain([count]);
        let bounds: Vec<_> = begins.iter().copied().zip(ends).map(|(begin, end)| (begin, end - 1)).collect();
        let mut next: Vec<Vec<usize>> = vec![Vec::new(); bounds.len()];
        for &(at, label) in &trace.branches {
            let target = labels[label as usize];
            if target < count {
                next[block_of(at)].push(block_of(target));
            }
        }
        for block in 0..bounds.len() - 1 {
            if !trace.stops.contains(&bounds[block].1) {
                next[block].push(block + 1);
            }
        }
        let mut blocks = Blocks { registers: shared(trace, &block_of), bounds, live_in: vec![], live_out: vec![] };
        if blocks.registers.len().saturating_mul(blocks.bounds.len()) > MOST_WORK {
            return None;
        }
        blocks.flow(trace, &next, &block_of);
        Some(blocks)
    }

    /// The first and the last instruction between which each register's value matters.
    fn ranges(&self, trace: &Trace) -> HashMap<Register, (u32, u32)> {
        let mut out: HashMap<Register, (u32, u32)> = HashMap::new();
        let mut extend = |register: Register, at: u32| {
            let range = out.entry(register).or_insert((at, at));
            *range = (range.0.min(at), range.1.max(at));
        };
        for &(at, register, _) in &trace.touches {
            extend(register, at);
        }
        for (block, (begin, end)) in self.bounds.iter().copied().enumerate() {
            for (id, &register) in self.registers.iter().enumerate() {
                if self.live_in[block].get(id) {
                    extend(register, begin);
                }
                if self.live_out[block].get(id) {
                    extend(register, end);
                }
            }
        }
        out
    }

    /// Solves for what lives at the borders.
    fn flow(&mut self, trace: &Trace, next: &[Vec<usize>], block_of: &dyn Fn(u32) -> usize) {
        let ids: HashMap<Register, usize> = self.registers.iter().enumerate().map(|(id, r)| (*r, id)).collect();
        let mut reads = vec![Bits::default(); next.len()];
        let mut kills = vec![Bits::default(); next.len()];
        // In the order of the program, and of one instruction the reads first.
        let mut touches: Vec<_> = trace.touches.iter().filter_map(|(at, r, t)| Some((*at, *t, *ids.get(r)?))).collect();
        touches.sort_by_key(|(at, touch, _)| (*at, *touch != Touch::Read));
        for (at, touch, id) in touches {
            let block = block_of(at);
            match touch {
                Touch::Read if !kills[block].get(id) => reads[block].insert(id),
                Touch::Overwrite => kills[block].insert(id),
                _ => {}
            }
        }
        self.live_in = reads;
        self.live_out = vec![Bits::default(); next.len()];
        let nothing = Bits::default();
        let mut changed = true;
        while changed {
            changed = false;
            for block in (0..next.len()).rev() {
                for &after in &next[block] {
                    let (out, into) = (&mut self.live_out[block], &self.live_in[after]);
                    changed |= out.add(into, &nothing);
                }
                changed |= self.live_in[block].add(&self.live_out[block], &kills[block]);
            }
        }
    }
}

/// The registers that more than one block touches, and those that a loop of one block may carry around.
fn shared(trace: &Trace, block_of: &dyn Fn(u32) -> usize) -> Vec<Register> {
    let mut home: HashMap<Register, Option<usize>> = HashMap::new();
    let mut written: HashSet<Register> = HashSet::new();
    let mut touches: Vec<_> = trace.touches.clone();
    touches.sort_by_key(|(at, _, touch)| (*at, *touch != Touch::Read));
    for (at, register, touch) in touches {
        let block = block_of(at);
        let entry = home.entry(register).or_insert(Some(block));
        if *entry != Some(block) {
            *entry = None;
        }
        match touch {
            Touch::Overwrite => {
                written.insert(register);
            }
            // Read before anything has overwritten it: the value comes from before the block.
            _ if !written.contains(&register) => *entry = None,
            _ => {}
        }
    }
    let mut out: Vec<Register> = home.into_iter().filter(|(_, home)| home.is_none()).map(|(r, _)| r).collect();
    out.sort_unstable();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace from lines such as `r1 = r2 r3`, `? r1 = r2` (guarded), `-> 0` (branch to label), `=> 0` (and nowhere else).
    fn assign(text: &str, labels: &[u32]) -> Assignment {
        let mut trace = Trace::default();
        for (at, line) in text.lines().map(str::trim).enumerate() {
            trace.instruction = at as u32;
            if let Some((_, label)) = line.split_once("> ") {
                trace.branch(label.parse().unwrap());
                if line.starts_with('=') {
                    trace.stop();
                }
                continue;
            }
            let (line, write) = match line.strip_prefix("? ") {
                Some(line) => (line, Touch::Write),
                None => (line, Touch::Overwrite),
            };
            let (to, from) = line.split_once('=').unwrap();
            let rows = |side: &str| -> Vec<u32> { side.split_whitespace().map(|r| r[1..].parse().unwrap()).collect() };
            rows(to).into_iter().for_each(|r| trace.touch(File::B32, r, write));
            rows(from).into_iter().for_each(|r| trace.touch(File::B32, r, Touch::Read));
        }
        Assignment::new(&trace, labels)
    }

    fn row(a: &Assignment, register: u32) -> u32 {
        a.row(File::B32, register)
    }

    #[test]
    fn values_that_follow_one_another_share_a_row() {
        let a = assign("r1 =\nr2 = r1\nr3 = r2\nr4 = r3\n= r4", &[]);
        assert_eq!(a.counts().0, 2);
        assert_ne!(row(&a, 1), row(&a, 2), "what an instruction reads and writes stays apart");
        assert_eq!(row(&a, 1), row(&a, 3));
    }

    #[test]
    fn a_value_carried_around_a_loop_keeps_its_row_to_the_end_of_it() {
        // r1 is set before the loop and read at its start; r3 lives after the last textual use of r1.
        let a = assign("r1 =\nr2 = r1\nr3 = r2\n= r3\n-> 0\n=", &[1]);
        assert_ne!(row(&a, 1), row(&a, 3));
        assert_ne!(row(&a, 1), row(&a, 2));
    }

    #[test]
    fn a_value_read_in_a_loop_before_it_is_written_there_lives_through_all_of_it() {
        // r1 is read at the top and written in the middle, by the only block of the loop.
        let a = assign("r2 = r1\n= r2\nr1 =\nr3 =\n= r3\n-> 0", &[0]);
        assert_ne!(row(&a, 1), row(&a, 3));
        assert_ne!(row(&a, 1), row(&a, 2));
    }

    #[test]
    fn a_guarded_write_does_not_end_the_value_before_it() {
        // Lanes that skip the write in the loop read what they had in the round before.
        let a = assign("r1 =\n? r1 =\n= r1\nr2 =\n= r2\n-> 0\n=", &[1]);
        assert_ne!(row(&a, 1), row(&a, 2));
    }

    #[test]
    fn values_of_two_branches_share_rows_and_not_with_what_both_need() {
        // 0: r1; branch to 4; then: r2; else: r3; join reads r1.
        let a = assign("r1 =\n-> 0\nr2 =\n=> 1\nr3 =\n= r3\n= r1", &[4, 6]);
        assert_eq!(row(&a, 2), row(&a, 3));
        assert_ne!(row(&a, 1), row(&a, 3));
    }

    #[test]
    fn text_order_may_differ_from_the_order_of_running() {
        // Entered at 3, which sets r1 and jumps back to 0: r1 lives across what lies between.
        let a = assign("=> 1\n= r1\n=> 2\nr2 =\n= r2\nr1 =\n=> 0\n=", &[1, 3, 7]);
        assert_ne!(row(&a, 1), row(&a, 2));
    }

    #[test]
    fn a_temporary_lives_for_its_instruction_only() {
        let mut trace = Trace::default();
        for at in 0..3 {
            trace.instruction = at;
            trace.temporary(File::B32, at);
            trace.touch(File::B32, at, Touch::Read);
        }
        assert_eq!(Assignment::new(&trace, &[]).counts().0, 1);
    }

    #[test]
    fn pinned_registers_keep_neighbours_and_share_with_none() {
        let mut trace = Trace::default();
        trace.pin(File::B128, 6);
        trace.pin(File::B64, 3);
        trace.touch(File::B64, 3, Touch::Overwrite);
        trace.instruction = 1;
        trace.touch(File::B64, 9, Touch::Overwrite);
        let a = Assignment::new(&trace, &[]);
        assert_eq!([3, 6, 7, 9].map(|r| a.row(File::B64, r)), [0, 1, 2, 3]);
        assert_eq!(a.counts(), (1, 4, 1));
    }
}
