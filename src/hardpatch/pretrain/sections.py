"""Settings of a pre-training run, a frozen dataclass for each section, and the facts that follow from them.

Nothing here imports torch at the top, so that the command line answers at once.
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
)
from hardpatch.errors import UserError

if TYPE_CHECKING:
    from hardpatch.methods.mining import Masking


@dataclass(frozen=True)
class DataConfig:
    """Images to learn from and what is done to them."""

    path: str | None = None
    """Folder (flat, a tree, or one folder a class), Parquet file or folder of them; nothing = the embedded demo set."""
    image_size: int | tuple[int, int] = 224
    """Side, or [height, width], of the crops in pixels."""
    channels: int = 3
    """3 = RGB, 1 = gray; images are converted."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Random resized crop: smallest and largest share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: narrowest and widest aspect ratio."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation (BEiT: 0.4); host ibot has its own colors."""
    shrink_on_decode: float | None = 2.0
    """JPEGs are decoded at 1/2, 1/4 or 1/8 where the crop is still so many times the output's size; null never."""
    mean: Literal["imagenet", "computed"] | list[float] = "imagenet"
    """Mean of each channel for pixels in [0, 1]: ImageNet's, computed on your images, or given."""
    std: Literal["imagenet", "computed"] | list[float] = "imagenet"
    """Standard deviation of each channel, likewise."""
    workers: Literal["auto"] | int = "auto"
    """Processes that decode images; 0 decodes in the training process."""
    crops: int = 1
    """Crops of each image that is read, all in one batch; an epoch is then one crop of every image, on average."""
    in_memory: Literal["no", "host", "device"] = "no"
    """Every image decoded once and held: host in memory, the same crops; device on the accelerator, cropped there."""
    device_side: int | None = None
    """Side of the squares that images of several sizes are held as on the device; null is what a mean crop needs."""
    max_bad_fraction: float = 0.1
    """Files that cannot be decoded are named and skipped; past this share of the set the run stops."""


@dataclass(frozen=True)
class ModelConfig:
    """The Vision Transformer and its two decoders."""

    size: SizeName = "base"
    """Encoder: tiny 192 wide 12 deep, small 384/12, base 768/12, large 1024/24, huge 1280/32."""
    patch_size: int = 16
    """Side of a patch in pixels; must divide the image size."""
    width: int | None = None
    """Encoder width, instead of the size's."""
    depth: int | None = None
    """Encoder blocks, instead of the size's."""
    heads: int | None = None
    """Encoder attention heads, instead of the size's."""
    positions: PositionsName = "sincos"
    """Fixed sine-cosine positions, or BEiT's relative position bias, shared by all blocks (not with host mae)."""
    layer_scale: float | None = None
    """First value of a learned factor on each branch of the encoder (BEiT, SimMIM: 0.1); null has none."""
    drop_path: float = 0.0
    """Probability with which the encoder's last block leaves a branch out; it rises linearly from 0 over the blocks."""
    decoder_width: int = 512
    """Width of reconstructor and loss predictor."""
    decoder_depth: int = 8
    """Blocks of each of them."""
    decoder_heads: int = 16
    """Attention heads of each of them."""


@dataclass(frozen=True)
class MethodConfig:
    """A masked image model, and hard patches mining on it: predicting_loss none is the plain host."""

    host: HostName = "mae"
    """What is pre-trained, with or without mining."""
    target: Literal["auto", "pixels", "normalized_pixels", "teacher", "frozen"] = "auto"
    """What is reconstructed: auto is the host's own (pixels, BEiT's and iBOT's tokens), teacher the EMA's features."""
    frozen: str | None = None
    """The network of target frozen: dino, clip, or any timm model with one token a patch."""
    frozen_weights: str | None = None
    """Its weights, a local file in timm's layout; nothing = timm downloads them."""
    tokenizer: str | None = None
    """BEiT's visual tokens: a file of hardpatch tokenizer, or the DALL-E encoder's weights."""
    reconstruction_loss: Literal["auto"] | ReconstructionLossName = "auto"
    """Auto is mse for pixels, l1 with host simmim, and for features l2norm: squared distance of unit vectors."""
    mask: MaskName = "random"
    """How the patches that are not mined are drawn: BEiT's blocks, UM-MAE's grid, AttMask's attention."""
    mask_ratio: float = 0.75
    """Share of masked patches (gamma)."""
    mask_ratio_spread: float = 0.0
    """The ratio is drawn from mask_ratio +- this, once a step (iBOT: 0.2)."""
    mask_unit: int | None = None
    """Side in pixels of the squares that are masked as a whole (SimMIM: 32); null is the patch."""
    secondary_ratio: float = 0.0
    """Share of the visible patches that host mae sees as mask tokens (UM-MAE: 0.25)."""
    predicting_loss: PredictingLossName | Literal["none"] = "relative"
    """Relative (Eq. 5), absolute (Eq. 4), absolute against standardized losses (reference code), or no predictor."""
    mining: MiningName = "hard"
    """Mask the patches with the highest predicted loss (argmax) or the lowest (argmin)."""
    alpha_start: float = 0.0
    """Mined share of the masked patches at the beginning (alpha_0)."""
    alpha_end: float = 0.5
    """Mined share at the end (alpha_T); it changes linearly."""
    momentum_start: float = 0.999
    """Momentum of the teacher at the beginning."""
    momentum_end: float = 0.9999
    """Momentum of the teacher after momentum_warmup."""
    momentum_warmup: float = 0.5
    """Share of the training in which the momentum rises."""
    momentum_schedule: Literal["linear", "cosine"] = "linear"
    """How it rises: linear as HPM's, or half a cosine as iBOT's."""


