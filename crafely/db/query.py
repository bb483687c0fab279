"""``@sql``: a Python signature whose body is a SQL file.

``crafely/store/threads.py`` declares ``async def list_for_agent(db: Executor, *, …) -> list[Thread]``; its body is
``sql/threads/list_for_agent.sql``. The signature says what goes in and what comes out, the file says how. Whatever does
not fit together is refused when the module is imported, with file and line.
"""

import inspect
import re
import types
import typing
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, get_args, get_origin

import msgspec

from crafely.db.header import Header, SqlFileError, read_header
from crafely.db.lexer import LexerError, parameters

P = ParamSpec("P")
T = TypeVar("T")

Cardinality = Literal["many", "one", "maybe", "count", "nothing"]


class Row(msgspec.Struct, frozen=True, rename="camel"):
    """A row that a statement gives: its fields are the statement's columns, in their order.

    A last field that is UNSET by default may be missing from a statement that does not give it.
    """


class Result(msgspec.Struct, frozen=True):
    """What a statement gave: its rows, made by ``Statement.make_row``, and how many rows it touched."""

    rows: list[Any]
    count: int


class Statement(msgspec.Struct, frozen=True, eq=False):
    """One SQL file, ready to run."""

    name: str  # "threads/list_for_agent"
    path: Path
    header: Header
    # What the server gets: the file with :name as $n, and its own name in a comment.
    text: bytes
    parameters: tuple[str, ...]
    parameter_types: tuple[Any, ...]
    cardinality: Cardinality
    # What a row is: a Row, or the type of its only column; None where no rows come.
    row_type: Any
    make_row: Callable[[Sequence[Any]], Any]


class Executor(Protocol):
    """What runs a statement: a session (a transaction for each statement) or a transaction."""

    async def execute(self, statement: Statement, values: Sequence[Any]) -> Result:
        """Runs it with its values, in the order of ``statement.parameters``."""
        ...


class NoRowError(LookupError):
    """A statement that gives exactly one row gave none."""


class TooManyRowsError(LookupError):
    """A statement that gives at most one row gave several."""


class WrongRoleError(RuntimeError):
    """A statement was given to a session whose role its header does not name, or a login is not of the role."""


def check_role(statement: Statement, role: str) -> None:
    """Raises WrongRoleError for a statement that does not run as this role."""
    if role not in statement.header.roles:
        raise WrongRoleError(f"{statement.name} runs as {', '.join(statement.header.roles)}, not as {role}")


# Every statement that a module of the store declares, by name.
statements: dict[str, Statement] = {}


def folder() -> Path:
    """Where the SQL files are: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "sql"
    return installed if installed.is_dir() else package.parent / "sql"


def sql(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Gives a signature of the store its body: the SQL file of the same name.

    Takes an ``async def`` whose first parameter is the Executor and whose others are keyword-only, all annotated, and
    with a default where they may be left out. The annotation of what it returns says how many rows come: ``list[T]``
    many, ``T`` exactly one, ``T | None`` at most one, ``int`` how many rows were touched, ``None`` nothing. T is a Row
    or, for one column, its type. Raises SqlFileError at import when the file is missing, its header is wrong, or the
    parameters differ.
    """
    statement = load(function)
    if statement.name in statements:
        raise SqlFileError(statement.path, 1, f"two functions claim it: {function.__module__} defines one twice")
    statements[statement.name] = statement
    names = statement.parameters
    finish = _FINISH[statement.cardinality]

    @wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        db = typing.cast(Executor, args[0])
        if defaults:
            kwargs = typing.cast(Any, {**defaults, **kwargs})
        # A missing or misspelt argument is a TypeError here, as it would be in any function.
        if len(kwargs) != len(expected) or not kwargs.keys() >= expected:
            inspect.signature(function).bind(*args, **kwargs)
        result = await db.execute(statement, [kwargs[name] for name in names])
        return typing.cast(T, finish(statement, result))

    expected = set(inspect.signature(function).parameters) - {next(iter(inspect.signature(function).parameters))}
    defaults = dict(function.__kwdefaults__ or {})
    return run


