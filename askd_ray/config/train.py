"""The recipe's ``train``: the training, with sections for the optimizer, the batches and the workers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from askd_ray.config.section import Count, Positive, Section, Share

Weight = Annotated[float, Field(ge=0.0)]


PLACEMENT = {
    "workers",
    "checkpoint_steps",
    "not_finite",  # the run stops before such a step, so it may continue with the other setting
}
"""The fields of :class:`Train` that do not change the result of a run: they may change when a run is resumed."""


TRAININGS = {"averaged_seeds"}
"""The fields of :class:`Train` that say how many trainings there are; each one is the same without them."""


class FrozenUntil(Section):
    """The progress of the run at which the training of a group of parameters begins: 0 at the start, 1 never."""

    encoder: Share = 0.0
    """The encoder."""
    decoder: Share = 0.0
    """The decoder without its embeddings, a CTC head in its place, or what is learnt in an LLM."""
    embeddings: Share = 0.0
    """The decoder's token and position embeddings, or what embeds the audio for an LLM: compressor and map."""
    head: Share = 0.0
    """The CTC head of a hybrid student."""


class Optimization(Section):
    """AdamW. Learning rates rise at the start of the run and then fall linearly to 0."""

    lr: Positive = 5e-5
    """The highest learning rate of the decoder, of a CTC head in its place, or of what is learnt in an LLM."""
    encoder_lr: Positive = 2e-5
    """The highest learning rate of the encoder."""
    embedding_lr: Positive | None = None
    """The highest learning rate of the decoder's embeddings, or of what embeds the audio for an LLM; null takes
    ``lr``."""
    head_lr: Positive | None = None
    """The highest learning rate of the CTC head of a hybrid student; null takes ``lr``."""
    warmup_share: Share = 0.1
    """The share of the run in which the learning rates rise, from 0 to 1."""
    frozen_until: FrozenUntil = Field(default_factory=FrozenUntil)
    """When the training of each group of parameters begins."""
    weight_decay: Weight = 0.01
    """The weight decay of AdamW."""
    clip_norm: Positive = 1.0
    """The largest norm of the gradient; a larger gradient is scaled down."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Score and keep the moving average of the weights, with this decay per step; null keeps the last weights."""


class Selection(Section):
    """The score that chooses the best student: a sum of scores on dev, and lower is better.

    It is the WER of the dev utterances, plus these weights times the scores of the clips that ``data.derive`` makes of
    dev. A weight of 0 leaves a kind out.
    """

    short: Weight = 0.25
    """The weight of the WER of clips of under a second."""
    stitched: Weight = 0.25
    """The weight of the WER of stitched clips."""
    words_per_min: Weight = 0.01
    """The weight of the words a minute that are transcribed where nobody speaks."""


class Batching(Section):
    """The micro-batches of a step (docs/training.md). The workers divide them among themselves."""

    utterances: Count = 8
    """The largest number of utterances in a micro-batch."""
    audio_s: Positive = 30.0
    """The largest number of seconds of padded windows in a micro-batch."""
    tokens: Count = 1024
    """The largest number of padded target tokens in a micro-batch."""
    micro_batches: Count | None = None
    """The micro-batches of an optimizer step; null: one per worker. With a number, the number of workers changes
    neither the steps nor, except for rounding, the student."""
    domain_weights: dict[str, Weight] = Field(default_factory=dict[str, Weight])
    """How often an epoch takes the utterances of a domain: 0.5 takes each one every second epoch, 2 takes each twice
    per epoch; 1 for other domains."""
    shuffle_blocks: Count = 8
    """The blocks (64 utterances of a shard) per micro-batch of a step whose utterances are shuffled together."""


class Workers(Section):
    """How the training is carried out: these settings may change when a run is resumed.

    Except for rounding they do not change the student, if ``batching.micro_batches`` is set.
    """

    count: Count = 1
    """The number of Ray Train workers."""
    min_count: Count | None = None
    """The run continues with at least this many workers; null waits until all are available."""
    gpu: bool = False
    """Use GPUs: one per worker, and also in all other stages."""
    cpus: Positive = 0.5
    """The CPUs that Ray reserves for a worker."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each worker holds: the whole student and online teacher (ddp), or a shard of their parameters (fsdp)."""
    placement: Literal["PACK", "SPREAD"] = "PACK"
    """Fill one node with workers before the next (PACK), or spread them evenly (SPREAD)."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a command restarts the workers after one has died."""

    @model_validator(mode="after")
    def _check_counts(self) -> "Workers":
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"min_count = {self.min_count} exceeds count = {self.count}")
        if self.count == 1:
            self.refuse_unread(["parallel"], "there is one worker")
        return self


class Train(Section):
    """The training loop."""

    epochs: Positive = 6
    """The length of the run, in epochs; it may be a fraction."""
    evals_per_epoch: Count = 1
    """The number of dev evaluations per epoch."""
    patience: Count | None = None
    """The run ends after this many evaluations in a row without a better dev score; null: never early."""
    checkpoint_steps: Count = 100
    """The number of steps after which a checkpoint is written, besides those after each evaluation."""
    not_finite: Literal["stop", "skip"] = "stop"
    """What to do at a step whose loss or gradient is not finite; the student is not updated in either case."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward and backward pass (autocast); parameters and losses stay in float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, more time."""
    averaged_seeds: Count = 1
    """The number of trainings, with seeds from ``seed`` on, whose students are averaged (docs/training.md): their
    average is usually better than each of them, and as fast."""
    optimizer: Optimization = Field(default_factory=Optimization)
    """The optimizer."""
    selection: Selection = Selection()
    """The choice of the best student."""
    batching: Batching = Field(default_factory=Batching)
    """The micro-batches of a step."""
    workers: Workers = Field(default_factory=Workers)
    """The workers."""

    @property
    def micro_batches_per_step(self) -> int:
        """The number of micro-batches in a step."""
        return self.batching.micro_batches or self.workers.count

    def on_one_worker(self) -> "Train":
        """Return these settings for one worker, with the same steps."""
        batching = self.batching.model_copy(update={"micro_batches": self.micro_batches_per_step})
        workers = self.workers.model_copy(update={"count": 1, "min_count": None, "parallel": "ddp"})
        return self.model_copy(update={"batching": batching, "workers": workers})

    @model_validator(mode="after")
    def _check_workers(self) -> "Train":
        if self.workers.count > self.micro_batches_per_step:
            raise ValueError(
                f"workers.count = {self.workers.count} exceeds batching.micro_batches = {self.batching.micro_batches}: "
                "each worker needs at least one"
            )
        return self
