"""Starting TGI's launcher, or attaching to a server, and learning what is there."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine.backend.cancellation import despite_cancellation
from anyengine.errors import (
    AnyEngineError,
    EngineDied,
    EngineStartupError,
    EngineUnresponsive,
    InvalidConfig,
    Misuse,
    OutOfMemory,
)
from anyengine_server import (
    ServerClient,
    ServerOptions,
    ServerProcess,
    check_attached,
    free_port,
    is_attached,
    load_tokenizer,
    server_options,
)

from anyengine_tgi.arguments import launcher_arguments
from anyengine_tgi.backend import TgiBackend
from anyengine_tgi.errors import tgi_error
from anyengine_tgi.launcher import PROGRAM, flags
from anyengine_tgi.models import reads_images
from anyengine_tgi.prompts import Prompts
from anyengine_tgi.wire import GenerateResponse, Info

if TYPE_CHECKING:
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from tokenizers import Tokenizer

__all__ = ["load_backend"]

#: Seconds that a launched server may be silent while something is awaited of it.
_READ_TIMEOUT = 300.0
#: Seconds for one question whether it is ready.
_READY_SECONDS = 5.0
#: Seconds that it is given to end by itself.
_PATIENCE = 15.0
#: For want of memory, in the words of the shards, of the router (which writes its errors as Rust's ``Debug`` does), and
#: of its check when what fits is known (``backends/v3/src/main.rs``).
_MEMORY = re.compile(r"(?i)out of memory|not enough memory|NotEnoughMemory|must be <= `max_batch_total_tokens`")


async def load_backend(config: EngineConfig, model: ModelFiles) -> TgiBackend:
    """Bring a backend up; see :class:`~anyengine_tgi.plugin.TgiPlugin`."""
    tokenizer = await asyncio.to_thread(load_tokenizer, model)
    if is_attached(config):
        return await _attach(config, model, tokenizer)
    return await _launch(config, model, tokenizer)


async def _attach(config: EngineConfig, model: ModelFiles, tokenizer: Tokenizer) -> TgiBackend:
    options, rest = server_options(config.native)
    if rest or options.served_model is not None:
        name = min(rest) if rest else "served_model"
        raise InvalidConfig(f"native.{name}: is no option for a running server", field=f"native.{name}")
    check_attached(config, "tgi", frozenset({"max_model_len", "scheduling.max_num_seqs"}))
    client = ServerClient(options, tgi_error)
    try:
        return await _learn(config, model, tokenizer, client, None)
    except BaseException as error:
        await despite_cancellation(client.aclose())
        if isinstance(error, AnyEngineError) and not isinstance(error, (Misuse, EngineStartupError)):
            raise EngineStartupError(f"cannot attach to {options.url}: {error.message}") from error
        raise


async def _launch(config: EngineConfig, model: ModelFiles, tokenizer: Tokenizer) -> TgiBackend:
    program = _program()
    arguments = launcher_arguments(config, model, os.environ)
    if program is None:
        raise EngineStartupError(
            f"there is no {PROGRAM} here; run where TGI is installed (its container has it), or attach to a server: "
            "native={'url': …}"
        )
    place = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="anyengine-tgi-"))
    port, token = free_port(), secrets.token_hex(24)
    own: dict[str, Any] = {
        "hostname": "127.0.0.1",
        "port": port,
        "prometheus_port": free_port(),
        "master_port": free_port(),
        "shard_uds_path": str(place / "shard"),
    }
    # The key goes by a variable, for a command line can be read by every user of the machine; that TGI's launcher
    # writes it on that of its router cannot be helped.
    environment = {**os.environ, **arguments.environment, "API_KEY": token}
    client = ServerClient(
        ServerOptions(url=f"http://127.0.0.1:{port}", token=token, read_timeout=_READ_TIMEOUT), tgi_error
    )
    process: ServerProcess | None = None
    try:
        # Its router writes the tokenizer to a folder ``out`` where it works, and reads what it finds there: two engines
        # in one folder would have each other's (``router/src/server.rs``, ``py_resolve_tokenizer``).
        command = [program, *flags(arguments.values | own)]
        process = await ServerProcess.start(command, name="tgi", environment=environment, folder=place)
        await process.ready(lambda: _is_ready(client))
        backend = await _learn(config, model, tokenizer, client, process, arguments.values.get("dtype"))
    except BaseException as error:
        await despite_cancellation(_undone(client, process, place))
        if isinstance(error, EngineDied):
            raise _startup_error(error) from error
        raise
    backend.on_close(lambda: shutil.rmtree(place, ignore_errors=True))
    return backend


async def _undone(client: ServerClient, process: ServerProcess | None, place: Path) -> None:
    """Leave nothing of a launch that came to nothing."""
    await client.aclose()
    if process is not None:
        await process.stop(_PATIENCE)
    await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


def _program() -> str | None:
    """The launcher, wherever one works: the path may name folders from here."""
    found = shutil.which(PROGRAM)
    return None if found is None else str(Path(found).absolute())


async def _is_ready(client: ServerClient) -> bool:
    try:
        await client.get("/health", timeout=_READY_SECONDS)
    except (EngineDied, EngineUnresponsive):
        return False  # not there yet, or not well yet
    return True


def _startup_error(error: EngineDied) -> AnyEngineError:
    """What a launcher that ended means, by what it wrote last."""
    if _MEMORY.search("\n".join(error.log_tail)):
        return OutOfMemory(
            f"memory did not suffice: {error.message}; give more (kv_cache.gpu_memory_fraction), or ask for less "
            "(max_model_len, scheduling.max_num_batched_tokens)"
        )
    last = [line for line in error.log_tail if "ERROR" in line or "Error" in line]
    words = f": {last[-1].strip()}" if last else ""
    return EngineStartupError(f"TGI did not come up: {error.message}{words}")


async def _learn(
    config: EngineConfig,
    model: ModelFiles,
    tokenizer: Tokenizer,
    client: ServerClient,
    process: ServerProcess | None,
    dtype: str | None = None,
) -> TgiBackend:
    """Ask the server what it is, and whether it counts tokens as we do."""
    info = await client.get_json("/info", Info)
    prompts = Prompts(tokenizer, client, pictures=reads_images(model))
    await prompts.probe(model.name)
    launched = process is not None
    prefill = bool(config.native.get("enable_prefill_logprobs")) if launched else await _gives_prefill(client)
    grammars = not (launched and config.native.get("disable_grammar_support"))
    return TgiBackend(
        config,
        model,
        info,
        client=client,
        prompts=prompts,
        process=process,
        dtype=dtype,
        prefill=prefill,
        grammars=grammars,
    )


async def _gives_prefill(client: ServerClient) -> bool:
    """Whether a running server was started with ``--enable-prefill-logprobs``: a prompt of one token shows it."""
    body = {"inputs": "a b", "parameters": {"max_new_tokens": 1, "decoder_input_details": True}}
    answer = await client.post_json("/generate", body, GenerateResponse)
    return answer.details is not None and any(token.logprob is not None for token in answer.details.prefill)
