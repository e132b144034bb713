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
from lib import tables
from lib.bayes import suggest_bayes
from lib.cli import widths
from lib.tables import FIELDS
from lib.tracking import PROJECT

optuna.logging.set_verbosity(optuna.logging.WARNING)

LARGEST = 200_000  # bytes of a file, and values in it once its aliases are written out
MERGE = "tag:yaml.org,2002:merge"
DECIMAL = r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?"  # not 010 or 1:30, of which YAML makes 8 and 90
TYPES = {f"tag:yaml.org,2002:{name}" for name in "null bool int float str seq map".split()} | {MERGE}  # those of JSON

RANGE = ["min", "max"]
KINDS = {"constant": ["value"], "categorical": ["values"]}  # W&B's distributions that we have: the keys each needs
KINDS |= dict.fromkeys(["int_uniform", "uniform", "log_uniform", "log_uniform_values"], RANGE)
KINDS |= dict.fromkeys(["q_uniform", "q_log_uniform", "q_log_uniform_values"], RANGE)
NAMES = ["name", "project", "entity"]
COMMAND = r"(\$\{env\} )?(\$\{interpreter\}|python3?)( -u)? (\$\{program\}|train\.py)"
COMMAND += r" \$\{args(_no_equals|_no_boolean_flags)?\}"  # W&B's ways to start train.py with flags that it has


class Sweep(NamedTuple):
    """A sweep file, checked: every value that a parameter can take is one that its field of Config accepts."""

    definition: dict  # the file as W&B takes it, with its defaults
    space: dict  # its parameters, as Optuna's distributions
    bands: list  # the epochs after which hyperband looks at a trial

    @property
    def name(self):
        """The name of the sweep, and of its tables."""
        return self.definition["name"]

    @property
    def count(self):
        """The number of trials."""
        return self.definition["run_cap"]

    @property
    def metric(self):
        """The name of the metric to optimise."""
        return self.definition["metric"]["name"]

    @property
    def sign(self):
        """1 if the metric is to be high, -1 if it is to be low."""
        return 1 if self.definition["metric"]["goal"] == "maximize" else -1

    def config(self, params):
        """Return the Config of a trial with these parameters of Optuna's."""
        specs = self.definition["parameters"]
        return Config(**{name: _decoded(name, _rounded(x, specs[name].get("q"))) for name, x in params.items()})


# ----------------------------------------------------------------------------------------------------------------- YAML


class Loader(yaml.SafeLoader):
    """YAML that JSON could hold, too: plain values, each key once, numbers that are finite and not huge."""

    def get_single_node(self):
        """Compose the one document in the file, and check it before anything is made of it."""
        node = super().get_single_node()
        if node:
            self.check(node, "", {})
        return node

    def check(self, node, where, sizes):
        """Raise InputError, naming key and line, for what JSON cannot hold; return how many values a node stands for.

        sizes: those of the nodes seen, by id; 0 for one that is being looked at, so that no alias stands for itself.
        """
        if id(node) in sizes:
            return sizes[id(node)] or _refuse(node, where, "an alias of what it is in", "one of something else")
        sizes[id(node)] = 0
        if node.tag not in TYPES:
            kind = node.tag.rpartition(":")[2]
            _refuse(node, where, f"{shown(node.value)}, a {kind}", "numbers, text in quotes, lists, mappings")
        if isinstance(node, yaml.ScalarNode) and not self._is_plain(node):
            allowed = "a finite number of at most 64 bits, decimal and without leading zeros, if it is a number"
            _refuse(node, where, shown(node.value), allowed)
        sizes[id(node)] = 1 + sum(self.check(part, name, sizes) for name, part in self._parts(node, where))
        if sizes[id(node)] > LARGEST:
            _refuse(node, where, f"more than {LARGEST:,} values", "fewer")
        return sizes[id(node)]

    def _parts(self, node, where):
        """Return the parts of a node, keys included, each with its name. Raises InputError for a key given twice."""
        if isinstance(node, yaml.SequenceNode):
            return [(f"{where}[{i}]", part) for i, part in enumerate(node.value)]
        parts = {}
        for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
            name = f"{where}.{key.value}".lstrip(".")
            if not isinstance(key, yaml.ScalarNode):
                _refuse(key, where, "a mapping with a list or a mapping as a key", "words")
            if name in parts:
                _refuse(key, name, "given twice", "once")
            parts[name] = value
        keys = [(f"a key of {where or 'the file'}", key) for key, _ in node.value] if parts else []
        return [*keys, *parts.items()]

    def _is_plain(self, node):
        """Return whether a value can be made of a node, and is no number that is infinite, huge or not decimal."""
        try:
            value = self.construct_object(node) if node.tag != MERGE else None
        except (ValueError, TypeError, KeyError, AttributeError):  # what PyYAML makes of `!!int x`
            return False
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        in_range = math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63
        return in_range and bool(re.fullmatch(DECIMAL, node.value))


