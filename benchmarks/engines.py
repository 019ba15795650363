"""The student against the strongest programs that run its teacher, in one run: latency beside WER.

    python benchmarks/engines.py [--student BUNDLE] [--teacher NAME] [--data FOLDER] [--split dev] [--clips 100]
                                 [--threads N] [--peer FOLDER]... [--plot FILE.png] [--quick] [--json]

--student is a bundle, or a student's transformers folder; formats that it lacks are written into a temporary folder.
Without it the student is the teacher's weights, in windows of at least 8 s: the benchmark runs without a training, and
its ratios say what the engine alone brings. --data has *-SPLIT*.parquet; without it the clips are IVR prompts. --clips
are taken in equal parts from the clips below 2 s, of 2 to 5, 5 to 10 and 10 to 30 s. --threads: default all cores.

Every system has a separate process and decodes greedily, one clip at a time, from the bytes of the file to the text,
in turns. The student runs in each of its formats. The peers run the teacher: faster-whisper, plain and batched;
whisper.cpp with windows of 30 s and with audio_ctx (the clip and 0.3 s, at least 8 s); transformers; OpenVINO, in these
windows too; onnx-asr. Two kinds of peers run other models: Moonshine tiny, whose weights moonshine-voice before 0.1
brings; and each --peer, a folder as a model archive of sherpa-onnx unpacks: a transducer, a CTC model, Whisper or
Moonshine, with its int8 files where it has them. sherpa-onnx runs both. A system of which a package is missing has a
line that says what to install.

--plot draws the latency of short clips against the WER. --quick takes 4 clips, and leaves out the `onnx` format,
which takes long to write, and whisper.cpp with unrounded weights; it ends within 50 s on two idle cores. --json
prints one line of JSON. A ratio counts only beside its difference of WERs, which is in points, with its 95 %
interval:

- p50_short_ratio_vs_faster_whisper: the median time of a clip below 2 s in faster-whisper, over that of the student in
  the format that `askd serve` runs on a CPU; and wer_minus_teacher, the student's WER minus that of faster-whisper
- p50_short_ratio_vs_best_peer: the same with best_peer, the fastest peer below 2 s; and wer_minus_best_peer
- formats_ok: no WER of the student's formats is more than 0.5 points from that of its unrounded weights in the same
  windows; formats: how many were measured
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import one_line_errors

N_CLIPS, QUICK_CLIPS = 100, 4
WIDTH = 150  # characters of the table
POOL = 20  # clips to choose from, for each clip


def main() -> None:
    """Measure and print; raises :class:`AskdError` for options that cannot work, before the slow imports if it can."""
    # Not above: each system's process imports this file, and what it imports would count as memory of the system.
    from sherpa_folders import models_of

    options = parse_options()
    peers = models_of(options.peer)
    from engine_plot import draw
    from engine_results import measure, results_table, spread, summary
    from engine_rows import rows_of
    from sherpa_rows import sherpa_rows
    from speech_rows import clips
    from student_formats import described

    from askd_ray.errors import AskdError
    from askd_ray.progress import console
    from askd_ray.torch_setup import n_cores

    threads = options.threads or n_cores()
    n_clips = QUICK_CLIPS if options.quick else options.clips
    chosen = spread(clips(options.data, POOL * n_clips, options.split), n_clips)
    if not chosen:
        raise AskdError(f"--data {options.data}: no clip of at most 30 s with a text")
    reader = "whisper" if options.student is None else described(options.student)[0]
    with TemporaryDirectory() as scratch:
        with console.status("Writing the formats"):
            rows = rows_of(options.student, options.teacher, threads, Path(scratch), options.quick)
        rows += sherpa_rows(peers, threads, Path(scratch))
        measured = measure(rows, chosen)
        student = options.student or f"the weights of {options.teacher}, not trained"
        title = f"{len(chosen)} clips, {threads} threads; student: {student}; teacher: {options.teacher}"
        console.width = max(console.width, WIDTH)
        console.print(results_table(title, measured))
        found = summary(measured, reader)
    if options.plot is not None:
        console.print(f"picture: {draw(found['systems'], options.plot)}")
    if options.json:
        about = {"student_is_teacher": options.student is None, "teacher": options.teacher, "threads": threads}
        print(json.dumps({**found, **about, "clips": len(chosen)}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--teacher", default="wheel:tiny.en")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--clips", type=int, default=N_CLIPS)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--peer", type=Path, action="append", default=[])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    one_line_errors.run(main)
