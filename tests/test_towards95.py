"""towards95.py: every measure does what it says, trainings go on where they were stopped, what is stored is right."""

import dataclasses
import json
import math
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import towards95
from helpers import InputError
from lib import claims, recipes, tables
from lib.dataset import load_dataset
from lib.files import write_npz
from lib.recipes import Recipe, augment, build, distillation_set, rate, soft_cross_entropy, train
from towards95 import ABLATION, FINAL, FOLDER, NOW, TABLES

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


def test_a_rectangle_of_some_images_becomes_noise():
    rng, x = np.random.default_rng(0), np.zeros((4000, 784), np.uint8)
    erased = augment(x.copy(), Recipe(erase=0.4), rng).reshape(-1, 28, 28)
    inside = recipes.rectangles(4000, np.random.default_rng(1))
    rows, columns = inside.any(axis=2).sum(axis=1), inside.any(axis=1).sum(axis=1)
    assert (inside.sum(axis=(1, 2)) == rows * columns).all()  # one rectangle each
    assert 0.015 < (rows * columns / 784).min() < 0.03 and 0.23 < (rows * columns / 784).max() < 0.28
    assert (rows > columns).any() and (rows < columns).any() and (rows / columns).max() < 4
    assert inside[:, 0, 0].any() and inside[:, 27, 27].any() and not inside.all(axis=(1, 2)).any()
    some = erased.any(axis=(1, 2))
    assert abs(some.mean() - 0.4) < 0.03
    values = erased[erased > 0]
    assert abs(values.mean() - 128) < 2 and values.max() == 255  # every value alike
    assert abs((erased > 0).mean() - 0.4 * inside.mean()) < 0.01


def test_mirrored_images_alternate_from_epoch_to_epoch(monkeypatch, small):
    seen, original = [], recipes.augment

    def record(x, recipe, rng, mirrored):
        seen[-1].extend(mirrored)
        return original(x, recipe, rng, mirrored)

    monkeypatch.setattr(recipes, "augment", record)
    recipe = replace(SMALL, flip=True, alternate=True, epochs=3)
    orders = [np.random.default_rng([0, epoch]).permutation(300) for epoch in (1, 2, 3)]
    seen.append([])
    train(recipe, small, on_epoch=lambda row: seen.append([]))
    by_image = [np.array(part)[np.argsort(order)] for part, order in zip(seen, orders)]
    assert 100 < by_image[0].sum() < 200
    np.testing.assert_array_equal(by_image[1], ~by_image[0])
    np.testing.assert_array_equal(by_image[2], by_image[0])
    x = small.x_train[:4].copy()
    again = augment(x.copy(), Recipe(flip=True), None, np.array([True, False, False, True]))
    np.testing.assert_array_equal(again[[1, 2]], x[[1, 2]])
    np.testing.assert_array_equal(again[[0, 3]], recipes.mirrored(x[[0, 3]]))


def test_shuffled_pixels_are_the_same_in_another_order_for_all_images(small):
    data = recipes.shuffle(small)
    order = np.array([np.flatnonzero((small.x_train == column[:, None]).all(axis=0))[0] for column in data.x_train.T])
    assert sorted(order) == list(range(784)) and (order != np.arange(784)).mean() > 0.9
    for name in ("x_val", "x_test"):
        np.testing.assert_array_equal(getattr(data, name), getattr(small, name)[:, order])
    np.testing.assert_array_equal(recipes.shuffle(small).x_val, data.x_val)  # the same order every time
    assert data.y_val is small.y_val
    assert recipes.shuffle(dataclasses.replace(small, x_test=None, y_test=None)).x_test is None
    recipe = replace(SMALL, epochs=1)
    there, here = (train(replace(recipe, shuffled=shuffled), small)[1][0] for shuffled in (True, False))
    assert there["train_loss"] != here["train_loss"]


def test_a_bottleneck_is_a_linear_layer_between_hidden_ones():
    network = build(Recipe(widths=(20, 30, 40), bottleneck=5, batch_norm=True, dropout=0.1))
    kinds = [type(layer).__name__ for layer in network.layers]
    hidden = ["Dense", "BatchNorm", "ReLU", "Dropout"]
    assert kinds == [*hidden, "Dense", *hidden, "Dense", *hidden, "Dense"]
    shapes = [(784, 20), (20, 5), (5, 30), (30, 5), (5, 40), (40, 10)]
    assert network.shapes[:6] == shapes


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
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    monkeypatch.setattr(recipes, "CACHE", tmp_path / "cache")
    recipe = replace(SMALL, batch_norm=True, epochs=10, seed=7)
    recipes.save_network(tmp_path / "dense-7.npz", recipe, train(recipe, small)[0])
    return tmp_path / "cache"


