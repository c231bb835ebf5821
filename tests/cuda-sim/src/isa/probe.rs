//! Runs one instruction on many values, for the unit tests of the arithmetic families.

use crate::machine::LANES;
use crate::testing::Snippet;

/// What `instruction d, a, b, ...` gives, for every place of the arguments. Registers are given by their declared types
/// (`b16`, `b32`, `b64`, `pred`), values by their bits.
pub fn eval(instruction: &str, dst: &str, args: &[(&str, &[u64])]) -> Vec<u64> {
    let names: Vec<String> = (0..args.len()).map(|at| format!("%a{at}x")).collect();
    let mut text = format!(".reg .{dst} %d; ");
    for (name, (ty, _)) in names.iter().zip(args) {
        text += &format!(".reg .{ty} {name}; ");
    }
    text += &format!("{instruction} %d, {};", names.join(", "));
    let mut snippet = Snippet::new(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let count = args[0].1.len();
    let mut results = Vec::with_capacity(count);
    for start in (0..count).step_by(LANES) {
        for (name, (ty, values)) in names.iter().zip(args) {
            set(&mut snippet, name, ty, std::array::from_fn(|lane| *values.get(start + lane).unwrap_or(&0)));
        }
        snippet.run();
        results.extend(get(&snippet, "%d", dst).iter().take(count - start));
    }
    results
}

/// Sets a register by its declared type.
pub fn set(snippet: &mut Snippet, name: &str, ty: &str, row: [u64; LANES]) {
    match ty {
        "pred" => snippet.set_pred(name, row.iter().rev().fold(0, |mask, bit| mask << 1 | *bit as u32)),
        "b64" | "f64" => snippet.set_b64(name, row),
        _ => snippet.set_b32(name, row.map(|word| word as u32)),
    }
}

/// Reads a register by its declared type.
pub fn get(snippet: &Snippet, name: &str, ty: &str) -> [u64; LANES] {
    match ty {
        "pred" => std::array::from_fn(|lane| (snippet.pred(name) >> lane & 1) as u64),
        "b64" | "f64" => snippet.b64(name),
        _ => snippet.b32(name).map(u64::from),
    }
}

/// Why an instruction is refused.
pub fn refused(text: &str) -> String {
    match Snippet::new(text) {
        Ok(_) => panic!("`{text}` is accepted"),
        Err(error) => error.to_string(),
    }
}

/// Every pair of two lists, as two lists.
pub fn pairs(a: &[u64], b: &[u64]) -> (Vec<u64>, Vec<u64>) {
    a.iter().flat_map(|x| b.iter().map(|y| (*x, *y))).unzip()
}

/// Every triple of one list, as three lists.
pub fn triples(all: &[u64]) -> [Vec<u64>; 3] {
    let (ab, c) = pairs(&(0..(all.len() * all.len()) as u64).collect::<Vec<_>>(), all);
    let pick = |divisor: usize| ab.iter().map(|at| all[*at as usize / divisor % all.len()]).collect();
    [pick(all.len()), pick(1), c]
}

/// A reproducible stream of bits.
pub struct Bits(pub u64);

impl Bits {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = self.0 ^ self.0 >> 29;
        mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
    }
}

/// The corners of an integer type of `bits`, and some values between.
pub fn integers(bits: u32) -> Vec<u64> {
    let mask = u64::MAX >> (64 - bits);
    let top = 1u64 << (bits - 1);
    let mut all =
        vec![0, 1, 2, 3, 7, 100, mask, mask - 1, top, top - 1, top + 1, mask >> 4, 0xff, 0xaaaa_aaaa_aaaa_aaaa];
    let mut random = Bits(bits as u64);
    all.extend((0..10).map(|_| random.next()));
    all.iter().map(|x| x & mask).collect()
}

/// `.f32` bits: zeros, subnormals, ties, limits, infinities, NaNs, and numbers near one another.
pub fn floats() -> Vec<u64> {
    let mut all: Vec<f32> =
        vec![0.0, 1.0, 1.5, 3.0, 1e-40, 1e-38, 1e38, 0.1, 255.5, 2.5, 1e10, f32::MAX, f32::INFINITY];
    all.extend([f32::MIN_POSITIVE, f32::MIN_POSITIVE.next_down(), f32::from_bits(1), 1.0 + f32::EPSILON, 16777217.0]);
    let mut random = Bits(5);
    all.extend((0..12).map(|_| f32::from_bits(random.next() as u32 & 0x7fff_ffff)));
    let mut bits: Vec<u64> = all.iter().flat_map(|x| [x.to_bits() as u64, (-x).to_bits() as u64]).collect();
    bits.extend([0x7fc0_0000, 0xffc1_2345, 0x7f80_0001]);
    bits
}
