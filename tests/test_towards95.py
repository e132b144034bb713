"""towards95.py: every measure does what it says, trainings go on where they were stopped, what is stored is right."""

import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import towards95
from helpers import InputError
from lib.dataset import load_dataset
from lib.tables import machine
from towards95 import ABLATION, FINAL, FOLDER, Recipe, augment, build, lesson, rate, soft_cross_entropy, train

SMALL = Recipe(widths=(12, 9), epochs=3, batch_size=64, learning_rate=0.01)
CONVOLUTIONAL = replace(FINAL["convolutional"], widths=(2, 3, 4, 5), epochs=3, batch_size=64)


def first_images(name):
    """The first images of the real data set; for worker processes too."""
    data, many = load_dataset(name), {"train": 600, "val": 200, "test": 150}
    return dataclasses.replace(data, **{f"{a}_{b}": getattr(data, f"{a}_{b}")[: many[b]] for a in "xy" for b in many})


# ------------------------------------------------------------------------------------------------------ the measures


def test_images_are_mirrored_by_half_and_shifted_within_bounds():
    rng = np.random.default_rng(0)
    x = np.zeros((4000, 28, 28), np.uint8)
    x[:, 10, 3] = 200  # one pixel tells where each image went
    x = x.reshape(-1, 784)
    kept = x.copy()
    _, i, j = np.nonzero(augment(x.copy(), Recipe(flip=True), rng).reshape(-1, 28, 28))
    assert set(i) == {10} and set(j) == {3, 24} and abs((j == 24).mean() - 0.5) < 0.03
    moved = augment(x, Recipe(shift=2), rng)
    assert moved.dtype == np.uint8 and (moved.max(axis=1) == 200).all() and (moved.astype(int).sum(axis=1) == 200).all()
    _, i, j = np.nonzero(moved.reshape(-1, 28, 28))
    for places, middle in ((i, 10), (j, 3)):
        values, counts = np.unique(places, return_counts=True)
        assert list(values - middle) == [-2, -1, 0, 1, 2] and np.abs(counts / 4000 - 0.2).max() < 0.03
    assert abs(np.corrcoef(i, j)[0, 1]) < 0.05
    np.testing.assert_array_equal(x, kept)
    edge = np.full((50, 784), 9, np.uint8)
    assert augment(edge, Recipe(shift=1), rng).min() == 0  # zeros come in from outside


def test_another_image_is_mixed_into_some_by_up_to_a_half():
    rng, x = np.random.default_rng(0), np.zeros((4000, 784), np.uint8)
    x[np.arange(4000), np.arange(4000) % 784] = 200  # each has a pixel of its own, but for a few alike
    mixed = augment(x, Recipe(mix=0.3), rng)
    assert mixed.dtype == np.uint8 and set(mixed.sum(axis=1, dtype=int)) <= {199, 200, 201}  # shares come to 1
    own = mixed[np.arange(4000), np.arange(4000) % 784] / 200
    assert abs((own < 1).mean() - 0.3) < 0.03 and own.min() >= 0.5 and abs(own[own < 1].mean() - 0.75) < 0.02
    assert ((mixed > 0).sum(axis=1) <= 2).all()


def test_noise_is_added_to_pixels_from_0_to_1_and_nothing_by_default():
    rng = np.random.default_rng(0)
    x = np.full((100, 784), 51, np.uint8)
    noisy = augment(x, Recipe(noise=0.1), rng)
    assert noisy.dtype == np.float32 and abs(noisy.mean() - 0.2) < 0.002 and abs(noisy.std() - 0.1) < 0.002
    np.testing.assert_array_equal(augment(x, Recipe(), rng), x)


@pytest.mark.parametrize("share, other", [(0, 0.5), (0.2, 0.25), (1, "teacher"), (0.7, "teacher")])
def test_a_soft_target_is_partly_the_label_partly_something_else(share, other):
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=(5, 4)), rng.integers(0, 4, 5)
    other = rng.dirichlet(np.ones(4), 5) if other == "teacher" else other
    loss, delta = soft_cross_entropy(z, y, share, other)
    target = (1 - share) * np.eye(4)[y] + share * other
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-(target * np.log(p)).sum() / 5)
    np.testing.assert_allclose(delta, (p - target) / 5, atol=1e-15)


@pytest.fixture
def teacher(small, tmp_path, monkeypatch):
    """A trained network under the name of "dense-7"; the folder where the copies that it has seen are kept."""
    monkeypatch.setattr(towards95, "FOLDER", tmp_path)
    monkeypatch.setattr(towards95, "CACHE", tmp_path / "cache")
    recipe = replace(SMALL, batch_norm=True, epochs=10, seed=7)
    towards95.save_network(tmp_path / "dense-7.npz", recipe, train(recipe, small)[0])
    return tmp_path / "cache"


