//! Whole kernels, given as PTX, on the machine.

use super::fault::Kind;
use super::harness::{HEAD, Kernel, kernel};
use crate::memory::Origin;

/// Runs a body over one warp whose lane `i` finds `input[i]` in `%r3`, and gives what it leaves in `%r4`.
fn map(body: &str, input: impl Fn(u32) -> u32) -> Vec<u32> {
    let mut k = kernel(&format!("ld.global.u32 %r3, [%rd1]; mov.u32 %r4, 0; {body} st.global.u32 [%rd1], %r4;"));
    let at = k.buffer(&(0..32).map(input).collect::<Vec<_>>());
    k.run();
    k.read(at, 32)
}

fn lanes(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

#[test]
fn a_grid_covers_its_data_and_a_guard_its_end() {
    for (seed, threads) in [(0, 1), (1, 1), (2, 2), (3, 3)] {
        let mut k = kernel(
            "setp.ge.u32 %p0, %r0, 1000; @%p0 bra END; ld.global.u32 %r3, [%rd1]; mad.lo.u32 %r3, %r3, 3, %r0;
             st.global.u32 [%rd1], %r3; END:",
        )
        .shape(8, 128);
        let at = k.buffer(&(0..1000).map(|i| i * i).collect::<Vec<_>>());
        let report = k.run_as(seed, threads).unwrap();
        assert_eq!(k.read(at, 1000), (0..1000).map(|i| 3 * i * i + i).collect::<Vec<_>>());
        assert_eq!(report.counters.sums.load_bytes, 4000);
        assert_eq!(report.counters.sums.store_bytes, 4000);
    }
}

#[test]
fn lanes_diverge_and_meet_again() {
    // Every lane loops as often as it says, and takes one of two ways each time; at the end all are together.
    let out = map(
        "mov.u32 %r5, 0; mov.u32 %r6, 0;
         LOOP: setp.ge.u32 %p0, %r5, %r3; @%p0 bra DONE;
         and.b32 %r7, %r5, 1; setp.eq.u32 %p1, %r7, 0; @%p1 bra EVEN;
         add.u32 %r6, %r6, 100; bra NEXT;
         EVEN: add.u32 %r6, %r6, 1;
         NEXT: add.u32 %r5, %r5, 1; bra LOOP;
         DONE: activemask.b32 %r8; setp.eq.u32 %p2, %r8, -1; selp.u32 %r4, %r6, 7777, %p2;",
        |lane| lane % 5,
    );
    assert_eq!(out, lanes(|lane| (lane % 5).div_ceil(2) + lane % 5 / 2 * 100));
}

#[test]
fn calls_keep_windows_apart_under_divergence_and_recursion() {
    let mut k = Kernel::module(
        ".func (.param .b32 r) fact(.param .b32 n) {
            .reg .b32 %a<5>; .reg .pred %p;
            ld.param.u32 %a0, [n]; setp.gt.u32 %p, %a0, 1; @%p bra MORE;
            mov.u32 %a1, 1; st.param.b32 [r], %a1; ret;
            MORE: add.u32 %a2, %a0, -1;
            { .param .b32 x; .param .b32 y; st.param.b32 [x], %a2; call.uni (y), fact, (x); ld.param.b32 %a3, [y]; }
            mul.lo.u32 %a4, %a3, %a0; st.param.b32 [r], %a4; ret;
        }
        .visible .entry k(.param .u64 p) {
            .reg .b32 %r<8>; .reg .b64 %rd<4>;
            ld.param.u64 %rd0, [p]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd1, %r0, 4; add.s64 %rd1, %rd0, %rd1;
            and.b32 %r1, %r0, 7;
            { .param .b32 x; .param .b32 y; st.param.b32 [x], %r1; call.uni (y), fact, (x); ld.param.b32 %r2, [y]; }
            activemask.b32 %r3; add.u32 %r2, %r2, %r3; add.u32 %r2, %r2, 1;
            st.global.u32 [%rd1], %r2; ret;
        }",
    );
    let at = k.buffer(&[0; 32]);
    k.run();
    assert_eq!(k.read(at, 32), lanes(|lane| (1..=lane % 8).product()));
}

