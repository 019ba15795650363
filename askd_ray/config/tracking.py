"""The recipe's ``tracking``: where the metrics of a training go besides TensorBoard."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from askd_ray.config.section import Section
from askd_ray.files import local_path, scheme_of


class Tracking(Section):
    """MLflow: recipe, metrics, report and bundle go into a run with the recipe's name.

    Credentials of a server come from the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
    MLFLOW_TRACKING_TOKEN.
    """

    mlflow: str | None = None
    """A folder (created if missing), or the address of a tracking server; null disables MLflow."""
    experiment: Annotated[str, Field(min_length=1)] = "askd"
    """The name of the experiment."""

    @model_validator(mode="after")
    def _check_mlflow(self) -> "Tracking":
        if self.mlflow is None:
            self.refuse_unread(["experiment"], "tracking.mlflow names no store")
            return self
        # The messages do not quote the value: it may hold a password.
        where = urlsplit(self.mlflow)
        is_uri = scheme_of(self.mlflow) is not None or "://" in self.mlflow
        if not self.mlflow or (is_uri and not (where.scheme in ("http", "https") and where.hostname)):
            raise ValueError("mlflow is a folder, or the address of a tracking server: http://HOST:PORT or https://...")
        if "://" in self.mlflow and (where.username is not None or where.query):
            raise ValueError(
                "mlflow holds a name, a password or a query, but recipes are not secret: give only the address, set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        if not is_uri:
            local_path(self.mlflow)
        return self

    @property
    def is_server(self) -> bool:
        """Whether ``mlflow`` is the address of a server, and not a folder."""
        return self.mlflow is not None and "://" in self.mlflow
