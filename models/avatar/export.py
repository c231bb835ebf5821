"""Write the shipped model: bf16 safetensors, config.json, tokenizer.json, FID statistics, and the test fixtures.

    python export.py --work target/avatar --out models/avatar --fixtures tests/data
    python export.py --work target/avatar --out DIR --fixtures DIR --random      untrained weights, same layout
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import torch
from safetensors.torch import save_file

import classifier
import common
import heads
import sample
import text
import transformer as T
import vq
from common import avatars


def config(vocabulary, cfg):
    return {
        "architectures": ["AvatarForImageGeneration"], "model_type": "weft_avatar",
        "hidden_size": T.HIDDEN, "num_hidden_layers": T.LAYERS, "num_attention_heads": T.HEADS,
        "num_key_value_heads": T.HEADS, "head_dim": T.HEAD_DIM, "intermediate_size": T.INNER, "rms_norm_eps": text.EPS,
        "rope_theta": T.THETA, "qk_norm": True, "image_vocab_size": T.CODES, "grid": {"height": T.GRID, "width": T.GRID},
        "text_encoder": {"vocab_size": vocabulary, "hidden_size": text.HIDDEN, "num_hidden_layers": text.LAYERS,
                         "num_attention_heads": text.HEADS, "intermediate_size": text.INNER, "max_positions": text.POSITIONS},
        "spatial_heads": {"horizontal": heads.HORIZONTAL, "vertical": heads.VERTICAL, "intermediate_size": heads.INNER},
        "vq": {"channels": vq.CHANNELS, "res_blocks": vq.RES_BLOCKS, "encoder_res_blocks": vq.ENCODER_RES_BLOCKS, "latent_channels": vq.LATENT, "group_norm_groups": 8,
               "downscale": 4, "image_size": avatars.SIZE},
        "classifier": {"channels": classifier.CHANNELS, "features": classifier.FEATURES, "attributes": avatars.ATTRIBUTES},
        "generation": {"cfg": cfg, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    }


def rounded(module):
    """The module with its parameters rounded to bf16, kept in f32."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(p.bfloat16().float())
    return module.float().eval()


def tensors(module, prefix=""):
    return {prefix + k: v.bfloat16().contiguous() for k, v in module.state_dict().items()}


@torch.no_grad()
def oracle(model, draft, tokenizer, judge, work, path):
    """One held-out caption and picture through every part, in fp32 from the bf16 weights."""
    held, index = sample.Held(work, 1, first=11), 11
    picture = common.Images(work, "held").uint8(index)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    tokens = tokenizer.encode(x)
    ids = torch.tensor([held.ids[0]])
    model.fast = False
    hc, enc = model.hidden(ids, tokens[:, :-1])
    hu, _ = model.hidden(torch.tensor([[1]]), tokens[:, :-1])
    rng = np.random.default_rng(0)
    at = torch.tensor(sorted(set(range(9)) | set(rng.choice(np.arange(9, 576), 15, replace=False).tolist())))
    source = torch.tensor([0, 3, 26, 300])
    z = torch.cat([hc[0], model.model.embed_tokens(tokens[0])], 1)[source]
    draft_logits = torch.stack([model.logits(draft.get(*kd)(z)) for kd in heads.KINDS])
    f = judge.features(x)
    out = {
        "prompt_ids": ids[0], "tokens": tokens[0], "enc": enc[0], "cond": model.model.cond_proj(enc[0, 0]),
        "positions": at, "h_pre_cond": hc[0, at], "h_pre_uncond": hu[0, at],
        "logits_cond": model.logits(hc[0, at]), "logits_uncond": model.logits(hu[0, at]),
        "head_sources": source, "head_logits_horizontal": draft_logits[:heads.HORIZONTAL], "head_logits_vertical": draft_logits[heads.HORIZONTAL:],
        "picture": torch.from_numpy(picture), "decoded": torch.from_numpy(common.to_uint8(tokenizer.decode(tokens))[0]),
        "features": f[0], **{f"classifier.{k}": layer(f)[0] for k, layer in judge.out.items()},
    }
    save_file({k: v.contiguous() for k, v in out.items()}, path, metadata={"prompt": held.texts[0]})


