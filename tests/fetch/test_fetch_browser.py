import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from askd_ray.errors import AskdError
from askd_ray.fetch import npm
from askd_ray.fetch.browser import RUNTIME_FILES, browser_runtime, fetch_browser_runtime


@pytest.fixture
def served(monkeypatch):
    """Let npm bring a package with these members."""

    def serve(members):
        def pack(command, cwd, **_):
            with tarfile.open(Path(cwd, "package.tgz"), "w:gz") as package:
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    package.addfile(info, io.BytesIO(data))
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(npm.shutil, "which", lambda tool: tool)
        monkeypatch.setattr(npm.subprocess, "run", pack)

    return serve


def test_runtime_and_licence(runtime):
    assert {file.name for file in runtime.iterdir()} == {*RUNTIME_FILES, "LICENSE.txt"}
    assert "Microsoft" in (runtime / "LICENSE.txt").read_text()


def test_cached_runtime_needs_no_tools(runtime, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert fetch_browser_runtime() == browser_runtime() == runtime


@pytest.mark.parametrize("change", ["flip", "delete"])
def test_damaged_cache_is_refused_with_a_repair_command(runtime, cache, change):
    file = cache / "browser" / runtime.name / RUNTIME_FILES[0]
    shutil.copytree(runtime, file.parent)
    if change == "flip":
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
    else:
        file.unlink()
    for call in (fetch_browser_runtime, browser_runtime):
        with pytest.raises(AskdError, match=r"ort\.wasm.* is (corrupt|missing).*`askd fetch browser --force`"):
            call()


def test_missing_runtime_is_refused(cache):
    with pytest.raises(AskdError, match=r"not in the cache: `askd fetch browser` fetches it"):
        browser_runtime()


def test_missing_npm_is_refused_with_an_alternative(cache, monkeypatch):
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(AskdError, match=r"no npm here: install Node\.js, or copy the folder browser/"):
        fetch_browser_runtime()
    assert list(cache.iterdir()) == []


def test_failing_npm_leaves_nothing(cache, monkeypatch, refusing_port):
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{refusing_port}")
    monkeypatch.setenv("npm_config_cache", str(cache / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(AskdError, match=r"npm could not fetch onnxruntime-web@\S+ \(npm \S+ code ECONNREFUSED\)") as e:
        fetch_browser_runtime()
    assert "\n" not in str(e.value)
    assert list((cache / "browser").iterdir()) == []


def test_other_contents_are_refused(cache, served):
    served({f"package/dist/{name}": b"other" for name in RUNTIME_FILES})
    with pytest.raises(AskdError, match=r"served another onnxruntime-web@\S+ than the known one: .* is corrupt"):
        fetch_browser_runtime()
    assert list((cache / "browser").iterdir()) == []


def test_package_without_the_runtime_is_refused(cache, served):
    served({"package/README.md": b"x"})
    with pytest.raises(AskdError, match=r"without the runtime \(.*ort\.wasm\.bundle\.min\.mjs"):
        fetch_browser_runtime()


def test_force_replaces_a_damaged_folder(runtime, cache, served):
    served({f"package/dist/{name}": (runtime / name).read_bytes() for name in RUNTIME_FILES})
    folder = cache / "browser" / runtime.name
    folder.mkdir(parents=True)
    assert fetch_browser_runtime(force=True) == folder
    assert {file.name for file in folder.iterdir()} == {*RUNTIME_FILES, "LICENSE.txt"}
