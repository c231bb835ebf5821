"""Render the data set: WORK/images_{train,held}.npy uint8 [N,96,96,3] (no grain) and WORK/labels_*.npy int8 [N,10].

    python data/render.py --work target/avatar [--train 60000 --held 6000 --procs 2]

Picture i of a split depends on (split, i) only. Grain is added when the pictures are read (avatars.add_grain).
"""

import argparse
import json
import multiprocessing
import pathlib

import numpy as np

import avatars

PARTS = json.loads((pathlib.Path(__file__).parent / "parts.json").read_text())
SEED = {"train": 1, "held": 2}


def work(args):
    """Fill rows start..stop of both files."""
    folder, split, start, stop = args
    images = np.load(folder / f"images_{split}.npy", mmap_mode="r+")
    labels = np.load(folder / f"labels_{split}.npy", mmap_mode="r+")
    for i in range(start, stop):
        rng = np.random.default_rng([SEED[split], i])
        a = avatars.sample_attributes(rng)
        images[i] = avatars.render(rng, PARTS, a)
        a = avatars.visible(a)
        labels[i] = [a[k] for k in avatars.NAMES]
    return split, stop


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--train", type=int, default=60000)
    p.add_argument("--held", type=int, default=6000)
    p.add_argument("--procs", type=int, default=2)
    o = p.parse_args()
    o.work.mkdir(parents=True, exist_ok=True)
    jobs = []
    for split, n in (("held", o.held), ("train", o.train)):
        np.lib.format.open_memmap(o.work / f"images_{split}.npy", "w+", np.uint8, (n, 96, 96, 3))
        np.lib.format.open_memmap(o.work / f"labels_{split}.npy", "w+", np.int8, (n, len(avatars.NAMES)))
        jobs += [(o.work, split, i, min(n, i + 500)) for i in range(0, n, 500)]
    with multiprocessing.Pool(o.procs) as pool:
        for split, stop in pool.imap(work, jobs):
            print(split, stop, flush=True)


if __name__ == "__main__":
    main()
