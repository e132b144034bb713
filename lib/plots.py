"""Every figure and table of the report: a function takes arrays or rows and returns a figure; `show` displays it."""

import html
import inspect
import os
import sys
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

WIDTH = 7.0  # inches: the text width of the PDF, so that a font size here is nearly the size on paper
COLORS = sns.color_palette("colorblind")
MARKERS = "osD^vPX*"
CLEAR = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}  # clear ground for text on lines

plt.rcdefaults()  # a person's matplotlibrc changes nothing here
sns.set_theme(
    context="paper",
    style="ticks",
    palette="colorblind",
    rc={
        "figure.dpi": 100,
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "0.9",
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
    },
)
VECTORS = {  # the PDF sets the text of an SVG in its own face, whose metrics these fonts have
    "font.sans-serif": ["STIXGeneral"],
    "mathtext.fontset": "stix",
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
}


def show(figure, name=None):
    """Return a figure as a picture, to be a cell's output.

    If REPORT_FIGURES names a folder, as in `make report`, a figure with a name is written there as PNG and SVG.
    """
    picture = BytesIO()
    small = BytesIO()
    figure.savefig(picture, dpi=200, format="png")
    palette = PIL.Image.open(picture).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)  # a third of the size
    palette.save(small, "png", optimize=True)
    folder = os.environ.get("REPORT_FIGURES")
    if folder and name:
        Path(folder, f"{name}.png").write_bytes(small.getvalue())
        with plt.rc_context(VECTORS):
            figure.savefig(Path(folder, f"{name}.svg"), metadata={"Date": None}, dpi=200)
    plt.close(figure)
    return Image(small.getvalue(), format="png", width=700)


def show_epoch(row):
    """Print where a training stands, on one line that each epoch overwrites."""
    line = "epoch {epoch}: training loss {train_loss:.3f}, validation accuracy {val_accuracy:.4f}".format(**row)
    print(line, end="\r" if "ipykernel" in sys.modules else "\n", flush=True)


def show_source(*functions):
    """Display the code that runs, as a listing."""
    display(Markdown("```python\n" + "\n\n".join(inspect.getsource(one).rstrip() for one in functions) + "\n```"))


def show_table(table):
    """Display a table: as HTML, which notebooks take, and as Markdown, which LaTeX takes; numbers to the right."""
    rows = [[str(cell) for cell in row] for row in table.reset_index().to_numpy(object)]
    names = [*(name or "" for name in table.index.names), *map(str, table.columns)]
    right = [all(_numeric(cell) for cell in column) for column in zip(*rows, strict=True)]
    styles = [f' style="text-align: {"right" if one else "left"}"' for one in right]
    cells = [[f"<td{style}>{html.escape(cell)}</td>" for style, cell in zip(styles, row, strict=True)] for row in rows]
    head = "".join(f"<th{style}>{html.escape(name)}</th>" for style, name in zip(styles, names, strict=True))
    body = "\n".join("<tr>" + "".join(row) + "</tr>" for row in cells)
    lines = [names, ["-:" if one else ":-" for one in right], *rows]
    display(
        {
            "text/html": f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>",
            "text/markdown": "\n".join(
                "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
            ),
            "text/plain": table.to_string(),
        },
        raw=True,
    )


def _numeric(cell):
    return cell in ("", "–") or cell.lstrip("+-−")[:1].isdigit() and len(cell) < 18


def words(name):
    """Return a column's name in plain words: val_accuracy is 'validation accuracy'."""
    return PHRASES.get(name) or " ".join(WORDS.get(word, word) for word in name.split("_"))


PHRASES = {"num_layers": "hidden layers", "optimizer": "optimiser"}
WORDS = {"train": "training", "val": "validation", "init": "initialisation"}


# ----------------------------------------------------------------------------------------------- network and training


