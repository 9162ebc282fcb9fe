"""The shapes of EfficientNet-Lite, and which stage its layers are in."""

import pytest

from retina.models import backbones
from retina.models.efficientnet_lite import efficientnet_lite, stages
from retina.models.freezing import freeze_stages, stage_of


@pytest.mark.parametrize(
    ("variant", "blocks", "channels", "parameters"),
    # Blocks and channels of arXiv:1905.11946 scaled; parameters of the classifiers' files without head and classifier.
    [(0, 16, (40, 112, 320), 2_998_304), (1, 21, (40, 112, 320), 3_774_624), (2, 21, (48, 120, 352), 4_413_488)],
)
def test_widths_and_depths(variant, blocks, channels, parameters):
    network = efficientnet_lite(variant)
    assert sum(stage.blocks for stage in stages(variant)) == blocks
    assert tuple(network.output[level].shape[-1] for level in ("C3", "C4", "C5")) == channels
    assert network.count_params() == parameters


@pytest.mark.parametrize("sides", [(64, 96), (65, 33)])
def test_sides_are_rounded_up(sides):
    maps = efficientnet_lite(0).compute_output_shape((1, *sides, 3))
    for level, stride in (("C3", 8), ("C4", 16), ("C5", 32)):
        assert tuple(maps[level][1:3]) == tuple(-(-side // stride) for side in sides)


def test_stages_can_be_frozen():
    network = backbones.build("efficientnet_lite0")
    layers = [layer for layer in network.layers if layer.weights]
    assert [stage_of(layer.name) for layer in layers] == sorted(stage_of(layer.name) for layer in layers)
    freeze_stages(network, "efficientnet_lite0", 3)
    for layer in layers:
        assert layer.trainable is (stage_of(layer.name) > 3)
    # The stem and the first stage without a reduction of its own are stage 1, as far as stride 2.
    assert {layer.name.split("_")[0] for layer in layers} == {f"stage{number}" for number in range(1, 6)}
