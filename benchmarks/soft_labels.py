"""The size and speed of soft labels, and their loss of KL: Whisper tiny.en on the IVR prompts.

    python benchmarks/soft_labels.py [--clips N] [--quick] [--json]

It measures bytes per token, as arrays and in the Parquet file of a label shard (with few clips the file's footer
matters); utterances/s written to and read from a shard of 512 (best of three rounds, in the page cache); and the part
of the dense KL that the KL over top-k and rest misses, from the teacher in its padded window to the untrained student
in a trimmed one.
--quick takes 8 clips, --json prints one line of JSON at the end.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import one_line_errors
from rich.table import Table
from speech_rows import clips

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import LabelKey, SoftLabels, read_labels, write_labels
from askd_ray.models.layer_map import build_student
from askd_ray.models.load import load_whisper
from askd_ray.progress import console
from askd_ray.targets.kl_report import REPORTED_KS, kl_lost, kl_table
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.torch_setup import use_threads

CLIPS, QUICK_CLIPS = 96, 8
SHARD_UTTERANCES, ROUNDS = 512, 3
ARRAYS = ("top_ids", "top_log_probs", "rest_log_prob", "token_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    use_threads()
    recipe = Recipe.model_validate({"teacher": {"top_k": max(REPORTED_KS)}})
    teacher, tokens = load_whisper(recipe.teacher.model)
    student, _ = build_student(recipe.student, recipe.teacher.model)
    utterances = clips(None, QUICK_CLIPS if options.quick else options.clips)
    began = time.perf_counter()
    labels = label(teacher, tokens, utterances, recipe)
    scores = {"label_utterances_per_s": len(labels) / (time.perf_counter() - began)}
    kept = [made for made in labels if not made.left_out]
    key = label_key(recipe)
    table = Table("k", "B a token", "on disk", "written utt/s", "read utt/s", title=f"soft labels, {len(kept)} clips")
    for k in REPORTED_KS:
        cost = disk_cost([first_k(made, k) for made in kept], {**key, "top_k": k})
        table.add_row(str(k), *(f"{value:.0f}" for value in cost.values()))
        scores |= {f"{name}_k{k}": round(value, 1) for name, value in cost.items()}
    report = kl_lost(teacher, student, utterances, labels, recipe)
    for lost in report:
        scores |= {f"kl_lost_k{lost.k}": round(lost.nats, 5), f"kl_lost_share_k{lost.k}": round(lost.share, 5)}
    console.print(table, kl_table(report))
    if options.json:
        print(json.dumps({**scores, "kl_dense": round(report[0].dense, 4), "clips": len(kept)}))


def first_k(made: SoftLabels, k: int) -> SoftLabels:
    """Return labels with only their first k tokens; the others are added to the rest."""
    mass = np.exp(made.rest_log_prob.astype(np.float64)) + np.exp(made.top_log_probs[:, k:].astype(np.float64)).sum(1)
    return dataclasses.replace(
        made,
        top_ids=made.top_ids[:, :k],
        top_log_probs=made.top_log_probs[:, :k],
        rest_log_prob=np.log(mass).astype(np.float16),
    )


def disk_cost(labels: Sequence[SoftLabels], key: LabelKey) -> dict[str, float]:
    """Return the bytes per token in memory and on disk, and the utterances/s of writing and reading a large shard."""
    rng = np.random.default_rng(0)
    large = [noise_like(labels[i % len(labels)], rng) for i in range(SHARD_UTTERANCES)]
    n_tokens = sum(len(made.target_ids) for made in labels)
    in_memory = sum(getattr(made, name).nbytes for made in labels for name in ARRAYS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.parquet"
        write_labels(path, labels, key)
        on_disk = path.stat().st_size
        written = fastest(lambda: write_labels(path, large, key))
        read = fastest(lambda: read_labels(path, key["top_k"]))
    return {
        "bytes_per_token": in_memory / n_tokens,
        "disk_bytes_per_token": on_disk / n_tokens,
        "write_utterances_per_s": SHARD_UTTERANCES / written,
        "read_utterances_per_s": SHARD_UTTERANCES / read,
    }


def noise_like(made: SoftLabels, rng: np.random.Generator) -> SoftLabels:
    """Return random labels of this length: copies would compress, and be written and read too fast."""
    like = {name: getattr(made, name) for name in ARRAYS}
    arrays = {name: np.frombuffer(rng.bytes(a.nbytes), a.dtype).reshape(a.shape) for name, a in like.items()}
    losses = rng.uniform(0.0, 8.0, made.token_loss.shape).astype(np.float16)  # the shard also has their mean
    return dataclasses.replace(made, content_hash=rng.bytes(32).hex(), **{**arrays, "token_loss": losses})


def fastest(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest round."""
    times: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    one_line_errors.run(main)
