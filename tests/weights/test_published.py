"""Published weights by name: fetched once from a server on the loopback, checked, imported."""

import functools
import hashlib
import http.server
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

from retina import config as configuration
from retina.errors import RetinaError
from retina.models import backbones
from retina.runs.importing import import_run
from retina.training.fine_tuning import read_initial
from retina.training.train import with_absolute_paths
from retina.weights import sources
from retina.weights.sources import PUBLISHED, Published, published_file

DETECTOR, CLASSIFIER = "torchvision/retinanet_resnet50_fpn_v2", "torchvision/resnet50"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(publish, requests): `publish(name, file)` puts a file under the URL of a name, with its digest in it."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    (tmp_path / "served").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))

    def publish(name: str, file: Path, digest: str | None = None) -> None:
        digest = digest or hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        shown = f"{file.stem}-{digest}{file.suffix}"
        (tmp_path / "served" / shown).write_bytes(file.read_bytes())
        url = f"http://127.0.0.1:{server.server_port}/{shown}"
        monkeypatch.setitem(PUBLISHED, name, Published(PUBLISHED[name].kind, url))

    yield publish, requests
    server.shutdown()


def some(tmp_path: Path) -> Path:
    (tmp_path / "weights.pth").write_bytes(b"weights" * 100)
    return tmp_path / "weights.pth"


def test_a_file_is_fetched_once(served, tmp_path):
    publish, requests = served
    publish(CLASSIFIER, some(tmp_path))
    first = published_file(CLASSIFIER)
    assert first.read_bytes() == some(tmp_path).read_bytes()
    assert first.parent == tmp_path / "home" / "retina" / CLASSIFIER
    assert published_file(CLASSIFIER) == first and len(requests) == 1


def test_another_file_than_the_digest_says_is_deleted(served, tmp_path):
    publish, requests = served
    publish(CLASSIFIER, some(tmp_path), "0123abcd")
    for _ in range(2):
        with pytest.raises(
            RetinaError, match="expected a file whose SHA-256 begins with 0123abcd, got [0-9a-f]{8}; it is"
        ):
            published_file(CLASSIFIER)
    assert len(requests) == 2 and not [file for file in (tmp_path / "home").rglob("*") if file.is_file()]


def test_without_a_network_the_message_has_address_folder_and_remedy(served, tmp_path, monkeypatch):
    url = "http://127.0.0.1:9/resnet50-11ad3fa6.pth"
    monkeypatch.setitem(PUBLISHED, CLASSIFIER, Published("torchvision-backbone", url))
    folder = tmp_path / "home" / "retina" / CLASSIFIER
    with pytest.raises(RetinaError, match="cannot fetch") as refused:
        published_file(CLASSIFIER)
    assert url in str(refused.value) and f"put the file into {folder}, or name one" in str(refused.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resnet50-11ad3fa6.pth").write_bytes(b"by hand")
    assert published_file(CLASSIFIER).read_bytes() == b"by hand"


def test_every_file_of_torchvision_carries_a_digest():
    for name, published in PUBLISHED.items():
        assert published.url.startswith("https://")
        assert bool(sources._DIGEST.search(published.url)) == name.startswith("torchvision/")


def test_names_stay_as_they_are_in_a_configuration():
    settings = ["model.backbone=resnet50", f"model.weights={CLASSIFIER}"]
    assert with_absolute_paths(configuration.load(None, settings)).model.weights == CLASSIFIER
    model = with_absolute_paths(configuration.load(None, [f"model.init_from={DETECTOR}"])).model
    assert str(model.init_from) == DETECTOR


def test_names_of_the_other_kind_are_refused(tmp_path):
    with pytest.raises(RetinaError, match="it is a classifier, not a detector; give it as model.weights"):
        read_initial(Path(CLASSIFIER))
    with pytest.raises(RetinaError, match="its kind is torchvision, got detectron2"):
        import_run("detectron2", DETECTOR, tmp_path / "run")


@pytest.fixture
def theirs():
    return pytest.importorskip("tests.parity.torchvision_models")


def test_a_backbone_takes_its_weights_by_name(served, theirs, tmp_path):
    publish, requests = served
    model = theirs.resnet.resnet18()
    publish(CLASSIFIER, theirs.save(model, tmp_path / "resnet18.pth"))
    built = backbones.build_reported("resnet18", CLASSIFIER)
    kernel = model.conv1.weight.detach().numpy().transpose(2, 3, 1, 0)
    assert any(np.array_equal(keras.ops.convert_to_numpy(v), kernel) for v in built.network.variables)
    assert len(requests) == 1


def test_a_detector_by_name_is_imported_once(served, theirs, tmp_path):
    publish, requests = served
    publish(DETECTOR, theirs.save(theirs.retinanet("v2", 91, depth=18), tmp_path / "weights.pth"))
    first, second = read_initial(Path(DETECTOR)), read_initial(Path(DETECTOR))
    assert len(requests) == 1 and len(first.class_names) == 80 and first.step == second.step == 0
    assert not list((tmp_path / "home").rglob("run.partial"))
