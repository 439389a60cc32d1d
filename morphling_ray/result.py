"""The outcome of a search, for Python: figures, tables, a view for notebooks, and exports (exports.py)."""

import math
import os
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphling_ray.measurement import Probe, Trial
from morphling_ray.sections import esc, found, headline, tiles
from morphling_ray.space import Configuration
from morphling_ray.summary import Summary
from morphling_ray.wording import (
    NOTHING,
    at_peak,
    bound_text,
    configuration_text,
    counted,
    duration,
    number,
    one_line,
    outcome,
    quantity,
    setting,
)

if TYPE_CHECKING:
    import pandas as pd

BEST_SHOWN = 5
_COLUMNS = (  # of the table of trials, after its knobs and metrics
    *("stage", "outcome", "recommended", "objective", "p99_s", "cost_per_hour", "estimated", "bound"),
    *("started_s", "seconds", "reason"),
)
_STYLE = (
    ".morphling-ray h1{font-size:1.25em;margin:.4em 0}.morphling-ray p{margin:.3em 0}.morphling-ray .sub{opacity:.7}"
    ".morphling-ray .tiles{display:flex;flex-wrap:wrap;gap:.4em 2em;margin:.8em 0}"
    # Jupyter floats the terms of every list
    ".morphling-ray .tiles dt,.morphling-ray .tiles dd{float:none;width:auto;margin:0;font-weight:normal}"
    ".morphling-ray .tiles dt{opacity:.7}.morphling-ray .tiles b{font-size:1.2em;margin-right:.5em}"
    ".morphling-ray .tiles span{opacity:.7}.morphling-ray td,.morphling-ray th{text-align:right;padding:.15em .8em}"
    ".morphling-ray .recommended{font-weight:bold}"
)


