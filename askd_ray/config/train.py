"""The recipe's ``train``: steps, learning rates, workers, precision."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from askd_ray.config.section import Count, Positive, Section, Share

Weight = Annotated[float, Field(ge=0.0)]


PLACEMENT = {
    "workers",
    "min_workers",
    "parallel",
    "cpus_per_worker",
    "use_gpu",
    "placement",
    "max_failures",
    "checkpoint_steps",
    "not_finite",  # the run stops before such a step, so it may continue with the other setting
}
"""The fields of :class:`Train` that do not change the result of a run: they may change when a run is resumed."""


class FrozenUntil(Section):
    """The progress at which the training of a group of parameters begins: 0 at the start, 1 never.

    ``embeddings`` are the decoder's token and position embeddings, ``decoder`` is the rest of the decoder.
    """

    encoder: Share = 0.0
    decoder: Share = 0.0
    embeddings: Share = 0.0


class Train(Section):
    """The training loop. Learning rates rise over ``warmup_share`` of the run and then fall linearly to 0.

    ``epochs`` may be a fraction. An optimizer step takes ``micro_batches`` micro-batches (null: one per worker), each
    with at most ``batch_utterances`` utterances, ``batch_audio_s`` seconds of padded windows and ``batch_tokens``
    padded target tokens. The ``workers`` divide them: with the same ``micro_batches``, the number of workers changes
    neither the steps nor, except for rounding, the student. ``domain_weights`` is how often an epoch takes the
    utterances of a domain: 0.5 takes each one every second epoch, 2 takes each twice per epoch; the default is 1.

    Dev is scored ``evals_per_epoch`` times per epoch; after ``patience`` evaluations in a row without a better WER the
    run ends. A checkpoint is written after each evaluation and after ``checkpoint_steps`` steps.
    """

    epochs: Positive = 6
    lr: Positive = 5e-5
    encoder_lr: Positive = 2e-5
    embedding_lr: Positive | None = None
    """The learning rate of the embeddings; null takes ``lr``."""
    frozen_until: FrozenUntil = Field(default_factory=FrozenUntil)
    weight_decay: Weight = 0.01
    warmup_share: Share = 0.1
    clip_norm: Positive = 1.0
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Score and keep the moving average of the weights instead of the last weights."""
    batch_utterances: Count = 8
    batch_audio_s: Positive = 30.0
    batch_tokens: Count = 1024
    micro_batches: Count | None = None
    domain_weights: dict[str, Weight] = Field(default_factory=dict[str, Weight])
    shuffle_shards: Count = 8
    evals_per_epoch: Count = 1
    patience: Count | None = None
    checkpoint_steps: Count = 100
    not_finite: Literal["stop", "skip"] = "stop"
    """What to do at a step whose loss or gradient is not finite; the student is not updated in either case."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward and backward pass (autocast); parameters and losses stay in float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, more time."""
    workers: Count = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each worker holds: the whole student and online teacher (ddp), or a shard of their parameters (fsdp)."""
    min_workers: Count | None = None
    """The run continues with at least this many workers; null waits until all ``workers`` are available."""
    cpus_per_worker: Positive = 0.5
    use_gpu: bool = False
    placement: Literal["PACK", "SPREAD"] = "PACK"
    """Fill one node with workers before the next (PACK), or spread them evenly (SPREAD)."""
    max_failures: Annotated[int, Field(ge=0)] = 2

    @property
    def micro_batches_per_step(self) -> int:
        """The number of micro-batches in a step."""
        return self.micro_batches or self.workers

    @model_validator(mode="after")
    def _check_workers(self) -> "Train":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers} exceeds workers = {self.workers}")
        if self.workers > self.micro_batches_per_step:
            raise ValueError(
                f"workers = {self.workers} exceeds micro_batches = {self.micro_batches_per_step}: each worker needs at "
                "least one"
            )
        return self

    @model_validator(mode="after")
    def _check_parallel(self) -> "Train":
        if self.workers == 1:
            self.refuse_unread(["parallel"], "there is one worker")
        return self

    @model_validator(mode="after")
    def _check_frozen(self) -> "Train":
        if min(vars(self.frozen_until).values()) > 0.0:
            raise ValueError("frozen_until freezes encoder, decoder and embeddings at the start: one must be 0")
        return self
