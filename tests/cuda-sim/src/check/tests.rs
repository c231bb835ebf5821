//! The race check on small kernels: what must be found, and what must not.

mod ended;

use crate::check::Checks;
use crate::machine::fault::{Fault, Kind};
use crate::machine::harness::{HEAD, Kernel};

/// A kernel with a body for `blocks` blocks of 64 threads that have 4 bytes of shared memory `s` each, `%r20` being its own
/// address and `%r21` that of the same lane in the other warp, and its one buffer.
fn kernel(blocks: u32, body: &str) -> (Kernel, u64) {
    let mut k = Kernel::new(
        ".param .u64 p",
        &format!(
            ".shared .align 8 .b8 s[256]; .shared .align 4 .b8 flag[4]; .shared .align 8 .b64 bar; {HEAD}
             mov.u32 %r24, %tid.x; mov.u32 %r22, s; shl.b32 %r23, %r24, 2; add.u32 %r20, %r22, %r23;
             xor.b32 %r23, %r23, 128; add.u32 %r21, %r22, %r23; setp.eq.u32 %p7, %r24, 0; setp.lt.u32 %p6, %r24, 32;
             {body} ret;"
        ),
    )
    .shape(blocks, 64);
    k.checks = Checks { race: true, ..Checks::default() };
    let buffer = k.buffer(&vec![0; 1 << 15]);
    (k, buffer)
}

/// Runs a body under several seeds; the first fault. It must not depend on the number of host threads.
fn run(blocks: u32, body: &str) -> Result<(), Box<Fault>> {
    run_in_clusters(1, blocks, body)
}

/// The same by clusters of so many blocks.
fn run_in_clusters(cluster: u32, blocks: u32, body: &str) -> Result<(), Box<Fault>> {
    for seed in 0..4 {
        let as_threads = |threads| {
            let (mut kernel, _) = kernel(blocks, body);
            kernel.cluster = [cluster, 1, 1];
            kernel.run_as(seed, threads).map(|_| ())
        };
        let one = as_threads(1);
        for threads in if blocks > 1 { 2..4 } else { 2..2 } {
            assert_eq!(one, as_threads(threads), "seed {seed}, {threads} host threads");
        }
        one?;
    }
    Ok(())
}

fn races(blocks: u32, body: &str) {
    let fault = run(blocks, body).expect_err("no race found");
    assert_eq!(fault.kind, Kind::Race, "{fault}");
}

fn silent(blocks: u32, body: &str) {
    run(blocks, body).unwrap_or_else(|fault| panic!("{fault}"));
}

#[test]
fn shared_memory_needs_its_barriers() {
    silent(1, "st.shared.u32 [%r20], %r0; bar.sync 0; ld.shared.u32 %r3, [%r21]; bar.sync 0; st.shared.u32 [%r20], 1;");
    // Read after write, write after read, write after write.
    races(1, "st.shared.u32 [%r20], %r0; ld.shared.u32 %r3, [%r21];");
    races(1, "st.shared.u32 [%r20], %r0; bar.sync 0; ld.shared.u32 %r3, [%r21]; st.shared.u32 [%r20], 1;");
    races(1, "@%p6 st.shared.u32 [%r20], %r0; @!%p6 st.shared.u32 [%r21], %r0;");
    // Another barrier than the other warp's is none.
    races(1, "st.shared.u32 [%r20], %r0; @%p6 bar.sync 1, 32; @!%p6 bar.sync 2, 32; ld.shared.u32 %r3, [%r21];");
}

/// The barrier of a warp.
const SYNCWARP: &str = "bar.warp.sync -1;";

/// A word of a lane's own in memory at `own`, and of another lane at `other`, which `aim` makes: their accesses are ordered by
/// a barrier of the warp. A lane's write, and its read of the other's.
fn only_a_barrier_orders_lanes(space: &str, own: &str, aim: &str, other: &str) -> [String; 2] {
    let (write, read) = (format!("st.{space}.u32 {own}, %r0;"), format!("{aim} ld.{space}.u32 %r4, {other};"));
    races(1, &format!("{write} {read}"));
    silent(1, &format!("{write} {SYNCWARP} {read}"));
    silent(1, &format!("{write} ld.{space}.u32 %r4, {own}; {write}"));
    races(1, &format!("{write} {SYNCWARP} {read} {write}"));
    silent(1, &format!("{write} {SYNCWARP} {read} {SYNCWARP} {write}"));
    races(1, &format!("{write} {aim} st.{space}.u32 {other}, %r0;"));
    [write, read]
}

#[test]
fn lanes_of_a_warp_need_its_barrier() {
    let [write, read] = only_a_barrier_orders_lanes("shared", "[%r20]", "xor.b32 %r3, %r20, 4;", "[%r3]");
    // Another lane may store the same, unless somebody has read it.
    silent(1, "st.shared.u32 [%r20], 5; xor.b32 %r3, %r20, 4; st.shared.u32 [%r3], 5;");
    races(1, "st.shared.u32 [%r20], 5; ld.shared.u32 %r4, [%r20]; xor.b32 %r3, %r20, 4; st.shared.u32 [%r3], 5;");
    // What exchanges registers orders nothing; neither does a fence that follows nothing that was heard.
    for other in [
        "shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;",
        "vote.sync.ballot.b32 %r5, %p7, -1;",
        "match.any.sync.b32 %r5, %r0, -1;",
        "redux.sync.add.u32 %r5, %r0, -1;",
        "membar.cta;",
        "bar.arrive 1, 64;",
    ] {
        races(1, &format!("{write} {other} {read}"));
    }
    // Every stronger barrier does.
    for other in ["bar.sync 0;", "bar.sync 1, 64;", "bar.red.popc.u32 %r5, 0, %p7;"] {
        silent(1, &format!("{write} {other} {read} {other} {write}"));
    }
    silent(1, &format!("{write} barrier.cluster.arrive; barrier.cluster.wait; {read}"));
    let arrive =
        "mbarrier.arrive.shared.b64 _, [bar]; SPIN: mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0; @!%p0 bra SPIN;";
    let begin = "@%p7 mbarrier.init.shared.b64 [bar], 64; bar.sync 0;";
    silent(1, &format!("{begin} {write} {arrive} {read}"));
    races(1, &format!("{begin} {write} {read} {arrive}"));
}

