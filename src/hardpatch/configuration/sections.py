"""Settings of a pre-training run, a frozen dataclass for each section, and properties derived from them.

This module imports torch in its methods only, so that ``--help`` is fast.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from hardpatch.choices import (
    SIZES,
    HostName,
    MaskName,
    MiningName,
    PositionsName,
    PredictingLossName,
    ReconstructionLossName,
    SizeName,
)
from hardpatch.configuration.data_section import DataConfig
from hardpatch.configuration.train_section import TrainConfig
from hardpatch.errors import UserError
from hardpatch.ranges import (
    ANY,
    BATCH,
    BELOW_ONE,
    BLOCKS,
    COUNT_OR_NONE,
    DECAY,
    FRACTION,
    IMAGES,
    INSIDE,
    LEAST_RATE,
    NOT_NEGATIVE,
    PAIR_OF_SHARES,
    PASSES,
    POSITIVE,
    RATE,
    SEED,
    SHARE,
    SIDE,
    STEPS,
    WIDTH,
    Range,
    ranged,
)

if TYPE_CHECKING:
    from hardpatch.methods.mining import Masking


@dataclass(frozen=True)
class ModelConfig:
    """Vision Transformer and its two decoders."""

    size: SizeName = "base"
    """Encoder, by width and blocks: tiny 192/12, small 384/12, base 768/12, large 1024/24, huge 1280/32."""
    patch_size: int = ranged(16, SIDE)
    """Side of a patch in pixels; must divide the image size."""
    width: int | None = ranged(None, WIDTH)
    """Encoder width; null is that of model.size."""
    depth: int | None = ranged(None, BLOCKS)
    """Encoder blocks; null is that of model.size."""
    heads: int | None = ranged(None, WIDTH)
    """Encoder attention heads; null is that of model.size."""
    positions: PositionsName = "sincos"
    """Positions: fixed sine-cosine; with other hosts than mae also relative, BEiT's shared bias, or learned (iBOT)."""
    layer_scale: float | None = ranged(None, NOT_NEGATIVE)
    """Initial layer scale of each residual branch of the encoder (BEiT, SimMIM: 0.1); null has none."""
    drop_path: float = ranged(0.0, FRACTION)
    """Stochastic depth: probability to drop a branch of the last block; it rises linearly from 0 over the blocks."""
    decoder_width: int = ranged(512, WIDTH)
    """Width of image reconstructor and loss predictor."""
    decoder_depth: int = ranged(8, BLOCKS)
    """Blocks of each decoder."""
    decoder_heads: int = ranged(16, WIDTH)
    """Attention heads of each decoder."""


@dataclass(frozen=True)
class MethodConfig:
    """Host method, its target, and the mining of hard patches."""

    host: HostName = "mae"
    """Host method, the masked image model that mining is added to."""
    target: Literal["auto", "pixels", "normalized_pixels", "teacher", "frozen"] = "auto"
    """Reconstruction target: auto is the host's own, teacher the features of the EMA teacher."""
    frozen: str | None = None
    """Network of target frozen: dino, clip, any timm model with one token per patch, or hardpatch for a classifier that
    hardpatch finetune trained."""
    frozen_weights: str | None = None
    """Weights of that network, a local file in timm's layout (null downloads them with timm), or the run folder of
    finetune."""
    tokenizer: str | None = None
    """Tokenizer of host beit: a run of hardpatch tokenizer, or the DALL-E encoder's weights."""
    reconstruction_loss: Literal["auto"] | ReconstructionLossName = "auto"
    """Reconstruction loss: auto is mse for pixels, l1 with host simmim, and l2norm (of unit vectors) for features."""
    mask: MaskName = "random"
    """Mask of the patches that are not mined: block is BEiT's, grid UM-MAE's, attention AttMask's."""
    mask_ratio: float = ranged(0.75, INSIDE)
    """Fraction of masked patches (gamma)."""
    mask_ratio_spread: float = ranged(0.0, BELOW_ONE)
    """Half width of the range around mask_ratio from which each step draws its ratio (iBOT: 0.2)."""
    mask_unit: int | None = ranged(None, SIDE)
    """Side in pixels of the squares that are masked as a whole (SimMIM: 32); null is the patch size."""
    secondary_ratio: float = ranged(0.0, FRACTION)
    """Fraction of the visible patches, rounded up, that host mae replaces by mask tokens (UM-MAE: 0.25)."""
    predicting_loss: PredictingLossName | Literal["none"] = "relative"
    """Predicting loss: relative (Eq. 5-7), absolute (Eq. 4), absolute_standardized (HPM's code), none is the host."""
    mining: MiningName = "hard"
    """Patches that are mined: hard are those with the highest predicted loss, easy those with the lowest."""
    alpha_start: float = ranged(0.0, FRACTION)
    """Mined fraction of the masked patches at the start (alpha_0)."""
    alpha_end: float = ranged(0.5, FRACTION)
    """Mined fraction of the masked patches at the end (alpha_T), reached linearly."""
    momentum_start: float = ranged(0.999, FRACTION)
    """Momentum of the teacher at the start."""
    momentum_end: float = ranged(0.9999, FRACTION)
    """Momentum of the teacher after momentum_warmup."""
    momentum_warmup: float = ranged(0.5, FRACTION)
    """Fraction of the training in which the momentum rises."""
    momentum_schedule: Literal["linear", "cosine"] = "linear"
    """Shape of that rise: linear as in HPM, or half a cosine as in iBOT."""


