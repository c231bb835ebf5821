"""The latent up-sampler of multi-scale decoding: 12x12 tokens of low.py's VQ -> 24x24 tokens of the shipped one.

    python upsample.py --work target/avatar --minutes 2 --latent           starts on the latents alone, writes WORK/upsampler.pt
    python upsample.py --work target/avatar --minutes 8 --resume           goes on through the frozen VQ decoder
    python upsample.py --work target/avatar --test --samples FILE          drafts from low-resolution tokens, under the target
    python upsample.py --work target/avatar --export FILE

Masked convolutions: an output row sees no low-resolution row below its own, so that whole rows can be drafted from whole
rows. After MuLo-SD (arXiv 2601.05149), which publishes no sizes; its LPIPS is the attribute classifier's maps here.
The pixel path beside it is not trained: VQ-decode at 48 pixels, bicubic, VQ-encode at 96.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import classifier
import common
import export
import heads
import low
import sample
import transformer as T
import vq

WIDTH, BLOCKS, FINE = 64, 2, 32


class Causal(nn.Conv2d):
    """3x3, padded by 1, whose bottom kernel row is zero: rows below are not seen, at any depth."""

    def __init__(self, a, b):
        super().__init__(a, b, 3, padding=1)
        self.register_buffer("mask", torch.tensor([1.0, 1.0, 0.0])[:, None].expand(3, 3).clone(), persistent=False)
        with torch.no_grad():
            self.weight.mul_(self.mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class UpSampler(nn.Module):
    """The part named upsampler.*: [n,16,h,w] entries of the low codebook -> [n,16,2h,2w], to be replaced by the nearest entries.

    conv_in 16 -> 64; twice x + conv2(silu(conv1(silu(x)))); conv_up 64 -> 128 of silu(x), pixel shuffle (channel 4c+2i+j
    goes to row 2y+i, column 2x+j of c); conv_out 32 -> 16 of silu.
    """

    def __init__(self):
        super().__init__()
        self.conv_in = Causal(vq.LATENT, WIDTH)
        self.blocks = nn.ModuleList(nn.ModuleDict({"conv1": Causal(WIDTH, WIDTH), "conv2": Causal(WIDTH, WIDTH)}) for _ in range(BLOCKS))
        self.conv_up, self.conv_out = Causal(WIDTH, 4 * FINE), Causal(FINE, vq.LATENT)

    def forward(self, x):
        x = self.conv_in(x)
        for block in self.blocks:
            x = x + block["conv2"](F.silu(block["conv1"](F.silu(x))))
        return self.conv_out(F.silu(F.pixel_shuffle(self.conv_up(F.silu(x)), 2)))


def latents(model, tokens):
    """Codebook entries [n,16,g,g] of tokens [n,g*g]."""
    side = int(tokens.size(1) ** .5)
    return model.codebook.weight[tokens].view(len(tokens), side, side, -1).permute(0, 3, 1, 2).contiguous()


def quantize(model, z):
    """[n,16,h,w] -> tokens [n,h*w] of the nearest entries, and those entries with z's gradient."""
    flat = z.permute(0, 2, 3, 1)
    tokens = model.nearest(flat.reshape(-1, vq.LATENT)).view(len(z), -1)
    return tokens, z + (latents(model, tokens) - z).detach()


def maps(judge, x):
    """The classifier's maps of its first three convolutions, normalised: edges, strokes, parts."""
    out = []
    for conv, norm in list(zip(judge.convs, judge.norms))[:3]:
        x = F.silu(norm(conv(x)))
        out.append(x)
    return out