#[test]
fn lanes_of_a_warp_need_its_barrier_in_global_memory() {
    let [write, read] = only_a_barrier_orders_lanes("global", "[%rd1]", "xor.b64 %rd3, %rd1, 4;", "[%rd3]");
    // As between blocks, storing the same is a race: but not of the lanes of one store.
    races(1, "setp.eq.u32 %p0, %r24, 1; @%p7 st.global.u32 [%rd0], 5; @%p0 st.global.u32 [%rd0], 5;");
    silent(1, "@%p6 st.global.u32 [%rd0], 5;");
    // A generic address, and one that the read-only cache or an asynchronous copy reads.
    races(1, &format!("{write} xor.b64 %rd3, %rd1, 4; ld.u32 %r4, [%rd3];"));
    races(1, &format!("{write} xor.b64 %rd3, %rd1, 4; ld.global.nc.u32 %r4, [%rd3];"));
    let copy = "xor.b64 %rd3, %rd1, 4; cp.async.ca.shared.global [%r20], [%rd3], 4; cp.async.wait_all;";
    races(1, &format!("{write} {copy}"));
    silent(1, &format!("{write} {SYNCWARP} {copy}"));
    // What exchanges registers orders nothing.
    for other in ["shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;", "vote.sync.ballot.b32 %r5, %p7, -1;", "membar.gl;"] {
        races(1, &format!("{write} {other} {read}"));
    }
    silent(1, &format!("{write} bar.sync 0; {read} bar.sync 0; {write}"));
    // Lanes that meet are those of the mask.
    let pairs = "and.b32 %r5, %r24, 30; shl.b32 %r5, 3, %r5; bar.warp.sync %r5;";
    silent(1, &format!("{write} {pairs} {read}"));
    races(1, &format!("{write} {pairs} {}", read.replace(", 4;", ", 8;")));
    // Strong accesses and atomics do not race with each other.
    let strong = |store: &str, load: &str| format!("{store} [%rd1], %r0; xor.b64 %rd3, %rd1, 4; {load} %r4, [%rd3];");
    silent(1, &strong("st.volatile.global.u32", "ld.relaxed.gpu.global.u32"));
    races(1, &strong("st.volatile.global.u32", "ld.global.u32"));
    races(1, &strong("st.global.u32", "ld.volatile.global.u32"));
    silent(1, "@%p6 atom.global.add.u32 %r3, [%rd0], 1; @%p6 red.global.add.u32 [%rd0], 1;");
    races(1, "@%p6 atom.global.add.u32 %r3, [%rd0], 1; @%p7 ld.global.u32 %r3, [%rd0];");
    // Lane 0 publishes what lane 1 waits for.
    let pass = |before: &str, after: &str| {
        format!(
            "setp.eq.u32 %p1, %r24, 1; @%p7 bra WRITE; @%p1 bra SPIN; bra END;
             SPIN: ld.volatile.global.u32 %r3, [%rd0]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN; {after}
             ld.global.u32 %r4, [%rd0+64]; bra END;
             WRITE: st.global.u32 [%rd0+64], 7; {before} st.volatile.global.u32 [%rd0], 1; END:"
        )
    };
    silent(1, &pass("membar.gl;", "membar.gl;"));
    races(1, &pass("membar.gl;", ""));
}

#[test]
fn lanes_that_meet_are_those_of_the_mask() {
    let by = |masks: &str, distance: u32| {
        format!("st.shared.u32 [%r20], %r0; {masks} xor.b32 %r3, %r20, {distance}; ld.shared.u32 %r4, [%r3];")
    };
    let pairs = "and.b32 %r5, %r24, 30; shl.b32 %r5, 3, %r5; bar.warp.sync %r5;";
    silent(1, &by(pairs, 4));
    races(1, &by(pairs, 8));
    let halves = "and.b32 %r5, %r24, 16; shl.b32 %r5, 65535, %r5; bar.warp.sync %r5;";
    silent(1, &by(halves, 32));
    races(1, &by(halves, 64));
    // Halves that meet at different places, then pairs across them: all is known by way of others.
    silent(1, &by(&format!("{halves} xor.b32 %r6, %r24, 16; bar.warp.sync -1;"), 64));
    let apart = "and.b32 %r5, %r24, 16; setp.eq.u32 %p0, %r5, 0; @%p0 bra LOW; bar.warp.sync 0xffff0000; bra JOIN;
                 LOW: bar.warp.sync 0x0000ffff; JOIN:";
    silent(1, &by(apart, 60));
    races(1, &by(apart, 64));
    let meet = "and.b32 %r5, %r24, 16; setp.eq.u32 %p0, %r5, 0; @%p0 bra LOW; bar.warp.sync 0xffffffff; bra JOIN;
                LOW: bar.warp.sync 0xffffffff; JOIN:";
    silent(1, &by(meet, 64));
    // A lane that did not come knows nothing, and nobody knows it.
    let most = "and.b32 %r5, %r24, 31; setp.eq.u32 %p0, %r5, 0; @!%p0 bar.warp.sync 0xfffffffe;";
    races(1, &by(most, 4));
    silent(1, &by(most, 4).replace("ld.shared", "setp.lt.u32 %p1, %r5, 2; @!%p1 ld.shared"));
    // What was known before all of them met is known for ever.
    silent(1, &by(&format!("bar.warp.sync -1; {pairs}"), 64));
    // Lanes that have exited are not waited for.
    silent(
        1,
        "and.b32 %r5, %r24, 1; setp.eq.u32 %p0, %r5, 0; @%p0 exit; st.shared.u32 [%r20], 1; bar.warp.sync -1;
         xor.b32 %r3, %r20, 8; ld.shared.u32 %r4, [%r3];",
    );
}

#[test]
fn strong_accesses_of_lanes_do_not_race_with_each_other() {
    let (weak, strong) = ("st.shared.u32", "st.volatile.shared.u32");
    let pair = |store: &str, load: &str| format!("{store} [%r20], %r0; xor.b32 %r3, %r20, 4; {load} %r4, [%r3];");
    silent(1, &pair(strong, "ld.volatile.shared.u32"));
    races(1, &pair(strong, "ld.shared.u32"));
    races(1, &pair(weak, "ld.volatile.shared.u32"));
    silent(1, "@%p6 atom.shared.add.u32 %r3, [flag], 1;");
    races(
        1,
        "@%p7 st.shared.u32 [flag], 0; bar.sync 0; @%p6 atom.shared.add.u32 %r3, [flag], 1; @%p7 ld.shared.u32 %r3, [flag];",
    );
    races(1, "@%p7 st.shared.u32 [flag], 0; @%p6 atom.shared.add.u32 %r3, [flag], 1;");
    // Lane 0 publishes what lane 1 waits for.
    let pass = |before: &str, after: &str| {
        format!(
            "setp.eq.u32 %p1, %r24, 1; @%p7 st.shared.u32 [flag], 0; bar.sync 0; @%p7 bra WRITE; @%p1 bra SPIN; bra END;
             SPIN: ld.volatile.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN; {after}
             ld.shared.u32 %r4, [s]; bra END; WRITE: st.shared.u32 [s], 7; {before} st.volatile.shared.u32 [flag], 1; END:"
        )
    };
    silent(1, &pass("membar.cta;", "membar.cta;"));
    races(1, &pass("membar.cta;", ""));
}

