"""Triton kernels and their compilation to PTX without a GPU (triton 3.9.0, MIT)."""

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def flash_attention(q, k, v, out, scale, heads, tokens, HEAD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Causal attention over [batch * heads, tokens, HEAD] in bf16 or f16, with an online softmax in base 2."""
    start = tl.program_id(0) * ROWS
    base = tl.program_id(1) * tokens * HEAD
    rows = start + tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD)
    row_places = base + rows[:, None] * HEAD + dims[None, :]
    query = tl.load(q + row_places, mask=rows[:, None] < tokens, other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD], tl.float32)
    for first in range(0, start + ROWS, COLS):
        cols = first + tl.arange(0, COLS)
        places = base + cols[:, None] * HEAD + dims[None, :]
        inside = cols[:, None] < tokens
        key = tl.load(k + places, mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(key)) * (scale * 1.4426950408889634)
        scores = tl.where((cols[None, :] <= rows[:, None]) & (cols[None, :] < tokens), scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        keep = tl.exp2(top - highest)
        total = total * keep + tl.sum(weights, 1)
        value = tl.load(v + places, mask=inside, other=0.0)
        acc = tl.dot(weights.to(value.dtype), value, acc * keep[:, None])
        top = highest
    result = acc / total[:, None]
    tl.store(out + row_places, result.to(out.dtype.element_ty), mask=rows[:, None] < tokens)


@triton.jit
def matmul_tma(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """c = a b^T through tensor maps given by the host: [BM, BK], [BN, BK] and [BM, BN] boxes."""
    row, col = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros([BM, BN], tl.float32)
    for step in range(0, tl.cdiv(k, BK)):
        left = a.load([row, step * BK])
        right = b.load([col, step * BK])
        acc = tl.dot(left, right.T, acc)
    c.store([row, col], acc.to(c.dtype))


@triton.jit
def matmul_persistent(
    a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr
):
    """c = a b^T in f16 by a fixed number of programs, through tensor maps that the kernel makes."""
    left = tl.make_tensor_descriptor(a, [m, k], [k, 1], [BM, BK])
    right = tl.make_tensor_descriptor(b, [n, k], [k, 1], [BN, BK])
    out = tl.make_tensor_descriptor(c, [m, n], [n, 1], [BM, BN])
    across = tl.cdiv(n, BN)
    for tile in tl.range(tl.program_id(0), tl.cdiv(m, BM) * across, PROGRAMS, flatten=True):
        row, col = tile // across * BM, tile % across * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for step in range(tl.cdiv(k, BK)):
            acc = tl.dot(left.load([row, step * BK]), right.load([col, step * BK]).T, acc)
        out.store([row, col], acc.to(tl.float16))


@triton.jit
def softmax_rows(x, out, cols, WIDTH: tl.constexpr):
    """Softmax of each row of up to WIDTH columns."""
    row = tl.program_id(0)
    places = tl.arange(0, WIDTH)
    values = tl.load(x + row * cols + places, mask=places < cols, other=float("-inf"))
    weights = tl.exp(values - tl.max(values, 0))
    tl.store(out + row * cols + places, weights / tl.sum(weights, 0), mask=places < cols)


@triton.jit
def topk_sample(logits, noise, picked, cols, WIDTH: tl.constexpr):
    """The column with the largest logit plus noise, ties to the lowest, and a histogram-free cumulative count."""
    row = tl.program_id(0)
    places = tl.arange(0, WIDTH)
    inside = places < cols
    values = tl.load(logits + row * cols + places, mask=inside, other=float("-inf"))
    values += tl.load(noise + row * cols + places, mask=inside, other=0.0)
    best = tl.argmax(values, 0)
    above = tl.sum((values > 0.0).to(tl.int32), 0)
    running = tl.cumsum((values > 0.0).to(tl.int32), 0)
    tl.store(picked + row * 3, best)
    tl.store(picked + row * 3 + 1, above)
    tl.store(picked + row * 3 + 2, tl.max(tl.where(places == best, running, 0), 0))


_FLASH = {"q": "*bf16", "k": "*bf16", "v": "*bf16", "out": "*bf16", "scale": "fp32", "heads": "i32", "tokens": "i32"}

# Kernel, signature, constants, arguments that are multiples of 16, options.
_KERNELS = {
    "flash_attention": (flash_attention, _FLASH, {"HEAD": 64, "ROWS": 64, "COLS": 32}, "q k v out", {"num_stages": 2}),
    "matmul_tma": (
        matmul_tma,
        {
            "a": "tensordesc<bf16[128, 64]>",
            "b": "tensordesc<bf16[64, 64]>",
            "c": "tensordesc<bf16[128, 64]>",
            "m": "i32",
            "n": "i32",
            "k": "i32",
        },
        {"BM": 128, "BN": 64, "BK": 64},
        "",
        {"num_stages": 3},
    ),
    "matmul_persistent": (
        matmul_persistent,
        {"a": "*fp16", "b": "*fp16", "c": "*fp16", "m": "i32", "n": "i32", "k": "i32"},
        {"BM": 128, "BN": 64, "BK": 64, "PROGRAMS": 3},
        "a b c m n k",
        {"num_stages": 3},
    ),
    "softmax_rows": (
        softmax_rows,
        {"x": "*fp32", "out": "*fp32", "cols": "i32"},
        {"WIDTH": 1024},
        "x out",
        {},
    ),
    "topk_sample": (
        topk_sample,
        {"logits": "*fp32", "noise": "*fp32", "picked": "*i32", "cols": "i32"},
        {"WIDTH": 512},
        "logits noise picked",
        {},
    ),
}


def compile_kernel(name, capability):
    """The PTX of a kernel for a compute capability such as 80 or 90."""
    function, signature, constants, aligned, options = _KERNELS[name]
    names = list(signature)
    attributes = {(names.index(a),): [["tt.divisibility", 16]] for a in aligned.split()}
    signature = {**signature, **{c: "constexpr" for c in constants}}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "enable_fp_fusion": True, **options})
    return done.asm["ptx"]
