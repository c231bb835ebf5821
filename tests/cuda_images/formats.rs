//! Weights, keys and values in other formats than bf16.

use super::beginnings::{BEGINNING, begin};
use super::{BOUND, forced, gpu, load_driver, tokens, turn};
use weft::backend::cpu::CpuBackend;
use weft::backend::cuda::CudaBackend;
use weft::backend::{KvFormat, KvScales, WeightFormat};
use weft::decode::methods::Method;
use weft::engine::Generator;
use weft::models::embedded;
use weft::nn::Formats;

/// The model in other formats, on the device and on the processor.
fn in_formats(formats: Formats) -> (Generator<CudaBackend>, Generator<CpuBackend>) {
    load_driver();
    let device = Generator::load_in(formats, CudaBackend::new(0).unwrap(), &embedded::avatar()).unwrap();
    (device, Generator::load_in(formats, CpuBackend::new(), &embedded::avatar()).unwrap())
}

/// Few passes, in which all that a wavefront does is done.
fn quick() -> Method {
    "wavefront:lag=0.8:slope=0.1:window=inf:rounds=3:slack=0".parse().unwrap()
}

/// Makes an image on the device, and asserts that its log-weights are within a bound of the processor's with the same
/// quantised numbers.
fn check_formats(formats: Formats, method: Method, bound: f32) {
    let _turn = turn();
    let (device, host) = in_formats(formats);
    let sampling = host.default_sampling();
    let image = tokens(&device, method, sampling);
    if method == Method::EXACT {
        assert_eq!(begin(&device, Method::Ar, sampling, BEGINNING).0, image[..BEGINNING], "{formats:?}");
    }
    let (ours, theirs) = (forced(&device, sampling, &image), forced(&host, sampling, &image));
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (off, moved) = (apart(&ours, &theirs), apart(&ours, &forced(gpu(), sampling, &image)));
    println!("{formats:?}: {off} from the processor, {moved} from bf16");
    assert!(off <= bound, "{formats:?}: log-weights are {off} apart");
    // The formats make a difference: they are not silently bf16.
    assert!(formats.rows.is_some() || moved > BOUND, "{formats:?}: {moved}");
}

#[test]
fn images_with_fp8_weights_are_those_of_the_processor() {
    check_formats(Formats { weights: WeightFormat::Fp8, ..Formats::default() }, quick(), BOUND);
}

#[test]
fn images_with_int4_weights_are_those_of_the_processor() {
    check_formats(Formats { weights: WeightFormat::Int4, ..Formats::default() }, quick(), BOUND);
}

#[test]
fn images_with_the_layout_for_many_rows_are_those_of_the_processor() {
    check_formats(Formats { rows: Some(512), ..Formats::default() }, quick(), BOUND);
}

/// A last bit that tips a key or a value to the next number of e4m3 moves it by up to 2^-3 of itself, where bf16 would
/// move it by 2^-7: so two correct orders of summing lie further apart (1.5 where this was written). That the cache's
/// numbers are those of the processor is shown by the tests of the ops, bit by bit.
#[test]
fn exact_is_ar_with_an_fp8_cache_too() {
    let kv = KvFormat::Fp8(KvScales::default());
    check_formats(Formats { weights: WeightFormat::Fp8, kv, rows: None }, Method::EXACT, 3.0);
}
