"""Every figure says what it was given: the artists are read back, axis by axis."""

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from lib import plots


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def line(ax, label):
    (found,) = [one for one in ax.lines if one.get_label() == label]
    return found


def red(artist):
    return np.allclose(plt.matplotlib.colors.to_rgb(artist.get_color()), plots.COLORS[3])


# --------------------------------------------------------------------------------------------------- show and the like


def test_show_writes_only_where_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPORT_FIGURES", raising=False)
    plots.show(plt.figure(), "blank")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("REPORT_FIGURES", str(tmp_path))
    picture = plots.show(plt.figure(), "blank")
    assert {path.name for path in tmp_path.iterdir()} == {"blank.png", "blank.svg"}
    assert (tmp_path / "blank.png").read_bytes() == picture.data
    plots.show(plt.figure())  # without a name it is for looking at
    assert len(list(tmp_path.iterdir())) == 2 and not plt.get_fignums()


def test_a_picture_is_as_wide_as_the_page_and_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setenv("REPORT_FIGURES", str(tmp_path))
    kept = []
    for _ in range(2):
        picture = plots.show(plots.network([4, 3, 2]), "network")
        kept.append((picture.data, (tmp_path / "network.svg").read_bytes()))
    assert kept[0] == kept[1]
    assert PIL.Image.open(io.BytesIO(kept[0][0])).width == plots.WIDTH * 200


def test_a_persons_matplotlibrc_changes_nothing():
    assert plt.rcParams["axes.spines.top"] is False and plt.rcParams["font.family"] == ["sans-serif"]


def test_show_table_has_the_same_cells_in_html_and_markdown(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda data, raw: shown.append(data))
    plots.show_table(
        pd.DataFrame({"a < b": ["0.5", "+1"], "words": ["one", "two | three"]}, ["x", "y"]).rename_axis("i")
    )
    html, markdown = shown[0]["text/html"], shown[0]["text/markdown"]
    assert "a &lt; b" in html and re.findall(r"<t[dh] [^>]*>([^<]*)<", html)[3:6] == ["x", "0.5", "one"]
    assert markdown.splitlines()[:3] == ["| i | a < b | words |", "| :- | -: | :- |", "| x | 0.5 | one |"]
    assert r"two \| three" in markdown
    assert html.count("text-align: right") == 3  # one column: its head and two numbers
    plots.show_table(pd.DataFrame({"a": [1]}, pd.MultiIndex.from_tuples([("x", 2)], names=["i", None])))
    assert shown[1]["text/markdown"] == "| i |  | a |\n| :- | -: | -: |\n| x | 2 | 1 |"


def test_show_epoch_is_one_line(capsys):
    plots.show_epoch({"epoch": 3, "train_loss": 0.25, "val_accuracy": 0.875})
    assert capsys.readouterr().out.rstrip() == "epoch 3: training loss 0.250, validation accuracy 0.8750"


# ---------------------------------------------------------------------------------------------- network and training


def test_sample_grid_shows_the_first_image_of_each_class():
    labels = np.array([1, 0, 1, *range(2, 10)])
    images = np.arange(len(labels), dtype=np.uint8)[:, None].repeat(784, axis=1)
    figure = plots.sample_grid(images, labels, list("abcdefghij"))
    assert [ax.get_title() for ax in figure.axes[:2]] == ["0  a", "1  b"]
    assert [ax.images[0].get_array()[0, 0] for ax in figure.axes[:3]] == [1, 0, 3]


def test_network_has_its_shapes():
    (ax,) = plots.network([784, 128, 10]).axes
    assert {"(N, 784)", "(N, 128)", "(N, 10)", "(784, 128)", "(128, 10)"} <= set(texts(ax))
    neurons = [one for one in ax.lines if one.get_marker() == "o"]
    assert [len(one.get_xdata()) for one in neurons] == [6, 6, 6] and texts(ax).count("⋮") == 3
    neurons = [one for one in plots.network([4, 3, 2]).axes[0].lines if one.get_marker() == "o"]
    assert [len(one.get_xdata()) for one in neurons] == [4, 3, 2]


