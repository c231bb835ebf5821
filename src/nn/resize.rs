//! Pictures to half and to double size.

/// Half the size of RGB pixels `[height, width, 3]`, both even: the mean of each 2x2.
pub fn half(pixels: &[u8], width: usize) -> Vec<u8> {
    let line = 3 * width;
    let lines = pixels.chunks_exact(2 * line).map(|two| two.split_at(line));
    let mean = |(above, below): (&[u8], &[u8]), at: usize| {
        let sum: u16 = [above[at], above[at + 3], below[at], below[at + 3]].into_iter().map(u16::from).sum();
        ((sum + 2) / 4) as u8
    };
    lines.flat_map(|two| (0..line / 2).map(move |at| mean(two, at / 3 * 6 + at % 3))).collect()
}

/// Double the size of RGB pixels `[height, width, 3]`: bicubic with a = -3/4 and edges repeated, as PyTorch's
/// `interpolate` without `align_corners`.
pub fn double(pixels: &[u8], width: usize) -> Vec<u8> {
    let values: Vec<f32> = pixels.iter().map(|&byte| f32::from(byte)).collect();
    let line = 3 * width;
    let tall = doubled(&values, line);
    let wide = tall.chunks_exact(line).flat_map(|row| doubled(row, 3));
    wide.map(|value| value.round().clamp(0.0, 255.0) as u8).collect()
}

/// Doubles the number of items, of `size` values each, in a sequence of them.
fn doubled(values: &[f32], size: usize) -> Vec<f32> {
    // At a quarter beyond an item: the one before, itself, and the two after.
    const NEAR: [f32; 4] = [-0.105_468_75, 0.878_906_25, 0.261_718_75, -0.035_156_25];
    let last = values.len() / size - 1;
    let item = |at: usize, offset: isize| &values[at.saturating_add_signed(offset).min(last) * size..][..size];
    let mut out = Vec::with_capacity(2 * values.len());
    for at in 0..=last {
        for side in [-1, 1] {
            let taps = [-1, 0, 1, 2].map(|offset| item(at, side * offset));
            out.extend((0..size).map(|i| taps.iter().zip(NEAR).map(|(tap, weight)| tap[i] * weight).sum::<f32>()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halving_is_the_mean_of_two_by_two() {
        let grey =
            |values: [u8; 8]| values.into_iter().flat_map(|value| [value, value, 255 - value]).collect::<Vec<_>>();
        let small = half(&grey([0, 2, 10, 10, 4, 6, 11, 10]), 4);
        assert_eq!(small, [3, 3, 252, 10, 10, 245]);
    }

    #[test]
    fn doubling_keeps_what_is_constant_and_is_what_pytorch_makes() {
        assert!(double(&[77; 3 * 5 * 4], 5).iter().all(|&byte| byte == 77));
        // torch.nn.functional.interpolate(x, scale_factor=2, mode="bicubic") of a 3x2 picture of one channel.
        let x = [10u8, 200, 30, 40, 250, 0];
        let rgb: Vec<u8> = x.iter().flat_map(|&value| [value; 3]).collect();
        let ours: Vec<u8> = double(&rgb, 2).chunks_exact(3).map(|pixel| pixel[0]).collect();
        let theirs = [
            [0, 55, 170, 239],
            [0, 43, 129, 182],
            [0, 20, 63, 89],
            [89, 67, 29, 7],
            [222, 156, 48, 0],
            [255, 210, 59, 0],
        ];
        assert_eq!(ours, theirs.concat());
    }
}
