"""The order of a retraining: champion, look at the rows, decide, train, compare, promote or not, and say why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow
from prefect.runtime import deployment, flow_run

from bitfount_model import BitfountModelReference
from bitfount_model.errors import BitfountError, ConfigurationError
from bitfount_model.federation.job import EVALUATE
from flows import parameters
from flows.any_job import run_job
from flows.console import RunView
from flows.deployed_run import Ended, ended, given_or_set, job_id_of, surroundings_of
from flows.run import Surroundings, tracking_of
from flows.settings import read_job, read_retraining
from flows.workspace import Workspace, only_once
from tasks.federated.job_file import FederatedJobFile
from tasks.initialise import as_json
from tasks.job import LocalJob
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.record import replay
from tasks.recording import Tracking
from tasks.registered import SCHEMA, SOURCE, WEIGHTS, RegisteredModel, open_model
from tasks.retraining.champion import champion_files, find_champion
from tasks.retraining.comparison import chosen_metric, compare_at_pods, compare_here, gain_of
from tasks.retraining.contents import FAILED, note, outcome_of, retraining_contents
from tasks.retraining.decisions import Decision, Look, whether_to_promote, whether_to_train
from tasks.retraining.look import look_at_pods, look_at_rows, look_of
from tasks.retraining.outcome import post, settle, show_in_prefect, tell_automations
from tasks.retraining.retraining_file import WARM, RetrainingFile, retraining_to_json, webhook_of
from tasks.session import require
from tasks.step import step
from tasks.store import Store

TITLES = {
    "champion": "finding the champion",
    "look": "looking at the rows",
    "decide": "deciding whether to train",
    "train": "training the challenger",
    "compare": "comparing challenger and champion",
    "promote": "settling which is the champion",
}
Job = TypeVar("Job", bound=LocalJob | FederatedJobFile)
AFRESH, FROM_CHAMPION = "from scratch", "from the champion's weights"


@flow(
    name="retraining",
    flow_run_name="retrain by {retraining_file}",
    persist_result=True,
    result_serializer="json",
)
def retraining(
    retraining_file: parameters.RetrainingFile,
    home: parameters.Home = "bitfount_runs",
    tracking_uri: parameters.TrackingUri | None = None,
    store: parameters.StoreUrl | None = None,
    force: parameters.Force = False,
    retraining_id: parameters.RetrainingId | None = None,
) -> Ended:
    """Trains a registered model again where that is worth it, and uses the new version if it is better.

    Args:
        retraining_file: path of the YAML file.
        home: folder of jobs and models.
        tracking_uri: of MLflow, which holds the registry too; default: the database in `home`.
        store: where deployed pods are met, unless the job says it.
        force: trains whatever the rows are.
        retraining_id: names this retraining, and goes on with it; by default one of the Prefect run, so that a run which
            Prefect starts again goes on.

    Returns:
        The summary: `retraining_id`, `model`, `outcome`, `why`, `version`, `champion`, `mlflow_run_id`. For a deployed run
        that fails a failed state, see `flows.deployed_run.ended`; elsewhere the error is raised.
    """
    deployed = deployment.get_id() is not None

    def body() -> dict[str, Any]:
        asked = read_retraining(Path(retraining_file))
        surroundings = (
            surroundings_of(home)
            if deployed
            else Surroundings(Workspace(Path(home)), None, RunView(sys.stdout), verbose=False)
        )
        surroundings.workspace.prepare()
        name = retraining_id or job_id_of(asked.name)
        own = Store(surroundings.workspace.home.resolve() / "retrainings" / name)
        places = given_or_set(tracking_uri, "MLFLOW_TRACKING_URI"), given_or_set(store, "BITFOUNT_STORE")
        with only_once(Path(own.url), "retraining"):
            return Retraining(asked, name, own, surroundings, *places).run(force)

    return ended(body) if deployed else body()


class Retraining:
    """One retraining; what its steps have done already is not done again.

    Args:
        asked: what is wanted.
        retraining_id: names it; the job that it trains has the same name.
        store: its own.
        surroundings: where jobs run.
        tracking_uri: of MLflow; None for the workspace's database.
        place: where deployed pods are met, unless the job says it.
    """

    def __init__(
        self,
        asked: RetrainingFile,
        retraining_id: str,
        store: Store,
        surroundings: Surroundings,
        tracking_uri: str | None,
        place: str | None,
    ) -> None:
        self.asked, self.id, self.store, self.surroundings = asked, retraining_id, store, surroundings
        self.tracking_uri, self.place = tracking_uri, place
        self.uri = tracking_uri or surroundings.workspace.tracking_uri
        self.job = read_job(Path(asked.job))
        self.model = registered_name(self.job, asked.job)
        self.webhook = webhook_of(asked)
        self.done: dict[str, Manifest] = {}

    def run(self, force: bool) -> dict[str, Any]:
        """Does what is left to do, and tells how it ended."""
        self.store.put("retraining.json", as_json(retraining_to_json(self.asked)))
        with self.failure_told():
            for name, body in {
                "champion": lambda: find_champion(self.store, self.model, self.uri),
                "look": self.look,
                "decide": lambda: self.decide(force),
            }.items():
                self.do(name, body)
            if self.done["decide"].values["train"]:
                self.do("train", self.train)
                if (champion := self.champion) is not None:
                    self.do("compare", lambda: self.compare(champion))
                self.do("promote", self.promote)
            return self.tell()

    def do(self, name: str, body: Callable[[], Manifest]) -> None:
        """Runs a step as a task, but for those that run a job, whose own steps are tasks."""
        trains = name == "train" or (name == "look" and not isinstance(self.job, LocalJob))
        self.surroundings.view.say(f"{TITLES[name]} …")
        self.done[name] = body() if trains else step(name, name)(body)()

    @property
    def champion(self) -> RegisteredModel | None:
        """The champion's files here."""
        models = self.surroundings.workspace.home / "models"
        return champion_files(self.done["champion"], self.model, self.uri, models)

    def look(self) -> Manifest:
        """Looks at the rows; over pods, by asking them to evaluate the champion."""
        if isinstance(self.job, LocalJob):
            return look_at_rows(self.store, self.job, self.champion)
        champion = self.champion
        if champion is None:
            values: dict[str, Any] = {"rows": 1, "new_rows": None, "changed": True, "drift": {}, "new_classes": []}
            return write_manifest(self.store, Manifest("look", {}, values))
        run_job(evaluation_job(self.job, champion), self.champion_job, self.tracking_uri, self.place, self.surroundings)
        joined = require(self.surroundings.workspace.store(self.champion_job), "initialise").values
        return look_at_pods(self.store, joined, champion)

    def decide(self, force: bool) -> Manifest:
        """Decides whether to train, once."""
        if done := read_manifest(self.store, "decide"):
            return done
        version = self.done["champion"].values["version"]
        decision = whether_to_train(look_of(self.done["look"]), self.asked.train_when, champion=version, forced=force)
        return write_manifest(self.store, Manifest("decide", {}, {"train": decision.yes, "why": decision.why}))

    def train(self) -> Manifest:
        """Trains and registers the challenger; a job of the same name that was stopped goes on."""
        if done := read_manifest(self.store, "train"):
            return done
        champion = self.champion
        job, start = self.job, AFRESH
        if self.asked.start == WARM and champion is not None and fits(champion, self.job, look_of(self.done["look"])):
            job, start = warm(self.job, champion), FROM_CHAMPION
        summary = run_job(job, self.id, self.tracking_uri, self.place, self.surroundings)
        trained = self.surroundings.workspace.store(self.id)
        if read_manifest(trained, "register") is None:
            raise ConfigurationError(
                f"the job {self.id} was trained and could not be registered, as MLflow did not answer: run the retraining again"
            )
        recorded, registered = require(trained, "record").values, require(trained, "register").values
        values = {
            "job_id": self.id,
            "start": start,
            "run_id": recorded["run_id"],
            "experiment_id": recorded["experiment_id"],
            "version": registered["version"],
            "metrics": summary["metrics"],
        }
        return write_manifest(self.store, Manifest("train", {}, values))

    def compare(self, champion: RegisteredModel) -> Manifest:
        """Compares the challenger with the champion."""
        jobs = self.surroundings.workspace
        if isinstance(self.job, LocalJob):
            return compare_here(self.store, jobs.store(self.id), champion, self.asked.compare)
        both = [require(jobs.store(job_id), "evaluate").values for job_id in (self.id, self.champion_job)]
        metric = chosen_metric(open_model(champion.folder).model, self.asked.compare["metric"])
        return compare_at_pods(self.store, both[0], both[1], self.asked.compare, metric)

    def promote(self) -> Manifest:
        """Moves the alias, or leaves it, and writes down why."""
        decision = Decision(True, ("there was no champion",))
        if "compare" in self.done:
            decision = whether_to_promote(gain_of(self.done["compare"]), self.asked.compare)
        return settle(self.store, self.model, self.done["train"].values["version"], decision, self.uri)

    def tell(self) -> dict[str, Any]:
        """Records the retraining in MLflow, makes its page in Prefect, and tells automations and the webhook."""
        tracking = Tracking(**tracking_of(self.surroundings.workspace, self.job.experiment, self.tracking_uri))  # type: ignore[arg-type]
        contents = retraining_contents(self.id, self.asked, self.model, self.done, flow_run.get_id())
        run = replay(self.store, contents, tracking.uri, tracking.experiment, tracking.artifact_root, "FINISHED").info
        places = {"tracking_uri": tracking.uri, "experiment_id": run.experiment_id, "run_id": run.run_id}
        show_in_prefect(note(self.asked, self.model, self.done, places), self.model)
        outcome, why = outcome_of(self.done)
        trained = self.done["train"].values if "train" in self.done else {"version": None}
        before = self.done["champion"].values["version"]
        summary = {
            "retraining_id": self.id,
            "model": self.model,
            "outcome": outcome,
            "why": why,
            "version": trained["version"],
            "champion": trained["version"] if outcome == "promoted" else before,
            "mlflow_run_id": run.run_id,
        }
        self.tell_others(outcome, summary)
        return summary

    @contextmanager
    def failure_told(self) -> Iterator[None]:
        """A retraining that fails tells it too; what cannot be told does not hide the error."""
        try:
            yield
        except Exception as error:
            summary = {"retraining_id": self.id, "model": self.model, "outcome": FAILED, "why": _shown(error)}
            try:
                self.tell_others(FAILED, summary)
            except BitfountError as unsaid:
                self.surroundings.view.say(f"! {unsaid}")
            raise

    def tell_others(self, outcome: str, summary: dict[str, Any]) -> None:
        """Sends the event, and the message to the webhook, once for each outcome."""
        tell_automations(outcome, self.model, summary)
        if self.webhook and not self.store.has(f"told/{outcome}.json"):
            post(self.webhook, summary)
            self.store.put(f"told/{outcome}.json", as_json(summary))

    @property
    def champion_job(self) -> str:
        """The job over pods that evaluates the champion."""
        return f"{self.id}-champion"


