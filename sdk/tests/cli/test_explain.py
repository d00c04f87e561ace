"""``anyengine explain``."""


def test_two_engines_that_agree(anyengine):
    found = anyengine.json("explain", "reference", "reference", "Once upon a time", "--max-tokens", "4")
    assert (found["verdict"], found["engines"], found["parting"]) == ("same", ["reference", "reference"], None)


def test_two_that_differ_are_shown_with_the_reason(anyengine):
    arguments = ["Once upon a time", "--second", "model=storyteller-draft", "--max-tokens", "20"]
    done = anyengine("explain", "reference", "reference", *arguments)
    *_, last = done.stdout.splitlines()
    assert (done.exit_code, last.startswith("model: At token 4 the first chose ' strong'")) == (0, True)
    assert done.stdout.splitlines()[1].split()[:2] == ["model", "differs"]


def test_the_options_reach_both(anyengine):
    done = anyengine("explain", "reference", "reference", "hi", "-o", "dtype=bfloat16")
    assert (done.exit_code, "dtype" in done.stderr) == (2, True)
    done = anyengine("explain", "reference", "nowhere", "hi")
    assert (done.exit_code, "nowhere" in done.stderr) == (2, True)
