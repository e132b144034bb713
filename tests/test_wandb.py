"""W&B online: the real client against a server of our own, and what is kept when that fails.

Waiting is cut by the client's own settings (WANDB__..._RETRY_MAX and so on); an agent's pause between two questions to the
server, for which there is none, is cut in the process that starts it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from test_train import COURSE, METRICS, NAMES, OUTCOME, command, tiny_dataset
from wandb_server import Server

import helpers
import lib.anova
import lib.tables
import study
import sweep

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
EPOCHS = 12
SMALL = ["--epochs", EPOCHS, "--num_layers", "1", "--hidden_size", "16", "--batch_size", "20"]
TIME = 300  # seconds; nothing needs a tenth of them
SOON = "import wandb.wandb_agent as a; a.Agent.POLL_INTERVAL = 0.3; "  # 5 s
WANDB = [sys.executable, "-c", SOON + "import sys; from wandb.cli.cli import cli; cli(prog_name='wandb')"]
DOORS = ("FILE_STREAM", "FILE_TRANSFER", "GRAPHQL")


@pytest.fixture
def server():
    with Server() as server:
        yield server


def environment(server, folder, **more):
    """Variables for a process with nothing of the developer's, which keeps its files in `folder`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "NETRC")) and "proxy" not in k.lower()}
    env |= {"HOME": str(folder), "WANDB_DIR": str(folder), "PATH": f"{BIN}{os.pathsep}{env['PATH']}"}
    env |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key, "WANDB_ERROR_REPORTING": "false"}
    env |= {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1", "WANDB_INIT_TIMEOUT": "200"}
    retry = {"RETRY_MAX": "1", "RETRY_WAIT_MIN_SECONDS": "1", "RETRY_WAIT_MAX_SECONDS": "1"}  # whole seconds: less is 0
    return env | {f"WANDB__{door}_{name}": value for door in DOORS for name, value in retry.items()} | more


def process(argv, env, cwd):
    """Run that to its end: status, out, err, and the lines of err."""
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, env=env, cwd=cwd, timeout=TIME)
    return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr, lines=done.stderr.splitlines())


def config_of(run):
    return {name: item["value"] for name, item in run.config.items() if name != "_wandb"}


def no_key(server, folder, *done):
    """The key is in nothing that was said, written or sent, but the header of a request and .netrc."""
    said = [text for one in done for text in (one.out, one.err)]
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".netrc"]
    assert any("debug" in path.name for path in files)
    assert not [path for path in files if server.key.encode() in path.read_bytes()]
    sent = repr([server.requests, server.files, server.runs, server.artifacts, server.views])
    assert not any(server.key in text for text in [*said, sent])


# ----------------------------------------------------------------------------------------------------------- online run


