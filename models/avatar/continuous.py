"""A continuous model of the same pictures, after MAR (arXiv 2406.11838), and a smaller draft of the same kind.

    python continuous.py --work target/avatar --kl --minutes 15            the tokenizer: 96x96 <-> 12x12x8, WORK/kl.pt
    python continuous.py --work target/avatar --encode                     WORK/latents_{train,held}.npy and the scale
    python continuous.py --work target/avatar --minutes 60                 the target, WORK/mar_target.pt
    python continuous.py --work target/avatar --size draft --minutes 30    the draft
    python continuous.py --work target/avatar --sample --n 64 --cfg 3 [--size draft]
    python continuous.py --work target/avatar --export DIR [--fixture tests/data]
    python continuous.py --check                                           the diffusion's arithmetic

--resume goes on from the checkpoint, optimizers included (with --start PART of the schedule). The text encoder is the
shipped one, frozen; its output enters as a prefix of the encoder and as a condition of every position.

A picture is 144 positions of 8 numbers with unit variance. The encoder sees the known positions only, the decoder all of
them with a learned vector where nothing is known; both look everywhere. The decoder's output z at an unknown position
conditions a diffusion over its 8 numbers: a small MLP predicts the noise and, between the two bounds of the posterior, its
variance. So a sample has a density given its trajectory, which continuous speculative decoding compares.
"""

import argparse
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import classifier
import common
import export
import sample
import text
import transformer as T
import upsample
import vq

GRID, CHANNELS, TIMES = 12, 8, 1000
TOKENS = GRID * GRID
CLIP = 5.0  # of a denoised number, in deviations: at the first steps an error of the noise is thousands of times as large in it
KL_CHANNELS, KL_RES, KL_ENCODER_RES = [96, 96, 64, 32], [2, 1, 1, 1], [1, 1, 1, 1]
#                encoder and decoder layers, depth and width of the diffusion head
SIZES = {"target": (2, 3, 3, 192), "draft": (1, 1, 2, 96)}


class KL(nn.Module):
    """The part named kl.*: the VQ's convolutions, halved once more, with a Gaussian instead of a codebook.

    mean and deviation [8] are those of the latents over the training pictures; the model sees (latent - mean) / deviation.
    """

    def __init__(self):
        super().__init__()
        self.encoder = vq.Encoder(KL_CHANNELS, KL_ENCODER_RES, 2 * CHANNELS)
        self.decoder = vq.Decoder(KL_CHANNELS, KL_RES, CHANNELS)
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("deviation", torch.ones(CHANNELS))

    def moments(self, x):
        """[n,3,96,96] -> mean and log variance [n,8,12,12]."""
        mean, log = self.encoder(x).float().chunk(2, 1)
        return mean, log.clamp(-12, 4)

    def decode(self, latent):
        """Normalised latents [n,144,8] -> [n,3,96,96] in [-1,1]."""
        z = (latent * self.deviation + self.mean).view(-1, GRID, GRID, CHANNELS).permute(0, 3, 1, 2)
        return self.decoder(z.contiguous(memory_format=torch.channels_last)).float().clamp(-1, 1)


