"""Settings of a pre-training run, a frozen dataclass for each section, and properties derived from them.

This module imports torch in its methods only, so that ``--help`` is fast.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from hardpatch.choices import (
    SIZES,
    DeviceName,
    HostName,
    MaskName,
    MiningName,
    PositionsName,
    PrecisionName,
    PredictingLossName,
    ReconstructionLossName,
    SizeName,
    StrategyName,
)
from hardpatch.errors import UserError
from hardpatch.pretrain.data_section import DataConfig

if TYPE_CHECKING:
    from hardpatch.methods.mining import Masking


@dataclass(frozen=True)
class ModelConfig:
    """Vision Transformer and its two decoders."""

    size: SizeName = "base"
    """Encoder, by width and blocks: tiny 192/12, small 384/12, base 768/12, large 1024/24, huge 1280/32."""
    patch_size: int = 16
    """Side of a patch in pixels; must divide the image size."""
    width: int | None = None
    """Encoder width; null is that of model.size."""
    depth: int | None = None
    """Encoder blocks; null is that of model.size."""
    heads: int | None = None
    """Encoder attention heads; null is that of model.size."""
    positions: PositionsName = "sincos"
    """Positions: fixed sine-cosine; with other hosts than mae also relative, BEiT's shared bias, or learned (iBOT)."""
    layer_scale: float | None = None
    """Initial layer scale of each residual branch of the encoder (BEiT, SimMIM: 0.1); null has none."""
    drop_path: float = 0.0
    """Stochastic depth: probability to drop a branch of the last block; it rises linearly from 0 over the blocks."""
    decoder_width: int = 512
    """Width of image reconstructor and loss predictor."""
    decoder_depth: int = 8
    """Blocks of each decoder."""
    decoder_heads: int = 16
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
    mask_ratio: float = 0.75
    """Fraction of masked patches (gamma)."""
    mask_ratio_spread: float = 0.0
    """Half width of the range around mask_ratio from which each step draws its ratio (iBOT: 0.2)."""
    mask_unit: int | None = None
    """Side in pixels of the squares that are masked as a whole (SimMIM: 32); null is the patch size."""
    secondary_ratio: float = 0.0
    """Fraction of the visible patches, rounded up, that host mae replaces by mask tokens (UM-MAE: 0.25)."""
    predicting_loss: PredictingLossName | Literal["none"] = "relative"
    """Predicting loss: relative (Eq. 5-7), absolute (Eq. 4), absolute_standardized (HPM's code), none is the host."""
    mining: MiningName = "hard"
    """Patches that are mined: hard are those with the highest predicted loss, easy those with the lowest."""
    alpha_start: float = 0.0
    """Mined fraction of the masked patches at the start (alpha_0)."""
    alpha_end: float = 0.5
    """Mined fraction of the masked patches at the end (alpha_T), reached linearly."""
    momentum_start: float = 0.999
    """Momentum of the teacher at the start."""
    momentum_end: float = 0.9999
    """Momentum of the teacher after momentum_warmup."""
    momentum_warmup: float = 0.5
    """Fraction of the training in which the momentum rises."""
    momentum_schedule: Literal["linear", "cosine"] = "linear"
    """Shape of that rise: linear as in HPM, or half a cosine as in iBOT."""


@dataclass(frozen=True)
class FastConfig:
    """Cheaper mining, with host mae only; off by default."""

    decoder: Literal["self", "cross"] = "self"
    """Attention in both decoders: self among all tokens, or cross from mask tokens to visible ones (CrossMAE)."""
    prediction_ratio: float = 1.0
    """Fraction of the masked patches, drawn at random, for which both decoders predict (CrossMAE)."""
    predictor_depth: int | None = None
    """Blocks of the loss predictor alone; null is model.decoder_depth minus shared_blocks."""
    shared_blocks: int = 0
    """First blocks of the reconstructor that the loss predictor shares; a negative number counts from the last, -1 is
    all but one."""
    teacher_resolution: float = 1.0
    """Factor by which the teacher's images are resized; its difficulty map is resized back."""
    remember: bool = False
    """Mine without a teacher, by the student's predictions for the same image in earlier epochs."""

    def trunk(self, decoder_depth: int) -> int:
        """Return how many blocks a reconstructor of ``decoder_depth`` blocks shares with the loss predictor."""
        return self.shared_blocks + (decoder_depth if self.shared_blocks < 0 else 0)