def _refuse(node, where, what, allowed):
    raise InputError(f"{where or 'the file'} is {what} (line {node.start_mark.line + 1}); allowed: {allowed}")


def load_yaml(path):
    """Return what a YAML file says. Raises InputError, with the line, unless all is there once, finite and plain."""
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise InputError(f"it has more than {LARGEST:,} bytes; allowed: up to that")
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"it is not UTF-8: {error.reason} in byte {error.start}; allowed: UTF-8") from None
    except RecursionError:
        raise InputError("it is nested too deeply; allowed: as in sweeps/bayes.yaml") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        trouble = ", ".join(filter(None, [error.context, error.problem]))
        raise InputError(f"line {mark.line + 1}, column {mark.column + 1}: {trouble}") from None
    except yaml.YAMLError as error:  # a character that YAML does not have
        raise InputError(str(error)) from None


def shown(value):
    """Return a value in a sentence: no longer than one reads."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-50:]}"


# --------------------------------------------------------------------------------------------------------------- checks


def read_sweep(path, count=None, quick=False):
    """Return the Sweep in a file. Raises InputError, naming the key, for what W&B would refuse or we do not have."""
    try:
        given = load_yaml(path)
        return check_sweep({"name": Path(path).stem, **given} if isinstance(given, dict) else given, count, quick)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_sweep(given, count=None, quick=False):
    """Return the Sweep of a definition, with W&B's defaults. Raises InputError, naming the key, if that cannot be."""
    _check_keys(given)
    metric = {"goal": "minimize", **given["metric"]}
    definition = {"project": PROJECT, **given, "metric": metric, "parameters": dict(given["parameters"])}
    _check_values(definition)
    if quick:
        definition["name"] += "-quick"
        definition["parameters"]["epochs"] = {"value": 1}
    space = _space(definition["parameters"])
    size = math.prod(map(_length, space.values())) if given["method"] == "grid" else math.inf
    definition["run_cap"] = min(size, 4 if quick else size, count or given.get("run_cap", size))
    if definition["run_cap"] == math.inf:
        raise InputError("'run_cap' is missing, and --count is not given either")
    bands = []
    if "early_terminate" in given:
        definition["early_terminate"], bands = _hyperband(given["early_terminate"])
    return Sweep(definition, space, bands)


def _check_keys(given):
    """Raise InputError for a key that is unknown or missing."""
    optional = [*NAMES, "description", "command", "run_cap", "early_terminate"]
    _keys("the file", given, ["program", "method", "metric", "parameters"], optional)
    _keys("metric", given["metric"], ["name"], ["goal"])
    _keys("parameters", given["parameters"], [], FIELDS)


