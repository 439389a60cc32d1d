"""One run, from an experiment to a recommendation: the steps of the main job, and what is kept of each."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from threadpoolctl import threadpool_limits

from morphling_ray.cluster import Cluster, connect, connected_to, disconnect, head_answers
from morphling_ray.evaluate.lanes import places, start_lanes
from morphling_ray.evaluate.room import Room, on_one_node, seats
from morphling_ray.experiment import Experiment
from morphling_ray.json_progress import JsonProgress
from morphling_ray.masking import has_secrets, masked
from morphling_ray.measurement import Measurement, Trial
from morphling_ray.outcome import closing_lines, recommendation
from morphling_ray.progress import Progress
from morphling_ray.report import render
from morphling_ray.search import check_searcher, make_sampler
from morphling_ray.search.session import Ask, SearchSession
from morphling_ray.store import RunDirectory
from morphling_ray.target import Plan, ReplayTarget, ServeTarget, Target
from morphling_ray.telemetry import Telemetry
from morphling_ray.trials import TUNE_FOLDER, run_trials

POLL_S = 0.25
HANG_S = 900.0  # of a trial, beside what it may take to start
CONFIRMATIONS = 2  # of the last trials: the finalists are measured again
DIFFERENCE = "serve_config.diff"  # to the user's own Serve config


class Run:
    """State of one run. Made by `prepare`; then `progress`, `search`, `release`, `conclude`, in this order."""

    def __init__(
        self, experiment: Experiment, target: Target, directory: RunDirectory, started: float, command: Sequence[str]
    ) -> None:
        self.experiment = experiment
        self.directory = directory
        self._target = target
        self._started = started
        self.command = command  # that repeats the run
        self._show: Progress | JsonProgress | None = None
        self._telemetry: Telemetry | None = None
        self._cluster: Cluster | None = None
        self._plan: Plan | None = None
        self._session: SearchSession | None = None
        self._lanes: Any = None
        self._serve_is_ours = False
        self._asked: dict[int, tuple[Ask, float]] = {}
        self._kept = directory.trials()  # of the run that is resumed
        self._starting_s = 0.0
        self._loadgen: dict[str, Any] | None = None  # what it found, if it was asked for
        self._released = threading.Event()
        self._head_is_lost = False

    @classmethod
    def prepare(cls, experiment: Experiment, *, argv: Sequence[str], started: float, resume: str | None) -> "Run":
        """Checks everything that can be checked without a cluster, then makes (or opens) the run directory.

        Raises:
            MorphlingError: Something cannot work; nothing was started and no directory was made.
        """
        target = check(experiment)
        if resume is not None:
            return cls(experiment, target, RunDirectory.open(Path(resume)), started, argv)
        directory = RunDirectory.create(Path(experiment.run_dir) if experiment.run_dir else None)
        directory.write_experiment(experiment.to_dict())
        directory.write_secrets(experiment.secrets)
        return cls(experiment, target, directory, started, argv)

    @property
    def seconds(self) -> float:
        """Since the command was started."""
        return time.monotonic() - self._started

    @contextmanager
    def progress(self, stream: TextIO, how: str = "live") -> Iterator[None]:
        """Shows the run on a stream while it goes on: `live`, `verbose`, `quiet`, or `json`."""
        from morphling_ray.target import UNITS

        if how == "json":
            self._show = JsonProgress(stream, clock=time.monotonic)
            with self._show:
                yield
            return
        experiment = self.experiment
        name = experiment.objective_name or experiment.objective
        self._show = Progress(
            stream,
            max_trials=experiment.max_trials,
            time_budget_s=experiment.time_budget,
            objective_name=name,
            unit=UNITS.get(name, ""),
            reported=lambda value: self._plan.objective.reported(value) if self._plan else value,
            clock=time.monotonic,
            quiet=how == "quiet",
            verbose=how == "verbose",
        )
        with self._show:
            yield

    def search(self) -> None:
        """Runs the search to its end.

        Raises:
            MorphlingError: The cluster cannot do what the experiment asks for.
            KeyboardInterrupt: Passed on; everything finished is in the store.
        """
        ours = "starting Ray" if self.experiment.address is None else "connecting to Ray"
        self._say(ours if connected_to() is None else "using the Ray cluster that this process is connected to")
        self._cluster = connect(self.experiment.address, self.experiment.node_types)
        at_once = 1
        if isinstance(self._target, ServeTarget):
            plan = self._target.plan(self._cluster)  # what cannot work is said before anything is started
            at_once = self._trials_at_once(plan, self._cluster)
            self._say("starting Ray Serve")
            self._serve_is_ours = self._target.start_serve(everywhere=at_once > 1)
        self._plan = plan = self._target.plan(self._cluster, one_node=at_once > 1)
        self.directory.write_experiment({**self.experiment.to_dict(), **plan.space.to_dict()})
        for note in plan.notes:
            self._say(note)
        self._lanes = start_lanes(
            self._lanes_name,
            plan.make_evaluator,
            plan.arguments,
            needs=plan.needs if at_once > 1 else None,
            node_timeout_s=self.experiment.node_timeout,
            hang_s=HANG_S
            + self.experiment.startup_timeout
            + self.experiment.node_timeout * bool(self._cluster.to_come),
            to_come=self._cluster.to_come,
            tried=[str(trial.configuration) for trial in self._kept] if plan.needs is not None else [],
            **({"seats": self._seats(plan)} if at_once > 1 else {}),
        )
        self._session = self._new_session(plan)
        self._telemetry = Telemetry(
            run=self.directory.path.name,
            application=self.experiment.task or self.experiment.app,
            max_trials=self.experiment.max_trials,
            reported=plan.objective.reported,
            kept=self._kept,
        )
        self._starting_s = self.seconds
        poll = threading.Thread(target=self._poll_lanes, daemon=True)
        poll.start()
        try:
            # The models are small: BLAS threads would only take cores from the replicas.
            with threadpool_limits(limits=1):
                run_trials(
                    self._session,
                    self._lanes_name,
                    at_once=at_once if plan.needs else self.experiment.concurrency or 1,
                    folder=self.directory.path,
                    on_ask=self._on_ask,
                    on_trial=self._on_trial,
                )
                if self.experiment.loadgen:
                    self._loadgen = self._cross_check(self._session)
        finally:
            self._released.set()
            poll.join(timeout=2.0)

    def _new_session(self, plan: Plan) -> SearchSession:
        session = new_session(self.experiment, self._target, plan, elapsed_s=self.seconds)
        for note in session.notes:
            self._say(note)
        for trial in self._kept:
            session.replay(trial.number, trial.stage, trial.measurement)
            if self._show is not None:
                self._show.trial_finished(trial)
        return session

    def _trials_at_once(self, plan: Plan, cluster: Cluster) -> int:
        """As many as the user wants; or as the nodes take, where no configuration takes several of them."""
        wanted = self.experiment.concurrency
        if plan.needs is None or wanted == 1:
            return 1
        if wanted is None and not on_one_node(plan.kinds, cluster.all_nodes):
            return 1
        there = places(self._seats(plan))
        if wanted is not None and wanted > there:
            self._say(f"{wanted} trials at the same time were asked for; the nodes that are there take {there}")
        if wanted is None or cluster.local:  # to which no node comes
            return max(1, min(there, wanted or there))
        return wanted

    def _seats(self, plan: Plan) -> Callable[[Room], int]:
        """How many trials a node takes at once: on this machine alone as many as are asked for, if they fit."""
        alone = self._cluster is not None and self._cluster.local
        per_node = self.experiment.trials_per_node or (self.experiment.concurrency if alone else None)
        return partial(seats, kinds=plan.kinds, per_node=per_node)

    def _cross_check(self, session: SearchSession) -> dict[str, Any] | None:
        """Has MLPerf LoadGen measure what will be recommended; a failure of that does not spoil the run."""
        import ray

        outcome = session.recommendation()
        if outcome is None:
            return None
        self._say("MLPerf LoadGen measures the recommendation once more, in about a minute")
        try:
            found: dict[str, Any] = ray.get(self._lanes.cross_check.remote(0, outcome.configuration))
        except ray.exceptions.RayError as error:
            self._say(f"MLPerf LoadGen failed: {' '.join(str(error).split())[-300:]}")
            return None
        return found

    @property
    def _lanes_name(self) -> str:
        """Unique on a cluster that several people use."""
        return f"morphling-{self.directory.path.name}-{os.getpid()}-lanes"

    def _on_ask(self, ask: Ask) -> None:
        self._asked[ask.number] = ask, self.seconds
        if self._show is not None:
            self._show.trial_started(ask.number, ask.configuration, ask.stage)

    def _on_trial(self, number: int, measurement: Measurement, objective: float | None) -> None:
        ask, started = self._asked.pop(number)
        cost = self._target.cost_per_hour(measurement.configuration)
        if cost is not None:
            measurement = replace(measurement, details={**measurement.details, "cost_per_hour": round(cost, 6)})
        trial = Trial(
            number=number,
            stage=ask.stage,
            measurement=measurement,
            objective=objective,
            started_s=started,
            seconds=self.seconds - started,
        )
        self.directory.append_trial(trial)
        if self._show is not None:
            self._show.trial_finished(trial)
        if self._telemetry is not None:
            self._telemetry.trial_finished(trial)

    def _poll_lanes(self) -> None:
        """Passes on what the lanes are doing, until the search is over."""
        import ray

        while not self._released.wait(POLL_S):
            try:
                doing = ray.get(self._lanes.stages.remote(), timeout=5.0)
            except Exception:  # noqa: BLE001  what does not answer is the trials' problem, not the display's
                if not self._head_is_lost and not head_answers():  # Ray ends this process if it stays away
                    self._head_is_lost = True
                    again = f"--resume {self.directory.path} goes on, with --address where there is another one"
                    self._say(f"the cluster's head node does not answer; {again}")
                continue
            self._head_is_lost = False
            for each in doing:
                if each.number in self._asked and self._show is not None:
                    self._show.stage(each.number, each.stage)
            if self._telemetry is not None:
                self._telemetry.refresh(self._asked, {each.number: (each.stage, each.probe) for each in doing})

    def release(self, *, in_a_hurry: bool) -> None:
        """Takes down what was put up: everything on a local cluster, on another one what is ours."""
        self._released.set()
        if self._cluster is None:
            disconnect()  # connecting may have been interrupted half-way
            return
        self._say("shutting down")
        if not self._cluster.local:
            self._leave_cluster(in_a_hurry=in_a_hurry)
        disconnect()
        shutil.rmtree(self.directory.path / TUNE_FOLDER, ignore_errors=True)  # trials.jsonl has all of it

    def _leave_cluster(self, *, in_a_hurry: bool) -> None:
        import ray

        if self._lanes is not None:
            with suppress(Exception):  # a lane in the middle of a trial does not answer; its actors end with it
                ray.get(self._lanes.close.remote(), timeout=2.0 if in_a_hurry else 20.0)
            ray.kill(self._lanes)
        if self._target.needs_serve:
            from morphling_ray.serving.deployment import leave_serve

            leave_serve(shut_down=self._serve_is_ours, wait=not in_a_hurry)

    def conclude(self, *, interrupted: bool) -> dict[str, Any]:
        """Writes recommendation.json and serve_config.yaml; returns what the last line on stdout says."""
        trials = self.directory.trials()
        result = recommendation(
            self.experiment,
            self._plan,
            self._session,
            trials,
            target=self._target,
            run_dir=str(self.directory.path),
            seconds=self.seconds,
            starting_s=self._starting_s,
            interrupted=interrupted,
            command=self.command,
            loadgen=self._loadgen,
        )
        if result["configuration"] is not None:
            header = (
                f"# {result['summary']}\n# Measured by morphling_ray; report.html beside this file has the evidence.\n"
            )
            scale = (result["copies"] or 1, result["ongoing_requests"])
            text = self._target.serve_config(result["configuration"], header, scale=scale)
            if text is not None:
                self.directory.write_text("serve_config.yaml", text, private=has_secrets(text))
                if difference := self._target.difference(text):
                    self.directory.write_text(DIFFERENCE, masked(difference))
        self.directory.write_recommendation(result)
        self.directory.write_text("report.html", render(self.directory.path))
        short = ("run_dir", "configuration", "peak_rps", "objective", "objective_name", "cost_per_hour", "p99_s")
        return {**{k: result[k] for k in short}, "trials": result["trials"], "seconds": result["seconds"]}

    def closing_lines(self) -> list[str]:
        """What a person is told in the end."""
        folder = self.directory.path
        config = folder / "serve_config.yaml"
        stored = self.directory.recommendation() or {}
        difference = (folder / DIFFERENCE).read_text() if (folder / DIFFERENCE).exists() else ""
        return closing_lines(stored, folder / "report.html", config if config.exists() else None, difference)

    def discard_if_empty(self) -> None:
        """Removes a run directory in which nothing was measured."""
        folder = self.directory.path
        if not self.directory.trials() and not (folder / "recommendation.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            if self.experiment.run_dir is None and not any(folder.parent.iterdir()):
                folder.parent.rmdir()

    def _say(self, text: str) -> None:
        if self._show is not None:
            self._show.message(text)


def check(experiment: Experiment) -> Target:
    """Checks everything that can be checked without a cluster.

    Raises:
        MorphlingError: Something cannot work.
    """
    check_searcher(experiment.searcher, Path(experiment.prior) if experiment.prior else None)
    return ServeTarget(experiment) if experiment.replay is None else ReplayTarget(experiment)


def new_session(experiment: Experiment, target: Target, plan: Plan, *, elapsed_s: float) -> SearchSession:
    """The search that an experiment asks for, before its first trial; its time budget began `elapsed_s` ago."""
    budget = experiment.time_budget
    sampler = make_sampler(
        experiment.searcher,
        plan.space,
        plan.objective,
        seed=experiment.seed,
        prior=Path(experiment.prior) if experiment.prior else None,
    )
    return SearchSession(
        plan.space,
        plan.objective,
        sampler,
        max_trials=experiment.max_trials,
        time_budget_s=None if budget is None else max(0.0, budget - elapsed_s),
        clock=time.monotonic,
        confirm=CONFIRMATIONS if target.needs_serve else 0,
        initial=plan.initial,
        stop_probability=experiment.stop_probability,
        burden=target.burden,
        give_up_after=3 if target.needs_serve else 0,  # infeasible records say nothing of the set-up
    )