@dataclass(frozen=True)
class FastConfig:
    """Mining at a lower price, with host mae only. Each of these changes what is learned; none does by default."""

    decoder: Literal["self", "cross"] = "self"
    """Blocks of both decoders: self-attention of all tokens, or mask tokens that look at visible ones (CrossMAE)."""
    prediction_ratio: float = 1.0
    """Share of the masked patches, drawn at random, that is reconstructed and whose losses are predicted (CrossMAE)."""
    predictor_depth: int | None = None
    """Blocks of the loss predictor alone; null is model.decoder_depth less shared_blocks."""
    shared_blocks: int = 0
    """First blocks of the reconstructor whose tokens the loss predictor reads, in place of blocks of its own; a
    negative number counts from the last: -1 is all but one."""
    teacher_resolution: float = 1.0
    """The teacher looks at images that are smaller by this factor; its map is enlarged again."""
    remember: bool = False
    """No teacher: mine by what the student predicted for the same image in earlier epochs."""

    def trunk(self, decoder_depth: int) -> int:
        """Blocks that a reconstructor of ``decoder_depth`` blocks shares with the loss predictor."""
        return self.shared_blocks + (decoder_depth if self.shared_blocks < 0 else 0)


@dataclass(frozen=True)
class IbotConfig:
    """What only host ibot has: crops, heads and temperatures."""

    local_crops: int = 10
    """Small crops beside the two global ones."""
    local_size: int = 96
    """Side of a local crop in pixels; a multiple of the patch size."""
    local_scale: tuple[float, float] = (0.05, 0.32)
    """Smallest and largest share of the image's area in a local crop; data.crop_scale is for the global ones."""
    color: bool = True
    """Color jitter, gray, blur and solarization."""
    outputs: int = 8192
    """Prototypes of the head, for class and patch tokens alike."""
    head_hidden: int = 2048
    """Width of the head's hidden layers."""
    head_bottleneck: int = 256
    """Width of the head's last hidden layer, which is normalized."""
    teacher_temperature_warmup: float = 0.075
    """Share of the training in which the temperature of the teacher's softmax rises (30 of 400 epochs)."""
    frozen_last_layer: float = 0.0025
    """Share of the training in which the head's last layer stays as it is (1 of 400 epochs)."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    base_lr: float = 1.5e-4
    """Learning rate for a batch of 256; the peak is base_lr * batch_size / 256."""
    lr: float | None = None
    """Peak learning rate, instead of base_lr."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup: float = 0.05
    """Share of the training in which the learning rate rises linearly."""
    weight_decay: float = 0.05
    """Not applied to biases and norms."""
    weight_decay_end: float | None = None
    """Weight decay at the end, reached by half a cosine (iBOT: 0.4); null is constant."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    clip: float | None = 5.0
    """Largest norm of the gradient; null does not clip."""
    accumulation_steps: int | Literal["auto"] = 1
    """Pieces in which a batch is computed, the result is that of the whole; auto is the fewest a GPU has memory for."""


@dataclass(frozen=True)
class TrainConfig:
    """Where and how it runs. None of these changes what is learned, but for rounding."""

    device: DeviceName = "auto"
    """Accelerator."""
    precision: PrecisionName = "auto"
    """Auto is bf16 on a GPU that has it, else fp32. Weights and losses stay in float32."""
    compile: Literal["no", "yes", "cuda_graphs"] = "no"
    """Compile student and teacher (torch.compile); cuda_graphs replays their kernels too, where these are short."""
    checkpoint_activations: bool = False
    """Compute the student's blocks again in the backward pass and keep nothing of them: less memory, more time."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints; there is one at the end too, and when the run is interrupted."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, beside the minutes."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""


@dataclass(frozen=True)
class KnnConfig:
    """k-NN accuracy while training, on a labeled set that training never sees."""

    train: str | None = None
    """Labeled images to vote (one folder a class, or Parquet with labels)."""
    val: str | None = None
    """Labeled images to classify."""
    every_epochs: float = 10.0
    """Epochs between two measurements."""


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
    epochs: float | None = None
    """Crops that are seen for each image of the set. Give this or steps."""
    steps: int | None = None
    """Optimizer steps. Give this or epochs."""
    batch_size: int = 256
    """Images an optimizer step, over all devices and pieces."""
    seed: int = 0
    """Decides initial weights, order, crops and masks."""

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
        """How masks are made."""
        from hardpatch.methods.mining import Masking

        method = self.method
        unit = 1 if method.mask_unit is None else method.mask_unit // self.model.patch_size
        return Masking(self.grid, method.mask, method.mining, unit, method.secondary_ratio, self.fast.prediction_ratio)

    @property
    def has_predictor(self) -> bool:
        """Whether there is a loss predictor."""
        return self.method.predicting_loss != "none"

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
        """Optimizer steps over a set of ``images``; at least one."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0.0) * images / self.batch_size))
