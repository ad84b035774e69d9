"""Start weights of every host beside the rule of its authors' code.

    python benchmarks/start_weights.py [--width 768] [--depth 12] [--images 8] [--seed 0]

Prints the standard deviation (root of the mean square) of every kind of weight: ours, and by the authors' rule, whose
weights are drawn a second time here, value by value with NumPy. The last row is that of the patch tokens after the last
block, before the norm, on whole images of standard normal noise; the second start has its own network for it. The
column "with MAE's start" shows the same encoder with MAE's weights.
"""

import argparse
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.methods.base import Host
from hardpatch.methods.beit import BEiT
from hardpatch.methods.ibot import IBOT
from hardpatch.methods.mae import MAE
from hardpatch.methods.simmim import SimMIM
from hardpatch.models.encoder import Encoder

PATCH, SIZE, VOCABULARY = 16, 224, 8192
OF_BEIT: dict[str, Any] = {"positions": "relative", "layer_scale": 0.1}
OWN: dict[str, dict[str, Any]] = {"mae": {}, "beit": OF_BEIT, "simmim": OF_BEIT, "ibot": {"positions": "learned"}}
"""Settings of each host's encoder, beside the shape, as in its recipes."""
Weights = dict[str, Tensor]


def host_of(name: str, shape: dict[str, Any]) -> Host:
    """Build a host with its start weights."""
    if name == "mae":
        return MAE(**shape, decoder_depth=1)
    if name == "beit":
        return BEiT(**shape, **OWN[name], vocabulary=VOCABULARY)
    return SimMIM(**shape, **OWN[name]) if name == "simmim" else IBOT(**shape, **OWN[name], outputs=VOCABULARY)


def weights_of(host: Host) -> Weights:
    """Return the weights of the encoder under its own names, and those of a head that is one layer."""
    encoder = dict(host.encoder.named_parameters())
    head = {name: value for name, value in host.named_parameters() if name in ("head.weight", "head.bias")}
    return {name: value.detach() for name, value in (encoder | head).items()}


