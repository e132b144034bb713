"""Towards 95 %: the recommendations of the reference report put to the test, on the recipes of lib/recipes.py.

python towards95.py TABLE [WORKERS]  trains the rows that data/towards95/TABLE.csv does not have yet, or has from before
                                     a change of the code, on every core or on WORKERS of them; run it again to resume
python towards95.py train NAME SEED [FOLDER]   trains a final network and tests it, once; resumes from its checkpoint in
                                     FOLDER (data/cache), which may have come from another machine
python towards95.py rerun TABLE N    trains row N of a table again, and compares

TABLE is ablation (what each measure is worth), recommended (what the reference report recommends, for twice as many
epochs) or pixels (what the order of the pixels is worth). NAME is dense, taught (dense too, by the probabilities of
convolutional networks), convolutional, continued (the stored convolutional network of that seed, trained for as long
again), or reborn (convolutional, taught too); mnist-dense, mnist-convolutional and mnist-taught are the same on digits.
Exit status: 0 done, 1 not reproduced or not finite, 2 invalid input, 130 interrupted.
"""

import sys
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd

from helpers import Config, InputError
from lib import parallel, tables
from lib.cli import MOST_WORKERS, answer, progress, whole_number
from lib.dataset import load_dataset
from lib.files import write_npz
from lib.recipes import (
    CACHE,
    COLUMNS,
    FOLDER,
    NOW,
    Recipe,
    accuracy,
    load_network,
    load_table,
    mirrored,
    save_network,
    train,
)

# ------------------------------------------------------------------------------------------------------------- ablation

PLAIN = Recipe(  # the network that the sweeps selected, and a training of three quarters of its epochs
    widths=tuple(Config().widths),
    weight_init=Config.weight_init,
    epochs=15,
    batch_size=Config.batch_size,
    learning_rate=Config.learning_rate,
    weight_decay=Config.weight_decay,
)
MEASURES = {  # what each one changes in PLAIN; all together are the whole
    "He initialisation": {"weight_init": "He"},
    "batch normalisation": {"batch_norm": True},
    "dropout, 0.1": {"dropout": 0.1},
    "label smoothing, 0.1": {"label_smoothing": 0.1},
    "rate up to 0.002, then cosine": {"learning_rate": 0.002, "warm_up": 0.2},
    "decoupled decay, 0.05": {"weight_decay": 0.0, "decoupled_decay": 0.05},
    "averaged weights": {"average": 0.998},
    "mirrored images": {"flip": True},
    "shifts by 1 pixel": {"shift": 1},
    "input noise, 0.1": {"noise": 0.1},
}
WHOLE = replace(PLAIN, **{name: value for change in MEASURES.values() for name, value in change.items()})
ABLATION = {("plain", "nothing"): PLAIN, ("whole", "nothing"): WHOLE}
for name, change in MEASURES.items():  # one more
    ABLATION["plain", name] = replace(PLAIN, **change)
for name, change in MEASURES.items():  # one less
    ABLATION["whole", name] = replace(WHOLE, **{field: getattr(PLAIN, field) for field in change})
ABLATION["plain", "L2 decay, 0.0005"] = replace(PLAIN, weight_decay=0.0005)
DENSE = replace(WHOLE, widths=(1024,) * 3, noise=0.0, average=0.999, epochs=60, batch_size=256)
TAUGHT = replace(DENSE, dropout=0.0, label_smoothing=0.0, mix=0.5, teacher="convolutional-0", copies=10)
TWO = "convolutional-0+convolutional-1"
THREE = f"{TWO}+convolutional-2"
NESTEROV = {"optimizer": "nag", "learning_rate": 0.05, "weight_decay": 0.0005, "decoupled_decay": 0.0, "average": 0.0}
WIDE = {  # from which DENSE and the taught networks were chosen, by validation accuracy
    "shifts, dropout 0.2, 30 epochs": replace(DENSE, dropout=0.2, epochs=30),
    "no shifts, dropout 0.2, 30 epochs": replace(DENSE, dropout=0.2, epochs=30, shift=0),
    "no shifts, dropout 0.4, 40 epochs": replace(DENSE, dropout=0.4, epochs=40, shift=0),
    "shifts, no dropout, 40 epochs": replace(DENSE, dropout=0.0, epochs=40),
    "shifts, dropout 0.1, 60 epochs": DENSE,
    "shifts, dropout 0.2, 90 epochs": replace(DENSE, dropout=0.2, epochs=90),
    "shifts, dropout 0.1, 60 epochs, Nesterov": replace(DENSE, **NESTEROV),
    "no shifts, dropout 0.1, 60 epochs, Nesterov": replace(DENSE, shift=0, **NESTEROV),
    "taught, dropout 0.1": replace(TAUGHT, dropout=0.1, mix=0.0),
    "taught": replace(TAUGHT, mix=0.0),
    "taught, mixed images": TAUGHT,
    "taught by three, mixed images": replace(TAUGHT, teacher=THREE),
    "taught by three, mixed images, Nesterov": replace(TAUGHT, teacher=THREE, **NESTEROV),
    "taught by three, mixed images, softened": replace(TAUGHT, teacher=THREE, temperature=2.0),
    "taught by three, mixed images, 20 copies, 120 epochs": replace(TAUGHT, teacher=THREE, copies=20, epochs=120),
    "taught by three, mixed images, bottlenecks": replace(TAUGHT, teacher=THREE, widths=(2048,) * 3, bottleneck=256),
}
ABLATION |= {("wide", name): recipe for name, recipe in WIDE.items()}
ABLATION["plain", "twice the width"] = replace(PLAIN, widths=tuple(2 * width for width in PLAIN.widths))
LONG = replace(PLAIN, epochs=30)  # a length that is fair to measures against overfitting
RECOMMENDED = {("long", "nothing"): LONG}
RECOMMENDED |= {("long", name): replace(LONG, **MEASURES[name]) for name in MEASURES if name != "He initialisation"}
RECOMMENDED |= {("long", f"L2 decay, {decay}"): replace(LONG, weight_decay=decay) for decay in (0.0005, 0.001, 0.005)}

