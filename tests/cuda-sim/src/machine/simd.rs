//! Chooses, once per operation at load, the build of its semantics for the widest vectors of this machine.

use std::sync::OnceLock;

use super::Cx;
use crate::code::{Flow, Op, Run};

/// The semantics of an operation. `run` must be `#[inline(always)]`: it is compiled once for each level.
pub trait Semantics {
    /// Runs the operation for the lanes of `cx.mask`.
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow;
}

#[derive(Clone, Copy)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                return Level::Avx512;
            }
            if avx2 {
                return Level::Avx2;
            }
        }
        Level::Portable
    })
}

/// The function that runs `S` on this machine.
pub fn choose<S: Semantics>() -> Run {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::<S>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::<S>,
        Level::Portable => portable::<S>,
    }
}

/// The portable build of `S`, for what is rare: three builds of every operation would take their time to compile.
pub fn portable_only<S: Semantics>() -> Run {
    portable::<S>
}

fn portable<S: Semantics>(cx: &mut Cx<'_>, op: &Op) -> Flow {
    S::run(cx, op)
}

/// # Safety
/// The machine has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<S: Semantics>(cx: &mut Cx<'_>, op: &Op) -> Flow {
    S::run(cx, op)
}

/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL beside AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512<S: Semantics>(cx: &mut Cx<'_>, op: &Op) -> Flow {
    S::run(cx, op)
}