#[test]
fn words_of_matrices_go_to_lanes() {
    // Lane n writes 16 bytes, which are row n: of a matrix of eight rows, a lane gets a word.
    let load = |shape: &str| {
        format!(
            ".shared .align 16 .b8 rows[512]; @!%p6 bra END; shl.b32 %r3, %r24, 4; mov.u32 %r4, rows; add.u32 %r3, %r3, %r4;
             st.shared.v4.u32 [%r3], {{%r0, %r0, %r0, %r0}}; SYNC
             ldmatrix.sync.aligned.m8n8.{shape}.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r3]; END:"
        )
    };
    for shape in ["x4", "x4.trans"] {
        races(1, &load(shape).replace("SYNC", ""));
        silent(1, &load(shape).replace("SYNC", SYNCWARP));
    }
    // A lane that changes what it was given, in place, is on its own.
    let change = |then: &str| {
        format!(
            ".shared .align 16 .b8 rows[128]; @!%p6 bra END; and.b32 %r3, %r24, 7; shl.b32 %r3, %r3, 4; mov.u32 %r4, rows;
             add.u32 %r3, %r3, %r4; shl.b32 %r5, %r24, 2; add.u32 %r5, %r5, %r4; st.shared.u32 [%r5], %r0; bar.warp.sync -1;
             ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r6}}, [%r3]; {then} END:"
        )
    };
    silent(1, &change("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r6}; st.shared.u32 [%r5], %r6;"));
    races(1, &change("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r3], {%r6};"));
    races(1, &change("xor.b32 %r5, %r5, 4; st.shared.u32 [%r5], %r6;"));
}

#[test]
fn bytes_of_a_word_are_told_apart() {
    silent(
        1,
        "shl.b32 %r3, %r24, 1; add.u32 %r3, %r3, %r22; st.shared.u16 [%r3], 7; bar.sync 0; ld.shared.u16 %h0, [%r3];",
    );
    // The halves of one word by two warps.
    silent(
        1,
        "setp.eq.u32 %p0, %r24, 32; mov.u32 %r3, %r22; @%p0 add.u32 %r3, %r3, 2; @%p0 st.shared.u16 [%r3], 1; @%p7 st.shared.u16 [%r3], 2;",
    );
    races(1, "setp.eq.u32 %p0, %r24, 32; @%p0 st.shared.u16 [%r22+2], 1; @%p7 st.shared.u32 [%r22], 2;");
}

#[test]
fn atomics_do_not_race_with_each_other() {
    silent(2, "atom.shared.add.u32 %r3, [flag], 1; red.global.add.u32 [%rd0], 1;");
    races(1, "@%p6 atom.shared.add.u32 %r3, [flag], 1; @!%p6 ld.shared.u32 %r3, [flag];");
    races(2, "setp.eq.u32 %p0, %r1, 0; @%p0 red.global.add.u32 [%rd0], 1; @!%p0 ld.global.u32 %r3, [%rd0];");
}

#[test]
fn a_flag_orders_warps_only_with_its_fences() {
    let pass = |fence_before: &str, store: &str, load: &str, fence_after: &str| {
        format!(
            "@%p7 st.shared.u32 [flag], 0; bar.sync 0; @%p6 bra WRITE;
             SPIN: {load} %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN; {fence_after} ld.shared.u32 %r4, [%r21]; bra END;
             WRITE: st.shared.u32 [%r20], %r0; bar.warp.sync -1; {fence_before} @%p7 {store} [flag], 1; END:"
        )
    };
    let (relaxed_store, relaxed_load) = ("st.volatile.shared.u32", "ld.volatile.shared.u32");
    silent(1, &pass("", "st.release.cta.shared.u32", "ld.acquire.cta.shared.u32", ""));
    silent(1, &pass("membar.gl;", relaxed_store, relaxed_load, "membar.gl;"));
    races(1, &pass("", relaxed_store, relaxed_load, "membar.gl;"));
    races(1, &pass("", relaxed_store, relaxed_load, "membar.gl;").replace("WRITE: ", "WRITE: membar.gl; "));
    races(1, &pass("membar.gl;", relaxed_store, relaxed_load, ""));
    // Strong reads that follow one another need no fence between.
    let strong =
        pass("membar.gl;", relaxed_store, relaxed_load, "").replace("ld.shared.u32 %r4", "ld.volatile.shared.u32 %r4");
    silent(1, &strong);
    races(1, &strong.replace("membar.gl;", ""));
    // What comes after a release is not released.
    races(
        1,
        "@%p7 st.shared.u32 [flag], 0; bar.sync 0; @%p6 bra WRITE;
         SPIN: ld.acquire.cta.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN; ld.shared.u32 %r4, [%r21];
         bra END; WRITE: @%p7 st.release.cta.shared.u32 [flag], 1; st.shared.u32 [%r20], %r0; END:",
    );
    // Every lane may have a flag of its own.
    silent(
        1,
        "@!%p6 st.shared.u32 [%r20], 0; and.b32 %r3, %r24, 31; setp.ne.u32 %p1, %r3, 0; bar.sync 0; @%p6 bra WRITE;
         @!%p1 bra END;
         SPIN: ld.acquire.cta.shared.u32 %r3, [%r20]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN; ld.shared.u32 %r4, [%r21];
         bra END; WRITE: st.shared.u32 [%r20], %r0; st.release.cta.shared.u32 [%r21], 1; END:",
    );
    // Who reads a flag tells nobody anything: not the one who reads it next.
    races(
        1,
        "@%p7 st.shared.u32 [flag], 0; @%p7 st.shared.u32 [s], 0; bar.sync 0; @!%p6 bra OTHER;
         st.shared.u32 [%r22+64], 5; ld.acquire.cta.shared.u32 %r3, [flag]; @%p7 st.volatile.shared.u32 [s], 1; bra END;
         OTHER: ld.volatile.shared.u32 %r3, [s]; setp.eq.u32 %p0, %r3, 0; @%p0 bra OTHER;
         ld.acquire.cta.shared.u32 %r3, [flag]; ld.shared.u32 %r4, [%r22+64]; END:",
    );
}

#[test]
fn blocks_share_global_memory_by_flags() {
    // Each block writes its part; the last one, by a counter, adds all up.
    let reduce = |before: &str, after: &str| {
        format!(
            ".shared .align 4 .b8 last[4];
             st.global.u32 [%rd1+64], %r0; {before} bar.sync 0;
             @!%p7 bra JOIN; atom.global.add.u32 %r3, [%rd0], 1; st.shared.u32 [last], %r3; JOIN: bar.sync 0;
             ld.shared.u32 %r4, [last]; setp.ne.u32 %p0, %r4, 3; @%p0 bra END; {after}
             mul.wide.u32 %rd2, %r24, 4; add.s64 %rd2, %rd0, %rd2;
             ld.global.u32 %r5, [%rd2+64]; ld.global.u32 %r6, [%rd2+320]; ld.global.u32 %r7, [%rd2+576]; END:"
        )
    };
    silent(4, &reduce("membar.gl;", "membar.gl;"));
    races(4, &reduce("", "membar.gl;"));
    races(4, &reduce("membar.gl;", ""));
    races(4, &reduce("membar.cta;", "membar.gl;"));
}

#[test]
fn bulk_reductions_race_with_all_but_atomics() {
    let reduce = "st.shared.u32 [%r20], 1; fence.proxy.async; bar.sync 0;
                  @%p7 cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%rd0], [%r22], 256;
                  @%p7 cp.async.bulk.commit_group; @%p7 cp.async.bulk.wait_group 0;";
    silent(4, &format!("{reduce} red.global.add.u32 [%rd0+8], 1;"));
    silent(2, &format!("{reduce} ld.global.u32 %r3, [%rd0+256];"));
    races(
        2,
        &format!("setp.eq.u32 %p0, %r1, 0; @%p0 bra OTHER; {reduce} bra END; OTHER: ld.global.u32 %r3, [%rd0]; END:"),
    );
    races(
        2,
        &format!("setp.eq.u32 %p0, %r1, 0; @%p0 bra OTHER; {reduce} bra END; OTHER: st.global.u32 [%rd0], 1; END:"),
    );
}

