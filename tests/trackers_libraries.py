"""Stand-ins for the trackers' libraries: the names and the order of the parameters are those of the real ones.

wandb 0.31, mlflow 3.17, trackio 0.43. A parameter that a library lacks raises a TypeError here as it does there.
"""

from __future__ import annotations

import types
from inspect import Parameter, Signature
from types import SimpleNamespace

PARAMETERS = {
    "wandb.init": "entity project dir id name notes tags config config_exclude_keys config_include_keys "
    "allow_val_change group job_type mode force reinit resume resume_from fork_from save_code tensorboard "
    "sync_tensorboard monitor_gym settings",
    "Run.define_metric": "name! step_metric step_sync hidden summary overwrite",
    "Run.log": "data! step commit",
    "Run.finish": "exit_code",
    "mlflow.set_experiment": "experiment_name experiment_id trace_location",
    "mlflow.start_run": "run_id experiment_id run_name nested parent_run_id tags description log_system_metrics",
    "mlflow.log_params": "params! synchronous run_id",
    "mlflow.log_metrics": "metrics! step synchronous run_id timestamp model_id dataset",
    "mlflow.end_run": "status",
    "trackio.init": "project! name group space_id server_url dataset_id bucket_id config resume settings private embed "
    "auto_log_gpu gpu_log_interval auto_log_cpu cpu_log_interval webhook_url webhook_min_level",
    "trackio.log": "metrics! step",
    "trackio.finish": "",
}
"""Parameters of each call in their order; with ``!`` those that must be given."""


def call(name, act):
    """A function with the parameters of ``name`` that passes those that were given to ``act`` as one dict."""
    parameters = [
        Parameter(word.rstrip("!"), Parameter.POSITIONAL_OR_KEYWORD, default=Parameter.empty if "!" in word else None)
        for word in PARAMETERS[name].split()
    ]

    def function(*args, **kwargs):
        return act(dict(Signature(parameters).bind(*args, **kwargs).arguments))

    return function


def wandb(calls, fail=()):
    """wandb: ``init`` gives a run whose steps may only grow."""

    def log(given):
        if "log" in fail:
            raise ConnectionError("the server is gone")
        calls.append(("log", given["data"], given.get("step")))

    def init(given):
        if "init" in fail:
            raise ConnectionError("no login\nsee the manual")
        calls.append(("init", given))
        return SimpleNamespace(
            define_metric=call(
                "Run.define_metric",
                lambda given: calls.append(("define_metric", given["name"], given.get("step_metric"))),
            ),
            log=call("Run.log", log),
            finish=call("Run.finish", lambda given: calls.append(("finish", given.get("exit_code")))),
        )

    return module("wandb", init=init)


def mlflow(calls, fail=()):
    """mlflow: a parameter is set once, a run is continued by the id that the server gave it."""

    def start_run(given):
        calls.append(("start_run", given.get("run_id"), given.get("run_name")))
        return SimpleNamespace(info=SimpleNamespace(run_id=given.get("run_id") or "id-of-the-server"))

    def log_params(given):
        assert all(isinstance(value, str) and len(value) <= 500 for value in given["params"].values())
        calls.append(("log_params", given["params"]))

    return module(
        "mlflow",
        set_experiment=lambda given: calls.append(("set_experiment", given)),
        start_run=start_run,
        log_params=log_params,
        log_metrics=lambda given: calls.append(("log", given["metrics"], given.get("step"))),
        end_run=lambda given: calls.append(("finish", given.get("status", "FINISHED"))),
    )


def trackio(calls, fail=()):
    """trackio: a run is continued by its name."""

    def init(given):
        assert given.get("resume") in ("never", "allow", "must")
        calls.append(("init", given))

    return module(
        "trackio",
        init=init,
        log=lambda given: calls.append(("log", given["metrics"], given.get("step"))),
        finish=lambda given: calls.append(("finish",)),
    )


LIBRARIES = {"wandb": wandb, "mlflow": mlflow, "trackio": trackio}


def module(name, **acts):
    """A module that has these calls and nothing else."""
    made = types.ModuleType(name)
    for key, act in acts.items():
        setattr(made, key, call(f"{name}.{key}", act))
    return made
