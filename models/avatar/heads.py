"""Spatial draft heads: from h_pre and the sampled token at (r,c), guess the h_pre at (r,c+d) or (r+d,c).

    python heads.py --work target/avatar --collect --n 1000      the model's own samples: WORK/self_tokens.npy, self_ids.json
    python heads.py --work target/avatar --minutes 10 [--kl 1]    trains, writes WORK/heads.pt
    python heads.py --work target/avatar --test                   overlap sum min(p,q) and top-1 per head on held-out samples
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
import kernels
import sample
import text
import transformer as T

HORIZONTAL, VERTICAL, INNER = 5, 3, 384
KINDS = [("horizontal", d) for d in range(1, HORIZONTAL + 1)] + [("vertical", d) for d in range(1, VERTICAL + 1)]


class Head(nn.Module):
    """u = w0 [h ; e]; h^ = u + w2(silu(w1 n) * (w3 n)), n = RMSNorm(u)."""

    def __init__(self):
        super().__init__()
        d = T.HIDDEN
        self.w0 = nn.Linear(2 * d, d, bias=False)
        self.norm = text.RMSNorm(d)
        self.w1, self.w3 = nn.Linear(d, INNER, bias=False), nn.Linear(d, INNER, bias=False)
        self.w2 = nn.Linear(INNER, d, bias=False)
        with torch.no_grad():
            self.w0.weight.mul_(.3)
            self.w0.weight[:, :d] += torch.eye(d)
            self.w2.weight.zero_()

    def forward(self, z):
        """z [...,384] -> h^ [...,192]."""
        u = self.w0(z)
        n = self.norm(u)
        return u + self.w2(F.silu(self.w1(n)) * self.w3(n))


class Heads(nn.Module):
    """The part named heads.* in the checkpoint."""

    def __init__(self):
        super().__init__()
        self.horizontal = nn.ModuleDict({str(d): Head() for d in range(1, HORIZONTAL + 1)})
        self.vertical = nn.ModuleDict({str(d): Head() for d in range(1, VERTICAL + 1)})

    def get(self, kind, d):
        return getattr(self, kind)[str(d)]


def pairs(kind, d):
    """Raster indices (source, target) of a head."""
    p = torch.arange(T.TOKENS)
    if kind == "vertical":
        return p[:-d * T.GRID], p[d * T.GRID:]
    source = p[p % T.GRID + d < T.GRID]
    return source, source + d


def row_weight(kind, source):
    """SSD drafts only the first row horizontally, so that row counts more there."""
    w = torch.ones(len(source))
    if kind == "horizontal":
        w[source < T.GRID] = 4
    return w / w.mean()


def load(work, name="heads.pt"):
    model = Heads()
    model.load_state_dict(torch.load(pathlib.Path(work) / name))
    return model.eval()


def collect(rank, world, o):
    """Sample with captions made for the labels of held-out pictures 512.. (heldout.json has those of 0..511)."""
    model = T.load(o.work, o.model)
    ids = sample.Held(o.work, o.n, first=512).ids
    if rank == 0:
        (o.work / "self_ids.json").write_text(json.dumps(ids))
        np.lib.format.open_memmap(o.work / "self_tokens.npy", "w+", np.uint16, (o.n, T.TOKENS))
    if world > 1:
        torch.distributed.barrier()
    out = np.load(o.work / "self_tokens.npy", mmap_mode="r+")
    for i in range(rank * o.batch, o.n, o.batch * world):
        part = range(i, min(i + o.batch, o.n))
        out[part.start:part.stop] = sample.generate(model, [ids[j] for j in part], o.cfg, seed=i)[0].numpy()
        print(i, flush=True)


@torch.no_grad()
def states(model, ids, tokens):
    """h_pre bf16 [b,576,192] that predicted each token (teacher forcing)."""
    model.fast = True
    with torch.autocast("cpu", torch.bfloat16):
        h, _ = model.hidden(text.pad(ids, T.PREFIX), tokens[:, :-1])
    return h


def decode(model, h):
    """Logits of h_pre; keeps gradients."""
    return F.linear(kernels.Rms.apply(h.to(torch.bfloat16), model.model.norm.weight), model.lm_head.weight.to(torch.bfloat16)).float()


def train(rank, world, o):
    model = T.load(o.work, o.model).requires_grad_(False)
    tokens = np.load(o.work / "self_tokens.npy", mmap_mode="r")
    ids = json.loads((o.work / "self_ids.json").read_text())
    n = len(tokens) - o.test_n  # the last ones are for --test
    heads = load(o.work, o.resume) if o.resume else Heads()
    if o.init:
        from safetensors.torch import load_file
        heads.load_state_dict({k.removeprefix("heads."): v.float() for k, v in load_file(o.init).items() if k.startswith("heads.")})
    heads.train()
    params = list(heads.parameters())
    for p in params:
        if world > 1:
            torch.distributed.broadcast(p.data, 0)
    matrix = [p for p in params if p.dim() == 2]
    opts = [common.Muon(matrix, lr=o.lr), torch.optim.AdamW([p for p in params if p.dim() == 1], lr=1e-3, weight_decay=0)] if o.muon else \
        [torch.optim.AdamW(params, lr=o.lr, betas=(.9, .95), weight_decay=.01)]
    for opt in opts:
        for g in opt.param_groups:
            g["base"] = g["lr"]
    rng, clock, step, t0 = np.random.default_rng(rank), common.Clock(o.minutes), 0, time.time()
    index = {kd: (*pairs(*kd),) for kd in KINDS}
    for part in common.parts(clock, world):
        for opt in opts:
            for g in opt.param_groups:
                g["lr"] = g["base"] * min(1, (step + 1) / 50) * (.5 + .5 * math.cos(math.pi * part)) + 1e-7
        pick = rng.integers(0, n, o.batch_train)
        t = torch.from_numpy(tokens[pick].astype(np.int64))
        h = states(model, [ids[i] if rng.random() > .1 else [1] for i in pick], t)
        z = torch.cat([h, model.model.embed_tokens(t).to(h.dtype)], -1)
        with torch.no_grad():
            target = torch.log_softmax(decode(model, h), -1) if o.kl else None
        log = []
        total = 0
        for kd in KINDS:
            source, goal = index[kd]
            if o.kl:  # a random third of the positions is enough for one step
                keep = torch.randperm(len(source))[: max(96, len(source) // 2)]
                source, goal = source[keep], goal[keep]
            w = row_weight(kd[0], source)[None, :]
            with torch.autocast("cpu", torch.bfloat16):
                guess = heads.get(*kd)(z[:, source])
            loss = (F.smooth_l1_loss(guess.float(), h[:, goal].float(), reduction="none").mean(-1) * w).mean()
            log.append(loss.item())
            if o.kl:
                q = torch.log_softmax(decode(model, guess), -1)
                p = target[:, goal]
                kl = ((p.exp() * (p - q)).sum(-1) * w).mean()
                log[-1] = kl.item()
                loss = o.l1 * loss + o.kl * kl
            loss.backward()
        common.average_gradients(params, world)
        nn.utils.clip_grad_norm_(params, 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        if rank == 0 and step % 25 == 0:
            print(f"{part:.3f} step {step} {25 * o.batch_train * world / (time.time() - t0):.1f} img/s", " ".join(f"{l:.4f}" for l in log), flush=True)
            t0 = time.time()
        if rank == 0 and step % 200 == 0:
            torch.save(heads.state_dict(), o.work / o.out)
    if rank == 0:
        torch.save(heads.state_dict(), o.work / o.out)


@torch.no_grad()
def test(o):
    """Per head, on samples not trained on: sum min(p,q) and top-1 agreement, p and q guided with --cfg at T=1."""
    torch.set_num_threads(2)
    model, heads = T.load(o.work, o.model), load(o.work, o.out)
    tokens = np.load(o.work / "self_tokens.npy")[-o.test_n:]
    ids = json.loads((o.work / "self_ids.json").read_text())[-o.test_n:]
    mix = lambda c, u: u + o.cfg * (c - u)
    sums = {kd: np.zeros(7) for kd in KINDS}
    for i in range(0, len(tokens), 8):
        t = torch.from_numpy(tokens[i:i + 8].astype(np.int64))
        e = model.model.embed_tokens(t).bfloat16()
        hc, hu = states(model, ids[i:i + 8], t), states(model, [[1]] * len(t), t)
        p_all = mix(decode(model, hc), decode(model, hu)).softmax(-1)
        for kd in KINDS:
            source, goal = pairs(*kd)
            with torch.autocast("cpu", torch.bfloat16):
                q = mix(*(decode(model, heads.get(*kd)(torch.cat([h, e], -1)[:, source])) for h in (hc, hu))).softmax(-1)
            p = p_all[:, goal]
            overlap = torch.minimum(p, q).sum(-1)
            top = (p.argmax(-1) == q.argmax(-1)).float()
            hit = (q.argmax(-1) == t[:, goal]).float()
            first = source < T.GRID
            sums[kd] += [overlap.numel(), overlap.sum(), top.sum(), hit.sum(), first.sum() * len(t), overlap[:, first].sum(), top[:, first].sum()]
    for kd, s in sums.items():
        print(f"| {kd[0]} +{kd[1]} | {s[1] / s[0]:.4f} | {s[2] / s[0]:.4f} | {s[3] / s[0]:.4f} | {s[5] / s[4]:.4f} | {s[6] / s[4]:.4f} |")


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--model", default="model.pt")
    p.add_argument("--minutes", type=float, default=10)
    p.add_argument("--n", type=int, default=1000)
    p.add_argument("--test-n", type=int, default=64)
    p.add_argument("--batch", type=int, default=64, help="samples at once in --collect")
    p.add_argument("--batch-train", type=int, default=6, help="per process")
    p.add_argument("--cfg", type=float, default=3.0)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--kl", type=float, default=0)
    p.add_argument("--l1", type=float, default=1)
    p.add_argument("--muon", action="store_true")
    p.add_argument("--init", default="", help="start from the heads of a model.safetensors")
    p.add_argument("--resume", default="", help="start from a file in WORK")
    p.add_argument("--out", default="heads.pt")
    p.add_argument("--collect", action="store_true")
    p.add_argument("--test", action="store_true")
    p.add_argument("--procs", type=int, default=2)
    o = p.parse_args()
    test(o) if o.test else common.launch(collect if o.collect else train, o.procs, o)
