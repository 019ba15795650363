"""The clips of dev: its utterances, and the clips that are derived from them."""

from dataclasses import replace

from askd_ray.data.labels import LabelKey, check_labels, read_label_texts
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import derived_paths, read_shard, read_utterances
from askd_ray.location import Location


def read_dev(shards: Location, labels: Location, key: LabelKey) -> list[Utterance]:
    """Return the utterances of dev, then the clips that are derived from them and have a reference.

    The texts of derived clips are those of their labels, which must have been made with the settings ``key``; a clip
    without speech has the empty text.

    Raises :class:`AskdError` when shards or labels are missing, damaged or stale.
    """
    clips = read_utterances(shards, "dev")
    for path in derived_paths(shards, "dev"):
        check_labels(labels / path.name, path, key)
        texts = read_label_texts(labels / path.name)
        clips += [replace(u, text=text) for u, text in zip(read_shard(path), texts, strict=True) if text is not None]
    return clips
