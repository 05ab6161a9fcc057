"""The generator of TD-DIP: a latent vector to an image through an MLP and a convolutional network (Yoo et al., IEEE TMI 2021;40:3337)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recon_core.fields.seeded import seeded

_SMALLEST = 6


class ImageGenerator(nn.Module):
    """Latent → MLP → small image → convolutions and up-samplings by two → real and imaginary part.

    Up-samplings are as many as leave a small image of at least 6 pixels an axis, at most ``upsamplings``.
    Normalisation is over the pixels of one image: the paper's batch normalisation with one frame a step, and no frame depends on another.

    Args:
        shape: image shape ``(ny, nx)``.
        latent: dimension of the latent vector.
        mapped: hidden width of the MLP.
        channels: of the convolutions.
        upsamplings: at most so many.
        seed: of all weights.
    """

    def __init__(self, shape: tuple[int, ...], latent: int, mapped: int, channels: int, upsamplings: int, seed: int) -> None:
        super().__init__()
        self.shape = shape
        number = max(0, min(upsamplings, math.floor(math.log2(min(shape) / _SMALLEST)))) if min(shape) >= _SMALLEST else 0
        self.small = tuple(math.ceil(n / 2**number) for n in shape)
        with seeded(seed):
            self.mapping = nn.Sequential(nn.Linear(latent, mapped), nn.ReLU(), nn.Linear(mapped, math.prod(self.small)))
            layers: list[nn.Module] = [*_convolution(1, channels)]
            for _ in range(number):
                layers += [
                    nn.Upsample(scale_factor=2, mode="nearest"),
                    *_convolution(channels, channels),
                    *_convolution(channels, channels),
                ]
            self.convolutions = nn.Sequential(*layers, nn.Conv2d(channels, 2, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        """Images complex64 ``[frame, y, x]`` of latents ``[frame, latent]``."""
        images = self.convolutions(self.mapping(latents).reshape(-1, 1, *self.small))
        edges = [(have - want) // 2 for have, want in zip(images.shape[2:], self.shape, strict=True)]
        cropped = images[:, :, edges[0] : edges[0] + self.shape[0], edges[1] : edges[1] + self.shape[1]]
        return torch.view_as_complex(cropped.permute(0, 2, 3, 1).contiguous())


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.InstanceNorm2d(outputs, affine=True), nn.ReLU()
