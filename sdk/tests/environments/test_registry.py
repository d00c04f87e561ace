"""Which environments there are, what each has, and which is chosen."""

import json
import time

import pytest
from anyengine.environments import (
    add_environment,
    choose_environment,
    environments,
    find_environment,
    registry,
    remove_environment,
    suitable_environments,
)
from anyengine.environments.store import discard, locked
from anyengine.errors import EnvironmentFailed, InvalidConfig


def add(name, interpreter):
    return add_environment(name, str(interpreter.python))


def test_without_any_the_list_is_empty_and_nothing_is_made(home):
    assert environments() == []
    assert not home.exists()


def test_an_added_interpreter_is_listed_with_what_it_has(interpreter):
    there = interpreter().ours().engine()
    add("mine", there)
    [found] = environments()
    engine = found.described.find("simulated")
    assert (found.name, found.python, found.created) == ("mine", str(there.python), False)
    assert (engine.distribution, engine.engine_version, engine.reason) == ("anyengine-simulated 1.0", "1.0", None)
    assert engine.capabilities["sampling"] == ["min_p", "seed", "top_k"]
    assert list(engine.environments) == ["plain", "stalls", "old", "elsewhere"]


def test_an_environment_that_is_not_there_is_refused_with_those_that_are(interpreter):
    add("mine", interpreter().ours())
    with pytest.raises(InvalidConfig, match=r"no environment 'other'; there are: mine.*env create") as caught:
        find_environment("other")
    assert caught.value.field == "environment"


@pytest.mark.parametrize("name", ["a/b", "../a", "", ".", "-a", "a b", "a.lock", "a.log", "x" * 65, "a\n"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(InvalidConfig, match="is no name"):
        find_environment(name)
    with pytest.raises(InvalidConfig, match="is no name"):
        remove_environment(name)


def test_a_name_is_given_once(interpreter):
    there = interpreter().ours()
    add("mine", there)
    with pytest.raises(InvalidConfig, match=r"'mine' already.*anyengine env remove mine"):
        add("mine", there)


def test_a_folder_without_a_record_is_no_environment(home, names):
    (home / "half" / "venv").mkdir(parents=True)
    assert names() == []
    assert remove_environment("half") is False
    assert list(home.iterdir()) == []


def test_a_record_that_cannot_be_read_harms_no_other(home, interpreter, names):
    add("mine", interpreter().ours())
    (home / "broken").mkdir()
    (home / "broken" / "environment.json").write_text("{")
    assert names() == ["mine"]


def test_removing_an_added_interpreter_leaves_its_files(home, interpreter, names):
    there = interpreter().ours()
    add("mine", there)
    assert remove_environment("mine") is True
    assert (names(), there.python.exists(), list(home.iterdir())) == ([], True, [])


def test_removing_what_is_not_there_is_refused(home):
    with pytest.raises(InvalidConfig, match="no environment 'mine'; there are none"):
        remove_environment("mine")
    assert not home.exists()


def test_what_another_process_is_making_is_not_removed(home):
    (home / "mine").mkdir(parents=True)
    with locked("mine"), pytest.raises(EnvironmentFailed, match="another process is making"):
        remove_environment("mine")
    assert (home / "mine").exists()


def test_an_environment_whose_interpreter_is_gone_says_so(interpreter):
    there = interpreter().ours()
    add("mine", there)
    there.python.unlink()
    with pytest.raises(EnvironmentFailed, match=r"interpreter .* is gone.*env doctor mine"):
        find_environment("mine")


# -- what has changed there is seen -----------------------------------------------------------------


def test_nothing_is_started_while_nothing_changes(interpreter, monkeypatch):
    add("mine", interpreter().ours().engine())
    monkeypatch.setattr(registry, "probe", lambda python: pytest.fail("started"))
    assert [found.name for found in suitable_environments("simulated")] == ["mine"]


def test_looking_whether_something_changed_takes_less_than_5_ms(interpreter):
    add("mine", interpreter().ours().engine())
    spent = []
    for _ in range(5):
        before = time.process_time()
        assert suitable_environments("simulated")
        spent.append(time.process_time() - before)
    assert min(spent) < 0.005


def test_an_engine_that_is_installed_later_is_found(interpreter, home):
    there = interpreter().ours()
    add("mine", there)
    assert choose_environment("simulated") is None
    there.engine()
    assert choose_environment("simulated").name == "mine"
    record = json.loads((home / "mine" / "environment.json").read_text())
    assert "simulated" in {engine["name"] for engine in record["described"]["engines"]}


def test_an_edited_plugin_is_asked_again(interpreter):
    there = interpreter().ours().engine()
    add("mine", there)
    there.engine(unavailable="no memory")
    with pytest.raises(EnvironmentFailed, match=r"environment mine is there for simulated.*no memory"):
        choose_environment("simulated")


def test_a_record_that_goes_meanwhile_is_not_written_again(interpreter, names):
    there = interpreter().ours().engine()
    environment = add("mine", there)
    discard("mine")
    assert registry.described_anew(environment).described.find("simulated") is not None
    assert names() == []


# -- which is chosen --------------------------------------------------------------------------------


def test_no_environment_is_chosen_where_none_has_the_engine(interpreter):
    add("mine", interpreter().ours())
    assert (choose_environment("simulated"), suitable_environments("simulated")) == (None, [])


def test_of_several_the_caller_has_to_name_one(interpreter):
    for name in ("a", "b"):
        add(name, interpreter().ours().engine())
    assert [found.name for found in suitable_environments("simulated")] == ["a", "b"]
    with pytest.raises(InvalidConfig, match=r"can run in several: a, b; name one") as caught:
        choose_environment("simulated")
    assert (caught.value.field, caught.value.engine) == ("environment", "simulated")


def test_one_in_which_the_engine_cannot_run_is_not_chosen(interpreter):
    add("a", interpreter().ours().engine(unavailable="no GPU"))
    add("b", interpreter().ours().engine())
    assert choose_environment("simulated").name == "b"


def test_the_only_one_that_had_the_engine_and_is_broken_is_named(interpreter):
    there = interpreter().ours().engine()
    add("mine", there)
    (there.packages / "ours.pth").unlink()
    with pytest.raises(EnvironmentFailed, match=r"environment mine is there for simulated.*anyengine is not installed"):
        choose_environment("simulated")


def test_an_environment_whose_record_cannot_be_renewed_works_nevertheless(interpreter, home):
    there = interpreter().ours()
    add("mine", there)
    there.engine()
    (home / "mine.lock").unlink(missing_ok=True)
    (home / "mine.lock").mkdir()  # as little a file to be opened as in a folder that cannot be written
    assert choose_environment("simulated").name == "mine"
    assert environments()[0].described.find("simulated") is None


def test_paths_that_a_record_cannot_hold_and_users_that_do_not_exist_are_refused(monkeypatch, tmp_path):
    for path in (f"{tmp_path}/\udcff", ""):
        with pytest.raises(InvalidConfig) as caught:
            add_environment("mine", path)
        assert caught.value.field == "python"
    with pytest.raises(EnvironmentFailed, match="there is no interpreter"):
        add_environment("mine", "~nobody-of-that-name/python")
    monkeypatch.setenv("ANYENGINE_HOME", f"{tmp_path}/\udcff")
    with pytest.raises(InvalidConfig, match="ANYENGINE_HOME"):
        environments()


def test_a_log_that_cannot_be_deleted_is_said(interpreter, home):
    (home / "mine.log").mkdir(parents=True)
    with pytest.raises(EnvironmentFailed, match="cannot be deleted"):
        add("mine", interpreter().ours())
