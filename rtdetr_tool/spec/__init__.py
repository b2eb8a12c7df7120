"""The spec: what it holds, how it is read and checked. Nothing here imports torch.

In: YAML or JSON and overrides. Out: `LoadedSpec`: frozen dataclasses, what the user gave, notes.

    fields, schema, queries          a field declares everything about itself; lists elsewhere are queries
    experiment, model, train, ...    one module per section; `model` collects the fields of all families
    commands                         the one table of commands: sections, requirements, examples
    load, documents, references      composing, reading within limits, expanding `${...}`
    convert, validate                types and bounds of each field; agreement between fields
    default_spec, json_schema, reference_page   the schema for people and programs
    tables, sources, outputs         differences from TAO, kinds of data sources, files that commands write

Hydra is used in `load` only, OmegaConf in `load` and `documents`. May import `catalog`, `errors` and other modules
without torch. The public names are listed in `__init__.pyi` and imported on first use, because sections of model
families (`families/<name>/spec.py`) are made of `spec.fields` and part of `spec.model`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
