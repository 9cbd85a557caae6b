"""A plain convolutional network for grey images from 8 x 8 up, small enough to train in seconds on a CPU."""

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three convolutions of width, 2 width and 4 width channels, each at half the resolution of the one before.

    Args:
        width: Channels of the first convolution; 16 makes about 26 000 parameters.
        batch_norm: Batch normalisation after each convolution; without it the convolutions have a bias.
        num_classes: Length of the output.
        in_channels: Channels of the input.
    """

    def __init__(self, width: int = 16, batch_norm: bool = True, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(in_channels, width, batch_norm),
            nn.MaxPool2d(2),
            _block(width, 2 * width, batch_norm),
            nn.MaxPool2d(2),
            _block(2 * width, 4 * width, batch_norm),
            nn.AdaptiveMaxPool2d(2),
        )
        self.classifier = nn.Linear(4 * width * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch x num_classes) of images (batch x in_channels x height x width)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _block(in_channels: int, out_channels: int, batch_norm: bool) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not batch_norm)
    normalisation = [nn.BatchNorm2d(out_channels)] if batch_norm else []
    return nn.Sequential(convolution, *normalisation, nn.ReLU(inplace=True))
