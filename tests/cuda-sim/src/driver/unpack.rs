//! The two compressions of fat binaries: Zstandard frames (nvcc 13) and LZ4 blocks (nvcc 12, `--compress-mode=speed`).

use std::io::Read;

/// The `size` bytes that a Zstandard frame holds; none if it is broken.
pub fn zstd(frame: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let decoder = ruzstd::decoding::StreamingDecoder::new(frame).ok()?;
    decoder.take(size as u64).read_to_end(&mut out).ok()?;
    (out.len() == size).then_some(out)
}

/// The `size` bytes that an LZ4 block holds; none if it is broken.
///
/// A block is a row of sequences: a token with the lengths of both parts, literals, and a copy of at least four bytes from
/// an offset before the end of what is there. The last has no copy. (LZ4 Block Format Description.)
pub fn lz4(block: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::new();
    let mut rest = block;
    while out.len() < size {
        let token = take(&mut rest, 1)?[0];
        let literals = length(usize::from(token >> 4), &mut rest)?;
        out.extend_from_slice(take(&mut rest, literals)?);
        if out.len() >= size {
            break;
        }
        let offset = take(&mut rest, 2)?;
        let offset = usize::from(offset[0]) | usize::from(offset[1]) << 8;
        let count = length(usize::from(token & 15), &mut rest)? + 4;
        let from = out.len().checked_sub(offset).filter(|_| offset != 0)?;
        if count > size - out.len() {
            return None;
        }
        // Byte by byte: the copy may run into what it makes.
        for at in from..from + count {
            out.push(out[at]);
        }
    }
    (out.len() == size).then_some(out)
}

/// A length of four bits, with more bytes while they are 255 if it is 15.
fn length(first: usize, rest: &mut &[u8]) -> Option<usize> {
    let mut length = first;
    let mut more = first == 15;
    while more {
        let byte = take(rest, 1)?[0];
        length += usize::from(byte);
        more = byte == 255;
    }
    Some(length)
}

/// The first bytes, which are then gone.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lz4_copies_what_it_makes() {
        // "ab", then 18 bytes from two before: the length 15 + 0 + 4 - 1 needs a byte more.
        let block = [0x2e, b'a', b'b', 2, 0, 0x10, b'!'];
        assert_eq!(lz4(&block, 21).as_deref(), Some(&b"abababababababababab!"[..]));
        let long = [[0x1f, b'x', 1, 0, 255, 3].as_slice(), &[0x00]].concat();
        assert_eq!(lz4(&long, 1 + 15 + 255 + 3 + 4), Some(vec![b'x'; 278]));
    }

    #[test]
    fn broken_blocks_are_refused() {
        assert_eq!(lz4(&[0x2e, b'a', b'b', 3, 0], 20), None, "before the beginning");
        assert_eq!(lz4(&[0x2e, b'a', b'b', 0, 0], 20), None, "no offset");
        assert_eq!(lz4(&[0x2e, b'a', b'b', 2, 0], 10), None, "more than there should be");
        assert_eq!(lz4(&[0x2e, b'a'], 20), None, "cut short");
        assert_eq!(zstd(&[0x28, 0xb5, 0x2f, 0xfd, 0x60], 20), None);
    }
}
