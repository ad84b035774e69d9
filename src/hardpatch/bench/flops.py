"""Floating-point operations of one optimiser step, counted by formula.

Matrix products and attention only, 2 for each multiply-add, as :mod:`torch.utils.flop_counter` counts and as the field
defines model FLOPs utilisation (MFU): what the step asks for, not what a kernel computes twice. The backward pass takes
two products for each of the forward pass, one where the input needs no gradient; the teacher has none.
"""

from hardpatch.config import RunConfig
from hardpatch.masking import masked_count
from hardpatch.models.encoder import SIZES
from hardpatch.train.build import grid_of, masking_of

MLP_RATIO = 4


def step_flops(run: RunConfig, *, literal: bool = False, mined: bool = True) -> dict[str, float] | None:
    """Operations an image, by part of the step; their sum is that of the step.

    Args:
        run: its configuration.
        literal: of Algorithm 1 taken at its word (``benchmarks/literal.py``), in place of the least that gives the same
            numbers, which is what :class:`~hardpatch.train.step.Learner` computes.
        mined: whether patches are mined at that step; the teacher rests where there are none.

    Returns:
        None for what is not counted: other hosts than mae, targets of a frozen network, masks by attention.
    """
    method, model = run.method, run.model
    if method.host != "mae" or method.frozen is not None or masking_of(run).guided:
        return None
    width, depth = model.width or SIZES[model.size]["width"], model.depth or SIZES[model.size]["depth"]
    grid, unit = grid_of(run), masking_of(run).unit
    patches = grid[0] * grid[1]
    masked = masked_count(patches // unit**2, method.mask_ratio) * unit**2
    visible, tokens = patches - masked, 1 + patches
    pixels = model.patch_size**2 * run.data.channels
    outputs = width if method.target == "teacher" else pixels
    predicts = method.predicting_loss != "none"
    wide, deep = model.decoder_width, model.decoder_depth

    def encoder(length: int) -> float:
        return depth * block(width, length)

    if literal:
        decoder = deep * block(wide, tokens)
        parts = {
            "student patches": 2 * linear(patches, pixels, width),
            "student encoder": 3 * encoder(1 + visible),
            "student latent": 3 * linear(1 + visible, width, wide),
            "reconstructor": 3 * (decoder + linear(tokens, wide, outputs)),
        }
        if predicts:
            parts |= {
                "predictor": 3 * (decoder + linear(tokens, wide, pixels)),
                "teacher patches": linear(patches, pixels, width),
                "teacher encoder": encoder(tokens),
                "teacher latent": linear(tokens, width, wide),
                "teacher reconstructor": decoder + linear(tokens, wide, outputs),
                "teacher predictor": decoder + linear(tokens, wide, pixels),
            }
        return parts
    # The mask tokens of all images are the same before the first block, a set for each piece of the batch.
    again = linear(masked, wide, 3 * wide) - linear(patches, wide, 3 * wide) / (run.batch_size // run.optim.accumulate)
    decoder = (deep - 1) * block(wide, tokens) + block(wide, tokens, masked) - again
    parts = {
        "student patches": 2 * linear(visible, pixels, width),
        "student encoder": 3 * encoder(1 + visible),
        "student latent": 3 * linear(1 + visible, width, wide),
        "reconstructor": 3 * (decoder + linear(masked, wide, outputs)),
    }
    if predicts:
        parts["predictor"] = 3 * (decoder + linear(masked, wide, 1))
    if (predicts and mined) or method.target == "teacher":
        parts |= {"teacher patches": linear(patches, pixels, width), "teacher encoder": encoder(tokens)}
    if predicts and mined:
        decoder = (deep - 1) * block(wide, tokens) + block(wide, tokens, patches)
        parts |= {
            "teacher latent": linear(tokens, width, wide),
            "teacher predictor": decoder + linear(patches, wide, 1),
        }
    return parts


def linear(tokens: int, inputs: int, outputs: int) -> float:
    """Of a linear layer."""
    return 2.0 * tokens * inputs * outputs


def block(width: int, tokens: int, asked: int | None = None) -> float:
    """Of a Transformer block on so many ``tokens``, of which those ``asked`` for come out: all of them by default."""
    asked = tokens if asked is None else asked
    keys_values = linear(tokens, width, 2 * width)
    queries_projection = 2 * linear(asked, width, width)
    attention = 4.0 * asked * tokens * width
    mlp = 2 * linear(asked, width, MLP_RATIO * width)
    return keys_values + queries_projection + attention + mlp