#[test]
fn the_async_proxy_does_not_see_what_one_lane_has_written() {
    let send = |fence: &str| {
        format!(
            "@%p7 st.shared.v4.u32 [%r22], {{1, 1, 1, 1}}; {fence} bar.sync 0;
             @%p7 cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r22], 16;
             @%p7 cp.async.bulk.commit_group; @%p7 cp.async.bulk.wait_group 0;"
        )
    };
    silent(1, &send("fence.proxy.async;"));
    races(1, &send(""));
}

#[test]
fn bulk_copies_race_as_other_accesses_do() {
    let store = "fence.proxy.async; bar.sync 0; @%p7 cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r22], 256;
                 @%p7 cp.async.bulk.commit_group; @%p7 cp.async.bulk.wait_group 0;";
    silent(1, &format!("st.shared.u32 [%r20], 1; {store} ld.global.u32 %r3, [%rd0+256];"));
    races(2, &format!("st.shared.u32 [%r20], 1; {store}"));
    // The proxy fence of another warp orders nothing for this one.
    races(
        1,
        "@!%p6 st.shared.u32 [%r20], 1; @!%p6 fence.proxy.async;
         @%p7 cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r22+128], 128;
         @%p7 cp.async.bulk.commit_group; @%p7 cp.async.bulk.wait_group 0;",
    );
    // Whoever comes first: warp 0 hears, without order, that warp 1 is done.
    let later = |first: &str, then: &str| {
        format!(
            "@%p7 st.shared.u32 [flag], 0; @%p7 mbarrier.init.shared.b64 [bar], 1; bar.sync 0; @%p6 bra WAIT;
             {first} setp.eq.u32 %p1, %r24, 32; @%p1 st.volatile.shared.u32 [flag], 1; bra END;
             WAIT: ld.volatile.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra WAIT; {then} END:"
        )
    };
    races(
        1,
        &later(
            "st.shared.u32 [%r20], 1; fence.proxy.async;",
            "@%p7 cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r22+128], 128;
             @%p7 cp.async.bulk.commit_group; @%p7 cp.async.bulk.wait_group 0;",
        ),
    );
    races(
        1,
        &later(
            "ld.shared.u32 %r3, [%r20];",
            "@%p7 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 256;
             @%p7 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r22], [%rd0], 256, [bar];
             SPIN: mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0; @!%p0 bra SPIN;",
        ),
    );
    // What another warp reads may not be overwritten.
    let load = |sync: &str| {
        format!(
            "@%p7 mbarrier.init.shared.b64 [bar], 1; st.shared.u32 [%r20], 1; bar.sync 0;
             @!%p6 ld.shared.u32 %r3, [%r20]; {sync} fence.proxy.async;
             @%p7 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 256;
             @%p7 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r22], [%rd0], 256, [bar];
             SPIN: mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0; @!%p0 bra SPIN;"
        )
    };
    silent(1, &load("bar.sync 0;"));
    races(1, &load(""));
}

#[test]
fn an_mbarrier_orders_what_is_before_an_arrival() {
    let pass = |before: &str, arrive: &str, after: &str| {
        format!(
            "@%p7 mbarrier.init.shared.b64 [bar], 32; bar.sync 0; @%p6 bra WRITE;
             SPIN: mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0; @!%p0 bra SPIN; ld.shared.u32 %r3, [%r21]; bra END;
             WRITE: {before} {arrive} {after} END:"
        )
    };
    let (store, copy) = ("st.shared.u32 [%r20], 1;", "cp.async.ca.shared.global [%r20], [%rd1], 4;");
    let arrive = "mbarrier.arrive.shared.b64 _, [bar];";
    silent(1, &pass(store, arrive, ""));
    races(1, &pass("", arrive, store));
    let arrive = "cp.async.mbarrier.arrive.noinc.shared.b64 [bar];";
    silent(1, &pass(copy, arrive, "cp.async.wait_all;"));
    silent(1, &pass(store, arrive, ""));
    races(1, &pass("", arrive, store));
    races(1, &pass("", arrive, &format!("{copy} cp.async.wait_all;")));
}

#[test]
fn blocks_that_write_and_read_one_place_race() {
    silent(4, "st.global.u32 [%rd1], 1; bar.sync 0; ld.global.u32 %r3, [%rd1]; ld.global.u32 %r4, [%rd0+2000];");
    races(4, "st.global.u32 [%rd0+2000], %r1;");
    races(4, "setp.eq.u32 %p0, %r0, 255; @%p0 st.global.u32 [%rd0+2000], 1; @!%p0 ld.global.u32 %r3, [%rd0+2000];");
    // Two warps of one block, without a barrier.
    races(
        1,
        "st.global.u32 [%rd1], 1; xor.b32 %r3, %r0, 32; mul.wide.u32 %rd2, %r3, 4; add.s64 %rd2, %rd0, %rd2; ld.global.u32 %r4, [%rd2];",
    );
}

#[test]
fn lanes_of_a_store_must_agree() {
    races(1, "@%p6 st.shared.u32 [flag], %r0;");
    races(1, "xor.b32 %r3, %r24, %r24; setp.lt.u32 %p0, %r24, 2; @%p0 st.global.u32 [%rd0+64], %r0;");
    races(1, "shr.u32 %r3, %r24, 1; shl.b32 %r3, %r3, 2; add.u32 %r3, %r3, %r22; st.shared.u32 [%r3], %r0;");
    silent(1, "@%p6 st.shared.u32 [flag], 3; bar.warp.sync -1; @%p7 st.shared.u32 [flag], %r0;");
    silent(1, "shr.u32 %r4, %r24, 1; shl.b32 %r3, %r4, 2; add.u32 %r3, %r3, %r22; st.shared.u32 [%r3], %r4;");
}

