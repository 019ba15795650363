from pathlib import Path
from typing import Any

import pytest

from askd_ray.config.load import dump_recipe, load_recipe, with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError

EVERYTHING: dict[str, Any] = {
    "speed": [0.9, 1.0, 1.1],
    "reverb": {"share": 0.3, "files": "rooms/**/*.flac"},
    "noise": {"share": 0.5, "snr_db": [0, 15], "files": "noise-*.ogg"},
    "telephone": {"share": 0.1},
    "gain_db": [-6, 3],
    "spec": {"freq_masks": 1, "freq_width": 20, "time_masks": 0},
}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("noise.snr_db=[0, 10]", r"augment\.noise: snr_db = \(0.0, 10.0\) would be ignored: the share is 0"),
        ("noise.files=x/*.wav", r"augment\.noise: files = 'x/\*\.wav' would be ignored: the share is 0"),
        ("reverb.rt60_s=[0.3, 0.4]", r"augment\.reverb: rt60_s = .* would be ignored: the share is 0"),
        ("reverb.files=x/*.wav", r"augment\.reverb: files = .* would be ignored: the share is 0"),
        (
            "reverb={share: 1, files: x, rt60_s: [0.3, 0.4]}",
            r"augment\.reverb: rt60_s = .* would be ignored: the files have their own reverberation times",
        ),
        ("spec={freq_masks: 0, freq_width: 3}", r"augment\.spec: freq_width = 3 would be ignored: there are no freq_m"),
        ("spec={time_masks: 0, time_share: 0.3}", r"augment\.spec: time_share = 0.3 would be ignored: there are no t"),
    ],
)
def test_what_nothing_would_read_is_refused(override: str, message: str):
    with pytest.raises(AskdError, match=message) as caught:
        load_recipe("demo", [f"augment.{override}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("speed=[]", r"augment: speed is empty"),
        ("speed=[0.4]", r"augment\.speed\.0 = 0\.4: .*greater than or equal to 0\.5"),
        ("speed=[1, 2.5]", r"augment\.speed\.1 = 2\.5: .*less than or equal to 2"),
        ("speed=[0.9137]", r"augment\.speed\.0 = 0\.9137: .*multiple of 0\.01"),
        ("noise={share: 1, snr_db: [20, 5]}", r"augment\.noise: snr_db is \[min, max\]"),
        ("noise={share: 1.5}", r"augment\.noise\.share = 1\.5: .*less than or equal to 1"),
        ("noise={share: 1, snr_db: [.nan, 5]}", r"augment\.noise\.snr_db\.0 = nan"),
        ("reverb={share: 1, rt60_s: [0.8, 0.2]}", r"augment\.reverb: rt60_s is \[min, max\]"),
        ("reverb={share: 1, rt60_s: [0, 0.2]}", r"augment\.reverb\.rt60_s\.0 = 0: .*greater than or equal to 0\.05"),
        ("gain_db=[3, -6]", r"augment: gain_db is \[min, max\]"),
        ("telephone.shares=1", r"unknown key 'augment\.telephone\.shares': .*did you mean 'share'\?"),
    ],
)
def test_values_that_make_no_sense(override: str, message: str):
    with pytest.raises(AskdError, match=message):
        load_recipe("demo", [f"augment.{override}"])


def test_every_hundredth_is_a_speed():
    speeds = [hundredths / 100 for hundredths in range(50, 201)]
    assert load_recipe("demo", [f"augment.speed={speeds}"]).augment.speed == tuple(speeds)


def test_spec_augment_has_moved():
    with pytest.raises(AskdError, match=r"unknown key 'spec_augment'"):
        load_recipe("demo", ["spec_augment.freq_masks=0"])


def test_moments_that_must_agree_with_the_clean_clip():
    faster = ["augment.speed=[1.0, 1.1]"]
    with pytest.raises(AskdError, match=r"targets\.timestamps .*augment\.speed must be \[1\.0\]"):
        load_recipe("demo", [*faster, "targets.kind=pseudo", "targets.timestamps=true"])
    with pytest.raises(AskdError, match=r"objective\.hidden_states .*augment\.speed must be \[1\.0\]"):
        load_recipe("demo", [*faster, "teacher.online=true", "objective.hidden_states.kind=mse"])
    assert load_recipe("demo", [*faster, "targets.kind=pseudo"]).augment.changes_speed
    assert not load_recipe("demo", ["augment.speed=[1.0, 1.0]"]).augment.changes_speed


def test_it_survives_the_file_and_its_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = Recipe.model_validate({"augment": EVERYTHING})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
    monkeypatch.chdir(tmp_path)
    absolute = with_absolute_paths(recipe).augment
    assert absolute.noise.files == str(tmp_path / "noise-*.ogg")
    assert absolute.reverb.files == str(tmp_path / "rooms" / "**" / "*.flac")
    assert absolute.noise.snr_db == (0.0, 15.0) and absolute.speed == (0.9, 1.0, 1.1)
    assert with_absolute_paths(Recipe()).augment == Recipe().augment
