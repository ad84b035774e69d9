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
    """Operations an image, by part of the step; their sum is that of the step, the mean one with ``teacher_every``.

    Args:
        run: its configuration.
        literal: of Algorithm 1 taken at its word (``benchmarks/literal.py``), in place of the least that gives the same
            numbers, which is what :class:`~hardpatch.train.step.Learner` computes; section ``fast`` does not count.
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
        every_block = deep * block(wide, tokens)
        parts = {
            "student patches": 2 * linear(patches, pixels, width),
            "student encoder": 3 * encoder(1 + visible),
            "student latent": 3 * linear(1 + visible, width, wide),
            "reconstructor": 3 * (every_block + linear(tokens, wide, outputs)),
        }
        if predicts:
            parts |= {
                "predictor": 3 * (every_block + linear(tokens, wide, pixels)),
                "teacher patches": linear(patches, pixels, width),
                "teacher encoder": encoder(tokens),
                "teacher latent": linear(tokens, width, wide),
                "teacher reconstructor": every_block + linear(tokens, wide, outputs),
                "teacher predictor": every_block + linear(tokens, wide, pixels),
            }
        return parts
    fast, pieces = run.fast, run.optim.accumulate
    images = run.batch_size // (1 if pieces == "auto" else pieces)
    cross, trunk = fast.decoder == "cross", fast.shared_blocks
    predicting = fast.predictor_depth or deep - trunk
    asked, seen = max(1, int(masked * fast.asked_share)), 1 + visible
    tokens = seen if cross else seen + asked

    def once(rows: int, positions: int) -> float:
        """Saved where the first projections of mask tokens are made for each position, not for each image."""
        outputs = wide if cross else 3 * wide
        return linear(rows, wide, outputs) - linear(positions, wide, outputs) / images

    def decoder(blocks: int) -> float:
        if cross:
            return blocks * block(wide, seen, asked) - once(asked, patches)
        return (blocks - 1) * block(wide, tokens) + block(wide, tokens, asked) - (0 if trunk else once(asked, patches))

    latents = 2 if predicts and fast.teacher_blocks not in (None, depth) else 1  # of reconstructor and predictor
    parts = {
        "student patches": 2 * linear(visible, pixels, width),
        "student encoder": 3 * encoder(seen),
        "student latent": latents * 3 * linear(seen, width, wide),
        "reconstructor": 3 * (decoder(deep - trunk) + linear(asked, wide, outputs)),
    }
    if trunk:
        parts["shared blocks"] = latents * 3 * (trunk * block(wide, tokens) - once(asked, patches))
    if predicts:
        parts["predictor"] = 3 * (decoder(predicting) + linear(asked, wide, 1))
    if method.target == "teacher":
        parts |= {"teacher patches": linear(patches, pixels, width), "teacher encoder": encoder(1 + patches)}
    if not predicts or not mined or fast.remember:
        return parts

    sides = [max(1, round(side * fast.teacher_resolution)) for side in grid]
    patches = sides[0] * sides[1]
    tokens = 1 + patches
    if cross:
        answers = predicting * block(wide, tokens, patches) - once(patches, patches)
    else:
        answers = (trunk + predicting - 1) * block(wide, tokens) + block(wide, tokens, patches)
    teacher = {
        "teacher patches": linear(patches, pixels, width),
        "teacher encoder": (fast.teacher_blocks or depth) * block(width, tokens),
        "teacher latent": linear(tokens, width, wide),
        "teacher predictor": answers + linear(patches, wide, 1),
    }
    return {name: number / fast.teacher_every for name, number in teacher.items()} | parts


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
