"""Load `askd serve` while models are swapped, engines are killed and too many clients connect.

    python benchmarks/serve_chaos.py --bundle FOLDER [--data FOLDER] [--requests N] [--quick] [--json]

(a) One engine; five swaps through the registry while it serves, one of them to a damaged bundle. (b) Two engines that
are killed in turn (SIGKILL); with --quick, the engine of (a). (c) Four times the allowed number of clients, for some
seconds. An answer has failed if its status is not 200 (in (c): neither 200 nor 429 with Retry-After). It is wrong if
its text differs from the text of the same clip without other load; all versions have the same weights. --json prints
one line of JSON at the end.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import one_line_errors
from rich.table import Table
from served import Answer, Service, askd, cycle_clips, send_concurrently
from speech_rows import clips

from askd_ray.data.schema import Utterance
from askd_ray.files import read_json, write_json
from askd_ray.models.bundle import BUNDLE_FILE, hashes
from askd_ray.progress import console
from askd_ray.serve.registry import Registry

CLIENTS, MAX_REQUESTS = 4, 8
SWAP_S, KILL_S = 6.0, 8.0  # intervals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--requests", type=int, default=2000, help="minimum for (a) and (b) together")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = clips(options.data, 12)
    n_requests = 40 if options.quick else options.requests // 2
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder) / "registry")
        versions = [version(registry, options.bundle, Path(folder) / f"v{i}", bytes([i])) for i in range(3)]
        (versions[2] / "ctranslate2-int8" / "config.json").write_text("{}", encoding="utf-8")
        registry.promote("student", versions[0].name)
        with askd("student", "--registry", str(registry.folder), "--requests", str(MAX_REQUESTS)) as service:
            swapped, seen = asyncio.run(swaps(service, rows, registry, versions, n_requests, options.quick))
            if options.quick:  # kill the same engine: its replacement must not load the damaged bundle
                killed, n_kills = asyncio.run(kills(service, rows, n_requests, 1))
            flooded = asyncio.run(flood(service, rows, 3.0 if options.quick else 30.0))
    if not options.quick:
        with askd("student", "--model", f"student={options.bundle}", "--engines", "2") as service:
            killed, n_kills = asyncio.run(kills(service, rows, n_requests, 5))
    answer_counts = {"swaps": swapped, "kills": killed, "overload": flooded["answers"]}
    console.print(table(answer_counts, seen, n_kills, flooded))
    steady = [swapped, killed]
    result = {
        "failed": sum(counted["failed"] for counted in steady),
        "wrong": sum(counted["wrong"] for counted in answer_counts.values()),
        "requests": sum(counted["requests"] for counted in steady),
        "non_429": flooded["answers"]["failed"],
        "versions_seen": seen,
        "kills": n_kills,
        **{name: value for name, value in flooded.items() if name != "answers"},
    }
    if options.json:
        print(json.dumps(result))


def version(registry: Registry, bundle: Path, folder: Path, mark: bytes) -> Path:
    """Add a bundle to the registry; a byte after its weights makes it another version."""
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("transformers", "ctranslate2-float16"))
    with (folder / "ctranslate2-int8" / "model.bin").open("ab") as model:
        model.write(mark)
    write_json(folder / BUNDLE_FILE, {**read_json(folder / BUNDLE_FILE), "sha256": hashes(folder)})
    return registry.add("student", folder)


async def steady(
    service: Service, rows: Sequence[Utterance], n_requests: int, disturb: Callable[[], Awaitable[None]]
) -> tuple[dict[str, int], list[Answer]]:
    """Return the counts of a steady load; it lasts until ``disturb`` and all requests are done."""
    alone = {a.clip: a.text for a in await send_concurrently(service, rows, 1, range(len(rows)))}
    disturbing = asyncio.ensure_future(disturb())
    answers = await send_concurrently(service, rows, CLIENTS, cycle_clips(rows, n_requests))
    while not disturbing.done():
        answers += await send_concurrently(service, rows, CLIENTS, cycle_clips(rows, 4 * CLIENTS))
    await disturbing
    return counts(answers, alone), answers


def counts(answers: Sequence[Answer], alone: dict[int, str], refused: bool = False) -> dict[str, int]:
    """Count answers; with ``refused``, 429 with Retry-After is no failure."""
    good = [a for a in answers if a.status == 200]
    refusals = sum(a.status == 429 and a.retry_after for a in answers) if refused else 0
    wrong = sum(a.text != alone[a.clip] for a in good)
    failed = len(answers) - len(good) - refusals
    if failed:
        bad = next(a for a in answers if a.status != 200 and not (refused and a.status == 429 and a.retry_after))
        after_s = bad.begun - answers[0].begun
        console.print(f"[red]{failed} failed, the first after {after_s:.1f} s: {bad.status} {bad.text[:200]}[/red]")
    return {"requests": len(answers), "failed": failed, "wrong": wrong, "refused": refusals}


async def swaps(
    service: Service, rows: Sequence[Utterance], registry: Registry, versions: list[Path], n_requests: int, quick: bool
) -> tuple[dict[str, int], int]:
    """Swap the model while it serves; return the counts and the number of versions that answered."""
    first, second, bad = (v.name for v in versions)
    seen = {await served_version(service)}

    async def disturb() -> None:
        for name in (second, bad) if quick else (second, first, bad, second, first):
            registry.promote("student", name)
            await asyncio.sleep(SWAP_S / 2 if quick else SWAP_S)
            seen.add(await served_version(service))

    answer_counts, _ = await steady(service, rows, n_requests, disturb)
    return answer_counts, len(seen)


async def served_version(service: Service) -> str:
    """Return the served version."""
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        return str((await client.get(f"{service.url}/v1/models/{service.model}")).json()["version"])


async def kills(service: Service, rows: Sequence[Utterance], n_requests: int, n: int) -> tuple[dict[str, int], int]:
    """Kill engines at intervals; return the counts and the number of killed engines."""
    killed = 0

    async def disturb() -> None:
        nonlocal killed
        for _ in range(n):
            await asyncio.sleep(1.0)
            engines = service.replicas("Engine")
            if engines:
                engines[killed % len(engines)].kill()
                killed += 1
            await asyncio.sleep(KILL_S if n > 1 else 1.0)

    answer_counts, _ = await steady(service, rows, n_requests, disturb)
    return answer_counts, killed


async def flood(service: Service, rows: Sequence[Utterance], seconds: float) -> dict[str, object]:
    """Run four times the allowed number of clients; return counts, memory, and the time until latency is normal."""
    before = await send_concurrently(service, rows, 1, cycle_clips(rows, 2 * len(rows)))
    alone = {a.clip: a.text for a in before}
    normal_s = float(np.median([a.seconds for a in before]))
    warm = await send_concurrently(service, rows, MAX_REQUESTS, cycle_clips(rows, 4 * MAX_REQUESTS))  # the allowed load
    memory_mb, stop = service.memory_mb(), asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    answers = await send_concurrently(service, rows, 4 * MAX_REQUESTS, cycle_clips(rows), stop)
    ended, after_mb = time.perf_counter(), service.memory_mb()
    back_s = float("nan")
    for _ in range(10):
        later = await send_concurrently(service, rows, 1, range(len(rows)))
        if np.median([a.seconds for a in later]) <= 1.5 * normal_s:
            back_s = max(0.0, min(a.begun for a in later) - ended)
            break
    return {
        "answers": counts([*warm, *answers], alone, refused=True),
        "memory_grew": round(after_mb / memory_mb - 1.0, 3),
        "back_to_normal_s": round(back_s, 2),
    }


def table(answer_counts: dict[str, dict[str, int]], seen: int, n_kills: int, flooded: dict[str, object]) -> Table:
    shown = Table(
        title=f"{seen} versions served, {n_kills} engines killed; after the flood memory grew by "
        f"{100 * float(str(flooded['memory_grew'])):.0f} % and latency was normal after {flooded['back_to_normal_s']} s"
    )
    for column in ("", "requests", "failed", "wrong", "refused (429)"):
        shown.add_column(column, justify="right" if column else "left")
    for name, counted in answer_counts.items():
        shown.add_row(name, *(str(counted[key]) for key in ("requests", "failed", "wrong", "refused")))
    return shown


if __name__ == "__main__":
    one_line_errors.run(main)
