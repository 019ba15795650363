from pathlib import Path

from askd_ray.models.cost import parts
from askd_ray.models.ctc import load_ctc
from askd_ray.models.ctc_cost import ctc_parts
from askd_ray.models.load import load_config


def test_costs_are_those_of_the_encoder_and_of_the_head(ctc_student: Path):
    encoder, head = ctc_parts(ctc_student, n_frames=200)
    of_whisper = [part for part in parts(load_config(str(ctc_student)), 200) if part.name.startswith("encoder")]
    assert encoder.params == sum(part.params for part in of_whisper)
    assert encoder.multiply_adds == sum(part.multiply_adds for part in of_whisper)
    model, _ = load_ctc(ctc_student)
    width, n_classes = model.config.d_model, model.head.vocabulary.n_classes
    assert head.params == width * width + width + n_classes * width
    assert head.multiply_adds == 100 * width * (width + n_classes)