def sample_grid(images, labels, class_names):
    """Draw the first image (784,) of each class among `images`, in a grid of two rows."""
    figure, axes = plt.subplots(2, 5, figsize=(WIDTH, 2.5), layout="constrained")
    for k, (ax, name) in enumerate(zip(axes.flat, class_names, strict=True)):
        first = np.flatnonzero(labels == k)[0]
        ax.imshow(images[first].reshape(28, 28), cmap="gray_r")
        ax.set_title(f"{k}  {name}", loc="center")
        ax.set(xticks=[], yticks=[])
        sns.despine(ax=ax, left=True, bottom=True)
    return figure


def network(sizes, shown=6):
    """Draw a network of these widths: a column of neurons for each layer, all joined, with the shapes of its arrays."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.2), layout="constrained")
    heights = [_column(size, shown) for size in sizes]
    for l, (left, right) in enumerate(zip(heights, heights[1:], strict=False)):
        for y in left:
            ax.plot([l, l + 1], [np.full(len(right), y), right], color="0.8", linewidth=0.5, zorder=1)
    last = len(sizes) - 1
    for l, (size, ys) in enumerate(zip(sizes, heights, strict=True)):
        ax.plot(np.full(len(ys), l), ys, "o", color=COLORS[0 if 0 < l < last else 7], markersize=9, zorder=2)
        if size > shown:
            ax.text(l, 0, "⋮", ha="center", va="center", fontsize=13, bbox=CLEAR, zorder=3)
        symbol = (
            r"$\mathbf{x}$"
            if l == 0
            else rf"$\mathbf{{a}}_{l}$"
            if l < last
            else rf"$\mathbf{{z}}_{l} \to \mathbf{{p}}$"
        )
        ax.text(l, 1.3, symbol, ha="center", fontsize=11)
        ax.text(l, -1.45, f"(N, {size})", ha="center", fontsize=9)
    for l, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False), 1):
        ax.text(l - 0.5, 1.3, rf"$W_{l}$, $\mathbf{{b}}_{l}$", ha="center", fontsize=10, color=COLORS[3])
        ax.text(l - 0.5, -1.45, f"({n_in}, {n_out})", ha="center", fontsize=8.5, color=COLORS[3])
    ax.set(xlim=(-0.3, last + 0.3), ylim=(-1.65, 1.6))
    ax.axis("off")
    return figure


def _column(size, shown):
    """Return the heights of a layer's neurons: all, or `shown` of them with a gap in the middle."""
    if size <= shown:
        return np.linspace(1, -1, size)
    half = np.linspace(1, 0.35, shown // 2)
    return np.concatenate([half, -half[::-1]])


def weights(W, count=24):
    """Draw the weights from the 784 pixels to some neurons: the `count` columns of W (784, n) of largest norm."""
    order = np.argsort(-np.linalg.norm(W, axis=0))[:count]
    figure, axes = plt.subplots(2, count // 2, figsize=(WIDTH, 1.35), layout="constrained")
    for ax, column in zip(axes.flat, W[:, order].T, strict=True):
        top = np.abs(column).max()
        ax.imshow(column.reshape(28, 28), cmap="RdBu_r", vmin=-top, vmax=top)
        ax.axis("off")
    return figure


def ravine(paths, curvature):
    """Draw each path (steps + 1, 2) of {title: path} on the level lines of J = sum of curvature * theta^2 / 2."""
    figure, axes = plt.subplots(
        2, -(-len(paths) // 2), figsize=(WIDTH, 3.1), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    x, y = np.meshgrid(np.linspace(-4.6, 1.8, 120), np.linspace(-2, 2, 80))
    for ax in axes.flat[len(paths) :]:
        ax.remove()
    for j, (ax, (title, path)) in enumerate(zip(axes.flat, paths.items())):
        ax.contour(x, y, (curvature[0] * x**2 + curvature[1] * y**2) / 2, 12, colors="0.85", linewidths=0.6)
        ax.plot(*path.T, "-", marker=".", color=COLORS[j % len(COLORS)], markersize=4, linewidth=0.9)
        ax.plot(*path[0], "o", color="k", markersize=4)
        ax.plot(0, 0, "*", color="k", markersize=7)
        ax.set(title=title, xlim=(-4.6, 1.8), ylim=(-2, 2))
        ax.grid(False)
    for ax in axes[-1]:
        ax.set_xlabel(r"$\theta_1$")
    for ax in axes[:, 0]:
        ax.set_ylabel(r"$\theta_2$")
    return figure


def signal(profiles, titles):
    """Draw how a signal fares through depth. profiles: {(weight_init, activation): a list by layer per panel}."""
    figure, axes = plt.subplots(1, len(titles), figsize=(WIDTH, 2.6), layout="constrained")
    inits, activations = (list(dict.fromkeys(names)) for names in zip(*profiles, strict=True))
    for i, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        for (init, activation), values in profiles.items():
            j = activations.index(activation)
            style = ["--", "-", ":", "-."][inits.index(init) % 4]
            layers = np.arange(1, len(values[i]) + 1)
            label = f"{init}, {activation}"
            ax.semilogy(layers, values[i], style, marker=MARKERS[j], color=COLORS[j], label=label, markersize=4)
        ax.set(xlabel="layer", xticks=layers, title=title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(profiles), 3))
    return figure


def curves(histories, metrics=("train_loss", "val_loss", "val_accuracy")):
    """Draw one panel per metric, one line per name. histories: {name: rows of helpers.train, or a list of such}.

    Where a name has several histories (seeds), the line is their mean and the band their range.
    """
    columns = min(len(metrics), 3 if len(metrics) != 4 else 2)
    lines = -(-len(metrics) // columns)
    size = (WIDTH, 2.3 if lines == 1 else 1.75 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for ax, metric in zip(axes.flat, metrics, strict=True):
        for j, (name, runs) in enumerate(histories.items()):
            runs = runs if isinstance(runs[0], list) else [runs]
            values = np.array([[row[metric] for row in run] for run in runs])
            epochs = np.arange(1, values.shape[1] + 1)
            color = COLORS[j % len(COLORS)]
            every = max(1, len(epochs) // 8)
            size = 6 - 3 * (j + 1) / len(histories)  # ever smaller, so that no line hides another
            style = {"marker": MARKERS[j], "markersize": size, "markevery": every}
            ax.plot(epochs, values.mean(0), color=color, label=name, **style)
            if len(runs) > 1:
                ax.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
        ax.set(xlabel="epoch", title=words(metric))
        ax.xaxis.get_major_locator().set_params(integer=True)
    wide = sum(map(len, histories)) > 60
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3 if wide else 6)
    return figure


def confusion_matrix(counts, class_names):
    """Draw counts[i, j], the images of class i taken for j: per cent of the row, its colour, and the count."""
    share = counts / counts.sum(axis=1, keepdims=True)
    figure, ax = plt.subplots(figsize=(WIDTH, 4.1), layout="constrained")
    ax.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1.1, aspect="auto")  # the root makes rare confusions visible
    for (i, j), count in np.ndenumerate(counts):
        if count:
            text = f"{share[i, j]:.1%}\n{count:,.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=7.5, color="w" if share[i, j] > 0.4 else "k")
    ticks = range(len(class_names))
    ax.set_xticks(ticks, class_names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, class_names)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.grid(False)
    return figure


def image_rows(groups, n=8):
    """Draw the first n images of each group in a row. groups: {label: images (any number, 784)}."""
    figure, axes = plt.subplots(len(groups), n, figsize=(WIDTH, 0.62 * len(groups) + 0.2), layout="constrained")
    for row, (label, images) in zip(axes, groups.items(), strict=True):
        for ax in row:
            ax.axis("off")
        for ax, image in zip(row, images, strict=False):
            ax.imshow(image.reshape(28, 28), cmap="gray_r")
        row[0].text(-0.1, 0.5, label, transform=row[0].transAxes, ha="right", va="center", fontsize=8)
    return figure


def loss_gradients(p, force):
    """Draw force, {loss: |dL/dz| of each image}, against p, the probability of its true class."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.3), layout="constrained")
    for j, (name, size) in enumerate(force.items()):
        ax.plot(p, size, MARKERS[j], color=COLORS[j], markersize=2, alpha=0.4, label=name, rasterized=True)
    ax.set(xlabel="probability given to the true class", ylabel="size of the gradient", xlim=(-0.01, 1.01))
    figure.legend(loc="outside lower center", ncols=2, markerscale=3)
    return figure


# -------------------------------------------------------------------------------------------------------- towards 95 %


def ablation(gains, titles):
    """Draw what measures are worth. gains: {measure: per panel the gains of all seeds in points, or None}."""
    figure, axes = plt.subplots(
        1, len(titles), figsize=(WIDTH, 0.27 * len(gains) + 1.1), layout="constrained", sharex=True, sharey=True
    )
    for i, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        for y, values in enumerate(gains.values()):
            if values[i] is not None:
                color = COLORS[2] if np.mean(values[i]) > 0 else COLORS[3]
                ax.barh(y, np.mean(values[i]), color=color, height=0.65, alpha=0.6)
                ax.plot(values[i], [y] * len(values[i]), "o", color="k", markersize=2.5)
        ax.axvline(0, color="k", linewidth=0.8)
        ax.grid(False, axis="y")
        ax.set(title=title, xlabel="validation accuracy, percentage points")
    axes[0].set_yticks(range(len(gains)), gains)
    axes[0].invert_yaxis()
    return figure


def pixels(accuracies):
    """Draw pairs of bars, mean errors with the seeds as dots. accuracies: {network: {order of the pixels: by seed}}."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.4), layout="constrained")
    for place, orders in enumerate(accuracies.values()):
        for j, (order, values) in enumerate(orders.items()):
            x = place + 0.4 * j - 0.2
            errors = 100 * (1 - np.array(values))
            ax.bar(x, errors.mean(), 0.38, color=COLORS[j], alpha=0.7, label=order if place == 0 else None)
            ax.plot([x] * len(values), errors, "o", color="k", markersize=2.5)
            ax.text(x, errors.max() + 0.3, f"{errors.mean():.1f} %", ha="center", va="bottom", fontsize=8)
    ax.set_xticks(range(len(accuracies)), accuracies)
    ax.set(ylabel="validation error, %")
    ax.margins(y=0.15)
    ax.grid(False, axis="x")
    figure.legend(loc="outside right upper", title="pixels")
    return figure


def ladder(steps):
    """Draw test accuracies, one below the other, with numbers. steps: {name: (mean, deviation or None, group)}."""
    groups = list(dict.fromkeys(group for *_, group in steps.values()))
    figure, ax = plt.subplots(figsize=(WIDTH, 0.22 * len(steps) + 1.1), layout="constrained")
    for y, (mean, deviation, group) in enumerate(steps.values()):
        j = groups.index(group)
        style = {"color": COLORS[[0, 3, 7][j]], "marker": MARKERS[j], "markersize": 5, "label": group}
        ax.errorbar(mean, y, xerr=deviation, linestyle="", capsize=2, **style)
        number = f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
        ax.text(1.01, y, f"{number} %", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    ax.axvline(0.95, color="k", linewidth=0.8, linestyle="--")
    ax.set_yticks(range(len(steps)), steps)
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}".replace("%", " %"))
    ax.set(xlabel="test accuracy", xlim=(min(mean for mean, *_ in steps.values()) - 0.005, 0.975))
    found = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(found.values(), found, loc="outside lower center", ncols=len(found))
    return figure


def recalls(shares, class_names):
    """Draw the recall of each class by several networks ({name: (10,)}), the hardest class of the first on top."""
    order = np.argsort(next(iter(shares.values())))
    figure, ax = plt.subplots(figsize=(WIDTH, 2.6), layout="constrained")
    for j, (name, share) in enumerate(shares.items()):
        ax.plot(share[order], range(len(order)), MARKERS[j], color=COLORS[j], markersize=5, label=name)
    lines = np.array(list(shares.values()))[:, order]
    ax.hlines(range(len(order)), lines.min(axis=0), lines.max(axis=0), color="0.8", zorder=0)
    ax.set_yticks(range(len(order)), [class_names[k] for k in order])
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}".replace("%", " %"))
    ax.set(xlabel="share of the class's test images that are recognised")
    figure.legend(loc="outside lower center", ncols=len(shares))
    return figure


# --------------------------------------------------------------------------------------------------------------- sweeps

SHADES = plt.get_cmap("viridis")  # of accuracies: ordered in lightness too, so also for the colour-blind and in grey
STATES = {"complete": "o", "pruned": "D", "not finite": "X", "failed": "X"}


def _by_accuracy(table):
    """Return the runs from worst to best, and their colours: those below the 30 % quantile share the darkest."""
    table = table.sort_values("best_val_accuracy", na_position="first")
    low, high = table.best_val_accuracy.quantile([0.3, 1])
    return table, Normalize(low, high, clip=True)


def sweep_curves(tables, metrics=("train_accuracy", "val_accuracy", "train_loss"), low=0.6):
    """Draw all runs of each sweep ({name: table}) in a row of panels; one scale of colour, of best_val_accuracy."""
    figure, axes = plt.subplots(
        len(tables), len(metrics), figsize=(WIDTH, 1.75 * len(tables)), layout="constrained", sharex="row"
    )
    norm = Normalize(low, max(table.best_val_accuracy.max() for table in tables.values()), clip=True)
    for row, (name, table) in zip(axes, tables.items(), strict=True):
        table = table.sort_values("best_val_accuracy", na_position="first")
        for ax, metric in zip(row, metrics, strict=True):
            for values, best in zip(table[f"{metric}_history"], table.best_val_accuracy, strict=True):
                color = SHADES(norm(best))
                last = best == table.best_val_accuracy.max()
                epochs = np.arange(1, len(values) + 1)
                ax.plot(epochs, values, color=COLORS[3] if last else color, linewidth=1.8 if last else 0.7)
            ax.set(title=words(metric), ylim=(0, 2.6 if "loss" in metric else 1))
            ax.xaxis.get_major_locator().set_params(integer=True)
        row[0].set_ylabel(f"sweep: {name}", fontweight="bold")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    figure.colorbar(plt.cm.ScalarMappable(norm, SHADES), ax=axes, label="best validation accuracy", extend="min")
    return figure


def created(tables, floor=0.8):
    """Draw the best validation accuracy of each run against when it was created, and the best so far.

    Runs below `floor` lie on the lower edge; the title has their number.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(WIDTH, 2.3), layout="constrained", sharey=True, squeeze=False)
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        table = table.sort_values("created")
        minutes = (table.created - table.created.min()).dt.total_seconds() / 60
        value = table.best_val_accuracy.fillna(0)
        for j, (state, marker) in enumerate(STATES.items()):
            here = table.state == state
            if here.any():
                y = value[here].clip(lower=floor)
                ax.plot(minutes[here], y, marker, color=COLORS[j], markersize=4, alpha=0.8, label=state, clip_on=False)
        ax.step(minutes, value.cummax().clip(lower=floor), where="post", color="k", linewidth=1, label="best so far")
        title = f"{name}: {(value < floor).sum()} of {len(table)} runs below {100 * floor:.0f} %"
        ax.set(xlabel="created, minutes after the first", title=title, ylim=(floor, 0.91))
    axes[0][0].set_ylabel("best validation accuracy")
    found = {label: line for ax in axes[0] for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found, loc="outside lower center", ncols=len(found))
    return figure


def _scale(values, score=None):
    """Return positions in [0, 1] of a parameter's values, and its ticks {position: label}.

    Numbers stand in their order, names in that of their mean `score`, the best on top, so that an axis shows it.
    """
    if values.dtype.kind in "fi" and values.nunique() > 8:
        return _continuous(values)
    means = values.map(score.groupby(values).mean()) if score is not None and values.dtype.kind not in "fi" else values
    names = list(values.iloc[np.argsort(means.to_numpy(), kind="stable")].unique())
    places = np.linspace(0, 1, len(names)) if len(names) > 1 else [0.5]
    return values.map(dict(zip(names, places, strict=True))), dict(zip(places, map(_label, names), strict=True))


def _label(value):
    return value if isinstance(value, str) else f"{value:g}"


def _continuous(values):
    log = values.min() > 0 and values.max() / values.min() > 10
    exact = np.log10(values) if log else values.astype(float)
    low, high = exact.min(), exact.max()
    ticks = MaxNLocator(5, integer=high - low > 2).tick_values(low, high)
    inside = [tick for tick in ticks if low - 1e-9 <= tick <= high + 1e-9]
    places = [(tick - low) / (high - low) for tick in inside]
    labels = [f"{10**tick if log else tick:.2g}" for tick in inside]
    return (exact - low) / (high - low), dict(zip(places, labels, strict=True))


ACCURACIES = (0.7, 0.8, 0.85, 0.88)  # marked on the axis of parallel coordinates, between the worst and the best


def parallel_coordinates(table, parameters):
    """Draw one smooth line a run through its parameters to its best validation accuracy, its colour; the best on top.

    On an axis of few values the lines of one value are fanned out by accuracy. Runs without an accuracy (a loss that is
    not finite) are dotted, and end below the axis.
    """
    table, norm = _by_accuracy(table)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
    accuracy = table.best_val_accuracy
    columns = [_axis(ax, i, table[name], accuracy) for i, name in enumerate(parameters)]
    columns.append(_accuracy_axis(ax, len(parameters), accuracy))
    bend = np.linspace(0, 1, 30)
    bend = 3 * bend**2 - 2 * bend**3  # leaves and meets every axis at a right angle
    x = np.concatenate([i + np.linspace(0, 1, 30) for i in range(len(parameters))])
    for run, (value, *heights) in enumerate(zip(accuracy, *columns, strict=True)):
        y = np.concatenate([a + (b - a) * bend for a, b in zip(heights, heights[1:], strict=False)])
        best = run == len(table) - 1
        color = "0.5" if np.isnan(value) else COLORS[3] if best else SHADES(norm(value))
        style = ":" if np.isnan(value) else "-"
        ax.plot(x, y, style, color=color, linewidth=2 if best else 0.8, alpha=1 if best else 0.7)
    for i, name in enumerate([*map(words, parameters), "validation accuracy"]):
        ax.axvline(i, ymin=0.06, ymax=0.86, color="k", linewidth=0.8)
        ax.text(i, 1.22, name.replace(" ", "\n", 1), ha="center", va="bottom", fontsize=8)
    ax.set(xlim=(-0.55, len(parameters) + 0.45), ylim=(-0.25, 1.45))
    ax.axis("off")
    figure.colorbar(plt.cm.ScalarMappable(norm, SHADES), ax=ax, label="best validation accuracy", extend="min")
    return figure


def _axis(ax, i, values, accuracy):
    """Label axis i; return the height of each run on it."""
    places, ticks = _scale(values, accuracy)
    for place, text in ticks.items():
        ax.text(i - 0.06, place, text, ha="right", va="center", fontsize=8, bbox=CLEAR, zorder=5)
    fan = 0.5 / len(ticks) if values.nunique() <= 8 else 0
    return places.to_numpy() + fan * (accuracy.fillna(0).rank(pct=True).to_numpy() - 0.5)


def _accuracy_axis(ax, i, accuracy):
    """Label the last axis, whose cube spreads the best apart; return the height of each run on it."""
    low, high = accuracy.min(), accuracy.max()
    for tick in (low, *(tick for tick in ACCURACIES if low + 0.02 < tick < high - 0.01), high):
        ax.text(i + 0.06, ((tick - low) / (high - low)) ** 3, f"{tick:.3g}", va="center", fontsize=8)
    finite = accuracy.notna().to_numpy()
    if not finite.all():
        ax.text(i + 0.06, -0.12, "not finite", va="center", fontsize=8)
    return np.where(finite, ((accuracy - low) / (high - low)) ** 3, -0.12)


def importance(tables, chance):
    """Draw importance and correlation by parameter of each sweep. tables: {sweep: see anova.importance}.

    chance: {sweep: the size below which correlations of unrelated runs lie}, drawn as a band.
    """
    figure, axes = plt.subplots(
        len(tables), 2, figsize=(WIDTH, 3 * len(tables)), layout="constrained", width_ratios=[1, 1.1], squeeze=False
    )
    for (left, right), (name, table) in zip(axes, tables.items(), strict=True):
        whole = table.dropna(subset="importance").sort_values("importance")
        left.barh([*map(words, whole.name)], whole.importance, color=COLORS[0])
        left.set(title=f"{name}: importance (fANOVA)", xlabel="share of the variance")
        signed = table.dropna(subset="correlation").iloc[::-1]
        colors = [COLORS[2] if value > 0 else COLORS[3] for value in signed.correlation]
        right.barh([": ".join(map(words, one.split(": "))) for one in signed.name], signed.correlation, color=colors)
        right.axvspan(-chance[name], chance[name], color="0.5", alpha=0.25, linewidth=0)
        right.axvline(0, color="k", linewidth=0.8)
        right.set(title=f"{name}: correlation", xlabel="rank correlation")
        for ax in (left, right):
            ax.grid(False, axis="y")
    return figure


# ------------------------------------------------------------------------------------------------------------- the grid


def _terms(index):
    return [" × ".join(map(words, filter(None, term))) for term in index]


def shares(spaces, count=10):
    """Draw the `count` largest terms of each decomposition as bars, and what fANOVA estimates of single parameters.

    spaces: {title: (shares of anova.decomposition, {runs: draws of anova.fanova})}.
    """
    figure, axes = plt.subplots(1, len(spaces), figsize=(WIDTH, 3.8), layout="constrained", squeeze=False)
    for ax, (title, (exact, samples)) in zip(axes[0], spaces.items(), strict=True):
        top = exact.drop(("rest", "")).head(count)
        y = np.arange(len(top))[::-1]
        ax.barh(y, top, color="0.8", label="the grid")
        for j, (runs, draws) in enumerate(samples.items()):
            alone = [(place, name) for place, (name, other) in zip(y, top.index, strict=True) if not other]
            places, names = (list(each) for each in zip(*alone, strict=True))
            style = {"color": COLORS[j], "marker": MARKERS[j], "markersize": 4, "linestyle": "", "linewidth": 1}
            mean = draws[names].mean()
            spread = draws[names].std()
            up = np.array(places) + 0.2 - 0.4 * j
            ax.errorbar(mean, up, xerr=spread, label=f"fANOVA on {runs} runs, mean ± deviation", **style)
        ax.set_yticks(y, _terms(top.index))
        ax.set(title=title, xlabel="share of the variance", xlim=0)
        ax.grid(False, axis="y")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def marginals(table, y, names):
    """Draw y by the value of each parameter: 10 to 90 % (thin line), quartiles (thick), median, mean, best."""
    figure, axes = plt.subplots(
        2, -(-len(names) // 2), figsize=(WIDTH, 4.6), layout="constrained", sharey=True, squeeze=False
    )
    for ax, name in zip(axes.flat, names, strict=True):
        places, ticks = _scale(table[name], y)
        by = y.groupby(places)
        q10, q25, median, q75, q90 = (by.quantile(q) for q in (0.1, 0.25, 0.5, 0.75, 0.9))
        ax.vlines(q10.index, q10, q90, color=COLORS[0], linewidth=1)
        ax.vlines(q25.index, q25, q75, color=COLORS[0], linewidth=5, alpha=0.5)
        ax.plot(median, "o", color=COLORS[0], markersize=5, markeredgecolor="w", label="median")
        ax.plot(by.mean(), "D", color=COLORS[1], markersize=4, label="mean")
        ax.plot(by.max(), "_", color="k", markersize=12, markeredgewidth=2, label="best")
        slope = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(ticks) > 3 else {}
        ax.set_xticks(list(ticks), ticks.values(), **slope)
        ax.set(title=words(name), ylim=(0, 0.95), xlim=(-0.2, 1.2))
    for ax in axes[:, 0]:
        ax.set_ylabel("validation accuracy")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def interactions(panels):
    """Draw heat maps side by side, one scale of colour. panels: {title: means as a table, rows by columns}."""
    wide = [table.shape[1] + 1.5 for table in panels.values()]
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3), layout="constrained", width_ratios=wide)
    for ax, (title, table) in zip(axes, panels.items(), strict=True):
        picture = ax.imshow(table, cmap="viridis", vmin=0.1, vmax=0.9, aspect="auto")
        for (i, j), value in np.ndenumerate(table):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if value < 0.6 else "k")
        rows = [", ".join(map(str, row)) if isinstance(row, tuple) else row for row in table.index]
        ax.set_yticks(range(len(rows)), rows)
        ax.set_xticks(range(table.shape[1]), [f"{v:g}" if np.isreal(v) else v for v in table.columns])
        ax.set(title=title, xlabel=words(table.columns.name))
        ax.grid(False)
    figure.colorbar(picture, ax=axes, label="mean validation accuracy")
    return figure


def seed_spread(seeded, best):
    """Draw validation accuracies over seeds: of all trainings by their mean's rank, of the grid's `best` by theirs."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.8), layout="constrained")
    by = seeded.groupby("number").val_accuracy.agg(["min", "mean", "max"])
    panels = {"rank by the mean of the seeds": by["mean"].sort_values(ascending=False).index, "rank in the grid": best}
    for ax, (label, numbers) in zip(axes, panels.items(), strict=True):
        place = dict(zip(numbers, range(1, len(numbers) + 1), strict=True))
        ax.vlines(place.values(), *by.loc[numbers, ["min", "max"]].to_numpy().T, color="0.7", linewidth=2)
        here = seeded[seeded.number.isin(numbers)]
        ax.plot(
            here.number.map(place), here.val_accuracy, "o", color=COLORS[0], markersize=3, alpha=0.6, label="a seed"
        )
        style = {"color": COLORS[3], "markersize": 9, "markeredgewidth": 1.5, "label": "mean of the seeds"}
        ax.plot(place.values(), by.loc[numbers, "mean"], "_", **style)
        ax.set(title=f"the best {len(best)}" if numbers is best else f"all {len(numbers)}", xlabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("validation accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def regrets(regret, within, low=1e-4):
    """Draw the median regret of searches and its 10 to 90 % band by the budget of epochs; 0 is at `low`."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1), layout="constrained", sharey=True)
    for (search, hyperband), rows in regret.clip(lower=low).groupby(level=[0, 1]):
        ax = axes[int(hyperband)]
        j = ["random", "tpe"].index(search)
        rows = rows.droplevel([0, 1])
        ax.fill_between(
            rows.columns, rows.loc["q10"], rows.loc["q90"], step="post", color=COLORS[j], alpha=0.2, linewidth=0
        )
        ax.step(rows.columns, rows.loc["median"], ["-", "--"][j], where="post", color=COLORS[j], label=search)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="epochs trained",
            title="with hyperband" if hyperband else "every run to the end",
        )
    for ax in axes:
        ax.axhline(within, color="k", linewidth=0.8, linestyle=":")
        below = {"xytext": (0, -3), "textcoords": "offset points", "va": "top"}  # clear of the line
        ax.annotate(f"{100 * within:.1f} points from the best", (regret.columns[0], within), fontsize=8, **below)
        ax.yaxis.set_major_formatter(lambda y, _: "0" if y <= low else f"{y:g}")
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("regret of validation accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