def test_a_lesson_is_what_the_teacher_makes_of_the_images_that_the_student_sees(teacher, small):
    recipe, kept = replace(SMALL, teacher="dense-7", copies=2, flip=True, shift=1), small.x_train.copy()
    x, p = lesson(recipe, small, 0)
    assert x.shape == kept.shape and (x != kept).any() and p.shape == (len(x), 10)
    network = towards95.load_network(towards95.FOLDER / "dense-7.npz")
    np.testing.assert_array_equal(p, network.predict(x))
    np.testing.assert_array_equal(small.x_train, kept)
    (file,) = teacher.iterdir()
    np.save(file, p / 2)
    np.testing.assert_array_equal(lesson(recipe, small, 0)[1], p / 2)  # kept
    for others, k in [(recipe, 1), (replace(recipe, flip=False), 0)]:  # other images
        x, p = lesson(others, small, k)
        np.testing.assert_array_equal(p, network.predict(x))
    network.theta[network.n_parameters - 1] += 9  # another teacher of that name
    towards95.save_network(towards95.FOLDER / "dense-7.npz", replace(SMALL, batch_norm=True), network)
    x, p = lesson(recipe, small, 0)
    assert (p.argmax(axis=1) == 9).mean() > 0.9
    with pytest.raises(InputError, match="dense-8.npz"):
        lesson(replace(recipe, teacher="dense-8"), small, 0)


def test_a_taught_network_comes_to_the_teachers_opinion_not_to_the_labels(teacher, small):
    recipe = replace(SMALL, teacher="dense-7", copies=2, epochs=20)
    shuffled = dataclasses.replace(small, y_train=np.random.default_rng(0).permutation(small.y_train))
    student, _ = train(recipe, shuffled)
    opinion = towards95.load_network(towards95.FOLDER / "dense-7.npz").predict(small.x_val).argmax(axis=1)
    assert np.mean(student.predict(small.x_val).argmax(axis=1) == opinion) > 0.8
    assert len(list(teacher.iterdir())) == 1  # without flips and shifts both copies are the images


def test_no_recipe_has_a_teacher_and_smooths_labels_too():
    for recipe in [*ABLATION.values(), *FINAL.values()]:
        assert not recipe.teacher or recipe.copies and not recipe.label_smoothing


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    recipe = Recipe(learning_rate=0.3, warm_up=0.2)
    assert rate(recipe, 0.1) == pytest.approx(0.15) and rate(recipe, 0.2) == pytest.approx(0.3)
    assert rate(recipe, 0.6) == pytest.approx(0.15) and rate(recipe, 1.0) == pytest.approx(0, abs=1e-12)
    assert rate(replace(recipe, warm_up=None), 0.9) == 0.3


def test_three_steps_are_the_equations_written_out(small):
    """Adam on a linear network, whole batches: rate, decoupled and L2 decay, running mean, smoothing."""
    recipe = Recipe(
        widths=(), epochs=3, batch_size=len(small.y_train), learning_rate=0.05, warm_up=0.4, weight_decay=0.01,
        decoupled_decay=0.3, label_smoothing=0.1, average=0.6, seed=4,
    )  # fmt: skip
    last = {}
    checkpointed = towards95.save_checkpoint
    towards95.save_checkpoint = lambda path, about, theta, average, step, history: last.update(theta=theta.copy())
    try:
        network, history = train(recipe, small, checkpoint="unwritten.npz")
    finally:
        towards95.save_checkpoint = checkpointed
    theta = build(recipe).theta.astype(float)
    x, n = small.x_train / 255, 7840
    target = 0.9 * np.eye(10)[small.y_train] + 0.01
    m, v, mean = np.zeros_like(theta), np.zeros_like(theta), theta.copy()
    for t in (1, 2, 3):
        z = x @ theta[:n].reshape(784, 10) + theta[n:]
        delta = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) - target) / len(x)
        g = np.concatenate([(x.T @ delta).ravel() + 0.01 * theta[:n], delta.sum(axis=0)])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        progress = t / 3
        eta = 0.05 * (progress / 0.4 if progress < 0.4 else (1 + math.cos(math.pi * (progress - 0.4) / 0.6)) / 2)
        theta[:n] *= 1 - eta * 0.3
        theta -= eta * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        mean = 0.6 * mean + 0.4 * theta
    far = np.linalg.norm(theta - mean)
    assert np.linalg.norm(last["theta"] - theta) < 1e-3 * far  # Adam blows up the rounding of tiny gradients
    assert np.linalg.norm(network.theta - mean) < 1e-3 * far  # the running mean is what is evaluated, and returned


