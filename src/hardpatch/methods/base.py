"""The interface between a masked image model, the host, and Hard Patches Mining."""

from typing import NamedTuple

from torch import Tensor, nn

from hardpatch.methods.teacher import TeacherOutput
from hardpatch.models.decoder import DecoderEmbed, Tokens
from hardpatch.models.encoder import Encoder
from hardpatch.patches import PatchIndices, gather


class Views(NamedTuple):
    """Further crops of the images of a batch, for hosts that compare crops (L local and G global crops an image)."""

    local: Tensor | None
    """normalized small crops ``[L * B, C, h, w]``: the first crop of all images, then the second of all images, ..."""
    order: Tensor
    """int64 ``[G * B]``: indices that sort the shuffled global crops in the same way, crop by crop"""


class Targets(NamedTuple):
    """Targets of a batch, without gradient."""

    patches: Tensor
    """targets of the masked patches, ``[B, M, ...]``"""
    images: Tensor | None = None
    """targets of the class tokens, ``[B, K]``, for hosts with a loss over whole images"""


class Host(nn.Module):
    """A masked image model that is given its mask and returns one loss for each masked patch.

    A host sets ``encoder`` and defines ``decoder_tokens``, ``reconstruct``, ``target`` and ``reconstruction_loss``. The
    other methods are for hosts that do more than reconstruct patches; by default they do nothing. Shapes: ``images
    [B, C, H, W]`` are normalized; a mask is bool ``[B, N]``, True = masked, or its
    :class:`~hardpatch.patches.PatchIndices`.
    """

    encoder: Encoder
    reconstruction_only: tuple[str, ...] = ()
    """Names of the submodules that the teacher does not need."""
    masked_share: float = 1.0
    """Share of the images in a batch that is masked; the encoder sees the others whole."""
    uses_teacher: bool = False
    """The targets come from the teacher, see :meth:`teacher_targets`."""
    has_token_metrics: bool = False
    """:meth:`token_metrics` returns metrics."""
    running_buffers: tuple[str, ...] = ()
    """Names of buffers that training steps change without a gradient."""
    no_weight_decay: tuple[str, ...] = ()
    """Names of parameters without weight decay, beside biases and norms."""

    def encode(self, images: Tensor, mask: Tensor | PatchIndices | None = None) -> Tensor:
        """Encode images: ``[B, 1 + V, D]``, or ``[B, 1 + N, D]`` if masked patches are tokens too; class token first.

        Without a mask all patches are visible.
        """
        return self.encoder(images, mask)

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """Embed the latent as input of the loss predictor; :meth:`reconstruct` receives the same tokens.

        Without a mask every patch is queried. ``grid`` is (rows, columns) of patches; None is that of the image size
        the model was built for.
        """
        raise NotImplementedError

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        """Predict the targets of the masked patches, ``[B, M, T]``, from the latent or from the tokens."""
        raise NotImplementedError

    def target(self, images: Tensor) -> Tensor:
        """Compute the target of every patch, ``[B, N, T]``, without gradient.

        Raises:
            ValueError: if the targets of this host come from another network.
        """
        raise ValueError(f"target: {type(self).__name__} has no target of its own, it comes from another network")

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each masked patch, unreduced ``[B, M]``, from prediction and target ``[B, M, ...]``."""
        raise NotImplementedError

    def teacher_targets(
        self, output: TeacherOutput, mask: PatchIndices, progress: float, *, update: bool = True
    ) -> Targets | None:
        """Compute the targets from the teacher's output; called on the teacher's copy of the host.

        Args:
            output: of the teacher, on whole images.
            mask: which patches need a target.
            progress: share of the training that is done, in [0, 1].
            update: move the host's running statistics.

        Returns:
            The targets, or None if they do not come from the teacher.
        """
        return None

    def image_loss(self, latent: Tensor, targets: Targets, views: Views | None) -> Tensor | None:
        """Compute a loss over whole images from the student's latent ``[B, 1 + V, D]``: a scalar, or None for none."""
        return None

    def token_metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Measure how evenly the tokens of a batch are used: scalars for the log, by name."""
        return {}

    def scheduled_metrics(self, progress: float) -> dict[str, float]:
        """Values for the log that depend on ``progress`` in [0, 1] alone, by name."""
        return {}

    def before_update(self, progress: float) -> None:
        """Change gradients before an optimizer step, at ``progress`` in [0, 1]."""


class TokenHost(Host):
    """A host whose encoder sees masked patches as mask tokens, so that its decoder is a head on the encoder's output.

    Args:
        encoder: with mask tokens.
        head: from ``[..., D]`` to the prediction for a patch.
        decoder_width: width of the loss predictor's tokens; None without a predictor.
    """

    reconstruction_only: tuple[str, ...] = ("head",)

    def __init__(self, encoder: Encoder, head: nn.Module, decoder_width: int | None = None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.decoder_embed = None
        if decoder_width is not None:
            self.decoder_embed = DecoderEmbed(
                latent_width=encoder.width, width=decoder_width, grid=encoder.grid, mask_token=False
            )

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """Embed all patches of the latent for the loss predictor; the masked ones are the queries."""
        if self.decoder_embed is None:  # there is no predictor to read them
            return Tokens(latent, slice(0))
        return self.decoder_embed(latent, mask, grid)

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        """Apply the head to the mask tokens after the encoder, ``[B, M, T]``."""
        return self.head(gather(latent[:, 1:], mask.masked))
