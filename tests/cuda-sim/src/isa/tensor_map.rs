//! Tensor maps: how `cuTensorMapEncodeTiled` describes a tensor, and which bytes a tile of it covers (PTX ISA 9.0,
//! section 5.5, tiled mode).
//!
//! The 128 bytes of a `CUtensorMap` are opaque to programs, so the encoding here is the simulator's own.

/// Bytes of a tensor map.
pub const BYTES: usize = 128;
/// Dimensions at most.
pub const MAX_RANK: usize = 5;
/// The bytes that swizzling moves together.
pub const ATOM: u64 = 16;

/// Why a tensor map was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The driver would refuse it too.
    #[error("{0}")]
    Invalid(&'static str),
    /// The hardware has it and the simulator does not.
    #[error("{0} is not supported by the simulator")]
    Unsupported(&'static str),
}

/// `CUtensorMapDataType`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum DataType {
    U8 = 0,
    U16 = 1,
    U32 = 2,
    S32 = 3,
    U64 = 4,
    S64 = 5,
    F16 = 6,
    F32 = 7,
    F64 = 8,
    BF16 = 9,
    /// f32 that loads round to tf32.
    TF32 = 11,
}

impl DataType {
    fn from_raw(raw: u32) -> Result<DataType, Error> {
        use DataType::*;
        match raw {
            0..=9 => Ok([U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16][raw as usize]),
            11 => Ok(TF32),
            10 | 12 => Err(Error::Unsupported("a tensor map type that flushes subnormals")),
            13..=15 => Err(Error::Unsupported("a tensor map type of less than 8 bits")),
            _ => Err(Error::Invalid("unknown data type")),
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        use DataType::*;
        match self {
            U8 => 1,
            U16 | F16 | BF16 => 2,
            U32 | S32 | F32 | TF32 => 4,
            U64 | S64 | F64 => 8,
        }
    }

    /// The bytes of a NaN, for the types that have one.
    fn nan(self) -> Option<&'static [u8]> {
        use DataType::*;
        match self {
            F16 | BF16 => Some(&[0xff, 0x7f]),
            F32 | TF32 => Some(&[0xff, 0xff, 0xff, 0x7f]),
            F64 => Some(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            _ => None,
        }
    }
}

/// `CUtensorMapSwizzle`, and the layouts of matrices in shared memory (PTX ISA 9.0, section 5.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Swizzle {
    /// Bytes stay where they are.
    None = 0,
    /// 16-byte units change places inside 32 bytes.
    B32 = 1,
    /// Inside 64 bytes.
    B64 = 2,
    /// Inside 128 bytes.
    B128 = 3,
}

impl Swizzle {
    fn from_raw(raw: u32) -> Result<Swizzle, Error> {
        match raw {
            0 => Ok(Swizzle::None),
            1 => Ok(Swizzle::B32),
            2 => Ok(Swizzle::B64),
            3 => Ok(Swizzle::B128),
            4..=6 => Err(Error::Unsupported("128-byte swizzling with atoms of more than 16 bytes")),
            _ => Err(Error::Invalid("unknown swizzle mode")),
        }
    }

    /// The bytes inside which units change places.
    pub fn span(self) -> u64 {
        16 << self as u64
    }

    /// Where the byte at a shared-memory address goes: the number of its 16-byte unit inside the span is XORed with the
    /// number of the 128-byte line, so the pattern repeats after eight lines. It depends on the address alone, not on
    /// where the tile begins.
    #[inline(always)]
    pub fn apply(self, address: u64) -> u64 {
        let mask = (1 << self as u64) - 1;
        address ^ (address >> 7 & mask) << 4
    }
}

/// What `cuTensorMapEncodeTiled` is given, with the raw values of its enums.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `CUtensorMapDataType`
    pub data_type: u32,
    /// The tensor's address.
    pub address: u64,
    /// Elements of each dimension, the contiguous one first. Their number is the rank.
    pub dims: &'a [u64],
    /// Bytes between neighbours in each dimension but the first.
    pub strides: &'a [u64],
    /// The box: how many elements of each dimension a tile spans.
    pub tile: &'a [u32],
    /// The traversal stride of each dimension.
    pub element_strides: &'a [u32],
    /// `CUtensorMapInterleave`
    pub interleave: u32,
    /// `CUtensorMapSwizzle`
    pub swizzle: u32,
    /// `CUtensorMapL2promotion`
    pub promotion: u32,
    /// `CUtensorMapFloatOOBfill`
    pub fill: u32,
}

