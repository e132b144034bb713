"""The rows of a sweep in Optuna's tables: each finished trial is read once, and a change is a few statements."""

import json
import zlib
from collections import defaultdict
from datetime import UTC, datetime
from functools import lru_cache

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, insert, or_, select, update

from helpers import InputError

STUDIES = models.StudyModel.__table__
DIRECTIONS = models.StudyDirectionModel.__table__
STUDY_ATTRIBUTES = models.StudyUserAttributeModel.__table__
TRIALS = models.TrialModel.__table__
PARAMS = models.TrialParamModel.__table__
VALUES = models.TrialValueModel.__table__
ATTRIBUTES = models.TrialUserAttributeModel.__table__
REPORTS = models.TrialIntermediateValueModel.__table__
BEATS = models.TrialHeartbeatModel.__table__

FINITE = models.TrialValueModel.TrialValueType.FINITE
RUNNING = {"owner", "attempts"}  # the attributes of a trial while it runs
FINISHED = RUNNING | {"outcome"}
BATCH = 500  # trials in one query
distribution_of = lru_cache(json_to_distribution)


def set_attributes(connection, table, number, **attributes):
    """Set attributes of the study or trial `number`: `table` is STUDY_ATTRIBUTES or ATTRIBUTES."""
    owner = table.c.study_id if table is STUDY_ATTRIBUTES else table.c.trial_id
    for key, value in attributes.items():
        text = json.dumps(value)
        query = update(table).where(owner == number, table.c.key == key).values(value_json=text)
        if not connection.execute(query).rowcount:
            connection.execute(insert(table).values({owner: number, "key": key, "value_json": text}))


def enter_study(connection, name, direction):
    """Enter a study; return its id."""
    study_id = connection.execute(insert(STUDIES).values(study_name=name)).inserted_primary_key[0]
    connection.execute(insert(DIRECTIONS).values(study_id=study_id, objective=0, direction=direction))
    return study_id


def enter_trial(connection, study_id, number, params, space, **attributes):
    """Enter a running trial."""
    new = {"study_id": study_id, "number": number, "state": TrialState.RUNNING, "datetime_start": _now()}
    trial_id = connection.execute(insert(TRIALS).values(**new)).inserted_primary_key[0]
    rows = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": space[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(space[name]),
        }
        for name, value in params.items()
    ]
    connection.execute(insert(PARAMS), rows)
    rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]
    connection.execute(insert(ATTRIBUTES), rows)
    connection.execute(insert(BEATS).values(trial_id=trial_id))


def beat(connection, trial):
    """Write down a sign of life, by the database's clock."""
    this = BEATS.c.trial_id == trial._trial_id
    if not connection.execute(update(BEATS).where(this).values(heartbeat=func.now())).rowcount:
        connection.execute(insert(BEATS).values(trial_id=trial._trial_id))


def signs_of_life(connection, study_id):
    """Return {id: (the last sign of life, seconds since)} of the running trials, by the database's clock."""
    query = select(BEATS.c.trial_id, BEATS.c.heartbeat, func.now()).join(TRIALS)
    query = query.where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING)
    rows = connection.execute(query).all()
    return {trial: (beat, (now.replace(tzinfo=None) - beat).total_seconds()) for trial, beat, now in rows}


def change_running(connection, trial, **values):
    """Change a trial if it is running; return whether it was. No other process comes between."""
    this = (TRIALS.c.trial_id == trial._trial_id) & (TRIALS.c.state == TrialState.RUNNING)
    return bool(
        connection.execute(update(TRIALS).where(this).values(**{"state": TrialState.RUNNING, **values})).rowcount
    )


def finish_trial(connection, trial, state, value, outcome):
    """Write down what came out of a running trial; return whether it was running."""
    if not change_running(connection, trial, state=state, datetime_complete=_now()):
        return False
    if value is not None:
        connection.execute(insert(VALUES).values(trial_id=trial._trial_id, objective=0, value=value, value_type=FINITE))
    params = {name: trial.distributions[name].to_internal_repr(param) for name, param in trial.params.items()}
    checksum = _checksum(trial.number, state, value, params, json.dumps(outcome))
    set_attributes(connection, ATTRIBUTES, trial._trial_id, outcome=outcome, checksum=checksum)
    return True


def _now():
    return datetime.now(UTC).replace(tzinfo=None)


def _checksum(number, state, value, params, outcome):
    """Return a number that tells a trial from one in which a bit was flipped, which no database notices."""
    params = sorted((name, float(param)) for name, param in params.items())
    return zlib.crc32(f"{number} {state.name} {value and float(value)} {params} {outcome}".encode())


class History:
    """The trials of a study: what was finished when it was last read is not read again."""

    def __init__(self, study_id):
        self._study_id = study_id
        self._trials = {}  # by their ids, which rise with their numbers

    def read(self, connection):
        """Return all trials, by number. Raises InputError if one is damaged or somebody else's."""
        running = [key for key, trial in self._trials.items() if not trial.state.is_finished()]
        new = or_(TRIALS.c.trial_id > max(self._trials, default=-1), TRIALS.c.trial_id.in_(running))
        query = select(TRIALS).where(TRIALS.c.study_id == self._study_id, new).order_by(TRIALS.c.trial_id)
        rows = connection.execute(query).all()
        for start in range(0, len(rows), BATCH):
            self._read(connection, rows[start : start + BATCH])
        return list(self._trials.values())

    def _read(self, connection, rows):
        """Read what belongs to these rows. They come first, so that nothing is missing of one that has finished."""
        parts = []
        for table in (PARAMS, VALUES, ATTRIBUTES, REPORTS):
            query = select(table).where(table.c.trial_id.in_([row.trial_id for row in rows]))
            of_trial = defaultdict(list)
            for part in connection.execute(query.order_by(table.primary_key.columns[0])).all():
                of_trial[part.trial_id].append(part)
            parts.append(of_trial)
        for row in rows:
            self._trials[row.trial_id] = _trial(row, *(part[row.trial_id] for part in parts))


def _trial(row, params, values, attributes, reports):
    """Return a row and what belongs to it as Optuna's trial. Raises InputError."""
    texts = {one.key: one.value_json for one in attributes}
    missing = (FINISHED if row.state.is_finished() else RUNNING) - texts.keys()
    if missing:
        raise InputError(f"trial {row.number} is not of sweep.py; allowed: a study that nobody else writes to")
    to_value = models.TrialValueModel.stored_repr_to_value
    to_report = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    values = [to_value(one.value, one.value_type) for one in values] or None
    if row.state.is_finished() and "checksum" in texts:
        raw = {one.param_name: one.param_value for one in params}
        found = _checksum(row.number, row.state, values and values[0], raw, texts["outcome"])
        if str(found) != texts["checksum"]:
            raise InputError(f"trial {row.number} is damaged: not what was written; allowed: a copy that is whole")
    distributions = {one.param_name: distribution_of(one.distribution_json) for one in params}
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=values,
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params={one.param_name: distributions[one.param_name].to_external_repr(one.param_value) for one in params},
        distributions=distributions,
        user_attrs={key: json.loads(text) for key, text in texts.items()},
        system_attrs={},
        intermediate_values={
            one.step: to_report(one.intermediate_value, one.intermediate_value_type) for one in reports
        },
        trial_id=row.trial_id,
    )


def _local(time):
    return time and time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