@dataclass(frozen=True)
class FastConfig:
    """Cheaper mining, with host mae only; off by default."""

    decoder: Literal["self", "cross"] = "self"
    """Attention in both decoders: self among all tokens, or cross from mask tokens to visible ones (CrossMAE)."""
    prediction_ratio: float = ranged(1.0, SHARE)
    """Fraction of the masked patches, drawn at random, for which both decoders predict (CrossMAE)."""
    predictor_depth: int | None = ranged(None, BLOCKS)
    """Blocks of the loss predictor alone; null is model.decoder_depth minus shared_blocks."""
    shared_blocks: int = ranged(0, Range(-1_000, 1_000, whole=True))
    """First blocks of the reconstructor that the loss predictor shares; a negative number counts from the last, -1 is
    all but one."""
    teacher_resolution: float = ranged(1.0, SHARE)
    """Factor by which the teacher's images are resized; its difficulty map is resized back."""
    remember: bool = False
    """Mine without a teacher, by the student's predictions for the same image in earlier epochs."""

    def trunk(self, decoder_depth: int) -> int:
        """Return how many blocks a reconstructor of ``decoder_depth`` blocks shares with the loss predictor."""
        return self.shared_blocks + (decoder_depth if self.shared_blocks < 0 else 0)


@dataclass(frozen=True)
class IbotConfig:
    """Crops, heads and temperatures of host ibot."""

    local_crops: int = ranged(10, Range(0, 1_000, whole=True))
    """Number of local crops beside the two global ones."""
    local_size: int = ranged(96, SIDE)
    """Side of a local crop in pixels, a multiple of the patch size."""
    local_scale: tuple[float, float] = ranged((0.05, 0.32), PAIR_OF_SHARES)
    """Smallest and largest area of a local crop, as a fraction of the image; global ones use data.crop_scale."""
    color: bool = True
    """Augment with color jitter, gray, blur and solarization."""
    outputs: int = ranged(8192, Range(1, 1_000_000, whole=True))
    """Prototypes of the head, which class and patch tokens share."""
    head_hidden: int = ranged(2048, WIDTH)
    """Width of the head's hidden layers."""
    head_bottleneck: int = ranged(256, WIDTH)
    """Width of the head's bottleneck, whose output is normalized."""
    teacher_temperature_warmup: float = ranged(0.075, FRACTION)
    """Fraction of the training in which the teacher's temperature rises (30 of 400 epochs)."""
    frozen_last_layer: float = ranged(0.0025, FRACTION)
    """Fraction of the training in which the head's last layer is frozen (1 of 400 epochs)."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    base_lr: float = ranged(1.5e-4, RATE)
    """Learning rate for a batch of 256; the peak is base_lr * batch_size / 256."""
    lr: float | None = ranged(None, RATE)
    """Peak learning rate; null is optim.base_lr * batch_size / 256."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate after the warm-up: half a cosine to optim.min_lr, one step down at optim.step_at (SimMIM), or the
    peak."""
    min_lr: float = ranged(0.0, LEAST_RATE)
    """Learning rate at the end of schedule cosine."""
    step_at: float = ranged(0.875, FRACTION)
    """Fraction of the training after which schedule step lowers the learning rate (SimMIM: 700 of 800 epochs)."""
    step_factor: float = ranged(0.1, FRACTION)
    """Factor by which schedule step lowers the learning rate."""
    warmup: float = ranged(0.05, FRACTION)
    """Fraction of the training in which the learning rate rises linearly."""
    weight_decay: float = ranged(0.05, DECAY)
    """Weight decay, not applied to biases and norms."""
    weight_decay_end: float | None = ranged(None, DECAY)
    """Weight decay at the end, reached by half a cosine (iBOT: 0.4); null is constant."""
    betas: tuple[float, float] = ranged((0.9, 0.95), BELOW_ONE)
    """AdamW betas."""
    clip: float | None = ranged(5.0, POSITIVE)
    """Gradient norm above which gradients are clipped; null does not clip."""
    accumulation_steps: int | Literal["auto"] = ranged(1, BATCH)
    """Micro-batches of a batch, with the same result; auto is the fewest that fit into the GPU's memory."""


