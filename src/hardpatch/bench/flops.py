"""Floating-point operations of one optimizer step, counted by formula.

Matrix products and attention only, 2 for each multiply-add, as :mod:`torch.utils.flop_counter` counts and as model
FLOPs utilization (MFU) is defined: operations that the step requires, without those a kernel repeats. The backward pass
takes two products for each one of the forward pass, or one if the input needs no gradient; the teacher has none.
"""

from dataclasses import dataclass

from hardpatch.configuration.sections import RunConfig

MLP_RATIO = 4


@dataclass(frozen=True)
class StepShape:
    """Sizes that determine the arithmetic of a step."""

    width: int
    depth: int
    decoder_width: int
    decoder_depth: int
    """blocks of the reconstructor, including shared ones"""
    grid: tuple[int, int]
    masked: int
    """masked patches per image"""
    patch_values: int
    """values of a patch, ``p * p * C``"""
    target_values: int
    """values to reconstruct per patch"""
    has_predictor: bool

    @property
    def patches(self) -> int:
        """Patches per image."""
        return self.grid[0] * self.grid[1]

    @property
    def visible(self) -> int:
        """Visible patches per image."""
        return self.patches - self.masked


def step_flops(run: RunConfig, *, literal: bool = False, mined: bool = True) -> dict[str, float] | None:
    """Operations per image, by part of the step.

    Args:
        run: its configuration.
        literal: count literal Algorithm 1 (:mod:`hardpatch.bench.literal`) without section ``fast``, instead of the
            least operations with the same result, which :class:`~hardpatch.pretrain.step.Learner` computes.
        mined: count a step that mines patches; without mining the teacher does not run.

    Returns:
        None for configurations that are not supported: other hosts than mae, targets of a frozen network, masks by
        attention.
    """
    if run.method.host != "mae" or run.method.frozen is not None or run.masking.uses_attention:
        return None
    shape = _step_shape(run)
    if literal:
        return _literal(shape)
    parts = _student(shape, run)
    if shape.has_predictor and mined and not run.fast.remember:
        parts |= _teacher(shape, run)
    if run.method.target == "teacher":  # then the teacher runs in every step
        parts["teacher patches"] = linear(shape.patches, shape.patch_values, shape.width)
        parts["teacher encoder"] = shape.depth * block(shape.width, 1 + shape.patches)
    return parts


def _step_shape(run: RunConfig) -> StepShape:
    method, model, masking = run.method, run.model, run.masking
    width, depth = run.encoder_shape["width"], run.encoder_shape["depth"]
    patch_values = model.patch_size**2 * run.data.channel_count
    return StepShape(
        width=width,
        depth=depth,
        decoder_width=model.decoder_width,
        decoder_depth=model.decoder_depth,
        grid=run.grid,
        masked=masking.counts(method.mask_ratio, 0.0)[0] * masking.unit**2,
        patch_values=patch_values,
        target_values=width if method.target == "teacher" else patch_values,
        has_predictor=run.has_predictor,
    )


def _literal(shape: StepShape) -> dict[str, float]:
    """Count a step in which all tokens pass all layers."""
    tokens = 1 + shape.patches
    embed = linear(shape.patches, shape.patch_values, shape.width)
    blocks = shape.decoder_depth * block(shape.decoder_width, tokens)
    reconstruct = blocks + linear(tokens, shape.decoder_width, shape.target_values)
    predict = blocks + linear(tokens, shape.decoder_width, shape.patch_values)
    parts = {
        "student patches": 2 * embed,
        "student encoder": 3 * shape.depth * block(shape.width, 1 + shape.visible),
        "student latent": 3 * linear(1 + shape.visible, shape.width, shape.decoder_width),
        "reconstructor": 3 * reconstruct,
    }
    if shape.has_predictor:
        parts |= {
            "predictor": 3 * predict,
            "teacher patches": embed,
            "teacher encoder": shape.depth * block(shape.width, tokens),
            "teacher latent": linear(tokens, shape.width, shape.decoder_width),
            "teacher reconstructor": reconstruct,
            "teacher predictor": predict,
        }
    return parts


def _student(shape: StepShape, run: RunConfig) -> dict[str, float]:
    fast, width = run.fast, shape.decoder_width
    cross, trunk = fast.decoder == "cross", fast.trunk(shape.decoder_depth)
    queries, visible = max(1, int(shape.masked * fast.prediction_ratio)), 1 + shape.visible
    tokens = visible if cross else visible + queries
    saved = _saved_by_shared_projections(shape, run, queries, shape.patches)

    def decoder(blocks: int) -> float:
        if cross:
            return blocks * block(width, visible, queries) - saved
        return (blocks - 1) * block(width, tokens) + block(width, tokens, queries) - (0 if trunk else saved)

    reconstruct = decoder(shape.decoder_depth - trunk) + linear(queries, width, shape.target_values)
    parts = {
        "student patches": 2 * linear(shape.visible, shape.patch_values, shape.width),
        "student encoder": 3 * shape.depth * block(shape.width, visible),
        "student latent": 3 * linear(visible, shape.width, width),
        "reconstructor": 3 * reconstruct,
    }
    if trunk:
        parts["shared blocks"] = 3 * (trunk * block(width, tokens) - saved)
    if shape.has_predictor:
        blocks = fast.predictor_depth or shape.decoder_depth - trunk
        parts["predictor"] = 3 * (decoder(blocks) + linear(queries, width, 1))
    return parts


def _teacher(shape: StepShape, run: RunConfig) -> dict[str, float]:
    """Count one forward pass of the teacher on a whole image."""
    fast, width, trunk = run.fast, shape.decoder_width, run.fast.trunk(shape.decoder_depth)
    rows, columns = (max(1, round(side * fast.teacher_resolution)) for side in shape.grid)
    patches = rows * columns
    tokens = 1 + patches
    blocks = fast.predictor_depth or shape.decoder_depth - trunk
    if fast.decoder == "cross":
        saved = _saved_by_shared_projections(shape, run, patches, patches)
        predictor = blocks * block(width, tokens, patches) - saved
    else:
        predictor = (trunk + blocks - 1) * block(width, tokens) + block(width, tokens, patches)
    return {
        "teacher patches": linear(patches, shape.patch_values, shape.width),
        "teacher encoder": shape.depth * block(shape.width, tokens),
        "teacher latent": linear(tokens, shape.width, width),
        "teacher predictor": predictor + linear(patches, width, 1),
    }


def _saved_by_shared_projections(shape: StepShape, run: RunConfig, queries: int, positions: int) -> float:
    """Operations saved per image by projecting the mask tokens once for each position of a micro-batch."""
    steps = run.optim.accumulation_steps
    images = run.batch_size // (1 if steps == "auto" else steps)
    outputs = shape.decoder_width if run.fast.decoder == "cross" else 3 * shape.decoder_width
    return linear(queries, shape.decoder_width, outputs) - linear(positions, shape.decoder_width, outputs) / images


def linear(tokens: int, inputs: int, outputs: int) -> float:
    """Operations of a linear layer."""
    return 2.0 * tokens * inputs * outputs


def block(width: int, tokens: int, queries: int | None = None) -> float:
    """Operations of a Transformer block on ``tokens``, with outputs for ``queries`` of them (default: all)."""
    queries = tokens if queries is None else queries
    keys_values = linear(tokens, width, 2 * width)
    queries_projection = 2 * linear(queries, width, width)
    attention = 4.0 * queries * tokens * width
    mlp = 2 * linear(queries, width, MLP_RATIO * width)
    return keys_values + queries_projection + attention + mlp
