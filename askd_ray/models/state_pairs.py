"""The pairs of student and teacher layers whose decoder states the objective compares."""

from collections.abc import Sequence

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.models.layer_map import LayerMap, decoder_sources
from askd_ray.models.load import load_config


def decoder_pairs(recipe: Recipe, layer_maps: Sequence[LayerMap]) -> dict[int, int]:
    """Return the student's layer for each teacher layer that ``objective.decoder_states`` compares it with.

    ``layer_maps`` lead from the initial model to the student. With ``layers: all``, a student layer is compared with
    the teacher layer that it was made of (of merged ones the last), and the last layer always with the teacher's last.

    Raises :class:`AskdError` when a layer does not exist or is in two pairs, or when ``all`` has no meaning because the
    student starts from a model with another number of layers.
    """
    settings = recipe.objective.decoder_states
    if settings.kind == "none":
        return {}
    if settings.layers == "last":
        return {-1: -1}
    groups, n_teacher = decoder_sources(layer_maps), load_config(recipe.teacher.model).decoder_layers
    n_student = len(groups)
    if settings.layers == "all":
        init = recipe.student.init
        if init is not None and (n_init := load_config(init).decoder_layers) != n_teacher:
            raise AskdError(
                f"objective.decoder_states.layers = all: student.init has {n_init} decoder layers and the teacher "
                f"{n_teacher}: give pairs of a student layer and a teacher layer, or last"
            )
        teacher_layers = [*(group[-1] for group in groups[:-1]), n_teacher - 1]
        return {teacher_layer: layer for layer, teacher_layer in enumerate(teacher_layers)}
    given = f"objective.decoder_states.layers = {[list(pair) for pair in settings.layers]}"
    pairs: dict[int, int] = {}
    for layer, teacher_layer in settings.layers:
        if not (-1 <= layer < n_student and -1 <= teacher_layer < n_teacher):
            raise AskdError(
                f"{given}: the student has decoder layers 0 to {n_student - 1}, the teacher 0 to {n_teacher - 1}; -1 "
                "is the last"
            )
        layer, teacher_layer = layer % n_student, teacher_layer % n_teacher
        if layer in pairs.values() or teacher_layer in pairs:
            raise AskdError(f"{given}: a layer can be in one pair")
        pairs[teacher_layer] = layer
    return pairs
