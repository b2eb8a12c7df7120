"""`tensorrt.layers_precision`: the precision of individual layers, as `layer:precision` (from TAO)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rtdetr_tool.errors import UserError

PRECISIONS = ("fp32", "fp16", "int8", "int32")
OTHERS = "*"


@dataclass(frozen=True)
class LayerRule:
    pattern: str
    precision: str

    def __str__(self) -> str:
        return f"{self.pattern}:{self.precision}"


@dataclass(frozen=True)
class LayerRules:
    """Rules in the user's order; the last match applies, and `*` applies if no other rule matches."""

    rules: tuple[LayerRule, ...] = ()

    def match(self, name: str, op_type: str = "") -> LayerRule | None:
        """The rule for a node; a pattern matches node names, or is an operator such as Softmax."""
        fallback = None
        for rule in reversed(self.rules):
            if rule.pattern == OTHERS:
                fallback = fallback or rule
            elif fnmatchcase(name, rule.pattern) or rule.pattern == op_type:
                return rule
        return fallback

    def check(self, nodes: Iterable[tuple[str, str]]) -> None:
        """Raise UserError for patterns that match none of the nodes (name, operator)."""
        nodes = list(nodes)
        problems = []
        for rule in self.rules:
            if rule.pattern == OTHERS or any(fnmatchcase(n, rule.pattern) or rule.pattern == op for n, op in nodes):
                continue
            known = [name for name, _ in nodes] + sorted({op for _, op in nodes})
            near = difflib.get_close_matches(rule.pattern.replace("*", ""), known, n=3, cutoff=0.3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            problems.append(f"'{rule.pattern}' matches no layer of the graph{hint}")
        if problems:
            raise UserError(
                "gen_trt_engine.tensorrt.layers_precision: " + "\n  ".join(problems) + "\n  expected a node's name, a "
                "pattern with * and ?, an operator's name, or * for all others"
            )


def parse_layers_precision(entries: Sequence[str] | None) -> LayerRules:
    """Parse entries `layer:precision`; the last colon separates, so layer names may contain colons.

    Raises:
        UserError: entries have another form or an unknown precision; the message lists them.
    """
    rules, problems = [], []
    for entry in entries or ():
        pattern, colon, precision = str(entry).rpartition(":")
        pattern, precision = pattern.strip(), precision.strip().lower()
        if not colon or not pattern:
            problems.append(f"'{entry}' is not of the form layer:precision")
        elif precision not in PRECISIONS:
            near = difflib.get_close_matches(precision, PRECISIONS, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(
                f"'{entry}': precision '{precision}' is invalid; expected one of {', '.join(PRECISIONS)}{hint}"
            )
        else:
            rules.append(LayerRule(pattern, precision))
    if problems:
        raise UserError("gen_trt_engine.tensorrt.layers_precision: " + "\n  ".join(problems))
    return LayerRules(tuple(rules))