@dataclass(frozen=True)
class IbotConfig:
    """Crops, heads and temperatures of host ibot."""

    local_crops: int = 10
    """Number of local crops beside the two global ones."""
    local_size: int = 96
    """Side of a local crop in pixels, a multiple of the patch size."""
    local_scale: tuple[float, float] = (0.05, 0.32)
    """Smallest and largest area of a local crop, as a fraction of the image; global ones use data.crop_scale."""
    color: bool = True
    """Augment with color jitter, gray, blur and solarization."""
    outputs: int = 8192
    """Prototypes of the head, which class and patch tokens share."""
    head_hidden: int = 2048
    """Width of the head's hidden layers."""
    head_bottleneck: int = 256
    """Width of the head's bottleneck, whose output is normalized."""
    teacher_temperature_warmup: float = 0.075
    """Fraction of the training in which the teacher's temperature rises (30 of 400 epochs)."""
    frozen_last_layer: float = 0.0025
    """Fraction of the training in which the head's last layer is frozen (1 of 400 epochs)."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    base_lr: float = 1.5e-4
    """Learning rate for a batch of 256; the peak is base_lr * batch_size / 256."""
    lr: float | None = None
    """Peak learning rate; null is optim.base_lr * batch_size / 256."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Learning rate after the warm-up: half a cosine to optim.min_lr, or one step down at optim.step_at (SimMIM)."""
    min_lr: float = 0.0
    """Learning rate at the end of schedule cosine."""
    step_at: float = 0.875
    """Fraction of the training after which schedule step lowers the learning rate (SimMIM: 700 of 800 epochs)."""
    step_factor: float = 0.1
    """Factor by which schedule step lowers the learning rate."""
    warmup: float = 0.05
    """Fraction of the training in which the learning rate rises linearly."""
    weight_decay: float = 0.05
    """Weight decay, not applied to biases and norms."""
    weight_decay_end: float | None = None
    """Weight decay at the end, reached by half a cosine (iBOT: 0.4); null is constant."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""
    clip: float | None = 5.0
    """Gradient norm above which gradients are clipped; null does not clip."""
    accumulation_steps: int | Literal["auto"] = 1
    """Micro-batches of a batch, with the same result; auto is the fewest that fit into the GPU's memory."""


@dataclass(frozen=True)
class TrainConfig:
    """Device, precision, log and checkpoints."""

    device: DeviceName = "auto"
    """Device to train on."""
    precision: PrecisionName = "auto"
    """Precision of the forward pass: auto is bf16 on a GPU that has it, else fp32; weights and losses stay fp32."""
    compile: Literal["no", "yes", "cuda_graphs"] = "no"
    """Compile student and teacher with torch.compile; cuda_graphs also records CUDA graphs."""
    checkpoint_activations: bool = False
    """Recompute the student's activations in the backward pass: less memory, more time."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints; the end and an interruption also write one."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, in addition to the minutes; null is none."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""
    devices: int | Literal["auto"] = 1
    """Processes on this machine, one for each GPU; auto is all GPUs. torchrun and srun start their own."""
    nodes: int = 1
    """Machines; each runs the command, with MASTER_ADDR, MASTER_PORT and NODE_RANK in its environment."""
    strategy: StrategyName = "ddp"
    """Several processes: ddp has whole weights in each of them, fsdp2 divides them among the processes."""
    answer_minutes: float = 30.0
    """Minutes after which the run ends because one of several processes does not answer."""


@dataclass(frozen=True)
class KnnConfig:
    """k-NN accuracy during training, on labeled images that are not trained on."""

    train: str | None = None
    """Labeled images that vote: one folder per class, or Parquet with labels."""
    val: str | None = None
    """Labeled images to classify."""
    every_epochs: float = 10.0
    """Epochs between two measurements."""


@dataclass(frozen=True)
class VerdictConfig:
    """Checks during the training, and the verdict at its end."""

    checks: int = 10
    """Checks during the training, beside those before the first step and after the last; 0 is no check, no verdict."""
    images: int = 512
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
    knn: KnnConfig = field(default_factory=KnnConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    epochs: float | None = None
    """Length in epochs, each one crop per image on average; set this or steps."""
    steps: int | None = None
    """Length in optimizer steps; set this or epochs."""
    batch_size: int = 256
    """Images per optimizer step, over all micro-batches."""
    seed: int = 0
    """Seed of initial weights, order, crops and masks."""

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
            raise UserError(str(error)) from None

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
