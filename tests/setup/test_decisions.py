"""Each decision of `retina init` on made-up figures."""

import numpy as np
import pytest

from retina.setup import decisions
from retina.setup.decisions import Speed, Work
from retina.setup.device import accelerator, processor
from tests.setup.made import CPU, GPU, cost

VGA = np.tile([480, 640], (20, 1))


def size(sides, sizes=VGA, device=CPU, labels=None):
    sides = np.array(sides, float)
    choice = decisions.resize(sides, np.zeros(len(sides), int) if labels is None else np.array(labels), sizes, device)
    return choice.values["data.resize"], choice.reason


@pytest.mark.parametrize(
    ("side", "device", "short", "long"),
    [
        (0.5, CPU, 256, 352),  # large boxes: as ImageNet's weights have seen
        (0.075, CPU, 320, 448),  # 24 px at 320
        (0.01, CPU, 480, 640),  # never larger than the photograph
        (0.5, GPU, 480, 640),
    ],
)
def test_small_boxes_get_a_larger_size_within_the_photograph(side, device, short, long):
    values, reason = size([side] * 10, device=device)
    assert values == {"short": short, "long": long, "multiple": 32, "max_canvases": 2}
    assert "480 px" in reason and ("find no anchor" in reason) == (side == 0.01)


def test_a_cpu_has_a_limit_of_its_own():
    large = np.tile([3000, 4000], (4, 1))
    assert size([0.01] * 10, large)[0]["short"] == 512 and size([0.01] * 10, large, GPU)[0]["short"] == 800
    assert "larger takes too long" in size([0.01] * 10, large)[1]


def test_a_rare_class_of_small_boxes_counts():
    sides, labels = [0.4] * 95 + [0.075] * 5, [0] * 95 + [1] * 5
    assert size(sides)[0]["short"] == 256 and size(sides, labels=labels)[0]["short"] == 320


def test_small_photographs_stay_small():
    assert size([0.3] * 5, np.tile([128, 128], (5, 1)))[0] == {
        "short": 128,
        "long": 128,
        "multiple": 32,
        "max_canvases": 2,
    }


def test_the_backbone_has_weights_where_they_are_installed():
    values, _ = decisions.backbone(200, CPU, True, "pip install")
    assert (values["model.backbone"], values["model.weights"]) == ("efficientnet_lite0", "imagenet")
    assert decisions.backbone(9000, GPU, True, "")[0]["model.backbone"] == "efficientnet_lite2"
    values, reason = decisions.backbone(200, CPU, False, "pip install X")
    assert values == {"model.backbone": "resnet18"} and "pip install X" in reason


@pytest.mark.parametrize(("largest", "level"), [(10, 5), (250, 5), (300, 6), (700, 7), (5000, 7)])
def test_the_pyramid_reaches_large_boxes(largest, level):
    assert decisions.heads(largest, CPU).values["model.fpn"]["max_level"] == level


@pytest.mark.parametrize(
    ("each", "images", "device", "batch"),
    [(1e8, 100, CPU, 8), (1.5e9, 100, CPU, 4), (1e11, 100, CPU, 1), (1e8, 5, CPU, 4), (1e8, 100, GPU, 16)],
)
def test_the_batch_fits_into_half_of_the_memory(each, images, device, batch):
    assert decisions.batch_size(cost(each), device, images).values == {"run.batch_size": batch}


def test_bfloat16_needs_a_processor_that_has_it():
    assert decisions.precision(GPU).values == {"run.precision": "mixed_bfloat16"}
    assert decisions.precision(CPU).values == {} and "float32" in decisions.precision(CPU).reason
    assert processor(2, 1, "flags : fma avx512_bf16 amx_tile").bfloat16 and processor(2, 1, "sse4 amx_bf16").bfloat16
    assert not processor(2, 1, "flags : avx512f avx512_bitalg").bfloat16
    assert accelerator("GPU:0", "NVIDIA A100, 40960, 8.0") == ("gpu", "NVIDIA A100", 40960 * 2**20, True)
    assert not accelerator("GPU:0", "Tesla V100, 16384, 7.0").bfloat16
    assert accelerator("GPU:0", "") == ("gpu", "GPU:0", 8 * 2**30, False)


