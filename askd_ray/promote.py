"""`askd promote`: serves a bundle under a name, if its WER is lower than that of the served version."""

from pathlib import Path

from askd_ray.evaluation.gate import check_gate
from askd_ray.files import local_path
from askd_ray.models.bundle import check_hashes, read_bundle
from askd_ray.progress import console
from askd_ray.serve.engine import Hardware
from askd_ray.serve.registry import Registry
from askd_ray.serve.swap import load_verified


def promote(bundle: Path, registry: Registry, name: str, force: bool = False) -> Path:
    """Verify a bundle, compare it with the served version of ``name``, and serve it; return its folder in the registry.

    Running services load it within seconds. Without a served version, and with ``force``, there is no comparison.

    Raises :class:`AskdError` for a damaged bundle, for one whose transcripts differ from those at its export, and for
    one that does not beat the served version. The registry does not change then.
    """
    bundle = local_path(bundle)
    check_hashes(bundle)
    version = read_bundle(bundle).version
    current = registry.current(name)
    if current is not None and current.name == version:
        console.print(f"{name}: version {version} is already served")
        return current
    load_verified(bundle, name, Hardware())
    if current is not None and not force:
        check_gate(bundle, current)
    folder = registry.add(name, bundle)
    registry.promote(name, version)
    console.print(f"{name}: version {version} is served from now on ({registry.folder})")
    return folder