#[test]
fn warps_may_store_the_same_twice() {
    silent(1, "shl.b32 %r3, %r24, 2; and.b32 %r3, %r3, 127; add.u32 %r3, %r3, %r22; st.shared.u32 [%r3], 7;");
    races(1, "shl.b32 %r3, %r24, 2; and.b32 %r3, %r3, 127; add.u32 %r3, %r3, %r22; st.shared.u32 [%r3], %r0;");
    // Not if somebody has read it in between, or reads it without being ordered behind both.
    races(1, "st.shared.u32 [flag], 7; ld.shared.u32 %r3, [flag]; st.shared.u32 [flag], 7;");
    races(1, "st.shared.u32 [flag], 7; @%p6 ld.shared.u32 %r3, [flag];");
    silent(1, "st.shared.u32 [flag], 7; bar.sync 0; ld.shared.u32 %r3, [flag]; bar.sync 0; st.shared.u32 [flag], 8;");
    // Whoever comes second: warp 1 stores when it has heard, without order, that warp 0 has read.
    races(
        1,
        "@%p7 st.shared.u32 [s], 0; bar.sync 0; @!%p6 bra WAIT;
         st.shared.u32 [flag], 7; ld.shared.u32 %r3, [flag]; @%p7 st.volatile.shared.u32 [s], 1; bra END;
         WAIT: ld.volatile.shared.u32 %r3, [s]; setp.eq.u32 %p0, %r3, 0; @%p0 bra WAIT; st.shared.u32 [flag], 7; END:",
    );
    // Both stores are remembered: warp 0 reads what warp 1 has stored after it.
    races(
        1,
        "@%p7 st.shared.v2.u32 [s], {0, 0}; bar.sync 0; @!%p6 bra FIRST;
         st.shared.u32 [flag], 7; @%p7 st.volatile.shared.u32 [s], 1;
         SECOND: ld.volatile.shared.u32 %r3, [%r22+4]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SECOND;
         ld.shared.u32 %r3, [flag]; bra END;
         FIRST: ld.volatile.shared.u32 %r3, [s]; setp.eq.u32 %p0, %r3, 0; @%p0 bra FIRST;
         st.shared.u32 [flag], 7; bar.warp.sync -1; st.volatile.shared.u32 [%r22+4], 1; END:",
    );
    // Nor if one of them is strong.
    races(1, "@%p6 st.shared.u32 [flag], 7; @!%p6 st.volatile.shared.u32 [flag], 7;");
}

#[test]
fn what_the_async_proxy_has_written_it_may_read() {
    silent(
        1,
        "@%p7 mbarrier.init.shared.b64 [bar], 1; bar.sync 0; @%p7 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 256;
         @%p7 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r22], [%rd0], 256, [bar];
         SPIN: mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0; @!%p0 bra SPIN;
         @%p7 cp.async.bulk.global.shared::cta.bulk_group [%rd0+1024], [%r22], 256;
         @%p7 cp.async.bulk.commit_group; @%p7 cp.async.bulk.wait_group 0;",
    );
}

#[test]
fn every_reader_of_a_word_is_remembered() {
    // Blocks read a word; all of them but `silent` say so, and the last block writes it when `count` have.
    let body = |silent: u32, count: u32| {
        format!(
            "setp.eq.u32 %p0, %r1, 5; @%p0 bra WRITER;
             ld.global.u32 %r3, [%rd0+2000]; setp.eq.u32 %p1, %r1, {silent}; @%p1 bra END;
             bar.sync 0; @!%p7 bra END; red.release.gpu.global.add.u32 [%rd0], 1; bra END;
             WRITER: ld.acquire.gpu.global.u32 %r4, [%rd0]; setp.lt.u32 %p2, %r4, {count}; @%p2 bra WRITER;
             @%p7 st.global.u32 [%rd0+2000], 1; END:"
        )
    };
    silent(6, &body(9, 5));
    for one in 0..5 {
        races(6, &body(one, 4));
    }
    // Of many blocks that have ended, any one may be the one that matters.
    for (blocks, reader) in [(3000, 0), (3000, 1700), (3000, 2998)] {
        races(
            blocks,
            &format!(
                "mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd0, %rd2; setp.eq.u32 %p0, %r1, {reader};
                 @%p0 mov.u64 %rd2, %rd0; add.s64 %rd2, %rd2, 16384; ld.global.u32 %r3, [%rd2];
                 setp.eq.u32 %p1, %r1, 2999; @%p1 st.global.u32 [%rd0+16384], 1;"
            ),
        );
    }
}

#[test]
fn reads_of_the_bytes_beside_a_write_are_no_race() {
    let at = "shl.b32 %r3, %r1, 1; cvt.u64.u32 %rd2, %r3; add.s64 %rd2, %rd0, %rd2;";
    // Block i writes halfword i; halfword i is read before by nobody else, or by the next block.
    silent(8, &format!("{at} ld.global.u16 %h0, [%rd2]; bar.sync 0; @%p7 st.global.u16 [%rd2], 3;"));
    races(8, &format!("{at} ld.global.u16 %h0, [%rd2+2]; bar.sync 0; @%p7 st.global.u16 [%rd2], 3;"));
    // Of several writes to a word, each is remembered.
    races(3, &format!("{at} setp.eq.u32 %p0, %r1, 2; @%p0 ld.global.u16 %h0, [%rd0]; @!%p0 st.global.u16 [%rd2], 3;"));
}

#[test]
fn copies_in_flight_to_one_place_race() {
    let copy = "@%p7 cp.async.ca.shared.global [%r22], [%rd0], 16;";
    races(1, &format!("{copy} {copy} cp.async.wait_all;"));
    silent(1, &format!("{copy} cp.async.wait_all; {copy} cp.async.wait_all;"));
}

#[test]
fn a_launch_that_runs_again_begins_with_the_same_memory() {
    // Every block takes a ticket, which blocks on several host threads would take in any order.
    let tickets =
        "@!%p7 bra END; atom.global.add.u32 %r3, [%rd0], 1; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd0, %rd2;
                   st.global.u32 [%rd2+40000], %r3; END:";
    for seed in 0..4 {
        let runs = [1, 2, 3].map(|threads| {
            let (k, buffer) = kernel(64, tickets);
            k.run_as(seed, threads).unwrap_or_else(|fault| panic!("{fault}"));
            assert_eq!(k.read(buffer, 1), [64]);
            k.read(buffer + 40000, 64)
        });
        assert!(runs[0] == runs[1] && runs[0] == runs[2], "seed {seed}");
        let mut sorted = runs[0].clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..64));
    }
}

/// Clusters of two blocks: `%r25` is the rank, `%r26` and `%r27` are the addresses in the other block of `%r20` and `flag`,
/// `%r28` and `%r29` of the own one.
fn paired(body: &str) -> Result<(), Box<Fault>> {
    let head = "mov.u32 %r25, %cluster_ctarank; xor.b32 %r3, %r25, 1; mov.u32 %r4, flag;
                mapa.shared::cluster.u32 %r26, %r20, %r3; mapa.shared::cluster.u32 %r27, %r4, %r3;
                mapa.shared::cluster.u32 %r28, %r20, %r25; mapa.shared::cluster.u32 %r29, %r4, %r25;
                setp.eq.u32 %p5, %r25, 0; and.pred %p4, %p5, %p7;";
    // No block ends while others reach its memory.
    run_in_clusters(2, 4, &format!("{head} {body} {SYNC}"))
}

const SYNC: &str = "barrier.cluster.arrive; barrier.cluster.wait;";

fn pairs_race(body: &str) {
    let fault = paired(body).expect_err(&format!("no race found: {body}"));
    assert_eq!(fault.kind, Kind::Race, "{body}: {fault}");
}

fn pairs_are_silent(body: &str) {
    paired(body).unwrap_or_else(|fault| panic!("{body}: {fault}"));
}

