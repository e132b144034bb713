"""lib/sweepfile.py: what it takes from a sweep file, what it refuses and in which words, and what it suggests."""

import json
import math
import random
import re
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from test_sweep import definition

import helpers
import lib.anova
import lib.sweepfile
import sweep
import train
from helpers import Config, InputError
from lib.sweepfile import read_sweep, suggest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a sweep file: a dictionary, text or bytes as they are; return its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def call(given, name="small"):
        path = tmp_path / f"{name}.yaml"
        text = yaml.safe_dump(given) if isinstance(given, dict) else given
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return call


LR = "learning_rate"


def parameter(name, **spec):
    return {"parameters": {name: spec}}


BAD = [
    ({"methd": "random"}, "methd"),
    ({"method": "baies"}, "method"),
    ({"method": None}, "method"),
    ({"program": "other.py"}, "program"),
    ({"command": ["python"]}, "command"),
    ({"command": ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]}, "command.*args_no_equals"),
    ({"command": ["${interpreter}", "${program}", "${args}", "--epochs=3"]}, "command"),
    ({"command": "python train.py"}, "command"),
    ({"name": "x" * 129}, "name"),
    ({"scheduler": {"engine": "optuna"}}, "scheduler"),
    ({"name": "a/b"}, "name"),
    ({"description": 3}, "description"),
    ({"project": ["p"]}, "project"),
    ({"run_cap": 0}, "run_cap"),
    ({"run_cap": 2.5}, "run_cap"),
    ({"run_cap": True}, "run_cap"),
    ({"run_cap": None}, "run_cap"),
    ({"metric": None}, "metric"),
    ({"metric": "val_accuracy"}, "metric"),
    ({"metric": {"name": "test_accuracy"}}, "metric.name"),
    ({"metric": {"name": "val_accuracy", "goal": "max"}}, "metric.goal"),
    ({"metric": {"name": "val_accuracy", "target": 1}}, "target"),
    ({"parameters": None}, "parameters"),
    ({"parameters": ["epochs"]}, "parameters"),
    (parameter("epoch", value=3), "epoch"),
    ({"parameters": {"epochs": 3}}, "epochs"),
    ({"parameters": {"epochs": {}}}, "epochs"),
    (parameter("epochs", value=3, min=1), "min"),
    (parameter("epochs", values=[]), "epochs"),
    (parameter("epochs", values=3), "epochs.*3.*: allowed: a list of different values$"),
    (parameter("num_layers", value=None), "num_layers.*not null"),
    (parameter("num_layers", values=[1, None]), "num_layers.*not null"),
    (parameter("epochs", values=[3, 3]), "epochs"),
    (parameter("optimizer", values=["nag", "nesterov"]), "optimizer"),
    (parameter("optimizer", values=["adam", "adagrad"]), "adagrad"),
    (parameter("optimizer", values="adam"), "optimizer"),
    (parameter("optimizer", values=["adam", "Adam"]), "optimizer.*different"),
    (parameter("hidden_size", values=[[64, 0], 32]), "hidden_size is 0"),
    (parameter("hidden_size", values=[[], 32]), "hidden_size"),
    (parameter("hidden_size", values=[[[64]], 32]), "hidden_size"),
    (parameter("hidden_size", values=[[64, 32], [64, 32]]), "hidden_size.*different"),
    ({"parameters": {"hidden_size": {"values": [[64, 32], 8]}, "num_layers": {"values": [2, 3]}}}, "num_layers"),
    (
        {"parameters": {"hidden_size": {"values": [[8, 8], [8]]}, "num_layers": {"values": [1, 2]}}},
        "num_layers is there beside lists",
    ),
    (
        {"parameters": {"hidden_size": {"values": [[8, 8], [8]]}, "num_layers": {"min": 1, "max": 2}}},
        "num_layers is there beside lists",
    ),
    (parameter("epochs", values=[[3, 2]]), "epochs"),
    (parameter("optimizer", values=[["adam"]]), "optimizer"),
    (parameter("epochs", parameters={"a": {"value": 1}}), "parameters"),
    (parameter("epochs", min=5, max=3), "epochs"),
    (parameter("epochs", min=3, max=3), "epochs"),
    (parameter("epochs", min=0, max=3), "epochs"),
    (parameter("epochs", min=1), "max"),
    (parameter("epochs", min=1.0, max=3.0), "epochs"),
    (parameter("epochs", distribution="int_uniform", min=1.5, max=3), "epochs"),
    (parameter("epochs", distribution="int_uniform", values=[1, 2]), "values"),
    (parameter("weight_decay", min=0, max=0.5), "weight_decay"),
    (parameter("weight_decay", min=-0.1, max=0.5), "weight_decay"),
    (parameter("momentum", min=0.5, max=1.0), "momentum"),
    (parameter(LR, min="1e-3", max=0.1), "learning_rate.*1.0e-3"),
    (parameter(LR, value="1e-3"), "learning_rate.*write 1.0e-3"),
    (parameter(LR, values=[0.1, "2.5E4"]), "learning_rate.*write 2.5E[+]4"),
    (parameter("weight_decay", values=["-1e5"]), "write -1.0e[+]5"),
    (parameter(LR, distribution="log_uniform", min=0.0001, max=0.1), "exponents.*log_uniform_values"),
    (parameter(LR, distribution="log_uniform", min=0, max=1), "exponents.*log_uniform_values"),
    (parameter("batch_size", distribution="q_log_uniform", min=16, max=128), "exponents.*q_log_uniform_values"),
    (parameter(LR, distribution="log_uniform_values", min=-9, max=-2), "exponents.*log_uniform"),
    (parameter("seed", min=0, max=2**63 - 1), "seed.*2.53"),
    (parameter("seed", value=10**30), "seed.value.*64 bits"),
    (parameter(LR, values=[0.1, math.inf]), "learning_rate.values.1.*finite"),
    (parameter("batch_size", distribution="q_uniform", min=1, max=64, q=math.nan), "batch_size.q"),
    (parameter("batch_size", distribution="q_uniform", min=1, max=64, q=1e-320), "batch_size"),
    (parameter(LR, min=0.1, max=math.inf), "learning_rate"),
    (parameter(LR, min=math.nan, max=0.1), "learning_rate"),
    (parameter(LR, min=True, max=2), "learning_rate"),
    (parameter(LR, distribution="log_uniform", min=-5, max=9999), "learning_rate"),
    (parameter("weight_decay", distribution="log_uniform_values", min=0, max=0.1), "weight_decay"),
    (parameter(LR, distribution="normal", mu=0.1, sigma=0.1), "normal|mu"),
    (parameter(LR, distribution="inv_log_uniform_values", min=0.1, max=1), "inv_log_uniform_values"),
    (parameter("epochs", distribution="categorical_w_probabilities", values=[1, 2]), "categorical_w_probabilities"),
    (parameter("epochs", values=[1, 2], probabilities=[0.5, 0.5]), "probabilities"),
    (parameter("batch_size", distribution="q_uniform", min=1, max=64, q=0), "batch_size"),
    (parameter("batch_size", distribution="q_uniform", min=1, max=64, q="8"), "batch_size"),
    (parameter("batch_size", distribution="q_uniform", min=1, max=64, q=8), "batch_size"),  # 1 is rounded to 0
    (parameter("batch_size", distribution="uniform", min=1, max=64, q=8), "q"),
    ({"method": "grid", **parameter(LR, min=0.1, max=0.2)}, "grid"),
    ({"early_terminate": {"type": "envelope", "min_iter": 3}}, "early_terminate.type"),
    ({"early_terminate": {"type": "hyperband"}}, "early_terminate"),
    ({"early_terminate": {"min_iter": 3}}, "type"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "min_iter"),
    ({"early_terminate": {"type": "hyperband", "max_iter": 27}}, "early_terminate"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 1}}, "eta"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": "3"}}, "eta"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": "1e1"}}, "eta.*write 1.0e[+]1"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": math.inf}}, "eta"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": math.nan}}, "eta"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 1e20}}, "eta"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 10**18}}, "min_iter"),
    ({"early_terminate": {"type": "hyperband", "max_iter": 27, "s": 1000, "eta": 3.0}}, "early_terminate.s"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "strict": True}}, "strict"),
]


