// The matrix products with int4 weights, in groups of 128 columns with a scale and a zero point each.
#include "linear.cuh"

WEFT_LINEAR(weft_linear_int4_8, 4, Int4, 4, 1, 1, 1, 64, 6)
WEFT_LINEAR(weft_linear_int4_16, 4, Int4, 4, 1, 1, 2, 64, 6)
WEFT_LINEAR(weft_linear_int4_32, 4, Int4, 4, 1, 1, 4, 64, 6)
WEFT_LINEAR(weft_linear_int4_two_8, 3, Int4, 4, 1, 2, 1, 64, 6)
WEFT_LINEAR(weft_linear_int4_two_16, 2, Int4, 4, 1, 2, 2, 64, 6)
WEFT_LINEAR(weft_linear_int4_two_32, 2, Int4, 4, 1, 2, 4, 64, 6)
WEFT_LINEAR(weft_linear_int4_two_64, 2, Int4, 4, 2, 2, 4, 64, 6)
WEFT_LINEAR(weft_linear_int4_two_96, 1, Int4, 4, 2, 2, 6, 64, 5)
WEFT_LINEAR(weft_linear_int4_two_144, 1, Int4, 4, 2, 2, 9, 64, 4)
