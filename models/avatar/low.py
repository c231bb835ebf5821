"""A low-resolution model of the same family, the drafter of multi-scale decoding: 48x48 pictures, 12x12 tokens.

    python low.py --work target/avatar --prepare       WORK/low: links, the shipped VQ and weights to start from
    python vq.py --work target/avatar/low --half --resume --procs 1 --cpu --minutes 8 --lr 1e-3
    python vq.py --work target/avatar/low --half --encode --procs 1
    python transformer.py --work target/avatar/low --init target/avatar/low/start.safetensors --grid 12 --layers 5 \\
        --batch 32 --procs 1 --cpu --minutes 20
    python low.py --work target/avatar --vq            what the VQ loses at 48 pixels
    python low.py --work target/avatar --sample --n 512 --cfg 3      attribute accuracy, tokens in WORK/low/samples.npy
    python low.py --work target/avatar --export DIR    a model directory: config.json, tokenizer.json, model and VQ in bf16
    python low.py --work target/avatar --fixture FILE  what the engine's tests compare with, up-sampler included

It has the prompt format, the text encoder and the layer of the shipped model, but 5 of its 9 layers, and starts
from its weights. The VQ is a copy of the shipped one that went on training on half-size pictures (as it is, it loses eyes
and mouths there: 26.4 dB). The paper (arXiv 2601.05149) drafts with a model as large as the target; what its speed comes
from is the four times shorter sequence.
"""

import argparse
import json
import pathlib
import shutil
import time

import numpy as np
import torch
import torch.nn.functional as F

import classifier
import common
import export
import sample
import text
import transformer as T
import vq
from common import avatars

GRID, TAKEN = 12, [0, 2, 4, 6, 8]  # layers of the shipped model that the small one starts from


def half(x):
    """[n,3,96,96] -> [n,3,48,48], mean of 2x2."""
    return F.avg_pool2d(x, 2)


def double(x):
    """uint8 [n,48,48,3] -> uint8 [n,96,96,3], bicubic."""
    x = torch.from_numpy(x).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return common.to_uint8(F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False))


def prepare(o):
    """WORK/low."""
    from safetensors.torch import load_file, save_file
    low = o.work / "low"
    low.mkdir(exist_ok=True)
    for name in ("images_held.npy", "images_train.npy", "labels_held.npy", "labels_train.npy", "vocab.json", "text.pt", "classifier.pt"):
        if not (low / name).exists():
            (low / name).symlink_to((o.work / name).resolve())
    shutil.copyfile(o.work / "vq.pt", low / "vq.pt")
    start = {}
    for k, v in load_file(o.init).items():
        part = k.split(".")
        if k.startswith("heads."):
            continue
        if k.startswith("model.layers."):
            if int(part[2]) not in TAKEN:
                continue
            part[2] = str(TAKEN.index(int(part[2])))
        if k in ("model.row_embed.weight", "model.col_embed.weight"):
            v = v.float().view(GRID, 2, -1).mean(1)
        start[".".join(part)] = v.float().contiguous()
    save_file(start, low / "start.safetensors")


def judged(work, pictures, named, what):
    """Print the accuracy of the named attributes on uint8 [n,48,48,3], doubled."""
    per, mean = classifier.accuracy(classifier.judge(classifier.load(work), double(pictures))[0], named)
    print(f"{what}: accuracy {mean:.4f}", {k: round(v, 2) for k, v in per.items()}, flush=True)


@torch.no_grad()
def test_vq(o):
    """PSNR and attributes of held-out pictures at 48 pixels, and after the VQ."""
    data, model, named = common.Images(o.work, "held"), vq.load(o.work / "low"), sample.Held(o.work, o.n).named
    x = half(data.batch(range(o.n)))
    tokens = torch.cat([model.encode(part) for part in x.split(50)])
    y = torch.cat([model.decode(part) for part in tokens.split(50)])
    mse = (x - y).square().mean((1, 2, 3)) / 4
    share = np.bincount(tokens.reshape(-1).numpy(), minlength=vq.CODES) / tokens.numel()
    print(f"PSNR {-10 * mse.log10().mean():.2f} dB, codes used {(share > 0).sum()}, perplexity {np.exp(-(share * np.log(share + 1e-12)).sum()):.0f}")
    judged(o.work, common.to_uint8(x), named, "pictures at 48 pixels")
    judged(o.work, common.to_uint8(y), named, "reconstructions at 48 pixels")
    sample.sheet(np.concatenate([common.to_uint8(x[:30]), common.to_uint8(y[:30])]), o.work / "low" / "vq.png")