#[test]
fn a_lock_in_a_warp_is_passed_on() {
    // Each lane takes the lock by itself: the others spin at a lower pc.
    for seed in 0..2 {
        let mut k = kernel(
            "SPIN: atom.global.cas.b32 %r3, [%rd0], 0, 1; setp.ne.u32 %p0, %r3, 0; @%p0 bra SPIN;
             ld.volatile.global.u32 %r4, [%rd0+4]; add.u32 %r4, %r4, 1; st.volatile.global.u32 [%rd0+4], %r4;
             membar.gl; atom.global.exch.b32 %r5, [%rd0], 0;",
        )
        .shape(2, 40);
        let at = k.buffer(&[0; 80]);
        k.run_as(seed, 2).unwrap();
        assert_eq!(k.read(at, 2), [0, 80]);
    }
}

#[test]
fn barriers_order_shared_memory() {
    for seed in 0..8 {
        let mut k = Kernel::new(
            ".param .u64 p",
            &format!(
                ".shared .align 4 .b8 s[1024]; {HEAD}
                 shl.b32 %r3, %r0, 2; mov.u32 %r4, s; add.u32 %r5, %r4, %r3; st.shared.u32 [%r5], %r0; bar.sync 0;
                 mov.u32 %r6, 255; sub.u32 %r6, %r6, %r0; shl.b32 %r6, %r6, 2; add.u32 %r6, %r6, %r4;
                 ld.shared.u32 %r7, [%r6]; bar.sync 0; st.shared.u32 [%r5], 5; bar.sync 0;
                 setp.lt.u32 %p0, %r0, 70; bar.red.popc.u32 %r8, 0, %p0; add.u32 %r7, %r7, %r8;
                 barrier.red.or.pred %p1, 0, !%p0; @!%p1 add.u32 %r7, %r7, 1000;
                 st.global.u32 [%rd1], %r7; ret;"
            ),
        )
        .shape(1, 256);
        let at = k.buffer(&[0; 256]);
        k.run_as(seed, 1).unwrap();
        assert_eq!(k.read(at, 256), (0..256).map(|i| 255 - i + 70).collect::<Vec<_>>());
    }
}

#[test]
fn named_barriers_join_producers_and_consumers() {
    // Warp 0 waits for warps 1 and 2; warp 3 takes no part.
    for seed in 0..8 {
        let mut k = Kernel::new(
            ".param .u64 p",
            &format!(
                ".shared .align 4 .b8 s[256]; {HEAD}
                 shr.u32 %r3, %r0, 5; and.b32 %r9, %r0, 31; shl.b32 %r4, %r9, 2; mov.u32 %r5, s; add.u32 %r4, %r4, %r5;
                 setp.eq.u32 %p0, %r3, 3; @%p0 bra END; setp.eq.u32 %p1, %r3, 0; @%p1 bra CONSUME;
                 setp.eq.u32 %p2, %r3, 2; @%p2 add.u32 %r4, %r4, 128; st.shared.u32 [%r4], %r0;
                 bar.arrive 3, 96; bra END;
                 CONSUME: bar.sync 3, 96; ld.shared.u32 %r6, [%r4]; ld.shared.u32 %r7, [%r4+128]; add.u32 %r6, %r6, %r7;
                 st.global.u32 [%rd1], %r6;
                 END: ret;"
            ),
        )
        .shape(1, 128);
        let at = k.buffer(&[0; 128]);
        k.run_as(seed, 1).unwrap();
        assert_eq!(k.read(at, 32), lanes(|lane| 32 + lane + 64 + lane));
    }
}

#[test]
fn blocks_may_wait_for_each_other() {
    // A chain: block i waits for block i + 1. One host thread must still get through, cooperative or not.
    for (cooperative, threads, seed) in [(false, 1, 0), (true, 1, 3), (true, 2, 1), (false, 2, 5)] {
        let mut k = kernel(
            "setp.ne.u32 %p0, %r0, 15; @!%p0 bra SET;
             SPIN: ld.acquire.gpu.global.u32 %r3, [%rd1+4]; setp.eq.u32 %p1, %r3, 0; @%p1 bra SPIN;
             SET: add.u32 %r3, %r3, 1; st.release.gpu.global.u32 [%rd1], %r3;",
        )
        .shape(16, 1);
        k.cooperative = cooperative;
        let at = k.buffer(&[0; 16]);
        k.run_as(seed, threads).unwrap();
        assert_eq!(k.read(at, 16), (0..16).rev().map(|i| i + 1).collect::<Vec<_>>());
    }
}

