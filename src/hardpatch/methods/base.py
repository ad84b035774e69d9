"""The interface between a masked image model, the host, and Hard Patches Mining."""

from typing import NamedTuple

from torch import Tensor, nn

from hardpatch.methods.teacher import TeacherOutput
from hardpatch.models.decoder import DecoderEmbed, Tokens
from hardpatch.models.encoder import Encoder
from hardpatch.patches import PatchIndices, gather


class Views(NamedTuple):
    """Crops of the same images beside those that the student is given, for hosts that compare crops."""

    local: Tensor | None
    """normalized small crops ``[L * B, C, h, w]``, all images of the first, then of the second..."""
    order: Tensor
    """int64 ``[G * B]``: puts the shuffled global crops in the order of ``local``, view by view"""


class Targets(NamedTuple):
    """Targets of a batch, without gradient."""

    patches: Tensor
    """of the masked patches, ``[B, M, ...]``"""
    images: Tensor | None = None
    """of the class tokens, ``[B, K]``, for hosts that have a loss over whole images"""


class Host(nn.Module):
    """A masked image model that takes its mask from outside and has a loss for every single patch.

    A host sets ``encoder`` and defines the first five methods; the others are for hosts that do more than reconstruct
    patches, and do nothing by default. Shapes: ``images [B, C, H, W]`` normalized; a mask is bool ``[B, N]``,
    True = masked, or its :class:`~hardpatch.patches.PatchIndices`.
    """

    encoder: Encoder
    reconstruction_only: tuple[str, ...] = ()
    """Names of the submodules that a teacher does without."""
    masked_share: float = 1.0
    """Share of the images in a batch that is masked; the others are seen whole."""
    uses_teacher: bool = False
    """The targets come from the teacher, see :meth:`teacher_targets`."""
    monitors_tokens: bool = False
    """:meth:`token_metrics` has something to say."""

    def encode(self, images: Tensor, mask: Tensor | PatchIndices | None = None) -> Tensor:
        """Latent ``[B, 1 + V, D]``, or ``[B, 1 + N, D]`` where masked patches are tokens too; class token first."""
        return self.encoder(images, mask)

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """Input of the loss predictor, for a ``grid`` of patches; :meth:`reconstruct` is given it as well."""
        raise NotImplementedError

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        """Predictions ``[B, M, T]`` for the masked patches, from whichever of latent and tokens the host needs."""
        raise NotImplementedError

    def target(self, images: Tensor) -> Tensor:
        """Target of every patch, ``[B, N, T]``, without gradient; unused where it comes from another network."""
        raise ValueError(f"target: {type(self).__name__} has no target of its own, it comes from another network")

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of each masked patch, unreduced ``[B, M]``, from prediction and target ``[B, M, ...]``."""
        raise NotImplementedError

    def teacher_targets(
        self, output: TeacherOutput, mask: PatchIndices, progress: float, *, update: bool = True
    ) -> Targets | None:
        """Targets from what the teacher sees, at ``progress`` in [0, 1]; called on the teacher's copy of the host.

        Without ``update`` the host's running statistics stay as they are.
        """
        return None

    def image_loss(self, latent: Tensor, targets: Targets, views: Views | None) -> Tensor | None:
        """A loss over whole images, from the student's latent ``[B, 1 + V, D]``: a scalar, or None for none."""
        return None

    def token_metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Scalars for the log on how the tokens of a batch are used."""
        return {}

    def scheduled(self, progress: float) -> dict[str, float]:
        """Values for the log that change with ``progress`` in [0, 1]."""
        return {}

    def before_update(self, progress: float) -> None:
        """Change gradients before an optimizer step, at ``progress`` in [0, 1]."""


class TokenHost(Host):
    """A host whose encoder sees masked patches as mask tokens, so that a head on its output is enough.

    Args:
        encoder: with mask tokens.
        head: from ``[..., D]`` to a prediction for a patch.
        decoder_width: of the loss predictor's tokens; None where there is no predictor.
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
        if self.decoder_embed is None:  # there is no predictor that would read them
            return Tokens(latent, slice(0))
        return self.decoder_embed(latent, mask, grid)

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        return self.head(gather(latent[:, 1:], mask.masked))
