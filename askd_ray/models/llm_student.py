"""The LLM student: Whisper's encoder on trimmed windows, a compressor, and a language model that reads its states."""

from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.config.schema import Recipe
from askd_ray.config.student import CompressorSettings
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, read_json, write_json
from askd_ray.models import cost
from askd_ray.models.audio_embedder import AudioEmbedder, UnitEmbedder, unit_embedder
from askd_ray.models.compressor import build_compressor, load_compressor, save_compressor
from askd_ray.models.ctc import is_ctc_student, load_ctc
from askd_ray.models.layer_map import build_student
from askd_ray.models.llm import Llm, llm_dtype, load_llm
from askd_ray.models.load import quiet_transformers
from askd_ray.models.lora import add_lora, freeze_weights
from askd_ray.models.reference import fingerprint, resolve
from askd_ray.models.state_compressor import StateCompressor
from askd_ray.models.student import Cost, DecoderOutput, EncoderOutput, StudentModel
from askd_ray.models.windows import encode, prepare_layers
from askd_ray.text.tokens import max_tokens

ADAPTER_FILE, LLM_FILE = "llm_adapter.safetensors", "llm.json"
"""What a student adds to its LLM, and which LLM that is."""

_INITIAL_SEED = 0  # of a student: students of several seeds begin with the same weights, so they can be averaged
_STATE_SIZE = 1.0  # of the compressor's states; the map gives them the size of the LLM's token embeddings


