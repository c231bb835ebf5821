"""An EAGLE drafter: one decoder layer that guesses the target's next h_pre from the last one and the sampled token.

    python eagle.py --work target/avatar --collect --n 2560      samples of the model: WORK/eagle_tokens.npy, eagle_ids.json
    python eagle.py --work target/avatar --minutes 12             trains, writes WORK/eagle.pt (--resume goes on from it)
    python eagle.py --work target/avatar --test                   agreement with the target by depth of the chain
    python eagle.py --work target/avatar --export FILE            bf16 safetensors
    python eagle.py --work target/avatar --fixture tests/data     logits for the tests, in fp32 from the bf16 weights

At raster position p the layer sees fc [h_p ; x_p]: h_p is the target's h_pre that predicted token p and x_p the target's
input of that token (embedding + row + column + condition). It attends to the positions before it with the target's
rotary embedding; its output is the guess of h_{p+1}. No prefix: the condition is in h and x.
After EAGLE (arXiv 2401.15077); that the layer also learns on its own guesses follows HASS (arXiv 2408.15766).
"""

import argparse
import collections
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import common
import export
import heads
import kernels
import sample
import text
import transformer as T

FIRST = 1792  # held-out pictures whose captions are sampled; 0..511 judge samples, 512..1791 made heads.py's samples


class Eagle(nn.Module):
    """The part named eagle.* in the checkpoint, in units in which h and x have a mean square of 1.

    In the target's own units (about 100 and 6) the layer would hardly see the token, and its output matrices would
    have to grow for thousands of steps.
    """

    def __init__(self, scale=(1.0, 1.0)):
        super().__init__()
        d = T.HIDDEN
        self.fc = nn.Linear(2 * d, d, bias=False)
        self.layer = T.Layer()
        self.register_buffer("scale", torch.tensor(scale))
        with torch.no_grad():
            self.fc.weight[:, :d] *= .3
            self.fc.weight[:, :d] += torch.eye(d)
            self.layer.self_attn.o_proj.weight.zero_()
            self.layer.mlp.down_proj.weight.zero_()

    def forward(self, h, x, cos, sin):
        """h, x bf16 [b,n,192] in the layer's units at raster 0..n-1 -> guesses of h at 1..n, bf16. cos, sin [n,64]."""
        z = F.linear(torch.cat([h, x], -1), self.fc.weight.to(h.dtype))
        return kernels.layer(self.layer, z, cos, sin, torch.zeros(len(h), dtype=torch.long), 0)

    def folded(self):
        """The same layer in the target's units, as it is shipped."""
        out, (h, x), d = Eagle(), self.scale.tolist(), T.HIDDEN
        state = {k: v.clone() for k, v in self.state_dict().items()}
        state["fc.weight"][:, d:] *= h / x
        state["layer.self_attn.o_proj.weight"] *= h
        state["layer.mlp.down_proj.weight"] *= h
        state["scale"].fill_(1)
        out.load_state_dict(state)
        return out.eval()

    def unroll(self, h, x, cos, sin, depth):
        """Chains of guesses from every position at once, in f32 and the target's units: [depth] of [b,n,192].

        Entry i at p is the guess of h_{p+1} by a chain whose last i inputs are guesses: the query at p attends to its own
        input of generation i, those of generations i-1 .. 1 before it, and true inputs further back.
        """
        a, n = self.layer.self_attn, h.size(1)
        keys, values, out = [], [], []
        cos, sin = cos[:, None], sin[:, None]
        far = torch.arange(n)[:, None] - torch.arange(n)
        for i in range(depth):
            z = self.fc(torch.cat([h, x], -1))
            q, k, v = a.qkv(self.layer.input_layernorm(z), cos, sin)
            keys.append(k)
            values.append(v)
            scores = [(q @ keys[0].mT * .125).masked_fill(far < i, -1e9)]
            for m in range(1, i + 1):  # generation m sits i - m positions back
                back = (q * keys[m].roll(i - m, 2)).sum(-1, keepdim=True) * .125
                scores.append(back.masked_fill((torch.arange(n) < i - m)[:, None], -1e9))
            w = torch.cat(scores, -1).softmax(-1)
            y = w[..., :n] @ values[0]
            for m in range(1, i + 1):
                y = y + w[..., n + m - 1:n + m] * values[m].roll(i - m, 2)
            z = z + a.o_proj(y.transpose(1, 2).reshape(z.shape))
            out.append(z + self.layer.mlp(self.layer.post_attention_layernorm(z)))
            h = torch.cat([h[:, :1], out[-1][:, :-1]], 1)  # position 0 has no guess; its chains are left out by the caller
        return out


