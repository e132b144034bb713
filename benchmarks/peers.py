"""How fast helpers.py trains beside the libraries that do the same, and what its runs cost: four tables and a figure.

Every peer trains the same network: the same first weights, the same order of the same images, the same batch size,
optimiser and dtype (float32), on one core with one thread, in a process of its own (contestants.py). Rounds interleave
the peers, an epoch each, so that a machine that slows down slows all of them; the losses must agree, or it all fails.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
import helpers  # noqa: E402
import lib.dataset  # noqa: E402
import lib.files  # noqa: E402

SHAPES = ("6x128/128", "5x128/64", "5x128/16", "4x64/32", "3x32/64", "3x32/16")  # hidden layers x width / batch size
SELECTED = "4x256/128 ReLU"  # the selected configuration's; its optimiser is adam
OPTIMIZERS = {"rmsprop": 1e-3, "sgd": 0.1, "adam": 1e-3, "nadam": 1e-3}  # with the learning rate each is run at
PEERS = {  # name: (label, packages whose versions the report names)
    "floor": ("matrix products", ["numpy"]),
    "ours": ("helpers.py", ["numpy"]),
    "compiled": ("helpers.py compiled", ["numba"]),
    "jax": ("JAX", ["jax"]),
    "torch": ("torch eager", ["torch"]),
    "compile": ("torch.compile", ["torch"]),
    "sklearn": ("scikit-learn", ["scikit-learn"]),
    "keras": ("Keras on JAX", ["keras", "jax"]),
}
LABELS = {name: label for name, (label, _) in PEERS.items()}
STYLES = {  # Okabe and Ito's colours, which colour-blind readers tell apart, and a marker each
    "ours": ("#D55E00", "o"),
    "compiled": ("#000000", "*"),
    "jax": ("#0072B2", "s"),
    "torch": ("#009E73", "^"),
    "compile": ("#56B4E9", "v"),
    "sklearn": ("#CC79A7", "D"),
    "keras": ("#E69F00", "P"),
}

# A mean loss must agree with ours within 1 % in the first epoch and within 3 % later (rounding grows); within 30 %
# where a library has no such rule and runs its nearest.
TOLERANCE_FIRST, TOLERANCE_LATER, TOLERANCE_NEAREST = 0.01, 0.03, 0.3
NEAREST = {
    "scikit-learn has neither rmsprop nor nadam and runs adam in their place": [
        ("sklearn", "rmsprop"),
        ("sklearn", "nadam"),
    ],
    "NAdam of torch and Keras lets beta1 grow by a schedule; ours and JAX's keep it fixed": [
        ("torch", "nadam"),
        ("compile", "nadam"),
        ("keras", "nadam"),
    ],
}

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "jax",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}
SLOW_BLAS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # where set, they choose slower kernels


class Failed(Exception):
    """The comparison does not hold, or a peer cannot run; the message is one sentence."""


class Child:
    """A process of contestants.py, on one core if given; ask(request) sends a line of JSON and waits for the answer."""

    def __init__(self, name, core=None, args=None):
        self.name, self.errors, self.cache = name, tempfile.TemporaryFile("w+"), tempfile.TemporaryDirectory()
        environment = {key: value for key, value in os.environ.items() if key not in SLOW_BLAS}
        self.process = subprocess.Popen(
            [sys.executable, HERE / "contestants.py", name, json.dumps(args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment | ONE_THREAD | {"TORCHINDUCTOR_CACHE_DIR": self.cache.name},
            preexec_fn=(lambda: os.sched_setaffinity(0, {core}))
            if core is not None and hasattr(os, "sched_setaffinity")
            else None,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self.errors.close()
        self.cache.cleanup()

    def send(self, request=None):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # receive says why

    def receive(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
            raise Failed(f"{LABELS.get(self.name, self.name)} ended early: {last}")
        return json.loads(line)

    def ask(self, request=None):
        self.send(request)
        return self.receive()


def settings(shape, optimizer="rmsprop", epochs=10**6):
    """The fields of a Config for a shape such as 6x128/128, of tanh unless it says more."""
    numbers, _, activation = shape.partition(" ")
    layers, width, batch = map(int, re.split("[x/]", numbers))
    network = {"num_layers": layers, "hidden_size": width, "activation": activation or "tanh", "weight_init": "Xavier"}
    rest = {"batch_size": batch, "weight_decay": 0, "epochs": epochs}
    return network | rest | {"optimizer": optimizer, "learning_rate": OPTIMIZERS[optimizer]}


def ends(shapes):
    """The first and the last: what is measured for two shapes only."""
    return list(dict.fromkeys((shapes[0], shapes[-1])))


# -------------------------------------------------------------------------------------------------------- measurements
# measure(options, add, progress): add(case, who, quantity, value) keeps a measurement; the report gives the median and
# the range of repeated ones.


def measure_epochs(options, add, progress):
    """Seconds per epoch of every peer, shape and optimiser."""
    children = {name: Child(name, options.cores[0]) for name in options.peers}
    try:
        for optimizer in options.optimizers:
            for shape in options.shapes:
                case = f"{shape} {optimizer}"
                for name in list(children):
                    progress.set_description(f"{case}: preparing {LABELS[name]}")
                    answer = children[name].ask(settings(shape, optimizer))
                    if "missing" not in answer:
                        add(case, name, "preparing", answer["prepare"])
                    elif options.chosen:
                        raise Failed(f"{LABELS[name]} cannot run: {answer['missing']}")
                    else:
                        children.pop(name).__exit__()
                        options.peers.remove(name)
                        options.missing.append(name)
                for number in range(1, options.rounds + 1):
                    losses = {}
                    for name, child in children.items():
                        progress.set_description(f"{case}: {LABELS[name]}")
                        answer = child.ask()
                        losses[name] = answer["loss"]
                        for quantity in ("seconds", "share", "loss"):
                            add(case, name, quantity, answer[quantity])
                        progress.update()
                    check_losses(case, optimizer, number, losses)
    finally:
        for child in children.values():
            child.__exit__()


def measure_selected(options, add, progress):
    """Seconds per epoch of every peer for the shape and the optimiser of the selected configuration."""
    measure_epochs(argparse.Namespace(**vars(options) | {"shapes": [SELECTED], "optimizers": ["adam"]}), add, progress)


def check_losses(case, optimizer, number, losses):
    """All must learn the same thing: compare the mean loss of an epoch with ours."""
    ours = losses.get("ours")
    for name, loss in losses.items():
        if ours is None or name == "floor":
            continue
        tolerance = TOLERANCE_FIRST if number == 1 else TOLERANCE_LATER
        if any((name, optimizer) in pairs for pairs in NEAREST.values()):
            tolerance = TOLERANCE_NEAREST
        if not abs(loss - ours) <= tolerance * ours:
            raise Failed(
                f"{case}, epoch {number}: the mean loss of {LABELS[name]} is {loss:.4f}, ours {ours:.4f},"
                f" more than {tolerance:.0%} apart: they do not train the same thing"
            )


def measure_costs(options, add, progress):
    """Loading, evaluation, and everything that a training does besides its steps."""
    tasks = [("loading", "first_load", None)]
    for shape in ends(options.shapes):
        tasks += [(shape, "evaluation", {"config": settings(shape)})]
        tasks += [(shape, "whole_training", {"config": settings(shape, epochs=3)})]
    for case, task, args in tasks:
        progress.set_description(f"{case}: {task}")
        with Child(task, options.cores[0], args) as child:
            child.ask()
            for _ in range(1 if task == "first_load" else options.rounds):
                for quantity, value in child.ask().items():
                    add(case, task, quantity, value)
                progress.update()


def measure_processes(options, add, progress):
    """Trainings side by side, each on a core of its own, all mapping the same data."""
    for shape in ends(options.shapes):
        for count in range(1, min(2, len(options.cores)) + 1):
            progress.set_description(f"{shape}: {count} side by side")
            args = {"config": settings(shape, epochs=3)}
            children = [Child("training", core, args) for core in options.cores[:count]]
            try:
                for child in children:
                    child.ask()
                for _ in range(options.rounds):
                    for child in children:
                        child.send()
                    answers = [child.receive() for child in children]
                    slowest = max(answer["whole"] for answer in answers)
                    add(shape, str(count), "epochs per second", sum(len(a["seconds"]) for a in answers) / slowest)
                    for quantity in ("peak", "private"):
                        add(shape, str(count), quantity, max(answer[quantity] for answer in answers))
                    progress.update()
            finally:
                for child in children:
                    child.__exit__()


GROWTH = [  # what grows, shape, images
    *(("width", f"3x{width}/128", 10_000) for width in (32, 64, 128, 256, 512, 1024, 2048)),
    *(("depth", f"{depth}x128/128", 10_000) for depth in range(1, 9)),
    *(("images", "6x128/128", n) for n in (6_750, 13_500, 27_000, 54_000)),
]


def measure_growth(options, add, progress):
    """Time and memory against width, depth and number of images, and the time of the compiled steps."""
    for grows, shape, n in GROWTH:
        progress.set_description(f"{grows}: {shape}, {n:,} images")
        with Child("training", options.cores[0], {"config": settings(shape, epochs=3), "n": n}) as child:
            add(f"{shape} {n}", grows, "parameters", child.ask()["parameters"])
            answer = child.ask()
        for seconds in answer["seconds"]:
            add(f"{shape} {n}", grows, "seconds", seconds)
        for quantity in ("peak", "private"):
            add(f"{shape} {n}", grows, quantity, answer[quantity])
        args = {"config": settings(shape, epochs=3), "n": n, "backend": "compiled"}
        with Child("training", options.cores[0], args) as child:
            child.ask()
            for seconds in child.ask()["seconds"]:
                add(f"{shape} {n}", grows, "seconds, compiled", seconds)
        progress.update()


WHOLE = {  # what is measured with both backends, on all cores: the task and its name
    "sweep_random": "the sweep `random.yaml`",
    "grid_rows": "100 rows of the grid",
    "five_seeds": "the selected configuration, 5 seeds",
}


def measure_backends(options, add, progress):
    """Wall time of whole jobs with both backends, and the accuracies of five seeds."""
    for task, name in WHOLE.items():
        for backend in helpers.BACKENDS:
            progress.set_description(f"{name}, {backend}")
            with Child(task, args={"backend": backend}) as child:
                child.ask()
                for quantity, value in child.ask().items():
                    add(task, backend, quantity, value)
            progress.update()


MEASURES = {
    "epochs": measure_epochs,
    "selected": measure_selected,
    "costs": measure_costs,
    "processes": measure_processes,
    "growth": measure_growth,
    "backends": measure_backends,
}


def amount(options):
    """How many measurements the progress bar counts."""
    counts = {
        "epochs": len(options.optimizers) * len(options.shapes) * len(options.peers) * options.rounds,
        "selected": len(options.peers) * options.rounds,
        "costs": 1 + 2 * len(ends(options.shapes)) * options.rounds,
        "processes": len(ends(options.shapes)) * options.rounds * min(2, len(options.cores)),
        "growth": len(GROWTH),
        "backends": len(WHOLE) * len(helpers.BACKENDS),
    }
    return sum(counts[table] for table in options.tables)


# --------------------------------------------------------------------------------------------------------------- report


class Results:
    """All measurements, one row each: table, case, who, quantity, value."""

    def __init__(self, rows):
        self.frame = pd.DataFrame(rows, columns=["table", "case", "who", "quantity", "value"])

    def values(self, table, case, who, quantity="seconds"):
        f = self.frame
        chosen = (f.table == table) & (f.case == case) & (f.who == who) & (f.quantity == quantity)
        return f.value[chosen].to_numpy()

    def median(self, *where):
        return float(np.median(self.values(*where)))

    def ratios(self, options, optimizer, name, base, table="epochs"):
        """name's seconds over base's, shape by shape: the median of the rounds, each of which ran both in turn."""
        cases = [f"{shape} {optimizer}" for shape in options.shapes]
        return np.array([np.median(self.values(table, c, name) / self.values(table, c, base)) for c in cases])

    def summary(self):
        """Median, smallest, largest and number of the measurements of each quantity."""
        groups = self.frame.groupby(["table", "case", "who", "quantity"], sort=False).value
        return groups.agg(["median", "min", "max", "count"]).reset_index()


def geometric_mean(values):
    """The geometric mean: what ratios are averaged by."""
    return float(np.exp(np.mean(np.log(values))))


def number(value):
    """Two decimals, more for a small one, none for a large one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def span(values):
    """The median and the range, as text."""
    return f"{number(np.median(values))} ({number(min(values))}-{number(max(values))})"


