"""The rat's bolus from two fifths of its lines: when it arrives in aorta and kidneys.

    python benchmarks/rat_bolus.py sample hp_rat_kidney_bolus_3d/urea_vfa_full.h5 few.h5
    gadgetron-inr recon few.h5 -c cine.xml -s framing=counters -s image_type=complex -o out.h5
    python benchmarks/rat_bolus.py curves hp_rat_kidney_bolus_3d/urea_vfa_full.h5 out.h5

``sample`` keeps of every frame the centre of k-space and, denser there than outside, other lines drawn anew. ``curves`` prints the root
mean square magnitude of each region over the frames, where it peaks, when it passes 10, 20 and 50 % of its rise (frames, between whole
ones) and the centre of its enhancement, from the inverse Fourier transform of all lines and from the reconstruction. Intervals: 2.5 to
97.5 % of 1000 draws of the region's voxels. Regions come from all lines: the aorta holds the voxels above 0.3 of the brightest of frame
1, the kidneys are the two largest connected parts of what is brightest in frames 4 to 6 away from it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gadgets.evaluation import arrival, image_series

LINES, CENTRE, SHARE, DRAWS = (40, 12), (20, 6), 0.4, 1000
Array = NDArray[np.float64]


def sample(full: str, few: str) -> None:
    """Write the scan with ``SHARE`` of its lines."""
    random = np.random.default_rng(0)
    y, z = np.arange(LINES[0])[:, None] - CENTRE[0], np.arange(LINES[1])[None] - CENTRE[1]
    centre = (abs(y) <= 3) & (abs(z) <= 1)
    chance = np.exp(-0.5 * ((y / 9) ** 2 + (z / 3.5) ** 2)) + 0.12
    chance *= (SHARE * y.size * z.size - centre.sum()) / chance[~centre].sum()
    kept = [centre | (random.uniform(size=LINES) < chance) for _ in range(8)]
    Path(few).unlink(missing_ok=True)
    source, target = ismrmrd.Dataset(full, "dataset", False), ismrmrd.Dataset(few, "dataset", True)
    target.write_xml_header(source.read_xml_header())
    for number in range(source.number_of_acquisitions()):
        line = source.read_acquisition(number)
        if kept[line.idx.repetition][line.idx.kspace_encode_step_1, line.idx.kspace_encode_step_2]:
            target.append_acquisition(line)
    target.close()


def all_lines(full: str) -> Array:
    """Magnitude of the inverse Fourier transform, ``[frame, z, y, x]``."""
    source = ismrmrd.Dataset(full, "dataset", False)
    lines = [source.read_acquisition(n) for n in range(source.number_of_acquisitions())]
    space = np.zeros((8, LINES[1], LINES[0], lines[0].number_of_samples), np.complex64)
    for line in lines:
        space[line.idx.repetition, line.idx.kspace_encode_step_2, line.idx.kspace_encode_step_1] = line.data[0]
    axes = (1, 2, 3)
    images = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(space, axes=axes), axes=axes, norm="ortho"), axes=axes)
    return np.abs(images).astype(np.float64)


def regions(images: Array) -> dict[str, NDArray[np.bool_]]:
    """Masks ``[z, y, x]``."""
    aorta = images[1] > 0.3 * images[1].max()
    late = ndimage.gaussian_filter(np.sqrt((images[4:7] ** 2).mean(0)), 1.0)
    parts, count = ndimage.label((late > np.percentile(late, 95)) & ~ndimage.binary_dilation(aorta, iterations=2))
    largest = np.argsort(ndimage.sum(np.ones_like(late), parts, range(1, count + 1)))[::-1][:2] + 1
    return {"aorta": aorta, "kidney": parts == largest[0], "other kidney": parts == largest[1]}


def measures(voxels: Array) -> Array:
    """Passes 10, 20, 50 % of the rise, centre of the enhancement; of voxels ``[frame, voxel]``."""
    curve = np.sqrt((voxels**2).mean(1))
    more = np.maximum(curve - curve[0], 0)
    return np.array([*(arrival(curve, share) for share in (0.1, 0.2, 0.5)), (more * np.arange(len(more))).sum() / more.sum()])


def tell(title: str, images: Array, masks: dict[str, NDArray[np.bool_]]) -> None:
    """Print the curves of one series."""
    random = np.random.default_rng(0)
    for name, mask in masks.items():
        voxels = images[:, mask]
        curve = np.sqrt((voxels**2).mean(1))
        drawn = np.array([measures(voxels[:, random.integers(0, mask.sum(), mask.sum())]) for _ in range(DRAWS)])
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        found = ", ".join(f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(measures(voxels), low, high, strict=True))
        print(f"{title}, {name} ({mask.sum()} voxels): {(100 * curve / curve.max()).round().astype(int).tolist()} %, peak {curve.argmax()}")
        print(f"    10, 20, 50 % of the rise, centre: {found}")


def main(command: str, full: str, other: str) -> None:
    """Run one of the two."""
    if command == "sample":
        sample(full, other)
        return
    images = all_lines(full)
    masks = regions(images)
    tell("all lines", images, masks)
    tell("two fifths", np.abs(image_series(other)[0]).astype(np.float64), masks)


if __name__ == "__main__":
    main(*sys.argv[1:])