def test_login_then_train_logs_what_is_documented(server, tmp_path):
    env = environment(server, tmp_path)
    del env["WANDB_API_KEY"]
    login = process([*WANDB, "login", server.key], env, tmp_path)
    assert login.status == 0 and server.key in (tmp_path / ".netrc").read_text()
    done = process(command(*SMALL, "--wandb_project", "p"), env, tmp_path)
    result, (run,) = json.loads(done.out), server.runs.values()
    assert done.status == 0 and done.out.count("\n") == 1 and len(done.lines) == 1 + EPOCHS  # the address, the epochs
    assert done.lines[0] == f"train.py: W&B run {server.url}/somebody/p/runs/{run.id}"

    assert (run.name, run.project) == ("hl_1_lr_0.000422_bs_20_opt_adam_act_ReLU", "p")
    assert run.group is run.sweep is None
    assert config_of(run) == {f.name: result[f.name] for f in fields(helpers.Config)}
    assert set(COURSE) - {"wandb_project", "wandb_entity"} < set(config_of(run))
    rows = server.history(run.id)
    assert [(row["_step"], row["epoch"]) for row in rows] == [(i, i) for i in range(1, EPOCHS + 1)]
    extra = {"test_accuracy", "samples", "confusion_matrix_table"}
    for row in rows:
        logged = {name for name in row if not name.startswith("_")}
        assert logged == {"epoch", *METRICS} | (extra if row is rows[-1] else set())
    config = helpers.Config(**config_of(run))
    network, history, _ = helpers.train(config, tiny_dataset(), keep_best=True)
    assert [[row[name] for name in METRICS] for row in rows] == [[row[name] for name in METRICS] for row in history]
    assert {name: run.summary[name] for name in OUTCOME} == {name: result[name] for name in OUTCOME}
    assert (run.state, run.exit_code) == ("finished", 0)

    data = tiny_dataset()
    assert rows[-1]["samples"]["captions"] == list(NAMES)
    for label, name in enumerate(rows[-1]["samples"]["filenames"]):
        pixels = np.asarray(Image.open(BytesIO(server.files[run.id, name])).convert("L")).ravel()
        assert data.y_train[np.flatnonzero((data.x_train == pixels).all(axis=1))].tolist() == [label]
    table = json.loads(server.files[run.id, rows[-1]["confusion_matrix_table"]["path"]])
    y_hat = network.predict(data.x_test).argmax(axis=1)
    counts = {(NAMES.index(actual), NAMES.index(predicted)): n for actual, predicted, n in table["data"]}
    assert counts == {(i, j): np.sum((data.y_test == i) & (y_hat == j)) for i in range(10) for j in range(10)}
    panel = run.config["_wandb"]["value"]["visualize"]["confusion_matrix"]
    assert panel["panel_config"]["panelDefId"] == "wandb/confusion_matrix/v1"
    assert not server.unknown
    no_key(server, tmp_path, login, done)


# --------------------------------------------------------------------------------------------------------------- faults

FAULTS = {  # what the server does, what the sentence says of it
    "key expired before": ([("UpsertBucket", 401, {})], "401"),
    "key expires in mid-run": ([("any", 401, {"after": 2})], "401"),
    "conflict": ([("file_stream", 409, {"after": 1})], "409 Conflict"),
    "broken": ([("file_stream", 500, {"after": 1})], "HTTP 500"),
    "dropped": ([("any", "drop", {"after": 2})], "verify credentials"),
    "hangs": ([("file_stream", "hang", {"after": 1})], "Timed out"),
    "config refused": ([("UpsertBucket", 500, {"after": 1})], "failed to upload changes"),
    "files refused": ([("upload", 500, {}), ("CreateArtifact", 401, {})], "failed to log artifact"),
    "no network": ([], "connection refused"),
    "too many requests": ([("file_stream", 429, {"after": 1, "times": 1}), ("CreateRunFiles", 429, {"times": 1})], ""),
}


def meet(fault, folder):
    """Train while the server does that, then do as the sentence says on a server in good health: all that came of it."""
    folder.mkdir()
    with Server() as server:
        for kind, how, when in FAULTS[fault][0]:
            server.fail(kind, how, **when)
        env = environment(server, folder, WANDB_FINISH_TIMEOUT="3" if fault == "hangs" else "200")
        away = {"WANDB_BASE_URL": "http://127.0.0.1:9"} if fault == "no network" else {}
        done = process(command(*SMALL), env | away, folder)
        told = [line for line in done.lines if "epoch" not in line and "W&B run " not in line]
        found = SimpleNamespace(server=server, done=done, told=told, faults=list(server.faults))
        found.before = [run.state for run in server.runs.values()]
        server.heal()
        if told:
            argv = shlex.split(re.search(r"wandb sync .*", told[0])[0])
            found.sync = process([*WANDB, *argv[1:]], env, folder)
    return found


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    """What came of each fault; side by side, as most of it is waiting."""
    folders = [tmp_path_factory.mktemp("faults") / name.replace(" ", "-") for name in FAULTS]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(FAULTS, zip(pool.map(meet, FAULTS, folders), folders)))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_no_training_and_no_data(fault, met):
    found, folder = met[fault]
    server, done, told = found.server, found.done, found.told
    result = json.loads(done.out)
    assert done.status == 0 and result["epochs"] == EPOCHS and result["test_accuracy"] is not None
    assert len([line for line in done.lines if f"/{EPOCHS}:" in line]) == EPOCHS
    assert "Traceback" not in done.err
    if fault == "too many requests":
        assert not told and [one.times <= 0 for one in found.faults] == [True, True]
    else:
        (sentence,) = told
        assert sentence.startswith("train.py: W&B has not received ") and FAULTS[fault][1] in sentence
        kept = Path(re.search(r"wandb sync --include-online (\S+)$", sentence)[1])
        assert len(list(kept.glob("*.wandb"))) == 1 and kept.parent == folder / "wandb"
        assert found.sync.status == 0
        if "after" in str(FAULTS[fault][0]) and fault != "config refused":  # it had begun to arrive, and did not end
            assert found.before == ["running"]
    (run,) = server.runs.values()
    rows = server.history(run.id)
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert {name: rows[-1][name] for name in METRICS} == {name: result[name] for name in METRICS}
    assert {name: run.summary[name] for name in OUTCOME} == {name: result[name] for name in OUTCOME}
    assert config_of(run) == {f.name: result[f.name] for f in fields(helpers.Config)}
    assert (run.state, run.exit_code) == ("finished", 0)
    media = [*rows[-1]["samples"]["filenames"], rows[-1]["confusion_matrix_table"]["path"]]
    assert all(server.files[run.id, name] for name in media)
    no_key(server, folder, done, *([found.sync] if told else []))