/// A tensor in global memory and the tile in which it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// The type of its elements.
    pub data_type: DataType,
    /// Dimensions.
    pub rank: usize,
    /// Its address.
    pub address: u64,
    /// Elements of each dimension; 1 above the rank.
    pub dims: [u64; MAX_RANK],
    /// Bytes between neighbours in each dimension; the first is the size of an element.
    pub strides: [u64; MAX_RANK],
    /// The box; 1 above the rank.
    pub tile: [u32; MAX_RANK],
    /// Traversal strides; 1 above the rank and, without interleaving, in the first dimension.
    pub element_strides: [u32; MAX_RANK],
    /// The layout in shared memory.
    pub swizzle: Swizzle,
    /// Whether elements outside the tensor read as NaN, not zero.
    pub nan_fill: bool,
}

/// A row of a tile: neighbours in the first dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileRow {
    /// Its first byte in the tile, before swizzling.
    pub offset: u64,
    /// The bytes of the row that are inside the tensor, as `start..end` from its first byte; empty if none are.
    pub inside: (u64, u64),
    /// The address of byte `inside.0`.
    pub address: u64,
}

/// Bytes of the encoding under its checksum.
const BODY: usize = 16 + MAX_RANK * 16;
/// The byte behind the checksum that says that a kernel has changed the map.
const EDITED: usize = BODY + 4;
const MAGIC: u32 = u32::from_le_bytes(*b"tmap");

impl TensorMap {
    /// Checks a request as the driver does.
    pub fn tiled(request: &Request<'_>) -> Result<TensorMap, Error> {
        let invalid = |message| Err(Error::Invalid(message));
        let rank = request.dims.len();
        if rank == 0 || rank > MAX_RANK {
            return invalid("the rank must be 1 to 5");
        }
        if request.strides.len() + 1 != rank || request.tile.len() != rank || request.element_strides.len() != rank {
            return invalid("every dimension needs a box, an element stride and, but for the first, a stride");
        }
        match request.interleave {
            0 => {}
            1 | 2 => return Err(Error::Unsupported("the interleaved layout of a tensor map")),
            _ => return invalid("unknown interleave mode"),
        }
        let data_type = DataType::from_raw(request.data_type)?;
        let swizzle = Swizzle::from_raw(request.swizzle)?;
        if request.promotion > 3 {
            return invalid("unknown L2 promotion");
        }
        if request.fill > 1 || request.fill == 1 && data_type.nan().is_none() {
            return invalid("the out-of-bounds fill must be zero or, for floats, NaN");
        }
        if request.address == 0 || !request.address.is_multiple_of(16) {
            return invalid("the tensor's address must be a multiple of 16");
        }
        if request.dims.iter().any(|&d| d == 0 || d > 1 << 32) {
            return invalid("a dimension must be 1 to 2^32");
        }
        if request.strides.iter().any(|&s| !s.is_multiple_of(16) || s >= 1 << 40) {
            return invalid("a stride must be a multiple of 16 below 2^40");
        }
        if request.tile.iter().any(|&b| b == 0 || b > 256) {
            return invalid("a dimension of the box must be 1 to 256");
        }
        if request.element_strides.iter().any(|&s| s == 0 || s > 8) {
            return invalid("an element stride must be 1 to 8");
        }
        let mut map = TensorMap {
            data_type,
            rank,
            address: request.address,
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            tile: [1; MAX_RANK],
            element_strides: [1; MAX_RANK],
            swizzle,
            nan_fill: request.fill == 1,
        };
        map.dims[..rank].copy_from_slice(request.dims);
        map.strides[0] = data_type.bytes();
        map.strides[1..rank].copy_from_slice(request.strides);
        map.tile[..rank].copy_from_slice(request.tile);
        map.element_strides[1..rank].copy_from_slice(&request.element_strides[1..]);
        map.check_box()?;
        Ok(map)
    }

