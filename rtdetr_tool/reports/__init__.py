"""Reports: self-contained HTML pages of runs, evaluations and datasets, with their charts as PNG files.

A page is a list of sections of plain blocks (`page`), rendered by one Jinja template. Charts are matplotlib figures
(`charts`, in the look of `drawing`). May import `metrics`, `data`, `ops`, `spec`, `visualize` and the layers below
them; imported by `training`, `workflows` and `commands`.
"""
