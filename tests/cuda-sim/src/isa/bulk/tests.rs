//! Bulk copies, tiles and their completion, under every timing.

use crate::isa::team::Team;
use crate::isa::tensor_map::{Request, TensorMap};
use crate::machine::LANES;
use crate::machine::fault::{Fault, Kind};
use crate::machine::schedule::AsyncTiming::{Early, Late, Random};
use crate::memory::PARAM_WINDOW;

const ONE: u32 = 1;
const REGISTERS: &str = ".reg .b32 %s, %m, %n, %x, %y; .reg .b64 %g, %t, %state; .reg .pred %one, %done, %again; ";

fn kind(result: Result<(), Fault>) -> Option<Kind> {
    result.err().map(|fault| fault.kind)
}

/// One warp whose lane 0 (`@%one`) does the work. `%s` is shared memory at 1024, `%m` an mbarrier at 64.
fn solo(text: &str, timing: crate::machine::schedule::AsyncTiming) -> Team {
    let mut team = Team::new(&format!("{REGISTERS}{text}"), 1, timing);
    team.set_pred("%one", ONE);
    team.set_b32("%s", [1024; LANES]);
    team.set_b32("%m", [64; LANES]);
    team
}

const LOAD: &str = "@%one mbarrier.init.shared::cta.b64 [%m], 1; \
    @%one mbarrier.arrive.expect_tx.shared::cta.b64 %state, [%m], 4096; \
    @%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%g], 4096, [%m]; \
    mbarrier.try_wait.parity.shared::cta.b64 %done, [%m], 0; \
    mbarrier.try_wait.parity.shared::cta.b64 %again, [%m], 1;";

#[test]
fn a_load_lands_before_its_phase_ends() {
    let bytes: Vec<u8> = (0..4096).map(|i| (i * 7 % 251) as u8).collect();
    for timing in [Late, Early, Random] {
        let mut team = solo(LOAD, timing);
        let address = team.allocate(&bytes);
        team.set_b64("%g", address);
        team.run_to(3).unwrap();
        if timing != Random {
            assert_eq!(team.shared()[1024..5120] == bytes[..], timing == Early);
        }
        team.run().unwrap();
        assert_eq!(team.shared()[1024..5120], bytes);
        assert_eq!(team.pred(0, "%done"), u32::MAX);
        assert_eq!(team.pred(0, "%again"), 0, "the next phase is not complete");
        team.finish().unwrap();
    }
}

#[test]
fn a_phase_waits_for_all_its_bytes() {
    let mut team = solo(&LOAD.replace("[%m], 4096; @%one cp", "[%m], 4112; @%one cp"), Late);
    let address = team.allocate(&[1; 4096]);
    team.set_b64("%g", address);
    team.run().unwrap();
    assert_eq!(team.pred(0, "%done"), 0);
}

#[test]
fn a_load_that_nobody_waits_for_is_found() {
    for checked in [false, true] {
        let mut team = solo(LOAD, Late);
        team.checks.race = checked;
        let address = team.allocate(&[1; 4096]);
        team.set_b64("%g", address);
        team.run_to(3).unwrap();
        assert_eq!(kind(team.finish()), checked.then_some(Kind::Async));
    }
}

const STORE: &str = "@%one cp.async.bulk.global.shared::cta.bulk_group [%g], [%s], 256; \
    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; cp.async.bulk.wait_group 0;";

#[test]
fn a_store_reads_then_writes() {
    for timing in [Late, Early, Random] {
        let mut team = solo(STORE, timing);
        let address = team.allocate(&[9; 256]);
        team.set_b64("%g", address);
        team.shared()[1024..1280].fill(5);
        let read = |team: &Team| {
            let mut out = [0; 256];
            team.memory.read(address, &mut out).unwrap();
            out
        };
        team.run_to(2).unwrap();
        if timing == Late {
            assert_eq!(read(&team), [9; 256]);
            assert_eq!(kind(team.finish()), Some(Kind::Async), "shared memory is still to be read");
        }
        team.run_to(3).unwrap();
        team.shared()[1024..1280].fill(6);
        team.run().unwrap();
        assert_eq!(read(&team), [5; 256]);
        team.finish().unwrap();
    }
}

#[test]
fn a_thread_commits_its_own_copies_alone() {
    let text = STORE.replace("cp.async.bulk.commit_group;", "@!%one cp.async.bulk.commit_group;");
    let mut team = solo(&text, Late);
    let address = team.allocate(&[9; 256]);
    team.set_b64("%g", address);
    team.shared()[1024..1280].fill(5);
    team.run().unwrap();
    assert_eq!(kind(team.finish()), Some(Kind::Async), "nobody has committed it, so nobody has waited for it");
}

