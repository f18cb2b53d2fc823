"""MLflow and Weights & Biases, each as a `Tracker`; their packages are imported where they are first used.

Servers, projects and names are those of their own environment variables: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME;
WANDB_MODE, WANDB_PROJECT, WANDB_NAME, WANDB_DIR and the like. Without, the project is "focal_det", and the run has the
name of its folder. Both get the keys that differ from their defaults, all metrics, and at the end the report and the
place of the best checkpoint, which is never uploaded.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import posixpath
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from ..output_layout import CONFIG, CONFIG_CHANGES
from ..registries import EVENT_WRITER_REGISTRY
from .trackers import RunEnd, Tracker

logger = logging.getLogger(__name__)
_PROJECT = "focal_det"
_BEST = "best_checkpoint"


def _changes(tracker: Tracker) -> dict[str, Any]:
    """Return the keys that differ from their defaults, with their values."""
    rows = json.loads((tracker.folder / CONFIG_CHANGES).read_text(encoding="utf-8"))
    return {row["key"]: row["value"] for row in rows}


@EVENT_WRITER_REGISTRY.register()
class MLflow(Tracker):
    """An MLflow run, in the store of MLFLOW_TRACKING_URI.

    What it has is said by a tag that comes with each line of metrics, so that a kill at any moment leaves none twice.
    """

    package = "mlflow"
    _SENT = "focal_det.iteration"
    _METRICS, _PARAMS = 900, 100  # that a request may have
    _id = ""  # of the run, once there is one

    def open(self, run_id: str | None) -> str:
        """Begin or continue a run; one that its server no longer has is begun anew, with all metrics so far."""
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient()
        run, run_id = None, self._id or run_id
        try:
            run = self._client.get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        if run is None:
            run, self.sent = self._client.create_run(self._experiment(), run_name=self.folder.resolve().name), -1
        else:
            self.sent = int(run.data.tags.get(self._SENT, -1))
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._id = run.info.run_id
        store = re.sub(r"//[^/]*@", "//", self._client.tracking_uri)  # without a password
        logger.info(f"MLflow: run {self._id} in {store}")
        # what is there stays as it is: MLflow takes another value for an error
        changes = {_name(key): str(value)[:6000] for key, value in _changes(self).items()}
        params = [Param(key, value) for key, value in changes.items() if key not in run.data.params]
        for start in range(0, len(params), self._PARAMS):
            self._client.log_batch(self._id, params=params[start : start + self._PARAMS])
        return self._id

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Send a line, with what then is there."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        values = [Metric(_name(name), value, now, iteration) for name, value in metrics.items()]
        for start in range(0, len(values), self._METRICS):
            is_last = start + self._METRICS >= len(values)
            tags = [RunTag(self._SENT, str(iteration))] if is_last else []
            self._client.log_batch(self._id, metrics=values[start : start + self._METRICS], tags=tags)

    def finish(self, end: RunEnd) -> None:
        """Send files and status: FINISHED, FAILED, or KILLED after a signal."""
        if end.best:
            self._client.set_tag(self._id, _BEST, str(end.best.resolve()))
        for path in (self.folder / CONFIG, end.report):
            if path:
                self._client.log_artifact(self._id, str(path))
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[end.status]
        self._client.set_terminated(self._id, status)

    def _experiment(self) -> str:
        """Return the id of the experiment, which is made if it is not there."""
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))


def _name(name: str) -> str:
    """Return a name as MLflow takes it, such as of the AP of a class that is called "a&b", or "with/"."""
    plain = re.sub(r"[^\w./\- :]", "_", name)[:250]
    return plain if posixpath.normpath(plain) == plain else plain.replace("/", "_")


@EVENT_WRITER_REGISTRY.register()
class WandB(Tracker):
    """A run of Weights & Biases, whose own process keeps on the disk what its server does not take."""

    package = "wandb"
    _SECONDS = 15.0  # that its end may take; what is not sent by then is left to `wandb sync`

    @classmethod
    def problem(cls) -> str | None:
        """Return what is missing; among that an API key, which would be asked for at the terminal."""
        if problem := super().problem():
            return problem
        if os.environ.get("WANDB_MODE", "online") not in ("online", "run", "shared"):
            return None
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(os.environ.get("NETRC")).authenticators(host):
                return None
        if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
            return None
        return f"WandB has no API key for {host}: run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"

    def open(self, run_id: str | None) -> str:
        """Begin or continue a run; an offline one is continued in another folder, which `wandb sync` joins."""
        import wandb

        environ = os.environ.get
        self._run = wandb.init(
            id=run_id,
            resume="allow",
            project=environ("WANDB_PROJECT") or _PROJECT,
            name=environ("WANDB_NAME") or self.folder.resolve().name,
            dir=environ("WANDB_DIR") or str(self.folder),
            config=_changes(self),
            # not the console, whose streams would be replaced in this process
            settings=wandb.Settings(console="off", finish_timeout=self._SECONDS, silent=True),
        )
        where = f"offline, to be sent by: wandb sync {self._run.settings.sync_dir}"
        logger.info(f"Weights & Biases: {where if self._run.offline else self._run.url}")
        return str(self._run.id)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Hand a line to wandb's process."""
        self._run.log(dict(metrics), step=iteration)

    def finish(self, end: RunEnd) -> None:
        """Send files and exit code."""
        if end.best:
            self._run.summary[_BEST] = str(end.best.resolve())
        for path in (self.folder / CONFIG, end.report):
            if path:
                self._run.save(str(path), base_path=str(self.folder), policy="now")
        self._run.finish(exit_code={"finished": 0, "stopped": 75, "failed": 1}[end.status])