@pytest.mark.parametrize(
    "base, measure", [one for one in ABLATION if one[0] != "wide" and one[1] != "nothing"], ids="-".join
)
def test_every_measure_of_the_ablation_changes_the_training(base, measure, small):
    short = {"epochs": 1, "batch_size": 100}
    with_it = train(replace(ABLATION[base, measure], **short), small)[0].theta
    without = train(replace(ABLATION[base, "nothing"], **short), small)[0].theta
    assert with_it.shape != without.shape or (with_it != without).any()
    assert np.isfinite(with_it).all()


def test_leaving_a_measure_out_of_the_whole_leaves_all_others_in():
    for name, change in towards95.MEASURES.items():
        differs = {
            f for f, v in dataclasses.asdict(ABLATION["whole", name]).items() if v != getattr(towards95.WHOLE, f)
        }
        assert differs == set(change), name


# -------------------------------------------------------------------------------------------------------- trainings


@pytest.mark.parametrize("recipe", [
    replace(SMALL, batch_norm=True, dropout=0.2, flip=True, shift=1, noise=0.1, average=0.9, warm_up=0.2), CONVOLUTIONAL,
    replace(SMALL, teacher="dense-7", copies=2, flip=True),
])  # fmt: skip
def test_a_training_goes_on_from_its_checkpoint_to_the_same_bits(recipe, small, teacher, tmp_path):
    class Killed(Exception):
        pass

    def kill(row):
        if row["epoch"] == 2:
            raise Killed

    network, history = train(recipe, small)
    with pytest.raises(Killed):
        train(recipe, small, tmp_path / "c.npz", kill)
    seen = []
    again, rows = train(recipe, small, tmp_path / "c.npz", seen.append)
    np.testing.assert_array_equal(again.theta, network.theta)
    assert [row["epoch"] for row in seen] == [3] and len(rows) == 3
    complete, _ = train(recipe, small, tmp_path / "c.npz")
    np.testing.assert_array_equal(complete.predict(small.x_test), network.predict(small.x_test))
    for a, b in zip(history, rows, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    with pytest.raises(InputError, match="epochs is 3 there, 4 here"):  # its rate would have been another
        train(replace(recipe, epochs=4), small, tmp_path / "c.npz")


def test_it_learns_real_images():
    data = first_images("fashion_mnist")
    for recipe in (replace(SMALL, batch_norm=True, epochs=6), replace(CONVOLUTIONAL, widths=(4, 8, 8, 8), epochs=6)):
        network, history = train(recipe, data)
        assert history[-1]["train_loss"] < history[0]["train_loss"] and history[-1]["val_accuracy"] > 0.55


def test_a_loss_that_is_not_finite_ends_the_training(small):
    with pytest.raises(FloatingPointError, match="not finite in epoch"), np.errstate(all="ignore"):
        train(replace(SMALL, optimizer="sgd", learning_rate=1e30), small)


def test_the_ablation_trains_only_what_its_table_lacks(tmp_path):
    path, recipes = tmp_path / "a.csv", {("plain", "nothing"): SMALL, ("plain", "flip"): replace(SMALL, flip=True)}
    table = towards95.complete(path, {("plain", "flip"): recipes["plain", "flip"]}, 1, first_images)
    assert len(table) == 3 and (table.machine == machine()).all()
    table = towards95.complete(path, recipes, 2, first_images)
    assert len(table) == 6 and list(table.seed) == [0, 1, 2] * 2 and table.val_accuracy.nunique() > 3
    seconds = table.seconds.sum()
    assert towards95.complete(path, recipes, 1, first_images).seconds.sum() == seconds
    history = train(recipes["plain", "nothing"], first_images("fashion_mnist"))[1]
    row = table[(table.measure == "nothing") & (table.seed == 0)].iloc[0]
    assert json.loads(row.val_accuracy_history) == [one["val_accuracy"] for one in history]


def test_a_final_network_is_stored_and_tested_as_it_is_stored(tmp_path, monkeypatch):
    monkeypatch.setitem(FINAL, "dense", replace(SMALL, batch_norm=True))
    data = first_images("fashion_mnist")
    rows = [towards95.final("dense", seed, tmp_path, tmp_path, load=first_images) for seed in (1, 0)]
    table = pd.read_csv(tmp_path / "final.csv")
    assert list(table.seed) == [0, 1]
    for row in rows:
        network = towards95.load_network(tmp_path / f"dense-{row['seed']}.npz")
        right = network.predict(data.x_test).argmax(axis=1) == data.y_test
        assert row["test_accuracy"] == right.mean() > 0.4
        p = np.load(tmp_path / f"dense-{row['seed']}-test.npy")
        np.testing.assert_allclose(
            p[1], network.predict(data.x_test.reshape(-1, 28, 28)[:, :, ::-1].reshape(-1, 784)), atol=1e-3
        )
        assert row["test_accuracy_flips"] == (p.mean(axis=0, dtype=float).argmax(axis=1) == data.y_test).mean()
    p = np.mean([np.load(tmp_path / f"dense-{seed}-test.npy").astype(float) for seed in (0, 1)], axis=(0, 1))
    assert towards95.ensemble(["dense-0", "dense-1"], data.y_test, tmp_path) == (p.argmax(axis=1) == data.y_test).mean()


def test_networks_that_are_damaged_or_something_else_are_refused(tmp_path):
    path, network = tmp_path / "n.npz", build(CONVOLUTIONAL)
    towards95.save_network(path, CONVOLUTIONAL, network)
    good = dict(np.load(path))
    for change, words in [
        ({"theta": good["theta"][:-1]}, "theta is"), ({"theta": good["theta"] * np.nan}, "theta is"),
        ({"statistics": good["statistics"][1:]}, "statistics is"), ({"recipe": np.array("{")}, "is not a network"),
        ({"recipe": np.array('{"colour": 1}')}, "is not a network"), ({"recipe": np.array('{"network": "x"}')}, "not a network"),
    ]:  # fmt: skip
        np.savez(path, **{**good, **change})
        with pytest.raises(InputError, match=words):
            towards95.load_network(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        towards95.load_network(path)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["ablate"],
        ["train"],
        ["train", "dense"],
        ["train", "sparse", "0"],
        ["train", "dense", "-1"],
        ["rerun", "x"],
        ["rerun", "999"],
    ],
)
def test_bad_input_ends_in_a_sentence(argv, capsys):
    assert towards95.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and "allowed: " in err and len(err.splitlines()) == 1


