"""Every figure of the report: a function takes arrays or rows and returns a figure; `show` saves and displays it."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import Image

from helpers import write_atomically

FIGURES = Path(__file__).resolve().parent / "figures"
WIDTH = 7.0  # inches: the text width of the PDF, so that a font size here is the size on paper
COLORS = sns.color_palette("colorblind")
MARKERS = "osD^vPX*"

sns.set_theme(
    context="paper",
    style="ticks",
    palette="colorblind",
    rc={
        "figure.dpi": 100,
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "0.9",
        "legend.fontsize": 8,
        "legend.frameon": False,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
    },
)


def show(figure, name, title, caption):
    """Save a figure as figures/<name>.png (200 dpi, atomically) and return that very picture, to be a cell's output.

    The title says what to see. The caption is the picture's alternative text, which report.py sets below the figure.
    """
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    FIGURES.mkdir(parents=True, exist_ok=True)
    path = FIGURES / f"{name}.png"
    with write_atomically(path) as file:
        figure.savefig(file, dpi=200, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return Image(path.read_bytes(), format="png", width=700, alt=caption)


def sample_grid(images, labels, class_names):
    """The first image (784,) of each class among `images`, in a grid of two rows."""
    figure, axes = plt.subplots(2, 5, figsize=(WIDTH, 3.3), layout="constrained")
    for k, (ax, name) in enumerate(zip(axes.flat, class_names, strict=True)):
        first = np.flatnonzero(labels == k)[0]
        ax.imshow(images[first].reshape(28, 28), cmap="gray_r")
        ax.set_title(f"{k}  {name}", loc="center")
        ax.set(xticks=[], yticks=[])
        sns.despine(ax=ax, left=True, bottom=True)
    return figure


def signal(profiles, titles):
    """How a signal fares through depth. profiles: {(weight_init, activation): a list by layer per panel}."""
    figure, axes = plt.subplots(1, len(titles), figsize=(WIDTH, 3.1), layout="constrained")
    inits, activations = (list(dict.fromkeys(names)) for names in zip(*profiles, strict=True))
    for i, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        for (init, activation), values in profiles.items():
            j, style = activations.index(activation), ["--", "-"][inits.index(init)]
            layers = np.arange(1, len(values[i]) + 1)
            label = f"{init}, {activation}"
            ax.semilogy(layers, values[i], style, marker=MARKERS[j], color=COLORS[j], label=label, markersize=4)
        ax.set(xlabel="layer", xticks=layers, title=title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(profiles))
    return figure


def curves(histories, metrics=("train_loss", "val_loss", "val_accuracy"), colors=None):
    """One panel per metric, one line per name. histories: {name: rows of helpers.train}, or a list of such for a band.

    Where a name has several histories (seeds), the line is their mean and the band their range.
    """
    figure, axes = plt.subplots(1, len(metrics), figsize=(WIDTH, 2.8), layout="constrained", squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        for j, (name, runs) in enumerate(histories.items()):
            runs = runs if isinstance(runs[0], list) else [runs]
            values = np.array([[row[metric] for row in run] for run in runs])
            epochs = np.arange(1, values.shape[1] + 1)
            color = COLORS[j % len(COLORS)]
            every = max(1, len(epochs) // 8)
            ax.plot(epochs, values.mean(0), color=color, marker=MARKERS[j], markersize=3.5, markevery=every, label=name)
            if len(runs) > 1:
                ax.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
        words = {"train": "training", "val": "validation"}
        ax.set(xlabel="epoch", title=" ".join(words.get(word, word) for word in metric.split("_")))
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def confusion_matrix(counts, class_names):
    """counts[i, j]: images of class i named j. Colour and first line: per cent of the row; second line: the count."""
    share = counts / counts.sum(axis=1, keepdims=True)
    figure, ax = plt.subplots(figsize=(WIDTH, 5.8), layout="constrained")
    ax.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1.1)  # the root makes rare confusions visible
    for (i, j), count in np.ndenumerate(counts):
        if count:
            text = f"{share[i, j]:.1%}\n{count:,.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color="w" if share[i, j] > 0.4 else "k")
    ticks = range(len(class_names))
    ax.set_xticks(ticks, class_names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, class_names)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.grid(False)
    return figure
