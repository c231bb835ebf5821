//! Functions that the CUDA runtime provides to kernels: `vprintf`, `__assertfail`, `malloc` and `free` (CUDA C++
//! Programming Guide, "Formatted output", "Assertion" and "Dynamic global memory allocation").

use std::io::Write;

use crate::code::{Class, Flow, Op, Run, Src};
use crate::lower::{Builtin, Lower, Result, Slot};
use crate::machine::Cx;
use crate::machine::fault::{Fault, Kind};
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::ptx::ast::Instruction;

/// Lowers a call. The slots say where arguments and results lie in the caller's frame.
pub fn call(cx: &mut Lower, i: &Instruction, builtin: Builtin, arguments: &[Slot], returns: &[Slot]) -> Result<()> {
    let sizes: (&[u32], &[u32], Run) = match builtin {
        Builtin::Vprintf => (&[8, 8], &[4], vprintf),
        Builtin::Assertfail => (&[8, 8, 4, 8, 8], &[], assertfail),
        Builtin::Malloc => (&[8], &[8], malloc),
        Builtin::Free => (&[8], &[], free),
    };
    cx.code.heap |= matches!(builtin, Builtin::Malloc | Builtin::Free);
    let bytes = |slots: &[Slot]| slots.iter().map(|s| s.bytes).collect::<Vec<_>>();
    if bytes(arguments) != sizes.0 || bytes(returns) != sizes.1 {
        return cx.error(i, format_args!("{builtin:?} is declared with other parameters"));
    }
    let mut op = cx.op(i, Class::Control, sizes.2);
    op.list = cx.list(arguments.iter().chain(returns).map(|s| Src(s.offset)));
    cx.emit(op);
    Ok(())
}

/// Strings longer than this are cut.
const LONGEST: usize = 4096;

/// What a lane's builtin reads and writes.
struct Lane<'c, 'a> {
    cx: &'c mut Cx<'a>,
    lane: u32,
}

impl Lane<'_, '_> {
    /// Parameter `index`, of up to eight bytes.
    fn parameter(&mut self, op: &Op, index: u32, bytes: u32) -> std::result::Result<u64, Fault> {
        let offset = self.cx.code.list[(op.list.0 + index) as usize].0;
        let start = LOCAL_WINDOW + (self.cx.warp.local_base + offset) as u64;
        self.number(start, bytes)
    }

    /// A little-endian number at a generic address.
    fn number(&mut self, address: u64, bytes: u32) -> std::result::Result<u64, Fault> {
        let mut out = 0;
        for n in 0..bytes {
            out |= (self.byte(address.wrapping_add(n as u64))? as u64) << (8 * n);
        }
        Ok(out)
    }

    fn byte(&mut self, address: u64) -> std::result::Result<u8, Fault> {
        let offset = address & (SHARED_WINDOW - 1);
        let missing = |what: String| {
            Err(Fault::new(Kind::OutOfBounds, "read by a function of the CUDA runtime")
                .at_lane(self.lane)
                .at_address(address, what))
        };
        match address & !(SHARED_WINDOW - 1) {
            SHARED_WINDOW => match self.cx.block.shared.get(offset, 1) {
                Some(bytes) => Ok(bytes[0]),
                None => missing(format!("shared memory of {} bytes", self.cx.block.shared.size())),
            },
            LOCAL_WINDOW if offset < crate::machine::warp::Local::LIMIT as u64 => {
                self.cx.warp.local.reserve_to(offset as u32 + 1);
                Ok(self.cx.warp.local.byte(offset as u32, self.lane))
            }
            PARAM_WINDOW => match self.cx.grid.params.get(offset as usize) {
                Some(byte) => Ok(*byte),
                None => missing(format!("{} bytes of parameters", self.cx.grid.params.len())),
            },
            0 => match self.cx.grid.memory.locate(address, 1) {
                Ok(index) => {
                    let mut out = [0];
                    let allocation = self.cx.grid.memory.get(index);
                    allocation.read(address - allocation.base, &mut out);
                    Ok(out[0])
                }
                Err(what) => missing(what.to_string()),
            },
            _ => missing("no state space".into()),
        }
    }