def test_a_lesson_is_what_the_teacher_makes_of_the_images_that_the_student_sees(teacher, small):
    recipe, kept = replace(SMALL, teacher="dense-7", copies=2, flip=True, shift=1), small.x_train.copy()
    x, p = distillation_set(recipe, small, 0)
    assert x.shape == kept.shape and (x != kept).any() and p.shape == (len(x), 10)
    network = recipes.load_network(recipes.FOLDER / "dense-7.npz")
    np.testing.assert_array_equal(p, network.predict(x))
    np.testing.assert_array_equal(small.x_train, kept)
    (file,) = teacher.iterdir()
    write_npz(file, p=p / 2)
    np.testing.assert_array_equal(distillation_set(recipe, small, 0)[1], p / 2)  # kept
    write_npz(file, p=p[:1])
    np.testing.assert_array_equal(distillation_set(recipe, small, 0)[1], p)  # not theirs: asked again
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(distillation_set(recipe, small, 0)[1], p)  # damaged: asked again
    for others, k in [(recipe, 1), (replace(recipe, flip=False), 0)]:  # other images
        x, p = distillation_set(others, small, k)
        np.testing.assert_array_equal(p, network.predict(x))
    network.theta[network.n_parameters - 1] += 9  # another teacher of that name
    recipes.save_network(recipes.FOLDER / "dense-7.npz", replace(SMALL, batch_norm=True), network)
    x, p = distillation_set(recipe, small, 0)
    assert (p.argmax(axis=1) == 9).mean() > 0.9
    with pytest.raises(InputError, match="dense-8.npz"):
        distillation_set(replace(recipe, teacher="dense-8"), small, 0)


def test_answers_that_cannot_be_kept_are_used_and_it_is_said(teacher, small, monkeypatch):
    monkeypatch.setattr(recipes, "CACHE", recipes.FOLDER / "dense-7.npz")  # no folder
    with pytest.warns(UserWarning, match="cannot be written .*: the teacher will be asked again"):
        _, p = distillation_set(replace(SMALL, teacher="dense-7", copies=1), small, 0)
    np.testing.assert_array_equal(p, recipes.load_network(recipes.FOLDER / "dense-7.npz").predict(small.x_train))


def test_several_teachers_answer_with_their_mean_softened_if_asked(teacher, small):
    x = small.x_train
    recipe = replace(SMALL, batch_norm=True, epochs=1, seed=8)
    recipes.save_network(recipes.FOLDER / "dense-8.npz", recipe, train(recipe, small)[0])
    one, other = (recipes.load_network(recipes.FOLDER / f"dense-{seed}.npz").predict(x) for seed in (7, 8))
    asked = replace(SMALL, teacher="dense-7+dense-8", copies=1)
    p = distillation_set(asked, small, 0)[1]
    np.testing.assert_allclose(p, (one + other) / 2, atol=1e-6)
    softer = distillation_set(replace(asked, temperature=2.0), small, 0)[1]
    np.testing.assert_allclose(softer, np.sqrt(p) / np.sqrt(p).sum(axis=1, keepdims=True), atol=1e-6)
    assert len(list(teacher.iterdir())) == 2  # each answer is kept once


def test_a_taught_network_comes_to_the_teachers_opinion_not_to_the_labels(teacher, small):
    recipe = replace(SMALL, teacher="dense-7", copies=2, epochs=20)
    shuffled = dataclasses.replace(small, y_train=np.random.default_rng(0).permutation(small.y_train))
    student, _ = train(recipe, shuffled)
    answer = recipes.load_network(recipes.FOLDER / "dense-7.npz").predict(small.x_val).argmax(axis=1)
    assert np.mean(student.predict(small.x_val).argmax(axis=1) == answer) > 0.8
    assert len(list(teacher.iterdir())) == 1  # without flips and shifts both copies are the images


EVERY = [*(recipe for table in TABLES.values() for recipe in table.values()), *FINAL.values()]


def test_the_epochs_go_through_all_copies_in_turn(teacher, small, monkeypatch):
    asked, original = [], recipes.distillation_set
    monkeypatch.setattr(
        recipes, "distillation_set", lambda recipe, data, k: asked.append(k) or original(recipe, data, k)
    )
    train(replace(SMALL, teacher="dense-7", copies=3, flip=True, epochs=7), small)
    assert asked == [1, 2, 0, 1, 2, 0, 1]


def test_batch_norm_is_calibrated_with_the_first_training_images_never_with_others(small, monkeypatch):
    seen, original = [], recipes.Stack.calibrate
    monkeypatch.setattr(recipes.Stack, "calibrate", lambda self, x: seen.append(x) or original(self, x))
    many = dataclasses.replace(small, x_train=np.tile(small.x_train, (20, 1)), y_train=np.tile(small.y_train, 20))
    train(replace(SMALL, batch_norm=True, epochs=2), many)
    assert len(seen) == 3 and all(np.array_equal(x, many.x_train[:5000]) for x in seen)