#[test]
fn shuffles_follow_their_segments() {
    let shuffle = |mode: &str, b: &str, c: u32| {
        map(
            &format!(
                "shfl.sync.{mode}.b32 %r5|%p0, %r3, {b}, {c}, -1; selp.u32 %r6, 1000, 0, %p0; add.u32 %r4, %r5, %r6;"
            ),
            |l| l,
        )
    };
    assert_eq!(shuffle("bfly", "5", 0x1f), lanes(|l| (l ^ 5) + 1000));
    // Lanes beyond the clamp give nothing, lanes in an earlier segment do.
    assert_eq!(shuffle("bfly", "5", 0xf), lanes(|l| if l ^ 5 <= 15 { (l ^ 5) + 1000 } else { l }));
    assert_eq!(shuffle("bfly", "9", 0x181f), lanes(|l| if l % 16 >= 8 { (l ^ 9) + 1000 } else { l }));
    assert_eq!(shuffle("up", "3", 0), lanes(|l| if l >= 3 { l - 3 + 1000 } else { l }));
    assert_eq!(shuffle("down", "3", 0x1f), lanes(|l| if l + 3 < 32 { l + 3 + 1000 } else { l }));
    // Segments of 8: c has the mask 0x18 above.
    assert_eq!(shuffle("down", "3", 0x181f), lanes(|l| if l % 8 < 5 { l + 3 + 1000 } else { l }));
    assert_eq!(shuffle("up", "3", 0x1800), lanes(|l| if l % 8 >= 3 { l - 3 + 1000 } else { l }));
    assert_eq!(shuffle("idx", "2", 0x181f), lanes(|l| l / 8 * 8 + 2 + 1000));
    // The index goes by its low five bits.
    assert_eq!(shuffle("idx", "37", 0x1f), lanes(|_| 5 + 1000));
    // A segment whose clamp is below the index: the lane keeps its own.
    assert_eq!(shuffle("idx", "6", 0x1804), lanes(|l| l));
}

#[test]
fn votes_matches_and_reductions_see_their_team() {
    let out = map("setp.gt.u32 %p0, %r3, 10; vote.sync.ballot.b32 %r4, %p0, -1;", |l| if l % 3 == 0 { 11 } else { 10 });
    assert_eq!(out, lanes(|_| (0..32).filter(|l| l % 3 == 0).map(|l| 1 << l).sum()));
    let unless = map("setp.gt.u32 %p0, %r3, 10; vote.sync.ballot.b32 %r4, !%p0, -1;", |l| l);
    assert_eq!(unless, lanes(|_| 0x7ff));
    let votes = "setp.ne.u32 %p0, %r3, 0; vote.sync.all.pred %p1, %p0, -1; vote.sync.any.pred %p2, %p0, -1;
        vote.sync.uni.pred %p3, !%p0, -1; selp.u32 %r5, 1, 0, %p1; selp.u32 %r6, 2, 0, %p2; selp.u32 %r7, 4, 0, %p3;
        or.b32 %r4, %r5, %r6; or.b32 %r4, %r4, %r7;";
    assert_eq!(map(votes, |_| 1), lanes(|_| 7));
    assert_eq!(map(votes, |_| 0), lanes(|_| 4));
    assert_eq!(map(votes, |l| l / 31), lanes(|_| 2));
    assert_eq!(map("match.any.sync.b32 %r4, %r3, -1;", |l| l % 4), lanes(|l| 0x1111_1111 << (l % 4)));
    let all = "match.all.sync.b32 %r4|%p0, %r3, -1; @%p0 add.u32 %r4, %r4, 2;";
    assert_eq!(map(all, |_| 9), lanes(|_| 1));
    assert_eq!(map(all, |l| l / 31), lanes(|_| 0));
    assert_eq!(map("redux.sync.add.s32 %r4, %r3, -1;", |l| u32::MAX - l), lanes(|_| 0u32.wrapping_sub(32 + 31 * 16)));
    assert_eq!(map("redux.sync.min.s32 %r4, %r3, -1;", |l| l.wrapping_sub(3)), lanes(|_| -3i32 as u32));
    assert_eq!(map("redux.sync.min.u32 %r4, %r3, -1;", |l| l.wrapping_sub(3)), lanes(|_| 0));
    assert_eq!(map("redux.sync.max.u32 %r4, %r3, -1;", |l| l.wrapping_sub(3)), lanes(|_| u32::MAX));
    assert_eq!(map("redux.sync.xor.b32 %r4, %r3, -1;", |l| 1 << l), lanes(|_| u32::MAX));
    assert_eq!(map("elect.sync %r5|%p0, -1; selp.u32 %r4, 1, %r5, %p0;", |l| l), lanes(|l| u32::from(l == 0)));
    // Two teams at once, in the two ways of a branch.
    let teams = map(
        "setp.lt.u32 %p0, %r3, 12; @%p0 bra LOW; redux.sync.add.u32 %r4, %r3, 0xfffff000; bra END;
         LOW: redux.sync.add.u32 %r4, %r3, 0xfff; END:",
        |l| l,
    );
    assert_eq!(teams, lanes(|l| if l < 12 { 66 } else { 496 - 66 }));
}