@dataclass(frozen=True)
class InitConfig:
    """Existing weights to start from."""

    weights: str | None = None
    """Weights to start from, as --init WEIGHTS: a run, a weights file, hf:OWNER/NAME or timm:NAME; null is none."""
    part: Literal["auto", "student", "teacher"] = "auto"
    """Part of them; auto is the student, and of checkpoints of DINO and iBOT the teacher."""
    heads: int | None = ranged(None, WIDTH)
    """Attention heads of these weights, where neither they nor a config.json beside them say."""
    decoder_heads: int | None = ranged(None, WIDTH)
    """Attention heads of a decoder among them, likewise."""
    trained_size: tuple[int, int] | None = ranged(None, SIDE)
    """Height and width in pixels of the images that they were trained on, likewise."""
    frozen: float = ranged(0.1, FRACTION)
    """Fraction of the training in which the encoder is frozen while decoder and loss predictor learn, if any is new."""
    encoder_lr: float = ranged(0.25, Range(0, 1_000, above=True))
    """Factor of the learning rate for the encoder."""
    layer_decay: float = ranged(0.9, SHARE)
    """Factor of the learning rate from each block of the encoder to the one below it."""
    frozen_blocks: int = ranged(0, COUNT_OR_NONE)
    """First blocks that are never trained, with all that comes before them."""
    keep_best: Literal["auto", "knn", "linear", "loss", "rankme", "none"] = "auto"
    """Measure of the checks by which the best weights are kept in best/: auto is knn with labels, else loss."""
    encoder: dict[str, Any] | None = None
    """Shape of the encoder; found in the weights, not to be set."""
    mean: list[float] | None = ranged(None, ANY)
    """Mean of the channels that the weights were trained with, likewise."""
    std: list[float] | None = ranged(None, Range(1e-9, 1e12))
    """Standard deviation, likewise."""


@dataclass(frozen=True)
class KnnConfig:
    """k-NN accuracy during training, on labeled images that are not trained on."""

    train: str | None = None
    """Labeled images that vote: one folder per class, or Parquet with labels."""
    val: str | None = None
    """Labeled images to classify."""
    every_epochs: float = ranged(10.0, POSITIVE)
    """Epochs between two measurements."""


@dataclass(frozen=True)
class VerdictConfig:
    """Checks during the training, and the verdict at its end."""

    checks: int = ranged(10, COUNT_OR_NONE)
    """Checks during the training, beside those before the first step and after the last; 0 is no check, no verdict."""
    images: int = ranged(512, IMAGES)
    """Images that each check looks at."""
    upside_down: Literal["stop", "warn"] = "stop"
    """Response to a difficulty map that is upside down at two checks in a row: stop mining, or only say so."""


@dataclass(frozen=True)
class RunConfig:
    """A pre-training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    fast: FastConfig = field(default_factory=FastConfig)
    ibot: IbotConfig = field(default_factory=IbotConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init: InitConfig = field(default_factory=InitConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    epochs: float | None = ranged(None, PASSES)
    """Length in epochs, each one crop per image on average; set this or steps."""
    steps: int | None = ranged(None, STEPS)
    """Length in optimizer steps; set this or epochs."""
    batch_size: int = ranged(256, BATCH)
    """Images per optimizer step, over all micro-batches."""
    seed: int = ranged(0, SEED)
    """Seed of initial weights, order, crops and masks."""
    extensions: tuple[str, ...] = ()
    """Changes of the length of this run, which --resume writes here."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the crops in pixels."""
        size = self.data.image_size
        return (size, size) if isinstance(size, int) else size

    @cached_property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches.

        Raises:
            UserError: if the patch size does not divide the image.
        """
        from hardpatch.models.encoder import patch_grid

        try:
            return patch_grid(self.image_size, self.model.patch_size)
        except ValueError as error:
            raise UserError(f"data.image_size, model.{error}") from None

    @cached_property
    def masking(self) -> "Masking":
        """Settings of mask generation, for :class:`~hardpatch.methods.mining.Masking`."""
        from hardpatch.methods.mining import Masking

        method = self.method
        unit = 1 if method.mask_unit is None else method.mask_unit // self.model.patch_size
        return Masking(self.grid, method.mask, method.mining, unit, method.secondary_ratio, self.fast.prediction_ratio)

    @property
    def has_predictor(self) -> bool:
        """True if the run has a loss predictor."""
        return self.method.predicting_loss != "none"

    @property
    def mines(self) -> bool:
        """True if patches are mined at some time of the run."""
        return self.has_predictor and max(self.method.alpha_start, self.method.alpha_end) > 0.0

    @property
    def encoder_shape(self) -> dict[str, int]:
        """``width``, ``depth`` and ``heads`` of the encoder."""
        model = self.model
        changed = {"width": model.width, "depth": model.depth, "heads": model.heads}
        return SIZES[model.size] | {name: value for name, value in changed.items() if value is not None}

    @property
    def peak_lr(self) -> float:
        """Peak learning rate, scaled with the batch."""
        optim = self.optim
        return optim.lr if optim.lr is not None else optim.base_lr * self.batch_size / 256

    def total_steps(self, images: int) -> int:
        """Return the number of optimizer steps for a set of ``images``, at least one."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0.0) * images / self.batch_size))