def load(function: Callable[..., Any]) -> Statement:
    """Reads the file of a signature and holds the two against each other. Raises SqlFileError."""
    name = f"{function.__module__.rpartition('.')[2]}/{function.__name__}"
    path = folder() / f"{name}.sql"
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SqlFileError(path, 1, f"no such file, but {function.__module__}.{function.__name__} needs it") from None
    header, start = read_header(path, name, source)

    hints = typing.get_type_hints(function)
    cardinality, row_type = _cardinality(hints.pop("return"))
    if header.returns != (said := _says(cardinality, row_type)):
        raise SqlFileError(
            path, header.lines["returns"], f"says «returns: {header.returns}», the signature says «{said}»"
        )
    signature = inspect.signature(function)
    wanted = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    body, found = _number(path, source, start)
    for missing in set(found) - set(wanted):
        place = next(begin for begin, _, name in parameters(source) if name == missing and begin >= start)
        line = source.count("\n", 0, place) + 1
        raise SqlFileError(path, line, f":{missing} is no parameter of the signature")
    for missing in set(wanted) - set(found):
        raise SqlFileError(path, 1, f"the signature's parameter {missing} is used nowhere")
    return Statement(
        name=name,
        path=path,
        header=header,
        text=_named(name, body),
        parameters=tuple(found),
        parameter_types=tuple(hints[name] for name in found),
        cardinality=cardinality,
        row_type=row_type,
        make_row=_row_maker(row_type),
    )


def _named(name: str, body: str) -> bytes:
    """The text with the file's name in it, for pg_stat_activity, the slow log and pg_stat_statements.

    Behind the first word: from PostgreSQL 18 on, pg_stat_statements leaves out what stands before a statement.
    """
    return re.sub(r"^\w*", rf"\g<0> /* crafely:{name} */", body, count=1).lstrip().encode()


def _number(path: Path, source: str, start: int) -> tuple[str, list[str]]:
    """The text from ``start`` with :name as $n, and the names in the order of their numbers."""
    names: list[str] = []
    parts: list[str] = []
    end = start
    try:
        for begin, stop, name in parameters(source):
            if begin < start:
                continue
            if name not in names:
                names.append(name)
            parts += [source[end:begin], f"${names.index(name) + 1}"]
            end = stop
    except LexerError as error:
        raise SqlFileError(path, source.count("\n", 0, error.position) + 1, str(error)) from None
    return "".join([*parts, source[end:]]).strip(), names


def _cardinality(annotation: Any) -> tuple[Cardinality, Any]:
    if annotation is type(None):
        return "nothing", None
    if annotation is int:
        return "count", None
    if get_origin(annotation) is list:
        return "many", get_args(annotation)[0]
    if isinstance(annotation, types.UnionType):
        return "maybe", next(kind for kind in get_args(annotation) if kind is not type(None))
    return "one", annotation


def _says(cardinality: Cardinality, row_type: Any) -> str:
    """What the header's ``returns`` must be for this."""
    return cardinality if row_type is None else f"{cardinality} {row_type.__name__}"


def _row_maker(row_type: Any) -> Callable[[Sequence[Any]], Any]:
    if row_type is None or not issubclass(row_type, msgspec.Struct):
        return _only_column
    nested = {
        index: msgspec.json.Decoder(without_unset(field.type))
        for index, field in enumerate(msgspec.structs.fields(row_type))
        if is_nested(field.type)
    }
    if not nested:
        return lambda values: row_type(*values)

    def make(values: Sequence[Any]) -> Any:
        # jsonb that holds rows: built in SQL, so that parents and children come in one statement.
        decoded = list(values)
        for index, decoder in nested.items():
            if index < len(decoded):
                decoded[index] = decoder.decode(decoded[index])
        return row_type(*decoded)

    return make


def _only_column(values: Sequence[Any]) -> Any:
    return values[0] if values else None


def is_nested(kind: Any) -> bool:
    """Whether a column is jsonb that holds rows, and not free-form JSON, which stays as it is."""
    kind = without_unset(kind)
    return any(isinstance(t, type) and issubclass(t, msgspec.Struct) for t in (kind, *get_args(kind)))


def without_unset(kind: Any) -> Any:
    """The type of a column that may be None or missing, when it is there."""
    if isinstance(kind, types.UnionType):
        return next(part for part in get_args(kind) if part not in (type(None), msgspec.UnsetType))
    return kind


def _one(statement: Statement, result: Result) -> Any:
    if not result.rows:
        raise NoRowError(f"{statement.name} gave no row")
    return _maybe(statement, result)


def _maybe(statement: Statement, result: Result) -> Any:
    if len(result.rows) > 1:
        raise TooManyRowsError(f"{statement.name} gave {len(result.rows)} rows, and at most one was meant")
    return result.rows[0] if result.rows else None


_FINISH: dict[Cardinality, Callable[[Statement, Result], Any]] = {
    "many": lambda _, result: result.rows,
    "one": _one,
    "maybe": _maybe,
    "count": lambda _, result: result.count,
    "nothing": lambda _, __: None,
}
