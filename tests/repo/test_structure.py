"""The rules of the house, enforced: who may import whom, what is pure, how long things may get."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("kvshard", "router", "leaf")

PURE = (
    "kvshard.analyzers",
    "kvshard.cli.screen_keys",
    "kvshard.aggregations",
    "kvshard.errors",
    "kvshard.fault_model",
    "kvshard.faults",
    "kvshard.lane_messages",
    "kvshard.limits",
    "kvshard.model",
    "kvshard.schema",
    "kvshard.suggest_messages",
    "kvshard.suggestions",
    "kvshard.vectors",
    "kvshard.synonyms",
    "kvshard.unknown_fields",
    "kvshard.meaning",
    "kvshard.query",
    "kvshard.collapsing",
    "kvshard.sorting",
    "kvshard.ring",
    "kvshard.placement",
    "kvshard.rebalancing",
    "kvshard.fair_shares",
    "kvshard.clustermap",
    "kvshard.request_ids",
    "kvshard.restart_policy",
    "kvshard.cli.demo_report",
    "kvshard.cli.demo_tail_report",
    "kvshard.cli.whatif_report",
    "kvshard.clustermap_text",
    "kvshard.term_model",
    "kvshard.workers",
    "kvshard.coordination.etcd_url",
    "kvshard.hashing",
    "kvshard.hedge_settings",
    "kvshard.splitting",
    "kvshard.tail.attempts",
    "kvshard.tail.budget",
    "kvshard.tail.cost_class",
    "kvshard.tail.deadlines",
    "kvshard.tail.defences",
    "kvshard.tail.defences_status",
    "kvshard.tail.hedger",
    "kvshard.tail.hedging",
    "kvshard.tail.histogram",
    "kvshard.tail.hold_out",
    "kvshard.tail.latency",
    "kvshard.tail.leg_events",
    "kvshard.tail.leaf_health",
    "kvshard.tail.replica_health",
    "kvshard.tail.replica_plan",
    "kvshard.tail.status",
    "kvshard.tail.tail_counters",
    "kvshard.tail.tuned_budget",
    "kvshard.tail.tuning",
    "kvshard.tail.whatif",
    "kvshard.client.batch_retry",
    "kvshard.client.batch_window",
    "kvshard.client.batching",
    "kvshard.client.direct_reach",
    "kvshard.client.direct_status",
    "kvshard.client.frame_slices",
    "kvshard.client.key_answers",
    "kvshard.client.retries",
    "kvshard.client.write_batching",
    "kvshard.client.scan_token",
    "kvshard.rpc.lane_admission",
    "kvshard.rpc.lane_choice",
    "kvshard.rpc.lane_port",
    "kvshard.rpc.keepalive",
    "router.admission",
    "kvshard.scatter.columns",
    "kvshard.scatter.fusion",
    "kvshard.scatter.hits_asked",
    "kvshard.scatter.merge",
    "kvshard.scatter.shaping",
    "kvshard.scatter.requests",
    "kvshard.scatter.coverage",
    "router.amplification",
    "kvshard.scatter.ledger",
    "kvshard.scatter.scan_chunks",
    "kvshard.scatter.scan_merge",
    "router.slowlog",
    "router.statistics",
    "kvshard.scatter.tokens",
    "kvshard.scatter.min_versions",
    "kvshard.search_accounts",
    "kvshard.scatter.watermarks",
    "leaf.admission",
    "leaf.explanations",
    "leaf.search_profile",
    "leaf.unseen",
    "leaf.bm25",
    "leaf.joint_best",
    "leaf.query_traits",
    "leaf.faults",
    "leaf.key_cache",
    "leaf.layout",
    "leaf.log",
    "leaf.operations",
    "leaf.pending",
    "leaf.recovery",
    "leaf.refusals",
    "leaf.replication",
    "leaf.segments",
    "leaf.splitting",
    "leaf.write_plan",
    "leaf.write_result",
)
"""Files that decide: they import only the standard library and each other. A package name means all of its modules."""

PURE_EXCEPTIONS = {
    "kvshard.hashing": {"mmh3"},
    "kvshard.model": {"msgspec"},
    "kvshard.term_model": {"msgspec"},
    "kvshard.aggregations.model": {"msgspec"},
    "kvshard.aggregations.partial": {"msgspec"},
    "leaf.bm25": {"msgspec"},
}
"""The token hash is a pure function that happens to be a foreign library's, and so are the types of the messages."""

# `random` is not among them: a policy may name the type of the generator it is handed, see below.
IMPURE_STDLIB = {"asyncio", "time", "socket", "threading", "subprocess", "sqlite3", "concurrent", "selectors"}

