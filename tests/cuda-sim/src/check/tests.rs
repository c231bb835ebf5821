//! The race check on small kernels: what must be found, and what must not.

use crate::check::Checks;
use crate::machine::fault::{Fault, Kind};
use crate::machine::harness::{HEAD, Kernel};

/// Runs a body on `blocks` blocks of 64 threads that have 4 bytes of shared memory `s` each, `%r20` being its own address
/// and `%r21` that of the same lane in the other warp, under several seeds; the first fault.
fn run(blocks: u32, body: &str) -> Result<(), Box<Fault>> {
    for seed in 0..4 {
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
        k.buffer(&vec![0; 1024]);
        k.run_as(seed, 1)?;
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
    // Within a warp nothing is looked at.
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