    /// Checks the box against the element type and the swizzle mode.
    fn check_box(&self) -> Result<(), Error> {
        let invalid = |message| Err(Error::Invalid(message));
        let (inner, swizzle) = (self.row_bytes(), self.swizzle);
        if !inner.is_multiple_of(16) {
            return invalid("the first dimension of the box must be a multiple of 16 bytes");
        }
        if swizzle != Swizzle::None && inner > swizzle.span() {
            return invalid("the first dimension of the box is longer than the span of the swizzle mode");
        }
        if swizzle != Swizzle::None && inner < swizzle.span() {
            return Err(Error::Unsupported("a box whose first dimension is shorter than the span of its swizzle mode"));
        }
        Ok(())
    }

    /// The 128 bytes.
    pub fn encode(&self) -> [u8; BYTES] {
        let mut out = Vec::with_capacity(BYTES);
        out.extend(MAGIC.to_le_bytes());
        out.extend([self.data_type as u8, self.rank as u8, self.swizzle as u8, self.nan_fill as u8]);
        out.extend(self.address.to_le_bytes());
        for d in 0..MAX_RANK {
            out.extend(self.dims[d].to_le_bytes());
            out.extend(self.strides[d].to_le_bytes()[..5].iter());
            out.extend((self.tile[d] as u16).to_le_bytes());
            out.push(self.element_strides[d] as u8);
        }
        let sum = checksum(&out);
        out.extend(sum.to_le_bytes());
        out.resize(BYTES, 0);
        out.try_into().expect("the length was set")
    }

    /// Reads what [`TensorMap::encode`] wrote.
    pub fn decode(bytes: &[u8; BYTES]) -> Result<TensorMap, Error> {
        let sum = u32::from_le_bytes(bytes[BODY..BODY + 4].try_into().expect("four bytes"));
        if bytes[..4] != MAGIC.to_le_bytes() || sum != checksum(&bytes[..BODY]) {
            return Err(Error::Invalid("the 128 bytes are not a tensor map"));
        }
        let mut map = TensorMap {
            data_type: DataType::from_raw(bytes[4] as u32)?,
            rank: bytes[5] as usize,
            address: u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")),
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            tile: [1; MAX_RANK],
            element_strides: [1; MAX_RANK],
            swizzle: Swizzle::from_raw(bytes[6] as u32)?,
            nan_fill: bytes[7] != 0,
        };
        if map.rank == 0 || map.rank > MAX_RANK {
            return Err(Error::Invalid("the rank must be 1 to 5"));
        }
        map.strides[0] = map.data_type.bytes();
        for (d, field) in bytes[16..BODY].chunks_exact(16).enumerate().take(map.rank) {
            map.dims[d] = u64::from_le_bytes(field[..8].try_into().expect("eight bytes"));
            let stride = field[8..13].iter().rev().fold(0, |value, &byte| value << 8 | byte as u64);
            map.strides[d] = if d == 0 { map.strides[0] } else { stride };
            map.tile[d] = u16::from_le_bytes([field[13], field[14]]) as u32;
            map.element_strides[d] = field[15] as u32;
        }
        if bytes[EDITED] != 0 {
            map.check_edited()?;
        }
        Ok(map)
    }

    /// What [`TensorMap::tiled`] has checked of others, of a map that a kernel has changed.
    fn check_edited(&self) -> Result<(), Error> {
        let of = |good: bool, message| if good { Ok(()) } else { Err(Error::Invalid(message)) };
        let all = 0..self.rank;
        of(self.address != 0 && self.address.is_multiple_of(16), "the tensor's address must be a multiple of 16")?;
        of(all.clone().all(|d| self.dims[d] != 0), "a dimension must be 1 to 2^32")?;
        of((1..self.rank).all(|d| self.strides[d].is_multiple_of(16)), "a stride must be a multiple of 16 below 2^40")?;
        of(all.clone().all(|d| (1..=256).contains(&self.tile[d])), "a dimension of the box must be 1 to 256")?;
        of(all.clone().all(|d| (1..=8).contains(&self.element_strides[d])), "an element stride must be 1 to 8")?;
        of(!self.nan_fill || self.data_type.nan().is_some(), "only floats can be filled with NaN")?;
        self.check_box()
    }

    /// Elements that a tile has in each dimension.
    pub fn counts(&self) -> [u64; MAX_RANK] {
        std::array::from_fn(|d| self.tile[d].div_ceil(self.element_strides[d]) as u64)
    }

