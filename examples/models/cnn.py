"""A plain convolutional network for small grey images, sized to train in seconds an epoch on two CPU cores."""

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Four convolutions with width, 2 width, 3 width and 4 width channels; the resolution falls to 2 x 2.

    Args:
        width: Channels of the first convolution; 16 makes about 50 000 parameters.
        batch_norm: Batch normalisation after each convolution; without it the convolutions have a bias.
        stem_stride: Of the first convolution: 2 suits 28 x 28 pixels, 1 suits 8 x 8.
        num_classes: Length of the output.
        in_channels: Channels of the input.
    """

    def __init__(
        self,
        width: int = 16,
        batch_norm: bool = True,
        stem_stride: int = 2,
        num_classes: int = 10,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.stem = _block(in_channels, width, batch_norm, kernel_size=5, stride=stem_stride)
        self.features = nn.Sequential(
            _block(width, 2 * width, batch_norm, pool=True),
            _block(2 * width, 3 * width, batch_norm, pool=True),
            _block(3 * width, 4 * width, batch_norm),
            nn.AdaptiveMaxPool2d(2),
        )
        self.classifier = nn.Linear(4 * width * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch x num_classes) of images (batch x in_channels x height x width)."""
        images = images.to(memory_format=torch.channels_last)  # a third less time on a CPU, the same numbers
        logits: Tensor = self.classifier(self.features(self.stem(images)).flatten(1))
        return logits


def _block(
    in_channels: int, out_channels: int, batch_norm: bool, kernel_size: int = 3, stride: int = 1, pool: bool = False
) -> nn.Sequential:
    """Pooling comes before the normalisation, which then has a quarter of the work."""
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=not batch_norm
    )
    pooling = [nn.MaxPool2d(2)] if pool else []
    normalisation = [nn.BatchNorm2d(out_channels)] if batch_norm else []
    return nn.Sequential(convolution, *pooling, *normalisation, nn.ReLU(inplace=True))
