// Attention over a cache of fp8 (e4m3) keys and values; see attention.cuh.
#include "attention.cuh"

WEFT_ATTENTION(attention_fp8_64, 64, 1)
WEFT_ATTENTION(attention_fp8_80, 80, 1)
WEFT_ATTENTION(attention_fp8_96, 96, 1)
WEFT_ATTENTION(attention_fp8_100, 100, 1)
WEFT_ATTENTION(attention_fp8_128, 128, 1)
