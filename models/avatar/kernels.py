"""Autograd wrappers of kernels.c: the transformer's element-wise passes, fused, bf16, one thread.

Each Function computes what the plain PyTorch path in transformer.py computes (python kernels.py compares them).
"""

import ctypes
import pathlib
import subprocess
import tempfile

import torch
from torch.autograd import Function

_lib = None


def lib():
    """Compile on first use."""
    global _lib
    if _lib is None:
        source = pathlib.Path(__file__).with_name("kernels.c")
        with tempfile.TemporaryDirectory() as tmp:
            out = pathlib.Path(tmp, "kernels.so")
            subprocess.run(["gcc", "-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-shared", "-fPIC", str(source), "-o", str(out), "-lm", "-lmvec"], check=True)
            _lib = ctypes.CDLL(str(out))
    return _lib


def call(name, *args):
    """Tensors go as pointers, ints as long, floats as float."""
    plain = []
    for a in args:
        if isinstance(a, torch.Tensor):
            assert a.is_contiguous()
            plain.append(ctypes.c_void_p(a.data_ptr()))
        else:
            plain.append(ctypes.c_float(a) if isinstance(a, float) else ctypes.c_long(a))
    getattr(lib(), name)(*plain)


class Rms(Function):
    """x bf16 [..., d], w f32 [d]."""

    @staticmethod
    def forward(ctx, x, w):
        x = x.contiguous()
        d = w.numel()
        y, rstd = torch.empty_like(x), torch.empty(x.numel() // d)
        call("rms_forward", x, w, y, rstd, rstd.numel(), d)
        ctx.save_for_backward(x, w, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, rstd = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.zeros_like(w)
        call("rms_backward", dy.contiguous(), x, w, rstd, dx, dw, rstd.numel(), w.numel())
        return dx, dw


class SplitHeads(Function):
    """x bf16 [b,l,3*h*64] -> q, k, v [b,h,l,64]: head norm and rotary on q and k, q scaled by 1/8."""

    @staticmethod
    def forward(ctx, x, wq, wk, cos, sin):
        b, l, d = x.shape
        h = d // 192
        q, k, v = (x.new_empty(b, h, l, 64) for _ in range(3))
        rstd = torch.empty(b * l * 2 * h)
        call("qkv_forward", x, wq, wk, cos, sin, q, k, v, rstd, b, l, h)
        ctx.save_for_backward(x, wq, wk, cos, sin, rstd)
        return q, k, v

    @staticmethod
    def backward(ctx, dq, dk, dv):
        x, wq, wk, cos, sin, rstd = ctx.saved_tensors
        b, l, d = x.shape
        dx, dwq, dwk = torch.empty_like(x), torch.zeros_like(wq), torch.zeros_like(wk)
        call("qkv_backward", dq.contiguous(), dk.contiguous(), dv.contiguous(), x, wq, wk, cos, sin, rstd, dx, dwq, dwk, b, l, d // 192)
        return dx, dwq, dwk, None, None


class CausalAttention(Function):
    """q (scaled), k, v bf16 [b,h,l,64]; length int64 [b]: valid keys of the padded prefix. -> [b,h,l,64]

    Queries go in blocks, so that most of the upper triangle is never computed.
    """

    @staticmethod
    def forward(ctx, q, k, v, length, prefix, blocks):
        b, h, l, d = q.shape
        cuts = [l * i // blocks for i in range(blocks + 1)]
        out, probs = torch.empty_like(q), []
        for first, last in zip(cuts, cuts[1:]):
            p = torch.matmul(q[:, :, first:last], k[:, :, :last].mT).contiguous()
            call("softmax_forward", p, length, prefix, first, b, h, last - first, last)
            out[:, :, first:last] = p @ v[:, :, :last]
            probs.append(p)
        ctx.save_for_backward(q, k, v, *probs)
        ctx.cuts = cuts
        return out

    @staticmethod
    def backward(ctx, do):
        q, k, v, *probs = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for p, first, last in zip(probs, ctx.cuts, ctx.cuts[1:]):
            g = do[:, :, first:last]
            dv[:, :, :last] += p.mT @ g
            ds = torch.matmul(g, v[:, :, :last].mT).contiguous()
            call("softmax_backward", p, ds, ds.numel() // last, last)
            dq[:, :, first:last] = ds @ k[:, :, :last]
            dk[:, :, :last] += ds.mT @ q[:, :, first:last]
        return dq, dk, dv, None, None, None


class Swiglu(Function):
    """x bf16 [...,2m] -> silu(first half) * second half."""

    @staticmethod
    def forward(ctx, x):
        m = x.size(-1) // 2
        y = x.new_empty(x.shape[:-1] + (m,))
        call("swiglu_forward", x, y, x.numel() // (2 * m), m)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, = ctx.saved_tensors
        dx, m = torch.empty_like(x), x.size(-1) // 2
        call("swiglu_backward", dy.contiguous(), x, dx, x.numel() // (2 * m), m)
        return dx


def stacked(half, *linears):
    """The weights of several projections of one input as one bf16 matrix."""
    return torch.cat([p.weight for p in linears]).to(half)


def layer(m, x, cos, sin, length, prefix, blocks=6):
    """One transformer layer on bf16 x [b,l,192]; the same as transformer.Layer.forward."""
    a, mul = m.self_attn, torch.nn.functional.linear
    y = Rms.apply(x, m.input_layernorm.weight)
    qkv = mul(y, stacked(x.dtype, a.q_proj, a.k_proj, a.v_proj))
    o = CausalAttention.apply(*SplitHeads.apply(qkv, a.q_norm.weight, a.k_norm.weight, cos, sin), length, prefix, blocks)
    x = x + mul(o.transpose(1, 2).reshape(x.shape), a.o_proj.weight.to(x.dtype))
    y = Rms.apply(x, m.post_attention_layernorm.weight)
    y = Swiglu.apply(mul(y, stacked(x.dtype, m.mlp.gate_proj, m.mlp.up_proj)))
    return x + mul(y, m.mlp.down_proj.weight.to(x.dtype))
