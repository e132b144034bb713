"""A W&B sweep file, checked, and what it suggests to train next."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from helpers import METRICS, Config, InputError
from lib.tables import FIELDS
from lib.tracking import PROJECT

optuna.logging.set_verbosity(optuna.logging.WARNING)

RANGE = ["min", "max"]
KINDS = {"constant": ["value"], "categorical": ["values"]}  # W&B's distributions that we have: the keys each needs
KINDS |= dict.fromkeys(["int_uniform", "uniform", "log_uniform", "log_uniform_values"], RANGE)
KINDS |= dict.fromkeys(["q_uniform", "q_log_uniform", "q_log_uniform_values"], RANGE)


class Sweep(NamedTuple):
    """A sweep file, checked: every value that a parameter can take is one that its field of Config accepts."""

    definition: dict  # the file as W&B takes it, with its defaults
    space: dict  # its parameters, as Optuna's distributions
    bands: list  # the epochs after which hyperband looks at a trial

    name = property(lambda self: self.definition["name"])
    count = property(lambda self: self.definition["run_cap"])
    metric = property(lambda self: self.definition["metric"]["name"])
    sign = property(lambda self: 1 if self.definition["metric"]["goal"] == "maximize" else -1)

    def config(self, params):
        """The Config of a trial with these parameters of Optuna's."""
        specs = self.definition["parameters"]
        return Config(**{name: _rounded(x, specs[name].get("q")) for name, x in params.items()})


