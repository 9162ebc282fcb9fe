"""Thresholds by class from an evaluation's `metrics.json`."""

import json

import numpy as np
import pytest

from retina.errors import RetinaError
from retina.evaluation.document import read_thresholds
from retina.inference import Detections


def document(tmp_path, overall, **classes):
    points = {"overall": {"threshold": overall}, "per_class": {k: {"threshold": v} for k, v in classes.items()}}
    (tmp_path / "metrics.json").write_text(json.dumps({"operating_points": points}))
    return tmp_path


def test_a_class_without_threshold_takes_that_of_all(tmp_path):
    score = float(np.float32(0.3))
    folder = document(tmp_path, 0.5, cat=score, dog=None)
    thresholds = read_thresholds(folder, ("cat", "dog"))
    np.testing.assert_array_equal(thresholds, np.array([0.3, 0.5], np.float32))
    np.testing.assert_array_equal(read_thresholds(folder / "metrics.json", ("cat", "dog")), thresholds)
    scores, labels = np.array([0.3, 0.29, 0.5, 0.4], np.float32), np.array([0, 0, 1, 1])
    detections = Detections(np.zeros((4, 4), np.float32), scores, labels, ("cat", "cat", "dog", "dog"))
    assert detections.above(thresholds).scores.tolist() == [score, 0.5]  # a score at the threshold stays
    assert detections.above(0.3).names == ("cat", "dog", "dog")
    assert len(Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ()).above(thresholds)) == 0


def test_other_documents_are_refused(tmp_path):
    with pytest.raises(RetinaError, match="metrics.json: expected a number, or .* No such file or directory"):
        read_thresholds(tmp_path, ("cat",))
    with pytest.raises(RetinaError, match=r"its classes \['dog'\] are not the detector's \['cat'\]"):
        read_thresholds(document(tmp_path, 0.5, dog=0.5), ("cat",))
    with pytest.raises(RetinaError, match="no score finds a box in that evaluation"):
        read_thresholds(document(tmp_path, None, cat=None), ("cat",))
    for text in ("no JSON", '{"metrics": {}}', "[]", '{"operating_points": null}'):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(RetinaError, match="it holds no thresholds; make one with retina evaluate RUN --out DIR"):
            read_thresholds(tmp_path, ("cat",))
