"""The report's analysis, on tables made for the purpose, and what the text says in words, on the stored ones."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import helpers
from lib import anova, appendix, claims, results, studies
from lib.tables import config_of, machine


@pytest.fixture(scope="session")
def stored():
    return results.read_tables()


def grid_of(accuracy, **values):
    """A table with every combination of `values` (others fixed), and its accuracy from a function of a row."""
    space = {name: values.get(name, choices[:1]) for name, choices in anova.VALUES.items()}
    table = pd.MultiIndex.from_product(space.values(), names=space).to_frame(index=False)
    return table.assign(accuracy=[accuracy(row) for row in table.itertuples()])


# ----------------------------------------------------------------------------------------------------------- statistics


def test_paired_is_students_test_on_the_differences():
    first, second = np.array([0.9, 0.8, 0.85, 0.95]), np.array([0.88, 0.81, 0.8, 0.9])
    found, test = claims.paired(first, second), stats.ttest_rel(first, second)
    assert found.mean == pytest.approx(0.0275) and found.n == 4
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))


def test_welch_has_the_sign_and_the_p_of_welchs_test():
    first, second = [0.8, 0.82, 0.81], [0.7, 0.75, 0.71, 0.72]
    found = claims.welch(first, second)
    assert found.mean == pytest.approx(0.09) and found.n == 7 and found.low < found.mean < found.high
    assert found.p == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    assert claims.welch(second, first).mean == pytest.approx(-0.09)


def test_holm_multiplies_by_the_tests_left_and_never_falls():
    p = pd.Series({"c": 0.04, "a": 0.01, "b": 0.011, "d": 0.9})
    assert claims.holm(p).to_dict() == pytest.approx({"c": 0.08, "a": 0.04, "b": 0.04, "d": 0.9})


def test_share_is_wilsons_interval():
    found, low, high, n = claims.share([True] * 8 + [False] * 2)
    assert (found, n) == (0.8, 10) and (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_chance_band_is_that_of_the_review_of_correlations():
    assert claims.chance_band(100) == pytest.approx(0.197, abs=1e-3)
    assert claims.chance_band(50) == pytest.approx(0.28, abs=1e-3)


def test_spread_is_the_mean_and_the_deviation_of_a_sample():
    assert claims.spread([0.88, 0.9]) == "0.8900 ± 0.0141" and claims.spread([0.9]) == "0.9000"


def test_binomial_error():
    assert claims.binomial_error(0.9, 10_000) == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("interval", "bound", "said"),
    [((0.1, 0.2), 0, "holds"), ((-0.2, -0.1), 0, "fails"), ((-0.1, 0.1), 0, "undecided"), ((0.4, 0.45), 0.5, "fails")],
)
def test_one_rule_for_verdicts(interval, bound, said):
    assert claims.verdict(*interval, bound) == said


def test_a_claim_of_parts_that_differ_holds_partly():
    assert claims.together(["holds", "holds"]) == "holds" and claims.together(["holds", "fails"]) == "partly"


# ---------------------------------------------------------------------------------------------------- pairs on the grid


def test_pairs_differ_in_one_parameter_only():
    gain = {0.0: 0.02, 0.0005: 0.0}
    table = grid_of(
        lambda row: 0.85 + row.batch_size / 1000 + gain[row.weight_decay] * (1 + row.batch_size / 6400),
        weight_decay=[0.0, 0.0005],
        batch_size=[16, 32, 64],
    )
    found = claims.pairs(table.sample(frac=1, random_state=0), "weight_decay", 0.0, 0.0005)
    assert found.n == 3 and found.won == 1
    assert found.gain.mean == pytest.approx(0.0201167, abs=1e-6) and found.gain.n == 3
    assert claims.pairs(table, "weight_decay", 0.0005, 0.0).won == 0


def test_the_gain_is_over_pairs_that_have_learned_and_the_share_over_all():
    table = grid_of(
        lambda row: (
            {16: 0.9, 32: 0.3, 64: 0.85}[row.batch_size] + (0.001 * row.batch_size if row.activation == "tanh" else 0)
        ),
        activation=["tanh", "ReLU"],
        batch_size=[16, 32, 64],
    )
    found = claims.pairs(table, "activation", "tanh", "ReLU")
    assert found.n == 3 and found.won == 1 and found.gain.n == 2 and found.gain.mean == pytest.approx(0.04)


def test_pairs_that_the_grid_does_not_have_are_refused(stored):
    for given, words in [
        (("optimiser", "adam", "sgd"), "the parameter is 'optimiser'; allowed: .*optimizer"),
        (("optimizer", "adam", "eve"), "optimizer is 'eve'; allowed: sgd, .*nadam$"),
        (("batch_size", 16, 128), "batch_size is 128; allowed: 16, 32, 64$"),
        (("weight_decay", 0, 0.5), "weight_decay is 0 and 0.5; allowed: two values that this table has"),
    ]:
        with pytest.raises(helpers.InputError, match=words):
            claims.pairs(stored.living, *given)
    with pytest.raises(helpers.InputError, match="the parameter is 'rate'; allowed: "):
        anova.part_of(stored.grid, {"rate": [0.1]})


def test_an_equal_pair_is_won_by_nobody():
    table = grid_of(lambda row: 0.9, activation=["tanh", "ReLU"])
    assert claims.pairs(table, "activation", "tanh", "ReLU").won == 0
    assert claims.pairs(table, "activation", "ReLU", "tanh").won == 0


def test_sooner_counts_pairs_that_get_there():
    table = grid_of(lambda row: 0, optimizer=["adam", "sgd"], batch_size=[16, 32, 64])
    arrives = {("adam", 16): 2, ("sgd", 16): 5, ("adam", 32): 4, ("sgd", 32): 3}  # with batch 64 neither does
    for epoch in range(1, anova.EPOCHS + 1):
        passed = [epoch >= arrives.get((row.optimizer, row.batch_size), 99) for row in table.itertuples()]
        table[f"val_accuracy_{epoch}"] = np.where(passed, 0.9, 0.5)
    assert claims.sooner(table, "adam", "sgd") == (2, 0.5)


def test_the_pairs_of_the_stored_grid(stored):
    xavier = claims.pairs(stored.living, "weight_init", "Xavier", "random")
    assert (xavier.n, round(xavier.won, 2), xavier.gain.n) == (1944, 0.88, 916)
    assert xavier.gain.mean == pytest.approx(0.0126, abs=5e-5)
    decay = claims.pairs(stored.adaptive, "weight_decay", 0, 0.0005)
    assert (decay.n, round(decay.won, 2), decay.gain.n) == (972, 0.87, 758)
    rmsprop = claims.pairs(stored.living, "optimizer", "rmsprop", "adam")
    assert (rmsprop.n, round(rmsprop.won, 2)) == (648, 0.14)
    relu = claims.pairs(stored.living, "activation", "ReLU", "tanh")
    assert (relu.n, round(relu.won, 2)) == (1296, 0.30) and relu.gain.mean == pytest.approx(-0.0032, abs=5e-5)


# ----------------------------------------------------------------------------------------------- what the text says


def test_the_verdicts_of_the_claims(stored):
    assert claims.observations(stored).verdict.to_dict() == {
        "Nesterov never passes 16.1 %": "fails",
        "sigmoid never passes 20 %": "fails",
        "tanh is mostly above 85 %": "partly",
        "ReLU is mostly above 85 %": "partly",
        "Xavier beats random": "holds",
        "nadam and adam take about 20 epochs, SGD more": "partly",
        "momentum works in one case only": "fails",
        "decay 0.0005 is best for adaptive optimisers": "fails",
        "learning rate 0.001 is best": "partly",
        "for 95 %: 64 or 128 neurons": "holds",
        "for 95 %: adam rather than Nesterov": "holds",
        "for 95 %: RMSprop as good as adam": "fails",
        "for 95 %: decay of 0.001 or 0.005": "fails",
    }


def test_first_page(stored):
    better = claims.welch(stored.selected.test_accuracy, stored.reference.test_accuracy)
    assert better.mean > 0 and better.p < 0.05
    assert results.trial(stored, "nag") > 0.161 and stored.optimizers.val_accuracy.min() > 0.85
    table = results.headline(stored)
    assert table["this report"].iloc[0] == claims.spread(stored.selected.test_accuracy)
    assert table.index.is_unique and len(table) == 9


def test_question_6(stored):
    random = stored.sweeps["random"]
    worth = anova.importance(random, seeds=[0]).dropna(subset="importance")
    assert worth.name.iloc[0] == "weight_decay"
    assert random[random.weight_decay == 0.5].best_val_accuracy.max() < 0.5  # next to nothing is learned
    assert claims.pairs(stored.living, "batch_size", 16, 64).won == pytest.approx(0.75, abs=0.1)
    top = results.top_run(stored.runs)
    assert (top.activation, top.optimizer, top.hidden_size, top.number) == ("ReLU", "adam", 256, 17)
    assert top.best_val_accuracy == stored.runs.best_val_accuracy.max()


def test_deep_sigmoid(stored):
    sgd, random, xavier, decayed, tanh = results.last(stored.deep)
    assert sgd < 0.12 and decayed < 0.12 < 0.8 < random < xavier < tanh


def test_question_8(stored):
    best = stored.loss_rates.loc[stored.loss_rates.groupby("loss").val_accuracy.idxmax()]
    assert set(best.learning_rate) == {studies.SELECTED.learning_rate}
    table = stored.loss_rates.pivot(index="learning_rate", columns="loss", values="val_accuracy")
    assert table.mean_squared_error.iloc[-1] < table.mean_squared_error.max()  # its best is bracketed
    losses = dict(list(stored.losses.groupby("loss")))
    for loss in ("mean_squared_error", "silenced_cross_entropy"):
        gap = claims.paired(*results._by_seed(stored.selected, losses[loss]))
        assert gap.n == 5 and gap.mean > 0 and gap.p < 0.05
    assert claims.told_apart(results.silenced_gap(stored.losses)) == "not established"
    gap = results.validation_gap(stored.selected, stored.losses)
    seeds = stored.selected.set_index("seed").val_accuracy
    assert gap.mean == pytest.approx((losses["mean_squared_error"].set_index("seed").val_accuracy - seeds).mean())
    assert claims.told_apart(gap) == "not established"


def test_question_10(stored):
    means = stored.mnist.groupby("name")[["train_accuracy", "test_accuracy"]].mean()
    for name in ("reference 2", "reference 3"):
        train, test = results.STATED[name]
        assert means.train_accuracy[name] < train - 0.01 and means.test_accuracy[name] < test - 0.005
        assert means.train_accuracy[f"{name}, decay / 128"] == pytest.approx(train, abs=0.005)
    assert results.images_apart(stored.mnist) <= 3
    gap = results.tested_gap(stored.mnist, "C", "A")
    assert gap.mean == pytest.approx(means.test_accuracy["C"] - means.test_accuracy["A"]) and 0 < gap.low


def test_selected_and_losses_are_of_one_configuration(stored):
    assert [config_of(row) for row in stored.selected.to_dict("records")] == studies.STUDIES["selected"].configs
    assert [config_of(row) for row in stored.losses.to_dict("records")] == studies.STUDIES["losses"].configs
    assert set(stored.selected.machine) == set(stored.losses.machine)  # compared, so from one machine


@pytest.mark.parametrize("name", ["selected", "reference", "optimizers", "deep", "loss_rates", "losses", "mnist"])
def test_the_stored_studies_are_those_of_the_list(stored, name):
    assert [config_of(row) for row in getattr(stored, name).to_dict("records")] == studies.STUDIES[name].configs


def test_the_stored_network_is_that_of_seed_0(stored, fashion):
    network = helpers.load_network(studies.FOLDER / "selected-0.npz")
    row = stored.selected.iloc[0]
    assert helpers.evaluate(network, fashion.x_test, fashion.y_test)[1] == row.test_accuracy
    assert helpers.evaluate(network, fashion.x_val, fashion.y_val)[1] == row.val_accuracy


def test_the_searches_of_appendix_a(stored):
    shares = {search: appendix.found(stored.grid, stored.replays, search, 0) for search in ("tpe", "random")}
    assert shares["random"] < shares["tpe"] < 0.5  # Bayes does not find the best within 50 runs
    assert appendix.needed(stored.grid, stored.replays, "runs") < appendix.runs_by_chance(stored.grid) / 5
    regret, needed = appendix.searches(stored.grid, stored.replays, [appendix.SPENT])
    epochs = [appendix.needed(stored.grid, stored.replays, "epochs", hyperband) for hyperband in (True, False)]
    assert epochs == [needed.loc[("tpe", hyperband, "median"), "epochs"] for hyperband in (True, False)]
    assert epochs[0] < 0.6 * epochs[1]  # nearly half
    table = appendix.search_table(stored.grid, stored.replays)
    assert table.loc["TPE with hyperband"].iloc[-1] == f"{regret.loc[('tpe', True, 'median'), appendix.SPENT]:.4f}"
    best = appendix.best_again(stored.grid, stored.seeded)
    assert best["other seeds"].mean() < best["seed 0"].mean() and stored.grid.seconds.sum() / 7200 < 24


# ------------------------------------------------------------------------------------------------------- the questions


def test_signal_falls_with_depth_and_is_that_of_the_network():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (64, 784)).astype(np.uint8), rng.integers(0, 10, 64)
    spreads, gradients = results.signal("random", "sigmoid", images, labels, width=16, depth=4)
    assert len(spreads) == 4 and len(gradients) == 5
    assert spreads[0] > spreads[-1] and gradients[0] < gradients[-1]
    network = helpers.Network([784, 16, 16, 16, 16, 10], "sigmoid", "random", np.random.default_rng(0))
    network.objective(images, labels)
    assert spreads[1] == pytest.approx(network.a[2].std(axis=0).mean())
    assert gradients[2] == pytest.approx(np.sqrt(np.mean(network.dW[2] ** 2)))


def test_worked_example_in_exact_numbers():
    found = results.worked_example()
    e = np.exp([2.0, 1.0, 0.0])
    p = e / e.sum()
    assert np.allclose(found.p, p) and np.allclose(found.cross_entropy, p - [1, 0, 0])
    error = p - [1, 0, 0]
    assert np.allclose(found.mean_squared_error, 2 * p * (error - p @ error))
    assert np.allclose(found.back, [found.cross_entropy[0, 0] - found.cross_entropy[0, 2], p[1] + 0.5 * (p[0] - 1)])
    assert np.allclose(found.delta, found.back * [0.64, 0.84])


def test_the_ravines_gradient_is_that_of_its_height():
    theta = np.array([0.3, -0.7])
    height = lambda point: (results.CURVATURE * point**2).sum() / 2  # noqa: E731
    for i, step in enumerate(np.eye(2) * 1e-6):
        assert results.ravine(theta)[i] == pytest.approx((height(theta + step) - height(theta - step)) / 2e-6, rel=1e-6)


def test_paths_are_those_of_the_equations():
    path = results.path("sgd", 0.01, steps=3)
    assert np.allclose(path, [np.array([-4.0, 1.5]) * (1 - 0.01 * results.CURVATURE) ** t for t in range(4)])
    assert np.allclose(results.path("adam", 0.3, 1)[1], [-3.7, 1.2])
    theta, u = np.array([-4.0, 1.5]), 0
    for _ in range(20):  # the textbook's Nesterov, at the point looked ahead to
        u = 0.9 * u + results.ravine(theta - 0.02 * 0.9 * u)
        theta = theta - 0.02 * u
    assert np.allclose(results.path("nag", 0.02, 20)[-1], theta - 0.02 * 0.9 * u)


def test_history_is_what_train_returned():
    row = SimpleNamespace(**{f"{name}_history": [i, i + 10] for i, name in enumerate(helpers.METRICS)})
    assert results.history(row) == [
        dict(zip(helpers.METRICS, range(4), strict=True)),
        dict(zip(helpers.METRICS, range(10, 14), strict=True)),
    ]


def test_last_and_best_epochs_are_told_apart():
    study = pd.DataFrame({"val_accuracy": [0.9, 0.8], "val_accuracy_history": [[0.9, 0.88], [0.7, 0.8]]})
    assert results.last(study) == [0.88, 0.8]
    assert results.best_over_last(study) == pytest.approx(0.01)


def test_confusion_counts_the_true_class_by_rows():
    counts = results.confusion(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 0]), classes=3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    assert results.confused(counts, 2) == [(2, 0, 2), (0, 1, 1)]
    assert results.worst_confusion(counts, ("a", "b", "c")) == "2 of 3 images of c are taken for a"
    assert results.share_within(counts, ("a", "b", "c"), ("a", "c")) == pytest.approx(2 / 3)
    assert results.share_within(counts, ("a", "b", "c"), ("a", "b")) == pytest.approx(1 / 3)


def test_seeds_table_has_means_and_deviations(stored):
    table = results.seeds_table(stored.selected)
    assert table.loc["mean", "test accuracy"] == f"{stored.selected.test_accuracy.mean():.4f}"
    assert table.loc["deviation", "validation accuracy"] == f"{stored.selected.val_accuracy.std(ddof=1):.4f}"
    assert table["best epoch"].iloc[0] == str(stored.selected.epoch.iloc[0])


def test_forces_are_those_of_the_losses(small):
    network = helpers.Network([784, 10], rng=np.random.default_rng(0))
    p, force = results.forces(network, small.x_val, small.y_val)
    probabilities = network.predict(small.x_val)
    assert np.allclose(p, probabilities[np.arange(len(p)), small.y_val], atol=1e-6)
    away = probabilities - (small.y_val[:, None] == np.arange(10))
    assert np.allclose(force["cross entropy"], np.linalg.norm(away, axis=1), atol=1e-5)
    images, median = results.median_force(network, small.x_val, small.y_val, "cross_entropy", below=0.1)
    assert images == (p < 0.1).sum() and median == pytest.approx(np.median(force["cross entropy"][p < 0.1]))


def test_silenced_cross_entropy_is_silent_for_its_worst_mistakes_only():
    z = np.array([[0.0, 5, 0], [0.0, 1, 0], [9.0, 0, 0]])
    y = np.array([0, 0, 0])
    loss, delta = studies.silenced_cross_entropy(z, y)
    whole, plain = helpers.cross_entropy(z, y)
    assert loss == whole and not delta[0].any() and np.array_equal(delta[1:], plain[1:])


def test_compare_says_whether_the_training_agrees():
    study = pd.DataFrame({"seed": [0], "machine": [machine()], "val_accuracy_history": [[0.5, 0.6, 0.7]]})
    same = results.compare(study, 0, [{"val_accuracy": value} for value in (0.5, 0.6)])
    assert "just now: 0.6000; stored: 0.6000; the same to the last bit" in same
    other = results.compare(study, 0, [{"val_accuracy": value} for value in (0.5, 0.6001)])
    assert "DISAGREE" in other
    elsewhere = study.assign(machine="another")
    near = results.compare(elsewhere, 0, [{"val_accuracy": value} for value in (0.5, 0.6001)])
    assert "; differ by 0.0001, as two machines may" in near
    assert "DISAGREE" in results.compare(elsewhere, 0, [{"val_accuracy": value} for value in (0.5, 0.72)])
    assert results.compare(study, 7, [{"val_accuracy": 0.5}]).startswith("seed 7: 0.5000; stored are the seeds 0")
    assert results.compare(study, 0, []) == "seed 0: the loss was not finite in the first epoch"


def test_the_three_spaces_are_those_of_the_sweep_files():
    table = results.spaces()
    assert table.loc["hidden layers"].tolist() == ["3, 4, 5", "1 to 6", "1 to 5"]
    assert table.loc["learning rate", "random"] == "0.0001 to 0.1, logarithmic"
    assert table.loc["weight decay", "the course's (grid)"] == "0, 0.0005, 0.5"
    assert table.loc["epochs"].tolist() == ["10", "5, 10", "20"]


def test_the_first_bayes_run_that_passed_is_told_by_its_own_number():
    random = pd.DataFrame({"number": [0, 1], "best_val_accuracy": [0.5, 0.8]})
    bayes = pd.DataFrame({"number": [4, 3, 2], "best_val_accuracy": [0.9, 0.81, 0.8]})
    assert results.run_that_passed({"random": random, "bayes": bayes}) == 3


def test_an_interval_in_points():
    assert appendix.points(claims.Difference(0.0, -0.012, 0.0129, 0.9, 3)) == "−1.2 to +1.3"


def test_images_apart_rounds_up():
    study = pd.DataFrame({"name": ["A", "B", "C", "reference 1"], "val_accuracy": [0.98, 0.98 + 1.5 / 6000, 0.98, 0.5]})
    assert results.images_apart(study) == 2 and results.best_on_mnist(study).name.tolist() == ["B"]


# ------------------------------------------------------------------------------------------------------- the appendices


def test_selections_compare_like_with_like(stored):
    table = appendix.selections(stored)["test accuracy"]
    best = stored.grid.loc[stored.grid.accuracy.idxmax()]
    assert table["best of the grid, seed 0"] == f"{best.test_accuracy_10:.4f}"
    assert appendix.winner(stored).size == 5
    assert appendix.winner(stored).iloc[0] == pytest.approx(best.test_accuracy_10)  # its first seed is the grid's


def test_best_again_leaves_the_grids_seed_out():
    grid = pd.DataFrame({"number": [1, 2, 3], "accuracy": [0.9, 0.8, 0.7]})
    seeded = pd.DataFrame(
        {"number": [1, 1, 1, 2, 2], "seed": [0, 1, 2, 0, 1], "val_accuracy": [0.9, 0.7, 0.8, 0.8, 0.6]}
    )
    found = appendix.best_again(grid, seeded, count=2)
    assert found["seed 0"].tolist() == [0.9, 0.8] and found["other seeds"].tolist() == pytest.approx([0.75, 0.6])
    assert appendix.deviation(seeded, [2]) == pytest.approx(np.std([0.8, 0.6], ddof=1))


def test_gains_have_the_sign_of_what_a_measure_adds():
    rows = [("plain", "nothing", 0.8), ("plain", "x", 0.82), ("whole", "nothing", 0.9), ("whole", "x", 0.87)]
    table = pd.DataFrame(
        [(base, measure, seed, value + seed / 100) for base, measure, value in rows for seed in (0, 1, 2)],
        columns=["base", "measure", "seed", "val_accuracy"],
    )
    found = appendix.gains(table)
    assert found["plain"]["x"].tolist() == pytest.approx([2, 2, 2])  # added
    assert found["whole"]["x"].tolist() == pytest.approx([3, 3, 3])  # lost without it


def test_recommended_is_paired_by_seed_and_corrected():
    rows = [("nothing", [0.8, 0.82, 0.81]), ("x", [0.83, 0.85, 0.845]), ("y", [0.8, 0.81, 0.82])]
    table = pd.DataFrame(
        [("long", name, seed, value) for name, values in rows for seed, value in enumerate(values)],
        columns=["base", "measure", "seed", "val_accuracy"],
    )
    found = claims.recommended(table)
    assert found.index.tolist() == ["x", "y"] and found.gain.tolist() == pytest.approx([19 / 6, 0])
    assert found.holm["x"] == pytest.approx(2 * found.p["x"]) and (found.n == 3).all()
    # the residuals of measure and seed have squares 10/9, 4 degrees of freedom: t = 3.1667 / sqrt(2 s^2 / 3)
    y = np.array([[80, 82, 81], [83, 85, 84.5], [80, 81, 82]])
    design = np.column_stack([np.kron(np.eye(3), np.ones((3, 1))), np.kron(np.ones((3, 1)), np.eye(3)[:, 1:])])
    (squares,) = np.linalg.lstsq(design, y.ravel(), rcond=None)[1]  # an independent fit of measures and seeds
    t = (y[1] - y[0]).mean() / np.sqrt(2 * squares / 4 / 3)
    assert found.p["x"] == pytest.approx(2 * stats.t.sf(t, 4)) == pytest.approx(0.001817, abs=1e-6)
    assert (found.high - found.gain).tolist() == pytest.approx([1.1948] * 2, abs=1e-4)
    assert appendix.recommended_table(table).loc["x", "gain in points"] == "+3.17 (+1.97 to +4.36)"


def test_the_errors_of_two_bases_are_pooled():
    one = pd.DataFrame({0: [1.0, 2.0], 1: [2.0, 3.5]}, index=["nothing", "x"])
    other = pd.DataFrame({0: [5.0, 5.0], 1: [6.0, 6.4]}, index=["nothing", "y"])
    found = claims.tested({"plain": one, "whole": other})
    # residuals of a table of 2 by 2: a quarter of the interaction, four times: squares are interaction^2 / 4
    squares = 0.5**2 / 4 + 0.4**2 / 4
    error = np.sqrt(2 * squares / 2 / 2)
    assert found.gain.tolist() == pytest.approx([1.25, 0.2])
    assert found.p.tolist() == pytest.approx([2 * stats.t.sf(gain / error, 2) for gain in (1.25, 0.2)])


def test_the_final_networks_are_compared_with_holms_p(stored):
    found = appendix.compared(stored)
    of = {name: appendix.test_accuracies(stored, name) for name in ("taught", "dense", "reborn", "convolutional")}
    raw = [claims.welch(of["taught"], of["dense"]), claims.welch(of["reborn"], of["convolutional"])]
    raw = pd.Series([difference.p for difference in (*raw, appendix.continuing(stored))], list(found))
    smallest, middle, largest = raw.sort_values()
    right = pd.Series([3 * smallest, max(3 * smallest, 2 * middle), max(3 * smallest, 2 * middle, largest)])
    assert sorted(difference.p for difference in found.values()) == pytest.approx(right.clip(upper=1).tolist())
    assert found["continued"][:3] == appendix.continuing(stored)[:3]


def test_the_networks_of_digits_are_in_a_table_of_their_own(stored):
    assert not stored.final.name.str.startswith("mnist-").any()
    accuracies = results.on_digits(stored, "dense")
    assert len(accuracies) == 3 and accuracies.min() > 0.99
    assert len(results.on_digits(stored, "convolutional")) >= 1 and len(results.on_digits(stored, "no")) == 0


def test_luck_is_what_the_seed_of_the_selection_is_worth():
    grid = pd.DataFrame({"number": [1, 2, 3], "accuracy": [0.9, 0.8, 0.7]})
    rows = [(1, 0, 0.9), (1, 1, 0.88), (1, 2, 0.86), (2, 0, 0.8), (2, 1, 0.79), (2, 2, 0.79)]
    seeded = pd.DataFrame(rows, columns=["number", "seed", "test_accuracy"])
    assert appendix.luck(grid, seeded).mean == pytest.approx((0.03 + 0.01) / 2)


def test_pixels_lost_is_what_shuffling_costs():
    rows = [("dense", "in order", [0.9, 0.91]), ("dense", "shuffled", [0.9, 0.9]), ("c", "in order", [0.95, 0.95])]
    table = pd.DataFrame(
        [(base, order, seed, value) for base, order, values in rows for seed, value in enumerate(values)],
        columns=["base", "measure", "seed", "val_accuracy"],
    ).sample(frac=1, random_state=0)
    assert appendix.pixels(table)["dense"] == {"in order": [0.9, 0.91], "shuffled": [0.9, 0.9]}
    assert appendix.pixels_lost(table, "dense").mean == pytest.approx(0.005)


def test_what_survives_holms_correction(stored):
    table = appendix.ablation_table(stored.ablation)
    assert (table.holm >= table.p).all() and (table.low < table.gain).all() and (table.gain < table.high).all()
    assert appendix.established(table.loc["plain"], 1).startswith("averaged weights")


def test_a_ladder_names_each_step_once(stored, fashion):
    steps = appendix.ladder(stored, fashion.y_test)
    mean, deviation, group = steps["the selected configuration (Question 7)"]
    assert mean == stored.selected.test_accuracy.mean() and deviation == stored.selected.test_accuracy.std()
    assert "one network" in group and steps["ResNet18"][1] is None


def test_new_layers_have_the_right_gradients():
    assert appendix.layer_checks()["relative error"].max() < 1e-6


def test_read_sweep_has_its_definition(stored):
    definition = json.loads(json.dumps(stored.sweeps["random"].attrs["definition"]))
    assert definition["method"] == "random" and results.sweep_summary(stored.sweeps).loc["runs"].tolist() == [100, 50]