def test_weights_are_columns_as_images_the_largest_first():
    W = np.zeros((784, 30))
    W[5, 7], W[40, 2] = 3, -2
    first, second = plots.weights(W, count=2 * 2).axes[:2]
    assert first.images[0].get_array()[0, 5] == 3 and second.images[0].get_array()[1, 12] == -2
    assert first.images[0].get_clim() == (-3, 3)


def test_ravine_draws_each_path_from_its_start():
    paths = {"a": np.array([[-4.0, 1.5], [-2, 0.5]]), "b": np.array([[-4.0, 1.5], [1, 1]])}
    figure = plots.ravine(paths, (1, 25))
    for ax, (title, path) in zip(figure.axes, paths.items(), strict=True):
        assert ax.get_title(loc="left") == title
        assert np.array_equal(ax.lines[0].get_xydata(), path)
        assert ax.lines[1].get_xydata().tolist() == [[-4, 1.5]] and ax.lines[2].get_xydata().tolist() == [[0, 0]]


def test_signal_has_a_panel_for_each_measure_and_logarithmic_axes():
    profiles = {("random", "tanh"): [[0.5, 0.1], [1e-3, 1e-2]], ("Xavier", "tanh"): [[0.5, 0.4], [1e-2, 1e-2]]}
    left, right = plots.signal(profiles, ["spread", "gradient"]).axes
    assert line(left, "random, tanh").get_ydata().tolist() == [0.5, 0.1]
    assert line(right, "Xavier, tanh").get_ydata().tolist() == [1e-2, 1e-2] and right.get_yscale() == "log"
    assert line(left, "random, tanh").get_linestyle() != line(left, "Xavier, tanh").get_linestyle()


def test_curves_are_means_and_ranges_over_seeds():
    runs = [[{"val_accuracy": value} for value in values] for values in ([0.5, 0.7], [0.7, 0.8])]
    (ax,) = plots.curves({"two": runs, "one": runs[0]}, ["val_accuracy"]).axes
    assert line(ax, "two").get_ydata().tolist() == pytest.approx([0.6, 0.75])
    assert line(ax, "one").get_ydata().tolist() == [0.5, 0.7] and line(ax, "one").get_xdata().tolist() == [1, 2]
    (band,) = ax.collections
    assert {(x, round(y, 3)) for x, y in band.get_paths()[0].vertices} >= {(1, 0.5), (1, 0.7), (2, 0.7), (2, 0.8)}
    assert ax.get_title(loc="left") == "validation accuracy" and ax.get_xlabel() == "epoch"


def test_confusion_matrix_has_the_true_class_in_rows():
    (ax,) = plots.confusion_matrix(np.array([[8, 2], [0, 10]]), ["a", "b"]).axes
    cells = {tuple(map(round, text.get_position())): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "80.0%\n8", (1, 0): "20.0%\n2", (1, 1): "100.0%\n10"}  # x is the predicted class
    assert ax.get_xlabel() == "predicted class" and ax.get_ylabel() == "true class"
    assert ticks(ax.xaxis) == ticks(ax.yaxis) == ["a", "b"]


def test_image_rows_shows_the_first_images():
    groups = {"a": np.arange(10)[:, None].repeat(784, axis=1), "b": np.full((3, 784), 50)}
    axes = np.reshape(plots.image_rows(groups, n=4).axes, (2, 4))
    assert [ax.images[0].get_array()[0, 0] for ax in axes[0]] == [0, 1, 2, 3] and texts(axes[0, 0]) == ["a"]
    assert [len(ax.images) for ax in axes[1]] == [1, 1, 1, 0]