def test_no_recipe_has_a_teacher_and_smooths_labels_too():
    for recipe in EVERY:
        assert not recipe.teacher or recipe.copies and not recipe.label_smoothing


def test_digits_are_never_mirrored_and_all_else_is_as_it_is_for_clothes():
    for name, recipe in FINAL.items():
        if name.startswith("mnist-"):
            clothes = FINAL[name.removeprefix("mnist-")]
            teacher = clothes.teacher and "+".join(f"mnist-{one}" for one in clothes.teacher.split("+"))
            changes = {"dataset": "mnist", "flip": False, "alternate": False, "teacher": teacher}
            assert recipe == replace(clothes, **changes)
    assert all(recipe.dataset == "fashion_mnist" or not recipe.flip for recipe in EVERY)
    assert {"mnist-dense", "mnist-convolutional", "mnist-taught"} <= set(FINAL)


def test_the_four_trainings_on_pixels_differ_in_network_and_order_only():
    kept = {replace(recipe, network="dense", widths=(), shuffled=False) for recipe in TABLES["pixels"].values()}
    assert len(kept) == 1 and len(TABLES["pixels"]) == 4
    (recipe,) = kept
    assert not (recipe.flip or recipe.shift or recipe.erase)  # none of them would mean the same on shuffled pixels


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    recipe = Recipe(learning_rate=0.3, warm_up=0.2)
    assert rate(recipe, 0.1) == pytest.approx(0.15) and rate(recipe, 0.2) == pytest.approx(0.3)
    assert rate(recipe, 0.6) == pytest.approx(0.15) and rate(recipe, 1.0) == pytest.approx(0, abs=1e-12)
    assert rate(replace(recipe, warm_up=None), 0.9) == 0.3


def test_three_steps_are_the_equations_written_out(small, tmp_path):
    """Adam on a linear network, whole batches: rate, decoupled and L2 decay, running mean, smoothing."""
    recipe = Recipe(
        widths=(), epochs=3, batch_size=len(small.y_train), learning_rate=0.05, warm_up=0.4, weight_decay=0.01,
        decoupled_decay=0.3, label_smoothing=0.1, average=0.6, seed=4,
    )  # fmt: skip
    network, history = train(recipe, small, tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as saved:
        last = dict(saved)
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
    network, history = train(recipe, small)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, small, tmp_path / "c.npz", interrupt)
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


def test_a_checkpoint_is_of_these_images_and_these_teachers(small, teacher, tmp_path):
    recipe, path = replace(SMALL, teacher="dense-7", copies=1), tmp_path / "c.npz"
    train(recipe, small, path)
    for name in ("x_train", "y_train", "x_val", "y_val"):
        other = getattr(small, name).copy()
        other.flat[0] = 1 - other.flat[0] % 2
        with pytest.raises(InputError, match="data is"):
            train(recipe, dataclasses.replace(small, **{name: other}), path)
    network = recipes.load_network(recipes.FOLDER / "dense-7.npz")
    network.theta[0] += 1
    recipes.save_network(recipes.FOLDER / "dense-7.npz", replace(SMALL, batch_norm=True), network)
    with pytest.raises(InputError, match="teachers is"):
        train(recipe, small, path)
    with pytest.raises(InputError, match="dense-9.npz"):
        train(replace(recipe, teacher="dense-9"), small, tmp_path / "d.npz")


def test_a_training_begins_with_the_stored_network_of_its_seed_and_sees_other_batches(teacher, small, tmp_path):
    recipe, path = replace(SMALL, batch_norm=True, after="dense", seed=7), tmp_path / "c.npz"
    stored = recipes.load_network(recipes.FOLDER / "dense-7.npz")
    slow, _ = train(replace(recipe, learning_rate=1e-9), small)
    np.testing.assert_allclose(slow.theta[: slow.n_parameters], stored.theta[: stored.n_parameters], atol=1e-6)
    _, history = train(recipe, small, path)
    assert history[0]["train_loss"] < 0.8 * train(replace(recipe, after=""), small)[1][0]["train_loss"]
    first = [next(iter(recipes._batches(one, small, 1)))[0] for one in (recipe, replace(recipe, after=""))]
    assert not np.array_equal(*first)
    with pytest.raises(InputError, match="dense-8.npz"):
        train(replace(recipe, seed=8), small)
    with pytest.raises(InputError, match=r"the layers of .*dense-7.npz are .*9.*; allowed: .*8"):
        train(replace(recipe, widths=(12, 8)), small)
    recipes.save_network(recipes.FOLDER / "dense-7.npz", recipe, train(recipe, small)[0])
    with pytest.raises(InputError, match="began with other weights"):  # another network of that name
        train(recipe, small, path)


