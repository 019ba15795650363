"""Published training objectives as presets of one configurable objective. Add new ones to :data:`PRESETS`.

CE is the cross-entropy of the reference (or pseudo-label) token, KD and self-KD are ``T^2 D(teacher, student)`` and
``T^2 D(self, student)``, all summed over target tokens and divided by their number.
"""

from dataclasses import dataclass
from typing import Any

from askd_ray.progress import Table

FieldValues = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """A method: its formula, its source, the values it sets, and the paths that a recipe may set."""

    formula: str
    source: str
    values: FieldValues
    open: tuple[str, ...]


_NO_TEACHER: FieldValues = {"teacher_weight": {"schedule": "constant", "start": 0.0}}
_NO_SELF: FieldValues = {"self_teacher": {"kind": "none"}}
_ASKD_OPEN = (
    "teacher_weight",
    "self_teacher",
    "temperature",
    "instance_weights",
    "trust_gate",
    "divergence",
    "hidden_states",
    "decoder_states",
    "states_weight",
    "ctc_weight",
    "intermediate",
)
_ADAKD: FieldValues = {
    "teacher_weight": {"schedule": "constant", "start": 1.0},
    **_NO_SELF,
    "ce_weight": "instance_complement",
    "instance_weights": {"kind": "adakd"},
}
_ADAKD_OPEN = ("instance_weights.k_start", "instance_weights.k_end", "instance_weights.threshold", "temperature")
_INTERMEDIATE = ("intermediate.layers", "intermediate.weight")
_SELF_KD_OPEN = ("temperature", "divergence")


PRESETS: dict[str, Preset] = {
    "ce": Preset("CE", "fine-tuning on the labels only", {**_NO_TEACHER, **_NO_SELF}, ()),
    "kd_distil_whisper_paper": Preset(
        "1.0 CE + 0.8 KL at T = 2",
        "Distil-Whisper, arXiv 2311.00430, the paper",
        {
            "teacher_weight": {"schedule": "constant", "start": 0.8},
            **_NO_SELF,
            "ce_weight": 1.0,
            "temperature": {"start": 2.0},
            "divergence": {"t_squared": False},
        },
        (),
    ),
    "kd_distil_whisper_code": Preset(
        "0.8 CE + 1.0 T^2 KL at T = 2",
        "Distil-Whisper, its released code",
        {
            "teacher_weight": {"schedule": "constant", "start": 1.0},
            **_NO_SELF,
            "ce_weight": 0.8,
            "temperature": {"start": 2.0},
        },
        (),
    ),
    "adakd": Preset(
        "(1 - w_i) CE + w_i T^2 KL, w_i = exp(-exp(k (x_i - t) / 2)), k falling",
        "AdaKD, arXiv 2405.08019",
        _ADAKD,
        _ADAKD_OPEN,
    ),
    "pskd": Preset(
        "(1 - b) CE + b KL(previous epoch, student), b = 0.8 (epoch + 1) / epochs",
        "PS-KD, arXiv 2006.12000",
        {
            **_NO_TEACHER,
            "self_teacher": {"kind": "previous_epoch", "weight": 0.8, "schedule": "linear", "switch": 0.0},
        },
        ("self_teacher.weight", "self_teacher.top_k"),
    ),
    "self_kd": Preset(
        "(1 - b) CE + b self-KD",
        "the student as its only teacher",
        {**_NO_TEACHER, "self_teacher": {"kind": "snapshot"}},
        ("self_teacher", *_SELF_KD_OPEN),
    ),
    "askd": Preset(
        "(1 - a - b) CE + a w_i g_n KD + b self-KD, a falling with time",
        "ASKD, arXiv 2601.19919",
        {},
        _ASKD_OPEN,
    ),
    "askd_gap": Preset(
        "(1 - a - b) CE + a w_i g_n KD + b self-KD, a falling with the student's distance from the teacher",
        "ASKD with the decay driven by the losses",
        {"teacher_weight": {"schedule": "gap"}},
        ("teacher_weight.start", "teacher_weight.end", *_ASKD_OPEN[1:]),
    ),
    "askd_window": Preset(
        "(1 - a - b) CE + a w_i g_n KD + b self-KD + s D_h(teacher) + b D_h(self), s and a falling with time; D_h: "
        "squared distance of decoder states",
        "ASKD that begins with the teacher's decoder states in 30 s windows; states as in futo-org/whisper-acft",
        {
            "teacher_weight": {"schedule": "linear", "start": 1.0, "end": 0.2},
            "self_teacher": {"kind": "ema", "weight": 0.2, "switch": 0.7},
            "decoder_states": {"kind": "mse", "layers": "all", "self_teacher": True, "scale": 0.1},
            "states_weight": {"schedule": "linear", "start": 1.0, "end": 0.5},
        },
        _ASKD_OPEN,
    ),
    "ctc": Preset("CTC", "training a CTC head on the labels only", {**_NO_TEACHER, **_NO_SELF}, ()),
    "adakd_ctc": Preset(
        "(1 - w_i) CTC + w_i T^2 KL on the path, w_i = exp(-exp(k (x_i - t) / 2)), k falling",
        "AdaKD, arXiv 2405.08019, for a CTC head",
        _ADAKD,
        _ADAKD_OPEN,
    ),
    "inter_kd": Preset(
        "(1 - a) CTC + a KL on the path, after the last encoder layer and at intermediate ones",
        "in the spirit of Inter-KD, arXiv 2211.15075 (abstract); CTC at intermediate layers: arXiv 2102.03216",
        {
            "teacher_weight": {"schedule": "constant", "start": 0.5},
            **_NO_SELF,
            "intermediate": {"kind": "ctc"},
        },
        ("teacher_weight.start", "temperature", "divergence", *_INTERMEDIATE),
    ),
    "askd_ctc": Preset(
        "(1 - a - b) CTC + a w_i g_n KD on the path + b self-KD, a falling with time; the last layer teaches "
        "intermediate ones with the weight b",
        "ASKD for a CTC head; self-KD of intermediate layers: arXiv 2406.07909",
        {
            "teacher_weight": {"schedule": "linear", "start": 0.5, "end": 0.1},
            "self_teacher": {"kind": "ema", "weight": 0.2, "switch": 0.5},
            "intermediate": {"kind": "ctc", "self_kd": True},
        },
        (
            "teacher_weight",
            "self_teacher",
            "temperature",
            "instance_weights",
            "trust_gate",
            "divergence",
            "intermediate",
        ),
    ),
}


CTC_PRESETS = ("ctc", "adakd_ctc", "inter_kd", "askd_ctc")
"""Those that train a CTC head."""


def table() -> Table:
    """Return the presets with their formulas, as a table to print."""
    shown = Table(show_lines=True)
    shown.add_column("preset", no_wrap=True)
    shown.add_column("loss a token, source, what a recipe may set")
    for name, preset in PRESETS.items():
        shown.add_row(
            name, f"{preset.formula}\n{preset.source}\n[dim]{', '.join(preset.open) or 'nothing to set'}[/dim]"
        )
    return shown