    /// Bytes of a row of a tile.
    pub fn row_bytes(&self) -> u64 {
        self.tile[0] as u64 * self.data_type.bytes()
    }

    /// Bytes of a tile in shared memory, elements outside the tensor included.
    pub fn tile_bytes(&self) -> u64 {
        self.counts().iter().product::<u64>() * self.data_type.bytes()
    }

    /// What an element outside the tensor reads as, repeated to 16 bytes.
    pub fn fill(&self) -> [u8; ATOM as usize] {
        let mut out = [0; ATOM as usize];
        if let Some(nan) = self.data_type.nan().filter(|_| self.nan_fill) {
            out.iter_mut().zip(nan.iter().cycle()).for_each(|(to, &from)| *to = from);
        }
        out
    }

    /// The alignment that the tile's address in shared memory needs.
    pub fn shared_align(&self) -> u64 {
        128
    }

    /// The rows of the tile at `coordinates` (0 above the rank), in the order of shared memory.
    pub fn rows(&self, coordinates: [i32; MAX_RANK]) -> impl Iterator<Item = TileRow> + Clone + use<> {
        let map = *self;
        let counts = map.counts();
        let bytes = map.row_bytes();
        let size = map.data_type.bytes();
        // The part of every row that is inside the first dimension.
        let x = coordinates[0] as i64;
        let start = (-x).clamp(0, counts[0] as i64);
        let end = (map.dims[0] as i64 - x).clamp(start, counts[0] as i64);
        (0..counts[1..].iter().product::<u64>()).map(move |number| {
            let (mut rest, mut inside, mut address) = (number, end > start, map.address as i64);
            for d in 1..MAX_RANK {
                let step = (rest % counts[d]) as i64 * map.element_strides[d] as i64;
                rest /= counts[d];
                let at = coordinates[d] as i64 + step;
                inside &= at >= 0 && at < map.dims[d] as i64;
                address = address.wrapping_add(at.wrapping_mul(map.strides[d] as i64));
            }
            let (start, end) = if inside { (start as u64, end as u64) } else { (0, 0) };
            let address = address.wrapping_add((x + start as i64) * size as i64) as u64;
            TileRow { offset: number * bytes, inside: (start * size, end * size), address }
        })
    }
}

/// A field of a tensor map that `tensormap.replace` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Field {
    /// The tensor's address.
    Address,
    /// The rank less one.
    Rank,
    /// Elements of a box in a dimension.
    Box,
    /// Elements of a dimension.
    Dim,
    /// Bytes between neighbours in the dimension after the named one.
    Stride,
    /// The traversal stride in a dimension.
    ElementStride,
    /// The type of elements.
    Type,
    /// The interleaved layout: none.
    Interleave,
    /// The swizzle mode.
    Swizzle,
    /// The unit of swizzling: 16 bytes.
    Atomicity,
    /// Whether elements outside are NaN.
    Fill,
}

/// The number in `CUtensorMapDataType` of an element type as PTX numbers them.
fn driver_type(raw: u64) -> Option<u8> {
    [0, 1, 2, 3, 4, 5, 6, 7, 10, 8, 9, 11, 12].get(usize::try_from(raw).ok()?).copied()
}

/// `tensormap.replace`: changes a field of an encoded map, or of one that was begun with zeros.
pub fn replace(bytes: &mut [u8; BYTES], field: Field, ordinal: usize, value: u64) -> Result<(), Error> {
    if bytes[..4] == [0; 4] && bytes.iter().all(|&byte| byte == 0) {
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
    } else if bytes[..4] != MAGIC.to_le_bytes() {
        return Err(Error::Invalid("the 128 bytes are not a tensor map, nor zeros"));
    }
    let limit = MAX_RANK - usize::from(field == Field::Stride);
    if ordinal >= limit {
        return Err(Error::Invalid("there is no such dimension"));
    }
    let at = 16 + 16 * (ordinal + usize::from(field == Field::Stride));
    match field {
        Field::Address => bytes[8..16].copy_from_slice(&value.to_le_bytes()),
        Field::Rank => bytes[5] = u8::try_from(value + 1).unwrap_or(u8::MAX),
        Field::Box => bytes[at + 13..at + 15].copy_from_slice(&u16::try_from(value).unwrap_or(0).to_le_bytes()),
        Field::Dim => bytes[at..at + 8].copy_from_slice(&value.to_le_bytes()),
        Field::Stride if value >> 40 != 0 => return Err(Error::Invalid("a stride must be below 2^40")),
        Field::Stride => bytes[at + 8..at + 13].copy_from_slice(&value.to_le_bytes()[..5]),
        Field::ElementStride => bytes[at + 15] = u8::try_from(value).unwrap_or(0),
        Field::Type => bytes[4] = driver_type(value).ok_or(Error::Unsupported("this type of a tensor map"))?,
        Field::Swizzle => bytes[6] = Swizzle::from_raw(value as u32)? as u8,
        Field::Fill => bytes[7] = u8::from(value != 0),
        Field::Interleave | Field::Atomicity if value == 0 => {}
        Field::Interleave => return Err(Error::Unsupported("the interleaved layout of a tensor map")),
        Field::Atomicity => return Err(Error::Unsupported("swizzling with atoms of more than 16 bytes")),
    }
    let sum = checksum(&bytes[..BODY]);
    bytes[BODY..EDITED].copy_from_slice(&sum.to_le_bytes());
    bytes[EDITED] = 1;
    Ok(())
}

