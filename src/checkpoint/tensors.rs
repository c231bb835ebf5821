//! Tensors of safetensors files, mapped, checked and handed out by name.

use super::{Error, format_error};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// Bytes of a weight file.
#[derive(Debug)]
pub enum Bytes {
    /// Inside the binary.
    Static(&'static [u8]),
    /// A mapped file.
    Mapped(memmap2::Mmap),
}

impl Bytes {
    /// Maps a file.
    pub fn map(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process. As with every mapped checkpoint, the file must
        // not be truncated by another process while it is open; the bytes are plain numbers, for which any value is
        // valid, so a concurrent overwrite can change weights but breaks no invariant of the type.
        unsafe { memmap2::Mmap::map(&file) }.map(Bytes::Mapped).map_err(io)
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Static(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }
}

/// A type that tensors can be read as.
pub trait Element: bytemuck::Pod {
    /// Its safetensors dtype.
    const DTYPE: Dtype;
    /// Its name for people.
    const NAME: &'static str;
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::BF16;
    const NAME: &'static str = "BF16";
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    const NAME: &'static str = "F32";
}

impl Element for i64 {
    const DTYPE: Dtype = Dtype::I64;
    const NAME: &'static str = "I64";
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    start: usize,
    end: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// The tensors of a checkpoint, each taken by name with the shape that the architecture gives it.
#[derive(Debug)]
pub struct Tensors {
    name: String,
    shards: Vec<Bytes>,
    entries: BTreeMap<String, Entry>,
    taken: RefCell<BTreeSet<String>>,
}

impl Tensors {
    /// Checks the headers of `shards` and indexes their tensors.
    pub(super) fn open(name: &str, shards: Vec<(String, Bytes)>) -> Result<Self, Error> {
        let mut entries = BTreeMap::new();
        for (shard, (file, bytes)) in shards.iter().enumerate() {
            index(shard, file, bytes.as_slice(), &mut entries)?;
        }
        let shards = shards.into_iter().map(|(_, bytes)| bytes).collect();
        Ok(Self { name: name.into(), shards, entries, taken: RefCell::default() })
    }

    /// The elements of a tensor, row-major. Copies only when the file holds them unaligned.
    pub fn take<T: Element>(&self, name: &str, shape: &[usize]) -> Result<Cow<'_, [T]>, Error> {
        let file = self.name.clone();
        let entry = self.entries.get(name).ok_or_else(|| Error::Missing { file: file.clone(), name: name.into() })?;
        if entry.dtype != T::DTYPE {
            let found = format!("{:?}", entry.dtype);
            return Err(Error::Dtype { file, name: name.into(), found, expected: T::NAME });
        }
        if entry.shape != shape {
            let (found, expected) = (entry.shape.clone(), shape.to_vec());
            return Err(Error::Shape { file, name: name.into(), found, expected });
        }
        self.taken.borrow_mut().insert(name.into());
        let bytes = &self.shards[entry.shard].as_slice()[entry.start..entry.end];
        Ok(match bytemuck::try_cast_slice(bytes) {
            Ok(elements) => Cow::Borrowed(elements),
            Err(_) => {
                let mut elements = vec![T::zeroed(); bytes.len() / size_of::<T>()];
                bytemuck::cast_slice_mut(&mut elements).copy_from_slice(bytes);
                Cow::Owned(elements)
            }
        })
    }

    /// Ends the loading: tensors that nobody took are an error.
    pub fn finish(self) -> Result<(), Error> {
        let taken = self.taken.into_inner();
        let names: Vec<String> = self.entries.into_keys().filter(|name| !taken.contains(name)).collect();
        if names.is_empty() { Ok(()) } else { Err(Error::Unknown { file: self.name, names }) }
    }

    /// Name, dtype and shape of every tensor, in the order of their names.
    pub fn list(&self) -> impl Iterator<Item = (&str, String, &[usize])> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), format!("{:?}", entry.dtype), entry.shape.as_slice()))
    }

    /// Bytes of all tensors.
    pub fn byte_len(&self) -> usize {
        self.entries.values().map(|entry| entry.end - entry.start).sum()
    }
}

/// Adds the tensors of one shard to the index. The crate checks that offsets are ordered, contiguous, inside the
/// file and in step with shapes and dtypes; the size of the header is capped here first.
fn index(shard: usize, file: &str, bytes: &[u8], entries: &mut BTreeMap<String, Entry>) -> Result<(), Error> {
    const HEADER_LIMIT: u64 = 16 << 20;
    let Some((length, _)) = bytes.split_first_chunk::<8>() else {
        return Err(format_error(file, format!("{} bytes are too few for a safetensors header", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_LIMIT {
        return Err(format_error(file, format!("the header claims {length} bytes, the limit is {HEADER_LIMIT}")));
    }
    let parsed = SafeTensors::deserialize(bytes).map_err(|error| format_error(file, error.to_string()))?;
    for (name, view) in parsed.iter() {
        let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        let end = start + view.data().len();
        let entry = Entry { shard, start, end, dtype: view.dtype(), shape: view.shape().to_vec() };
        if entries.insert(name.to_string(), entry).is_some() {
            return Err(format_error(file, format!("tensor {name} is in two shards")));
        }
    }
    Ok(())
}
