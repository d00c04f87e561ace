r"""Prove engines on a machine with GPUs: everything that is claimed of them, step by step, resumable.

    python -m tools.gpu_proof --model MODEL --results results/h200 \
        --environment vllm=PYTHON --environment lmdeploy=PYTHON --environment compressor=PYTHON \
        [--steps answers --steps parity] [--gpu 0 --gpu 1 --measure-on 0] [--budget 450]

From the root of a checkout that nothing changes meanwhile: workers import from it. A step is a program of its own with
a time limit and a report in the results folder; beside each report is a record of the command, how it ended, on which
GPU and when. A step that ended, well or not, is not run again unless its command changes or `--failed` or `--again` is
given; one that was cut off is, and goes on from what it wrote where it can. `--budget` ends everything after so many
seconds, for machines that are lent. `--list` shows the steps and what became of them, and makes nothing.

Steps that measure speed or memory have a GPU to themselves, and run after the others, whose engines keep to small
caches: so many of them as `--at-once` says share a GPU. On a GPU of `--measure-on` they run first; each GPU has its
share of the processors, so what runs on the others disturbs little. Steps that are for several GPUs come last, where so
many are given. A conformance run, and an engine's tests, are cut into parts, each a step; when all are there one report
is made of them. `machine.json` in the results folder says what it all ran on: commit, GPUs, driver, and the packages of
each interpreter. Checkpoints that are made of the model, quantised ones and a draft, go to `.cache/gpu-proof`.

This program runs in an environment that has anyengine, its conformance suite and the reference engine, and, for the
oracle, torch and transformers; for the tests also pytest with what `pyproject.toml` names. The environments that are
named, each by the path of its interpreter or a command, must have anyengine and the engine's plugin, `compressor` that
of vLLM beside llmcompressor.

`--rehearse` runs all of it on a CPU, with the reference engine in place of the others: its results are worth nothing.
"""

from .cli import main

main.help = __doc__
main(prog_name="python -m tools.gpu_proof")
