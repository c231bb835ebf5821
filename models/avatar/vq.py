"""The image tokenizer: 96x96 picture <-> 24x24 tokens of a 512-entry codebook (16 numbers each).

    python vq.py --work target/avatar --minutes 16      trains, writes WORK/vq.pt
    python vq.py --work target/avatar --encode          writes WORK/tokens_{train,held}.npy uint16 [N,576]
"""

import argparse
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import common

CHANNELS, LATENT, CODES = [96, 64, 32], 16, 512  # channels from the token grid up to the pixels
RES_BLOCKS, ENCODER_RES_BLOCKS = [2, 1, 1], [1, 1, 1]


class ResBlock(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, ch), nn.Conv2d(ch, ch, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, ch), nn.Conv2d(ch, ch, 3, padding=1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class Encoder(nn.Module):
    """[n,3,96,96] in [-1,1] -> [n,out,24,24]; one entry of `channels` more halves the grid once more."""

    def __init__(self, channels=CHANNELS, res_blocks=ENCODER_RES_BLOCKS, out=LATENT):
        super().__init__()
        c = channels[::-1]
        self.conv_in = nn.Conv2d(3, c[0], 3, padding=1)
        self.blocks = nn.ModuleList(nn.ModuleList(ResBlock(ch) for _ in range(n)) for ch, n in zip(c, res_blocks[::-1]))
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(c, c[1:]))
        self.norm_out, self.conv_out = nn.GroupNorm(8, c[-1]), nn.Conv2d(c[-1], out, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for i, blocks in enumerate(self.blocks):
            for block in blocks:
                x = block(x)
            if i < len(self.downs):
                x = self.downs[i](x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """[n,latent,24,24] -> [n,3,96,96], to be clamped to [-1,1]."""

    def __init__(self, channels=CHANNELS, res_blocks=RES_BLOCKS, latent=LATENT):
        super().__init__()
        c = channels
        self.conv_in = nn.Conv2d(latent, c[0], 3, padding=1)
        self.blocks = nn.ModuleList(nn.ModuleList(ResBlock(ch) for _ in range(n)) for ch, n in zip(c, res_blocks))
        self.ups = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(c, c[1:]))
        self.norm_out, self.conv_out = nn.GroupNorm(8, c[-1]), nn.Conv2d(c[-1], 3, 3, padding=1)

    def forward(self, z):
        x = self.conv_in(z)
        for i, blocks in enumerate(self.blocks):
            for block in blocks:
                x = block(x)
            if i < len(self.ups):
                x = self.ups[i](F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class VQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.codebook = nn.Embedding(CODES, LATENT)
        self.codebook.weight.requires_grad_(False)

    def nearest(self, z):
        """[m,16] -> index [m] of the nearest codebook entry."""
        c = self.codebook.weight
        return (c.square().sum(1) - 2 * z @ c.T).argmin(1)

    def encode(self, x):
        """[n,3,4g,4g] -> tokens [n,g*g]."""
        z = self.encoder(x).float().permute(0, 2, 3, 1)
        return self.nearest(z.reshape(-1, LATENT)).view(len(x), -1)

    def decode(self, tokens):
        """tokens [n,g*g] of a square grid -> [n,3,4g,4g] in [-1,1]."""
        side = math.isqrt(tokens.size(1))
        z = self.codebook.weight[tokens].view(len(tokens), side, side, LATENT).permute(0, 3, 1, 2)
        return self.decoder(z.contiguous(memory_format=torch.channels_last)).float().clamp(-1, 1)


def load(work):
    model = VQ()
    model.load_state_dict(torch.load(pathlib.Path(work) / "vq.pt"))
    return model.eval().to(memory_format=torch.channels_last)


def kmeans(z, k, rounds=12):
    """k centres of z [m,d]."""
    c = z[torch.randperm(len(z))[:k]].clone()
    for _ in range(rounds):
        near = (c.square().sum(1) - 2 * z @ c.T).argmin(1)
        count = torch.bincount(near, minlength=k).float()
        c = torch.zeros_like(c).index_add_(0, near, z) / count.clamp(min=1)[:, None]
        empty = count == 0
        c[empty] = z[torch.randperm(len(z))[:int(empty.sum())]]
    return c


def edges(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def loss_of(y, x):
    """L1 + L2 + L1 of the picture's gradients."""
    e = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x)))
    return (y - x).abs().mean() + 2 * (y - x).square().mean() + e


def pictures(o, data, index):
    """A batch, at half size (mean of 2x2) for the low-resolution copy."""
    x = data.batch(index)
    return (F.avg_pool2d(x, 2) if o.half else x).contiguous(memory_format=torch.channels_last)