#[test]
fn loads_and_stores_have_every_width() {
    let mut k = kernel(
        "ld.global.s8 %r3, [%rd0+3]; st.global.u32 [%rd0+64], %r3;
         ld.global.u8 %r3, [%rd0+3]; st.global.u32 [%rd0+68], %r3;
         ld.global.s8 %h0, [%rd0+3]; st.global.u16 [%rd0+72], %h0; st.global.b8 [%rd0+74], %h0; st.global.b8 [%rd0+75], 7;
         ld.global.s16 %rd5, [%rd0+2]; st.global.u64 [%rd0+80], %rd5;
         ld.global.u32 %rd6, [%rd0]; st.global.b64 [%rd0+88], %rd6; st.global.u32 [%rd0+96], %rd5;
         ld.global.v2.u64 {%rd7, %rd8}, [%rd0+16]; st.global.v2.u64 [%rd0+112], {%rd8, %rd7};
         ld.global.v4.u8 {%h1, %h2, %h3, %h4}, [%rd0]; st.global.v4.u8 [%rd0+100], {%h4, %h3, %h2, %h1};
         { .reg .b128 %q; ld.global.b128 %q, [%rd0+16]; st.global.b128 [%rd0+128], %q; }",
    );
    let mut words = vec![0; 40];
    words[..8].copy_from_slice(&[0x8123_4567, 1, 2, 3, 0xa, 0xb, 0xc, 0xd]);
    let at = k.buffer(&words);
    k.run();
    let out = k.read(at + 64, 24);
    assert_eq!(out[..4], [0xffff_ff81, 0x81, 0x0781_ff81, 0]);
    assert_eq!(out[4..10], [0xffff_8123, u32::MAX, 0x8123_4567, 0, 0xffff_8123, 0x6745_2381]);
    assert_eq!(out[12..20], [0xc, 0xd, 0xa, 0xb, 0xa, 0xb, 0xc, 0xd]);
}

#[test]
fn vectors_reach_every_lane_at_any_stride() {
    // Contiguous, strided, uniform and partial: each lane adds up its vector.
    let sum = |address: &str, guard: &str| {
        map(
            &format!(
                "{address} setp.lt.u32 %p1, %r0, 20; mov.u32 %r9, 0; mov.u32 %r10, 0; mov.u32 %r11, 0; mov.u32 %r12, 0;
                 .shared .align 16 .b8 s[2048]; mov.u32 %r6, s; shl.b32 %r7, %r0, 4; add.u32 %r7, %r7, %r6;
                 st.shared.v4.u32 [%r7], {{%r3, %r0, 1, 2}}; st.shared.u32 [%r7+1024], 0; bar.warp.sync -1;
                 add.u32 %r8, %r5, %r6; {guard} ld.shared.v4.u32 {{%r9, %r10, %r11, %r12}}, [%r8];
                 add.u32 %r4, %r9, %r10; add.u32 %r4, %r4, %r11; add.u32 %r4, %r4, %r12;"
            ),
            |l| 100 * l,
        )
    };
    assert_eq!(sum("shl.b32 %r5, %r0, 4;", ""), lanes(|l| 101 * l + 3));
    assert_eq!(sum("mov.u32 %r5, 48;", ""), lanes(|_| 306));
    assert_eq!(sum("xor.b32 %r5, %r0, 21; shl.b32 %r5, %r5, 4;", ""), lanes(|l| 101 * (l ^ 21) + 3));
    assert_eq!(sum("shl.b32 %r5, %r0, 4;", "@%p1"), lanes(|l| if l < 20 { 101 * l + 3 } else { 0 }));
}

