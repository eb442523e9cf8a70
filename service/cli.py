"""The command line: what each command takes, and its exit code.

0 fine, 1 the work failed, 2 bad usage. Results go to stdout, everything else
to stderr.
"""

import argparse
import datetime as dt
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from models.errors import BackendError, ConfigError
from models.key import VirtualKey
from service.governance import issuing
from service.settings import Settings, load

if TYPE_CHECKING:
    from service.contents import Selection

_T = TypeVar("_T")


def run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except BackendError as error:
        print(f"keepgate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who reads has seen enough, as `head` has. What is left must not be tried again at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _serve(options: argparse.Namespace) -> int:
    # Imported here: `keepgate keys list` must not wait for a web server's imports.
    from service.serving import serve

    environ = dict(os.environ)
    for name in ("host", "port", "workers"):
        value = getattr(options, name)
        if value is not None:
            environ[f"KEEPGATE_SERVER__{name.upper()}"] = str(value)
    settings = load(options.config, environ, on_this_machine=True)
    _warn(settings)
    if options.config is None:
        print("No --config: serving the embedded defaults with the demo upstream.", file=sys.stderr)
    return serve(settings, config=options.config, environ=environ)


def _check_config(options: argparse.Namespace) -> int:
    from service import policies, wiring

    problems: tuple[str, ...] = ()
    warnings: Sequence[str] = ()
    try:
        settings = load(options.file, os.environ, on_this_machine=True)
        wiring.check(settings)
        policies.check(settings)
        warnings = settings.warnings
    except ConfigError as error:
        problems = error.problems
    if options.json:
        print(json.dumps({"valid": not problems, "problems": list(problems), "warnings": list(warnings)}))
    else:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print("\n".join(problems) if problems else f"{options.file} is valid")
    return 1 if problems else 0


def _mock_upstream(options: argparse.Namespace) -> int:
    from service.bench import mock_upstream

    try:
        mock_upstream.run(
            host=options.host,
            port=options.port,
            latency=options.latency,
            tokens=options.tokens,
            chunk_delay=options.chunk_delay,
            error_rate=options.error_rate,
        )
    except OSError as error:
        print(f"keepgate: {options.host}:{options.port} cannot be bound: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _keys_create(options: argparse.Namespace) -> int:
    from service.governance import keys
    from service.wiring import open_keyring

    settings = load(options.config, os.environ)
    try:
        issuing.check_endpoints(options.endpoint, {endpoint.name for endpoint in settings.endpoints})
    except ValueError as error:
        print(f"keepgate: {error}", file=sys.stderr)
        return 1
    now = time.time()
    secret, key = keys.make(
        options.name,
        now=now,
        team=options.team,
        endpoints=options.endpoint,
        models=options.model,
        expires_at=None if options.expires is None else now + options.expires,
    )
    keyring = open_keyring(settings)
    try:
        keyring.add(keys.digest(secret), key)
    finally:
        keyring.close()
    if options.json:
        print(json.dumps({"key": secret, **msgspec.to_builtins(key)}))
    else:
        print(secret)
        print(f"Key {key.key_id} ({key.name}). This is the only time its secret is shown.", file=sys.stderr)
    return 0


def _keys_list(options: argparse.Namespace) -> int:
    from service.wiring import open_keyring

    keyring = open_keyring(load(options.config, os.environ))
    try:
        keys = keyring.all()
    finally:
        keyring.close()
    if options.json:
        print(json.dumps([msgspec.to_builtins(key) for key in keys]))
        return 0
    rows = [("ID", "NAME", "TEAM", "ENDPOINTS", "MODELS", "CREATED", "EXPIRES", "STATE"), *map(_row, keys)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _keys_revoke(options: argparse.Namespace) -> int:
    from service.wiring import open_keyring

    keyring = open_keyring(load(options.config, os.environ))
    try:
        key = keyring.revoke(options.key_id, time.time())
    finally:
        keyring.close()
    if key is None:
        print(f"keepgate: no key has the id {options.key_id}; see: keepgate keys list", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(msgspec.to_builtins(key)))
    else:
        print(f"Key {key.key_id} ({key.name}) is revoked, on every worker from now on.")
    return 0


def _cache_stats(options: argparse.Namespace) -> int:
    from service import cache_commands

    return cache_commands.stats(load(options.config, os.environ), _selected(options), as_json=options.json)


def _cache_clear(options: argparse.Namespace) -> int:
    from service import cache_commands

    settings = load(options.config, os.environ)
    return cache_commands.clear(settings, _selected(options), yes=options.yes, as_json=options.json)


def _cache_export(options: argparse.Namespace) -> int:
    from service import cache_commands

    settings = load(options.config, os.environ)
    return cache_commands.export(
        settings, _selected(options), options.file, resume=options.resume, as_json=options.json
    )


def _cache_import(options: argparse.Namespace) -> int:
    from service import cache_commands

    settings = load(options.config, os.environ)
    return cache_commands.import_(settings, options.file, embed_anew=options.re_embed, as_json=options.json)


def _cache_warm(options: argparse.Namespace) -> int:
    from service import cache_commands

    settings = load(options.config, os.environ)
    return cache_commands.warm_up(
        settings,
        options.file,
        endpoint=options.endpoint,
        key_id=options.key,
        model=options.model,
        ttl=options.ttl,
        fields=options.request,
        strict=options.strict,
        as_json=options.json,
    )


def _selected(options: argparse.Namespace) -> "Selection":
    from service.contents import Selection

    before = None if options.older_than is None else time.time() - options.older_than
    return Selection(endpoint=options.endpoint, key_id=options.key, written_before=before)


def _tune(options: argparse.Namespace) -> int:
    from service.tune import commands

    settings = load(options.config, os.environ)
    asked = commands.Asked(options.limit, options.confidence, options.dry_run, options.json)
    try:
        if options.labels is not None:
            return commands.from_labels(settings, options.endpoint, options.labels, asked, strict=options.strict)
        if options.from_log is not None:
            return commands.from_log(settings, options.endpoint, options.from_log, asked, since=options.since)
        if options.review:
            return commands.review(settings, options.endpoint, most=options.most)
        if options.judge is not None:
            return commands.judge(
                settings, options.endpoint, options.judge, most=options.most, deadline=options.deadline
            )
        if options.remove:
            return commands.remove(settings, options.endpoint, as_json=options.json)
        return commands.show(settings, options.endpoint, as_json=options.json)
    except commands.BadUsage as error:
        print(f"keepgate: {error}", file=sys.stderr)
        return 2


def _models_build(options: argparse.Namespace) -> int:
    if options.config is not None:
        return _models_fetch(options)
    from backends.embedding.minilm import build

    path = build(options.model, report=lambda line: print(line, file=sys.stderr))
    print(json.dumps({"model": options.model, "path": str(path)}) if options.json else path)
    return 0


def _models_fetch(options: argparse.Namespace) -> int:
    """Makes ready what a gateway with this configuration would load at its start."""
    import asyncio

    from service.wiring import make_embedder

    embedder = make_embedder(load(options.config, os.environ))

    async def made() -> None:
        await embedder.load()
        await embedder.close()

    asyncio.run(made())
    print(json.dumps({"revision": embedder.revision}) if options.json else embedder.revision)
    return 0


def _guard_scan(options: argparse.Namespace) -> int:
    from service import guard_scan
    from service.policies import policies

    settings = load(options.config, os.environ)
    _warn(settings)
    by_endpoint = policies(settings)
    try:
        issuing.check_endpoints([options.endpoint], set(by_endpoint))
    except ValueError as error:
        print(f"keepgate: {error}", file=sys.stderr)
        return 1
    try:
        source = sys.stdin.buffer if options.file is None else options.file.open("rb")
    except OSError as error:
        print(f"keepgate: {options.file} cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    if source.isatty():
        print("keepgate: reading what you type; it ends with Ctrl-D", file=sys.stderr)
    with source:
        return guard_scan.run(
            source,
            by_endpoint[options.endpoint],
            endpoint=options.endpoint,
            phase=options.phase,
            as_json=options.json or not sys.stdout.isatty(),
            out=sys.stdout,
        )


def _bench_cache(options: argparse.Namespace) -> int:
    from service.bench import cache

    return cache.main(
        options.data,
        profile=options.profile,
        quick=options.quick,
        seeds=options.seeds,
        policies=options.policies,
        json_to=options.json,
        html_to=options.html,
        limit=options.limit,
        zipf=options.zipf,
    )


def _bench_guardrails(options: argparse.Namespace) -> int:
    from service.bench import guardrails

    return guardrails.main(
        options.data,
        guardrails.detectors_named(options.detectors, rules=options.rules),
        kinds=options.kinds,
        aliases=dict(options.alias),
        json_to=options.json,
    )


def _row(key: VirtualKey) -> tuple[str, ...]:
    def listed(names: tuple[str, ...] | None) -> str:
        return "all" if names is None else ",".join(names)

    def moment(seconds: float) -> str:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M")

    if key.revoked_at is not None:
        state = "revoked"
    elif key.expires_at is not None and key.expires_at <= time.time():
        state = "expired"
    else:
        state = "active"
    expires = "never" if key.expires_at is None else moment(key.expires_at)
    names = (key.key_id, key.name, key.team or "-", listed(key.endpoints), listed(key.models))
    return (*names, moment(key.created_at), expires, state)


def _warn(settings: Settings) -> None:
    for warning in settings.warnings:
        print(f"warning: {warning}", file=sys.stderr)


# --- what the commands take


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="keepgate",
        description="An LLM gateway: one base URL in front of your providers, with an exact and a semantic cache.",
    )
    parser.add_argument("--version", action="version", version=f"keepgate {version('keepgate')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = _command(commands, "serve", _serve, "run the gateway")
    _takes_config(serve)
    serve.add_argument("--host", help="address to listen on (default: server.host, 127.0.0.1)")
    serve.add_argument("--port", type=_port, help="port to listen on (default: server.port, 8080)")
    serve.add_argument("--workers", type=_positive, metavar="N", help="processes (default: server.workers, 1)")

    check = _command(commands, "check-config", _check_config, "validate a configuration; one problem a line")
    check.add_argument("file", type=Path, metavar="FILE")
    _takes_json(check)

    mock = _command(commands, "mock-upstream", _mock_upstream, "run a deterministic provider for tests and benchmarks")
    mock.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    mock.add_argument("--port", type=_port, default=9100, help="port to listen on (default: 9100)")
    mock.add_argument("--latency", type=_amount, default=0.0, metavar="MS", help="wait before each answer")
    mock.add_argument("--tokens", type=_positive, default=32, metavar="N", help="length of each answer (default: 32)")
    mock.add_argument("--chunk-delay", type=_amount, default=0.0, metavar="MS", help="wait between streamed chunks")
    mock.add_argument("--error-rate", type=_share, default=0.0, metavar="R", help="share of calls that fail, 0 to 1")

    keys = _group(commands, "keys", "virtual keys (kg-...)")
    create = _command(keys, "create", _keys_create, "make a key; its secret is printed once")
    name = _checked(issuing.checked_name)
    create.add_argument("--name", required=True, type=name, help="whose key this is, for people")
    create.add_argument("--team", type=name, help="who it shares cache entries with where cache.scope is team")
    create.add_argument("--endpoint", action="append", metavar="NAME", help="may use this one only (repeat for more)")
    model = _checked(issuing.checked_model)
    create.add_argument(
        "--model", action="append", type=model, metavar="NAME", help="may ask this one only (repeat for more)"
    )
    life = _checked(issuing.lifetime)
    create.add_argument("--expires", type=life, metavar="TIME", help="for example 12h or 90d (default: never)")
    _takes_config(create)
    _takes_json(create)
    listing = _command(keys, "list", _keys_list, "all keys, without their secrets")
    _takes_config(listing)
    _takes_json(listing)
    revoke = _command(keys, "revoke", _keys_revoke, "end a key, at once on every worker")
    revoke.add_argument("key_id", metavar="ID", help="as `keepgate keys list` shows it")
    _takes_config(revoke)
    _takes_json(revoke)

    guard = _group(commands, "guard", "what guardrails would do")
    scan = _command(guard, "scan", _guard_scan, "show what the policies would do to a text, a request or a log of them")
    scan.add_argument("file", nargs="?", type=Path, metavar="FILE", help="text, JSON or JSON Lines (default: stdin)")
    scan.add_argument("--endpoint", default="default", metavar="NAME", help="whose policies (default: default)")
    scan.add_argument(
        "--phase", choices=("input", "output"), default="input", help="what goes upstream, or what comes back"
    )
    _takes_config(scan)
    scan.add_argument(
        "--json", action="store_true", help="machine-readable output, as always where stdout is no terminal"
    )

    cache = _group(commands, "cache", "what the stores hold")
    stats = _command(cache, "stats", _cache_stats, "how many entries there are, by endpoint")
    clear = _command(cache, "clear", _cache_clear, "remove entries, at once for every gateway on these stores")
    clear.add_argument("--yes", action="store_true", help="do not ask")
    export = _command(cache, "export", _cache_export, "write entries to a file of JSON Lines, docs/stores.md")
    export.add_argument("file", type=Path, metavar="FILE", help="a new file, or - for stdout")
    export.add_argument("--resume", action="store_true", help="go on with a file that was not finished")
    for command in (stats, clear, export):
        command.add_argument("--endpoint", metavar="NAME", help="of this endpoint only")
        command.add_argument("--key", metavar="ID", help="of this virtual key only, as `keepgate keys list` shows it")
        command.add_argument("--older-than", type=life, metavar="TIME", help="written so long ago, for example 7d")
    reading = _command(cache, "import", _cache_import, "read entries that were exported, from any stores into these")
    reading.add_argument("file", type=Path, metavar="FILE", help="what was exported, or - for stdin")
    reading.add_argument("--re-embed", action="store_true", help="make vectors of another embedder anew")
    warm = _command(cache, "warm", _cache_warm, "make entries of questions and answers before anybody asks")
    warm.add_argument(
        "file", type=Path, metavar="FILE", help='JSON Lines such as {"question": "…", "answer": "…"}, or - for stdin'
    )
    warm.add_argument("--endpoint", required=True, metavar="NAME", help="whose entries these will be")
    warm.add_argument("--model", type=model, metavar="NAME", help="as clients name it, for lines without a model")
    warm.add_argument("--key", metavar="ID", help="for who shares entries with this virtual key (default: no key)")
    warm.add_argument("--ttl", type=life, metavar="TIME", help="for example 7d (default: what the endpoint says)")
    warm.add_argument(
        "--request",
        type=_request_fields,
        default={},
        metavar="JSON",
        help="fields that clients send as well, for example '{\"max_tokens\": 1024}'",
    )
    warm.add_argument("--strict", action="store_true", help="store nothing where a line cannot be used")
    for command in (stats, clear, export, reading, warm):
        _takes_config(command)
        _takes_json(command)

    tune = _command(commands, "tune", _tune, "prove an endpoint's limit of wrong hits from labels, docs/tuning.md")
    tune.add_argument("--endpoint", required=True, metavar="NAME", help="whose hits")
    by = tune.add_mutually_exclusive_group(required=True)
    by.add_argument("--labels", type=Path, metavar="FILE", help="labelled pairs or clusters of questions: JSON Lines")
    by.add_argument("--from-log", type=Path, nargs="*", metavar="FILE", help="the endpoint's own look-ups, or a copy")
    by.add_argument("--review", action="store_true", help="say yourself of one logged pair after another what is right")
    by.add_argument("--judge", metavar="UPSTREAM/MODEL", help="let a model say it")
    by.add_argument("--show", action="store_true", help="what is certified, and whether it holds")
    by.add_argument("--remove", action="store_true", help="take a certificate back")
    tune.add_argument(
        "--limit", type=_share, metavar="R", help="share of wrong hits (default: the endpoint's, or 0.01)"
    )
    tune.add_argument("--confidence", type=_share, default=0.95, metavar="R", help="default: 0.95")
    tune.add_argument("--strict", action="store_true", help="refuse a file of labels with lines that cannot be used")
    tune.add_argument("--since", type=life, metavar="TIME", help="look-ups no older than that, for example 7d")
    tune.add_argument("--most", type=_positive, metavar="N", help="pairs to review or judge")
    tune.add_argument(
        "--deadline", type=_positive, default=30, metavar="S", help="seconds for one call of a judge (default: 30)"
    )
    tune.add_argument("--dry-run", action="store_true", help="write nothing")
    _takes_config(tune)
    _takes_json(tune)

    bench = _group(commands, "bench", "benchmarks on your own data")
    caches = _command(bench, "cache", _bench_cache, "policies of a semantic cache side by side on your own questions")
    caches.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="labelled questions: JSON Lines, or a folder"
    )
    caches.add_argument("--profile", default="faq", metavar="NAME", help="what the traffic is like (default: faq)")
    caches.add_argument("--quick", action="store_true", help="a short run, under a minute")
    caches.add_argument("--seeds", type=_positive, metavar="N", help="streams to average over")
    caches.add_argument("--policies", type=_names, metavar="NAMES", help="these only, for example off,exact,ours")
    caches.add_argument("--limit", type=_share, metavar="R", help="share of wrong hits to certify, for example 0.01")
    caches.add_argument("--zipf", type=float, metavar="S", help="in place of the profile's exponent")
    caches.add_argument("--html", type=Path, metavar="FILE", help="one page with the curves")
    caches.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="machine-readable output, in FILE beside the table"
    )
    guards = _command(bench, "guardrails", _bench_guardrails, "how much detectors find in labelled texts")
    guards.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled texts, in files *.jsonl")
    guards.add_argument(
        "--detectors", type=_names, default=("secrets", "pii"), metavar="NAMES", help="default: secrets,pii"
    )
    guards.add_argument("--kinds", type=_names, metavar="NAMES", help="only these count, for example email,iban")
    guards.add_argument("--rules", type=Path, metavar="FILE", help="rules of `secrets`: a gitleaks configuration")
    guards.add_argument(
        "--alias", type=_renamed, action="append", default=[], metavar="THEIRS=OURS", help="what a kind is called here"
    )
    guards.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="machine-readable output, in FILE beside the table"
    )

    models = _group(commands, "models", "embedding models on this machine")
    build = _command(models, "build", _models_build, "build the embedding model into the user's cache folder")
    build.add_argument("model", nargs="?", default="all-MiniLM-L6-v2", metavar="MODEL")
    build.add_argument(
        "--config", type=Path, metavar="FILE", help="fetch or build what cache.embedder names there, in place of MODEL"
    )
    _takes_json(build)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=_sentence(summary))
    parser.set_defaults(run=run)
    return parser


def _group(commands: Any, name: str, summary: str) -> Any:
    parser = commands.add_parser(name, help=summary, description=_sentence(summary))
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _takes_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: the embedded defaults)")


def _takes_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _request_fields(text: str) -> dict[str, Any]:
    from service.pipeline import warm

    try:
        return warm.fields_of(text)
    except warm.BadLine as error:
        raise argparse.ArgumentTypeError(f"it {error}") from error


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of milliseconds")
    return amount


def _share(text: str) -> float:
    amount = _amount(text)
    if amount > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return amount


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names")
    return names


def _renamed(text: str) -> tuple[str, str]:
    theirs, equals, ours = text.partition("=")
    if not (theirs and equals and ours):
        raise argparse.ArgumentTypeError(f"{text!r} is not THEIRS=OURS")
    return theirs.lower(), ours


def _checked(check: Callable[[str], _T]) -> Callable[[str], _T]:
    """`check` as argparse wants it: its words in the message."""

    def checked(text: str) -> _T:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked
