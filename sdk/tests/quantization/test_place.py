"""Where a scheme's toolchain is: here, in a worker, or in the one environment that has it."""

import sys
from pathlib import Path

import pytest
from anyengine import InvalidConfig, UnknownEngine, UnsupportedCapability, UnsupportedParameter
from anyengine.backend import EnvironmentVariant
from anyengine.environments import DescribedEngine, Environment, EnvironmentDescription, registry
from anyengine.place import Here, Worker
from anyengine.quantization import place
from anyengine.quantization.place import choose_quantizer
from msgspec.structs import replace


@pytest.fixture
def environments(monkeypatch):
    """``environments(name=["scheme"], …)``: each has the engine ``copies``, which cannot run there but quantises."""

    def set_up(**schemes):
        made = [
            Environment(
                name=name,
                python=f"/{name}/python",
                created=True,
                described=EnvironmentDescription(
                    protocol=(1, 1),
                    engines=(DescribedEngine(name="copies", unavailable="no", capabilities={"quantize": found}),),
                ),
                fingerprint="",
            )
            for name, found in schemes.items()
        ]
        monkeypatch.setattr(registry, "environments", lambda: made)
        monkeypatch.setattr(registry, "refreshed", lambda environment: environment)

    set_up()
    return set_up


@pytest.fixture
def known(monkeypatch, copies):
    """``known(**changes)``: the engine ``copies`` is found by its name, its description changed."""

    def found(**changes):
        described = replace(copies.describe(), **changes)
        monkeypatch.setattr(place, "describe", lambda engine: (copies, described))
        return described

    return found


def chosen(engine="copies", scheme="int8-w8a16", **options):
    return choose_quantizer(engine, scheme, None, **{"isolation": "auto", "environment": None, **options})


def test_what_is_safe_for_this_process_runs_in_it(known, environments):
    known(in_process=True)
    assert isinstance(chosen(), Here)
    assert chosen(isolation="process") == Worker("copies", Path(sys.executable))


def test_what_is_not_gets_a_worker_unless_the_caller_asks(known, environments):
    known(in_process=False)
    assert chosen() == Worker("copies", Path(sys.executable))
    assert isinstance(chosen(isolation="none"), Here)


def test_a_plugin_object_runs_here(copies, environments):
    assert isinstance(chosen(copies), Here)


def test_the_only_environment_with_the_toolchain_is_taken(known, environments):
    described = known()
    known(capabilities=replace(described.capabilities, quantize=frozenset()))
    environments(other=["int4-gptq"], mine=["int8-w8a16"])
    assert chosen() == Worker("copies", Path("/mine/python"), "mine")


def test_an_engine_that_is_only_in_an_environment_is_found_there(monkeypatch, environments):
    def unknown(engine):
        raise UnknownEngine(f"no {engine}")

    monkeypatch.setattr(place, "describe", unknown)
    environments(mine=["int8-w8a16"])
    assert chosen() == Worker("copies", Path("/mine/python"), "mine")
    with pytest.raises(UnknownEngine):
        chosen(scheme="int3")
    with pytest.raises(UnknownEngine):
        chosen(isolation="none")


def test_of_several_environments_the_caller_names_one(known, environments, monkeypatch):
    described = known()
    known(capabilities=replace(described.capabilities, quantize=frozenset()))
    environments(one=["int8-w8a16"], two=["int8-w8a16"])
    with pytest.raises(InvalidConfig, match="several: one, two") as caught:
        chosen()
    assert caught.value.field == "environment"


def test_where_no_toolchain_is_it_says_how_to_get_one(known, environments):
    described = known()
    known(
        capabilities=replace(described.capabilities, quantize=frozenset()),
        environments={
            "cpu": EnvironmentVariant(python=">=3.11", steps=()),
            "tools": EnvironmentVariant(python=">=3.11", steps=(), quantize=True),
        },
    )
    with pytest.raises(UnsupportedCapability, match="env create copies --variant tools"):
        chosen()


def test_a_scheme_that_no_place_has_is_refused_with_those_that_are_here(known, environments):
    known()
    environments(mine=["int4-gptq"])
    with pytest.raises(UnsupportedParameter, match="int8-w8a16, int8-w8a8"):
        chosen(scheme="int3")


def test_wishes_that_contradict_each_other_are_refused(copies, known, environments):
    with pytest.raises(InvalidConfig, match="belongs to a worker process"):
        chosen(isolation="none", environment="mine")
    with pytest.raises(InvalidConfig, match="a plugin object runs in this process only"):
        chosen(copies, environment="mine")