/// FNV-1a: a tensor map that was copied short or overwritten must not pass for one.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ byte as u32).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn request<'a>(
        dims: &'a [u64],
        strides: &'a [u64],
        tile: &'a [u32],
        element_strides: &'a [u32],
        swizzle: u32,
    ) -> Request<'a> {
        Request {
            data_type: 9,
            address: 0x7_0000_0200,
            dims,
            strides,
            tile,
            element_strides,
            interleave: 0,
            swizzle,
            promotion: 0,
            fill: 0,
        }
    }

    /// The tile, element by element, as the PTX ISA words it: which address, if any, lies at which shared-memory offset.
    fn by_element(map: &TensorMap, at: [i32; 5]) -> HashMap<u64, Option<u64>> {
        let size = map.data_type.bytes();
        let n: Vec<u64> = (0..5).map(|d| (map.tile[d] as u64).div_ceil(map.element_strides[d] as u64)).collect();
        let mut out = HashMap::new();
        for e in 0..n[4] {
            for d in 0..n[3] {
                for c in 0..n[2] {
                    for b in 0..n[1] {
                        for a in 0..n[0] {
                            let index = [a, b, c, d, e];
                            let offset = ((((e * n[3] + d) * n[2] + c) * n[1] + b) * n[0] + a) * size;
                            let mut address = Some(map.address as i64);
                            for i in 0..5 {
                                let x = at[i] as i64 + (index[i] * map.element_strides[i] as u64) as i64;
                                address = address
                                    .filter(|_| x >= 0 && x < map.dims[i] as i64)
                                    .map(|address| address + x * map.strides[i] as i64);
                            }
                            out.insert(offset, address.map(|address| address as u64));
                        }
                    }
                }
            }
        }
        out
    }

    fn check(map: &TensorMap, at: [i32; 5]) {
        let expect = by_element(map, at);
        let mut got = HashMap::new();
        for row in map.rows(at) {
            for byte in (0..map.row_bytes()).step_by(map.data_type.bytes() as usize) {
                let inside = (row.inside.0..row.inside.1).contains(&byte);
                let address = inside.then(|| row.address + byte - row.inside.0);
                assert_eq!(got.insert(row.offset + byte, address), None);
            }
        }
        assert_eq!(got, expect, "{map:?} at {at:?}");
        assert_eq!(map.tile_bytes(), expect.len() as u64 * map.data_type.bytes());
    }

    #[test]
    fn rows_are_the_elements() {
        let two = TensorMap::tiled(&request(&[20, 7], &[48], &[16, 4], &[1, 1], 0)).unwrap();
        for y in -5..9 {
            for x in -18..22 {
                check(&two, [x, y, 0, 0, 0]);
            }
        }
        let strided = TensorMap::tiled(&request(&[40, 9, 5], &[80, 800], &[8, 5, 4], &[1, 2, 3], 0)).unwrap();
        let five = TensorMap::tiled(&request(&[9, 3, 3, 2, 2], &[32, 96, 288, 576], &[8, 2, 2, 2, 2], &[1; 5], 0));
        let five = five.unwrap();
        for z in -3..6 {
            for y in -6..10 {
                check(&strided, [3, y, z, 0, 0]);
                check(&five, [1, y, z, -1, 1]);
            }
        }
        let one = TensorMap::tiled(&request(&[100], &[], &[64], &[1], 3)).unwrap();
        for x in [-64, -63, -1, 0, 36, 37, 99, 100, i32::MAX, i32::MIN] {
            check(&one, [x, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn swizzles_are_the_printed_patterns() {
        // PTX ISA, section 5.5.6: in units of 16 bytes, line by line of 128 bytes, the unit that is stored at each place.
        let line = |swizzle: Swizzle, line: u64| {
            let mut out = [0; 8];
            for unit in 0..8 {
                let to = swizzle.apply(line * 128 + unit * 16);
                assert_eq!(to / 128, line);
                out[(to % 128 / 16) as usize] = unit;
            }
            out
        };
        assert_eq!(line(Swizzle::B128, 0), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(line(Swizzle::B128, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(line(Swizzle::B128, 2), [2, 3, 0, 1, 6, 7, 4, 5]);
        assert_eq!(line(Swizzle::B128, 7), [7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(line(Swizzle::B128, 8), line(Swizzle::B128, 0));
        assert_eq!(line(Swizzle::B64, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(line(Swizzle::B64, 2), [2, 3, 0, 1, 6, 7, 4, 5]);
        assert_eq!(line(Swizzle::B64, 4), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(line(Swizzle::B32, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(line(Swizzle::B32, 2), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(line(Swizzle::None, 5), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(Swizzle::B128.apply(0x1_2345), 0x1_2345 ^ (0x1_2345 >> 7 & 7) << 4);
    }

    #[test]
    fn the_encoding_round_trips_and_is_told_from_others() {
        let map =
            TensorMap::tiled(&request(&[1 << 32, 3, 2], &[(1 << 40) - 16, 32], &[64, 256, 2], &[1, 8, 2], 3)).unwrap();
        let bytes = map.encode();
        assert_eq!(TensorMap::decode(&bytes), Ok(map));
        for at in 0..100 {
            let mut broken = bytes;
            broken[at] ^= 0x10;
            assert!(TensorMap::decode(&broken).is_err(), "byte {at}");
        }
        assert!(TensorMap::decode(&[0; BYTES]).is_err());
    }

    #[test]
    fn requests_are_checked() {
        let good = request(&[64, 8], &[128], &[64, 8], &[1, 1], 3);
        let try_with = |change: &dyn Fn(&mut Request<'static>)| {
            let mut request = request(&[64, 8], &[128], &[64, 8], &[1, 1], 3);
            change(&mut request);
            TensorMap::tiled(&request)
        };
        assert!(TensorMap::tiled(&good).is_ok());
        assert!(matches!(try_with(&|r| r.address = 0x7_0000_0208), Err(Error::Invalid(_))));
        assert!(matches!(try_with(&|r| r.strides = &[120]), Err(Error::Invalid(_))));
        assert!(matches!(try_with(&|r| r.strides = &[1 << 40]), Err(Error::Invalid(_))));
        assert!(matches!(try_with(&|r| r.tile = &[64, 257]), Err(Error::Invalid(_))));
        assert!(matches!(try_with(&|r| r.tile = &[72, 8]), Err(Error::Invalid(_))), "longer than the swizzle");
        assert!(matches!(try_with(&|r| (r.tile, r.swizzle) = (&[12, 8], 0)), Err(Error::Invalid(_))), "24 bytes");
        assert!(matches!(try_with(&|r| r.element_strides = &[1, 9]), Err(Error::Invalid(_))));
        assert!(matches!(try_with(&|r| r.dims = &[64, 0]), Err(Error::Invalid(_))));
        assert!(matches!(try_with(&|r| (r.data_type, r.fill) = (1, 1)), Err(Error::Invalid(_))), "NaN of integers");
        assert!(matches!(try_with(&|r| r.data_type = 12), Err(Error::Unsupported(_))));
        assert!(matches!(try_with(&|r| r.interleave = 1), Err(Error::Unsupported(_))));
        assert!(try_with(&|r| (r.tile, r.swizzle) = (&[256, 8], 0)).is_ok());
        assert_eq!(try_with(&|r| r.fill = 1).unwrap().fill(), [0xff, 0x7f].repeat(8)[..]);
    }
}
