"""Pre-train in Python, then measure: accuracy of frozen features, and a picture of where the model finds images hard.

python examples/pretrain.py runs/example                            # the embedded set, about 4 minutes on two cores
python examples/pretrain.py runs/mine my_images labeled/train labeled/val
"""

import sys

import hardpatch
from hardpatch.train.display import open_display

out = sys.argv[1]
data, train, val = sys.argv[2:5] or ("demo:train", "demo:train", "demo:test")

# A recipe is a file of settings; keyword arguments change single ones, nested names as in **{"optim.base_lr": 5e-4}.
recipe = "demo" if data == "demo:train" else "tiny_imagenet_small"
result = hardpatch.pretrain(recipe, data=data, out=out, progress=open_display(), seed=0)
if not result.finished:  # Ctrl-C saves; hardpatch.pretrain(out=out, resume=True) continues
    sys.exit(f"stopped after step {result.step} of {result.total}")
assert result.metrics is not None
print(f"pair accuracy: {result.metrics['pair_accuracy']:.3f} (0.5 is chance)")

# Two numbers: nearest neighbors and a linear classifier on frozen features, beside those of random weights.
knn = hardpatch.knn(out, train, val, random_baseline=True)
linear = hardpatch.linear(out, train, val, random_baseline=True)
for name, accuracy in (("k-NN", knn), ("linear", linear)):
    assert accuracy.result is not None
    assert accuracy.random is not None
    print(f"{name} top-1: {accuracy.result.best.top1:.2%}, with random weights {accuracy.random.best.top1:.2%}")

# A picture: the teacher predicts where the images of val are hard; the student shows where they are.
score = hardpatch.score(out, val, f"{out}/pictures/score")
print(f"rank correlation of predicted and true difficulty: {score.spearman:.3f}")
print(f"pictures: {out}/pictures/score")

# The backbone, for other libraries.
hardpatch.export(out, "timm", f"{out}/timm.safetensors")
