"""Whether the trials of a search share decoded clips: only if the files of :mod:`askd_ray.data.features` fit."""

import shutil
from pathlib import Path

from askd_ray.audio.units import FRAMES_PER_S, SAMPLE_RATE_HZ
from askd_ray.config.schema import Recipe
from askd_ray.progress import console
from askd_ray.runs import Run

_MAX_MELS = 128  # of all Whisper models
_VALUE_BYTES = 4
_DISK_SHARE = 0.5  # of the free space: trials write checkpoints too


def shared_features(recipe: Recipe, folder: Path) -> Path | None:
    """Return the folder of decoded clips that the trials of the search in ``folder`` share, and print the decision.

    None: each trial reads the shards, because the files would exceed ``tune.max_features_gb`` or half of the disk's
    free space.
    """
    limit_gb = recipe.tune.max_features_gb
    if not limit_gb:
        return None
    size_gb, free_gb = features_gb(recipe), shutil.disk_usage(folder).free / 1e9
    if size_gb > limit_gb:
        reason = f"tune.max_features_gb = {limit_gb:g}"
    elif size_gb > _DISK_SHARE * free_gb:
        reason = f"{folder} has {free_gb:,.1f} GB free"
    else:
        console.print(f"tune: the trials share decoded clips: {size_gb:,.1f} GB (tune.max_features_gb = {limit_gb:g})")
        return folder / "features"
    console.print(f"tune: each trial reads the shards: decoded clips would take {size_gb:,.1f} GB, and {reason}")
    return None


def features_gb(recipe: Recipe) -> float:
    """Return the largest size of the decoded clips of the train split, in GB: waveforms, or log-mels of 128 bins."""
    prepared = (Run(recipe).record("prepare") or {}).get("result", {})
    seconds = 60.0 * prepared.get("minutes", {}).get("train", 0.0)
    needs_waveforms = recipe.augment.changes_waveform or recipe.teacher.online
    values_per_s = SAMPLE_RATE_HZ if needs_waveforms else _MAX_MELS * FRAMES_PER_S
    return seconds * values_per_s * _VALUE_BYTES / 1e9
