"""Features of images from fixed extractors: gradients at several scales, or a pretrained MDSR (Lim et al., EDSR, CVPRW 2017)."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from recon_core.errors import DataError, MissingPartError

SCALES = (0.5, 1.0, 2.0, 4.0)
_RGB = 3
_RESIDUAL = re.compile(r"body\.(\d+)\.body\.0\.weight")


class Extractor(Protocol):
    """What makes features of magnitude images."""

    channels: int

    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 ``[frame, channel, y, x]`` of images float32 ``[frame, y, x]``, 0 … about 1."""
        ...


class MultiScaleGradients(nn.Module):
    """The image and its two derivatives after Gaussian smoothing at a few widths (pixels); nothing is learned.

    Derivatives are multiplied by the width, so that an edge gives the same at every scale.

    Attributes:
        channels: three a scale.
    """

    def __init__(self, scales: tuple[float, ...] = SCALES) -> None:
        super().__init__()
        self.scales = scales
        self.channels = 3 * len(scales)

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`Extractor`."""
        found = []
        for scale in self.scales:
            smooth, slope = (kernel.to(images) for kernel in gaussian_kernels(scale))
            found += [_separable(images, a, b) for a, b in ((smooth, smooth), (slope * scale, smooth), (smooth, slope * scale))]
        return torch.stack(found, dim=1)


def gaussian_kernels(sigma: float) -> tuple[Tensor, Tensor]:
    """A Gaussian of unit sum and its derivative (unit response to a slope of one a pixel), to three standard deviations."""
    reach = max(1, math.ceil(3 * sigma))
    grid = torch.arange(-reach, reach + 1, dtype=torch.float32)
    smooth = torch.exp(-0.5 * (grid / sigma) ** 2)
    slope = grid * smooth
    return smooth / smooth.sum(), slope / (slope * grid).sum()


def _separable(images: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
    """Correlation of images ``[frame, y, x]`` with a kernel on every axis; edges repeated."""
    pad_y, pad_x = len(along_y) // 2, len(along_x) // 2
    padded = nn.functional.pad(images[:, None], (pad_x, pad_x, pad_y, pad_y), mode="replicate")
    rows = nn.functional.conv2d(padded, along_y[None, None, :, None])
    return nn.functional.conv2d(rows, along_x[None, None, None, :])[:, 0]


class _Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(channels, channels, size, padding=size // 2) for _ in range(2)]
        self.body = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Mdsr(nn.Module):
    """The trunk of MDSR before its up-samplers, with the public parameter names (``head``, ``pre_process``, ``body``, ``sub_mean``).

    Args:
        channels: of the trunk.
        blocks: residual blocks of the body.
        branches: scale-specific branches before the body.
    """

    def __init__(self, channels: int, blocks: int, branches: int) -> None:
        super().__init__()
        self.channels = channels
        self.sub_mean = nn.Conv2d(_RGB, _RGB, 1)
        self.head = nn.Sequential(nn.Conv2d(_RGB, channels, 3, padding=1))
        self.pre_process = nn.ModuleList(nn.Sequential(_Residual(channels, 5), _Residual(channels, 5)) for _ in range(branches))
        self.body = nn.Sequential(*[_Residual(channels, 3) for _ in range(blocks)], nn.Conv2d(channels, channels, 3, padding=1))
        self.range = 255.0

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`Extractor`; the branch of the smallest scale."""
        coloured = self.range * images.clamp(0, 1)[:, None].expand(-1, _RGB, -1, -1)
        x = self.pre_process[0](self.head(self.sub_mean(coloured)))
        # The trunk works on grey values of 0 … 255; the field takes features of order one.
        features: Tensor = x + self.body(x)
        return features / self.range

    @classmethod
    def load(cls, path: str | Path) -> Mdsr:
        """The network of a weights file; its sizes are read off the parameters.

        Raises:
            MissingPartError: no such file.
            DataError: not a state dict of this layout.
        """
        file = Path(path)
        if not file.is_file():
            raise MissingPartError("weights_file", f"{file} does not exist", "Give a file of MDSR weights, or extractor=gradients.")
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, IndexError, KeyError, pickle.UnpicklingError) as error:
            raise DataError("weights_file", f"{file} cannot be read ({type(error).__name__})", _LAYOUT) from error
        return cls.from_state_dict(state)

    @classmethod
    def from_state_dict(cls, state: object) -> Mdsr:
        """The network of a state dict.

        Raises:
            DataError: a parameter is missing or of another shape.
        """
        if not isinstance(state, dict) or not isinstance(state.get("head.0.weight"), Tensor):
            raise DataError("weights_file", "no parameter 'head.0.weight'", _LAYOUT)
        wanted = ("sub_mean.", "head.", "pre_process.", "body.")
        own = {name: value for name, value in state.items() if name.startswith(wanted)}
        blocks = len({match[1] for name in own if (match := _RESIDUAL.fullmatch(name))})
        branches = len({name.split(".")[1] for name in own if name.startswith("pre_process.")})
        if not branches:
            raise DataError("weights_file", "no 'pre_process' branch: EDSR's layout, not MDSR's", _LAYOUT)
        network = cls(own["head.0.weight"].shape[0], blocks, branches)
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise DataError("weights_file", str(error).replace("\n", " "), _LAYOUT) from error
        # Files for grey values of 0 … 1 shift by less than one.
        network.range = 255.0 if float(own["sub_mean.bias"].abs().max()) > 1 else 1.0
        return network.requires_grad_(False).eval()


_LAYOUT = "Give a state dict in the layout of the public MDSR (head, pre_process, body, sub_mean), saved by torch.save."