def registered_name(job: LocalJob | FederatedJobFile, path: str) -> str:
    """The registered model that a job makes versions of.

    Raises:
        ConfigurationError: it makes none.
    """
    if job.register is None:
        raise ConfigurationError(
            f"{path} has no `register`: say the name of the registered model that is trained again"
        )
    return job.register


def fits(champion: RegisteredModel, job: LocalJob | FederatedJobFile, look: Look) -> bool:
    """Whether a job can begin with the champion's weights: the same network for the same classes."""
    where = BitfountModelReference(job.model.get("file") or job.model["reference"], model_version=job.model["version"])
    return (
        where.source() == (champion.folder / SOURCE).read_bytes()
        and open_model(champion.folder).description["hyperparameters"] == job.model["hyperparameters"]
        and not look.new_classes
    )


def warm(job: Job, champion: RegisteredModel) -> Job:
    """The job, beginning with the champion's weights and its columns, so that both see rows alike."""
    begins = {**job.training, "pretrained_file": str((champion.folder / WEIGHTS).resolve())}
    columns: dict[str, Any] = {"file": str((champion.folder / SCHEMA).resolve())}
    return replace(job, training=begins, schema=columns if isinstance(job, LocalJob) else {**columns, "types": {}})


def evaluation_job(job: FederatedJobFile, champion: RegisteredModel) -> FederatedJobFile:
    """A job that evaluates the champion over the pods, on the test rows that the challenger's job will have."""
    description = open_model(champion.folder).description
    model = {
        "file": str((champion.folder / SOURCE).resolve()),
        "version": None,
        "class_name": description["class_name"],
        "hyperparameters": description["hyperparameters"],
    }
    return replace(
        warm(job, champion), model=model, operation=EVALUATE, evaluate=True, predict=False, compare=False, register=None
    )


def _shown(error: Exception) -> str:
    """What of an error may be posted: its text where it is one of ours, else its kind."""
    return str(error) if isinstance(error, BitfountError) else type(error).__name__