class AuthorsStart:
    """Start weights by the rules of the authors' code, each value drawn on its own.

    Args:
        name: host.
        width: of the tokens.
        generator: of random numbers.
    """

    def __init__(self, name: str, width: int, generator: np.random.Generator) -> None:
        self.name, self.width, self.generator = name, width, generator

    def draw(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """Draw the weight ``key`` of a shape."""
        if "norm" in key and key.endswith("weight"):
            return np.ones(shape)
        if key.endswith("gamma"):  # layer scale
            return np.full(shape, 0.1)
        if self._torch_default(key):
            inputs = 3 * PATCH**2 if key.startswith("patch_embed") else self.width
            return self.generator.uniform(-(inputs**-0.5), inputs**-0.5, shape)
        if key.endswith(("bias", "table")) or (self.name, key) == ("ibot", "mask_token"):
            return np.zeros(shape)
        if self.name == "mae" and not key.endswith("token"):  # Xavier; the patch embedding seen as one matrix
            limit = math.sqrt(6 / (shape[0] + math.prod(shape[1:])))
            return self.generator.uniform(-limit, limit, shape)
        if self.name in ("mae", "ibot"):
            return self.generator.normal(0.0, 0.02, shape)
        weight = self._within_one_sigma(shape)
        layer = key.split(".")
        if layer[0] == "blocks" and layer[-2] in ("proj", "fc2"):
            weight /= math.sqrt(2.0 * (int(layer[1]) + 1))
        return weight

    def _torch_default(self, key: str) -> bool:
        """Return whether the authors leave a layer as torch makes it."""
        return key.startswith({"ibot": "patch_embed", "simmim": "head"}.get(self.name, "none"))

    def _within_one_sigma(self, shape: tuple[int, ...]) -> np.ndarray:
        """Draw normal numbers of 0.02, again and again those that lie beyond 0.02."""
        values = self.generator.normal(0.0, 0.02, math.prod(shape))
        while len(outside := np.flatnonzero(np.abs(values) > 0.02)):
            values[outside] = self.generator.normal(0.0, 0.02, len(outside))
        return values.reshape(shape)


def network(weights: Weights, images: Tensor, heads: int) -> Tensor:
    """Compute the patch tokens ``[B, N, D]`` after the last block, with the attention written out.

    Relative position biases are zero at the start, so they are left out.
    """
    x = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    if "positions" in weights:
        x = x + weights["positions"]
    first = weights["cls_token"] + weights.get("class_position", torch.zeros(1))
    x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    for number in range(depth):
        block = {key.split(".", 2)[2]: value for key, value in weights.items() if key.startswith(f"blocks.{number}.")}
        scales = [block.get(f"{name}.gamma", torch.ones(1)) for name in ("ls1", "ls2")]
        y = F.layer_norm(x, x.shape[-1:], block["norm1.weight"], block["norm1.bias"], 1e-6)
        q, k, v = (y @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]).chunk(3, dim=-1)
        parts = []
        for head in range(heads):
            q_h, k_h, v_h = (part.chunk(heads, dim=-1)[head] for part in (q, k, v))
            parts.append((q_h @ k_h.transpose(1, 2) / math.sqrt(q_h.shape[-1])).softmax(dim=-1) @ v_h)
        x = x + scales[0] * (torch.cat(parts, dim=-1) @ block["attn.proj.weight"].T + block["attn.proj.bias"])
        y = F.layer_norm(x, x.shape[-1:], block["norm2.weight"], block["norm2.bias"], 1e-6)
        y = F.gelu(y @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"])
        x = x + scales[1] * (y @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"])
    return x[:, 1:]


def std(values: Tensor) -> str:
    """Root of the mean square, with four significant digits."""
    return f"{values.double().square().mean().sqrt().item():.4g}"


def kinds(weights: Weights, depth: int) -> list[str]:
    """Select one weight of each kind but norms: vectors of the first block, matrices of the first and the last."""
    last = f"blocks.{depth - 1}."
    every = [key for key in weights if not key.startswith("blocks.") or key.startswith(("blocks.0.", last))]
    return [key for key in every if "norm" not in key and (weights[key].ndim > 1 or not key.startswith(last))]


@torch.no_grad()
def compare(name: str, shape: dict[str, Any], images: Tensor, seed: int) -> list[tuple[str, str, str, str]]:
    """Return the rows of a host's table: weight, ours, by the authors' rule, with MAE's start."""
    depth, heads = shape["depth"], shape["heads"]
    torch.manual_seed(seed)
    host = host_of(name, shape).eval()
    plain = Encoder(**shape, **OWN[name], drop_masked=name == "mae").eval()
    ours, maes = weights_of(host), dict(plain.named_parameters())
    start = AuthorsStart(name, shape["width"], np.random.default_rng(seed))
    theirs = {key: torch.from_numpy(start.draw(key, tuple(value.shape))).float() for key, value in ours.items()}
    if host.encoder.positions is not None and "positions" not in theirs:
        theirs["positions"] = host.encoder.positions  # sine-cosine, which are computed
    rows = [
        (key, std(ours[key]), std(theirs[key]), std(maes[key]) if key in maes else "") for key in kinds(ours, depth)
    ]
    streams = [encoder.intermediates(images, [depth])[0] for encoder in (host.encoder, plain)]
    return [*rows, ("stream", std(streams[0]), std(network(theirs, images, heads)), std(streams[1]))]


def main() -> None:
    """Print a table for each host."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, value in {"--width": 768, "--depth": 12, "--images": 8, "--seed": 0}.items():
        parser.add_argument(option, type=int, default=value)
    arguments = parser.parse_args()
    shape = {
        "image_size": (SIZE, SIZE),
        "patch_size": PATCH,
        "width": arguments.width,
        "depth": arguments.depth,
        "heads": arguments.width // 64,
    }
    generator = torch.Generator().manual_seed(arguments.seed)
    images = torch.randn(arguments.images, 3, SIZE, SIZE, generator=generator)
    for name in OWN:
        print(f"\n### {name}\n\n| weight | ours | authors' rule | with MAE's start |\n|---|---|---|---|")
        for row in compare(name, shape, images, arguments.seed):
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
