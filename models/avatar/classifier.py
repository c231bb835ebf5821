"""The attribute classifier that judges samples: 96x96 picture -> one class per attribute, and 128 features for FID.

    python classifier.py --work target/avatar --minutes 6     trains on renders and VQ reconstructions, writes WORK/classifier.pt
    python classifier.py --work target/avatar --test           held-out accuracy on renders and on reconstructions
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
import vq
from common import avatars

CHANNELS, FEATURES = [32, 64, 88, 104], 128


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        c = [3] + CHANNELS
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(c, c[1:]))
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in CHANNELS)
        self.fc = nn.Linear(5 * c[-1], FEATURES)
        self.out = nn.ModuleDict({k: nn.Linear(FEATURES, len(v)) for k, v in avatars.ATTRIBUTES.items()})

    def features(self, x):
        """[n,3,96,96] in [-1,1] -> [n,128]. The 6x6 map enters as its mean and its four quadrant means."""
        for conv, norm in zip(self.convs, self.norms):
            x = F.silu(norm(conv(x)))
        x = x.float()
        quadrants = F.avg_pool2d(x, 3).flatten(2)  # [n,C,4] in the order TL, TR, BL, BR
        pooled = torch.cat([x.mean((2, 3))[:, None], quadrants.transpose(1, 2)], 1)
        return F.silu(self.fc(pooled.flatten(1)))

    def forward(self, x):
        f = self.features(x)
        return {k: out(f) for k, out in self.out.items()}


def load(work):
    model = Classifier()
    model.load_state_dict(torch.load(pathlib.Path(work) / "classifier.pt"))
    return model.eval().to(memory_format=torch.channels_last)


def loss_of(logits, labels):
    """Mean cross entropy over the attributes; labels int64 [n,10], -1 ignored."""
    return sum(F.cross_entropy(logits[k], labels[:, j], ignore_index=-1) for j, k in enumerate(avatars.NAMES)) / len(avatars.NAMES)


@torch.no_grad()
def reconstruct(work, tokens):
    """VQ decodes tokens [n,576] -> uint8 [n,96,96,3]."""
    model = vq.load(work)
    out = []
    for part in torch.from_numpy(tokens.astype(np.int64)).split(50):
        with torch.autocast("cpu", torch.bfloat16):
            out.append(common.to_uint8(model.decode(part)))
    return np.concatenate(out)


def reconstruct_train(rank, world, o):
    """WORK/recon_train.npy: the VQ's reconstructions of the first pictures of the training split."""
    n, path = o.reconstructions, o.work / "recon_train.npy"
    if rank == 0:
        np.lib.format.open_memmap(path, "w+", np.uint8, (n, 96, 96, 3))
    if world > 1:
        torch.distributed.barrier()
    out, tokens = np.load(path, mmap_mode="r+"), np.load(o.work / "tokens_train.npy", mmap_mode="r")
    for i in range(rank * 200, n, 200 * world):
        out[i:i + 200] = reconstruct(o.work, tokens[i:min(i + 200, n)])
    if world > 1:
        torch.distributed.barrier()