@pytest.mark.parametrize("changes, key", BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_cannot_be_honoured_is_refused_in_a_sentence_that_names_the_key(changes, key, write):
    path = write(definition(**changes))
    with pytest.raises(InputError) as refused:
        read_sweep(path)
    named, _, sentence = str(refused.value).partition(": ")
    assert named == str(path) and re.search(key, sentence) and "\n" not in sentence


def test_a_file_that_is_refused_is_status_2_and_begins_nothing(write, capsys):
    path = write(definition(methd="random"))
    assert sweep.main([str(path), "--folder", "."]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith(f"sweep.py: {path}: ") and not out
    assert not Path("optuna.db").exists()


HEAD = "program: train.py\nmethod: random\nrun_cap: 2\nmetric: {name: val_accuracy}\n"
BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 10)}]\n" for i in range(12))
MERGED = "a0: &a0 {b: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))
TEXTS = [  # a file, and what its sentence names
    ("", "the file is empty"),
    ("- a", "the file is"),
    ("3", "the file is 3"),
    ("a: [", "line 1"),
    ("a: b: c", "line 1, column 5"),
    ("\x00", "#x0000"),
    ("method: random", "program"),
    (b"a: \x80", "UTF-8"),
    (b"\xff\xfea\x00", "UTF-8"),
    (b"a" * 300_000, "bytes"),
    (HEAD + "parameters:\n\tepochs: {value: 1}", "line 6"),
    (HEAD + "parameters: {epochs: {value: 1}}\n---\na: 1", "document"),
    (HEAD + "parameters: {epochs: {value: 1}, epochs: {value: 2}}", r"parameters.epochs is given twice \(line 5"),
    (HEAD + "parameters: {epochs: {value: 1, 'value': 2}}", "parameters.epochs.value is given twice"),
    (HEAD + "parameters: {epochs: 5}", "parameters.epochs is 5: allowed: a mapping, for example {value: 5}"),
    (HEAD + "parameters: {epochs: [5, 10]}", r"allowed: a mapping, for example {values: \[5, 10\]}"),
    (HEAD + "parameters: {epochs: }", "parameters.epochs is None: allowed: a mapping, for example {value: ...}"),
    (HEAD + "parameters: {epochs: {value: 1}}\nmethod: grid", r"method is given twice \(line 6"),
    (HEAD + "parameters: {epochs: {value: !!int 'x'}}", "parameters.epochs.value is 'x'"),
    (HEAD + "parameters: {epochs: {value: !!timestamp 'x'}}", "parameters.epochs.value is 'x', a timestamp"),
    (HEAD + "parameters: {epochs: {value: !!python/object:os.system {}}}", "parameters.epochs.value"),
    (HEAD + "parameters: {!!int x: {value: 1}}", "a key of parameters"),
    (HEAD + "parameters: {[a]: {value: 1}}", "parameters"),
    (HEAD + "name: 2024-01-01\nparameters: {epochs: {value: 1}}", "name is '2024-01-01', a timestamp"),
    (HEAD + f"parameters: {{seed: {{value: {'9' * 5000}}}}}", "parameters.seed.value.*64 bits"),
    (HEAD + f"parameters: {{seed: {{value: 0x{'f' * 5000}}}}}", "parameters.seed.value.*64 bits"),
    *(
        (HEAD + f"parameters: {{epochs: {{value: {value}}}}}", "epochs.value is .*; allowed: .*decimal")
        for value in ("010", "1:30", "1_0", "0x10", "0b11", "-0_1", "1_0.5", "1:30.5", "!!int 010", "!!float 0x1")
    ),
    (HEAD + "parameters: {learning_rate: {value: .inf}}", "parameters.learning_rate.value is '.inf'"),
    (HEAD + "parameters: {learning_rate: {value: 1.0e+400}}", "parameters.learning_rate.value"),
    (HEAD + "parameters: &a {epochs: *a}", "alias"),
    ("[" * 3000, "nested too deeply"),
    ("{a: " * 3000, "nested too deeply"),
    (BOMB, "values"),
    (MERGED, "values"),
]