#[test]
fn blocks_of_a_cluster_need_its_barrier() {
    let (write, read) = ("st.shared.u32 [%r20], %r0;", "ld.shared::cluster.u32 %r5, [%r26];");
    pairs_are_silent(&format!("{write} {SYNC} {read} {SYNC} {write}"));
    // Read after write, write after read, write after write, from near and from afar.
    pairs_race(&format!("{write} {read}"));
    pairs_race(&format!("{write} {SYNC} {read} {write}"));
    pairs_race(&format!("{write} bar.sync 0; {read}"));
    let put = "st.shared::cluster.u32 [%r26], %r1;";
    pairs_are_silent(&format!("{put} {SYNC} ld.shared.u32 %r5, [%r20]; {SYNC} {put}"));
    pairs_race(&format!("{put} ld.shared.u32 %r5, [%r20];"));
    pairs_race(&format!("{put} {SYNC} ld.shared.u32 %r5, [%r20]; {put}"));
    pairs_race(&format!("{put} {write}"));
    // The other block's bytes are another's only if they are the same.
    pairs_are_silent("st.shared.u16 [%r20], 1; st.shared::cluster.u16 [%r26+2], 2;");
    // An arrival that is relaxed orders only what a fence has.
    let relaxed = "barrier.cluster.arrive.relaxed; barrier.cluster.wait;";
    pairs_race(&format!("{write} {relaxed} {read}"));
    pairs_race(&format!("{write} {relaxed} ld.shared.u32 %r5, [%r21];"));
    pairs_are_silent(&format!("{write} fence.acq_rel.cluster; {relaxed} {read}"));
}

#[test]
fn the_own_memory_is_the_own_by_any_address() {
    let far = "st.shared::cluster.u32 [%r28], %r0;";
    pairs_are_silent(&format!("{far} bar.sync 0; ld.shared.u32 %r5, [%r21];"));
    pairs_race(&format!("{far} ld.shared.u32 %r5, [%r21];"));
    pairs_race(&format!("st.shared.u32 [%r20], 1; bar.sync 0; ld.shared.u32 %r5, [%r21]; {far}"));
}

#[test]
fn reads_that_not_all_know_are_not_forgotten() {
    // Warp 1 reads, and then so much that what all know is forgotten; then warp 0 hears of it, without order, and writes.
    let body = |fence: &str| {
        format!(
            "@%p7 st.shared.u32 [flag], 0; st.shared.u32 [%r20], 1; bar.sync 0; @%p6 bra WAIT;
             ld.shared.u32 %r3, [%r20]; mov.u32 %r6, 0;
             LOOP: ld.shared.u32 %r3, [%r22]; membar.gl; add.u32 %r6, %r6, 1; setp.lt.u32 %p0, %r6, 2100; @%p0 bra LOOP;
             bar.warp.sync -1; setp.eq.u32 %p1, %r24, 32; @%p1 st.volatile.shared.u32 [flag], 1; bra END;
             WAIT: ld.volatile.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra WAIT; {fence}
             st.shared.u32 [%r21], 9; END:"
        )
    };
    races(1, &body(""));
    silent(1, &body("membar.gl;"));
}

#[test]
fn reads_that_the_own_block_knows_are_remembered_for_the_others() {
    // The block reads, and then so much that what its warps all know would be forgotten; then the other one writes.
    let body = |store: &str, load: &str| {
        format!(
            "@%p7 st.shared.u32 [flag], 0; st.shared.u32 [%r20], 1; {SYNC} @%p5 bra WAIT;
             @!%p6 ld.shared.u32 %r5, [%r20]; mov.u32 %r6, 0;
             LOOP: ld.shared.u32 %r5, [%r22]; bar.sync 0; add.u32 %r6, %r6, 1; setp.lt.u32 %p0, %r6, 1100; @%p0 bra LOOP;
             @%p7 {store} [flag], 1; bra END;
             WAIT: {load} %r5, [%r27]; setp.eq.u32 %p0, %r5, 0; @%p0 bra WAIT;
             @!%p6 st.shared::cluster.u32 [%r26], 9; END:"
        )
    };
    pairs_race(&body("st.relaxed.cluster.shared.u32", "ld.relaxed.cluster.shared::cluster.u32"));
    pairs_are_silent(&body("st.release.cluster.shared.u32", "ld.acquire.cluster.shared::cluster.u32"));
}

#[test]
fn a_flag_in_another_block_orders_blocks() {
    // Block 0 writes to block 1 and sets its flag.
    let pass = |store: &str, load: &str| {
        format!(
            "@%p7 st.shared.u32 [flag], 0; {SYNC} @%p5 bra WRITE;
             SPIN: {load} %r5, [flag]; setp.eq.u32 %p0, %r5, 0; @%p0 bra SPIN; ld.shared.u32 %r6, [%r20]; bra END;
             WRITE: st.shared::cluster.u32 [%r26], %r0; bar.sync 0; @%p7 {store} [%r27], 1; END:"
        )
    };
    let (release, acquire) = ("st.release.cluster.shared::cluster.u32", "ld.acquire.cluster.shared.u32");
    pairs_are_silent(&pass(release, acquire));
    pairs_race(&pass("st.relaxed.cluster.shared::cluster.u32", acquire));
    pairs_race(&pass(release, "ld.relaxed.cluster.shared.u32"));
    // Atomics do not race with each other, but with reads.
    let count = "atom.shared::cluster.add.u32 %r5, [%r27], 1;";
    pairs_are_silent(&format!("@%p7 st.shared.u32 [flag], 0; {SYNC} {count} {SYNC} ld.shared.u32 %r5, [flag];"));
    pairs_race(&format!("@%p7 st.shared.u32 [flag], 0; {SYNC} {count} ld.shared.u32 %r5, [flag];"));
}

#[test]
fn an_mbarrier_of_another_block_orders_blocks() {
    // Both blocks write to each other and arrive there.
    let pass = |arrive: &str, wait: &str| {
        format!(
            "@%p7 mbarrier.init.shared.b64 [bar], 64; {SYNC} xor.b32 %r3, %r25, 1; mov.u32 %r4, bar;
             mapa.shared::cluster.u32 %r5, %r4, %r3; st.shared::cluster.u32 [%r26], %r0; {arrive}
             {wait} ld.shared.u32 %r6, [%r20];"
        )
    };
    let arrive = "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5];";
    let wait = "SPIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p0, [bar], 0; @!%p0 bra SPIN;";
    pairs_are_silent(&pass(arrive, wait));
    pairs_race(&pass(arrive, ""));
    pairs_race(&pass("mbarrier.arrive.shared.b64 _, [bar];", wait));
}

#[test]
fn copies_to_another_block_are_in_its_way() {
    // Block 0 copies 256 bytes of global memory to block 1, which waits for them.
    let copy = |wait: &str, after: &str| {
        format!(
            "@%p7 mbarrier.init.shared.b64 [bar], 1; {SYNC} mov.u32 %r3, 1; mov.u32 %r4, bar;
             mapa.shared::cluster.u32 %r5, %r4, %r3; mapa.shared::cluster.u32 %r6, %r22, %r3; setp.eq.u32 %p3, %r25, 1;
             and.pred %p3, %p3, %p7; @%p3 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 256; {SYNC}
             @%p4 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r6], [%rd0], 256, [%r5];
             @%p5 bra END; {wait} {after} END:"
        )
    };
    let wait = "SPIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p0, [bar], 0; @!%p0 bra SPIN;";
    pairs_are_silent(&copy(wait, "ld.shared.u32 %r7, [%r20];"));
    pairs_race(&copy("", &format!("ld.shared.u32 %r7, [%r20]; {wait}")));
    pairs_race(&copy("", &format!("st.shared.u32 [%r20], 1; {wait}")));
}

