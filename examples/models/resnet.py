"""The batch-normalised residual network that He et al. use for CIFAR-10 (section 4.2 of arXiv:1512.03385), for small
grey images; its shortcuts have no parameters (their option A)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class ResNet(nn.Module):
    """Three stages of (depth - 2) / 6 residual blocks with width, 2 width and 4 width channels.

    Args:
        depth: Layers, 6 n + 2: at width 16, depth 8 has 75 000 parameters, 14 has 172 000 and 20 has 269 000.
        width: Channels of the first stage.
        stem_stride: Of the first convolution: 2 suits 28 x 28 pixels on a CPU, 1 is the paper's and suits 8 x 8.
        num_classes: Length of the output.
        in_channels: Channels of the input.

    Raises:
        ValueError: `depth` is not 6 n + 2.
    """

    def __init__(
        self, depth: int = 14, width: int = 16, stem_stride: int = 2, num_classes: int = 10, in_channels: int = 1
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth={depth} must be 6 n + 2 with n at least 1: 8, 14, 20, ...")
        blocks = (depth - 2) // 6
        self.stem = nn.Conv2d(in_channels, width, 3, stem_stride, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            _stage(width, width, blocks, stride=1),
            _stage(width, 2 * width, blocks, stride=2),
            _stage(2 * width, 4 * width, blocks, stride=2),
        )
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch x num_classes) of images (batch x in_channels x height x width)."""
        # Channels last takes a quarter less time on a CPU. Not before the stem: with one input channel its gradient
        # would have other strides than its weight, of which DistributedDataParallel warns.
        maps = self.stem(images).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.classifier(self.stages(F.relu(self.stem_bn(maps))).mean(dim=(2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + residual)

    def shortcut(self, x: Tensor) -> Tensor:
        """Every stride-th pixel, zeros for the new channels."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