def test_a_checkpoint_from_before_a_measure_was_known_still_goes_on(small, tmp_path):
    path = tmp_path / "c.npz"
    whole, _ = train(SMALL, small)
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, small, path, interrupt)
    saved = dict(np.load(path))
    about = json.loads(str(saved["about"]))
    for name in ("bottleneck", "erase"):
        del about["training"][name]
    np.savez(path, **{**saved, "about": json.dumps(about)})
    np.testing.assert_array_equal(train(SMALL, small, path)[0].theta, whole.theta)
    with pytest.raises(InputError, match="erase is 0.0 there, 0.5 here"):
        train(replace(SMALL, erase=0.5), small, path)


def interrupt(row):
    """End a training after its second epoch."""
    if row["epoch"] == 2:
        raise KeyboardInterrupt


def test_it_learns_real_images():
    data = first_images("fashion_mnist")
    for recipe in (replace(SMALL, batch_norm=True, epochs=6), replace(CONVOLUTIONAL, widths=(4, 8, 8, 8), epochs=8)):
        network, history = train(recipe, data)
        assert history[-1]["train_loss"] < history[0]["train_loss"] and history[-1]["val_accuracy"] > 0.4


def test_a_loss_that_is_not_finite_ends_the_training(small):
    with pytest.raises(FloatingPointError, match="not finite in epoch"), np.errstate(all="ignore"):
        train(replace(SMALL, optimizer="sgd", learning_rate=1e30), small)


def test_a_table_is_completed_where_it_lacks_a_row_or_has_one_from_before(tmp_path):
    path = tmp_path / "a.csv"
    all_of_it = {("plain", "nothing"): SMALL, ("plain", "flip"): replace(SMALL, flip=True)}
    table = towards95.complete(path, {("plain", "flip"): all_of_it["plain", "flip"]}, 1, first_images, tmp_path)
    assert len(table) == 3 and (table.machine == tables.machine()).all() and (table.made == NOW).all()
    table = towards95.complete(path, all_of_it, 2, first_images, tmp_path)
    assert len(table) == 6 and list(table.seed) == [0, 1, 2] * 2 and table.val_accuracy.nunique() > 3
    history = train(SMALL, first_images("fashion_mnist"))[1]
    row = table[(table.measure == "nothing") & (table.seed == 0)].iloc[0]
    assert row.val_accuracy_history == [one["val_accuracy"] for one in history]
    marked = table.assign(seconds=1e6)
    marked.loc[4, ["made", "train_accuracy"]] = ["before the flood", 0.1]
    tables.write_table(path, marked)
    again = towards95.complete(path, all_of_it, 1, first_images, tmp_path)
    assert list(again.seconds < 1e6) == [False] * 4 + [True, False] and (again.made == NOW).all()
    columns = ["base", "measure", "seed", "parameters", "train_accuracy", "val_accuracy", "val_accuracy_history"]
    pd.testing.assert_frame_equal(again[columns], table[columns])


def test_rows_that_are_added_at_the_same_time_are_all_there(tmp_path):
    path = tmp_path / "a.csv"
    read = lambda path: pd.read_csv(path) if path.exists() else pd.DataFrame()  # noqa: E731
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: tables.add_row(path, read, {"seed": seed, "x": 1}, ["seed"]), range(24)))
    tables.add_row(path, read, {"seed": 3, "x": 2}, ["seed"])
    assert read(path).seed.tolist() == list(range(24)) and read(path).x.sum() == 25
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "tables.sha256"]


def test_a_training_that_fails_ends_the_others(tmp_path, monkeypatch):
    """The others would take minutes: an interrupt, which takes the same way, must not wait for them either."""
    monkeypatch.setitem(towards95.SEEDS, "plain", 1)
    endless = replace(SMALL, epochs=1000, widths=(256, 256), batch_size=8)
    bad = replace(SMALL, optimizer="sgd", learning_rate=1e30)
    began = time.monotonic()
    with pytest.raises(FloatingPointError, match="not finite"):
        towards95.complete(
            tmp_path / "a.csv", {("plain", "bad"): bad, ("plain", "long"): endless}, 2, first_images, tmp_path
        )
    assert time.monotonic() - began < 60 and not (tmp_path / "a.csv").exists()


def test_a_row_of_a_training_that_is_no_more_is_refused(tmp_path):
    towards95.complete(tmp_path / "pixels.csv", {("long", "gone"): replace(SMALL, epochs=1)}, 2, first_images, tmp_path)
    with pytest.raises(InputError, match="^row 0 of .*pixels.csv is long, gone; allowed: a training of TABLES"):
        towards95.rerun("pixels", 0, tmp_path, first_images)