#[test]
fn a_copy_to_another_block_reads_what_it_knows() {
    // Block 0 sends 128 bytes to block 1, which warp 1 has written.
    let send = |sync: &str| {
        format!(
            "@%p7 mbarrier.init.shared.b64 [bar], 1; {SYNC} mov.u32 %r3, 1; mov.u32 %r4, bar;
             mapa.shared::cluster.u32 %r5, %r4, %r3; mapa.shared::cluster.u32 %r6, %r22, %r3; setp.eq.u32 %p3, %r25, 1;
             and.pred %p3, %p3, %p7; @%p3 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128; @%p5 bra SEND;
             bar.sync 0; {SYNC} SPIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p0, [bar], 0;
             @!%p0 bra SPIN; bra END;
             SEND: @!%p6 st.shared.u32 [%r20], 1; fence.proxy.async; {sync} {SYNC_ONLY}
             @%p7 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r6], [%r22+128], 128, [%r5];
             END:"
        )
    };
    pairs_are_silent(&send("bar.sync 0;"));
    pairs_race(&send(""));
}

/// The barrier of a cluster that orders nothing.
const SYNC_ONLY: &str = "barrier.cluster.arrive.relaxed; barrier.cluster.wait;";

#[test]
fn one_lane_speaks_for_those_it_has_met() {
    // Warp 0 reads what warp 1 then writes; one lane says that all have read.
    let arrive = |sync: &str, arrive: &str| {
        format!(
            "@%p7 mbarrier.init.shared.b64 [bar], 1; st.shared.u32 [%r20], %r0; bar.sync 0; @%p6 bra READ;
             SPIN: mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0; @!%p0 bra SPIN; st.shared.u32 [%r21], 1; bra END;
             READ: ld.shared.u32 %r3, [%r20]; {sync} {arrive} mbarrier.arrive.shared.b64 _, [bar]; END:"
        )
    };
    silent(1, &arrive("bar.warp.sync -1;", "@%p7"));
    races(1, &arrive("", "@%p7"));
    races(1, &arrive("shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;", "@%p7"));
    // What it has done itself, it may say at once.
    let alone = "READ: @%p7 ld.shared.u32 %r3, [%r20];";
    silent(1, &arrive("", "@%p7").replace("READ: ld.shared.u32 %r3, [%r20];", alone).replace("[%r21], 1", "[%r22], 1"));
    // Lane 1 has read, lane 0 says so.
    let other = "READ: setp.eq.u32 %p1, %r24, 1; @%p1 ld.shared.u32 %r3, [%r20];";
    races(1, &arrive("", "@%p7").replace("READ: ld.shared.u32 %r3, [%r20];", other));
    // By a flag, and by what was fenced before it.
    let flag = |sync: &str, fence: &str, store: &str| {
        format!(
            "@%p7 st.shared.u32 [flag], 0; bar.sync 0; @%p6 bra WRITE;
             SPIN: ld.acquire.cta.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN;
             ld.shared.u32 %r4, [%r21]; bra END;
             WRITE: st.shared.u32 [%r20], %r0; {sync} {fence} @%p7 {store} [flag], 1; END:"
        )
    };
    silent(1, &flag("bar.warp.sync -1;", "", "st.release.cta.shared.u32"));
    races(1, &flag("", "", "st.release.cta.shared.u32"));
    silent(1, &flag("bar.warp.sync -1;", "@%p7 membar.gl;", "st.volatile.shared.u32"));
    silent(1, &flag("membar.gl; bar.warp.sync -1;", "", "st.volatile.shared.u32"));
    races(1, &flag("", "membar.gl;", "st.volatile.shared.u32"));
    // To another block.
    let count = |sync: &str| {
        format!(
            "setp.eq.u32 %p0, %r1, 0; @%p0 bra WRITE;
             SPIN: ld.acquire.gpu.global.u32 %r3, [%rd0]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN;
             mul.wide.u32 %rd2, %r24, 4; add.s64 %rd2, %rd0, %rd2; ld.global.u32 %r4, [%rd2+512]; bra END;
             WRITE: st.global.u32 [%rd1+512], %r0; {sync} @%p7 red.release.gpu.global.add.u32 [%rd0], 1; END:"
        )
    };
    silent(2, &count("bar.sync 0;").replace("SPIN: ld", "@!%p6 bra END; SPIN: ld"));
    let first_warps =
        |sync: &str| count(sync).replace("setp.eq.u32 %p0, %r1, 0;", "@!%p6 bra END; setp.eq.u32 %p0, %r1, 0;");
    silent(2, &first_warps(SYNCWARP));
    races(2, &first_warps(""));
}

#[test]
fn what_one_lane_hears_the_others_do_not_know() {
    // Lane 0 of warp 1 waits for what warp 0 has written, which all its lanes then read.
    let wait = |wait: &str, sync: &str, read: &str| {
        format!(
            "@%p7 mbarrier.init.shared.b64 [bar], 32; @%p7 st.shared.u32 [flag], 0; bar.sync 0; @%p6 bra WRITE;
             setp.ne.u32 %p1, %r24, 32; @%p1 bra MET; SPIN: {wait}
             MET: {sync} {read} bra END;
             WRITE: st.shared.u32 [%r20], %r0; mbarrier.arrive.shared.b64 _, [bar]; bar.warp.sync -1;
             @%p7 st.release.cta.shared.u32 [flag], 1; END:"
        )
    };
    let phase = "mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0; @!%p0 bra SPIN;";
    let flag = "ld.acquire.cta.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN;";
    let fenced = "ld.volatile.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN; membar.cta;";
    let read = "ld.shared.u32 %r4, [%r21];";
    let copy = "cp.async.ca.shared.global [%r21], [%rd1], 4; cp.async.wait_all;";
    for heard in [phase, flag, fenced] {
        silent(1, &wait(heard, "bar.warp.sync -1;", copy));
        races(1, &wait(heard, "", copy));
        silent(1, &wait(heard, "bar.warp.sync -1;", read));
        races(1, &wait(heard, "", read));
        // With the value it may hand on what it has heard.
        for exchange in ["shfl.sync.idx.b32 %r5, %r3, 0, 31, -1;", "vote.sync.any.pred %p2, %p0, -1;"] {
            silent(1, &wait(heard, exchange, read));
        }
        // Alone it may read, and what others read that they know is nothing to it.
        silent(1, &wait(heard, "", "@!%p1 ld.shared.u32 %r4, [%r21];"));
        silent(1, &wait(heard, "mov.u32 %r5, %r20; @!%p1 mov.u32 %r5, %r21;", "ld.shared.u32 %r4, [%r5];"));
        // Lanes 0 and 1 meet.
        let two = "setp.gt.u32 %p2, %r24, 33; @!%p2 bar.warp.sync 3;";
        silent(1, &wait(heard, two, "@!%p2 ld.shared.u32 %r4, [%r21];"));
        races(1, &wait(heard, two, read));
    }
}

