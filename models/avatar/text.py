"""Text encoder: prompt ids -> enc [n,96]; trained first on captions alone to name the attributes.

    python text.py --work target/avatar --minutes 3      writes WORK/tokenizer.json, vocab.json and WORK/text.pt
"""

import argparse
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import common
from common import avatars
import captions

HIDDEN, LAYERS, HEADS, INNER, POSITIONS, EPS = 96, 2, 3, 256, 64, 1e-5


class RMSNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS) * self.weight).to(x.dtype)


class SwiGLU(nn.Module):
    def __init__(self, d, inner):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(d, inner, bias=False), nn.Linear(d, inner, bias=False)
        self.down_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TextAttention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in "qkvo":
            setattr(self, f"{name}_proj", nn.Linear(HIDDEN, HIDDEN, bias=False))

    def forward(self, x, mask):
        """x [b,n,96]; mask [b,1,1,n] added to the scores."""
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, HEADS, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        a = (q @ k.mT / math.sqrt(HIDDEN // HEADS) + mask).softmax(-1)
        return self.o_proj((a.to(v.dtype) @ v).transpose(1, 2).reshape(b, n, HIDDEN))


class TextLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(HIDDEN), RMSNorm(HIDDEN)
        self.self_attn, self.mlp = TextAttention(), SwiGLU(HIDDEN, INNER)

    def forward(self, x, mask):
        x = x + self.self_attn(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextEncoder(nn.Module):
    """Bidirectional; ids [b,n] with -1 as padding -> [b,n,96]."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embed, self.positions = nn.Embedding(vocabulary, HIDDEN), nn.Embedding(POSITIONS, HIDDEN)
        nn.init.normal_(self.embed.weight, std=.5)
        nn.init.normal_(self.positions.weight, std=.1)
        self.layers = nn.ModuleList(TextLayer() for _ in range(LAYERS))
        self.norm = RMSNorm(HIDDEN)

    def forward(self, ids):
        x = self.embed(ids.clamp(min=0)) + self.positions.weight[:ids.size(1)]
        mask = torch.zeros(ids.shape).masked_fill(ids < 0, -1e9)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class AttributeHeads(nn.Module):
    """Throw-away linear read-outs of enc[0]: each attribute's classes and 'not named'."""

    def __init__(self):
        super().__init__()
        self.out = nn.ModuleList(nn.Linear(HIDDEN, len(c) + 1) for c in avatars.ATTRIBUTES.values())

    def loss(self, enc0, named):
        """enc0 [b,96]; named int64 [b,10] with -1 = not named. (mean cross entropy, share of right answers)"""
        losses, right = [], []
        for j, out in enumerate(self.out):
            logits = out(enc0)
            want = torch.where(named[:, j] < 0, torch.full_like(named[:, j], logits.size(1) - 1), named[:, j])
            losses.append(F.cross_entropy(logits, want))
            right.append((logits.argmax(1) == want).float().mean())
        return sum(losses) / len(losses), sum(right) / len(right)


class Captioner:
    """Fresh captions: labels [10] -> ids and the labels the caption names (-1 elsewhere)."""

    def __init__(self, work, seed, full=.35):
        self.full = full
        self.vocabulary = json.loads((pathlib.Path(work) / "vocab.json").read_text())
        self.rng = np.random.default_rng(seed)

    def ids(self, text):
        return [1] + [self.vocabulary.get(w, 0) for w in captions.words_of(text)][:62]

    def __call__(self, labels, length):
        """Captions longer than `length` ids are drawn again."""
        a = {k: int(v) for k, v in zip(avatars.NAMES, labels)}
        while True:
            text, used = captions.caption(self.rng, a, self.full)
            ids = self.ids(text)
            if len(ids) <= length:
                return ids, [used.get(k, -1) for k in avatars.NAMES]


def pad(ids, length):
    """Lists of ids -> int64 [b,length], -1 behind each."""
    return torch.tensor([i + [-1] * (length - len(i)) for i in ids])


def main(o):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(99)  # the vocabulary depends on it
    texts = [captions.caption(rng, avatars.visible(avatars.sample_attributes(rng)))[0] for _ in range(40000)]
    vocabulary = captions.build_vocabulary(texts)
    if not o.resume:
        (o.work / "vocab.json").write_text(json.dumps(vocabulary))
        captions.write_tokenizer(vocabulary, o.work / "tokenizer.json")
    model, heads, captioner = TextEncoder(len(vocabulary)), AttributeHeads(), Captioner(o.work, 1)
    if o.resume:
        saved = torch.load(o.work / "text.pt")
        model.load_state_dict(saved["text"])
        heads.load_state_dict(saved["heads"])
    params = list(model.parameters()) + list(heads.parameters())
    opt = torch.optim.AdamW(params, lr=o.lr, weight_decay=.01)
    clock, step = common.Clock(o.minutes), 0
    while (part := clock.part()) < 1:
        for g in opt.param_groups:
            g["lr"] = o.lr * min(1, (step + 1) / 100) * (1 - part) + 1e-6
        batch = []
        for _ in range(o.batch):
            a = avatars.visible(avatars.sample_attributes(rng))
            batch.append(captioner([a[k] for k in avatars.NAMES], 62))
        ids = pad([b[0] for b in batch], max(len(b[0]) for b in batch))
        loss, right = heads.loss(model(ids)[:, 0], torch.tensor([b[1] for b in batch]))
        opt.zero_grad()
        loss.backward()
        opt.step()
        step += 1
        if step % 100 == 0:
            print(f"{part:.3f} step {step} loss {loss.item():.4f} right {right.item():.4f}", flush=True)
    torch.save({"text": model.state_dict(), "heads": heads.state_dict()}, o.work / "text.pt")


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--minutes", type=float, default=3)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--resume", action="store_true")
    main(p.parse_args())