WORK = Work(images=200, batch=8, evaluated=40, canvases=1)


def test_the_length_follows_from_the_images():
    speed = Speed(10.0, 1.0)
    chosen = decisions.length(WORK, speed, pretrained=True, minutes=None)
    assert chosen.steps == (6000 + 12 * 200) // 8
    assert chosen.steps < decisions.length(WORK, speed, pretrained=False, minutes=None).steps
    assert chosen.seconds == pytest.approx(decisions.seconds(chosen.steps, 4, WORK, speed))
    assert 4 * chosen.evaluate_every >= chosen.steps > 3 * chosen.evaluate_every


@pytest.mark.parametrize("minutes", [3, 10, 60])
@pytest.mark.parametrize("step", [0.3, 2.0])
def test_minutes_are_kept_and_used(minutes, step):
    chosen = decisions.length(WORK, Speed(10.0, step), pretrained=True, minutes=minutes)
    longest = 4 * (6000 + 12 * 200) // 8
    assert chosen.seconds <= 60 * minutes
    assert chosen.steps == longest or chosen.seconds > 60 * minutes - 2 * step


def test_a_slow_machine_stops_after_an_hour_and_trains_a_little_at_least():
    assert 3500 < decisions.length(WORK, Speed(30.0, 20.0), pretrained=True, minutes=None).seconds <= 3600
    assert decisions.length(WORK, Speed(30.0, 20.0), pretrained=True, minutes=0.1).steps == 20


@pytest.mark.parametrize(("minutes", "short"), [(4, True), (15, False), (None, False)])
def test_a_time_that_is_far_too_short_is_told(minutes, short):
    speed = Speed(10.0, 1.0)
    chosen = decisions.length(WORK, speed, pretrained=True, minutes=minutes)
    choice = decisions.schedule(chosen, WORK, 500, speed, CPU, minutes)
    assert choice.values["schedule.steps"] == chosen.steps and "1.00 s a step, measured on 2 CPU cores" in choice.reason
    assert ("better in 18 min" in choice.reason) == short


def test_many_images_to_evaluate_are_evaluated_less_often():
    chosen = decisions.length(WORK._replace(evaluated=3000), Speed(10.0, 1.0), pretrained=True, minutes=20)
    assert chosen.evaluate_every == chosen.steps


@pytest.mark.parametrize(
    ("classes", "flips"),
    [
        (["cup", "pen"], {}),
        (["7", "8"], {"horizontal_flip": 0.0}),
        (["left_hand", "right_hand"], {"horizontal_flip": 0.0}),
        (["bright"], {}),
    ],
)
def test_classes_that_a_mirror_changes_are_not_mirrored(classes, flips):
    values = decisions.augment(classes, False, "as they have an up").values["data.augment"]
    assert values == {"scale": [0.8, 1.25], **flips}
    both = decisions.augment(classes, True, "").values["data.augment"]
    assert both == {**values, **({} if flips else {"vertical_flip": 0.5})}


def test_up_and_down_are_alike_only_where_nothing_tells_them_apart():
    random = np.random.default_rng(0)
    noise = random.integers(90, 110, (100, 256)).astype(np.uint8)
    sky = noise + np.repeat([20, 0], 128).astype(np.uint8)
    heights, round_ = random.uniform(0, 1, 300), {"cell": random.normal(0, 0.1, 300)}
    assert decisions.orientation(noise, heights, round_)[0]
    for case, word in (
        ((noise[:20], heights, round_), "20 images"),
        ((sky, heights, round_), "brighter above"),
        ((noise, heights**0.5, round_), "above the middle"),
        ((noise, heights, {"person": np.full(9, 0.8), **round_}), "person"),
    ):
        up, reason = decisions.orientation(*case)
        assert not up and word in reason


def test_crowded_images_raise_the_number_of_detections():
    assert decisions.thresholds(30, 100).values == {}
    assert decisions.thresholds(150, 100).values == {
        "inference.max_detections": 300,
        "evaluation.max_detections": [1, 10, 300],
    }