def test_a_training_of_a_table_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """What is left of a stopped training, the checkpoint after its first epoch, is made here by a pool that runs it."""
    path, cache, recipe = tmp_path / "a.csv", tmp_path / "cache", replace(SMALL, epochs=4)
    monkeypatch.setitem(towards95.SEEDS, "plain", 1)
    trained, whole = [], train(recipe, first_images("fashion_mnist"))[1]

    def stop(row):
        trained.append(row["epoch"])
        if trained == [1]:
            raise KeyboardInterrupt

    class Pool:
        """A pool of one process, this one."""

        def __init__(self, *arguments):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def shutdown(self, **how):
            pass

        def submit(self, function, *arguments):
            future = Future()
            future.set_result(function(*arguments))
            return future

    monkeypatch.setattr(towards95.parallel, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(towards95, "train", lambda recipe, data, checkpoint: train(recipe, data, checkpoint, stop))
    with pytest.raises(KeyboardInterrupt):
        towards95.complete(path, {("plain", "nothing"): recipe}, 1, first_images, cache)
    assert len(list(cache.glob("*.npz"))) == 1 and not path.exists()
    table = towards95.complete(path, {("plain", "nothing"): recipe}, 1, first_images, cache)
    assert trained == [1, 2, 3, 4] and not list(cache.glob("*.npz"))
    assert table.val_accuracy_history[0] == [row["val_accuracy"] for row in whole]


def test_a_row_trained_again_agrees_and_a_changed_one_does_not(tmp_path, monkeypatch):
    monkeypatch.setitem(towards95.TABLES, "ablation", {("plain", "flip"): replace(SMALL, flip=True)})
    path = tmp_path / "ablation.csv"
    table = towards95.complete(path, towards95.TABLES["ablation"], 1, first_images, tmp_path)
    result = towards95.rerun("ablation", 1, tmp_path, first_images)
    assert result["agrees"] and result["same_machine"] and result["then"] == result["now"]
    assert (result["table"], result["row"]) == (str(path), 1)
    names = ("train_accuracy", "val_accuracy", "best_val_accuracy")
    assert result["now"] == {name: table[name][1] for name in names}

    def rerun(made, change, name):
        changed = table.copy()
        changed.at[1, "made"] = made
        changed.at[1, name] += change
        if name == "val_accuracy":
            history = [*table.val_accuracy_history[1][:-1], changed.val_accuracy[1]]
            changed.at[1, "val_accuracy_history"] = history
            changed.at[1, "best_val_accuracy"] = max(history)
        tables.write_table(path, changed)
        result = towards95.rerun("ablation", 1, tmp_path, first_images)
        assert result["then"][name] == changed[name][1] and result["same_machine"] == (made == NOW)
        return result["agrees"]

    for name in ("train_accuracy", "val_accuracy"):
        assert not rerun(NOW, 0.004, name) and rerun("earlier", 0.004, name) and not rerun("earlier", -0.4, name)


def test_a_table_from_before_it_was_marked_counts_as_made_earlier(tmp_path):
    table = recipes.load_table(FOLDER / "ablation.csv")[:3]
    tables.write_table(tmp_path / "old.csv", table.drop(columns="made"))
    assert list(recipes.load_table(tmp_path / "old.csv").made) == ["earlier"] * 3


@pytest.mark.parametrize("name, column, value, said", [
    ("ablation.csv", "val_accuracy", 0.25, "val_accuracy is 0.25; allowed: .* as its history says"),
    ("ablation.csv", "best_val_accuracy", 0.99, "best_val_accuracy is 0.99"),
    ("ablation.csv", "train_accuracy", 1.5, "train_accuracy is '1.5'; allowed: a number from 0 to 1"),
    ("ablation.csv", "epochs", 9, "val_accuracy_history has 15 items; allowed: one for each of 9 epochs"),
    ("ablation.csv", "seed", 0, "rows 0 and 1 have the same base, measure, seed"),
    ("final.csv", "val_accuracy", 0.25, "val_accuracy is 0.25"),
    ("final.csv", "test_accuracy_flips", -0.1, "test_accuracy_flips is '-0.1'"),
    ("final.csv", "name", "", "name is ''"),
])  # fmt: skip
def test_a_damaged_or_foreign_table_is_named(tmp_path, name, column, value, said):
    table = recipes.load_table(FOLDER / name).astype({column: object})[:3]
    table.at[1, column] = value
    tables.write_table(tmp_path / name, table)
    with pytest.raises(InputError, match=said) as error:
        recipes.load_table(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    other = "final.csv" if name == "ablation.csv" else "ablation.csv"
    (tmp_path / other).write_bytes((FOLDER / name).read_bytes())
    with pytest.raises(InputError, match=f"{other} has the column"):
        recipes.load_table(tmp_path / other)


def test_a_final_network_is_stored_and_tested_as_it_is_stored(tmp_path, monkeypatch):
    monkeypatch.setitem(FINAL, "dense", replace(SMALL, batch_norm=True))
    data = first_images("fashion_mnist")
    rows = [towards95.final("dense", seed, tmp_path, tmp_path, load=first_images) for seed in (1, 0)]
    table = recipes.load_table(tmp_path / "final.csv")
    assert list(table.seed) == [0, 1]
    for row in rows:
        network = recipes.load_network(tmp_path / f"dense-{row['seed']}.npz")
        right = network.predict(data.x_test).argmax(axis=1) == data.y_test
        assert row["test_accuracy"] == right.mean() > 0.4
        p = np.load(tmp_path / f"dense-{row['seed']}-test.npz")["p"]
        mirror_images = data.x_test.reshape(-1, 28, 28)[:, :, ::-1].reshape(-1, 784)
        for given, x in zip(p, (data.x_test, mirror_images), strict=True):  # of the network as it is stored, exactly
            np.testing.assert_array_equal(given, network.predict(x).astype(np.float16))
        assert row["test_accuracy_flips"] == (p.mean(axis=0, dtype=float).argmax(axis=1) == data.y_test).mean()
    p = np.mean([np.load(tmp_path / f"dense-{seed}-test.npz")["p"].astype(float) for seed in (0, 1)], axis=(0, 1))
    assert recipes.ensemble(["dense-0", "dense-1"], data.y_test, tmp_path) == (p.argmax(axis=1) == data.y_test).mean()


def test_a_network_for_digits_is_tested_without_mirrors(tmp_path, monkeypatch):
    monkeypatch.setitem(FINAL, "mnist-convolutional", replace(towards95.for_digits(CONVOLUTIONAL), epochs=2))
    row = towards95.final("mnist-convolutional", 0, tmp_path, tmp_path, load=first_images)
    assert np.load(tmp_path / "mnist-convolutional-0-test.npz")["p"].shape == (1, 150, 10)
    table = recipes.load_table(tmp_path / "final.csv")
    assert row["test_accuracy_flips"] is None and table.test_accuracy_flips.isna().all()
    y = first_images("mnist").y_test
    assert recipes.ensemble(["mnist-convolutional-0"], y, tmp_path) == row["test_accuracy"] == table.test_accuracy[0]


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e5])  # float16 ends at 65504
@pytest.mark.parametrize("place", [0, -1])  # of the weights, of the statistics
def test_a_network_that_could_not_be_loaded_is_not_saved(number, place, tmp_path):
    network = build(CONVOLUTIONAL)
    network.theta[place] = number
    path = tmp_path / "folder" / "n.npz"
    if (number, place) == (1e5, -1):  # statistics are float32
        recipes.save_network(path, CONVOLUTIONAL, network)
        assert recipes.load_network(path).theta[-1] == 1e5
        return
    with pytest.raises(InputError, match="n.npz: theta is not finite; allowed: finite numbers, weights in float16"):
        recipes.save_network(path, CONVOLUTIONAL, network)
    assert not list(tmp_path.iterdir())


