"""Shared by the training scripts: two one-thread processes, data access, schedules, Muon."""

import os
import pathlib
import sys
import time

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(pathlib.Path(__file__).parent / "data"))
import avatars  # noqa: E402

SEED = {"train": 1, "held": 2}


def launch(main, procs, *args):
    """Run main(rank, world, *args) in `procs` one-thread processes joined by gloo."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = os.environ.get("WEFT_PORT", "29511")
    os.environ["OMP_NUM_THREADS"] = "1"
    if procs == 1:
        return _entry(0, main, 1, args)
    torch.multiprocessing.spawn(_entry, (main, procs, args), nprocs=procs)


def _entry(rank, main, world, args):
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(1000 + rank)
    main(rank, world, *args)


def all_sum(tensors, world):
    """Sum float tensors over the processes, in place, as one message."""
    if world == 1:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    at = 0
    for t in tensors:
        t.copy_(flat[at:at + t.numel()].view_as(t))
        at += t.numel()


def average_gradients(params, world):
    grads = [p.grad for p in params if p.grad is not None]
    all_sum(grads, world)
    for g in grads:
        g /= world


class Images:
    """Pictures of a split with their grain: [n] indices -> float [n,3,96,96] in [-1,1], channels last."""

    def __init__(self, work, split):
        self.x = np.load(pathlib.Path(work) / f"images_{split}.npy", mmap_mode="r")
        self.grain = avatars.Grain(7)
        self.seed = SEED[split]

    def uint8(self, i):
        return avatars.add_grain(self.x[i], [9, self.seed, i], self.grain)

    def batch(self, index):
        x = np.stack([self.uint8(int(i)) for i in index])
        return torch.from_numpy(x).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(x):
    """float [n,3,h,w] in [-1,1] -> uint8 [n,h,w,3], as the engine rounds."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


class Clock:
    """Fraction of a budget of minutes that has passed; the learning-rate schedules follow it.

    The minutes are the wall clock's, or with `now=time.process_time` the processor's, for a machine shared with others.
    """

    def __init__(self, minutes, now=time.time):
        self.now, self.start, self.total = now, now(), minutes * 60

    def part(self):
        return (self.now() - self.start) / self.total


def parts(clock, world):
    """The fraction of the budget that has passed, before each step, as all processes agree; ends when all of it has."""
    mean = torch.zeros(1)
    while True:
        mean[0] = clock.part()
        all_sum([mean], world)
        part = float(mean[0]) / world
        if part >= 1:
            return
        yield part


def orthogonal(g, steps=5):
    """Newton-Schulz iteration: the nearest semi-orthogonal matrix to g, roughly. [m,n] or [b,m,n]."""
    x = g.bfloat16()
    wide = x.size(-1) >= x.size(-2)
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x if wide else x.mT).float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is orthogonalised; one batched iteration per shape.

    A convolution's weight counts as the matrix [out, in * 9].
    """

    def __init__(self, params, lr=.02, momentum=.95, weight_decay=.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        world = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if world > 1 else 0
        shapes = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                shapes.setdefault(p.shape, []).append((group, p, p.grad.lerp(m, group["momentum"])))
        updates = []
        for shape, items in shapes.items():  # each process does its share of every shape
            raw = torch.stack([u.reshape(shape[0], -1) for _, _, u in items])
            update = torch.zeros_like(raw)
            share = slice(len(items) * rank // world, len(items) * (rank + 1) // world)
            if share.start < share.stop:
                update[share] = orthogonal(raw[share])
            updates.append(update)
        all_sum(updates, world)
        for items, update in zip(shapes.values(), updates):
            for (group, p, _), u in zip(items, update):
                scale = group["lr"] * max(1, u.size(0) / u.size(1)) ** .5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u.view_as(p), alpha=-scale)