def markdown(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n\n"


def report_epochs(results, options):
    """The first table: seconds per epoch of all peers, and what they took to prepare."""
    text = (
        "## Seconds per epoch\n\nCPU seconds, which on one thread are those of the clock where nothing else wants the"
    )
    text += " core: median of the rounds and their range. One core, float32.\n\n"
    header = ["layers x width / batch", *(LABELS[name] for name in options.peers)]
    for optimizer in options.optimizers:
        cases = [(shape, f"{shape} {optimizer}") for shape in options.shapes]
        text += f"### {optimizer}\n\n"
        text += markdown(
            header, [[s, *(span(results.values("epochs", c, name)) for name in options.peers)] for s, c in cases]
        )
        for name in options.peers if "ours" in options.peers else ():
            if name != "ours":
                pair = ("ours", "floor") if name == "floor" else (name, "ours")
                values = results.ratios(options, optimizer, *pair)
                text += f"- {LABELS[pair[0]]} / {LABELS[pair[1]]}: {geometric_mean(values):.2f}"
                more = f" (geometric mean over {len(values)} shapes; {min(values):.2f} to {max(values):.2f})"
                text += (more if len(values) > 1 else "") + "\n"
        for name in options.peers if "compiled" in options.peers else ():
            if name in ("jax", "floor"):
                values = results.ratios(options, optimizer, "compiled", name)
                text += f"- {LABELS['compiled']} / {LABELS[name]}: {geometric_mean(values):.2f}"
                text += f" (geometric mean over {len(values)} shapes; {min(values):.2f} to {max(values):.2f})\n"
        for note, pairs in NEAREST.items():
            if any((name, optimizer) in pairs for name in options.peers):
                text += f"- {note}\n"
        text += "\n"
    text += f"Seconds to prepare (import the library, load the images, compile), not counted above; {optimizer}:\n\n"
    text += markdown(
        header,
        [[s, *(number(results.median("epochs", c, name, "preparing")) for name in options.peers)] for s, c in cases],
    )
    shares = results.summary().query("quantity == 'share'")["median"]
    text += f"The processes had {shares.min():.0%} to {shares.max():.0%} of their core (medians)"
    text += ": others ran there too, which also empties caches.\n\n" if shares.min() < 0.95 else ".\n\n"
    if options.missing:
        text += f"Not installed here: {', '.join(LABELS[name] for name in options.missing)}.\n\n"
    return text


def report_costs(results, options):
    """The second: what a training costs besides its steps."""
    load = {q: number(results.median("costs", "loading", "first_load", q)) for q in ("import", "first", "later")}
    text = "## What else a training costs\n\n"
    text += f"Importing NumPy and helpers takes {load['import']} s. Loading the data set takes {load['first']} s the"
    text += f" first time (decoding it) and {load['later']} s later (one memory-mapped file). In seconds:\n\n"
    rows = []
    for shape in ends(options.shapes):
        test = results.median("costs", shape, "evaluation")
        quantities = ("steps", "evaluation", "rest", "whole")
        parts = [results.median("costs", shape, "whole_training", quantity) for quantity in quantities]
        rows.append([shape, *map(number, (test, *parts)), f"{parts[-1] / parts[0] - 1:.1%}"])
    header = ["shape", "evaluating 10,000 images", "steps of an epoch", "its validation (6,000 images)"]
    header += ["its history, best weights, checkpoint", "whole epoch", "more than its steps"]
    return text + markdown(header, rows)


def report_processes(results, options):
    """The third: one training process and two side by side."""
    rows = []
    for shape in ends(options.shapes):
        for count in map(str, range(1, min(2, len(options.cores)) + 1)):
            rate, peak, private = (
                results.median("processes", shape, count, q) for q in ("epochs per second", "peak", "private")
            )
            alone = results.median("processes", shape, "1", "epochs per second")
            rows.append([shape, count, number(rate), f"{rate / alone:.2f}", number(peak), number(private)])
    text = "## Trainings side by side\n\nEach on a core of its own; all map the images from one file.\n\n"
    header = ["shape", "processes", "epochs per second", "gain", "peak memory of one, MB", "private to each, MB"]
    return text + markdown(header, rows)


def report_growth(results, options):
    """The fourth: how time and memory grow with width, depth and the number of images."""
    text = "## How time and memory grow\n\nBatch 128, rmsprop; 10,000 images, or 6x128 and as many as said. The images,"
    text += " which all processes share, are in peak memory and not in private memory.\n\n"
    header = ["parameters", "s per 10,000 images", "compiled", "Gflop/s", "peak memory, MB", "private memory, MB"]
    for grows in dict.fromkeys(grows for grows, _, _ in GROWTH):
        rows = []
        for shape, n in [(shape, n) for what, shape, n in GROWTH if what == grows]:
            parameters, seconds, peak, private = (
                results.median("growth", f"{shape} {n}", grows, q) for q in ("parameters", "seconds", "peak", "private")
            )
            sizes = [784, *helpers.Config(**settings(shape)).widths, 10]
            products = [n_in * n_out for n_in, n_out in zip(sizes, sizes[1:])]
            rate = 2 * n * (3 * sum(products) - products[0]) / seconds / 1e9  # there is no gradient of the images
            compiled = results.median("growth", f"{shape} {n}", grows, "seconds, compiled")
            each = map(number, (seconds / n * 1e4, compiled / n * 1e4, rate, peak, private))
            rows.append([f"{n:,}" if grows == "images" else shape.split("/")[0], f"{parameters:,.0f}", *each])
        text += markdown([grows, *header], rows)
    return text


def report_selected(results, options):
    """The selected configuration's shape: seconds per epoch of all peers, and what they are of ours, compiled."""
    case = f"{SELECTED} adam"
    seconds = [results.values("selected", case, name) for name in options.peers]
    rows = [["seconds", *map(span, seconds)]]
    if "compiled" in options.peers:
        compiled = results.values("selected", case, "compiled")
        rows.append(["of compiled", *(number(np.median(values / compiled)) for values in seconds)])
    text = f"## The selected configuration\n\nSeconds per epoch as above; {SELECTED}, adam.\n\n"
    return text + markdown(["", *(LABELS[name] for name in options.peers)], rows)


def report_backends(results, options):
    """Whole jobs with both backends, and whether the accuracies differ."""
    rows = []
    for task, name in WHOLE.items():
        numpy, compiled = (results.median("backends", task, backend) for backend in helpers.BACKENDS)
        rows.append([name, number(numpy), number(compiled), number(numpy / compiled)])
    text = "## Whole jobs, both backends\n\nSeconds of the clock, on all cores, everything included.\n\n"
    text += markdown(["job", *helpers.BACKENDS, "numpy / compiled"], rows)
    names = [f"val_accuracy {seed}" for seed in range(5)]
    each = [
        np.array([results.median("backends", "five_seeds", backend, name) for name in names])
        for backend in helpers.BACKENDS
    ]
    numpy, compiled = (f"{values.mean():.4f} ± {values.std(ddof=1):.4f}" for values in each)
    difference = each[1] - each[0]
    error = difference.std(ddof=1) / len(names) ** 0.5
    text += f"val_accuracy of the selected configuration, 5 seeds: {numpy} with numpy, {compiled} compiled. Paired"
    return text + f" difference {difference.mean():+.4f}, its standard error {error:.4f}.\n\n"


REPORTS = {
    "epochs": report_epochs,
    "selected": report_selected,
    "costs": report_costs,
    "processes": report_processes,
    "growth": report_growth,
    "backends": report_backends,
}


def report(results, options):
    """The whole of results.md."""
    about = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", about.read_text()) if about.exists() else []
    packages = dict.fromkeys(["numpy", *(package for name in options.peers for package in PEERS[name][1])])
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    text = f"# Speed\n\nWritten by `benchmarks/peers.py` on {time.strftime('%Y-%m-%d')}, rounds: {options.rounds}, on"
    text += f" {names[0] if names else platform.machine()} ({os.cpu_count()} cores, {platform.system()}), Python"
    text += f" {platform.python_version()}, {versions}.\n\n"
    return text + "".join(REPORTS[table](results, options) for table in options.tables).rstrip() + "\n"


def figure(results, options):
    """Seconds per epoch over those of the bare matrix products, a row per shape, for the first optimiser."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    optimizer = options.optimizers[0]
    names = [name for name in STYLES if name in options.peers]
    fig, ax = plt.subplots(figsize=(7, 1.9 + 0.55 * len(options.shapes)), layout="constrained")
    for i, name in enumerate(names):
        color, marker = STYLES[name]
        for row, shape in enumerate(options.shapes):
            case = f"{shape} {optimizer}"
            times = results.values("epochs", case, name) / results.median("epochs", case, "floor")
            y = row + (i - (len(names) - 1) / 2) * 0.12
            ax.plot([min(times), max(times)], [y, y], color=color, linewidth=1)
            label = LABELS[name] if row == 0 else None
            ax.plot(np.median(times), y, marker, color=color, markersize=8 if name == "ours" else 6, label=label)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.axvline(1, color="0.4", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(options.shapes)), options.shapes)
    ax.set_ylabel("layers x width / batch")
    ax.invert_yaxis()
    ax.set_xlabel("time of an epoch / time of its matrix products alone (dashed)")
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle(title(results, options, optimizer, names), x=0.01, ha="left", fontsize=10, fontweight="bold")
    fig.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return fig


def title(results, options, optimizer, names):
    """What to see: the others' time over ours."""
    others = {name: results.ratios(options, optimizer, name, "ours") for name in names if name != "ours"}
    each = ", ".join(f"{LABELS[name]} {geometric_mean(ratios):.1f}" for name, ratios in others.items())
    above = geometric_mean(results.ratios(options, optimizer, "ours", "floor"))
    text = f"helpers.py takes {above:.1f} times as long as its bare matrix products (geometric mean, {optimizer})"
    return textwrap.fill(text + (f"; times as long as helpers.py: {each}" if each else ""), 84)


def save(options, text, results):
    """results.md, results.csv and speed.png, each written to a temporary file that is then renamed."""
    folder = options.out or HERE
    folder.mkdir(parents=True, exist_ok=True)
    with lib.files.write_atomically(folder / "results.md") as file:
        file.write(text.encode())
    with lib.files.write_atomically(folder / "results.csv") as file:
        results.summary().to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
    if "epochs" in options.tables and {"floor", "ours"} <= set(options.peers):
        pictures = options.out or ROOT / "figures"
        pictures.mkdir(exist_ok=True)
        with lib.files.write_atomically(pictures / "speed.png") as file:
            figure(results, options).savefig(file, dpi=200, metadata={"Software": None})


# --------------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message):
        self.exit(2, f"{Path(__file__).name}: {message}\n")


def some_of(what, allowed):
    """The type of a comma-separated flag, each part of which must be one of those allowed."""

    def parse(text):
        parts = list(dict.fromkeys(part.strip() for part in text.split(",")))
        for part in parts:
            if part not in allowed:
                raise argparse.ArgumentTypeError(f"{part!r} is no {what}; allowed: {', '.join(allowed)}")
        return parts

    return parse


def shapes(text):
    """The shapes in a flag's text, such as 6x128/128,3x32/16."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for part in parts:
        if not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}/[1-9]\d{0,3}", part):
            raise argparse.ArgumentTypeError(f"{part!r} is no shape; allowed: layers x width / batch, as 6x128/128")
    return parts


def rounds(text):
    """The number of rounds in a flag's text."""
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; allowed: 1 to 9999")
    return int(text)


def parse_arguments(arguments):
    """The flags, checked."""
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="two shapes, rmsprop, the peers that start fast; no files")
    parser.add_argument("--tables", type=some_of("table", MEASURES), help=", ".join(MEASURES))
    parser.add_argument("--shapes", type=shapes, help=", ".join(SHAPES) + ", or others: layers x width / batch")
    parser.add_argument("--optimizers", type=some_of("optimizer", OPTIMIZERS), help=", ".join(OPTIMIZERS))
    parser.add_argument("--peers", type=some_of("peer", PEERS), help=", ".join(PEERS))
    parser.add_argument("--rounds", type=rounds, help="epochs of each peer in each case (5; quick: 3)")
    parser.add_argument("--out", type=Path, help="folder for results.md, results.csv and speed.png")
    options = parser.parse_args(arguments)
    if options.out and options.out.exists() and not options.out.is_dir():
        parser.error(f"argument --out: {options.out} is not a folder")
    quick = options.quick
    options.chosen, options.missing = bool(options.peers), []
    options.tables = options.tables or (["epochs"] if quick else list(MEASURES))
    options.shapes = options.shapes or (ends(SHAPES) if quick else list(SHAPES))
    options.optimizers = options.optimizers or (["rmsprop"] if quick else list(OPTIMIZERS))
    options.peers = options.peers or [name for name in PEERS if not (quick and name in ("compile", "keras"))]
    options.rounds = options.rounds or (3 if quick else 5)
    options.cores = sorted(os.sched_getaffinity(0), reverse=True) if hasattr(os, "sched_getaffinity") else [0, 1]
    return options


def main(arguments=None):
    """The command line; returns the exit status."""
    options = parse_arguments(arguments)
    rows = []
    try:
        data = (
            lib.dataset.load_dataset()
        )  # decoded here if it must be; and mapped, so that no child counts it as its own
        with tqdm(total=amount(options), disable=None) as progress:
            for table in options.tables:
                MEASURES[table](options, lambda *row, table=table: rows.append((table, *row)), progress)
        results = Results(rows)
        text = report(results, options)
        print(text)
        if options.out or not options.quick:
            save(options, text, results)
    except (Failed, helpers.InputError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1
    del data
    return 0


if __name__ == "__main__":
    sys.exit(main())