def test_a_loss_of_validation_that_is_not_finite_ends_a_training_in_a_sentence(small, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "evaluate", lambda *arguments: (np.nan, 0.1))
    with pytest.raises(FloatingPointError, match="the loss of validation is not finite in epoch 1"):
        train(SMALL, small, tmp_path / "c.npz")
    assert not list(tmp_path.iterdir())


def test_networks_that_are_damaged_or_something_else_are_refused(tmp_path):
    path, network = tmp_path / "n.npz", build(CONVOLUTIONAL)
    recipes.save_network(path, CONVOLUTIONAL, network)
    good = dict(np.load(path))
    for change, words in [
        ({"theta": good["theta"][:-1]}, "theta is"), ({"theta": good["theta"] * np.nan}, "theta is"),
        ({"statistics": good["statistics"][1:]}, "statistics is"), ({"recipe": np.array("{")}, "is not a network"),
        ({"recipe": np.array('{"colour": 1}')}, "is not a network"), ({"recipe": np.array('{"network": "x"}')}, "not a network"),
    ]:  # fmt: skip
        np.savez(path, **{**good, **change})
        with pytest.raises(InputError, match=words):
            recipes.load_network(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        recipes.load_network(path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"network": "cnn"}, "network is 'cnn'; allowed: dense, convolutional"),
        ({"dataset": "cifar"}, "dataset is 'cifar'"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"weight_init": "zeros"}, "weight_init is 'zeros'"),
        ({"dropout": 1.0}, r"dropout is 1.0; allowed: a number in \[0, 1\)"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ({"shift": 28}, "shift is 28"),
        ({"shift": 0.5}, "shift is 0.5; allowed: a whole number"),
        ({"erase": -0.1}, "erase is -0.1"),
        ({"mix": 2}, "mix is 2"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"average": 1.0}, "average is 1.0"),
        ({"warm_up": 1.0}, "warm_up is 1.0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"learning_rate": -1}, "learning_rate is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": None}, "epochs is None"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"widths": (8, 0)}, "a width is 0"),
        (
            {"network": "convolutional", "widths": (8,) * 3},
            "widths is .*; allowed for a convolutional network: 4 of them",
        ),
        ({"teacher": "convolutional-0"}, "teacher is 'convolutional-0', copies is 0; allowed: both, or neither"),
        ({"copies": 3}, "copies is 3; allowed: both, or neither"),
        ({"teacher": None}, "teacher is None; allowed: a name"),
        ({"after": 0}, "after is 0; allowed: a name"),
        ({"flip": "no"}, "flip is 'no'; allowed: True, False"),
        ({"batch_norm": 1}, "batch_norm is 1; allowed: True, False"),
        ({"widths": 256}, "widths is 256; allowed: a sequence of widths"),
        ({"widths": "256"}, "widths is '256'; allowed: a sequence of widths"),
        ({"alternate": True}, "alternate is True; allowed: only with flip, and no teacher"),
        ({"temperature": 2.0}, "temperature is 2.0; allowed: only with a teacher"),
        (
            {"teacher": "a-0", "copies": 1, "label_smoothing": 0.1},
            "label_smoothing is 0.1; allowed: only with no teacher",
        ),
        (
            {"teacher": "a-0", "copies": 1, "flip": True, "alternate": True},
            "alternate is True; allowed: only with flip, ",
        ),
        ({"network": "convolutional", "dropout": 0.1}, "dropout is 0.1; allowed: only with a dense network of hidden"),
        ({"network": "convolutional", "bottleneck": 8}, "bottleneck is 8; allowed: only with a dense network of two"),
        ({"widths": (8,), "bottleneck": 4}, "bottleneck is 4; allowed: only with a dense network of two"),
        ({"widths": (), "dropout": 0.1}, "dropout is 0.1; allowed: only with a dense network of hidden layers"),
    ],
)
def test_a_recipe_with_a_value_that_cannot_be_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        Recipe(**changes)


