"""tinycudann's hash encoding behind the interface of :class:`~recon_core.encodings.hash_grid.HashGrid`, chosen by name.

tinycudann (https://github.com/NVlabs/tiny-cuda-nn) is CUDA only and not on PyPI. Its parameter vector has HashGrid's order: level by level,
entry by entry, feature by feature; so weights map both ways without loss.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from recon_core.encodings.hash_grid import HashGrid, HashGridLayout, HashGridPlan
from recon_core.errors import DataError, MissingPartError, SettingError

MODULE = "tinycudann"
FEATURES = (1, 2, 4, 8)
_CURE = (
    "Use encoding=torch (the same numbers), or install it: "
    "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch' on a machine with CUDA."
)


def missing() -> str:
    """Why tinycudann cannot be used here, with the cure; "" where it can."""
    if importlib.util.find_spec(MODULE) is None:
        return f"not installed. {_CURE}"
    return "" if torch.cuda.is_available() else "no CUDA device. Use encoding=torch (the same numbers)."


def _library() -> Any:
    # tinycudann raises EnvironmentError (OSError) on import where CUDA, or a build for the GPU at hand, is absent.
    try:
        return importlib.import_module(MODULE)
    except (ImportError, OSError) as error:
        raise MissingPartError("encoding", f"tinycudann cannot be used ({error})", _CURE) from error


def encoding_config(layout: HashGridLayout) -> dict[str, Any]:
    """The layout in tinycudann's words.

    Raises:
        SettingError: a number of features that tinycudann does not have.
    """
    if layout.features not in FEATURES:
        raise SettingError("features", f"{layout.features} a level", "tinycudann has 1, 2, 4 or 8; or use encoding=torch.")
    return {
        "otype": "HashGrid",
        "n_levels": layout.levels,
        "n_features_per_level": layout.features,
        "log2_hashmap_size": layout.log2_table,
        "base_resolution": layout.base,
        "per_level_scale": layout.growth,
        "interpolation": "Linear",
    }


def to_tinycudann(grid: HashGrid) -> Tensor:
    """A grid's weights as tinycudann's flat float32 ``params``."""
    return grid.params.detach().reshape(-1).clone()


def from_tinycudann(params: Tensor, layout: HashGridLayout) -> HashGrid:
    """A grid with the weights of a tinycudann encoding of the same layout.

    Args:
        params: float ``[parameter]``, flat.
        layout: the encoding's.

    Raises:
        DataError: the number of parameters is not the layout's.
    """
    _expect_size(params, layout)
    grid = HashGrid(layout).to(params.device)
    with torch.no_grad():
        grid.params.copy_(params.detach().reshape(grid.params.shape))
    return grid


def _expect_size(params: Tensor, layout: HashGridLayout) -> None:
    wanted = layout.offsets()[-1] * layout.features
    if params.numel() != wanted:
        raise DataError("tinycudann params", f"{params.numel()} parameters", f"Give an encoding of the same layout ({wanted} parameters).")


class TinyCudaGrid(nn.Module):
    """Learnable features of coordinates in [0, 1], computed by tinycudann; same start and same numbers as HashGrid.

    Args:
        layout: levels, features and tables.
        scale: parameters start uniform in ±scale.
        seed: of the start.

    Attributes:
        native: ``tinycudann.Encoding`` in float32.
        out_dim: levels × features.

    Raises:
        MissingPartError: tinycudann is absent or does not run here.
        SettingError: a number of features that tinycudann does not have.
        DataError: this tinycudann lays its parameters out differently.
    """

    def __init__(self, layout: HashGridLayout, scale: float = 1e-4, seed: int = 0) -> None:
        super().__init__()
        config = encoding_config(layout)
        self.layout = layout
        self.native = _library().Encoding(layout.dim, config, dtype=torch.float32)
        self.out_dim = layout.levels * layout.features
        _expect_size(self.native.params, layout)
        self._home = self.native.params.device.type
        with torch.no_grad():
            self.native.params.copy_(to_tinycudann(HashGrid(layout, scale, seed)))

    def plan(self, coordinates: Tensor) -> Tensor:
        """Coordinates ``[point, axis]`` in [0, 1] as tinycudann takes them.

        Raises:
            MissingPartError: they lie on a device on which tinycudann does not compute.
        """
        if coordinates.device.type != self._home:
            raise MissingPartError(
                "encoding", f"tinycudann computes on {self._home}, the fit on {coordinates.device.type}", f"Use device={self._home}."
            )
        return coordinates.to(torch.float32).contiguous()

    def forward(self, points: HashGridPlan | Tensor, active: int | None = None) -> Tensor:
        """Features ``[point, level · feature]`` at coordinates ``[point, axis]`` in [0, 1].

        Args:
            points: of :meth:`plan`.
            active: levels that are switched on (coarse to fine); the others give zero and get no gradient.
        """
        assert isinstance(points, Tensor)
        features: Tensor = self.native(points)
        on = self.out_dim if active is None else min(active, self.layout.levels) * self.layout.features
        return nn.functional.pad(features[:, :on], (0, self.out_dim - on))
