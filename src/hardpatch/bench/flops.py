"""Floating-point operations of one optimizer step, counted by formula.

Matrix products and attention only, 2 for each multiply-add, as :mod:`torch.utils.flop_counter` counts and as the field
defines model FLOPs utilization (MFU): what the step asks for, not what a kernel computes twice. The backward pass takes
two products for each of the forward pass, one where the input needs no gradient; the teacher has none.
"""

from dataclasses import dataclass

from hardpatch.pretrain.sections import RunConfig

MLP_RATIO = 4


@dataclass(frozen=True)
class Sizes:
    """What the arithmetic of a step depends on."""

    width: int
    depth: int
    wide: int
    """width of the decoders"""
    deep: int
    """blocks of the reconstructor, shared ones too"""
    grid: tuple[int, int]
    masked: int
    pixels: int
    """numbers of a patch"""
    outputs: int
    """numbers to rebuild of a patch"""
    predicts: bool
    """has a loss predictor"""

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def visible(self) -> int:
        return self.patches - self.masked


def step_flops(run: RunConfig, *, literal: bool = False, mined: bool = True) -> dict[str, float] | None:
    """Operations an image, by part of the step; their sum is that of the step, the mean one with ``teacher_every``.

    Args:
        run: its configuration.
        literal: of Algorithm 1 taken at its word (``benchmarks/literal.py``), in place of the least that gives the same
            numbers, which is what :class:`~hardpatch.pretrain.step.Learner` computes; section ``fast`` does not count.
        mined: whether patches are mined at that step; the teacher rests where there are none.

    Returns:
        None for what is not counted: other hosts than mae, targets of a frozen network, masks by attention.
    """
    if run.method.host != "mae" or run.method.frozen is not None or run.masking.uses_attention:
        return None
    sizes = _sizes(run)
    if literal:
        return _literal(sizes)
    parts = _student(sizes, run)
    if sizes.predicts and mined and not run.fast.remember:
        parts |= _teacher(sizes, run)
    if run.method.target == "teacher":  # then it looks at every step
        parts["teacher patches"] = linear(sizes.patches, sizes.pixels, sizes.width)
        parts["teacher encoder"] = sizes.depth * block(sizes.width, 1 + sizes.patches)
    return parts


def _sizes(run: RunConfig) -> Sizes:
    method, model, grid = run.method, run.model, run.grid
    shape, pixels = run.encoder_shape, model.patch_size**2 * run.data.channels
    return Sizes(
        width=shape["width"],
        depth=shape["depth"],
        wide=model.decoder_width,
        deep=model.decoder_depth,
        grid=grid,
        masked=run.masking.counts(method.mask_ratio, 0.0)[0] * run.masking.unit**2,
        pixels=pixels,
        outputs=shape["width"] if method.target == "teacher" else pixels,
        predicts=run.has_predictor,
    )


def _literal(of: Sizes) -> dict[str, float]:
    """Every token through every layer."""
    tokens = 1 + of.patches
    embed, every_block = linear(of.patches, of.pixels, of.width), of.deep * block(of.wide, tokens)
    rebuild = every_block + linear(tokens, of.wide, of.outputs)
    predict = every_block + linear(tokens, of.wide, of.pixels)
    parts = {
        "student patches": 2 * embed,
        "student encoder": 3 * of.depth * block(of.width, 1 + of.visible),
        "student latent": 3 * linear(1 + of.visible, of.width, of.wide),
        "reconstructor": 3 * rebuild,
    }
    if of.predicts:
        parts |= {
            "predictor": 3 * predict,
            "teacher patches": embed,
            "teacher encoder": of.depth * block(of.width, tokens),
            "teacher latent": linear(tokens, of.width, of.wide),
            "teacher reconstructor": rebuild,
            "teacher predictor": predict,
        }
    return parts


def _student(of: Sizes, run: RunConfig) -> dict[str, float]:
    fast = run.fast
    cross, trunk = fast.decoder == "cross", fast.trunk(of.deep)
    asked, seen = max(1, int(of.masked * fast.prediction_ratio)), 1 + of.visible
    tokens = seen if cross else seen + asked
    spared = _spared(of, run, asked, of.patches)

    def decoder(blocks: int) -> float:
        if cross:
            return blocks * block(of.wide, seen, asked) - spared
        return (blocks - 1) * block(of.wide, tokens) + block(of.wide, tokens, asked) - (0 if trunk else spared)

    parts = {
        "student patches": 2 * linear(of.visible, of.pixels, of.width),
        "student encoder": 3 * of.depth * block(of.width, seen),
        "student latent": 3 * linear(seen, of.width, of.wide),
        "reconstructor": 3 * (decoder(of.deep - trunk) + linear(asked, of.wide, of.outputs)),
    }
    if trunk:
        parts["shared blocks"] = 3 * (trunk * block(of.wide, tokens) - spared)
    if of.predicts:
        predicting = fast.predictor_depth or of.deep - trunk
        parts["predictor"] = 3 * (decoder(predicting) + linear(asked, of.wide, 1))
    return parts


def _teacher(of: Sizes, run: RunConfig) -> dict[str, float]:
    """Of one look at whole images."""
    fast, trunk = run.fast, run.fast.trunk(of.deep)
    rows, columns = (max(1, round(side * fast.teacher_resolution)) for side in of.grid)
    patches = rows * columns
    tokens = 1 + patches
    predicting = fast.predictor_depth or of.deep - trunk
    if fast.decoder == "cross":
        blocks = predicting * block(of.wide, tokens, patches) - _spared(of, run, patches, patches)
    else:
        blocks = (trunk + predicting - 1) * block(of.wide, tokens) + block(of.wide, tokens, patches)
    return {
        "teacher patches": linear(patches, of.pixels, of.width),
        "teacher encoder": of.depth * block(of.width, tokens),
        "teacher latent": linear(tokens, of.width, of.wide),
        "teacher predictor": blocks + linear(patches, of.wide, 1),
    }


def _spared(of: Sizes, run: RunConfig, rows: int, positions: int) -> float:
    """What is spared where the first projections of mask tokens are made for each position, and not for each image."""
    pieces = run.optim.accumulation_steps
    images = run.batch_size // (1 if pieces == "auto" else pieces)
    outputs = of.wide if run.fast.decoder == "cross" else 3 * of.wide
    return linear(rows, of.wide, outputs) - linear(positions, of.wide, outputs) / images


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
