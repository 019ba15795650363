"""A CTC head on Whisper's encoder, its file, and the model that has no decoder."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from askd_ray.errors import AskdError
from askd_ray.files import atomic_path
from askd_ray.models.load import has_decoder, quiet_transformers, write_processor
from askd_ray.models.windows import encode
from askd_ray.text.tokens import Tokens
from askd_ray.text.units import CtcVocabulary

HEAD_FILE = "ctc_head.safetensors"
"""The file of a head, in the folder of the encoder that it belongs to."""

_BLANK_LOGIT = 8.0  # an untrained head gives the blank about half of the probability among 4,000 classes


class CtcHead(nn.Module):
    """Maps encoder states to hidden states, whose product with ``projection`` are logits.

    :func:`initial_head` says how it begins. Intermediate encoder layers are read with the same weights after a layer
    norm of their own (arXiv 2102.03216); only training reads them.
    """

    def __init__(self, vocabulary: CtcVocabulary, projection: torch.Tensor):
        super().__init__()
        assert len(projection) == vocabulary.n_classes
        width = projection.shape[1]
        self.vocabulary = vocabulary
        self.transform = nn.Linear(width, width)
        nn.init.eye_(self.transform.weight)
        nn.init.zeros_(self.transform.bias)
        self.projection = nn.Parameter(projection.clone())
        self.norms = nn.ModuleList()

    def read_intermediate(self, n_layers: int) -> "CtcHead":
        """Add norms for intermediate encoder layers; return the head."""
        self.norms = nn.ModuleList(nn.LayerNorm(self.projection.shape[1]) for _ in range(n_layers))
        return self

    @property
    def n_params(self) -> int:
        """The number of parameters of the saved head."""
        return self.projection.numel() + sum(p.numel() for p in self.transform.parameters())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the hidden states ``(batch, n_positions, d_model)`` of encoder states of that shape."""
        return self.transform(states)


def initial_head(vocabulary: CtcVocabulary, embeddings: torch.Tensor) -> CtcHead:
    """Return an untrained head for a Whisper with token embeddings ``(n_vocab, d_model)``.

    Token embeddings are almost equal: their mean is far longer than what distinguishes them. So units begin with what
    distinguishes their embeddings, with a mean length of 1; like the encoder's states, whose elements have a size of
    about 1, this gives logits of that size. The blank begins with the direction that units use least, and the bias of
    the transform makes it by far the most probable class: a head that begins with equal classes first learns nothing
    else than the blank, for a third of a short training (docs/LOG.md).
    """
    units = embeddings[torch.tensor(vocabulary.token_ids)].detach().float()
    units = units - units.mean(dim=0)
    units = units / units.norm(dim=1).mean()
    blank = torch.linalg.eigh(units.T @ units).eigenvectors[:, :1].T  # eigenvalues come in ascending order
    head = CtcHead(vocabulary, torch.cat([blank, units]))
    head.transform.bias.data = _BLANK_LOGIT * blank[0]
    return head


def save_head(head: CtcHead, folder: Path) -> None:
    """Write a head into a folder that is not published yet, without what only training reads."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in head.state_dict().items() if "norms." not in name}
    token_ids = torch.tensor(head.vocabulary.token_ids, dtype=torch.int32)
    save_file({**tensors, "token_ids": token_ids}, folder / HEAD_FILE)


def load_head(folder: Path) -> CtcHead:
    """Return the head of a folder, on the CPU, in float32.

    Raises :class:`AskdError` when its file is missing or damaged.
    """
    file = folder / HEAD_FILE
    try:
        tensors = load_file(file)
        vocabulary = CtcVocabulary(tuple(tensors.pop("token_ids").tolist()))
        head = CtcHead(vocabulary, tensors["projection"].float())
        head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    except (OSError, SafetensorError, KeyError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AskdError(f"{file} cannot be loaded as the head of a CTC student: {reason}") from None
    return head.eval()


class CtcModel(nn.Module):
    """Whisper's encoder and a CTC head."""

    def __init__(self, encoder: WhisperEncoder, head: CtcHead):
        super().__init__()
        self.encoder, self.head = encoder, head

    @property
    def config(self) -> WhisperConfig:
        """The config of the Whisper that the encoder belongs to."""
        return self.encoder.config

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities ``(batch, n_frames / 2, n_classes)`` of windows ``(batch, n_mels, n_frames)``."""
        hidden = self.head(encode(self.encoder, log_mel).states)
        return nn.functional.linear(hidden, self.head.projection).float().log_softmax(dim=-1)


def save_ctc(model: CtcModel, tokens: Tokens, folder: Path) -> None:
    """Write a folder, atomically: encoder and head in safetensors, tokenizer and preprocessor configs.

    ``WhisperEncoder.from_pretrained`` of transformers loads the encoder.
    """
    with quiet_transformers(), atomic_path(folder) as temporary:
        model.encoder.save_pretrained(temporary)
        save_head(model.head, temporary)
        write_processor(tokens, model.config.num_mel_bins, temporary)


def load_ctc(folder: Path) -> tuple[CtcModel, Tokens]:
    """Return the model of :func:`save_ctc`, in float32 on the CPU, in evaluation mode, with its tokens.

    Raises :class:`AskdError` when files are missing or damaged.
    """
    head = load_head(folder)
    try:
        with quiet_transformers():
            encoder = WhisperEncoder.from_pretrained(folder, use_safetensors=True, dtype="float32")
    except (OSError, SafetensorError, ValueError) as error:
        raise AskdError(f"model in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    encoder.embed_positions.requires_grad_(False)
    return CtcModel(encoder, head).eval(), Tokens(folder)


def is_ctc_student(folder: Path) -> bool:
    """Whether the folder of a student has a CTC head and no decoder."""
    return (folder / HEAD_FILE).is_file() and not has_decoder(folder)