def train(rank, world, o):
    if not (o.work / "recon_train.npy").exists() or o.again:
        reconstruct_train(rank, world, o)
    data = common.Images(o.work, "train")
    labels = torch.from_numpy(np.load(o.work / "labels_train.npy").astype(np.int64))
    recon = np.load(o.work / "recon_train.npy", mmap_mode="r")
    model = Classifier().to(memory_format=torch.channels_last)
    if (o.work / "classifier.pt").exists() and o.resume:
        model.load_state_dict(torch.load(o.work / "classifier.pt"))
    for p in model.state_dict().values():
        if world > 1:
            torch.distributed.broadcast(p, 0)
    params = list(model.parameters())
    matrix = [p for p in params if p.dim() == 4] + [model.fc.weight]
    rest = [p for p in params if p.dim() != 4 and p is not model.fc.weight]
    opts = [common.Muon(matrix, lr=o.lr, weight_decay=.01), torch.optim.AdamW(rest, lr=3e-3, betas=(.9, .98), weight_decay=0)]
    rng, clock, step, t0 = np.random.default_rng(rank), common.Clock(o.minutes), 0, time.time()
    for part in common.parts(clock, world):
        for opt, lr in zip(opts, (o.lr, 3e-3)):
            opt.param_groups[0]["lr"] = lr * min(1, (step + 1) / 100) * min(1, (1 - part) / .7)
        i = rng.integers(0, len(data.x), o.batch)  # half renders, half reconstructions
        x = data.batch(i)
        j = rng.integers(0, len(recon), o.batch)
        r = torch.from_numpy(np.stack([recon[k] for k in j])).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        x, i = torch.cat([x, r]), np.concatenate([i, j])
        x = (x * (1 + .05 * torch.randn(len(x), 1, 1, 1))).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = loss_of({k: v.float() for k, v in logits.items()}, labels[i])
        loss.backward()
        common.average_gradients(params, world)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        if rank == 0 and step % 200 == 0:
            print(f"{part:.3f} step {step} {400 * o.batch * world / (time.time() - t0):.0f} img/s loss {loss.item():.4f}", flush=True)
            t0 = time.time()
        if rank == 0 and step % 1000 == 0:
            torch.save(model.state_dict(), o.work / "classifier.pt")
    if rank == 0:
        torch.save(model.state_dict(), o.work / "classifier.pt")


@torch.no_grad()
def judge(model, pictures):
    """uint8 [n,96,96,3] -> (labels int64 [n,10], features [n,128])."""
    labels, features = [], []
    for part in torch.from_numpy(pictures).split(200):
        f = model.features(part.permute(0, 3, 1, 2).float().div(127.5).sub(1))
        features.append(f)
        labels.append(torch.stack([model.out[k](f).argmax(1) for k in avatars.NAMES], 1))
    return torch.cat(labels).numpy(), torch.cat(features).numpy()


def accuracy(got, want):
    """Per attribute over the labels >= 0 of want [n,10], and the mean over all of them."""
    per = {k: float((got[:, j] == want[:, j])[want[:, j] >= 0].mean()) for j, k in enumerate(avatars.NAMES)}
    return per, float((got == want)[want >= 0].mean())


def test(o):
    torch.set_num_threads(2)
    model, n = load(o.work), o.images
    want = np.load(o.work / "labels_held.npy")[:n]
    data = common.Images(o.work, "held")
    renders = np.stack([data.uint8(i) for i in range(n)])
    sets = {"renders": renders}
    if (o.work / "tokens_held.npy").exists():
        sets["reconstructions"] = reconstruct(o.work, np.load(o.work / "tokens_held.npy")[:n])
        mse = np.mean((sets["reconstructions"].astype(np.float32) - renders) ** 2, axis=(1, 2, 3))
        print(f"PSNR {np.mean(10 * np.log10(255 ** 2 / mse)):.2f} dB (mean over pictures), {10 * np.log10(255 ** 2 / mse.mean()):.2f} dB (of the mean error)")
    for name, x in sets.items():
        per, mean = accuracy(judge(model, x)[0], want)
        print(f"{name}: mean {mean:.4f}", {k: round(v, 3) for k, v in per.items()})


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--minutes", type=float, default=6)
    p.add_argument("--batch", type=int, default=32, help="renders, and as many reconstructions")
    p.add_argument("--lr", type=float, default=.02)
    p.add_argument("--procs", type=int, default=1)
    p.add_argument("--images", type=int, default=3000)
    p.add_argument("--reconstructions", type=int, default=16000)
    p.add_argument("--again", action="store_true", help="make the reconstructions anew")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--test", action="store_true")
    o = p.parse_args()
    test(o) if o.test else common.launch(train, o.procs, o)
