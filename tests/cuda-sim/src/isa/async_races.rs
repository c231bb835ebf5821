//! What the race check finds of asynchronous copies.

use crate::isa::team::Team;
use crate::machine::LANES;
use crate::machine::fault::Kind;
use crate::machine::schedule::AsyncTiming::Late;

/// Runs code on one warp with the race check on; `%s` is shared memory at 1024 + 16 bytes for each lane.
fn run(text: &str) -> Option<Kind> {
    let text = format!(".reg .b32 %s, %x; .reg .b64 %g; .reg .pred %p; {text}");
    let mut team = Team::new(&text, 1, Late);
    team.check_races();
    team.set_b32("%s", std::array::from_fn(|lane| 1024 + 16 * lane as u32));
    team.set_pred("%p", 1);
    let address = team.allocate(&[7; 512]);
    team.set_b64("%g", address);
    assert_eq!(LANES, 32);
    team.run().err().map(|fault| fault.kind)
}

const COPY: &str = "cp.async.ca.shared.global [%s], [%g], 8; ";
const WAIT: &str = "cp.async.wait_all; bar.warp.sync -1; ";
const STORE: &str = "@%p cp.async.bulk.global.shared::cta.bulk_group [%g], [%s], 512; cp.async.bulk.commit_group; ";

#[test]
fn a_copy_in_flight_must_not_be_touched() {
    for access in ["ld.shared.b32 %x, [%s];", "st.shared.b32 [%s + 4], %x;", "ld.shared.b32 %x, [%s + 16];"] {
        let access = access.replace("[%s + 16]", "[1040]");
        assert_eq!(run(&format!("{COPY}{access}")), Some(Kind::Race), "{access}");
        assert_eq!(run(&format!("{COPY}{WAIT}{access}")), None, "{access}");
    }
    assert_eq!(run(&format!("{COPY}ld.shared.b32 %x, [%s + 8];")), None, "the bytes beside it");
    assert_eq!(run(&format!("{COPY}{WAIT}{COPY}")), None);
    assert_eq!(
        run(&format!("{COPY}ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%x, %x, %x, %x}}, [%s];")),
        Some(Kind::Race)
    );
}

#[test]
fn a_wait_waits_for_its_groups() {
    let two =
        format!("{COPY} cp.async.commit_group; cp.async.ca.shared.global [%s + 8], [%g], 8; cp.async.commit_group;");
    for (keep, first, second) in [(0, None, None), (1, None, Some(Kind::Race)), (2, Some(Kind::Race), Some(Kind::Race))]
    {
        let wait = format!("{two} cp.async.wait_group {keep};");
        assert_eq!(run(&format!("{wait} ld.shared.b32 %x, [%s];")), first, "the first of two, {keep} left");
        assert_eq!(run(&format!("{wait} ld.shared.b32 %x, [%s + 8];")), second, "the second of two, {keep} left");
    }
}

#[test]
fn the_source_of_a_store_may_be_read_but_not_written() {
    assert_eq!(run(&format!("{STORE}ld.shared.b32 %x, [%s];")), None);
    assert_eq!(run(&format!("{STORE}st.shared.b32 [%s], %x;")), Some(Kind::Race));
    assert_eq!(run(&format!("{STORE}{COPY}")), Some(Kind::Race));
    let wait = "cp.async.bulk.wait_group.read 0; ";
    assert_eq!(run(&format!("{STORE}{wait}@%p st.shared.b32 [%s], %x;")), None);
    assert_eq!(run(&format!("{STORE}{wait}bar.warp.sync -1; st.shared.b32 [%s], %x;")), None);
    assert_eq!(run(&format!("{COPY}{STORE}")), Some(Kind::Race), "a store of what has not landed");
}

#[test]
fn the_async_proxy_needs_a_fence() {
    let write = "st.shared.b32 [%s], %x; ";
    let (fence, sync) = ("fence.proxy.async.shared::cta; ", "bar.warp.sync -1; ");
    assert_eq!(run(&format!("{write}{sync}{STORE}")), Some(Kind::Race));
    assert_eq!(run(&format!("{write}{fence}{sync}{STORE}")), None);
    assert_eq!(run(&format!("{fence}{write}{sync}{STORE}")), Some(Kind::Race), "before the write");
    assert_eq!(run(&format!("{COPY}{WAIT}{STORE}")), Some(Kind::Race), "cp.async is of the generic proxy");
    assert_eq!(run(&format!("{COPY}{WAIT}{fence}{STORE}")), None);
}

#[test]
fn lanes_wait_for_their_own_copies_alone() {
    let read = "ld.shared.b32 %x, [1040]; ";
    let sync = "bar.warp.sync -1; ";
    assert_eq!(run(&format!("{COPY}cp.async.wait_all; {read}")), Some(Kind::Race));
    assert_eq!(run(&format!("{COPY}cp.async.wait_all; ld.shared.b32 %x, [%s];")), None);
    // Lanes that meet before they wait know of nothing but the copy's beginning.
    let late = format!("{COPY}cp.async.commit_group; {sync}cp.async.wait_group 0; ");
    assert_eq!(run(&format!("{late}{read}")), Some(Kind::Race));
    assert_eq!(run(&format!("{late}{sync}{read}")), None);
    assert_eq!(run(&format!("{COPY}cp.async.wait_all; {sync}{read}st.shared.b32 [%s], %x;")), Some(Kind::Race));
    // What a lane copies from shared memory is in the way of the others until they have heard that it waited.
    let store = format!("{STORE}{sync}cp.async.bulk.wait_group.read 0; ");
    assert_eq!(run(&format!("{store}st.shared.b32 [%s], %x;")), Some(Kind::Race));
    assert_eq!(run(&format!("{store}{sync}st.shared.b32 [%s], %x;")), None);
    // One lane copies what all have written.
    let write = "st.shared.b32 [%s], %x; fence.proxy.async.shared::cta; ";
    assert_eq!(run(&format!("{write}{STORE}")), Some(Kind::Race));
}

#[test]
fn a_wait_may_leave_many_groups() {
    let group = |n: u32| format!("cp.async.ca.shared.global [%s + {}], [%g], 8; cp.async.commit_group; ", 512 * n);
    let wait = "cp.async.wait_group 10; ";
    let text = (0..12).map(group).collect::<String>() + wait + &group(12) + wait;
    for (n, found) in [(0, None), (1, None), (2, None), (3, Some(Kind::Race)), (12, Some(Kind::Race))] {
        assert_eq!(run(&format!("{text} ld.shared.b32 %x, [%s + {}];", 512 * n)), found, "group {n}");
    }
}
