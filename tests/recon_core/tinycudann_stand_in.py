"""What tinycudann's ``Encoding`` computes for a HashGrid, in plain loops: signature, parameter layout and numbers.

Written from tinycudann's documentation and header, independently of ``recon_core.encodings``; float32 where the GPU kernel is float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FACTORS = [1, 2654435761, 805459861, 3674653429]
F = np.float32


def next_multiple(value: int, of: int) -> int:
    return (value + of - 1) // of * of


class Encoding(nn.Module):
    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if encoding_config["otype"] != "HashGrid" or encoding_config.get("interpolation", "Linear") != "Linear":
            raise RuntimeError(f"not stood in for: {encoding_config}")
        if dtype is not torch.float32:
            raise RuntimeError("the stand-in computes in float32")
        if encoding_config["n_features_per_level"] not in (1, 2, 4, 8):
            raise RuntimeError("GridEncoding: n_features_per_level must be 1, 2, 4, or 8.")
        self.n_input_dims = n_input_dims
        self.encoding_config = encoding_config
        self.dtype = dtype
        self.seed = seed
        self.levels = encoding_config["n_levels"]
        self.features = encoding_config["n_features_per_level"]
        self.n_output_dims = self.levels * self.features
        self.offset_table = [0]
        for level in range(self.levels):
            resolution = self.resolution(level)
            size = next_multiple(resolution**n_input_dims, 8)
            self.offset_table.append(self.offset_table[-1] + min(size, 2 ** encoding_config["log2_hashmap_size"]))
        generator = torch.Generator().manual_seed(seed)
        self.params = nn.Parameter(1e-4 * (2 * torch.rand(self.offset_table[-1] * self.features, generator=generator) - 1))

    def scale(self, level: int) -> np.float32:
        log2_per_level_scale = np.log2(F(self.encoding_config["per_level_scale"]))
        return F(np.exp2(F(level) * log2_per_level_scale)) * F(self.encoding_config["base_resolution"]) - F(1)

    def resolution(self, level: int) -> int:
        return int(np.ceil(self.scale(level))) + 1

    def index(self, level: int, cell: list[int]) -> int:
        """First parameter of the entry of a grid point."""
        table = self.offset_table[level + 1] - self.offset_table[level]
        stride, index = 1, 0
        for k in cell:
            index += k * stride
            stride *= self.resolution(level)
        if table < stride:
            index = 0
            for k, factor in zip(cell, FACTORS, strict=False):
                index ^= k * factor % 2**32
        return (self.offset_table[level] + index % table) * self.features

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        rows = []
        for point in x.tolist():
            row = []
            for level in range(self.levels):
                position = [F(self.scale(level) * F(p)) + F(0.5) for p in point]
                cell = [int(np.floor(p)) for p in position]
                fraction = [float(p) - c for p, c in zip(position, cell, strict=True)]
                total = torch.zeros(self.features)
                for corner in range(2**self.n_input_dims):
                    weight, local = 1.0, list(cell)
                    for axis in range(self.n_input_dims):
                        if corner >> axis & 1:
                            weight *= fraction[axis]
                            local[axis] += 1
                        else:
                            weight *= 1 - fraction[axis]
                    first = self.index(level, local)
                    total = total + weight * self.params[first : first + self.features]
                row.append(total)
            rows.append(torch.cat(row))
        return torch.stack(rows)