SHORT = Recipe(  # the same for all four trainings; nothing in it knows where a pixel is
    weight_init="He",
    batch_norm=True,
    epochs=6,
    optimizer="nag",
    learning_rate=0.05,
    warm_up=0.2,
    weight_decay=0.0005,
    label_smoothing=0.1,
)
PIXELS = {
    (network, order): replace(SHORT, network=network, widths=widths, shuffled=order == "shuffled")
    for network, widths in (("dense", (512,) * 3), ("convolutional", (8, 16, 32, 64)))
    for order in ("in order", "shuffled")
}
TABLES = {"ablation": ABLATION, "recommended": RECOMMENDED, "pixels": PIXELS}  # name of a .csv file: its trainings
SEEDS = {"plain": 3, "whole": 3, "wide": 1, "long": 5, "dense": 3, "convolutional": 3}  # by base
KEY = ["base", "measure", "seed"]


def _row(base, measure, seed, recipe, load, checkpoint=None):
    network, history = train(recipe, load(recipe.dataset), checkpoint)
    accuracies = [row["val_accuracy"] for row in history]
    results = [network.n_parameters, recipe.epochs, history[-1]["train_accuracy"], accuracies[-1], max(accuracies)]
    seconds = round(sum(row["seconds"] for row in history), 1)
    return dict(zip(COLUMNS, [base, measure, seed, *results, seconds, tables.machine(), accuracies, NOW]))


def complete(path, recipes, workers=None, load=load_dataset, cache=CACHE):
    """Train what a table does not have yet, or has from before, each training in a process of its own; return it.

    A training that was stopped resumes from its checkpoint in the folder `cache`. The checkpoint is removed once its
    row is written.

    It has a row for each training: base and measure, which say what is trained, seed, parameters, epochs, the
    accuracies after the last epoch, best_val_accuracy of all epochs, seconds, machine, val_accuracy of each epoch as a
    JSON list; made, which is NOW, or, if the code has changed since, the change before which the row was made.
    """
    table = _stored(path)
    there = set(table[table.made == NOW][KEY].itertuples(index=False, name=None))
    wanted = [
        (*one, seed, replace(recipe, seed=seed)) for one, recipe in recipes.items() for seed in range(SEEDS[one[0]])
    ]
    missing = sorted((one for one in wanted if one[:3] not in there), key=lambda one: one[2])  # each seed of all first
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    files = [cache / f"towards95-{Path(path).stem}-{crc32(repr(one[:3]).encode()):08x}.npz" for one in missing]
    with parallel.process_pool(workers) as pool, progress(len(missing), "training") as bar:
        with parallel.deaf_to_ctrl_c():
            work = {pool.submit(_row, *one, load, file): file for one, file in zip(missing, files)}
        for future in as_completed(work):
            tables.add_row(path, _stored, future.result(), KEY)
            work[future].unlink()
            bar.update()
    return load_table(path)


def _stored(path):
    """Return a table as it is stored; without rows if there is none yet."""
    return load_table(path) if Path(path).exists() else pd.DataFrame(columns=list(COLUMNS))


def rerun(name, row, folder=FOLDER, load=load_dataset):
    """Train a row of a table of TABLES again, and compare all its results: see lib.tables.rerun.

    A row from before a change of the code counts as one of another machine.
    """
    path = folder / f"{name}.csv"
    table = load_table(path)
    earlier = table.made != NOW
    table["machine"] = table.machine.mask(earlier, table.machine + ", " + table.made)

    def again(then):
        base, measure, seed = (then[one] for one in KEY)
        if (base, measure) not in TABLES[name]:
            raise InputError(f"row {row} of {path} is {base}, {measure}; allowed: a training of TABLES[{name!r}]")
        now = _row(base, measure, seed, replace(TABLES[name][base, measure], seed=seed), load)
        return {one: now[one] for one in now if "accuracy" in one}

    return tables.rerun(path, table, row, again)