def test_its_help_is_its_docstring():
    done = subprocess.run(
        [sys.executable, "towards95.py", "--help"], cwd=FOLDER.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0 and "ablation" in done.stdout and done.stderr == ""


# ------------------------------------------------------------------------------------------------- what is committed


def test_the_stored_ablation_is_whole_and_a_row_drawn_at_random_begins_again_as_stored():
    table = pd.read_csv(FOLDER / "ablation.csv")
    expected = {(*one, seed) for one in ABLATION for seed in towards95.SEEDS[one[0]]}
    assert set(table[["base", "measure", "seed"]].itertuples(index=False, name=None)) == expected
    row = table.iloc[np.random.default_rng().integers(len(table))]
    recipe, history = replace(ABLATION[row.base, row.measure], seed=int(row.seed)), json.loads(row.val_accuracy_history)
    assert len(history) == recipe.epochs == row.epochs and history[-1] == row.val_accuracy

    class Enough(Exception):
        pass

    def first(epoch):
        assert epoch["val_accuracy"] == pytest.approx(history[0], abs=0 if row.machine == machine() else 0.05)
        raise Enough

    with pytest.raises(Enough):
        train(recipe, load_dataset("fashion_mnist"), on_epoch=first)


def test_the_stored_networks_give_what_their_table_says():
    table, data = pd.read_csv(FOLDER / "final.csv"), load_dataset("fashion_mnist")
    assert set(table.name) == set(FINAL)
    assert all(t.seed.tolist() == [0, 1, 2] for _, t in table.groupby("name"))
    for row in table.itertuples():
        p = np.load(FOLDER / f"{row.name}-{row.seed}-test.npy")
        assert p.shape == (2, 10000, 10) and row.test_accuracy == (p[0].argmax(axis=1) == data.y_test).mean()
        stored = FOLDER / f"{row.name}-{row.seed}.npz"
        if row.seed == 0 and row.name != "dense":
            assert stored.stat().st_size < 10e6
            np.testing.assert_allclose(towards95.load_network(stored).predict(data.x_test[:300]), p[0, :300], atol=2e-3)


def test_the_numbers_of_the_readme_are_those_of_the_table():
    table, readme = towards95.read(FOLDER / "final.csv"), (FOLDER.parents[1] / "README.md").read_text()
    for name, t in table.groupby("name"):
        words = [f"{v.mean():.4f} ± {v.std():.4f}" for v in (t.test_accuracy, t.test_accuracy_flips)]
        row = f"| {name}, mean of {len(t)} seeds | {words[0]} | {words[1]} | {t.parameters.iloc[0]:,} |"
        assert row in readme, name
