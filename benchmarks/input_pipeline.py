"""How fast are batches made of shards, and how long does the training wait for them?

    python benchmarks/input_pipeline.py [--data FOLDER] [--clips N] [--rounds N] [--quick] [--json]

The work: decoding, speed (0.9, 1, 1.1), noise from files at 5 to 20 dB and the log-mel, on two cores. Our loader with
threads is compared with Hugging Face datasets and a torch DataLoader with two worker processes, in turn on the same
Parquet files. The peer shuffles clips into batches of our mean size and pads them to the longest clip. It is measured
again with our batches and windows, which compares the speed alone. The peer's rows are already Arrow files, its noises
are in memory, and soundfile decodes its audio, as it does ours. Our loader also reads and collates the soft labels.

Then the share of time that a training of Whisper tiny.en waits for its data after the warm-up (the first of three
parts of an epoch does not count): in the plain loop, and without --quick also in a Ray Train worker with Ray Data.

--data is a folder of Parquet files (Hugging Face convention), of which --clips clips are used; the default are the IVR
prompts. --json prints one line of JSON last.
"""

import argparse
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median

import numpy as np
import one_line_errors
import soundfile
import torch
import torchaudio.functional as F
from datasets import Audio, disable_progress_bars, load_dataset
from labelled_run import write_run
from rich.table import Table
from speech_rows import clips
from torch.utils.data import DataLoader
from torchaudio.transforms import SpeedPerturbation
from transformers import WhisperFeatureExtractor

from askd_ray.audio.sounds import synthetic_noises
from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.prefetch import prefetch
from askd_ray.data.sampler import DataCursor, ReadTask, tasks_from
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_table, shard_paths
from askd_ray.fetch.weights import fetch_weights
from askd_ray.progress import bar, console
from askd_ray.runs import Run
from askd_ray.torch_setup import n_cores, use_threads
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.inputs import make_batch_loader
from askd_ray.train.track import read_metrics

N_CORES = 2
SPEEDS, SNR_DB = (0.9, 1.0, 1.1), (5.0, 20.0)
OUR_BATCHES = "datasets, our batches"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n_clips, rounds = (24, 3) if options.quick else (options.clips, options.rounds)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:N_CORES])
    use_threads()
    with tempfile.TemporaryDirectory() as root:
        noises = _write_noises(Path(root) / "noises")
        recipe = _recipe(root, noises, rounds + 1)
        utterances = clips(options.data, n_clips)
        write_run(recipe, utterances)
        rates = _rates(recipe, noises, rounds)
        against = _show(rates, utterances)
        waits = {"plain loop": _plain_wait(recipe)}
        if not options.quick:
            waits["Ray Train and Ray Data"] = _ray_wait(recipe)
    for name, share in waits.items():
        console.print(f"waiting for data, {name}: {share:.1%} of the time")
    ratios = against["datasets"]
    result = {
        "vs_hf_datasets": round(median(ratios), 2),
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "vs_hf_datasets_our_batches": round(median(against[OUR_BATCHES]), 2),
        "utterances_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "wait_share": round(waits["plain loop"], 4),
        "wait_shares": {name: round(share, 4) for name, share in waits.items()},
        "mean_s": round(_mean_s(utterances), 2),
        "clips": len(utterances),
        "cores": n_cores(),
    }
    if options.json:
        print(json.dumps(result))


def _show(rates: dict[str, list[float]], utterances: Sequence[Utterance]) -> dict[str, list[float]]:
    """Print the rates; return the ratio of our rate to each other one, round by round."""
    ours = rates["ours"]
    against = {name: [a / b for a, b in zip(ours, values, strict=True)] for name, values in rates.items()}
    del against["ours"]
    title = f"{len(utterances)} clips, mean {_mean_s(utterances):.1f} s, {len(ours)} rounds on {n_cores()} cores"
    table = Table("utt/s", "median", "min", "max", title=title)
    for name, values in {**rates, **{f"ours : {name}": ratios for name, ratios in against.items()}}.items():
        table.add_row(name, *(f"{value:.2f}" for value in (median(values), min(values), max(values))))
    console.print(table)
    return against


def _mean_s(utterances: Sequence[Utterance]) -> float:
    return sum(u.duration_s for u in utterances) / len(utterances)


def _write_noises(folder: Path) -> list[Path]:
    """Write synthetic noises of half a minute into files, in place of recorded ones."""
    folder.mkdir()
    for number, noise in enumerate(synthetic_noises()):
        soundfile.write(folder / f"{number}.flac", (noise / noise.abs().max()).numpy(), SAMPLE_RATE_HZ)
    return sorted(folder.glob("*.flac"))


def _recipe(root: str, noises: Sequence[Path], epochs: int) -> Recipe:
    noise = {"share": 1.0, "snr_db": SNR_DB, "files": str(noises[0].parent / "*.flac")}
    values = {
        "name": "made",
        "runs_root": root,
        "teacher": {"model": str(fetch_weights("tiny.en"))},
        "augment": {"speed": SPEEDS, "noise": noise, "spec": {"freq_masks": 0, "time_masks": 0}},
        "train": {"epochs": epochs},
    }
    return Recipe.model_validate(values)