def train(o):
    coarse, fine, judge = vq.load(o.work / "low"), vq.load(o.work), classifier.load(o.work)
    for m in (coarse, fine, judge):
        m.requires_grad_(False)
    data = common.Images(o.work, "train")
    few, many = (np.load(w / "tokens_train.npy", mmap_mode="r") for w in (o.work / "low", o.work))
    ready = np.nonzero(few[:, :16].any(1))[0]
    up = UpSampler()
    params = list(up.parameters())
    opts = [common.Muon([p for p in params if p.dim() == 4], lr=o.lr),
            torch.optim.AdamW([p for p in params if p.dim() == 1], lr=3e-3, weight_decay=0)]
    if o.resume:
        saved = torch.load(o.work / "upsampler.pt")
        up.load_state_dict(saved["up"])
        for opt, s in zip(opts, saved["opts"]):
            opt.load_state_dict(s)
    rng, clock, step, t0 = np.random.default_rng(int(o.resume)), common.Clock(o.minutes, time.process_time), 0, time.time()
    spread = fine.codebook.weight.var(0).mean()
    while (part := clock.part()) < 1:
        for opt, lr in zip(opts, (o.lr, 3e-3)):
            opt.param_groups[0]["lr"] = lr * min(1, (step + 1) / 50) * min(1, (1 - part) / .7)
        i = np.sort(rng.choice(ready, 64 if o.latent else o.batch, replace=False))
        small, big = (torch.from_numpy(t[i].astype(np.int64)) for t in (few, many))
        z = up(latents(coarse, small))
        true = latents(fine, big)
        tokens, entries = quantize(fine, z)
        near = (z - true).square().mean() / spread
        log = {"latent": near, "agree": (tokens == big).float().mean()}
        loss = o.near * near
        if o.choice:  # the negative distance to the codebook's entries, as logits
            flat = z.permute(0, 2, 3, 1).reshape(-1, vq.LATENT)
            distance = fine.codebook.weight.square().sum(1) - 2 * flat @ fine.codebook.weight.T
            log["choice"] = F.cross_entropy(-distance * o.sharp, big.flatten())
            loss = loss + o.choice * log["choice"]
        if o.latent:
            loss = loss if o.near or o.choice else near
        else:
            x = data.batch(i).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                y = fine.decoder(entries.contiguous(memory_format=torch.channels_last))
                with torch.no_grad():
                    want = maps(judge, x)
                seen = sum((a - b).float().square().mean() / b.float().var() for a, b in zip(maps(judge, y.float()), want)) / len(want)
            log |= {"pixel": (y.float() - x).square().mean(), "seen": seen, "commit": (z - entries.detach()).square().mean() / spread}
            loss = loss + o.pixel * log["pixel"] + o.seen * seen + o.commit * (z - latents(fine, tokens)).square().mean() / spread
        loss.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        if step % 50 == 0:
            print(f"{part:.3f} step {step} {50 * len(i) / (time.time() - t0):.0f} img/s", {k: round(float(v), 4) for k, v in log.items()}, flush=True)
            t0 = time.time()
        if step % 200 == 0:
            save(up, opts, o)
    save(up, opts, o)


def save(up, opts, o):
    torch.save({"up": up.state_dict(), "opts": [opt.state_dict() for opt in opts]}, o.work / "upsampler.tmp")
    (o.work / "upsampler.tmp").rename(o.work / "upsampler.pt")


def load(work):
    """With the weights masked, as they are shipped."""
    up = UpSampler()
    up.load_state_dict(torch.load(pathlib.Path(work) / "upsampler.pt")["up"])
    with torch.no_grad():
        for m in up.modules():
            if isinstance(m, Causal):
                m.weight.mul_(m.mask)
    return export.rounded(up)


@torch.no_grad()
def pixel_path(coarse, fine, small):
    """Tokens [n,144] -> [n,576]: decode at 48 pixels, bicubic, encode at 96."""
    x = F.interpolate(coarse.decode(small), scale_factor=2, mode="bicubic", align_corners=False).clamp(-1, 1)
    return fine.encode(x.contiguous(memory_format=torch.channels_last))


