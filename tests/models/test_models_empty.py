import torch
from transformers import WhisperConfig

from askd_ray.models.empty import empty_whisper


def test_empty_model_is_on_the_cpu_with_tied_projection():
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = empty_whisper(WhisperConfig(d_model=16, encoder_layers=1, decoder_layers=1, **heads))
    assert {p.device.type for p in model.state_dict().values()} == {"cpu"}
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert all(p.requires_grad for n, p in model.named_parameters() if "encoder.embed_positions" not in n)
    assert torch.get_default_device().type == "cpu"
