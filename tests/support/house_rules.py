"""The rules of the house, read from the code: who may import whom, how large things get, what is banned.

Helper of test_architecture.py, which runs them.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A folder imports what stands in lines above its own.
LAYERS = (
    ("config",),
    ("fetch",),
    ("audio", "text", "results"),
    ("data",),
    ("models",),
    ("divergence",),
    ("targets",),
    ("objective",),
    ("train",),
    ("search",),
)
# The three ends of the pipeline import config to models, and neither the training nor one another.
ENDS = ("evaluation", "bundles", "serve")
ABOVE_ENDS = LAYERS.index(("models",)) + 1  # beside the divergences, which they do not import
FOLDERS = {folder: i for i, layer in enumerate(LAYERS) for folder in layer} | dict.fromkeys(ENDS, ABOVE_ENDS)
FRONTS = tuple(
    f"askd_ray/{name}.py" for name in ("__init__", "__main__", "cli", "demo", "promote", "stages", "study")
)  # may import everything
# Top-level modules that every folder may import.
BASE = {"errors", "files", "location", "mirror", "progress", "provenance", "randomness", "runs", "torch_setup"}
BASE_IMPORTS = {"config", "errors", "files", "location", "mirror", "progress", "provenance", "stores"}

# Modules of the training and of the objective that know the kinds of students; the others import these models only.
KNOW_STUDENT_KINDS = ("askd_ray/train/build.py", "askd_ray/objective/online_teacher.py")
KIND_INDEPENDENT = ("askd_ray.models.student.", "askd_ray.models.cost")

MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_JOB_LINES, MAX_PARAMETERS = 300, 60, 40, 8

# Calls that only describe something, so they may stand at module level.
DESCRIPTIONS = re.compile(
    r"(int|float|str|bytes|tuple|frozenset|set|dict|list|len|min|max|sum|sorted|range|round|zip|Path|re\.compile|pa\.\w+"
    r"|logging\.getLogger|TypeVar|ParamSpec|Console|(dataclasses\.)?field|Field|PrivateAttr|ConfigDict|auto"
    r"|typer\.(Typer|Option|Argument)|APIRouter|File|Form|Depends|samples_of)"
)
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"torch.load", "os.system", "os.popen", "eval", "exec"}
BANNED_ARGUMENTS = {"shell", "allow_pickle", "trust_remote_code"}


def module_of(path: str) -> tuple[str, ...]:
    """Return the dotted name of a file's module, as parts."""
    parts = path.removesuffix(".py").split("/")
    return tuple(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything that is imported anywhere, also by its name as a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from ((node.lineno, f"{dots}{node.module or ''}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            name = node.args[0] if node.args else None
            yield node.lineno, name.value if isinstance(name, ast.Constant) else "."


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for a chain of names, and an empty string for anything else."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


def check_imports(path: str, tree: ast.Module) -> Iterator[str]:
    """Ray only in ray_*.py; folders only downwards; top-level modules as :data:`BASE` says."""
    about_ray = Path(path).name.startswith("ray_")
    for line, name in imported(tree):
        package, *rest = name.split(".")
        if package == "":
            yield f"{path}:{line}: relative or computed import"
        elif package == "ray" and not about_ray:
            yield f"{path}:{line}: only ray_*.py imports ray"
        elif package == "askd_ray" and path not in FRONTS and rest:
            yield from (
                f"{path}:{line}: {trouble}" for trouble in [trouble_with_import(path, rest, about_ray)] if trouble
            )


def trouble_with_import(path: str, imported_parts: list[str], about_ray: bool) -> str | None:
    target, here = imported_parts[0], module_of(path)[1:]
    if any(part.startswith("ray_") for part in imported_parts[:2]) and not about_ray:
        return f"imports {'.'.join(imported_parts)}: only ray_*.py, the command line, the demo and the study do"
    if target.startswith("ray_"):
        return None
    folder = here[0] if here and here[0] in FOLDERS else None
    if folder is None:  # a module beside the folders
        allowed = target in (BASE | {"config"} if about_ray else BASE_IMPORTS)
    elif target in BASE:
        allowed = folder != "config" or target != "runs"  # runs.py itself imports config
    elif target not in FOLDERS:
        allowed = False
    else:
        allowed = target == folder or (FOLDERS[target] < FOLDERS[folder] and target not in ENDS)
    return None if allowed else f"{'/'.join(here) or 'the package'} may not import {target}"


def check_student_kinds(path: str, tree: ast.Module) -> Iterator[str]:
    """The training and the objective know a student by models/student.py only."""
    if path.startswith(("askd_ray/train/", "askd_ray/objective/")) and path not in KNOW_STUDENT_KINDS:
        for line, name in imported(tree):
            if name.startswith(("transformers", "askd_ray.models.")) and not name.startswith(KIND_INDEPENDENT):
                yield f"{path}:{line}: imports {name}: students are known by models/student.py only"


def check_sizes(path: str, tree: ast.Module) -> Iterator[str]:
    """Functions that fit a screen or two, with few parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES} are allowed"
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > MAX_PARAMETERS:
                yield f"{path}:{node.lineno}: {node.name} has {count} parameters, at most {MAX_PARAMETERS} are allowed"


def check_docstrings(path: str, tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield f"{path}:1: no docstring"


def check_nothing_happens_at_import(path: str, tree: ast.Module) -> Iterator[str]:
    """Module and class bodies define; they do not act."""
    records = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and not runs_code_when_made(node)}
    for node in acts(tree.body):
        if not (isinstance(node, ast.Call) and dotted(node.func) in records):
            yield f"{path}:{node.lineno}: happens at import: {ast.unparse(node)[:60]}"


def runs_code_when_made(node: ast.ClassDef) -> bool:
    """Whether a class is more than a record of fields; constants of this file may be records of this file."""
    methods = {method.name for method in node.body if isinstance(method, ast.FunctionDef)}
    return bool(methods & {"__init__", "__new__", "__post_init__", "model_post_init"})


def acts(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield what does something while a module or class body is read."""
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Pass():
                pass
            case ast.Expr(value=ast.Constant()):
                pass  # a docstring
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="add_typer"))):
                pass
            case ast.Assign(value=value) | ast.AnnAssign(value=value):
                yield from calls_in(value)
            case ast.FunctionDef(args=args) | ast.AsyncFunctionDef(args=args):
                for default in (*args.defaults, *args.kw_defaults):
                    yield from calls_in(default)
            case ast.ClassDef(body=inner):
                yield from acts(inner)
            case ast.If(test=test) if ast.unparse(test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
                pass
            case _:
                yield node


def calls_in(value: ast.AST | None) -> Iterator[ast.AST]:
    """Yield the calls of an expression that do more than describe something; a lambda's body runs later."""
    if value is None or isinstance(value, ast.Lambda):
        return
    if isinstance(value, ast.Call) and not DESCRIPTIONS.fullmatch(dotted(value.func)):
        yield value
    for child in ast.iter_child_nodes(value):
        if isinstance(child, ast.expr | ast.keyword | ast.comprehension):
            yield from calls_in(child)


def check_bans(path: str, tree: ast.Module) -> Iterator[str]:
    """Nothing unpickled, no shell, no error swallowed unseen."""
    for line, name in imported(tree):
        if name.split(".")[0] in UNPICKLERS or name == "torch.load":
            yield f"{path}:{line}: {name} can run what it reads"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in BANNED_CALLS:
            yield f"{path}:{node.lineno}: {dotted(node.func)} is banned"
        elif isinstance(node, ast.keyword) and node.arg in BANNED_ARGUMENTS and ast.unparse(node.value) != "False":
            yield f"{path}:{node.value.lineno}: {node.arg}={ast.unparse(node.value)} is banned"
        elif isinstance(node, ast.ExceptHandler) and swallows(node):
            yield f"{path}:{node.lineno}: a broad except that swallows the error"


def swallows(handler: ast.ExceptHandler) -> bool:
    """Whether it catches everything and neither raises nor uses what it caught."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    if not any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in kinds):
        return False
    inside = [node for statement in handler.body for node in ast.walk(statement)]
    uses = any(isinstance(node, ast.Name) and node.id == handler.name for node in inside)
    return not uses and not any(isinstance(node, ast.Raise) for node in inside)


def check_tests_can_fail(path: str, tree: ast.Module) -> Iterator[str]:
    """Every test asserts, or calls a helper of its file that does."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    helpers = {function.name for function in functions if asserts(function, set())}
    for function in functions:
        if function.name.startswith("test_") and not asserts(function, helpers):
            yield f"{path}:{function.lineno}: {function.name} asserts nothing"


def asserts(function: ast.AST, helpers: set[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            last = name.rpartition(".")[2]
            if (
                name in ("pytest.raises", "pytest.warns", "pytest.fail")
                or last.startswith("assert_")
                or name in helpers
            ):
                return True
    return False


PACKAGE_CHECKS = (
    check_imports,
    check_student_kinds,
    check_sizes,
    check_docstrings,
    check_nothing_happens_at_import,
    check_bans,
)
JOB_CHECKS = (check_sizes, check_docstrings, check_nothing_happens_at_import, check_bans)


def violations(path: str, source: str, checks: tuple[Callable[[str, ast.Module], Iterator[str]], ...]) -> list[str]:
    tree = ast.parse(source)
    return [trouble for check in checks for trouble in check(path, tree)]


def too_long(path: str, source: str) -> list[str]:
    max_lines = MAX_JOB_LINES if path.startswith("jobs/") else MAX_MODULE_LINES
    lines = len(source.splitlines())
    return [f"{path}: {lines} lines, at most {max_lines} are allowed"] if lines > max_lines else []


def check_file(path: str, checks: tuple[Callable[[str, ast.Module], Iterator[str]], ...]) -> list[str]:
    source = (ROOT / path).read_text(encoding="utf-8")
    return violations(path, source, checks) + too_long(path, source)