#[test]
fn without_the_wait_a_late_store_reads_what_came_after() {
    let mut team = solo(&STORE.replace("cp.async.bulk.wait_group.read 0;", ""), Late);
    let address = team.allocate(&[9; 256]);
    team.set_b64("%g", address);
    team.shared()[1024..1280].fill(5);
    team.run_to(2).unwrap();
    team.shared()[1024..1280].fill(6);
    team.run().unwrap();
    let mut out = [0; 256];
    team.memory.read(address, &mut out).unwrap();
    assert_eq!(out, [6; 256]);
}

#[test]
fn reductions_add_to_what_is_there() {
    let text = "@%one cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%g], [%s], 16; \
                cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;";
    let floats = |values: [f32; 4]| values.map(f32::to_le_bytes).concat();
    let mut team = solo(text, Late);
    let address = team.allocate(&floats([1.0, 2.0, 3.0, 4.0]));
    team.set_b64("%g", address);
    team.shared()[1024..1040].copy_from_slice(&floats([0.5, 0.5, 0.5, -4.0]));
    team.run().unwrap();
    let mut out = [0; 16];
    team.memory.read(address, &mut out).unwrap();
    assert_eq!(out[..], floats([1.5, 2.5, 3.5, 0.0]));
}

#[test]
fn misuse_is_a_fault() {
    let run = |from: &str, to: &str, change: &dyn Fn(&mut Team)| {
        let mut team = solo(&LOAD.replace(from, to), Late);
        let address = team.allocate(&[1; 4096]);
        team.set_b64("%g", address);
        change(&mut team);
        kind(team.run())
    };
    let nothing = |_: &mut Team| {};
    assert_eq!(run("", "", &nothing), None);
    assert_eq!(run("[%g], 4096", "[%g], 4088", &nothing), Some(Kind::Misaligned), "size");
    assert_eq!(run("[%g], 4096", "[%g + 8], 4096", &nothing), Some(Kind::Misaligned), "source");
    assert_eq!(run("[%s]", "[%s + 4]", &nothing), Some(Kind::Misaligned), "destination");
    assert_eq!(run("[%g], 4096", "[%g + 16], 4096", &nothing), Some(Kind::OutOfBounds), "source");
    assert_eq!(run("[%s]", "[%s + 163840]", &nothing), Some(Kind::OutOfBounds), "destination");
    assert_eq!(run("4096, [%m]", "4096, [%m + 8]", &nothing), Some(Kind::InvalidOperation), "no mbarrier");
    assert_eq!(run("[%m], 1;", "[%m], 0;", &nothing), Some(Kind::InvalidOperation), "count");
    let twice = "@%one mbarrier.arrive.expect_tx.shared::cta.b64 %state, [%m], 4096; ";
    assert_eq!(run(twice, &twice.repeat(2), &nothing), Some(Kind::InvalidOperation), "arrival too many");
    // Shared memory under an mbarrier is overwritten.
    let mut team = solo(LOAD, Late);
    let address = team.allocate(&[1; 4096]);
    team.set_b64("%g", address);
    team.run_to(2).unwrap();
    team.shared()[64..72].fill(0);
    assert_eq!(kind(team.run()), Some(Kind::InvalidOperation));
}

/// A 40 x 24 matrix of 16-bit elements in rows of 96 bytes, whose elements are their numbers, and a tile of 16 rows.
fn tensor(team: &Team, swizzle: u32, columns: u32) -> (TensorMap, u64) {
    let mut bytes = vec![0xee; 96 * 24];
    for y in 0..24u16 {
        for x in 0..40u16 {
            bytes[y as usize * 96 + x as usize * 2..][..2].copy_from_slice(&(y * 40 + x + 1).to_le_bytes());
        }
    }
    let address = team.allocate(&bytes);
    let map = TensorMap::tiled(&Request {
        data_type: 1,
        address,
        dims: &[40, 24],
        strides: &[96],
        tile: &[columns, 16],
        element_strides: &[1, 1],
        interleave: 0,
        swizzle,
        promotion: 0,
        fill: 0,
    });
    (map.unwrap(), address)
}

/// The element of the tensor at (x, y), 0 outside.
fn element(x: i32, y: i32) -> u16 {
    if (0..40).contains(&x) && (0..24).contains(&y) { (y * 40 + x + 1) as u16 } else { 0 }
}

const TILE: &str = "@%one mbarrier.init.shared::cta.b64 [%m], 1; \
    @%one mbarrier.arrive.expect_tx.shared::cta.b64 %state, [%m], %n; \
    @%one cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%s], [%t, {%x, %y}], [%m]; \
    mbarrier.try_wait.parity.shared::cta.b64 %done, [%m], 0;";