def test_a_recipe_of_numpys_numbers_is_that_of_pythons():
    numbers = Recipe(widths=[np.int64(12), 9], epochs=np.int32(3), learning_rate=np.float64(0.01), mix=0)
    assert numbers == Recipe(widths=(12, 9), epochs=3, learning_rate=0.01)
    assert json.dumps(dataclasses.asdict(numbers)) == json.dumps(dataclasses.asdict(replace(numbers, mix=0.0)))


@pytest.mark.parametrize("change, words", [
    ({"x_train": lambda x: x / 255}, r"x_train is float64 \(300, 784\); allowed: uint8 \(n, 784\)"),
    ({"x_val": lambda x: x.reshape(-1, 28, 28)}, "x_val is uint8 .*, 28, 28"),
    ({"y_train": lambda y: y + 1}, "y_train has labels from 1 to 10; allowed: 0 to 9"),
    ({"y_val": lambda y: y[1:]}, "y_val is "),
])  # fmt: skip
def test_a_training_on_other_images_or_labels_is_refused(change, words, small):
    other = {name: f(getattr(small, name)) for name, f in change.items()}
    with pytest.raises(InputError, match=words):
        train(SMALL, dataclasses.replace(small, **other))


def test_stored_probabilities_of_other_images_are_refused(tmp_path):
    for p in (np.zeros((2, 10000, 9), np.float16), np.full((2, 10000, 10), np.nan, np.float16)):
        write_npz(tmp_path / "dense-0-test.npz", p=p)
        with pytest.raises(InputError, match="dense-0-test.npz: p is float16 .*; allowed: finite"):
            recipes.probabilities("dense-0", tmp_path)
    for value in (-0.1, 1.5, 1j, 1, True, "x"):
        p = np.full((2, 9, 10), value)
        write_npz(tmp_path / "dense-0-test.npz", p=p)
        with pytest.raises(InputError, match=f"dense-0-test.npz: p is {p.dtype} .*; allowed: finite probabilities"):
            recipes.probabilities("dense-0", tmp_path)


def test_probabilities_of_another_number_of_images_are_not_broadcast(tmp_path):
    for name, shape in (("a-0", (2, 1, 10)), ("b-0", (1, 1, 10))):
        write_npz(tmp_path / f"{name}-test.npz", p=np.full(shape, 0.1, np.float16))
    with pytest.raises(InputError, match="^p has 1 rows; allowed: one for each of 7 labels$"):
        recipes.ensemble(["a-0"], np.zeros(7, np.uint8), tmp_path)
    with pytest.raises(
        InputError, match=r"^p of a-0, b-0 is \[\(2, 1, 10\), \(1, 1, 10\)\]; allowed: one shape for all$"
    ):
        recipes.ensemble(["a-0", "b-0"], np.zeros(1, np.uint8), tmp_path)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["ablate"],
        ["ablation", "x"],
        ["ablation", "1", "2"],
        ["train", "dense", "0", "a", "b"],
        ["train"],
        ["train", "dense"],
        ["train", "sparse", "0"],
        ["train", "dense", "-1"],
        ["train", "dense", "²"],
        ["pixels", "٣"],
        ["pixels", "0"],
        ["pixels", "9999"],
        ["train", "dense", "0", "/nowhere/at/all"],
        ["rerun", "9"],
        ["rerun", "ablation", "x"],
        ["rerun", "forest", "0"],
        ["rerun", "ablation", "999"],
    ],
)
def test_bad_input_ends_in_a_sentence(argv, capsys):
    assert towards95.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and ("allowed: " in err or "/nowhere/at/all" in err)