# --------------------------------------------------------------------------------------------------------------- sweeps

DEFINITION = {
    "program": "train.py",
    "name": "small",
    "project": "p",
    "method": "bayes",
    "run_cap": 2,
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "parameters": {
        "epochs": {"value": 1},
        "num_layers": {"value": 1},
        "hidden_size": {"values": [8, 16]},
        "batch_size": {"value": 2000},
        "optimizer": {"values": ["adam", "nadam", "rmsprop"]},
        "learning_rate": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.01},
    },
}


def as_told(server):
    """Every run of the one sweep has been trained with what the server has said, and the rest by default."""
    ((sweep_id, given),) = server.sweeps.items()
    assert set(server.runs) == set(given.runs)
    for run in server.runs.values():
        told = {name: item["value"] for name, item in run.args.items()}
        assert set(told) == set(given.definition["parameters"])
        assert config_of(run) == asdict(helpers.Config(**told)) and run.sweep == sweep_id
        assert run.name == helpers.Config(**told).run_name and (run.state, run.exit_code) == ("finished", 0)
    assert not server.unknown


def test_sweep_py_runs_a_sweep_on_wandb(server, tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(DEFINITION))
    code = SOON + f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sweep; sys.exit(sweep.main())"
    argv = [sys.executable, "-c", code, "small.yaml", "--engine", "wandb", "--folder", "tables"]
    done = process(argv, environment(server, tmp_path), tmp_path)
    assert done.status == 0, done.err
    assert "wandb agent somebody/p/sweep000" in done.err
    as_told(server)
    table = sweep.load_results("small", tmp_path / "tables")
    assert list(table.columns) == lib.tables.COLUMNS and list(table.state) == ["complete"] * 2
    for (_, row), run in zip(table.iterrows(), server.runs.values()):
        (logged,) = server.history(run.id)
        assert lib.tables.config_of(row) == helpers.Config(**config_of(run))
        assert [row[f"{name}_history"] for name in METRICS] == [[logged[name]] for name in METRICS]
        assert row.val_accuracy == logged["val_accuracy"] and row.best_epoch == 1
    no_key(server, tmp_path, done)


def test_two_stock_agents_share_our_sweep_and_obey_its_early_termination(server, tmp_path):
    server.cap, server.seed = 2, 368  # small networks
    server.should_stop = lambda run: len(run.lines) > 0
    env = environment(server, tmp_path)
    made = process([*WANDB, "sweep", "sweeps/bayes.yaml"], env, ROOT)
    assert made.status == 0, made.err
    agent = re.search(r"wandb agent (\S+)", made.err)[1]
    assert agent == "somebody/CS6910_Assignment_1/sweep000"
    assert yaml.safe_load(server.sweeps["sweep000"].config)["early_terminate"]["min_iter"] == 3
    with ThreadPoolExecutor() as pool:
        folders = [tmp_path / name for name in ("one", "two")]
        argv = [*WANDB, "agent", "--count", "1", agent]
        done = list(pool.map(lambda folder: process(argv, environment(server, folder), ROOT), folders))
    assert [one.status for one in done] == [0, 0], done
    as_told(server)
    assert sorted(run.agent for run in server.runs.values()) == ["agent0", "agent1"]
    for run in server.runs.values():
        assert run.summary["stopped"] == "stopped by W&B" and 1 <= len(server.history(run.id)) < 20
    no_key(server, tmp_path, made, *done)


