"""Sample pictures with a KV cache, in batches, both guidance branches in one pass.

    python sample.py --work target/avatar --n 64 --cfg 3      attribute accuracy, contact sheet WORK/sheet_3.0.png
    python sample.py --work target/avatar --n 512 --sweep 1.5,2,3,4
"""

import argparse
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F

import classifier
import common
import kernels
import text
import transformer as T
import vq
from common import avatars


class Held:
    """Fixed held-out prompts: text, ids and named labels of pictures 0.. of the held-out split."""

    def __init__(self, work, n, first=0):
        labels = np.load(pathlib.Path(work) / "labels_held.npy")
        captioner = text.Captioner(work, 0)
        self.texts, self.ids, self.named = [], [], []
        for i in range(first, first + n):
            captioner.rng = np.random.default_rng([5, i])
            a = {k: int(v) for k, v in zip(avatars.NAMES, labels[i])}
            while True:
                caption, used = text.captions.caption(captioner.rng, a)
                ids = captioner.ids(caption)
                if len(ids) <= T.PREFIX and used:
                    break
            self.texts.append(caption)
            self.ids.append(ids)
            self.named.append([used.get(k, -1) for k in avatars.NAMES])
        self.named = np.array(self.named)


@torch.no_grad()
def generate(model, ids, cfg, seed=0, temperature=1.0, keep=False):
    """ids: b lists. Returns tokens int64 [b,576], and with keep the h_pre bf16 [2b,576,192] (conditional rows first)."""
    b, m, half = len(ids), model.model, torch.bfloat16
    rng = torch.Generator().manual_seed(seed)
    prompt = text.pad(list(ids) + [[1]] * b, T.PREFIX)
    length, n, prefix = (prompt >= 0).sum(1), 2 * b, T.PREFIX
    room = prefix + 1 + T.TOKENS
    keys, values = (torch.zeros(T.LAYERS, n, T.HEADS, room, 64, dtype=half) for _ in range(2))
    weights = {k: w.to(half) for k, w in model.state_dict().items() if w.dim() == 2}
    for i, layer in enumerate(m.layers):
        a, f = layer.self_attn, layer.mlp
        weights[f"model.layers.{i}.self_attn.qkv.weight"] = kernels.stacked(half, a.q_proj, a.k_proj, a.v_proj)
        weights[f"model.layers.{i}.mlp.gate_up.weight"] = kernels.stacked(half, f.gate_proj, f.up_proj)
    enc = model.text(prompt)
    cond = m.cond_proj(enc[:, :1])
    zero = torch.zeros(prefix + 1, dtype=torch.long)
    cos, sin = T.rotary(torch.cat([zero, model.row + 1]), torch.cat([zero, model.col + 1]))
    cos, sin = cos[:, 0].contiguous(), sin[:, 0].contiguous()
    tokens = torch.zeros(b, T.TOKENS, dtype=torch.long)
    kept = torch.zeros(n, T.TOKENS, T.HIDDEN, dtype=half) if keep else None

    def run(x, at):
        """Feed x [n,k,192] at positions at.. and return h_pre of the last one."""
        k = x.size(1)
        for i, layer in enumerate(m.layers):
            w = lambda s: weights[f"model.layers.{i}.{s}.weight"]
            a = layer.self_attn
            y = kernels.Rms.apply(x, layer.input_layernorm.weight)
            c, s = cos[at:at + k].contiguous(), sin[at:at + k].contiguous()
            qkv = F.linear(y, w("self_attn.qkv"))
            q, keys[i, :, :, at:at + k], values[i, :, :, at:at + k] = kernels.SplitHeads.apply(qkv, a.q_norm.weight, a.k_norm.weight, c, s)
            if k == 1:
                o = torch.empty(n, T.HEADS, 64, dtype=half)
                kernels.call("attend_one", q, keys[i], values[i], o, length, prefix, at + 1, room, n, T.HEADS)
                o = o.view(n, 1, T.HIDDEN)
            else:
                o = kernels.CausalAttention.apply(q, keys[i, :, :, :k].contiguous(), values[i, :, :, :k].contiguous(), length, prefix, 1)
                o = o.transpose(1, 2).reshape(n, k, T.HIDDEN)
            x = x + F.linear(o, w("self_attn.o_proj"))
            y = kernels.Rms.apply(x, layer.post_attention_layernorm.weight)
            x = x + F.linear(kernels.Swiglu.apply(F.linear(y, w("mlp.gate_up"))), w("mlp.down_proj"))
        return x[:, -1]

    h = run(torch.cat([m.text_proj(enc), m.boi.weight + cond], 1).to(half), 0)
    for p in range(T.TOKENS):
        if keep:
            kept[:, p] = h
        logits = F.linear(kernels.Rms.apply(h, m.norm.weight), weights["lm_head.weight"]).float()
        logits = (logits[b:] + cfg * (logits[:b] - logits[b:])) / temperature
        gumbel = -torch.log(-torch.log(torch.rand(logits.shape, generator=rng).clamp(1e-9, 1 - 1e-7)))
        tokens[:, p] = (logits + gumbel).argmax(1)
        if p + 1 < T.TOKENS:
            t = tokens[:, p].repeat(2)
            x = m.embed_tokens(t) + m.row_embed.weight[p // T.GRID] + m.col_embed.weight[p % T.GRID]
            h = run((x[:, None] + cond).to(half), prefix + 1 + p)
    return tokens, kept


def sheet(pictures, path, columns=10):
    """A contact sheet of uint8 [n,96,96,3]."""
    from PIL import Image
    columns = min(columns, len(pictures))
    n = len(pictures) // columns * columns
    rows = [np.concatenate(pictures[i:i + columns], 1) for i in range(0, n, columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def worker(rank, world, o, cfg, path):
    """Sample this process's share of the held-out prompts; rank 0 collects tokens [n,576]."""
    model, held = T.load(o.work, o.model), Held(o.work, o.n)
    mine = list(range(rank, o.n, world))
    got = torch.zeros(o.n, T.TOKENS)
    for i in range(0, len(mine), o.batch):
        part = mine[i:i + o.batch]
        got[part] = generate(model, [held.ids[j] for j in part], cfg, seed=1000 + part[0], temperature=o.temperature)[0].float()
    common.all_sum([got], world)
    if rank == 0:
        np.save(path, got.numpy().astype(np.uint16))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--model", default="model.pt")
    p.add_argument("--n", type=int, default=64)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--cfg", type=float, default=3.0)
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--sweep", default="")
    p.add_argument("--procs", type=int, default=2)
    o = p.parse_args()
    for cfg in [float(c) for c in o.sweep.split(",")] if o.sweep else [o.cfg]:
        t0, path = time.time(), o.work / "samples.npy"
        common.launch(worker, o.procs, o, cfg, path)
        held = Held(o.work, o.n)
        pictures = classifier.reconstruct(o.work, np.load(path))
        per, mean = classifier.accuracy(classifier.judge(classifier.load(o.work), pictures)[0], held.named)
        real, _ = classifier.judge(classifier.load(o.work), classifier.reconstruct(o.work, np.load(o.work / "tokens_held.npy")[:o.n]))
        top = classifier.accuracy(real, held.named)[1]
        print(f"cfg {cfg} T {o.temperature}: accuracy of named attributes {mean:.4f}, of reconstructions {top:.4f}, ratio {mean / top:.4f} "
              f"({time.time() - t0:.0f} s)", {k: round(v, 2) for k, v in per.items()}, flush=True)
        sheet(pictures[:60], o.work / f"sheet_{cfg}.png")


if __name__ == "__main__":
    main()