def test_loss_gradients_has_p_across_and_the_size_up():
    p, force = np.array([0.1, 0.9]), {"ce": np.array([1.3, 0.1]), "se": np.array([0.2, 0.05])}
    (ax,) = plots.loss_gradients(p, force).axes
    assert line(ax, "ce").get_xdata().tolist() == [0.1, 0.9] and line(ax, "se").get_ydata().tolist() == [0.2, 0.05]
    assert "probability" in ax.get_xlabel() and "gradient" in ax.get_ylabel()


# ----------------------------------------------------------------------------------------------------------------- sweeps


def sweep(**changes):
    table = {
        "best_val_accuracy": [0.2, 0.9, 0.85],
        "state": ["complete", "complete", "pruned"],
        "created": pd.to_datetime(["2026-01-01 00:00", "2026-01-01 00:02", "2026-01-01 00:01"]),
        "num_layers": [3, 4, 5],
        "activation": ["sigmoid", "tanh", "ReLU"],
        "learning_rate": [1e-4, 1e-2, 1e-3],
        **{f"{m}_history": [[0.1, 0.2], [0.8, 0.9], [0.85]] for m in ("train_accuracy", "val_accuracy", "train_loss")},
    }
    return pd.DataFrame(table | changes)


def test_sweep_curves_have_one_scale_of_colour_and_the_best_in_red():
    figure = plots.sweep_curves({"random": sweep(), "bayes": sweep(best_val_accuracy=[0.5, 0.95, 0.6])})
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == [
        "training accuracy",
        "validation accuracy",
        "training loss",
    ]
    for ax in figure.axes[:6]:
        best = [one for one in ax.lines if red(one)]
        assert len(best) == 1 and best[0].get_ydata().tolist() == [0.8, 0.9] and len(ax.lines) == 3
    shared = plots.SHADES(plt.Normalize(0.6, 0.95, clip=True)(0.85))
    assert any(np.allclose(one.get_color(), shared) for one in figure.axes[1].lines if not red(one))


def test_created_has_minutes_across_and_the_best_so_far():
    (ax,) = plots.created({"random": sweep()}).axes
    assert line(ax, "complete").get_xydata().tolist() == [[0, 0.8], [2, 0.9]]  # 0.2 sits on the edge
    assert line(ax, "pruned").get_xydata().tolist() == [[1, 0.85]]
    assert line(ax, "best so far").get_ydata().tolist() == [0.8, 0.85, 0.9]
    assert ax.get_title(loc="left") == "random: 1 of 3 runs below 80 %"


def test_parallel_coordinates_end_at_the_accuracy_and_order_names_by_it():
    ax, _ = plots.parallel_coordinates(sweep(), ["num_layers", "activation", "learning_rate"]).axes
    runs = [one for one in ax.lines if len(one.get_xdata()) > 2]
    ends = [one.get_ydata()[-1] for one in runs]
    assert ends == sorted(ends) and [red(one) for one in runs] == [False, False, True]  # worst first, best on top
    assert ends[0] == 0 and ends[-1] == 1
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert places["sigmoid"][1] < places["ReLU"][1] < places["tanh"][1]  # by mean accuracy
    assert places["3"][1] < places["4"][1] < places["5"][1] and places["0.0001"][1] == 0 and places["0.01"][1] == 1
    assert all(text.get_bbox_patch() for text in ax.texts if text.get_text() in ("sigmoid", "tanh", "ReLU", "3"))
    assert places["tanh"][0] == pytest.approx(1, abs=0.1) and "validation\naccuracy" in places
    best = runs[-1].get_ydata()
    assert best[0] == pytest.approx(0.5, abs=0.2) and best[30] == pytest.approx(1, abs=0.1)  # 4 layers, tanh


def test_a_run_without_an_accuracy_is_dotted_and_ends_below():
    table = sweep(best_val_accuracy=[np.nan, 0.9, 0.85], state=["not finite", "complete", "complete"])
    ax, _ = plots.parallel_coordinates(table, ["num_layers", "activation"]).axes
    (dotted,) = [one for one in ax.lines if one.get_linestyle() == ":"]
    assert dotted.get_ydata()[-1] < 0 and "not finite" in texts(ax)