    /// A string that ends with 0.
    fn string(&mut self, address: u64) -> std::result::Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        while out.len() < LONGEST {
            match self.byte(address.wrapping_add(out.len() as u64))? {
                0 => break,
                byte => out.push(byte),
            }
        }
        Ok(out)
    }
}

/// Memory of the grid's heap, or null when there is no more. It is not used again: a grid ends soon.
fn malloc(cx: &mut Cx<'_>, op: &Op) -> Flow {
    for lane in lanes(cx.mask) {
        let size = match (Lane { cx, lane }).parameter(op, 0, 8) {
            Ok(size) => size,
            Err(fault) => return cx.fail(fault),
        };
        let address = cx.grid.heap.take(size);
        let offset = cx.warp.local_base + cx.code.list[op.list.0 as usize + 1].0;
        cx.warp.local.reserve_to(offset + 8);
        for (n, byte) in address.to_le_bytes().into_iter().enumerate() {
            cx.warp.local.set_byte(offset + n as u32, lane, byte);
        }
    }
    Flow::Next
}

fn free(cx: &mut Cx<'_>, op: &Op) -> Flow {
    for lane in lanes(cx.mask) {
        let address = match (Lane { cx, lane }).parameter(op, 0, 8) {
            Ok(address) => address,
            Err(fault) => return cx.fail(fault),
        };
        if address != 0 && !cx.grid.heap.gave(address) {
            let fault = Fault::new(Kind::InvalidOperation, "free of what malloc of this grid did not give");
            return cx.fail(fault.at_lane(lane).at_address(address, "not the heap"));
        }
    }
    Flow::Next
}

fn vprintf(cx: &mut Cx<'_>, op: &Op) -> Flow {
    if cx.grid.race.as_ref().is_some_and(|race| race.would_be_heard()) {
        return cx.fault(Kind::Unsupported, "output of several host threads, of which some may have to be taken back");
    }
    let mut text = Vec::new();
    for lane in lanes(cx.mask) {
        let mut at = Lane { cx, lane };
        match print(&mut at, op, &mut text) {
            Ok(count) => {
                let offset = cx.warp.local_base + cx.code.list[op.list.0 as usize + 2].0;
                cx.warp.local.reserve_to(offset + 4);
                for (n, byte) in count.to_le_bytes().into_iter().enumerate() {
                    cx.warp.local.set_byte(offset + n as u32, lane, byte);
                }
            }
            Err(fault) => return cx.fail(fault),
        }
    }
    if cx.grid.silent {
        return Flow::Next;
    }
    // A closed standard output is no reason to stop a kernel.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(&text).and_then(|()| out.flush());
    Flow::Next
}

/// Formats one lane's output; gives the number of arguments, as CUDA's `vprintf` does.
fn print(at: &mut Lane<'_, '_>, op: &Op, text: &mut Vec<u8>) -> std::result::Result<u32, Fault> {
    let format = at.parameter(op, 0, 8)?;
    let arguments = at.parameter(op, 1, 8)?;
    let format = at.string(format)?;
    format_text(&format, arguments, at, text)
}

/// What the formatter needs of memory.
trait Source {
    fn load(&mut self, address: u64, bytes: u32) -> std::result::Result<u64, Fault>;
    fn text(&mut self, address: u64) -> std::result::Result<Vec<u8>, Fault>;
}

impl Source for Lane<'_, '_> {
    fn load(&mut self, address: u64, bytes: u32) -> std::result::Result<u64, Fault> {
        self.number(address, bytes)
    }

    fn text(&mut self, address: u64) -> std::result::Result<Vec<u8>, Fault> {
        self.string(address)
    }
}

/// A conversion such as `%-8.3lf`.
#[derive(Default)]
struct Conversion {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    /// Bytes of an integer argument.
    bytes: u32,
}

