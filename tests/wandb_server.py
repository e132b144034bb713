"""A W&B server of our own on 127.0.0.1: as much of the API as the client asks for when it logs, sweeps, syncs and reports.

    with Server() as server:                       # server.url, server.key: WANDB_BASE_URL and WANDB_API_KEY
        server.fail("file_stream", 500, times=2)   # what it answers on demand
        ...
        server.runs["abcd1234"].history            # what it was sent

A kind of request is the name of the GraphQL operation (UpsertBucket, Heartbeat, ...), "file_stream" (metrics, summary,
end of run), "upload" (a file, by PUT) or "telemetry"; "any" is all but the last. Sweeps are searched at random, whatever
their method.
"""

import base64
import json
import math
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import yaml

ENTITY = "somebody"
FAULTS = ("drop", "hang")  # besides the statuses of HTTP


def draw(rng, spec):
    """A value of a sweep's parameter."""
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        return rng.choice(spec["values"])
    low, high = spec["min"], spec["max"]
    if spec.get("distribution", "").startswith("log_uniform_values"):
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    return rng.randint(low, high) if isinstance(low, int) else rng.uniform(low, high)


def matches(run, filters):
    """Whether a run passes the filters, in the form of MongoDB, of those kinds that the client asks for here."""
    for key, wanted in filters.items():
        section, _, name = key.partition(".")
        if key == "$and":
            if not all(matches(run, one) for one in wanted):
                return False
        elif wanted == {"$exists": True}:
            if name not in run.summary:
                return False
        elif (run.sweep if key == "sweep" else run.config.get(name, {}).get("value")) != wanted:
            return False
    return True


def edges(nodes):
    """A GraphQL connection of one page."""
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    return {"edges": [{"node": node, "cursor": "0"} for node in nodes], "pageInfo": page}