@pytest.mark.parametrize("text, sentence", TEXTS, ids=[str(i) for i in range(len(TEXTS))])
def test_a_file_that_is_no_sweep_is_refused_at_once(text, sentence, write):
    path, began = write(text), time.process_time()
    with pytest.raises(InputError, match=sentence) as refused:
        read_sweep(path)
    assert len(str(refused.value)) < 600 and time.process_time() - began < 20  # a bomb would take for ever


def test_decimal_numbers_are_what_they_were(write):
    for text, value in {"0": 0, "0.5": 0.5, ".5": 0.5, "5.": 5.0, "1.0e-3": 0.001, "+0.1": 0.1, "!!float 1": 1}.items():
        given = write(HEAD + f"parameters: {{weight_decay: {{value: {text}}}}}")
        assert read_sweep(given).definition["parameters"]["weight_decay"]["value"] == value


ODD = [
    ".nan",
    "-.inf",
    "1.0e+400",
    "9" * 5000,
    "2024-01-01",
    "!!float x",
    "!!set {a}",
    "null",
    "on",
    "'1e-3'",
    "{}",
    "[]",
]
ODD += [
    "[[1]]",
    "{a: b}",
    "&a [*a]",
    "*a",
    "{<<: *b}",
    "-1",
    "0",
    "0.5",
    "9223372036854775807",
    "5.0e-324",
    "? a",
    "\t",
    "|",
]
ODD += [
    "{min: 1, max: 3}",
    "{min: 0, max: 9007199254740993}",
    "[256, 128]",
    "{values: [[64, 32], 8]}",
    "---",
    "'",
    "\ufeff",
]


