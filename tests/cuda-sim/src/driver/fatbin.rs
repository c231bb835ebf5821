//! Fat binaries: finding the PTX for a device among the images of several targets.
//!
//! A fat binary is a header and entries, each a header and an image. Offsets are bytes, numbers little-endian:
//! header `magic:u32 version:u16 header:u16 size:u64`; entry `kind:u16 version:u16 header:u32 size:u64
//! compressed:u32 options:u32 minor:u16 major:u16 arch:u32 ... flags:u64 at 40, ... uncompressed:u64 at 56`. A compressed
//! image has `compressed` bytes, and zeros behind them.

use std::borrow::Cow;

use super::abi::HostPtr;
use super::errors::{Error, Result};
use super::unpack;

/// The first bytes of a fat binary.
pub const MAGIC: u32 = 0xba55_ed50;
/// The first bytes of the structure that a program's startup code registers, which points to one.
pub const WRAPPER_MAGIC: u32 = 0x4662_43b1;

const HEADER: usize = 16;
const ENTRY: usize = 64;
const KIND_PTX: u16 = 1;
const KIND_ELF: u16 = 2;
/// Flags of the two compressions.
const LZ4: u64 = 0x2000;
const ZSTD: u64 = 0x8000;
/// No fat binary is larger: a size beyond it is garbage.
const MAX_SIZE: u64 = 1 << 32;

/// The bytes of the fat binary at an address.
pub fn read(image: HostPtr) -> Result<Vec<u8>> {
    let header = image.bytes(HEADER)?;
    let (headers, size) = (u16_at(&header, 6) as u64, u64_at(&header, 8));
    if headers < HEADER as u64 || size > MAX_SIZE {
        return Err(Error::Image(format!("a fat binary with a header of {headers} bytes and {size} bytes of images")));
    }
    image.bytes((headers + size) as usize)
}

/// The PTX that suits the device best.
pub fn choose(bytes: &[u8], capability: (u32, u32)) -> Result<String> {
    let device = capability.0 * 10 + capability.1;
    let mut best: Option<((u32, bool), String)> = None;
    let mut seen = Vec::new();
    for entry in entries(bytes)? {
        match entry.kind {
            KIND_PTX => {
                let text = text(&entry.unpacked()?);
                let Some(target) = target(&text) else {
                    return Err(Error::Image(format!("the PTX for sm_{} names no target", entry.arch)));
                };
                seen.push(format!("PTX for sm_{}{}", target.0, if target.1 { "a" } else { "" }));
                if runs_on(target, device) && best.as_ref().is_none_or(|(other, _)| target > *other) {
                    best = Some((target, text));
                }
            }
            KIND_ELF => seen.push(format!("a cubin for sm_{}", entry.arch)),
            other => seen.push(format!("an image of kind {other}")),
        }
    }
    match best {
        Some((_, text)) => Ok(text),
        None => Err(Error::NoBinary(format!(
            "the fat binary has no PTX for sm_{device} (it has {}); add `-gencode arch=compute_{device},code=compute_{device}`",
            if seen.is_empty() { "nothing".into() } else { seen.join(", ") }
        ))),
    }
}

/// Whether PTX of a target runs on a device: of an older one, or the very one if it is architecture-specific.
pub fn runs_on((target, specific): (u32, bool), device: u32) -> bool {
    if specific { target == device } else { target <= device }
}

/// The target of a PTX text: `(90, true)` for `.target sm_90a`.
pub fn target(text: &str) -> Option<(u32, bool)> {
    let rest = &text[text.find(".target")? + ".target".len()..];
    let name = rest.trim_start().strip_prefix("sm_")?;
    let digits = name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len());
    let specific = name[digits..].starts_with(['a', 'f']);
    Some((name[..digits].parse().ok()?, specific))
}

struct Entry<'a> {
    kind: u16,
    arch: u32,
    flags: u64,
    /// Bytes of the image before and after it was compressed.
    sizes: (u64, u64),
    image: &'a [u8],
}

impl Entry<'_> {
    /// The image as it was before it was compressed.
    fn unpacked(&self) -> Result<Cow<'_, [u8]>> {
        let unpack: fn(&[u8], usize) -> Option<Vec<u8>> = match self.flags & (LZ4 | ZSTD) {
            0 => return Ok(Cow::Borrowed(self.image)),
            LZ4 => unpack::lz4,
            ZSTD => unpack::zstd,
            _ => return Err(Error::Image("a fat binary compressed in two ways".into())),
        };
        let (whole, packed) = self.sizes;
        let image = usize::try_from(packed).ok().and_then(|packed| self.image.get(..packed));
        let size = usize::try_from(whole).ok().filter(|_| whole <= MAX_SIZE);
        let unpacked = image.zip(size).and_then(|(image, size)| unpack(image, size));
        let broken = || Error::Image(format!("the compressed PTX for sm_{} in a fat binary is broken", self.arch));
        unpacked.map(Cow::Owned).ok_or_else(broken)
    }
}

