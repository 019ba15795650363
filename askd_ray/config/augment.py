"""The recipe's ``augment``: changes to the student's input; the teacher gets the clean clip (docs/augmentation.md)."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from askd_ray.config.section import Section, Share, check_order
from askd_ray.files import check_place

Decibels = Annotated[float, Field(ge=-100.0, le=100.0)]
Seconds = Annotated[float, Field(ge=0.05, le=10.0)]
Factor = Annotated[
    float, Field(ge=0.5, le=2.0, multiple_of=0.01)
]  # in hundredths, so that the resampling kernels stay small


class Noise(Section):
    """Noise added to the clip."""

    share: Share = 0.0
    """The share of the utterances, from 0 to 1; 0 disables it."""
    snr_db: tuple[Decibels, Decibels] = (5.0, 20.0)
    """The signal-to-noise ratio in dB, drawn from [min, max]."""
    files: str | None = None
    """A pattern of noise files such as ``noise/*.ogg``; ``**`` matches any folders. null takes synthetic noise."""

    @field_validator("files")
    @classmethod
    def _check_local_path(cls, given: str | None) -> str | None:
        return None if given is None else check_place(given)

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "Noise":
        if self.share == 0.0:
            self.refuse_unread(["snr_db", "files"], "the share is 0")
        check_order("snr_db", self.snr_db)
        return self


class Reverb(Section):
    """Reverberation: the clip convolved with a room impulse response."""

    share: Share = 0.0
    """The share of the utterances, from 0 to 1; 0 disables it."""
    rt60_s: tuple[Seconds, Seconds] = (0.2, 0.8)
    """The time in seconds in which a synthetic response decays by 60 dB, drawn from [min, max]."""
    files: str | None = None
    """A pattern of recorded responses; null takes synthetic ones."""

    @field_validator("files")
    @classmethod
    def _check_local_path(cls, given: str | None) -> str | None:
        return None if given is None else check_place(given)

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "Reverb":
        if self.share == 0.0:
            self.refuse_unread(["rt60_s", "files"], "the share is 0")
        if self.files is not None:
            self.refuse_unread(["rt60_s"], "the files have their own reverberation times")
        check_order("rt60_s", self.rt60_s)
        return self


class Telephone(Section):
    """A telephone line: 300 to 3400 Hz, 8-bit mu-law at 8 kHz."""

    share: Share = 0.0
    """The share of the utterances, from 0 to 1; 0 disables it."""


class SpecAugment(Section):
    """Masks on the log-mel (SpecAugment, arXiv 1904.08779)."""

    freq_masks: Annotated[int, Field(ge=0)] = 2
    """The number of masked frequency bands; 0 disables them."""
    freq_width: Annotated[int, Field(ge=0, le=80)] = 15
    """The largest width of a band, in mel bins."""
    time_masks: Annotated[int, Field(ge=0)] = 2
    """The number of masked time spans; 0 disables them."""
    time_share: Share = 0.06
    """The largest length of a span, as a share of the clip."""

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "SpecAugment":
        if self.freq_masks == 0:
            self.refuse_unread(["freq_width"], "there are no freq_masks")
        if self.time_masks == 0:
            self.refuse_unread(["time_share"], "there are no time_masks")
        return self


class Augment(Section):
    """The changes to the student's input, in this order; the random values are drawn again in every epoch."""

    speed: tuple[Factor, ...] = (1.0,)
    """The speed factors to draw from, in hundredths from 0.5 to 2; above 1: faster and higher."""
    reverb: Reverb = Reverb()
    """Reverberation."""
    noise: Noise = Noise()
    """Noise."""
    telephone: Telephone = Telephone()
    """A telephone line."""
    gain_db: tuple[Decibels, Decibels] = (0.0, 0.0)
    """The change of the level in dB, drawn from [min, max]."""
    spec: SpecAugment = SpecAugment()
    """Masks on the log-mel."""

    @model_validator(mode="after")
    def _check_speed_and_gain(self) -> "Augment":
        if not self.speed:
            raise ValueError("speed is empty: [1.0] keeps the speed unchanged")
        check_order("gain_db", self.gain_db)
        return self

    @property
    def changes_speed(self) -> bool:
        """Whether times in the student's clip may differ from those in the teacher's."""
        return set(self.speed) != {1.0}

    @property
    def changes_waveform(self) -> bool:
        """Whether anything changes the waveform before the log-mel."""
        shares = self.reverb.share, self.noise.share, self.telephone.share
        return self.changes_speed or any(shares) or any(self.gain_db)

    @property
    def is_off(self) -> bool:
        """Whether the student's input is never changed."""
        return not (self.changes_waveform or self.spec.freq_masks or self.spec.time_masks)