#[test]
fn tiles_are_loaded_with_every_swizzle() {
    for (swizzle, columns) in [(0, 24), (1, 16), (2, 32), (3, 64)] {
        for (x, y) in [(0, 0), (8, 4), (-3, -5), (30, 20), (40, 0), (0, 24), (-64, 3)] {
            for timing in [Late, Early, Random] {
                let mut team = solo(TILE, timing);
                let (map, _) = tensor(&team, swizzle, columns);
                team.params = [vec![0; 64], map.encode().to_vec()].concat();
                team.set_b64("%t", PARAM_WINDOW + 64);
                team.set_b32("%n", [columns * 32; LANES]);
                team.set_b32("%x", [x as u32; LANES]);
                team.set_b32("%y", [y as u32; LANES]);
                team.run().unwrap();
                assert_eq!(team.pred(0, "%done"), u32::MAX, "the tile has all its bytes");
                let bits = swizzle as usize;
                for row in 0..16 {
                    for column in 0..columns as usize {
                        let linear = 1024 + row * columns as usize * 2 + column * 2;
                        let at = linear ^ ((linear >> 7) % (1 << bits)) << 4;
                        let got = u16::from_le_bytes(team.shared()[at..at + 2].try_into().unwrap());
                        let expect = element(x + column as i32, y + row as i32);
                        assert_eq!(got, expect, "swizzle {swizzle} at ({x}, {y}), row {row}, column {column}");
                    }
                }
            }
        }
    }
}

#[test]
fn tiles_are_stored_and_clipped() {
    let text = "@%one cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%t, {%x, %y}], [%s]; \
                cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;";
    for (x, y) in [(0, 0), (-3, -5), (30, 20)] {
        let mut team = solo(text, Late);
        let (map, address) = tensor(&team, 2, 32);
        let at = team.allocate(&map.encode());
        team.set_b64("%t", at);
        team.set_b32("%x", [x as u32; LANES]);
        team.set_b32("%y", [y as u32; LANES]);
        for row in 0..16usize {
            for column in 0..32usize {
                let linear = 1024 + row * 64 + column * 2;
                let at = linear ^ ((linear >> 7) % 4) << 4;
                let value = (1000 + row * 32 + column) as u16;
                team.shared()[at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
        team.run().unwrap();
        let mut out = vec![0; 96 * 24];
        team.memory.read(address, &mut out).unwrap();
        for (n, pair) in out.chunks_exact(2).enumerate() {
            let (column, row) = ((n % 48) as i32, (n / 48) as i32);
            let (i, j) = (column - x, row - y);
            let expect = match () {
                _ if column >= 40 => 0xeeee,
                _ if (0..32).contains(&i) && (0..16).contains(&j) => (1000 + j * 32 + i) as u16,
                _ => element(column, row),
            };
            assert_eq!(u16::from_le_bytes([pair[0], pair[1]]), expect, "at ({column}, {row}), tile at ({x}, {y})");
        }
    }
}

#[test]
fn what_is_no_tensor_map_is_a_fault() {
    let run = |address: u64, columns: u32, text: &str| {
        let mut team = solo(text, Late);
        let (map, _) = tensor(&team, 3, 64);
        team.params = map.encode().to_vec();
        team.set_b64("%t", address);
        team.set_b32("%n", [columns; LANES]);
        kind(team.run())
    };
    assert_eq!(run(PARAM_WINDOW, 2048, TILE), None);
    assert_eq!(run(PARAM_WINDOW + 64, 2048, TILE), Some(Kind::OutOfBounds));
    assert_eq!(run(PARAM_WINDOW + 32, 2048, TILE), Some(Kind::Misaligned));
    assert_eq!(run(PARAM_WINDOW, 2048, &TILE.replace("[%s]", "[%s + 64]")), Some(Kind::Misaligned));
    let three = TILE.replace("2d", "3d").replace("{%x, %y}", "{%x, %y, %y}");
    assert_eq!(run(PARAM_WINDOW, 2048, &three), Some(Kind::InvalidOperation), "another rank");
}

#[test]
fn other_forms_are_refused() {
    let refused = |text: &str| crate::testing::Snippet::new(&format!("{REGISTERS}{text}")).is_err();
    assert!(!refused(LOAD) && !refused(STORE) && !refused(TILE));
    assert!(!refused(&TILE.replace("shared::cluster.global.tile", "shared::cta.global")), "Triton");
    assert!(refused(&TILE.replace(".tile", ".im2col")));
    assert!(refused(&TILE.replace("2d", "1d")), "two coordinates");
    assert!(refused(&LOAD.replace("shared::cluster.global", "shared.global")));
    assert!(refused(
        &STORE.replace("global.shared::cta.bulk_group [%g], [%s], 256", "global.shared::cta [%g], [%s], 256")
    ));
    assert!(refused("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.b32 [%g], [%s], 16;"));
    assert!(refused("cp.reduce.async.bulk.global.shared::cta.bulk_group.inc.s32 [%g], [%s], 16;"));
    assert!(refused("cp.async.bulk.wait_group %s;"));
}