TASK_OWNERS = (
    "kvshard.tail.executor",
    "kvshard.rpc.lane",
    "kvshard.rpc.grpc_stream",
    "kvshard.rpc.lane_connection",
    "kvshard.rpc.lane_server",
    "kvshard.rpc.lane_client",
    "kvshard.coordination.mapstore",
    "kvshard.coordination.embedded",
    "kvshard.supervisor",
    "kvshard.sync.loop_thread",
    "kvshard.sync.scan",
    "kvshard.cli",
    "kvshard.client",
    "kvshard.scatter.first_attempts",
    "kvshard.scatter.prober",
    "kvshard.scatter.scatter",
    "kvshard.scatter.scan",
    "router.server",
    "router.worker_group",
    "leaf.balancer",
    "leaf.driver",
    "leaf.errands",
    "leaf.hosting",
    "leaf.peers",
    "leaf.reindexing",
    "leaf.splitter",
    "leaf.committer",
    "leaf.indexer",
    "leaf.expiry",
    "leaf.server",
)
"""Only these start tasks; whoever starts one keeps it, cancels it and awaits it."""

GENERATED_READERS = (
    "kvshard.rpc",
    "kvshard.coordination.etcd",
    "kvshard.coordination.etcd_connection",
    "kvshard.client",
    "router.lane_scans",
    "router.lane_searches",
    "router.ledger_wire",
    "router.profile_wire",
    "router.scan_wire",
    "router.service",
    "router.search_answers",
    "router.search_wire",
    "router.suggest_wire",
    "router.server",
    "router.cluster",
    "router.siblings",
    "leaf.service",
    "leaf.server",
)
"""Only these see generated code."""

FILE_MAX_LINES = 500
FUNCTION_MAX_LINES = 64


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, pathlib.Path]:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {module_name(path): path for path in paths if "v1" not in path.parts}


SOURCES = sources()
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(name: str, at_run_time_only: bool = False) -> set[str]:
    """Modules that a module imports, inside functions too; at_run_time_only leaves out those for type checking."""
    found: set[str] = set()
    stack: list[ast.AST] = [TREES[name]]
    while stack:
        node = stack.pop()
        if at_run_time_only and is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in SOURCES or ".v1." in inner or inner.startswith("kvshard.v1") else node.module)
        stack.extend(ast.iter_child_nodes(node))
    return found


def belongs(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_layers(name: str) -> None:
    forbidden = {"kvshard": ("router", "leaf"), "router": ("leaf",), "leaf": ("router",)}[name.split(".")[0]]
    assert not [module for module in imports(name) if belongs(module, forbidden)]


def test_no_import_cycle() -> None:
    graph = {name: {module for module in imports(name, at_run_time_only=True) if module in SOURCES} for name in SOURCES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for following in sorted(graph[name]):
                visit(following, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("place", PURE)
def test_pure_files_stay_pure(place: str) -> None:
    names = [name for name in SOURCES if belongs(name, (place,))]
    assert names, f"{place} is gone: take it off the list"
    for name in names:
        for module in imports(name):
            top = module.split(".")[0]
            is_allowed = (
                belongs(module, PURE)
                or module in PURE_EXCEPTIONS.get(name, ())
                or (top in sys.stdlib_module_names and top not in IMPURE_STDLIB)
            )
            assert is_allowed, f"{name} is pure and imports {module}"
        chance = [
            node.attr for node in ast.walk(TREES[name]) if ast.unparse(node).startswith("random.") and hasattr(node, "attr")
        ]
        assert set(chance) <= {"Random"}, f"{name} draws from the process-wide generator: {chance}"
        assert "Any" not in {node.id for node in ast.walk(TREES[name]) if isinstance(node, ast.Name)}, f"{name}: Any"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_tasks_have_owners(name: str) -> None:
    starts = [
        node.lineno
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Attribute) and node.attr in ("create_task", "ensure_future", "TaskGroup")
    ]
    assert not starts or belongs(name, TASK_OWNERS), f"{name}:{starts} starts tasks"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_generated_code_stays_behind_its_doors(name: str) -> None:
    seen = [module for module in imports(name) if module.startswith(("kvshard.v1", "kvshard.coordination.v1"))]
    assert not seen or belongs(name, GENERATED_READERS), f"{name} sees {seen}"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_sizes(name: str) -> None:
    lines = SOURCES[name].read_text().count("\n")
    assert lines <= FILE_MAX_LINES, f"{name}: {lines} lines"
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_MAX_LINES, f"{name}:{node.lineno} {node.name}: {length} lines"


def test_no_drawers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [name for name in SOURCES if drawers & set(name.split("."))]


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_module_says_what_lives_there(name: str) -> None:
    assert ast.get_docstring(TREES[name])


def test_service_lock_fits_the_library_ranges() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    canonical = {name.lower().replace("_", "-"): version for name, version in locked.items()}
    for line in project["dependencies"]:
        requirement = Requirement(line)
        assert canonical[requirement.name.lower()] in requirement.specifier, line