# ------------------------------------------------------------------------------------------------------- final networks

CONVOLUTIONAL = Recipe(
    network="convolutional",
    widths=(16, 64, 128, 256),
    epochs=30,
    optimizer="nag",
    learning_rate=0.1,
    warm_up=0.2,
    weight_decay=0.0005,
    label_smoothing=0.1,
    flip=True,
    alternate=True,
    shift=2,
    erase=0.5,
)
FINAL = {
    "dense": DENSE,
    "convolutional": CONVOLUTIONAL,
    "taught": replace(TAUGHT, teacher=TWO, copies=20, epochs=120),
    "continued": replace(CONVOLUTIONAL, after="convolutional", learning_rate=0.05, warm_up=0.0),
    "reborn": replace(CONVOLUTIONAL, label_smoothing=0.0, alternate=False, teacher=TWO, copies=20),
}


def for_digits(recipe):
    """Return the recipe for MNIST: as it is, but for mirrored images, which would be no digits, and other networks."""
    teacher = "+".join(f"mnist-{name}" for name in recipe.teacher.split("+") if name)
    after = recipe.after and f"mnist-{recipe.after}"
    return replace(recipe, dataset="mnist", flip=False, alternate=False, teacher=teacher, after=after)


FINAL |= {f"mnist-{name}": for_digits(FINAL[name]) for name in ("dense", "convolutional", "taught")}


def final(name, seed, folder=FOLDER, cache=CACHE, on_epoch=None, load=load_dataset):
    """Train FINAL[name] with this seed, or go on with it, and test it, once; return its row of final.csv.

    Writes NAME-SEED.npz, the network, and NAME-SEED-test.npz, p (2, 10000, 10), float16: its probabilities of the test
    images as they are and mirrored, for `ensemble`; of digits only as they are. The test accuracies are those of the
    network as it is stored. The checkpoint is in the folder `cache`.
    """
    recipe = replace(FINAL[name], seed=seed)
    data = load(recipe.dataset)
    network, history = train(recipe, data, Path(cache) / f"towards95-{name}-{seed}.npz", on_epoch)
    save_network(folder / f"{name}-{seed}.npz", recipe, network)
    network = load_network(folder / f"{name}-{seed}.npz")
    ways = [data.x_test] if recipe.dataset == "mnist" else [data.x_test, mirrored(data.x_test)]
    p = np.array([network.predict(x) for x in ways], np.float16)
    write_npz(folder / f"{name}-{seed}-test.npz", p=p)
    accuracies = [one["val_accuracy"] for one in history]
    row = {
        "name": name,
        "seed": seed,
        "parameters": network.n_parameters,
        "epochs": len(history),
        "train_accuracy": history[-1]["train_accuracy"],
        "val_accuracy": accuracies[-1],
        "test_accuracy": accuracy(p[0], data.y_test),
        "test_accuracy_flips": accuracy(p.mean(axis=0, dtype=np.float32), data.y_test) if len(p) == 2 else None,
        "seconds": round(sum(one["seconds"] for one in history), 1),
        "machine": tables.machine(),
        "val_accuracy_history": accuracies,
        "made": NOW,
    }
    tables.add_row(folder / "final.csv", _stored, row, ["name", "seed"])
    return row


# --------------------------------------------------------------------------------------------------------- command line


def _command(argv):
    match argv:
        case [name, *workers] if name in TABLES and len(workers) <= 1:
            path = FOLDER / f"{name}.csv"
            table = complete(path, TABLES[name], *(whole_number("WORKERS", one, 1, MOST_WORKERS) for one in workers))
            return {"table": str(path), "rows": len(table)}
        case ["train", name, seed, *folder] if name in FINAL and len(folder) <= 1 and "" not in folder:
            with progress(FINAL[name].epochs, "epoch") as bar:

                def show(row):
                    bar.set_postfix_str(f"val_accuracy {row['val_accuracy']:.4f}", refresh=False)
                    bar.update(row["epoch"] - bar.n)

                return final(name, whole_number("SEED", seed), FOLDER, *folder or [CACHE], show)
        case ["rerun", name, row] if name in TABLES:
            return rerun(name, whole_number("N", row))
    known = "|".join(TABLES)
    usage = f"allowed: {known} [WORKERS]; train {'|'.join(FINAL)} SEED [FOLDER]; rerun {known} N"
    raise InputError(f"the arguments are {' '.join(argv) or 'missing'}; {usage}")


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""

    def work(argv):
        try:
            return _command(argv)
        except FloatingPointError as error:
            return {"stopped": str(error), "train_loss": None}

    return answer("towards95.py", __doc__, argv, work)


if __name__ == "__main__":
    sys.exit(main())
