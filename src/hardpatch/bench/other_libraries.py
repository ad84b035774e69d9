"""MAE of other libraries, as modules from normalized images ``[B, C, H, W]`` to the loss."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from hardpatch.configuration.sections import RunConfig


class EncoderShape(NamedTuple):
    """Size of a ViT encoder."""

    width: int
    depth: int
    heads: int


def transformers_mae(run: RunConfig, image_size: int) -> nn.Module:
    """Build Hugging Face's ViTMAEForPreTraining for square images of ``image_size`` pixels."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    shape = EncoderShape(**run.encoder_shape)
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}
    settings = ViTMAEConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        image_size=image_size,
        patch_size=run.model.patch_size,
        num_channels=run.data.channel_count,
        decoder_hidden_size=run.model.decoder_width,
        decoder_num_hidden_layers=run.model.decoder_depth,
        decoder_num_attention_heads=run.model.decoder_heads,
        decoder_intermediate_size=4 * run.model.decoder_width,
        mask_ratio=run.method.mask_ratio,
        norm_pix_loss=run.method.target == "normalized_pixels",
        **attention,
    )

    class TransformersMAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = ViTMAEForPreTraining(settings).train()

        def forward(self, images: Tensor) -> Tensor:
            return self.network(pixel_values=images).loss

    return TransformersMAE()


def lightly_mae(run: RunConfig, image_size: int) -> nn.Module:
    """Assemble lightly's parts as in the MAE example of its documentation, for square images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly.models import utils
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    shape, model, channels = EncoderShape(**run.encoder_shape), run.model, run.data.channel_count

    class LightlyMAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vit = VisionTransformer(
                img_size=image_size,
                patch_size=model.patch_size,
                in_chans=channels,
                embed_dim=shape.width,
                depth=shape.depth,
                num_heads=shape.heads,
                num_classes=0,
            )
            self.backbone = MaskedVisionTransformerTIMM(vit=vit)
            self.embed = nn.Linear(shape.width, model.decoder_width)
            self.decoder = MaskedVisionTransformerDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                embed_dim=model.decoder_width,
                depth=model.decoder_depth,
                num_heads=model.decoder_heads,
            )
            self.predict = nn.Linear(model.decoder_width, model.patch_size**2 * channels)
            # The encoder drops masked patches, so its mask token has no gradient.
            self.backbone.mask_token.requires_grad_(False)

        def forward(self, images: Tensor) -> Tensor:
            size = len(images), self.backbone.sequence_length
            visible, masked = utils.random_token_mask(size, mask_ratio=run.method.mask_ratio, device=images.device)
            latent = self.embed(self.backbone.encode(images, idx_keep=visible))
            tokens = utils.repeat_token(self.decoder.mask_token, size)
            tokens = utils.set_at_index(tokens, visible, latent.type_as(tokens))
            decoded = self.decoder.decode(self.decoder.add_pos_embed(tokens))
            target = utils.get_at_index(utils.patchify(images, model.patch_size), masked - 1)
            return nn.functional.mse_loss(self.predict(utils.get_at_index(decoded, masked)), target)

    return LightlyMAE()


OTHER_LIBRARIES: dict[str, Callable[[RunConfig, int], nn.Module]] = {
    "transformers": transformers_mae,
    "lightly": lightly_mae,
}