def positions(model):
    cos, sin = T.rotary(model.row + 1, model.col + 1)
    return cos[:, 0].contiguous(), sin[:, 0].contiguous()


@torch.no_grad()
def teach(model, ids, tokens):
    """h_pre [b,576,192] that predicted each token and the target's inputs x [b,576,192], bf16."""
    h = heads.states(model, ids, tokens)
    m = model.model
    cond = m.cond_proj(model.text(text.pad(ids, T.PREFIX))[:, :1])
    x = m.embed_tokens(tokens) + m.row_embed(model.row) + m.col_embed(model.col) + cond
    return h, x.bfloat16()


def collect(rank, world, o):
    """Sample the target with captions made for the labels of held-out pictures FIRST..; goes on where it stopped."""
    model, path = T.load(o.work, o.model), o.work / "eagle_tokens.npy"
    ids = sample.Held(o.work, o.n, first=FIRST).ids
    if rank == 0:
        (o.work / "eagle_ids.json").write_text(json.dumps(ids))
        if not path.exists():
            np.lib.format.open_memmap(path, "w+", np.uint16, (o.n, T.TOKENS))
    if world > 1:
        torch.distributed.barrier()
    out = np.load(path, mmap_mode="r+")
    for i in range(rank * o.batch, o.n, o.batch * world):
        part = slice(i, min(i + o.batch, o.n))
        if not out[i].any():
            out[part] = sample.generate(model, ids[part], o.cfg, seed=100000 + i)[0].numpy()
            out.flush()
            print(i, flush=True)


