"""Greedy decoding in torch, for dev scores during training; the service uses the CTranslate2 engine."""

from collections.abc import Sequence

import torch
from transformers import EncoderDecoderCache, WhisperForConditionalGeneration

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.models.windows import encode
from askd_ray.text.tokens import Tokens, max_tokens


class GreedySelector:
    """Selects the most likely token, except tokens that the model's generation config suppresses.

    Every Whisper engine suppresses these tokens.
    """

    def __init__(self, model: WhisperForConditionalGeneration):
        config, device = model.generation_config, model.device
        self._never = torch.tensor(config.suppress_tokens or [], dtype=torch.long, device=device)
        self._not_first = torch.tensor(config.begin_suppress_tokens or [], dtype=torch.long, device=device)

    def __call__(self, logits: torch.Tensor, at_begin: bool) -> torch.Tensor:
        """Return the tokens ``(batch, length)`` of logits ``(batch, length, n_vocab)``; modifies the logits.

        ``at_begin``: the first token begins the text.
        """
        logits.index_fill_(-1, self._never, -torch.inf)
        if at_begin:
            logits[:, 0].index_fill_(-1, self._not_first, -torch.inf)
        return logits.argmax(-1)


@torch.no_grad()
def greedy(
    model: WhisperForConditionalGeneration,
    tokens: Tokens,
    log_mel: torch.Tensor,
    prompt: Sequence[int],
    states: torch.Tensor | None = None,
) -> list[list[int]]:
    """Return the greedy token ids of windows ``(batch, n_mels, n_frames)``, without the prompt and the end token.

    ``states`` (batch, n_states, d_model), if given, are what the decoder reads instead of the encoder's states.
    """
    if states is None:
        states = encode(model.model.encoder, log_mel).states
    choose = GreedySelector(model)
    cache: EncoderDecoderCache | None = None
    ids = torch.tensor(prompt, device=log_mel.device).repeat(len(log_mel), 1)
    written: list[torch.Tensor] = []
    done = torch.zeros(len(log_mel), dtype=torch.bool, device=log_mel.device)
    for step in range(max_tokens(log_mel.shape[-1] / FRAMES_PER_S)):
        out = model.model.decoder(input_ids=ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = choose(model.proj_out(out.last_hidden_state[:, -1:]), at_begin=step == 0)[:, 0]
        best = best.masked_fill(done, tokens.end)
        done |= best == tokens.end
        written.append(best)
        if bool(done.all()):
            break
        ids = best[:, None]
    return [[i for i in row if i != tokens.end] for row in torch.stack(written, 1).tolist()]
