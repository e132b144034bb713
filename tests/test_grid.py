"""grid.py: the grid goes on from whatever is left of it, its table says what was trained, and the analysis is exact."""

from pathlib import Path

import pandas as pd

import grid
import sweep

ROOT = Path(__file__).resolve().parents[1]


def tiny(name):
    """Few images, and classes that can be learnt."""
    from test_sweep import tiny

    return tiny(name)


def small(count=6):
    """A grid of few trainings, as quick as the parameters of the real one allow."""
    parameters = {name: {"value": values[0]} for name, values in VALUES.items()} | {"epochs": {"value": 10}}
    parameters |= {"learning_rate": {"values": [0.001, 0.0001]}, "optimizer": {"values": ["sgd", "adam", "nadam"]}}
    given = {"program": "train.py", "name": "grid", "method": "grid", "run_cap": count}
    return sweep._sweep({**given, "metric": {"name": "val_accuracy", "goal": "maximize"}, "parameters": parameters})


VALUES = {name: grid.SPACE.space[name].choices for name in grid.PARAMETERS}


def test_any_prefix_of_the_grid_is_a_balanced_sample():
    rows = pd.DataFrame([sweep.suggest(grid.SPACE, range(n), 0) for n in range(500)])
    for n in (54, 150, 500):
        for name, values in VALUES.items():
            share = rows[:n][name].value_counts().reindex(values, fill_value=0) * len(values) / n
            assert abs(share - 1).max() < 0.12, (n, name)
    pairs = [rows.groupby([a, b]).size() for a in VALUES for b in VALUES if a < b]
    assert len(pairs) == 28 and max(abs(pair / pair.mean() - 1).max() for pair in pairs) < 0.11  # at random: 0.5