def test_a_training_that_is_not_finite_ends_with_status_1(monkeypatch, capsys):
    def diverge(*arguments):
        raise FloatingPointError("the loss is not finite in epoch 3")

    monkeypatch.setattr(towards95, "rerun", diverge)
    assert towards95.main(["rerun", "pixels", "0"]) == 1
    assert "not finite in epoch 3" in capsys.readouterr().out


def test_its_help_is_its_docstring():
    done = subprocess.run(
        [sys.executable, "towards95.py", "--help"], cwd=FOLDER.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0 and "ablation" in done.stdout and done.stderr == ""


# ------------------------------------------------------------------------------------------------- what is committed


@pytest.mark.parametrize("name", TABLES)
def test_a_stored_table_is_of_trainings_that_are_there_and_a_row_of_this_code_begins_again_as_stored(name):
    path, recipes_of = FOLDER / f"{name}.csv", TABLES[name]
    if not path.exists():
        pytest.skip(f"{name} has not been trained yet")
    table = recipes.load_table(path)
    expected = {(*one, seed) for one in recipes_of for seed in range(towards95.SEEDS[one[0]])}
    assert set(table[towards95.KEY].itertuples(index=False, name=None)) <= expected
    for row in table.itertuples():
        history = row.val_accuracy_history
        assert len(history) == row.epochs and history[-1] == row.val_accuracy and max(history) == row.best_val_accuracy
    table = table[table.made == NOW]
    if table.empty:
        return
    row = table.iloc[np.random.default_rng().integers(len(table))]
    recipe = replace(recipes_of[row.base, row.measure], seed=int(row.seed))
    history = row.val_accuracy_history
    assert len(history) == recipe.epochs

    class Enough(Exception):
        pass

    def first(epoch):
        assert epoch["val_accuracy"] == pytest.approx(history[0], abs=0 if row.machine == tables.machine() else 0.05)
        raise Enough

    with pytest.raises(Enough):
        train(recipe, load_dataset(recipe.dataset), on_epoch=first)


def test_the_stored_networks_give_what_their_table_says():
    table = recipes.load_table(FOLDER / "final.csv")
    assert set(table.name) <= set(FINAL) and not table.duplicated(["name", "seed"]).any()
    for row in table.itertuples():
        data, recipe = load_dataset(FINAL[row.name].dataset), FINAL[row.name]
        p = recipes.probabilities(f"{row.name}-{row.seed}")
        assert (
            p.shape == (1 + recipe.flip, 10000, 10) and row.test_accuracy == (p[0].argmax(axis=1) == data.y_test).mean()
        )
        if len(p) == 2:
            assert row.test_accuracy_flips == (p.mean(axis=0).argmax(axis=1) == data.y_test).mean()
        assert row.made != NOW or row.epochs == recipe.epochs
        stored = FOLDER / f"{row.name}-{row.seed}.npz"
        if stored.exists():
            np.testing.assert_allclose(recipes.load_network(stored).predict(data.x_test[:300]), p[0, :300], atol=2e-3)
    listed = subprocess.run(["git", "ls-files", "*-[0-9].npz"], cwd=FOLDER, capture_output=True, text=True, check=True)
    stored = [FOLDER / name for name in listed.stdout.split()]
    assert stored and sum(path.stat().st_size for path in stored) < 10e6


def test_a_network_trained_anew_is_quoted_without_its_rows_from_before():
    made = ["before x", NOW, "before x", NOW, "before x"]
    table = pd.DataFrame({"name": ["a", "a", "b", "c", "a"], "seed": [0, 1, 0, 0, 2], "made": made})
    quoted = recipes.newest(table)
    assert list(zip(quoted.name, quoted.seed)) == [("a", 1), ("b", 0), ("c", 0)]


def test_the_numbers_of_the_readme_are_those_of_the_table_and_say_what_is_from_before():
    table = recipes.newest(recipes.load_table(FOLDER / "final.csv"))
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    for (name, made), t in table[~table.name.str.startswith("mnist")].groupby(["name", "made"]):
        words = [claims.spread(values) for values in (t.test_accuracy, t.test_accuracy_flips)]
        label = name + (f", mean of {len(t)} seeds" if len(t) > 1 else "") + (f", {made}" if made != NOW else "")
        assert f"| {label} | {words[0]} | {words[1]} | {t.parameters.iloc[0]:,} |" in readme, name