#[test]
fn generic_addresses_reach_their_windows() {
    let out = map(
        ".shared .align 8 .b8 s[256]; .local .align 8 .b8 d[64];
         mov.u32 %r6, s; cvt.u64.u32 %rd5, %r6; cvta.shared.u64 %rd5, %rd5; mul.wide.u32 %rd6, %r0, 8; add.s64 %rd5, %rd5, %rd6;
         mov.u64 %rd7, d; cvta.local.u64 %rd7, %rd7; add.s64 %rd7, %rd7, 24;
         setp.lt.u32 %p0, %r0, 16; selp.b64 %rd8, %rd5, %rd7, %p0;
         mul.wide.u32 %rd9, %r3, 65537; st.u64 [%rd8], %rd9; ld.u32 %r4, [%rd8]; ld.local.u32 %r5, [d+24];
         @!%p0 add.u32 %r4, %r4, %r5; ld.u16 %h0, [%rd8+2]; cvt.u32.u16 %r7, %h0; add.u32 %r4, %r4, %r7;",
        |l| l + 1,
    );
    assert_eq!(out, lanes(|l| (l + 1) * if l < 16 { 65538 } else { 2 * 65537 + 1 }));
}

#[test]
fn atomics_give_the_old_value_and_leave_the_new() {
    let run = |op: &str, start: u32, b: &dyn Fn(u32) -> u32| -> (Vec<u32>, u32) {
        let mut k = kernel(&format!(
            "ld.global.u32 %r3, [%rd1]; mov.b32 %f0, %r3; atom.global.{op}; mov.u32 %r5, %r4; st.global.u32 [%rd1], %r5;"
        ));
        let mut words = lanes(b);
        words.push(start);
        let at = k.buffer(&words);
        k.run();
        let mut out = k.read(at, 33);
        let last = out.pop().unwrap();
        (out, last)
    };
    let (old, new) = run("add.u32 %r4, [%rd0+128], %r3", 7, &|l| l);
    assert_eq!((old, new), (lanes(|l| 7 + l * l.saturating_sub(1) / 2), 7 + 496));
    assert_eq!(run("inc.u32 %r4, [%rd0+128], 4", 3, &|_| 0), (lanes(|l| (3 + l) % 5), 0));
    assert_eq!(run("dec.u32 %r4, [%rd0+128], 4", 9, &|_| 0).0[..4], [9, 4, 3, 2]);
    assert_eq!(run("min.s32 %r4, [%rd0+128], %r3", 5, &|l| l.wrapping_sub(9)).1, -9i32 as u32);
    assert_eq!(run("max.s32 %r4, [%rd0+128], %r3", -20i32 as u32, &|l| l.wrapping_sub(40)).1, -9i32 as u32);
    assert_eq!(run("max.u32 %r4, [%rd0+128], %r3", 5, &|l| l.wrapping_sub(9)).1, u32::MAX);
    assert_eq!(
        run("cas.b32 %r4, [%rd0+128], 5, %r3", 5, &|l| 100 + l),
        (
            {
                let mut old = vec![100; 32];
                old[0] = 5;
                old
            },
            100
        )
    );
    let (_, sum) = run("add.noftz.f16x2 %r4, [%rd0+128], %r3", 0x3c00_8000, &|_| 0x3c00_0001);
    // 33 in the upper half; 32 times the least subnormal in the lower.
    assert_eq!(sum, 0x5020_0020);
}

#[test]
fn float_atomics_flush_in_global_memory_only() {
    let body = |space: &str, at: &str| {
        format!(
            ".shared .align 4 .b8 s[4]; mov.u32 %r6, s; st.shared.u32 [%r6], 0; setp.eq.u32 %p0, %r0, 0; mov.b32 %f0, %r3;
             @%p0 atom.{space}.add.f32 %f1, [{at}], %f0; @%p0 ld.{space}.u32 %r4, [{at}];"
        )
    };
    let global = body("global", "%rd0+4").replace("setp.eq", "st.global.u32 [%rd0+4], 0; setp.eq");
    assert_eq!(map(&global, |_| 0x8000_0001)[0], 0);
    assert_eq!(map(&body("shared", "%r6"), |_| 0x0000_0001)[0], 1);
}