#[test]
fn what_one_lane_hears_its_block_knows_behind_a_barrier() {
    let hear = |sync: &str| {
        format!(
            "setp.eq.u32 %p0, %r1, 0; @!%p0 bra WRITE; @!%p7 bra MEET;
             SPIN: ld.acquire.gpu.global.u32 %r3, [%rd0]; setp.eq.u32 %p1, %r3, 0; @%p1 bra SPIN;
             MEET: {sync} @%p6 bra END; ld.global.u32 %r4, [%rd0+512]; bra END;
             WRITE: @!%p7 bra END; st.global.u32 [%rd0+512], 7; st.release.gpu.global.u32 [%rd0], 1; END:"
        )
    };
    silent(2, &hear("bar.sync 0;"));
    // Also where the block that waits comes first, and would wait for ever for the one in which the race is found.
    races(2, &hear(""));
    races(2, &hear(SYNCWARP));
}

#[test]
fn lanes_may_fence_one_after_the_other() {
    // All lanes of warp 1 read the flag before any of them has fenced.
    let pass = |fences: &str| {
        format!(
            "@%p7 st.shared.u32 [flag], 0; bar.sync 0; @%p6 bra WRITE;
             SPIN: ld.volatile.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN;
             setp.eq.u32 %p1, %r24, 32; {fences} ld.shared.u32 %r4, [%r21]; bra END;
             WRITE: st.shared.u32 [%r20], %r0; bar.warp.sync -1; membar.gl; @%p7 st.volatile.shared.u32 [flag], 1; END:"
        )
    };
    silent(1, &pass("@%p1 membar.cta; @!%p1 membar.cta;"));
    races(1, &pass("@%p1 membar.cta;"));
    races(1, &pass("@!%p1 membar.cta;"));
}

#[test]
fn an_mbarrier_made_anew_knows_nothing() {
    // Warp 1 hears, without order, that warp 0 has arrived, and waits: for that, or for its own arrival at a new mbarrier.
    let wait = |anew: &str| {
        format!(
            "@%p7 mbarrier.init.shared.b64 [bar], 1; @%p7 st.shared.u32 [flag], 0; bar.sync 0; @%p6 bra FIRST;
             WAIT: ld.volatile.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra WAIT;
             setp.ne.u32 %p1, %r24, 32; @%p1 bra MET; {anew} MET: bar.warp.sync -1;
             SPIN: mbarrier.try_wait.parity.shared.b64 %p0, [bar], 0; @!%p0 bra SPIN; ld.shared.u32 %r4, [%r21]; bra END;
             FIRST: st.shared.u32 [%r20], %r0; bar.warp.sync -1; @%p7 mbarrier.arrive.shared.b64 _, [bar];
             @%p7 st.volatile.shared.u32 [flag], 1; END:"
        )
    };
    silent(1, &wait(""));
    races(
        1,
        &wait(
            "mbarrier.inval.shared.b64 [bar]; mbarrier.init.shared.b64 [bar], 1; mbarrier.arrive.shared.b64 _, [bar];",
        ),
    );
}

/// A warpgroup whose body has the tile `%r20`'s words are in and `PRODUCT`, a product of it, as [`kernel`] else.
fn product(body: &str) -> Result<(), Box<Fault>> {
    const PRODUCT: &str = "wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd5, %rd6, %p3, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned;";
    let text = format!(
        ".shared .align 1024 .b8 tile[4096]; .shared .align 4 .b8 flag[4]; {HEAD}
         mov.u32 %r22, tile; shl.b32 %r23, %r0, 2; add.u32 %r20, %r22, %r23; setp.eq.u32 %p7, %r0, 0;
         setp.lt.u32 %p6, %r0, 32; setp.ne.u32 %p3, %r0, %r0; shr.u32 %r3, %r22, 4; cvt.u64.u32 %rd5, %r3;
         or.b64 %rd5, %rd5, 0x1000080000; add.s64 %rd6, %rd5, 128; {} END: ret;",
        body.replace("PRODUCT", PRODUCT)
    );
    for seed in 0..4 {
        let mut k = Kernel::new(".param .u64 p", &text).shape(1, 128);
        k.checks = Checks { race: true, ..Checks::default() };
        k.buffer(&[0]);
        k.run_as(seed, 1)?;
    }
    Ok(())
}

#[test]
fn all_warps_of_a_product_know_its_operands() {
    let write = "st.shared.u32 [%r20], %r0;";
    let (fence, wait) = ("fence.proxy.async;", "wgmma.wait_group.sync.aligned 0;");
    let race = |body: &str| {
        let fault = product(body).expect_err(&format!("no race found: {body}"));
        assert_eq!(fault.kind, Kind::Race, "{body}: {fault}");
    };
    let quiet = |body: &str| product(body).unwrap_or_else(|fault| panic!("{body}: {fault}"));
    quiet(&format!("{write} {fence} bar.sync 0; PRODUCT {wait}"));
    quiet(&format!("{write} bar.sync 0; {fence} PRODUCT {wait}"));
    // One lane writes last, and tells the other warps, but not the lanes of its own.
    let last = |sync: &str| {
        format!(
            "{write} @%p7 st.shared.u32 [flag], 0; {fence} bar.sync 0; @%p7 st.shared.u32 [%r22], 1; {fence}
             @%p7 st.release.cta.shared.u32 [flag], 1; {sync} @%p6 bra MET;
             SPIN: ld.acquire.cta.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN; MET: PRODUCT {wait}"
        )
    };
    quiet(&last(SYNCWARP));
    race(&last(""));
    race(&format!("{write} bar.sync 0; PRODUCT {wait}"));
    race(&format!("{fence} {write} bar.sync 0; PRODUCT {wait}"));
    race(&format!("{write} {fence} PRODUCT {wait}"));
    // Each warp fences its own.
    race(&format!("{write} @%p6 {fence} bar.sync 0; PRODUCT {wait}"));
    // The warp that has written it issues first, and the others do not know.
    let late = |before: &str, after: &str| {
        format!(
            "@%p7 st.shared.u32 [flag], 0; bar.sync 0; @!%p6 bra WAIT; {write} {fence} bar.warp.sync -1; bra ISSUE;
             WAIT: ld.volatile.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra WAIT; {after}
             ISSUE: PRODUCT {before} @%p7 st.volatile.shared.u32 [flag], 1; {wait}"
        )
    };
    quiet(&late("membar.gl;", "membar.gl;"));
    race(&late("", ""));
    // The other warps know, and its own lanes do not know each other's.
    let own = |sync: &str| {
        format!(
            "@%p7 st.shared.u32 [flag], 0; bar.sync 0; @!%p6 bra WAIT;
             {write} {fence} {sync} st.release.cta.shared.u32 [flag], 1; bra ISSUE;
             WAIT: ld.acquire.cta.shared.u32 %r3, [flag]; setp.eq.u32 %p0, %r3, 0; @%p0 bra WAIT; ISSUE: PRODUCT {wait}"
        )
    };
    quiet(&own(SYNCWARP));
    race(&own(""));
    // The operands are overwritten when their readers have waited, and not before.
    quiet(&format!("{write} {fence} bar.sync 0; PRODUCT {wait} bar.sync 0; {write}"));
    race(&format!("{write} {fence} bar.sync 0; PRODUCT bar.sync 0; {write} {wait}"));
}
