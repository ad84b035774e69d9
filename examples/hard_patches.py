"""Find the hard patches of an image: the teacher predicts them, and the hardest half is painted gray.

python examples/hard_patches.py runs/demo photo.jpg hard.png
"""

import sys

import numpy as np
import torch
from PIL import Image

import hardpatch

run, source, output = sys.argv[1:]
teacher = hardpatch.load(run, "teacher")
height, width = teacher.image_size
rows, columns = teacher.grid

picture = np.array(Image.open(source).convert("RGB").resize((width, height)))  # uint8 [H, W, 3]
images = torch.from_numpy(picture).permute(2, 0, 1)[None]  # uint8 [1, 3, H, W]
difficulty = teacher.predict_loss(teacher.normalize(images))[0]  # [N], one value for each patch

hardest = torch.zeros(rows * columns, dtype=torch.bool)
hardest[difficulty.argsort(descending=True)[: rows * columns // 2]] = True
hidden = hardest.reshape(rows, columns).repeat_interleave(height // rows, 0).repeat_interleave(width // columns, 1)
picture[hidden.numpy()] = 128
Image.fromarray(picture).save(output)

print("predicted difficulty (average 0, larger is harder):")
for row in (difficulty - difficulty.mean()).reshape(rows, columns):
    print(" ".join(f"{value:6.2f}" for value in row))
