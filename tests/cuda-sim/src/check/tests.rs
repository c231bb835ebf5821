//! The race check on small kernels: what must be found, and what must not.

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
    for seed in 0..4 {
        let as_threads = |threads| kernel(blocks, body).0.run_as(seed, threads).map(|_| ());
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
    // Within a warp nothing is looked at, but for the lanes of one instruction.
    silent(1, "st.shared.u32 [%r20], %r0; xor.b32 %r3, %r20, 4; ld.shared.u32 %r4, [%r3];");
    // Another barrier than the other warp's is none.
    races(1, "st.shared.u32 [%r20], %r0; @%p6 bar.sync 1, 32; @!%p6 bar.sync 2, 32; ld.shared.u32 %r3, [%r21];");
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
    races(1, &pass("membar.gl;", relaxed_store, relaxed_load, ""));
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
    silent(1, "@%p6 st.shared.u32 [flag], 3; @%p7 st.shared.u32 [flag], %r0;");
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