class Server:
    """Runs, sweeps and views by their id; requests as they came: [(kind, what was sent)]."""

    def __init__(self):
        self.key = "0123456789abcdef" * 2 + "01234567"
        self.runs, self.sweeps, self.views, self.artifacts, self.files = {}, {}, {}, {}, {}
        self.agents, self.requests, self.unknown, self.faults = {}, [], [], []
        self.should_stop = lambda run: False  # early termination
        self.cap, self.seed = math.inf, 0  # runs of a sweep, whatever its run_cap; what is drawn for them
        self.lock, self.closing = threading.RLock(), threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"api": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def fail(self, kind, how, times=math.inf, after=0):
        """Answer requests of a kind with a status, or "drop" or "hang" them: so many, after so many answered well, of
        which the one that ends a run is none."""
        self.faults.append(SimpleNamespace(kind=kind, how=how, times=times, after=after, met=0))

    def heal(self):
        self.faults.clear()

    def fault(self, kind, sent):
        for one in self.faults:
            if one.kind == kind or one.kind == "any" and kind != "telemetry":
                one.met += 1
                if one.met > one.after or kind == "file_stream" and sent.get("complete"):
                    one.times -= 1
                    return one.how if one.times >= 0 else None
        return None

    def count(self, kind):
        return sum(one == kind for one, _ in self.requests)

    # ------------------------------------------------------------------------------------------------- file stream

    def file_stream(self, run_id, sent):
        run = self.run(run_id)
        for name, part in sent.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"]] if "output" not in name else part["content"]
            if name == "wandb-history.jsonl":
                run.lines.update(enumerate(lines, part["offset"]))
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if sent.get("complete"):
            run.exit_code, run.state = sent.get("exitcode"), "failed" if sent.get("exitcode") else "finished"
        return {"exitcode": None, "limits": {}, "stopped": self.should_stop(run)}

    def run(self, run_id):
        if run_id not in self.runs:
            self.runs[run_id] = SimpleNamespace(
                id=run_id, name=None, project=None, group=None, sweep=None, config={}, lines={}, summary={},
                files={}, exit_code=None, state="running", number=len(self.runs), agent=None,
            )  # fmt: skip
        return self.runs[run_id]

    def history(self, run_id):
        """The rows of a run, one for each step: `wandb sync` sends again what has arrived, behind it."""
        lines = self.runs[run_id].lines
        steps = {lines[i]["_step"]: lines[i] for i in sorted(lines)}
        return [steps[i] for i in sorted(steps)]

    # ----------------------------------------------------------------------------------------------------- GraphQL

    def graphql(self, name, v):
        """The data that answer an operation: often more than it asks for, as nobody minds."""
        if answer := getattr(self, f"answer_{name}", None):
            return answer(v)
        if name == "GetProjects":
            names = {run.project for run in self.runs.values()}
            return {"models": edges([self.project({"project": name}) for name in names])}
        if name in ("Viewer", "GetViewer", "GetDefaultEntity"):
            return {"viewer": self.viewer()}
        if name.startswith(PROJECT_QUERIES):
            return {"project": self.project(v)}
        self.unknown.append((name, v))
        raise LookupError(f"{name} is not spoken here")

    def viewer(self):
        user = {"id": "user", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "flags": "{}"}
        teams, keys = edges([{"name": ENTITY}]), edges([])
        return user | {"admin": False, "deletedAt": None, "teams": teams, "apiKeys": keys, "__typename": "User"}

    def project(self, v):
        """All that may be asked of a project; the variables say of which run or sweep."""
        named = {v.get(key) for key in ("name", "run", "runName", "sweep")}
        run = next((run for run in self.runs.values() if run.id in named), None)
        sweep = next((sweep for sweep in self.sweeps.values() if sweep.id in named), None)
        runs = [one for one in self.runs.values() if matches(one, json.loads(v.get("filters") or "{}"))]
        order, _, metric = (v.get("order") or "").partition("summary_metrics.")
        if metric:
            runs.sort(key=lambda one: one.summary[metric], reverse=order == "-")
        runs = [self.run_node(one) for one in runs]
        return {
            "id": "project", "internalId": "1", "name": v.get("project"), "entity": {"id": "e", "name": ENTITY},
            "entityName": ENTITY, "readOnly": False, "artifact": None, "runCount": len(runs), "runs": edges(runs),
            "run": run and self.run_node(run), "sweep": sweep and self.sweep_node(sweep), "isBenchmark": False,
            "createdAt": "2026-01-01T00:00:00Z", "__typename": "Project", "allViews": edges(self.views.values()),
            "user": self.viewer(),
        }  # fmt: skip

    def run_node(self, run):
        rows = self.history(run.id)
        created = f"2026-01-01T00:{run.number // 60:02}:{run.number % 60:02}Z"
        return {
            "id": run.id, "name": run.id, "displayName": run.name, "projectId": "1", "tags": [], "state": run.state,
            "sweepName": run.sweep, "group": run.group, "jobType": None, "commit": None, "readOnly": False,
            "createdAt": created, "heartbeatAt": created, "description": None, "notes": None, "systemMetrics": "{}",
            "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "stopped": False,
            "historyLineCount": len(run.lines), "historyKeys": {"lastStep": rows[-1]["_step"] if rows else -1, "keys": {}},
            "parquetHistory": {"parquetUrls": [], "liveData": rows},
            "user": {"name": ENTITY, "username": ENTITY}, "sampledHistory": [rows],
        }  # fmt: skip

    def sweep_node(self, sweep):
        created = "2026-01-01T00:00:00Z"
        return {
            "id": sweep.id, "name": sweep.id, "displayName": None, "method": sweep.definition["method"],
            "state": sweep.state, "description": None, "config": sweep.config, "createdAt": created,
            "updatedAt": created, "heartbeatAt": created, "bestLoss": None, "controller": None, "scheduler": None,
            "earlyStopJobRunning": False, "runCount": len(sweep.runs), "runCountExpected": None, "__typename": "Sweep",
            "runs": edges([self.run_node(self.runs[one]) for one in sweep.runs]),
        }  # fmt: skip

    def answer_ServerFeaturesQuery(self, v):
        return {"serverInfo": {"features": []}}

    def answer_UpsertBucket(self, v):
        inserted, run = v["name"] not in self.runs, self.run(v["name"])
        run.name, run.project = v["displayName"] or run.name, v["project"] or run.project
        run.group, run.sweep = v["groupName"] or run.group, v["sweep"] or run.sweep
        run.state = "running" if run.state == "pending" else run.state
        if v["config"]:
            run.config.update(json.loads(v["config"]))
        place = {"id": "project", "name": run.project, "entity": {"id": "e", "name": v["entity"] or ENTITY}}
        bucket = self.run_node(run) | {"sweepName": run.sweep, "project": place}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def answer_CreateRunFiles(self, v):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def answer_CreateArtifact(self, v):
        identity = f"artifact{len(self.artifacts)}"
        self.artifacts[identity] = v["input"]
        artifact = {"id": identity, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def answer_CreateArtifactManifest(self, v):
        file = {"id": "file", "uploadUrl": f"{self.url}/upload/{v['artifactID']}/manifest.json", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}}

    def answer_CreateArtifactFiles(self, v):
        files = [
            {
                "id": "file", "name": one["name"], "displayName": one["name"], "uploadHeaders": [],
                "uploadUrl": f"{self.url}/upload/{one['artifactID']}/{one['name']}", "uploadMultipartUrls": None,
                "storagePath": one["name"], "artifact": {"id": one["artifactID"]},
            }
            for one in v["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": edges(files)}}

    def answer_CommitArtifact(self, v):
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": ""}}}

    def answer_UpsertSweep(self, v):
        identity = f"sweep{len(self.sweeps):03}"
        definition = yaml.safe_load(v["config"])
        self.sweeps[identity] = SimpleNamespace(
            id=identity, config=v["config"], definition=definition, project=v["projectName"], runs=[], state="RUNNING"
        )
        project = {"id": "project", "name": v["projectName"], "entity": {"id": "e", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": identity, "project": project}, "configValidationWarnings": []}}

    def answer_upsertView(self, v):
        identity = v["id"] or f"view{len(self.views)}"
        self.views[identity] = v | {"id": identity, "updatedAt": "2026-01-01T00:00:00Z"}
        self.views[identity] |= {"project": {"id": "1", "name": v["projectName"], "entityName": v["entityName"]}}
        self.views[identity] |= {"user": {"username": ENTITY}, "createdAt": "2026-01-01T00:00:00Z"}
        return {"upsertView": {"view": self.views[identity], "inserted": not v["id"]}}

    def answer_CreateAgent(self, v):
        identity = f"agent{len(self.agents)}"
        self.agents[identity] = SimpleNamespace(id=identity, sweep=v["sweep"])
        return {"createAgent": {"agent": {"id": identity}}}

    def answer_Heartbeat(self, v):
        agent, busy = self.agents[v["id"]], json.loads(v["runState"])
        commands = [{"type": "stop", "run_id": one} for one in busy if self.should_stop(self.runs[one])]
        if not busy:
            commands = [self.next_run(agent)]
        return {"agentHeartbeat": {"agent": {"id": agent.id}, "commands": json.dumps(commands)}}

    def next_run(self, agent):
        """The command to run the next configuration, or to exit where the sweep has had all of its runs."""
        sweep = self.sweeps[agent.sweep]
        if len(sweep.runs) >= min(self.cap, sweep.definition.get("run_cap", math.inf)):
            sweep.state = "FINISHED"
            return {"type": "exit"}
        rng = random.Random(self.seed + len(sweep.runs))
        args = {name: {"value": draw(rng, spec)} for name, spec in sweep.definition["parameters"].items()}
        run = self.run(f"{sweep.id}r{len(sweep.runs)}")
        run.sweep, run.state, run.agent, run.args = sweep.id, "pending", agent.id, args
        sweep.runs.append(run.id)
        return {"type": "run", "run_id": run.id, "args": args, "program": sweep.definition["program"]}


PROJECT_QUERIES = ("Artifact", "GetSweep", "SweepWithRuns", "Run", "SampledHistory", "Project")


class Handler(BaseHTTPRequestHandler):
    """HTTP: who asks, what kind of request it is, the fault it meets, its answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api = None

    def answer(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        kind, v = "other", None
        if path == "/graphql":
            asked = json.loads(sent)
            kind = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
            v = asked.get("variables") or {}
        elif path.endswith("/file_stream"):
            kind, v = "file_stream", json.loads(sent)
        elif path.startswith("/upload/"):
            kind, v = "upload", path
        elif path.startswith("/sdk/"):
            kind = "telemetry"
        with self.api.lock:
            self.api.requests.append((kind, v))
            how = self.api.fault(kind, v)
        if how == "hang":
            self.api.closing.wait()
        if how in FAULTS:
            self.close_connection = True
            return
        status, body = (how, {"errors": [{"message": f"on demand: {how}"}]}) if how else self.good(kind, path, v, sent)
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer

    def good(self, kind, path, v, sent):
        """The status and the answer to a request that meets no fault."""
        with self.api.lock:
            if kind == "upload":  # its address is all the permission that it needs, as with W&B's storage
                _, _, owner, name = path.split("/", 3)
                self.api.files[owner, name] = sent
                return 200, {}
            if kind == "telemetry":
                return 200, {}
            secret = base64.b64encode(f"api:{self.api.key}".encode()).decode()
            if self.headers.get("Authorization") != f"Basic {secret}":
                return 401, {"errors": [{"message": "invalid API key"}]}
            if kind == "file_stream":
                return 200, self.api.file_stream(path.split("/")[-2], v)
            if kind == "other":
                self.api.unknown.append((self.command, path))
                return 404, {}
            try:
                return 200, {"data": self.api.graphql(kind, v)}
            except LookupError as error:
                return 400, {"errors": [{"message": str(error)}]}

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass  # a client that ends does not say goodbye

    def log_message(self, *_):
        pass
