"""Use a pre-trained backbone: features of images, and which of them look alike.

python examples/backbone.py runs/demo photo_1.jpg photo_2.jpg photo_3.jpg
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import hardpatch

run, *paths = sys.argv[1:]
model = hardpatch.load(run)  # in eval mode, without gradients
height, width = model.image_size

pictures = [np.array(Image.open(path).convert("RGB").resize((width, height))) for path in paths]
pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # uint8 [B, 3, H, W]
tokens = model.encode(model.normalize(pixels))  # [B, 1 + N, D], class token first
features = F.normalize(tokens[:, 1:].mean(dim=1), dim=1)  # [B, D], one vector for each image

print(f"features: {list(features.shape)}")
for path, similarities in zip(paths, features @ features.T, strict=True):
    print(path, " ".join(f"{similarity:.3f}" for similarity in similarities))
