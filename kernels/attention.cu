// Attention over a cache of bf16 keys and values; see attention.cuh.
#include "attention.cuh"

WEFT_ATTENTION(attention_64, 64, 2)
WEFT_ATTENTION(attention_80, 80, 2)
WEFT_ATTENTION(attention_96, 96, 2)
WEFT_ATTENTION(attention_100, 100, 2)
WEFT_ATTENTION(attention_128, 128, 2)