/// Appends `format` with its arguments, which lie at `arguments`, each aligned to its size.
fn format_text(
    format: &[u8],
    arguments: u64,
    memory: &mut dyn Source,
    text: &mut Vec<u8>,
) -> std::result::Result<u32, Fault> {
    let mut next = arguments;
    let mut count = 0;
    let mut take = |memory: &mut dyn Source, bytes: u32| {
        next = next.next_multiple_of(bytes as u64);
        let value = memory.load(next, bytes);
        next = next.wrapping_add(bytes as u64);
        count += 1;
        value
    };
    let mut rest = format;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            text.push(byte);
            continue;
        }
        let start = rest;
        let mut c = Conversion { bytes: 4, ..Conversion::default() };
        rest = c.flags(rest);
        rest = match number(rest, &mut |m| take(m, 4), memory)? {
            (None, tail) => tail,
            (Some(width), tail) => {
                c.left |= width < 0;
                c.width = width.unsigned_abs() as usize;
                tail
            }
        };
        if let Some((b'.', tail)) = rest.split_first() {
            let (precision, tail) = number(tail, &mut |m| take(m, 4), memory)?;
            c.precision = usize::try_from(precision.unwrap_or(0)).ok();
            rest = tail;
        }
        rest = c.length(rest);
        c.width = c.width.min(LONGEST);
        c.precision = c.precision.map(|p| p.min(LONGEST));
        let Some((&kind, tail)) = rest.split_first() else {
            text.push(b'%');
            text.extend_from_slice(start);
            break;
        };
        rest = tail;
        match kind {
            b'%' => text.push(b'%'),
            b'd' | b'i' => {
                let value = take(memory, c.bytes)?;
                let value = if c.bytes == 4 { value as i32 as i64 } else { value as i64 };
                c.integer(text, value.unsigned_abs().to_string(), value < 0, "");
            }
            b'u' => c.integer(text, take(memory, c.bytes)?.to_string(), false, ""),
            b'o' => c.integer(text, format!("{:o}", take(memory, c.bytes)?), false, "0"),
            b'x' => c.integer(text, format!("{:x}", take(memory, c.bytes)?), false, "0x"),
            b'X' => c.integer(text, format!("{:X}", take(memory, c.bytes)?), false, "0X"),
            b'p' => {
                let digits = format!("0x{:x}", take(memory, 8)?);
                c.pad(text, "", digits.as_bytes(), false);
            }
            b'c' => {
                let value = take(memory, 4)? as u8;
                c.pad(text, "", &[value], false);
            }
            b's' => {
                let address = take(memory, 8)?;
                let mut value = memory.text(address)?;
                value.truncate(c.precision.unwrap_or(usize::MAX));
                c.pad(text, "", &value, false);
            }
            b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' => {
                let value = f64::from_bits(take(memory, 8)?);
                c.float(text, value, kind);
            }
            // Not a conversion: shown as it stands.
            _ => {
                text.push(b'%');
                text.extend_from_slice(&start[..start.len() - rest.len()]);
            }
        }
    }
    Ok(count)
}

/// A decimal number, or `*` for the next argument.
fn number<'f>(
    format: &'f [u8],
    argument: &mut dyn FnMut(&mut dyn Source) -> std::result::Result<u64, Fault>,
    memory: &mut dyn Source,
) -> std::result::Result<(Option<i32>, &'f [u8]), Fault> {
    if let Some((b'*', tail)) = format.split_first() {
        return Ok((Some(argument(memory)? as i32), tail));
    }
    let digits = format.iter().take_while(|b| b.is_ascii_digit()).count();
    let value = format[..digits].iter().fold(0i32, |a, b| a.saturating_mul(10).saturating_add((b - b'0') as i32));
    Ok(((digits > 0).then_some(value), &format[digits..]))
}