def _rates(recipe: Recipe, noises: Sequence[Path], rounds: int) -> dict[str, list[float]]:
    """Return the utterances per second in each round; a first round for warm-up does not count."""
    loader = make_batch_loader(recipe, n_mels=80)
    tasks = list(tasks_from(length_grouped_sampler(loader.rows(), loader), DataCursor(), 0, 1))
    peer = _Peer(loader, noises)
    makers = {"datasets": peer.batches, OUR_BATCHES: peer.our_batches, "ours": partial(_our_batches, loader)}
    rates: dict[str, list[float]] = {name: [] for name in makers}
    with bar("rounds", rounds + 1, "round") as progress:
        for number in range(rounds + 1):
            epoch = [task for task in tasks if task.epoch == number]
            for name in [*makers, *makers][number % 3 : number % 3 + 3]:
                begun = time.perf_counter()
                n_made = sum(makers[name](epoch))
                if number:
                    rates[name].append(n_made / (time.perf_counter() - begun))
            progress.advance()
    return rates


def _our_batches(loader: BatchLoader, tasks: Iterable[ReadTask]) -> Iterator[int]:
    """Make the batches of tasks; yield the number of utterances in each."""
    made = prefetch((job for task in tasks for job in loader.batch_tasks(task)), 4 * n_cores(), threads=n_cores())
    return (len(batch.log_mel) for batch in made)  # as the plain loop does it


class _Peer:
    """The usual combination of Hugging Face datasets, transformers, torchaudio and a torch DataLoader."""

    def __init__(self, loader: BatchLoader, noises: Sequence[Path]):
        paths = shard_paths(loader.shards, "train")
        disable_progress_bars()
        files, cache = [str(path) for path in paths], str(noises[0].parent / "datasets")
        rows = load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
        # Otherwise datasets decodes through torchcodec, which needs FFmpeg on the machine.
        self._rows = rows.select_columns(["audio"]).cast_column("audio", Audio(decode=False))
        counts = [read_table(path, ["id"]).num_rows for path in paths]
        self._first_row = dict(zip((path.name for path in paths), accumulate(counts, initial=0), strict=False))
        self._noises = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in noises]
        self._speed = SpeedPerturbation(SAMPLE_RATE_HZ, SPEEDS)
        self._extract = WhisperFeatureExtractor(feature_size=loader.n_mels)
        self._planned: list[list[tuple[int, int]]] = []
        self._loader = DataLoader(
            self,
            batch_sampler=self._planned,
            collate_fn=self._collate,
            num_workers=N_CORES,
            prefetch_factor=4,
            persistent_workers=True,
        )

    def batches(self, tasks: Iterable[ReadTask]) -> Iterator[int]:
        """Make as many batches as the tasks have, of all clips shuffled; yield the number of utterances in each."""
        rows, n_batches = list(range(len(self._rows))), sum(len(task.batches) for task in tasks)
        random.shuffle(rows)
        size = round(len(rows) / n_batches)
        self._planned[:] = [[(row, 0) for row in rows[i : i + size]] for i in range(0, len(rows), size)]
        return (len(log_mel) for log_mel in self._loader)

    def our_batches(self, tasks: Iterable[ReadTask]) -> Iterator[int]:
        """Make the batches of tasks in their windows; yield the number of utterances in each."""
        self._planned[:] = [
            [
                (self._first_row[task.blocks[block].shard] + task.blocks[block].rows.start + row, window)
                for block, row, window in batch[["block", "row", "window_samples"]].tolist()
            ]
            for task in tasks
            for batch in task.batches
        ]
        return (len(log_mel) for log_mel in self._loader)

    def __getitem__(self, row_and_window: tuple[int, int]) -> tuple[np.ndarray, int]:
        row, window = row_and_window
        samples, rate_hz = soundfile.read(io.BytesIO(self._rows[row]["audio"]["bytes"]), dtype="float32")
        assert rate_hz == SAMPLE_RATE_HZ
        clip, _ = self._speed(torch.from_numpy(samples))
        noise = random.choice(self._noises)
        start = random.randrange(len(noise) - len(clip) + 1)
        snr_db = torch.tensor(random.uniform(*SNR_DB))
        return F.add_noise(clip, noise[start : start + len(clip)], snr_db).numpy(), window

    def _collate(self, items: Sequence[tuple[np.ndarray, int]]) -> torch.Tensor:
        clips, windows = zip(*items, strict=True)
        made = self._extract(
            list(clips),
            sampling_rate=SAMPLE_RATE_HZ,
            padding="max_length" if max(windows) else "longest",
            max_length=max(windows) or None,
            return_tensors="pt",
        )
        return made["input_features"]


def _trained(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe of a training that records its waiting time three times per epoch."""
    values = recipe.model_dump(mode="json")
    train = values["train"] | {"epochs": 1, "evals_per_epoch": 3}
    return Recipe.model_validate({**values, "name": name, "data_run": recipe.name, "train": train})


def _wait(folder: Path) -> float:
    wait_shares = [line["data_wait_share"] for line in read_metrics(folder) if "data_wait_share" in line]
    return sum(wait_shares[1:]) / len(wait_shares[1:])


def _plain_wait(recipe: Recipe) -> float:
    run = Run(_trained(recipe, "plain"))
    build_loop(run.recipe, PlainContext(torch.device("cpu")), run.distill, "plain").run()
    return _wait(run.distill)


def _ray_wait(recipe: Recipe) -> float:
    from askd_ray.ray_cluster import disconnect
    from askd_ray.train.ray_trainer import distill

    run = Run(_trained(recipe, "ray"))
    distill(run.recipe)
    disconnect()
    return _wait(run.distill)


if __name__ == "__main__":
    one_line_errors.run(main)