def _check_values(definition):
    """Raise InputError for a value that is not allowed, outside of parameters and early_terminate."""
    one_of("program", definition["program"], ["train.py"])
    one_of("method", definition["method"], ["random", "bayes", "grid"])
    one_of("metric.name", definition["metric"]["name"], METRICS)
    one_of("metric.goal", definition["metric"]["goal"], ["maximize", "minimize"])
    for key in NAMES:
        value = definition.get(key, "none")
        if not isinstance(value, str) or not re.fullmatch(r"\w[\w.-]*", value) or len(value.encode()) > 128:
            raise InputError(f"{key} is {shown(value)}; allowed: up to 128 letters, digits, '_', '-' and '.'")
    if not isinstance(definition.get("description", ""), str):
        raise InputError(f"description is {shown(definition['description'])}; allowed: a text")
    if "command" in definition:
        command = definition["command"]
        words = " ".join(map(str, command)) if isinstance(command, list) else ""
        if not re.fullmatch(COMMAND, words):
            usual = "[${env}, ${interpreter}, ${program}, ${args}], or ${args_no_equals} or ${args_no_boolean_flags}"
            raise InputError(f"command is {shown(command)}; allowed: {usual}")
    if "run_cap" in definition:
        whole("run_cap", definition["run_cap"])


def _keys(where, given, required, optional=()):
    """Raise InputError unless `given` is a mapping that has all required keys, and no others but the optional ones."""
    if not isinstance(given, dict) or not given:
        raise InputError(f"{where} is {'empty' if given is None else shown(given)}; allowed: a mapping")
    for key in [*given, *required]:
        if key not in [*required, *optional]:
            allowed = ", ".join([*required, *optional])
            raise InputError(f"{where} has {shown(key)}, which is not supported; allowed: {allowed}")
        if key not in given:
            raise InputError(f"{where} has no {key!r}; allowed: with {key!r}, as in sweeps/bayes.yaml")


def one_of(where, value, allowed):
    """Raise InputError unless the value is one of those allowed."""
    if value not in allowed:
        raise InputError(f"{where} is {shown(value)}; allowed: {', '.join(allowed)}")


def whole(where, value, low=1, high=math.inf):
    """Return the value. Raises InputError unless it is a whole number from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        ends = f"from {low}" if high == math.inf else f"from {low} to {high}"
        raise InputError(f"{where} is {shown(value)}; allowed: a whole number {ends}{_hint(value)}")
    return value


def _hint(given):
    """Return what to say of a number that YAML takes for a text."""
    found = re.search(r"'([-+]?\d+)(\.\d*)?([eE])([-+]?)(\d+)'", repr(given))
    if not found:
        return ""
    whole, fraction, e, sign, power = found.groups()
    return f" (YAML reads {found[0]} as text; write {whole}{fraction or '.0'}{e}{sign or '+'}{power})"


# ----------------------------------------------------------------------------------------------------------- parameters


def _space(parameters):
    """Return the parameters as Optuna's distributions, with W&B's defaults. Raises InputError, naming the parameter."""
    space = {}
    for name, spec in parameters.items():
        try:
            parameters[name] = _with_distribution(spec)
            space[name] = _distribution(name, parameters[name])
        except (ValueError, TypeError, OverflowError) as error:  # Config's, Optuna's and ours
            raise InputError(f"parameters.{name} is {shown(spec)}: {error}{_hint(spec)}") from None
    _check_widths(space)
    return space


def _with_distribution(spec):
    """Return the keys of a parameter, checked, with W&B's default of its distribution."""
    if not isinstance(spec, dict):
        key = "values" if isinstance(spec, list) else "value"
        raise InputError(f"allowed: a mapping, for example {{{key}: {'...' if spec is None else shown(spec)}}}")
    _keys("it", spec, [], ["value", "values", *RANGE, "q", "distribution"])
    types = {type(spec[end]) for end in RANGE if end in spec}
    if "distribution" not in spec and types == {int, float}:
        raise InputError("allowed without a distribution: min and max both whole, or both with a point")
    guess = "constant" if "value" in spec else "categorical" if "values" in spec else "uniform"
    spec = {"distribution": "int_uniform" if types == {int} else guess, **spec}
    kind = spec["distribution"]
    one_of("distribution", kind, list(KINDS))
    if kind.startswith("q_"):
        spec.setdefault("q", 1)
    _keys(f"distribution {kind}", spec, KINDS[kind], ["distribution"] + (["q"] if kind.startswith("q_") else []))
    return spec


