"""The spec: its fields, and how it is loaded and validated. Nothing here imports torch.

In: YAML or JSON and overrides. Out: `LoadedSpec`: frozen dataclasses, the values that the user set, notes.

    fields, schema, queries          the declaration of a field has all its properties; lists are queries over it
    experiment, model, train, ...    one module per section; `model` collects the fields of all families
    commands                         the one table of commands: sections, requirements, examples
    load, documents, references      composing, reading within limits, expanding `${...}`
    convert, validate                types and bounds of each field; consistency between fields
    default_spec, json_schema, reference_page   the schema for people and programs
    tables, sources, outputs         differences from TAO, kinds of data sources, files that commands write

Hydra is used in `load` only, OmegaConf in `load` and `documents`. May import `catalog`, `errors` and other modules
without torch. The public names are listed in `__init__.pyi` and imported on first use, because sections of model
families (`families/<name>/spec.py`) use `spec.fields` and are part of `spec.model`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