def test_importance_has_bars_of_its_numbers_and_the_band_of_chance():
    table = pd.DataFrame(
        {"name": ["a", "b", "b: x"], "importance": [0.2, 0.5, np.nan], "correlation": [-0.4, np.nan, 0.3]}
    )
    left, right = plots.importance({"random": table}, {"random": 0.2}).axes
    assert ticks(left.yaxis) == ["a", "b"] and [bar.get_width() for bar in left.patches] == [0.2, 0.5]
    bars = [patch for patch in right.patches if patch.get_height() == pytest.approx(0.8)]
    assert ticks(right.yaxis) == ["b: x", "a"] and [bar.get_width() for bar in bars] == [0.3, -0.4]
    (band,) = [patch for patch in right.patches if patch not in bars]
    assert band.get_extents().width > 0 and sorted({round(x, 3) for x, _ in band.get_xy()[:4]} if not hasattr(band, "get_x") else [band.get_x(), band.get_x() + band.get_width()]) == pytest.approx([-0.2, 0.2])  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the appendices


def test_ablation_has_means_as_bars_and_seeds_as_dots():
    left, right = plots.ablation({"a": [[1.0, 2.0], [0.5, 0.7]], "b": [[-1.0, -2.0], None]}, ["added", "lost"]).axes
    assert [bar.get_width() for bar in left.patches] == [1.5, -1.5] and [bar.get_width() for bar in right.patches] == [
        0.6
    ]
    assert left.lines[0].get_xdata().tolist() == [1, 2] and ticks(left.yaxis) == ["a", "b"] and left.yaxis_inverted()
    assert [left.get_title(loc="left"), right.get_title(loc="left")] == ["added", "lost"]


def test_pixels_has_a_bar_for_each_order_with_its_mean():
    (ax,) = plots.pixels({"dense": {"in order": [0.9, 0.92], "shuffled": [0.9]}, "other": {"in order": [0.93]}}).axes
    bars = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_height() for bar in ax.patches}
    assert bars == pytest.approx({-0.2: 9, 0.2: 10, 0.8: 7}) and ticks(ax.xaxis) == ["dense", "other"]
    assert texts(ax) == ["9.0 %", "10.0 %", "7.0 %"] and ax.containers[0].get_label() == "in order"
    assert sorted(ax.lines[0].get_ydata()) == pytest.approx([8, 10]) and ax.get_ylim()[0] == 0


def test_ladder_has_each_mean_at_its_name():
    (ax,) = plots.ladder({"one": (0.9, 0.01, "x"), "two": (0.95, None, "y")}).axes
    assert ticks(ax.yaxis) == ["one", "two"] and ax.yaxis_inverted()
    assert [container[0].get_xydata().tolist() for container in ax.containers] == [[[0.9, 0]], [[0.95, 1]]]
    assert texts(ax) == ["90.00 ± 1.00 %", "95.00 %"]


def test_a_ravine_takes_any_number_of_paths():
    for n in (1, 3, 7):
        figure = plots.ravine({str(k): np.zeros((4, 2)) for k in range(n)}, (1.0, 25.0))
        assert [ax.get_title("left") for ax in figure.axes] == [str(k) for k in range(n)]


def test_recalls_order_the_classes_by_the_first_network():
    (ax,) = plots.recalls({"one": np.array([0.9, 0.5, 0.7]), "two": np.array([0.8, 0.6, 0.9])}, ["a", "b", "c"]).axes
    assert ticks(ax.yaxis) == ["b", "c", "a"] and line(ax, "one").get_xdata().tolist() == [0.5, 0.7, 0.9]
    assert line(ax, "two").get_xdata().tolist() == [0.6, 0.9, 0.8]


