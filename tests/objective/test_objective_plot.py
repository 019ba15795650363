from pathlib import Path

import pytest
from PIL import Image

from askd_ray.config.load import load_recipe
from askd_ray.config.presets import CTC_PRESETS, PRESETS
from askd_ray.objective.plot import plot_schedule, schedule_arrays


def test_the_arrays_are_what_the_steps_get():
    arrays = schedule_arrays(load_recipe("demo", ["objective={preset: askd, teacher_weight: {start: 0.6, end: 0.2}}"]))
    assert (arrays["a"][0], arrays["a"][250], arrays["a"][-1]) == pytest.approx((0.6, 0.4, 0.2))
    assert (arrays["b"][0], arrays["b"][249], arrays["b"][250]) == (0.0, 0.0, 0.2)
    assert set(arrays["T"]) == {1.0} and set(arrays["k"]) == {0.0} and set(arrays["s"]) == {0.0}
    with_states = schedule_arrays(load_recipe("demo", ["objective.preset=askd_window", "targets.states=all"]))
    assert (with_states["s"][0], with_states["s"][175], with_states["s"][-1]) == pytest.approx((1.0, 0.825, 0.5))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_drawn(preset: str, tmp_path: Path):
    ctc = ["student.reader=ctc"] if preset in CTC_PRESETS else []
    path = plot_schedule(
        load_recipe("demo", [f"objective.preset={preset}", "targets.states=all", *ctc]),
        tmp_path / "plots" / "schedule.png",
    )
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 600
        assert len(image.convert("RGB").getcolors(1 << 16) or []) > 3  # lines in colour, not an empty page
