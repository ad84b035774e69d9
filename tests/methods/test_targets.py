import torch
from torch import Tensor
from torch.testing import assert_close

from hardpatch.methods import targets
from hardpatch.methods.base import Targets
from hardpatch.methods.hpm import HPM
from hardpatch.methods.masking import random_mask
from hardpatch.methods.teacher import Teacher
from hardpatch.patches import to_indices
from tests.small import small_hpm, small_mae

PIXELS = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MASK = to_indices(random_mask(torch.rand(3, 24, generator=torch.Generator().manual_seed(1)), 18))


def test_teacher_features_are_of_the_whole_image_after_the_norm() -> None:
    model = small_hpm()
    teacher, images = Teacher(model), model.normalize(PIXELS)
    target = targets.TeacherFeatures()(PIXELS, teacher(images), MASK)
    with torch.no_grad():
        latent = model.host.encoder(images)
    for image in range(3):
        assert_close(target[image], latent[image, 1 + MASK.masked[image]])
    assert not target.requires_grad


def test_visual_tokens_of_the_masked_patches() -> None:
    class Brightness:
        """Token of a patch: its mean gray value."""

        vocabulary = 256

        def tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(pixels.float().mean(1), grid).long().flatten(1)

    tokens = targets.VisualTokens(Brightness(), (4, 6))(PIXELS, None, MASK)
    assert tokens.shape == (3, 18)
    row, column = divmod(int(MASK.masked[1, 5]), 6)
    patch = PIXELS[1, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].float()
    assert tokens[1, 5] == int(patch.mean())


def test_frozen_features_of_the_masked_patches() -> None:
    from hardpatch.models.frozen import frozen_teacher

    network = frozen_teacher("vit_tiny_patch16_224", grid=(4, 6), pretrained=False)
    target = targets.FrozenFeatures(network)(PIXELS, None, MASK)
    assert target.shape == (3, 18, network.width)
    assert_close(target[2, 3], network(PIXELS)[2, MASK.masked[2, 3]])


def test_given_targets_replace_those_of_the_host() -> None:
    model = HPM(small_mae(), None)
    images = model.normalize(PIXELS)
    own = model(images, MASK)
    patches = targets.pixels(images, 4).gather(1, MASK.masked.unsqueeze(-1).expand(-1, -1, 48))
    assert torch.equal(model(images, MASK, Targets(patches)).loss, own.loss)
    assert not torch.equal(model(images, MASK, Targets(patches + 1)).loss, own.loss)