def test_shares_draw_the_grid_and_the_estimates_at_their_parameter():
    index = pd.MultiIndex.from_tuples([("a", ""), ("a", "b"), ("b", ""), ("rest", "")], names=["name", "other"])
    exact = pd.Series([0.5, 0.2, 0.1, 0.2], index)
    draws = pd.DataFrame({"a": [0.4, 0.6], "b": [0.2, 0.2]})
    (ax,) = plots.shares({"all": (exact, {50: draws})}).axes
    bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in ax.patches}
    assert ticks(ax.yaxis) == ["a", "a × b", "b"] and bars == {2: 0.5, 1: 0.2, 0: 0.1}
    (points,) = [one for one in ax.lines if len(one.get_xdata()) == 2 and one.get_marker() == "o"]
    assert points.get_xdata().tolist() == pytest.approx([0.5, 0.2]) and points.get_ydata().tolist() == pytest.approx(
        [2.2, 0.2]
    )


def test_marginals_have_median_mean_and_best_of_each_value():
    table = pd.DataFrame({"num_layers": [3, 3, 3, 4, 4, 4], "activation": ["tanh"] * 6})
    ax = plots.marginals(table, pd.Series([0.1, 0.2, 0.9, 0.5, 0.6, 0.7]), ["num_layers", "activation"]).axes[0]
    assert line(ax, "median").get_ydata().tolist() == pytest.approx([0.2, 0.6])
    assert line(ax, "mean").get_ydata().tolist() == pytest.approx([0.4, 0.6])
    assert line(ax, "best").get_ydata().tolist() == [0.9, 0.7] and ticks(ax.xaxis) == ["3", "4"]
    assert ax.get_title(loc="left") == "hidden layers"


def test_interactions_have_rows_and_columns_of_the_table():
    table = pd.DataFrame([[0.1, 0.8], [0.3, 0.4]], ["sgd", "adam"], pd.Index([0.0001, 0.001], name="learning_rate"))
    ax = plots.interactions({"a": table, "b": table}).axes[0]
    assert np.array_equal(ax.images[0].get_array(), table) and ax.images[0].get_clim() == (0.1, 0.9)
    cells = {tuple(map(round, text.get_position())): text.get_text() for text in ax.texts}
    assert cells[1, 0] == "0.80" and cells[0, 1] == "0.30"
    assert ticks(ax.yaxis) == ["sgd", "adam"] and ticks(ax.xaxis) == ["0.0001", "0.001"]


def test_seed_spread_ranks_by_the_mean_and_by_the_grid():
    seeded = pd.DataFrame({"number": [1, 1, 2, 2, 3, 3], "val_accuracy": [0.5, 0.7, 0.8, 0.9, 0.4, 0.8]})
    left, right = plots.seed_spread(seeded, [3, 2]).axes
    assert line(left, "mean of the seeds").get_ydata().tolist() == pytest.approx([0.85, 0.6, 0.6])
    assert line(right, "mean of the seeds").get_ydata().tolist() == pytest.approx([0.6, 0.85])
    assert sorted(map(tuple, line(right, "a seed").get_xydata())) == [(1, 0.4), (1, 0.8), (2, 0.8), (2, 0.9)]


def test_regrets_draw_the_median_of_each_search_in_its_panel():
    keys = [(s, h, q) for s in ("random", "tpe") for h in (False, True) for q in ("q10", "median", "q90")]
    values = {key: [0.01 * (i + 1), 0.005] for i, key in enumerate(keys)}
    table = pd.DataFrame(values, [10, 100]).T
    table.index = pd.MultiIndex.from_tuples(keys)
    left, right = plots.regrets(table, 0.005).axes
    assert line(left, "random").get_ydata().tolist() == [0.02, 0.005] and line(left, "tpe").get_ydata()[0] == 0.08
    assert line(right, "random").get_ydata()[0] == 0.05 and right.get_title(loc="left") == "with hyperband"
    assert left.get_xscale() == left.get_yscale() == "log" and line(left, "tpe").get_xdata().tolist() == [10, 100]
