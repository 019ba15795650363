"""Keys of a recipe that have another name now, or are gone: a recipe with an old one gets a message."""

RENAMED = {
    "train.lr": "train.optimizer.lr",
    "train.encoder_lr": "train.optimizer.encoder_lr",
    "train.embedding_lr": "train.optimizer.embedding_lr",
    "train.weight_decay": "train.optimizer.weight_decay",
    "train.warmup_share": "train.optimizer.warmup_share",
    "train.clip_norm": "train.optimizer.clip_norm",
    "train.ema_decay": "train.optimizer.ema_decay",
    "train.frozen_until": "train.optimizer.frozen_until",
    "train.batch_utterances": "train.batching.utterances",
    "train.batch_audio_s": "train.batching.audio_s",
    "train.batch_tokens": "train.batching.tokens",
    "train.micro_batches": "train.batching.micro_batches",
    "train.domain_weights": "train.batching.domain_weights",
    "train.shuffle_shards": "train.batching.shuffle_blocks",
    "train.batching.shuffle_shards": "train.batching.shuffle_blocks",
    "train.workers": "train.workers.count",
    "train.min_workers": "train.workers.min_count",
    "train.parallel": "train.workers.parallel",
    "train.cpus_per_worker": "train.workers.cpus",
    "train.use_gpu": "train.workers.gpu",
    "train.placement": "train.workers.placement",
    "train.max_failures": "train.workers.max_failures",
    "train.least_workers": "train.workers.min_count",
}
"""The new key of each old key."""

REMOVED = {
    "evaluate.speculative": "speculative decoding is not measured any more: remove this key",
    "tune.share_features": "tune.max_features_gb limits what trials share, and 0 shares nothing",
}
"""What to do with each key that is gone."""
