"""How many blemishes decoders leave: patches of a picture that the model itself finds as surprising as few of plain AR's.

    python blemishes.py --weft target/release/weft --n 96 ar wavefront exact:window=2

Draws held-out prompts with each decoder (the first is what the others are compared with) and takes the surprise of every
token, -log p in nats, p guided as in sampling at temperature 1 and given all tokens before it. A picture's worst patch is the largest
mean over 3x3 tokens. Of each decoder: its bits a token, the share of its pictures whose worst patch exceeds nine in ten
of the first decoder's, and tokens of more than 10 and 12 nats a picture.
"""

import argparse
import json
import math
import pathlib
import subprocess
import tempfile

import torch
import torch.nn.functional as F

import text
import transformer as T
from text import captions

HERE = pathlib.Path(__file__).parent


def tokens(weft, decoder, prompt, seed):
    """Token ids of a picture, as the engine draws it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [weft, "generate", prompt, "-o", f"{folder}/picture.png", "--seed", str(seed), "--decoder", decoder, "--json", "--tokens"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["token_ids"]


@torch.no_grad()
def surprise(model, ids, drawn, cfg):
    """[b,576] nats; ids: b lists, drawn int64 [b,576]."""
    h, _ = model.hidden(text.pad(ids + [[1]] * len(ids), T.PREFIX), torch.cat([drawn, drawn])[:, :-1])
    conditional, unconditional = model.logits(h).chunk(2)
    log_p = torch.log_softmax(unconditional + cfg * (conditional - unconditional), -1)
    return -log_p.gather(2, drawn[..., None])[..., 0]


def main(o):
    vocabulary = json.loads((HERE / "tokenizer.json").read_text())["model"]["vocab"]
    model = T.Avatar(len(vocabulary))
    model.load_state_dict(T.shipped(HERE / "model.safetensors"))
    model.eval()
    prompts = [row["prompt"] for row in json.loads((HERE / "heldout.json").read_text())[:o.n]]
    ids = [[1] + [vocabulary.get(w, 0) for w in captions.words_of(prompt)] for prompt in prompts]
    usual = None
    print("| decoder | bits/token | pictures with a worse patch than nine in ten | tokens over 10 nats | over 12 |")
    for decoder in o.decoders:
        drawn = torch.tensor([tokens(o.weft, decoder, prompt, seed) for seed, prompt in enumerate(prompts)])
        parts = [surprise(model, ids[i:i + 8], drawn[i:i + 8], o.cfg) for i in range(0, o.n, 8)]
        nats = torch.cat(parts)
        worst = F.avg_pool2d(nats.view(-1, 1, T.GRID, T.GRID), 3, 1).flatten(1).amax(1)
        usual = worst.quantile(.9) if usual is None else usual
        over = [(nats > limit).sum().item() / o.n for limit in (10, 12)]
        print(f"| {decoder} | {nats.mean().item() / math.log(2):.3f} | {(worst > usual).float().mean().item():.0%} | {over[0]:.2f} | {over[1]:.2f} |", flush=True)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--weft", default="target/release/weft")
    p.add_argument("--n", type=int, default=96)
    p.add_argument("--cfg", type=float, default=3.0)
    p.add_argument("decoders", nargs="+")
    main(p.parse_args())
