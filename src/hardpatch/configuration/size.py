"""Memory that a run takes at least, from its settings alone, so that what cannot fit is refused early."""

from hardpatch.configuration.hosts import HOSTS
from hardpatch.configuration.sections import RunConfig
from hardpatch.processes import launched
from hardpatch.train.memory import WEIGHT, bytes_per_parameter, check_memory

MODEL = "model.width, model.depth, model.patch_size, model.decoder_width, model.decoder_depth"
BATCH = "batch_size, data.image_size"


def check_fits(run: RunConfig) -> None:
    """Refuse a model, or a batch of images, that cannot fit into the memory of this machine.

    Raises:
        UserError: names the settings, the estimated size and the free memory.
    """
    names = f"{MODEL}, ibot.outputs, ibot.head_hidden" if HOSTS[run.method.host].multi_crop else MODEL
    count = parameters(run)
    # several machines or processes divide the batch, and with fsdp2 what the optimizer keeps
    parts = max(run.train.nodes, launched().world_size)
    copies = WEIGHT if run.train.strategy == "fsdp2" else bytes_per_parameter(run.train.device)
    need = copies * count + _buffers(run)
    check_memory(need, names, f"a model ({short(count)} parameters)")
    crops = run.image_size[0] * run.image_size[1]
    if HOSTS[run.method.host].multi_crop:
        crops = 2 * crops + run.ibot.local_crops * run.ibot.local_size**2
    names = f"{BATCH}, ibot.local_crops, ibot.local_size" if HOSTS[run.method.host].multi_crop else BATCH
    check_memory(run.batch_size // parts * crops * _channels(run), names, "a batch of images")
    if run.method.predicting_loss == "relative" and bytes_per_parameter(run.train.device) > WEIGHT:
        accumulated = 1 if run.optim.accumulation_steps == "auto" else run.optim.accumulation_steps
        masked = int(run.grid[0] * run.grid[1] * run.method.mask_ratio * run.fast.prediction_ratio)
        pairs = run.batch_size // parts // accumulated * masked**2
        check_memory(4 * pairs, f"{BATCH}, model.patch_size", "a table of all pairs of masked patches (Eq. 5)")


def check_model_fits(run: RunConfig) -> None:
    """Refuse a model whose weights alone do not fit, for a model that is built and not trained.

    Raises:
        UserError: as :func:`check_fits`.
    """
    check_memory(WEIGHT * parameters(run) + _buffers(run), MODEL, f"a model ({short(parameters(run))} parameters)")


def parameters(run: RunConfig) -> int:
    """Return the number of parameters of a run's model, without its small ones and those that two parts may share."""
    model, ibot, host = run.model, run.ibot, HOSTS[run.method.host]
    width, depth = run.encoder_shape["width"], run.encoder_shape["depth"]
    pixels = model.patch_size**2 * _channels(run)
    count = 12 * depth * width**2 + pixels * width
    if model.positions == "learned":
        count += run.grid[0] * run.grid[1] * width
    decoders = model.decoder_depth if host.drops_masked or run.has_predictor else 0
    count += 12 * (decoders + (run.fast.predictor_depth or 0)) * model.decoder_width**2
    if run.has_predictor:
        count += pixels * model.decoder_width
    if host.multi_crop:
        hidden, bottleneck = ibot.head_hidden, ibot.head_bottleneck
        count += width * hidden + hidden**2 + hidden * bottleneck + bottleneck * ibot.outputs
    return count


def _buffers(run: RunConfig) -> int:
    """Return the bytes of fixed positions, and of the table of all pairs of patches of relative ones."""
    patches = run.grid[0] * run.grid[1]
    if run.model.positions == "sincos":
        return 4 * patches * run.encoder_shape["width"]
    return 8 * patches**2 if run.model.positions == "relative" else 0


def _channels(run: RunConfig) -> int:
    """Return the number of channels, the least where it is not known before the images are seen."""
    return 1 if run.data.channels == "auto" else run.data.channel_count


def short(count: int) -> str:
    """Return a number of parameters in words, such as "86 M"."""
    return f"{count / 1e9:,.1f} billion" if count >= 1e9 else f"{count / 1e6:,.1f} million"
