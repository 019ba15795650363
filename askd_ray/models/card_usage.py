"""How a model card says that programs load the model: from the folder of a bundle, or from a repository on a hub."""

from askd_ray.models.description import BundleDescription, reader_of, window_of


def usages(description: BundleDescription, repository: str | None = None) -> list[str]:
    """Return the parts of a card about usage, in Markdown: for each format that the bundle or the repository has.

    ``repository`` is a hub id; None: the model lies in the folder of a bundle, which the texts call BUNDLE.
    """
    formats = description.get("formats", [])
    optional = {"ggml": _ggml, "onnx": _onnx}
    parts = [
        _ctc(description) if reader_of(description) == "ctc" else _whisper(description, repository),
        *(write(description, repository) for name, write in optional.items() if name in formats),
    ]
    return [f"## Use\n\n{_service(repository)}", *parts]


def _service(repository: str | None) -> str:
    where = "(here BUNDLE is this folder)"
    download = ""
    if repository is not None:
        where = "(BUNDLE is a new folder)"
        download = f"hf download {repository} --local-dir BUNDLE\n"
    return f"""The fastest way, an OpenAI-compatible server with trimmed windows {where}:

```
{download}askd serve --bundle BUNDLE
askd transcribe --bundle BUNDLE clip.wav
```"""


def _whisper(description: BundleDescription, repository: str | None) -> str:
    language = description["languages"][0]
    return f"""transformers:

```python
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

model = AutoModelForSpeechSeq2Seq.from_pretrained("{repository or "BUNDLE/transformers"}")
processor = AutoProcessor.from_pretrained("{repository or "BUNDLE/transformers"}")
inputs = processor(samples, sampling_rate=16_000, return_tensors="pt")  # mono float32
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0])
```

faster-whisper (`ctranslate2-float16` on a GPU):

```python
from faster_whisper import WhisperModel
{_download(repository, "ctranslate2-int8")}
model = WhisperModel({_folder(repository, "ctranslate2-int8")}, device="cpu", compute_type="int8")
segments, _ = model.transcribe("clip.wav", language="{language}", beam_size=1)
print("".join(segment.text for segment in segments))
```"""


def _download(repository: str | None, name: str) -> str:
    """Return the lines of Python that download one folder: faster-whisper itself looks at the root only."""
    if repository is None:
        return ""
    return f"""from huggingface_hub import snapshot_download

folder = snapshot_download("{repository}", allow_patterns="{name}/*")"""


def _folder(repository: str | None, name: str) -> str:
    return f'"BUNDLE/{name}"' if repository is None else f'f"{{folder}}/{name}"'


def _ggml(description: BundleDescription, repository: str | None) -> str:
    window = window_of(description)
    download = "" if repository is None else f'hf download {repository} --include "ggml/*" --local-dir BUNDLE\n'
    return f"""whisper.cpp (`ggml-model.bin` has float16 weights, `ggml-model-q8_0.bin` weights of 8 bits):

```
{download}whisper-cli -m BUNDLE/ggml/ggml-model-q8_0.bin -l {description["languages"][0]} -nt -nfa -ac 125 clip.wav
```

`-ac` is the window in positions of 20 ms: 50 for each second of the clip and of {window.silence_s:g} s of silence, at
least {round(50 * window.min_s)}, at most 1500; 125 is for a clip of {2.5 - window.silence_s:g} s. `-nfa` turns flash
attention off, which changes the text of windows below 30 s (whisper.cpp 1.8)."""


def _onnx(description: BundleDescription, repository: str | None) -> str:
    window = window_of(description)
    names, setting = "pipeline", ""
    if repository is None:
        names, setting = "env, pipeline", 'env.localModelPath = "BUNDLE";\n'
    return f"""ONNX, in the layout of model hubs; transformers.js (`dtype: "fp32"` without rounding):

```js
import {{ {names} }} from "@huggingface/transformers";

{setting}const transcribe = await pipeline("automatic-speech-recognition", "{repository or "onnx"}", {{ dtype: "q8" }});
console.log((await transcribe(samples)).text); // a Float32Array, mono, 16 kHz
```

The pipeline pads to 30 s. The encoder takes any even number of frames, so `generate` can get the first ones only: 100
for each second of the clip and of {window.silence_s:g} s of silence, at least {round(100 * window.min_s)}."""


def _ctc(description: BundleDescription) -> str:
    languages = ", ".join(description["languages"])
    return f"""Python:

```python
import askd_ray as askd

model = askd.load("BUNDLE")
print(model.transcribe("clip.wav", language="{description["languages"][0]}").text)
```

ONNX Runtime, without this package: `onnx-int8/model.onnx` (`onnx-float32` has the weights without rounding) takes
Whisper's log-mel `(batch, n_mels, n_frames)`, 100 frames a second, and returns log-probabilities `(batch, n_frames / 2,
n_classes)`. Class 0 is CTC's blank. `config.json` has the token of each class after it, `tokenizer.json` its text.

What it cannot do: translate; detect the language (it was trained for {languages}); follow a prompt, which has no
effect; sample with a temperature; write timestamp tokens. Words and segments have times: those of its alignment."""
