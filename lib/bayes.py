"""What Optuna's TPESampler suggests after a history, without copying the history."""

from copy import copy

import optuna
from optuna.distributions import _get_single_value
from optuna.trial import TrialState, create_trial


class _HandedOver(optuna.storages.InMemoryStorage):
    """A storage whose only study has the trials of a list, which are neither copied nor changed."""

    def __init__(self, trials):
        super().__init__()
        self._given = trials

    def get_all_trials(self, study_id, deepcopy=True, states=None):
        return [trial for trial in self._given if states is None or trial.state in states]

    def set_trial_system_attr(self, trial_id, key, value):
        """Forget what a sampler would share with others: each suggestion has a sampler of its own."""


def suggest_bayes(space, trials, seed, maximize):
    """Return what TPESampler(seed=seed, multivariate=True) suggests after these trials, running ones included.

    The result is that of `study.add_trials(trials)` and `study.ask(space)` on a new study. Every trial has every
    parameter of `space`, so what Optuna would look up in all of them is known.
    """
    trials = [_numbered(trial, number) for number, trial in enumerate(trials)]
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    direction = "maximize" if maximize else "minimize"
    study = optuna.create_study(storage=_HandedOver(trials), sampler=sampler, direction=direction)
    new = _numbered(create_trial(state=TrialState.RUNNING), len(trials))
    free = {name: space[name] for name in sorted(space) if not space[name].single()}
    params = sampler.sample_relative(study, new, free)
    for name, distribution in space.items():
        if distribution.single():
            params[name] = _get_single_value(distribution)
        elif name not in params:
            params[name] = sampler.sample_independent(study, new, name, distribution)
    return {name: params[name] for name in space}


def _numbered(trial, number):
    if trial.number != number:
        trial = copy(trial)
        trial.number = number
    return trial