def samples(o):
    T.shape(GRID, len(TAKEN))
    low = o.work / "low"
    model, held, out, t0 = T.load(low), sample.Held(o.work, o.n), np.zeros((o.n, GRID * GRID), np.uint16), time.time()
    for i in range(0, o.n, 64):
        part = slice(i, min(i + 64, o.n))
        out[part] = sample.generate(model, held.ids[part], o.cfg, seed=1000 + i)[0].numpy()
    np.save(low / "samples.npy", out)
    pictures = classifier.reconstruct(low, out)
    judged(o.work, pictures, held.named, f"{o.n} samples, cfg {o.cfg}, {time.time() - t0:.0f} s")
    sample.sheet(pictures[:60], low / "sheet.png")


def write(o):
    from safetensors.torch import save_file
    T.shape(GRID, len(TAKEN))
    model = export.rounded(T.load(o.work / "low"))
    o.export.mkdir(parents=True, exist_ok=True)
    save_file(export.tensors(model), o.export / "model.safetensors", metadata={"format": "pt"})
    save_file(export.tensors(export.rounded(vq.load(o.work / "low").to(memory_format=torch.contiguous_format)), "vq."), o.export / "vq.safetensors", metadata={"format": "pt"})
    for f in o.export.glob("*.safetensors"):
        f.chmod(0o644)
    shutil.copyfile(o.work / "tokenizer.json", o.export / "tokenizer.json")
    c = export.config(len(json.loads((o.work / "vocab.json").read_text())), o.cfg)
    c["vq"]["image_size"] = 4 * GRID
    del c["spatial_heads"], c["classifier"]
    (o.export / "config.json").write_text(json.dumps(c, indent=1) + "\n")


@torch.no_grad()
def fixture(o):
    """One held-out caption and picture through the low-resolution model, its VQ and both ways up, f32 from bf16 weights."""
    from safetensors.torch import save_file
    import upsample
    held, index = sample.Held(o.work, 1, first=11), 11
    coarse, fine, up = export.rounded(vq.load(o.work / "low")), export.rounded(vq.load(o.work)), upsample.load(o.work)
    picture = common.to_uint8(half(common.Images(o.work, "held").batch([index])))
    x = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 127.5 - 1
    tokens = coarse.encode(x)
    decoded = common.to_uint8(coarse.decode(tokens))
    T.shape(GRID, len(TAKEN))
    model = export.rounded(T.load(o.work / "low"))
    ids = torch.tensor([held.ids[0]])
    model.fast = False
    at = torch.tensor([0, 1, 2, 11, 12, 13, 30, 77, 100, 143])
    hidden, _ = model.hidden(ids, tokens[:, :-1])
    pixels = torch.from_numpy(double(decoded)).permute(0, 3, 1, 2).float() / 127.5 - 1
    out = {"picture": torch.from_numpy(picture[0]), "tokens": tokens[0], "decoded": torch.from_numpy(decoded[0]),
           "positions": at, "logits": model.logits(hidden[0, at]),
           "latent": upsample.quantize(fine, up(upsample.latents(coarse, tokens)))[0][0], "pixel": fine.encode(pixels)[0]}
    save_file({k: v.contiguous() for k, v in out.items()}, o.fixture, metadata={"prompt": held.texts[0]})
    o.fixture.chmod(0o644)


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--init", default=here / "model.safetensors", help="the shipped model")
    p.add_argument("--n", type=int, default=512)
    p.add_argument("--cfg", type=float, default=3.0)
    p.add_argument("--procs", type=int, default=1, help="threads")
    p.add_argument("--prepare", action="store_true")
    p.add_argument("--vq", action="store_true")
    p.add_argument("--sample", action="store_true")
    p.add_argument("--export", type=pathlib.Path)
    p.add_argument("--fixture", type=pathlib.Path)
    o = p.parse_args()
    torch.set_num_threads(o.procs)
    torch.manual_seed(0)
    (prepare if o.prepare else test_vq if o.vq else samples if o.sample else fixture if o.fixture else write)(o)