def test_a_run_stopped_on_wandb_ends_as_a_whole_one(server, tmp_path):
    """The client asks every 15 s whether it is to stop, which no setting shortens either."""
    server.should_stop = lambda run: len(run.lines) > 0
    argv = command(*SMALL, "--epochs", 10**6, "--batch_size", 1)
    soon = "import wandb.sdk.lib.run_stopping as s; s.RunStopChecker.__init__.__kwdefaults__['poll_interval'] = 0.2; "
    argv[2] = soon + argv[2]
    done = process(argv, environment(server, tmp_path), tmp_path)
    result, (run,) = json.loads(done.out), server.runs.values()
    assert done.status == 0 and result["stopped"] == run.summary["stopped"] == "stopped by W&B"
    assert result["test_accuracy"] is not None and (run.state, run.exit_code) == ("finished", 0)
    no_key(server, tmp_path, done)


def test_offline_runs_of_the_local_engine_are_synced_without_loss(server, tmp_path):
    definition = DEFINITION | {"parameters": DEFINITION["parameters"] | {"epochs": {"value": 3}}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(definition))
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; import sweep; from test_sweep import tiny; "
    code += "sys.exit(sweep.main(load=tiny))"
    env = environment(server, tmp_path)
    done = process([sys.executable, "-c", code, "small.yaml", "--workers", "1", "--folder", "."], env, tmp_path)
    assert done.status == 0 and not server.requests
    kept = [str(path) for path in tmp_path.glob("wandb/offline-run-*")]
    assert len(kept) == 2
    synced = process([*WANDB, "sync", *kept], env, tmp_path)
    assert synced.status == 0, synced.err
    table = sweep.load_results("small", tmp_path).set_index("number")
    assert len(server.runs) == 2
    for run in server.runs.values():
        row, rows = table.loc[int(run.id.split("-")[-1])], server.history(run.id)
        assert (run.project, run.group, run.state, run.exit_code) == ("p", "small", "finished", 0)
        assert (
            lib.tables.config_of(row) == helpers.Config(**config_of(run))
            and run.name == lib.tables.config_of(row).run_name
        )
        assert [row[f"{name}_history"] for name in METRICS] == [[one[name] for one in rows] for name in METRICS]
        assert run.summary["best_val_accuracy"] == row.best_val_accuracy and len(rows) == 3
    no_key(server, tmp_path, done, synced)


# --------------------------------------------------------------------------------------------------- the report on W&B


