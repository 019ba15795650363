"""Greedy decoding in torch, for dev scores while training; the CTranslate2 engine is what serves."""

from collections.abc import Sequence

import torch
from transformers import EncoderDecoderCache, WhisperForConditionalGeneration

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.models.windows import encode
from askd_ray.text.tokens import Tokens, most_tokens


@torch.no_grad()
def greedy(
    model: WhisperForConditionalGeneration, tokens: Tokens, log_mel: torch.Tensor, prompt: Sequence[int]
) -> list[list[int]]:
    """Return the greedy token ids of windows ``(batch, n_mels, n_frames)`` after a prompt, without it and end token.

    Suppresses the tokens that the model's generation config names, as every Whisper engine does.
    """
    states = encode(model, log_mel).states
    config = model.generation_config
    suppressed = torch.tensor(config.suppress_tokens or [], dtype=torch.long, device=log_mel.device)
    at_begin = torch.tensor(
        model.generation_config.begin_suppress_tokens or [], dtype=torch.long, device=log_mel.device
    )
    cache: EncoderDecoderCache | None = None
    ids = torch.tensor(prompt, device=log_mel.device).repeat(len(log_mel), 1)
    written: list[torch.Tensor] = []
    done = torch.zeros(len(log_mel), dtype=torch.bool, device=log_mel.device)
    for step in range(most_tokens(log_mel.shape[-1] / FRAMES_PER_S)):
        out = model.model.decoder(input_ids=ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = model.proj_out(out.last_hidden_state[:, -1])
        logits[:, suppressed] = -torch.inf
        if step == 0:
            logits[:, at_begin] = -torch.inf
        best = logits.argmax(-1).masked_fill(done, tokens.end)
        done |= best == tokens.end
        written.append(best)
        if bool(done.all()):
            break
        ids = best[:, None]
    return [[i for i in row if i != tokens.end] for row in torch.stack(written, 1).tolist()]
