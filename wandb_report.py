"""The report on W&B, built from code: panels of a project's runs, beside tables of the stored sweeps and studies.

python wandb_report.py                                             prints the report's address as its last line
python wandb_report.py --wandb_project NAME --wandb_entity NAME    of another project than train.py logs to

The runs are those of train.py and sweep.py, logged online or uploaded by `wandb sync`. Images and confusion matrix are
of the run with a test accuracy whose validation accuracy is best. Called again, it overwrites that report.
Exit status: 0 written, 2 not: no login, no network, no such run, no permission; 130 interrupted.
"""

import sys
from dataclasses import asdict

import pandas as pd
import wandb_workspaces.reports.v2 as wr

from helpers import Config, InputError
from lib.anova import importance
from lib.claims import spread
from lib.cli import Parser, answer
from lib.tables import config_of
from lib.tracking import PROJECT, check_project, online_mode, quiet_wandb
from study import load_study
from sweep import load_results

TITLE = "CS6910 Assignment 1"
WIDE = {"layout": wr.Layout(w=24, h=12)}
TESTED = {"config.dataset": Config.dataset, "summary_metrics.test_accuracy": {"$exists": True}}


def in_words(config):
    """Return what distinguishes a configuration."""
    shape = f"{config.num_layers} × {config.hidden_size} {config.activation}, {config.weight_init}, {config.optimizer}"
    rates = f"rate {config.learning_rate:.3g}, decay {config.weight_decay:.2g}, batch {config.batch_size}"
    return f"{shape}, {rates}, {config.epochs} epochs"


def markdown(table):
    """Return a block with a table: a list of dictionaries, one for each row, whose keys are the columns."""
    lines = [list(table[0]), ["---"] * len(table[0]), *(row.values() for row in table)]
    return wr.MarkdownBlock("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))


def by_config(study, name, key):
    """Return a block with the trainings of a study: those that differ in nothing but their seed are one row."""
    groups = study.groupby([str(asdict(config_of(row)) | {"seed": 0}) for _, row in study.iterrows()], sort=False)
    rows = [
        {name: key(config_of(t.iloc[0])), "seeds": len(t), "validation accuracy": spread(t.val_accuracy)}
        | {"test accuracy": spread(t.test_accuracy), "seconds of a training": f"{t.seconds.mean():.0f}"}
        for _, t in groups
    ]
    return [markdown(rows), wr.P(f"Mean ± standard deviation over seeds. {'; '.join(study.machine.unique())}.")]


def runset(name, where, **config):
    """Return the runs with this configuration."""
    return wr.Runset(**where, name=name, filters=" and ".join(f"Config('{k}') == {v!r}" for k, v in config.items()))


def charts(*names, **options):
    """Return a panel for each metric: its course over the epochs."""
    return [wr.LinePlot(title=name, x="epoch", y=[name], title_x="epoch", **options) for name in names]


def worth(sweep):
    """Blocks with the importance of the parameters of a stored sweep."""
    shares = importance(sweep).dropna(subset="importance")
    rows = [
        {"parameter": row["name"], "share of the variance": f"{row.importance:.3f} ± {row.deviation:.3f}"}
        for _, row in shares.iterrows()
    ]
    text = f"Sweep {sweep.attrs['definition']['name']}: fANOVA on {len(sweep)} runs, mean ± deviation of its forests."
    return [wr.P(text), markdown(rows)]


def blocks(where, best):
    """Return the report's blocks. where: entity and project of the runs; best: the id of the run to show."""
    sweeps = [load_results(name) for name in ("random", "bayes")]
    chosen = load_study("selected")
    one = [wr.Runset(**where, name="Best run", filters=f"Metric('ID') == '{best}'")]
    return [
        wr.P(summary(pd.concat(sweeps), chosen)),
        wr.TableOfContents(),
        wr.H2("Question 1: one image of each class"),
        wr.PanelGrid(one, panels=[wr.MediaBrowser(media_keys=["samples"], num_columns=10, **WIDE)]),
        *search(where, sweeps),
        wr.H2("Question 7: confusion matrix of the best run"),
        wr.PanelGrid(one, panels=[confusion_matrix()]),
        *comparison(where, pd.concat([chosen, load_study("losses")])),
        wr.H2("Question 10: MNIST"),
        *by_config(load_study("mnist"), "configuration", in_words),
    ]


def summary(runs, chosen):
    """Return what was found, in words."""
    return (
        "A network, its backpropagation and its optimisers in NumPy. Best validation accuracy of "
        f"{len(runs)} configurations: {runs.best_val_accuracy.max():.4f}. Test accuracy of the one selected: "
        f"{spread(chosen.test_accuracy)} over {len(chosen)} seeds ({in_words(config_of(chosen.iloc[0]))}). The panels "
        "show the runs of this project; the tables are computed from the stored sweeps and studies."
    )


def search(where, sweeps):
    """Questions 4 to 6: the runs of the sweeps, and what their accuracy depends on."""
    every = [runset("Fashion-MNIST", where, dataset=Config.dataset)]
    spaces = [sweep.attrs["definition"]["parameters"] for sweep in sweeps]
    searched = [name for name in spaces[0] if any("value" not in space[name] for space in spaces)]
    axes = [wr.ParallelCoordinatesPlotColumn(wr.Config(name), log=name == "learning_rate") for name in searched]
    axes.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric("val_accuracy")))
    created = {"x": wr.Metric("CreatedTimestamp"), "y": wr.SummaryMetric("val_accuracy"), "running_ymax": True, **WIDE}
    return [
        wr.H2("Question 4: the sweeps"),
        wr.PanelGrid(every, panels=charts("train_accuracy", "val_accuracy", "train_loss")),
        *best_runs(pd.concat(sweeps)),
        wr.H2("Question 5: validation accuracy against time of creation"),
        wr.PanelGrid(every, panels=[wr.ScatterPlot(title="val_accuracy v. created", **created)]),
        wr.H2("Question 6: what the accuracy depends on"),
        wr.PanelGrid(every, panels=[wr.ParallelCoordinatesPlot(columns=axes, **WIDE)]),
        wr.PanelGrid(every, panels=[wr.ParameterImportancePlot(with_respect_to="val_accuracy", **WIDE)]),
        *[block for sweep in sweeps for block in worth(sweep)],
    ]


