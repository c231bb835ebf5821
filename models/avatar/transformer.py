"""The image transformer: prompt -> 24x24 tokens, raster order, condition added to every token.

    python transformer.py --work target/avatar --minutes 60     trains (needs text.pt and tokens_*.npy), writes WORK/model.pt
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
import text
from text import RMSNorm, SwiGLU

HIDDEN, LAYERS, HEADS, HEAD_DIM, INNER, CODES, GRID = 192, 9, 3, 64, 512, 512, 24
THETA, TOKENS = 100.0, GRID * GRID
PREFIX = 36  # ids per caption in training, padded


def shape(grid, layers):
    """Models made from now on have another grid and depth: the low-resolution one of low.py."""
    global GRID, TOKENS, LAYERS
    GRID, TOKENS, LAYERS = grid, grid * grid, layers


def rotary(y, x):
    """cos, sin [n,1,64] for coordinates y, x [n]: dims 0..31 turn with y, 32..63 with x, pairs (j, j+16)."""
    f = THETA ** (-torch.arange(16) / 16)
    ay, ax = y.float()[:, None] * f, x.float()[:, None] * f
    angle = torch.cat([ay, ay, ax, ax], 1)
    sign = torch.tensor([-1.0] * 16 + [1.0] * 16).repeat(2)
    return angle.cos()[:, None], (angle.sin() * sign)[:, None]


def rotate(x, cos, sin):
    """x [..., n, heads, 64]."""
    swapped = torch.cat([x[..., 16:32], x[..., :16], x[..., 48:], x[..., 32:48]], -1)
    return x * cos + swapped * sin


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in "qkvo":
            setattr(self, f"{name}_proj", nn.Linear(HIDDEN, HIDDEN, bias=False))
        self.q_norm, self.k_norm = RMSNorm(HEAD_DIM), RMSNorm(HEAD_DIM)

    def qkv(self, x, cos, sin):
        """x [b,n,192] -> q, k, v [b,3,n,64]."""
        shape = x.shape[:2] + (HEADS, HEAD_DIM)
        q = rotate(self.q_norm(self.q_proj(x).view(shape)), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(shape)), cos, sin)
        return q.transpose(1, 2), k.transpose(1, 2), self.v_proj(x).view(shape).transpose(1, 2)

    def forward(self, x, cos, sin, mask):
        """The plain path; kernels.layer is the fast one. mask [b,1,n,n] is added to the scores."""
        q, k, v = self.qkv(x, cos, sin)
        y = (q @ k.mT * .125 + mask).softmax(-1).to(v.dtype) @ v
        return self.o_proj(y.transpose(1, 2).reshape(x.shape))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(HIDDEN), RMSNorm(HIDDEN)
        self.self_attn, self.mlp = Attention(), SwiGLU(HIDDEN, INNER)

    def forward(self, x, *args):
        x = x + self.self_attn(self.input_layernorm(x), *args)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """The part named model.* in the checkpoint."""

    def __init__(self):
        super().__init__()
        self.text_proj = nn.Linear(text.HIDDEN, HIDDEN, bias=False)
        self.cond_proj = nn.Linear(text.HIDDEN, HIDDEN, bias=False)
        self.boi = nn.Module()
        self.boi.weight = nn.Parameter(torch.randn(HIDDEN) * .02)
        self.embed_tokens = nn.Embedding(CODES, HIDDEN)
        self.row_embed, self.col_embed = nn.Embedding(GRID, HIDDEN), nn.Embedding(GRID, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm(HIDDEN)
        for e in (self.embed_tokens, self.row_embed, self.col_embed):
            nn.init.normal_(e.weight, std=.3)
        for layer in self.layers:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)


class Avatar(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.text = text.TextEncoder(vocabulary)
        self.model = Transformer()
        self.lm_head = nn.Linear(HIDDEN, CODES, bias=False)
        nn.init.zeros_(self.lm_head.weight)
        self.fast = False  # use the fused bf16 kernels (training)
        raster = torch.arange(TOKENS)
        self.row, self.col = raster // GRID, raster % GRID

    def inputs(self, ids, tokens):
        """ids [b,p] (-1 padded), tokens [b,n] -> inputs [b,p+1+n,192], enc [b,p,96], cos, sin."""
        m, n = self.model, tokens.size(1)
        enc = self.text(ids)
        cond = m.cond_proj(enc[:, :1])
        image = m.embed_tokens(tokens) + m.row_embed(self.row[:n]) + m.col_embed(self.col[:n]) + cond
        x = torch.cat([m.text_proj(enc), (m.boi.weight + cond).to(enc.dtype), image], 1)
        zero = torch.zeros(ids.size(1) + 1, dtype=torch.long)
        return x, enc, *rotary(torch.cat([zero, self.row[:n] + 1]), torch.cat([zero, self.col[:n] + 1]))

    def hidden(self, ids, tokens):
        """h_pre [b,1+n,192] at BOI and at every image input, and enc."""
        x, enc, cos, sin = self.inputs(ids, tokens)
        length, prefix = x.size(1), ids.size(1) + 1
        if self.fast:
            x, cos, sin = x.bfloat16(), cos[:, 0].contiguous(), sin[:, 0].contiguous()
            for layer in self.model.layers:
                x = kernels.layer(layer, x, cos, sin, (ids >= 0).sum(1), prefix - 1)
            return x[:, prefix - 1:], enc
        mask = torch.full((length, length), -1e9).triu(1).repeat(len(ids), 1, 1, 1)
        mask[..., :prefix - 1] += ((ids < 0) * -1e9)[:, None, None]
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return x[:, prefix - 1:], enc

    def logits(self, h):
        return self.lm_head(self.model.norm(h))


def evidence(work, pictures=20000):
    """Where the attributes show: [24*24], mean 1. The mean over the attributes of the mutual information, in bits,
    of each position's token and the attribute, each attribute's map scaled to mean 1, so that a nose of a few tokens
    counts as much as a background of hundreds."""
    tokens = np.load(pathlib.Path(work) / "tokens_train.npy", mmap_mode="r")[:pictures].astype(np.int64)
    labels = np.load(pathlib.Path(work) / "labels_train.npy")[:pictures].astype(np.int64)
    rng, maps = np.random.default_rng(0), []

    def information(token, label):
        joint = np.bincount(token * 32 + label, minlength=CODES * 32).reshape(CODES, 32) / len(token)
        both = joint > 0
        return (joint[both] * np.log2((joint / (joint.sum(1, keepdims=True) * joint.sum(0) + 1e-30))[both])).sum()

    for label in labels.T:
        seen = label >= 0
        label, shuffled = label[seen], rng.permutation(label[seen])  # what a finite sample shows of nothing is taken off
        found = np.array([information(t, label) - information(t, shuffled) for t in tokens[seen].T]).clip(0)
        maps.append(found / found.mean())
    return torch.tensor(np.mean(maps, 0), dtype=torch.float32)


def corrupt(tokens, count):
    """Replace a random share (40 to 100%) of the first `count` pictures' tokens [b,n] by random codes.

    In a clean context a colour is copied from the neighbours, and only its first token teaches what the caption says;
    in a spoiled one the caption must be used everywhere. The last part of the training is clean.
    """
    rate = torch.rand(count, 1) * .6 + .4
    spoil = torch.rand(count, tokens.size(1)) < rate
    noise = torch.randint(CODES, (count, tokens.size(1)))
    return torch.cat([torch.where(spoil, noise, tokens[:count]), tokens[count:]])


class Batches:
    """Random pictures of a split with fresh captions; a tenth of the captions is empty."""

    def __init__(self, work, split, seed, empty=.1, full=.35):
        self.tokens = np.load(pathlib.Path(work) / f"tokens_{split}.npy", mmap_mode="r")
        self.labels = np.load(pathlib.Path(work) / f"labels_{split}.npy")
        self.ready = np.nonzero(self.tokens[:, :16].any(1))[0]  # pictures that are encoded
        self.captioner, self.rng, self.empty, self.queue = text.Captioner(work, seed, full), np.random.default_rng(seed), empty, []

    def __call__(self, b):
        """ids [b,36], tokens [b,576], named labels [b,10]."""
        ids, tokens, named = [], [], []
        for _ in range(b):
            if not self.queue:
                self.queue = self.rng.permutation(self.ready).tolist()
            i = self.queue.pop()
            prompt, label = self.captioner(self.labels[i], PREFIX)
            if self.rng.random() < self.empty:
                prompt, label = [1], [-1] * len(label)
            ids.append(prompt)
            named.append(label)
            tokens.append(self.tokens[i])
        return text.pad(ids, PREFIX), torch.from_numpy(np.stack(tokens).astype(np.int64)), torch.tensor(named)


@torch.no_grad()
def bits(model, work, n=192, empty=False):
    """Held-out bits per token at T=1, given the captions or given the empty prompt."""
    batches, total = Batches(work, "held", 77, float(empty)), 0.0
    for _ in range(n // 16):
        ids, tokens, _ = batches(16)
        with torch.autocast("cpu", torch.bfloat16):
            h, _ = model.hidden(ids, tokens[:, :-1])
            logits = model.logits(h)
        total += F.cross_entropy(logits.float().reshape(-1, CODES), tokens.reshape(-1)).item()
    return total / (n // 16) / math.log(2)


def load(work, name="model.pt"):
    work = pathlib.Path(work)
    model = Avatar(len(json.loads((work / "vocab.json").read_text())))
    model.load_state_dict(torch.load(work / name)["model"])
    return model.eval()


def shipped(path):
    """The transformer and text encoder of a shipped model.safetensors, as f32."""
    from safetensors.torch import load_file
    return {k: v.float() for k, v in load_file(path).items() if not k.startswith("heads.")}


def train(rank, world, o):
    shape(o.grid, o.layers)
    data = Batches(o.work, "train", 100 + rank + o.seed, full=.8)
    model = Avatar(len(data.captioner.vocabulary))
    model.fast = not o.plain
    aux = text.AttributeHeads()
    start = torch.load(o.work / "text.pt")
    model.text.load_state_dict(start["text"])
    aux.load_state_dict(start["heads"])
    if o.init:
        model.load_state_dict(shipped(o.init))
    if o.resume:
        saved = torch.load(o.work / o.resume)
        model.load_state_dict(saved["model"])
        if not o.fresh_text:
            aux.load_state_dict(saved["aux"])
        else:
            model.text.load_state_dict(start["text"])
    params = list(model.parameters()) + list(aux.parameters())
    for p in params:
        if world > 1:
            torch.distributed.broadcast(p.data, 0)
    words = list(model.text.parameters()) + list(aux.parameters())  # trained already: go on gently
    matrix = [p for k, p in model.named_parameters() if k.startswith("model.") and "_proj" in k]
    seen = {id(p) for p in matrix + words}
    rest = [p for p in params if id(p) not in seen]
    muon = common.Muon(matrix, lr=o.lr, weight_decay=o.decay)
    adam = torch.optim.AdamW([{"params": rest, "base": o.adam}, {"params": words, "base": o.text}], betas=(.9, .95), weight_decay=0)
    if o.resume and "muon" in saved:
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
    # The weights depend on the position alone, so the optimum is still the true conditional law.
    shows = evidence(o.work)
    clean, spoilt = ((1 - share + share * shows) / math.log(2) for share in (.5, .75))
    clock, step, t0, mean, tick = None, 0, time.time(), 0.0, 0
    stop = torch.zeros(1)
    while True:
        stop[0] = clock.part() if clock else 0
        common.all_sum([stop], world)
        part = float(stop[0]) / world
        if part >= 1:
            break
        part = part * (1 - o.start) + o.start  # --start resumes a schedule in the middle
        scale = min(1, (step + 1) / o.warm) * min(1, (1 - part) / (1 - o.hold))
        muon.param_groups[0]["lr"] = o.lr * scale
        for g in adam.param_groups:
            g["lr"] = g["base"] * scale
        muon.param_groups[0]["momentum"] = .85 + .1 * min(1, step / 300)
        ids, tokens, named = data(o.batch)
        spoiled = o.batch // 2 if part < .85 else o.batch // 4 if part < .93 else 0
        context = corrupt(tokens[:, :-1], spoiled)
        with torch.autocast("cpu", torch.bfloat16):
            h, enc = model.hidden(ids, context)
            logits = model.logits(h)
            guess, right = aux.loss(enc[:, 0].float(), named)
        each = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)
        weights = torch.stack([spoilt] * spoiled + [clean] * (o.batch - spoiled))
        loss = (each * weights).mean() + o.aux * guess
        loss.backward()
        common.average_gradients(params, world)
        nn.utils.clip_grad_norm_(rest, 1.0)
        nn.utils.clip_grad_norm_(words, 1.0)
        muon.step()
        adam.step()
        muon.zero_grad()
        adam.zero_grad()
        if clock is None:
            clock = common.Clock(o.minutes, time.process_time if o.cpu else time.time)
        step += 1
        mean, tick = mean + each.detach()[spoiled:].mean().item() / math.log(2), tick + 1
        if rank == 0 and step % 50 == 0:
            print(f"{part:.3f} step {step} {tick * o.batch * world / (time.time() - t0):.1f} img/s bits {mean / tick:.4f} aux {guess.item():.3f} right {right.item():.3f}", flush=True)
            t0, mean, tick = time.time(), 0.0, 0
        if rank == 0 and step % o.save == 0:
            save(model, aux, muon, adam, o)
    if rank == 0:
        save(model, aux, muon, adam, o)
        print(f"held out: {bits(model, o.work, 480):.4f} bits/token, {bits(model, o.work, 480, True):.4f} without the caption", flush=True)


def save(model, aux, muon, adam, o):
    tmp = o.work / (o.out + ".tmp")
    torch.save({"model": model.state_dict(), "aux": aux.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict()}, tmp)
    tmp.rename(o.work / o.out)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--minutes", type=float, default=60)
    p.add_argument("--cpu", action="store_true", help="--minutes counts processor time")
    p.add_argument("--grid", type=int, default=GRID)
    p.add_argument("--layers", type=int, default=LAYERS)
    p.add_argument("--batch", type=int, default=8, help="per process")
    p.add_argument("--lr", type=float, default=.02, help="Muon")
    p.add_argument("--adam", type=float, default=4e-3)
    p.add_argument("--text", type=float, default=2e-4, help="AdamW for the text encoder")
    p.add_argument("--decay", type=float, default=.01)
    p.add_argument("--aux", type=float, default=1.0)
    p.add_argument("--hold", type=float, default=.3, help="part of the schedule before the decay begins")
    p.add_argument("--warm", type=int, default=100, help="steps")
    p.add_argument("--start", type=float, default=0.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--save", type=int, default=200)
    p.add_argument("--init", default="", help="start from the weights of a model.safetensors")
    p.add_argument("--resume", default="", help="start from a checkpoint in WORK, optimizer included")
    p.add_argument("--fresh-text", action="store_true", help="with --resume: the text encoder from text.pt")
    p.add_argument("--out", default="model.pt")
    p.add_argument("--plain", action="store_true", help="without the fused kernels")
    p.add_argument("--procs", type=int, default=2)
    o = p.parse_args()
    common.launch(train, o.procs, o)
