//! Matrix descriptors and the layouts of matrices in shared memory (PTX ISA 9.0, section 9.7.15.5.1.2).

use crate::isa::tensor_map::Swizzle;

/// A matrix descriptor, decoded. Offsets are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The address of the first element.
    pub start: u64,
    /// The leading dimension byte offset.
    pub leading: u64,
    /// The stride dimension byte offset.
    pub stride: u64,
    /// The swizzling mode.
    pub swizzle: Swizzle,
}

/// Why a descriptor was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Swizzle patterns that do not begin where the address says.
    #[error("a matrix descriptor with base offset {0}")]
    BaseOffset(u64),
    /// Bits that the ISA leaves unused are set: most likely the register holds something else.
    #[error("{0:#018x} is not a matrix descriptor")]
    Reserved(u64),
}

impl Descriptor {
    /// Decodes the 64 bits.
    pub fn decode(bits: u64) -> Result<Descriptor, Error> {
        const UNUSED: u64 = 0x3ff1_c000_c000_c000;
        if bits & UNUSED != 0 {
            return Err(Error::Reserved(bits));
        }
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        if bits >> 49 & 7 != 0 {
            return Err(Error::BaseOffset(bits >> 49 & 7));
        }
        let swizzle = [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(bits >> 62) as usize];
        Ok(Descriptor { start: field(0), leading: field(16), stride: field(32), swizzle })
    }

    /// Where the 16 bytes lie that hold row `mn` (a row of A, a column of B) from byte `16 * unit` of its k elements on:
    /// a K-major matrix, of which an instruction takes 32 bytes along k.
    #[inline(always)]
    pub fn k_major(&self, mn: u64, unit: u64) -> u64 {
        let (row, group) = (mn % 8, mn / 8);
        if self.swizzle == Swizzle::None {
            return self.start + row * 16 + group * self.stride + unit * self.leading;
        }
        self.swizzle.apply(self.start + row * self.swizzle.span() + group * self.stride + unit * 16)
    }

    /// Where the 16 bytes lie that hold the elements `8 * unit` and the seven after it along m or n, at `k`: an MN-major
    /// matrix of 16-bit elements.
    #[inline(always)]
    pub fn mn_major(&self, unit: u64, k: u64) -> u64 {
        let (column, group) = (k % 8, k / 8);
        if self.swizzle == Swizzle::None {
            return self.start + column * 16 + group * self.leading + unit * self.stride;
        }
        let units = self.swizzle.span() / 16;
        let atom = self.start + unit / units * self.leading + group * self.stride;
        self.swizzle.apply(atom + unit % units * 16 + column * self.swizzle.span())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(start: u64, leading: u64, stride: u64, mode: u64) -> u64 {
        start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62
    }

    #[test]
    fn fields_are_decoded() {
        let d = Descriptor::decode(bits(0x3_fff0, 0x1230, 0x400, 1)).unwrap();
        assert_eq!(d, Descriptor { start: 0x3_fff0, leading: 0x1230, stride: 0x400, swizzle: Swizzle::B128 });
        assert_eq!(Descriptor::decode(bits(0, 0, 0, 2)).unwrap().swizzle, Swizzle::B64);
        assert_eq!(Descriptor::decode(bits(0, 0, 0, 3)).unwrap().swizzle, Swizzle::B32);
        assert_eq!(Descriptor::decode(1 << 49), Err(Error::BaseOffset(1)));
        for bit in [14, 15, 30, 31, 46, 47, 48, 52, 61] {
            assert_eq!(Descriptor::decode(1 << bit), Err(Error::Reserved(1 << bit)), "bit {bit}");
        }
    }

    /// A CuTe layout: coordinates of nested modes, innermost first, to an index.
    fn layout(modes: &[(u64, u64)], mut coordinate: u64) -> u64 {
        let mut index = 0;
        for &(extent, stride) in modes {
            index += coordinate % extent * stride;
            coordinate /= extent;
        }
        index
    }

    /// CuTe's Swizzle<B, 4, 3> on a byte address.
    fn cute_swizzle(b: u32, address: u64) -> u64 {
        let mut out = address;
        for bit in 0..b {
            out ^= (address >> (7 + bit) & 1) << (4 + bit);
        }
        out
    }

    /// The canonical layouts of PTX ISA 9.0, section 9.7.15.5.1.2.1.3, for bf16 (T = 8), element by element.
    #[test]
    fn layouts_are_the_canonical_ones() {
        const T: u64 = 8;
        let (leading, stride, start) = (0x1800u64, 0x2400u64, 0x2000u64);
        let (lbo, sbo) = (leading / 2, stride / 2);
        for (mode, b) in [(0, 0u32), (3, 1), (2, 2), (1, 3)] {
            let d = Descriptor::decode(bits(start, leading, stride, mode)).unwrap();
            let w = 1 << b;
            for mn in 0..128 {
                for k in 0..16 {
                    // K-major: ((8,m),(T,2k)) with strides ((1T,SBO),(1,LBO)) or ((wT,SBO),(1,T)).
                    let across = layout(&[(8, w * T), (u64::MAX, sbo)], mn);
                    let along = layout(&[(T, 1), (2, if b == 0 { lbo } else { T })], k);
                    let expect = cute_swizzle(b, start + 2 * (across + along));
                    assert_eq!(d.k_major(mn, k / 8) + 2 * (k % 8), expect, "K-major mode {mode} at {mn}, {k}");
                    // MN-major: ((T,1,m),(8,k)) with ((1,T,SBO),(1T,LBO)), or ((T,w,m),(8,k)) with ((1,T,LBO),(wT,SBO)).
                    let (outer, groups) = if b == 0 { (sbo, lbo) } else { (lbo, sbo) };
                    let across = layout(&[(T, 1), (w, T), (u64::MAX, outer)], mn);
                    let along = layout(&[(8, w * T), (2, groups)], k);
                    let expect = cute_swizzle(b, start + 2 * (across + along));
                    assert_eq!(d.mn_major(mn / 8, k) + 2 * (mn % 8), expect, "MN-major mode {mode} at {mn}, {k}");
                }
            }
        }
    }

    /// Advancing along k inside a swizzle atom moves the start address, not the pattern.
    #[test]
    fn patterns_are_anchored_to_addresses() {
        let whole = Descriptor::decode(bits(0x2000, 16, 1024, 1)).unwrap();
        let advanced = Descriptor::decode(bits(0x2000 + 64, 16, 1024, 1)).unwrap();
        for mn in 0..64 {
            let line = 0x2000 + mn / 8 * 1024 + mn % 8 * 128;
            assert_eq!(whole.k_major(mn, 1), line + ((1 ^ (mn % 8)) * 16));
            assert_eq!(advanced.k_major(mn, 1), line + ((5 ^ (mn % 8)) * 16));
        }
    }
}
