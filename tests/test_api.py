"""The Python face: every verb stays one, takes paths as text, and refuses what the command line refuses."""

import pytest

import retina
from retina import api
from retina.ablation.plan import make_plan
from retina.errors import RetinaError


@pytest.mark.parametrize("verb", sorted({*retina._VERBS, "export"}))
def test_a_verb_stays_callable(verb):
    """`retina.export` is a package, too: importing what is in it must not take the verb away."""
    first = getattr(retina, verb)
    assert callable(first) and callable(retina.load)  # loading imports the package `export`
    assert getattr(retina, verb) is first


def test_everything_public_is_there():
    assert set(retina._VERBS) | {"export"} == set(api.__all__)
    for name in retina.__all__:
        assert getattr(retina, name) is not None
    assert set(dir(retina)) == set(retina.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        retina.exprot  # noqa: B018


def test_one_image_may_be_given_alone(tmp_path):
    for image in (str(tmp_path / "photo.jpg"), tmp_path / "photo.jpg"):
        with pytest.raises(RetinaError, match="photo.jpg: no such image"):
            retina.predict("run", image)


def test_a_page_is_refused_before_the_work(tmp_path):
    with pytest.raises(RetinaError, match="--html: .*nowhere: no such folder; make it first"):
        retina.examine("configs/digits.yaml", html=str(tmp_path / "nowhere" / "page.html"))


def test_training_takes_a_configuration_with_a_place_or_a_folder(tmp_path):
    with pytest.raises(RetinaError, match="run_dir: expected a new folder for the run, got none"):
        retina.train(retina.load_config())
    with pytest.raises(RetinaError, match="minutes: it has an effect on a folder of images only"):
        retina.train(retina.load_config(), tmp_path / "run", minutes=3)
    with pytest.raises(RetinaError, match="no such file or folder"):
        retina.train(tmp_path / "photographs")


def test_no_run_is_no_report():
    with pytest.raises(RetinaError, match="expected a run, several runs or a study, got none"):
        retina.write_report([])


def test_an_unknown_executor_is_refused(tmp_path):
    plan = make_plan(retina.load_config(), gammas=(0.0, 2.0), alphas=(0.25,))
    with pytest.raises(RetinaError, match="--executor: expected local or ray, got 'Ray'"):
        retina.ablate(plan, tmp_path / "study", executor="Ray")
    assert not (tmp_path / "study").exists()