fn entries(bytes: &[u8]) -> Result<Vec<Entry<'_>>> {
    let mut at = u16_at(bytes, 6) as usize;
    let mut entries = Vec::new();
    while at < bytes.len() {
        let broken = || Error::Image(format!("a fat binary with a broken entry at byte {at}"));
        let rest = &bytes[at..];
        if rest.len() < ENTRY {
            return Err(broken());
        }
        let (header, size) = (u32_at(rest, 4) as usize, u64_at(rest, 8));
        let end = usize::try_from(size).ok().and_then(|size| header.checked_add(size));
        let Some(end) = end.filter(|&end| header >= ENTRY && end <= rest.len()) else { return Err(broken()) };
        entries.push(Entry {
            kind: u16_at(rest, 0),
            arch: u32_at(rest, 28),
            flags: u64_at(rest, 40),
            sizes: (u64_at(rest, 56), u64::from(u32_at(rest, 16))),
            image: &rest[header..end],
        });
        at += end;
    }
    Ok(entries)
}

/// An image as text, without the zeros that fill it up.
fn text(image: &[u8]) -> String {
    let end = image.iter().position(|&b| b == 0).unwrap_or(image.len());
    String::from_utf8_lossy(&image[..end]).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    number(bytes, at, 2) as u16
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    number(bytes, at, 4) as u32
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at, 8)
}

/// A little-endian number; bytes that are not there are zero.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let found = bytes.get(at..).unwrap_or_default().iter().take(length);
    found.rev().fold(0, |value, &byte| value << 8 | byte as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u16, arch: u32, flags: u64, image: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; ENTRY];
        bytes[0..2].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&(ENTRY as u32).to_le_bytes());
        let padded = image.len().next_multiple_of(8);
        bytes[8..16].copy_from_slice(&(padded as u64).to_le_bytes());
        bytes[28..32].copy_from_slice(&arch.to_le_bytes());
        bytes[40..48].copy_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(image);
        bytes.resize(ENTRY + padded, 0);
        bytes
    }

    fn fatbin(entries: &[Vec<u8>]) -> Vec<u8> {
        let body = entries.concat();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[1, 0, 16, 0]);
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    fn ptx(target: &str) -> Vec<u8> {
        format!(".version 9.0\n.target {target}\n.address_size 64\n").into_bytes()
    }

    #[test]
    fn the_best_ptx_is_chosen() {
        let all = fatbin(&[
            entry(KIND_ELF, 80, 0, b"\x7fELF...."),
            entry(KIND_PTX, 80, 0, &ptx("sm_80")),
            entry(KIND_PTX, 90, 0, &ptx("sm_90a")),
            entry(KIND_PTX, 90, 0, &ptx("sm_90")),
            entry(KIND_PTX, 120, 0, &ptx("sm_120")),
        ]);
        let chosen = |capability| target(&choose(&all, capability).unwrap()).unwrap();
        assert_eq!(chosen((8, 0)), (80, false));
        assert_eq!(chosen((8, 9)), (80, false));
        assert_eq!(chosen((9, 0)), (90, true));
        assert_eq!(chosen((10, 0)), (90, false));
        assert_eq!(chosen((12, 0)), (120, false));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_hint() {
        let refused = |bytes: &[u8], capability| choose(bytes, capability).unwrap_err().to_string();
        let cubin = fatbin(&[entry(KIND_ELF, 90, 0, b"\x7fELF....")]);
        assert!(refused(&cubin, (9, 0)).contains("a cubin for sm_90"));
        let packed = fatbin(&[entry(KIND_PTX, 80, 0x8011, b"....")]);
        assert!(refused(&packed, (9, 0)).contains("compressed PTX for sm_80"));
        let newer = fatbin(&[entry(KIND_PTX, 90, 0, &ptx("sm_90a"))]);
        assert!(refused(&newer, (12, 0)).contains("PTX for sm_90a"));
        let mut broken = fatbin(&[entry(KIND_PTX, 80, 0, &ptx("sm_80"))]);
        broken.truncate(broken.len() - 8);
        assert!(refused(&broken, (8, 0)).contains("broken entry at byte 16"));
    }
}