impl Conversion {
    fn flags<'f>(&mut self, mut format: &'f [u8]) -> &'f [u8] {
        while let Some((flag, tail)) = format.split_first() {
            match flag {
                b'-' => self.left = true,
                b'+' => self.plus = true,
                b' ' => self.space = true,
                b'#' => self.alternate = true,
                b'0' => self.zero = true,
                _ => break,
            }
            format = tail;
        }
        format
    }

    /// `l`, `ll`, `z`, `j`, `t` take eight bytes; `h` and `hh` arguments were promoted to four.
    fn length<'f>(&mut self, format: &'f [u8]) -> &'f [u8] {
        let letters = format.iter().take_while(|b| matches!(b, b'l' | b'h' | b'z' | b'j' | b't')).count();
        if format[..letters].iter().any(|b| *b != b'h') {
            self.bytes = 8;
        }
        &format[letters..]
    }

    fn sign(&self, negative: bool) -> &'static str {
        match () {
            () if negative => "-",
            () if self.plus => "+",
            () if self.space => " ",
            () => "",
        }
    }

    fn integer(&self, text: &mut Vec<u8>, mut digits: String, negative: bool, prefix: &str) {
        let signed = prefix.is_empty();
        if let Some(precision) = self.precision {
            if precision == 0 && digits == "0" {
                digits.clear();
            }
            digits = "0".repeat(precision.saturating_sub(digits.len())) + &digits;
        }
        let head = match () {
            () if signed => self.sign(negative),
            () if self.alternate && !digits.trim_matches('0').is_empty() => prefix,
            () => "",
        };
        self.pad(text, head, digits.as_bytes(), self.zero && self.precision.is_none());
    }

    fn float(&self, text: &mut Vec<u8>, value: f64, kind: u8) {
        let upper = kind.is_ascii_uppercase();
        let size = value.abs();
        let precision = self.precision.unwrap_or(6);
        let mut digits = match kind.to_ascii_lowercase() {
            _ if size.is_nan() => "nan".to_string(),
            _ if size.is_infinite() => "inf".to_string(),
            b'f' => format!("{size:.precision$}"),
            b'e' => scientific(size, precision),
            b'a' => hexadecimal(size),
            _ => shortest(size, precision.max(1), self.alternate),
        };
        if upper {
            digits.make_ascii_uppercase();
        }
        self.pad(text, self.sign(value.is_sign_negative()), digits.as_bytes(), self.zero && value.is_finite());
    }

    fn pad(&self, text: &mut Vec<u8>, head: &str, body: &[u8], zeros: bool) {
        let fill = self.width.saturating_sub(head.len() + body.len());
        let (before, inside, after) = match () {
            () if self.left => (0, 0, fill),
            () if zeros => (0, fill, 0),
            () => (fill, 0, 0),
        };
        text.extend(std::iter::repeat_n(b' ', before));
        text.extend_from_slice(head.as_bytes());
        text.extend(std::iter::repeat_n(b'0', inside));
        text.extend_from_slice(body);
        text.extend(std::iter::repeat_n(b' ', after));
    }
}

/// `%e`: at least two digits of exponent.
fn scientific(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{mantissa}e{sign}{exponent:0>2}")
}

/// `%g`: the shorter of `%e` and `%f`, without trailing zeros.
fn shortest(value: f64, precision: usize, keep_zeros: bool) -> String {
    let exact = scientific(value, precision - 1);
    let exponent: i32 = exact.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trim = |text: &str| {
        let cut =
            if keep_zeros || !text.contains('.') { text } else { text.trim_end_matches('0').trim_end_matches('.') };
        cut.to_string()
    };
    if exponent < -4 || exponent >= precision as i32 {
        let (mantissa, tail) = exact.split_once('e').unwrap_or((&exact, "+00"));
        return format!("{}e{tail}", trim(mantissa));
    }
    let decimals = (precision as i32 - 1 - exponent) as usize;
    trim(&format!("{value:.decimals$}"))
}

/// `%a`
fn hexadecimal(value: f64) -> String {
    let bits = value.to_bits();
    let (fraction, exponent) = (bits & ((1 << 52) - 1), (bits >> 52) as i64 & 0x7ff);
    let (lead, exponent) = match (exponent, fraction) {
        (0, 0) => (0, 0),
        (0, _) => (0, -1022),
        (e, _) => (1, e - 1023),
    };
    let digits = format!("{fraction:013x}");
    let digits = digits.trim_end_matches('0');
    let point = if digits.is_empty() { "" } else { "." };
    format!("0x{lead}{point}{digits}p{exponent:+}")
}