def _distribution(name, spec):
    """Return a parameter as Optuna's distribution, if its field of Config accepts every value that it can take."""
    kind = spec["distribution"]
    if kind in ("constant", "categorical"):
        return CategoricalDistribution(_choices(name, [spec["value"]] if kind == "constant" else spec["values"]))
    ends = [spec[end] for end in RANGE]
    numbers = [int] if kind == "int_uniform" else [int, float]
    if any(type(end) not in numbers for end in ends) or ends[0] >= ends[1]:
        raise InputError(f"allowed: {'whole ' if len(numbers) == 1 else ''}numbers, min below max")
    if kind == "int_uniform":
        if max(map(abs, ends)) > 2**53:
            raise InputError("allowed: a range within 2^53, as a storage keeps its numbers as floating point")
        return IntDistribution(*[_accepted(name, end) for end in ends])
    if kind.startswith("q_") and (type(spec["q"]) not in numbers or spec["q"] <= 0):
        raise InputError("allowed: q above 0")
    _check_exponents(kind, *ends)
    ends = [math.exp(end) if kind.endswith("log_uniform") else float(end) for end in ends]  # W&B's exponents of e
    for end in ends:
        _accepted(name, _rounded(end, spec.get("q")))
    return FloatDistribution(*ends, log="log" in kind)


def _choices(name, values):
    """Return the values of a parameter as Config spells them; lists, of hidden_size, as texts: Optuna has no lists."""
    values = values if isinstance(values, list) else []
    accepted = [_accepted(name, value) for value in values]
    choices = [str(value) if isinstance(value, list) else known for value, known in zip(values, accepted)]
    if not choices or len(set(choices)) < len(choices):
        raise InputError("allowed: a list of different values")
    return choices


def _accepted(name, value):
    """Return the value as its field of Config spells it. Raises InputError if it does not accept it."""
    if value is None:  # which Config takes for the default of num_layers
        raise InputError("allowed: a value, not null")
    return getattr(Config(**{name: value}), name)


def _decoded(name, value):
    """Return a value of Optuna's as Config takes it: hidden_size may be the text of a list."""
    return widths(value) if name == "hidden_size" and isinstance(value, str) else value


def _check_widths(space):
    """Raise InputError if a hidden_size of several layers meets another number of layers."""
    sizes = space["hidden_size"].choices if isinstance(space.get("hidden_size"), CategoricalDistribution) else []
    lengths = {len(widths(size)) for size in sizes if isinstance(size, str)}
    layers = getattr(space.get("num_layers"), "choices", None)  # of a range there are several
    if lengths and "num_layers" in space and not (len(lengths) == 1 and layers and lengths == set(layers)):
        sentence = f"parameters.num_layers is there beside lists of {sorted(lengths)} in hidden_size"
        raise InputError(f"{sentence}; allowed: without it, as a list says how many layers there are")


def _check_exponents(kind, low, high):
    """Raise InputError if ends that are to be exponents can only have been meant as values, or the other way round."""
    if kind.endswith("log_uniform") and (0 <= low < high <= 1 or 0 < low < 0.1 or low >= 0 and high > 14):
        values = f"{kind}_values"
        raise InputError(
            f"{kind} takes exponents of e, here from e^{low:g} to e^{high:g}; allowed for values: {values}"
        )
    if kind.endswith("log_uniform_values") and low <= 0:
        exponents = kind.removesuffix("_values")
        raise InputError(f"allowed: values above 0; for exponents of e: {exponents}")