@torch.no_grad()
def statistics(judge, work, path, n):
    """Mean and covariance of the classifier's features, renders and reconstructions of the held-out pictures."""
    data, out = common.Images(work, "held"), {}
    renders = np.stack([data.uint8(i) for i in range(n)])
    recon = classifier.reconstruct(work, np.load(work / "tokens_held.npy")[:n])
    for name, pictures in (("renders", renders), ("reconstructions", recon)):
        f = classifier.judge(judge, pictures)[1].astype(np.float64)
        out[f"{name}.mean"] = torch.from_numpy(f.mean(0)).float()
        out[f"{name}.covariance"] = torch.from_numpy(np.cov(f, rowvar=False)).float()
    save_file(out, path, metadata={"pictures": str(n)})


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, default="target/avatar")
    p.add_argument("--out", type=pathlib.Path, default="models/avatar")
    p.add_argument("--fixtures", type=pathlib.Path, default="tests/data")
    p.add_argument("--model", default="model.pt")
    p.add_argument("--heads", default="heads.pt")
    p.add_argument("--cfg", type=float, default=3.0)
    p.add_argument("--random", action="store_true", help="untrained weights")
    o = p.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(3)
    for d in (o.out, o.fixtures):
        d.mkdir(parents=True, exist_ok=True)
    vocabulary = len(json.loads((o.work / "vocab.json").read_text()))
    have = lambda f: (o.work / f).exists() and not o.random
    model = T.load(o.work, o.model) if have(o.model) else T.Avatar(vocabulary)
    draft = heads.load(o.work, o.heads) if have(o.heads) else heads.Heads()
    tokenizer = vq.load(o.work) if have("vq.pt") else vq.VQ()
    judge = classifier.load(o.work) if have("classifier.pt") else classifier.Classifier()
    for m, ready in ((model, have(o.model)), (draft, have(o.heads))):
        if not ready:  # nothing may stay zero, or an error in the engine would not show
            for q in m.parameters():
                torch.nn.init.normal_(q, std=.06) if q.dim() == 2 else torch.nn.init.normal_(q, 1, .1)
    model, draft, tokenizer, judge = (rounded(m.to(memory_format=torch.contiguous_format)) for m in (model, draft, tokenizer, judge))
    meta = {"format": "pt"}
    save_file({**tensors(model), **tensors(draft, "heads.")}, o.out / "model.safetensors", metadata=meta)
    save_file({"vq." + k: v for k, v in tensors(tokenizer).items()}, o.out / "vq.safetensors", metadata=meta)
    save_file({"classifier." + k: v for k, v in tensors(judge).items()}, o.out / "classifier.safetensors", metadata=meta)
    (o.out / "config.json").write_text(json.dumps(config(vocabulary, o.cfg), indent=1) + "\n")
    shutil.copy(o.work / "tokenizer.json", o.out / "tokenizer.json")
    oracle(model, draft, tokenizer, judge, o.work, o.fixtures / "avatar_oracle.safetensors")
    held = sample.Held(o.work, 512)
    rows = [{"prompt": t, "attributes": {k: avatars.ATTRIBUTES[k][v] for k, v in zip(avatars.NAMES, n) if v >= 0}}
            for t, n in zip(held.texts, held.named.tolist())]
    (o.out / "heldout.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    if have("tokens_held.npy") and have("classifier.pt"):
        stats = o.work / "reference_stats.safetensors"
        if not stats.exists() or stats.stat().st_mtime < (o.work / "classifier.pt").stat().st_mtime:
            statistics(judge, o.work, stats, len(np.load(o.work / "tokens_held.npy", mmap_mode="r")))
        shutil.copyfile(stats, o.out / stats.name)
    for f in o.out.glob("*.safetensors"):
        f.chmod(0o644)
    (o.fixtures / "avatar_oracle.safetensors").chmod(0o644)
    size = sum((o.out / f"{f}.safetensors").stat().st_size for f in ("model", "vq", "classifier"))
    print(f"weights: {size} bytes, {sum(q.numel() for m in (model, draft, tokenizer, judge) for q in m.parameters())} parameters")


if __name__ == "__main__":
    main()
