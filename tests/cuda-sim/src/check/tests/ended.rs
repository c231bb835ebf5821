//! Reads of blocks that have ended. One of them may stand for the others only if nobody will ever know of it alone: what a
//! block has published, by whatever way, must not count as such.

use super::*;

/// Blocks, or clusters, of which one lane works, in the order of their tickets `%r10`: the first reads a word and says
/// so; the second reads it and says nothing; the others read so much beside it that what is remembered is tidied up; the
/// last one waits for all of them, hears the first and writes the word. `begin` and `end` are what every worker does before and
/// after, `tell` what the first one does.
fn readers(count: u32, begin: &str, tell: &str, end: &str) -> String {
    let spin = |at: &str, name: &str, until: &str| {
        format!("{name}: ld.volatile.global.u32 %r3, [%rd0+{at}]; setp.{until}; @!%p0 bra {name};")
    };
    let (told, all) = (spin("64", "TOLD", "ne.u32 %p0, %r3, 0"), format!("eq.u32 %p0, %r3, {}", count - 2));
    let read = |at: u32| format!("ld.global.v4.u32 {{%r3, %r4, %r5, %r6}}, [%rd2+{at}];");
    format!(
        "{begin} atom.global.add.u32 %r10, [%rd0], 1; add.s64 %rd2, %rd0, 65536; setp.eq.u32 %p0, %r10, 0; @%p0 bra FIRST;
         setp.eq.u32 %p0, %r10, 1; @%p0 bra SECOND; setp.eq.u32 %p0, %r10, {}; @%p0 bra LAST;
         and.b32 %r11, %r10, 127; mul.wide.u32 %rd3, %r11, 64; add.s64 %rd2, %rd2, %rd3; {} {} {} {}
         SAID: red.relaxed.gpu.global.add.u32 [%rd0+128], 1; bra DONE;
         FIRST: {} {tell} bra DONE; SECOND: {told} {} bra SAID;
         LAST: {} ACQUIRE: ld.acquire.gpu.global.u32 %r3, [%rd0+64]; st.global.u32 [%rd2], 1; DONE: {end}",
        count - 1,
        read(64),
        read(80),
        read(96),
        read(112),
        read(0),
        read(0),
        spin("128", "ALL", &all),
    )
}

const TELL: &str = "red.release.gpu.global.add.u32 [%rd0+64], 1;";
const COUNT: u32 = 700;

/// The second one's read is found, and without it there is nothing to find.
fn finds_the_second(cluster: u32, body: &str) {
    let fault = run_in_clusters(cluster, COUNT * cluster, body).expect_err("the second reader was forgotten");
    assert_eq!(fault.kind, Kind::Race, "{fault}");
    let (before, second) = body.split_once("SECOND:").unwrap();
    let (second, after) = second.split_once("bra SAID;").unwrap();
    let silent = second.rsplit_once("ld.global.v4").unwrap().0;
    let alone = format!("{before} SECOND: {silent} bra SAID; {after}");
    run_in_clusters(cluster, COUNT * cluster, &alone).unwrap_or_else(|fault| panic!("{fault}"));
}

#[test]
fn a_block_that_has_released_a_flag_is_not_forgotten_with_those_that_said_nothing() {
    finds_the_second(1, &readers(COUNT, "@!%p7 bra END;", TELL, "END:"));
}

/// Who is the second block of the cluster, and the addresses there of `flag` and of `bar`.
const RANK: &str = "mov.u32 %r25, %cluster_ctarank; setp.eq.u32 %p5, %r25, 0; mov.u32 %r3, 1; mov.u32 %r4, flag;
                    mov.u32 %r5, bar; mapa.shared::cluster.u32 %r27, %r4, %r3; mapa.shared::cluster.u32 %r28, %r5, %r3;
                    mov.u32 %r10, -1; setp.ne.u32 %p6, %r24, 0;";

/// The second block releases the flag for the first one, if that was the first of all.
const FOR_THE_OTHER: &str =
    "ld.shared.u32 %r10, [flag]; setp.eq.u32 %p0, %r10, 0; @%p0 red.release.gpu.global.add.u32 [%rd0+64], 1;";

#[test]
fn a_block_whose_cluster_has_met_is_not_forgotten() {
    let begin = format!("{RANK} @!%p5 bra MEET; @%p6 bra MEET;");
    let end =
        format!("st.shared::cluster.u32 [%r27], %r10; MEET: {SYNC} @%p5 bra END; @%p6 bra END; {FOR_THE_OTHER} END:");
    finds_the_second(2, &readers(COUNT, &begin, "", &end));
}

#[test]
fn a_block_that_has_arrived_at_anothers_mbarrier_is_not_forgotten() {
    // The second block says by a flag of its own, at 4 bytes for each cluster, that it has made the mbarrier.
    let begin = format!(
        "{RANK} @%p6 bra END; shr.u32 %r6, %r1, 1; mul.wide.u32 %rd4, %r6, 4; add.s64 %rd4, %rd0, %rd4; @!%p5 bra OTHER;
         READY: ld.acquire.gpu.global.u32 %r3, [%rd4+1024]; setp.eq.u32 %p0, %r3, 0; @%p0 bra READY;"
    );
    let end = format!(
        "st.shared::cluster.u32 [%r27], %r10; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r28]; bra END;
         OTHER: mbarrier.init.shared.b64 [bar], 1; fence.mbarrier_init.release.cluster; st.release.gpu.global.u32 [%rd4+1024], 1;
         WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p0, [bar], 0; @!%p0 bra WAIT;
         {FOR_THE_OTHER} END:"
    );
    finds_the_second(2, &readers(COUNT, &begin, "", &end));
}
