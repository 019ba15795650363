import pytest
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError

from askd_ray.errors import AskdError
from askd_ray.ray_errors import user_error


def from_a_task(cause: Exception) -> Exception:
    """What Ray raises here for an exception that a task of its own raised there."""
    return RayTaskError("load", "Traceback:\n  pages of it", cause).as_instanceof_cause()


MENDABLE = AskdError("shard-0 is damaged")


@pytest.mark.parametrize(
    "raised",
    [
        MENDABLE,
        from_a_task(MENDABLE),
        WorkerGroupError("worker 1 failed", {1: from_a_task(MENDABLE)}),
        ControllerError(MENDABLE),
        ControllerError(from_a_task(MENDABLE)),
    ],
    ids=["as it is", "of a task", "of a worker", "of a controller", "of a task in a controller"],
)
def test_what_the_user_can_mend_is_one_line(raised: Exception):
    with pytest.raises(AskdError) as caught, user_error():
        raise raised
    assert str(caught.value) == "shard-0 is damaged"


def test_a_defect_goes_on_as_it_is():
    raised = from_a_task(KeyError("x"))
    with pytest.raises(KeyError) as caught, user_error():
        raise raised
    assert caught.value is raised
