"""detectron2's RetinaNet in plain torch functions, from its state dict: it is no package that tests could install.

Written from its documentation and configuration: BGR pixels less a mean, ResNet with the stride of a bottleneck in its
1x1 convolution, frozen batch normalisation, P6 from C5, heads shared over levels, anchors per cell counted by size and
within a size by ratio, centred on the cells' corners.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
SIZES, RATIOS = 3, (0.5, 1.0, 2.0)
MEAN_BGR = (103.53, 116.28, 123.675)


def state(depth: int, classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by the names of detectron2's modules."""
    draw, out = np.random.default_rng(seed), {}
    bottleneck = depth >= 50

    def convolution(name: str, inputs: int, outputs: int, size: int, *, bias: bool = True, gain: float = 1.6) -> None:
        scale = math.sqrt(gain / (inputs * size * size))
        out[f"{name}.weight"] = draw.normal(0, scale, (outputs, inputs, size, size)).astype(np.float32)
        if bias:
            out[f"{name}.bias"] = draw.uniform(-0.1, 0.1, outputs).astype(np.float32)

    def normed(name: str, inputs: int, outputs: int, size: int) -> None:
        convolution(f"backbone.bottom_up.{name}", inputs, outputs, size, bias=False)
        for key, low, high in (
            ("weight", 0.5, 1.0), ("bias", -0.2, 0.2), ("running_mean", -0.3, 0.3), ("running_var", 0.5, 1.5),
        ):  # fmt: skip
            out[f"backbone.bottom_up.{name}.norm.{key}"] = draw.uniform(low, high, outputs).astype(np.float32)

    normed("stem.conv1", 3, 64, 7)
    out["backbone.bottom_up.stem.conv1.weight"] /= 60  # pixels are not divided by their deviation
    inputs, channels = 64, {}
    for stage, count in enumerate(BLOCKS[depth], start=2):
        width = 64 * 2 ** (stage - 2)
        outputs = 4 * width if bottleneck else width
        for block in range(count):
            where = f"res{stage}.{block}"
            if inputs != outputs:
                normed(f"{where}.shortcut", inputs, outputs, 1)
            shapes = ((inputs, width, 1), (width, width, 3), (width, outputs, 1))
            for number, shape in enumerate(shapes if bottleneck else ((inputs, width, 3), (width, width, 3)), 1):
                normed(f"{where}.conv{number}", *shape)
            inputs = outputs
        channels[stage] = outputs
    for level in (3, 4, 5):
        convolution(f"backbone.fpn_lateral{level}", channels[level], 256, 1)
        convolution(f"backbone.fpn_output{level}", 256, 256, 3)
    convolution("backbone.top_block.p6", channels[5], 256, 3)
    convolution("backbone.top_block.p7", 256, 256, 3)
    for subnet, prediction, outputs in (
        ("cls_subnet", "cls_score", 9 * classes), ("bbox_subnet", "bbox_pred", 36),
    ):  # fmt: skip
        for layer in range(4):
            convolution(f"head.{subnet}.{2 * layer}", 256, 256, 3)
        convolution(f"head.{prediction}", 256, outputs, 3, gain=0.3)
    return out


def outputs(state: dict[str, np.ndarray], rgb: np.ndarray) -> dict[str, np.ndarray]:
    """`logits` [A, K], `deltas` [A, 4] and `anchors` [A, 4] of an image [H, W, 3], in detectron2's order of anchors."""
    at = {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}
    stages = {depth: f"backbone.bottom_up.res4.{blocks[2] - 1}.conv1.weight" for depth, blocks in BLOCKS.items()}
    depth = max(one for one, last in stages.items() if last in at)

    def normed(x: torch.Tensor, name: str, stride: int, padding: int) -> torch.Tensor:
        name = f"backbone.bottom_up.{name}"
        x = F.conv2d(x, at[f"{name}.weight"], stride=stride, padding=padding)
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(at[f"{name}.norm.{key}"] for key in keys), eps=1e-5)

    def convolution(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        kernel = at[f"{name}.weight"]
        return F.conv2d(x, kernel, at[f"{name}.bias"], stride=stride, padding=kernel.shape[-1] // 2)

    bgr = rgb[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    x = torch.from_numpy(np.ascontiguousarray(bgr)).permute(2, 0, 1)[None]
    x = F.max_pool2d(F.relu(normed(x, "stem.conv1", 2, 3)), 3, 2, 1)
    maps = {}
    for stage, count in enumerate(BLOCKS[depth], start=2):
        for block in range(count):
            where, stride = f"res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            same = f"backbone.bottom_up.{where}.shortcut.weight" not in at
            shortcut = x if same else normed(x, f"{where}.shortcut", stride, 0)
            if depth >= 50:
                x = F.relu(normed(x, f"{where}.conv1", stride, 0))
                x = normed(F.relu(normed(x, f"{where}.conv2", 1, 1)), f"{where}.conv3", 1, 0)
            else:
                x = normed(F.relu(normed(x, f"{where}.conv1", stride, 1)), f"{where}.conv2", 1, 1)
            x = F.relu(x + shortcut)
        maps[stage] = x
    top = convolution(maps[5], "backbone.fpn_lateral5")
    merged = {5: top}
    for level in (4, 3):
        top = convolution(maps[level], f"backbone.fpn_lateral{level}") + F.interpolate(top, scale_factor=2.0)
        merged[level] = top
    pyramid = [convolution(merged[level], f"backbone.fpn_output{level}") for level in (3, 4, 5)]
    pyramid.append(convolution(maps[5], "backbone.top_block.p6", 2))
    pyramid.append(convolution(F.relu(pyramid[-1]), "backbone.top_block.p7", 2))

    def head(x: torch.Tensor, subnet: str, prediction: str) -> torch.Tensor:
        for layer in range(4):
            x = F.relu(convolution(x, f"head.{subnet}.{2 * layer}"))
        x = convolution(x, f"head.{prediction}")[0]
        return x.reshape(9, -1, *x.shape[1:]).permute(2, 3, 0, 1).reshape(-1, x.shape[0] // 9)

    found: dict[str, list[np.ndarray]] = {"logits": [], "deltas": [], "anchors": []}
    for level, x in enumerate(pyramid, start=3):
        found["logits"].append(head(x, "cls_subnet", "cls_score").numpy())
        found["deltas"].append(head(x, "bbox_subnet", "bbox_pred").numpy())
        found["anchors"].append(_anchors(level, x.shape[-2:]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _anchors(level: int, cells: tuple[int, int]) -> np.ndarray:
    out = []
    for row in range(cells[0]):
        for column in range(cells[1]):
            for size in (2.0**level * 4 * 2 ** (scale / 3) for scale in range(SIZES)):
                for ratio in RATIOS:
                    width = math.sqrt(size**2 / ratio)
                    height, x, y = ratio * width, column * 2**level, row * 2**level
                    out.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return np.array(out, np.float32)