#[test]
fn faults_say_where_they_happen() {
    let mut k =
        kernel("\n setp.eq.u32 %p0, %r0, 33; mov.u32 %r4, 1;\n @%p0 st.global.u32 [%rd1+400], %r4;").shape(1, 64);
    let at = k.buffer(&[0; 64]);
    let fault = k.fault();
    assert_eq!((fault.kind, fault.warp, fault.lane), (Kind::OutOfBounds, Some(1), Some(1)), "{fault}");
    assert_eq!(fault.address, Some(at + 33 * 4 + 400));
    let text = fault.to_string();
    assert!(text.starts_with("cuda-sim: out of bounds: store of 4 bytes, address 0x"), "{text}");
    assert!(text.contains("280 bytes past the end of allocation of 256 bytes"), "{text}");
    assert!(text.contains("kernel k, PTX line") && text.contains("block (0,0,0), warp 1, lane 1"), "{text}");
    assert!(!text.contains('\n'));

    let mut k = kernel("ld.global.u64 %rd5, [%rd0+4];");
    k.buffer(&[0; 4]);
    assert_eq!(k.fault().kind, Kind::Misaligned);
    let mut k = kernel("ld.global.u32 %r3, [%rd0];");
    let at = k.buffer(&[0; 4]);
    k.memory.free(at).unwrap();
    assert_eq!(k.fault().kind, Kind::UseAfterFree);
    let mut k = kernel(".shared .b8 s[16]; mov.u32 %r4, s; ld.shared.u32 %r3, [%r4+16];");
    k.buffer(&[0; 4]);
    assert_eq!(k.fault().kind, Kind::OutOfBounds);
    let mut k = kernel("trap;");
    k.buffer(&[0; 4]);
    assert_eq!(k.fault().kind, Kind::Trap);
}

#[test]
fn accesses_to_two_allocations_at_once_are_translated() {
    let mut k = Kernel::new(
        ".param .u64 p, .param .u64 q",
        &format!(
            "{HEAD} ld.param.u64 %rd2, [q]; and.b32 %r3, %r0, 1; setp.eq.u32 %p0, %r3, 0; selp.b64 %rd3, %rd0, %rd2, %p0;
             mul.wide.u32 %rd4, %r0, 4; add.s64 %rd3, %rd3, %rd4; ld.global.u32 %r4, [%rd3]; add.u32 %r4, %r4, 1;
             st.global.u32 [%rd3], %r4; ret;"
        ),
    );
    let (a, b) = (k.buffer(&lanes(|l| l)), k.buffer(&lanes(|l| 100 * l)));
    k.run();
    assert_eq!(k.read(a, 32), lanes(|l| if l % 2 == 0 { l + 1 } else { l }));
    assert_eq!(k.read(b, 32), lanes(|l| if l % 2 == 1 { 100 * l + 1 } else { 100 * l }));
}

#[test]
fn reads_of_what_nothing_wrote_are_found() {
    let mut k = kernel("ld.global.u32 %r3, [%rd1]; st.global.u32 [%rd1], %r3;");
    k.checks.init = true;
    let at = k.memory.allocate(128, 1, Origin::Alloc).unwrap();
    k.params.extend(at.to_le_bytes());
    k.memory.write(at, &[0; 127]).unwrap();
    let fault = k.fault();
    assert_eq!((fault.kind, fault.lane, fault.address), (Kind::UninitialisedRead, Some(31), Some(at + 127)));
    k.memory.write(at + 127, &[0]).unwrap();
    k.run();

    let shared = |offset: u32| {
        let mut k = kernel(&format!(
            ".shared .align 4 .b8 s[256]; mov.u32 %r4, s; shl.b32 %r5, %r0, 2; add.u32 %r5, %r5, %r4;
             st.shared.u32 [%r5], 1; ld.shared.u32 %r6, [%r5+{offset}];"
        ));
        k.checks.init = true;
        k.buffer(&[0; 32]);
        k.run_as(0, 1)
    };
    assert!(shared(0).is_ok());
    assert_eq!(shared(4).unwrap_err().kind, Kind::UninitialisedRead);
}

/// Threads poll the word that `p` points to, all of a block together, until they have found something there.
const POLL: &str = "POLL: ld.acquire.gpu.global.u32 %r3, [%rd0]; setp.ne.u32 %p0, %r3, 0;
    bar.red.and.pred %p1, 0, %p0; @!%p1 bra POLL;";