class Result:
    """What a search found, as its run directory has it. Made by `morphling_ray.tune`, or by `Result.read`.

    Args:
        summary: The run.
    """

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    @classmethod
    def read(cls, run_dir: str | os.PathLike[str]) -> "Result":
        """The result of an earlier search, also of one that was interrupted, killed, or that still runs.

        Raises:
            InputError: There is no such folder.
            StoreError: It is no run directory, or a file in it cannot be read.
        """
        return cls(Summary.read(Path(run_dir)))

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self._summary.run_dir

    @property
    def report(self) -> Path:
        """Where the report is; a search that was killed has none until `python -m morphling_ray.report RUN_DIR`."""
        return self.run_dir / "report.html"

    @property
    def recommendation(self) -> dict[str, Any]:
        """All that recommendation.json says; for a search that left none, what its trials say."""
        return dict(self._summary.recommendation)

    @property
    def configuration(self) -> Configuration | None:
        """What is recommended; None if nothing was feasible."""
        return self._summary.configuration

    @property
    def peak_rps(self) -> float | None:
        """The highest rate at which it meets the SLO; None in a replay of other metrics."""
        return self._number("peak_rps")

    @property
    def peak_rps_interval(self) -> tuple[float, float] | None:
        """One standard deviation to each side; or the highest rate that met the SLO, and the lowest that missed it."""
        given = self._summary.recommendation.get("peak_rps_interval")
        return None if given is None else (float(given[0]), float(given[1]))

    @property
    def objective(self) -> float | None:
        """The objective's value in `unit`."""
        return self._number("objective")

    @property
    def objective_name(self) -> str:
        """What was sought, such as `rps_per_dollar`."""
        return self._summary.objective_name

    @property
    def unit(self) -> str:
        """Unit of the objective; may be empty in a replay."""
        return self._summary.unit

    @property
    def cost_per_hour(self) -> float | None:
        """Dollars an hour of one copy; None where there are no prices."""
        return self._number("cost_per_hour")

    @property
    def gain_over_baseline(self) -> float | None:
        """How many times as good it is as the present configuration; None where that was not measured."""
        return self._number("gain_over_baseline")

    @property
    def interrupted(self) -> bool:
        """Whether the search was cut short: this is then the best so far, without a final comparison."""
        return self._summary.interrupted

    @property
    def reason(self) -> str:
        """Why nothing is recommended; empty where something is."""
        return str(self._summary.recommendation.get("reason") or "")

    @property
    def serve_config(self) -> str | None:
        """The Serve config to deploy, with whatever secrets the application's own has; None where there is none."""
        return self._summary.serve_config

    @property
    def summary(self) -> Summary:
        """The run as the report reads it."""
        return self._summary

    @cached_property
    def trials(self) -> "pd.DataFrame":
        """A row for each trial: knobs, metrics, `outcome`, `objective`, `p99_s` at the peak, `seconds`, `reason`.

        A knob or a metric that has the name of another column is there as `knob.NAME` or `metric.NAME`. What could not
        be measured is NaN.
        """
        import pandas as pd

        rows = [self._row(trial) for trial in self._summary.trials]
        return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["trial", *_COLUMNS])

    @cached_property
    def probes(self) -> "pd.DataFrame":
        """A row for each probe: the number of its trial in `trial`, and the fields of `Probe`."""
        import pandas as pd

        rows = [
            {"trial": trial.number, **asdict(probe), "verdict": probe.verdict.value}
            for trial in self._summary.trials
            for probe in trial.measurement.probes
        ]
        return pd.DataFrame(rows, columns=["trial", *Probe.__dataclass_fields__])

    def to_csv(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes the trials to a file, or trials.csv and probes.csv into a folder; see `exports.to_csv`."""
        from morphling_ray.exports import to_csv

        return to_csv(self, Path(path))

    def to_parquet(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes the trials to a file, or trials.parquet and probes.parquet into a folder; see `exports.to_parquet`."""
        from morphling_ray.exports import to_parquet

        return to_parquet(self, Path(path))

    def to_optuna(self, storage: str, study_name: str | None = None) -> str:
        """Makes an Optuna study of the search and returns its name; see `trackers.to_optuna`."""
        from morphling_ray.trackers import to_optuna

        return to_optuna(self, storage, study_name)

    def to_mlflow(self, tracking_uri: str, experiment: str = "morphling_ray") -> str:
        """Makes an MLflow run of the search and returns its id; see `trackers.to_mlflow`."""
        from morphling_ray.trackers import to_mlflow

        return to_mlflow(self, tracking_uri, experiment)

    def __repr__(self) -> str:
        s = self._summary
        spent = f"{counted(len(s.trials), 'trial')}, {duration(s.recommendation.get('seconds'))}"
        spent += ", interrupted" if self.interrupted else ""
        if self.configuration is None:
            lines = [f"Nothing is recommended: {one_line(self.reason)}", spent]
        else:
            lines = [found(s), configuration_text(self.configuration), spent]
        return "\n".join([*lines, f"report: {self.report}"])

    def _repr_html_(self) -> str:
        """The headline, the key figures and the best configurations, for a notebook.

        Dollars are no formulas: the classes keep MathJax away.
        """
        cut = "<p>The search was interrupted.</p>" if self.interrupted and self.configuration is None else ""
        where = f"<p class=sub>Report: <code>{esc(self.report)}</code></p>"
        body = "\n".join([headline(self._summary), cut, tiles(self._summary), self._best_table(), where])
        return f'<div class="morphling-ray tex2jax_ignore mathjax_ignore"><style>{_STYLE}</style>\n{body}\n</div>'

    def _best_table(self) -> str:
        s = self._summary
        best = s.best[:BEST_SHOWN]
        if not best:
            return ""
        online = any("peak_rps" in t.measurement.metrics for t in best)
        priced = online and any(s.cost_per_hour(t) is not None for t in best)
        titles = ["#", *([] if s.objective_name == "rps" else [s.unit or s.objective_name])]
        titles += (["peak RPS", "p99"] if online else []) + (["cost"] if priced else []) + s.knobs
        rows = []
        for trial in best:
            cells = [str(trial.number)]
            if s.objective_name != "rps":
                cells.append(quantity(s.value(trial), s.unit if s.lower_is_better else ""))
            if online:
                probe = at_peak(trial.measurement)
                cells.append(number(trial.measurement.metrics.get("peak_rps")))
                cells.append(f"{number(probe.p99_s * 1e3)} ms" if probe else NOTHING)
            if priced:
                cells.append(quantity(s.cost_per_hour(trial), "$/h"))
            cells += [setting(trial.configuration[k]) if k in trial.configuration else NOTHING for k in s.knobs]
            mark = " class=recommended" if s.is_recommended(trial) else ""
            rows.append(f"<tr{mark}>{''.join(f'<td>{esc(cell)}</td>' for cell in cells)}</tr>")
        head = "".join(f"<th scope=col>{esc(title)}</th>" for title in titles)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def _row(self, trial: Trial) -> dict[str, Any]:
        s, m = self._summary, trial.measurement
        probe = at_peak(m)
        own = (
            trial.stage,
            outcome(trial).value,
            s.is_recommended(trial),
            _nan(s.value(trial)),
            probe.p99_s if probe is not None else math.nan,
            _nan(s.cost_per_hour(trial)),
            m.estimated,
            bound_text(m),
            trial.started_s,
            trial.seconds,
            m.infeasible_because,
        )
        taken = {"trial", *_COLUMNS}
        knobs = {_column(name, "knob", taken): trial.configuration.get(name) for name in s.knobs}
        metrics = {_column(n, "metric", {*taken, *knobs}): _nan(m.metrics.get(n)) for n in self._metrics}
        return {"trial": trial.number, **knobs, **metrics, **dict(zip(_COLUMNS, own, strict=True))}

    @cached_property
    def _metrics(self) -> list[str]:
        return list(dict.fromkeys(name for trial in self._summary.trials for name in trial.measurement.metrics))

    def _number(self, name: str) -> float | None:
        value = self._summary.recommendation.get(name)
        return None if value is None else float(value)


def _column(name: str, kind: str, taken: set[str]) -> str:
    return f"{kind}.{name}" if name in taken else name


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