def written(server, folder, **env):
    """Run wandb_report.py twice, with the importance of few runs, as that takes long."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sweep, lib.anova, wandb_report as r; "
    code += "r.importance = lambda table: lib.anova.importance(table.head(12)); sys.exit(r.main() or r.main())"
    return process([sys.executable, "-c", code], environment(server, folder, **env), folder)


@pytest.fixture
def project(server):
    """A project with three runs: the best one is not tested."""
    for name, accuracy, tested in [("low", 0.85, True), ("best", 0.9, True), ("untested", 0.95, False)]:
        run = server.run(name)
        run.project, run.state = "CS6910_Assignment_1", "finished"
        run.config = {key: {"value": value} for key, value in asdict(helpers.Config()).items()}
        run.summary = {"val_accuracy": accuracy} | ({"test_accuracy": accuracy} if tested else {})
    return server


def test_the_report_has_the_panels_of_the_reference_and_computed_tables(project, tmp_path):
    done = written(project, tmp_path)
    assert done.status == 0 and not done.err
    ((identity, view),) = project.views.items()  # the second one has taken the place of the first
    assert [v["id"] for kind, v in project.requests if kind == "upsertView"] == [None, identity]
    address = f"{project.url}/somebody/CS6910_Assignment_1/reports/CS6910-Assignment-1--{identity}"
    assert done.out.splitlines() == [address] * 2
    blocks = json.loads(view["spec"])["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    panels = {}
    for grid in grids:
        ((runset,), of) = grid["runSets"], grid["panelBankSectionConfig"]["panels"]
        shown = {one["key"]["name"]: one["value"] for one in runset["filters"]["filters"]}
        for panel in of:
            panels.setdefault(panel["viewType"], []).append((panel["config"], shown))
    best, every = {"name": "best"}, {"dataset": "fashion_mnist"}
    selected = asdict(helpers.Config())  # the defaults are the best configuration known
    alike = {name: selected[name] for name in selected.keys() - {"loss", "learning_rate", "seed"}}

    assert [(c["mediaKeys"], shown) for c, shown in panels.pop("Media Browser")] == [(["samples"], best)]
    lines = panels.pop("Run History Line Plot")
    assert [(c["metrics"], c["xAxis"], shown) for c, shown in lines] == [
        *(([name], "epoch", every) for name in ("train_accuracy", "val_accuracy", "train_loss")),
        *(([name], "epoch", alike) for name in ("train_accuracy", "val_accuracy")),
    ]
    assert [c.get("groupBy") for c, _ in lines] == [None] * 3 + ["loss.value"] * 2
    ((created, shown),) = panels.pop("Scatter Plot")
    assert (created["xAxis"], created["yAxis"], shown) == ("run:createdAt", "summary:val_accuracy", every)
    ((parallel, shown),) = panels.pop("Parallel Coordinates Plot")
    searched = yaml.safe_load((ROOT / "sweeps/random.yaml").read_text())["parameters"]
    axes = [f"config:{name}.value" for name in searched] + ["summary:val_accuracy"]
    assert [column["accessor"] for column in parallel["columns"]] == axes and shown == every
    ((importance, shown),) = panels.pop("Parameter Importance")
    assert (importance["targetKey"], shown) == ("val_accuracy", every)
    ((matrix, shown),) = panels.pop("Vega2")
    assert (matrix["panelDefId"], shown) == ("wandb/confusion_matrix/v1", best)
    assert '"confusion_matrix_table"' in json.dumps(matrix["userQuery"]) and not panels
    assert matrix["fieldSettings"] == {name: name for name in ("Actual", "Predicted", "nPredictions")}
    assert {*METRICS, "epoch", "samples", "confusion_matrix_table"} >= {
        name.split(":")[-1] for c, _ in lines for name in c["metrics"]
    }

    tables = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    sweeps = [sweep.load_results(name) for name in ("random", "bayes")]
    losses = pd.concat(study.load_study(name) for name in ("selected", "losses"))
    top = max(table.best_val_accuracy.max() for table in sweeps)
    assert f"| {top:.4f} |" in tables[0].splitlines()[2] and tables[0].count("\n") == 11
    for table, text in zip(sweeps, tables[1:3]):
        first = lib.anova.importance(table.head(12)).iloc[0]
        assert text.splitlines()[2] == f"| {first['name']} | {first.importance:.3f} ± {first.deviation:.3f} |"
    for loss, t in losses.groupby("loss"):
        (line,) = [line for line in tables[3].splitlines() if line.startswith(f"| {loss},")]
        assert f"| {len(t)} |" in line and f"| {t.test_accuracy.mean():.4f} ± {t.test_accuracy.std():.4f} |" in line
    assert len(tables[4].splitlines()) == 2 + len(study.load_study("mnist")) / 3
    assert not project.unknown
    no_key(project, tmp_path, done)


@pytest.mark.parametrize(
    "env, said",
    [
        ({"WANDB_API_KEY": ""}, "no W&B key is configured"),
        ({"WANDB_MODE": "disabled"}, "W&B is disabled"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "W&B: "),
        ({}, "somebody/CS6910_Assignment_1 has no run with a test accuracy; allowed: "),
    ],
)
def test_no_report_without_login_network_or_run(env, said, server, tmp_path):
    done = written(server, tmp_path, **env)
    assert (done.status, done.out, len(done.lines)) == (2, "", 1) and said in done.err
    assert done.err.startswith("wandb_report.py: ") and server.key not in done.err and not server.views