#[test]
fn blocks_that_poll_between_barriers_let_the_others_start() {
    let text = format!(
        "setp.eq.u32 %p2, %r1, 2; @!%p2 bra POLL; st.release.gpu.global.u32 [%rd0], 7; bra.uni END; {POLL} END:"
    );
    for threads in [1, 2] {
        let mut k = kernel(&text).shape(3, 64);
        let flag = k.buffer(&[0; 4]);
        k.run_as(0, threads).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(k.read(flag, 1), [7]);
    }
}

#[test]
fn blocks_that_poll_between_barriers_for_nobody_are_a_deadlock() {
    for threads in [1, 2] {
        let mut k = kernel(POLL).shape(2, 64);
        k.buffer(&[0; 4]);
        assert_eq!(k.run_as(0, threads).unwrap_err().kind, Kind::Deadlock);
    }
}

#[test]
fn threads_that_wait_for_nobody_are_a_deadlock() {
    let mut k = kernel("setp.lt.u32 %p0, %r0, 32; @%p0 bra END; bar.sync 1, 64; END:").shape(1, 64);
    k.buffer(&[0; 64]);
    let fault = k.fault();
    assert_eq!((fault.kind, fault.warp), (Kind::Deadlock, Some(1)), "{fault}");
    let mut k =
        kernel("SPIN: ld.volatile.global.u32 %r3, [%rd0]; nanosleep.u32 20; setp.eq.u32 %p0, %r3, 0; @%p0 bra SPIN;");
    k.buffer(&[0; 64]);
    assert_eq!(k.fault().kind, Kind::Deadlock);
    // All that have not exited are enough for a barrier without a count.
    let mut k = kernel("setp.lt.u32 %p0, %r0, 32; @%p0 bra END; bar.sync 0; END:").shape(1, 64);
    k.buffer(&[0; 64]);
    k.run();
}

#[test]
fn collectives_that_lanes_do_not_share_are_divergent() {
    let divergent = |body: &str| {
        let mut k = kernel(body).shape(1, 64);
        k.buffer(&[0; 64]);
        k.fault().kind
    };
    assert_eq!(divergent("setp.lt.u32 %p0, %r0, 3; @%p0 bar.sync 0; bar.sync 1;"), Kind::DivergentBarrier);
    assert_eq!(
        divergent("setp.lt.u32 %p0, %r0, 3; @%p0 bra A; bar.sync 0; bra END; A: bar.sync 0; END:"),
        Kind::DivergentBarrier
    );
    assert_eq!(
        divergent("setp.lt.u32 %p0, %r0, 3; @%p0 shfl.sync.bfly.b32 %r3, %r0, 1, 31, -1; bar.sync 0;"),
        Kind::DivergentBarrier
    );
    assert_eq!(divergent("shfl.sync.bfly.b32 %r3, %r0, 1, 31, 0xff;"), Kind::InvalidOperation);
    assert_eq!(divergent("bar.sync 0, 48;"), Kind::InvalidOperation);
    assert_eq!(
        divergent("setp.lt.u32 %p0, %r0, 32; @%p0 bra A; bar.sync 2, 64; bra END; A: bar.sync 2, 32; END:"),
        Kind::DivergentBarrier
    );
}

#[test]
fn a_warp_meets_at_different_places() {
    // `bar.warp.sync` in both ways of a branch: the lanes wait for each other all the same.
    let out = map(
        ".shared .align 4 .b8 s[128]; mov.u32 %r5, s; shl.b32 %r6, %r0, 2; add.u32 %r5, %r5, %r6; xor.b32 %r7, %r6, 64;
         mov.u32 %r8, s; add.u32 %r7, %r7, %r8; setp.lt.u32 %p0, %r0, 16; @%p0 bra LOW;
         st.shared.u32 [%r5], %r3; bar.warp.sync -1; ld.shared.u32 %r4, [%r7]; bra END;
         LOW: st.shared.u32 [%r5], %r3; bar.warp.sync -1; ld.shared.u32 %r4, [%r7]; END:",
        |l| 7 * l,
    );
    assert_eq!(out, lanes(|l| 7 * (l ^ 16)));
    // Lanes that exit meanwhile are not waited for.
    let mut k =
        kernel("setp.lt.u32 %p0, %r0, 16; @%p0 bra END; bar.sync 0; bar.warp.sync -1; st.global.u32 [%rd1], %r0; END:");
    let at = k.buffer(&[0; 32]);
    k.run();
    assert_eq!(k.read(at, 32), lanes(|l| if l < 16 { 0 } else { l }));
    let mut k = kernel("setp.lt.u32 %p0, %r0, 16; @%p0 bra LOW; bar.warp.sync -1; LOW: bar.sync 0;");
    k.buffer(&[0; 32]);
    assert_eq!(k.fault().kind, Kind::DivergentBarrier);
}