def train(rank, world, o):
    data = common.Images(o.work, "train")
    n = min(len(data.x), o.images)
    model = VQ().to(memory_format=torch.channels_last)
    if o.resume:
        model.load_state_dict(torch.load(o.work / "vq.pt"))
    if world > 1:
        for p in model.state_dict().values():
            torch.distributed.broadcast(p, 0)
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=o.lr, betas=(.9, .98), weight_decay=1e-4)
    average = [p.detach().clone() for p in params]
    size, total = torch.ones(CODES), torch.zeros(CODES, LATENT)
    rng, clock = np.random.default_rng(rank), common.Clock(o.minutes, time.process_time if o.cpu else time.time)
    step, quantize, seen, t0 = 0, o.resume, torch.zeros(CODES), time.time()
    if o.resume:
        size.fill_(float(o.batch * world * (144 if o.half else 576) / CODES))
        total.copy_(model.codebook.weight * size[:, None])
    for part in common.parts(clock, world):
        lr = o.lr * min(1, (step + 1) / 100) * min(1, (1 - part) / .7)
        for g in opt.param_groups:
            g["lr"] = max(lr, 1e-6)
        x = pictures(o, data, rng.integers(0, n, o.batch))
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encoder(x)
        z = z.float()
        flat = z.permute(0, 2, 3, 1).reshape(-1, LATENT)
        if not quantize and step >= o.warm:  # codebook from the latents of the plain auto-encoder
            sample = torch.zeros(world, len(flat), LATENT)
            sample[rank] = flat.detach()
            common.all_sum([sample], world)
            torch.manual_seed(5)
            model.codebook.weight.copy_(kmeans(sample.view(-1, LATENT), CODES))
            torch.manual_seed(rank)
            total.copy_(model.codebook.weight)
            quantize = True
        commit = torch.zeros(())
        if quantize:
            with torch.no_grad():
                near = model.nearest(flat)
                count = torch.bincount(near, minlength=CODES).float()
                add = torch.zeros(CODES, LATENT).index_add_(0, near, flat)
                spare = torch.zeros(world, 64, LATENT)
                spare[rank] = flat[torch.randperm(len(flat))[:64]]
                common.all_sum([count, add, spare], world)
            q = model.codebook.weight[near]
            commit = (flat - q).square().mean()
            zq = (flat + (q - flat).detach()).view(len(x), *z.shape[2:], LATENT).permute(0, 3, 1, 2)
        else:
            zq = z
        with torch.autocast("cpu", torch.bfloat16):
            y = model.decoder(zq)
        y = y.float()
        loss = loss_of(y, x) + .25 * commit
        if not quantize:
            loss = loss + 1e-3 * z.square().mean()
        loss.backward()
        common.average_gradients(params, world)
        nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(.998, (step + 1) / (step + 20))
            for a, p in zip(average, params):
                a.lerp_(p, 1 - decay)
            if quantize:
                d = .97 if part < .6 else .99
                size.mul_(d).add_(count, alpha=1 - d)
                total.mul_(d).add_(add, alpha=1 - d)
                model.codebook.weight.copy_(total / size.clamp(min=1e-3)[:, None])
                seen += count
                if step % 50 == 0 and part < .75:  # restart the dead codes at random latents
                    dead = (seen < 8).nonzero()[:64, 0]
                    fresh = spare.view(-1, LATENT)[:len(dead)]
                    model.codebook.weight[dead] = fresh
                    total[dead], size[dead] = fresh * 1.0, 1.0
                    seen.zero_()
        step += 1
        if rank == 0 and step % 100 == 0:
            with torch.no_grad():
                psnr = -10 * math.log10((y.clamp(-1, 1) - x).square().mean() / 4)
            used = size / size.sum()
            perplexity = float(torch.exp(-(used * (used + 1e-9).log()).sum()))
            print(f"{part:.3f} step {step} {100 * o.batch * world / (time.time() - t0):.1f} img/s loss {loss.item():.4f} "
                  f"commit {commit.item():.4f} psnr {psnr:.2f} perplexity {perplexity:.0f}", flush=True)
            t0 = time.time()
        if rank == 0 and step % 400 == 0:
            save(model, params, average, o)
    if rank == 0:
        save(model, params, average, o)


def save(model, params, average, o):
    """Write the averaged weights."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    names = [k for k, p in model.named_parameters() if p.requires_grad]
    state.update({k: a.clone() for k, a in zip(names, average)})
    torch.save(state, o.work / "vq.pt")


@torch.no_grad()
def encode(rank, world, o):
    model = load(o.work)
    for split in ("held", "train"):
        data = common.Images(o.work, split)
        path = o.work / f"tokens_{split}.npy"
        if rank == 0:
            np.lib.format.open_memmap(path, "w+", np.uint16, (len(data.x), 144 if o.half else 576))
        if world > 1:
            torch.distributed.barrier()
        out = np.load(path, mmap_mode="r+")
        n = min(len(data.x), o.images)
        for i in range(rank * 50, n, 50 * world):
            index = range(i, min(i + 50, n))
            x = pictures(o, data, index)
            with torch.autocast("cpu", torch.bfloat16):
                tokens = model.encode(x)
            out[i:i + len(index)] = tokens.numpy()
            if i % 5000 == 0:
                print(split, i, flush=True)


def take(o):
    """WORK/vq.pt from a shipped vq.safetensors."""
    from safetensors.torch import load_file
    torch.save({k.removeprefix("vq."): v.float() for k, v in load_file(o.take).items()}, o.work / "vq.pt")


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--minutes", type=float, default=16)
    p.add_argument("--batch", type=int, default=6)
    p.add_argument("--lr", type=float, default=1.5e-3)
    p.add_argument("--warm", type=int, default=200, help="steps before quantisation")
    p.add_argument("--images", type=int, default=10 ** 9)
    p.add_argument("--half", action="store_true", help="pictures of 48x48, 12x12 tokens")
    p.add_argument("--cpu", action="store_true", help="--minutes counts processor time")
    p.add_argument("--procs", type=int, default=2)
    p.add_argument("--resume", action="store_true", help="go on from WORK/vq.pt")
    p.add_argument("--encode", action="store_true")
    p.add_argument("--from", dest="take", default="", help="only convert a vq.safetensors")
    o = p.parse_args()
    take(o) if o.take else common.launch(encode if o.encode else train, o.procs, o)
