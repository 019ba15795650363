"""The schemas of shards and label shards, and the utterances and batches made of them."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

_AUDIO = ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # the Hugging Face convention
_DESCRIPTION = (
    ("text", pa.string()),
    ("duration_s", pa.float64()),
    ("speaker", pa.string()),
    ("language", pa.string()),
    ("domain", pa.string()),
    ("split", pa.string()),
    ("licence", pa.string()),
    ("content_hash", pa.string()),
)

SHARD_SCHEMA = pa.schema([("id", pa.string()), _AUDIO, *_DESCRIPTION])
"""A shard: one row for each utterance."""

SOUND_SCHEMA = pa.schema([("id", pa.string()), _AUDIO])
"""The file of sounds without speech: one row for each sound."""

DERIVED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),  # crop, stitched or non_speech
        (
            "pieces",  # in order
            pa.list_(
                pa.struct(
                    [
                        ("shard", pa.string()),  # a shard or the file of sounds, in the same folder
                        ("row", pa.int32()),
                        ("start_s", pa.float64()),
                        ("end_s", pa.float64()),
                        ("pause_s", pa.float64()),  # silence before the piece
                        ("gain_db", pa.float64()),
                    ]
                )
            ),
        ),
        *_DESCRIPTION,
    ]
)
"""A derived shard: one row for each clip that is made of stored audio (:mod:`askd_ray.data.derive`)."""

LABEL_SCHEMA = pa.schema(
    [
        ("content_hash", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),  # the decoder's prompt, before the text
        ("target_ids", pa.list_(pa.int32())),  # (n_tokens,): the text and the end token; empty if left out
        ("left_out", pa.string()),  # the reason, if target_ids is empty
        ("text", pa.string()),  # of the target
        ("top_ids", pa.binary()),  # uint16 (n_tokens, k): Whisper's vocabularies have at most 51,866 tokens
        ("top_log_probs", pa.binary()),  # float16 (n_tokens, k)
        ("rest_log_prob", pa.binary()),  # float16 (n_tokens,): log of the probability outside the top k
        (
            "token_loss",
            pa.binary(),
        ),  # float16 (n_tokens,): cross-entropy of each target token at temperature 1, in nats
        ("teacher_loss", pa.float32()),  # mean cross-entropy of the target tokens, in nats; null: no teacher's labels
        ("states", pa.binary()),  # float16 (n_tokens, n_layers, d_model): the teacher's decoder states; empty without
    ]
)
"""A label shard: one row for every row of the shard of the same name, in its order."""


DerivedKind = Literal["", "crop", "stitched", "non_speech"]
"""How a clip was made of stored audio; "" for an utterance of the data."""


@dataclass(frozen=True)
class Piece:
    """A part of a stored clip, from ``start_s`` to ``end_s``, with ``pause_s`` of silence before it."""

    audio: bytes
    start_s: float
    end_s: float
    pause_s: float = 0.0
    gain_db: float = 0.0


@dataclass(frozen=True)
class Utterance:
    """One row of a shard or of a derived shard.

    A derived utterance has ``pieces`` in place of ``audio``. If a crop has a text, it is the text of the whole
    utterance, and nobody knows yet which words are in the crop.
    """

    id: str
    audio: bytes
    path: str
    text: str
    duration_s: float
    speaker: str
    language: str
    domain: str
    split: Split
    licence: str
    derived: DerivedKind = ""
    pieces: tuple[Piece, ...] = ()

    @property
    def content_hash(self) -> str:
        """SHA-256 of audio, text and language, which decide the teacher's labels."""
        sha = hashlib.sha256(self.audio)
        for piece in self.pieces:
            sha.update(piece.audio)
            sha.update(repr((piece.start_s, piece.end_s, piece.pause_s, piece.gain_db)).encode())
        sha.update(self.derived.encode())
        sha.update(f"\0{self.language}\0{self.text}".encode())
        return sha.hexdigest()


@dataclass(frozen=True)
class Batch:
    """One micro-batch for the student.

    ``log_mel`` (batch, n_mels, n_frames) float32, and ``window_frames`` (batch,) int64, even: the length of each row's
    window, after which its log-mel is 0; ``decoder_ids`` (batch, length) int64: the prompt, then the text; ``ids``: the
    utterances' ids, and ``numbers`` (batch,) int64 their numbers in the row index; ``n_targets`` (batch,) int64: the
    target tokens of each; ``teacher_loss`` (batch,) float32: the teacher's mean cross-entropy on each, in nats a token;
    ``teacher_log_mel`` (batch, n_mels, 3000) float32: the clean clip in its padded window, for an online teacher
    (otherwise 0 mel bins).

    If the training's device computes the log-mels, ``log_mel`` and ``teacher_log_mel`` have 0 frames, and the batch has
    what they are computed of, as :mod:`askd_ray.audio.batch_logmel` defines it: ``waveforms`` (batch, n_samples),
    ``frame_counts`` (batch, 3) and the SpecAugment ``masks`` (batch, n_masks, 4); and for an online teacher
    ``teacher_frame_counts`` and the clean ``teacher_waveforms``, which have 0 samples if ``waveforms`` are clean.

    The other arrays have one entry for each target token (the text and the end token), utterance by utterance:
    ``targets`` (n_tokens,) int64; ``target_positions`` (n_tokens,) int64: the position that predicts it, counted in the
    flattened (batch * length); ``rows`` (n_tokens,) int64: its row in the batch; ``has_teacher`` bool (n_tokens,):
    False for tokens without the teacher's labels; ``top_ids`` int64 and ``top_log_probs`` float32 (n_tokens, k),
    ``rest_log_prob`` float32 (n_tokens,): the teacher's soft labels, and ``token_loss`` float32 (n_tokens,) its
    cross-entropy (k = 0 and zeros for an online teacher); ``states`` float16 (n_tokens, n_layers, d_model): its decoder
    states (no layers if the objective reads none).
    """

    ids: tuple[str, ...]
    numbers: NDArray[np.int64]
    log_mel: NDArray[np.float32]
    window_frames: NDArray[np.int64]
    decoder_ids: NDArray[np.int64]
    n_targets: NDArray[np.int64]
    has_teacher: NDArray[np.bool_]
    teacher_loss: NDArray[np.float32]
    teacher_log_mel: NDArray[np.float32]
    waveforms: NDArray[np.float32] | NDArray[np.int16]
    frame_counts: NDArray[np.int64]
    masks: NDArray[np.int64]
    teacher_waveforms: NDArray[np.float32] | NDArray[np.int16]
    teacher_frame_counts: NDArray[np.int64]
    targets: NDArray[np.int64]
    target_positions: NDArray[np.int64]
    rows: NDArray[np.int64]
    top_ids: NDArray[np.int64]
    top_log_probs: NDArray[np.float32]
    rest_log_prob: NDArray[np.float32]
    token_loss: NDArray[np.float32]
    states: NDArray[np.float16]

    @property
    def n_tokens(self) -> int:
        """The number of target tokens."""
        return len(self.targets)

    @property
    def n_frames(self) -> int:
        """The number of frames of the log-mel, wherever it is computed."""
        return self.log_mel.shape[2] or int(self.window_frames.max())
