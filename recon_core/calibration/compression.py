"""SVD coil compression (Buehrer et al., Magn Reson Med 2007;57:1131)."""

from __future__ import annotations

import torch
from torch import Tensor


def compression_matrix(samples: Tensor, coils: int) -> Tensor:
    """Rows of the virtual coils of largest energy.

    Args:
        samples: complex64 ``[coil, ...]``, whitened.
        coils: virtual coils wanted; at most as many as there are.

    Returns:
        complex64 ``[virtual, coil]`` with orthonormal rows, so that white noise stays white.
    """
    flat = samples.flatten(1).to(torch.complex128)
    # The eigenvectors of the small Gram matrix are the left singular vectors.
    _, vectors = torch.linalg.eigh(flat @ flat.conj().T)
    chosen = vectors.flip(-1)[:, : min(coils, samples.shape[0])]
    return chosen.conj().T.to(torch.complex64).contiguous()


def compress(samples: Tensor, matrix: Tensor) -> Tensor:
    """Samples ``[coil, ...]`` in the virtual coils of ``matrix`` ``[virtual, coil]``."""
    return (matrix.to(samples.device) @ samples.flatten(1)).reshape(matrix.shape[0], *samples.shape[1:])
