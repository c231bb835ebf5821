"""Plain AR decoding of one picture: weft against PyTorch bf16, same weights, same threads, one run on one machine.

    cargo build --release && python benches/against_pytorch.py [--threads 2] [--compile]

Needs torch, safetensors and tokenizers (models/avatar/requirements.txt). The PyTorch side is written to be fast: both
guidance branches in one batch, stacked qkv and gate/up projections, a preallocated KV cache read in place, attention
by plain products (faster than scaled_dot_product_attention on CPUs at this size), inference mode; --compile adds
torch.compile. Both sides decode the same prompt at the default guidance; the ratio of tokens per second is printed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPT = "a smiling woman with long red hair, glasses and a green shirt, blue background"


class Model:
    """The decoder of models/avatar in eager PyTorch, bf16. Tensors are [branch, ...]."""

    def __init__(self, folder):
        self.c = json.loads((folder / "config.json").read_text())
        self.w = load_file(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        c, w = self.c, self.w
        self.heads, self.dim = c["num_attention_heads"], c["head_dim"]
        self.tokens = c["grid"]["height"] * c["grid"]["width"]
        self.layers = []
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            stack = lambda *names: torch.cat([w[p + n + ".weight"] for n in names])
            self.layers.append({
                "n1": w[p + "input_layernorm.weight"], "n2": w[p + "post_attention_layernorm.weight"],
                "qkv": stack("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                "qn": w[p + "self_attn.q_norm.weight"], "kn": w[p + "self_attn.k_norm.weight"],
                "o": w[p + "self_attn.o_proj.weight"], "gu": stack("mlp.gate_proj", "mlp.up_proj"),
                "down": w[p + "mlp.down_proj.weight"],
            })

    def norm(self, x, weight):
        return F.rms_norm(x, x.shape[-1:], weight, self.c["rms_norm_eps"])

    def encode(self, text):
        """ids of a prompt -> prefix inputs [1, n + 1, hidden] and the condition [1, hidden]."""
        c, w = self.c["text_encoder"], self.w
        ids = torch.tensor([[1] + self.tokenizer.encode(text, add_special_tokens=False).ids])
        x = w["text.embed.weight"][ids] + w["text.positions.weight"][:ids.shape[1]]
        split = lambda y: y.view(1, -1, c["num_attention_heads"], c["hidden_size"] // c["num_attention_heads"]).transpose(1, 2)
        for i in range(c["num_hidden_layers"]):
            p = f"text.layers.{i}."
            y = self.norm(x, w[p + "input_layernorm.weight"])
            q, k, v = (split(F.linear(y, w[p + f"self_attn.{n}_proj.weight"])) for n in "qkv")
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + F.linear(y, w[p + "self_attn.o_proj.weight"])
            y = self.norm(x, w[p + "post_attention_layernorm.weight"])
            y = F.silu(F.linear(y, w[p + "mlp.gate_proj.weight"])) * F.linear(y, w[p + "mlp.up_proj.weight"])
            x = x + F.linear(y, w[p + "mlp.down_proj.weight"])
        x = self.norm(x, w["text.norm.weight"])
        bias = F.linear(x[:, 0], w["model.cond_proj.weight"])
        return torch.cat([F.linear(x, w["model.text_proj.weight"]), (w["model.boi.weight"] + bias)[:, None]], 1), bias

    def rotary(self, length, prefix):
        """cos, sin [length, 1, dim]; prefix inputs at (0, 0)."""
        width, quarter = self.c["grid"]["width"], self.dim // 4
        f = self.c["rope_theta"] ** (-torch.arange(quarter) / quarter)
        p = (torch.arange(length) - prefix).clamp(min=-1)
        y, x = (p // width + 1) * (p >= 0), (p % width + 1) * (p >= 0)
        a, b = y[:, None] * f, x[:, None] * f
        angle = torch.cat([a, a, b, b], 1)[:, None]
        sign = torch.tensor([-1.0] * quarter + [1.0] * quarter).repeat(2)
        return angle.cos().bfloat16(), (angle.sin() * sign).bfloat16()

    def rotate(self, x, cos, sin):
        h = self.dim // 4
        swapped = torch.cat([x[..., h:2 * h], x[..., :h], x[..., 3 * h:], x[..., 2 * h:3 * h]], -1)
        return x * cos + swapped * sin

    def step(self, x, keys, values, mask, cos, sin, start, end):
        """Feeds x [2, end - start, hidden] at slots start..end; returns logits of the last slot [2, vocab]."""
        n = end - start
        for i, layer in enumerate(self.layers):
            y = F.linear(self.norm(x, layer["n1"]), layer["qkv"]).view(2, n, 3, self.heads, self.dim)
            q = self.rotate(self.norm(y[:, :, 0], layer["qn"]), cos, sin).transpose(1, 2)
            keys[i, :, :, start:end] = self.rotate(self.norm(y[:, :, 1], layer["kn"]), cos, sin).transpose(1, 2)
            values[i, :, :, start:end] = y[:, :, 2].transpose(1, 2)
            scores = q @ keys[i, :, :, :end].mT * self.dim ** -0.5 + mask[:, :, start:end, :end]
            y = (scores.softmax(-1) @ values[i, :, :, :end]).transpose(1, 2).reshape(2, n, -1)
            x = x + F.linear(y, layer["o"])
            gate, up = F.linear(self.norm(x, layer["n2"]), layer["gu"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        return F.linear(self.norm(x[:, -1], self.w["model.norm.weight"]), self.w["lm_head.weight"])

    @torch.inference_mode()
    def generate(self, text, step):
        """Tokens [576] and the seconds that decoding took."""
        w, width = self.w, self.c["grid"]["width"]
        (a, bias_a), (b, bias_b) = self.encode(text), self.encode("")
        prefix = a.shape[1]
        # The shorter, unconditional prefix sits at the end of the same slots, the slots before it masked.
        start = torch.cat([a, F.pad(b, (0, 0, prefix - b.shape[1], 0))])
        bias, room = torch.cat([bias_a, bias_b])[:, None], prefix + self.tokens
        mask = torch.full((room, room), float("-inf")).triu(1).repeat(2, 1, 1, 1)
        mask[1, :, :, :prefix - b.shape[1]] = -1e9
        mask = mask.bfloat16()
        keys = torch.zeros(len(self.layers), 2, self.heads, room, self.dim, dtype=torch.bfloat16)
        values = torch.zeros_like(keys)
        cos, sin = self.rotary(room, prefix)
        began, tokens = time.perf_counter(), []
        logits = self.step(start, keys, values, mask, cos[:prefix], sin[:prefix], 0, prefix)
        for p in range(self.tokens):
            guided = logits[1].float() + self.c["generation"]["cfg"] * (logits[0].float() - logits[1].float())
            gumbel = -torch.log(-torch.log(torch.rand_like(guided)))
            tokens.append((guided + gumbel).argmax())
            if p + 1 < self.tokens:
                x = w["model.embed_tokens.weight"][tokens[-1]] + w["model.row_embed.weight"][p // width] + w["model.col_embed.weight"][p % width] + bias
                at = prefix + p
                logits = step(x, keys, values, mask, cos[at:at + 1], sin[at:at + 1], at, at + 1)
        return torch.stack(tokens), time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--weft", type=pathlib.Path, default=ROOT / "target/release/weft")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Model(ROOT / "models/avatar")
    step = torch.compile(model.step, dynamic=True) if options.compile else model.step
    model.generate(PROMPT, step)
    torch_seconds = sorted(model.generate(PROMPT, step)[1] for _ in range(options.images))[options.images // 2]
    with tempfile.TemporaryDirectory() as folder:
        command = [options.weft, "generate", PROMPT, "-o", f"{folder}/a.png", "--decoder", "ar", "--n", str(options.images), "--json"]
        environment = {**os.environ, "RAYON_NUM_THREADS": str(options.threads)}
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in output.stdout.splitlines()]
    weft_seconds = sorted(row["seconds"] for row in rows)[len(rows) // 2]
    print(f"PyTorch {torch.__version__} bf16: {model.tokens / torch_seconds:.0f} tokens/s (median of {options.images} pictures)")
    print(f"weft, {rows[0]['device']}, pixels included: {model.tokens / weft_seconds:.0f} tokens/s")
    print(f"weft / PyTorch: {torch_seconds / weft_seconds:.2f}x on {options.threads} threads")


if __name__ == "__main__":
    main()