def damaged(rng, text):
    """The text of a sweep file, changed in one to three places."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        i = rng.randrange(len(lines))
        at = rng.randrange(len(text))
        match rng.randrange(5):
            case 0 | 1:
                lines[i] = lines[i].split(":")[0] + ": " + rng.choice(ODD)
                text = "\n".join(lines)
            case 2:
                text = "\n".join([*lines[:i], rng.choice(lines), *lines[i:]])
            case 3:
                text = text[:at] + rng.choice(ODD) + text[at:]
            case 4:
                text = text[:at] + text[at + rng.randrange(9) :]
    return text


def test_whatever_is_in_a_file_it_is_a_sweep_or_an_input_error(write):
    seed = random.randrange(10**6)
    rng, texts = random.Random(seed), [path.read_text() for path in (ROOT / "sweeps").glob("*.yaml")]
    taken = 0
    for _ in range(150):
        text = damaged(rng, rng.choice(texts))
        try:
            given = read_sweep(write(text))
        except InputError:
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}: {text}") from error
        taken += 1
        json.dumps(given.definition, allow_nan=False)
        assert given.config(suggest(given, [], 0)), f"seed {seed}: {text}"
    assert 0 < taken < 150


def test_a_file_with_a_mark_windows_line_ends_aliases_and_a_command_is_taken(write):
    text = HEAD + "command: ['${env}', '${interpreter}', '${program}', '${args}']\n"
    text += "parameters:\n  epochs: &one {value: 1}\n  num_layers: *one\n  batch_size: {<<: *one}\n"
    given = read_sweep(write(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    config = given.config(suggest(given, [], 0))
    assert (config.epochs, config.num_layers, config.batch_size) == (1, 1, 1)
    assert given.definition["command"][-1] == "${args}"  # for W&B's agents


@pytest.mark.parametrize("args", ["${args}", "${args_no_equals}", "${args_no_boolean_flags}"])
def test_train_py_reads_what_the_macros_of_a_command_become(args, write):
    from wandb.sdk.launch.sweeps import utils

    read_sweep(write(definition(command=["${interpreter}", "${program}", args])))
    given = {"epochs": {"value": 3}, "learning_rate": {"value": 0.01}, "hidden_size": {"value": [64, 32]}}
    argv = utils.create_sweep_command_args({"args": given})[args[2:-1]]
    assert train.read_config(train.parse(argv)) == Config(epochs=3, learning_rate=0.01, hidden_size=(64, 32))


GOOD = [  # a parameter, and what it may become
    ({"epochs": {"value": 3}}, lambda c: c.epochs == 3),
    ({"optimizer": {"values": ["Nesterov", "Adam"]}}, lambda c: c.optimizer in ("nag", "adam")),
    ({"activation": {"value": "relu"}}, lambda c: c.activation == "ReLU"),
    (
        {"hidden_size": {"values": [[64, 32], [16, 16, 16], [8], 24]}},
        lambda c: c.widths in ([64, 32], [16] * 3, [8], [24] * 4),
    ),
    ({"hidden_size": {"value": [64, 32]}, "num_layers": {"value": 2}}, lambda c: c.widths == [64, 32]),
    ({"num_layers": {"min": 2, "max": 4}}, lambda c: c.num_layers in (2, 3, 4)),
    ({"num_layers": {"distribution": "int_uniform", "min": 0, "max": 1}}, lambda c: c.num_layers in (0, 1)),
    ({"momentum": {"min": 0.5, "max": 0.9}}, lambda c: 0.5 <= c.momentum <= 0.9),
    ({"momentum": {"distribution": "uniform", "min": 0, "max": 0.9}}, lambda c: 0 <= c.momentum <= 0.9),
    (
        {LR: {"distribution": "log_uniform", "min": -7, "max": -2}},
        lambda c: math.exp(-7) <= c.learning_rate <= math.exp(-2),
    ),
    ({LR: {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1}}, lambda c: 0.001 <= c.learning_rate <= 0.1),
    (
        {"batch_size": {"distribution": "q_uniform", "min": 8, "max": 64, "q": 8}},
        lambda c: c.batch_size in range(8, 65, 8),
    ),
    ({"epochs": {"distribution": "q_uniform", "min": 1.5, "max": 4}}, lambda c: c.epochs in (2, 3, 4)),
    (
        {"batch_size": {"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 8}},
        lambda c: c.batch_size in range(8, 65, 8),
    ),
    (
        {"momentum": {"distribution": "q_uniform", "min": 0.2, "max": 0.8, "q": 0.2}},
        lambda c: any(math.isclose(c.momentum, x) for x in (0.2, 0.4, 0.6, 0.8)),
    ),
]


@pytest.mark.parametrize("parameters, right", GOOD, ids=[next(iter(p)) + str(i) for i, (p, _) in enumerate(GOOD)])
@pytest.mark.parametrize("method", ["random", "bayes"])
def test_every_distribution_that_is_taken_is_drawn_within_its_bounds(parameters, right, method, write):
    given = read_sweep(write(definition(method=method, parameters=parameters)))
    seen = {given.config(suggest(given, [None] * n if method == "random" else [], n)) for n in range(30)}
    assert all(map(right, seen)) and (len(seen) > 1 or "value" in parameters[next(iter(parameters))])
    logarithmic = "log" in parameters[next(iter(parameters))].get("distribution", "")
    if logarithmic and LR in parameters:
        assert 0.2 < np.mean([one.learning_rate < 0.01 for one in seen]) < 0.8


def test_a_seed_and_a_number_decide_what_is_drawn(write):
    given = read_sweep(write(definition()))
    draws = [[json.dumps(suggest(given, [None] * n, seed)) for n in range(20)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0] + draws[2])) == 40


def test_bayes_learns_from_the_trials_before_it(write):
    parameters = {LR: {"min": 0.0001, "max": 1.0}, "optimizer": {"values": ["sgd", "adam"]}}
    given = read_sweep(write(definition(method="bayes", parameters=parameters)))
    trials = []
    for _ in range(40):
        params = suggest(given, trials, 0)
        value = (params["optimizer"] == "adam") - abs(params[LR] - 0.3)
        if params["optimizer"] == "sgd" and params[LR] > 0.5:  # not finite: told as pruned without a value
            one = optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED, params=params, distributions=given.space
            )
        else:
            one = optuna.trial.create_trial(value=value, params=params, distributions=given.space)
        trials.append(one)
    late = trials[20:]
    assert np.mean([one.params["optimizer"] == "adam" for one in late]) > 0.7
    assert np.median([abs(one.params[LR] - 0.3) for one in late]) < 0.15


def test_bayes_makes_low_what_is_to_be_low(write):
    metric = {"name": "val_loss", "goal": "minimize"}
    parameters = {LR: {"min": 0.0001, "max": 1.0}}
    given, trials = read_sweep(write(definition(method="bayes", metric=metric, parameters=parameters))), []
    assert given.sign == -1
    for _ in range(40):
        params = suggest(given, trials, 0)
        one = {"params": params, "distributions": given.space, "value": abs(params[LR] - 0.3)}
        trials.append(optuna.trial.create_trial(**one))
    assert np.median([abs(one.params[LR] - 0.3) for one in trials[20:]]) < 0.15


@pytest.mark.parametrize("kind, low, high", [("q_log_uniform", 2.0794, 6.9315), ("q_log_uniform_values", 8, 1024)])
def test_a_logarithmic_range_in_steps_is_drawn_by_orders_of_magnitude(kind, low, high, write):
    spec = {"distribution": kind, "min": low, "max": high, "q": 8}
    given = read_sweep(write(definition(parameters={"batch_size": spec})))
    sizes = [given.config(suggest(given, [None] * n, 0)).batch_size for n in range(60)]
    assert 0.3 < np.mean(np.array(sizes) < 90) < 0.7  # the middle of the logarithms; drawn linearly, 8 of 100 are


def test_the_grid_is_walked_whole_each_point_once(write):
    parameters = {"epochs": {"value": 2}, "num_layers": {"min": 1, "max": 3}, "optimizer": {"values": ["sgd", "adam"]}}
    given = read_sweep(write(definition(method="grid", parameters=parameters, run_cap=None)))
    assert given.count == 6
    seen = {given.config(suggest(given, [None] * n, 0)) for n in range(6)}
    assert seen == {Config(epochs=2, num_layers=n, optimizer=o) for n in (1, 2, 3) for o in ("sgd", "adam")}
    assert read_sweep(write(definition(method="grid", parameters=parameters, run_cap=4))).count == 4
    assert read_sweep(write(definition(method="grid", parameters=parameters, run_cap=99))).count == 6


def test_the_grid_is_walked_in_the_order_of_its_stored_table():
    given, table = read_sweep(ROOT / "sweeps" / "grid.yaml"), lib.anova.load_grid()
    for n in (0, 1, 2, 1000, given.count - 1):
        stored = table[table.number == n].iloc[0]
        assert {name: stored[name] for name in given.space if name != "epochs"} | {"epochs": 10} == suggest(
            given, range(n), 0
        )


@pytest.mark.parametrize("name", ["random", "bayes", "grid"])
def test_our_files_are_what_a_stock_agent_runs(name):
    from wandb.sdk.launch.sweeps import utils

    path = ROOT / "sweeps" / f"{name}.yaml"
    given = read_sweep(path)
    assert utils.load_sweep_config(str(path))["name"] == name == given.definition["method"] == given.name
    assert given.metric == "val_accuracy" and given.sign == 1
    for n in range(20):
        config = given.config(suggest(given, [None] * n if name != "bayes" else [], n))
        args = {key: {"value": getattr(config, key)} for key in given.space}
        argv = utils.create_sweep_command_args({"args": args})["args"]  # as the agent calls train.py
        assert train.read_config(train.parse(argv)) == config


def test_our_spaces():
    course = {
        "epochs": {10}, "num_layers": {3, 4, 5}, "hidden_size": {32, 64, 128}, "weight_decay": {0, 0.0005, 0.5},
        "learning_rate": {1e-3, 1e-4}, "optimizer": set(helpers.OPTIMIZERS), "batch_size": {16, 32, 64},
        "weight_init": {"random", "Xavier"}, "activation": {"sigmoid", "tanh", "ReLU"},
    }  # fmt: skip
    grid, random, bayes = (read_sweep(ROOT / "sweeps" / f"{name}.yaml") for name in ("grid", "random", "bayes"))
    assert {name: set(lib.sweepfile.choices(one)) for name, one in grid.space.items()} == course
    assert 2 * grid.count == 11_664 and random.count == 100 and bayes.count == 50 and bayes.bands
    for name in set(course) - {"learning_rate", "epochs"}:
        assert course[name] < set(lib.sweepfile.choices(random.space[name])) or course[name] == set(
            lib.sweepfile.choices(random.space[name])
        )
    assert random.space["learning_rate"].log and random.space["learning_rate"].low == 1e-4


BANDS = [
    ({"min_iter": 3}, [3, 9, 27]),
    ({"min_iter": 2, "eta": 2}, [2, 4, 8, 16]),
    ({"max_iter": 27, "s": 2}, [9, 3]),
    ({"max_iter": 27, "s": 9}, [9, 3, 1]),
]


@pytest.mark.parametrize("keys, bands", BANDS)
def test_the_epochs_at_which_hyperband_looks(keys, bands, write):
    given = read_sweep(write(definition(early_terminate={"type": "hyperband", **keys})))
    assert given.bands[: len(bands)] == bands and (len(given.bands) == len(bands) or "min_iter" in keys)