class LlmStudent(StudentModel):
    """An encoder, an :class:`AudioEmbedder` and a frozen LLM with LoRA.

    The LLM reads a chat: the user's request, the audio, and the assistant's text, which is predicted. ``decoder_ids``
    are the part after the audio.
    """

    opening: torch.Tensor

    def __init__(self, encoder: WhisperEncoder, embedder: AudioEmbedder, llm: Llm, lora_rank: int):
        super().__init__()
        self.encoder, self.embedder, self.tokens = encoder, embedder, llm.tokens
        freeze_weights(llm.model)
        self.llm = llm.model.model
        self.head = None if llm.model.config.tie_word_embeddings else llm.model.lm_head
        add_lora(self.llm, lora_rank)
        self.register_buffer("opening", torch.tensor(llm.tokens.opening), persistent=False)
        prepare_layers(list(encoder.layers))

    @property
    def n_mels(self) -> int:
        """The number of mel channels of its windows."""
        return self.encoder.config.num_mel_bins

    @property
    def projection(self) -> torch.Tensor:
        """The LLM's projection to logits."""
        return self.llm.embed_tokens.weight if self.head is None else self.head.weight

    def audio(self, log_mel: torch.Tensor, window_frames: torch.Tensor | None = None) -> EncoderOutput:
        """Return what the LLM reads of windows ``(batch, n_mels, n_frames)``: (batch, n_states, width of the LLM)."""
        return self.embedder(encode(self.encoder, log_mel, window_frames=window_frames))

    def forward(
        self, log_mel: torch.Tensor, decoder_ids: torch.Tensor, window_frames: torch.Tensor | None = None
    ) -> DecoderOutput:
        """Return the LLM's hidden states at tokens ``(batch, length)`` that follow the audio."""
        encoded = encode(self.encoder, log_mel, window_frames=window_frames)
        return DecoderOutput(self.read(self.embedder(encoded), decoder_ids), encoded)

    def read(self, audio: EncoderOutput | None, ids: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """Return the hidden states at tokens ``(batch, length)`` after audio of :meth:`audio`, or after none.

        ``cache``, if given, receives what later tokens need.
        """
        parts = [self._embedded(self.opening.expand(len(ids), -1)), self._embedded(ids)]
        if audio is not None:
            parts.insert(1, audio.states.to(parts[0].dtype))
        mask = positions = None
        if audio is not None and audio.inside is not None:
            mask = self._mask(audio, ids)
            positions = mask.cumsum(dim=1) - 1  # a row's positions are those of the row alone
        embedded = torch.cat(parts, dim=1)
        keep = {"past_key_values": cache, "use_cache": cache is not None}
        read = self.llm(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, **keep)
        return read.last_hidden_state[:, -ids.shape[1] :]

    @torch.no_grad()
    def greedy(self, audio: EncoderOutput, n_max: int) -> list[list[int]]:
        """Return the tokens that follow audio of :meth:`audio`, without the end token, at most ``n_max`` a row."""
        closing = torch.tensor(self.tokens.closing, device=self.opening.device).expand(len(audio.states), -1)
        cache = DynamicCache(config=self.llm.config)
        hidden = self.read(audio, closing, cache)
        mask = self._mask(audio, closing)
        done = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        written: list[torch.Tensor] = []
        for _ in range(n_max):
            best = (hidden[:, -1] @ self.projection.T).argmax(-1).masked_fill(done, self.tokens.end)
            done |= best == self.tokens.end
            written.append(best)
            if bool(done.all()):
                break
            positions = mask.sum(dim=1, keepdim=True)
            mask = functional.pad(mask, (0, 1), value=True)
            keep = {"past_key_values": cache, "use_cache": True}
            hidden = self.llm(
                input_ids=best[:, None], attention_mask=mask, position_ids=positions, **keep
            ).last_hidden_state
        return [[i for i in row if i != self.tokens.end] for row in torch.stack(written, 1).tolist()]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by group: LoRA is the group ``decoder``, what embeds the audio ``embeddings``."""
        sinusoids = self.encoder.embed_positions.weight  # computed, not learnt
        encoder = [p for p in self.encoder.parameters() if p is not sinusoids]
        return {
            "encoder": encoder,
            "decoder": list(self.llm.parameters()),
            "embeddings": list(self.embedder.parameters()),
        }

    @property
    def n_params(self) -> int:
        """The number of parameters, with those of the LLM."""
        frozen = sum(buffer.numel() for name, buffer in self.llm.named_buffers() if name.endswith("weight"))
        return super().n_params + frozen + (0 if self.head is None else self.head.weight.numel())

    def _mask(self, audio: EncoderOutput, ids: torch.Tensor) -> torch.Tensor:
        """Return which positions of each row are read: all but those after the row's audio."""
        return functional.pad(audio.positions_inside, (len(self.opening), ids.shape[1]), value=True)

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        return self.llm.embed_tokens(ids)


class LlmStudentKind:
    """Builds, saves, loads and decodes a recipe's LLM student.

    Raises :class:`AskdError` when the recipe's encoder layers do not exist or cannot be merged, and when there is no
    such LLM.
    """

    def __init__(self, recipe: Recipe, compressor: CompressorSettings):
        self._recipe, self._compressor = recipe, compressor
        cost.costs(recipe)  # raises where the recipe's layers do not exist

    def build(self, n_shrunk: int) -> LlmStudent:
        """Return the untrained student: the encoder of its initial model, the LLM as it is, and what embeds the audio.

        The initial model is a Whisper, whose states get a random map, or a CTC student, whose units the LLM reads.
        """
        settings = self._recipe.student
        folder = resolve(settings.init or self._recipe.teacher.model)
        llm = self._llm()
        if not is_ctc_student(folder):
            encoder, units = build_student(settings, self._recipe.teacher.model)[0].model.encoder, None
        elif settings.encoder_layers is None:
            ctc, tokens = load_ctc(folder)
            encoder = ctc.encoder
            units = unit_embedder(ctc.head, tokens, llm.tokens, llm.model.model.embed_tokens.weight)
        else:
            raise AskdError(f"student.init = {settings.init!r} is a CTC student, which keeps its encoder_layers")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_INITIAL_SEED)
            return self._student(encoder, llm, build_compressor(self._compressor, encoder.config, _STATE_SIZE), units)

    def empty_like(self, student: LlmStudent) -> NoReturn:
        """A recipe cannot ask for this."""
        raise AssertionError("an LLM student is not sharded")

    def shrink(self, student: LlmStudent) -> NoReturn:
        """A recipe cannot ask for this."""
        raise AssertionError("an LLM student does not shrink")

    def save(self, student: LlmStudent, folder: Path) -> None:
        """Write the encoder as transformers does, the compressor, and the adapter, atomically. The LLM is not copied.

        The adapter has the map, the units that it reads, and the changes of the LLM's layers.
        """
        reference = self._recipe.student.llm.model
        adapter = {name: t for name, t in student.state_dict().items() if not name.startswith(_ELSEWHERE)}
        with quiet_transformers(), atomic_path(folder) as temporary:
            student.encoder.save_pretrained(temporary)
            WhisperFeatureExtractor(feature_size=student.n_mels).save_pretrained(temporary)
            save_compressor(student.embedder.compressor, temporary)
            save_file({name: t.detach().cpu().contiguous() for name, t in adapter.items()}, temporary / ADAPTER_FILE)
            write_json(temporary / LLM_FILE, {"model": reference, "sha256": fingerprint(reference)})

    def load(self, folder: Path, n_shrunk: int) -> LlmStudent:
        """Return the student that :meth:`save` wrote.

        Raises :class:`AskdError` when its files are missing or damaged, or when it has another LLM.
        """
        reference = self._recipe.student.llm.model
        made_with = read_json(folder / LLM_FILE)
        if made_with["sha256"] != fingerprint(reference):
            raise AskdError(f"student in {folder} reads with {made_with['model']}, and {reference} has other weights")
        try:
            with quiet_transformers():
                encoder = WhisperEncoder.from_pretrained(folder, use_safetensors=True, dtype="float32")
            encoder.embed_positions.requires_grad_(False)
            adapter = {name: tensor.float() for name, tensor in load_file(folder / ADAPTER_FILE).items()}
            of_units = {n.removeprefix(_UNITS): tensor for n, tensor in adapter.items() if n.startswith(_UNITS)}
            units = UnitEmbedder(**of_units) if of_units else None
            compressor = load_compressor(folder, self._compressor, encoder.config)
            student = self._student(encoder, self._llm(), compressor, units)
            others = {name: t for name, t in student.state_dict().items() if name.startswith(_ELSEWHERE)}
            student.load_state_dict(others | adapter, strict=True)
        except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, AskdError):
                raise
            raise AskdError(f"student in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
        return student.eval()

    def transcribe(self, student: LlmStudent, log_mel: torch.Tensor, language: str) -> list[str]:
        """Return greedy transcripts. The LLM is not told the language."""
        with torch.no_grad():
            audio = student.audio(log_mel)
        written = student.greedy(audio, max_tokens(log_mel.shape[-1] / FRAMES_PER_S))
        return [student.tokens.decode(ids) for ids in written]

    def costs(self) -> list[Cost]:
        """Return the costs of the teacher and of the student."""
        return cost.costs(self._recipe)

    def _llm(self) -> Llm:
        return load_llm(self._recipe.student.llm.model, llm_dtype(self._recipe))

    def _student(
        self, encoder: WhisperEncoder, llm: Llm, compressor: StateCompressor, units: UnitEmbedder | None
    ) -> LlmStudent:
        if self._recipe.train.gradient_checkpointing:
            for model in (encoder, llm.model):
                model.gradient_checkpointing_enable({"use_reentrant": False})
        embedder = AudioEmbedder(compressor, encoder.config.d_model, llm.model.model.embed_tokens.weight, units)
        return LlmStudent(encoder, embedder, llm, self._recipe.student.llm.lora_rank)


_ELSEWHERE = ("encoder.", "embedder.compressor.")
"""The names of tensors that a student's folder has in other files."""
_UNITS = "embedder.units."