def best_runs(runs):
    """Blocks with the ten best runs of the sweeps."""
    top = [
        {"configuration": in_words(config_of(row)), "best validation accuracy": f"{row.best_val_accuracy:.4f}"}
        | {"seed": row.seed, "seconds": f"{row.seconds:.0f}"}
        for _, row in runs.nlargest(10, "best_val_accuracy").iterrows()
    ]
    return [markdown(top), wr.P(f"The best {len(top)} of {len(runs)}. {'; '.join(runs.machine.dropna().unique())}.")]


def confusion_matrix():
    """Return the panel that wandb.plot.confusion_matrix has logged."""
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": "confusion_matrix_table"}},
        chart_name="wandb/confusion_matrix/v1",
        chart_fields={name: name for name in ("Actual", "Predicted", "nPredictions")},
        chart_strings={"title": "Confusion matrix (test)"},
        **WIDE,
    )


def comparison(where, losses):
    """Question 8: runs of the selected configuration with each loss, and the study of them."""
    selected = asdict(config_of(losses.iloc[0]))
    alike = {name: value for name, value in selected.items() if name not in ("loss", "learning_rate", "seed")}
    either = [runset("Selected configuration, each loss", where, **alike)]
    return [
        wr.H2("Question 8: cross-entropy against squared error"),
        wr.P("Runs of the selected configuration; `python train.py --loss mean_squared_error` adds one."),
        wr.PanelGrid(either, panels=charts("train_accuracy", "val_accuracy", groupby=wr.Config("loss"))),
        *by_config(losses, "loss", lambda config: f"{config.loss}, rate {config.learning_rate:.3g}"),
    ]


def write(entity, project):
    """Write the report, in place of one of the same title; return its address. Raises InputError without a run."""
    api = quiet_wandb().Api()
    entity = entity or api.default_entity
    tested = api.runs(f"{entity}/{project}", filters=TESTED, order="-summary_metrics.val_accuracy", per_page=1)
    if not len(tested):
        raise InputError(f"{entity}/{project} has no run with a test accuracy; allowed: after train.py has logged one")
    content = blocks({"entity": entity, "project": project}, tested[0].id)
    report = wr.Report(project=project, entity=entity, title=TITLE, blocks=content, width="fluid")
    report.id = next((old.id for old in api.reports(f"{entity}/{project}") if old.display_name == TITLE), "")
    return report.save().url


def work(argv):
    """Write the report as the flags say; return its address."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-wp", "--wandb_project", default=PROJECT)
    parser.add_argument("-we", "--wandb_entity")
    given = parser.parse_args(argv)
    check_project(given.wandb_project)
    if given.wandb_entity is not None:
        check_project(given.wandb_entity, "--wandb_entity")
    online_mode()
    try:
        return write(given.wandb_entity, given.wandb_project)
    except InputError:
        raise
    except Exception as error:  # whatever W&B's client makes of no network, no project, no permission
        raise InputError(f"W&B: {error}") from None


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""
    return answer("wandb_report.py", __doc__, argv, work, "the same command writes the report anew")


if __name__ == "__main__":
    sys.exit(main())