class Block(nn.Module):
    """Residual MLP of the diffusion head, shifted, scaled and gated by the condition."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, c):
        shift, scale, gate = self.modulation(c).chunk(3, -1)
        return x + gate * self.down(F.silu(self.up(self.norm(x) * (1 + scale) + shift)))


class Head(nn.Module):
    """x [m,8] at time t [m] given z [m,192] -> noise [m,8] and v [m,8]."""

    def __init__(self, depth, width):
        super().__init__()
        self.inp, self.cond = nn.Linear(CHANNELS, width), nn.Linear(T.HIDDEN, width)
        self.time1, self.time2 = nn.Linear(64, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, 2 * CHANNELS)
        for m in (self.modulation, self.out):
            nn.init.zeros_(m.weight)
            nn.init.zeros_(m.bias)

    def forward(self, x, t, z):
        angle = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(32) / 32)
        time = self.time2(F.silu(self.time1(torch.cat([angle.cos(), angle.sin()], 1))))
        c = F.silu(time + self.cond(z))
        x = self.inp(x)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, -1)
        return self.out(self.norm(x) * (1 + scale) + shift).chunk(2, -1)


class Mar(nn.Module):
    """The part named mar.* (target and draft in files of their own)."""

    def __init__(self, size):
        super().__init__()
        before, after, depth, width = SIZES[size]
        d = T.HIDDEN
        self.inp = nn.Linear(CHANNELS, d, bias=False)
        self.text_proj, self.cond_proj = nn.Linear(text.HIDDEN, d, bias=False), nn.Linear(text.HIDDEN, d, bias=False)
        self.row_embed, self.col_embed = nn.Embedding(GRID, d), nn.Embedding(GRID, d)
        self.unknown = nn.Parameter(torch.randn(d) * .3)
        for e in (self.row_embed, self.col_embed):
            nn.init.normal_(e.weight, std=.3)
        self.encoder = nn.ModuleList(T.Layer() for _ in range(before))
        self.decoder = nn.ModuleList(T.Layer() for _ in range(after))
        self.norm = text.RMSNorm(d)
        self.head = Head(depth, width)
        for layer in [*self.encoder, *self.decoder]:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)

    def forward(self, enc, length, x, known):
        """enc [b,p,96] of prompts of `length` [b] ids, latents x [b,144,8], known int64 [b,k] -> z [b,144,192] in raster order.

        Positions are read only at `known`. The prefix has rotary coordinates (0,0), position (r,c) has (r+1,c+1).
        """
        b, p, d = enc.size(0), enc.size(1), T.HIDDEN
        raster = torch.arange(TOKENS)
        place = self.row_embed(raster // GRID) + self.col_embed(raster % GRID) + self.cond_proj(enc[:, :1])
        seen = (self.inp(x) + place).gather(1, known[..., None].expand(-1, -1, d))
        y = torch.cat([self.text_proj(enc), seen], 1)
        pad = (torch.arange(p) >= length[:, None]) * -1e9
        cos, sin = T.rotary(torch.cat([torch.zeros(p, dtype=torch.long), raster // GRID + 1]),
                            torch.cat([torch.zeros(p, dtype=torch.long), raster % GRID + 1]))
        at = torch.cat([torch.arange(p).expand(b, -1), known + p], 1)
        mask = torch.cat([pad, torch.zeros(known.shape)], 1)[:, None, None]
        for layer in self.encoder:
            y = layer(y, cos[at], sin[at], mask)
        full = (self.unknown + place).to(y.dtype).scatter(1, known[..., None].expand(-1, -1, d), y[:, p:])
        y = torch.cat([y[:, :p], full], 1)
        mask = torch.cat([pad, torch.zeros(b, TOKENS)], 1)[:, None, None]
        for layer in self.decoder:
            y = layer(y, cos, sin, mask)
        return self.norm(y[:, p:])


class Diffusion:
    """The cosine schedule of 1000 steps, or of fewer taken evenly from it; arrays over the steps that are kept."""

    def __init__(self, steps=TIMES):
        level = torch.cos((torch.arange(TIMES + 1, dtype=torch.float64) / TIMES + .008) / 1.008 * math.pi / 2).square()
        kept = torch.cumprod(1 - (1 - level[1:] / level[:-1]).clamp(max=.999), 0)  # product of the alphas
        self.times = torch.linspace(0, TIMES - 1, steps).round().long()
        a = kept[self.times]
        before = torch.cat([torch.ones(1, dtype=a.dtype), a[:-1]])
        beta = 1 - a / before
        posterior = beta * (1 - before) / (1 - a)
        floor = posterior.clone()
        floor[0] = posterior[1] if steps > 1 else beta[0]  # the last step's is zero
        self.signal, self.noise = a.sqrt().float(), (1 - a).sqrt().float()
        self.low, self.high = floor.log().float(), beta.log().float()
        self.from_x0, self.from_xt = (beta * before.sqrt() / (1 - a)).float(), ((1 - before) * (1 - beta).sqrt() / (1 - a)).float()

    def posterior(self, x, eps, v, i):
        """Mean and log variance of x_{i-1} given x_i and the head's output; i int64 [m] or a number."""
        at = lambda a: a[i][..., None]
        x0 = ((x - at(self.noise) * eps) / at(self.signal)).clamp(-CLIP, CLIP)
        share = (v + 1) / 2
        return at(self.from_x0) * x0 + at(self.from_xt) * x, share * at(self.high) + (1 - share) * at(self.low)

    def loss(self, head, x0, z):
        """Squared error of the noise, and the bound's term of the variance (its mean is not trained by it)."""
        i = torch.randint(len(self.times), (len(x0),))
        e = torch.randn_like(x0)
        x = self.signal[i][:, None] * x0 + self.noise[i][:, None] * e
        eps, v = (u.float() for u in head(x, self.times[i], z))
        mean, log = self.posterior(x, eps.detach(), v, i)
        true = self.from_x0[i][:, None] * x0 + self.from_xt[i][:, None] * x
        low = self.low[i][:, None]
        kl = .5 * (log - low + (low - log).exp() + (true - mean).square() * (-log).exp() - 1)
        nll = .5 * (math.log(2 * math.pi) + log + (x0 - mean).square() * (-log).exp())
        bound = torch.where(i[:, None] == 0, nll, kl).mean() / math.log(2)
        return (eps - e).square().mean(), bound

    @torch.no_grad()
    def sample(self, head, z, cfg, start, noises):
        """z [2m,192] (conditional rows first), start [m,8], noises [steps,m,8] -> x_0 [m,8], which is the mean of the last step
        (its noise is not added), the logarithm of that step's deviation, and the sum of those of all steps before it [m]. The
        noise is guided, the variance is not."""
        x, m, spread = start, len(start), 0
        for i in reversed(range(len(self.times))):
            eps, v = head(torch.cat([x, x]), self.times[i].expand(2 * m), z)
            eps = eps[m:] + cfg * (eps[:m] - eps[m:])
            mean, log = self.posterior(x, eps, v[:m], i)
            if i > 0:
                x, spread = mean + (.5 * log).exp() * noises[i], spread + .5 * log.sum(1)
        return mean, .5 * log, spread


