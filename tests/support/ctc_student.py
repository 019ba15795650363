"""A CTC student: Whisper tiny.en's encoder, and a head that is fitted to a few real clips within seconds."""

from collections.abc import Sequence
from pathlib import Path

import torch
from small_run import utterances
from tiny_run import Model
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import DecodingWindow
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.models.ctc import CtcHead, CtcModel, initial_head, save_ctc
from askd_ray.models.windows import encode
from askd_ray.text.units import CtcVocabulary, Segmenter

WINDOW = DecodingWindow(silence_s=0.3)
N_CLIPS, _STEPS = 12, 60


def known_clips(speech: Path) -> list[Utterance]:
    """Return the clips that the head was fitted to."""
    return utterances(speech, N_CLIPS)


def write_ctc_student(folder: Path, model: Model, speech: Path) -> None:
    """Write the student's folder."""
    whisper, tokens = model
    clips = known_clips(speech)
    vocabulary = CtcVocabulary.of([i for clip in clips for i in tokens.encode(clip.text)])
    torch.manual_seed(0)
    student = CtcModel(whisper.model.encoder, initial_head(vocabulary, whisper.proj_out.weight)).eval()
    states = [_states(student, clip) for clip in clips]
    segmenter = Segmenter(vocabulary, tokens, whisper.config.vocab_size)
    targets = [torch.tensor([c for i in tokens.encode(clip.text) for c in segmenter.classes(i)]) for clip in clips]
    _fit(student.head, states, targets)
    save_ctc(student, tokens, folder)


@torch.no_grad()
def _states(student: CtcModel, clip: Utterance) -> torch.Tensor:
    waveform, n_mels = waveform_of(clip), student.config.num_mel_bins
    return encode(student.encoder, log_mel_windows([waveform], [WINDOW.samples(len(waveform), n_mels)])).states[0]


def _fit(head: CtcHead, states: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    batch = pad_sequence(list(states), batch_first=True)
    lengths = [torch.tensor([len(row) for row in rows]) for rows in (states, targets)]
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    for _ in range(_STEPS):
        log_probs = functional.linear(head(batch), head.projection).log_softmax(-1).transpose(0, 1)
        optimizer.zero_grad()
        functional.ctc_loss(log_probs, torch.cat(list(targets)), *lengths).backward()
        optimizer.step()