def _rounded(x, q):
    return round(x / q) * q if q else x


def _length(distribution):
    """Return how many values a distribution has, for a grid."""
    if isinstance(distribution, FloatDistribution):
        raise InputError("method is 'grid', which takes no range of real numbers; allowed: value, values, int_uniform")
    if isinstance(distribution, IntDistribution):
        return distribution.high - distribution.low + 1
    return len(distribution.choices)


def choices(distribution):
    """Return the values that a distribution can take, in order. Raises InputError for a range of real numbers."""
    _length(distribution)
    whole = isinstance(distribution, IntDistribution)
    return range(distribution.low, distribution.high + 1) if whole else distribution.choices


def _hyperband(given):
    """early_terminate with W&B's defaults, and the epochs after which it stops what is not in the best 1/eta."""
    _keys("early_terminate", given, ["type"], ["min_iter", "max_iter", "s", "eta"])
    one_of("early_terminate.type", given["type"], ["hyperband"])
    eta = given.get("eta", 3)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 1 < eta <= 1000:
        raise InputError(f"early_terminate.eta is {shown(eta)}; allowed: a number above 1, up to 1000{_hint(eta)}")
    keys = sorted(set(given) - {"type", "eta"})
    if keys not in (["min_iter"], ["max_iter", "s"]):
        raise InputError(f"early_terminate is {shown(given)}; allowed: min_iter, or max_iter and s")
    first = whole(f"early_terminate.{keys[0]}", given[keys[0]], high=10**9)
    if "s" in given:
        bands = [first / eta**i for i in range(1, whole("early_terminate.s", given["s"], high=100) + 1)]
    else:
        bands = [first * eta**i for i in range(20)]
    return {**given, "eta": eta}, [int(band) for band in bands if band >= 1]


# ---------------------------------------------------------------------------------------------------------- suggestions


def suggest(sweep, trials, seed):
    """Return the parameters of the next trial: by its number (grid), the seed (random), the trials before (bayes)."""
    if sweep.definition["method"] == "grid":
        return _grid_point(sweep.space, len(trials))
    state = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    if sweep.definition["method"] == "bayes":
        return suggest_bayes(sweep.space, trials, state, sweep.sign > 0)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(state)).ask(sweep.space).params


def _grid_point(space, number):
    """Return the parameters of a trial of a grid.

    It is walked in strides coprime to its size, so that the first trials are a balanced sample: for sweeps/grid.yaml,
    this one of all its 1,944 strides leaves pairs of values the most equally frequent.
    """
    size = math.prod(map(_length, space.values()))
    stride = next(n for n in range(round(0.8537 * size), 2 * size) if math.gcd(n, size) == 1)
    index = number * stride % size
    params = {}
    for name, distribution in reversed(space.items()):  # the last parameter varies fastest
        index, i = divmod(index, _length(distribution))
        params[name] = choices(distribution)[i]
    return {name: params[name] for name in space}


# ------------------------------------------------------------------------------------------------------- stored results


def load_sweep(path):
    """Read the table of a sweep and the .json file beside it, its `attrs`. Raises InputError if one is damaged."""
    table = tables.read_table(path, tables.SWEEP, tables.check_trial, unique=["number"])
    about = path.with_suffix(".json")
    table.attrs = tables.read_json(about)
    try:
        sweep = check_sweep(table.attrs.get("definition"))
    except InputError as error:
        raise InputError(f"{about}, definition: {error}; {tables.REMEDY}") from None
    if sweep.name != path.stem:
        raise InputError(f"{about} is of the sweep {sweep.name!r}; allowed: {path.stem!r}; {tables.REMEDY}")
    if list(table.number) != list(range(len(table))) or "seed" in table.attrs and len(table) < sweep.count:
        raise InputError(f"{path} has {len(table)} trials; allowed: 0 to {sweep.count - 1}, in order; {tables.REMEDY}")
    return table
