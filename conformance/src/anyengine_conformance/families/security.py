"""Security defaults: nothing of a checkpoint is run, nothing listens, nothing is written where it should not be."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from anyengine import AnyEngineError

from anyengine_conformance.check import OWN, check, family, variant
from anyengine_conformance.ports import open_ports
from anyengine_conformance.weights import copy_without_weights

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

family("security", "Security defaults")

#: Reaches for Python from a template; a sandbox must stop it.
_HOSTILE = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for message in messages %}{{ message.content }}{% endfor %}"
)
HOSTILE = variant("hostile-template", chat_template=_HOSTILE)
ENDLESS = variant("endless-template", chat_template="{% for a in range(99999999) %}{{ a }}{% endfor %}")


@check(
    "security.no-remote-code-by-default",
    must="A loaded engine does not trust a checkpoint's Python code unless it was asked to.",
    advice="pass trust_remote_code on as it is; its default is False",
)
async def no_remote_code_by_default(t: Context) -> None:
    if "trust_remote_code" in t.engine.config.model_fields_set:
        raise t.skip("the configuration of this run asks for remote code")
    t.expect(not t.engine.config.trust_remote_code, expected="trust_remote_code False", seen=True)


@check(
    "security.checkpoint-code-is-not-run",
    must="Python files in a checkpoint are not run by a load with the defaults.",
    advice="give trust_remote_code=False to everything that reads the checkpoint: config, tokenizer, weights",
    variant=OWN,
    deadline=300,
)
async def checkpoint_code_is_not_run(t: Context) -> None:
    source = await _checkpoint(t)
    with tempfile.TemporaryDirectory() as place:
        folder, mark = Path(place) / "model", Path(place) / "mark"
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": names}))
        (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
        try:
            async with t.load(model=str(folder)) as engine:
                await engine.generate(t.prompt, max_tokens=1)
        except AnyEngineError as error:
            t.asked(f"the load was refused: {type(error).__name__}")
        t.expect(
            not mark.exists(), expected="no Python of the checkpoint run", seen="evil.py of the checkpoint was run"
        )


async def _checkpoint(t: Context) -> Path:
    """Folder of the subject's model."""

    async def find() -> Path:
        async with t.load() as engine:
            return engine.model.path

    return await t.once("security.checkpoint", find)


@check(
    "security.no-pickle",
    must="Weights that are a pickle are refused, never read.",
    advice="read safetensors, or another format that is no pickle; unpickling runs whatever the file says",
    variant=OWN,
    deadline=300,
)
async def no_pickle(t: Context) -> None:
    source = await _checkpoint(t)
    with tempfile.TemporaryDirectory() as place:
        folder, mark = Path(place) / "model", Path(place) / "mark"
        copy_without_weights(source, folder, t.weights)
        # A pickle that makes a file when it is read: GLOBAL os.mkdir, its argument, REDUCE, STOP.
        program = f"cos\nmkdir\n(V{mark}\ntR.".encode()
        (folder / "pytorch_model.bin").write_bytes(program)
        refused = False
        try:
            async with t.load(model=str(folder)):
                pass
        except AnyEngineError:
            refused = True
        t.expect(not mark.exists(), expected="the pickle not read", seen="the code in pytorch_model.bin was run")
        t.expect(refused, expected=f"ModelNotFound: there is no {' or '.join(t.weights)}", seen="a loaded engine")


@check(
    "security.templates-are-sandboxed",
    must="A chat template that reaches for Python is refused.",
    advice="leave chat templates to the SDK, which runs them in a sandbox",
    variant=HOSTILE,
)
async def templates_are_sandboxed(t: Context) -> None:
    t.asked("engine.apply_chat_template([{'role': 'user', 'content': 'Hello'}])")
    try:
        text = await t.engine.apply_chat_template([{"role": "user", "content": "Hello"}])
    except AnyEngineError:
        return
    t.expect("class" not in text, expected="an error, or nothing of Python in the text", seen=text)


@check(
    "security.templates-are-bounded",
    must="A chat template that never ends is refused in bounded time.",
    advice="leave chat templates to the SDK, which bounds their time and size",
    variant=ENDLESS,
)
async def templates_are_bounded(t: Context) -> None:
    t.asked("engine.apply_chat_template([{'role': 'user', 'content': 'Hello'}])")
    try:
        text = await t.engine.apply_chat_template([{"role": "user", "content": "Hello"}])
    except AnyEngineError:
        return
    raise t.fail(expected="an error", seen=f"a text of {len(text)} characters")


@check(
    "security.no-open-ports",
    must="A loaded engine listens on no address that other machines reach.",
    advice="bind to 127.0.0.1, or better use pipes and unix sockets",
)
async def no_open_ports(t: Context) -> None:
    if sys.platform != "linux":
        raise t.skip("open ports are looked up in /proc")
    await t.generate(max_tokens=1)
    t.asked("/proc/net/tcp of this process and its children")
    reachable = open_ports()
    t.expect(not reachable, expected="no listening socket beyond the loopback interface", seen=sorted(reachable))


@check(
    "security.nothing-in-the-working-folder",
    must="Generating leaves no file in the working folder.",
    advice="write caches and logs where the platform has a place for them, or nowhere",
)
async def nothing_in_the_working_folder(t: Context) -> None:
    before = set(os.listdir())  # noqa: PTH208 names only
    await t.generate(max_tokens=4)
    t.equal(sorted(set(os.listdir()) - before), [], "new files in the working folder")  # noqa: PTH208


@check(
    "security.environment-is-left-alone",
    must="Generating changes no environment variable of the application.",
    advice="set variables for the worker process, never in os.environ of the application",
)
async def environment_is_left_alone(t: Context) -> None:
    before = dict(os.environ)
    await t.generate(max_tokens=4)
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    t.expect(not changed, expected="the same variables", seen=sorted(changed))


@check(
    "security.stdout-is-the-applications",
    must="An engine writes nothing to the application's stdout.",
    advice="log to stderr through logging; a banner on stdout breaks every program that pipes",
)
async def stdout_is_the_applications(t: Context) -> None:
    sys.stdout.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            await t.generate(max_tokens=4)
            await t.stats()
            sys.stdout.flush()
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        file.seek(0)
        written = file.read(2000).decode("utf-8", "replace")
    t.expect(not written, expected="nothing on stdout", seen=written)
