"""Run the notebook's cells on a kernel that nothing of a person's settings reaches."""

import ast
import asyncio
import contextlib
import os
import tempfile
from pathlib import Path

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.utils import ensure_event_loop, run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.filters import strip_ansi
from tqdm import tqdm

# What the kernel may see of the environment: where things are, how fast they run, how W&B and the network are reached.
SEEN = {"PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "CI"}
SEEN |= {"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "XDG_CACHE_HOME", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}
SEEN_PREFIXES = ("REPORT_", "WANDB_", "OPENBLAS_", "OMP_", "MKL_", "NUMBA_", "LD_", "DYLD_")
OURS = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0"}


def environment(scratch, **variables):
    """Return the kernel's environment; IPython's and matplotlib's settings are those of an empty folder."""
    seen = {
        name: value
        for name, value in os.environ.items()
        if name in SEEN or name.startswith(SEEN_PREFIXES) or name.lower().endswith("_proxy")
    }
    settings = Path(scratch, "matplotlibrc")
    settings.touch()
    return seen | OURS | {"IPYTHONDIR": str(Path(scratch, "ipython")), "MATPLOTLIBRC": str(settings)} | variables


@contextlib.contextmanager
def running(nb, folder, **variables):
    """Start a kernel of this very interpreter in `folder`, whatever other kernels are installed; yield its client."""
    with tempfile.TemporaryDirectory() as scratch:
        kernel = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport_encryption="auto",
            connection_file=str(Path(scratch, "kernel.json")),
        )
        resources = {"metadata": {"path": str(folder)}}
        client = NotebookClient(nb, km=kernel, timeout=None, record_timing=False, resources=resources)
        try:
            client.start_new_kernel(env=environment(scratch, **variables), cwd=str(folder))
            client.start_new_kernel_client()
            yield client  # not in client.setup_kernel, which answers Ctrl-C with a traceback
        finally:
            ensure_event_loop().set_exception_handler(lambda *_: None)  # for what waited for an answer of this kernel
            if client.kc:
                client.kc.stop_channels()
            run_sync(kernel.shutdown_kernel)(now=True)


def run_cells(client, chosen, progress=True):
    """Run the code cells of the notebook for which chosen(cell) holds; raise RuntimeError for one that fails."""
    code = [(index, cell) for index, cell in enumerate(client.nb.cells) if cell.cell_type == "code" and chosen(cell)]
    for number, (index, cell) in enumerate(tqdm(code, "Executing", unit="cell", disable=not progress), 1):
        cell.metadata.pop("execution", None)  # the times that an earlier run recorded
        try:
            client.execute_cell(cell, index)
        except (CellExecutionError, DeadKernelError) as error:
            first = cell.source.strip().splitlines()[0]
            last = strip_ansi(str(error)).strip().splitlines()[-1]
            raise RuntimeError(f"code cell {number} failed ({first}): {last}") from None


async def _ask(client, expressions):
    """Return the kernel's answer; raise RuntimeError if it dies first, since the answer would be awaited for ever."""
    asked = {str(i): f"str((\n{expression}\n))" for i, expression in enumerate(expressions)}
    answer = asyncio.ensure_future(client.kc.execute_interactive("", silent=True, user_expressions=asked))
    while not (await asyncio.wait([answer], timeout=1))[0]:
        if not await client.km.is_alive():
            answer.cancel()
            raise RuntimeError(f"the kernel died at one of the values: {', '.join(expressions)}"[:300])
    return answer.result()["content"]["user_expressions"]


def evaluate(client, expressions):
    """Return {expression: str of its value} from the kernel; raise RuntimeError for one that fails."""
    answers = run_sync(_ask)(client, expressions)
    values = {}
    for i, (expression, place) in enumerate(expressions.items()):
        answer = answers[str(i)]
        if answer["status"] != "ok":
            raise RuntimeError(f"{place}: {expression} fails: {answer['ename']}: {answer['evalue']}")
        values[expression] = ast.literal_eval(answer["data"]["text/plain"])
    return values