@torch.no_grad()
def check(o):
    """Where the data are Gaussian, the best head is known: with it the sampler must return their mean and deviation."""
    d, (mean, deviation) = Diffusion(o.steps), (1.5, .4)

    def best(x, t, z):
        i = int((d.times == t[0]).nonzero()[0])
        here, above = ((d.signal[j] * deviation) ** 2 + d.noise[j] ** 2 for j in (i, max(i - 1, 0)))
        step = d.signal[i] / d.signal[i - 1] if i else 1
        true = (above - (step * above) ** 2 / here).log() if i else d.low[0]
        v = 2 * (true - d.low[i]) / (d.high[i] - d.low[i]) - 1
        return d.noise[i] * (x - d.signal[i] * mean) / here, v.expand_as(x)

    n = 20000
    x = d.sample(best, torch.zeros(2 * n, 1), 3.0, torch.randn(n, CHANNELS), torch.randn(o.steps, n, CHANNELS))[0]
    print(f"mean {x.mean():.4f} of {mean}, deviation {x.std():.4f} of {deviation}")
    assert abs(x.mean() - mean) < .006 and abs(x.std() / deviation - 1) < .01


def train_kl(o):
    data, judge = common.Images(o.work, "train"), classifier.load(o.work).requires_grad_(False)
    model = KL().to(memory_format=torch.channels_last)
    params = list(model.parameters())
    matrix = [p for p in params if p.dim() == 4]
    opts = [common.Muon(matrix, lr=o.lr), torch.optim.AdamW([p for p in params if p.dim() != 4], lr=2e-3, betas=(.9, .98), weight_decay=0)]
    step = begin(o, o.work / "kl.pt", model, opts)
    rng, clock, t0 = np.random.default_rng(step), common.Clock(o.minutes, time.process_time), time.time()
    while (part := clock.part() * (1 - o.start) + o.start) < 1:
        rate(opts, (o.lr, 2e-3), step, part)
        x = data.batch(rng.integers(0, len(data.x), o.batch)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            mean, log = model.moments(x)
            y = model.decoder(mean + torch.randn_like(mean) * (.5 * log).exp()).float()
            with torch.no_grad():
                want = upsample.maps(judge, x)
            seen = sum((a - b).float().square().mean() / b.float().var() for a, b in zip(upsample.maps(judge, y), want)) / len(want)
        kl = .5 * (mean.square() + log.exp() - 1 - log).mean()
        loss = vq.loss_of(y, x) + .1 * seen + 3e-3 * kl
        update(loss, params, opts)
        step += 1
        if step % 50 == 0:
            psnr = -10 * math.log10((y.detach().clamp(-1, 1) - x).square().mean() / 4)
            print(f"{part:.3f} step {step} {50 * o.batch / (time.time() - t0):.1f} img/s psnr {psnr:.2f} kl {kl.item():.3f} seen {seen.item():.3f}", flush=True)
            t0 = time.time()
        if step % 200 == 0:
            keep(o.work / "kl.pt", model, opts, step)
    keep(o.work / "kl.pt", model, opts, step)


def begin(o, path, model, opts):
    """Go on from a checkpoint with --resume. -> steps done"""
    if not o.resume:
        return 0
    saved = torch.load(path)
    model.load_state_dict(saved["model"])
    for opt, s in zip(opts, saved["opts"]):
        opt.load_state_dict(s)
    return saved["step"]


def keep(path, model, opts, step):
    torch.save({"model": model.state_dict(), "opts": [opt.state_dict() for opt in opts], "step": step}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def rate(opts, base, step, part):
    for opt, lr in zip(opts, base):
        opt.param_groups[0]["lr"] = lr * min(1, (step + 1) / 100) * min(1, (1 - part) / .7) + 1e-7


def update(loss, params, opts):
    loss.backward()
    nn.utils.clip_grad_norm_(params, 1.0)
    for opt in opts:
        opt.step()
        opt.zero_grad(set_to_none=True)


def load_kl(work):
    model = KL()
    model.load_state_dict(torch.load(pathlib.Path(work) / "kl.pt")["model"])
    return model.eval().to(memory_format=torch.channels_last)


def load(work, size):
    model = Mar(size)
    model.load_state_dict(torch.load(pathlib.Path(work) / f"mar_{size}.pt")["model"])
    return model.eval()


@torch.no_grad()
def encode(o):
    """Means of the latents, normalised, f16 [n,144,8]; the scale goes into kl.pt."""
    saved, model = torch.load(o.work / "kl.pt"), load_kl(o.work)
    for split in ("train", "held"):
        data, path = common.Images(o.work, split), o.work / f"latents_{split}.npy"
        out = np.lib.format.open_memmap(path, "w+", np.float16, (len(data.x), TOKENS, CHANNELS))
        for i in range(0, min(len(data.x), o.images), 50):
            index = range(i, min(i + 50, len(data.x)))
            with torch.autocast("cpu", torch.bfloat16):
                mean, _ = model.moments(data.batch(index).contiguous(memory_format=torch.channels_last))
            z = mean.permute(0, 2, 3, 1).reshape(len(index), TOKENS, CHANNELS)
            if split == "train" and i == 0:
                model.mean, model.deviation = z.mean((0, 1)), z.std((0, 1))
                saved["model"] |= {"mean": model.mean, "deviation": model.deviation}
                torch.save(saved, o.work / "kl.pt")
            out[i:i + len(index)] = ((z - model.mean) / model.deviation).numpy()
            if i % 5000 == 0:
                print(split, i, flush=True)


def words(o):
    """The shipped model's text encoder, frozen."""
    return T.load(o.work).text.requires_grad_(False)


def train(o):
    latents, labels = np.load(o.work / "latents_train.npy", mmap_mode="r"), np.load(o.work / "labels_train.npy")
    ready = np.nonzero(latents[:, 0].any(1))[0]
    captioner, encoder, model, diffusion = text.Captioner(o.work, 500, full=.8), words(o), Mar(o.size), Diffusion()
    params = list(model.parameters())
    matrix = [p for k, p in model.named_parameters() if "coder." in k and p.dim() == 2]
    inner = {id(p) for p in matrix}
    opts = [common.Muon(matrix, lr=o.lr, weight_decay=.01), torch.optim.AdamW([p for p in params if id(p) not in inner], lr=2e-3, betas=(.9, .95), weight_decay=0)]
    path = o.work / f"mar_{o.size}.pt"
    step = begin(o, path, model, opts)
    print(f"{sum(p.numel() for p in params)} parameters, {len(ready)} pictures", flush=True)
    rng, clock, t0, mean = np.random.default_rng(600 + step), common.Clock(o.minutes, time.process_time), time.time(), np.zeros(2)
    while (part := clock.part() * (1 - o.start) + o.start) < 1:
        rate(opts, (o.lr, 2e-3), step, part)
        pick = rng.choice(ready, o.batch, replace=False)
        prompts = [captioner(labels[i], T.PREFIX)[0] if rng.random() > .1 else [1] for i in pick]
        ids = text.pad(prompts, max(map(len, prompts)))
        x = torch.from_numpy(latents[pick].astype(np.float32))
        hidden = math.ceil(TOKENS * min(1, abs(rng.normal(1, .25)) if rng.random() < .5 else rng.uniform(.05, 1)))
        order = torch.rand(o.batch, TOKENS).argsort(1)
        with torch.autocast("cpu", torch.bfloat16):
            z = model(encoder(ids), (ids >= 0).sum(1), x, order[:, hidden:])
            goal = order[:, :hidden]
            z = z.gather(1, goal[..., None].expand(-1, -1, T.HIDDEN)).flatten(0, 1)
            x0 = x.gather(1, goal[..., None].expand(-1, -1, CHANNELS)).flatten(0, 1)
            noise, bound = diffusion.loss(model.head, x0.repeat(2, 1), z.repeat(2, 1))
        update(noise + 1e-3 * bound, params, opts)
        step += 1
        mean += noise.item(), bound.item()
        if step % 50 == 0:
            print(f"{part:.3f} step {step} {50 * o.batch / (time.time() - t0):.1f} img/s noise {mean[0] / 50:.4f} bound {mean[1] / 50:.3f}", flush=True)
            t0, mean = time.time(), np.zeros(2)
        if step % 200 == 0:
            keep(path, model, opts, step)
    keep(path, model, opts, step)


@torch.no_grad()
def generate(model, encoder, ids, cfg, steps, diffusion, seed=0, order=None, noise=None):
    """Latents [b,144,8]: random order, `steps` rounds on the cosine schedule, cfg growing linearly with the known share.

    noise [b,144,levels+1,8]: where a position's trajectory begins, at the last level, and what each step above 0 adds.
    """
    b, rng = len(ids), torch.Generator().manual_seed(seed)
    prompt = text.pad(list(ids) + [[1]] * b, max(map(len, ids)))
    enc, length = encoder(prompt), (prompt >= 0).sum(1)
    order = torch.rand(b, TOKENS, generator=rng).argsort(1) if order is None else order
    levels = len(diffusion.times)
    noise = torch.randn(b, TOKENS, levels + 1, CHANNELS, generator=rng) if noise is None else noise
    x, done = torch.zeros(b, TOKENS, CHANNELS), 0
    for s in range(steps):
        left = min(TOKENS - done - 1, max(1, math.floor(TOKENS * math.cos(math.pi / 2 * (s + 1) / steps)))) if s + 1 < steps else 0
        goal = order[:, done:TOKENS - left]
        if goal.size(1) == 0:
            continue
        z = states(model, enc, length, x.repeat(2, 1, 1), order[:, :done].repeat(2, 1), goal.repeat(2, 1))
        own = noise.gather(1, goal[..., None, None].expand(-1, -1, levels + 1, CHANNELS)).flatten(0, 1).transpose(0, 1)
        weight = 1 + (cfg - 1) * (TOKENS - left) / TOKENS
        got = diffusion.sample(model.head, z, weight, own[levels], own)[0]
        x = x.scatter(1, goal[..., None].expand(-1, -1, CHANNELS), got.view(b, -1, CHANNELS))
        done = TOKENS - left
    return x


def states(model, enc, length, x, known, goal):
    """The decoder's output z [b*k,192] at positions `goal` [b,k]."""
    return model(enc, length, x, known).gather(1, goal[..., None].expand(-1, -1, T.HIDDEN)).flatten(0, 1)


@torch.no_grad()
def samples(o):
    model, kl, encoder, held = load(o.work, o.size), load_kl(o.work), words(o), sample.Held(o.work, o.n)
    pictures, t0 = [], time.time()
    for i in range(0, o.n, 32):
        x = generate(model, encoder, held.ids[i:i + 32], o.cfg, o.rounds, Diffusion(o.steps), seed=i)
        pictures.append(common.to_uint8(kl.decode(x)))
    pictures = np.concatenate(pictures)
    per, mean = classifier.accuracy(classifier.judge(classifier.load(o.work), pictures)[0], held.named)
    print(f"{o.size}: {o.n} samples, cfg {o.cfg}, {o.rounds} rounds, {o.steps} diffusion steps: accuracy {mean:.4f} ({time.time() - t0:.0f} s)", {k: round(v, 2) for k, v in per.items()})
    sample.sheet(pictures[:60], o.work / f"sheet_mar_{o.size}.png")


@torch.no_grad()
def test_kl(o):
    """PSNR and attributes of held-out pictures through the tokenizer (means, no noise)."""
    kl, data = load_kl(o.work), common.Images(o.work, "held")
    x = data.batch(range(o.n))
    y = torch.cat([kl.decoder(kl.moments(part)[0]).float().clamp(-1, 1) for part in x.split(25)])
    mean = classifier.accuracy(classifier.judge(classifier.load(o.work), common.to_uint8(y))[0], sample.Held(o.work, o.n).named)[1]
    print(f"KL tokenizer: PSNR {-10 * ((x - y).square().mean((1, 2, 3)) / 4).log10().mean():.2f} dB, attributes {mean:.4f}")


def rounded(module):
    """Parameters and buffers rounded to bf16."""
    for b in module.buffers():
        b.copy_(b.bfloat16().float())
    return export.rounded(module)


@torch.no_grad()
def write(o):
    """The parts as they ship, without the tokenizer's encoder, which only training needs."""
    from safetensors.torch import save_file
    o.export.mkdir(parents=True, exist_ok=True)
    kl = rounded(load_kl(o.work).to(memory_format=torch.contiguous_format))
    models = {s: rounded(load(o.work, s)) for s in SIZES}
    for name, part in {"kl": kl, **{f"mar_{s}": m for s, m in models.items()}}.items():
        kept = {k: v for k, v in export.tensors(part, name.split("_")[0] + ".").items() if "kl.encoder" not in k}
        path = o.export / f"{name}.safetensors"
        save_file(kept, path, metadata={"format": "pt"})
        path.chmod(0o644)
    if o.fixture:
        out, prompt = oracle(o, kl, models)
        path = o.fixture / "continuous_oracle.safetensors"
        save_file({k: v.clone().contiguous() for k, v in out.items()}, path, metadata={"prompt": prompt})
        path.chmod(0o644)


def oracle(o, kl, models):
    """One held-out caption and picture through every part, in fp32 from the bf16 weights, for the Rust tests."""
    held, rng = sample.Held(o.work, 1, first=11), torch.Generator().manual_seed(5)
    randn = lambda *shape: torch.randn(*shape, generator=rng)
    encoder, ids = export.rounded(words(o)), [held.ids[0]]
    prompt = text.pad(ids + [[1]], len(ids[0]))
    enc, length = encoder(prompt), (prompt >= 0).sum(1)
    latents, order = randn(TOKENS, CHANNELS), torch.rand(TOKENS, generator=rng).argsort()
    known, goal = order[:60], order[60:72]
    out = {"prompt_ids": torch.tensor(ids[0]), "latents": latents, "known": known, "goals": goal}
    d, cfg = Diffusion(o.steps), torch.tensor(o.cfg)
    noise = randn(len(goal), o.steps + 1, CHANNELS)
    x = randn(len(goal), CHANNELS)
    out |= {"noise": noise, "x": x, "cfg": cfg[None], "steps": torch.tensor([0, o.steps // 2, o.steps - 1])}
    for name, model in models.items():
        z = states(model, enc, length, latents.repeat(2, 1, 1), known.repeat(2, 1), goal.repeat(2, 1))
        heads = [torch.cat(model.head(x, d.times[i].expand(len(x)), z[:len(x)]), 1) for i in out["steps"]]
        own = noise.transpose(0, 1)
        mean, log, spread = d.sample(model.head, z, cfg, own[-1], own)
        out |= {f"{name}.z": z, f"{name}.head": torch.stack(heads), f"{name}.mean": mean, f"{name}.log_deviation": log, f"{name}.spread": spread}
    # A whole picture, of few steps.
    whole = randn(TOKENS, 21, CHANNELS)
    got = generate(models["target"], encoder, ids, o.cfg, 6, Diffusion(20), order=order[None], noise=whole[None])
    out |= {"order": order, "whole.noise": whole, "whole.latents": got[0], "whole.picture": torch.from_numpy(common.to_uint8(kl.decode(got))[0])}
    return out, held.texts[0]


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--size", choices=SIZES, default="target")
    p.add_argument("--minutes", type=float, default=15, help="of processor time")
    p.add_argument("--batch", type=int, default=12)
    p.add_argument("--lr", type=float, default=.02, help="Muon")
    p.add_argument("--start", type=float, default=0.0, help="part of the schedule to begin at")
    p.add_argument("--images", type=int, default=10 ** 9, help="training pictures to encode")
    p.add_argument("--n", type=int, default=64)
    p.add_argument("--cfg", type=float, default=3.0)
    p.add_argument("--rounds", type=int, default=36)
    p.add_argument("--steps", type=int, default=50, help="of the diffusion, in sampling")
    p.add_argument("--procs", type=int, default=1, help="threads")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--kl", action="store_true")
    p.add_argument("--encode", action="store_true")
    p.add_argument("--test", action="store_true", help="of the tokenizer")
    p.add_argument("--sample", action="store_true")
    p.add_argument("--check", action="store_true", help="the diffusion sampler on Gaussian data")
    p.add_argument("--export", type=pathlib.Path)
    p.add_argument("--fixture", type=pathlib.Path, help="folder for the oracle of the Rust tests, with --export")
    o = p.parse_args()
    torch.set_num_threads(o.procs)
    torch.manual_seed(0)
    (check if o.check else train_kl if o.kl else encode if o.encode else test_kl if o.test else samples if o.sample else write if o.export else train)(o)