/// The message of the C library's `assert`, with CUDA's coordinates.
fn assertfail(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let lane = cx.mask.trailing_zeros();
    let mut at = Lane { cx, lane };
    let message = (|| {
        let [message, file, function] = [0, 1, 3].map(|n| at.parameter(op, n, 8));
        let (message, file, function) = (at.string(message?)?, at.string(file?)?, at.string(function?)?);
        let line = at.parameter(op, 2, 4)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let thread = [0, 1, 2].map(|axis| at.cx.warp.tid[axis][lane as usize]);
        let (file, function, message) = (text(file), text(function), text(message));
        Ok(format!("{file}:{line}: {function}: thread {thread:?}: assertion `{message}` failed"))
    })();
    match message {
        Ok(message) => {
            let fault = Fault::new(Kind::Assert, message).at_lane(lane);
            cx.fail(fault)
        }
        Err(fault) => cx.fail(fault),
    }
}

/// The lanes of a mask.
fn lanes(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |lane| mask >> lane & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<u8>);

    impl Source for Bytes {
        fn load(&mut self, address: u64, bytes: u32) -> std::result::Result<u64, Fault> {
            Ok((0..bytes).fold(0, |a, n| a | (self.0[address as usize + n as usize] as u64) << (8 * n)))
        }

        fn text(&mut self, address: u64) -> std::result::Result<Vec<u8>, Fault> {
            Ok(self.0[address as usize..].iter().copied().take_while(|b| *b != 0).collect())
        }
    }

    /// Arguments as a kernel stores them: each aligned to its size.
    fn show(format: &str, arguments: &[(u64, u32)]) -> String {
        let mut bytes = vec![0u8; 8];
        for &(value, size) in arguments {
            bytes.resize(bytes.len().next_multiple_of(size as usize), 0xee);
            bytes.extend_from_slice(&value.to_le_bytes()[..size as usize]);
        }
        let mut text = Vec::new();
        format_text(format.as_bytes(), 8, &mut Bytes(bytes), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn double(value: f64) -> (u64, u32) {
        (value.to_bits(), 8)
    }

    #[test]
    fn arguments_are_aligned_to_their_size() {
        assert_eq!(show("%d %lld %d", &[(7, 4), (u64::MAX, 8), (-2i32 as u32 as u64, 4)]), "7 -1 -2");
        assert_eq!(show("%c%c %f", &[(104, 4), (105, 4), double(0.5)]), "hi 0.500000");
        assert_eq!(show("%*d|%-*d|%.*f", &[(5, 4), (42, 4), (4, 4), (7, 4), (1, 4), double(2.25)]), "   42|7   |2.2");
    }

    #[test]
    fn conversions_print_as_the_c_library_does() {
        for (format, argument, expected) in [
            ("%5d|", (42, 4), "   42|"),
            ("%-5d|", (42, 4), "42   |"),
            ("%05d", (-42i32 as u32 as u64, 4), "-0042"),
            ("%+d", (3, 4), "+3"),
            ("%.3d", (7, 4), "007"),
            ("%.0d", (0, 4), ""),
            ("%u", (u32::MAX as u64, 4), "4294967295"),
            ("%#x", (255, 4), "0xff"),
            ("%#x", (0, 4), "0"),
            ("%08X", (0xbeef, 4), "0000BEEF"),
            ("%zu", (1 << 40, 8), "1099511627776"),
            ("%p", (0x7000, 8), "0x7000"),
            ("%.2e", double(12345.678), "1.23e+04"),
            ("%g", double(100000.0), "100000"),
            ("%g", double(1e6), "1e+06"),
            ("%g", double(0.0001), "0.0001"),
            ("%G", double(1e-5), "1E-05"),
            ("%f", double(f64::NEG_INFINITY), "-inf"),
            ("%08.2f", double(-3.24159), "-0003.24"),
            ("%a", double(1.5), "0x1.8p+0"),
            ("%g", double(0.0), "0"),
        ] {
            assert_eq!(show(format, &[argument]), expected, "{format}");
        }
        assert_eq!(show("100%% %y %", &[]), "100% %y %");
    }
}
