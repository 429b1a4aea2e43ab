"""A model outside Python: StableHLO, ONNX, LiteRT, a web page; see docs/deploy.md.

A solver is a table of numbers (`solvers/table.py`), so the graph that is deployed needs only one
network evaluation and one row's arithmetic (`row.py`): solver, stride, steps and eta are then a
JSON of numbers (`tables.py`) that the same graph runs, whatever they are.
"""
