//! Planted bugs: a kernel's PTX with a line or two changed. Each must be caught under the default sweep, by the check
//! that should catch it; the same scenarios find nothing in the kernels as they are.

use cuda_sim::machine::fault::Kind::{self, *};

use super::{attention, cluster, cub, gemm, gemv, hopper, lanes, language, reduce, sync, warps, wmma};
use crate::device;
use crate::harness::{ALL, Finding, Scenario, fixture, sweep};

/// A changed line: the `nth` line of the kernel that begins with `from` (blanks count once), from 0.
struct Edit {
    nth: usize,
    from: &'static str,
    to: &'static str,
}

/// Leaves the first line out that begins so.
const fn without(from: &'static str) -> Edit {
    Edit { nth: 0, from, to: "" }
}

/// Replaces the beginning of the first line that begins so.
const fn change(from: &'static str, to: &'static str) -> Edit {
    Edit { nth: 0, from, to }
}

const fn nth(nth: usize, edit: Edit) -> Edit {
    Edit { nth, ..edit }
}

/// What must catch a mutant.
enum Catch {
    /// A fault of one of these kinds.
    Fault(&'static [Kind]),
    /// The comparison with the reference.
    Result,
}

use Catch::{Fault, Result};

struct Mutant {
    /// What was done to the kernel.
    bug: &'static str,
    fixture: &'static str,
    kernel: &'static str,
    edits: &'static [Edit],
    scenario: Scenario,
    catch: Catch,
}

/// Data that an asynchronous copy brings, read or overwritten without waiting for it.
const TOO_EARLY: Catch = Fault(&[Race, Async]);

/// A wait that says at once that it is over.
const PASS: &str = "setp.eq.u32 done, 0, 0;";

const GEMM: &str = "gemm_bf16";

const MUTANTS: &[Mutant] = &[
    // A product by ldmatrix and mma over two buffers of cp.async.
    Mutant {
        bug: "does not wait for the copies",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[without("cp.async.wait_group 1;"), without("cp.async.wait_group 0;")],
        scenario: gemm::ragged,
        catch: TOO_EARLY,
    },
    Mutant {
        bug: "leaves one group of copies pending at the tail",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[change("cp.async.wait_group 0;", "cp.async.wait_group 1;")],
        scenario: gemm::ragged,
        catch: TOO_EARLY,
    },
    Mutant {
        bug: "does not commit the copies of a step",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[nth(1, without("cp.async.commit_group;"))],
        scenario: gemm::ragged,
        catch: TOO_EARLY,
    },
    Mutant {
        bug: "no barrier between the copies and their readers",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[without("bar.sync 0;")],
        scenario: gemm::ragged,
        catch: TOO_EARLY,
    },
    Mutant {
        bug: "no barrier before a buffer is used again",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[nth(1, without("bar.sync 0;"))],
        scenario: gemm::ragged,
        catch: TOO_EARLY,
    },
    Mutant {
        bug: "reads the second half of a tile without the swizzle",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[change("xor.b32 %r309, %r112, %r308;", "mov.b32 %r309, %r308;")],
        scenario: gemm::ragged,
        catch: Result,
    },
    Mutant {
        bug: "no guard on the rows of a",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[
            change("and.pred %p1, %p9, %p10;", "mov.pred %p1, %p10;"),
            change("and.pred %p2, %p12, %p13;", "mov.pred %p2, %p13;"),
        ],
        scenario: gemm::ragged,
        catch: Fault(&[OutOfBounds]),
    },
    Mutant {
        bug: "no guard on the last columns of k",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[change("and.pred %p6, %p12, %p26;", "mov.pred %p6, %p12;")],
        scenario: gemm::ragged,
        catch: Fault(&[OutOfBounds]),
    },
    Mutant {
        bug: "no guard on the columns of the result: blocks write into one another's rows",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[change("or.pred %p38, %p37, %p36;", "mov.pred %p38, %p36;")],
        scenario: gemm::ragged,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "rows for ldmatrix at multiples of eight bytes",
        fixture: "gemm",
        kernel: GEMM,
        edits: &[change("shl.b32 %r299, %r298, 4;", "shl.b32 %r299, %r298, 3;")],
        scenario: gemm::ragged,
        catch: Fault(&[Misaligned]),
    },
    // Matrix-vector products.
    Mutant {
        bug: "no guard on the rows",
        fixture: "gemv",
        kernel: "gemv_bf16",
        edits: &[change("setp.ge.s32 %p1, %r2, %r15;", "setp.ne.s32 %p1, %r2, %r2;")],
        scenario: |s| gemv::bf16_rows(s, 37, 72),
        catch: Fault(&[OutOfBounds]),
    },
    Mutant {
        bug: "loads of 16 bytes at multiples of eight",
        fixture: "gemv",
        kernel: "gemv_bf16",
        edits: &[change("add.s64 %rd40, %rd20, %rd25;", "add.s64 %rd40, %rd20, %rd25; add.s64 %rd40, %rd40, 8;")],
        scenario: |s| gemv::bf16_rows(s, 37, 72),
        catch: Fault(&[Misaligned]),
    },
    Mutant {
        bug: "reads the shared vector before all have written it",
        fixture: "gemv",
        kernel: "gemv_f32_shared",
        edits: &[without("bar.sync 0;")],
        scenario: |s| gemv::shared_rows(s, 21, 260),
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "copies one vector too few to shared memory",
        fixture: "gemv",
        kernel: "gemv_f32_shared",
        edits: &[change("add.s32 %r62, %r62, %r3;", "add.s32 %r62, %r62, %r3; add.s32 %r62, %r62, 1;")],
        scenario: |s| gemv::shared_rows(s, 5, 1040),
        catch: Fault(&[UninitialisedRead]),
    },
    Mutant {
        bug: "reads weights that were freed before the launch",
        fixture: "gemv",
        kernel: "gemv_bf16",
        edits: &[],
        scenario: gemv::freed_weights,
        catch: Fault(&[UseAfterFree]),
    },
    // Attention over pages.
    Mutant {
        bug: "no barrier before the warps are merged",
        fixture: "attention",
        kernel: "paged_attention",
        edits: &[without("bar.sync 0;")],
        scenario: attention::paged,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the sums of the warps are never written",
        fixture: "attention",
        kernel: "paged_attention",
        edits: &[without("st.shared.f32 [%r101], %f178;")],
        scenario: attention::paged,
        catch: Fault(&[UninitialisedRead]),
    },
    Mutant {
        bug: "a step of the butterfly twice, another not at all",
        fixture: "attention",
        kernel: "paged_attention",
        edits: &[change("shfl.sync.bfly.b32 %r48|%p4, %r44, %r46,", "shfl.sync.bfly.b32 %r48|%p4, %r44, 8,")],
        scenario: attention::paged,
        catch: Result,
    },
    // Reductions.
    Mutant {
        bug: "no barrier before the sums of the warps are read",
        fixture: "reduce",
        kernel: "rmsnorm",
        edits: &[nth(1, without("bar.sync 0;"))],
        scenario: reduce::rmsnorm,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "no barrier before the scratch space is used again",
        fixture: "reduce",
        kernel: "softmax",
        edits: &[nth(2, without("bar.sync 0;"))],
        scenario: reduce::softmax,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "a block's part is published without a fence",
        fixture: "reduce",
        kernel: "sum_last_block",
        edits: &[without("membar.gl;")],
        scenario: reduce::sum_last_block,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the ticket is taken without an atomic",
        fixture: "reduce",
        kernel: "sum_last_block",
        edits: &[change(
            "atom.global.inc.u32 %r88, [%rd11], %r87;",
            "ld.global.u32 %r88, [%rd11]; add.u32 %r89, %r88, 1; st.global.u32 [%rd11], %r89;",
        )],
        scenario: reduce::sum_last_block,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "counts without an atomic",
        fixture: "reduce",
        kernel: "histogram",
        edits: &[change(
            "atom.shared.add.u32 %r23, [%r22], 1;",
            "ld.shared.u32 %r23, [%r22]; add.u32 %r23, %r23, 1; st.shared.u32 [%r22], %r23;",
        )],
        scenario: reduce::histogram,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "counts begin with what was in shared memory",
        fixture: "reduce",
        kernel: "histogram",
        edits: &[without("st.shared.u32 [%r16], %r17;")],
        scenario: reduce::histogram,
        catch: Fault(&[UninitialisedRead]),
    },
    Mutant {
        bug: "the largest of the grid without an atomic",
        fixture: "reduce",
        kernel: "argmax",
        edits: &[change(
            "atom.global.max.u64 %rd26, [%rd25], %rd5;",
            "ld.global.u64 %rd26, [%rd25]; max.u64 %rd26, %rd26, %rd5; st.global.u64 [%rd25], %rd26;",
        )],
        scenario: reduce::argmax,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "a barrier that the first warp never reaches",
        fixture: "reduce",
        kernel: "scan",
        edits: &[nth(1, change("bar.sync 0;", "@!%p25 bar.sync 0;"))],
        scenario: reduce::scan,
        catch: Fault(&[DivergentBarrier, Deadlock, Race]),
    },
    Mutant {
        bug: "a barrier that half of a warp leaves out",
        fixture: "lanes",
        kernel: "transpose",
        edits: &[change(
            "bar.sync 0;",
            "{ .reg .b32 %x; .reg .pred %q; mov.u32 %x, %laneid; setp.lt.u32 %q, %x, 16; @%q bra UNDER; bar.sync 0; UNDER: }",
        )],
        scenario: lanes::transpose,
        catch: Fault(&[DivergentBarrier, Deadlock, Race]),
    },
    Mutant {
        bug: "no barrier between the halves of a transposition",
        fixture: "lanes",
        kernel: "transpose",
        edits: &[without("bar.sync 0;")],
        scenario: lanes::transpose,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "a step of the sorting network without its barrier",
        fixture: "lanes",
        kernel: "bitonic_sort",
        edits: &[nth(37, without("bar.sync 0;"))],
        scenario: lanes::bitonic_sort,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "a key written past the end of a local array",
        fixture: "language",
        kernel: "local_arrays",
        edits: &[change("st.local.u32 [%rd1+4], %r2;", "st.local.u32 [%rd1+524288], %r2;")],
        scenario: language::local_arrays,
        catch: Fault(&[OutOfBounds]),
    },
    // Threads that wait for one another.
    Mutant {
        bug: "the filling warps do not wait until the buffer is empty",
        fixture: "sync",
        kernel: "named_barriers",
        edits: &[without("bar.sync 2, 128;")],
        scenario: sync::named_barriers,
        catch: Fault(&[Race, Deadlock, InvalidOperation, DivergentBarrier]),
    },
    Mutant {
        bug: "a named barrier with two numbers of threads",
        fixture: "sync",
        kernel: "named_barriers",
        edits: &[change("bar.arrive 1, 128;", "bar.arrive 1, 96;")],
        scenario: sync::named_barriers,
        catch: Fault(&[InvalidOperation, DivergentBarrier]),
    },
    Mutant {
        bug: "the lock is not looked at",
        fixture: "sync",
        kernel: "spin_lock",
        edits: &[change("setp.ne.s32 %p3, %r9, 0;", "setp.ne.s32 %p3, %r9, %r9;")],
        scenario: sync::spin_lock,
        catch: Result,
    },
    Mutant {
        bug: "the running sum is published by a plain store without a fence",
        fixture: "sync",
        kernel: "chained_scan",
        edits: &[
            nth(1, without("membar.gl;")),
            change("st.volatile.global.u32 [%rd19]", "st.global.u32 [%rd19]"),
            change("ld.volatile.global.u32 %r51", "ld.global.u32 %r51"),
        ],
        scenario: sync::chained_scan,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the flag is never set",
        fixture: "sync",
        kernel: "chained_scan",
        edits: &[without("atom.global.exch.b32 %r44,")],
        scenario: sync::chained_scan,
        catch: Fault(&[Deadlock]),
    },
    // Hopper.
    Mutant {
        bug: "does not wait for the tensor copies",
        fixture: "hopper",
        kernel: "wgmma_simple",
        edits: &[change("mbarrier.try_wait.parity.shared::cta.b64 done, [%r47], %r48;", PASS)],
        scenario: hopper::simple,
        catch: TOO_EARLY,
    },
    Mutant {
        bug: "waits for the same phase in every step",
        fixture: "hopper",
        kernel: "wgmma_simple",
        edits: &[change("and.b32 %r48, %r539, 1;", "mov.b32 %r48, 0;")],
        scenario: hopper::simple,
        catch: Fault(&[Race, Async, InvalidOperation]),
    },
    Mutant {
        bug: "expects more bytes than are copied",
        fixture: "hopper",
        kernel: "wgmma_simple",
        edits: &[change("mov.u32 %r36, 16384;", "mov.u32 %r36, 16400;")],
        scenario: hopper::simple,
        catch: Fault(&[Deadlock]),
    },
    Mutant {
        bug: "expects fewer bytes than are copied",
        fixture: "hopper",
        kernel: "wgmma_simple",
        edits: &[change("mov.u32 %r36, 16384;", "mov.u32 %r36, 8192;")],
        scenario: hopper::simple,
        catch: Fault(&[Race, Async, InvalidOperation]),
    },
    Mutant {
        bug: "reads the accumulators before the products are complete",
        fixture: "hopper",
        kernel: "wgmma_simple",
        edits: &[change("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;")],
        scenario: hopper::simple,
        catch: TOO_EARLY,
    },
    Mutant {
        bug: "the descriptor of a says another swizzle than its tensor map",
        fixture: "hopper",
        kernel: "wgmma_simple",
        edits: &[change("or.b64 %rd10, %rd18, 4611686293305360384;", "or.b64 %rd10, %rd18, 9223372311732748288;")],
        scenario: hopper::simple,
        catch: Result,
    },
    Mutant {
        bug: "the consumers never say that a stage is free",
        fixture: "hopper",
        kernel: "wgmma_specialised",
        edits: &[without("mbarrier.arrive.shared::cta.b64 _,")],
        scenario: hopper::specialised,
        catch: Fault(&[Deadlock]),
    },
    Mutant {
        bug: "the producer begins with the wrong phase",
        fixture: "hopper",
        kernel: "wgmma_specialised",
        edits: &[change("xor.b32 %r156, %r198, 1;", "mov.b32 %r156, %r198;")],
        scenario: hopper::specialised,
        catch: Fault(&[Deadlock]),
    },
    Mutant {
        bug: "the producer does not wait until a stage is free",
        fixture: "hopper",
        kernel: "wgmma_specialised",
        edits: &[change("mbarrier.try_wait.parity.shared::cta.b64 done, [%r155], %r156;", PASS)],
        scenario: hopper::specialised,
        catch: Fault(&[Race, Async, InvalidOperation]),
    },
    Mutant {
        bug: "a stage is released by half of its readers",
        fixture: "hopper",
        kernel: "wgmma_specialised",
        edits: &[change("mov.u32 %r74, 8;", "mov.u32 %r74, 4;")],
        scenario: hopper::specialised,
        catch: Fault(&[Race, Async, InvalidOperation, Deadlock]),
    },
    Mutant {
        bug: "reads what a bulk copy brings without waiting",
        fixture: "hopper",
        kernel: "bulk_reverse",
        edits: &[change("mbarrier.try_wait.parity.shared::cta.b64 done, [%r17], %r18;", PASS)],
        scenario: hopper::bulk_reverse,
        catch: Fault(&[Race, Async, UninitialisedRead]),
    },
    Mutant {
        bug: "copies out what is not yet written by all",
        fixture: "hopper",
        kernel: "bulk_reverse",
        edits: &[nth(1, without("bar.sync 0;"))],
        scenario: hopper::bulk_reverse,
        catch: Fault(&[Race, Async, UninitialisedRead]),
    },
    Mutant {
        bug: "a bulk copy from an address that is not a multiple of 16",
        fixture: "hopper",
        kernel: "bulk_reverse",
        edits: &[change("add.s64 %rd3, %rd2, %rd4;", "add.s64 %rd3, %rd2, %rd4; add.s64 %rd3, %rd3, 4;")],
        scenario: hopper::bulk_reverse,
        catch: Fault(&[Misaligned]),
    },
    // Clusters.
    Mutant {
        bug: "reads the other block's memory before it is written",
        fixture: "cluster",
        kernel: "exchange",
        edits: &[without("barrier.cluster.arrive;"), without("barrier.cluster.wait;")],
        scenario: cluster::exchange,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "reads its counter while the other block counts",
        fixture: "cluster",
        kernel: "exchange",
        edits: &[
            nth(
                1,
                change("barrier.cluster.arrive;", "ld.shared.u32 %r22, [_ZZ8exchangeE5count]; barrier.cluster.arrive;"),
            ),
            without("ld.shared.u32 %r22,"),
        ],
        scenario: cluster::exchange,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "waits for its own block alone before it reads the parts of others",
        fixture: "cluster",
        kernel: "cluster_sum",
        edits: &[change("barrier.cluster.arrive;", "bar.sync 0;"), without("barrier.cluster.wait;")],
        scenario: cluster::sum,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "adds up its bins while other blocks still count in them",
        fixture: "cluster",
        kernel: "spread_histogram",
        edits: &[nth(1, change("barrier.cluster.arrive;", "barrier.cluster.arrive.relaxed;"))],
        scenario: cluster::histogram,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the bins are counted in before they are cleared",
        fixture: "cluster",
        kernel: "spread_histogram",
        edits: &[change("barrier.cluster.arrive;", "barrier.cluster.arrive.relaxed;")],
        scenario: cluster::histogram,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "does not wait for the others' arrivals",
        fixture: "cluster",
        kernel: "inboxes",
        edits: &[change(
            "AGAIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%r42], %r45;",
            "AGAIN: setp.eq.u32 done, 0, 0;",
        )],
        scenario: cluster::inboxes,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "does not wait for what others send",
        fixture: "cluster",
        kernel: "inboxes",
        edits: &[change(
            "AGAIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%r44], %r45;",
            "AGAIN: setp.eq.u32 done, 0, 0;",
        )],
        scenario: cluster::inboxes,
        catch: TOO_EARLY,
    },
    Mutant {
        bug: "a stage is filled again when the readers of one of the two blocks are done",
        fixture: "cute_cluster",
        kernel: "cute_multicast",
        edits: &[change("mov.u32 %r85, 4;", "mov.u32 %r85, 2;")],
        scenario: cluster::multicast,
        catch: Fault(&[Race, Async, InvalidOperation]),
    },
    // Lanes of one warp.
    Mutant {
        bug: "reads its partner's sum before that has written it",
        fixture: "warps",
        kernel: "warp_sums",
        edits: &[without("bar.warp.sync -1;")],
        scenario: warps::sums,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "writes its sum before its partner has read the last",
        fixture: "warps",
        kernel: "warp_sums",
        edits: &[nth(1, without("bar.warp.sync -1;"))],
        scenario: warps::sums,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "lane 0 reads the sum of lane 31 at once",
        fixture: "warps",
        kernel: "warp_sums",
        edits: &[nth(2, without("bar.warp.sync -1;"))],
        scenario: warps::sums,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "reads columns before the rows are written",
        fixture: "warps",
        kernel: "warp_transpose",
        edits: &[without("bar.warp.sync -1;")],
        scenario: warps::transpose,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "writes the next tile while lanes still read this one",
        fixture: "warps",
        kernel: "warp_transpose",
        edits: &[nth(1, without("bar.warp.sync -1;"))],
        scenario: warps::transpose,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "reads what other lanes have copied when its own copies are there",
        fixture: "warps",
        kernel: "warp_ring",
        edits: &[without("bar.warp.sync -1;")],
        scenario: warps::ring,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "copies to a stage that other lanes still read",
        fixture: "warps",
        kernel: "warp_ring",
        edits: &[nth(1, without("bar.warp.sync -1;"))],
        scenario: warps::ring,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the lower half reads at once",
        fixture: "warps",
        kernel: "half_warps",
        edits: &[without("bar.warp.sync 65535;")],
        scenario: warps::halves,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the lower half writes over what it still reads",
        fixture: "warps",
        kernel: "half_warps",
        edits: &[nth(1, without("bar.warp.sync 65535;"))],
        scenario: warps::halves,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the upper half reads at once",
        fixture: "warps",
        kernel: "half_warps",
        edits: &[without("bar.warp.sync -65536;")],
        scenario: warps::halves,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the upper half writes over what it still reads",
        fixture: "warps",
        kernel: "half_warps",
        edits: &[nth(1, without("bar.warp.sync -65536;"))],
        scenario: warps::halves,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the halves do not meet",
        fixture: "warps",
        kernel: "half_warps",
        edits: &[without("bar.warp.sync -1;")],
        scenario: warps::halves,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "counts before the bins are cleared",
        fixture: "warps",
        kernel: "warp_counts",
        edits: &[without("bar.warp.sync -1;")],
        scenario: warps::counts,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "reads the counts of other lanes while they count",
        fixture: "warps",
        kernel: "warp_counts",
        edits: &[nth(1, without("bar.warp.sync -1;"))],
        scenario: warps::counts,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "reads rows of a matrix that other lanes have not written",
        fixture: "warps",
        kernel: "warp_matrix",
        edits: &[without("bar.warp.sync -1;")],
        scenario: warps::matrix,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "copies a row out before all lanes have written it",
        fixture: "warps",
        kernel: "warp_stores",
        edits: &[without("bar.warp.sync -1;")],
        scenario: warps::stores,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "writes the next row while this one is copied out",
        fixture: "warps",
        kernel: "warp_stores",
        edits: &[nth(1, without("bar.warp.sync -1;"))],
        scenario: warps::stores,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "reads what one lane has waited for",
        fixture: "warps",
        kernel: "one_lane_waits",
        edits: &[without("bar.warp.sync -1;")],
        scenario: warps::one_lane,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "one lane says that a stage is free while others still read it",
        fixture: "warps",
        kernel: "one_lane_waits",
        edits: &[nth(1, without("bar.warp.sync -1;"))],
        scenario: warps::one_lane,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "reads from global memory what another lane may not have written",
        fixture: "warps",
        kernel: "warp_exchange",
        edits: &[without("bar.warp.sync")],
        scenario: warps::exchange,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "writes to global memory what another lane may not have read",
        fixture: "warps",
        kernel: "warp_exchange",
        edits: &[nth(1, without("bar.warp.sync"))],
        scenario: warps::exchange,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "the quarters of a warp meet by themselves",
        fixture: "warps",
        kernel: "warp_exchange",
        edits: &[change(
            "bar.warp.sync",
            ".reg .b32 quarter; mov.u32 quarter, %tid.x; and.b32 quarter, quarter, 24; shl.b32 quarter, 255, quarter;
             bar.warp.sync quarter; //",
        )],
        scenario: warps::exchange,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "counts a list in global memory that others may not have finished",
        fixture: "warps",
        kernel: "warp_list",
        edits: &[without("bar.warp.sync")],
        scenario: warps::list,
        catch: Fault(&[Race, UninitialisedRead]),
    },
    Mutant {
        bug: "stores fragments by stmatrix and reads them at once",
        fixture: "hopper",
        kernel: "stmatrix_transpose",
        edits: &[without("bar.warp.sync -1;")],
        scenario: hopper::stmatrix,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "multiplies tiles that other lanes have not written",
        fixture: "wmma",
        kernel: "wmma_steps",
        edits: &[without("bar.warp.sync -1;")],
        scenario: wmma::steps,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "writes the next tiles while other lanes still load these",
        fixture: "wmma",
        kernel: "wmma_steps",
        edits: &[nth(1, without("bar.warp.sync -1;"))],
        scenario: wmma::steps,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "CUB's transposition to blocks without its barrier",
        fixture: "cub",
        kernel: "scan_tiles",
        edits: &[without("bar.warp.sync -1;")],
        scenario: cub::long_scan,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "CUB's transposition to stripes without its barrier",
        fixture: "cub",
        kernel: "scan_tiles",
        edits: &[nth(1, without("bar.warp.sync -1;"))],
        scenario: cub::long_scan,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "CUB's merge sort writes over keys that are still read",
        fixture: "cub",
        kernel: "sort_warps",
        edits: &[without("bar.warp.sync -1;")],
        scenario: cub::warp_sorts,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "CUB's merge sort reads keys at once",
        fixture: "cub",
        kernel: "sort_warps",
        edits: &[nth(1, without("bar.warp.sync -1;"))],
        scenario: cub::warp_sorts,
        catch: Fault(&[Race]),
    },
    Mutant {
        bug: "CUB's exchange reads keys at once",
        fixture: "cub",
        kernel: "sort_warps",
        edits: &[nth(2, without("bar.warp.sync -1;"))],
        scenario: cub::warp_sorts,
        catch: Fault(&[Race]),
    },
];

impl Mutant {
    /// The fixture with the edits made.
    fn text(&self) -> String {
        let text = fixture(self.fixture);
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        let entry = format!(".visible .entry {}(", self.kernel);
        let start = lines.iter().position(|l| l.starts_with(&entry)).unwrap_or_else(|| panic!("no {}", self.kernel));
        let after = lines[start + 1..].iter().position(|l| l.starts_with(".visible .entry"));
        let end = after.map_or(lines.len(), |n| start + 1 + n);
        // The places are found before anything changes.
        let found: Vec<(usize, String)> = self.edits.iter().map(|edit| edit.find(&lines[start..end])).collect();
        for (at, line) in found {
            lines[start + at] = line;
        }
        lines.join("\n")
    }
}

impl Edit {
    /// The line and what it becomes.
    fn find(&self, lines: &[String]) -> (usize, String) {
        let plain = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut places = lines.iter().enumerate().filter(|(_, line)| plain(line).starts_with(self.from));
        let Some((at, line)) = places.nth(self.nth) else { panic!("no line {} `{}`", self.nth, self.from) };
        let line = plain(line);
        let rest = if self.to.is_empty() { "" } else { &line[self.from.len()..] };
        (at, format!("{}{rest}", self.to))
    }
}

impl Catch {
    fn has(&self, finding: &Finding) -> bool {
        match self {
            Fault(kinds) => kinds.iter().any(|&kind| finding.is(kind)),
            Result => matches!(finding, Finding::Wrong(_)),
        }
    }
}

/// The mutants of a fixture are caught.
fn hunt(fixture: &str) {
    if device::is_gpu() {
        eprintln!("the mutants of {fixture} are skipped: they are for the simulator's checks");
        return;
    }
    let mut escaped = String::new();
    let mut count = 0;
    for mutant in MUTANTS.iter().filter(|m| m.fixture == fixture) {
        count += 1;
        let mut findings = sweep(&mutant.text(), mutant.scenario, ALL);
        let caught = |findings: &[Finding]| findings.iter().any(|finding| mutant.catch.has(finding));
        // A missing barrier is also a read of what is not written yet, which is reported first and ends the launch: what
        // all checks together have found in any case must be found by the right one too.
        if !findings.is_empty() && !caught(&findings) {
            findings.extend(sweep(&mutant.text(), mutant.scenario, "mem,race,sync"));
        }
        if !caught(&findings) {
            escaped += &format!("\n{} that {}:", mutant.kernel, mutant.bug);
            escaped += &findings.iter().map(|finding| format!("\n  {finding}")).collect::<String>();
        }
    }
    assert!(count > 0 && escaped.is_empty(), "not caught as they should be:{escaped}");
}

#[test]
fn of_gemm() {
    hunt("gemm");
}

#[test]
fn of_gemv() {
    hunt("gemv");
}

#[test]
fn of_attention() {
    hunt("attention");
}

#[test]
fn of_reductions() {
    hunt("reduce");
}

#[test]
fn of_lanes() {
    hunt("lanes");
}

#[test]
fn of_local_arrays() {
    hunt("language");
}

#[test]
fn of_synchronisation() {
    hunt("sync");
}

#[test]
fn of_hopper() {
    hunt("hopper");
}

#[test]
fn of_clusters() {
    hunt("cluster");
}

#[test]
fn of_tiles_that_a_cluster_shares() {
    hunt("cute_cluster");
}

#[test]
fn of_warps() {
    hunt("warps");
}

#[test]
fn of_cub() {
    hunt("cub");
}

#[test]
fn of_fragments() {
    hunt("wmma");
}

#[test]
fn all_fixtures_are_hunted() {
    let hunted = "gemm gemv attention reduce lanes language sync hopper cluster cute_cluster warps cub wmma";
    let hunted: Vec<&str> = hunted.split(' ').collect();
    assert!(MUTANTS.iter().all(|m| hunted.contains(&m.fixture)));
    assert!(MUTANTS.len() >= 25);
}