@torch.no_grad()
def pooled(model, fine, ids, tokens, cfg, sizes):
    """Guided mass that the target, given the draft itself as context, has on the k entries nearest to each token: [n,576,sizes]."""
    c = fine.codebook.weight
    near = (c.square().sum(1)[None] - 2 * c @ c.T).argsort(1)  # the entry itself first
    hc, hu = (heads.decode(model, heads.states(model, prompts, tokens)) for prompts in (ids, [[1]] * len(ids)))
    p = (hu + cfg * (hc - hu)).softmax(-1)
    return torch.stack([p.gather(2, near[tokens][..., :k]).sum(-1) for k in sizes], -1)


@torch.no_grad()
def test(o):
    """Drafts of the prompts of held-out pictures: from those pictures' low tokens, or from samples of the low model."""
    coarse, fine, judge, up, model = vq.load(o.work / "low"), vq.load(o.work), classifier.load(o.work), load(o.work), T.load(o.work)
    held, sizes = sample.Held(o.work, o.n), [1, 4, 16, 64]
    truth = torch.from_numpy(np.load(o.work / "tokens_held.npy")[:o.n].astype(np.int64))
    source = o.samples or o.work / "low" / "tokens_held.npy"
    small = torch.from_numpy(np.load(source)[:o.n].astype(np.int64))
    drafts = {"latent up-sampler": torch.cat([quantize(fine, up(latents(coarse, s)))[0] for s in small.split(64)]),
              "pixel path": torch.cat([pixel_path(coarse, fine, s) for s in small.split(32)]), "tokens of the pictures": truth}
    if o.samples and (o.work / "samples.npy").exists():
        drafts["samples of the target"] = torch.from_numpy(np.load(o.work / "samples.npy")[:o.n].astype(np.int64))
    for name, tokens in drafts.items():
        mass = torch.cat([pooled(model, fine, held.ids[i:i + 16], tokens[i:i + 16], o.cfg, sizes) for i in range(0, o.n, 16)])
        mean = classifier.accuracy(classifier.judge(judge, classifier.reconstruct(o.work, tokens.numpy()))[0], held.named)[1]
        print(f"{name}: attributes {mean:.4f}, same token as the picture {(tokens == truth).float().mean():.4f}; pooled mass", {k: round(float(m), 3) for k, m in zip(sizes, mass.mean((0, 1)))},
              "share of tokens with mass >= .1", {k: round(float(m), 3) for k, m in zip(sizes, (mass >= .1).float().mean((0, 1)))}, flush=True)
    sample.sheet(np.concatenate([classifier.reconstruct(o.work, t[:20].numpy()) for t in drafts.values()]), o.work / "low" / "drafts.png")


def write(o):
    from safetensors.torch import save_file
    save_file(export.tensors(load(o.work), "upsampler."), o.export, metadata={"format": "pt"})
    pathlib.Path(o.export).chmod(0o644)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--minutes", type=float, default=8, help="of processor time")
    p.add_argument("--latent", action="store_true", help="without the VQ decoder")
    p.add_argument("--batch", type=int, default=12)
    p.add_argument("--lr", type=float, default=.02, help="Muon")
    p.add_argument("--near", type=float, default=.1, help="weight of the squared error of the latents")
    p.add_argument("--choice", type=float, default=0, help="weight of the cross entropy of the tokens")
    p.add_argument("--sharp", type=float, default=1.0, help="logits per squared distance")
    p.add_argument("--pixel", type=float, default=10)
    p.add_argument("--seen", type=float, default=1, help="weight of the classifier's maps")
    p.add_argument("--commit", type=float, default=.1)
    p.add_argument("--n", type=int, default=128)
    p.add_argument("--cfg", type=float, default=3.0)
    p.add_argument("--samples", default="", help="low-resolution tokens [n,144] of the held-out prompts")
    p.add_argument("--resume", action="store_true", help="go on from WORK/upsampler.pt")
    p.add_argument("--test", action="store_true")
    p.add_argument("--export", default="")
    p.add_argument("--procs", type=int, default=1, help="threads")
    o = p.parse_args()
    torch.set_num_threads(o.procs)
    torch.manual_seed(0)
    (test if o.test else write if o.export else train)(o)
