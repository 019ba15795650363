"""The part of a recipe that says how the student is trained: steps, rates, workers, precision."""

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
    "not_finite",  # a run that was stopped by such a step has taken none: it may go on without
}
"""The fields of :class:`Train` that say how a run is carried out, and not what it makes: they may change on the way."""


class FrozenUntil(Section):
    """The progress from which on a group of parameters is trained: 0 from the start, 1 never.

    ``embeddings`` are those of tokens and their positions, ``decoder`` is the rest of it.
    """

    encoder: Share = 0.0
    decoder: Share = 0.0
    embeddings: Share = 0.0


class Train(Section):
    """The loop. Learning rates rise over ``warmup_share`` of the run and then fall linearly to 0.

    ``epochs`` may be a fraction. An optimizer step takes ``micro_batches`` micro-batches of at most
    ``batch_utterances`` utterances, ``batch_audio_s`` seconds of padded windows and ``batch_tokens`` padded target
    tokens each (null: one a worker). The ``workers`` share them out: with the same ``micro_batches``, how many workers
    there are changes neither the steps nor, but for rounding, the student. ``domain_weights`` is how often an epoch
    takes the utterances of a domain: 0.5 takes half of them in turn, 2 takes each twice; domains that are not named
    weigh 1.

    Dev is scored ``evals_per_epoch`` times an epoch; after ``patience`` evaluations in a row without a better WER the
    run ends. A checkpoint is written after each evaluation and after ``checkpoint_steps`` steps.
    """

    epochs: Positive = 6
    lr: Positive = 5e-5
    encoder_lr: Positive = 2e-5
    embedding_lr: Positive | None = None
    """That of embeddings; null takes ``lr``."""
    frozen_until: FrozenUntil = Field(default_factory=FrozenUntil)
    weight_decay: Weight = 0.01
    warmup_share: Share = 0.1
    clip_norm: Positive = 1.0
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Score and keep the moving average of the weights instead of the last ones."""
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
    """What to do after a step whose loss or gradient is not finite; the student is left alone either way."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward and backward pass (autocast); parameters and losses stay in float32."""
    gradient_checkpointing: bool = False
    """Compute the layers' inner states again in the backward pass instead of keeping them: less memory, more time."""
    workers: Count = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What a worker holds: the whole student and online teacher, or a share of each of their parameters."""
    min_workers: Count | None = None
    """With fewer than ``workers``, but these, the run goes on; null waits until all are there."""
    cpus_per_worker: Positive = 0.5
    use_gpu: bool = False
    placement: Literal["PACK", "SPREAD"] = "PACK"
    """Fill one node with workers before the next, or spread them evenly."""
    max_failures: Annotated[int, Field(ge=0)] = 2

    @property
    def micro_batches_per_step(self) -> int:
        """The number of micro-batches in a step."""
        return self.micro_batches or self.workers

    @model_validator(mode="after")
    def _every_worker_has_something_to_do(self) -> "Train":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers} exceeds workers = {self.workers}")
        if self.workers > self.micro_batches_per_step:
            raise ValueError(
                f"workers = {self.workers} exceeds micro_batches = {self.micro_batches_per_step}: each worker needs at "
                "least one"
            )
        return self

    @model_validator(mode="after")
    def _there_is_someone_to_share_with(self) -> "Train":
        if self.workers == 1:
            self.refuse_unread(["parallel"], "there is one worker")
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> "Train":
        if min(vars(self.frozen_until).values()) > 0.0:
            raise ValueError("frozen_until freezes encoder, decoder and embeddings at the start: one must be 0")
        return self