def read_sweep(path, count=None, quick=False):
    """The Sweep in a file. Raises InputError, naming the key, for all that W&B would refuse and all that we lack."""
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return check_sweep({"name": Path(path).stem, **given} if isinstance(given, dict) else given, count, quick)
    except (InputError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None


def check_sweep(given, count=None, quick=False):
    """Return the Sweep of a definition as YAML gives it, or raise InputError."""
    texts = ["name", "description", "project", "entity"]
    _keys("the file", given, ["program", "method", "metric", "parameters"], [*texts, "run_cap", "early_terminate"])
    _keys("metric", given["metric"], ["name"], ["goal"])
    _keys("parameters", given["parameters"], [], FIELDS)
    metric, parameters, space, bands = {"goal": "minimize", **given["metric"]}, dict(given["parameters"]), {}, []
    definition = {"project": PROJECT, **given, "metric": metric, "parameters": parameters}
    one_of("program", given["program"], ["train.py"])
    one_of("method", given["method"], ["random", "bayes", "grid"])
    one_of("metric.name", metric["name"], METRICS)
    one_of("metric.goal", metric["goal"], ["maximize", "minimize"])
    for key in set(texts) & set(given):
        if not isinstance(given[key], str) or key != "description" and not re.fullmatch(r"\w[\w.-]*", given[key]):
            raise InputError(f"{key} is {given[key]!r}; allowed: letters, digits, '_', '-' and '.'")
    if quick:
        definition["name"] += "-quick"
        parameters["epochs"] = {"value": 1}
    for name, spec in parameters.items():
        try:
            parameters[name], space[name] = _parameter(name, spec)
        except (ValueError, TypeError, OverflowError) as error:  # Config's, Optuna's and ours
            raise InputError(f"parameters.{name} is {spec}: {error}") from None
    size = math.prod(len(choices(d)) for d in space.values()) if given["method"] == "grid" else math.inf
    if "run_cap" in given:
        whole("run_cap", given["run_cap"])
    definition["run_cap"] = min(size, 4 if quick else size, count or given.get("run_cap", size))
    if definition["run_cap"] == math.inf:
        raise InputError("the file lacks 'run_cap', and --count is not given either")
    if "early_terminate" in given:
        definition["early_terminate"], bands = _hyperband(given["early_terminate"])
    return Sweep(definition, space, bands)


def _keys(where, given, required, optional=()):
    if not isinstance(given, dict) or not given:
        raise InputError(f"{where} is {given!r}; allowed: a mapping")
    for key in [*given, *required]:
        if key not in [*required, *optional]:
            allowed = ", ".join([*required, *optional])
            raise InputError(f"{where} has {key!r}, which is not supported; allowed: {allowed}")
        if key not in given:
            raise InputError(f"{where} lacks {key!r}")


def one_of(where, value, allowed):
    if value not in allowed:
        raise InputError(f"{where} is {value!r}; allowed: {', '.join(allowed)}")


def whole(where, value, low=1):
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{where} is {value!r}; allowed: a whole number from {low}")
    return value


def _rounded(x, q):
    return round(x / q) * q if q else x


def _parameter(name, spec):
    """The parameter with W&B's defaults, and as Optuna's distribution."""
    accepted = lambda value: getattr(Config(**{name: value}), name)  # noqa: E731
    _keys("it", spec, [], ["value", "values", *RANGE, "q", "distribution"])
    ends = [spec[end] for end in RANGE if end in spec]
    types = {type(end) for end in ends}
    if "distribution" not in spec and types == {int, float}:
        raise InputError("allowed without a distribution: min and max both whole, or both with a point")
    guess = "constant" if "value" in spec else "categorical" if "values" in spec else "uniform"
    spec = {"distribution": "int_uniform" if types == {int} else guess, **spec}
    kind = spec["distribution"]
    one_of("distribution", kind, list(KINDS))
    _keys(f"distribution {kind}", spec, KINDS[kind], ["distribution"] + ["q"] * kind.startswith("q_"))
    if not ends:
        values = [spec["value"]] if kind == "constant" else spec["values"]
        values = [accepted(value) for value in values] if isinstance(values, list) else []
        if not values or len(set(values)) < len(values):
            raise InputError("allowed: a list of different values")
        return spec, CategoricalDistribution(values)
    if not types <= ({int} if kind == "int_uniform" else {int, float}) or ends[0] >= ends[1]:
        raise InputError("allowed: numbers (whole ones for int_uniform; YAML wants 1.0e-3 for 1e-3), min below max")
    if kind.startswith("q_") and not 0 < spec.setdefault("q", 1):
        raise InputError("allowed: q above 0")
    if kind != "int_uniform":
        ends = [math.exp(end) if kind.endswith("log_uniform") else float(end) for end in ends]  # W&B's exponents of e
    for end in ends:
        accepted(_rounded(end, spec.get("q")))
    return spec, IntDistribution(*ends) if kind == "int_uniform" else FloatDistribution(*ends, log="log" in kind)


def choices(distribution):
    if isinstance(distribution, FloatDistribution):
        raise InputError("method is 'grid', which takes no range of real numbers; allowed: value, values, int_uniform")
    whole = isinstance(distribution, IntDistribution)
    return range(distribution.low, distribution.high + 1) if whole else distribution.choices


def _hyperband(given):
    """early_terminate with W&B's defaults, and the epochs after which it ends what is not in the best 1/eta."""
    _keys("early_terminate", given, ["type"], ["min_iter", "max_iter", "s", "eta"])
    one_of("early_terminate.type", given["type"], ["hyperband"])
    eta, keys = given.get("eta", 3), sorted(set(given) - {"type", "eta"})
    if not isinstance(eta, int | float) or eta <= 1 or keys not in (["min_iter"], ["max_iter", "s"]):
        raise InputError(f"early_terminate is {given}; allowed: min_iter, or max_iter and s; and eta above 1")
    first, *s = (whole(f"early_terminate.{key}", given[key]) for key in keys)
    bands = [first / eta**i for i in range(1, s[0] + 1)] if s else [first * eta**i for i in range(20)]
    return {**given, "eta": eta}, [int(band) for band in bands if band >= 1]


def suggest(sweep, trials, seed):
    """The parameters of the next trial: by its number (grid), the seed (random), and the trials before it (bayes)."""
    if sweep.definition["method"] == "grid":
        shape = [len(choices(d)) for d in sweep.space.values()]
        size = math.prod(shape)  # walked in strides coprime to it, so that the first trials are a balanced sample: for
        # sweeps/grid.yaml, this one of all its 1,944 strides leaves pairs of values the most equally frequent
        stride = next(n for n in range(round(0.8537 * size), 2 * size) if math.gcd(n, size) == 1)
        index = np.unravel_index(len(trials) * stride % size, shape)
        return {name: choices(d)[i] for i, (name, d) in zip(index, sweep.space.items())}
    state = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    if sweep.definition["method"] == "random":
        sampler, trials = optuna.samplers.RandomSampler(state), []
    else:
        sampler = optuna.samplers.TPESampler(seed=state, multivariate=True)
    scratch = optuna.create_study(sampler=sampler, direction="maximize" if sweep.sign > 0 else "minimize")
    scratch.add_trials(trials)
    return scratch.ask(sweep.space).params
