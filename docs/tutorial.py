# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From images to a backbone, step by step
#
# This runs in one to four minutes on two CPU cores, without data of your own: the embedded set has 4,000 pictures of
# 32 px, a handwritten digit on a piece of a photograph each. For your own images replace `demo:train` by a folder.
# `docs/tutorial.ipynb` is the same as a notebook (`jupytext --to notebook docs/tutorial.py`).

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from PIL import Image

import hardpatch
from hardpatch.data.sources import open_source
from hardpatch.figures import enlarge, heat_map, masked_image

out = Path(os.environ.get("TUTORIAL_OUT") or mkdtemp())
steps = int(os.environ.get("TUTORIAL_STEPS") or 200)

# %% [markdown]
# ## The images

# %%
source = open_source("demo:test")
pictures = [source.image(i) for i in range(6)]
figure, axes = plt.subplots(1, len(pictures), figsize=(9, 1.6))
for axis, picture in zip(axes, pictures, strict=True):
    axis.imshow(picture)
    axis.set_axis_off()

# %% [markdown]
# ## Pre-training
#
# No label is used. The teacher predicts where each image is hard, those patches are masked, from easy to hard, and the
# student learns to reconstruct them. A recipe is a file of settings; keyword arguments change single ones.

# %%
run = hardpatch.pretrain("demo", steps=steps, out=out / "run", **{"verdict.checks": 1})
assert run.verdict is not None
print("learned:", run.verdict.learned)
for reason in run.verdict.reasons:
    print(" -", reason)

# %% [markdown]
# ## A number
#
# How well do the nearest neighbors of an image agree with its class, beside random weights?

# %%
knn = hardpatch.knn(out / "run", "demo:train", "demo:test", random_baseline=True)
assert knn.result is not None
assert knn.random is not None
print(f"k-NN {knn.result.top1:.1%}, random weights {knn.random.top1:.1%}")

# %% [markdown]
# ## A picture
#
# Where does the teacher expect the reconstruction to be hard? Bright patches are the hard ones, and the hardest half is
# what the student would have to reconstruct.

# %%
teacher = hardpatch.load(out / "run", "teacher")
pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # uint8 [B, 3, H, W]
difficulty = teacher.predict_loss(teacher.normalize(pixels)).numpy()  # [B, N]
figure, rows = plt.subplots(2, len(pictures), figsize=(9, 3.2))
for column, (picture, values) in enumerate(zip(pictures, difficulty, strict=True)):
    large = enlarge(picture)
    hardest = values >= np.median(values)
    rows[0, column].imshow(heat_map(large, values, teacher.grid))
    rows[1, column].imshow(masked_image(large, hardest, teacher.grid))
for axis in rows.flat:
    axis.set_axis_off()

# %% [markdown]
# ## The backbone in timm
#
# The export loads the file with timm and compares the outputs.

# %%
exported = hardpatch.export(out / "run", "timm", out / "vit")
for line in exported.report():
    print(line)

# %%
model = timm.create_model(f"local-dir:{out / 'vit'}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    tokens = model.forward_features(transform(Image.fromarray(pictures[0]))[None])
print(tuple(tokens.shape))  # [1, 1 + N, D]: the class token, then the patches

# %% [markdown]
# Next: [your own images](quickstart.md), [is it learning?](verdict.md), [fine-tuning](finetuning.md).
