// The matrix products with fp8 (e4m3) weights and a factor per output.
#include "linear.cuh"

WEFT_LINEAR(weft_linear_fp8_8, 4, Fp8, 4, 1, 1, 1, 64, 5)
WEFT_LINEAR(weft_linear_fp8_16, 4, Fp8, 4, 1, 1, 2, 64, 5)
WEFT_LINEAR(weft_linear_fp8_32, 4, Fp8, 4, 1, 1, 4, 64, 5)
WEFT_LINEAR(weft_linear_fp8_two_8, 3, Fp8, 4, 1, 2, 1, 64, 5)
WEFT_LINEAR(weft_linear_fp8_two_16, 2, Fp8, 4, 1, 2, 2, 64, 5)
WEFT_LINEAR(weft_linear_fp8_two_32, 2, Fp8, 4, 1, 2, 4, 64, 5)
WEFT_LINEAR(weft_linear_fp8_two_64, 2, Fp8, 4, 2, 2, 4, 64, 5)
WEFT_LINEAR(weft_linear_fp8_two_96, 2, Fp8, 4, 2, 2, 6, 64, 4)
WEFT_LINEAR(weft_linear_fp8_two_144, 1, Fp8, 4, 2, 2, 9, 64, 3)
WEFT_LINEAR(weft_linear_fp8_two_256, 1, Fp8, 4, 2, 2, 16, 64, 2)
