"""The scoreboard: a page and two tables that follow from the reports under ``results/``, and from nothing else."""
