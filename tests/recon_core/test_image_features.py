"""Fixed features of images: gradients against closed forms, MDSR against a plain forward pass of its public layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from recon_core.encodings.image_features import SCALES, Mdsr, MultiScaleGradients, gaussian_kernels
from recon_core.errors import DataError, MissingPartError


def test_kernels_have_unit_sum_and_unit_slope() -> None:
    for sigma in SCALES:
        smooth, slope = gaussian_kernels(sigma)
        grid = torch.arange(len(smooth)) - len(smooth) // 2
        assert float(smooth.sum()) == pytest.approx(1)
        assert float((slope * grid).sum()) == pytest.approx(1)
        assert float(slope.sum()) == pytest.approx(0, abs=1e-6)


def test_gradients_of_a_ramp_on_asymmetric_images() -> None:
    """Away from the edges: value, then slope times scale on each axis."""
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(52.0), indexing="ij")
    features = MultiScaleGradients()
    found = features(torch.stack([0.02 * y + 0.05 * x, 0.3 + 0 * y]))
    assert found.shape == (2, features.channels, 60, 52) == (2, 12, 60, 52)
    for number, scale in enumerate(SCALES):
        inner = found[0, 3 * number : 3 * number + 3, 14:-14, 14:-14]
        torch.testing.assert_close(inner[0], (0.02 * y + 0.05 * x)[14:-14, 14:-14], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(inner[1], torch.full_like(inner[1], 0.02 * scale), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(inner[2], torch.full_like(inner[2], 0.05 * scale), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[1, 3 * number], torch.full((60, 52), 0.3))
        assert float(found[1, 3 * number + 1 : 3 * number + 3].abs().max()) < 1e-6


def public_state_dict(feats: int = 5, blocks: int = 3, branches: int = 3) -> dict[str, Tensor]:
    """Random weights under the names of the public MDSR, up-samplers and tail included."""
    shapes = {"head.0": (feats, 3, 3), "tail.0": (3, feats, 3), f"body.{blocks}": (feats, feats, 3), "upsample.0.0": (4 * feats, feats, 3)}
    shapes |= {f"pre_process.{b}.{i}.body.{j}": (feats, feats, 5) for b in range(branches) for i in (0, 1) for j in (0, 2)}
    shapes |= {f"body.{i}.body.{j}": (feats, feats, 3) for i in range(blocks) for j in (0, 2)}
    shapes |= {"sub_mean": (3, 3, 1), "add_mean": (3, 3, 1)}
    state = {}
    for name, (outputs, inputs, size) in shapes.items():
        state[f"{name}.weight"] = torch.randn(outputs, inputs, size, size) * 0.1
        state[f"{name}.bias"] = torch.randn(outputs) * 0.1
    state["sub_mean.weight"] = torch.eye(3)[:, :, None, None]
    state["sub_mean.bias"] = -255 * torch.tensor([0.4488, 0.4371, 0.4040])
    return state


def plain_forward(state: dict[str, Tensor], images: Tensor, blocks: int) -> Tensor:
    """The trunk written out, from the layout alone."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def residual(name: str, x: Tensor) -> Tensor:
        return x + conv(f"{name}.body.2", conv(f"{name}.body.0", x).relu())

    x = conv("head.0", conv("sub_mean", 255 * images[:, None].repeat(1, 3, 1, 1)))
    x = residual("pre_process.0.1", residual("pre_process.0.0", x))
    y = x
    for number in range(blocks):
        y = residual(f"body.{number}", y)
    return (x + conv(f"body.{blocks}", y)) / 255


def test_mdsr_of_a_public_state_dict(tmp_path: Path) -> None:
    state = public_state_dict()
    torch.save(state, tmp_path / "mdsr.pt")
    network = Mdsr.load(tmp_path / "mdsr.pt")
    images = torch.rand(2, 9, 7)
    found = network(images)
    assert found.shape == (2, network.channels, 9, 7) == (2, 5, 9, 7)
    assert not found.requires_grad
    torch.testing.assert_close(found, plain_forward(state, images, 3), rtol=1e-4, atol=1e-5)


def test_weights_for_grey_values_up_to_one() -> None:
    state = public_state_dict()
    state["sub_mean.bias"] = state["sub_mean.bias"] / 255
    assert Mdsr.from_state_dict(state).range == 1.0


def test_files_that_are_no_mdsr(tmp_path: Path) -> None:
    with pytest.raises(MissingPartError, match="does not exist"):
        Mdsr.load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no weights", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        Mdsr.load(tmp_path / "text.pt")
    edsr = {name: value for name, value in public_state_dict().items() if not name.startswith("pre_process")}
    with pytest.raises(DataError, match="EDSR's layout"):
        Mdsr.from_state_dict(edsr)
    missing = public_state_dict()
    del missing["body.1.body.0.bias"]
    with pytest.raises(DataError, match=r"body\.1\.body\.0\.bias"):
        Mdsr.from_state_dict(missing)
    for nothing in ({}, [1, 2], {"head.0.weight": 3}):
        with pytest.raises(DataError, match=r"head\.0\.weight"):
            Mdsr.from_state_dict(nothing)
