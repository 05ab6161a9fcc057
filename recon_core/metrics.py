"""Scores of an image series against a simulated truth (``docs/conventions.md``, "Scores").

Published PSNRs differ in scaling and peak. Here: one phase a pixel for the whole series, because coil maps estimated
from data leave a smooth phase free; one real least-squares scale; peak = largest magnitude of the truth. A series
without phase (real, not negative) is scored against the truth's magnitude.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recon_core.errors import DataError, MissingPartError

Array = NDArray[Any]
_SSIM_WINDOW = 7
_MOST_DB = 200.0


def align(images: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    """Remove what a reconstruction cannot know: a phase a pixel and one scale.

    Args:
        images: complex ``[frame, (z,) y, x]``, or real for a series of magnitudes.
        truth: complex, same shape.

    Returns:
        The aligned images and the truth in the same form: both complex, or both magnitudes.

    Raises:
        DataError: shapes differ, or an image is not finite.
    """
    recon, reference = np.asarray(images), np.asarray(truth)
    if recon.shape != reference.shape or recon.ndim not in (3, 4):
        raise DataError("images", f"shape {recon.shape}, truth {reference.shape}", "Score a series of the truth's frames and matrix.")
    if not np.isfinite(recon).all():
        raise DataError("images", "NaN or Inf", "Repair the reconstruction.")
    if np.iscomplexobj(recon):
        recon, reference = recon.astype(np.complex128), reference.astype(np.complex128)
        recon = recon * np.exp(-1j * np.angle((recon * reference.conj()).sum(axis=0)))
    else:
        recon, reference = recon.astype(np.float64), np.abs(reference).astype(np.float64)
    energy = float(np.vdot(recon, recon).real)
    scale = float(np.vdot(recon, reference).real) / energy if energy else 0.0
    return scale * recon, reference


def psnr_db(images: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of every frame, dB; peak = the truth's largest magnitude. At most 200 dB, so that it stays finite.

    Args:
        images: aligned series ``[frame, (z,) y, x]``.
        truth: same shape and form.
    """
    recon, reference = np.asarray(images), np.asarray(truth)
    error = (np.abs(recon - reference) ** 2).reshape(len(reference), -1).mean(axis=1)
    peak = float(np.abs(reference).max()) ** 2
    return 10 * np.log10(peak / np.maximum(error, peak * 10 ** (-_MOST_DB / 10)))


def ssim(images: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Structural similarity of every frame's magnitude, with the truth's largest magnitude as range.

    Args:
        images: aligned series ``[frame, (z,) y, x]``.
        truth: same shape and form.

    Raises:
        MissingPartError: scikit-image is absent.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise MissingPartError("ssim", "scikit-image is not installed", "pip install 'gadgetron-inr[pictures]'") from error
    recon, reference = np.abs(np.asarray(images)), np.abs(np.asarray(truth))
    smallest = min(reference.shape[1:])
    if smallest < 3:
        raise DataError("images", f"{reference.shape[1:]} pixels", "SSIM needs at least 3 pixels an axis.")
    window = min(_SSIM_WINDOW, smallest - (smallest + 1) % 2)
    peak = float(reference.max())
    pairs = zip(recon, reference, strict=True)
    return np.array([structural_similarity(b, a, data_range=peak, win_size=window) for a, b in pairs])


def dynamic_error(images: ArrayLike, truth: ArrayLike, moving: ArrayLike) -> float:
    """NRMSE of (image − its time mean) inside the moving region; 1 means that no motion was recovered.

    Args:
        images: aligned series ``[frame, (z,) y, x]``.
        truth: same shape and form.
        moving: bool ``[(z,) y, x]``.

    Raises:
        DataError: the region is empty or the truth does not move there.
    """
    region = np.asarray(moving, dtype=bool)
    reference = np.asarray(truth)[:, region]
    change = reference - reference.mean(axis=0)
    energy = float(np.linalg.norm(change))
    if energy == 0:
        raise DataError("moving", f"{int(region.sum())} pixels, in which the truth does not change", "Score a moving object.")
    recon = np.asarray(images)[:, region]
    return float(np.linalg.norm(recon - recon.mean(axis=0) - change)) / energy


def moving_region(truth: ArrayLike) -> NDArray[np.bool_]:
    """Pixels whose temporal standard deviation exceeds 10 % of the largest one.

    Args:
        truth: complex ``[frame, (z,) y, x]``.
    """
    deviation = np.asarray(truth).std(axis=0)
    return deviation > 0.1 * deviation.max()


def score(images: ArrayLike, truth: ArrayLike, moving: ArrayLike) -> dict[str, Any]:
    """All scores of a series.

    Args:
        images: complex ``[frame, (z,) y, x]``, or real magnitudes.
        truth: complex, same shape.
        moving: bool ``[(z,) y, x]``.

    Returns:
        ``psnr_db`` and ``psnr_sd_db`` (mean and standard deviation over frames), ``ssim``, ``dynamic_error``,
        ``time_average_psnr_db`` and ``time_average_ssim`` (of the truth's own time average, which any method must beat), ``frames``
        and ``form`` (``complex`` or ``magnitude``).
    """
    recon, reference = align(images, truth)
    frames = psnr_db(recon, reference)
    average = np.broadcast_to(reference.mean(axis=0), reference.shape)
    return {
        "psnr_db": float(frames.mean()),
        "psnr_sd_db": float(frames.std()),
        "ssim": float(ssim(recon, reference).mean()),
        "dynamic_error": dynamic_error(recon, reference, moving),
        "time_average_psnr_db": float(psnr_db(average, reference).mean()),
        "time_average_ssim": float(ssim(average, reference).mean()),
        "frames": len(reference),
        "form": "complex" if np.iscomplexobj(recon) else "magnitude",
    }


def map_error(values: ArrayLike, truth: ArrayLike, region: ArrayLike, cap: float | None = None, free_scale: bool = False) -> float:
    """NRMSE of a parameter map inside a region.

    Args:
        values: ``[(z,) y, x]``.
        truth: same shape and unit.
        region: bool, same shape.
        cap: both are cut there first (long relaxation times of fluid; LoREIN).
        free_scale: fit one scale first (proton density).

    Raises:
        DataError: the region is empty, the truth is zero there, or a value is not finite.
    """
    inside = np.asarray(region, dtype=bool)
    found, reference = (np.asarray(v, dtype=np.float64)[inside] for v in (values, truth))
    energy = float(np.linalg.norm(reference))
    if energy == 0:
        raise DataError("truth", f"zero in the region of {int(inside.sum())} voxels", "Score a map inside an object.")
    if not np.isfinite(found).all():
        raise DataError("map", "NaN or Inf", "Repair the reconstruction.")
    if free_scale:
        own = float(found @ found)
        found = found * (float(found @ reference) / own if own else 0.0)
    if cap is not None:
        found, reference = np.minimum(found, cap), np.minimum(reference, cap)
    return float(np.linalg.norm(found - reference)) / float(np.linalg.norm(reference))