#[test]
fn the_fault_does_not_depend_on_the_host() {
    let place = |seed: u64, threads: usize| {
        let mut k =
            kernel("and.b32 %r3, %r1, 3; setp.eq.u32 %p0, %r3, 1; @%p0 st.global.u32 [%rd1+4096], %r1;").shape(16, 64);
        k.buffer(&[0; 1024]);
        let fault = k.run_as(seed, threads).unwrap_err();
        (fault.block, fault.warp, fault.lane, fault.to_string())
    };
    assert_eq!(place(0, 1).0, Some([1, 0, 0]));
    for seed in 0..6 {
        for threads in [2, 3, 8] {
            assert_eq!(place(seed, threads), place(seed, 1), "seed {seed}, {threads} threads");
        }
    }
}

#[test]
fn counters_count_what_was_run() {
    let mut k = kernel("ld.global.v2.u32 {%r3, %r4}, [%rd0]; setp.lt.u32 %p0, %r0, 8; @%p0 st.global.u32 [%rd1], %r3;")
        .shape(2, 32);
    k.count = Some(1 << 20);
    k.buffer(&[0; 64]);
    let counters = k.run().counters;
    use crate::code::Class;
    assert_eq!(counters.instructions[Class::GlobalLoad as usize], 2);
    assert_eq!(counters.lane_operations[Class::GlobalLoad as usize], 64);
    // Only the first block has threads below 8.
    assert_eq!(counters.lane_operations[Class::GlobalStore as usize], 8);
    assert_eq!((counters.sums.load_bytes, counters.sums.store_bytes), (512, 32));
    let traffic = counters.traffic.unwrap();
    assert_eq!((traffic.asked().load_sectors, traffic.asked().store_sectors), (2, 1));
    assert_eq!((traffic.distinct_sectors, traffic.dram.read, traffic.dram.written), (1, 1, 1));
    let distinct = traffic.allocations[0].distinct;
    assert_eq!((distinct.read_bytes, distinct.written_bytes), (8, 32));
}

#[test]
fn bank_conflicts_are_counted() {
    let passes = |stride: u32| {
        let mut k = kernel(&format!(
            ".shared .align 4 .b8 s[4096]; mov.u32 %r4, s; mul.lo.u32 %r5, %r0, {stride}; add.u32 %r5, %r5, %r4; st.shared.u32 [%r5], %r0;"
        ));
        k.count = Some(1 << 20);
        k.buffer(&[0; 64]);
        let counters = k.run().counters;
        (counters.sums.shared_passes, counters.sums.bank_conflicts)
    };
    assert_eq!(passes(4), (1, 0));
    assert_eq!(passes(0), (1, 0));
    assert_eq!(passes(8), (2, 1));
    assert_eq!(passes(128), (32, 31));
    assert_eq!(passes(12), (1, 0));
}

#[test]
fn asynchronous_copies_are_counted_at_both_ends() {
    let run = |stride: u32, take: u32| {
        let mut k = kernel(&format!(
            ".shared .align 16 .b8 s[2048]; mov.u32 %r4, s; mad.lo.u32 %r5, %r0, {stride}, %r4;
             mul.wide.u32 %rd2, %r0, 16; add.s64 %rd2, %rd2, %rd0;
             cp.async.ca.shared.global [%r5], [%rd2], 16, {take}; cp.async.wait_all;"
        ));
        k.count = Some(1 << 20);
        k.buffer(&[0; 128]);
        let counters = k.run().counters;
        let traffic = counters.traffic.unwrap();
        let (asked, distinct) = (traffic.asked(), traffic.allocations[0].distinct);
        assert_eq!(asked.load_bytes, counters.sums.load_bytes);
        (
            asked.load_bytes,
            distinct.read_bytes,
            distinct.read_sectors,
            counters.sums.shared_passes,
            counters.sums.bank_conflicts,
        )
    };
    assert_eq!(run(16, 16), (512, 512, 16, 4, 0));
    assert_eq!(run(32, 16), (512, 512, 16, 8, 4));
    assert_eq!(run(16, 4), (128, 128, 16, 4, 0));
}