class Data:
    """Half samples of the model (those of heads.py too), half training pictures; a quarter without their caption."""

    def __init__(self, o, seed):
        self.rng, self.pictures = np.random.default_rng(seed), T.Batches(o.work, "train", 300 + seed, empty=0)
        self.tokens, self.ids = [], []
        for name, spare in (("self", o.test_n), ("eagle", 0)):
            if (o.work / f"{name}_tokens.npy").exists():
                tokens = np.load(o.work / f"{name}_tokens.npy")
                done = np.nonzero(tokens.any(1))[0]
                done = done[done < len(tokens) - spare]  # heads.py and --test look at the last ones
                ids = json.loads((o.work / f"{name}_ids.json").read_text())
                self.tokens.append(tokens[done])
                self.ids += [ids[i] for i in done]
        self.tokens = np.concatenate(self.tokens).astype(np.int64)

    def __call__(self, b):
        ids, tokens, _ = self.pictures(b // 2)
        pick = self.rng.integers(0, len(self.tokens), b - b // 2)
        prompts = [[int(t) for t in row if t >= 0] for row in ids] + [self.ids[i] for i in pick]
        prompts = [p if self.rng.random() > .25 else [1] for p in prompts]
        return prompts, torch.cat([tokens, torch.from_numpy(self.tokens[pick])])


def train(rank, world, o):
    model = T.load(o.work, o.model).requires_grad_(False)
    data = Data(o, rank)
    draft = Eagle([v.float().square().mean().sqrt().item() for v in teach(model, *data(16))])
    params = list(draft.parameters())
    opts = [common.Muon([p for p in params if p.dim() == 2], lr=o.lr),
            torch.optim.AdamW([p for p in params if p.dim() == 1], lr=1e-3, betas=(.9, .95), weight_decay=0)]
    base, step, start = [opt.param_groups[0]["lr"] for opt in opts], 0, o.start
    if o.resume:
        saved = torch.load(o.work / o.resume)
        draft.load_state_dict(saved["draft"])
        for opt, s in zip(opts, saved["opts"]):
            opt.load_state_dict(s)
    print(f"{len(data.tokens)} samples, {sum(p.numel() for p in params)} parameters", flush=True)
    cos, sin = positions(model)
    cos, sin = cos[:-1].contiguous(), sin[:-1].contiguous()
    for p in params:
        if world > 1:
            torch.distributed.broadcast(p.data, 0)
    taught = collections.deque(maxlen=o.buffer)
    clock, t0, mean = common.Clock(o.minutes, time.process_time), time.time(), np.zeros(4)
    for part in common.parts(clock, world):
        part = start + part * (1 - start)
        for opt, lr in zip(opts, base):
            opt.param_groups[0]["lr"] = lr * min(1, (step + 1) / 50) * min(1, (1 - part) / .7) + 1e-7
        if step % o.reuse == 0:  # the target's pass costs twice the layer's step, so its states serve several times
            prompts, tokens = data(o.batch)
            taught.append(teach(model, prompts, tokens))
            h, x = taught[-1]
        else:
            h, x = taught[data.rng.integers(len(taught))]
        with torch.no_grad():
            p = heads.decode(model, h[:, 1:]).softmax(-1)
        h, x = h / draft.scale[0].bfloat16(), x / draft.scale[1].bfloat16()
        goal, x, h = h[:, 1:], x[:, :-1], h[:, :-1]
        log, guess, seen = [], None, h
        for again in range(2):
            if again:  # the layer's own guesses take the place of a random part of the true states
                own = torch.cat([h[:, :1], guess.detach()[:, :-1]], 1)
                seen = torch.where(torch.rand(h.shape[:2])[..., None] < torch.rand(len(h), 1, 1), own, h)
            guess = draft(seen, x, cos, sin)
            l1 = F.smooth_l1_loss(guess.float(), goal.float())
            ce = -(p * torch.log_softmax(heads.decode(model, guess), -1)).sum(-1).mean()
            (o.l1 * l1 + o.ce * ce).backward()
            log += [l1.item(), ce.item() / math.log(2)]
        common.average_gradients(params, world)
        nn.utils.clip_grad_norm_(params, 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        mean += log
        if rank == 0 and step % 25 == 0:
            print(f"{part:.3f} step {step} {25 * o.batch * world / (time.time() - t0):.1f} img/s", " ".join(f"{v / 25:.4f}" for v in mean), flush=True)
            t0, mean = time.time(), np.zeros(4)
        if rank == 0 and step % 100 == 0:
            save(draft, opts, o)
    if rank == 0:
        save(draft, opts, o)


def save(draft, opts, o):
    tmp = o.work / (o.out + ".tmp")
    torch.save({"draft": draft.state_dict(), "opts": [opt.state_dict() for opt in opts]}, tmp)
    tmp.rename(o.work / o.out)


def load(work, name="eagle.pt"):
    draft = Eagle()
    draft.load_state_dict(torch.load(pathlib.Path(work) / name)["draft"])
    return draft.eval()


@torch.no_grad()
def test(o):
    """By depth of the chain, p and q guided with --cfg at T=1, on samples not trained on (tokens drawn from p):
    sum min(p,q); top-1 agreement; mass of p on q's best 1, 5, 10; and the chance that a chain is accepted so far,
    which is the mean over x ~ p of the product of min(1, q(x)/p(x)): its sum is the expected accepted length."""
    model, draft = T.load(o.work, o.model), export.rounded(load(o.work, o.out).folded())
    tokens = np.load(o.work / "self_tokens.npy")[-o.test_n:]
    ids = json.loads((o.work / "self_ids.json").read_text())[-o.test_n:]
    mix = lambda c, u: u + o.cfg * (c - u)
    cos, sin = positions(model)
    sums, count = np.zeros((o.depth, 7)), np.zeros((o.depth, 1))
    for i in range(0, len(tokens), 4):
        t = torch.from_numpy(tokens[i:i + 4].astype(np.int64))
        branch = [teach(model, prompts, t) for prompts in (ids[i:i + 4], [[1]] * len(t))]
        p_all = mix(*(heads.decode(model, h) for h, _ in branch)).softmax(-1)
        chains = [draft.unroll(h[:, :-1].float(), x[:, :-1].float(), cos[:-1], sin[:-1], o.depth) for h, x in branch]
        reached = None
        for d in range(o.depth):
            q = mix(*(heads.decode(model, c[d]) for c in chains)).softmax(-1)[:, d:]
            p, x = p_all[:, 1 + d:], t[:, 1 + d:, None]
            take = (q.gather(2, x) / p.gather(2, x)).clamp(max=1)[..., 0]
            reached = take if reached is None else reached[:, :-1] * take
            best = p.gather(2, q.topk(10).indices).cumsum(-1)
            agree = (p.argmax(-1) == q.argmax(-1)).float()
            values = [torch.minimum(p, q).sum(-1), agree, best[..., 0], best[..., 4], best[..., 9], take, reached]
            sums[d] += [v.double().sum().item() for v in values]
            count[d] += agree.numel()
    sums /= count
    print("| depth | sum min(p,q) | top-1 | mass of best 1 | 5 | 10 | accepted | chain accepted so far |")
    for d, row in enumerate(sums):
        print(f"| {d + 1} | " + " | ".join(f"{v:.4f}" for v in row) + " |")
    print(f"expected accepted length of a chain of {o.depth}: {sums[:, -1].sum():.3f}, tokens a pass {1 + sums[:, -1].sum():.3f}")


def write(o):
    from safetensors.torch import save_file
    draft = load(o.work, o.out).folded()
    save_file({"eagle." + k: v.bfloat16().contiguous() for k, v in draft.state_dict().items() if k != "scale"}, o.export, metadata={"format": "pt"})
    pathlib.Path(o.export).chmod(0o644)


@torch.no_grad()
def fixture(o):
    """The picture of export.py's fixture: logits of the drafter that has seen the target's states of positions 0..30, and of
    a chain of guesses that goes on with the picture's tokens; for the caption and for none."""
    from safetensors.torch import load_file, save_file
    model, draft = export.rounded(T.load(o.work, o.model)), export.rounded(load(o.work, o.out).folded())
    model.fast = False
    known = load_file(o.fixture / "avatar_oracle.safetensors")
    tokens, (cos, sin) = known["tokens"][None], positions(model)
    at, depth, out = torch.tensor([0, 23, 24, 30]), 4, {}
    for name, ids in (("cond", known["prompt_ids"][None]), ("uncond", torch.tensor([[1]]))):
        h, encoded = model.hidden(ids, tokens[:, :-1])
        m = model.model
        x = m.embed_tokens(tokens) + m.row_embed(model.row) + m.col_embed(model.col) + m.cond_proj(encoded[:, :1])
        chains = draft.unroll(h[:, :-1], x[:, :-1], cos[:-1], sin[:-1], depth)
        out[f"trunk_{name}"] = model.logits(chains[0][0, at])
        out[f"chain_{name}"] = model.logits(torch.stack([chains[d][0, 30 + d] for d in range(1, depth)]))
    save_file({"positions": at, **out}, o.fixture / "eagle_oracle.safetensors")
    (o.fixture / "eagle_oracle.safetensors").chmod(0o644)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--model", default="model.pt")
    p.add_argument("--minutes", type=float, default=12, help="of processor time")
    p.add_argument("--n", type=int, default=2560)
    p.add_argument("--test-n", type=int, default=64)
    p.add_argument("--batch", type=int, default=8, help="per process")
    p.add_argument("--cfg", type=float, default=3.0)
    p.add_argument("--lr", type=float, default=.02, help="Muon")
    p.add_argument("--l1", type=float, default=1, help="weight of SmoothL1 of the scaled states")
    p.add_argument("--ce", type=float, default=1)
    p.add_argument("--reuse", type=int, default=3, help="steps for each batch of the target's states")
    p.add_argument("--buffer", type=int, default=128, help="batches of states kept")
    p.add_argument("--start", type=float, default=0.0, help="part of the schedule to begin at")
    p.add_argument("--depth", type=int, default=6)
    p.add_argument("--resume", default="", help="start from a file in WORK, optimizers included")
    p.add_argument("--out", default="eagle.pt")
    p.add_argument("--collect", action="store_true")
    p.add_argument("--test", action="store_true")
    p.add_argument("--export", default="")
    p.add_argument("--fixture", type=pathlib.Path)
    p.add_argument("--procs", type=int, default=1)
    o = p.parse_args()
    if o.test or o.export or o.fixture:
        torch.set_num_threads(o.procs)
        test(o) if o.test else fixture(o) if o.fixture else write(o)
    else:
        o.batch = 64 if o.collect else o.batch
        common.launch(collect if o.collect else train, o.procs, o)
